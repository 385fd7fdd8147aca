//! The baseline of a class A drill: how stock Kubernetes fares without reattach, alone and with a taint set by a person.
//!
//! Measured on a real control plane (StatefulSet, Linode's driver, node without power): alone not healed after 20 min;
//! Ready elsewhere 12.2 s and 18.0 s after a human's taint, of which the cloud's own detach and attach are 4 s.

use crate::app::App;
use crate::stage::{Expect, START, Sink, Stage};
use crate::world::{PERSON, World, WorldError};
use jiff::Timestamp;
use reattach_cloud_simulator::{JobAction, VolumeNo};
use reattach_core::names::OUT_OF_SERVICE_TAINT;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long stock Kubernetes is watched alone.
const ALONE: Duration = Duration::from_secs(1200);

/// The time until a workload was Ready again, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Took {
    /// From the moment that the node was known to be off until the pod was Ready elsewhere.
    pub seconds: f64,
    /// Of it, the cloud's own jobs for the volume.
    pub cloud: f64,
}

impl Took {
    /// Less the cloud's own time.
    pub fn less_cloud(self) -> f64 {
        self.seconds - self.cloud
    }
}

/// When each app was Ready with all its pods on other nodes than `dead`.
pub(crate) async fn ready_elsewhere(
    s: &mut Stage,
    apps: &[App],
    dead: &str,
    limit: Duration,
) -> Result<BTreeMap<String, Timestamp>, WorldError> {
    let mut ready: BTreeMap<String, Timestamp> = BTreeMap::new();
    let mut left = limit;
    while ready.len() < apps.len() {
        let missing: Vec<&App> = apps
            .iter()
            .filter(|a| !ready.contains_key(&a.name))
            .collect();
        let one = |w: &World| missing.iter().any(|a| is_elsewhere(w, a, dead));
        let names: Vec<&str> = missing.iter().map(|a| a.name.as_str()).collect();
        left = left.saturating_sub(
            s.until(&format!("{} elsewhere", names.join(", ")), left, one)
                .await?,
        );
        let now = s.world.now();
        for app in missing.iter().filter(|a| is_elsewhere(&s.world, a, dead)) {
            ready.insert(app.name.clone(), now);
        }
    }
    Ok(ready)
}

fn is_elsewhere(w: &World, app: &App, dead: &str) -> bool {
    w.app_ready(&app.name, app.replicas)
        && w.pods(&app.name)
            .iter()
            .all(|p| p["spec"]["nodeName"] != dead)
}

/// From `known` to `ready`, and how much of it the cloud's own jobs for the app's first volume were.
pub(crate) fn took(w: &World, app: &App, known: Timestamp, ready: Timestamp) -> Took {
    let volume = app.volumes.first().map(|v| VolumeNo(v.number));
    let ours = |action| matches!(action, JobAction::VolumeAttach | JobAction::VolumeDetach);
    let jobs = w
        .cloud
        .jobs()
        .into_iter()
        .filter(|j| j.volume == volume && ours(j.action) && j.created >= known);
    let cloud = jobs
        .filter_map(|j| Some(j.finished?.duration_since(j.created).as_secs_f64()))
        .sum();
    Took {
        seconds: ready.duration_since(known).as_secs_f64(),
        cloud,
    }
}

/// Returns whether any app runs again after 20 min in which nothing intervenes.
///
/// # Errors
/// The world could not be set.
pub(crate) async fn alone(
    seed: u64,
    nodes: &[(&str, u64)],
    apps: &[App],
) -> Result<bool, WorldError> {
    let (mut s, dead) = dead_node(seed, nodes, apps).await?;
    match ready_elsewhere(&mut s, apps, &dead, ALONE).await {
        Ok(_) => Ok(true),
        Err(WorldError::TooLate { .. }) => {
            Ok(apps.iter().any(|a| is_elsewhere(&s.world, a, &dead)))
        }
        Err(error) => Err(error),
    }
}

/// A human shuts the machine down at the cloud and then taints the Node out-of-service: how long each app took from
/// there.
///
/// # Errors
/// The world could not be set, or an app does not come back.
pub(crate) async fn with_a_taint(
    seed: u64,
    nodes: &[(&str, u64)],
    apps: &[App],
) -> Result<BTreeMap<String, Took>, WorldError> {
    let (mut s, dead) = dead_node(seed, nodes, apps).await?;
    // The node is known to be dead, its pods are not yet evicted: as in the quicker of the measured runs.
    s.pass(Duration::from_secs(52)).await;
    s.shut_down(&dead).await?;
    taint(&s.world, &dead).await?;
    let known = s.world.now();
    let ready = ready_elsewhere(&mut s, apps, &dead, Duration::from_secs(300)).await?;
    Ok(apps
        .iter()
        .map(|a| (a.name.clone(), took(&s.world, a, known, ready[&a.name])))
        .collect())
}

/// The apps on one node, whose kernel then hangs.
async fn dead_node(
    seed: u64,
    nodes: &[(&str, u64)],
    apps: &[App],
) -> Result<(Stage, String), WorldError> {
    let sink: Sink = Arc::new(|_| {});
    let mut s = Stage::new(seed, START, nodes, sink).await?;
    s.world.follow_power();
    on_one_node(
        &mut s,
        nodes,
        apps.iter().map(|a| (a.clone(), Expect::Running)),
    )
    .await?;
    let dead = nodes[0].0.to_owned();
    s.world.hang(&dead)?;
    Ok((s, dead))
}

/// Starts the apps on the first node, and then lets pods go anywhere.
///
/// # Errors
/// The world could not be set.
pub async fn on_one_node(
    s: &mut Stage,
    nodes: &[(&str, u64)],
    apps: impl Iterator<Item = (App, Expect)>,
) -> Result<(), WorldError> {
    for (node, _) in &nodes[1..] {
        cordon(&s.world, node, true).await?;
    }
    let mut names = Vec::new();
    for (app, expect) in apps {
        names.push(app.name.clone());
        s.add(app, expect).await?;
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    s.running(&names, Duration::from_secs(300)).await?;
    for (node, _) in &nodes[1..] {
        cordon(&s.world, node, false).await?;
    }
    Ok(())
}

/// Cordons or uncordons a node.
pub(crate) async fn cordon(w: &World, node: &str, closed: bool) -> Result<(), WorldError> {
    let body = json!({"spec": {"unschedulable": if closed { json!(true) } else { Value::Null }}});
    w.merge(PERSON, &format!("/api/v1/nodes/{node}"), &body)
        .await
        .map(|_| ())
}

async fn taint(w: &World, node: &str) -> Result<(), WorldError> {
    let object = w.server().read("", "nodes", "", node);
    let mut taints = object
        .and_then(|n| n["spec"]["taints"].as_array().cloned())
        .unwrap_or_default();
    taints
        .push(json!({"key": OUT_OF_SERVICE_TAINT, "value": "nodeshutdown", "effect": "NoExecute"}));
    w.merge(
        PERSON,
        &format!("/api/v1/nodes/{node}"),
        &json!({"spec": {"taints": taints}}),
    )
    .await
    .map(|_| ())
}
