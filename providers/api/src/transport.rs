//! HTTP as a boxed `tower` service.
//!
//! In production a real HTTP client is behind it. The simulation and the drill call the simulator's router in memory: under
//! tokio's paused clock, real sockets would make timeouts fire early.

use bytes::Bytes;
use http::{Request, Response};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tower::util::BoxCloneSyncService;

/// Sends one request and returns the whole answer. Does not retry and does not follow redirects.
pub type HttpTransport = BoxCloneSyncService<Request<Bytes>, Response<Bytes>, TransportError>;

/// How far a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TransportErrorKind {
    /// The request was not sent: no connection, no name, no TLS. It had no effect.
    BeforeSend,
    /// The request was not sent, because the limiter holds it back ([`crate::limiter`]). It had no effect.
    HeldBack {
        /// Time after which the request would be sent.
        retry_after: Duration,
    },
    /// The request was sent, or may have been, and no complete answer came back.
    AfterSend,
    /// No answer came within the time allowed. How far the request got is not known.
    Timeout,
}

/// A request that got no complete answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TransportError {
    /// How far the request got.
    pub kind: TransportErrorKind,
    /// The failure, in a sentence without credentials.
    pub message: String,
}

impl TransportError {
    /// Makes an error of this kind.
    pub fn new(kind: TransportErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}
