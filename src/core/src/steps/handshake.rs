//! The kubelet handshake: no pod of the claim is left, or can come, where the volume has to be let go.

use super::cx::StepCx;
use crate::evidence::PodFacts;
use crate::journal::Event;
use crate::plan::Releases;
use crate::proof::UnusedSince;
use crate::run::Next;
use crate::runbook::Holding;

impl StepCx<'_> {
    /// A pod of the claim that is seen after the handshake began voids it (a line without a Lease).
    pub(crate) fn user_again(&self) -> Option<Next> {
        let pods = self.evidence.pods().ok();
        let seen = pods.is_some_and(|p| !self.no_user_left(p));
        let begun = self.state.unused_since().is_some_and(|n| n.lease.is_some());
        (seen && begun).then_some(Next::Record(Event::UnusedSince {
            seen: UnusedSince {
                at: self.cx.now,
                lease: None,
            },
        }))
    }

    /// The start of the handshake, if this leader journaled it.
    pub(crate) fn unused_since(&self) -> Option<&UnusedSince> {
        self.state.unused_since_in(self.cx.term)
    }

    /// With no pod left the handshake begins; without the node's Lease it begins again once that can be read, and so it
    /// does under another leader.
    pub(crate) fn handshake_begins(&self) -> Option<Next> {
        let pods = self.evidence.pods().ok()?;
        let lease = self
            .evidence
            .node(&self.plan.pins.node)
            .ok()
            .and_then(|n| n.lease_renewed);
        let due = match self.unused_since() {
            None => true,
            Some(begun) => begun.lease.is_none() && lease.is_some(),
        };
        (self.no_user_left(pods) && due).then_some(Next::Record(Event::UnusedSince {
            seen: UnusedSince {
                at: self.cx.now,
                lease,
            },
        }))
    }

    /// Whether no pod of the claim is, or can come, where the volume has to be let go.
    pub(crate) fn no_user_left(&self, pods: &[PodFacts]) -> bool {
        pods.iter().all(|p| self.is_away(p))
    }

    /// Whether this pod is neither there nor can come there.
    pub(crate) fn is_away(&self, pod: &PodFacts) -> bool {
        let node = &self.plan.pins.node;
        match (self.plan.holding(), self.plan.releases()) {
            // The scheduler keeps those from it that are on no node yet.
            (Holding::ByTaint, _) => pod.node.as_ref() != Some(node),
            (_, Releases::Everyone) => pod.is_held_away(),
            (_, Releases::OldHolder) => pod.is_kept_from(node),
        }
    }
}
