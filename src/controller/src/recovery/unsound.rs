//! A run whose stored plan is not the plan that was accepted: another version made it, or its content was changed.

use super::{Executor, Memory, Turn, TurnError};
use crate::finish::FINALIZER;
use jiff::SignedDuration;
use reattach_api::{Phase, VolumeRecovery};
use reattach_cluster::{stamped, tidy};
use reattach_core::ids::Uid;
use reattach_core::plan::{Unsound, may_have_freed};
use reattach_core::stamp::STAMP_ANNOTATION;
use reattach_core::workload::ScalePath;

/// A restoring write that was refused, or a list that could not be read, is tried again so much later.
const TRIED_AGAIN: SignedDuration = SignedDuration::from_secs(20);

impl Executor {
    /// Nothing further is done by an unsound plan: the recovery is held and a person is called. A workload that this
    /// recovery scaled to zero gets its count back, for which the stamp suffices. Only where a detach may be under way
    /// (S3) the workload stays at zero: the plan that says which volume would have to be read back is not to be trusted.
    pub(super) async fn hold_unsound(
        &self,
        recovery: VolumeRecovery,
        unsound: &Unsound,
        memory: &mut Memory,
    ) -> Result<Turn, TurnError> {
        // A journal that cannot be read may hold a detach, too.
        let may_have_freed = recovery.history().map_or(true, |(_, journal)| may_have_freed(journal));
        let restored = may_have_freed || self.put_back_by_stamp(&Self::uid_of(&recovery)).await;
        let why = sentence(unsound, may_have_freed, recovery.metadata.deletion_timestamp.is_some());
        if memory.told != Some(Phase::Stuck) {
            tracing::error!(recovery = %Self::claim_of(&recovery), why, "a human must look at this recovery");
        }
        self.keep(recovery, Phase::Stuck, why, memory).await?;
        if restored { Ok(Turn::NeedsPerson) } else { Ok(Turn::Pause { until: self.later(TRIED_AGAIN) }) }
    }

    /// Restores every workload that carries a stamp of this recovery. Returns whether none is left.
    async fn put_back_by_stamp(&self, recovery: &Uid) -> bool {
        let found = match stamped::find(&self.collector.clients.read).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the stamps of a recovery could not be looked for");
                return false;
            }
        };
        let mut all = true;
        for own in found.iter().filter(|s| s.stamp.recovery == *recovery) {
            // Someone else has set a count already: theirs stands.
            let count = (own.replicas == 0).then_some(own.stamp.replicas);
            let Ok(pass) = self.gate.tidy() else { return false };
            let path = ScalePath::Replicas;
            let outcome = tidy::restore(&pass, &own.workload, &own.resource_version, path, count).await;
            tracing::warn!(workload = %own.workload, ?outcome, "put back by its stamp: the plan is not sound");
            all &= outcome.applied();
        }
        all
    }
}

fn sentence(unsound: &Unsound, may_have_freed: bool, deleted: bool) -> String {
    let ending =
        if deleted { "it is being deleted and stays until then" } else { "a deletion waits for that, too" };
    if may_have_freed {
        return format!(
            "{unsound}; a detach may be under way, so everything stays in force and nothing is touched; run the reattach version that made the plan, or make sure that no detach is under way at the cloud, put the workload back by its stamp (annotation {STAMP_ANNOTATION}), delete this VolumeRecovery and take off its finalizer {FINALIZER} ({ending})"
        );
    }
    format!(
        "{unsound}; nothing further is done by it, and a workload that it scaled to zero gets its count back; run the reattach version that made the plan, or delete this VolumeRecovery and take off its finalizer {FINALIZER}, and a new one is made ({ending})"
    )
}
