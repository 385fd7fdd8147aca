//! Linode's API v4 over the simulated cloud: paths, bearer tokens, scopes, paging, filters, error bodies.

mod call;
mod encode;
mod filter;
mod reply;
mod scope;

pub use crate::http::ConnectionCut;
use crate::{
    CloudSim,
    faults::{ErrorBody, Fault, When},
    http::{self, Incoming, Limits, RequestSummary},
    log::Effect,
    model::{Job, OpError, View},
    state::State,
};
use axum::{
    Router,
    body::Body,
    http::{Request, Response},
    routing::any,
};
use call::Call;
use jiff::Timestamp;
use reply::Reply;

/// Requests per minute that the API shows as the limit. From recorded answers to volume and instance calls.
const SHOWN_LIMIT: u32 = 1840;

/// Value of the header `X-Customer-UUID` for the cloud's own account.
const ACCOUNT: &str = "ABCDEF01-3456-789A-BCDEF0123456789A";

/// Value of the header `X-Customer-UUID` for the account of foreign tokens.
const OTHER_ACCOUNT: &str = "10FEDCBA-6543-A987-A9876543210FEDCB";

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

async fn handle(sim: CloudSim, request: Request<Body>) -> Response<Body> {
    let Some(incoming) = http::read(request).await else {
        return http::Reply::into_response(Reply::error(
            400,
            "The request's body could not be read",
            None,
        ));
    };
    let call = Call::parse(
        &incoming.method,
        incoming.uri.path(),
        incoming.uri.query(),
        &incoming,
    );
    let summary = call
        .as_ref()
        .map_or_else(|_| RequestSummary::default(), Call::summary);
    http::serve_with_faults(
        sim,
        incoming,
        summary,
        move |state, now, incoming, faults, number| {
            serve(state, now, incoming, &call, faults, number)
        },
    )
    .await
}

/// Answers the request. As far as is known, the order is that of the real API: limits, credentials, rights, work.
fn serve(
    state: &mut State,
    now: Timestamp,
    incoming: &Incoming,
    call: &Result<Call, Reply>,
    faults: &[Fault],
    number: u64,
) -> Reply {
    let limits = Limits::count(state, now, SHOWN_LIMIT);
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
    let Some((scopes, account)) = bearer(incoming).and_then(|token| access_of(state, token)) else {
        return finish(Reply::error(401, "Invalid Token", None));
    };
    let finish = |reply: Reply| finish(reply.with_header("x-customer-uuid", account));
    let call = match call {
        Ok(call) => call,
        Err(reply) => return finish(reply.clone().with_scopes(&scopes, &[])),
    };
    let needed = call.scopes();
    let scoped = |reply: Reply| finish(reply.with_scopes(&scopes, &needed));
    if needed.iter().any(|need| !need.granted_by(&scopes)) {
        return scoped(Reply::error(
            401,
            "Your OAuth token is not authorized to use this endpoint.",
            None,
        ));
    }
    if call.operation().is_mutation() && state.access.read_only_user {
        return scoped(Reply::error(403, "Unauthorized", None));
    }
    let mixed_up = faults
        .iter()
        .find_map(|fault| mixed_up(fault, call, incoming.filter.as_deref()));
    let (call, filter) = match &mixed_up {
        Some((call, filter)) => (call, filter.as_deref()),
        None => (call, incoming.filter.as_deref()),
    };
    let reply = match perform(state, now, incoming, call, filter) {
        Ok((reply, effect)) => {
            if let Some(effect) = effect {
                http::note_effect(state, number, effect);
            }
            reply
        }
        Err(reply) => reply,
    };
    let reply = faults
        .iter()
        .find_map(|fault| fault_after(fault, &reply))
        .unwrap_or(reply);
    scoped(reply)
}

fn bearer(incoming: &Incoming) -> Option<&str> {
    incoming.authorization.as_deref()?.strip_prefix("Bearer ")
}

/// Returns the scopes of a token and its account.
fn access_of(state: &State, token: &str) -> Option<(Vec<String>, &'static str)> {
    let all = || vec!["*".to_owned()];
    if state.access.foreign.contains(token) {
        return Some((all(), OTHER_ACCOUNT));
    }
    if state.access.tokens.is_empty() {
        return (!token.is_empty()).then(|| (all(), ACCOUNT));
    }
    state
        .access
        .tokens
        .get(token)
        .cloned()
        .map(|scopes| (scopes, ACCOUNT))
}

fn fault_before(fault: &Fault) -> Option<Reply> {
    match fault {
        Fault::Throttle {
            retry_after_seconds,
        } => {
            let reply = Reply::error(429, "Too many requests", None);
            Some(match retry_after_seconds {
                Some(seconds) => reply.with_retry_after(u64::from(*seconds)),
                None => reply,
            })
        }
        Fault::Error {
            status,
            reason,
            when: When::BeforeEffect,
            body,
        } => Some(Reply::broken(*status, reason, *body)),
        Fault::Maintenance => Some(
            Reply::error(503, "The API is under maintenance", None)
                .with_header("x-maintenance-mode", "yes"),
        ),
        Fault::Cut {
            when: When::BeforeEffect,
        } => Some(Reply::cut()),
        _ => None,
    }
}

