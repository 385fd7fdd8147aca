//! CloudForce: detach at the cloud by force, with a proof that the instance is off or gone.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::loss::PodsGo;
use crate::run::Next;

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::CloudForce,
    title: "detach by force",
    colour: "cloud",
    role: Role::Acts,
    effect_class: EffectClass::Once,
    lost: Lost::Order(|cx, started| cx.detached(started)),
    frees: true,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: true,
    goes_on: false,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |a| a.detaches && a.allowed.force,
    describe,
    next: |cx| cx.cloud_force(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "if the plain detach does not end: detach volume {} from instance {} by force",
            d.pins.volume, d.pins.holder
        ),
        precondition: "a proof that the instance is off or gone",
        command: format!("{} --force", d.commands.detach),
        risk: "none for an instance that does not run",
        observed_by: "no holder, and no job pending on the volume",
    }
}

impl StepCx<'_> {
    pub(crate) fn cloud_force(&self) -> Next {
        self.detach_at_the_cloud(true)
    }
}
