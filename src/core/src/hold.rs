//! The hold: new pods of one claim are kept away from every node for the seconds in which its volume is freed.
//!
//! A label on our own VolumeRecovery is the parameter of a MutatingAdmissionPolicy (GA in Kubernetes 1.36), which gives new
//! pods of that claim a scheduling gate. Nothing that belongs to others is written. That the hold is in force is seen by a
//! dry-run create of one pod, never concluded from the label: the policy fails open.

/// The label on a VolumeRecovery, with the value `true`.
pub const HOLD_LABEL: &str = "reattach.dev/hold";

/// The scheduling gate on pods that are held away.
pub const HOLD_GATE: &str = "reattach.dev/hold";

/// The MutatingAdmissionPolicy and its binding, as `deploy/` names them.
pub const HOLD_POLICY: &str = "reattach-hold";
