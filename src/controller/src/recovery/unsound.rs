//! A run whose stored plan is not the plan that was accepted: another version made it, or its content was changed.

use super::{DriverState, Executor, Turn, TurnError};
use crate::{finalizer::FINALIZER, notify};
use jiff::SignedDuration;
use reattach_api::{Phase, StoredRecovery, VolumeRecovery};
use reattach_cluster::stamped::{self, Marked};
use reattach_cluster::tidy;
use reattach_core::plan::{Unsound, may_have_freed, power_orders};
use reattach_core::stamp::{Doubt, STAMP_ANNOTATION, Scaled, Verdict, judge};
use reattach_core::workload::{ScalePath, WorkloadRef};

/// A restoring write that was refused, or a list that could not be read, is tried again so much later.
const TRIED_AGAIN: SignedDuration = SignedDuration::from_secs(20);

impl Executor {
    /// Nothing further is done by an unsound plan: the recovery is held and a person is called. A workload that this
    /// recovery scaled to zero gets its count back, for which the stamp suffices. Only where a detach may be under way
    /// (S3) the workload stays at zero: the plan that says which volume would have to be read back is not to be trusted.
    pub(super) async fn hold_unsound(
        &self,
        recovery: StoredRecovery,
        unsound: &Unsound,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        // A journal that cannot be read may hold a detach, too.
        let may_have_freed = recovery
            .history()
            .map_or(true, |(_, journal)| may_have_freed(journal));
        let restored = may_have_freed || self.put_back_by_stamp(&recovery).await;
        let deleted = recovery.metadata.deletion_timestamp.is_some();
        let why = sentence(unsound, may_have_freed, deleted) + &machines(&recovery);
        if memory.told != Some(Phase::Stuck) {
            notify::stuck(&recovery, &why);
        }
        self.keep(recovery, Phase::Stuck, why, memory).await?;
        if restored {
            Ok(Turn::NeedsPerson)
        } else {
            Ok(Turn::Pause {
                until: self.later(TRIED_AGAIN),
            })
        }
    }

    /// Restores every workload of its namespace that carries a stamp of this recovery. Returns whether none is left.
    ///
    /// The plan is not to be trusted, so its count is not either: the stamp counts within what the workload shows of its
    /// past, as for a recovery whose record is gone.
    async fn put_back_by_stamp(&self, recovery: &StoredRecovery) -> bool {
        let read = &self.collector.clients.read;
        let found = match stamped::find(read).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the stamps of a recovery could not be listed");
                return false;
            }
        };
        let is_own = |m: &&Marked| {
            m.workload.name.namespace == recovery.name().namespace
                && m.stamp
                    .as_ref()
                    .is_ok_and(|s| s.recovery == *recovery.uid())
        };
        let mut all = true;
        for marked in found.iter().filter(is_own) {
            match self.put_one_back(marked).await {
                Ok(done) => all &= done,
                Err(error) => {
                    tracing::warn!(workload = %marked.workload, %error, "a stamped workload could not be read");
                    all = false;
                }
            }
        }
        all
    }

    /// Returns whether nothing is left to restore by this stamp.
    async fn put_one_back(&self, marked: &Marked) -> Result<bool, kube::Error> {
        let read = &self.collector.clients.read;
        let Some(own) = stamped::read(read, marked).await? else {
            return Ok(true);
        };
        let (replicas, doubt) = match judge(&own.stamp, &Scaled::NoJournal(own.traces(read).await?))
        {
            Verdict::Restore { replicas, doubt } => (replicas, doubt),
            Verdict::Ignore(why) => {
                tracing::warn!(workload = %own.workload, %why, "a stamp is ignored");
                return Ok(true);
            }
        };
        // Another writer has set a count already, and that count stands.
        let count = (own.replicas == 0).then_some(replicas);
        let Ok(pass) = self.gate.tidy() else {
            return Ok(false);
        };
        let path = ScalePath::Replicas;
        let outcome = tidy::restore(&pass, &own.workload, &own.resource_version, path, count).await;
        tracing::warn!(workload = %own.workload, ?outcome, "restored by its stamp, because the plan is not sound");
        if outcome.applied() && count.is_some() {
            self.call_about_stamp(&own.workload, doubt.as_ref()).await;
        }
        Ok(outcome.applied())
    }

    /// Calls a person to a workload that was restored to another count than its stamp says.
    pub(crate) async fn call_about_stamp(&self, workload: &WorkloadRef, doubt: Option<&Doubt>) {
        if let Some(doubt) = doubt {
            notify::person_needed(
                self,
                &notify::reference(workload),
                "StampNotBelieved",
                doubt.to_string(),
            )
            .await;
        }
    }
}

/// Names the machines that the run gave orders about, which reattach does not power on any more, as its journal tells. A line
/// that cannot be read says nothing. Empty: it gave none.
pub(super) fn machines(recovery: &VolumeRecovery) -> String {
    let journal = recovery
        .status
        .iter()
        .flat_map(|s| &s.journal)
        .filter_map(|line| line.get().ok());
    let orders = power_orders(journal);
    if orders.is_empty() {
        return String::new();
    }
    format!(
        ". Before that, the run ordered: {}. reattach sends no further order about that machine. Check whether it runs, and power it on at the cloud once it may run again",
        orders.join(", ")
    )
}

fn sentence(unsound: &Unsound, may_have_freed: bool, deleted: bool) -> String {
    let ending = if deleted {
        "The VolumeRecovery is being deleted and stays until then"
    } else {
        "A deletion of the VolumeRecovery waits for that too"
    };
    if may_have_freed {
        return format!(
            "{unsound}. A detach may be under way, so everything stays in force, and nothing is touched. Run the reattach version that made the plan. Or make sure that no detach is under way at the cloud, restore the workload by its stamp (annotation {STAMP_ANNOTATION}), delete this VolumeRecovery and remove its finalizer {FINALIZER}. {ending}"
        );
    }
    format!(
        "{unsound}. The run does nothing further, and a workload that it scaled to zero gets its count back. Run the reattach version that made the plan. Or delete this VolumeRecovery and remove its finalizer {FINALIZER}; then a new one is made. {ending}"
    )
}
