//! Release: evict the stuck pod; its owner creates a new pod, which the hold keeps away. Where a PodDisruptionBudget refuses the
//! eviction and the policy says so, delete the pod by its UID instead.

use super::StepKind;
use super::cx::StepCx;
use super::pins::pin_changed;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::budget::StuckPods;
use crate::diagnosis::Trouble;
use crate::evidence::PodFacts;
use crate::journal::Outcome;
use crate::loss::PodsGo;
use crate::plan::Plan;
use crate::run::pace::later;
use crate::run::{Action, Effect, Next, StepState};
use jiff::{SignedDuration, Timestamp};

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Release,
    title: "release the stuck pod",
    colour: "release",
    role: Role::Acts,
    effect_class: EffectClass::Conditional,
    lost: Lost::MayBeIssuedAgain,
    frees: true,
    pods_go: PodsGo::OfTheClaim,
    repeats: false,
    undone_by: None,
    starts_work: true,
    goes_on: true,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |_| true,
    describe,
    next: |cx| cx.release(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "evict the stuck pod of {}, so that its node unmounts and detaches the volume{}",
            d.pins.workload,
            match d.stuck_pods {
                StuckPods::Evict => String::new(),
                StuckPods::DeleteByUid { after_seconds } => format!(
                    "; if a PodDisruptionBudget has refused that for {after_seconds} s, delete the pod by its UID, with its own grace period"
                ),
            }
        ),
        precondition: "the hold is in force; the pod is not Ready or its mount is dead; its node is Ready and runs the CSI driver; its owner creates a new pod",
        command: format!(
            "kubectl -n {} delete pod {}",
            d.namespace(),
            d.pod.map_or("POD", |p| p.name.as_str())
        ),
        risk: match d.stuck_pods {
            StuckPods::Evict => {
                "a PodDisruptionBudget may refuse the eviction; the run then unwinds"
            }
            StuckPods::DeleteByUid { .. } => {
                "a PodDisruptionBudget may refuse the eviction; the deletion that follows passes by it"
            }
        },
        observed_by: "the pod object is gone",
    }
}

