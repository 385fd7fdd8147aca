//! Hold and release on a real API server: a label on a VolumeRecovery keeps new pods of its claim away, and nothing else.

use crate::cluster::{CONTROLLER, Installed, LIMIT, create, object, refused};
use crate::schema::recovery;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use reattach_api::VolumeRecovery;
use reattach_core::hold::{HOLD_GATE, HOLD_LABEL, HOLD_POLICY};
use reattach_tests_controlplane::eventually;
use serde_json::{Value, json};

/// Label and gate as reattach names them; `deploy/` and this test repeat the names.
const NAME: &str = "reattach.dev/hold";
const CLAIM: &str = "held-data";

fn recoveries(client: &Client, namespace: &str) -> Api<VolumeRecovery> {
    Api::namespaced(client.clone(), namespace)
}

pub fn pods(client: &Client, namespace: &str) -> Api<Pod> {
    Api::namespaced(client.clone(), namespace)
}

/// A recovery of that claim by the controller.
async fn recover(installed: &Installed<'_>, namespace: &str, name: &str, claim: &str) {
    let wanted = recovery(name, CONTROLLER, json!({ "claimName": claim }));
    create(&recoveries(&installed.controller, namespace), wanted).await;
}

async fn label(
    api: &Api<VolumeRecovery>,
    name: &str,
    value: Value,
) -> kube::Result<VolumeRecovery> {
    let patch = Patch::Merge(json!({ "metadata": { "labels": { NAME: value } } }));
    api.patch(name, &PatchParams::default(), &patch).await
}

pub fn pod_of(name: &str, claim: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "app": "held" } },
        "spec": {
            "containers": [{ "name": "app", "image": "none" }],
            "volumes": [
                { "name": "scratch", "emptyDir": {} },
                { "name": "data", "persistentVolumeClaim": { "claimName": claim } },
            ],
        },
    })
}

fn gates(pod: &Pod) -> Vec<String> {
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduling_gates.clone())
        .unwrap_or_default();
    gates.into_iter().map(|gate| gate.name).collect()
}

/// The gates that a dry-run create by the controller shows: this is how a hold is proven.
async fn gates_of(installed: &Installed<'_>, namespace: &str, pod: Value) -> Vec<String> {
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    gates(
        &pods(&installed.controller, namespace)
            .create(&dry, &object(pod))
            .await
            .expect("a dry run"),
    )
}

async fn becomes(installed: &Installed<'_>, what: &str, expected: &[&str]) {
    let seen = async || {
        (gates_of(installed, "team-a", pod_of("probe", CLAIM)).await == expected).then_some(())
    };
    eventually(what, LIMIT, seen).await.expect("in time");
}

