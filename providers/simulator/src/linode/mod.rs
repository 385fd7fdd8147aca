//! The simulated cloud as Linode's API v4: paths, bearer tokens, scopes, paging, filters, error bodies.

mod call;
mod filter;
mod reply;
mod shape;

use crate::{
    CloudSim,
    faults::{ErrorBody, Fault, When},
    log::{Effect, RequestRecord},
    model::{Job, OpError},
    state::State,
};
use axum::{
    Router,
    body::{Body, Bytes},
    http::{Method, Request, Response, Uri},
    routing::any,
};
use call::Call;
use http_body_util::BodyExt;
use jiff::Timestamp;
use reply::Reply;
use std::time::Duration;

/// Marks a response of the in-memory router as "the connection ended without an answer". A server on a socket breaks
/// the connection off instead.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionCut;

/// The greatest request body that is read, in bytes.
const BODY_LIMIT: usize = 1 << 20;

/// Linode's API v4 over the simulated cloud.
pub fn router(sim: CloudSim) -> Router {
    let serve = move |request: Request<Body>| {
        let sim = sim.clone();
        async move { handle(sim, request).await }
    };
    Router::new()
        .route("/v4/{*path}", any(serve.clone()))
        .route("/v4beta/{*path}", any(serve.clone()))
        .fallback(serve)
}

/// One request, taken apart.
struct Incoming {
    method: Method,
    uri: Uri,
    token: Option<String>,
    filter: Option<String>,
    user_agent: Option<String>,
    body: Bytes,
}

async fn handle(sim: CloudSim, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let body = match http_body_util::Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Reply::error(400, "The request's body could not be read", None).into_response(),
    };
    let incoming = Incoming {
        token: header("authorization").and_then(|v| v.strip_prefix("Bearer ").map(str::to_owned)),
        filter: header("x-filter"),
        user_agent: header("user-agent"),
        method: parts.method,
        uri: parts.uri,
        body,
    };
    let call = Call::parse(&incoming.method, incoming.uri.path(), incoming.uri.query(), &incoming);
    let (number, faults) = sim.with(|state, now| arrive(state, now, &incoming, call.as_ref().ok()));

    let wait = |which: fn(&Fault) -> u64| Duration::from_millis(faults.iter().map(which).sum());
    let before = wait(|f| if let Fault::Latency { before_ms, .. } = f { *before_ms } else { 0 });
    let after = wait(|f| if let Fault::Latency { after_ms, .. } = f { *after_ms } else { 0 });
    if before.is_zero() && after.is_zero() {
        return finish(&sim, &incoming, &call, &faults, number).into_response();
    }
    // A task of its own: a caller that gives up waiting does not take back what it sent.
    let work = tokio::spawn(async move {
        tokio::time::sleep(before).await;
        let reply = finish(&sim, &incoming, &call, &faults, number);
        tokio::time::sleep(after).await;
        reply
    });
    match work.await {
        Ok(reply) => reply.into_response(),
        Err(_) => Reply::cut().into_response(),
    }
}

/// Answers the request and writes the answer into the log.
fn finish(
    sim: &CloudSim,
    incoming: &Incoming,
    call: &Result<Call, Reply>,
    faults: &[Fault],
    number: u64,
) -> Reply {
    sim.with(|state, now| {
        let reply = serve(state, now, incoming, call, faults, number);
        if let Some(record) = record_of(state, number) {
            record.status = (!reply.is_cut()).then_some(reply.status());
        }
        reply
    })
}

fn record_of(state: &mut State, number: u64) -> Option<&mut RequestRecord> {
    state.log.get_mut(usize::try_from(number).ok()?.checked_sub(1)?)
}

/// Writes the request into the log and draws the faults that hit it.
fn arrive(state: &mut State, now: Timestamp, incoming: &Incoming, call: Option<&Call>) -> (u64, Vec<Fault>) {
    let faults = match call {
        Some(call) => {
            // Taken out for the moment, because drawing needs the state as well.
            let mut rules = std::mem::take(&mut state.faults);
            let hit = rules.hit(call.operation(), call.volume(), call.instance(), || state.draw());
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
        operation: call.map(Call::operation),
        status: None,
        effect: Effect::None,
        faults: faults.iter().map(|f| format!("{f:?}")).collect(),
    });
    (number, faults)
}

/// Answers the request. The order is the real API's as far as it shows: limits, credentials, rights, then the work.
fn serve(
    state: &mut State,
    now: Timestamp,
    incoming: &Incoming,
    call: &Result<Call, Reply>,
    faults: &[Fault],
    number: u64,
) -> Reply {
    let limits = reply::Limits::count(state, now);
    let finish = |reply: Reply| reply.with_limits(&limits);
    if limits.exceeded {
        return finish(
            Reply::error(429, "Too many requests", None).with_retry_after(limits.seconds_left(now)),
        );
    }
    for fault in faults {
        if let Some(reply) = fault_before(fault) {
            return finish(reply);
        }
    }
    let Some(scopes) = incoming.token.as_deref().and_then(|token| scopes_of(state, token)) else {
        return finish(Reply::error(401, "Invalid Token", None));
    };
    let call = match call {
        Ok(call) => call,
        Err(reply) => return finish(reply.clone().with_scopes(&scopes, &[])),
    };
    let needed = call.scopes();
    let scoped = |reply: Reply| finish(reply.with_scopes(&scopes, &needed));
    if needed.iter().any(|need| !need.granted_by(&scopes)) {
        return scoped(Reply::error(401, "Your OAuth token is not authorized to use this endpoint.", None));
    }
    if call.operation().is_mutation() && state.access.read_only_user {
        return scoped(Reply::error(403, "Unauthorized", None));
    }
    let reply = match perform(state, now, incoming, call) {
        Ok((reply, job)) => {
            if let (Some(job), Some(record)) = (job, record_of(state, number)) {
                record.effect =
                    Effect::Accepted { action: job.action, volume: job.volume, instance: job.instance };
            }
            reply
        }
        Err(reply) => reply,
    };
    let reply = faults.iter().find_map(|fault| fault_after(fault, &reply)).unwrap_or(reply);
    scoped(reply)
}

