//! Requests that the controller's rights would allow and its admission policies refuse.

use crate::cluster::{Installed, create, object, refused};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

pub async fn pods_as_dry_run_only(installed: &Installed<'_>) {
    let pods = Api::<Pod>::namespaced(installed.controller.clone(), "team-a");
    let containers = json!([{ "name": "app", "image": "none" }]);
    for metadata in [
        json!({ "name": "probe" }),
        json!({ "generateName": "probe-" }),
    ] {
        let pod: Pod =
            object(json!({ "metadata": metadata, "spec": { "containers": containers } }));
        let real = pods.create(&PostParams::default(), &pod).await;
        refused(
            "a real pod",
            real,
            403,
            "reattach creates pods as a dry run only",
        );
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        pods.create(&dry, &pod).await.expect("a dry run");
        // Other users are not affected.
        let pods = Api::<Pod>::namespaced(installed.admin.clone(), "team-a");
        let made = pods
            .create(&PostParams::default(), &pod)
            .await
            .expect("not the controller's");
        let name = made.metadata.name.expect("a name");
        pods.delete(&name, &DeleteParams::default().grace_period(0))
            .await
            .expect("deleted");
    }
    assert!(
        pods.list(&Default::default())
            .await
            .expect("a list")
            .items
            .is_empty()
    );
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
        (
            json!({ "finalizers": ["external-attacher/driver", "reattach.dev/hold"] }),
            only,
        ),
        (json!({ "labels": { "of": "us" } }), only),
        (
            json!({ "annotations": { "csi.alpha.kubernetes.io/node-id": "7002" } }),
            only,
        ),
        (
            json!({ "annotations": { "csi.alpha.kubernetes.io/node-id": null } }),
            only,
        ),
        (json!({ "annotations": { "somebody/else": "x" } }), only),
    ] {
        let answer = ours
            .patch(
                "va",
                &params,
                &Patch::Merge(json!({ "metadata": metadata })),
            )
            .await;
        refused(&metadata.to_string(), answer, 403, says);
    }
    for value in [
        json!("2026-01-02T03:04:05Z"),
        json!("2026-01-02T03:05:05Z"),
        Value::Null,
    ] {
        let patch = Patch::Merge(
            json!({ "metadata": { "annotations": { "reattach.dev/requeued": value } } }),
        );
        ours.patch("va", &params, &patch).await.expect("requeued");
    }
    let by_uid = "reattach deletes a VolumeAttachment by its UID only";
    let any = ours
        .delete("va", &DeleteParams::default())
        .await
        .map(|_| ());
    refused("whichever has the name", any, 403, by_uid);
    let by = |uid: &str| DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let other = ours.delete("va", &by("another")).await.map(|_| ());
    refused(
        "another one of that name",
        other,
        409,
        "the UID in the precondition (another) does not match",
    );
    let uid = ours
        .get("va")
        .await
        .expect("there")
        .metadata
        .uid
        .expect("a UID");
    ours.delete("va", &by(&uid))
        .await
        .expect("the one that is meant");
    let going = ours.get("va").await.expect("its finalizer keeps it");
    assert!(going.metadata.deletion_timestamp.is_some());
}

/// On a Node the controller adds and removes two taints, one of them only where the Node is not Ready.
pub async fn nodes(installed: &Installed<'_>) {
    let admin = Api::<Node>::all(installed.admin.clone());
    let taint = |key: &str, value: &str, effect: &str| json!({ "key": key, "value": value, "effect": effect });
    let theirs = taint("dedicated", "db", "NoSchedule");
    let node = |name: &str, ready: &str| {
        json!({
            "metadata": { "name": name, "labels": { "of": "somebody" } }, "spec": { "taints": [theirs] },
            "status": { "conditions": [{
                "type": "Ready", "status": ready, "reason": "x", "message": "",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }] },
        })
    };
    for (name, ready) in [("alive", "True"), ("dead", "Unknown")] {
        create(&admin, node(name, ready)).await;
    }
    let ours = Api::<Node>::all(installed.controller.clone());
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let change =
        async |name: &str, patch: Value| ours.patch(name, &dry, &Patch::Merge(patch)).await;
    let out = taint("node.kubernetes.io/out-of-service", "reattach", "NoExecute");
    let quarantine = taint("reattach.dev/quarantine", "team-a.x", "NoSchedule");
    // The node lifecycle controller has its own on the dead one.
    let with = async |name: &str, more: &[Value]| {
        let found = admin
            .get(name)
            .await
            .expect("there")
            .spec
            .and_then(|s| s.taints)
            .unwrap_or_default();
        let mut taints: Vec<Value> = found.iter().map(|t| json!(t)).collect();
        taints.extend(more.iter().cloned());
        json!({ "spec": { "taints": taints } })
    };
    let only = "reattach changes none of a Node's taints but its own";
    for (what, more) in [
        (
            "a taint of somebody",
            taint("reserved", "web", "NoSchedule"),
        ),
        (
            "another one of ours",
            taint("reattach.dev/mine", "x", "NoSchedule"),
        ),
        (
            "in a person's name",
            taint(
                "node.kubernetes.io/out-of-service",
                "nodeshutdown",
                "NoExecute",
            ),
        ),
        (
            "out of service, another effect",
            taint(
                "node.kubernetes.io/out-of-service",
                "reattach",
                "NoSchedule",
            ),
        ),
        (
            "a quarantine that drains",
            taint("reattach.dev/quarantine", "x", "NoExecute"),
        ),
        (
            "a closing taint that drains",
            taint("hold.reattach.dev/uid-1", "", "NoExecute"),
        ),
        (
            "a closing taint of another prefix",
            taint("xhold.reattach.dev/uid-1", "", "NoSchedule"),
        ),
    ] {
        refused(
            what,
            change("dead", with("dead", &[more]).await).await,
            403,
            only,
        );
    }
    refused(
        "theirs taken off",
        change("dead", json!({ "spec": { "taints": [out] } })).await,
        403,
        only,
    );
    let ready = change("alive", with("alive", std::slice::from_ref(&out)).await).await;
    refused(
        "a Ready Node",
        ready,
        403,
        "reattach takes no Node out of service that is Ready",
    );
    for patch in [
        json!({ "unschedulable": true }),
        json!({ "providerID": "linode://1" }),
    ] {
        let answer = change("dead", json!({ "spec": patch })).await;
        refused(
            &patch.to_string(),
            answer,
            403,
            "reattach changes nothing of a Node but its own taints",
        );
    }
    for patch in [
        json!({ "labels": { "of": "us" } }),
        json!({ "annotations": { "reattach.dev/mine": "x" } }),
        json!({ "finalizers": ["reattach.dev/node"] }),
    ] {
        let answer = change("dead", json!({ "metadata": patch })).await;
        refused(
            &patch.to_string(),
            answer,
            403,
            "reattach changes nothing of a Node's metadata",
        );
    }
    change("dead", with("dead", &[out, quarantine.clone()]).await)
        .await
        .expect("fenced");
    change("alive", with("alive", &[quarantine]).await)
        .await
        .expect("in quarantine, whether Ready or not");
    let closed = [
        taint("hold.reattach.dev/uid-1", "", "NoSchedule"),
        taint("hold.reattach.dev/uid-2", "", "NoSchedule"),
    ];
    change("alive", with("alive", &closed).await)
        .await
        .expect("closed, by two recoveries");
}

