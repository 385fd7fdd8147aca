//! Whose the volume is, looked at again at every step that may free it (safety rules S8 and S10).

use super::Next;
use super::forward::Look;
use crate::diagnosis::Trouble;
use crate::evidence::NodeFacts;
use crate::identity::refusals;
use crate::proof::{NoUser, answers_clean};
use crate::safety::Refusal;

impl Look<'_> {
    /// The holder's own Node, where it lives.
    pub(super) fn living_holder(&self) -> Option<&NodeFacts> {
        let pins = &self.plan.pins;
        let node = self.evidence.node(&pins.node, self.cx.now)?;
        (node.ready && node.instance.as_ref() == Some(&pins.holder)).then_some(node)
    }

    /// What a living machine still has to say before its silence about a volume counts, where no VolumeAttachment speaks
    /// for it: kubelet reports what it mounts through Kubernetes, and nothing else that runs there. So its agent answers
    /// this recovery's question, asked when no pod of the claim was left. `None`: nothing is missing.
    pub(super) fn unanswered(&self, no_user: &NoUser) -> Option<String> {
        let Trouble::Orphan { .. } = self.plan.trouble else { return None };
        let pins = &self.plan.pins;
        let asked = self.state.challenged_in(self.cx.term, self.plan);
        let Some(asked) = asked.filter(|at| *at >= no_user.at) else {
            return Some(format!("the agent on {} has not been asked yet", pins.node));
        };
        let (holder, recovery) = (&pins.holder, self.cx.recovery);
        let answer = answers_clean(self.evidence, &pins.node, holder, asked, recovery, self.cx.now);
        answer.err().map(|why| why.to_string())
    }

    /// Turns the run back where claim, volume or holder turn out not to be what the plan takes them for: others by name, or
    /// other objects of the same name, which nobody planned or approved for. What is only not known is left to the step, which
    /// waits for it.
    pub(super) fn identity_lost(&self) -> Option<Next> {
        if self.step.kind.only_puts_back() {
            return None;
        }
        let found = refusals(self.evidence, Some(&self.plan.pins.holder), self.cx.now);
        let lost = found.iter().find(|r| matches!(r, Refusal::Identity { .. })).map(ToString::to_string);
        Some(self.refused(&lost.or_else(|| self.claim_change())?))
    }
}
