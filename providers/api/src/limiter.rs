//! Limits the requests of one credential, so that other clients of the account keep their share of the provider's limit.
//!
//! A CSI driver usually has the credential of the same account, and the provider counts the requests of both together. While
//! many volumes are stuck, the driver must detach and attach all of them. Reads that only show what is the case must not
//! take its requests away.
//!
//! `governor` does not fit: its waits use a timer of their own instead of tokio's clock, and it knows no limits that the
//! provider announces and no precedence.

mod admission;
mod bucket;
mod layer;
mod limit;
mod usage;

pub use admission::Limiter;
pub use layer::{Reading, limited};
pub use limit::{Allowance, Announced, Held, Published, Purpose, RequestKind};
pub use usage::{RequestOutcome, Usage};
