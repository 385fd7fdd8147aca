//! Class B on a real node: the cloud recycled the machine, its guest has no device, and the API says attached.

use crate::REAL;
use crate::common::measure::{Pace, Timeline, by_itself, summary};
use crate::fixture::Fixture;
use futures::future::join_all;
use jiff::SignedDuration;
use kube::ResourceExt;
use reattach_core::policy::Mode;
use reattach_tests_node::Disk;
use std::time::Duration;

async fn is_healed(name: &str, disk: Disk) {
    let fixture = Fixture::share(&REAL, name, 1).await;
    let node = fixture.stage.node_name(1);
    let volume = fixture.canary(&node).await;
    let before = fixture.pod().await;
    let trouble = fixture.recycle(&node, disk).await;
    let recovery = fixture.await_healed(volume, trouble).await;
    assert_eq!(recovery.spec.mode, Mode::Auto);
    assert_ne!(before.metadata.uid, fixture.pod().await.metadata.uid);
    assert_eq!(
        fixture.console(&node).writers().len(),
        2,
        "one before, one after"
    );
    assert_eq!(
        fixture.stage.cloud_mutations(),
        [],
        "Kubernetes detached by itself"
    );
}

pub async fn a_recycled_node_is_healed() {
    is_healed("recycled", Disk::Kept).await;
}

pub async fn a_recycled_and_re_imaged_node_is_healed() {
    is_healed("re-imaged", Disk::ReImaged).await;
}

pub async fn a_raw_block_volume_is_healed() {
    let fixture = Fixture::share(&REAL, "raw", 1).await;
    let volume = fixture.raw_canary("raw-1").await;
    let trouble = fixture.recycle("raw-1", Disk::Kept).await;
    fixture.await_healed(volume, trouble).await;
    assert_eq!(
        fixture.console("raw-1").writers().len(),
        2,
        "one before, one after"
    );
}

/// The runbook that leaves the workload's count alone: new pods are held, the stuck one is released.
pub async fn a_recycled_node_is_healed_by_hold_and_release() {
    let fixture = Fixture::share(&REAL, "release", 1).await;
    fixture.runbook("lightest-first").await;
    let volume = fixture.canary("release-1").await;
    let trouble = fixture.recycle("release-1", Disk::Kept).await;
    fixture.await_healed(volume, trouble).await;
    assert_eq!(
        fixture.console("release-1").writers().len(),
        2,
        "one before, one after"
    );
    let scaled = fixture
        .stage
        .foreign_writes(&[])
        .iter()
        .any(crate::common::logs::is_workload);
    assert!(!scaled, "the workload was not touched");
    assert_eq!(
        fixture.stage.cloud_mutations(),
        [],
        "Kubernetes detached by itself"
    );
}

/// kubelet reports that it has unmounted a volume at its next status tick, every 10 s from its start on, so how long a recovery
/// takes depends on when between two ticks it begins: here at steps of 2 s over one period, the first at kubelet's own
/// FailedMount about 1.7 s after its start.
pub async fn measured_hold_and_release_over_the_phases_of_kubelets_tick() {
    let late = [0, 3_200, 5_200, 7_200, 9_200].map(Duration::from_millis);
    let mut healed = Vec::new();
    if by_itself() {
        for late in late {
            let fixture = Fixture::set(1).await;
            healed.push(after_agents_delay(&fixture, late).await);
        }
    } else {
        let each = late.into_iter().enumerate().map(async |(at, late)| {
            let fixture = Fixture::share(&REAL, &format!("phase-{at}"), 1).await;
            after_agents_delay(&fixture, late).await
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
async fn after_agents_delay(fixture: &Fixture, late: Duration) -> (Timeline, Pace) {
    fixture.runbook("lightest-first").await;
    let node = fixture.stage.node_name(1);
    let volume = fixture.canary(&node).await;
    let pace = Pace::start(&fixture.stage);
    let trouble = fixture
        .recycle_with_agent_after(late, &node, Disk::Kept)
        .await;
    let recovery = fixture.await_healed(volume, trouble).await;
    (
        fixture
            .stage
            .timeline(&recovery, volume, &fixture.pod().await.name_any()),
        pace,
    )
}
