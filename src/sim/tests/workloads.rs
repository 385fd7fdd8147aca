//! The workload controllers where recoveries depend on their details, and pods that fail for reasons of their own.
#![allow(
    clippy::unwrap_used,
    reason = "a test whose stage cannot be set must fail"
)]

mod support;

use reattach_sim::kubelet::DiskAfter;
use reattach_sim::manifests;
use serde_json::{Value, json};
use support::{NS, Setup, Stage, secs, stage};

fn name(o: &Value) -> String {
    o["metadata"]["name"].as_str().unwrap().to_owned()
}

/// A StatefulSet of three with volumes of its own, beside the stage's.
async fn trio(seed: u64, change: impl Fn(&mut Value)) -> Stage {
    let mut set = manifests::stateful_set(NS, "redis", 3);
    change(&mut set);
    let s = Setup::new(seed, 3).workload(set).build().await;
    for n in 1..3 {
        let (handle, pv, claim) = (
            format!("700{}-pvc{}", n + 1, n + 1),
            format!("pvc-{}", n + 1),
            format!("data-redis-{n}"),
        );
        s.add_volume(&pv, &handle, "ext4", &claim);
    }
    s.cluster
        .until(secs(120), |c| {
            (0..3).all(|n| c.pod_ready(NS, &format!("redis-{n}")))
        })
        .await
        .expect("three of three");
    s
}

#[tokio::test(start_paused = true)]
async fn when_scaled_delete_loses_the_claims() {
    let s = trio(1, |set| {
        set["spec"]["persistentVolumeClaimRetentionPolicy"] =
            json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    })
    .await;
    s.scale(0).await;
    let claims = |s: &Stage| {
        s.cluster
            .server()
            .list("", "persistentvolumeclaims", Some(NS))
    };
    s.cluster
        .until(secs(60), |_| claims(&s).is_empty())
        .await
        .expect("all claims are deleted");
}

#[tokio::test(start_paused = true)]
async fn retained_claims_survive_a_scale_down() {
    let s = trio(2, |_| {}).await;
    s.scale(0).await;
    let pods = |s: &Stage| s.cluster.server().list("", "pods", Some(NS));
    s.cluster
        .until(secs(60), |_| pods(&s).is_empty())
        .await
        .expect("down");
    assert_eq!(
        s.cluster
            .server()
            .list("", "persistentvolumeclaims", Some(NS))
            .len(),
        3
    );
    s.scale(3).await;
    s.cluster
        .until(secs(120), |c| {
            (0..3).all(|n| c.pod_ready(NS, &format!("redis-{n}")))
        })
        .await
        .expect("up");
    let set = || {
        s.cluster
            .server()
            .read("apps", "statefulsets", NS, "redis")
            .unwrap()
    };
    s.cluster
        .until(secs(5), |_| set()["status"]["readyReplicas"] == 3)
        .await
        .expect("reported");
    let set = set();
    assert_eq!(
        set["status"]["currentRevision"],
        set["status"]["updateRevision"]
    );
}

async fn break_pod(s: &Stage, pod: &str) {
    let node = s.cluster.pod(NS, pod).unwrap()["spec"]["nodeName"]
        .as_str()
        .unwrap()
        .to_owned();
    s.cluster
        .node(&node)
        .unwrap()
        .recycle(DiskAfter::Kept, secs(5))
        .await;
    let stuck = s.cluster.until(secs(60), |c| {
        !c.events(NS, pod, "FailedMount").is_empty() && !c.pod_ready(NS, pod)
    });
    stuck.await.expect("stuck");
}

