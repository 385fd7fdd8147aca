//! Classes C, D and E without anybody's help, as measured or read in source. Run with `--nocapture` for the figures.
#![allow(
    clippy::unwrap_used,
    reason = "a test whose stage cannot be set must fail"
)]

mod support;

use reattach_sim::kubelet::{DiskAfter, KubeletConfig, NodePluginFaults, StageFault};
use serde_json::json;
use support::{NS, POD, Stage, VOLUME, add_instance, secs, stage};

/// The largest back-off of external-attacher.
const ATTACHER: u64 = 300;

/// A driver that does not publish nodes never learns that the cloud lost an attachment.
#[tokio::test(start_paused = true)]
async fn c_is_never_healed_without_published_nodes() {
    let s = stage(1, 2).await;
    s.ready().await;
    s.csi.set_publishes_nodes(false);
    s.class_b(DiskAfter::Kept).await;
    s.cloud.make_lost(VOLUME).unwrap();
    let node = s.node_name();
    assert!(s.healed(1200).await.is_none(), "nothing publishes it again");
    assert_eq!(s.attachment(&node).unwrap()["status"]["attached"], true);
    assert_eq!(s.holder(), None);
    s.csi.set_publishes_nodes(true);
    let t = s.healed(200).await.expect("heals").as_secs_f64();
    println!(
        "C, a driver that publishes nodes: Ready after {t:.1} s (measured 14 to 40, and kubelet's back-off)"
    );
}

/// After a controller-manager restart its entry has no spec: deleting the VolumeAttachment does not unblock, the taint
/// does (3 syncs watched, then 3 s [k]).
#[tokio::test(start_paused = true)]
async fn d_after_a_manager_restart_only_the_taint_unblocks() {
    let s = stage(2, 2).await;
    s.ready().await;
    let node = s.node_name();
    let other = if node == "n0" { "n1" } else { "n0" };
    s.kubelet().power_off();
    s.cluster
        .until(secs(120), |c| !c.node_ready(&node))
        .await
        .expect("NotReady");
    s.cluster.controllers().stop_manager();
    s.force_delete_pod().await;
    s.cluster.controllers().start_manager();
    s.delete(&Stage::attachment_path(&node)).await;
    s.cluster
        .until(secs(30), |_| s.attachment(&node).is_none())
        .await
        .expect("gone, and free at the cloud");
    assert_eq!(s.holder(), None);
    let unblocked = s
        .cluster
        .until(secs(180), |_| s.attachment(other).is_some())
        .await;
    assert!(
        unblocked.is_none() && s.attached(&node),
        "three syncs see nothing: {unblocked:?}"
    );
    s.out_of_service(&node).await;
    let t = s
        .cluster
        .until(secs(30), |_| s.attachment(other).is_some())
        .await
        .expect("unblocked")
        .as_secs_f64();
    println!("D, manager restarted: attached elsewhere {t:.1} s after the taint (measured 3)");
    assert!(t < 6.0);
    s.healed(200).await.expect("heals");
}

/// The taint is tested by key only: a Ready node's volume goes within 2 s, volumesInUse or not [k].
#[tokio::test(start_paused = true)]
async fn the_taint_pulls_volumes_from_a_ready_node() {
    let s = stage(3, 2).await;
    s.ready().await;
    let node = s.node_name();
    let faults = NodePluginFaults {
        stage: Some(StageFault::DeadlineExceeded),
        unstage_fails: true,
        unregistered: false,
    };
    s.kubelet().set_plugin_faults(faults);
    s.kubelet().recycle(DiskAfter::Kept, secs(5)).await;
    let uncertain = |m: &(String, i64)| m.0.contains("DeadlineExceeded");
    let seen = s
        .cluster
        .until(secs(60), |c| {
            c.events(NS, POD, "FailedMount").iter().any(uncertain)
        })
        .await;
    seen.expect("an uncertain NodeStage");
    s.scale(0).await;
    s.cluster
        .until(secs(10), |_| s.pod().is_none())
        .await
        .expect("gone");
    tokio::time::sleep(secs(60)).await;
    assert!(s.in_use(&node) && s.attachment(&node).is_some() && s.cluster.node_ready(&node));
    s.out_of_service(&node).await;
    let going = |s: &Stage| {
        s.attachment(&node)
            .is_none_or(|va| va["metadata"]["deletionTimestamp"].is_string())
    };
    let t = s
        .cluster
        .until(secs(30), |_| going(&s))
        .await
        .expect("pulled")
        .as_secs_f64();
    println!("the taint on a Ready node: VA marked after {t:.1} s (measured 2)");
    assert!(t <= 2.5);
}