pub async fn gates_new_pods_of_the_claim_and_only_those(installed: &Installed<'_>) {
    assert_eq!((HOLD_LABEL, HOLD_GATE), (NAME, NAME));
    let ours = recoveries(&installed.controller, "team-a");
    let group = "admissionregistration.k8s.io";
    for kind in ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"] {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        let policies = Api::<DynamicObject>::all_with(installed.controller.clone(), &resource);
        policies
            .get(HOLD_POLICY)
            .await
            .expect("the controller sees that it can hold");
        let other = policies.get("another").await;
        refused(
            "another policy",
            other,
            403,
            "cannot get resource \"mutatingadmissionpolic",
        );
    }
    recover(installed, "team-a", "holds", CLAIM).await;
    recover(installed, "team-b", "holds-not", CLAIM).await;
    let before = create(&pods(&installed.admin, "team-a"), pod_of("before", CLAIM)).await;
    assert_eq!(
        gates_of(installed, "team-a", pod_of("probe", CLAIM)).await,
        [""; 0],
        "without the label"
    );

    label(&ours, "holds", json!("true"))
        .await
        .expect("the controller's label");
    becomes(installed, "the hold", &[NAME]).await;
    let probe = |namespace: &'static str, pod: Value| gates_of(installed, namespace, pod);
    assert_eq!(
        probe("team-a", pod_of("probe", "other-data")).await,
        [""; 0],
        "another claim"
    );
    assert_eq!(
        probe("team-b", pod_of("probe", CLAIM)).await,
        [""; 0],
        "another namespace"
    );
    let mut bare = pod_of("probe", CLAIM);
    bare["spec"]
        .as_object_mut()
        .expect("a spec")
        .remove("volumes");
    assert_eq!(probe("team-a", bare).await, [""; 0], "no volume at all");
    let found = pods(&installed.admin, "team-a")
        .get("before")
        .await
        .expect("there");
    assert_eq!(gates(&found), [""; 0], "a pod that was there before");
    assert_eq!(found.metadata.generation, before.metadata.generation);

    // Its own gate stays beside ours. With a gate, a nodeName would be refused: such a pod is let through, not broken.
    let mut own = pod_of("probe", CLAIM);
    own["spec"]["schedulingGates"] = json!([{ "name": "somebody/else" }]);
    let mut both = probe("team-a", own.clone()).await;
    both.sort();
    assert_eq!(both, [NAME, "somebody/else"]);
    own["spec"]["schedulingGates"] = json!([{ "name": NAME }]);
    assert_eq!(probe("team-a", own).await, [NAME]);
    let mut bound = pod_of("probe", CLAIM);
    bound["spec"]["nodeName"] = "node-a".into();
    assert_eq!(probe("team-a", bound).await, [""; 0]);

    // Another value is no hold; two recoveries give one gate, and the hold ends with the last of them.
    recover(installed, "team-a", "holds-too", CLAIM).await;
    label(&ours, "holds-too", json!("false"))
        .await
        .expect("labelled");
    label(&ours, "holds", Value::Null).await.expect("taken off");
    becomes(installed, "the end of the hold", &[]).await;
    label(&ours, "holds-too", json!("true"))
        .await
        .expect("labelled");
    becomes(installed, "the other's hold", &[NAME]).await;
    label(&ours, "holds", json!("true"))
        .await
        .expect("labelled");
    becomes(installed, "one gate of two", &[NAME]).await;
    label(&ours, "holds-too", Value::Null)
        .await
        .expect("taken off");
    becomes(installed, "the first one's hold", &[NAME]).await;
    let gone = pods(&installed.admin, "team-a")
        .delete("before", &DeleteParams::default().grace_period(0))
        .await;
    gone.expect("deleted");
}

/// Takes our gate off, conditional on the pod that was read.
fn ungate(pod: &Pod, uid: &str) -> Patch<Value> {
    let left: Vec<Value> = gates(pod)
        .into_iter()
        .filter(|g| g != NAME)
        .map(|g| json!({ "name": g }))
        .collect();
    let operations = json!([
        { "op": "test", "path": "/metadata/uid", "value": uid },
        { "op": "test", "path": "/metadata/resourceVersion", "value": pod.metadata.resource_version },
        { "op": "replace", "path": "/spec/schedulingGates", "value": left },
    ]);
    Patch::Json(serde_json::from_value(operations).expect("a patch"))
}