impl StepCx<'_> {
    pub(crate) fn release(&self) -> Next {
        let Ok(pods) = self.evidence.pods() else {
            return self.poll("the claim's pods must be read");
        };
        if matches!(self.state.step(self.ix), StepState::Issued { at, .. } if self.evidence.pods.at < *at)
        {
            return self.poll("the claim's pods must be read again");
        }
        if self.no_user_left(pods) {
            return self.handshake_begins().unwrap_or_else(|| {
                self.completed(if self.plan.closes_node {
                    "no pod of the claim is on the node, and none can come to it"
                } else {
                    "no pod of the claim is on a node, and none can come to one"
                })
            });
        }
        if let Some(refused) = self.was_refused().or_else(|| self.before_next_eviction()) {
            return refused;
        }
        match pods
            .iter()
            .find(|p| !self.is_away(p) && p.deleting_since.is_none())
        {
            Some(pod) => self.propose_release(pod),
            None => self.poll("kubelet takes the evicted pod down"),
        }
    }

    fn propose_release(&self, pod: &PodFacts) -> Next {
        let pins = &self.plan.pins;
        if !pins.pods.iter().any(|(_, uid)| *uid == pod.uid) {
            return self.refused(&pin_changed(
                "the claim's pods",
                &"the pinned ones",
                &format!("also {}", pod.name),
            ));
        }
        if let Some(node) = pod.node.as_ref().filter(|n| **n != pins.node) {
            return self.refused(&pin_changed("the pod's node", &pins.node, node));
        }
        if let Some(other) = self
            .not_held_since(self.entered)
            .or_else(|| self.stands_against())
        {
            return other;
        }
        let dead_mount = matches!(
            self.plan.trouble,
            Trouble::Phantom {
                dead_mount: true,
                ..
            }
        );
        if pod.ready && !dead_mount {
            return self.poll(&format!(
                "pod {} is Ready and its mount is not known to be dead",
                pod.name
            ));
        }
        let (name, uid) = (pod.name.clone(), pod.uid.clone());
        let (intent, effect) = match self.deletion_is_due() {
            false => (
                format!("evict pod {name} (UID {uid})"),
                Effect::Release { pod: name, uid },
            ),
            true => (
                format!(
                    "delete pod {name} (UID {uid}) with its own grace period: PodDisruptionBudgets have refused its eviction for {} s",
                    self.plan.stuck_pods.patience_seconds()
                ),
                Effect::DeletePod { pod: name, uid },
            ),
        };
        Next::Act(Action {
            step: self.ix,
            intent,
            effect,
        })
    }

    /// When the pod is deleted that no budget lets be evicted; none where the policy or the plan does not say so. The policy is
    /// read anew: a plan may be older than its last change.
    fn deletion_at(&self) -> Option<Timestamp> {
        let after = match self.plan.stuck_pods {
            StuckPods::Evict => return None,
            StuckPods::DeleteByUid { after_seconds } => after_seconds,
        };
        let ceiling = self.evidence.mandate().ok()?.ceiling.as_ref()?;
        let since = self.state.budget_refuses_since(self.cx.term)?;
        ceiling
            .deletes_stuck_pods
            .then(|| later(since, SignedDuration::from_secs(after.into())))
    }

    fn deletion_is_due(&self) -> bool {
        self.deletion_at().is_some_and(|at| self.cx.now >= at)
    }

    /// The pause before an eviction is asked for again that a budget refused. `None`: it is over, or the deletion is due.
    fn before_next_eviction(&self) -> Option<Next> {
        let StepState::Issued {
            outcome: Outcome::RefusedByBudget { why },
            at,
            ..
        } = self.state.step(self.ix)
        else {
            return None;
        };
        let again = later(*at, self.backoff(self.ix));
        let until = self.deletion_at().map_or(again, |at| at.min(again));
        self.until(until, &self.budget_refuses(why))
    }

    /// What is said while budgets refuse the eviction: which, with its numbers; what reattach does; what a person can do.
    pub(crate) fn budget_refuses(&self, answer: &str) -> String {
        let pods = self.evidence.pods().map_or(&[][..], Vec::as_slice);
        let known = self.evidence.budgets().map_or(&[][..], Vec::as_slice);
        let refusing: Vec<String> = known
            .iter()
            .filter(|b| pods.iter().any(|p| p.is_kept_by(b)))
            .map(ToString::to_string)
            .collect();
        let budgets = match refusing.as_slice() {
            [] => format!("a PodDisruptionBudget refuses the eviction of the stuck pod ({answer})"),
            [one] => format!("{one} refuses the eviction of the stuck pod"),
            many => format!(
                "{} refuse the eviction of the stuck pod",
                many.join(" and ")
            ),
        };
        let then = match (self.plan.stuck_pods, self.deletion_at()) {
            (StuckPods::DeleteByUid { after_seconds }, Some(_)) => format!(
                "reattach asks again, and deletes the pod by its UID once that has lasted {after_seconds} s"
            ),
            (StuckPods::DeleteByUid { .. } | StuckPods::Evict, _) => format!(
                "reattach asks again for {} s in all, and then lifts the hold",
                self.step.deadline_seconds
            ),
        };
        format!("{budgets}; {then}; {}", way_out(self.plan))
    }
}

/// What a person can do about a PodDisruptionBudget that keeps a stuck pod: a scale to zero asks no budget.
pub fn way_out(plan: &Plan) -> String {
    let workload = &plan.pins.workload;
    let confirm = if plan.pins.replicas > 1 {
        format!(
            " --confirm-workload {}/{}",
            workload.kind, workload.name.name
        )
    } else {
        String::new()
    };
    format!(
        "to free the volume without an eviction: kubectl reattach recover -n {} {} --runbook scale-to-zero{confirm}",
        plan.claim.namespace, plan.claim.name
    )
}
