//! Appending to the journal by compare-and-swap.

use super::unsound::machines;
use super::{DriverState, Executor, Turn, TurnError};
use crate::{attempts, finalizer, notify, status};
use kube::Api;
use reattach_api::{Phase, PhaseTiming, StoredRecovery, UnreadableField, VolumeRecovery};
use reattach_cluster::store::{self, SaveError};
use reattach_core::ids::StepIx;
use reattach_core::journal::{End, Entry, Event, UnwindReason};
use reattach_core::plain;
use reattach_core::plan::{Pins, Plan, SoundPlan};
use reattach_core::run::State;
use reattach_core::stamp::STAMP_ANNOTATION;
use reattach_core::steps::StepKind;

/// Maximum number of compare-and-swap attempts per turn.
const TRIES: u32 = 8;

impl Executor {
    /// Appends one line and stores it. On a conflict the object is read again. If only the spec changed (an abort, say), a
    /// line that tells what has happened is appended to the new version, and one that begins something is not; if
    /// another process wrote a line, this process stops.
    pub(super) async fn append(
        &self,
        mut recovery: StoredRecovery,
        plan: &SoundPlan,
        event: Event,
        memory: &mut DriverState,
    ) -> Result<StoredRecovery, TurnError> {
        let term = self.gate.leadership().ok_or(TurnError::NotLeader)?.term;
        let lines = recovery.status.as_ref().map_or(0, |s| s.journal.len());
        let entry = Entry {
            seq: u32::try_from(lines).unwrap_or(u32::MAX),
            at: self.collector.clock.now(),
            term,
            by: self.identity.clone(),
            event,
        };
        // Names, reasons and answers of others are in a line of the journal.
        let entry = plain::made_plain(&entry, plain::TEXT_CHARS);
        let begins = matches!(entry.event, Event::Accepted { .. } | Event::Started { .. });
        for _ in 0..TRIES {
            // Another version wrote a line that this version cannot read, so the recovery is that version's now.
            recovery.history().map_err(|_| TurnError::Lost)?;
            self.put(&mut recovery, plan, &entry, memory);
            match store::save(&self.collector.clients.records, &recovery).await {
                Ok(stored) => {
                    memory.wrote_a_line();
                    notify::phase(self, &stored, memory).await;
                    return Ok(stored);
                }
                // It is the same status that would be refused again.
                Err(error) if error.is_refused() => return Err(error.into()),
                Err(SaveError::Gone) => return Err(SaveError::Gone.into()),
                Err(
                    SaveError::Conflict
                    | SaveError::Refused(_)
                    | SaveError::Incomplete(_)
                    | SaveError::Other(_),
                ) => {
                    let name = recovery.name();
                    let api: Api<VolumeRecovery> =
                        Api::namespaced(self.collector.clients.read.clone(), &name.namespace);
                    let Some(now) = api.get_opt(&name.name).await? else {
                        return Err(SaveError::Gone.into());
                    };
                    let now = StoredRecovery::try_from(now)?;
                    let journal = now
                        .status
                        .as_ref()
                        .map(|s| s.journal.as_slice())
                        .unwrap_or_default();
                    let ours = recovery
                        .status
                        .as_ref()
                        .map(|s| s.journal.as_slice())
                        .unwrap_or_default();
                    let last = lines.checked_sub(1);
                    match journal.get(lines..) {
                        // The lines that this one was to follow are not there any more: a backup was restored, say.
                        _ if last.is_some_and(|last| journal.get(last) != ours.get(last)) => {
                            return Err(TurnError::Lost);
                        }
                        // S4: what people changed meanwhile (an abort, a deletion, another approval) is looked at before
                        // anything begins; what has happened is written down whatever they changed.
                        Some([]) if begins && asks_otherwise(&recovery, &now) => {
                            return Err(SaveError::Conflict.into());
                        }
                        Some([]) => recovery = now,
                        // A lost reply: the line may be ours.
                        Some([line]) if line.get() == Ok(&entry) => {
                            memory.wrote_a_line();
                            return Ok(now);
                        }
                        _ => return Err(TurnError::Lost),
                    }
                }
            }
        }
        Err(SaveError::Conflict.into())
    }

