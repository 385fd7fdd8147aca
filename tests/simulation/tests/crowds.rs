//! A namespace that is full of records, Events or gated pods does not delay the recovery of others.
//!
//! On a real cluster 5,000 records, 2,000 pods with Events and 1,000 gated pods delayed a victim's record by up to 90 s. Here the
//! records and the gated pods are a fifth of that, and each request takes 50 ms.

use reattach_api::{Phase, VolumeRecovery};
use reattach_controller::driving::PLACES;
use reattach_controller::records::{KEEP_PER_NAMESPACE, QUOTA};
use reattach_core::hold::HOLD_GATE;
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_drill::stage::{Expect, Stage};
use reattach_drill::world::{APPS, PERSON, World};
use reattach_sim::apiserver::{Fault, FaultRule, RequestMatch};
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_simulation::fixture::{on_first_node, policy};
use reattach_tests_simulation::{NODES, play, redis, secs, story};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

const CROWD: &str = "crowd";
const RECORDS: usize = 1_000;
const EVENTS: usize = 2_000;
const GATES: usize = 200;
/// How long the API server takes for a request of the controller.
const LATENCY: Duration = Duration::from_millis(50);

/// Redis on the first of two nodes, a policy of this mode, a slow API server, and the namespace of the crowd.
async fn stage(mode: &str) -> Stage {
    let apps = [(redis(), Expect::Running)];
    let mut s = on_first_node(1, apps).await.expect("redis runs");
    let fields = json!({ "mode": mode });
    policy(&s, &fields).await.expect("a policy");
    let server = s.world.server();
    server
        .insert(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": CROWD } }));
    let requests = RequestMatch {
        client: Some("reattach-controller-0".into()),
        ..RequestMatch::default()
    };
    server.add_fault(FaultRule::always(requests, Fault::Latency(LATENCY)));
    s.start_replica("reattach-controller-0", None);
    s.pass(secs(30)).await;
    s
}

/// A record that a person with `edit` in the namespace of the crowd makes.
fn record(n: usize) -> Value {
    json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
        "metadata": { "name": format!("small-{n:04}"), "namespace": CROWD },
        "spec": { "claimName": format!("made-up-{n}"), "mode": "DryRun", "runbook": DEFAULT_RUNBOOK, "requester": "editor" },
    })
}

/// A pod that no scheduler takes, with a claim that is not there.
fn pod(n: usize, gate: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("pod-{n:04}"), "namespace": CROWD },
        "spec": {
            "schedulingGates": [{ "name": gate }], "containers": [{ "name": "c", "image": "i" }],
            "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": format!("made-up-{n}") } }],
        },
        "status": { "phase": "Pending" },
    })
}

fn crowd_of_records(w: &World) {
    for n in 0..RECORDS {
        w.server().insert(&record(n));
    }
}

/// Pods with Events; every second one's claim is there and is bound to nothing.
fn crowd_of_events(w: &World) {
    let at = w.now().to_string();
    for n in 0..EVENTS {
        let pod = w.server().insert(&pod(n, "example.org/never"));
        if n % 2 == 0 {
            w.server().insert(&json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": { "name": format!("made-up-{n}"), "namespace": CROWD },
                "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } },
                    "storageClassName": "none" },
                "status": { "phase": "Pending" },
            }));
        }
        let name = &pod["metadata"]["name"];
        w.server().insert(&json!({
            "apiVersion": "v1", "kind": "Event", "metadata": { "name": format!("event-{n}"), "namespace": CROWD },
            "type": "Warning", "reason": "FailedMount", "message": "no device", "firstTimestamp": at, "lastTimestamp": at,
            "involvedObject": { "apiVersion": "v1", "kind": "Pod", "namespace": CROWD, "name": name,
                "uid": pod["metadata"]["uid"] },
        }));
    }
}

fn crowd_of_gates(w: &World) {
    for n in 0..GATES {
        w.server().insert(&pod(n, HOLD_GATE));
    }
}

fn records_in(w: &World, namespace: &str) -> Vec<VolumeRecovery> {
    let all = w
        .server()
        .list("reattach.dev", "volumerecoveries", Some(namespace));
    all.iter()
        .map(|r| VolumeRecovery::deserialize(&**r).expect("a record"))
        .collect()
}

fn phase(record: &VolumeRecovery) -> Phase {
    record.status.as_ref().map(|s| s.phase).unwrap_or_default()
}

