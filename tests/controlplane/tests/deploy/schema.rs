//! The rules in the CustomResourceDefinitions, as the API server applies them.

use crate::cluster::{Installed, create, object, refused};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use reattach_api::{RecoveryPolicy, VolumeRecovery};
use serde_json::{Value, json};

/// A recovery with the user `who` as its requester.
pub fn recovery(name: &str, who: &str, changes: Value) -> Value {
    let mut spec = json!({
        "claimName": "data", "requester": who, "runbook": "scale-to-zero", "mode": "Approve",
    });
    if let (Some(spec), Value::Object(changes)) = (spec.as_object_mut(), changes) {
        spec.extend(changes);
    }
    json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery", "metadata": { "name": name }, "spec": spec,
    })
}

/// As JSON, since the types of this build would not even let us write some of these.
fn untyped(installed: &Installed<'_>) -> Api<kube::api::DynamicObject> {
    let resource = kube::api::ApiResource::erase::<VolumeRecovery>(&());
    Api::namespaced_with(installed.admin.clone(), "team-a", &resource)
}

pub async fn creation(installed: &Installed<'_>) {
    let api = untyped(installed);
    let word = |change: Value| {
        let mut said = json!({ "holder": "4711", "declaredBy": "admin", "reason": "no power", "at": "2026-01-01T00:00:00Z" });
        if let (Some(said), Value::Object(change)) = (said.as_object_mut(), change) {
            said.extend(change);
        }
        json!({ "declaration": said })
    };
    let hash = |hash: &str| json!({ "approval": { "approver": "admin", "planHash": hash } });
    for (changes, says) in [
        (
            json!({ "claimName": "" }),
            "claimName must be the name of a PersistentVolumeClaim in this namespace",
        ),
        (
            json!({ "claimName": "c".repeat(254) }),
            "spec.claimName: Too long",
        ),
        // A name is no path to somewhere else.
        (
            json!({ "claimName": "team-b/data" }),
            "claimName must be the name of a PersistentVolumeClaim in this namespace",
        ),
        (
            json!({ "claimName": "../../team-b/persistentvolumeclaims/data" }),
            "claimName must be the name of a PersistentVolumeClaim in this namespace",
        ),
        (
            json!({ "claimName": null }),
            "spec.claimName: Required value",
        ),
        (
            json!({ "requester": "" }),
            "requester must be your own user name (kubectl auth whoami)",
        ),
        (
            json!({ "requester": null }),
            "spec.requester: Required value",
        ),
        (
            json!({ "runbook": "Scale to zero" }),
            "runbook must be the name of a runbook, such as scale-to-zero",
        ),
        (
            json!({ "runbook": "../secret" }),
            "runbook must be the name of a runbook, such as scale-to-zero",
        ),
        (
            json!({ "mode": "Force" }),
            "supported values: \"Observe\", \"DryRun\", \"Approve\", \"Auto\"",
        ),
        (
            hash("0123456789ABCDEF"),
            "planHash must be the 16 hexadecimal digits of status.planHash",
        ),
        (
            hash("0123456789abcde"),
            "planHash must be the 16 hexadecimal digits of status.planHash",
        ),
        (
            hash("0123456789abcdef0"),
            "spec.approval.planHash: Too long",
        ),
        (
            json!({ "approval": { "approver": "admin" } }),
            "spec.approval.planHash: Required value",
        ),
        (
            json!({ "abort": { "reason": "none" } }),
            "spec.abort.by: Required value",
        ),
        (
            word(json!({ "holder": "" })),
            "holder must be the instance that cannot write",
        ),
        (
            word(json!({ "reason": "" })),
            "reason must say why the instance cannot write",
        ),
        (
            word(json!({ "reason": "r".repeat(1025) })),
            "spec.declaration.reason: Too long",
        ),
        (
            word(json!({ "declaredBy": "" })),
            "declaredBy must be your own user name (kubectl auth whoami)",
        ),
        (word(json!({ "at": "yesterday" })), "spec.declaration.at"),
        (
            word(json!({ "at": null })),
            "spec.declaration.at: Required value",
        ),
        (
            json!({ "powerOff": {} }),
            "spec.powerOff.allowedBy: Required value",
        ),
        (
            json!({ "powerOff": { "allowedBy": "" } }),
            "allowedBy must be your own user name (kubectl auth whoami)",
        ),
        (
            json!({ "reason": "r".repeat(1025) }),
            "spec.reason: Too long",
        ),
    ] {
        let answer = api
            .create(
                &PostParams::default(),
                &object(recovery("bad", "admin", changes.clone())),
            )
            .await;
        refused(&changes.to_string(), answer, 422, says);
    }
    let mut unset = recovery("defaulted", "admin", json!({}));
    unset["spec"]
        .as_object_mut()
        .expect("a spec")
        .remove("mode");
    let made = api
        .create(&PostParams::default(), &object(unset))
        .await
        .expect("created");
    assert_eq!(made.data["spec"]["mode"], "DryRun");
}

