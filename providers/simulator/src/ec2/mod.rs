//! EC2's Query API, version 2016-11-15, over the simulated cloud: form-encoded requests to `/`, XML answers.
//!
//! Numbers of the simulated cloud appear as `vol-…`, `i-…` and `snap-…` with 17 hexadecimal digits ([`volume_id`],
//! [`instance_id`], [`snapshot_id`]). The access key's identifier is the token; its rights are IAM actions
//! (`ec2:DetachVolume`, `ec2:*`, `*`). Signatures are not verified.

mod call;
mod encode;
mod id;
mod refusal;
mod reply;

use crate::{
    CloudSim,
    faults::{ErrorBody, Fault, When},
    http::{self, Incoming, Limits, RequestSummary},
    log::Effect,
    model::{InstanceNo, InstanceStatus, Job, JobAction, OpError, View},
    state::State,
};
use axum::{
    Router,
    body::Body,
    http::{Request as HttpRequest, Response},
    routing::post,
};
use call::{Call, Page, Request};
pub use id::{instance as instance_id, snapshot as snapshot_id, volume as volume_id};
use jiff::Timestamp;
use reply::{Refusal, Reply, Xml};

/// EC2's Query API over the simulated cloud.
pub fn router(sim: CloudSim) -> Router {
    let serve = move |request: HttpRequest<Body>| {
        let sim = sim.clone();
        async move { handle(sim, request).await }
    };
    Router::new().route("/", post(serve))
}

async fn handle(sim: CloudSim, request: HttpRequest<Body>) -> Response<Body> {
    let Some(incoming) = http::read(request).await else {
        let refusal = Refusal::new(
            400,
            "InvalidRequest",
            "The request's body could not be read",
        );
        return http::Reply::into_response(Reply::refused(&refusal));
    };
    let request = Request::parse(&incoming.body);
    let summary = request
        .as_ref()
        .map_or_else(|_| RequestSummary::default(), Request::summary);
    http::serve_with_faults(
        sim,
        incoming,
        summary,
        move |state, now, incoming, faults, number| {
            serve(state, now, incoming, &request, faults, number)
        },
    )
    .await
}

/// Answers the request, in the order limits, credentials, form, rights, dry-run, work. The existence of an object is
/// checked before the dry-run, since the real API answers `InvalidVolume.NotFound` to a dry-run with an unknown volume.
fn serve(
    state: &mut State,
    now: Timestamp,
    incoming: &Incoming,
    request: &Result<Request, Refusal>,
    faults: &[Fault],
    number: u64,
) -> Reply {
    let limits = Limits::count(state, now, u32::MAX);
    if limits.exceeded {
        return Reply::throttled(None);
    }
    if let Some(reply) = faults.iter().find_map(fault_before) {
        return reply;
    }
    let Some(caller) = caller(state, incoming) else {
        let why = "AWS was not able to validate the provided access credentials";
        return Reply::refused(&Refusal::new(401, "AuthFailure", why));
    };
    let request = request.clone().map(|request| {
        faults.iter().fold(request, |mut request, fault| {
            mix_up(fault, &mut request.call);
            request
        })
    });
    let reply = match request.and_then(|request| perform(state, now, &caller, request)) {
        Ok((reply, effect)) => {
            http::note_effect(state, number, effect);
            reply
        }
        Err(refusal) => Reply::refused(&refusal),
    };
    faults
        .iter()
        .find_map(|fault| fault_after(fault, &reply))
        .unwrap_or(reply)
}

/// The caller of the API.
struct Caller {
    /// Actions that the caller may do.
    actions: Vec<String>,
    /// Whether the caller belongs to another account.
    foreign: bool,
    /// Whether the caller may change nothing, in spite of `actions`.
    read_only: bool,
}

impl Caller {
    fn may(&self, action: &str, mutation: bool) -> bool {
        let wanted = format!("ec2:{action}");
        let granted = |have: &String| have == "*" || have == "ec2:*" || *have == wanted;
        self.actions.iter().any(granted) && !(mutation && self.read_only)
    }
}

/// Returns the caller of `AWS4-HMAC-SHA256 Credential=KEY/…`. While no token has been added, every key has all rights.
fn caller(state: &State, incoming: &Incoming) -> Option<Caller> {
    let rest = incoming
        .authorization
        .as_deref()?
        .strip_prefix("AWS4-HMAC-SHA256 ")?;
    let scope = rest
        .split(',')
        .find_map(|part| part.trim().strip_prefix("Credential="))?;
    let key = scope.split('/').next().filter(|key| !key.is_empty())?;
    let foreign = state.access.foreign.contains(key);
    let actions = match state.access.tokens.get(key) {
        Some(actions) => actions.clone(),
        None if foreign || state.access.tokens.is_empty() => vec!["*".to_owned()],
        None => return None,
    };
    Some(Caller {
        actions,
        foreign,
        read_only: state.access.read_only_user,
    })
}

