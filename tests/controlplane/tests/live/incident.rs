//! The founding incident on a real control plane, healed without a human: nodes recycled one after another, a volume that
//! the provider has locked, and two pods whose trouble is not ours.

use crate::common::logs::{is_workload, line};
use crate::common::measure::{Pace, summary};
use crate::common::{AWAY, Stage, StageOptions};
use jiff::SignedDuration;
use kube::ResourceExt;
use reattach_api::Phase;
use reattach_core::policy::Mode;
use reattach_sim::kubelet::DiskAfter;
use reattach_sim::manifests;
use reattach_tests_controlplane::say;

/// A workload of the incident: kind, name, claim, node.
const WORKLOADS: [(&str, &str, &str, &str); 5] = [
    ("StatefulSet", "redis", "data-redis-0", "node-1"),
    ("StatefulSet", "postgres", "data-postgres-0", "node-2"),
    ("Deployment", "bot", "bot", "node-1"),
    ("Deployment", "site", "site", "node-3"),
    ("ReplicaSet", "metrics", "metrics", "node-2"),
];
/// Not ours, each with what its message must name.
const NOT_OURS: [(&str, &str); 2] = [
    ("mail", "secret \"mail-tls\" not found"),
    ("archive", "unknown filesystem type 'ext5'"),
];

pub async fn measured_auto_heals_the_incident() {
    let stage = Stage::set(StageOptions {
        nodes: 3,
        ..StageOptions::default()
    })
    .await;
    stage.namespace("shop").await;
    let mut volumes = Vec::new();
    for (kind, name, _, node) in WORKLOADS {
        volumes.push(match kind {
            "StatefulSet" => stage.stateful_set("shop", name, 1, node).await[0],
            "ReplicaSet" => stage.replica_set("shop", name, node).await,
            _ => stage.deployment("shop", name, node).await,
        });
    }
    let locked = stage.deployment("shop", "forms", "node-3").await;
    for (_, name, ..) in WORKLOADS {
        stage.await_ready("shop", name, 1).await;
    }
    stage.await_ready("shop", "forms", 1).await;

    let pace = Pace::start(&stage);
    stage
        .cloud
        .lock_volume(locked, "Contact support", true)
        .expect("a volume");
    stage.kubelet("node-1").recycle(DiskAfter::Kept, AWAY).await;
    // These come to a node that works again.
    let tls = manifests::secret_volume("tls", "mail-tls");
    stage
        .deployment_with("shop", "mail", "node-1", |d| {
            d["spec"]["template"]["spec"]["volumes"]
                .as_array_mut()
                .expect("volumes")
                .push(tls);
        })
        .await;
    stage
        .bound_claim_with("shop", "archive", "ext5", |_| {})
        .await;
    let mut archive = manifests::deployment(
        "shop",
        "archive",
        1,
        &[manifests::claim_volume("data", "archive")],
    );
    crate::common::workloads::pin(&mut archive, "node-1");
    stage.create(archive).await;
    stage.kubelet("node-2").recycle(DiskAfter::Kept, AWAY).await;
    stage
        .kubelet("node-3")
        .recycle(DiskAfter::ReImaged, AWAY)
        .await;

    let mut timelines = Vec::new();
    let mut effects = 0;
    for ((kind, name, claim, _), volume) in WORKLOADS.iter().zip(&volumes) {
        let recovery = stage.await_phase("shop", claim, &[Phase::Recovered]).await;
        stage.await_ready("shop", name, 1).await;
        assert_eq!(
            (recovery.spec.mode, stage.count("shop", kind, name).await),
            (Mode::Auto, (1, false)),
            "{name}"
        );
        let pod = stage.pods("shop", name).await[0].name_any();
        timelines.push(stage.timeline(&recovery, *volume, &pod));
        effects += stage.assert_journaled_first(&recovery, *volume);
    }
    say!("{effects} effects, each after the journal line that announces it");
    assert_eq!(
        effects,
        2 * WORKLOADS.len(),
        "one scale and one restore each: Kubernetes detached by itself"
    );
    let (whole, own) = summary(&timelines);
    pace.at_most("median of the whole", whole, SignedDuration::from_secs(20));
    // Five side by side; below 1 s for one alone, see `tests/node`.
    pace.at_most("median of our own share", own, SignedDuration::from_secs(2));

    not_ours_are_named_and_untouched(&stage).await;

    let waiting = stage
        .await_phase("shop", "forms", &[Phase::Waiting])
        .await
        .status
        .expect("a status");
    say!("locked: {}", waiting.message);
    assert!(
        waiting.message.contains("locked") && waiting.message.contains("class B"),
        "{}",
        waiting.message
    );
    assert!(
        waiting.journal.is_empty()
            && stage.count("shop", "Deployment", "forms").await == (1, false)
    );
    stage.cloud.unlock_volume(locked).expect("a volume");
    stage
        .await_phase("shop", "forms", &[Phase::Recovered])
        .await;
    stage.await_ready("shop", "forms", 1).await;

    volumes.push(locked);
    stage.assert_one_holder(&volumes);
    assert_eq!(
        stage.cloud_mutations(),
        [],
        "Kubernetes detached every volume by itself"
    );
    stage.await_nothing_left().await;
}

async fn not_ours_are_named_and_untouched(stage: &Stage) {
    for (name, why) in NOT_OURS {
        let recovery = stage.await_phase("shop", name, &[Phase::NotOurs]).await;
        let status = recovery.status.expect("a status");
        say!("not ours: {name}: {}", status.message);
        assert!(
            status.message.contains(why) && status.journal.is_empty(),
            "{}",
            status.message
        );
        assert_eq!(stage.count("shop", "Deployment", name).await, (1, false));
    }
    let touched = |e: &&reattach_tests_controlplane::AuditEvent| {
        is_workload(e)
            && NOT_OURS
                .iter()
                .any(|(name, _)| e.name.as_deref().is_some_and(|n| n.starts_with(name)))
    };
    let writes: Vec<String> = stage
        .foreign_writes(&[])
        .iter()
        .filter(touched)
        .map(line)
        .collect();
    assert!(writes.is_empty(), "{writes:#?}");
}