/// How long the record of a victim takes that loses its devices while a crowd has just come.
async fn delay(crowd: fn(&World)) -> (Stage, Duration) {
    let mut s = stage("Auto").await;
    let recycled = s.world.recycle(NODES[0].0, DiskAfter::Kept, secs(6));
    let came = async {
        tokio::time::sleep(secs(5)).await;
        crowd(&s.world);
        let start = Instant::now();
        while s
            .world
            .server()
            .list("reattach.dev", "volumerecoveries", Some(APPS))
            .is_empty()
        {
            assert!(start.elapsed() < secs(300), "the victim gets a record");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        start.elapsed()
    };
    let (recycle, took) = tokio::join!(recycled, came);
    recycle.expect("a recycle");
    s.look();
    (s, took)
}

/// Asserts that the victim's record comes as soon with the crowd as without, and that the victim is healed.
async fn is_not_delayed_by(crowd: fn(&World)) -> Stage {
    let (_, alone) = delay(|_| {}).await;
    let (mut s, beside) = delay(crowd).await;
    assert!(
        beside < alone + secs(3),
        "alone after {alone:?}, beside the crowd after {beside:?}\n{}",
        story(&s)
    );
    s.running(&["redis"], secs(600))
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", story(&s)));
    s
}

#[test]
fn pods_with_forged_events_and_claims_delay_no_record() {
    play(|| async {
        let s = is_not_delayed_by(crowd_of_events).await;
        assert_eq!(
            records_in(&s.world, CROWD).len(),
            0,
            "a claim that is bound to nothing gets no record"
        );
    });
}

#[test]
fn gated_pods_delay_no_record() {
    play(|| async {
        let mut s = is_not_delayed_by(crowd_of_gates).await;
        let gated = |w: &World| {
            let pods = w.server().list("", "pods", Some(CROWD));
            pods.iter()
                .filter(|p| {
                    p["spec"]["schedulingGates"]
                        .as_array()
                        .is_some_and(|g| !g.is_empty())
                })
                .count()
        };
        s.until("the gates off", secs(300), |w| gated(w) == 0)
            .await
            .expect("they go, some at a time");
    });
}

#[test]
fn many_small_records_cost_few_drivers_and_are_ended() {
    play(|| async {
        let mut s = stage("Auto").await;
        crowd_of_records(&s.world);
        let metrics = s.replicas[0].metrics().clone();
        let mut driven = 0;
        for second in 0..300 {
            tokio::time::sleep(secs(1)).await;
            driven = driven.max(metrics.driven.get());
            if second == 20 {
                s.world
                    .recycle(NODES[0].0, DiskAfter::Kept, secs(6))
                    .await
                    .expect("a recycle");
            }
        }
        assert!(
            driven > 1 && driven <= i64::try_from(PLACES).unwrap_or(0) + 2,
            "{driven} drivers at once"
        );
        s.running(&["redis"], secs(300))
            .await
            .unwrap_or_else(|error| panic!("{error}\n{}", story(&s)));
        let records = records_in(&s.world, CROWD);
        let (over, kept): (Vec<_>, Vec<_>) = records.iter().partition(|r| phase(r).is_final());
        assert_eq!(
            (kept.len(), over.len()),
            (QUOTA, KEEP_PER_NAMESPACE),
            "of {RECORDS}"
        );
        let name = |r: &&VolumeRecovery| r.metadata.name.clone().unwrap_or_default();
        assert!(
            kept.iter()
                .map(name)
                .all(|n| n < format!("small-{QUOTA:04}")),
            "the oldest are kept"
        );
        // They take turns: everyone was looked at.
        let looked_at = kept.iter().filter(|r| phase(r) == Phase::NotOurs).count();
        assert_eq!(looked_at, QUOTA);
        for record in over {
            let message = record
                .status
                .as_ref()
                .map(|s| s.message.as_str())
                .unwrap_or_default();
            assert!(
                message.contains("namespace crowd has 100 older VolumeRecoveries"),
                "{message}"
            );
        }
    });
}

/// The policy's own DryRun record ends when the policy says Auto. A person's stands, and keeps nothing from healing.
#[test]
fn a_leftover_dry_run_does_not_switch_auto_off() {
    play(|| async {
        let mut s = stage("DryRun").await;
        s.recycle(NODES[0].0, DiskAfter::Kept, secs(6))
            .await
            .expect("a recycle");
        let planned = |w: &World| {
            records_in(w, APPS)
                .iter()
                .any(|r| phase(r) == Phase::Planned)
        };
        s.until("a plan to be shown", secs(300), planned)
            .await
            .expect("a plan");
        let mut leftover = record(0);
        leftover["metadata"] = json!({ "name": "leftover", "namespace": APPS });
        leftover["spec"]["claimName"] = "redis-data".into();
        s.world
            .create(PERSON, &leftover)
            .await
            .expect("a record of a person");
        let stands = |w: &World| {
            let all = records_in(w, APPS);
            all.iter().any(|r| {
                r.metadata.name.as_deref() == Some("leftover") && phase(r) == Phase::Planned
            })
        };
        s.until("the leftover's plan", secs(120), stands)
            .await
            .expect("a plan");
        let path = "/apis/reattach.dev/v1alpha1/recoverypolicies/everything";
        s.world
            .merge(PERSON, path, &json!({ "spec": { "mode": "Auto" } }))
            .await
            .expect("a policy");
        s.running(&["redis"], secs(300))
            .await
            .unwrap_or_else(|error| panic!("{error}\n{}", story(&s)));
        s.pass(secs(60)).await;
        let all = records_in(&s.world, APPS);
        let ended = |mode: &str, end: Phase| {
            all.iter()
                .filter(|r| r.spec.mode.to_string() == mode && phase(r) == end)
                .count()
        };
        assert_eq!(
            ended("DryRun", Phase::Aborted),
            1,
            "the policy's own record is over\n{}",
            story(&s)
        );
        assert_eq!(
            ended("Auto", Phase::Recovered),
            1,
            "one of Auto took over\n{}",
            story(&s)
        );
    });
}