fn fault_before(fault: &Fault) -> Option<Reply> {
    match fault {
        Fault::Throttle {
            retry_after_seconds,
        } => Some(Reply::throttled(retry_after_seconds.map(u64::from))),
        Fault::Error {
            status,
            reason,
            when: When::BeforeEffect,
            body,
        } => Some(Reply::broken(*status, reason, *body)),
        Fault::Maintenance => {
            let why = "The server is overloaded and can't handle the request.";
            Some(Reply::refused(&Refusal::new(503, "Unavailable", why)))
        }
        Fault::Cut {
            when: When::BeforeEffect,
        } => Some(Reply::cut()),
        _ => None,
    }
}

/// Changes a read by identifier into a read of another object.
fn mix_up(fault: &Fault, call: &mut Call) {
    let Fault::OtherObject { volume, instance } = fault else {
        return;
    };
    let (filters, name, other) = match call {
        Call::DescribeVolumes { filters, .. } | Call::DescribeSnapshots { filters, .. } => {
            (filters, "volume-id", volume_id(*volume))
        }
        Call::DescribeInstances { filters, .. } => (filters, "instance-id", instance_id(*instance)),
        _ => return,
    };
    if let Some(values) = filters.get_mut(name) {
        *values = vec![other];
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
        Fault::BadSuccess { body } if reply.is_success() => Some(match body {
            ErrorBody::Json => Reply::ok("Some", &Xml::default()),
            other => Reply::broken(200, "", *other),
        }),
        _ => None,
    }
}

fn accepted(job: &Job) -> Effect {
    Effect::Accepted {
        action: job.action,
        volume: job.volume,
        instance: job.instance,
    }
}

/// Does the work.
fn perform(
    state: &mut State,
    now: Timestamp,
    caller: &Caller,
    request: Request,
) -> Result<(Reply, Effect), Refusal> {
    let Request { call, dry_run } = request;
    let action = call.action();
    let mutation = !action.starts_with("Describe");
    if !caller.may(action, mutation) {
        let why = format!(
            "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/simulated is not \
             authorized to perform: ec2:{action} because no identity-based policy allows the ec2:{action} action. \
             Encoded authorization failure message: bm90aGluZw"
        );
        return Err(Refusal::new(403, "UnauthorizedOperation", why));
    }
    if mutation {
        exists(state, caller, &call)?;
    }
    if dry_run {
        let why = "Request would have succeeded, but DryRun flag is set.";
        return Err(Refusal::new(412, "DryRunOperation", why));
    }
    let nothing = View::default();
    let view = if caller.foreign {
        &nothing
    } else {
        state.read_view()
    };
    let mut body = Xml::default();
    let effect = match call {
        Call::DescribeVolumes { ids, filters, page } => {
            if let Some(missing) = ids.iter().find(|id| !view.volumes.contains_key(id)) {
                return Err(OpError::NoVolume(*missing).into());
            }
            let rows = view
                .volumes
                .values()
                .filter(|v| ids.is_empty() || ids.contains(&v.id));
            let rows = rows
                .filter(|v| encode::volume_passes(view, v, &filters))
                .collect();
            let (rows, next) = part(rows, page);
            body.items("volumeSet", rows, |item, v| encode::volume(item, view, v));
            encode::next_token(&mut body, next);
            Effect::None
        }
        Call::DescribeInstances { ids, filters, page } => {
            if let Some(missing) = ids.iter().find(|id| !view.instances.contains_key(id)) {
                return Err(OpError::NoInstance(*missing).into());
            }
            let rows = view
                .instances
                .values()
                .filter(|i| ids.is_empty() || ids.contains(&i.id));
            let rows = rows
                .filter(|i| encode::instance_passes(i, &filters))
                .collect();
            let (rows, next) = part(rows, page);
            body.items("reservationSet", rows, |item, i| {
                encode::reservation(item, view, i)
            });
            encode::next_token(&mut body, next);
            Effect::None
        }
        Call::DescribeSnapshots { ids, filters, page } => {
            if let Some(missing) = ids.iter().find(|id| !view.snapshots.contains_key(id)) {
                let why = format!("The snapshot '{}' does not exist.", id::snapshot(*missing));
                return Err(Refusal::new(400, "InvalidSnapshot.NotFound", why));
            }
            let rows = view
                .snapshots
                .values()
                .filter(|s| ids.is_empty() || ids.contains(&s.id));
            let rows = rows
                .filter(|s| encode::snapshot_passes(s, now, &filters))
                .collect();
            let (rows, next) = part(rows, page);
            body.items("snapshotSet", rows, |item, s| {
                encode::snapshot(item, s, now)
            });
            encode::next_token(&mut body, next);
            Effect::None
        }
        Call::AttachVolume { volume, instance } => {
            let status = state.instance(instance)?.status.clone();
            if let InstanceStatus::Other(status) = status {
                return Err(OpError::WrongPower { instance, status }.into());
            }
            let job = state.attach(volume, instance, true, now)?;
            encode::attachment_reply(&mut body, state, volume, instance);
            accepted(&job)
        }
        Call::DetachVolume {
            volume,
            instance,
            force,
        } => {
            let instance = state.check_detach(volume, instance)?;
            let job = state.detach_from(volume, Some(instance), force, now)?;
            encode::attachment_reply(&mut body, state, volume, instance);
            accepted(&job)
        }
        Call::StopInstances { instances } => {
            power(state, &mut body, &instances, JobAction::Shutdown, now)?
        }
        Call::StartInstances { instances } => {
            power(state, &mut body, &instances, JobAction::Boot, now)?
        }
        Call::CreateSnapshot {
            volume,
            description,
        } => {
            let (snapshot, effect) = state.create_snapshot(volume, description, now)?;
            encode::snapshot(&mut body, &snapshot, now);
            effect
        }
    };
    Ok((Reply::ok(action, &body), effect))
}

