//! Sends requests: reads with a bounded number of retries, mutations once.

use crate::{
    classify::{self, Kind},
    config::LinodeConfig,
    limits,
    wire::Numbered,
};
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use reattach_provider_api::{
    Deadline, HttpTransport, Limiter, ProviderError, Purpose, TransportError, TransportErrorKind,
    limiter::limited, masking,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{fmt, sync::Arc, time::Duration};
use tower::ServiceExt;

/// Maximum number of attempts of a read.
const READ_ATTEMPTS: usize = 3;

/// Maximum number of pages of one list. With 500 objects each, this is more than an account can have.
const MAX_PAGES: u64 = 200;

#[derive(Clone)]
pub(crate) struct Client {
    transport: HttpTransport,
    config: LinodeConfig,
    limiter: Arc<Limiter>,
    purpose: Purpose,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// A page of a list. The objects are parsed one by one, so that one defective object does not hide all others.
#[derive(serde::Deserialize)]
struct RawPage {
    data: Vec<Value>,
    pages: u64,
}

/// A failed attempt of a read, and whether to retry it.
struct Failure {
    error: ProviderError,
    transient: bool,
    refused: Option<Response<Bytes>>,
}

/// A request that changes something and was not accepted.
pub(crate) struct PostFailure {
    /// The error, by what is known about the effect.
    pub(crate) error: ProviderError,
    /// The answer, where the API or a proxy refused the request.
    pub(crate) refusal: Option<Response<Bytes>>,
}

impl From<ProviderError> for PostFailure {
    fn from(error: ProviderError) -> Self {
        Self {
            error,
            refusal: None,
        }
    }
}

impl Client {
    pub(crate) fn new(transport: HttpTransport, config: LinodeConfig) -> Self {
        let limiter = Arc::new(Limiter::new(limits::PUBLISHED));
        Self {
            transport: limited(masking(transport), limiter.clone(), limits::READING),
            config,
            limiter,
            purpose: Purpose::Look,
        }
    }

    /// Returns this client for the requests of an effect: none of them waits behind looks.
    pub(crate) fn for_effects(&self) -> Self {
        Self {
            purpose: Purpose::Effect,
            ..self.clone()
        }
    }

    pub(crate) fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    pub(crate) fn config(&self) -> &LinodeConfig {
        &self.config
    }

    /// Reads one path. Retries passing failures (no answer, 408, 5xx outside maintenance), at most twice, after 0.2 s
    /// and 0.4 s. Does not retry a read that the rate limit ended: the caller decides how long to wait.
    pub(crate) async fn get(
        &self,
        operation: &str,
        path: &str,
        filter: Option<&Value>,
    ) -> Result<Response<Bytes>, ProviderError> {
        self.get_with_retries(operation, path, filter)
            .await
            .map_err(|failure| failure.error)
    }

    async fn get_with_retries(
        &self,
        operation: &str,
        path: &str,
        filter: Option<&Value>,
    ) -> Result<Response<Bytes>, Failure> {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_factor(2.0)
            .with_max_times(READ_ATTEMPTS - 1);
        (|| self.get_once(operation, path, filter))
            .retry(backoff)
            .when(|failure: &Failure| failure.transient)
            .notify(|failure, wait| {
                tracing::debug!(error = %failure.error, wait_ms = wait.as_millis(), "read failed, retrying");
            })
            .await
    }

    async fn get_once(
        &self,
        operation: &str,
        path: &str,
        filter: Option<&Value>,
    ) -> Result<Response<Bytes>, Failure> {
        let sent = self
            .send(
                Method::GET,
                path,
                filter,
                Bytes::new(),
                Deadline::after(self.config.read_timeout),
            )
            .await;
        let answer = sent.map_err(|error| Failure {
            error: classify::transport(operation, Kind::Read, &error),
            transient: !matches!(error.kind, TransportErrorKind::HeldBack { .. }),
            refused: None,
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let transient = (status == http::StatusCode::REQUEST_TIMEOUT || status.is_server_error())
            && !classify::in_maintenance(answer.headers());
        let error = classify::refusal(operation, Kind::Read, &answer);
        Err(Failure {
            error,
            transient,
            refused: Some(answer),
        })
    }

    /// Reads the headers of one path. An answer that refuses the read because of a missing scope is no error here: it names
    /// the token's scopes too.
    pub(crate) async fn probe(
        &self,
        operation: &str,
        path: &str,
    ) -> Result<Response<Bytes>, ProviderError> {
        match self.get_with_retries(operation, path, None).await {
            Ok(answer) => Ok(answer),
            Err(Failure {
                refused: Some(answer),
                ..
            }) if answer.headers().contains_key("x-oauth-scopes") => Ok(answer),
            Err(failure) => Err(failure.error),
        }
    }

    /// Reads the object with this number. Refuses an answer about another object.
    pub(crate) async fn get_object<T: DeserializeOwned + Numbered>(
        &self,
        operation: &str,
        path: &str,
        number: u64,
    ) -> Result<T, ProviderError> {
        let answer = self
            .get(operation, &format!("{path}/{number}"), None)
            .await?;
        let object: T = parse(operation, &answer)?;
        if object.number() == number {
            return Ok(object);
        }
        Err(ProviderError::OtherObject {
            operation: operation.to_owned(),
            asked: format!("{} {number}", T::KIND),
            answered: format!("{} {}", T::KIND, object.number()),
        })
    }

    /// Reads a list page by page. `more` gets the objects of each page and the number of pages that are left, and returns
    /// whether to read the next one.
    pub(crate) async fn get_pages(
        &self,
        operation: &str,
        path: &str,
        page_size: u16,
        filter: Option<&Value>,
        mut more: impl FnMut(Vec<Value>, u64) -> Result<bool, ProviderError>,
    ) -> Result<(), ProviderError> {
        for page in 1..=MAX_PAGES {
            let target = format!("{path}?page={page}&page_size={page_size}");
            let answer = self.get(operation, &target, filter).await?;
            let RawPage { data, pages } = parse(operation, &answer)?;
            if !more(data, pages.saturating_sub(page))? || page >= pages {
                return Ok(());
            }
        }
        Err(ProviderError::not_applied(
            operation,
            format!("the list has more than {MAX_PAGES} pages"),
        ))
    }

    /// Sends one order without a body, and never repeats it.
    pub(crate) async fn post(
        &self,
        operation: &str,
        path: &str,
        deadline: Deadline,
    ) -> Result<(), PostFailure> {
        self.mutate(operation, Method::POST, path, Bytes::new(), deadline)
            .await
    }

    /// Sends one change of an object's fields, and never repeats it.
    pub(crate) async fn put(
        &self,
        operation: &str,
        path: &str,
        fields: &Value,
        deadline: Deadline,
    ) -> Result<(), PostFailure> {
        let body = Bytes::from(fields.to_string());
        self.mutate(operation, Method::PUT, path, body, deadline)
            .await
    }

    /// Sends one mutation and never repeats it. This is the only place of this crate that sends one.
    async fn mutate(
        &self,
        operation: &str,
        method: Method,
        path: &str,
        body: Bytes,
        deadline: Deadline,
    ) -> Result<(), PostFailure> {
        let sent = self.send(method, path, None, body, deadline).await;
        let answer =
            sent.map_err(|error| classify::transport(operation, Kind::Mutation, &error))?;
        if !answer.status().is_success() {
            let error = classify::refusal(operation, Kind::Mutation, &answer);
            return Err(PostFailure {
                error,
                refusal: Some(answer),
            });
        }
        // The documented answer is a JSON object: an empty one after an order, the object after a change. Another success, such as a proxy's page, proves nothing.
        match serde_json::from_slice::<serde_json::Map<_, serde_json::Value>>(answer.body()) {
            Ok(_) if classify::is_json(answer.headers()) => Ok(()),
            _ => Err(classify::unusable(
                operation,
                Kind::Mutation,
                &answer,
                "it is not a JSON object",
            )
            .into()),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        filter: Option<&Value>,
        body: Bytes,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, TransportError> {
        let unsendable = |why: String| TransportError::new(TransportErrorKind::BeforeSend, why);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.config.base))
            .header(header::AUTHORIZATION, self.config.token.header())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, self.config.user_agent);
        if let Some(filter) = filter {
            let value = HeaderValue::from_str(&filter.to_string())
                .map_err(|e| unsendable(e.to_string()))?;
            request = request.header("x-filter", value);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .extension(self.purpose)
            .body(body)
            .map_err(|e| unsendable(e.to_string()))?;
        let allowed = deadline.left();
        match deadline
            .bound(self.transport.clone().oneshot(request))
            .await
        {
            Some(answer) => answer,
            None => Err(TransportError::new(
                TransportErrorKind::Timeout,
                format!("no answer within {} ms", allowed.as_millis()),
            )),
        }
    }
}

/// Parses the object in a successful answer to a read.
fn parse<T: DeserializeOwned>(
    operation: &str,
    answer: &Response<Bytes>,
) -> Result<T, ProviderError> {
    if !classify::is_json(answer.headers()) {
        return Err(classify::unusable(
            operation,
            Kind::Read,
            answer,
            "it is not JSON",
        ));
    }
    serde_json::from_slice(answer.body())
        .map_err(|error| classify::unusable(operation, Kind::Read, answer, &error.to_string()))
}
