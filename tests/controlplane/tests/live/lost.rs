//! Class C: the cloud has detached, and Kubernetes goes on saying attached.

use crate::STOCK;
use crate::common::fencing::{effects, told};
use crate::common::{AWAY, Stage, StageOptions};
use reattach_api::Phase;
use reattach_cloud_simulator::VolumeNo;
use reattach_core::steps::StepKind;
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_controlplane::{AuditEvent, say};
use serde_json::json;

/// A machine that comes back without its volume, which the cloud has detached meanwhile.
async fn strike(stage: Stage, namespace: &str) -> (Stage, VolumeNo) {
    stage.policy_saying(json!({})).await;
    stage.namespace(namespace).await;
    let node = stage.node_name(1);
    let volume = stage.deployment(namespace, "redis", &node).await;
    stage.await_ready(namespace, "redis", 1).await;
    stage.cloud.make_lost(volume).expect("a volume");
    stage.kubelet(&node).recycle(DiskAfter::Kept, AWAY).await;
    stage.await_down(namespace, "redis").await;
    (stage, volume)
}

pub async fn published_nodes_are_healed_by_the_attacher() {
    let stage = Stage::share(
        &STOCK,
        "lost",
        StageOptions {
            mode: None,
            ..StageOptions::default()
        },
    )
    .await;
    let (stage, volume) = strike(stage, "lost").await;
    stage.await_ready("lost", "redis", 1).await;
    // None at all where the attacher was quicker than the first look.
    stage.await_all_over("lost").await;
    for ended in stage.recoveries("lost").await {
        let status = ended.status.clone().expect("a status");
        say!(
            "class {:?}, {:?}: {}",
            status.class,
            status.phase,
            status.message
        );
        assert!(
            matches!(status.phase, Phase::Resolved | Phase::Recovered),
            "{:?}",
            status.phase
        );
        assert!(
            status.journal.is_empty() || effects(&ended).is_empty(),
            "{}",
            told(&ended)
        );
    }
    stage.assert_only_records(&[]);
    stage.assert_one_holder(&[volume]);
    stage.await_nothing_left().await;
}

pub async fn unpublished_nodes_are_healed_by_the_runbook() {
    // Without its minutely comparison external-attacher is that of a driver that does not publish nodes.
    let attacher_flags = vec!["--reconcile-sync=24h"];
    let options = StageOptions {
        mode: None,
        attacher_flags,
        ..StageOptions::default()
    };
    let (stage, volume) = strike(Stage::set(options).await, "shop").await;
    let recovery = stage.await_recovered("shop", "redis").await;
    say!("{}", told(&recovery));
    stage.await_ready("shop", "redis", 1).await;
    assert_eq!(
        effects(&recovery),
        [StepKind::Hold, StepKind::Release, StepKind::Lift]
    );
    let count = stage.assert_pinned_and_journaled(&[recovery]);
    say!("{count} effects, each pinned by its plan and after the journal line that announces it");
    assert_eq!(stage.cloud_mutations(), []);
    let workloads: Vec<AuditEvent> = stage
        .foreign_writes(&[])
        .into_iter()
        .filter(crate::common::logs::is_workload)
        .collect();
    assert_eq!(workloads, []);
    stage.assert_one_holder(&[volume]);
    stage.await_nothing_left().await;
}
