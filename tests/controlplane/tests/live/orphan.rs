//! Class E: the cloud's holder has no VolumeAttachment.

use crate::STOCK;
use crate::common::fencing::{effects, told};
use crate::common::workloads::prefer;
use crate::common::{Stage, StageOptions};
use reattach_cloud_simulator::Timings;
use reattach_core::steps::StepKind;
use reattach_tests_controlplane::say;
use serde_json::json;
use tokio::time::Instant;

/// external-attacher takes the node's instance from CSINode first: after the name has passed to another instance, its
/// detach is a no-op that succeeds.
pub async fn an_orphan_of_a_recreated_node_is_freed() {
    let mut stage = Stage::share(
        &STOCK,
        "orphan",
        StageOptions {
            mode: None,
            ..StageOptions::default()
        },
    )
    .await;
    stage.set_timings(Timings {
        shutdown_ms: 5_000,
        boot_ms: 5_000,
        ..Timings::default()
    });
    stage.policy_saying(json!({})).await;
    stage.namespace("orphan").await;
    let nodes = ["orphan-1", "orphan-2"];
    let redis = stage
        .deployment_with("orphan", "redis", "orphan-1", |o| prefer(o, &nodes))
        .await;
    let sql = stage
        .stateful_set_with("orphan", "sql", 1, "orphan-1", |o| prefer(o, &nodes))
        .await[0];
    for app in ["redis", "sql"] {
        stage.await_ready("orphan", app, 1).await;
    }
    let old = stage.instance("orphan-1");
    stage.delete_dead_node("orphan-1").await;
    stage.replace("orphan-1", stage.instance_number(11)).await;
    let replaced = Instant::now();

    let mut recoveries = Vec::new();
    for (app, claim) in [("redis", "redis"), ("sql", "data-sql-0")] {
        let recovery = stage.await_recovered("orphan", claim).await;
        say!("{claim}:\n{}", told(&recovery));
        stage.await_ready("orphan", app, 1).await;
        assert_eq!(
            recovery.status.as_ref().and_then(|s| s.class.as_deref()),
            Some("E")
        );
        assert!(
            effects(&recovery).contains(&StepKind::CloudDetach),
            "{:?}",
            effects(&recovery)
        );
        recoveries.push(recovery);
    }
    say!(
        "Ready {:.0} s after the name had passed on",
        replaced.elapsed().as_secs_f64()
    );
    let detaches = stage.cloud_mutations();
    assert_eq!(detaches.len(), 2, "one for each volume: {detaches:#?}");
    let count = stage.assert_pinned_and_journaled(&recoveries);
    say!("{count} effects, each pinned by its plan and after the journal line that announces it");
    for recovery in &recoveries {
        let pins = &crate::common::fencing::history(recovery).0.pins;
        assert_eq!(
            pins.holder.as_str(),
            old.to_string(),
            "freed from the old instance, by its number"
        );
    }
    stage.assert_one_holder(&[redis, sql]);
    stage.await_nothing_left().await;
}
