//! KeepOff and LetBoot: switch the automatic restart of a machine off that lost its power without a shutdown job, so that the cloud
//! does not boot it while its volume is freed, and on again. Planned only where a policy or a person allows powering off, and the
//! cloud reads the machine as off without a proof.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, UndoneBy, Words};
use crate::cloud::{InstanceState, PowerChange};
use crate::fact::Missing;
use crate::ids::StepIx;
use crate::journal::Outcome;
use crate::loss::PodsGo;
use crate::plan::may_keep_off;
use crate::run::{Action, Effect, Next, RunCx, StepState};

/// The request in sentences about a reply that was lost.
pub(crate) const SWITCH: &str = "the request to switch the automatic restart off";

pub(super) const KEEP_SPEC: StepSpec = StepSpec {
    kind: StepKind::KeepOff,
    title: "switch the automatic restart off",
    colour: "cloud",
    role: Role::Acts,
    // The request names the value to set, so that a repetition changes nothing more.
    effect_class: EffectClass::Repeatable,
    lost: Lost::MayBeIssuedAgain,
    frees: false,
    // No pod runs on a machine that is off.
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: Some(UndoneBy {
        step: StepKind::LetBoot,
        why: "no machine may be left without its automatic restart",
    }),
    starts_work: true,
    goes_on: false,
    reaches_node: false,
    locks_node: true,
    patient: false,
    available_if: |a| a.allowed.power_off && a.allowed.keep_off && a.off_without_proof,
    describe: describe_keep,
    next: |cx| cx.keep_off(),
};

pub(super) const LET_SPEC: StepSpec = StepSpec {
    kind: StepKind::LetBoot,
    title: "switch the automatic restart on",
    colour: "cloud",
    role: Role::Restores,
    effect_class: EffectClass::Repeatable,
    lost: Lost::MayBeIssuedAgain,
    frees: false,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: false,
    goes_on: true,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |a| a.allowed.power_off && a.allowed.keep_off && a.off_without_proof,
    describe: describe_let,
    next: |cx| cx.let_boot(),
};

fn describe_keep(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "switch the automatic restart of instance {} (node {}) off at the cloud",
            d.pins.holder, d.pins.node
        ),
        precondition: "the policy or a person allows powering off; the cloud reads the instance as off, and no job boots it; the node's lock is ours",
        command: d.commands.keep_off.to_owned(),
        risk: "the cloud does not boot the machine until the restart is switched on again",
        observed_by: "the cloud reads the instance as off with its restart off, twice; the proof comes next",
    }
}

fn describe_let(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "switch the automatic restart of instance {} on again",
            d.pins.holder
        ),
        precondition: "this run switched it off",
        command: d.commands.let_boot.to_owned(),
        risk: "none: the cloud may boot the machine, which has the volume no more",
        observed_by: "the cloud reads the restart as on",
    }
}

