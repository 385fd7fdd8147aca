//! A stage for the shipped binaries: a real control plane, simulated kubelets and a simulated Linode, the manifests of
//! `deploy/`, and reattach as processes with exactly the rights that those manifests give.

pub mod cluster;
pub mod command;
pub mod fencing;
pub mod logs;
pub mod measure;
pub mod processes;
pub mod stage;
pub mod workloads;

pub use processes::Process;

pub use stage::{Stage, StageOptions};

use std::time::Duration;

/// Anything on the real control plane happens within this time or not at all: on an idle machine it takes 30 s at most, besides
/// [`fencing::DEATH`].
pub const LIMIT: Duration = Duration::from_secs(300);
/// How long a recycled machine is off.
pub const AWAY: Duration = Duration::from_secs(3);
