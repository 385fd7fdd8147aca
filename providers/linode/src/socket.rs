//! The HTTP transport of production.

use crate::config::{ConfigError, LinodeConfig};
use reattach_provider_api::{HttpTransport, socket};

/// Makes the HTTP transport to the configured API, by [`socket::http_transport`].
///
/// # Errors
/// [`ConfigError::Client`] when the HTTP client cannot be made, as on a system without usable TLS roots.
pub fn http_transport(config: &LinodeConfig) -> Result<HttpTransport, ConfigError> {
    let mutates = |request: &http::Request<_>| request.method() != http::Method::GET;
    socket::http_transport(config.connect_timeout, config.loopback, mutates)
        .map_err(ConfigError::Client)
}
