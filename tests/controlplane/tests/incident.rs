//! The founding incident on a real control plane, in every use.

mod common;

use common::{Stage, StageOptions};
use reattach_api::Phase;
use reattach_core::policy::Mode;
use reattach_sim::kubelet::DiskAfter;
use std::time::Duration;

const AWAY: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn auto_heals_a_recycled_node() {
    let stage = Stage::set(StageOptions::default()).await;
    stage.namespace("shop").await;
    let volume = stage.deployment("shop", "redis", "node-1").await;
    stage.await_ready("shop", "redis", 1).await;
    stage.kubelet("node-1").recycle(DiskAfter::Kept, AWAY).await;
    stage.await_down("shop", "redis").await;
    let recovery = stage.await_phase("shop", "redis", &[Phase::Recovered]).await;
    stage.await_ready("shop", "redis", 1).await;
    assert_eq!(stage.cloud.max_guest_holders(volume), 1);
    assert_eq!(recovery.spec.mode, Mode::Auto);
    println!("{}", serde_json::to_string_pretty(&recovery.status.expect("a status").timings).expect("JSON"));
}
