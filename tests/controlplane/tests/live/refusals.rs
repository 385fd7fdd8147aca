//! Every refusal that an object of a real API server can cause: the sentence is there, and nothing was touched.
//!
//! Elsewhere: budgets, a cloud that does not answer and what changes after the plan, in `limits`. Not shown anywhere on a
//! real API server, because the object cannot be made: a claim without an access mode (the API server's refusal is
//! asserted below), and more than one holder at the cloud (a Linode volume has one `linode_id`).

use crate::common::workloads::pin;
use crate::common::{AWAY, LIMIT, Stage, StageOptions};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use reattach_api::{Phase, VolumeRecovery};
use reattach_cloud_simulator::{InstanceNo, VolumeNo};
use reattach_core::policy::Mode;
use reattach_core::runbook::SCALE_TO_ZERO;
use reattach_sim::kubelet::DiskAfter;
use reattach_sim::manifests::{self, claim_volume};
use reattach_tests_controlplane::{eventually, say};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::time::Instant;

const NS: &str = "shop";
const NODE: &str = "node-1";

/// Each refused claim, and what its message must say.
const REFUSED: [(&str, &str); 29] = [
    ("data-whenscaled-0", "deletes its claims when scaled down"),
    (
        "data-ephemeral-0",
        "has the generic ephemeral volume scratch",
    ),
    ("emptydir", "has the emptyDir cache"),
    ("data-pair-0", "has 2 replicas and all of them would stop"),
    (
        "data-ordered-0",
        "and 2 of them are not: scaling to zero would never finish",
    ),
    ("data-rolling-0", "is being rolled out"),
    ("data-partition-0", "is being rolled out"),
    ("keda", "KEDA owns the replica count"),
    ("flux", "Flux owns the replica count"),
    ("argo", "Argo CD owns the replica count"),
    ("data-operated-0", "owned by Database main"),
    ("deleting", "claim shop/deleting is being deleted"),
    ("owned", "is owned by ConfigMap keeper"),
    ("bare", "has no owner that would make a new one"),
    (
        "many",
        "a volume that several nodes may use is never detached",
    ),
    ("daemon", "cannot be scaled to zero and back"),
    ("job", "cannot be scaled to zero and back"),
    ("optout", "carries reattach.dev/opt-out"),
    (
        "optout-workload",
        "shop/optout-workload carries reattach.dev/opt-out",
    ),
    ("unreadable", "is not a stamp of ours"),
    ("stamped", "was scaled to zero by another recovery"),
    ("foreign", "uses the claim too and does not belong to"),
    ("refused", "would be refused now"),
    ("hpa", "HorizontalPodAutoscaler hpa has minReplicas 0"),
    (
        "data-zero-0",
        "already has 0 replicas, and not by reattach; scale it up by hand if it should run",
    ),
    (
        "missing",
        "claim missing-too of Deployment shop/missing does not exist, so its pods would not start again",
    ),
    (
        "twice",
        "VolumeAttachment by-hand of node node-2 names the volume too",
    ),
    ("ending", "Deployment shop/ending is being deleted"),
    (
        "orphan",
        "this is class E (orphan attachment), and runbook scale-to-zero does not heal it",
    ),
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
    let kind =
        kube::api::GroupVersionKind::gvk(group, version, object["kind"].as_str().expect("a kind"));
    let object: DynamicObject = serde_json::from_value(object).expect("an object");
    let made = eventually("a served custom resource", LIMIT, async || {
        let (resource, _) = kube::discovery::pinned_kind(&stage.admin, &kind)
            .await
            .ok()?;
        let api: Api<DynamicObject> = Api::namespaced_with(stage.admin.clone(), NS, &resource);
        api.create(&PostParams::default(), &object).await.ok()
    });
    made.await.expect("in time")
}

