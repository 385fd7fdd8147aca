//! The HTTP transport of production: reqwest over TLS, without redirects and retries.

use crate::{HttpTransport, TransportError, TransportErrorKind};
use bytes::{Bytes, BytesMut};
use http::{Request, Response, Uri, uri::Scheme};
use reattach_core::plain;
use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

/// Maximum size of an answer, in bytes. A page of 500 objects is a few MiB at most.
const ANSWER_LIMIT: usize = 16 << 20;

/// Maximum length of a quoted text of the provider, in characters.
pub const QUOTED: usize = 300;

/// Makes a transport over sockets.
///
/// Each mutation (a request for which `is_mutation` returns true) uses a new connection. On a kept connection that the
/// server closes at that moment, it would not be known whether the request arrived. With `loopback`, plain HTTP is
/// allowed and no proxy is used.
///
/// # Errors
/// A sentence that names the cause, such as a system without usable TLS roots.
pub fn http_transport(
    connect_timeout: Duration,
    loopback: bool,
    is_mutation: fn(&Request<Bytes>) -> bool,
) -> Result<HttpTransport, String> {
    let reads = client(connect_timeout, loopback, true)?;
    let mutations = client(connect_timeout, loopback, false)?;
    let service = tower::service_fn(move |request: Request<Bytes>| {
        let client = if is_mutation(&request) {
            mutations.clone()
        } else {
            reads.clone()
        };
        send(client, request)
    });
    Ok(HttpTransport::new(service))
}

fn client(
    connect_timeout: Duration,
    loopback: bool,
    keep_connections: bool,
) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(connect_timeout)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .https_only(!loopback);
    if loopback {
        builder = builder.no_proxy();
    }
    if !keep_connections {
        builder = builder.pool_max_idle_per_host(0);
    }
    builder.build().map_err(|error| message(&error))
}

async fn send(
    client: reqwest::Client,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, TransportError> {
    let request = reqwest::Request::try_from(request)
        .map_err(|error| TransportError::new(TransportErrorKind::BeforeSend, message(&error)))?;
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
    TransportError::new(kind, message(&error.without_url()))
}

fn message(error: &reqwest::Error) -> String {
    one_line(&with_causes(error), QUOTED)
}

/// Returns the texts of an error and its causes. A cause that the text already contains is left out.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// Returns a text from outside on one line of at most `most` characters, with everything masked that looks like a credential.
pub fn one_line(text: &str, most: usize) -> String {
    plain::sentence(text, most)
}

/// Returns whether the host of an endpoint is this machine itself.
///
/// # Errors
/// The reason for which credentials must not be sent to the endpoint. It must use https, or be on this machine.
pub fn loopback_of(uri: &Uri) -> Result<bool, &'static str> {
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err("it must begin with https://");
    };
    if authority.as_str().contains('@') {
        return Err("it must not contain credentials; put them into their own setting");
    }
    let host = authority.host();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if *scheme != Scheme::HTTPS && !(*scheme == Scheme::HTTP && loopback) {
        return Err(
            "it must begin with https://, because it receives credentials; http:// is allowed only to this machine itself",
        );
    }
    Ok(loopback)
}

/// Returns the URL without anything that could be a password, for messages.
pub fn redacted(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &url[..scheme], &url[at..]),
        (None, Some(at)) => format!("…{}", &url[at..]),
        _ => url.to_owned(),
    }
}