fn node_of(s: &Stage, pod: &str) -> String {
    s.cluster.pod(NS, pod).unwrap()["spec"]["nodeName"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// A stage where `redis-0` has its node to itself (`alone`), or shares it.
async fn with_first_pod(alone: bool) -> Stage {
    for seed in 0..20 {
        let s = trio(seed, |_| {}).await;
        let first = node_of(&s, "redis-0");
        let others = ["redis-1", "redis-2"]
            .iter()
            .filter(|p| node_of(&s, p) == first)
            .count();
        if others == usize::from(!alone) {
            return s;
        }
    }
    panic!("no seed gives such a placement");
}

/// With pod-0 stuck, OrderedReady kills the healthy pods 2 and 1 first, and finishes.
#[tokio::test(start_paused = true)]
async fn ordered_scale_down_with_one_stuck_pod() {
    let s = with_first_pod(true).await;
    break_pod(&s, "redis-0").await;
    s.scale(0).await;
    let mut left = vec![3];
    let pods = |s: &Stage| s.cluster.server().list("", "pods", Some(NS));
    let done = s
        .cluster
        .until(secs(60), |_| pods(&s).iter().all(|p| name(p) == "redis-0"))
        .await;
    assert!(
        done.is_some() && s.cluster.pod(NS, "redis-0").is_some(),
        "the healthy ones went first"
    );
    left.push(pods(&s).len());
    s.cluster
        .until(secs(60), |_| pods(&s).is_empty())
        .await
        .expect("finishes");
    assert_eq!(left, [3, 1]);
}

/// With two stuck pods it never finishes.
#[tokio::test(start_paused = true)]
async fn ordered_scale_down_with_two_stuck_pods() {
    let s = with_first_pod(false).await;
    break_pod(&s, "redis-0").await;
    assert_eq!(
        (0..3)
            .filter(|n| s.cluster.pod_ready(NS, &format!("redis-{n}")))
            .count(),
        1
    );
    s.scale(0).await;
    tokio::time::sleep(secs(600)).await;
    let left: Vec<String> = s
        .cluster
        .server()
        .list("", "pods", Some(NS))
        .iter()
        .map(|p| name(p))
        .collect();
    println!("OrderedReady with two stuck pods, 600 s after scaling to zero: {left:?}");
    assert!(left.len() >= 2 && left.contains(&"redis-0".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn failures_that_are_not_ours_are_reproduced() {
    let s = stage(4, 2).await;
    s.ready().await;
    s.add_volume("pvc-9", "7009-pvc9", "xyz", "odd");
    s.cluster
        .server()
        .insert(&manifests::claim(NS, "odd", "pvc-9"));
    s.create(&manifests::deployment(
        NS,
        "secretless",
        1,
        &[manifests::secret_volume("certs", "webhook-tls")],
    ))
    .await;
    s.create(&manifests::deployment(
        NS,
        "odd",
        1,
        &[manifests::claim_volume("data", "odd")],
    ))
    .await;
    let event = |s: &Stage, app: &str| {
        let pods = s.cluster.server().list("", "pods", Some(NS));
        let pod = pods
            .iter()
            .find(|p| p["metadata"]["labels"]["app"] == app)
            .map(|p| name(p))
            .unwrap_or_default();
        s.cluster
            .events(NS, &pod, "FailedMount")
            .first()
            .map(|(m, _)| m.clone())
            .unwrap_or_default()
    };
    s.cluster
        .until(secs(60), |_| {
            !event(&s, "secretless").is_empty() && !event(&s, "odd").is_empty()
        })
        .await
        .expect("both fail");
    assert_eq!(
        event(&s, "secretless"),
        "MountVolume.SetUp failed for volume \"certs\" : secret \"webhook-tls\" not found"
    );
    let odd = event(&s, "odd");
    assert!(odd.starts_with("MountVolume.MountDevice failed for volume \"pvc-9\" : rpc error: code = Internal desc = Failed to format and mount device"));
    assert!(odd.contains("unknown filesystem type 'xyz'"), "{odd}");
    s.create(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "webhook-tls"}}))
        .await;
    let up = s.cluster.until(secs(150), |c| {
        c.server()
            .list("apps", "deployments", Some(NS))
            .iter()
            .any(|d| name(d) == "secretless" && d["status"]["readyReplicas"] == 1)
    });
    up.await.expect("a Secret that appears is found");
}

#[tokio::test(start_paused = true)]
async fn deployment_rollout_and_scale() {
    let s = stage(5, 2).await;
    s.create(&manifests::deployment(NS, "web", 2, &[])).await;
    let deployment = |s: &Stage| {
        s.cluster
            .server()
            .read("apps", "deployments", NS, "web")
            .unwrap()
    };
    s.cluster
        .until(secs(60), |_| deployment(&s)["status"]["readyReplicas"] == 2)
        .await
        .expect("up");
    let path = format!("/apis/apps/v1/namespaces/{NS}/deployments/web");
    let change = json!({"spec": {"template": {"metadata": {"annotations": {"rolled": "1"}}}}});
    s.merge(&path, &change).await;
    let rolled = |s: &Stage| {
        let d = deployment(s);
        d["status"]["observedGeneration"] == d["metadata"]["generation"]
            && d["status"]["updatedReplicas"] == 2
            && d["status"]["readyReplicas"] == 2
            && d["status"]["replicas"] == 2
    };
    s.cluster
        .until(secs(60), |_| rolled(&s))
        .await
        .expect("rolled");
    s.merge(&path, &json!({"spec": {"replicas": 0}})).await;
    let web = |s: &Stage| {
        s.cluster
            .server()
            .list("", "pods", Some(NS))
            .iter()
            .filter(|p| p["metadata"]["labels"]["app"] == "web")
            .count()
    };
    s.cluster
        .until(secs(60), |_| web(&s) == 0)
        .await
        .expect("down");
}

#[tokio::test(start_paused = true)]
async fn gated_pods_wait_and_cordoned_nodes_are_avoided() {
    let s = stage(6, 1).await;
    s.ready().await;
    let mut d = manifests::deployment(NS, "gated", 1, &[]);
    d["spec"]["template"]["spec"]["schedulingGates"] = json!([{"name": "hold"}]);
    s.create(&d).await;
    tokio::time::sleep(secs(30)).await;
    let pod = |s: &Stage| {
        s.cluster
            .server()
            .list("", "pods", Some(NS))
            .into_iter()
            .find(|p| p["metadata"]["labels"]["app"] == "gated")
            .unwrap()
    };
    assert!(pod(&s)["spec"]["nodeName"].is_null());
    s.merge(
        "/api/v1/nodes/n0",
        &json!({"spec": {"unschedulable": true}}),
    )
    .await;
    let path = format!("/api/v1/namespaces/{NS}/pods/{}", name(&pod(&s)));
    s.merge(&path, &json!({"spec": {"schedulingGates": null}}))
        .await;
    tokio::time::sleep(secs(10)).await;
    assert!(pod(&s)["spec"]["nodeName"].is_null());
    assert_eq!(
        s.cluster
            .events(NS, &name(&pod(&s)), "FailedScheduling")
            .len(),
        1
    );
    s.merge(
        "/api/v1/nodes/n0",
        &json!({"spec": {"unschedulable": null}}),
    )
    .await;
    s.cluster
        .until(secs(30), |c| c.pod_ready(NS, &name(&pod(&s))))
        .await
        .expect("runs");
}
