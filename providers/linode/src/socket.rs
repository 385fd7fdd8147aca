//! The transport of production: reqwest over TLS, without redirects and without retries.

use crate::config::{ConfigError, LinodeConfig};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response};
use reattach_provider_api::{HttpTransport, TransportError, TransportErrorKind};
use std::error::Error;

/// The greatest answer that is read, in bytes. A page of 500 objects is below 1 MiB.
const ANSWER_LIMIT: usize = 16 << 20;

/// HTTP to the configured API.
///
/// Mutations use a connection of their own each: on a kept connection that the server closes at the same moment, one
/// could not tell whether the request arrived.
///
/// # Errors
/// [`ConfigError::Client`] when the system offers no usable TLS roots or the like.
pub fn http_transport(config: &LinodeConfig) -> Result<HttpTransport, ConfigError> {
    let reads = client(config, true)?;
    let mutations = client(config, false)?;
    let service = tower::service_fn(move |request: Request<Bytes>| {
        let client = if request.method() == Method::GET { reads.clone() } else { mutations.clone() };
        send(client, request)
    });
    Ok(HttpTransport::new(service))
}

fn client(config: &LinodeConfig, keep_connections: bool) -> Result<reqwest::Client, ConfigError> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(config.connect_timeout)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .https_only(!config.loopback);
    if config.loopback {
        builder = builder.no_proxy();
    }
    if !keep_connections {
        builder = builder.pool_max_idle_per_host(0);
    }
    builder.build().map_err(|error| ConfigError::Client(sentence(&error)))
}

async fn send(client: reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
    let request = reqwest::Request::try_from(request)
        .map_err(|error| TransportError::new(TransportErrorKind::BeforeSend, sentence(&error)))?;
    let mut answer = client.execute(request).await.map_err(failed)?;
    let mut body = BytesMut::new();
    while let Some(part) = answer.chunk().await.map_err(failed)? {
        if body.len() + part.len() > ANSWER_LIMIT {
            let message = format!("the answer is larger than {ANSWER_LIMIT} bytes");
            return Err(TransportError::new(TransportErrorKind::AfterSend, message));
        }
        body.extend_from_slice(&part);
    }
    let mut response = Response::new(body.freeze());
    *response.status_mut() = answer.status();
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(response)
}

fn failed(error: reqwest::Error) -> TransportError {
    let kind = if error.is_connect() || error.is_builder() {
        TransportErrorKind::BeforeSend
    } else if error.is_timeout() {
        TransportErrorKind::Timeout
    } else {
        TransportErrorKind::AfterSend
    };
    TransportError::new(kind, sentence(&error.without_url()))
}

/// An error with its causes, on one line.
fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    crate::classify::quote(&text)
}
