//! Class B on a real node: the cloud recycled the machine, its guest has no device, and the API says attached.

use crate::scene::Scene;
use reattach_core::policy::Mode;
use reattach_tests_node::Disk;

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
