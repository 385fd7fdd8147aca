//! Evidence about a node whose kubelet is silent, the nomination of claims, and the escalation of a long wait.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::cloud::Cloud;
use common::{CLAIM, DRIVER, HANDLE, NODE, NS, START, Stage};
use reattach_api::{PowerOffRule, SnapshotRule};
use reattach_cloud_simulator::VolumeNo;
use reattach_cluster::Clients;
use reattach_cluster::cache::Cache;
use reattach_controller::collect::RecoveryContext;
use reattach_controller::policies::PlanRules;
use reattach_controller::{Collector, Needs, Providers, nominees};
use reattach_core::cloud::InstanceState;
use reattach_core::evidence::Evidence;
use reattach_core::ids::{InstanceId, NodeName, ObjectName, Uid};
use reattach_core::plan::Snapshots;
use reattach_provider_api::Capabilities;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const VOLUME: VolumeNo = VolumeNo(7001);

/// A cloud in which this instance has the claim's volume.
fn held_by(instance: &str) -> Cloud {
    Cloud::attached(HANDLE, instance, START.parse().unwrap())
}

fn providers(cloud: &Cloud) -> Providers {
    let mut providers = Providers::default();
    providers.register(Arc::new(cloud.clone()));
    providers
}

fn pod(stage: &Stage, name: &str, namespace: &str, node: &str, claim: Option<&str>) {
    let volumes = claim.map_or_else(
        || json!([]),
        |claim| json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]),
    );
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}], "volumes": volumes},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}});
    stage.put(pod, "", "pods");
}

fn attachment(stage: &Stage, node: &str, change: impl FnOnce(&mut Value)) {
    let mut attachment = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "csi-1"},
        "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": "pvc-1"}},
        "status": {"attached": true}});
    change(&mut attachment);
    stage.put(attachment, "storage.k8s.io", "volumeattachments");
}