/// Everything that is refused, running well; the volume that will be an orphan.
async fn cast(stage: &Stage) -> VolumeNo {
    stage
        .create(definition(
            "keda.sh",
            "v1alpha1",
            "ScaledObject",
            "scaledobjects",
        ))
        .await;
    stage
        .create(definition("example.com", "v1", "Database", "databases"))
        .await;
    let retention = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    let change = |o: &mut Value| o["spec"]["persistentVolumeClaimRetentionPolicy"] = retention;
    stage
        .stateful_set_with(NS, "whenscaled", 1, NODE, change)
        .await;
    ephemeral(stage).await;
    let empty = |o: &mut Value| {
        template(o)["volumes"]
            .as_array_mut()
            .expect("volumes")
            .push(json!({"name": "cache", "emptyDir": {}}))
    };
    stage.deployment_with(NS, "emptydir", NODE, empty).await;
    let parallel = |o: &mut Value| o["spec"]["podManagementPolicy"] = json!("Parallel");
    stage.stateful_set_with(NS, "pair", 2, NODE, parallel).await;
    stage.stateful_set(NS, "ordered", 2, NODE).await;
    stage.stateful_set(NS, "zero", 2, NODE).await;
    stage.stateful_set(NS, "rolling", 1, NODE).await;
    let partition = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}});
    stage
        .stateful_set_with(NS, "partition", 1, NODE, |o| {
            o["spec"]["updateStrategy"] = partition
        })
        .await;
    prestop(stage).await;
    for name in [
        "keda", "owned", "deleting", "hpa", "refused", "foreign", "optout", "twice",
    ] {
        stage.deployment(NS, name, NODE).await;
    }
    stage.bound_claim(NS, "missing-too").await;
    let two = |o: &mut Value| {
        let volumes = template(o)["volumes"].as_array_mut().expect("volumes");
        volumes.push(claim_volume("more", "missing-too"));
    };
    stage.deployment_with(NS, "missing", NODE, two).await;
    let kept = |o: &mut Value| o["metadata"]["finalizers"] = json!(["example.com/backup"]);
    stage.deployment_with(NS, "ending", NODE, kept).await;
    let target = json!({"scaleTargetRef": {"name": "keda"}});
    custom(stage, json!({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "keda", "namespace": NS}, "spec": target})).await;
    let flux = |o: &mut Value| {
        o["metadata"]["labels"] = json!({"kustomize.toolkit.fluxcd.io/name": "apps"})
    };
    stage.deployment_with(NS, "flux", NODE, flux).await;
    stage
        .deployment_with(
            NS,
            "argo",
            NODE,
            annotate(
                "argocd.argoproj.io/tracking-id",
                "shop:apps/Deployment:shop/argo",
            ),
        )
        .await;
    let database = custom(stage, json!({"apiVersion": "example.com/v1", "kind": "Database", "metadata": {"name": "main", "namespace": NS}})).await;
    let owner = json!([{"apiVersion": "example.com/v1", "kind": "Database", "name": "main", "uid": database.uid(), "controller": true}]);
    stage
        .stateful_set_with(NS, "operated", 1, NODE, |o| {
            o["metadata"]["ownerReferences"] = owner
        })
        .await;
    stage
        .deployment_with(
            NS,
            "optout-workload",
            NODE,
            annotate("reattach.dev/opt-out", "true"),
        )
        .await;
    stage
        .deployment_with(
            NS,
            "unreadable",
            NODE,
            annotate("reattach.dev/restore", "three"),
        )
        .await;
    let stamp = r#"{"replicas":1,"workload":"w","recovery":"another","at":"2026-01-01T00:00:00Z"}"#;
    stage
        .deployment_with(NS, "stamped", NODE, annotate("reattach.dev/restore", stamp))
        .await;

    stage.bound_claim(NS, "bare").await;
    stage.create(pod("bare", "bare")).await;
    stage.create(pod("guest", "foreign")).await;
    stage
        .bound_claim_with(NS, "many", "ext4", |c| {
            c["spec"]["accessModes"] = json!(["ReadWriteMany"])
        })
        .await;
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
    stage.deployment(NS, "orphan", NODE).await
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
    stage
        .create(manifests::linode_volume(
            "pv-scratch",
            &handle,
            "ext4",
            NS,
            "ephemeral-0-scratch",
        ))
        .await;
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "linode-block-storage-retain",
        "volumeName": "pv-scratch", "resources": {"requests": {"storage": "10Gi"}}}});
    let change = |o: &mut Value| {
        template(o)["volumes"] =
            json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": claim}}])
    };
    stage
        .stateful_set_with(NS, "ephemeral", 1, NODE, change)
        .await;
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
    stage
        .stateful_set_with(NS, "prestop", 2, NODE, change)
        .await;
}

