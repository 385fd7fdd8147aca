//! The embedded game day: the shipped controller, agents, runbook and provider against an in-memory cluster and a
//! simulated cloud, in virtual time. No cluster, no credentials.

pub mod app;
pub mod cloud;
pub mod replica;
mod scratch;
mod virtual_time;
pub mod world;

pub use virtual_time::in_virtual_time;
