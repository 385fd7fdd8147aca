//! The hold: new pods of one claim are kept away from every node for the seconds in which its volume is freed.
//!
//! A label on our own VolumeRecovery is the parameter of a MutatingAdmissionPolicy (GA in Kubernetes 1.36), which gives new
//! pods of that claim a scheduling gate. Nothing that belongs to others is written. That the hold is in force is seen by a
//! dry-run create of one pod, never concluded from the label: the policy fails open.
//!
//! Where the cluster has no such policy (before 1.36), the node that has to let go is closed to new pods instead, by a taint
//! of our own: pods of the claim may start elsewhere, where Kubernetes attaches the volume once the old node has let go.

use crate::ids::Uid;

/// The label on a VolumeRecovery, with the value `true`.
pub const HOLD_LABEL: &str = "reattach.dev/hold";

/// The scheduling gate on pods that are held away.
pub const HOLD_GATE: &str = "reattach.dev/hold";

/// What the keys of our closing taints (`NoSchedule`) begin with; the UID of the VolumeRecovery follows. A key for each
/// recovery: several on one node neither wait for each other nor take each other's away.
pub const HOLD_TAINT_PREFIX: &str = "hold.reattach.dev/";

/// The key of the taint by which this recovery closes a node.
pub fn hold_taint(recovery: &Uid) -> String {
    format!("{HOLD_TAINT_PREFIX}{recovery}")
}

/// The MutatingAdmissionPolicy and its binding, as `deploy/` names them.
pub const HOLD_POLICY: &str = "reattach-hold";