    /// The plan or a line of the journal is of another version's shape, or of none. What the run has done is not known
    /// then, and S3 says hold: nothing is restored, lifted or released, not even for an abort or a deletion, until the
    /// version that wrote it, or a person, has settled it.
    pub(super) async fn hold_unreadable(
        &self,
        recovery: StoredRecovery,
        unreadable: &UnreadableField,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        let begun = recovery
            .status
            .as_ref()
            .is_some_and(|s| !s.journal.is_empty());
        let deleted = recovery.metadata.deletion_timestamp.is_some();
        let why = unreadable_sentence(unreadable, begun, deleted) + &machines(&recovery);
        if memory.told != Some(Phase::Stuck) {
            notify::stuck(&recovery, &why);
        }
        self.keep(recovery, Phase::Stuck, why, memory).await?;
        Ok(Turn::NeedsPerson)
    }

    fn put(
        &self,
        recovery: &mut VolumeRecovery,
        plan: &SoundPlan,
        entry: &Entry,
        memory: &DriverState,
    ) {
        let status = recovery.status.get_or_insert_default();
        status.plan = Some(Plan::clone(plan).into());
        status.plan_hash = Some(plan.hash.to_string());
        status.class = Some(plan.class().to_string());
        status.journal.push(entry.clone().into());
        // The number of a question is stored with the intent to ask it: only an answer to that one counts then.
        let kind = |step: &StepIx| plan.steps.get(step.index()).map(|s| s.kind);
        if matches!(&entry.event, Event::Started { step, .. } if kind(step) == Some(StepKind::Challenge))
        {
            status.epoch += 1;
        }
        // A new step, a turn or an end: what was waited for is over.
        let steps_on = !matches!(
            entry.event,
            Event::Started { .. } | Event::Outcome { .. } | Event::UnusedSince { .. }
        );
        if steps_on {
            status.waiting_since = None;
        }
        // All of them: `append` has read them before.
        let entries: Vec<Entry> = status
            .journal
            .iter()
            .filter_map(|e| e.get().ok().cloned())
            .collect();
        status.timings = reattach_report::timings(plan, &entries)
            .into_iter()
            .map(|t| PhaseTiming {
                name: t.name,
                started: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(t.started),
                millis: t.millis,
            })
            .collect();
        let (phase, message) = match State::replay(plan, &entries) {
            Ok(state) => describe(plan, &state),
            Err(illegal) => (
                Phase::Stuck,
                format!("the journal has an illegal line: {illegal}"),
            ),
        };
        let message =
            attempts::announce(recovery, phase, message, entry.at, memory.retries.as_ref());
        status::set(recovery, phase, message, entry.at);
    }
}

fn unreadable_sentence(unreadable: &UnreadableField, begun: bool, deleted: bool) -> String {
    if !begun {
        return format!(
            "{unreadable}. The run has not begun, and nothing is touched. Run the reattach version that wrote it, or delete this VolumeRecovery"
        );
    }
    let ending = if deleted {
        "The VolumeRecovery is being deleted and stays until then"
    } else {
        "A deletion of the VolumeRecovery waits for that too"
    };
    format!(
        "{unreadable}, so it is not known whether an effect is under way. Everything stays in force, and nothing is touched. Run the reattach version that wrote it. Or make sure that no detach is under way at the cloud, restore the workload by its stamp (annotation {STAMP_ANNOTATION}), delete this VolumeRecovery and remove its finalizer {}. {ending}",
        finalizer::FINALIZER
    )
}

/// Whether people want something else of the recovery than they did, or changed its plan.
fn asks_otherwise(before: &VolumeRecovery, now: &VolumeRecovery) -> bool {
    let plan = |r: &VolumeRecovery| r.status.as_ref().and_then(|s| s.plan.clone());
    before.spec != now.spec
        || plan(before) != plan(now)
        || before.metadata.deletion_timestamp.is_some() != now.metadata.deletion_timestamp.is_some()
}

/// Phase and message of a run in this state.
pub(super) fn describe(plan: &Plan, state: &State) -> (Phase, String) {
    let off = left_off(plan, state);
    match (state.ended(), state.unwinding()) {
        (Some(End::Recovered), _) => (
            Phase::Recovered,
            format!("{} runs with its volume again{off}", plan.pins.workload),
        ),
        (Some(End::Aborted), why) => {
            let what = if off.is_empty() {
                "everything"
            } else {
                "what was changed in the cluster"
            };
            (
                Phase::Aborted,
                format!("{}; {what} was restored{off}", unwanted(why)),
            )
        }
        (Some(End::Withdrawn { why }), _) => {
            (Phase::Withdrawn, format!("{why}; nothing was changed"))
        }
        (Some(End::Failed { why }), _) => (Phase::Failed, format!("{why}{off}")),
        (Some(End::Stuck { why }), _) => (Phase::Stuck, format!("{why}{off}")),
        (None, Some(why)) => (Phase::Restoring, format!("unwinding: {why}")),
        (None, None) => {
            let step = state
                .current()
                .and_then(|ix| Some((ix, plan.steps.get(ix.index())?)));
            let message = step.map_or("finishing".to_owned(), |(ix, s)| {
                format!("step {ix} of {}: {}", plan.steps.len(), s.what)
            });
            (Phase::Running, message)
        }
    }
}

