//! Class A: a node that is dead, or only looks so.

use crate::common::fencing::{completed, effects, print_returns, told};
use crate::common::workloads::prefer;
use crate::common::{LIMIT, Stage, StageOptions};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use reattach_cloud_simulator::{InstanceStatus, RequestRecord, Timings, VolumeNo};
use reattach_core::runbook::StepKind;
use reattach_tests_controlplane::eventually;
use serde_json::{Value, json};

/// Workloads on one node: kind, name, claim.
const WORKLOADS: [(&str, &str, &str); 3] =
    [("StatefulSet", "sql", "data-sql-0"), ("Deployment", "redis", "redis"), ("Deployment", "bot", "bot")];

/// The workloads of [`WORKLOADS`], Ready on the first of these nodes; their volumes.
async fn cast(stage: &Stage, namespace: &str, nodes: &[&str], annotations: Value) -> Vec<VolumeNo> {
    stage
        .create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "annotations": annotations}}))
        .await;
    stage.plane.await_namespace(namespace).await.expect("its ServiceAccount");
    let mut volumes = Vec::new();
    for (kind, name, _) in WORKLOADS {
        volumes.push(match kind {
            "StatefulSet" => {
                stage.stateful_set_with(namespace, name, 1, nodes[0], |o| prefer(o, nodes)).await[0]
            }
            _ => stage.deployment_with(namespace, name, nodes[0], |o| prefer(o, nodes)).await,
        });
    }
    for (_, name, _) in WORKLOADS {
        stage.await_ready(namespace, name, 1).await;
        assert_eq!(stage.node_of(namespace, name).await, nodes[0], "{name} prefers it");
    }
    volumes
}

/// Waits until the only live pod of a workload is Ready on `node`; its name.
async fn back_on(stage: &Stage, namespace: &str, app: &str, node: &str) -> String {
    let what = format!("{namespace}/{app} Ready on {node}");
    let found = eventually(&what, LIMIT, async || {
        let pods = stage.pods(namespace, app).await;
        let on = |p: &k8s_openapi::api::core::v1::Pod| {
            p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node)
        };
        pods.iter().find(|p| on(p) && crate::common::workloads::is_ready(p)).map(ResourceExt::name_any)
    });
    match found.await {
        Ok(name) => name,
        Err(error) => panic!("{error}\n{}\n{}", stage.story(namespace).await, stage.logs()),
    }
}

/// A human's way: the out-of-service taint, once the Node is NotReady and the machine is off. Gives the moment of the taint.
async fn a_human_taints(stage: &Stage, node: &str) -> Timestamp {
    stage.cloud.shutdown(stage.instance(node)).expect("it runs, says the cloud");
    stage.await_instance(node, &InstanceStatus::Offline).await;
    stage.await_node(node, false).await;
    let mut taints = stage.taints(node, |_| true).await;
    taints.push(serde_json::from_value(json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"})).expect("a taint"));
    let at = Timestamp::now();
    let nodes: Api<Node> = Api::all(stage.admin.clone());
    let body = json!({"spec": {"taints": taints}});
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(&body)).await.expect("tainted");
    at
}

/// The calls of reattach to a power endpoint of the cloud.
fn power_calls(stage: &Stage, word: &str) -> Vec<RequestRecord> {
    stage.cloud_mutations().into_iter().filter(|r| r.path.ends_with(word)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_powered_off_and_its_volumes_come_back() {
    let options = StageOptions { nodes: 4, alone: true, mode: None, ..StageOptions::default() };
    let mut stage = Stage::set(options).await;
    stage.cloud.set_timings(Timings { shutdown_ms: 5_000, boot_ms: 5_000, ..Timings::default() });
    stage.policy_saying("test", json!({"powerOff": "Allowed"})).await;
    let ours = cast(&stage, "shop", &["node-1", "node-3"], json!({})).await;
    // The same beside it, healed by Kubernetes alone after a human's taint.
    let stock = cast(&stage, "stock", &["node-2", "node-4"], json!({"reattach.dev/opt-out": "true"})).await;

    stage.hang("node-1");
    stage.hang("node-2");
    let tainted = a_human_taints(&stage, "node-2").await;
    let mut by_hand = Vec::new();
    for ((_, name, claim), volume) in WORKLOADS.iter().zip(&stock) {
        let pod = back_on(&stage, "stock", name, "node-4").await;
        by_hand.push(stage.back_after(claim, &pod, *volume, tainted));
    }

    let (mut returns, mut recoveries) = (Vec::new(), Vec::new());
    for ((kind, name, claim), volume) in WORKLOADS.iter().zip(&ours) {
        let recovery = stage.await_recovered("shop", claim).await;
        println!("{claim}:\n{}", told(&recovery));
        let pod = back_on(&stage, "shop", name, "node-3").await;
        assert_eq!(stage.count("shop", kind, name).await, (1, false), "{name}");
        let proven = completed(&recovery, StepKind::Prove).expect("a proof");
        returns.push(stage.back_after(claim, &pod, *volume, proven));
        recoveries.push(recovery);
    }
    let stock_median = print_returns("a human's taint to Ready elsewhere", &by_hand);
    let median = print_returns("proof to Ready elsewhere", &returns);

    // Once for the instance, whoever asked.
    let off = power_calls(&stage, "/shutdown");
    assert_eq!(off.len(), 1, "{off:#?}");
    assert!(off[0].path.contains(&format!("/{}/", stage.instance("node-1"))), "{}", off[0].path);
    let touched = |kind| recoveries.iter().filter(|r| effects(r).contains(&kind)).count();
    assert_eq!(touched(StepKind::TaintOutOfService), 1, "one of them taints");
    assert_eq!(touched(StepKind::Quarantine), 1, "one of them puts it in quarantine");
    assert!(recoveries.iter().all(|r| !effects(r).contains(&StepKind::CloudDetach)), "Kubernetes detached");
    let count = stage.assert_pinned_and_journaled(&recoveries);
    println!("{count} effects, each pinned by its plan and after the journal line that announces it");

    assert!(!stage.is_out_of_service("node-1").await, "the taint is off again");
    let left = stage.node_locks().await;
    assert!(left.is_empty(), "locks: {left:?}");
    let quarantine = stage.taints("node-1", |t| t.key == "reattach.dev/quarantine").await;
    assert_eq!(quarantine.len(), 1, "until its next boot's agent answers clean");
    for (_, _, claim) in WORKLOADS {
        assert!(stage.attachments("shop", claim).await.iter().all(|va| va.spec.node_name == "node-3"));
        assert!(
            stage
                .recoveries("stock")
                .await
                .iter()
                .all(|r| r.status.as_ref().is_none_or(|s| s.journal.is_empty()))
        );
    }
    let all: Vec<VolumeNo> = ours.iter().chain(&stock).copied().collect();
    stage.assert_one_holder(&all);
    assert!(median < SignedDuration::from_secs(25), "median {median:?}, stock {stock_median:?}");
}
