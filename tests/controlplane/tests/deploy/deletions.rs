//! The controller's deletions of pods: by UID, with time to end, and only of pods that come again.

use crate::cluster::{Installed, create, object, refused};
use crate::hold::{pod_of, pods};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use serde_json::json;

fn options(uid: Option<&str>, grace: Option<u32>) -> DeleteParams {
    DeleteParams {
        grace_period_seconds: grace,
        preconditions: uid.map(|uid| Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}

/// What the admission policy `reattach-controller-pod-deletions` lets pass.
pub async fn deletions_are_by_uid_and_leave_time(installed: &Installed<'_>) {
    let admin = pods(&installed.admin, "team-a");
    let ours = pods(&installed.controller_once().await, "team-a");
    let owners: Api<ConfigMap> = Api::namespaced(installed.admin.clone(), "team-a");
    let owner = create(&owners, json!({ "metadata": { "name": "owner" } })).await;
    let owner = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid,
        "controller": true }]);
    let owned = |name: &str, claim: bool| {
        let mut pod = pod_of(name, "nobodys");
        pod["spec"]["nodeName"] = "node-a".into();
        pod["metadata"]["ownerReferences"] = owner.clone();
        if !claim {
            pod["spec"]["volumes"] = json!([]);
        }
        pod
    };
    let mut bare = owned("bare", true);
    bare["metadata"]["ownerReferences"] = json!([]);
    let mut hasty = owned("hasty", true);
    hasty["spec"]["terminationGracePeriodSeconds"] = 0.into();
    let mut uids = Vec::new();
    for pod in [owned("stuck", true), owned("stateless", false), bare, hasty] {
        let made = admin.create(&PostParams::default(), &object(pod)).await;
        uids.push(made.expect("a pod").metadata.uid.expect("a UID"));
    }
    let of = |n: usize| Some(uids[n].as_str());
    let by_uid = "reattach deletes a pod by its UID only";
    let time = "reattach never deletes a pod without time to end";
    let again = "reattach never deletes a pod that no controller makes anew";
    let volume = "reattach deletes no pod without a persistent volume";
    for (what, name, options, says) in [
        (
            "whatever has the name",
            "stuck",
            options(None, Some(30)),
            by_uid,
        ),
        ("at once", "stuck", options(of(0), Some(0)), time),
        // The API server puts the pod's own time into the request before admission.
        (
            "without a time, a pod that asks for none",
            "hasty",
            options(of(3), None),
            time,
        ),
        (
            "a stateless pod",
            "stateless",
            options(of(1), Some(30)),
            volume,
        ),
        ("a bare pod", "bare", options(of(2), Some(30)), again),
    ] {
        refused(what, ours.delete(name, &options).await, 403, says);
    }
    ours.delete("stuck", &options(of(0), Some(30)))
        .await
        .expect("accepted");
    let deleted = admin.get("stuck").await.expect("waits for its kubelet");
    assert_eq!(deleted.metadata.deletion_grace_period_seconds, Some(30));
    for name in ["stuck", "stateless", "bare", "hasty"] {
        admin
            .delete(name, &DeleteParams::default().grace_period(0))
            .await
            .expect("deleted");
    }
}