/// The claim of the one that is stuck.
async fn prestop_claim(stage: &Stage) -> String {
    let pods = stage.pods(NS, "prestop").await;
    let here = pods
        .iter()
        .find(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(NODE));
    format!("data-{}", here.expect("one of them is there").name_any())
}

/// Changes made once the volumes are stuck.
async fn afterwards(stage: &Stage, orphan: VolumeNo) {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(stage.admin.clone(), NS);
    let sets: Api<StatefulSet> = Api::namespaced(stage.admin.clone(), NS);
    let deployments: Api<Deployment> = Api::namespaced(stage.admin.clone(), NS);
    // A claim in use outlives its deletion by a finalizer, which is then removed.
    for claim in ["deleting", "missing-too"] {
        claims
            .delete(claim, &DeleteParams::default())
            .await
            .expect("marked");
    }
    stage
        .patch(
            &claims,
            "missing-too",
            json!({"metadata": {"finalizers": null}}),
        )
        .await;
    stage
        .patch(
            &claims,
            "optout",
            json!({"metadata": {"annotations": {"reattach.dev/opt-out": "true"}}}),
        )
        .await;
    let maps: Api<ConfigMap> = Api::namespaced(stage.admin.clone(), NS);
    let keeper: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "keeper"}})).expect("a ConfigMap");
    let keeper = maps
        .create(&PostParams::default(), &keeper)
        .await
        .expect("created");
    let owner =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "keeper", "uid": keeper.uid()}]);
    stage
        .patch(
            &claims,
            "owned",
            json!({"metadata": {"ownerReferences": owner}}),
        )
        .await;
    for name in ["rolling", "partition"] {
        let template =
            json!({"spec": {"template": {"metadata": {"annotations": {"version": "2"}}}}});
        stage.patch(&sets, name, template).await;
    }
    // With two stuck pods an OrderedReady StatefulSet never gets to zero, whatever requests it.
    stage.await_all_down(NS, "zero").await;
    stage
        .patch(&sets, "zero", json!({"spec": {"replicas": 0}}))
        .await;
    deployments
        .delete("ending", &DeleteParams::background())
        .await
        .expect("marked");
    stage
        .cloud
        .make_orphan(orphan, InstanceNo(1002))
        .expect("node-2's instance");
    let by_hand = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "by-hand"},
        "spec": {"attacher": "linodebs.csi.linode.com", "nodeName": "node-2",
            "source": {"persistentVolumeName": "pv-shop-twice"}},
    });
    let no_more = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "no-more"},
        "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
            "validations": [{"expression": "!has(object.metadata.labels) || !('app' in object.metadata.labels) || object.metadata.labels.app != 'refused'", "message": "no more of these"}],
        },
    });
    let in_force = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "no-more"},
        "spec": {"policyName": "no-more", "validationActions": ["Deny"]},
    });
    // Accepted because of the feature gate HPAScaleToZero, alpha and off by default since 1.16, still so in 1.36.
    let hpa = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "hpa", "namespace": NS},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hpa"}, "minReplicas": 0, "maxReplicas": 2,
            "metrics": [{"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "Value", "value": "1"}}}],
        },
    });
    stage
        .create(
            json!({"apiVersion": "v1", "kind": "List", "items": [by_hand, no_more, in_force, hpa]}),
        )
        .await;
}

