//! Linode (Akamai) block storage and instances, over Linode's API v4.
//!
//! [`LinodeProvider`] implements [`reattach_provider_api::Provider`]. It sends its requests through an
//! [`HttpTransport`](reattach_provider_api::HttpTransport): [`http_transport`] in production, the simulated cloud's
//! router in memory in tests and drills.
//!
//! Gaps of Linode's API determine the code:
//! - A detach names no instance and detaches from the present holder, so the holder is read right before it.
//! - Errors have no machine-readable code, so their texts are read.
//! - A volume's status does not show an attach or detach under way, so the job history (`/account/events`) is read.
//! - The watchdog may boot an instance that is "offline", so only the history shows whether it stays off.

mod classify;
mod client;
mod config;
mod detach;
mod event;
mod handle;
mod history;
mod limits;
mod power;
mod preflight;
mod provider;
mod scope;
mod socket;
mod wire;

pub use config::{ConfigError, LinodeConfig, Token};
pub use handle::{DRIVER, NAME, PROVIDER_ID_PREFIX};
pub use provider::LinodeProvider;
pub use socket::http_transport;
