//! Every refusal that an object of a real API server can cause: the sentence is there, and nothing was touched.

use crate::common::workloads::pin;
use crate::common::{AWAY, LIMIT, Stage, StageOptions};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use reattach_api::Phase;
use reattach_core::policy::Mode;
use reattach_sim::kubelet::DiskAfter;
use reattach_sim::manifests::{self, claim_volume};
use reattach_tests_controlplane::eventually;
use serde_json::{Value, json};

const NS: &str = "shop";
const NODE: &str = "node-1";

/// Each refused claim, and what its message must say.
const REFUSED: [(&str, &str); 24] = [
    ("data-whenscaled-0", "deletes its claims when scaled down"),
    ("data-ephemeral-0", "has the generic ephemeral volume scratch"),
    ("emptydir", "has the emptyDir cache"),
    ("data-pair-0", "has 2 replicas and all of them would stop"),
    ("data-ordered-0", "and 2 of them are not: scaling to zero would never finish"),
    ("data-rolling-0", "is being rolled out"),
    ("data-partition-0", "is being rolled out"),
    ("keda", "KEDA owns the replica count"),
    ("flux", "Flux owns the replica count"),
    ("argo", "Argo CD owns the replica count"),
    ("data-operated-0", "owned by Database main"),
    ("deleting", "claim shop/deleting is being deleted"),
    ("owned", "is owned by ConfigMap keeper"),
    ("bare", "has no owner that would make a new one"),
    ("many", "a volume that several nodes may use is never detached"),
    ("daemon", "cannot be scaled to zero and back"),
    ("job", "cannot be scaled to zero and back"),
    ("optout", "carries reattach.dev/opt-out"),
    ("optout-workload", "shop/optout-workload carries reattach.dev/opt-out"),
    ("unreadable", "is not a stamp of ours"),
    ("stamped", "is at zero by another recovery"),
    ("foreign", "uses the claim too and does not belong to"),
    ("refused", "would be refused now"),
    ("hpa", "has minReplicas 0"),
];

fn template(object: &mut Value) -> &mut Value {
    &mut object["spec"]["template"]["spec"]
}

fn annotate(key: &str, value: &str) -> impl FnOnce(&mut Value) {
    let (key, value) = (key.to_owned(), value.to_owned());
    move |object: &mut Value| object["metadata"]["annotations"][key] = json!(value)
}

/// A definition of a namespaced kind without a schema.
fn definition(group: &str, version: &str, kind: &str, plural: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"kind": kind, "plural": plural},
            "versions": [{"name": version, "served": true, "storage": true, "schema": {
                "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
}

async fn custom(stage: &Stage, object: Value) -> DynamicObject {
    let api_version = object["apiVersion"].as_str().expect("a version").to_owned();
    let (group, version) = api_version.split_once('/').expect("a group");
    let kind = kube::api::GroupVersionKind::gvk(group, version, object["kind"].as_str().expect("a kind"));
    let object: DynamicObject = serde_json::from_value(object).expect("an object");
    let made = eventually("a served custom resource", LIMIT, async || {
        let (resource, _) = kube::discovery::pinned_kind(&stage.admin, &kind).await.ok()?;
        let api: Api<DynamicObject> = Api::namespaced_with(stage.admin.clone(), NS, &resource);
        api.create(&PostParams::default(), &object).await.ok()
    });
    made.await.expect("in time")
}

/// Everything that is refused, running well.
async fn cast(stage: &Stage) {
    stage.create(definition("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects")).await;
    stage.create(definition("example.com", "v1", "Database", "databases")).await;
    let retention = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    let change = |o: &mut Value| o["spec"]["persistentVolumeClaimRetentionPolicy"] = retention;
    stage.stateful_set_with(NS, "whenscaled", 1, NODE, change).await;
    ephemeral(stage).await;
    let empty = |o: &mut Value| {
        template(o)["volumes"].as_array_mut().expect("volumes").push(json!({"name": "cache", "emptyDir": {}}))
    };
    stage.deployment_with(NS, "emptydir", NODE, empty).await;
    let parallel = |o: &mut Value| o["spec"]["podManagementPolicy"] = json!("Parallel");
    stage.stateful_set_with(NS, "pair", 2, NODE, parallel).await;
    stage.stateful_set(NS, "ordered", 2, NODE).await;
    stage.stateful_set(NS, "rolling", 1, NODE).await;
    let partition = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}});
    stage.stateful_set_with(NS, "partition", 1, NODE, |o| o["spec"]["updateStrategy"] = partition).await;
    prestop(stage).await;
    for name in ["keda", "owned", "deleting", "hpa", "refused", "foreign", "optout"] {
        stage.deployment(NS, name, NODE).await;
    }
    let target = json!({"scaleTargetRef": {"name": "keda"}});
    custom(stage, json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "keda", "namespace": NS}, "spec": target})).await;
    let flux = |o: &mut Value| o["metadata"]["labels"] = json!({"kustomize.toolkit.fluxcd.io/name": "apps"});
    stage.deployment_with(NS, "flux", NODE, flux).await;
    stage
        .deployment_with(
            NS,
            "argo",
            NODE,
            annotate("argocd.argoproj.io/tracking-id", "shop:apps/Deployment:shop/argo"),
        )
        .await;
    let database = custom(stage, json!({"apiVersion": "example.com/v1", "kind": "Database", "metadata": {"name": "main", "namespace": NS}})).await;
    let owner = json!([{"apiVersion": "example.com/v1", "kind": "Database", "name": "main", "uid": database.uid(), "controller": true}]);
    stage.stateful_set_with(NS, "operated", 1, NODE, |o| o["metadata"]["ownerReferences"] = owner).await;
    stage.deployment_with(NS, "optout-workload", NODE, annotate("reattach.dev/opt-out", "true")).await;
    stage.deployment_with(NS, "unreadable", NODE, annotate("reattach.dev/restore", "three")).await;
    let stamp = r#"{"replicas":1,"workload":"w","recovery":"another","at":"2026-01-01T00:00:00Z"}"#;
    stage.deployment_with(NS, "stamped", NODE, annotate("reattach.dev/restore", stamp)).await;

    stage.bound_claim(NS, "bare").await;
    stage.create(pod("bare", "bare")).await;
    stage.create(pod("guest", "foreign")).await;
    stage.bound_claim_with(NS, "many", "ext4", |c| c["spec"]["accessModes"] = json!(["ReadWriteMany"])).await;
    let mut many = manifests::deployment(NS, "many", 1, &[claim_volume("data", "many")]);
    pin(&mut many, NODE);
    stage.create(many).await;
    let daemon = |o: &mut Value| {
        o["kind"] = json!("DaemonSet");
        for field in ["strategy", "replicas"] {
            o["spec"].as_object_mut().expect("a spec").remove(field);
        }
    };
    stage.deployment_with(NS, "daemon", NODE, daemon).await;
    let job = |o: &mut Value| {
        (o["apiVersion"], o["kind"]) = (json!("batch/v1"), json!("Job"));
        for field in ["strategy", "replicas", "selector"] {
            o["spec"].as_object_mut().expect("a spec").remove(field);
        }
        template(o)["restartPolicy"] = json!("OnFailure");
    };
    stage.deployment_with(NS, "job", NODE, job).await;
}