/// The scheduler leaves a gated pod alone, and has it as soon as the gate is off.
pub async fn the_gate_keeps_the_scheduler_away(installed: &Installed<'_>) {
    let admin = pods(&installed.admin, "team-a");
    let ours = pods(&installed.controller, "team-a");
    let mut wanted = pod_of("waits", CLAIM);
    wanted["spec"]["schedulingGates"] = json!([{ "name": "somebody/else" }]);
    let made = admin
        .create(&PostParams::default(), &object(wanted))
        .await
        .expect("a pod");
    let uid = made.metadata.uid.clone().expect("a UID");
    let condition = |pod: &Pod| {
        let conditions = pod
            .status
            .clone()
            .and_then(|s| s.conditions)
            .unwrap_or_default();
        conditions
            .into_iter()
            .find(|c| c.type_ == "PodScheduled")
            .and_then(|c| c.reason)
    };
    assert_eq!(condition(&made).as_deref(), Some("SchedulingGated"));
    assert_eq!(
        made.status.as_ref().and_then(|s| s.phase.as_deref()),
        Some("Pending")
    );
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "waits" },
        "target": { "kind": "Node", "name": "node-a" },
    });
    let bind = http::Request::post("/api/v1/namespaces/team-a/pods/waits/binding")
        .header("content-type", "application/json")
        .body(binding.to_string().into_bytes())
        .expect("a request");
    let bound = installed.admin.request::<Value>(bind).await;
    refused(
        "a binding",
        bound,
        409,
        "pod waits has non-empty .spec.schedulingGates",
    );

    let params = PatchParams::default();
    // A JSON patch whose test fails answers 422 and does not say why. A merge patch answers 409 for the version, at which
    // it looks first, and 422 for the UID.
    let stale = ours
        .patch("waits", &params, &ungate(&made, "another"))
        .await;
    refused(
        "another pod's UID",
        stale,
        422,
        "the server rejected our request due to an error in our request",
    );
    for (metadata, code, says) in [
        (
            json!({ "uid": "1", "resourceVersion": "1" }),
            409,
            "the object has been modified",
        ),
        (
            json!({ "resourceVersion": "1" }),
            409,
            "the object has been modified",
        ),
        (
            json!({ "uid": "1" }),
            422,
            "metadata.uid: Invalid value: \"1\": field is immutable",
        ),
    ] {
        let gates = json!([{ "name": "somebody/else" }]);
        let stale = json!({ "metadata": metadata, "spec": { "schedulingGates": gates } });
        let answer = ours.patch("waits", &params, &Patch::Merge(stale)).await;
        refused(&metadata.to_string(), answer, code, says);
    }
    let more = Patch::Merge(json!({ "spec": { "schedulingGates": [{ "name": "one/more" }] } }));
    let more = admin.patch("waits", &params, &more).await;
    refused(
        "another gate",
        more,
        422,
        "only deletion is allowed, but found new scheduling gate",
    );
    let only = "reattach changes nothing of a pod but its own scheduling gate";
    let all = Patch::Merge(json!({ "spec": { "schedulingGates": null } }));
    refused(
        "the gate of somebody else",
        ours.patch("waits", &params, &all).await,
        403,
        only,
    );
    let left = ours
        .patch("waits", &params, &ungate(&made, &uid))
        .await
        .expect("our own gate");
    assert_eq!(gates(&left), ["somebody/else"]);
    admin
        .patch("waits", &params, &all)
        .await
        .expect("by whoever set it");
    // Its claim does not exist, which is the scheduler's own finding: it has looked at the pod.
    let looked = async || {
        let found = admin.get("waits").await.ok()?;
        (condition(&found).as_deref() == Some("Unschedulable")).then_some(())
    };
    eventually("scheduler's look", LIMIT, looked)
        .await
        .expect("in time");
    admin
        .delete("waits", &DeleteParams::default().grace_period(0))
        .await
        .expect("deleted");
}

/// The right to write a VolumeRecovery does not give the right to hold. Removing the gate of one's own pod stays possible.
pub async fn only_reattach_holds(installed: &Installed<'_>) {
    let says = "the label reattach.dev/hold is set and removed by reattach alone";
    for who in ["alice", "olga", "erin", "adam"] {
        let client = installed.as_user(who).await;
        let api = recoveries(&client, "team-a");
        refused(
            &format!("set by {who}"),
            label(&api, "holds-too", json!("true")).await,
            403,
            says,
        );
        refused(
            &format!("removed by {who}"),
            label(&api, "holds", Value::Null).await,
            403,
            says,
        );
        refused(
            &format!("changed by {who}"),
            label(&api, "holds", json!("false")).await,
            403,
            says,
        );
        let mut wanted = recovery(&format!("{who}-holds"), who, json!({}));
        wanted["metadata"]["labels"] = json!({ NAME: "true" });
        let made = api.create(&PostParams::default(), &object(wanted)).await;
        refused(&format!("created by {who}"), made, 403, says);
        // Any other label of a recovery that holds is theirs to write.
        let other = Patch::Merge(json!({ "metadata": { "labels": { "ticket": who } } }));
        api.patch("holds", &PatchParams::default(), &other)
            .await
            .expect("another label");
    }
    // Break glass: a cluster administrator has every verb, `hold` too.
    let admin = recoveries(&installed.admin, "team-a");
    label(&admin, "holds", Value::Null)
        .await
        .expect("removed by the administrator");
    becomes(installed, "the end of the hold", &[]).await;
    label(
        &recoveries(&installed.controller, "team-a"),
        "holds",
        json!("true"),
    )
    .await
    .expect("set again");
    becomes(installed, "the hold", &[NAME]).await;

    let admin = pods(&installed.admin, "team-a");
    admin
        .create(&PostParams::default(), &object(pod_of("hers", CLAIM)))
        .await
        .expect("a gated pod");
    let erin = pods(&installed.as_user("erin").await, "team-a");
    let off = Patch::Merge(json!({ "spec": { "schedulingGates": null } }));
    let free = erin
        .patch("hers", &PatchParams::default(), &off)
        .await
        .expect("her own pod");
    assert_eq!(gates(&free), [""; 0]);
    admin
        .delete("hers", &DeleteParams::default().grace_period(0))
        .await
        .expect("deleted");
}

