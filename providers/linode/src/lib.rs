//! Linode (Akamai) block storage and instances, over Linode's API v4.
//!
//! [`LinodeProvider`] implements [`reattach_provider_api::Provider`]. It speaks through an
//! [`HttpTransport`](reattach_provider_api::HttpTransport): [`http_transport`] in production, the simulated cloud's
//! router in memory in tests and drills.
//!
//! What Linode's API lacks shapes the code: a detach names no instance and detaches from whoever holds the volume, so
//! the holder is read right before it; errors have no machine-readable code, so their texts are read; a volume's
//! status does not show an attach or detach under way, so the job history (`/account/events`) is read; an instance that is
//! "offline" may be booted by the watchdog, so only the history tells whether it stays so.

mod classify;
mod client;
mod config;
mod detach;
mod event;
mod handle;
mod history;
mod power;
mod preflight;
mod provider;
mod scope;
mod socket;
mod wire;

pub use config::{ConfigError, LinodeConfig, Token};
pub use handle::{DRIVER, PROVIDER_ID_PREFIX};
pub use provider::{LinodeProvider, NAME};
pub use socket::http_transport;