/// There is no claim without an access mode: the API server accepts none, and the mode cannot be removed later.
async fn no_access_mode(stage: &Stage) {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(stage.admin.clone(), NS);
    let invalid = |what: &str, answer: kube::Result<PersistentVolumeClaim>, says: &str| match answer
    {
        Err(kube::Error::Api(status)) if status.code == 422 && status.message.contains(says) => {
            say!(
                "  not shown, because the API server refuses it: {what}: {}",
                status.message
            );
        }
        other => panic!("{what}: {other:?}"),
    };
    for modes in [json!([]), Value::Null] {
        let mut object = manifests::claim(NS, "modeless", "pv-modeless");
        object["spec"]["accessModes"] = modes;
        let object = serde_json::from_value(object).expect("a claim");
        let made = claims.create(&PostParams::default(), &object).await;
        invalid(
            "a claim without an access mode",
            made,
            "at least 1 access mode is required",
        );
    }
    let none = Patch::Merge(json!({"spec": {"accessModes": null}}));
    let emptied = claims
        .patch("emptydir", &PatchParams::default(), &none)
        .await;
    invalid("taking the access mode from a claim", emptied, "spec");
}

/// Namespace, claim, and what its message must say.
type Expected = (&'static str, String, &'static str);

/// Waits until, for each of these claims, a recovery in this mode rests with this text and has begun nothing.
async fn await_says(stage: &Stage, mode: Mode, expected: &[Expected]) {
    let mut said: BTreeMap<&Expected, String> = BTreeMap::new();
    let mut last: BTreeMap<&Expected, String> = BTreeMap::new();
    let all = eventually("every refusal", LIMIT, async || {
        let mut recoveries = stage.recoveries(NS).await;
        recoveries.extend(stage.recoveries("tight").await);
        for entry in expected
            .iter()
            .filter(|e| !said.contains_key(e))
            .collect::<Vec<_>>()
        {
            let own = |r: &&VolumeRecovery| {
                r.spec.mode == mode
                    && r.spec.claim_name == entry.1
                    && r.namespace().as_deref() == Some(entry.0)
            };
            let Some(status) = recoveries.iter().rfind(own).and_then(|r| r.status.clone()) else {
                continue;
            };
            let rests = matches!(
                status.phase,
                Phase::Refused | Phase::Waiting | Phase::NotOurs
            );
            let line = format!("{:?}: {}", status.phase, status.message);
            if rests && status.journal.is_empty() && status.message.contains(entry.2) {
                said.insert(entry, line);
            } else {
                last.insert(entry, line);
            }
        }
        (said.len() == expected.len()).then_some(())
    });
    let in_time = all.await.is_ok();
    let silent: Vec<_> = expected.iter().filter(|e| !said.contains_key(e)).collect();
    let instead: Vec<_> = silent.iter().map(|e| (e, last.get(*e))).collect();
    assert!(
        in_time,
        "{mode}: these should say something else: {instead:#?}\n{}",
        stage.logs()
    );
    say!("{mode}: {} refusals", said.len());
    if mode == Mode::Auto {
        for ((_, claim, _), line) in said {
            say!("  {claim}: {line}");
        }
    }
}

