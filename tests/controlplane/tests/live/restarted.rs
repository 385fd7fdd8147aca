//! kube-controller-manager is restarted while a dead node has a volume: its new process knows of the attachment only what
//! the Node lists, so that the VolumeAttachment's deletion alone does not let another node have the volume.

use crate::common::fencing::{completed, effects, told};
use crate::common::logs::CONTROLLER;
use crate::common::workloads::{is_ready, prefer};
use crate::common::{LIMIT, Stage, StageOptions};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use reattach_cloud_simulator::{Timings, VolumeNo};
use reattach_core::names::OUT_OF_SERVICE_TAINT;
use reattach_core::steps::StepKind;
use reattach_tests_controlplane::{AuditEvent, Component, Unpublish, eventually, say};
use serde_json::json;
use tokio::time::Instant;

/// A Deployment whose pod was force-deleted on the dead `node-1` and waits on `node-2`, and then a restarted
/// kube-controller-manager that has never seen the old pod.
async fn stage_restarted() -> (Stage, VolumeNo) {
    let mut stage = Stage::set(StageOptions {
        mode: None,
        ..StageOptions::default()
    })
    .await;
    stage.cloud.set_timings(Timings {
        shutdown_ms: 5_000,
        boot_ms: 5_000,
        ..Timings::default()
    });
    stage.policy_saying(json!({"powerOff": "Allowed"})).await;
    stage.namespace("shop").await;
    let volume = stage
        .deployment_with("shop", "redis", "node-1", |o| {
            prefer(o, &["node-1", "node-2"])
        })
        .await;
    stage.await_ready("shop", "redis", 1).await;
    assert_eq!(stage.node_of("shop", "redis").await, "node-1");

    // The scheduler hears of the taint on a NotReady node only after the condition is there to see.
    stage.cordon("node-1").await;
    stage.hang("node-1");
    stage.await_node("node-1", false).await;
    let pods: Api<Pod> = Api::namespaced(stage.admin.clone(), "shop");
    for pod in stage.pods("shop", "redis").await {
        let at_once = DeleteParams::default().grace_period(0);
        pods.delete(&pod.name_any(), &at_once)
            .await
            .expect("a person force-deletes it");
    }
    let what = "a pod that waits on node-2, and the VolumeAttachment of node-1";
    let stuck = eventually(what, LIMIT, async || {
        let pods = stage.pods("shop", "redis").await;
        let on = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some("node-2");
        let [pod] = pods.as_slice() else { return None };
        (on(pod) && !is_ready(pod) && holders(&stage).await == ["node-1"]).then_some(())
    });
    stuck
        .await
        .unwrap_or_else(|e| panic!("{e}\n{}", stage.logs()));
    assert_eq!(stage.cloud_mutations(), [], "nobody has begun to heal it");
    let begun = Instant::now();
    stage
        .plane
        .restart_component(Component::ControllerManager)
        .await
        .expect("it starts again");
    say!(
        "kube-controller-manager was away for {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    (stage, volume)
}

/// The nodes that VolumeAttachments name.
async fn holders(stage: &Stage) -> Vec<String> {
    stage
        .attachments("shop", "redis")
        .await
        .into_iter()
        .map(|va| va.spec.node_name)
        .collect()
}

/// When reattach wrote the out-of-service taint.
fn tainted(stage: &Stage) -> Timestamp {
    let taints = |e: &&AuditEvent| {
        e.user == CONTROLLER
            && e.resource == "nodes"
            && e.took_effect()
            && e.body
                .as_ref()
                .is_some_and(|b| b.to_string().contains(OUT_OF_SERVICE_TAINT))
    };
    stage
        .audit()
        .iter()
        .find(taints)
        .expect("reattach taints the node")
        .reached
}

/// When the deletion of the old node's VolumeAttachment was requested, and when the new node's was created, both by
/// kube-controller-manager.
fn records(stage: &Stage, old: &str) -> (Option<Timestamp>, Option<Timestamp>) {
    let events = stage.audit();
    let manager = |e: &&AuditEvent| {
        e.resource == "volumeattachments"
            && e.subresource.is_none()
            && e.took_effect()
            && e.user_agent.contains("attachdetach-controller")
    };
    let deleted = events
        .iter()
        .filter(manager)
        .find(|e| e.verb == "delete" && e.name.as_deref() == Some(old));
    let on = |e: &&AuditEvent| {
        e.body
            .as_ref()
            .and_then(|b| b.pointer("/spec/nodeName")?.as_str())
            == Some("node-2")
    };
    let made = events
        .iter()
        .filter(manager)
        .find(|e| e.verb == "create" && on(e));
    (deleted.map(|e| e.reached), made.map(|e| e.reached))
}

/// The end of both tests: healed, by a taint on an instance that is proven off, and everything undone.
async fn heals(stage: &mut Stage, volume: VolumeNo, restarted: Instant) {
    let recovery = stage.await_recovered("shop", "redis").await;
    say!("{}", told(&recovery));
    stage.await_ready_on("shop", "redis", "node-2").await;
    say!(
        "Ready {:.0} s after kube-controller-manager was back",
        restarted.elapsed().as_secs_f64()
    );
    assert!(
        effects(&recovery).contains(&StepKind::TaintOutOfService),
        "{:?}",
        effects(&recovery)
    );
    let proven = completed(&recovery, StepKind::Prove).expect("a proof");
    assert!(tainted(stage) > proven, "the taint rests on the proof");
    let count = stage.assert_pinned_and_journaled(&[recovery]);
    say!("{count} effects, each pinned by its plan and after the journal line that announces it");
    stage.assert_one_holder(&[volume]);
    assert!(
        !stage.is_out_of_service("node-1").await,
        "the taint is off again"
    );
    stage.boot("node-1").await;
    stage.await_node("node-1", true).await;
    stage.await_nothing_left().await;
}

pub async fn a_manager_restart_still_frees_a_dead_nodes_volume() {
    let (mut stage, volume) = stage_restarted().await;
    let restarted = Instant::now();
    let old = stage
        .attachments("shop", "redis")
        .await
        .remove(0)
        .name_any();
    heals(&mut stage, volume, restarted).await;
    let (taint, (deleted, made)) = (tainted(&stage), records(&stage, &old));
    let deleted = deleted.expect("kube-controller-manager asks for the detach");
    say!(
        "{:.1} s from the taint to the deletion of the VolumeAttachment, {:.1} s to the new node's",
        deleted.duration_since(taint).as_secs_f64(),
        made.expect("the new one")
            .duration_since(taint)
            .as_secs_f64()
    );
    assert!(deleted > taint, "nothing but the taint makes it let go");
    assert_eq!(
        stage.cloud_mutations().len(),
        1,
        "the shutdown alone: {:#?}",
        stage.cloud_mutations()
    );
}

/// A person deletes the VolumeAttachment, the driver cannot detach: once the volume is detached and the record is gone,
/// kube-controller-manager still believes the Node's list.
pub async fn a_manual_deletion_after_a_restart_needs_the_taint() {
    let (mut stage, volume) = stage_restarted().await;
    stage
        .plane
        .csi_faults(Unpublish::Fail)
        .await
        .expect("the switch moves");
    let restarted = Instant::now();
    let old = stage
        .attachments("shop", "redis")
        .await
        .remove(0)
        .name_any();
    let attachments: Api<VolumeAttachment> = Api::all(stage.admin.clone());
    attachments
        .delete(&old, &DeleteParams::default())
        .await
        .expect("a person deletes it");
    heals(&mut stage, volume, restarted).await;
    let (taint, (_, made)) = (tainted(&stage), records(&stage, &old));
    let made = made.expect("the new one");
    say!(
        "{:.1} s from the taint to the new node's VolumeAttachment",
        made.duration_since(taint).as_secs_f64()
    );
    assert!(made > taint, "nothing but the taint makes it let go");
}
