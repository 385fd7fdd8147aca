//! AWS: EBS volumes and EC2 instances, over the EC2 API.
//!
//! [`AwsProvider`] implements [`reattach_provider_api::Provider`]. The AWS SDK makes and signs the requests. They are
//! sent through an [`HttpTransport`](reattach_provider_api::HttpTransport): [`http_transport`] in production, the
//! simulated cloud's router in memory in tests and drills.
//!
//! Properties of EC2 and its SDK determine the code:
//! - A detach names its instance, and EC2 refuses it when another instance has the volume.
//! - The SDK repeats requests by default, also mutations. Its retries are off, and each mutation has a connector that sends
//!   only once.
//! - EC2 keeps no history of jobs, so the state of the attachment is used instead.
//! - One unknown identifier in a list fails the whole request, so many objects are read by a filter.

mod classify;
mod client;
mod config;
mod connector;
mod detach;
mod handle;
mod limits;
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
