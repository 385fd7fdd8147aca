//! Appending to the journal by compare-and-swap.

use super::{Executor, Memory, TurnError};
use crate::{finish, status};
use kube::{Api, ResourceExt};
use reattach_api::{Opaque, Phase, PhaseTiming, VolumeRecovery};
use reattach_cluster::store::{self, SaveError};
use reattach_core::journal::{End, Entry, Mark};
use reattach_core::machine::State;
use reattach_core::plan::Plan;
use reattach_core::report;

/// A lost compare-and-swap is retried so often before the turn is given up.
const TRIES: u32 = 8;

impl Executor {
    /// Appends one line and stores it. On a conflict the object is read again: if only the spec changed (an abort, say)
    /// the line is appended to the new version; if someone else wrote a line, this process stops.
    pub(super) async fn append(
        &self,
        mut recovery: VolumeRecovery,
        plan: &Plan,
        mark: Mark,
        memory: &mut Memory,
    ) -> Result<VolumeRecovery, TurnError> {
        let term = self.gate.leadership().ok_or(TurnError::NotLeader)?.term;
        let lines = recovery.status.as_ref().map_or(0, |s| s.journal.len());
        let entry = Entry {
            seq: u32::try_from(lines).unwrap_or(u32::MAX),
            at: self.collector.clock.now(),
            term,
            by: self.identity.clone(),
            mark,
        };
        for _ in 0..TRIES {
            self.put(&mut recovery, plan, &entry);
            match store::save(&self.collector.clients.records, &recovery).await {
                Ok(stored) => {
                    finish::tell(self, &stored, memory).await;
                    return Ok(stored);
                }
                Err(SaveError::Gone) => return Err(SaveError::Gone.into()),
                Err(SaveError::Conflict | SaveError::Other(_)) => {
                    let api: Api<VolumeRecovery> = Api::namespaced(
                        self.collector.clients.read.clone(),
                        &recovery.namespace().unwrap_or_default(),
                    );
                    let Some(now) = api.get_opt(&recovery.name_any()).await? else {
                        return Err(SaveError::Gone.into());
                    };
                    let journal = now.status.as_ref().map(|s| s.journal.as_slice()).unwrap_or_default();
                    if journal.len() > lines {
                        // A lost reply: the line may be ours.
                        return if journal[lines..] == [Opaque(entry.clone())] {
                            Ok(now)
                        } else {
                            Err(TurnError::Lost)
                        };
                    }
                    recovery = now;
                }
            }
        }
        Err(SaveError::Conflict.into())
    }

    fn put(&self, recovery: &mut VolumeRecovery, plan: &Plan, entry: &Entry) {
        let status = recovery.status.get_or_insert_default();
        status.plan = Some(Opaque(plan.clone()));
        status.plan_hash = Some(plan.hash.to_string());
        status.class = Some(plan.class().to_string());
        status.journal.push(Opaque(entry.clone()));
        let entries: Vec<Entry> = status.journal.iter().map(|e| e.0.clone()).collect();
        status.timings = report::timings(plan, &entries)
            .into_iter()
            .map(|t| PhaseTiming {
                name: t.name,
                started: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(t.started),
                millis: t.millis,
            })
            .collect();
        let (phase, message) = match State::replay(plan, &entries) {
            Ok(state) => describe(plan, &state),
            Err(illegal) => (Phase::Stuck, format!("the journal makes no sense: {illegal}")),
        };
        status::set(recovery, phase, message, entry.at);
    }
}

/// Phase and message of a run in this state.
fn describe(plan: &Plan, state: &State) -> (Phase, String) {
    match (state.ended(), state.turned_back()) {
        (Some(End::Recovered), _) => {
            (Phase::Recovered, format!("{} runs with its volume again", plan.pins.workload))
        }
        (Some(End::Aborted), _) => (Phase::Aborted, "aborted; everything was put back".to_owned()),
        (Some(End::Failed { why }), _) => (Phase::Failed, why.clone()),
        (Some(End::Stuck { why }), _) => (Phase::Stuck, why.clone()),
        (None, Some(why)) => (Phase::Restoring, format!("putting back: {why}")),
        (None, None) => {
            let step = state.current().and_then(|ix| Some((ix, plan.steps.get(ix.index())?)));
            let message = step.map_or("finishing".to_owned(), |(ix, s)| {
                format!("step {ix} of {}: {}", plan.steps.len(), s.what)
            });
            (Phase::Running, message)
        }
    }
}
