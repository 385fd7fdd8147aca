//! Workloads with volumes, and waiting for them.

use super::{LIMIT, Stage};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use reattach_api::{Phase, VolumeRecovery};
use reattach_cloud_simulator::VolumeNo;
use reattach_sim::manifests;
use reattach_tests_controlplane::eventually;
use serde_json::{Value, json};

impl Stage {
    /// A namespace.
    pub async fn namespace(&self, name: &str) {
        let api: Api<Namespace> = Api::all(self.admin.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": name}})).expect("a namespace");
        api.create(&PostParams::default(), &object).await.expect("created");
        self.plane.await_namespace(name).await.expect("its ServiceAccount");
    }

    /// A bound claim over a new cloud volume.
    pub async fn bound_claim(&self, namespace: &str, claim: &str) -> VolumeNo {
        let label = format!("pvc{namespace}{claim}").replace('-', "");
        let (volume, handle) = self.volume(&label[..label.len().min(32)]);
        let pv = format!("pv-{namespace}-{claim}");
        let volumes: Api<PersistentVolume> = Api::all(self.admin.clone());
        let object = serde_json::from_value(manifests::linode_volume(&pv, &handle, "ext4", namespace, claim)).expect("a PV");
        volumes.create(&PostParams::default(), &object).await.expect("created");
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.admin.clone(), namespace);
        let object = serde_json::from_value(manifests::claim(namespace, claim, &pv)).expect("a claim");
        claims.create(&PostParams::default(), &object).await.expect("created");
        volume
    }

    /// A single-replica Deployment with one volume on `node`; its claim has the same name.
    pub async fn deployment(&self, namespace: &str, name: &str, node: &str) -> VolumeNo {
        let volume = self.bound_claim(namespace, name).await;
        let mut object = manifests::deployment(namespace, name, 1, &[manifests::claim_volume("data", name)]);
        pin(&mut object, node);
        self.create(object).await;
        volume
    }

    /// A StatefulSet; the claims are `data-NAME-0` and so on.
    pub async fn stateful_set(&self, namespace: &str, name: &str, replicas: i64, node: &str) -> Vec<VolumeNo> {
        let mut volumes = Vec::new();
        for n in 0..replicas {
            volumes.push(self.bound_claim(namespace, &format!("data-{name}-{n}")).await);
        }
        let mut object = manifests::stateful_set(namespace, name, replicas);
        pin(&mut object, node);
        self.create(object).await;
        volumes
    }

    /// The pods of a workload made by [`Stage::deployment`] or [`Stage::stateful_set`].
    pub async fn pods(&self, namespace: &str, app: &str) -> Vec<Pod> {
        let api: Api<Pod> = Api::namespaced(self.admin.clone(), namespace);
        api.list(&ListParams::default().labels(&format!("app={app}"))).await.map(|l| l.items).unwrap_or_default()
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
            panic!("{error}\n{}\n{}", serde_json::to_string_pretty(&pods).unwrap_or_default(), self.logs());
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

    /// Waits until the newest recovery of a claim is in one of these phases.
    pub async fn await_phase(&self, namespace: &str, claim: &str, phases: &[Phase]) -> VolumeRecovery {
        let what = format!("{phases:?} for {namespace}/{claim}");
        let found = eventually(&what, LIMIT, async || {
            let mut all = self.recoveries(namespace).await;
            all.retain(|r| r.spec.claim_name == claim);
            all.sort_by_key(|r| r.creation_timestamp());
            let newest = all.pop()?;
            phases.contains(&newest.status.as_ref()?.phase).then_some(newest)
        });
        match found.await {
            Ok(recovery) => recovery,
            Err(error) => {
                let all = self.recoveries(namespace).await;
                panic!("{error}\n{}\n{}", serde_json::to_string_pretty(&all).unwrap_or_default(), self.logs())
            }
        }
    }

    /// Patches an object as an administrator.
    pub async fn patch<K>(&self, api: &Api<K>, name: &str, body: Value)
    where
        K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        api.patch(name, &PatchParams::default(), &Patch::Merge(&body)).await.expect("patched");
    }
}

/// Binds a workload's pods to a node by a node selector.
fn pin(object: &mut Value, node: &str) {
    object["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
}

/// Whether a pod's condition Ready is True.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}
