//! Classes C, D and E: attachments that were lost, records that are stuck, holders that no record names.

use super::fencing::{LONG, apps, booted_again, names, over, secs, set};
use super::{TWO_NODES, fail_detaches, postgres, redis};
use crate::app::App;
use crate::baseline::{cordon, ready_elsewhere};
use crate::stage::{Sink, Stage};
use crate::timeline::Actor;
use crate::world::{APPS, PERSON, World, WorldError};
use reattach_api::Escalation;
use reattach_cloud_simulator::{DetachBehaviour, VolumeNo};
use reattach_sim::kubelet::NodePluginFaults;
use reattach_sim::object::{items, name};
use serde_json::{Value, json};
use std::time::Duration;

/// Where the cloud simulator has its volumes.
const REGION: &str = "eu-central";

fn wiki() -> App {
    App::stateful_set("wiki", 7_003, "pvc9b2e8a61f40c4b3d", 1, "the wiki")
}

/// Moves the apps' pods off the first node, which stays Ready, as a person does for maintenance.
async fn drain(s: &mut Stage, apps: &[App]) -> Result<(), WorldError> {
    let node = TWO_NODES[0].0;
    s.tell(
        Actor::Person,
        "",
        format!("drains {node}: kubectl drain {node} --ignore-daemonsets"),
    );
    cordon(&s.world, node, true).await?;
    for app in apps {
        for pod in s.world.pods(&app.name) {
            delete_pod(&s.world, name(&pod), json!({})).await?;
        }
    }
    Ok(())
}

async fn delete_pod(w: &World, pod: &str, options: Value) -> Result<(), WorldError> {
    let path = format!("/api/v1/namespaces/{APPS}/pods/{pod}");
    w.delete(PERSON, &path, options).await
}

/// Whether a person was called for an app: it waits for too long, or its run is over without success.
fn called(w: &World, app: &App) -> bool {
    let own = |r: &Value| {
        app.volumes
            .iter()
            .any(|v| r["spec"]["claimName"] == v.claim.as_str())
    };
    let escalated =
        |c: &Value| c["type"] == "Stalled" && c["status"] == "True" && c["reason"] == "Escalated";
    w.server()
        .list("reattach.dev", "volumerecoveries", None)
        .iter()
        .filter(|r| own(r))
        .any(|r| {
            items(r, "/status/conditions").any(escalated)
                || matches!(r["status"]["phase"].as_str(), Some("Failed" | "Stuck"))
        })
}

/// The trouble is not ours to end: it is named, a person is called after the policy's 300 s, and nothing is freed.
async fn waits_and_calls(s: &mut Stage, apps: &[App]) -> Result<(), WorldError> {
    let all = |w: &World| apps.iter().all(|a| called(w, a));
    s.until("a person called for each", secs(900), all).await?;
    s.pass(secs(120)).await;
    for app in apps {
        match told(s, app) {
            Some(told) if told.ticket.is_none() && !told.summary.is_empty() => {}
            other => s.broken.push(format!(
                "{}: a person must mend it, not the provider: {other:?}",
                app.name
            )),
        }
    }
    let freeing =
        |e: &crate::request_log::Entry| e.path.ends_with("/detach") || e.method == "DELETE";
    for effect in s
        .world
        .request_log
        .effects()
        .iter()
        .filter(|e| freeing(e) && e.accepted())
    {
        s.broken.push(format!(
            "freed although the cause still exists: {}",
            effect.line()
        ));
    }
    Ok(())
}

/// A person puts right what stood in the way; how long until everything runs.
async fn then_heals(s: &mut Stage, apps: &[App]) -> Result<(), WorldError> {
    let took = s.running(&names(apps), LONG).await?;
    let quiet = |w: &World| !apps.iter().any(|a| called(w, a));
    s.until("nobody called any more", secs(120), quiet).await?;
    for app in apps {
        if told(s, app).is_some() {
            s.broken
                .push(format!("{}: a person is still told what to do", app.name));
        }
    }
    s.tell(
        Actor::Kubernetes,
        "",
        format!(
            "all run {:.0} s after the cause was fixed",
            took.as_secs_f64()
        ),
    );
    cordon(&s.world, TWO_NODES[0].0, false).await?;
    over(s, apps, secs(300)).await
}

/// The machine is rebooted in order; the cloud drops attachments that do not persist.
async fn rebooted(seed: u64, published: bool, sink: Sink) -> Result<Stage, WorldError> {
    let apps = [redis(), postgres()];
    let mut s = set(seed, "Never", &apps, sink).await?;
    s.world.csi.set_publishes_nodes(published);
    let word = if published {
        "reports"
    } else {
        "does not report"
    };
    s.tell(
        Actor::Provider,
        "",
        format!("the CSI driver {word} to external-attacher which nodes have a volume"),
    );
    let node = TWO_NODES[0].0;
    s.tell(
        Actor::Provider,
        "",
        format!("reboots {node}: its attachments end with the reboot (persist_across_boots=false)"),
    );
    s.world.cloud.reboot(s.world.instance(node)?)?;
    let down = |w: &World| apps.iter().all(|a| !w.app_ready(&a.name, 1));
    s.until("both apps down", secs(200), down).await?;
    over(&mut s, &apps, LONG).await?;
    Ok(s)
}

