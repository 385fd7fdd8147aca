//! The SDK's HTTP client over an [`HttpTransport`]. Production and simulation differ only in the transport.

use aws_sdk_ec2::config::{HttpClient, RuntimeComponents};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use reattach_provider_api::{HttpTransport, Purpose, TransportError, TransportErrorKind};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tower::ServiceExt;

/// Marks a mutation. The transport of production uses a new connection for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mutation;

/// Whether a request was handed to the transport.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent(Arc<AtomicBool>);

impl Sent {
    pub(crate) fn is_sent(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The transport in the form of an SDK connector.
#[derive(Clone)]
pub(crate) struct Connector {
    transport: HttpTransport,
    purpose: Purpose,
    once: Option<Sent>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("once", &self.once)
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// Makes a connector for reads of this purpose.
    pub(crate) fn reading(transport: HttpTransport, purpose: Purpose) -> Self {
        Self {
            transport,
            purpose,
            once: None,
        }
    }

    /// Makes a connector for one mutation. It sends one request and refuses any further one, so that the SDK cannot retry.
    pub(crate) fn once(transport: HttpTransport) -> (Self, Sent) {
        let sent = Sent::default();
        (
            Self {
                transport,
                purpose: Purpose::Effect,
                once: Some(sent.clone()),
            },
            sent,
        )
    }
}

impl HttpClient for Connector {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let Self {
            transport,
            purpose,
            once,
        } = self.clone();
        HttpConnectorFuture::new(async move {
            let unsent = |why: &str| {
                let error = TransportError::new(TransportErrorKind::BeforeSend, why);
                ConnectorError::user(Box::new(error))
            };
            let body = match request.body().bytes() {
                Some(body) => Bytes::copy_from_slice(body),
                None => return Err(unsent("the request's body is a stream")),
            };
            let request = request
                .try_into_http1x()
                .map_err(|_| unsent("the request is not valid HTTP"))?;
            let mut request = request.map(|_| body);
            request.extensions_mut().insert(purpose);
            if let Some(sent) = &once {
                if sent.0.swap(true, Ordering::SeqCst) {
                    // The first request may have had its effect, so its outcome counts.
                    let error = TransportError::new(
                        TransportErrorKind::AfterSend,
                        "a second try was prevented",
                    );
                    return Err(ConnectorError::user(Box::new(error)));
                }
                request.extensions_mut().insert(Mutation);
            }
            let answer = transport
                .oneshot(request)
                .await
                .map_err(|error| match error.kind {
                    TransportErrorKind::Timeout => ConnectorError::timeout(Box::new(error)),
                    TransportErrorKind::BeforeSend
                    | TransportErrorKind::HeldBack { .. }
                    | TransportErrorKind::AfterSend => ConnectorError::io(Box::new(error)),
                })?;
            HttpResponse::try_from(answer.map(SdkBody::from)).map_err(|_| {
                let why = "the SDK cannot read the answer as HTTP";
                ConnectorError::io(Box::new(TransportError::new(
                    TransportErrorKind::AfterSend,
                    why,
                )))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use std::sync::atomic::AtomicUsize;

    fn request() -> HttpRequest {
        HttpRequest::get("http://127.0.0.1/").expect("a request")
    }

    #[tokio::test]
    async fn a_second_send_of_a_mutation_is_prevented() {
        let (count, marked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (hits, marks) = (count.clone(), marked.clone());
        let transport = HttpTransport::new(tower::service_fn(move |request: Request<Bytes>| {
            hits.fetch_add(1, Ordering::SeqCst);
            marks.fetch_add(
                usize::from(request.extensions().get::<Mutation>().is_some()),
                Ordering::SeqCst,
            );
            async { Ok::<_, TransportError>(Response::new(Bytes::new())) }
        }));
        let (connector, sent) = Connector::once(transport.clone());
        assert!(!sent.is_sent());
        assert!(connector.call(request()).await.is_ok() && sent.is_sent());
        let error = connector.call(request()).await.expect_err("a second time");
        assert!(
            error
                .into_source()
                .to_string()
                .contains("a second try was prevented")
        );
        assert_eq!(
            (count.load(Ordering::SeqCst), marked.load(Ordering::SeqCst)),
            (1, 1)
        );
        let reading = Connector::reading(transport, Purpose::Look);
        for _ in 0..2 {
            assert!(reading.call(request()).await.is_ok());
        }
        assert_eq!(
            (count.load(Ordering::SeqCst), marked.load(Ordering::SeqCst)),
            (3, 1)
        );
    }
}
