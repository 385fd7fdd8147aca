//! Class A on real nodes: one that is dead, and one that only looks so and whose pod writes on.

use crate::REAL;
use crate::common::LIMIT;
use crate::common::fencing::{DEATH, completed, effects};
use crate::scene::{APP, Scene};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use reattach_api::Phase;
use reattach_cloud_simulator::VolumeNo;
use reattach_core::names::{OUT_OF_SERVICE_TAINT, QUARANTINE_TAINT};
use reattach_core::steps::StepKind;
use reattach_tests_controlplane::eventually;
use serde_json::json;

/// Two nodes; the cloud may be asked to power one off.
async fn set(name: &str) -> (Scene, VolumeNo) {
    let scene = Scene::share(&REAL, name, 2).await;
    scene.stage.policy_saying(json!({"powerOff": "Allowed"})).await;
    let (first, second) = (scene.stage.node_name(1), scene.stage.node_name(2));
    let volume = scene.canary_anywhere(&first, &[&second]).await;
    (scene, volume)
}

/// The keys of a Node's taints.
async fn taints(scene: &Scene, node: &str) -> Vec<String> {
    let nodes: Api<Node> = Api::all(scene.stage.admin.clone());
    let found = nodes.get(node).await.expect("a Node");
    found.spec.and_then(|s| s.taints).unwrap_or_default().into_iter().map(|t| t.key).collect()
}

/// Waits for the end of the recovery, and checks that the canary writes elsewhere, that writers never overlapped, and that
/// nothing is left but the quarantine, which ends with a clean answer of the next boot.
async fn is_healed_elsewhere(scene: &Scene, volume: VolumeNo) {
    let (first, second) = (&scene.stage.node_name(1), &scene.stage.node_name(2));
    let recovered = eventually("the end of the recovery", DEATH, async || {
        let newest = scene.stage.recoveries(scene.namespace()).await.pop()?;
        (newest.status.as_ref()?.phase == Phase::Recovered).then_some(newest)
    });
    let recovery = recovered.await.unwrap_or_else(|e| panic!("{e}\n{}", scene.stage.logs()));
    scene.stage.await_ready(scene.namespace(), APP, 1).await;
    let node = scene.pod().await.spec.and_then(|s| s.node_name);
    assert_eq!(node.as_deref(), Some(second.as_str()));
    let (_, journal) = crate::common::fencing::history(&recovery);
    let proven = completed(&recovery, StepKind::Prove).expect("a proof");
    let ended = journal.last().expect("an end").at;
    scene.say(&format!(
        "{:.1} s from the proof to the end; effects: {:?}",
        ended.duration_since(proven).as_secs_f64(),
        effects(&recovery)
    ));
    scene.await_canary(first, 10).await;
    scene.assert_writers_apart_at(first, second, volume).await;
    scene.stage.assert_one_holder(&[volume]);
    let shutdowns = scene.stage.cloud_mutations();
    assert_eq!(shutdowns.len(), 1, "{shutdowns:#?}");
    assert!(
        shutdowns[0].path.ends_with(&format!("/{}/shutdown", scene.stage.instance_number(1))),
        "{}",
        shutdowns[0].path
    );
    let left = taints(scene, first).await;
    assert!(!left.iter().any(|t| t == OUT_OF_SERVICE_TAINT), "{left:?}");
    assert!(left.iter().any(|t| t == QUARANTINE_TAINT), "until its agent answers clean: {left:?}");

    scene.boot(first).await;
    scene.await_node(first, true).await;
    let free = eventually("the end of the quarantine", LIMIT, async || {
        (!taints(scene, first).await.iter().any(|t| t == QUARANTINE_TAINT)).then_some(())
    });
    free.await.unwrap_or_else(|e| panic!("{e}\n{}\n{}", scene.stage.logs(), scene.logs(first)));
    scene.say("the fenced node is back, clean, and out of quarantine");
    scene.stage.await_nothing_left().await;
}

pub async fn a_dead_node_loses_its_volume_to_another() {
    let (scene, volume) = set("dead").await;
    scene.machine("dead-1").power_off().expect("the power goes");
    scene.say("the node is dead; the cloud goes on calling it running");
    is_healed_elsewhere(&scene, volume).await;
}

/// Nobody hears of the node, and its pod writes on. Fencing stops it before anybody else gets the volume.
pub async fn a_partitioned_node_is_stopped_before_another_gets_its_volume() {
    let (scene, volume) = set("cut-off").await;
    for program in ["kubelet", "agent"] {
        scene.machine("cut-off-1").kill(program).expect("it ran");
    }
    scene.say("kubelet and agent are gone, the pod is not");
    scene.await_node("cut-off-1", false).await;
    scene.await_canary("cut-off-1", 20).await;
    scene.say("the Node is not Ready, and its pod writes");
    is_healed_elsewhere(&scene, volume).await;
}
