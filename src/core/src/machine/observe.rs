//! Effects that were started and whose outcome nobody recorded: they are observed, never repeated (S3).

use super::orders::{self, Fate};
use super::{Context, Next, State, StepState};
use crate::cloud::{InstanceState, PowerChange};
use crate::evidence::{Evidence, MAX_AGE};
use crate::fact::Reading;
use crate::journal::{Mark, Outcome};
use crate::plan::{Plan, StepIx};
use crate::runbook::StepKind;
use jiff::{SignedDuration, Timestamp};

/// How long a write to Kubernetes, or an order of a snapshot, is waited for after its reply was lost: the client's own limit
/// (30 s) and as much again for proxies. No safety rests on it: what lands later is conditional on UID and version, and the
/// janitor takes it away again. An order that frees a volume or changes an instance's power has no such limit.
pub(super) const IN_FLIGHT: SignedDuration = SignedDuration::from_secs(60);
/// How often the cloud is looked at while waiting for it.
pub(super) const CLOUD_POLL: SignedDuration = SignedDuration::from_secs(1);

/// What to do about an outstanding effect. `None`: there is none.
pub(super) fn outstanding(plan: &Plan, state: &State, evidence: &Evidence, cx: &Context<'_>) -> Option<Next> {
    let step = state.outstanding()?;
    let started = match state.step(step) {
        StepState::Started { at } | StepState::Issued { started: at, .. } => *at,
        _ => return None,
    };
    Some(match plan.steps.get(step.index()).map(|s| s.kind) {
        Some(StepKind::ScaleToZero) => scaled(step, evidence, cx, started, true),
        Some(StepKind::Restore) => scaled(step, evidence, cx, started, false),
        Some(StepKind::CloudDetach | StepKind::CloudForce) => detached(step, plan, state, evidence, cx),
        Some(StepKind::PowerOff) => powered(step, plan, state, evidence, cx, PowerChange::Off),
        Some(StepKind::PowerOn) => powered(step, plan, state, evidence, cx, PowerChange::On),
        Some(StepKind::Snapshot) => snapshotted(step, plan, evidence, cx, started),
        // What is still due is issued again.
        Some(
            StepKind::Hold
            | StepKind::Release
            | StepKind::Lift
            | StepKind::Requeue
            | StepKind::TaintOutOfService
            | StepKind::Untaint
            | StepKind::Quarantine
            | StepKind::Challenge
            | StepKind::DeleteAttachment,
        ) => repeatable(step, "no reply was heard; the write names the object's UID and may be made again"),
        Some(StepKind::Await | StepKind::AwaitDetached | StepKind::Prove | StepKind::Verify) | None => {
            repeatable(step, "such a step has no effect")
        }
    })
}

/// The workload itself tells: our stamp is on it or not.
fn scaled(step: StepIx, evidence: &Evidence, cx: &Context<'_>, started: Timestamp, to_zero: bool) -> Next {
    if evidence.workload.at < started {
        return wait(cx.now, "the workload was read before the last write was started");
    }
    match evidence.workload.read(cx.now, MAX_AGE) {
        Reading::Present(w) => {
            let stamped = matches!(&w.stamp, Some(Ok(s)) if s.recovery == *cx.recovery);
            let seen = format!("{} has {} replicas, stamp of ours: {stamped}", w.workload, w.replicas);
            // A stamp without the zero (a crash between the two writes of the /scale path) counts as not applied; the
            // effect is then issued again on the stamp that is there.
            let applied = if to_zero { stamped && w.replicas == 0 } else { !stamped };
            observed(step, applied, &seen)
        }
        Reading::Absent => observed(step, !to_zero, "the workload is gone"),
        _ => wait(cx.now, "the workload must be read to know whether the last write was applied"),
    }
}

/// The cloud tells: its history shows what became of the request. The holder alone does not: a request that is still on its
/// way would be carried out on the next holder.
fn detached(step: StepIx, plan: &Plan, state: &State, evidence: &Evidence, cx: &Context<'_>) -> Next {
    let started = state.sent_at(step).unwrap_or(cx.now);
    let known = match orders::detach(step, plan, state, evidence, cx, started) {
        Fate::Unread(what) => return wait(cx.now, what),
        Fate::Unreachable => return wait(cx.now, &unreachable("the detach")),
        Fate::Pending => return wait(cx.now, "a job of the volume is pending at the provider"),
        Fate::Unseen => return wait(cx.now, &lost("the detach")),
        Fate::Ended { seen, .. } | Fate::Over(seen) => seen,
    };
    let (free, says) = match evidence.cloud_volume.read(cx.now, MAX_AGE) {
        // What was read is another volume's.
        _ if orders::is_unreachable(plan, evidence, cx.now) => (false, "the cloud could not be asked"),
        Reading::Present(volume) if volume.holders.contains(&plan.pins.holder) => {
            (false, "the cloud still names the holder")
        }
        Reading::Present(_) => (true, "the cloud no longer names the holder"),
        Reading::Absent => (true, "the cloud has no such volume"),
        Reading::Stale { .. } | Reading::Unknown { .. } => (false, "the cloud could not be asked"),
    };
    observed(step, free, &format!("{known}; {says}"))
}

