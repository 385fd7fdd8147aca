//! Restore: set the stamped replicas again and remove the stamp, in one write.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::fact::Missing;
use crate::ids::StepIx;
use crate::journal::Event;
use crate::loss::PodsGo;
use crate::run::pace::RETRY;
use crate::run::{Action, Effect, Next, RunCx, StepState};
use crate::stamp;
use crate::workload::WorkloadFacts;

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Restore,
    title: "scale back",
    colour: "restore",
    role: Role::Restores,
    effect_class: EffectClass::Conditional,
    lost: Lost::Observed(|cx, started| cx.scaled(started, false)),
    frees: false,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: false,
    goes_on: true,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |_| true,
    describe,
    next: |cx| cx.restore(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "scale {} back to {} and remove the stamp, in one write",
            d.pins.workload, d.pins.replicas
        ),
        precondition: "the VolumeAttachment is gone, the stamp is intact and the count is still 0",
        command: d.scale_command(d.pins.replicas),
        risk: "if someone changed the count meanwhile, their count stands",
        observed_by: "the count",
    }
}

impl StepCx<'_> {
    fn restore(&self) -> Next {
        match self.evidence.workload() {
            Ok(w) => match self.state.step(self.ix) {
                StepState::Issued { outcome, .. } if outcome.applied() => {
                    self.completed("the count is restored and the stamp is off")
                }
                // Also one that was refused: what the run is for is done, and only the way back is left.
                _ => self.restore_next(self.ix, w).unwrap_or_else(|| {
                    if w.replicas == 0 {
                        return self
                            .taken_over()
                            .unwrap_or_else(|| self.poll("the stamp must be read again"));
                    }
                    let why = format!(
                        "{} no longer carries our stamp: someone else restored it",
                        w.workload
                    );
                    Next::Record(Event::Skipped { step: self.ix, why })
                }),
            },
            Err(Missing::Absent) => Next::Record(Event::Skipped {
                step: self.ix,
                why: "the workload was deleted".to_owned(),
            }),
            _ => self.poll("the workload must be read"),
        }
    }
}

impl RunCx<'_> {
    /// The restoring effect, if one is still due. The stamp says that the workload is at zero by this run; the count is the one
    /// that was planned and journaled, since everybody who may write the workload can edit a stamp.
    pub(crate) fn restore_next(self, restore: StepIx, w: &WorkloadFacts) -> Option<Next> {
        let Some(Ok(stamp)) = &w.stamp else {
            return None;
        };
        stamp::own(stamp, &w.workload, self.cx.recovery)?;
        if let Some(pause) = self.before_retry(restore, "the restoring write", RETRY) {
            return Some(pause);
        }
        let replicas = (w.replicas == 0).then_some(self.plan.pins.replicas);
        let mut intent = match replicas {
            Some(n) => format!("scale {} back to {n} and remove the stamp", w.workload),
            None => format!(
                "remove the stamp from {}; its {} replicas are someone else's and stand",
                w.workload, w.replicas
            ),
        };
        if replicas.is_some()
            && let Some(doubt) = stamp::edited(w, self.cx.recovery, self.plan.pins.replicas)
        {
            intent = format!("{intent}; {doubt}");
        }
        Some(Next::Act(Action {
            step: restore,
            intent,
            effect: Effect::Restore {
                workload: w.workload.clone(),
                resource_version: w.resource_version.clone(),
                path: w.scaling,
                replicas,
            },
        }))
    }
}