pub(super) async fn lost(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let mut s = rebooted(seed, true, sink).await?;
    if let Some(first) = s.world.request_log.effects().first() {
        s.broken.push(format!(
            "Kubernetes heals this without help, but reattach issued: {}",
            first.line()
        ));
    }
    Ok(s)
}

pub(super) async fn lost_for_good(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    rebooted(seed, false, sink).await
}

pub(super) async fn detach_error(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = [redis(), postgres()];
    let mut s = set(seed, "Never", &apps, sink).await?;
    fail_detaches(&mut s, true);
    drain(&mut s, &apps).await?;
    over(&mut s, &apps, LONG).await?;
    cordon(&s.world, TWO_NODES[0].0, false).await?;
    Ok(s)
}

pub(super) async fn node_deleted(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = apps();
    let mut s = set(seed, "Never", &apps, sink).await?;
    let node = TWO_NODES[0].0;
    let instance = s.world.instance(node)?;
    s.tell(
        Actor::Person,
        "",
        format!(
            "shuts the machine down ({instance}) and deletes its Node: kubectl delete node {node}"
        ),
    );
    s.shut_down(node).await?;
    s.world
        .delete(PERSON, &format!("/api/v1/nodes/{node}"), json!({}))
        .await?;
    let deleted = s.world.now();
    let ready = ready_elsewhere(&mut s, &apps, node, LONG).await?;
    for (app, at) in &ready {
        s.figures.push([
            format!("{app}, from the Node's deletion"),
            format!("{:.0} s", at.duration_since(deleted).as_secs_f64()),
            "412 to 427 s (measured on a real control plane)".to_owned(),
        ]);
    }
    over(&mut s, &apps, secs(300)).await?;
    Ok(s)
}

pub(super) async fn manager_restarted(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = [redis(), postgres()];
    let mut s = set(seed, "Allowed", &apps, sink).await?;
    let node = TWO_NODES[0].0;
    s.hang(node)?;
    s.until("the node NotReady", secs(90), |w| {
        !w.cluster.node_ready(node)
    })
    .await?;
    s.tell(
        Actor::Person,
        "",
        "restarts kube-controller-manager, and force-deletes the dead node's pods meanwhile",
    );
    s.world.cluster.controllers().stop_manager();
    for app in &apps {
        for pod in s.world.pods(&app.name) {
            delete_pod(&s.world, name(&pod), json!({"gracePeriodSeconds": 0})).await?;
        }
    }
    s.world.cluster.controllers().start_manager();
    over(&mut s, &apps, LONG).await?;
    booted_again(&mut s, node).await?;
    Ok(s)
}

pub(super) async fn missing_objects(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = [redis(), postgres()];
    let mut s = set(seed, "Never", &apps, sink).await?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "linode-token", "namespace": APPS}});
    let with = json!({"spec": {"csi": {"controllerPublishSecretRef": {"name": "linode-token", "namespace": APPS}}}});
    s.world.merge(PERSON, &pv_path(&redis()), &with).await?;
    let server = s.world.server().clone();
    let Some(pv) = server.read("", "persistentvolumes", "", &postgres().volumes[0].pv()) else {
        return Err(WorldError::Product(
            "the stage has no PersistentVolume".to_owned(),
        ));
    };
    s.tell(
        Actor::Person,
        "",
        "deletes the Secret that redis' PersistentVolume names, and postgres' PersistentVolume",
    );
    s.world
        .delete(PERSON, &pv_path(&postgres()), json!({}))
        .await?;
    drain(&mut s, &apps).await?;
    waits_and_calls(&mut s, &apps).await?;
    s.tell(Actor::Person, "", "creates both again from a backup");
    server.insert(&secret);
    server.insert(&pv);
    then_heals(&mut s, &apps).await?;
    Ok(s)
}

fn pv_path(app: &App) -> String {
    format!("/api/v1/persistentvolumes/{}", app.volumes[0].pv())
}

pub(super) async fn driver_uninstalled(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = [redis(), postgres()];
    let mut s = set(seed, "Never", &apps, sink).await?;
    let path = "/apis/storage.k8s.io/v1/csidrivers/linodebs.csi.linode.com";
    let Some(driver) = s.world.server().read(
        "storage.k8s.io",
        "csidrivers",
        "",
        "linodebs.csi.linode.com",
    ) else {
        return Err(WorldError::Product("the stage has no CSIDriver".to_owned()));
    };
    // The pods go while the node plugin is there, so that only the detach is left undone.
    s.world.cluster.controllers().stop_attacher();
    drain(&mut s, &apps).await?;
    s.pass(secs(30)).await;
    s.tell(
        Actor::Person,
        "",
        "uninstalls the CSI driver: helm uninstall linode-blockstorage-csi-driver",
    );
    s.world.delete(PERSON, path, json!({})).await?;
    plugins(&s.world, true);
    waits_and_calls(&mut s, &apps).await?;
    s.tell(Actor::Person, "", "installs it again");
    s.world.server().insert(&driver);
    plugins(&s.world, false);
    s.world.cluster.controllers().start_attacher();
    then_heals(&mut s, &apps).await?;
    Ok(s)
}

