//! The custom resources of group `reattach.dev`, their validation rules, and the YAML that installs them.
//!
//! Plans, journals and diagnoses are the types of [`reattach_core`]; in the schema they are objects whose unknown
//! fields are preserved, because their shape is versioned by the plan's own `version` field and checked when read.

// The lint takes the print columns of kube's derive for repetitions.
#![allow(clippy::duplicated_attributes)]

mod bounds;
mod crds;
pub mod metadata;
mod node_volume_report;
mod opaque;
mod recovery_policy;
mod stored_recovery;
mod volume_recovery;

pub use bounds::{SMALL_STATUS_BYTES, STATUS_BYTES};
pub use crds::{all_crds, crd_yaml};
pub use node_volume_report::{
    NodeVolumeReport, NodeVolumeReportSpec, NodeVolumeReportStatus, Said,
};
pub use opaque::{Opaque, Unreadable, UnreadableField};
pub use reattach_core::phase::Phase;
pub use recovery_policy::{
    Budgets, EmptyDirRule, NodePolicy, OptOutRule, PolicySelector, PowerOffRule, RecoveryPolicy,
    RecoveryPolicySpec, Retries, SnapshotRule, StuckPodRule,
};
pub use stored_recovery::StoredRecovery;
pub use volume_recovery::{
    Abort, Approval, Declaration, Escalation, NothingUnderWay, PhaseTiming, PowerOff,
    VolumeRecovery, VolumeRecoverySpec, VolumeRecoveryStatus, condition,
};

/// The annotation of a VolumeRecovery that does nothing but hold new pods away, for an order to the cloud whose own record was
/// deleted by force: the name of the order's note (a Lease).
pub const ORDER_ANNOTATION: &str = "reattach.dev/order";

/// The API group of every custom resource.
pub const GROUP: &str = "reattach.dev";
/// The served and stored version.
pub const VERSION: &str = "v1alpha1";
/// An annotation (value `true`) on a claim, a workload or a namespace that keeps reattach away from it.
pub const OPT_OUT_ANNOTATION: &str = "reattach.dev/opt-out";
/// An annotation (any value but `false`) on a Node that is under maintenance: reattach does not fence it.
pub const MAINTENANCE_ANNOTATION: &str = "reattach.dev/maintenance";
/// Annotation of a workload whose emptyDirs may be lost whenever reattach ends its pods: whatever the policy says, and also
/// while a container runs. Value: `true`.
pub const EXPENDABLE_EMPTYDIRS_ANNOTATION: &str = "reattach.dev/expendable-emptydirs";
