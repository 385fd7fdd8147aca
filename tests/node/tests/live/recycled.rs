//! Class B on a real node: the cloud recycled the machine, its guest has no device, and the API says attached.

use crate::REAL;
use crate::common::measure::{Pace, Timeline, by_itself, summary};
use crate::scene::Scene;
use futures::future::join_all;
use jiff::SignedDuration;
use kube::ResourceExt;
use reattach_core::policy::Mode;
use reattach_tests_node::Disk;
use std::time::Duration;

async fn is_healed(name: &str, disk: Disk) {
    let scene = Scene::share(&REAL, name, 1).await;
    let node = scene.stage.node_name(1);
    let volume = scene.canary(&node).await;
    let before = scene.pod().await;
    let trouble = scene.recycle(&node, disk).await;
    let recovery = scene.await_healed(volume, trouble).await;
    assert_eq!(recovery.spec.mode, Mode::Auto);
    assert_ne!(before.metadata.uid, scene.pod().await.metadata.uid);
    assert_eq!(scene.console(&node).writers().len(), 2, "one before, one after");
    assert_eq!(scene.stage.cloud_mutations(), [], "Kubernetes detached by itself");
}

pub async fn a_recycled_node_is_healed() {
    is_healed("recycled", Disk::Kept).await;
}

pub async fn a_recycled_and_re_imaged_node_is_healed() {
    is_healed("re-imaged", Disk::ReImaged).await;
}

pub async fn a_raw_block_volume_is_healed() {
    let scene = Scene::share(&REAL, "raw", 1).await;
    let volume = scene.raw_canary("raw-1").await;
    let trouble = scene.recycle("raw-1", Disk::Kept).await;
    scene.await_healed(volume, trouble).await;
    assert_eq!(scene.console("raw-1").writers().len(), 2, "one before, one after");
}

/// The runbook that leaves the workload's count alone: new pods are held, the stuck one is released.
pub async fn a_recycled_node_is_healed_by_hold_and_release() {
    let scene = Scene::share(&REAL, "release", 1).await;
    scene.runbook("lightest-first").await;
    let volume = scene.canary("release-1").await;
    let trouble = scene.recycle("release-1", Disk::Kept).await;
    scene.await_healed(volume, trouble).await;
    assert_eq!(scene.console("release-1").writers().len(), 2, "one before, one after");
    let scaled = scene.stage.foreign_writes(&[]).iter().any(crate::common::logs::is_workload);
    assert!(!scaled, "the workload was not touched");
    assert_eq!(scene.stage.cloud_mutations(), [], "Kubernetes detached by itself");
}

/// kubelet tells that it has let go of a volume at its next status tick, every 10 s from its start on, so how long a recovery
/// takes depends on when between two ticks it begins: here at steps of 2 s over one period, the first at kubelet's own
/// FailedMount about 1.7 s after its start.
pub async fn measured_hold_and_release_over_the_phases_of_kubelets_tick() {
    let late = [0, 3_200, 5_200, 7_200, 9_200].map(Duration::from_millis);
    let mut healed = Vec::new();
    if by_itself() {
        for late in late {
            let scene = Scene::set(1).await;
            healed.push(after_agents_delay(&scene, late).await);
        }
    } else {
        let each = late.into_iter().enumerate().map(async |(at, late)| {
            let scene = Scene::share(&REAL, &format!("phase-{at}"), 1).await;
            after_agents_delay(&scene, late).await
        });
        healed = join_all(each).await;
    }
    let (timelines, paces): (Vec<Timeline>, Vec<Pace>) = healed.into_iter().unzip();
    let (whole, own) = summary(&timelines);
    // 10 to 18 s and 0.65 to 0.99 s were seen of one at a time.
    paces[0].at_most("median of the whole", whole, SignedDuration::from_secs(15));
    paces[0].at_most("median of our own share", own, SignedDuration::from_secs(1));
}

/// The timeline of a recycled node whose agent is this much later than its kubelet, and the pace of that time.
async fn after_agents_delay(scene: &Scene, late: Duration) -> (Timeline, Pace) {
    scene.runbook("lightest-first").await;
    let node = scene.stage.node_name(1);
    let volume = scene.canary(&node).await;
    let pace = Pace::start(&scene.stage);
    let trouble = scene.recycle_with_agent_after(late, &node, Disk::Kept).await;
    let recovery = scene.await_healed(volume, trouble).await;
    (scene.stage.timeline(&recovery, volume, &scene.pod().await.name_any()), pace)
}
