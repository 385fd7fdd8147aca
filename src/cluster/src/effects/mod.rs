//! The effects on Kubernetes objects, a file for each kind of object.
//!
//! # Guarantees
//! Each effect is one conditional write (UID and resourceVersion), needs a pass of the gate, and returns what is known of the
//! write as an [`Outcome`](reattach_core::journal::Outcome).

pub mod attachment;
pub mod hold;
pub mod node;
pub mod node_lock;
pub mod workload;