/// Hands a machine that this run powered off and did not power on again to a person, by its name.
fn left_off(plan: &Plan, state: &State) -> String {
    if !state.left_off(plan) {
        return String::new();
    }
    let Pins { holder, node, .. } = &plan.pins;
    format!(
        "; instance {holder} (Node {node}) stays powered off: power it on at the cloud once it may run again"
    )
}

/// Why a run ended that was not wanted any more.
fn unwanted(why: Option<&UnwindReason>) -> String {
    match why {
        Some(UnwindReason::Withdrawn { why }) => why.to_string(),
        Some(UnwindReason::Denied { denial }) => denial.to_string(),
        Some(
            UnwindReason::Aborted { .. }
            | UnwindReason::Deadline { .. }
            | UnwindReason::Refused { .. }
            | UnwindReason::Failed { .. }
            | UnwindReason::TakenOver { .. },
        )
        | None => "aborted".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::describe;
    use jiff::Timestamp;
    use reattach_core::fact::{Fact, Source};
    use reattach_core::journal::{End, Entry, Event, Outcome, UnwindReason};
    use reattach_core::plan::{Allowed, Commands, Request, SoundPlan, make_vetted};
    use reattach_core::run::State;
    use reattach_core::runbook::{DEFAULT_RUNBOOK, Runbook};
    use reattach_core::steps::StepKind;
    use reattach_core::testkit::{Case, NODE};

    fn plan() -> SoundPlan {
        let mut case = Case::deployment().holdable().node(|n| n.ready = false);
        let pods = Fact::present(Vec::new(), Source::Kubernetes("Pods".into()), case.now);
        case.evidence.node_pods.insert(NODE.into(), pods);
        let lost = Fact::present(Vec::new(), Source::Kubernetes("Pods".into()), case.now);
        case.evidence.node_losses.insert(NODE.into(), lost);
        case = case.alone_down(NODE);
        let runbook = Runbook::built_in(DEFAULT_RUNBOOK).unwrap();
        let request = Request {
            runbook: &runbook,
            confirm_workload: None,
            commands: Commands::default(),
            for_show: false,
            allowed: Allowed {
                power_off: true,
                ..Allowed::default()
            },
        };
        make_vetted(case.evidence.at(case.now), &case.diagnosis(), &request).unwrap()
    }

    /// The last words about an aborted run of which these lines were written.
    fn aborted_after(plan: &SoundPlan, lines: Vec<Event>) -> String {
        let accepted = Event::Accepted {
            plan_hash: plan.hash.to_string(),
            authority: "test".into(),
        };
        let back = Event::UnwindStarted {
            why: UnwindReason::Aborted { by: "jane".into() },
        };
        let events = [
            vec![accepted],
            lines,
            vec![back, Event::Ended { end: End::Aborted }],
        ]
        .concat();
        let entry = |(seq, event): (usize, Event)| {
            let seq = u32::try_from(seq).unwrap();
            Entry {
                seq,
                at: Timestamp::UNIX_EPOCH,
                term: 1,
                by: "test".into(),
                event,
            }
        };
        let journal: Vec<Entry> = events.into_iter().enumerate().map(entry).collect();
        describe(plan, &State::replay(plan, &journal).unwrap()).1
    }

    #[test]
    fn an_abort_does_not_claim_that_a_machine_was_switched_on_again() {
        let plan = plan();
        let (wait, off) = (
            plan.find(StepKind::Await).unwrap(),
            plan.find(StepKind::PowerOff).unwrap(),
        );
        let waited = Event::Skipped {
            step: wait,
            why: "it did not heal".into(),
        };
        assert_eq!(
            aborted_after(&plan, vec![waited.clone()]),
            "aborted; everything was restored"
        );
        let started = Event::Started {
            step: off,
            intent: "power off".into(),
            proof: None,
            newest_job: None,
        };
        let outcome = Event::Outcome {
            step: off,
            outcome: Outcome::Applied {
                detail: "200".into(),
            },
        };
        let said = aborted_after(&plan, vec![waited, started, outcome]);
        assert!(
            said.contains("instance 26000001") && said.contains("stays powered off"),
            "{said}"
        );
    }
}