pub async fn each_refusal_is_caused_by_its_object() {
    let begun = Instant::now();
    let took = |what: &str| say!("{:5.1} s: {what}", begun.elapsed().as_secs_f32());
    let options = StageOptions {
        volumes_per_node: 60,
        feature_gates: vec!["HPAScaleToZero"],
        ..StageOptions::default()
    };
    let stage = Stage::set(options).await;
    took("the stage is set");
    stage.namespace(NS).await;
    stage.namespace("tight").await;
    let orphan = cast(&stage).await;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "one", "namespace": "tight"}, "spec": {"hard": {"pods": "1"}}});
    stage.create(quota).await;
    stage.deployment("tight", "web", NODE).await;
    took("the cast is made");
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
        "missing",
        "ending",
        "twice",
        "orphan",
    ] {
        stage.await_ready(NS, app, 1).await;
    }
    for app in ["pair", "ordered", "prestop", "zero"] {
        stage.await_ready(NS, app, 2).await;
    }
    stage.await_ready("tight", "web", 1).await;
    took("all run");

    let mut expected: Vec<Expected> = REFUSED
        .iter()
        .map(|(claim, text)| (NS, (*claim).to_owned(), *text))
        .collect();
    expected.push((
        NS,
        prestop_claim(&stage).await,
        "is Ready and has a preStop hook",
    ));
    expected.push(("tight", "web".to_owned(), "exceeded quota"));

    // Nothing may act before every cause is there and seen.
    let keep = |mode| json!({"mode": mode, "runbook": SCALE_TO_ZERO, "emptyDirs": "Keep"});
    stage.policy_saying(keep(Mode::DryRun)).await;
    stage.kubelet(NODE).recycle(DiskAfter::Kept, AWAY).await;
    stage.await_down(NS, "rolling").await;
    afterwards(&stage, orphan).await;
    took("all are stuck, and every cause is there");
    for mode in [Mode::DryRun, Mode::Auto] {
        stage.policy_saying(keep(mode)).await;
        await_says(&stage, mode, &expected).await;
        took("all are refused");
    }
    no_access_mode(&stage).await;

    let nodes: Api<Node> = Api::all(stage.admin.clone());
    let taint = |taints: Value| Patch::Merge(json!({"spec": {"taints": taints}}));
    let others = json!([{"key": "medik8s.io/remediation", "effect": "PreferNoSchedule"}]);
    nodes
        .patch(NODE, &PatchParams::default(), &taint(others))
        .await
        .expect("tainted");
    let at_work = (
        NS,
        "emptydir".to_owned(),
        "carries the taint medik8s.io/remediation",
    );
    await_says(&stage, Mode::Auto, &[at_work]).await;
    nodes
        .patch(NODE, &PatchParams::default(), &taint(Value::Null))
        .await
        .expect("untainted");
    unknown_runbook(&stage).await;
    stage.assert_only_records(&[]);
    took("nothing was touched");

    // What its owner declares expendable is no reason any more.
    let api: Api<Deployment> = Api::namespaced(stage.admin.clone(), NS);
    let expendable =
        json!({"metadata": {"annotations": {"reattach.dev/expendable-emptydirs": "true"}}});
    stage.patch(&api, "emptydir", expendable).await;
    stage.await_phase(NS, "emptydir", &[Phase::Recovered]).await;
    stage.await_ready(NS, "emptydir", 1).await;
    took("what may be healed is healed");
}

/// A person asks for a runbook that this build does not have: the recovery names those that it has.
async fn unknown_runbook(stage: &Stage) {
    let api: Api<VolumeRecovery> = Api::namespaced(stage.admin.clone(), NS);
    let asked: VolumeRecovery = serde_json::from_value(json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery", "metadata": {"name": "own-runbook"},
        "spec": {"claimName": "twice", "mode": "DryRun", "runbook": "pray", "requester": "admin"},
    }))
    .expect("a VolumeRecovery");
    api.create(&PostParams::default(), &asked)
        .await
        .expect("accepted");
    let entry = (
        NS,
        "twice".to_owned(),
        "runbook \"pray\" is not known; this build has: lightest-first, scale-to-zero",
    );
    await_says(stage, Mode::DryRun, &[entry]).await;
    api.delete("own-runbook", &DeleteParams::default())
        .await
        .expect("deleted");
}