/// The history of the instance's power tells; where the cloud boots nothing by itself, the instance's state does, too.
fn powered(
    step: StepIx,
    plan: &Plan,
    state: &State,
    evidence: &Evidence,
    cx: &Context<'_>,
    change: PowerChange,
) -> Next {
    let started = state.sent_at(step).unwrap_or(cx.now);
    let fate = orders::power(step, plan, state, evidence, cx, change, started);
    let instance = evidence.instances.get(&plan.pins.holder).filter(|f| f.at >= started);
    let shown = instance.and_then(|f| f.read(cx.now, MAX_AGE).present()).map(|i| &i.state);
    let wanted = match change {
        PowerChange::Off => InstanceState::Off,
        PowerChange::On => InstanceState::Running,
    };
    match fate {
        Fate::Unread(what) => wait(cx.now, what),
        Fate::Unreachable => wait(cx.now, &unreachable("the order about the instance's power")),
        Fate::Pending => wait(cx.now, "a job changes the instance's power at the provider"),
        Fate::Ended { seen, well } => observed(step, well, &seen),
        Fate::Unseen | Fate::Over(_) if shown == Some(&InstanceState::Gone) => {
            observed(step, true, "the cloud reports the instance as gone")
        }
        Fate::Unseen if state_tells(plan, evidence) && shown == Some(&wanted) => {
            observed(step, true, "the instance is in the state that was ordered")
        }
        Fate::Over(seen) => match shown {
            Some(now) => observed(step, *now == wanted, &format!("{seen}; the instance is {now:?}")),
            // For the machine counts what has a person look at it: ordered off it may be off, ordered on it may not be on.
            None if orders::is_unreachable(plan, evidence, cx.now) => observed(
                step,
                change == PowerChange::Off,
                &format!("{seen}; the instance could not be asked about and counts as off"),
            ),
            None => wait(cx.now, "the instance must be read to know what became of the order"),
        },
        Fate::Unseen => wait(cx.now, &lost("the order about the instance's power")),
    }
}

/// Whether the cloud never changes an instance's power by itself.
pub(super) fn state_tells(plan: &Plan, evidence: &Evidence) -> bool {
    evidence.power.get(&plan.pins.holder).and_then(|f| f.shown()).is_some_and(|f| f.off_stays_off)
}

/// What is waited for where nothing tells what became of an order.
pub(super) fn lost(order: &str) -> String {
    format!(
        "{order} has no known outcome and the provider's history does not show it: it may still arrive, so nothing is lifted or restored; once you are sure that nothing is under way: kubectl reattach declare --nothing-under-way"
    )
}

/// What is waited for where nothing leads to the cloud any more.
pub(super) fn unreachable(order: &str) -> String {
    format!(
        "{order} has no known outcome and the cloud cannot be asked, since the PersistentVolume is gone: it may still be under way, so nothing is lifted or restored; once you are sure that nothing is under way: kubectl reattach declare --nothing-under-way"
    )
}

/// The label tells: a snapshot carries it or not. Where none does after a while, or nothing could be read until the step's
/// deadline, another one may be begun: it frees nothing, and a second snapshot does no harm.
fn snapshotted(step: StepIx, plan: &Plan, evidence: &Evidence, cx: &Context<'_>, started: Timestamp) -> Next {
    let seconds = plan.steps.get(step.index()).map_or(0, |s| s.deadline_seconds);
    let given_up = cx.now.duration_since(started) > SignedDuration::from_secs(seconds.into());
    let unread = "the snapshots must be read to know whether one was begun";
    let read = evidence.snapshots.as_ref().filter(|f| f.at >= started);
    match read.and_then(|f| Some((f.at, f.read(cx.now, MAX_AGE).present()?))) {
        Some((_, all)) if !all.is_empty() => {
            observed(step, true, &format!("snapshot {} carries this recovery's label", all[0].id))
        }
        Some((at, _)) if at.duration_since(started) > IN_FLIGHT => {
            repeatable(step, "no snapshot carries this recovery's label, and a second one would do no harm")
        }
        Some(_) => wait(cx.now, "the request for a snapshot may still be on its way"),
        None if given_up => repeatable(step, "the snapshots could not be read until the deadline"),
        None => wait(cx.now, unread),
    }
}

fn repeatable(step: StepIx, why: &str) -> Next {
    Next::Record(Mark::Outcome { step, outcome: Outcome::Repeatable { why: why.to_owned() } })
}

fn observed(step: StepIx, applied: bool, seen: &str) -> Next {
    let seen = seen.to_owned();
    let outcome =
        if applied { Outcome::ObservedApplied { seen } } else { Outcome::ObservedNotApplied { seen } };
    Next::Record(Mark::Outcome { step, outcome })
}

fn wait(now: Timestamp, why: &str) -> Next {
    Next::Wait { why: why.to_owned(), until: now.saturating_add(CLOUD_POLL).unwrap_or(now) }
}