impl StepCx<'_> {
    pub(crate) fn keep_off(&self) -> Next {
        if let Some(over) = self.switched_off_or_given_up() {
            return over;
        }
        if self.proof().is_ok() {
            return self.skipped("there is a proof already that it cannot write");
        }
        let holder = &self.plan.pins.holder;
        if self.state.powered_off(self.plan) {
            return self.skipped("this run has powered the instance off");
        }
        match self.evidence.cloud_volume() {
            Ok(cloud) if self.cloud_is_free(cloud) => {
                return self.skipped("the cloud does not name it as a holder any more");
            }
            Ok(_) => {}
            Err(_) => return self.poll("the cloud must be read"),
        }
        let instance = match self.evidence.instance(holder) {
            Ok(instance) => instance,
            Err(Missing::Absent) => return self.skipped("the cloud does not find the instance"),
            Err(_) => return self.poll("the instance must be read"),
        };
        if instance.state != InstanceState::Off {
            return self.skipped(&format!("instance {holder} is not off"));
        }
        let Ok(facts) = self.evidence.power(holder) else {
            return self.poll("the history of the instance's power must be read");
        };
        if facts.off_stays_off {
            return self.skipped("the cloud never boots an instance by itself");
        }
        let boots = |change: PowerChange| change == PowerChange::On;
        if let Some(job) = facts
            .jobs
            .iter()
            .find(|j| boots(j.change) && j.is_pending())
        {
            return self.poll(&format!("job {} boots instance {holder}", job.id));
        }
        // A write of an earlier attempt that nobody heard of has arrived.
        if !instance.auto_restart && self.state.unheard_since(self.ix).is_some() {
            return self.completed("the automatic restart is off");
        }
        if let Some(other) = self.was_refused().or_else(|| self.not_to_be_kept_off()) {
            return other;
        }
        let pins = &self.plan.pins;
        Next::Act(Action {
            step: self.ix,
            intent: format!(
                "switch the automatic restart of instance {} ({}) off",
                pins.holder, pins.node
            ),
            effect: Effect::KeepOff {
                instance: pins.holder.clone(),
                node: pins.node.clone(),
            },
        })
    }

    pub(crate) fn let_boot(&self) -> Next {
        if !self.state.keeps_off(self.plan) {
            return self.skipped("this run did not switch the automatic restart off");
        }
        self.let_boot_next(self.ix)
            .unwrap_or_else(|| self.completed("the automatic restart is on"))
    }

    /// The step's effect was accepted, or refused for good. A setting that was off before is no work of this run, unless the
    /// reply to an earlier attempt was lost.
    fn switched_off_or_given_up(&self) -> Option<Next> {
        match self.state.step(self.ix) {
            StepState::Issued {
                outcome: Outcome::NotApplied { retry: false, .. },
                ..
            } if self.state.unheard_since(self.ix).is_some() => {
                Some(self.completed("the automatic restart is off"))
            }
            _ => self.accepted_or_given_up("the cloud switched the automatic restart off"),
        }
    }

    /// What stands against switching the restart off now. Without the word that it takes, the run goes on without it: other
    /// proofs may come.
    fn not_to_be_kept_off(&self) -> Option<Next> {
        let node = &self.plan.pins.node;
        if self.evidence.node(node).is_ok_and(|n| n.ready) {
            return Some(self.skipped(&format!("Node {node} is Ready again")));
        }
        let refusals = may_keep_off(self.plan, self.evidence);
        if let Some(refusal) = refusals.iter().find(|r| !r.may_pass()) {
            return Some(self.skipped(&refusal.to_string()));
        }
        Some(self.poll(&refusals.first()?.to_string()))
    }
}

impl RunCx<'_> {
    /// What is still to do until the automatic restart that this run switched off is on again. `None`: nothing.
    pub(crate) fn let_boot_next(self, step: StepIx) -> Option<Next> {
        let pins = &self.plan.pins;
        let keep = self.plan.find(StepKind::KeepOff)?;
        // A request whose reply was lost may still arrive, and would switch the restart off after it was switched on.
        if let Some(wait) = self.maybe_in_flight(keep, SWITCH) {
            return Some(wait);
        }
        // A reading that shows the restart as on may be older than the request that switched it off. So it is switched on once at
        // least, which sends nothing where it is on.
        let issued = match self.state.step(step) {
            StepState::Issued { outcome, at, .. } => Some((*at, outcome.applied())),
            StepState::Pending | StepState::Started { .. } | StepState::Closed { .. } => None,
        };
        let since = issued.map_or(self.evidence.now, |(at, _)| at);
        match (self.evidence.since(since).instance(&pins.holder), issued) {
            (Ok(instance), Some((_, true))) if instance.auto_restart => return None,
            (Ok(instance), _) if instance.state == InstanceState::Gone => return None,
            (Err(Missing::Absent), Some(_)) => return None,
            (Err(_), Some(_)) => return Some(self.poll("the instance must be read again")),
            (Ok(_) | Err(_), _) => {}
        }
        if let StepState::Issued { at, .. } = self.state.step(step)
            && let Some(pause) = self.pause(
                step,
                *at,
                "waiting until the cloud reads the automatic restart as on",
            )
        {
            return Some(pause);
        }
        Some(Next::Act(Action {
            step,
            intent: format!(
                "switch the automatic restart of instance {} on again",
                pins.holder
            ),
            effect: Effect::LetBoot {
                instance: pins.holder.clone(),
                node: pins.node.clone(),
            },
        }))
    }
}