pub async fn workloads(installed: &Installed<'_>) {
    let labels = json!({ "app": "db" });
    let template = json!({
        "metadata": { "labels": labels },
        "spec": { "containers": [{ "name": "db", "image": "none" }] },
    });
    let metadata =
        json!({ "name": "db", "annotations": { "team": "a" }, "finalizers": ["somebody/else"] });
    let spec =
        json!({ "replicas": 1, "selector": { "matchLabels": labels }, "template": template });
    let admin = installed.admin.clone();
    create(
        &Api::<Deployment>::namespaced(admin.clone(), "team-a"),
        json!({ "metadata": metadata, "spec": spec }),
    )
    .await;
    let mut set = spec.clone();
    set["serviceName"] = "db".into();
    set["persistentVolumeClaimRetentionPolicy"] =
        json!({ "whenScaled": "Retain", "whenDeleted": "Retain" });
    create(
        &Api::<StatefulSet>::namespaced(admin, "team-a"),
        json!({ "metadata": metadata, "spec": set }),
    )
    .await;

    let ours = installed.controller.clone();
    let deployments = Api::<Deployment>::namespaced(ours.clone(), "team-a");
    let sets = Api::<StatefulSet>::namespaced(ours, "team-a");
    let params = PatchParams::default();
    let image = json!({ "spec": { "template": { "spec": { "containers": [{ "name": "db", "image": "evil" }] } } } });
    let (pods, own) = (
        "nothing of a workload's pods but their number",
        "nothing of a workload's metadata but its own annotations",
    );
    for (patch, says) in [
        (image, pods),
        (
            json!({ "spec": { "template": { "metadata": { "labels": { "more": "x" } } } } }),
            pods,
        ),
        (json!({ "metadata": { "finalizers": null } }), own),
        (json!({ "metadata": { "labels": { "more": "x" } } }), own),
        (
            json!({ "metadata": { "annotations": { "team": "b" } } }),
            own,
        ),
    ] {
        let answer = deployments
            .patch("db", &params, &Patch::Merge(patch.clone()))
            .await;
        refused(&patch.to_string(), answer, 403, says);
        let answer = sets
            .patch("db", &params, &Patch::Merge(patch.clone()))
            .await;
        refused(&patch.to_string(), answer, 403, says);
    }
    let delete =
        json!({ "spec": { "persistentVolumeClaimRetentionPolicy": { "whenScaled": "Delete" } } });
    let answer = sets.patch("db", &params, &Patch::Merge(delete)).await;
    refused(
        "deleting claims",
        answer,
        403,
        "reattach never changes what becomes of a StatefulSet's claims",
    );

    // Stamp and zero in one write, and back; then by /scale.
    for (replicas, stamp) in [(0, json!("{}")), (1, Value::Null)] {
        let patch = json!({ "metadata": { "annotations": { "reattach.dev/restore": stamp } }, "spec": { "replicas": replicas } });
        deployments
            .patch("db", &params, &Patch::Merge(patch.clone()))
            .await
            .expect("scaled");
        sets.patch("db", &params, &Patch::Merge(patch))
            .await
            .expect("scaled");
        let scale = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        deployments
            .patch_scale("db", &params, &scale)
            .await
            .expect("scaled");
        sets.patch_scale("db", &params, &scale)
            .await
            .expect("scaled");
    }
}
