//! Node lifecycle, taint eviction and pod garbage collection of kube-controller-manager.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::attach_detach::OUT_OF_SERVICE;
use super::workload::{Controller, delete_pod};
use super::{Context, covers};
use crate::clock::rfc3339;
use crate::kapi::{Informer, MERGE, STRATEGIC, code_of};
use crate::object::{condition, is_ready, items, name, pod_path, terminating, text, uid};

/// `--node-monitor-grace-period` of 1.32 and later.
const GRACE: Duration = Duration::from_secs(50);
/// `--node-monitor-period`.
const MONITOR: Duration = Duration::from_secs(5);
/// Pod garbage collection: its period, and how long a Node must be missing.
const POD_GC: Duration = Duration::from_secs(20);
const QUARANTINE: Duration = Duration::from_secs(40);
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

#[derive(Default)]
struct Memory {
    /// Last renewTime of each node's Lease, and when we saw it first.
    leases: BTreeMap<String, (String, Instant)>,
    /// Since when a pod's node has a NoExecute taint, by UID.
    tainted: BTreeMap<String, Instant>,
    next_eviction: Option<Instant>,
    missing: BTreeMap<String, Instant>,
    next_gc: Option<Instant>,
}

struct Caches {
    nodes: Informer,
    leases: Informer,
    pods: Informer,
}

pub(super) async fn run(ctx: Context) {
    let mut c = Controller::new(ctx, "system:serviceaccount:kube-system:node-controller");
    let caches = Caches {
        nodes: c.follow("/api/v1/nodes"),
        leases: c.follow("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"),
        pods: c.follow("/api/v1/pods"),
    };
    let mut memory = Memory::default();
    let mut at = None;
    loop {
        c.next(at).await;
        at = c.after(look(&c, &caches, &mut memory).await);
    }
}

async fn look(
    c: &Controller,
    caches: &Caches,
    memory: &mut Memory,
) -> Result<Option<Instant>, kube::Error> {
    let now = Instant::now();
    for node in caches.nodes.all() {
        let lease = caches.leases.get("kube-node-lease", name(&node));
        let renewed = lease
            .as_ref()
            .map_or("", |l| text(l, "/spec/renewTime"))
            .to_owned();
        let seen = memory
            .leases
            .entry(name(&node).to_owned())
            .or_insert_with(|| (renewed.clone(), now));
        if seen.0 != renewed {
            *seen = (renewed, now);
        }
        let silent = now.duration_since(seen.1) >= GRACE;
        if silent && condition(&node, "Ready") != "Unknown" {
            declare_unknown(c, &node, caches).await?;
        }
        taint(c, &node).await?;
    }
    evict(c, caches, memory, now).await?;
    if memory.next_gc.is_none_or(|at| now >= at) {
        memory.next_gc = Some(now + POD_GC);
        collect(c, caches, memory, now).await?;
    }
    Ok(Some(
        memory
            .next_eviction
            .unwrap_or(now + MONITOR)
            .min(now + MONITOR),
    ))
}