fn plugins(w: &World, gone: bool) {
    for kubelet in w.cluster.nodes().values() {
        kubelet.set_plugin_faults(NodePluginFaults {
            unregistered: gone,
            ..NodePluginFaults::default()
        });
    }
}

pub(super) async fn locked(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = [redis(), postgres(), wiki()];
    let mut s = set(seed, "Never", &apps, sink).await?;
    let volume = |app: &App| VolumeNo(app.volumes[0].number);
    s.world
        .cloud
        .lock_volume(volume(&apps[0]), "locked by the provider", true)?;
    s.world
        .cloud
        .make_busy(volume(&apps[1]), Duration::from_secs(86_400))?;
    s.world
        .cloud
        .set_detach(volume(&apps[2]), DetachBehaviour::Stuck)?;
    s.tell(
        Actor::Provider,
        "redis",
        "the volume is locked; the API says so",
    );
    s.tell(
        Actor::Provider,
        "postgres",
        "every attach and detach of the volume is answered \"Linode busy.\"",
    );
    s.tell(
        Actor::Provider,
        "wiki",
        "a detach of the volume is accepted and never ends",
    );
    drain(&mut s, &apps).await?;
    waits_and_calls_locked(&mut s, &apps).await?;
    s.world.cloud.unlock_volume(volume(&apps[0]))?;
    s.world.cloud.make_busy(volume(&apps[1]), Duration::ZERO)?;
    s.world
        .cloud
        .set_detach(volume(&apps[2]), DetachBehaviour::Normal)?;
    s.tell(
        Actor::Provider,
        "",
        "the lock is lifted, the busy volume is free, and the detach ends",
    );
    then_heals(&mut s, &apps).await?;
    Ok(s)
}

/// As [`waits_and_calls`]; what the provider refuses may be asked for again, and nothing comes of it.
async fn waits_and_calls_locked(s: &mut Stage, apps: &[App]) -> Result<(), WorldError> {
    let all = |w: &World| apps.iter().all(|a| called(w, a));
    s.until("a person called for each", secs(1800), all).await?;
    s.pass(secs(60)).await;
    for app in apps {
        let told = told(s, app);
        let ticket = told.and_then(|t| t.ticket).unwrap_or_default();
        let volume = format!("Volume ID:      {}", app.volumes[0].number);
        let instance = format!("Instance:       {}", s.world.instance(TWO_NODES[0].0)?);
        let region = format!("Region:         {REGION}");
        for part in [
            volume,
            instance,
            region,
            "Since:".to_owned(),
            "Your API says:".to_owned(),
        ] {
            if !ticket.contains(&part) {
                s.broken.push(format!(
                    "{}: the ticket for the provider has no \"{part}\": {ticket:?}",
                    app.name
                ));
            }
        }
        s.show(
            Actor::Reattach,
            &app.name,
            "prepared a ticket for the provider:",
            &ticket,
        );
    }
    Ok(())
}

/// The escalation of an app's recovery.
fn told(s: &Stage, app: &App) -> Option<Escalation> {
    s.recovery_of(&app.name)?.status?.escalation
}

/// A node pool replaces a machine and keeps the name: no record names the old instance any more.
async fn replaced(seed: u64, gone: bool, sink: Sink) -> Result<Stage, WorldError> {
    let apps = apps();
    let mut s = set(seed, "Never", &apps, sink).await?;
    let node = TWO_NODES[0].0;
    s.replace(node, 5_901, gone).await?;
    let down = |w: &World| apps.iter().all(|a| !w.app_ready(&a.name, a.replicas));
    s.until("the apps down", secs(120), down).await?;
    if gone {
        // Unpublish from the new machine succeeds and detaches nothing: the VolumeAttachments go, the holder stays.
        drain(&mut s, &apps).await?;
    }
    over(&mut s, &apps, LONG).await?;
    cordon(&s.world, node, false).await?;
    if s.world
        .request_log
        .effects()
        .iter()
        .all(|e| !e.path.ends_with("/detach"))
    {
        s.broken.push(
            "it healed without a detach from the old instance: this is not class E (orphan attachment)".to_owned(),
        );
    }
    Ok(s)
}

pub(super) async fn orphan(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    replaced(seed, false, sink).await
}

pub(super) async fn orphan_of_a_deleted(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    replaced(seed, true, sink).await
}
