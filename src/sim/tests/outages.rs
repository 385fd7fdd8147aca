//! Dead nodes, deleted nodes and failing detaches, as measured. Run with `--nocapture` for the figures.
#![allow(
    clippy::unwrap_used,
    reason = "a test whose stage cannot be set must fail"
)]

mod support;

use reattach_cloud_simulator::{DetachBehaviour, InstanceNo};
use reattach_sim::kubelet::DiskAfter;
use reattach_sim::manifests;
use serde_json::json;
use support::{NS, POD, Setup, Stage, VOLUME, secs, stage};

#[tokio::test(start_paused = true)]
async fn a_statefulset_is_not_healed_and_the_taint_heals_it() {
    let s = stage(1, 2).await;
    s.ready().await;
    let node = s.node_name();
    s.kubelet().power_off();
    let not_ready = s
        .cluster
        .until(secs(120), |c| !c.node_ready(&node))
        .await
        .expect("NotReady");
    let terminating = s
        .cluster
        .until(secs(600), |c| {
            c.pod(NS, POD).unwrap()["metadata"]["deletionTimestamp"].is_string()
        })
        .await
        .expect("Terminating");
    println!(
        "A, StatefulSet: NotReady +{:.0} s (measured 50), Terminating +{:.0} s (350)",
        not_ready.as_secs_f64(),
        (not_ready + terminating).as_secs_f64()
    );
    assert!((40.0..=62.0).contains(&not_ready.as_secs_f64()));
    assert!((340.0..=365.0).contains(&(not_ready + terminating).as_secs_f64()));
    assert!(s.healed(850).await.is_none(), "not healed at 1,200 s");
    assert_eq!(
        s.holder(),
        Some(InstanceNo(if node == "n0" { 100 } else { 101 }))
    );
    s.out_of_service(&node).await;
    let t = s.healed(120).await.expect("heals").as_secs_f64();
    println!(
        "A, StatefulSet: Ready elsewhere {t:.1} s after the out-of-service taint (measured 12.2 and 18.0)"
    );
    assert_ne!(s.node_name(), node);
    assert!(t < 45.0);
}

#[tokio::test(start_paused = true)]
async fn a_deployment_waits_with_multi_attach() {
    let volumes = [manifests::claim_volume("data", "data-redis-0")];
    let mut d = manifests::deployment(NS, "web", 1, &volumes);
    d["spec"]["strategy"] = json!({"type": "RollingUpdate"});
    let s = Setup::new(2, 2).workload(d).build().await;
    let pods = |s: &Stage| s.cluster.server().list("", "pods", Some(NS));
    let name = |p: &serde_json::Value| p["metadata"]["name"].as_str().unwrap().to_owned();
    let ready = s.cluster.until(secs(60), |c| {
        pods(&s).iter().any(|p| c.pod_ready(NS, &name(p)))
    });
    ready.await.expect("up");
    let old = pods(&s)[0].clone();
    let node = old["spec"]["nodeName"].as_str().unwrap().to_owned();
    s.cluster.node(&node).unwrap().power_off();
    let pending = s
        .cluster
        .until(secs(600), |_| pods(&s).len() == 2)
        .await
        .expect("a replacement");
    println!(
        "A, Deployment: replacement after {:.0} s (measured 379)",
        pending.as_secs_f64()
    );
    let new = pods(&s)
        .iter()
        .find(|p| p["metadata"]["uid"] != old["metadata"]["uid"])
        .map(|p| name(p))
        .unwrap();
    tokio::time::sleep(secs(800)).await;
    let events = s.cluster.events(NS, &new, "FailedAttachVolume");
    let old_name = name(&old);
    assert_eq!(
        events,
        [(
            format!(
                "Multi-Attach error for volume \"pvc-1\" Volume is already used by pod(s) {old_name}"
            ),
            1
        )],
        "told once"
    );
    assert!(
        !s.cluster.pod_ready(NS, &new),
        "the 6-minute timer never started"
    );
    // A human force-deletes the old pod: then the 6-minute rule.
    let path = format!("/api/v1/namespaces/{NS}/pods/{old_name}");
    s.request(
        "DELETE",
        &path,
        "application/json",
        &json!({"gracePeriodSeconds": 0}),
    )
    .await
    .unwrap();
    let t = s
        .cluster
        .until(secs(500), |c| c.pod_ready(NS, &new))
        .await
        .expect("heals")
        .as_secs_f64();
    // Kubelet's own back-off while it waits for the attach (up to 122 s) comes on top of the six minutes.
    println!("A, Deployment: Ready {t:.0} s after a force deletion (measured 367)");
    assert!((360.0..=490.0).contains(&t));
}

#[tokio::test(start_paused = true)]
async fn d_deleted_node_takes_six_minutes() {
    let s = stage(3, 2).await;
    s.ready().await;
    let node = s.node_name();
    s.kubelet().power_off();
    tokio::time::sleep(secs(60)).await;
    s.delete(&format!("/api/v1/nodes/{node}")).await;
    assert!(
        s.cluster
            .server()
            .read("storage.k8s.io", "csinodes", "", &node)
            .is_none(),
        "it goes with its Node"
    );
    let gone = s
        .cluster
        .until(secs(120), |c| c.pod(NS, POD).is_none())
        .await
        .expect("pod GC");
    let t = s.healed(600).await.expect("heals").as_secs_f64() + gone.as_secs_f64();
    println!(
        "D, Node deleted: pod gone +{:.0} s (measured 42 to 65), Ready +{t:.0} s (412 to 427)",
        gone.as_secs_f64()
    );
    assert!((35.0..=70.0).contains(&gone.as_secs_f64()));
    assert!((360.0..=440.0).contains(&t));
}