fn scopes_of(state: &State, token: &str) -> Option<Vec<String>> {
    if state.access.tokens.is_empty() {
        return (!token.is_empty()).then(|| vec!["*".to_owned()]);
    }
    state.access.tokens.get(token).cloned()
}

fn fault_before(fault: &Fault) -> Option<Reply> {
    match fault {
        Fault::Throttle { retry_after_seconds } => {
            let reply = Reply::error(429, "Too many requests", None);
            Some(match retry_after_seconds {
                Some(seconds) => reply.with_retry_after(u64::from(*seconds)),
                None => reply,
            })
        }
        Fault::Error { status, reason, when: When::BeforeEffect, body } => {
            Some(Reply::broken(*status, reason, *body))
        }
        Fault::Maintenance => Some(
            Reply::error(503, "The API is under maintenance", None).with_header("x-maintenance-mode", "yes"),
        ),
        Fault::Cut { when: When::BeforeEffect } => Some(Reply::cut()),
        _ => None,
    }
}

fn fault_after(fault: &Fault, reply: &Reply) -> Option<Reply> {
    match fault {
        Fault::Error { status, reason, when: When::AfterEffect, body } => {
            Some(Reply::broken(*status, reason, *body))
        }
        Fault::Cut { when: When::AfterEffect } => Some(Reply::cut()),
        Fault::BadSuccess { body } if reply.status() < 300 => Some(match body {
            ErrorBody::Json => Reply::ok(serde_json::json!({})),
            other => Reply::broken(200, "", *other),
        }),
        _ => None,
    }
}

/// Does the work. The job is what the request set going, if it did.
fn perform(
    state: &mut State,
    now: Timestamp,
    incoming: &Incoming,
    call: &Call,
) -> Result<(Reply, Option<Job>), Reply> {
    let read = |reply| Ok((reply, None));
    let view = state.read_view();
    match call {
        Call::ListVolumes(page) => {
            let rows = view.volumes.values().map(|v| shape::volume(view, v)).collect();
            read(page.of(filter::apply(rows, incoming.filter.as_deref(), filter::VOLUMES)?))
        }
        Call::GetVolume(id) => read(Reply::ok(shape::volume(view, found(view.volumes.get(id))?))),
        Call::ListInstances(page) => {
            let rows = view.instances.values().map(shape::instance).collect();
            read(page.of(filter::apply(rows, incoming.filter.as_deref(), filter::INSTANCES)?))
        }
        Call::GetInstance(id) => read(Reply::ok(shape::instance(found(view.instances.get(id))?))),
        Call::ListInstanceVolumes(id, page) => {
            found(view.instances.get(id))?;
            let rows = view
                .volumes
                .values()
                .filter(|v| v.holder == Some(*id))
                .map(|v| shape::volume(view, v))
                .collect();
            read(page.of(rows))
        }
        Call::ListEvents(page) => {
            let rows = view.jobs.values().rev().map(|j| shape::event(view, j)).collect();
            read(page.of(filter::apply(rows, incoming.filter.as_deref(), filter::EVENTS)?))
        }
        Call::Attach { volume, instance, persist } => {
            let job = state.attach(*volume, *instance, *persist, now).map_err(|e| refusal(&e))?;
            let shown = shape::volume(&state.view, found(state.view.volumes.get(volume))?);
            Ok((Reply::ok(shown), Some(job)))
        }
        Call::Detach(volume) => {
            let job = state.detach(*volume, now).map_err(|e| refusal(&e))?;
            Ok((Reply::ok(serde_json::json!({})), job))
        }
        Call::Power(instance, action) => {
            let job = state.power(*instance, *action, now).map_err(|e| refusal(&e))?;
            Ok((Reply::ok(serde_json::json!({})), Some(job)))
        }
    }
}

fn found<T>(item: Option<T>) -> Result<T, Reply> {
    item.ok_or_else(Reply::not_found)
}

/// A refusal in Linode's words, where these are known from recorded answers; the others are this simulator's own.
fn refusal(error: &OpError) -> Reply {
    match error {
        OpError::NoInstance(_) | OpError::NoVolume(_) => Reply::not_found(),
        OpError::Busy => Reply::error(400, "Linode busy.", None),
        OpError::AlreadyAttached { volume, .. } => {
            Reply::error(400, &format!("Volume {volume} is already attached"), None)
        }
        OpError::Refused { status, reason } => Reply::error(*status, reason, None),
        other => Reply::error(400, &other.to_string(), None),
    }
}
