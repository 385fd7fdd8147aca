//! A simulated cloud with faults: instances, volumes and guests whose views can disagree, behind the provider's own HTTP API.
//!
//! - [`CloudSim`] is the cloud: state, faults, request log, holder history. It is independent of any wire format.
//! - [`router`] serves it as Linode's API v4 (`/v4/…`) and as EC2's Query API (`POST /`), with a control API
//!   (`/control/…`) beside them.
//!
//! The cloud has no background tasks: every call first finishes the jobs that are due by its [`clock::Clock`]. So it
//! behaves alike under tokio's paused clock, a manual clock and a wall clock.

pub mod clock;
mod control;
mod ebs;
pub mod ec2;
mod faults;
mod history;
mod http;
mod inject;
pub mod linode;
mod log;
mod model;
mod sim;
mod state;
mod transport;

pub use crate::http::ConnectionCut;
pub use clock::{Clock, ManualClock};
pub use faults::{ErrorBody, Fault, FaultNo, FaultRule, Operation, When};
pub use history::{HoldSource, HolderInterval, Pulled};
pub use log::{Effect, RequestRecord};
pub use model::{
    DetachBehaviour, Instance, InstanceNo, InstanceStatus, Job, JobAction, JobNo, JobStatus,
    OpError, Snapshot, SnapshotNo, Timings, Volume, VolumeNo,
};
pub use sim::{CloudSim, NewInstance, NewVolume};
pub use state::{DeadHost, UnattachedDetach};
pub use transport::{in_memory, over};

/// The simulated cloud's HTTP APIs: Linode's API v4 under `/v4` and `/v4beta`, EC2's Query API at `/`, the control
/// API under `/control`.
pub fn router(sim: CloudSim) -> axum::Router {
    linode::router(sim.clone())
        .merge(ec2::router(sim.clone()))
        .nest("/control", control::router(sim))
}