fn eviction(name: &str, options: Value) -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": name }, "deleteOptions": options,
    })
}

async fn evict(client: &Client, name: &str, options: Value) -> kube::Result<Value> {
    let request = http::Request::post(format!("/api/v1/namespaces/team-a/pods/{name}/eviction"))
        .header("content-type", "application/json")
        .body(eviction(name, options).to_string().into_bytes())
        .expect("a request");
    client.request(request).await
}

/// The controller evicts the pod that it means, with the time that the pod has; a budget binds it.
pub async fn evictions_are_by_uid(installed: &Installed<'_>) {
    let admin = pods(&installed.admin, "team-a");
    let mut wanted = pod_of("stuck", "nobodys");
    wanted["spec"]["nodeName"] = "node-a".into();
    let made = admin
        .create(&PostParams::default(), &object(wanted))
        .await
        .expect("a pod");
    let uid = made.metadata.uid.expect("a UID");
    let running = Patch::Merge(json!({ "status": { "phase": "Running" } }));
    admin
        .patch_status("stuck", &PatchParams::default(), &running)
        .await
        .expect("a status");
    let ours = &installed.controller_once().await;

    let by_uid = "reattach evicts a pod by its UID only";
    refused(
        "any pod of that name",
        evict(ours, "stuck", json!({})).await,
        403,
        by_uid,
    );
    refused(
        "no options",
        evict(ours, "stuck", Value::Null).await,
        403,
        by_uid,
    );
    let now = json!({ "preconditions": { "uid": uid }, "gracePeriodSeconds": 0 });
    let answer = evict(ours, "stuck", now).await;
    refused(
        "at once",
        answer,
        403,
        "reattach never shortens the time that a pod has to end",
    );
    let answer = evict(
        ours,
        "stuck",
        json!({ "preconditions": { "uid": "another" } }),
    )
    .await;
    refused(
        "another pod",
        answer,
        409,
        "the UID in the precondition (another) does not match the UID in record",
    );

    let exactly = json!({ "preconditions": { "uid": uid } });
    let budgets = Api::<k8s_openapi::api::policy::v1::PodDisruptionBudget>::namespaced(
        ours.clone(),
        "team-a",
    );
    let theirs = Api::<k8s_openapi::api::policy::v1::PodDisruptionBudget>::namespaced(
        installed.admin.clone(),
        "team-a",
    );
    let spec = json!({ "minAvailable": 1, "selector": { "matchLabels": { "app": "held" } } });
    create(
        &theirs,
        json!({ "metadata": { "name": "held" }, "spec": spec }),
    )
    .await;
    let seen = async || budgets.get("held").await.ok()?.status?.observed_generation;
    eventually("budget's status", LIMIT, seen)
        .await
        .expect("in time");
    let answer = evict(ours, "stuck", exactly.clone()).await;
    refused(
        "under a budget",
        answer,
        429,
        "Cannot evict pod as it would violate the pod's disruption budget.",
    );
    theirs
        .delete("held", &DeleteParams::default())
        .await
        .expect("deleted");
    let gone = async || theirs.get_opt("held").await.ok()?.is_none().then_some(());
    eventually("end of the budget", LIMIT, gone)
        .await
        .expect("in time");

    let mut dry = exactly.clone();
    dry["dryRun"] = json!(["All"]);
    evict(ours, "stuck", dry).await.expect("a dry run");
    assert_eq!(
        admin
            .get("stuck")
            .await
            .expect("there")
            .metadata
            .deletion_timestamp,
        None
    );
    evict(ours, "stuck", exactly).await.expect("evicted");
    let evicted = admin.get("stuck").await.expect("waits for its kubelet");
    assert_eq!(evicted.metadata.deletion_grace_period_seconds, Some(30));
    let conditions = evicted
        .status
        .and_then(|s| s.conditions)
        .unwrap_or_default();
    let why = conditions
        .into_iter()
        .find(|c| c.type_ == "DisruptionTarget")
        .and_then(|c| c.reason);
    assert_eq!(why.as_deref(), Some("EvictionByEvictionAPI"));
    admin
        .delete("stuck", &DeleteParams::default().grace_period(0))
        .await
        .expect("deleted");

    // A person's evictions are none of our business.
    admin
        .create(
            &PostParams::default(),
            &object(pod_of("drained", "nobodys")),
        )
        .await
        .expect("a pod");
    evict(
        &installed.admin,
        "drained",
        json!({ "gracePeriodSeconds": 0 }),
    )
    .await
    .expect("evicted");
}