fn pod(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NS, "labels": {"app": name}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": NODE},
            "containers": [{"name": name, "image": "x:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [claim_volume("data", claim)],
        },
    })
}

/// A volume that goes with its pod; the claim is made by Kubernetes, the volume for it is there before.
async fn ephemeral(stage: &Stage) {
    let (_, handle) = stage.volume("scratch");
    stage.create(manifests::linode_volume("pv-scratch", &handle, "ext4", NS, "ephemeral-0-scratch")).await;
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "linode-block-storage-retain",
        "volumeName": "pv-scratch", "resources": {"requests": {"storage": "10Gi"}}}});
    let change = |o: &mut Value| {
        template(o)["volumes"] = json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": claim}}])
    };
    stage.stateful_set_with(NS, "ephemeral", 1, NODE, change).await;
}

/// Two pods with a preStop hook, one on each node.
async fn prestop(stage: &Stage) {
    let apart = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "prestop"}}}]}});
    let change = |o: &mut Value| {
        let spec = template(o);
        spec.as_object_mut().expect("a spec").remove("nodeSelector");
        spec["affinity"] = apart;
        spec["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["true"]}}});
    };
    stage.stateful_set_with(NS, "prestop", 2, NODE, change).await;
}

/// The claim of the one that is stuck.
async fn prestop_claim(stage: &Stage) -> String {
    let pods = stage.pods(NS, "prestop").await;
    let here = pods.iter().find(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(NODE));
    format!("data-{}", here.expect("one of them is there").name_any())
}

/// What changes once the volumes are stuck.
async fn afterwards(stage: &Stage) -> bool {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(stage.admin.clone(), NS);
    claims.delete("deleting", &DeleteParams::default()).await.expect("marked");
    stage
        .patch(&claims, "optout", json!({"metadata": {"annotations": {"reattach.dev/opt-out": "true"}}}))
        .await;
    let maps: Api<ConfigMap> = Api::namespaced(stage.admin.clone(), NS);
    let keeper: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "keeper"}})).expect("a ConfigMap");
    let keeper = maps.create(&PostParams::default(), &keeper).await.expect("created");
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "keeper", "uid": keeper.uid()}]);
    stage.patch(&claims, "owned", json!({"metadata": {"ownerReferences": owner}})).await;
    for name in ["rolling", "partition"] {
        let api: Api<StatefulSet> = Api::namespaced(stage.admin.clone(), NS);
        let template = json!({"spec": {"template": {"metadata": {"annotations": {"version": "2"}}}}});
        stage.patch(&api, name, template).await;
    }
    stage.create(json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "no-more"},
        "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
            "validations": [{"expression": "!has(object.metadata.labels) || !('app' in object.metadata.labels) || object.metadata.labels.app != 'refused'", "message": "no more of these"}],
        },
    }))
    .await;
    stage.create(json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "no-more"},
        "spec": {"policyName": "no-more", "validationActions": ["Deny"]},
    }))
    .await;
    let hpa = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "hpa", "namespace": NS},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hpa"}, "minReplicas": 0, "maxReplicas": 2,
            "metrics": [{"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "Value", "value": "1"}}}],
        },
    });
    let api: Api<HorizontalPodAutoscaler> = Api::namespaced(stage.admin.clone(), NS);
    let hpa = serde_json::from_value(hpa).expect("an autoscaler");
    match api.create(&PostParams::default(), &hpa).await {
        Ok(_) => true,
        Err(error) => {
            println!(
                "NOT SHOWN: this API server takes no HorizontalPodAutoscaler with minReplicas 0: {error}"
            );
            false
        }
    }
}

