//! Parity of the in-memory cluster and a real control plane: how a stock cluster without reattach treats a phantom volume, case by
//! case. The same function runs on the cluster in memory (virtual time) and on a real control plane (real time). Both must stay
//! within the same measured bounds; a figure that is an outcome rather than a time must be equal on both.
//!
//! Each case begins and ends with the pod of its fixture Ready with its volume. A case changes nothing but its own fixture, so
//! that several fixtures can share a cluster.

mod cases;
mod fixture;
mod memory;

pub use cases::{CASES, Figure, disagreements};
pub use fixture::{CaseError, Fixture};
pub use memory::{InMemory, all_in_memory};
