//! Workloads with volumes, and waiting for them.

use super::{LIMIT, Stage};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{
    ApiResource, DynamicObject, GroupVersionKind, ListParams, ObjectMeta, Patch, PatchParams,
    PostParams,
};
use kube::{Api, ResourceExt};
use reattach_api::{NodeVolumeReport, Phase, VolumeRecovery};
use reattach_cloud_simulator::VolumeNo;
use reattach_core::hold::{HOLD_GATE, HOLD_LABEL};
use reattach_core::stamp::STAMP_ANNOTATION;
use reattach_sim::manifests;
use reattach_tests_controlplane::eventually;
use serde_json::{Value, json};

impl Stage {
    /// A namespace.
    pub async fn namespace(&self, name: &str) {
        let api: Api<Namespace> = Api::all(self.admin.clone());
        let object =
            serde_json::from_value(json!({"metadata": {"name": name}})).expect("a namespace");
        api.create(&PostParams::default(), &object)
            .await
            .expect("created");
        self.plane
            .await_namespace(name)
            .await
            .expect("its ServiceAccount");
    }

    /// A bound claim over a new cloud volume.
    pub async fn bound_claim(&self, namespace: &str, claim: &str) -> VolumeNo {
        self.bound_claim_with(namespace, claim, "ext4", |_| {})
            .await
    }

