//! A transport to the simulated cloud in memory. It uses no socket, so it runs under tokio's paused clock.

use crate::{CloudSim, http::ConnectionCut};
use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use reattach_provider_api::{HttpTransport, TransportError, TransportErrorKind};
use tower::ServiceExt;

/// Calls the simulated cloud in memory.
pub fn in_memory(sim: CloudSim) -> HttpTransport {
    over(crate::router(sim))
}

/// Calls any router in memory. A response marked [`ConnectionCut`] becomes the error of a broken connection.
pub fn over(router: Router) -> HttpTransport {
    let service = tower::service_fn(move |request: Request<Bytes>| {
        let router = router.clone();
        async move {
            let answer = match router.oneshot(request.map(Body::from)).await {
                Ok(answer) => answer,
                Err(never) => match never {},
            };
            let (parts, body) = answer.into_parts();
            let cut =
                || TransportError::new(TransportErrorKind::AfterSend, "the connection broke off");
            if parts.extensions.get::<ConnectionCut>().is_some() {
                return Err(cut());
            }
            let body = body.collect().await.map_err(|_| cut())?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        }
    });
    HttpTransport::new(service)
}
