//! Class D: a VolumeAttachment that does not finish.

use crate::STOCK;
use crate::common::fencing::{DEATH, effects, told};
use crate::common::workloads::prefer;
use crate::common::{LIMIT, Stage, StageOptions};
use k8s_openapi::api::core::v1::{PersistentVolume, Secret};
use k8s_openapi::api::storage::v1::CSIDriver;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use reattach_api::{Phase, VolumeRecovery};
use reattach_cloud_simulator::{Timings, VolumeNo};
use reattach_core::steps::StepKind;
use reattach_sim::kubelet::NodePluginFaults;
use reattach_tests_controlplane::{Component, Unpublish, eventually, say};
use serde_json::{Value, json};
use tokio::time::Instant;

/// The nodes of a cluster of its own.
const NODES: [&str; 2] = ["node-1", "node-2"];

/// Workloads on the first node that may run on the second.
async fn with_apps(stage: Stage, namespace: &str, apps: &[&str]) -> (Stage, Vec<VolumeNo>) {
    stage.set_timings(Timings {
        shutdown_ms: 5_000,
        boot_ms: 5_000,
        ..Timings::default()
    });
    stage.policy_saying(json!({})).await;
    stage.namespace(namespace).await;
    let (first, second) = (stage.node_name(1), stage.node_name(2));
    let mut volumes = Vec::new();
    for app in apps {
        let shape = |object: &mut Value| prefer(object, &[&first, &second]);
        volumes.push(stage.deployment_with(namespace, app, &first, shape).await);
    }
    for app in apps {
        stage.await_ready(namespace, app, 1).await;
        assert_eq!(stage.node_of(namespace, app).await, first);
    }
    (stage, volumes)
}

/// The stage with one workload on the shared cluster.
async fn on_shared_cluster(name: &str) -> (Stage, Vec<VolumeNo>) {
    let stage = Stage::share(
        &STOCK,
        name,
        StageOptions {
            mode: None,
            ..StageOptions::default()
        },
    )
    .await;
    with_apps(stage, name, &["redis"]).await
}

/// The stage on a cluster of its own, in the namespace `shop`.
async fn on_own_cluster(apps: &[&str]) -> (Stage, Vec<VolumeNo>) {
    let stage = Stage::set(StageOptions {
        mode: None,
        ..StageOptions::default()
    })
    .await;
    with_apps(stage, "shop", apps).await
}

pub async fn a_refused_detach_is_done_at_the_cloud() {
    let (stage, volumes) = on_shared_cluster("refused").await;
    stage.unpublish(&volumes, Unpublish::Fail).await;
    stage.move_away("refused", "redis", "refused-1").await;
    let moved = Instant::now();
    let recovery = stage.await_recovered("refused", "redis").await;
    say!("{}", told(&recovery));
    stage.await_ready_on("refused", "redis", "refused-2").await;
    say!(
        "Ready {:.0} s after the pod was moved",
        moved.elapsed().as_secs_f64()
    );
    assert_eq!(
        effects(&recovery)
            .iter()
            .filter(|k| **k == StepKind::CloudDetach)
            .count(),
        1
    );
    assert_eq!(
        stage.cloud_mutations().len(),
        1,
        "{:#?}",
        stage.cloud_mutations()
    );
    let journal = told(&recovery);
    assert!(journal.contains("KubeletHandshake"), "{journal}");
    let count = stage.assert_pinned_and_journaled(&[recovery]);
    say!("{count} effects, each pinned by its plan and after the journal line that announces it");
    stage.assert_one_holder(&volumes);
    stage.await_nothing_left().await;
}

pub async fn a_deleted_node_that_is_off_frees_the_volume() {
    let (mut stage, volumes) = on_shared_cluster("deleted").await;
    let attachment = stage.attachments("deleted", "redis").await;
    stage.delete_dead_node("deleted-1").await;
    let deleted = Instant::now();
    let recovery = stage.await_recovered("deleted", "redis").await;
    say!("{}", told(&recovery));
    stage.await_ready_on("deleted", "redis", "deleted-2").await;
    say!(
        "Ready {:.0} s after the Node was deleted; stock Kubernetes: 412 to 427 s",
        deleted.elapsed().as_secs_f64()
    );
    assert!(
        effects(&recovery).contains(&StepKind::DeleteAttachment),
        "{:?}",
        effects(&recovery)
    );
    let old = attachment.first().and_then(ResourceExt::uid);
    assert!(
        stage
            .attachments("deleted", "redis")
            .await
            .iter()
            .all(|va| va.uid() != old)
    );
    let count = stage.assert_pinned_and_journaled(&[recovery]);
    say!("{count} effects, each pinned by its plan and after the journal line that announces it");
    assert_eq!(stage.cloud_mutations(), [], "the driver detached");
    stage.assert_one_holder(&volumes);
    stage.await_nothing_left().await;
}

