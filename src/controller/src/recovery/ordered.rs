//! Orders to the cloud of recoveries whose record was deleted by force: nothing new begins with their volume, and new pods
//! of the claim are held away by a record that does nothing else (the janitor makes it).

use super::{DriverState, Executor, Turn, TurnError};
use crate::finalizer;
use jiff::SignedDuration;
use reattach_api::{Phase, StoredRecovery};
use reattach_cluster::open_orders::{self, Note};
use reattach_core::plan::Plan;

/// How often the note of an order is looked for.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(5);

impl Executor {
    /// One turn of a record that holds new pods away until an order is accounted for. An abort changes nothing about that,
    /// and a deletion waits for it.
    pub(super) async fn hold_for_order(
        &self,
        recovery: StoredRecovery,
        name: &str,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        let (notes, claim) = (self.notes().await?, recovery.claim());
        let Some(note) = notes
            .iter()
            .find(|n| n.name == name && n.may_be_about(&claim))
        else {
            let message =
                "the outcome of the order to the cloud is known, so new pods of the claim are no longer held".to_owned();
            return self
                .settle(recovery, Phase::Resolved, message, memory)
                .await;
        };
        let recovery = finalizer::ensure(self, recovery).await?;
        let message = format!("new pods of the claim are held: {}", self.is_open(note));
        self.keep(recovery, Phase::Stuck, message, memory).await?;
        Ok(Turn::Pause {
            until: self.later(LOOK_AGAIN),
        })
    }

    /// Why a plan may not begin yet: another recovery's order about its volume has no known outcome.
    pub(super) async fn ordered_before(
        &self,
        recovery: &StoredRecovery,
        plan: &Plan,
    ) -> Result<Option<String>, TurnError> {
        let own = recovery.uid();
        let about = |note: &&Note| {
            note.recovery != *own
                && note
                    .order
                    .as_ref()
                    .map_or(true, |order| order.volume == plan.pins.volume)
        };
        let notes = self.notes().await?;
        Ok(notes.iter().find(about).map(|note| self.is_open(note)))
    }

    async fn notes(&self) -> Result<Vec<Note>, kube::Error> {
        open_orders::list(&self.collector.clients.read, self.gate.locks()).await
    }

    fn is_open(&self, note: &Note) -> String {
        let (name, namespace) = (&note.name, self.gate.locks());
        let by = match &note.order {
            Ok(order) => format!("an order of an earlier recovery ({})", order.intent),
            Err(why) => format!("an order of an earlier recovery ({why})"),
        };
        format!(
            "{by} has no known outcome and may still be carried out. Until that is known, nothing begins with the volume. Once you are sure that nothing is under way: kubectl delete lease -n {namespace} {name}"
        )
    }
}
