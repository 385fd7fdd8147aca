//! AWS: EBS volumes and EC2 instances, over the EC2 API.
//!
//! [`AwsProvider`] implements [`reattach_provider_api::Provider`]. The AWS SDK makes and signs the requests; they go
//! out through an [`HttpTransport`](reattach_provider_api::HttpTransport): [`http_transport`] in production, the
//! simulated cloud's router in memory in tests and drills.
//!
//! What shapes the code: a detach names its instance, which EC2 compares; the SDK repeats requests by default, mutations
//! included, so it is told not to and each mutation has a connector that sends once; EC2 keeps no history of jobs, so
//! the state of the attachment stands for it; many objects are asked for by filter, since one unknown identifier in a
//! list fails the whole list.

mod classify;
mod client;
mod config;
mod connector;
mod detach;
mod handle;
mod power;
mod preflight;
mod provider;
mod read;
mod snapshot;
mod socket;
mod wire;

pub use config::{AwsConfig, ConfigError};
pub use handle::{DRIVER, PROVIDER_ID_PREFIX};
pub use provider::{AwsProvider, NAME};
pub use socket::http_transport;