/// After the first failed detach the volume counts as uncertain, and a second VolumeAttachment is made.
#[tokio::test(start_paused = true)]
async fn d_refused_detach_gives_two_attachments() {
    let refuse = |s: &Stage, fails: bool| {
        let refused = DetachBehaviour::Refused {
            status: 500,
            reason: "Internal Server Error".into(),
        };
        let behaviour = if fails {
            refused
        } else {
            DetachBehaviour::Normal
        };
        s.cloud.set_detach(VOLUME, behaviour).unwrap();
    };
    failed_detach(refuse, 557).await;
}

#[tokio::test(start_paused = true)]
async fn d_a_busy_cloud_delays_the_detach() {
    let keep_busy = |s: &Stage, fails: bool| {
        let lasting = if fails { secs(86_400) } else { secs(0) };
        s.cloud.make_busy(VOLUME, lasting).unwrap();
    };
    failed_detach(keep_busy, 45).await;
}

/// `set_failing` makes the detach fail, and later lets it succeed.
async fn failed_detach(set_failing: impl Fn(&Stage, bool), measured: u64) {
    let s = stage(4, 2).await;
    s.ready().await;
    let node = s.node_name();
    let other = if node == "n0" { "n1" } else { "n0" };
    set_failing(&s, true);
    s.kubelet().power_off();
    tokio::time::sleep(secs(60)).await;
    s.out_of_service(&node).await;
    let both = s.cluster.until(secs(120), |_| {
        s.attachment(&node).is_some() && s.attachment(other).is_some()
    });
    both.await
        .expect("two VolumeAttachments for one RWO volume");
    assert!(s.attachment(&node).unwrap()["metadata"]["deletionTimestamp"].is_string());
    let failed = |s: &Stage| {
        s.cluster
            .events(NS, POD, "FailedAttachVolume")
            .iter()
            .any(|(m, _)| m.contains("volume 7001 is already attached to linode"))
    };
    s.cluster
        .until(secs(60), |_| failed(&s))
        .await
        .expect("only the driver stops the second attach");
    tokio::time::sleep(secs(600)).await;
    assert!(!s.cluster.pod_ready(NS, POD));
    set_failing(&s, false);
    let t = s.healed(700).await.expect("heals").as_secs_f64();
    println!("D, failed detach: Ready {t:.0} s after the release (measured {measured})");
    // The back-offs of both VolumeAttachments (at most 5 min each, one after the other) and the mount.
    assert!((1.0..=660.0).contains(&t), "{t}");
}

#[tokio::test(start_paused = true)]
async fn a_csi_controller_that_is_down_blocks_detach() {
    let s = stage(5, 2).await;
    s.ready().await;
    s.class_b(DiskAfter::Kept).await;
    let node = s.node_name();
    s.cluster.controllers().stop_attacher();
    s.scale(0).await;
    tokio::time::sleep(secs(480)).await;
    assert!(s.attachment(&node).unwrap()["metadata"]["deletionTimestamp"].is_string());
    s.cluster.controllers().start_attacher();
    let t = s
        .cluster
        .until(secs(60), |_| s.attachment(&node).is_none())
        .await
        .expect("gone")
        .as_secs_f64();
    println!(
        "CSI controller down for 480 s: VA gone {t:.1} s after it is back (Ready elsewhere measured 7.8)"
    );
    assert!(t < 10.0);
}

#[tokio::test(start_paused = true)]
async fn a_node_back_after_seven_minutes_ends_its_old_pod() {
    let s = stage(6, 1).await;
    s.ready().await;
    let uid = s.pod().unwrap()["metadata"]["uid"].clone();
    let kubelet = s.kubelet().clone();
    kubelet.power_off();
    tokio::time::sleep(secs(420)).await;
    assert!(s.pod().unwrap()["metadata"]["deletionTimestamp"].is_string());
    kubelet.power_on();
    let replaced = s.cluster.until(secs(60), |c| {
        c.pod(NS, POD).is_some_and(|p| p["metadata"]["uid"] != uid)
    });
    let t = replaced.await.expect("the old pod goes").as_secs_f64();
    println!("away for 420 s: pod gone {t:.1} s after the return (measured 3)");
    assert!(t < 10.0);
}

#[tokio::test(start_paused = true)]
async fn partition_leaves_the_pod_running() {
    let s = stage(7, 2).await;
    s.ready().await;
    let node = s.node_name();
    let boot = s.kubelet().boot_id();
    s.kubelet().partition(true);
    s.cluster
        .until(secs(120), |c| !c.node_ready(&node))
        .await
        .expect("NotReady");
    s.kubelet().partition(false);
    s.cluster
        .until(secs(60), |c| c.node_ready(&node))
        .await
        .expect("Ready again");
    s.cluster
        .until(secs(30), |c| c.pod_ready(NS, POD))
        .await
        .expect("the pod is reported Ready again");
    assert_eq!(s.kubelet().boot_id(), boot);
    assert_eq!(
        s.pod().unwrap()["status"]["containerStatuses"][0]["restartCount"],
        0
    );
}

#[tokio::test(start_paused = true)]
async fn manager_restart_keeps_what_is_attached() {
    let s = stage(8, 2).await;
    s.ready().await;
    let node = s.node_name();
    s.cluster.controllers().start_manager();
    tokio::time::sleep(secs(130)).await;
    assert!(s.attached(&node) && s.cluster.pod_ready(NS, POD));
    s.scale(0).await;
    s.cluster
        .until(secs(60), |_| s.attachment(&node).is_none())
        .await
        .expect("detached");
}
