//! Class A on real nodes: one that is dead, and one that only looks so and whose pod writes on.

use crate::REAL;
use crate::common::LIMIT;
use crate::common::fencing::{DEATH, completed, effects};
use crate::fixture::{APP, Fixture};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use reattach_api::Phase;
use reattach_cloud_simulator::VolumeNo;
use reattach_core::names::{OUT_OF_SERVICE_TAINT, QUARANTINE_TAINT};
use reattach_core::steps::StepKind;
use reattach_tests_controlplane::eventually;
use serde_json::json;

/// Two nodes; the cloud may be asked to power one off.
async fn set(name: &str) -> (Fixture, VolumeNo) {
    let fixture = Fixture::share(&REAL, name, 2).await;
    fixture
        .stage
        .policy_saying(json!({"powerOff": "Allowed"}))
        .await;
    let (first, second) = (fixture.stage.node_name(1), fixture.stage.node_name(2));
    let volume = fixture.canary_anywhere(&first, &[&second]).await;
    (fixture, volume)
}

/// The keys of a Node's taints.
async fn taints(fixture: &Fixture, node: &str) -> Vec<String> {
    let nodes: Api<Node> = Api::all(fixture.stage.admin.clone());
    let found = nodes.get(node).await.expect("a Node");
    found
        .spec
        .and_then(|s| s.taints)
        .unwrap_or_default()
        .into_iter()
        .map(|t| t.key)
        .collect()
}

/// Waits for the end of the recovery, and checks that the canary writes elsewhere, that writers never overlapped, and that
/// nothing is left but the quarantine, which ends with a clean answer of the next boot.
async fn is_healed_elsewhere(fixture: &Fixture, volume: VolumeNo) {
    let (first, second) = (&fixture.stage.node_name(1), &fixture.stage.node_name(2));
    let recovered = eventually("the end of the recovery", DEATH, async || {
        let newest = fixture.stage.recoveries(fixture.namespace()).await.pop()?;
        (newest.status.as_ref()?.phase == Phase::Recovered).then_some(newest)
    });
    let recovery = recovered
        .await
        .unwrap_or_else(|e| panic!("{e}\n{}", fixture.stage.logs()));
    fixture.stage.await_ready(fixture.namespace(), APP, 1).await;
    let node = fixture.pod().await.spec.and_then(|s| s.node_name);
    assert_eq!(node.as_deref(), Some(second.as_str()));
    let (_, journal) = crate::common::fencing::history(&recovery);
    let proven = completed(&recovery, StepKind::Prove).expect("a proof");
    let ended = journal.last().expect("an end").at;
    fixture.say(&format!(
        "{:.1} s from the proof to the end; effects: {:?}",
        ended.duration_since(proven).as_secs_f64(),
        effects(&recovery)
    ));
    fixture.await_canary(first, 10).await;
    fixture.assert_writers_apart_at(first, second, volume).await;
    fixture.stage.assert_one_holder(&[volume]);
    let shutdowns = fixture.stage.cloud_mutations();
    assert_eq!(shutdowns.len(), 1, "{shutdowns:#?}");
    assert!(
        shutdowns[0]
            .path
            .ends_with(&format!("/{}/shutdown", fixture.stage.instance_number(1))),
        "{}",
        shutdowns[0].path
    );
    let left = taints(fixture, first).await;
    assert!(!left.iter().any(|t| t == OUT_OF_SERVICE_TAINT), "{left:?}");
    assert!(
        left.iter().any(|t| t == QUARANTINE_TAINT),
        "until its agent answers clean: {left:?}"
    );

    fixture.boot(first).await;
    fixture.await_node(first, true).await;
    let free = eventually("the end of the quarantine", LIMIT, async || {
        (!taints(fixture, first)
            .await
            .iter()
            .any(|t| t == QUARANTINE_TAINT))
        .then_some(())
    });
    free.await
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", fixture.stage.logs(), fixture.logs(first)));
    fixture.say("the fenced node is back, clean, and out of quarantine");
    fixture.stage.await_nothing_left().await;
}

pub async fn a_dead_nodes_volume_moves_to_another_node() {
    let (fixture, volume) = set("dead").await;
    fixture
        .machine("dead-1")
        .power_off()
        .expect("the power goes");
    fixture.say("the node is dead; the cloud goes on calling it running");
    is_healed_elsewhere(&fixture, volume).await;
}

/// The node is cut off and its pod keeps writing. Fencing stops it before another node gets the volume.
pub async fn a_partitioned_node_is_off_before_its_volume_moves() {
    let (fixture, volume) = set("cut-off").await;
    for program in ["kubelet", "agent"] {
        fixture.machine("cut-off-1").kill(program).expect("it ran");
    }
    fixture.say("kubelet and agent are gone, the pod is not");
    fixture.await_node("cut-off-1", false).await;
    fixture.await_canary("cut-off-1", 20).await;
    fixture.say("the Node is not Ready, and its pod writes");
    is_healed_elsewhere(&fixture, volume).await;
}
