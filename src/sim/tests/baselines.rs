//! Each baseline that was measured on the real control plane, in virtual time. Run with `--nocapture` for the figures.
#![allow(
    clippy::unwrap_used,
    reason = "a test whose stage cannot be set must fail"
)]

mod support;

use std::time::Duration;

use reattach_sim::kubelet::{DiskAfter, NodePluginFaults, StageFault};
use serde_json::json;
use support::{NS, POD, Stage, VOLUME, median, secs, stage};

/// Healthy life: attach, mount, Ready; released cleanly.
#[tokio::test(start_paused = true)]
async fn a_healthy_cluster_stays_ready() {
    let s = stage(1, 2).await;
    s.ready().await;
    let node = s.node_name();
    assert!(s.in_use(&node) && s.attached(&node));
    assert_eq!(s.attachment(&node).unwrap()["status"]["attached"], true);
    s.scale(0).await;
    let gone = s
        .cluster
        .until(secs(60), |_| s.attachment(&node).is_none())
        .await
        .expect("detached");
    assert!(s.pod().is_none() && !s.in_use(&node) && !s.attached(&node));
    assert_eq!(s.holder(), None);
    println!(
        "healthy: VA gone {:.1} s after scaling to zero",
        gone.as_secs_f64()
    );
}

#[tokio::test(start_paused = true)]
async fn b_an_untouched_phantom_stays_stuck() {
    for disk in [DiskAfter::Kept, DiskAfter::ReImaged] {
        let s = stage(2, 2).await;
        s.ready().await;
        let (node, boot) = (s.node_name(), s.kubelet().boot_id());
        s.class_b(disk).await;
        assert_ne!(s.kubelet().boot_id(), boot);
        let pod = s.pod().unwrap();
        assert_eq!(pod["status"]["phase"], "Running");
        let container = &pod["status"]["containerStatuses"][0];
        match disk {
            DiskAfter::Kept => {
                assert_eq!(
                    container["state"]["terminated"],
                    json!({"exitCode": 255, "reason": "Unknown"})
                );
            }
            DiskAfter::ReImaged => {
                assert_eq!(container["state"]["waiting"]["reason"], "ContainerCreating");
                assert_eq!(container["restartCount"], 1);
            }
        }
        for _ in 0..900 {
            tokio::time::sleep(secs(1)).await;
            assert!(s.in_use(&node) && s.attached(&node));
            assert_eq!(s.attachment(&node).unwrap()["status"]["attached"], true);
            assert!(!s.cluster.pod_ready(NS, POD), "it never heals by itself");
        }
        assert!(s.cluster.node_ready(&node));
        let events = s.cluster.events(NS, POD, "FailedMount");
        assert_eq!(events.len(), 1, "one event, counted: {events:?}");
        assert!((11..=18).contains(&events[0].1), "{events:?}");
        assert_eq!(
            events[0].0,
            "MountVolume.MountDevice failed for volume \"pvc-1\" : rpc error: code = Internal desc = Unable to find device path out of attempted paths: [/dev/disk/by-id/linode-pvc1 /dev/disk/by-id/scsi-0Linode_Volume_pvc1]"
        );
        println!(
            "B, nothing done, {disk:?}: not healed after 900 s, event count {}",
            events[0].1
        );
    }
}

/// With the disk wiped, the first status after the return has volumesInUse empty while the pod is still bound.
#[tokio::test(start_paused = true)]
async fn b_reimaged_reports_nothing_in_use_at_first() {
    let s = stage(3, 1).await;
    s.ready().await;
    let node = s.node_name();
    s.kubelet().recycle(DiskAfter::ReImaged, secs(5)).await;
    let empty = s
        .cluster
        .until(secs(20), |_| !s.in_use(&node))
        .await
        .expect("empty at first");
    let again = s
        .cluster
        .until(secs(20), |_| s.in_use(&node))
        .await
        .expect("and back");
    println!(
        "B, re-imaged: volumesInUse empty for {:.1} s",
        again.as_secs_f64()
    );
    assert!(
        (8.0..=12.0).contains(&again.as_secs_f64()),
        "{empty:?} {again:?}"
    );
    assert!(s.pod().is_some());
}