/// Patches of a pod that the rights would allow and the policies refuse.
pub async fn pods_keep_everything_but_the_gate(installed: &Installed<'_>) {
    let admin = pods(&installed.admin, "team-a");
    let mut wanted = pod_of("guarded", CLAIM);
    wanted["metadata"]["annotations"] = json!({ "team": "a" });
    wanted["metadata"]["finalizers"] = json!(["somebody/else"]);
    let made = admin
        .create(&PostParams::default(), &object(wanted))
        .await
        .expect("a gated pod");
    assert_eq!(gates(&made), [NAME]);
    // An addition is the one change of tolerations that the API server itself accepts.
    let mut tolerations = json!(made.spec.as_ref().and_then(|spec| spec.tolerations.clone()));
    tolerations
        .as_array_mut()
        .expect("the default ones")
        .push(json!({ "key": "x", "operator": "Exists" }));
    let ours = pods(&installed.controller, "team-a");
    let params = PatchParams::default();
    let (spec, metadata) = (
        "reattach changes nothing of a pod but its own scheduling gate",
        "nothing of a pod's metadata",
    );
    for (patch, says) in [
        (
            json!({ "spec": { "containers": [{ "name": "app", "image": "evil" }] } }),
            spec,
        ),
        (
            json!({ "spec": { "nodeSelector": { "kubernetes.io/hostname": "node-a" } } }),
            spec,
        ),
        (json!({ "spec": { "activeDeadlineSeconds": 1 } }), spec),
        (json!({ "spec": { "tolerations": tolerations } }), spec),
        (json!({ "metadata": { "finalizers": null } }), metadata),
        (
            json!({ "metadata": { "labels": { "app": "other" } } }),
            metadata,
        ),
        (
            json!({ "metadata": { "labels": { "more": "x" } } }),
            metadata,
        ),
        (
            json!({ "metadata": { "annotations": { "team": null } } }),
            metadata,
        ),
        (
            json!({ "metadata": { "annotations": { "reattach.dev/note": "x" } } }),
            metadata,
        ),
        (
            json!({ "metadata": { "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x" }] } }),
            metadata,
        ),
    ] {
        let answer = ours
            .patch("guarded", &params, &Patch::Strategic(patch.clone()))
            .await;
        refused(&patch.to_string(), answer, 403, says);
    }
    let uid = made.metadata.uid.clone().expect("a UID");
    let free = ours
        .patch("guarded", &params, &ungate(&made, &uid))
        .await
        .expect("its own gate");
    assert_eq!(gates(&free), [""; 0]);
    let off = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    admin
        .patch("guarded", &params, &off)
        .await
        .expect("by whoever set it");
    admin
        .delete("guarded", &DeleteParams::default().grace_period(0))
        .await
        .expect("deleted");
    for (namespace, name) in [
        ("team-a", "holds"),
        ("team-a", "holds-too"),
        ("team-b", "holds-not"),
    ] {
        let api = recoveries(&installed.controller, namespace);
        api.delete(name, &DeleteParams::default())
            .await
            .expect("deleted");
    }
    becomes(installed, "the end of the hold with its recovery", &[]).await;
}
