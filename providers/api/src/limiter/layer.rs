//! The limiter around a transport.

use super::admission::Limiter;
use super::limit::{Announced, Purpose, RequestKind};
use crate::{HttpTransport, TransportError, TransportErrorKind};
use bytes::Bytes;
use http::{Request, Response};
use std::sync::Arc;
use tower::ServiceExt;

/// How a provider's requests and answers are read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Returns what a request does.
    pub kind: fn(&Request<Bytes>) -> RequestKind,
    /// Returns what an answer says about the limit.
    pub announced: fn(&Response<Bytes>) -> Announced,
}

/// Wraps the transport: each request passes the limiter. One that is held back is not sent and ends with
/// [`TransportErrorKind::HeldBack`].
pub fn limited(transport: HttpTransport, limiter: Arc<Limiter>, reading: Reading) -> HttpTransport {
    HttpTransport::new(tower::service_fn(move |request: Request<Bytes>| {
        let (transport, limiter) = (transport.clone(), limiter.clone());
        async move {
            let kind = (reading.kind)(&request);
            let purpose = purpose(&request, kind);
            limiter.admit(kind, purpose).await.map_err(|held| {
                TransportError::new(
                    TransportErrorKind::HeldBack {
                        retry_after: held.retry_after,
                    },
                    "not sent: the provider's rate limit is used up",
                )
            })?;
            let answer = transport.oneshot(request).await;
            match &answer {
                Ok(answer) => limiter.answered(kind, purpose, (reading.announced)(answer)),
                Err(_) => limiter.unanswered(kind),
            }
            answer
        }
    }))
}

fn purpose(request: &Request<Bytes>, kind: RequestKind) -> Purpose {
    match kind {
        RequestKind::Change => Purpose::Effect,
        RequestKind::Read | RequestKind::List => request
            .extensions()
            .get::<Purpose>()
            .copied()
            .unwrap_or_default(),
    }
}
