//! Everything that talks to a Kubernetes API server: reading (live or from watches), the two writing clients, the leader
//! Lease, the journal's store, and the effects.

pub mod bounds;
pub mod budgets;
pub mod cache;
pub mod client;
pub mod clock;
mod conditional;
pub mod dry_run;
pub mod effects;
pub mod facts;
pub mod gate;
pub mod lease;
pub mod losses;
pub mod names;
pub mod open_orders;
pub mod reply;
pub mod reports;
pub mod rights;
pub mod stamped;
pub mod store;
pub mod tidy;
pub mod view;
pub mod workloads;

#[cfg(test)]
mod tests;

pub use client::{Clients, ConnectError};
pub use clock::Clock;
