//! Class B on a real node: the cloud recycled the machine, its guest has no device, and the API says attached.

use crate::common::measure::summary;
use crate::scene::Scene;
use jiff::SignedDuration;
use kube::ResourceExt;
use reattach_core::policy::Mode;
use reattach_tests_node::Disk;
use std::time::Duration;

async fn is_healed(disk: Disk) {
    let scene = Scene::set(1).await;
    let volume = scene.canary("node-1").await;
    let before = scene.pod().await;
    let trouble = scene.recycle("node-1", disk).await;
    let recovery = scene.await_healed(volume, trouble).await;
    assert_eq!(recovery.spec.mode, Mode::Auto);
    assert_ne!(before.metadata.uid, scene.pod().await.metadata.uid);
    assert_eq!(scene.console("node-1").writers().len(), 2, "one before, one after");
    assert_eq!(scene.stage.cloud_mutations(), [], "Kubernetes detached by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recycled_node_is_healed() {
    is_healed(Disk::Kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recycled_and_re_imaged_node_is_healed() {
    is_healed(Disk::ReImaged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_block_volume_is_healed() {
    let scene = Scene::set(1).await;
    let volume = scene.raw_canary("node-1").await;
    let trouble = scene.recycle("node-1", Disk::Kept).await;
    scene.await_healed(volume, trouble).await;
    assert_eq!(scene.console("node-1").writers().len(), 2, "one before, one after");
}

/// The runbook that leaves the workload's count alone: new pods are held, the stuck one is released.
#[tokio::test(flavor = "multi_thread")]
async fn a_recycled_node_is_healed_by_hold_and_release() {
    let scene = Scene::set(1).await;
    scene.runbook("lightest-first").await;
    let volume = scene.canary("node-1").await;
    let trouble = scene.recycle("node-1", Disk::Kept).await;
    scene.await_healed(volume, trouble).await;
    assert_eq!(scene.console("node-1").writers().len(), 2, "one before, one after");
    let scaled = scene.stage.foreign_writes(&[]).iter().any(crate::common::logs::is_workload);
    assert!(!scaled, "the workload was not touched");
    assert_eq!(scene.stage.cloud_mutations(), [], "Kubernetes detached by itself");
}

/// kubelet tells that it has let go of a volume at its next status tick, every 10 s from its start on, so how long a recovery
/// takes depends on when between two ticks it begins: here at steps of 2 s over one period, the first at kubelet's own
/// FailedMount about 1.7 s after its start.
#[tokio::test(flavor = "multi_thread")]
async fn alone_hold_and_release_over_the_phases_of_kubelets_tick() {
    let mut timelines = Vec::new();
    for late in [0, 3_200, 5_200, 7_200, 9_200].map(Duration::from_millis) {
        let scene = Scene::set_alone(1).await;
        scene.runbook("lightest-first").await;
        let volume = scene.canary("node-1").await;
        let trouble = scene.recycle_with_agent_after(late, "node-1", Disk::Kept).await;
        let recovery = scene.await_healed(volume, trouble).await;
        timelines.push(scene.stage.timeline(&recovery, volume, &scene.pod().await.name_any()));
    }
    let (whole, own) = summary(&timelines);
    assert!(whole < SignedDuration::from_secs(15), "median {whole:?}");
    assert!(own < SignedDuration::from_secs(1), "median of our own share {own:?}");
}
