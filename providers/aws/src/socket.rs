//! The HTTP transport of production.

use crate::{
    config::{AwsConfig, ConfigError},
    connector::Mutation,
};
use reattach_provider_api::{HttpTransport, socket};

/// Makes the HTTP transport to the configured API, by [`socket::http_transport`].
///
/// # Errors
/// [`ConfigError::Client`] when the HTTP client cannot be made, as on a system without usable TLS roots.
pub fn http_transport(config: &AwsConfig) -> Result<HttpTransport, ConfigError> {
    let mutates = |request: &http::Request<_>| request.extensions().get::<Mutation>().is_some();
    socket::http_transport(config.connect_timeout, config.loopback, mutates)
        .map_err(ConfigError::Client)
}
