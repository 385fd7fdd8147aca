//! Handles a request of any of the HTTP APIs, independent of their wire formats: reads it, logs it, draws its faults, waits,
//! answers.

use crate::{
    CloudSim,
    faults::{Fault, Operation},
    log::{Effect, RequestRecord},
    model::{InstanceNo, VolumeNo},
    state::State,
};
use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header},
};
use http_body_util::BodyExt;
use jiff::Timestamp;
use std::time::Duration;

/// Marks a response of the in-memory router as "the connection ended without an answer". On a socket the server breaks the
/// connection off instead.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionCut;

/// Maximum size of a request body, in bytes.
const BODY_LIMIT: usize = 1 << 20;

/// The parts of one request.
pub(crate) struct Incoming {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) authorization: Option<String>,
    pub(crate) filter: Option<String>,
    pub(crate) user_agent: Option<String>,
    pub(crate) body: Bytes,
}

/// Reads a request. `None`: its body could not be read.
pub(crate) async fn read(request: Request<Body>) -> Option<Incoming> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned)
    };
    let body = http_body_util::Limited::new(body, BODY_LIMIT)
        .collect()
        .await
        .ok()?
        .to_bytes();
    Some(Incoming {
        authorization: header("authorization"),
        filter: header("x-filter"),
        user_agent: header("user-agent"),
        method: parts.method,
        uri: parts.uri,
        body,
    })
}

/// The operation and the object of a request, in terms that all APIs share.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RequestSummary {
    pub(crate) operation: Option<Operation>,
    pub(crate) volume: Option<VolumeNo>,
    pub(crate) instance: Option<InstanceNo>,
    pub(crate) dry_run: bool,
}

/// An answer in the form of one of the APIs.
pub(crate) trait Reply: Send + 'static {
    /// The HTTP status. `None`: the connection is cut.
    fn status(&self) -> Option<u16>;
    /// Converts the answer into an HTTP response.
    fn into_response(self) -> Response<Body>;
}

/// Builds an HTTP response. `kind` is the content type of the body, if it has one.
pub(crate) fn answer(
    status: u16,
    kind: Option<&'static str>,
    body: String,
    headers: impl IntoIterator<Item = (&'static str, String)>,
) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(kind) = kind {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// Logs a request, draws its faults, waits as the faults say, and returns the answer of `serve`. `serve` gets the
/// request's number in the log.
pub(crate) async fn serve_with_faults<R: Reply>(
    sim: CloudSim,
    incoming: Incoming,
    summary: RequestSummary,
    serve: impl FnOnce(&mut State, Timestamp, &Incoming, &[Fault], u64) -> R + Send + 'static,
) -> Response<Body> {
    let (number, faults) = sim.with(|state, now| arrive(state, now, &incoming, summary));
    let wait = |which: fn(&Fault) -> u64| Duration::from_millis(faults.iter().map(which).sum());
    let before = wait(|f| {
        if let Fault::Latency { before_ms, .. } = f {
            *before_ms
        } else {
            0
        }
    });
    let after = wait(|f| {
        if let Fault::Latency { after_ms, .. } = f {
            *after_ms
        } else {
            0
        }
    });
    let finish = move |sim: &CloudSim| {
        sim.with(|state, now| {
            let reply = serve(state, now, &incoming, &faults, number);
            if let Some(record) = record_of(state, number) {
                record.status = reply.status();
            }
            reply
        })
    };
    if before.is_zero() && after.is_zero() {
        return finish(&sim).into_response();
    }
    // In a task of its own: a request that was sent takes effect even when its sender stops waiting.
    let work = tokio::spawn(async move {
        tokio::time::sleep(before).await;
        let reply = finish(&sim);
        tokio::time::sleep(after).await;
        reply
    });
    match work.await {
        Ok(reply) => reply.into_response(),
        Err(_) => cut(),
    }
}

pub(crate) fn record_of(state: &mut State, number: u64) -> Option<&mut RequestRecord> {
    state
        .log
        .get_mut(usize::try_from(number).ok()?.checked_sub(1)?)
}

/// Writes the effect of a request into its record.
pub(crate) fn note_effect(state: &mut State, number: u64, effect: Effect) {
    if let Some(record) = record_of(state, number) {
        record.effect = effect;
    }
}

/// Writes the request into the log and draws the faults that apply to it.
fn arrive(
    state: &mut State,
    now: Timestamp,
    incoming: &Incoming,
    summary: RequestSummary,
) -> (u64, Vec<Fault>) {
    let faults = match summary.operation {
        Some(operation) => {
            // Taken out, because drawing a fault borrows the state as well.
            let mut rules = std::mem::take(&mut state.faults);
            let hit = rules.hit(operation, summary.volume, summary.instance, || state.draw());
            state.faults = rules;
            hit
        }
        None => Vec::new(),
    };
    let number = state.log.len() as u64 + 1;
    state.log.push(RequestRecord {
        number,
        at: now,
        method: incoming.method.to_string(),
        path: incoming.uri.path().to_owned(),
        query: incoming.uri.query().unwrap_or_default().to_owned(),
        filter: incoming.filter.clone(),
        user_agent: incoming.user_agent.clone(),
        body: String::from_utf8_lossy(&incoming.body).into_owned(),
        operation: summary.operation,
        dry_run: summary.dry_run,
        status: None,
        effect: Effect::None,
        faults: faults.iter().map(|f| format!("{f:?}")).collect(),
    });
    (number, faults)
}

/// The name of a status, as error pages print it.
pub(crate) fn status_name(status: u16) -> &'static str {
    StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Error")
}

/// Returns a response that ends the connection without an answer.
pub(crate) fn cut() -> Response<Body> {
    // On a socket, a body that ends in an error makes the server break the connection off.
    let broken = futures::stream::once(async {
        Err::<Bytes, _>(std::io::Error::new(
            std::io::ErrorKind::ConnectionReset,
            "connection cut",
        ))
    });
    let mut response = Response::new(Body::from_stream(broken));
    response.extensions_mut().insert(ConnectionCut);
    response
}

/// The state of the rate limit in the current minute.
pub(crate) struct Limits {
    /// The moment of the request.
    pub(crate) now: Timestamp,
    pub(crate) limit: u32,
    pub(crate) remaining: u32,
    pub(crate) reset: Timestamp,
    pub(crate) exceeded: bool,
}

impl Limits {
    /// Counts this request. `shown` is the limit that the API shows while none is set.
    pub(crate) fn count(state: &mut State, now: Timestamp, shown: u32) -> Self {
        let (start, used) = match state.rate_window {
            Some((start, used)) if now.as_second() < start.as_second() + 60 => (start, used + 1),
            _ => (now, 1),
        };
        state.rate_window = Some((start, used));
        let limit = state.rate_limit.unwrap_or(shown);
        let reset = crate::state::later(start, Duration::from_secs(60));
        Self {
            now,
            limit,
            remaining: limit.saturating_sub(used),
            reset,
            exceeded: state.rate_limit.is_some_and(|limit| used > limit),
        }
    }

    pub(crate) fn seconds_left(&self, now: Timestamp) -> u64 {
        u64::try_from(self.reset.as_second() - now.as_second())
            .unwrap_or(0)
            .max(1)
    }
}