    /// Creates it with another filesystem type in the PersistentVolume, and a change of the claim.
    pub async fn bound_claim_with(
        &self,
        namespace: &str,
        claim: &str,
        fs_type: &str,
        change: impl FnOnce(&mut Value),
    ) -> VolumeNo {
        let mut label = format!("{namespace}{claim}").replace('-', "");
        label.truncate(32);
        let (volume, handle) = self.volume(&label);
        let pv = format!("pv-{namespace}-{claim}");
        let mut object = manifests::claim(namespace, claim, &pv);
        change(&mut object);
        let mut pv = manifests::linode_volume(&pv, &handle, fs_type, namespace, claim);
        pv["spec"]["accessModes"] = object["spec"]["accessModes"].clone();
        let volumes: Api<PersistentVolume> = Api::all(self.admin.clone());
        let pv = serde_json::from_value(pv).expect("a PV");
        volumes
            .create(&PostParams::default(), &pv)
            .await
            .expect("created");
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.admin.clone(), namespace);
        let object = serde_json::from_value(object).expect("a claim");
        claims
            .create(&PostParams::default(), &object)
            .await
            .expect("created");
        volume
    }

    /// A single-replica Deployment with one volume on `node`; its claim has the same name.
    pub async fn deployment(&self, namespace: &str, name: &str, node: &str) -> VolumeNo {
        self.deployment_with(namespace, name, node, |_| {}).await
    }

    /// The same, changed as the test likes.
    pub async fn deployment_with(
        &self,
        namespace: &str,
        name: &str,
        node: &str,
        change: impl FnOnce(&mut Value),
    ) -> VolumeNo {
        let volume = self.bound_claim(namespace, name).await;
        let mut object =
            manifests::deployment(namespace, name, 1, &[manifests::claim_volume("data", name)]);
        pin(&mut object, node);
        change(&mut object);
        self.create(object).await;
        volume
    }

    /// A single-replica ReplicaSet of its own, as [`Stage::deployment`].
    pub async fn replica_set(&self, namespace: &str, name: &str, node: &str) -> VolumeNo {
        let change = |object: &mut Value| {
            object["kind"] = json!("ReplicaSet");
            object["spec"]
                .as_object_mut()
                .expect("a spec")
                .remove("strategy");
        };
        self.deployment_with(namespace, name, node, change).await
    }

    /// A StatefulSet; the claims are `data-NAME-0` and so on.
    pub async fn stateful_set(
        &self,
        namespace: &str,
        name: &str,
        replicas: i64,
        node: &str,
    ) -> Vec<VolumeNo> {
        self.stateful_set_with(namespace, name, replicas, node, |_| {})
            .await
    }

    /// The same, changed as the test likes.
    pub async fn stateful_set_with(
        &self,
        namespace: &str,
        name: &str,
        replicas: i64,
        node: &str,
        change: impl FnOnce(&mut Value),
    ) -> Vec<VolumeNo> {
        let mut volumes = Vec::new();
        for n in 0..replicas {
            volumes.push(
                self.bound_claim(namespace, &format!("data-{name}-{n}"))
                    .await,
            );
        }
        let mut object = manifests::stateful_set(namespace, name, replicas);
        pin(&mut object, node);
        change(&mut object);
        self.create(object).await;
        volumes
    }

    /// A workload's object.
    pub async fn workload(&self, namespace: &str, kind: &str, name: &str) -> DynamicObject {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.admin.clone(), namespace, &apps(kind));
        api.get(name).await.expect("the workload is there")
    }

    /// Its replicas and whether it carries an annotation of ours.
    pub async fn count(&self, namespace: &str, kind: &str, name: &str) -> (i64, bool) {
        let object = self.workload(namespace, kind, name).await;
        let stamped = object.annotations().keys().any(|k| k == STAMP_ANNOTATION);
        (
            object
                .data
                .pointer("/spec/replicas")
                .and_then(Value::as_i64)
                .unwrap_or(1),
            stamped,
        )
    }

    /// Everything of ours that is still somewhere: stamps, finalizers, questions to agents. Empty when all is well.
    pub async fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let own = |m: &ObjectMeta| {
            let of_another =
                |name: &Option<String>| name.as_ref().is_some_and(|n| self.is_name_of_another(n));
            !of_another(if m.namespace.is_some() {
                &m.namespace
            } else {
                &m.name
            })
        };
        for kind in ["Deployment", "StatefulSet", "ReplicaSet"] {
            let api: Api<DynamicObject> = Api::all_with(self.admin.clone(), &apps(kind));
            let list = api.list(&ListParams::default()).await.expect("listed");
            let marked = list
                .items
                .iter()
                .filter(|o| o.annotations().contains_key(STAMP_ANNOTATION));
            let marked = marked.filter(|o| own(&o.metadata));
            found.extend(marked.map(|o| format!("a stamp on {kind} {}", o.name_any())));
        }
        let recoveries: Api<VolumeRecovery> = Api::all(self.admin.clone());
        let all = recoveries
            .list(&ListParams::default())
            .await
            .expect("listed")
            .items;
        let list: Vec<_> = all.iter().filter(|r| own(&r.metadata)).collect();
        let labelled = list.iter().filter(|r| r.labels().contains_key(HOLD_LABEL));
        found.extend(
            labelled.map(|r| format!("the label of a hold on VolumeRecovery {}", r.name_any())),
        );
        let pods: Api<Pod> = Api::all(self.admin.clone());
        let pods = pods
            .list(&ListParams::default())
            .await
            .expect("listed")
            .items;
        for pod in pods.iter().filter(|p| own(&p.metadata)) {
            let mut gates = pod
                .spec
                .iter()
                .flat_map(|s| s.scheduling_gates.iter().flatten());
            found.extend(
                gates
                    .any(|g| g.name == HOLD_GATE)
                    .then(|| format!("a gate on pod {}", pod.name_any())),
            );
        }
        let held = list.iter().filter(|r| !r.finalizers().is_empty());
        found.extend(held.map(|r| format!("a finalizer on VolumeRecovery {}", r.name_any())));
        // A shared cluster's other stages may ask about this stage's nodes as little as this one may about theirs.
        let over = |uid: &str| {
            let of = list.iter().find(|r| r.uid().as_deref() == Some(uid));
            of.is_none_or(|r| r.status.as_ref().is_some_and(|s| s.phase.is_final()))
        };
        let reports: Api<NodeVolumeReport> = Api::all(self.admin.clone());
        let reports = reports
            .list(&ListParams::default())
            .await
            .expect("listed")
            .items;
        for report in reports.iter().filter(|r| own(&r.metadata)) {
            let asked = report
                .spec
                .challenges
                .iter()
                .map(|c| c.get().expect("it can be read"));
            let old = asked.filter(|c| over(c.recovery.as_str()));
            found.extend(
                old.map(|c| format!("a question of {} to {}", c.recovery, report.name_any())),
            );
        }
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let nodes = nodes
            .list(&ListParams::default())
            .await
            .expect("listed")
            .items;
        for node in nodes.iter().filter(|n| own(&n.metadata)) {
            let taints = node
                .spec
                .as_ref()
                .and_then(|s| s.taints.clone())
                .unwrap_or_default();
            let ours = taints.iter().filter(|t| t.key.contains("reattach.dev/"));
            found.extend(ours.map(|t| format!("taint {} on {}", t.key, node.name_any())));
        }
        found
    }

    /// Waits until nothing of ours is left.
    pub async fn await_nothing_left(&self) {
        let what = "nothing of ours left";
        let done = eventually(what, LIMIT, async || {
            self.leftovers().await.is_empty().then_some(())
        })
        .await;
        if done.is_err() {
            panic!("left behind: {:#?}", self.leftovers().await);
        }
    }

    /// The pods of a workload made by [`Stage::deployment`] or [`Stage::stateful_set`].
    pub async fn pods(&self, namespace: &str, app: &str) -> Vec<Pod> {
        let api: Api<Pod> = Api::namespaced(self.admin.clone(), namespace);
        api.list(&ListParams::default().labels(&format!("app={app}")))
            .await
            .map(|l| l.items)
            .unwrap_or_default()
    }

    /// Waits until `count` pods of a workload are Ready and no others are there.
    pub async fn await_ready(&self, namespace: &str, app: &str, count: usize) {
        let what = format!("{count} Ready pods of {namespace}/{app}");
        let done = eventually(&what, LIMIT, async || {
            let pods = self.pods(namespace, app).await;
            (pods.len() == count && pods.iter().all(is_ready)).then_some(())
        });
        if let Err(error) = done.await {
            let pods = self.pods(namespace, app).await;
            panic!(
                "{error}\n{}\n{}",
                serde_json::to_string_pretty(&pods).unwrap_or_default(),
                self.logs()
            );
        }
    }

    /// Waits until a pod of the workload is not Ready.
    pub async fn await_down(&self, namespace: &str, app: &str) {
        let what = format!("a stuck pod of {namespace}/{app}");
        let down = eventually(&what, LIMIT, async || {
            let pods = self.pods(namespace, app).await;
            pods.iter().any(|p| !is_ready(p)).then_some(())
        });
        down.await.expect("the node was recycled");
    }

    /// Waits until no pod of the workload is Ready.
    pub async fn await_all_down(&self, namespace: &str, app: &str) {
        let what = format!("none but stuck pods of {namespace}/{app}");
        let down = eventually(&what, LIMIT, async || {
            (!self.pods(namespace, app).await.iter().any(is_ready)).then_some(())
        });
        down.await.expect("the node was recycled");
    }

    /// Waits until the newest recovery of a claim is in one of these phases.
    pub async fn await_phase(
        &self,
        namespace: &str,
        claim: &str,
        phases: &[Phase],
    ) -> VolumeRecovery {
        let what = format!("{phases:?} for {namespace}/{claim}");
        let found = eventually(&what, LIMIT, async || {
            let mut all = self.recoveries(namespace).await;
            all.retain(|r| r.spec.claim_name == claim);
            let newest = all.pop()?;
            phases
                .contains(&newest.status.as_ref()?.phase)
                .then_some(newest)
        });
        match found.await {
            Ok(recovery) => recovery,
            Err(error) => {
                panic!("{error}\n{}\n{}", self.story(namespace).await, self.logs())
            }
        }
    }

    /// Where every recovery of a namespace stands, and what it did: for a failing test.
    pub async fn story(&self, namespace: &str) -> String {
        let mut lines = Vec::new();
        for r in self.recoveries(namespace).await {
            let status = r.status.clone().unwrap_or_default();
            lines.push(format!(
                "{} of {}: {:?}: {}",
                r.name_any(),
                r.spec.claim_name,
                status.phase,
                status.message
            ));
            lines.extend(
                status
                    .diagnosis
                    .iter()
                    .filter_map(|d| d.get().ok())
                    .flat_map(|d| d.facts.iter().map(|f| format!("    fact: {f}"))),
            );
            let journal = status.journal.iter().filter_map(|e| e.get().ok());
            lines.extend(journal.map(|e| format!("    {} {:?}", e.at, e.event)));
        }
        lines.join("\n")
    }

    /// Patches an object as an administrator.
    pub async fn patch<K>(&self, api: &Api<K>, name: &str, body: Value)
    where
        K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        api.patch(name, &PatchParams::default(), &Patch::Merge(&body))
            .await
            .expect("patched");
    }
}

fn apps(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", kind))
}

/// Binds a workload's pods to a node by a node selector.
pub fn pin(object: &mut Value, node: &str) {
    object["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
}

/// Makes a workload's pods prefer the first of these nodes, and run on the others where they must.
pub fn prefer(object: &mut Value, nodes: &[&str]) {
    let within = |values: &[&str]| json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": values}]});
    object["spec"]["template"]["spec"]["affinity"] = json!({"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [within(nodes)]},
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": within(&nodes[..1])}],
    }});
    object["spec"]["template"]["spec"]
        .as_object_mut()
        .expect("a pod")
        .remove("nodeSelector");
}

/// Whether a pod's condition Ready is True.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}