/// Checks that the caller can see the objects that it wants to change.
fn exists(state: &State, caller: &Caller, call: &Call) -> Result<(), Refusal> {
    let volume = |id| match state.volume(id) {
        Ok(_) if !caller.foreign => Ok(()),
        _ => Err(Refusal::from(OpError::NoVolume(id))),
    };
    let instance = |id| match state.instance(id) {
        Ok(_) if !caller.foreign => Ok(()),
        _ => Err(Refusal::from(OpError::NoInstance(id))),
    };
    match call {
        Call::AttachVolume {
            volume: v,
            instance: i,
        } => volume(*v).and_then(|()| instance(*i)),
        Call::DetachVolume {
            volume: v,
            instance: i,
            ..
        } => volume(*v).and_then(|()| i.map_or(Ok(()), instance)),
        Call::CreateSnapshot { volume: v, .. } => volume(*v),
        Call::StopInstances { instances } | Call::StartInstances { instances } => {
            instances.iter().copied().try_for_each(instance)
        }
        Call::DescribeVolumes { .. }
        | Call::DescribeInstances { .. }
        | Call::DescribeSnapshots { .. } => Ok(()),
    }
}

/// Returns a page of the rows, and the start of the next page.
fn part<T>(rows: Vec<T>, page: Page) -> (Vec<T>, Option<usize>) {
    let end = page.start.saturating_add(page.size);
    let next = (end < rows.len()).then_some(end);
    (
        rows.into_iter().skip(page.start).take(page.size).collect(),
        next,
    )
}

/// Starts or stops instances. An instance that is in the wanted state, or on its way to it, does not change.
fn power(
    state: &mut State,
    body: &mut Xml,
    instances: &[InstanceNo],
    action: JobAction,
    now: Timestamp,
) -> Result<Effect, Refusal> {
    let mut effect = Effect::None;
    let mut changes = Vec::new();
    for instance in instances {
        let before = state.instance(*instance)?.status.clone();
        let there = match action {
            JobAction::Boot => matches!(before, InstanceStatus::Running | InstanceStatus::Booting),
            _ => matches!(
                before,
                InstanceStatus::Offline | InstanceStatus::ShuttingDown
            ),
        };
        if !there {
            let job = state
                .power(*instance, action, now)
                .map_err(|error| match error {
                    OpError::Busy => OpError::WrongPower {
                        instance: *instance,
                        status: encode::state_of(&before).1.to_owned(),
                    },
                    other => other,
                })?;
            effect = accepted(&job);
        }
        changes.push((*instance, before, state.instance(*instance)?.status.clone()));
    }
    body.items(
        "instancesSet",
        changes,
        |item, (instance, before, after)| {
            item.text("instanceId", id::instance(instance));
            item.with("currentState", |state| encode::state(state, &after));
            item.with("previousState", |state| encode::state(state, &before));
        },
    );
    Ok(effect)
}
