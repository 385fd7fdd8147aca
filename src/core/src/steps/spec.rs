//! The table of steps: what is fixed about each.

use super::{StepCx, StepKind};
use crate::budget::StuckPods;
use crate::ids::ObjectName;
use crate::loss::PodsGo;
use crate::plan::{Allowed, Commands, Pins, PlannedStep, Snapshots};
use crate::run::Next;
use crate::runbook::RunbookStep;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What may happen to an effect that was started and not seen to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EffectClass {
    /// R: may be repeated.
    Repeatable,
    /// C: a conditional write; a repetition against the old version is refused by the API server.
    Conditional,
    /// O: issued once, then observed.
    Once,
}

/// What a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It waits for something and has no effect.
    Waits,
    /// It has an effect on the way forward, for which the recovery needs a mandate.
    Acts,
    /// Its effect takes back what this run did. It needs no mandate, and may follow after the run turned back.
    Restores,
    /// It looks at what came of the run. It needs no mandate.
    Verifies,
}

/// Looks at what became of an effect that was started at this moment and whose reply was lost.
pub(crate) type Observe = fn(&StepCx<'_>, Timestamp) -> Next;

/// What is done about a started effect whose outcome nobody recorded (safety rule S3).
#[derive(Clone, Copy)]
pub(crate) enum Lost {
    /// The step has no effect.
    NoEffect,
    /// The effect may be issued again, if the plan's class of the step is not [`EffectClass::Once`].
    MayBeIssuedAgain,
    /// The object itself shows what became of the effect.
    Observed(Observe),
    /// The effect is an order to the cloud, which may be carried out at any later time. Only the cloud's history, or a
    /// person, tells what became of it.
    Order(Observe),
}

/// The end of what a step begins.
#[derive(Clone, Copy)]
pub(crate) struct UndoneBy {
    /// The step that ends it.
    pub(crate) step: StepKind,
    /// Why an order without that step is refused.
    pub(crate) why: &'static str,
}

/// Everything that is fixed about a step.
#[derive(Clone, Copy)]
pub struct StepSpec {
    /// The step.
    pub kind: StepKind,
    /// The step in a few words.
    pub title: &'static str,
    /// The CSS class of the step in the picture of a run.
    pub colour: &'static str,
    /// What the step is for.
    pub role: Role,
    /// What may happen to an effect that was started and not seen to end. A plan carries it; the machine reads the plan's.
    pub effect_class: EffectClass,
    /// What is done about a lost effect.
    pub(crate) lost: Lost,
    /// Whether the effect frees the volume, or removes the pod that keeps it: new pods are kept away before.
    pub frees: bool,
    /// Which pods go away by the effect. What is lost with them is asked for by this alone (`plan::losses`), so that
    /// a new way to make a pod go meets the same refusals.
    pub pods_go: PodsGo,
    /// Whether the step may stand more than once in an order.
    pub repeats: bool,
    /// The step that ends what this one begins. An order that has one of them has both.
    pub(crate) undone_by: Option<UndoneBy>,
    /// Whether the effect begins something that is not begun any more once the step's deadline is over.
    pub starts_work: bool,
    /// Whether the effect is issued again after it was accepted, until the step's end is seen.
    pub goes_on: bool,
    /// Whether the effect reaches everything on the holder's node (safety rule S7).
    pub reaches_node: bool,
    /// Whether the effect is made under the lock of the holder's node (safety rule S9).
    pub locks_node: bool,
    /// Whether a runbook may give the step a patience, after which the next step takes over.
    pub patient: bool,
    pub(crate) available_if: fn(&Available) -> bool,
    pub(crate) describe: fn(&Describe<'_>) -> Words,
    pub(crate) next: fn(&StepCx<'_>) -> Next,
}

impl fmt::Debug for StepSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StepSpec").field(&self.kind).finish()
    }
}

impl StepSpec {
    /// Whether the step only takes back what the run did, or looks: nobody's word is needed for it, and to turn back would
    /// do no more.
    pub fn needs_no_mandate(&self) -> bool {
        match self.role {
            Role::Restores | Role::Verifies => true,
            Role::Waits | Role::Acts => false,
        }
    }

    /// Whether the step has no effect.
    pub fn only_looks(&self) -> bool {
        match self.role {
            Role::Waits | Role::Verifies => true,
            Role::Acts | Role::Restores => false,
        }
    }

    /// Whether the effect is an order to the cloud that may be carried out at any later time. (A snapshot frees nothing.)
    pub fn is_order(&self) -> bool {
        match self.lost {
            Lost::Order(_) => true,
            Lost::NoEffect | Lost::MayBeIssuedAgain | Lost::Observed(_) => false,
        }
    }
}

/// What cloud, cluster and people make possible, for the choice of a plan's steps.
pub(crate) struct Available {
    /// What the cloud can do and people allow.
    pub(crate) allowed: Allowed,
    /// The cluster can hold pods of one claim away, or the order needs no such hold.
    pub(crate) gates: bool,
    /// The cloud's detach may be in the plan.
    pub(crate) detaches: bool,
    /// The cloud reads the holder as off, and that alone is no proof there.
    pub(crate) off_without_proof: bool,
}

/// What a plan's steps are about, for their words.
pub(crate) struct Describe<'a> {
    pub(crate) claim: &'a ObjectName,
    /// The pod that is stuck, where there is one.
    pub(crate) pod: Option<&'a ObjectName>,
    pub(crate) pins: &'a Pins,
    pub(crate) commands: Commands<'a>,
    pub(crate) snapshots: Snapshots,
    pub(crate) stuck_pods: StuckPods,
    /// The hold is a taint on the node.
    pub(crate) closes_node: bool,
}

/// A step of a plan in words: the fields of [`PlannedStep`].
pub(crate) struct Words {
    pub(crate) what: String,
    pub(crate) precondition: &'static str,
    pub(crate) command: String,
    pub(crate) risk: &'static str,
    pub(crate) observed_by: &'static str,
}

impl Describe<'_> {
    /// The runbook's step as a step of the plan.
    pub(crate) fn planned(&self, step: &RunbookStep) -> PlannedStep {
        let spec = step.step.spec();
        // The deletion has as long as the eviction.
        let patience = match step.step {
            StepKind::Release => self.stuck_pods.patience_seconds(),
            _ => 0,
        };
        let Words {
            what,
            precondition,
            command,
            risk,
            observed_by,
        } = (spec.describe)(self);
        PlannedStep {
            kind: step.step,
            what,
            precondition: precondition.to_owned(),
            command,
            risk: risk.to_owned(),
            observed_by: observed_by.to_owned(),
            effect_class: spec.effect_class,
            deadline_seconds: step.deadline_seconds.saturating_add(patience),
            patience_seconds: step.patience_seconds,
            best_effort: step.step == StepKind::Snapshot && self.snapshots == Snapshots::BestEffort,
        }
    }

    /// The namespace of the workload.
    pub(crate) fn namespace(&self) -> &str {
        &self.pins.workload.name.namespace
    }

    /// The command that scales the workload.
    pub(crate) fn scale_command(&self, replicas: i32) -> String {
        let w = &self.pins.workload;
        let kind = w.kind.to_lowercase();
        format!(
            "kubectl -n {} scale {kind}/{} --replicas={replicas}",
            self.namespace(),
            w.name.name
        )
    }

    /// The command that shows the workload's pods as they change.
    pub(crate) fn watch_pods(&self) -> String {
        format!("kubectl -n {} get pods --watch", self.namespace())
    }
}
