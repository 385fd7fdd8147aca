//! The embedded game day: the shipped controller, agents, runbook and provider against an in-memory cluster and a
//! simulated cloud, in virtual time. No cluster, no credentials.

mod agents;
pub mod app;
pub mod baseline;
pub mod checks;
pub mod cloud_profile;
mod judged;
mod names;
mod observe;
mod play;
mod proofs;
mod record;
pub mod replica;
pub mod request_log;
mod scenario;
mod scratch;
pub mod stage;
pub mod taint_recorder;
pub mod timeline;
mod virtual_time;
pub mod world;

pub use play::{DrillError, Outcome, WorkloadResult, play};
pub use scenario::{Pace, SCENARIOS, Scenario};
pub use virtual_time::in_virtual_time;
