//! What the controller's rights would allow and its admission policies refuse.

use crate::cluster::{Installed, create, object, refused};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

pub async fn pods_as_dry_run_only(installed: &Installed<'_>) {
    let pods = Api::<Pod>::namespaced(installed.controller.clone(), "team-a");
    let containers = json!([{ "name": "app", "image": "none" }]);
    for metadata in [json!({ "name": "probe" }), json!({ "generateName": "probe-" })] {
        let pod: Pod = object(json!({ "metadata": metadata, "spec": { "containers": containers } }));
        let real = pods.create(&PostParams::default(), &pod).await;
        refused("a real pod", real, 403, "reattach creates pods as a dry run only");
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        pods.create(&dry, &pod).await.expect("a dry run");
        // Nobody else is held up.
        let pods = Api::<Pod>::namespaced(installed.admin.clone(), "team-a");
        let made = pods.create(&PostParams::default(), &pod).await.expect("not the controller's");
        let name = made.metadata.name.expect("a name");
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await.expect("deleted");
    }
    assert!(pods.list(&Default::default()).await.expect("a list").items.is_empty());
}

pub async fn volume_attachments(installed: &Installed<'_>) {
    let admin = Api::<VolumeAttachment>::all(installed.admin.clone());
    let attachment = json!({
        "metadata": {
            "name": "va", "finalizers": ["external-attacher/driver"], "labels": { "of": "somebody" },
            "annotations": { "csi.alpha.kubernetes.io/node-id": "7001" },
        },
        "spec": { "attacher": "driver", "nodeName": "node-a", "source": { "persistentVolumeName": "pv" } },
    });
    create(&admin, attachment).await;
    let ours = Api::<VolumeAttachment>::all(installed.controller.clone());
    let params = PatchParams::default();
    let only = "reattach changes nothing of a VolumeAttachment but its own annotations";
    for (metadata, says) in [
        (json!({ "finalizers": null }), only),
        (json!({ "finalizers": ["external-attacher/driver", "reattach.dev/hold"] }), only),
        (json!({ "labels": { "of": "us" } }), only),
        (json!({ "annotations": { "csi.alpha.kubernetes.io/node-id": "7002" } }), only),
        (json!({ "annotations": { "csi.alpha.kubernetes.io/node-id": null } }), only),
        (json!({ "annotations": { "somebody/else": "x" } }), only),
    ] {
        let answer = ours.patch("va", &params, &Patch::Merge(json!({ "metadata": metadata }))).await;
        refused(&metadata.to_string(), answer, 403, says);
    }
    for value in [json!("2026-01-02T03:04:05Z"), json!("2026-01-02T03:05:05Z"), Value::Null] {
        let patch =
            Patch::Merge(json!({ "metadata": { "annotations": { "reattach.dev/requeued": value } } }));
        ours.patch("va", &params, &patch).await.expect("requeued");
    }
    let gone = ours.delete("va", &DeleteParams::default()).await.map(|_| ());
    refused("a delete", gone, 403, "cannot delete resource \"volumeattachments\"");
}

pub async fn workloads(installed: &Installed<'_>) {
    let labels = json!({ "app": "db" });
    let template = json!({
        "metadata": { "labels": labels },
        "spec": { "containers": [{ "name": "db", "image": "none" }] },
    });
    let metadata = json!({ "name": "db", "annotations": { "team": "a" }, "finalizers": ["somebody/else"] });
    let spec = json!({ "replicas": 1, "selector": { "matchLabels": labels }, "template": template });
    let admin = installed.admin.clone();
    create(
        &Api::<Deployment>::namespaced(admin.clone(), "team-a"),
        json!({ "metadata": metadata, "spec": spec }),
    )
    .await;
    let mut set = spec.clone();
    set["serviceName"] = "db".into();
    set["persistentVolumeClaimRetentionPolicy"] = json!({ "whenScaled": "Retain", "whenDeleted": "Retain" });
    create(&Api::<StatefulSet>::namespaced(admin, "team-a"), json!({ "metadata": metadata, "spec": set }))
        .await;

    let ours = installed.controller.clone();
    let deployments = Api::<Deployment>::namespaced(ours.clone(), "team-a");
    let sets = Api::<StatefulSet>::namespaced(ours, "team-a");
    let params = PatchParams::default();
    let image =
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "db", "image": "evil" }] } } } });
    let (pods, own) = (
        "nothing of a workload's pods but their number",
        "nothing of a workload's metadata but its own annotations",
    );
    for (patch, says) in [
        (image, pods),
        (json!({ "spec": { "template": { "metadata": { "labels": { "more": "x" } } } } }), pods),
        (json!({ "metadata": { "finalizers": null } }), own),
        (json!({ "metadata": { "labels": { "more": "x" } } }), own),
        (json!({ "metadata": { "annotations": { "team": "b" } } }), own),
    ] {
        let answer = deployments.patch("db", &params, &Patch::Merge(patch.clone())).await;
        refused(&patch.to_string(), answer, 403, says);
        let answer = sets.patch("db", &params, &Patch::Merge(patch.clone())).await;
        refused(&patch.to_string(), answer, 403, says);
    }
    let delete = json!({ "spec": { "persistentVolumeClaimRetentionPolicy": { "whenScaled": "Delete" } } });
    let answer = sets.patch("db", &params, &Patch::Merge(delete)).await;
    refused("deleting claims", answer, 403, "reattach never changes what becomes of a StatefulSet's claims");

    // Stamp and zero in one write, and back; then by /scale.
    for (replicas, stamp) in [(0, json!("{}")), (1, Value::Null)] {
        let patch = json!({ "metadata": { "annotations": { "reattach.dev/restore": stamp } }, "spec": { "replicas": replicas } });
        deployments.patch("db", &params, &Patch::Merge(patch.clone())).await.expect("scaled");
        sets.patch("db", &params, &Patch::Merge(patch)).await.expect("scaled");
        let scale = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        deployments.patch_scale("db", &params, &scale).await.expect("scaled");
        sets.patch_scale("db", &params, &scale).await.expect("scaled");
    }
}