async fn stuck(seed: u64, wait: u64) -> Stage {
    let s = stage(seed, 2).await;
    s.ready().await;
    s.class_b(DiskAfter::Kept).await;
    tokio::time::sleep(secs(wait)).await;
    s
}

#[tokio::test(start_paused = true)]
async fn b_deleting_the_pod_seldom_heals() {
    let (mut healed, runs) = (Vec::new(), 60);
    for seed in 0..runs {
        let s = stuck(seed, 20 + seed % 10).await;
        // Spread over the phase of the status tick.
        tokio::time::sleep(Duration::from_millis(seed * 167)).await;
        s.delete_pod().await;
        let replaced = s.cluster.until(secs(10), |c| {
            c.pod(NS, POD)
                .is_some_and(|p| p["metadata"]["deletionTimestamp"].is_null())
        });
        replaced.await.expect("replaced");
        if let Some(t) = s.healed(300).await {
            healed.push(t.as_secs_f64());
        }
    }
    println!(
        "B, delete the pod: {} of {runs} healed (measured 5 of 57), after {:.1} s",
        healed.len(),
        median(healed.clone())
    );
    assert!((1..=15).contains(&healed.len()), "{healed:?}");
}

#[tokio::test(start_paused = true)]
async fn b_scaling_back_at_once_never_heals() {
    for seed in 0..6 {
        let s = stuck(seed, 20).await;
        // In the first half of a tick: kubelet reports after the replacement has arrived.
        let node = s.node_name();
        s.scale(0).await;
        s.cluster
            .until(secs(20), |_| s.pod().is_none())
            .await
            .expect("gone");
        let reported = !s.in_use(&node);
        s.scale(1).await;
        let healed = s.healed(300).await;
        println!(
            "B, scale 0 and back at once, seed {seed}: {healed:?} (tick in between: {reported})"
        );
        assert!(
            healed.is_none() || reported,
            "only a status tick in the gap can heal"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn b_scale_to_zero_and_wait_for_the_attachment_heals() {
    let (mut gone, mut back, mut in_use) = (Vec::new(), Vec::new(), Vec::new());
    for seed in 0..30 {
        let s = stuck(seed, 20 + seed % 10).await;
        tokio::time::sleep(Duration::from_millis(seed * 333)).await;
        let node = s.node_name();
        s.scale(0).await;
        let (mut order, start) = (Vec::new(), tokio::time::Instant::now());
        while s.attachment(&node).is_some() {
            let facts = [
                ("pod", s.pod().is_none()),
                ("volumesInUse", !s.in_use(&node)),
                ("volumesAttached", !s.attached(&node)),
                ("cloud", s.holder().is_none()),
            ];
            for (what, done) in facts {
                if done && !order.contains(&what) {
                    order.push(what);
                    if what == "volumesInUse" {
                        in_use.push(start.elapsed().as_secs_f64());
                    }
                }
            }
            assert!(start.elapsed() < secs(60), "seed {seed}: {order:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        gone.push(start.elapsed().as_secs_f64());
        let cloud_first = order.iter().position(|o| *o == "cloud");
        assert!(
            cloud_first.is_some()
                && cloud_first > order.iter().position(|o| *o == "volumesAttached"),
            "{order:?}"
        );
        s.scale(1).await;
        back.push(s.healed(60).await.expect("heals").as_secs_f64());
        assert_eq!(s.node_name(), node, "the scheduler chooses the old node");
    }
    let (g, b) = (median(gone.clone()), median(back.clone()));
    println!(
        "B, scale to zero and wait: volumesInUse {:.1} s (measured 5.9), VA gone {g:.1} s (9.1), Ready {b:.1} s after (8.1), {:.1} s in all",
        median(in_use),
        g + b
    );
    assert!((7.0..=12.0).contains(&g), "{gone:?}");
    assert!((6.0..=11.0).contains(&b), "{back:?}");
}

#[tokio::test(start_paused = true)]
async fn b_deleting_only_the_attachment_heals_slowly() {
    let mut all = Vec::new();
    for seed in 0..12 {
        let s = stuck(seed, 20 + seed).await;
        let node = s.node_name();
        let va = s.attachment(&node).unwrap();
        let path = format!(
            "/apis/storage.k8s.io/v1/volumeattachments/{}",
            va["metadata"]["name"].as_str().unwrap()
        );
        s.delete(&path).await;
        let t = s.healed(400).await.expect("heals").as_secs_f64();
        assert_ne!(
            s.attachment(&node).unwrap()["metadata"]["uid"],
            va["metadata"]["uid"]
        );
        all.push(t);
    }
    println!("B, delete only the VA: {all:.0?} s (measured 36 to 167)");
    assert!(
        all.iter().all(|t| (5.0..=200.0).contains(t)) && median(all.clone()) > 25.0,
        "{all:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn b_detaching_only_at_the_cloud_is_undone_and_heals() {
    let mut all = Vec::new();
    for seed in 0..12 {
        let s = stuck(seed, 20 + seed).await;
        let (node, uid) = (
            s.node_name(),
            s.attachment(&s.node_name()).unwrap()["metadata"]["uid"].clone(),
        );
        s.cloud.make_lost(VOLUME).unwrap();
        let back = s
            .cluster
            .until(secs(70), |_| s.holder().is_some())
            .await
            .expect("published again");
        let t = (s.healed(400).await.expect("heals") + back).as_secs_f64();
        assert_eq!(
            s.attachment(&node).unwrap()["metadata"]["uid"],
            uid,
            "the same VolumeAttachment"
        );
        all.push(t);
    }
    println!("B, cloud detach only: {all:.0?} s (measured 42 to 113)");
    assert!(
        all.iter().all(|t| (2.0..=200.0).contains(t)) && median(all.clone()) > 20.0,
        "{all:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn b_cordon_and_delete_lands_elsewhere() {
    let s = stuck(5, 20).await;
    let node = s.node_name();
    let path = format!("/api/v1/nodes/{node}");
    s.merge(&path, &json!({"spec": {"unschedulable": true}}))
        .await;
    s.delete_pod().await;
    s.cluster
        .until(secs(10), |_| s.pod().is_none())
        .await
        .expect("gone");
    let t = s.healed(120).await.expect("heals").as_secs_f64();
    println!("B, cordon and delete: Ready elsewhere after {t:.1} s (measured 16.6)");
    assert_ne!(s.node_name(), node);
    assert!((8.0..=30.0).contains(&t));
}

#[tokio::test(start_paused = true)]
async fn c_lost_attachment_is_published_again() {
    let s = stage(6, 2).await;
    s.ready().await;
    s.class_b(DiskAfter::Kept).await;
    s.cloud.make_lost(VOLUME).unwrap();
    let t = s.healed(200).await.expect("heals").as_secs_f64();
    println!("C, nothing done: Ready after {t:.1} s (measured 39)");
    assert!(t < 120.0);
}

/// volumesInUse lingers on a Ready node when NodeStage ended uncertain and NodeUnstage fails.
#[tokio::test(start_paused = true)]
async fn volumes_in_use_lingers() {
    let s = stage(7, 2).await;
    s.ready().await;
    let node = s.node_name();
    let faults = NodePluginFaults {
        stage: Some(StageFault::DeadlineExceeded),
        unstage_fails: true,
        unregistered: false,
    };
    s.kubelet().set_plugin_faults(faults);
    s.kubelet().recycle(DiskAfter::Kept, secs(5)).await;
    s.cluster
        .until(secs(60), |c| {
            c.events(NS, POD, "FailedMount")
                .iter()
                .any(|(m, _)| m.contains("DeadlineExceeded"))
        })
        .await
        .expect("uncertain");
    let kubelet = s.kubelet().clone();
    s.scale(0).await;
    s.cluster
        .until(secs(10), |_| s.pod().is_none())
        .await
        .expect("the pod object goes");
    tokio::time::sleep(secs(480)).await;
    assert!(
        s.in_use(&node) && s.attached(&node) && s.attachment(&node).is_some(),
        "no 6-minute rule on a Ready node"
    );
    kubelet.set_plugin_faults(NodePluginFaults::default());
    let t = s
        .cluster
        .until(secs(200), |_| s.attachment(&node).is_none())
        .await
        .expect("free");
    println!(
        "lingering: unchanged for 480 s; free {:.0} s after NodeUnstage works (measured 23 and 112)",
        t.as_secs_f64()
    );
}

#[tokio::test(start_paused = true)]
async fn unregistered_plugin_keeps_the_pod_terminating() {
    let s = stage(8, 1).await;
    s.ready().await;
    s.class_b(DiskAfter::Kept).await;
    let kubelet = s.kubelet().clone();
    kubelet.set_plugin_faults(NodePluginFaults {
        unregistered: true,
        ..Default::default()
    });
    s.delete_pod().await;
    tokio::time::sleep(secs(60)).await;
    assert_eq!(s.pod().unwrap()["status"]["phase"], "Failed");
    assert!(s.pod().unwrap()["metadata"]["deletionTimestamp"].is_string());
    kubelet.set_plugin_faults(NodePluginFaults::default());
    s.cluster
        .until(secs(130), |_| {
            s.pod()
                .is_none_or(|p| p["metadata"]["deletionTimestamp"].is_null())
        })
        .await
        .expect("goes");
}

/// A dead mount: the device is gone under a live mount and nothing in the API says so.
#[tokio::test(start_paused = true)]
async fn dead_mount_is_invisible_and_a_release_heals_it() {
    let s = stage(9, 1).await;
    s.ready().await;
    s.cloud.make_phantom(VOLUME).unwrap();
    tokio::time::sleep(secs(300)).await;
    assert!(s.cluster.pod_ready(NS, POD) && s.cluster.events(NS, POD, "FailedMount").is_empty());
    let node = s.node_name();
    s.scale(0).await;
    s.cluster
        .until(secs(60), |_| s.attachment(&node).is_none())
        .await
        .expect("detached");
    s.scale(1).await;
    s.healed(60).await.expect("heals");
}

#[tokio::test(start_paused = true)]
async fn csi_controller_whose_unpublish_fails_needs_a_cloud_detach() {
    let s = stuck(10, 20).await;
    let node = s.node_name();
    s.csi.set_unpublish_fails(true);
    s.scale(0).await;
    let error = |s: &Stage| {
        s.attachment(&node).map(|va| {
            va["status"]["detachError"]["message"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
    };
    s.cluster
        .until(secs(30), |_| {
            error(&s).is_some_and(|e| e.contains("detach volume 7001"))
        })
        .await
        .expect("detachError");
    tokio::time::sleep(secs(100)).await;
    assert!(s.attachment(&node).is_some() && s.holder().is_some());
    s.cloud.make_lost(VOLUME).unwrap();
    let t = s
        .cluster
        .until(secs(301), |_| s.attachment(&node).is_none())
        .await
        .expect("Unpublish succeeds once detached");
    println!(
        "Unpublish fails: VA gone {:.0} s after the cloud detach",
        t.as_secs_f64()
    );
    s.scale(1).await;
    s.healed(60).await.expect("heals");
}

/// Same seed, same run: every request of every component, at the same virtual time.
#[tokio::test(start_paused = true)]
async fn runs_repeat() {
    let mut logs = Vec::new();
    for _ in 0..2 {
        let s = stuck(11, 20).await;
        let node = s.node_name();
        s.scale(0).await;
        s.cluster
            .until(secs(60), |_| s.attachment(&node).is_none())
            .await
            .expect("detached");
        s.scale(1).await;
        s.healed(60).await.expect("heals");
        let log = s.cluster.server().audit().into_iter();
        logs.push(
            log.map(|e| {
                format!(
                    "{} {} {} {} {} {}",
                    e.at, e.user, e.verb, e.resource, e.name, e.code
                )
            })
            .collect::<Vec<_>>(),
        );
    }
    let (first, second) = (&logs[0], &logs[1]);
    let differs = first.iter().zip(second).position(|(a, b)| a != b);
    assert!(
        differs.is_none() && first.len() == second.len(),
        "{differs:?} of {} and {}: {:?} {:?}",
        first.len(),
        second.len(),
        differs.map(|i| &first[i]),
        differs.map(|i| &second[i])
    );
}