pub async fn immutable_fields(installed: &Installed<'_>) {
    let api = untyped(installed);
    let approval = json!({ "approver": "admin", "planHash": "0123456789abcdef" });
    let abort = json!({ "by": "admin", "reason": "wrong claim" });
    let spoken = json!({ "reason": "disk lost", "confirmWorkload": "StatefulSet/db", "approval": approval, "abort": abort });
    create(&api, recovery("fixed", "admin", spoken)).await;
    for (change, says) in [
        (
            json!({ "claimName": "other" }),
            "claimName is fixed once created",
        ),
        (
            json!({ "requester": "alice" }),
            "requester is fixed once created",
        ),
        (json!({ "mode": "Auto" }), "mode is fixed once created"),
        (json!({ "mode": null }), "mode is fixed once created"),
        (
            json!({ "runbook": "other" }),
            "runbook is fixed once created",
        ),
        (
            json!({ "reason": "another" }),
            "reason is fixed once created",
        ),
        (json!({ "reason": null }), "reason is fixed once created"),
        (
            json!({ "confirmWorkload": "StatefulSet/other" }),
            "confirmWorkload is fixed once created",
        ),
        (
            json!({ "confirmWorkload": null }),
            "confirmWorkload is fixed once created",
        ),
        (
            json!({ "abort": null }),
            "an abort cannot be taken back or changed",
        ),
        (
            json!({ "abort": { "reason": "another" } }),
            "an abort cannot be taken back or changed",
        ),
        (
            json!({ "approval": null }),
            "an approval cannot be taken back or changed",
        ),
        (
            json!({ "approval": { "planHash": "fedcba9876543210" } }),
            "an approval cannot be taken back or changed",
        ),
    ] {
        let patch = Patch::Merge(json!({ "spec": change }));
        let answer = api.patch("fixed", &PatchParams::default(), &patch).await;
        refused(&change.to_string(), answer, 422, says);
    }
    // Not for ever closed: a recovery without these may get them later, each on its own.
    create(&api, recovery("open", "admin", json!({}))).await;
    let confirm = Patch::Merge(json!({ "spec": { "confirmWorkload": "StatefulSet/db" } }));
    let answer = api.patch("open", &PatchParams::default(), &confirm).await;
    refused(
        "a late confirmWorkload",
        answer,
        422,
        "confirmWorkload is fixed once created",
    );
    let reason = Patch::Merge(json!({ "spec": { "reason": "said afterwards" } }));
    let answer = api.patch("open", &PatchParams::default(), &reason).await;
    refused("a late reason", answer, 422, "reason is fixed once created");
    for later in [json!({ "approval": approval }), json!({ "abort": abort })] {
        let patch = Patch::Merge(json!({ "spec": later }));
        api.patch("open", &PatchParams::default(), &patch)
            .await
            .expect("accepted");
    }
}

/// Clients that write every field send null for what is not there. That must not shut the door on a later approval.
pub async fn nothing_written_counts_as_nothing(installed: &Installed<'_>) {
    let api = untyped(installed);
    let nothing = json!({ "approval": null, "abort": null, "declaration": null, "powerOff": null, "reason": null, "confirmWorkload": null });
    create(&api, recovery("nothing", "admin", nothing)).await;
    for later in [
        json!({ "approval": { "approver": "admin", "planHash": "0123456789abcdef" } }),
        json!({ "abort": { "by": "admin" } }),
    ] {
        let patch = Patch::Merge(json!({ "spec": later }));
        api.patch("nothing", &PatchParams::default(), &patch)
            .await
            .expect("accepted");
    }
}

/// A writer of claims' labels could otherwise choose the policy by which nodes are fenced.
const LABELS_ALONE: &str =
    "a policy with powerOff or nodes that selects by claimLabels must name namespaces as well";

pub async fn policies(installed: &Installed<'_>) {
    let resource = kube::api::ApiResource::erase::<RecoveryPolicy>(&());
    let api: Api<kube::api::DynamicObject> = Api::all_with(installed.admin.clone(), &resource);
    let policy = |spec: Value| {
        json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "RecoveryPolicy", "metadata": { "name": "p" }, "spec": spec,
        })
    };
    for (spec, says) in [
        (json!({ "mode": "Always" }), "supported values"),
        (
            json!({ "runbook": "" }),
            "runbook must be the name of a runbook",
        ),
        (
            json!({ "budgets": { "cluster": 0 } }),
            "spec.budgets.cluster",
        ),
        (json!({ "budgets": { "node": 101 } }), "spec.budgets.node"),
        (
            json!({ "powerOff": "Allowed", "selector": { "claimLabels": { "tier": "gold" } } }),
            LABELS_ALONE,
        ),
        (
            json!({ "nodes": {}, "selector": { "claimLabels": { "tier": "gold" } } }),
            LABELS_ALONE,
        ),
    ] {
        let answer = api
            .create(&PostParams::default(), &object(policy(spec.clone())))
            .await;
        refused(&spec.to_string(), answer, 422, says);
    }
    for spec in [
        json!({ "selector": { "claimLabels": { "tier": "gold" } } }),
        json!({ "powerOff": "Allowed", "nodes": {}, "selector": { "claimLabels": { "tier": "gold" }, "namespaces": ["team-a"] } }),
        json!({ "powerOff": "Allowed", "nodes": {}, "selector": {} }),
    ] {
        create(&api, policy(spec)).await;
        api.delete("p", &DeleteParams::default())
            .await
            .expect("deleted");
    }
    let made = create(&api, policy(json!({}))).await;
    assert_eq!(made.data["spec"]["mode"], "DryRun");
    assert_eq!(
        made.data["spec"]["budgets"],
        json!({ "cluster": 10, "node": 5 })
    );
    api.delete("p", &DeleteParams::default())
        .await
        .expect("deleted");

    // The one that comes with the installation does nothing, and any other goes before it.
    let default = Api::<RecoveryPolicy>::all(installed.admin.clone())
        .get("default")
        .await
        .expect("there");
    assert_eq!(default.spec.mode, reattach_core::policy::Mode::DryRun);
    assert!(
        default.spec.precedence
            < made.data["spec"]["precedence"]
                .as_i64()
                .map_or(0, |p| p as i32)
    );
    assert_eq!(
        default.spec.selector,
        reattach_api::PolicySelector::default()
    );
}