async fn refused(stage: &Stage, claim: &str, sentence: &str) -> VolumeRecovery {
    let seen = stage
        .await_recovery("shop", claim, sentence, |r| {
            let status = r.status.as_ref();
            status.is_some_and(|s| {
                matches!(s.phase, Phase::Refused | Phase::Waiting) && s.message.contains(sentence)
            })
        })
        .await;
    let status = seen.status.clone().unwrap_or_default();
    say!("{claim}: {:?}: {}", status.phase, status.message);
    assert!(
        status.journal.is_empty() && status.plan.is_none(),
        "{}",
        status.message
    );
    seen
}

/// Each is named, nothing is touched, and it heals once the cause is mended.
pub async fn causes_for_people_are_named_and_nothing_changes() {
    let (stage, volumes) = on_own_cluster(&["plain", "gone"]).await;
    let secrets: Api<Secret> = Api::namespaced(stage.admin.clone(), "shop");
    let secret = || {
        serde_json::from_value::<Secret>(
            json!({"metadata": {"name": "cloud"}, "stringData": {"a": "b"}}),
        )
        .expect("a Secret")
    };
    secrets
        .create(&PostParams::default(), &secret())
        .await
        .expect("created");
    let keyed = keyed_deployment(&stage).await;
    stage.await_ready("shop", "keyed", 1).await;

    // A Secret of the driver is gone.
    secrets
        .delete("cloud", &DeleteParams::default())
        .await
        .expect("deleted");
    stage.move_away("shop", "keyed", "node-1").await;
    refused(&stage, "keyed", "create the Secret again").await;
    secrets
        .create(&PostParams::default(), &secret())
        .await
        .expect("created");
    stage.await_ready_on("shop", "keyed", "node-2").await;

    // The driver is gone.
    stage
        .plane
        .stop_component(Component::CsiAttacher)
        .expect("it ran");
    stage.move_away("shop", "plain", "node-1").await;
    stage.move_away("shop", "gone", "node-1").await;
    for (claim, count) in [("plain", 1), ("gone", 1)] {
        let what = format!("a VolumeAttachment of {claim} that is being deleted");
        let going = eventually(&what, LIMIT, async || {
            let all = stage.attachments("shop", claim).await;
            let old = all
                .iter()
                .filter(|va| va.metadata.deletion_timestamp.is_some())
                .count();
            (old == count).then_some(())
        });
        going.await.expect(&what);
    }
    for node in NODES {
        stage.kubelet(node).set_plugin_faults(NodePluginFaults {
            unregistered: true,
            ..NodePluginFaults::default()
        });
    }
    let drivers: Api<CSIDriver> = Api::all(stage.admin.clone());
    let driver = drivers
        .list(&Default::default())
        .await
        .expect("listed")
        .items
        .remove(0);
    drivers
        .delete(&driver.name_any(), &DeleteParams::default())
        .await
        .expect("deleted");
    refused(&stage, "plain", "is not installed any more").await;

    // The PersistentVolume is gone.
    let volumes_api: Api<PersistentVolume> = Api::all(stage.admin.clone());
    volumes_api
        .delete("pv-shop-gone", &DeleteParams::default())
        .await
        .expect("deleted");
    stage
        .patch(
            &volumes_api,
            "pv-shop-gone",
            json!({"metadata": {"finalizers": null}}),
        )
        .await;
    refused(&stage, "gone", "does not exist any more").await;

    for node in NODES {
        stage
            .kubelet(node)
            .set_plugin_faults(NodePluginFaults::default());
    }
    let again = CSIDriver {
        metadata: kube::api::ObjectMeta {
            name: Some(driver.name_any()),
            ..Default::default()
        },
        spec: driver.spec,
    };
    drivers
        .create(&PostParams::default(), &again)
        .await
        .expect("created");
    stage
        .plane
        .start_component(Component::CsiAttacher)
        .await
        .expect("it starts");
    stage.await_ready_on("shop", "plain", "node-2").await;
    stage.assert_only_records(&[]);
    stage.assert_one_holder(&[volumes[0], volumes[1], keyed]);
    let over = |r: &VolumeRecovery| {
        r.status
            .as_ref()
            .is_some_and(|s| s.phase == Phase::Resolved)
    };
    for claim in ["keyed", "plain"] {
        let what = "nothing to do any more";
        let done = eventually(what, DEATH, async || {
            stage
                .recoveries("shop")
                .await
                .iter()
                .filter(|r| r.spec.claim_name == claim)
                .all(over)
                .then_some(())
        });
        done.await
            .unwrap_or_else(|e| panic!("{claim}: {e}\n{}", stage.logs()));
    }
    stage.await_nothing_left().await;
}