/// The VolumeAttachment cannot go: the attacher's words, and how long after the cure it is gone.
async fn blocked(
    s: &Stage,
    node: &str,
    error: &str,
    cure: impl AsyncFnOnce(&Stage),
    requeue: bool,
) -> f64 {
    s.scale(0).await;
    let said = s
        .cluster
        .until(secs(60), |_| s.error(node, "detachError").contains(error))
        .await;
    said.unwrap_or_else(|| panic!("detachError is {:?}", s.error(node, "detachError")));
    tokio::time::sleep(secs(900)).await;
    assert!(
        s.attachment(node).is_some() && s.holder().is_some(),
        "it stays for ever"
    );
    cure(s).await;
    if requeue {
        let body = json!({"metadata": {"annotations": {"example.org/look": "again"}}});
        s.merge(&Stage::attachment_path(node), &body).await;
    }
    let gone = s
        .cluster
        .until(secs(ATTACHER + 10), |_| s.attachment(node).is_none())
        .await
        .expect("gone");
    s.scale(1).await;
    // The attach/detach controller backs off as well, up to 122 s, and then kubelet does.
    s.healed(300).await.expect("heals");
    gone.as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn d_a_missing_secret_blocks_the_detach() {
    for requeue in [false, true] {
        let s = stage(4, 2).await;
        s.ready().await;
        let pv = json!({"spec": {"csi": {"controllerPublishSecretRef": {"name": "csi", "namespace": NS}}}});
        let path = "/api/v1/persistentvolumes/pvc-1";
        s.merge(path, &pv).await;
        let cure = async |s: &Stage| {
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "csi", "namespace": NS}});
            s.create(&secret).await;
        };
        let t = blocked(
            &s,
            &s.node_name(),
            "failed to load secret \"default/csi\": secrets \"csi\" not found",
            cure,
            requeue,
        )
        .await;
        println!("D, Secret missing: VA gone {t:.0} s after it is back, touched: {requeue}");
        assert!(
            if requeue {
                t < 10.0
            } else {
                (10.0..=310.0).contains(&t)
            },
            "{t}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn d_a_missing_persistent_volume_blocks_the_detach() {
    let s = stage(5, 2).await;
    s.ready().await;
    let node = s.node_name();
    let pv = (*s
        .cluster
        .server()
        .read("", "persistentvolumes", "", "pvc-1")
        .unwrap())
    .clone();
    s.delete("/api/v1/persistentvolumes/pvc-1").await;
    s.delete_pod().await;
    let unbound = |m: &(String, i64)| m.0.contains("bound to non-existent pv(s)");
    let told = s
        .cluster
        .until(secs(30), |c| {
            c.events(NS, POD, "FailedScheduling").iter().any(unbound)
        })
        .await;
    told.expect("the scheduler places no such pod");
    let cure = async |s: &Stage| {
        s.cluster.server().insert(&pv);
    };
    let t = blocked(
        &s,
        &node,
        "persistentvolume \"pvc-1\" not found",
        cure,
        false,
    )
    .await;
    println!("D, PersistentVolume missing: VA gone {t:.0} s after it is back");
}

