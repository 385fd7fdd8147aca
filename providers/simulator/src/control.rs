//! The control API: sets up objects and faults, and reads the history. JSON in and out; see the crate's README.

use crate::{
    CloudSim,
    faults::{FaultNo, FaultRule},
    model::{DetachBehaviour, InstanceNo, InstanceStatus, OpError, Timings, VolumeNo},
    sim::{NewInstance, NewVolume},
    state::{DeadHost, UnattachedDetach},
};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};

pub(crate) fn router(sim: CloudSim) -> Router {
    Router::new()
        .route("/instances", get(instances).post(create_instance))
        .route(
            "/instances/{id}",
            get(instance).post(change_instance).delete(delete_instance),
        )
        .route("/volumes", get(volumes).post(create_volume))
        .route(
            "/volumes/{id}",
            get(volume).post(change_volume).delete(delete_volume),
        )
        .route("/jobs", get(jobs))
        .route("/snapshots", get(snapshots))
        .route("/faults", post(add_fault).delete(clear_faults))
        .route("/faults/{id}", delete(remove_fault))
        .route("/settings", post(settings))
        .route("/requests", get(requests))
        .route("/history/{id}", get(history))
        .route("/pulled", get(pulled))
        .with_state(sim)
}

/// An [`OpError`] as an answer.
struct Refused(OpError);

impl From<OpError> for Refused {
    fn from(error: OpError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.0 {
            OpError::NoInstance(_) | OpError::NoVolume(_) => StatusCode::NOT_FOUND,
            _ => StatusCode::CONFLICT,
        };
        (status, Json(json!({ "error": self.0.to_string() }))).into_response()
    }
}

type Answer = Result<Response, Refused>;

fn answer(value: impl Serialize) -> Answer {
    Ok(Json(value).into_response())
}

async fn instances(State(sim): State<CloudSim>) -> Answer {
    answer(sim.instances())
}

async fn create_instance(State(sim): State<CloudSim>, Json(new): Json<NewInstance>) -> Answer {
    let id = sim.create_instance(new)?;
    answer(sim.instance(id))
}

async fn instance(State(sim): State<CloudSim>, Path(id): Path<InstanceNo>) -> Answer {
    let found = sim.instance(id).ok_or(OpError::NoInstance(id))?;
    answer(json!({ "instance": found, "guest_devices": sim.guest_devices(id) }))
}

async fn delete_instance(State(sim): State<CloudSim>, Path(id): Path<InstanceNo>) -> Answer {
    sim.delete_instance(id)?;
    answer(json!({}))
}

/// A change of an instance.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum InstanceChange {
    Boot,
    Shutdown,
    Reboot,
    Recycle,
    Kill,
    ShutdownByCloud,
    Vanish,
    Status(InstanceStatus),
    InUse { volume: VolumeNo, in_use: bool },
    Tags(BTreeMap<String, String>),
}

async fn change_instance(
    State(sim): State<CloudSim>,
    Path(id): Path<InstanceNo>,
    Json(change): Json<InstanceChange>,
) -> Answer {
    match change {
        InstanceChange::Boot => sim.boot(id).map(drop)?,
        InstanceChange::Shutdown => sim.shutdown(id).map(drop)?,
        InstanceChange::Reboot => sim.reboot(id).map(drop)?,
        InstanceChange::Recycle => sim.recycle(id).map(drop)?,
        InstanceChange::Kill => sim.kill(id)?,
        InstanceChange::ShutdownByCloud => sim.shutdown_by_cloud(id).map(drop)?,
        InstanceChange::Vanish => {
            sim.vanish(id)?;
            return answer(json!({}));
        }
        InstanceChange::Status(status) => sim.set_instance_status(id, status)?,
        InstanceChange::InUse { volume, in_use } => sim.set_in_use(id, volume, in_use),
        InstanceChange::Tags(tags) => sim.set_instance_tags(id, tags)?,
    }
    instance(State(sim), Path(id)).await
}

async fn volumes(State(sim): State<CloudSim>) -> Answer {
    answer(sim.volumes())
}

async fn create_volume(State(sim): State<CloudSim>, Json(new): Json<NewVolume>) -> Answer {
    let id = sim.create_volume(new)?;
    answer(sim.volume(id))
}

async fn volume(State(sim): State<CloudSim>, Path(id): Path<VolumeNo>) -> Answer {
    answer(sim.volume(id).ok_or(OpError::NoVolume(id))?)
}

async fn delete_volume(State(sim): State<CloudSim>, Path(id): Path<VolumeNo>) -> Answer {
    sim.delete_volume(id)?;
    answer(json!({}))
}