/// The PersistentVolume was deleted and its finalizers removed: neither external-attacher nor reattach can detach without it.
/// A person is called, without a ticket for the provider, which has nothing to do with it; made again, it heals.
pub async fn a_recreated_persistent_volume_frees_the_attachment() {
    let (stage, volumes) = on_own_cluster(&["redis"]).await;
    stage
        .policy_saying(json!({"escalateAfterSeconds": 60}))
        .await;
    let before = stage.attachments("shop", "redis").await;
    let [old] = before.as_slice() else {
        panic!("one VolumeAttachment: {before:#?}")
    };
    let api: Api<PersistentVolume> = Api::all(stage.admin.clone());
    let kept = api.get("pv-shop-redis").await.expect("it is there");
    // Down meanwhile, so that the detach is not done before the PersistentVolume is gone.
    stage
        .plane
        .stop_component(Component::CsiAttacher)
        .expect("it ran");
    stage.move_away("shop", "redis", "node-1").await;
    let what = "the VolumeAttachment is being deleted";
    let going = eventually(what, LIMIT, async || {
        let all = stage.attachments("shop", "redis").await;
        all.iter()
            .any(|va| va.metadata.deletion_timestamp.is_some())
            .then_some(())
    });
    going.await.expect(what);
    api.delete("pv-shop-redis", &DeleteParams::default())
        .await
        .expect("deleted");
    stage
        .patch(
            &api,
            "pv-shop-redis",
            json!({"metadata": {"finalizers": null}}),
        )
        .await;
    stage
        .plane
        .start_component(Component::CsiAttacher)
        .await
        .expect("it starts");

    refused(
        &stage,
        "redis",
        "PersistentVolume pv-shop-redis does not exist any more",
    )
    .await;
    let called = stage
        .await_recovery("shop", "redis", "a person called", |r| {
            r.status.as_ref().is_some_and(|s| s.escalation.is_some())
        })
        .await;
    let told = called
        .status
        .and_then(|s| s.escalation)
        .expect("it was seen");
    say!("a person is told: {}", told.summary);
    assert!(
        told.ticket.is_none() && told.summary.contains("restore PersistentVolume"),
        "{told:?}"
    );
    let hangs = stage.attachments("shop", "redis").await;
    assert!(
        hangs.iter().any(|va| va.uid() == old.uid()),
        "it hangs: {hangs:#?}"
    );
    stage.assert_only_records(&[]);

    let again = PersistentVolume {
        metadata: kube::api::ObjectMeta {
            name: Some(kept.name_any()),
            ..Default::default()
        },
        spec: kept.spec,
        status: None,
    };
    api.create(&PostParams::default(), &again)
        .await
        .expect("created");
    let made = Instant::now();
    stage.await_ready_on("shop", "redis", "node-2").await;
    say!(
        "Ready {:.0} s after the PersistentVolume is there again",
        made.elapsed().as_secs_f64()
    );
    let over = stage
        .await_recovery("shop", "redis", "an end", |r| {
            r.status.as_ref().is_some_and(|s| s.phase.is_final())
        })
        .await;
    let status = over.status.expect("a status");
    say!("{:?}: {}", status.phase, status.message);
    assert!(
        matches!(status.phase, Phase::Recovered | Phase::Resolved),
        "{}",
        stage.story("shop").await
    );
    assert_eq!(status.escalation, None, "nobody is called any more");
    assert_eq!(stage.cloud_mutations(), [], "the driver detached");
    stage.assert_one_holder(&volumes);
    stage.await_nothing_left().await;
}

/// A Deployment whose volume needs a Secret for attach and detach.
async fn keyed_deployment(stage: &Stage) -> VolumeNo {
    let (volume, handle) = stage.volume("shopkeyed");
    let reference = json!({"name": "cloud", "namespace": "shop"});
    let mut pv =
        reattach_sim::manifests::linode_volume("pv-shop-keyed", &handle, "ext4", "shop", "keyed");
    pv["spec"]["csi"]["controllerPublishSecretRef"] = reference;
    stage.create(pv).await;
    stage
        .create(reattach_sim::manifests::claim(
            "shop",
            "keyed",
            "pv-shop-keyed",
        ))
        .await;
    let data = reattach_sim::manifests::claim_volume("data", "keyed");
    let mut object = reattach_sim::manifests::deployment("shop", "keyed", 1, &[data]);
    prefer(&mut object, &NODES);
    stage.create(object).await;
    volume
}