/// Ready becomes Unknown, and the node's pods unready.
async fn declare_unknown(c: &Controller, node: &Value, caches: &Caches) -> Result<(), kube::Error> {
    let at = rfc3339(c.ctx.now());
    let body = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status.", "lastTransitionTime": at}]}});
    let written = c
        .kapi
        .patch(
            &format!("/api/v1/nodes/{}/status", name(node)),
            STRATEGIC,
            &body,
        )
        .await?;
    caches.nodes.saw(&written).await;
    for pod in caches
        .pods
        .all()
        .iter()
        .filter(|p| text(p, "/spec/nodeName") == name(node))
    {
        if !is_ready(pod) {
            continue;
        }
        let body = json!({"metadata": {"uid": uid(pod)}, "status": {"conditions": [
            {"type": "Ready", "status": "False", "lastTransitionTime": at}]}});
        let path = format!("{}/status", pod_path(pod));
        match c.kapi.patch(&path, STRATEGIC, &body).await {
            Err(e) if !matches!(code_of(&e), 404 | 409 | 422) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Keeps the taints equal to the Ready condition; other taints stay.
async fn taint(c: &Controller, node: &Value) -> Result<(), kube::Error> {
    let key = match condition(node, "Ready") {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    let is_ours = |t: &Value| t["key"] == UNREACHABLE || t["key"] == NOT_READY;
    let have: Vec<&Value> = items(node, "/spec/taints").filter(|t| is_ours(t)).collect();
    let right = match key {
        None => have.is_empty(),
        Some(key) => have.len() == 2 && have.iter().all(|t| t["key"] == key),
    };
    if right {
        return Ok(());
    }
    let at = rfc3339(c.ctx.now());
    let mut taints: Vec<Value> = items(node, "/spec/taints")
        .filter(|t| !is_ours(t))
        .cloned()
        .collect();
    if let Some(key) = key {
        taints.push(json!({"key": key, "effect": "NoSchedule", "timeAdded": at}));
        taints.push(json!({"key": key, "effect": "NoExecute", "timeAdded": at}));
    }
    let body = json!({"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": taints}});
    match c
        .kapi
        .patch(&format!("/api/v1/nodes/{}", name(node)), MERGE, &body)
        .await
    {
        // A conflict: the watch triggers the next attempt.
        Err(e) if code_of(&e) != 409 => Err(e),
        _ => Ok(()),
    }
}

/// How long a pod tolerates a NoExecute taint; `None`: for ever.
fn toleration(pod: &Value, taint: &Value) -> Option<Duration> {
    let matching = items(pod, "/spec/tolerations")
        .filter(|t| covers(t, taint) && matches!(text(t, "/effect"), "" | "NoExecute"));
    let mut longest = Some(Duration::ZERO);
    for t in matching {
        match t["tolerationSeconds"].as_i64() {
            None => return None,
            Some(s) => {
                longest = longest.max(Some(Duration::from_secs(u64::try_from(s).unwrap_or(0))))
            }
        }
    }
    longest
}

async fn evict(
    c: &Controller,
    caches: &Caches,
    memory: &mut Memory,
    now: Instant,
) -> Result<(), kube::Error> {
    let mut kept = BTreeMap::new();
    memory.next_eviction = None;
    for pod in caches.pods.all() {
        let Some(node) = caches.nodes.get("", text(&pod, "/spec/nodeName")) else {
            continue;
        };
        let taints: Vec<&Value> = items(&node, "/spec/taints")
            .filter(|t| t["effect"] == "NoExecute")
            .collect();
        if taints.is_empty() || terminating(&pod) {
            continue;
        }
        let since = *memory.tainted.get(uid(&pod)).unwrap_or(&now);
        kept.insert(uid(&pod).to_owned(), since);
        let Some(patience) = taints.iter().filter_map(|t| toleration(&pod, t)).min() else {
            continue;
        };
        let at = since + patience;
        if at > now {
            memory.next_eviction = Some(memory.next_eviction.map_or(at, |n| n.min(at)));
            continue;
        }
        delete_pod(&c.kapi, &pod, json!({})).await?;
    }
    memory.tainted = kept;
    Ok(())
}

/// Force-deletes pods of missing nodes, and terminating pods of nodes that are declared out of service.
async fn collect(
    c: &Controller,
    caches: &Caches,
    memory: &mut Memory,
    now: Instant,
) -> Result<(), kube::Error> {
    let mut missing = BTreeMap::new();
    for pod in caches.pods.all() {
        let node_name = text(&pod, "/spec/nodeName");
        if node_name.is_empty() {
            continue;
        }
        let doomed = match caches.nodes.get("", node_name) {
            None => {
                let since = *memory.missing.get(node_name).unwrap_or(&now);
                missing.insert(node_name.to_owned(), since);
                now.duration_since(since) >= QUARANTINE
            }
            Some(node) => {
                let declared = items(&node, "/spec/taints").any(|t| t["key"] == OUT_OF_SERVICE);
                declared && terminating(&pod) && !is_ready(&node)
            }
        };
        if doomed {
            delete_pod(&c.kapi, &pod, json!({"gracePeriodSeconds": 0})).await?;
        }
    }
    memory.missing = missing;
    Ok(())
}