/// Returns the read that is answered instead of this one, with its filter.
fn mixed_up(fault: &Fault, call: &Call, filter: Option<&str>) -> Option<(Call, Option<String>)> {
    let Fault::OtherObject { volume, instance } = fault else {
        return None;
    };
    match call {
        Call::GetVolume(_) => Some((Call::GetVolume(*volume), None)),
        Call::GetInstance(_) => Some((Call::GetInstance(*instance), None)),
        Call::ListEvents(page) => {
            let mut filter: serde_json::Value = serde_json::from_str(filter?).ok()?;
            let other = match filter["entity.type"].as_str()? {
                "volume" => volume.0,
                "linode" => instance.0,
                _ => return None,
            };
            filter["entity.id"] = other.into();
            Some((Call::ListEvents(page.clone()), Some(filter.to_string())))
        }
        _ => None,
    }
}

fn fault_after(fault: &Fault, reply: &Reply) -> Option<Reply> {
    match fault {
        Fault::Error {
            status,
            reason,
            when: When::AfterEffect,
            body,
        } => Some(Reply::broken(*status, reason, *body)),
        Fault::Cut {
            when: When::AfterEffect,
        } => Some(Reply::cut()),
        Fault::BadSuccess { body } if reply.status() < 300 => Some(match body {
            ErrorBody::Json => Reply::ok(serde_json::json!({})),
            other => Reply::broken(200, "", *other),
        }),
        _ => None,
    }
}

/// The effect of a request that started a job.
fn accepted(job: &Job) -> Effect {
    Effect::Accepted {
        action: job.action,
        volume: job.volume,
        instance: job.instance,
    }
}

/// Does the work. Returns the effect of the request, if it had one.
fn perform(
    state: &mut State,
    now: Timestamp,
    incoming: &Incoming,
    call: &Call,
    filter: Option<&str>,
) -> Result<(Reply, Option<Effect>), Reply> {
    let read = |reply| Ok((reply, None));
    let nothing = View::default();
    let foreign = bearer(incoming).is_some_and(|token| state.access.foreign.contains(token));
    if foreign && call.operation().is_mutation() {
        return Err(Reply::not_found());
    }
    let view = if foreign { &nothing } else { state.read_view() };
    match call {
        Call::ListVolumes(page) => {
            let rows = view
                .volumes
                .values()
                .map(|v| encode::volume(view, v))
                .collect();
            read(page.of(filter::apply(rows, filter, filter::VOLUMES)?))
        }
        Call::GetVolume(id) => read(Reply::ok(encode::volume(
            view,
            found(view.volumes.get(id))?,
        ))),
        Call::ListInstances(page) => {
            let rows = view.instances.values().map(encode::instance).collect();
            read(page.of(filter::apply(rows, filter, filter::INSTANCES)?))
        }
        Call::GetInstance(id) => read(Reply::ok(encode::instance(found(view.instances.get(id))?))),
        Call::ListInstanceVolumes(id, page) => {
            found(view.instances.get(id))?;
            let rows = view
                .volumes
                .values()
                .filter(|v| v.holder == Some(*id))
                .map(|v| encode::volume(view, v))
                .collect();
            read(page.of(rows))
        }
        Call::ListEvents(page) => {
            let rows = view
                .jobs
                .values()
                .rev()
                .map(|j| encode::event(view, j))
                .collect();
            read(page.of(filter::apply(rows, filter, filter::EVENTS)?))
        }
        Call::Attach {
            volume,
            instance,
            persist,
        } => {
            let job = state
                .attach(*volume, *instance, *persist, now)
                .map_err(|e| refusal(&e))?;
            let shown = encode::volume(&state.view, found(state.view.volumes.get(volume))?);
            Ok((Reply::ok(shown), Some(accepted(&job))))
        }
        Call::Detach(volume) => {
            let job = state.detach(*volume, now).map_err(|e| refusal(&e))?;
            Ok((Reply::ok(serde_json::json!({})), job.as_ref().map(accepted)))
        }
        Call::Power(instance, action) => {
            let job = state
                .power(*instance, *action, now)
                .map_err(|e| refusal(&e))?;
            Ok((Reply::ok(serde_json::json!({})), Some(accepted(&job))))
        }
        Call::SetWatchdog(instance, on) => {
            state
                .set_watchdog(*instance, *on, now)
                .map_err(|e| refusal(&e))?;
            let shown = encode::instance(found(state.view.instances.get(instance))?);
            let effect = Effect::Watchdog {
                instance: *instance,
                on: *on,
            };
            Ok((Reply::ok(shown), Some(effect)))
        }
    }
}

fn found<T>(item: Option<T>) -> Result<T, Reply> {
    item.ok_or_else(Reply::not_found)
}

/// A refusal in Linode's words where recorded answers show them, otherwise in words of this simulator.
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