/// Collected live, or from the watches.
async fn collect(stage: &Stage, cloud: &Cloud, watched: bool) -> Evidence {
    let client = stage.server.client_as("controller");
    let mut tasks = JoinSet::new();
    let clients = Clients::over(client.clone(), client);
    let cache = Cache::start(&clients.read, stage.clock(), &mut tasks);
    cache.ready().await;
    let cache = watched.then_some(cache);
    let neighbours = Default::default();
    let collector = Collector {
        clients,
        cache,
        providers: providers(cloud),
        clock: stage.clock(),
        neighbours,
    };
    collector
        .collect(
            &ObjectName::new(NS, CLAIM),
            Some(RecoveryContext::default()),
            Needs::Plan,
        )
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_dead_nodes_pods_and_power_are_collected() {
    for watched in [false, true] {
        let s = Stage::new();
        let cloud = held_by("100");
        s.node("Unknown", &json!([]));
        attachment(&s, NODE, |_| {});
        pod(&s, "redis-0", NS, NODE, Some(CLAIM));
        pod(&s, "other", "reattach-system", NODE, None);
        pod(&s, "elsewhere", NS, "n2", None);
        let e = collect(&s, &cloud, watched).await;
        let pods = e.node_pods[&NodeName::from(NODE)].shown().unwrap();
        let names: Vec<String> = pods.iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(names, ["cache/redis-0", "reattach-system/other"]);
        assert_ne!(pods[0].1, Uid::from(""));
        let holder = InstanceId::from("100");
        assert_eq!(
            e.instances[&holder].shown().unwrap().state,
            InstanceState::Running
        );
        assert!(e.power[&holder].shown().is_some() && e.cloud_scope.is_some());

        s.node("True", &json!([]));
        let e = collect(&s, &cloud, watched).await;
        assert!(
            e.node_pods.is_empty(),
            "its kubelet speaks: {:?}",
            e.node_pods
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_nodes_machine_is_collected_from_the_cloud() {
    let s = Stage::new();
    attachment(&s, NODE, |_| {});
    pod(&s, "redis-0", NS, NODE, Some(CLAIM));
    let e = collect(&s, &held_by("100"), true).await;
    assert!(e.instances[&InstanceId::from("100")].shown().is_some());
    assert_eq!(e.node_pods[&NodeName::from(NODE)].shown().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_orphans_node_is_found_by_its_instance() {
    for watched in [false, true] {
        let s = Stage::new();
        s.node("True", &json!([]));
        pod(&s, "redis-0", NS, "n2", Some(CLAIM));
        let e = collect(&s, &held_by("100"), watched).await;
        let node = e.nodes[&NodeName::from(NODE)].shown().unwrap();
        assert!(node.ready);
        assert!(
            e.instances.contains_key(&InstanceId::from("100")),
            "no VolumeAttachment names it"
        );
        let e = collect(&s, &held_by("777"), watched).await;
        assert!(
            !e.nodes.contains_key(&NodeName::from(NODE)),
            "it has nothing to do with it"
        );
    }
}

async fn why(stage: &Stage) -> Option<String> {
    let mut tasks = JoinSet::new();
    let cache = Cache::start(
        &stage.server.client_as("controller"),
        stage.clock(),
        &mut tasks,
    );
    cache.ready().await;
    nominees(&cache)
        .into_iter()
        .find(|n| n.claim == ObjectName::new(NS, CLAIM))
        .map(|n| n.why)
}

#[tokio::test(start_paused = true)]
async fn a_record_in_trouble_nominates_its_claim() {
    let s = Stage::new();
    s.node("True", &json!([]));
    s.put(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        "",
        "nodes",
    );
    pod(&s, "redis-0", NS, "n2", Some(CLAIM));
    attachment(&s, NODE, |_| {});
    assert_eq!(why(&s).await, None, "nothing is wrong with it");
    let going = |at: &str| json!({"name": "csi-1", "finalizers": ["x/y"], "deletionTimestamp": at});
    attachment(&s, NODE, |a| a["metadata"] = going("2026-02-28T23:59:30Z"));
    assert_eq!(why(&s).await, None, "a detach takes its time");
    attachment(&s, NODE, |a| a["metadata"] = going("2026-02-28T23:58:00Z"));
    assert!(why(&s).await.unwrap().contains("has been going for 120 s"));
    let error = json!({"time": "2026-03-01T00:00:00Z", "message": "rpc error: busy"});
    attachment(&s, NODE, |a| a["status"]["detachError"] = error.clone());
    assert!(why(&s).await.unwrap().contains("rpc error: busy"));
    attachment(&s, NODE, |a| {
        a["status"] = json!({"attached": false, "attachError": error})
    });
    assert!(why(&s).await.unwrap().contains("rpc error: busy"));
    attachment(&s, "n9", |_| {});
    assert!(
        why(&s)
            .await
            .unwrap()
            .contains("n9, which is not Ready or does not exist")
    );
    s.node("Unknown", &json!([]));
    attachment(&s, NODE, |_| {});
    assert!(
        why(&s)
            .await
            .unwrap()
            .contains("n1, which is not Ready or does not exist")
    );
}

fn events(stage: &Stage) -> Vec<String> {
    events_of(stage, "Escalated")
}

fn events_of(stage: &Stage, reason: &str) -> Vec<String> {
    let all = stage.server.list("", "events", None);
    let of = all.iter().filter(|e| e["reason"] == reason);
    of.map(|e| e["message"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// A policy that selects drivers of a cloud that is not asked is told so, once for each version of it.
#[tokio::test(start_paused = true)]
async fn a_policy_for_an_unknown_driver_gets_one_event() {
    let policy = |s: &Stage, driver: &str| {
        s.put(
            json!({"apiVersion": "reattach.dev/v1alpha1", "kind": "RecoveryPolicy", "metadata": {"name": "p"},
                "spec": {"mode": "DryRun", "selector": {"drivers": [driver]}}}),
            "reattach.dev",
            "recoverypolicies",
        );
    };
    let mut known = Stage::new();
    policy(&known, DRIVER);
    let mut providers = Providers::default();
    providers.register(std::sync::Arc::new(held_by("100")));
    known.start(providers).await;
    assert_eq!(events_of(&known, "UnknownDriver"), [""; 0]);

    let mut s = Stage::new();
    policy(&s, "ebs.csi.aws.com");
    s.start(Providers::default()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let built = if cfg!(feature = "aws") {
        "add --provider aws"
    } else {
        "build with --features aws"
    };
    let told = events_of(&s, "UnknownDriver");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("knows driver ebs.csi.aws.com; asked: none") && told[0].ends_with(built),
        "{told:?}"
    );
}

/// One recovery of a claim at a time, also where the watch has not told of the first one yet when the pod is replaced.
#[tokio::test(start_paused = true)]
async fn a_lagging_watch_causes_no_second_recovery() {
    let mut s = Stage::new();
    let cloud = held_by("100");
    s.node("Unknown", &json!([]));
    s.server.insert(
        &json!({"apiVersion": "reattach.dev/v1alpha1", "kind": "RecoveryPolicy", "metadata": {"name": "p"},
        "spec": {"mode": "DryRun"}}),
    );
    s.start(providers(&cloud)).await;
    s.the_watch_of_recoveries_lags();
    attachment(&s, NODE, |_| {});
    let names = || -> Vec<String> {
        let all = s.server.list("reattach.dev", "volumerecoveries", Some(NS));
        all.iter()
            .map(|r| r["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    pod(&s, "redis-0", NS, NODE, Some(CLAIM));
    tokio::time::sleep(Duration::from_secs(30)).await;
    let first = names();
    assert_eq!(first.len(), 1, "{first:?}");
    pod(&s, "redis-1", NS, NODE, Some(CLAIM));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(names(), first);
}

fn stalled(stage: &Stage) -> Option<Value> {
    let r = stage.get("reattach.dev", "volumerecoveries", NS, "r");
    let all = r["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    all.into_iter()
        .find(|c| c["type"] == "Stalled")
        .filter(|c| c["status"] == "True")
}

#[tokio::test(start_paused = true)]
async fn a_lasting_lock_escalates_and_resumes_once_lifted() {
    let mut s = Stage::new();
    let cloud = held_by("100");
    cloud.sim.lock_volume(VOLUME, "staff", true).unwrap();
    s.node("Unknown", &json!([]));
    attachment(&s, NODE, |_| {});
    pod(&s, "redis-0", NS, NODE, Some(CLAIM));
    s.recovery("r", "Diagnosing", |r| r["spec"]["mode"] = json!("DryRun"));
    s.server.insert(
        &json!({"apiVersion": "reattach.dev/v1alpha1", "kind": "RecoveryPolicy", "metadata": {"name": "p"},
        "spec": {"mode": "DryRun", "escalateAfterSeconds": 120}}),
    );
    s.start(providers(&cloud)).await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    let r = s.get("reattach.dev", "volumerecoveries", NS, "r");
    assert_eq!(r["status"]["phase"], "Waiting", "{}", r["status"]);
    assert!(!r["status"]["waitingSince"].is_null());
    assert!(stalled(&s).is_none());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stalled(&s).unwrap()["reason"], "Escalated");
    tokio::time::sleep(Duration::from_secs(400)).await;
    let told = events(&s);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("kubectl reattach status -n cache r prints the ticket"),
        "{told:?}"
    );
    assert!(
        told[0].contains("staff") && told[0].len() <= 1024,
        "{told:?}"
    );
    let status = s.get("reattach.dev", "volumerecoveries", NS, "r")["status"].clone();
    assert_eq!(status["escalation"]["since"], status["waitingSince"]);
    let ticket = status["escalation"]["ticket"].as_str().unwrap_or_default();
    for part in [
        "Your API says: it is locked (staff)",
        "Volume ID:",
        "Region:",
        "Instance:       100",
        "Since:",
    ] {
        assert!(ticket.contains(part), "{part} is missing in\n{ticket}");
    }

    cloud.sim.unlock_volume(VOLUME).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(
        stalled(&s).is_none_or(|c| c["reason"] != "Escalated"),
        "{:?}",
        stalled(&s)
    );
    let r = s.get("reattach.dev", "volumerecoveries", NS, "r");
    assert_ne!(r["status"]["phase"], "Waiting");
    assert!(
        r["status"]["escalation"].is_null(),
        "{}",
        r["status"]["escalation"]
    );
    // The machine was seen meanwhile, and its sightings are of this recovery's record.
    let seen = r["status"]["sightings"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(
        (&seen[0]["instance"], &seen[0]["state"]),
        (&json!("100"), &json!("running"))
    );
}

/// A cloud that cannot make the snapshot which the policy requires is not asked to detach by force.
#[tokio::test(start_paused = true)]
async fn a_required_snapshot_limits_force() {
    use SnapshotRule::{BestEffort, Never, Required};
    let stage = Stage::new();
    let cloud = held_by("1");
    let evidence = collect(&stage, &cloud, false).await;
    let allowed = |can_force, can_snapshot, rule| {
        cloud.script(|s| {
            s.capabilities = Some(Capabilities {
                can_force,
                can_snapshot,
                ..Capabilities::default()
            })
        });
        let rules = PlanRules {
            snapshot: rule,
            ..PlanRules::default()
        };
        let allowed = providers(&cloud).allowed(&evidence, PowerOffRule::Never, false, rules);
        (allowed.force, allowed.snapshot)
    };
    assert_eq!(allowed(true, true, Never), (true, Snapshots::Never));
    assert_eq!(
        allowed(true, true, BestEffort),
        (true, Snapshots::BestEffort)
    );
    assert_eq!(allowed(true, true, Required), (true, Snapshots::Required));
    assert_eq!(allowed(true, false, BestEffort), (true, Snapshots::Never));
    assert_eq!(allowed(true, false, Required), (false, Snapshots::Never));
    assert_eq!(allowed(false, true, Required), (false, Snapshots::Required));
}
