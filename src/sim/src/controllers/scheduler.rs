//! The scheduler: gates, taints, selectors, volume limits; the node that has the volume first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::workload::{Controller, active};
use super::{Context, covers};
use crate::events::Recorder;
use crate::kapi::{Informer, code_of};
use crate::object::{
    claims_of, is_ready, items, name, namespace, pod_path, terminating, text, uid,
};
use crate::rng::Rng;

/// Unschedulable pods are tried again after this, or when something changed.
const AGAIN: Duration = Duration::from_secs(10);

struct Scheduler {
    c: Controller,
    pods: Informer,
    nodes: Informer,
    claims: Informer,
    volumes: Informer,
    csi_nodes: Informer,
    events: Recorder,
    rng: Rng,
    /// Last node of each volume: what makes the scheduler choose the old node again.
    last: BTreeMap<String, String>,
}

pub(super) async fn run(ctx: Context) {
    let mut c = Controller::new(ctx, "system:kube-scheduler");
    let mut scheduler = Scheduler {
        pods: c.follow("/api/v1/pods"),
        nodes: c.follow("/api/v1/nodes"),
        claims: c.follow("/api/v1/persistentvolumeclaims"),
        volumes: c.follow("/api/v1/persistentvolumes"),
        csi_nodes: c.follow("/apis/storage.k8s.io/v1/csinodes"),
        events: Recorder::new(
            c.kapi.clone(),
            c.ctx.server.clock(),
            "default-scheduler",
            "",
        ),
        rng: Rng::new(c.ctx.seed, "scheduler"),
        last: BTreeMap::new(),
        c,
    };
    let mut at = None;
    loop {
        scheduler.c.next(at).await;
        let result = scheduler.look().await;
        at = scheduler.c.after(result);
    }
}

fn tolerates(pod: &Value, taint: &Value) -> bool {
    items(pod, "/spec/tolerations").any(|t| {
        let effect = text(t, "/effect");
        covers(t, taint) && (effect.is_empty() || taint["effect"] == effect)
    })
}

impl Scheduler {
    fn volumes_of(&self, pod: &Value) -> Option<Vec<String>> {
        let claims = claims_of(pod).map(|(_, claim)| {
            let claim = self.claims.get(namespace(pod), &claim)?;
            let bound = text(&claim, "/status/phase") == "Bound" && !terminating(&claim);
            bound.then(|| text(&claim, "/spec/volumeName").to_owned())
        });
        claims.collect()
    }

    /// Why a node does not fit; `None`: it fits.
    fn misfit(&self, pod: &Value, volumes: &[String], node: &Value) -> Option<&'static str> {
        if !is_ready(node) {
            return Some("node(s) were not ready");
        }
        if node["spec"]["unschedulable"] == true {
            let cordon = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
            if !tolerates(pod, &cordon) {
                return Some("node(s) were unschedulable");
            }
        }
        let bad = |t: &Value| {
            matches!(text(t, "/effect"), "NoSchedule" | "NoExecute") && !tolerates(pod, t)
        };
        if items(node, "/spec/taints").any(bad) {
            return Some("node(s) had untolerated taint(s)");
        }
        let selector = pod["spec"]["nodeSelector"].as_object();
        if selector.is_some_and(|s| {
            s.iter()
                .any(|(k, v)| node["metadata"]["labels"][k.as_str()] != *v)
        }) {
            return Some("node(s) didn't match Pod's node affinity/selector");
        }
        if !volumes.is_empty() {
            let limit = self.csi_nodes.get("", name(node)).and_then(|n| {
                n.pointer("/spec/drivers/0/allocatable/count")
                    .and_then(Value::as_u64)
            });
            let mut used: Vec<String> = self
                .pods
                .all()
                .iter()
                .filter(|p| text(p, "/spec/nodeName") == name(node))
                .filter_map(|p| self.volumes_of(p))
                .flatten()
                .collect();
            used.extend(volumes.iter().cloned());
            used.sort();
            used.dedup();
            if limit.is_some_and(|l| used.len() as u64 > l) {
                return Some("node(s) exceed max volume count");
            }
        }
        None
    }

    async fn look(&mut self) -> Result<Option<Instant>, kube::Error> {
        for pod in self
            .pods
            .all()
            .iter()
            .filter(|p| !text(p, "/spec/nodeName").is_empty())
        {
            for volume in self.volumes_of(pod).into_iter().flatten() {
                self.last
                    .insert(volume, text(pod, "/spec/nodeName").to_owned());
            }
        }
        let mut waiting = false;
        for pod in self.pods.all() {
            let unbound = text(&pod, "/spec/nodeName").is_empty() && active(&pod);
            if !unbound || items(&pod, "/spec/schedulingGates").next().is_some() {
                continue;
            }
            waiting |= !self.place(&pod).await?;
        }
        Ok(waiting.then(|| Instant::now() + AGAIN))
    }

    /// Binds a pod; false when it fits nowhere.
    async fn place(&mut self, pod: &Arc<Value>) -> Result<bool, kube::Error> {
        let Some(volumes) = self.volumes_of(pod) else {
            self.tell(
                pod,
                "0 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
            )
            .await;
            return Ok(false);
        };
        let nodes = self.nodes.all();
        if volumes.iter().any(|v| self.volumes.get("", v).is_none()) {
            let (n, why) = (
                nodes.len(),
                "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
            );
            self.tell(pod, &format!("0/{n} nodes are available: {n} {why}."))
                .await;
            return Ok(false);
        }
        let mut misfits: BTreeMap<&str, usize> = BTreeMap::new();
        let mut fits = Vec::new();
        for node in &nodes {
            match self.misfit(pod, &volumes, node) {
                Some(why) => *misfits.entry(why).or_default() += 1,
                None => fits.push(name(node).to_owned()),
            }
        }
        if fits.is_empty() {
            let why: Vec<String> = misfits
                .iter()
                .map(|(why, n)| format!("{n} {why}"))
                .collect();
            let message = format!("0/{} nodes are available: {}.", nodes.len(), why.join(", "));
            self.tell(pod, &message).await;
            return Ok(false);
        }
        let old = volumes
            .iter()
            .filter_map(|v| self.last.get(v))
            .find(|n| fits.contains(n))
            .cloned();
        let node = match old {
            Some(node) => node,
            None => fits.swap_remove(self.rng.below(fits.len())),
        };
        let path = pod_path(pod);
        let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name(pod), "uid": uid(pod)},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
        match self.c.kapi.create(&format!("{path}/binding"), &body).await {
            Ok(_) => {}
            Err(e) if matches!(code_of(&e), 404 | 409) => return Ok(true),
            Err(e) => return Err(e),
        }
        if let Ok(Some(live)) = self.c.kapi.get(&path).await {
            self.pods.saw(&live).await;
        }
        let message = format!(
            "Successfully assigned {}/{} to {node}",
            namespace(pod),
            name(pod)
        );
        self.events.normal(pod, "Scheduled", &message).await;
        Ok(true)
    }

    async fn tell(&mut self, pod: &Value, message: &str) {
        self.events.warning(pod, "FailedScheduling", message).await;
    }
}