/// A change of a volume.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum VolumeChange {
    Attach {
        instance: InstanceNo,
        #[serde(default)]
        persist: bool,
        #[serde(default)]
        now: bool,
    },
    Detach,
    Lock {
        reason: String,
        #[serde(default)]
        shown: bool,
    },
    Unlock,
    Busy {
        milliseconds: u64,
    },
    Phantom,
    Lost,
    Orphan {
        instance: InstanceNo,
    },
    AlsoAttach {
        instance: InstanceNo,
    },
    DetachBehaviour(DetachBehaviour),
    Status(String),
    Tags(BTreeMap<String, String>),
}

async fn change_volume(
    State(sim): State<CloudSim>,
    Path(id): Path<VolumeNo>,
    Json(change): Json<VolumeChange>,
) -> Answer {
    match change {
        VolumeChange::Attach {
            instance,
            persist,
            now: true,
        } => {
            sim.attach_now_with(id, instance, persist)?;
        }
        VolumeChange::Attach {
            instance, persist, ..
        } => sim.attach_with(id, instance, persist).map(drop)?,
        VolumeChange::Detach => sim.detach(id).map(drop)?,
        VolumeChange::Lock { reason, shown } => sim.lock_volume(id, &reason, shown)?,
        VolumeChange::Unlock => sim.unlock_volume(id)?,
        VolumeChange::Busy { milliseconds } => {
            sim.make_busy(id, Duration::from_millis(milliseconds))?
        }
        VolumeChange::Phantom => sim.make_phantom(id)?,
        VolumeChange::Lost => sim.make_lost(id)?,
        VolumeChange::Orphan { instance } => sim.make_orphan(id, instance)?,
        VolumeChange::AlsoAttach { instance } => sim.also_attach(id, instance)?,
        VolumeChange::DetachBehaviour(behaviour) => sim.set_detach(id, behaviour)?,
        VolumeChange::Status(word) => sim.set_volume_status(id, word)?,
        VolumeChange::Tags(tags) => sim.set_volume_tags(id, tags)?,
    }
    volume(State(sim), Path(id)).await
}

async fn jobs(State(sim): State<CloudSim>) -> Answer {
    answer(sim.jobs())
}

async fn snapshots(State(sim): State<CloudSim>) -> Answer {
    answer(sim.snapshots())
}

async fn add_fault(State(sim): State<CloudSim>, Json(rule): Json<FaultRule>) -> Answer {
    answer(json!({ "id": sim.add_fault(rule) }))
}

async fn remove_fault(State(sim): State<CloudSim>, Path(id): Path<FaultNo>) -> Answer {
    answer(json!({ "removed": sim.remove_fault(id) }))
}

async fn clear_faults(State(sim): State<CloudSim>) -> Answer {
    sim.clear_faults();
    answer(json!({}))
}

/// Settings of the whole cloud. A setting that is left out does not change.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    timings: Option<Timings>,
    unattached_detach: Option<UnattachedDetach>,
    dead_host: Option<DeadHost>,
    watchdog_looks_back: Option<bool>,
    freeze_reads_ms: Option<u64>,
    /// Requests per minute. 0: no limit.
    rate_limit: Option<u32>,
    read_only_user: Option<bool>,
    token: Option<Token>,
    foreign_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    token: String,
    scopes: Vec<String>,
}

async fn settings(State(sim): State<CloudSim>, Json(settings): Json<Settings>) -> Answer {
    if let Some(timings) = settings.timings {
        sim.set_timings(timings);
    }
    if let Some(unattached) = settings.unattached_detach {
        sim.set_unattached_detach(unattached);
    }
    if let Some(dead_host) = settings.dead_host {
        sim.set_dead_host(dead_host);
    }
    if let Some(looks_back) = settings.watchdog_looks_back {
        sim.set_watchdog_looks_back(looks_back);
    }
    if let Some(milliseconds) = settings.freeze_reads_ms {
        sim.freeze_reads(Duration::from_millis(milliseconds));
    }
    if let Some(limit) = settings.rate_limit {
        sim.set_rate_limit((limit > 0).then_some(limit));
    }
    if let Some(read_only) = settings.read_only_user {
        sim.set_read_only_user(read_only);
    }
    if let Some(Token { token, scopes }) = settings.token {
        let scopes: Vec<_> = scopes.iter().map(String::as_str).collect();
        sim.add_token(token, &scopes);
    }
    if let Some(token) = settings.foreign_token {
        sim.add_foreign_token(token);
    }
    answer(json!({}))
}

async fn requests(State(sim): State<CloudSim>) -> Answer {
    answer(sim.requests())
}

async fn history(State(sim): State<CloudSim>, Path(id): Path<VolumeNo>) -> Answer {
    answer(json!({
        "guest": sim.holder_intervals(id),
        "api": sim.api_holder_intervals(id),
        "max_guest_holders": sim.max_guest_holders(id),
        "max_holders": sim.max_holders(id),
    }))
}

async fn pulled(State(sim): State<CloudSim>) -> Answer {
    answer(sim.pulled())
}