#[tokio::test(start_paused = true)]
async fn d_an_uninstalled_driver_blocks_the_unmount() {
    let s = stage(6, 2).await;
    s.ready().await;
    let node = s.node_name();
    let gone = NodePluginFaults {
        unregistered: true,
        ..Default::default()
    };
    s.class_b(DiskAfter::Kept).await;
    s.cluster.controllers().stop_attacher();
    for kubelet in s.cluster.nodes().values() {
        kubelet.set_plugin_faults(gone.clone());
    }
    s.delete_pod().await;
    tokio::time::sleep(secs(900)).await;
    // The pod cannot be unmounted, so nothing is even asked to be detached; and nothing says why.
    let pod = s.pod().unwrap();
    assert!(pod["metadata"]["deletionTimestamp"].is_string() && s.in_use(&node));
    assert!(s.attachment(&node).unwrap()["status"]["detachError"].is_null());
    let csi = s
        .cluster
        .server()
        .read("storage.k8s.io", "csinodes", "", &node)
        .unwrap();
    assert_eq!(
        csi["spec"]["drivers"],
        json!([]),
        "CSINode names it no more"
    );
    for kubelet in s.cluster.nodes().values() {
        kubelet.set_plugin_faults(NodePluginFaults::default());
    }
    s.cluster.controllers().start_attacher();
    s.cluster
        .until(secs(200), |_| {
            s.pod()
                .is_none_or(|p| p["metadata"]["uid"] != pod["metadata"]["uid"])
        })
        .await
        .expect("goes");
}

/// Class E: a node that is re-created under its old name turns Unpublish into a no-op that succeeds.
#[tokio::test(start_paused = true)]
async fn e_a_node_recreated_under_its_name_orphans_the_attachment() {
    let mut s = stage(7, 2).await;
    s.ready().await;
    let node = s.node_name();
    let old = s.holder().unwrap();
    s.kubelet().power_off();
    s.delete(&format!("/api/v1/nodes/{node}")).await;
    add_instance(&s.cloud, "new", 200, false);
    drop(s.cluster.replace_node(KubeletConfig::linode(&node, 200, 7)));
    s.cluster.node(&node).unwrap().power_on();
    s.cluster
        .until(secs(60), |c| c.node_ready(&node))
        .await
        .expect("the new machine is Ready");
    // The pod is bound to the name: the new machine takes it up, and the VolumeAttachment says attached.
    let stuck = s
        .cluster
        .until(secs(60), |c| !c.events(NS, POD, "FailedMount").is_empty())
        .await;
    stuck.expect("no device here");
    let id = |s: &Stage| {
        s.attachment(&node).unwrap()["metadata"]["annotations"]["csi.alpha.kubernetes.io/node-id"]
            .clone()
    };
    assert_eq!(
        id(&s),
        old.to_string(),
        "the VolumeAttachment remembers the old instance"
    );
    s.scale(0).await;
    let gone = s
        .cluster
        .until(secs(60), |_| s.attachment(&node).is_none())
        .await
        .expect("Unpublish succeeds");
    s.scale(1).await;
    assert_eq!(s.holder(), Some(old), "and detaches nothing");
    let held = format!("volume 7001 is already attached to linode {old}");
    let refused = |s: &Stage| {
        ["n0", "n1"]
            .iter()
            .any(|n| s.error(n, "attachError").contains(&held))
    };
    s.cluster
        .until(secs(60), |_| refused(&s))
        .await
        .expect("only the driver stops the new attach");
    assert!(s.healed(900).await.is_none(), "never by itself");
    println!(
        "E, node re-created: VA gone after {:.1} s, the cloud's holder stays, not healed at 900 s",
        gone.as_secs_f64()
    );
    s.cloud.make_lost(VOLUME).unwrap();
    s.healed(ATTACHER + 130)
        .await
        .expect("heals once free at the cloud");
}
