//! PowerOff and PowerOn: power the holder off at the cloud, under its node's lock, and on again. Planned only where a policy or a
//! person allows it.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::authority::Mandate;
use crate::cloud::{InstanceState, PowerChange};
use crate::loss::PodsGo;
use crate::run::orders::Fate;
use crate::run::reconcile::{lost, unreachable};
use crate::run::{Action, Effect, Next, RunCx};
use jiff::Timestamp;

pub(super) const OFF: StepSpec = StepSpec {
    kind: StepKind::PowerOff,
    title: "power the holder off",
    colour: "cloud",
    role: Role::Acts,
    effect_class: EffectClass::Once,
    lost: Lost::Order(|cx, started| cx.powered(started, PowerChange::Off)),
    frees: false,
    // A machine is powered off so that the taint may follow: it is not begun where the taint would be refused.
    pods_go: PodsGo::OfTheNode,
    repeats: false,
    undone_by: None,
    starts_work: true,
    goes_on: false,
    reaches_node: true,
    locks_node: true,
    patient: false,
    available_if: |a| a.allowed.power_off,
    describe: describe_off,
    next: |cx| cx.power_off(),
};

pub(super) const ON: StepSpec = StepSpec {
    kind: StepKind::PowerOn,
    title: "power the holder on",
    colour: "cloud",
    role: Role::Restores,
    effect_class: EffectClass::Once,
    lost: Lost::Order(|cx, started| cx.powered(started, PowerChange::On)),
    frees: false,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: false,
    goes_on: true,
    reaches_node: false,
    locks_node: true,
    patient: false,
    available_if: |a| a.allowed.power_off && a.allowed.power_on,
    describe: describe_on,
    next: |cx| cx.power_on(),
};

fn describe_off(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "power instance {} (node {}) off at the cloud",
            d.pins.holder, d.pins.node
        ),
        precondition: "the policy or a person allows it; the node is not Ready; its lock is ours; only the pods and volumes that this plan lists are there",
        command: d.commands.power_off.to_owned(),
        risk: "whatever still runs on the machine stops",
        observed_by: "the cloud accepted it; the proof that it is off comes next",
    }
}

fn describe_on(d: &Describe<'_>) -> Words {
    Words {
        what: format!("power instance {} on again", d.pins.holder),
        precondition: "this run powered it off",
        command: d.commands.power_on.to_owned(),
        risk: "none: its node stays in quarantine until its agent answers clean",
        observed_by: "the cloud accepted it",
    }
}

impl StepCx<'_> {
    pub(crate) fn power_off(&self) -> Next {
        // Who cannot be powered off by us may be by others; the next step waits for the proof.
        if let Some(over) = self.accepted_or_given_up("the cloud accepted it") {
            return over;
        }
        if self.proof().is_ok() {
            return self.skipped("there is a proof already that it cannot write");
        }
        let refused = self.was_refused().or_else(|| self.not_to_be_fenced());
        if let Some(other) = refused.or_else(|| self.power_off_denied()) {
            return other;
        }
        // A shutdown of a machine that is off changes nothing, and no job comes of it that could be a proof.
        let off = self.evidence.instance(&self.plan.pins.holder);
        if self.plan.find(StepKind::KeepOff).is_some()
            && off.is_ok_and(|i| i.state == InstanceState::Off)
        {
            return self.skipped("the instance is off already, and not by this run");
        }
        let pins = &self.plan.pins;
        Next::Act(Action {
            step: self.ix,
            intent: format!("power instance {} ({}) off", pins.holder, pins.node),
            effect: Effect::PowerOff {
                instance: pins.holder.clone(),
                node: pins.node.clone(),
            },
        })
    }

    pub(crate) fn power_on(&self) -> Next {
        if let Some(over) = self.accepted_or_given_up("the cloud accepted it") {
            return over;
        }
        if !self.state.powered_off(self.plan) {
            return self.skipped("this run powered nothing off");
        }
        let pins = &self.plan.pins;
        self.was_refused().unwrap_or_else(|| {
            Next::Act(Action {
                step: self.ix,
                intent: format!("power instance {} on again", pins.holder),
                effect: Effect::PowerOn {
                    instance: pins.holder.clone(),
                    node: pins.node.clone(),
                },
            })
        })
    }

    /// May the machine not be powered off by the word that there is now?
    pub(crate) fn power_off_denied(&self) -> Option<Next> {
        match self.evidence.mandate().map(Mandate::may_power_off) {
            Ok(Ok(())) => None,
            Ok(Err(denial)) if !denial.may_pass() => Some(self.refused(&denial.to_string())),
            Ok(Err(denial)) => Some(self.poll(&denial.to_string())),
            Err(why) => Some(self.poll(&format!(
                "whether policy and approval allow this recovery is not known ({why})"
            ))),
        }
    }

    /// What became of an order about power whose reply was lost: the history of the instance's power tells; where the cloud
    /// boots nothing by itself, the instance's state does, too.
    fn powered(&self, started: Timestamp, change: PowerChange) -> Next {
        let fate = self.fate_of_power_order(self.ix, change, started);
        let shown = self
            .evidence
            .since(started)
            .instance(&self.plan.pins.holder)
            .ok()
            .map(|i| &i.state);
        let wanted = match change {
            PowerChange::Off => InstanceState::Off,
            PowerChange::On => InstanceState::Running,
        };
        match fate {
            Fate::Unread(what) => self.poll(what),
            Fate::Unreachable => self.poll(&unreachable("the order about the instance's power")),
            Fate::Pending => self.poll("a job changes the instance's power at the provider"),
            Fate::Ended { seen, well } => self.observed(well, &seen),
            Fate::Unseen | Fate::Over(_) if shown == Some(&InstanceState::Gone) => {
                self.observed(true, "the cloud reports the instance as gone")
            }
            Fate::Unseen if self.state_tells() && shown == Some(&wanted) => {
                self.observed(true, "the instance is in the state that was ordered")
            }
            Fate::Over(seen) => match shown {
                Some(now) => {
                    self.observed(*now == wanted, &format!("{seen}; the instance is {now:?}"))
                }
                // For the machine counts what has a person look at it: ordered off it may be off, ordered on it may not be on.
                None if self.is_unreachable() => self.observed(
                    change == PowerChange::Off,
                    &format!("{seen}; the instance could not be asked about and counts as off"),
                ),
                None => self.poll("the instance must be read to know what became of the order"),
            },
            Fate::Unseen => self.poll(&lost("the order about the instance's power")),
        }
    }
}

impl RunCx<'_> {
    /// Whether the cloud never changes an instance's power by itself.
    pub(crate) fn state_tells(self) -> bool {
        self.evidence
            .power
            .get(&self.plan.pins.holder)
            .and_then(|f| f.shown())
            .is_some_and(|f| f.off_stays_off)
    }
}
