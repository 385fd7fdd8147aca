//! What fencing a node writes on it: the out-of-service taint, and the quarantine until its agent answers clean.

/// The taint by which Kubernetes is told that a node is down for good: its pods are removed and its volumes detached
/// (KEP-2268; `TaintNodeOutOfService` in `k8s.io/api/core/v1/well_known_taints.go`).
pub const OUT_OF_SERVICE_TAINT: &str = "node.kubernetes.io/out-of-service";

/// The value of our out-of-service taint: one with another value is someone else's.
pub const TAINT_VALUE: &str = "reattach";

/// Our own taint (`NoSchedule`) on a node that was fenced, until its agent answers clean. Its value is the UID of the
/// VolumeRecovery that put it there.
pub const QUARANTINE_TAINT: &str = "reattach.dev/quarantine";
