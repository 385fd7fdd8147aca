//! HTTP as a boxed `tower` service.
//!
//! Production puts a real client behind it; the simulation and the drill call the simulator's router in memory, so
//! that they run under tokio's paused clock, where real sockets make time-outs fire early.

use bytes::Bytes;
use http::{Request, Response};
use serde::{Deserialize, Serialize};
use tower::util::BoxCloneSyncService;

/// Sends one request and collects the whole answer. It never retries and never follows redirects.
pub type HttpTransport = BoxCloneSyncService<Request<Bytes>, Response<Bytes>, TransportError>;

/// How far a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TransportErrorKind {
    /// It never left: no connection, no name, no TLS. It had no effect.
    BeforeSend,
    /// It left, or may have, and no whole answer came back.
    AfterSend,
    /// No answer within the time allowed; how far the request got is not known.
    Timeout,
}

/// A request without a whole answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TransportError {
    /// How far it got.
    pub kind: TransportErrorKind,
    /// What went wrong, in a sentence without credentials.
    pub message: String,
}

impl TransportError {
    /// An error of this kind.
    pub fn new(kind: TransportErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