/// Waits until a recovery of the claim in this mode waits or is refused with this text.
async fn await_says(stage: &Stage, mode: Mode, namespace: &str, claim: &str, text: &str) {
    let mut last = String::new();
    let said = eventually(text, LIMIT, async || {
        let mut all = stage.recoveries(namespace).await;
        all.retain(|r| r.spec.claim_name == claim && r.spec.mode == mode);
        all.sort_by_key(|r| r.creation_timestamp());
        let status = all.pop()?.status?;
        last = format!("{:?}: {}", status.phase, status.message);
        let rests = matches!(status.phase, Phase::Refused | Phase::Waiting | Phase::NotOurs)
            && status.journal.is_empty();
        (rests && status.message.contains(text)).then_some(())
    });
    let in_time = said.await.is_ok();
    assert!(in_time, "{claim} should say {text:?}, and it says {last}\n{}", stage.logs());
    if mode == Mode::Auto {
        println!("  {claim}: {last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_with_the_object_that_causes_it() {
    let stage = Stage::set(StageOptions { volumes_per_node: 60, ..StageOptions::default() }).await;
    stage.namespace(NS).await;
    stage.namespace("tight").await;
    cast(&stage).await;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "one", "namespace": "tight"}, "spec": {"hard": {"pods": "1"}}});
    stage.create(quota).await;
    stage.deployment("tight", "web", NODE).await;
    for app in [
        "whenscaled",
        "ephemeral",
        "emptydir",
        "operated",
        "bare",
        "guest",
        "many",
        "daemon",
        "job",
        "optout",
    ] {
        stage.await_ready(NS, app, 1).await;
    }
    for app in ["pair", "ordered", "prestop"] {
        stage.await_ready(NS, app, 2).await;
    }
    stage.await_ready("tight", "web", 1).await;

    let mut expected: Vec<(String, &str)> = REFUSED.map(|(claim, text)| (claim.to_owned(), text)).into();
    expected.push((prestop_claim(&stage).await, "is Ready and has a preStop hook"));

    // Nothing may act before every cause is there and seen.
    stage.policy("test", Mode::DryRun).await;
    stage.kubelet(NODE).recycle(DiskAfter::Kept, AWAY).await;
    stage.await_down(NS, "rolling").await;
    if !afterwards(&stage).await {
        expected.retain(|(claim, _)| claim != "hpa");
        let api: Api<Deployment> = Api::namespaced(stage.admin.clone(), NS);
        api.delete("hpa", &DeleteParams::background()).await.expect("deleted");
    }
    for mode in [Mode::DryRun, Mode::Auto] {
        stage.policy("test", mode).await;
        for (claim, text) in &expected {
            await_says(&stage, mode, NS, claim, text).await;
        }
        await_says(&stage, mode, "tight", "web", "exceeded quota").await;
    }
    println!("not shown, because the API server lets nobody make it: a claim without an access mode");

    let nodes: Api<Node> = Api::all(stage.admin.clone());
    let taint = |taints: Value| Patch::Merge(json!({"spec": {"taints": taints}}));
    let others = json!([{"key": "medik8s.io/remediation", "effect": "PreferNoSchedule"}]);
    nodes.patch(NODE, &PatchParams::default(), &taint(others)).await.expect("tainted");
    await_says(&stage, Mode::Auto, NS, "emptydir", "carries the taint medik8s.io/remediation").await;
    stage.assert_only_records(&[]);

    // What its owner declares expendable is no reason any more.
    nodes.patch(NODE, &PatchParams::default(), &taint(Value::Null)).await.expect("untainted");
    let api: Api<Deployment> = Api::namespaced(stage.admin.clone(), NS);
    let expendable = json!({"metadata": {"annotations": {"reattach.dev/expendable-emptydirs": "true"}}});
    stage.patch(&api, "emptydir", expendable).await;
    stage.await_phase(NS, "emptydir", &[Phase::Recovered]).await;
    stage.await_ready(NS, "emptydir", 1).await;
}
