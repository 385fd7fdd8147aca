//! The steps of a runbook, one file for each: what it needs, its effect, what becomes of a lost effect, its end, its words.
//!
//! # To add a step
//! A variant of [`StepKind`], an arm in [`StepKind::spec`], an entry in [`StepKind::ALL`], and a file that has the
//! [`StepSpec`]. The compiler names each of them, and refuses a step of class *once* whose lost effect nothing observes.

mod await_detached;
mod await_healing;
mod challenge;
mod cloud_detach;
mod cloud_force;
mod cx;
mod delete_attachment;
mod handshake;
mod held;
mod hold;
pub(crate) mod keep_off;
mod lift;
mod node;
mod pins;
mod power;
mod prove;
mod quarantine;
mod release;
mod requeue;
mod restore;
mod scale;
mod snapshot;
mod spec;
mod taint;
mod verify;

use serde::{Deserialize, Serialize};

pub use spec::{EffectClass, Role, StepSpec};

pub(crate) use cx::StepCx;
pub use release::way_out;
pub(crate) use spec::{Available, Describe, Lost, UndoneBy};

/// The steps that this build can perform; a runbook that uses another word is refused with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StepKind {
    /// Stamp the workload and set its replicas to zero, in one write; then wait until no pod of it is left.
    ScaleToZero,
    /// Keep new pods of the claim away by a scheduling gate; proven by a dry-run create.
    Hold,
    /// Evict the stuck pod; its owner creates a new pod, which the hold keeps away.
    Release,
    /// Wait until kubelet, the attach/detach controller, the cloud and the VolumeAttachment have let go.
    AwaitDetached,
    /// Detach at the cloud, with a proof, when Kubernetes' own detach is stuck.
    CloudDetach,
    /// Touch a VolumeAttachment whose detach failed, so that external-attacher retries at once.
    Requeue,
    /// Set the stamped replicas again and remove the stamp, in one write.
    Restore,
    /// End the hold: its label off, the gates off the pods that wait.
    Lift,
    /// Wait for Kubernetes or the machine to heal it; the next step takes over when the patience is over.
    Await,
    /// Power the holder off at the cloud. Planned only where a policy or a person allows it.
    PowerOff,
    /// Wait for a proof that the holder cannot write: off, gone, declared, rebooted and clean, or its kubelet's word.
    Prove,
    /// Put the out-of-service taint on the dead holder's Node, so that Kubernetes lets go of its pods and volumes.
    TaintOutOfService,
    /// Take the out-of-service taint off again.
    Untaint,
    /// Power the holder on again. Planned only where a policy asks for it.
    PowerOn,
    /// Switch the automatic restart of a machine off that lost its power without a shutdown job. Planned only where a policy
    /// or a person allows powering off, and the cloud reads the machine as off without a proof.
    KeepOff,
    /// Switch the automatic restart on again.
    LetBoot,
    /// Keep new pods off the fenced node until its agent answers clean.
    Quarantine,
    /// Ask the holder's agent to scan the machine again.
    Challenge,
    /// Delete the VolumeAttachment by its UID, with a proof.
    DeleteAttachment,
    /// Make a snapshot of the volume at the cloud before it is detached by force. Planned only where a policy asks for it.
    Snapshot,
    /// Detach at the cloud by force, with a proof that the instance is off or gone.
    CloudForce,
    /// Wait until the pod is Ready with its volume and exactly one holder.
    Verify,
}

impl StepKind {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 22] = [
        Self::ScaleToZero,
        Self::Hold,
        Self::Release,
        Self::AwaitDetached,
        Self::CloudDetach,
        Self::Requeue,
        Self::Restore,
        Self::Lift,
        Self::Await,
        Self::PowerOff,
        Self::Prove,
        Self::TaintOutOfService,
        Self::Untaint,
        Self::PowerOn,
        Self::KeepOff,
        Self::LetBoot,
        Self::Quarantine,
        Self::Challenge,
        Self::DeleteAttachment,
        Self::Snapshot,
        Self::CloudForce,
        Self::Verify,
    ];

    /// Everything that is fixed about the step.
    pub const fn spec(self) -> &'static StepSpec {
        match self {
            Self::ScaleToZero => &scale::SPEC,
            Self::Hold => &hold::SPEC,
            Self::Release => &release::SPEC,
            Self::AwaitDetached => &await_detached::SPEC,
            Self::CloudDetach => &cloud_detach::SPEC,
            Self::Requeue => &requeue::SPEC,
            Self::Restore => &restore::SPEC,
            Self::Lift => &lift::SPEC,
            Self::Await => &await_healing::SPEC,
            Self::PowerOff => &power::OFF,
            Self::Prove => &prove::SPEC,
            Self::TaintOutOfService => &taint::TAINT_SPEC,
            Self::Untaint => &taint::UNTAINT_SPEC,
            Self::PowerOn => &power::ON,
            Self::KeepOff => &keep_off::KEEP_SPEC,
            Self::LetBoot => &keep_off::LET_SPEC,
            Self::Quarantine => &quarantine::SPEC,
            Self::Challenge => &challenge::SPEC,
            Self::DeleteAttachment => &delete_attachment::SPEC,
            Self::Snapshot => &snapshot::SPEC,
            Self::CloudForce => &cloud_force::SPEC,
            Self::Verify => &verify::SPEC,
        }
    }
}

// Checked when this crate is compiled. `Verify` is the last variant.
const _: () = {
    assert!(
        StepKind::Verify as usize + 1 == StepKind::ALL.len(),
        "StepKind::ALL lacks a step"
    );
    let mut ix = 0;
    while ix < StepKind::ALL.len() {
        let spec = StepKind::ALL[ix].spec();
        assert!(
            spec.kind as usize == ix,
            "a StepSpec or StepKind::ALL names another step"
        );
        assert!(
            !matches!(
                (spec.effect_class, &spec.lost),
                (EffectClass::Once, Lost::MayBeIssuedAgain)
            ),
            "a step of class once whose lost effect nothing observes"
        );
        ix += 1;
    }
};
