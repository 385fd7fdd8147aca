//! Which claims are looked at: what events, pods and agents' reports hint at. A hint nominates and decides nothing.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use reattach_api::NodeVolumeReport;
use reattach_cluster::cache::Cache;
use reattach_cluster::view::claims_of;
use reattach_cluster::{facts, node};
use reattach_core::ids::{ObjectName, Uid};
use reattach_core::plain;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A claim to look at, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nominee {
    /// The claim.
    pub claim: ObjectName,
    /// The pod that led to it.
    pub pod: ObjectName,
    /// The hint in words.
    pub why: String,
}

/// Event reasons that a volume that cannot be attached or mounted leaves (Kubernetes `pkg/kubelet/events/event.go`).
const REASONS: [&str; 3] = ["FailedMount", "FailedAttachVolume", "FailedMapVolume"];

/// A detach takes seconds; Linode's CSI driver waits up to 5 min for one, so that this is no sign of trouble yet but worth
/// a look.
const GOING_FOR_LONG: SignedDuration = SignedDuration::from_secs(60);

/// Maximum length of a hint, in characters: with the policy's name before it it is the reason of a recovery.
const WHY_CHARS: usize = 700;

/// Every claim that a hint points at, once, sorted.
pub fn nominees(cache: &Cache) -> Vec<Nominee> {
    let pods = cache.pods.filter(|p| !claims_of(p).is_empty() && !finished(p));
    let events = cache.events.filter(|e| e.reason.as_deref().is_some_and(|r| REASONS.contains(&r)));
    let by_pod: BTreeMap<(ObjectName, Uid), Arc<Event>> =
        events.into_iter().filter_map(|e| Some((facts::pod_of(&e)?, e))).collect();
    let dead = dead_handles(&cache.reports.filter(|_| true));
    let records = troubled_records(cache);
    let mut found = BTreeMap::new();
    for pod in pods {
        let why = hint(cache, &pod, &by_pod, &dead);
        let namespace = pod.namespace().unwrap_or_default();
        for claim in claims_of(&pod) {
            if names_what_it_is_not_bound_to(cache, &namespace, &claim) {
                continue;
            }
            let of_the_volume = || {
                let claim = cache.claims.get(&namespace, &claim)?;
                records.get(claim.spec.as_ref()?.volume_name.as_deref()?).cloned()
            };
            let Some(why) = why.clone().or_else(|| of_the_volume().filter(|_| !is_ready(&pod))) else {
                continue;
            };
            let claim = ObjectName::new(namespace.as_str(), claim);
            let pod = ObjectName::new(namespace.as_str(), pod.name_any());
            let why = plain::sentence(&why, WHY_CHARS);
            found.entry(claim.clone()).or_insert(Nominee { claim, pod, why });
        }
    }
    found.into_values().collect()
}

/// Whether the claim names a PersistentVolume that Kubernetes has not bound to it: anybody who may create a claim can
/// name any volume in it, and whatever its pods wait for is no trouble of that volume.
fn names_what_it_is_not_bound_to(cache: &Cache, namespace: &str, claim: &str) -> bool {
    let Some(claim) = cache.claims.get(namespace, claim) else { return false };
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| !n.is_empty());
    named.is_some_and(|name| !facts::is_bound(&claim, cache.volumes.get("", &name).as_deref()))
}

fn hint(
    cache: &Cache,
    pod: &Pod,
    events: &BTreeMap<(ObjectName, Uid), Arc<Event>>,
    dead: &BTreeSet<(String, String)>,
) -> Option<String> {
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    if is_ready(pod) {
        // Kubernetes is content with such a pod and emits nothing: only the agent sees that its mount is dead.
        let on_dead_mount = dead.iter().any(|(n, uid)| *n == node && pod.uid().as_ref() == Some(uid));
        return on_dead_mount.then(|| format!("the agent on {node} sees a dead mount under a Ready pod"));
    }
    let name = ObjectName::new(pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(event) = pod.uid().and_then(|u| events.get(&(name, Uid::from(u)))) {
        return Some(format!(
            "{}: {}",
            event.reason.as_deref().unwrap_or("event"),
            event.message.as_deref().unwrap_or("")
        ));
    }
    (!node.is_empty() && !lives(cache, &node)).then(|| format!("node {node} is not Ready or does not exist"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn lives(cache: &Cache, node: &str) -> bool {
    cache.nodes.get("", node).is_some_and(|n| node::is_ready(&n))
}

/// What is wrong with a VolumeAttachment of each PersistentVolume, as far as the record itself shows it. Kubernetes says
/// so in an Event once, if at all, and Events go after an hour.
fn troubled_records(cache: &Cache) -> BTreeMap<String, String> {
    let now = cache.as_of();
    let trouble = |a: &VolumeAttachment| {
        let (name, node) = (a.name_any(), &a.spec.node_name);
        let status = a.status.as_ref();
        let error = status.and_then(|s| s.detach_error.as_ref().or(s.attach_error.as_ref()));
        if !lives(cache, node) {
            return Some(format!(
                "VolumeAttachment {name} names node {node}, which is not Ready or does not exist"
            ));
        }
        if let Some(error) = error {
            let said = error.message.as_deref().unwrap_or("no message");
            return Some(format!("VolumeAttachment {name}: {said}"));
        }
        let since = a.metadata.deletion_timestamp.as_ref().map(|t| now.duration_since(t.0));
        since
            .filter(|d| *d > GOING_FOR_LONG)
            .map(|d| format!("VolumeAttachment {name} has been going for {} s", d.as_secs()))
    };
    let all = cache.attachments.filter(|_| true);
    let found = all.iter().filter_map(|a| {
        let volume = a.spec.source.persistent_volume_name.clone()?;
        Some((volume, trouble(a)?))
    });
    found.collect()
}

fn finished(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed")
}

/// Node and pod UID of every dead mount that an agent reports.
fn dead_handles(reports: &[Arc<NodeVolumeReport>]) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for report in reports {
        let inventory = report.said().ok().and_then(|said| said.inventory);
        for volume in inventory.iter().flat_map(|i| &i.csi_volumes) {
            if volume.mounts.iter().any(|m| m.dead) {
                found.extend(volume.pods.iter().map(|uid| (report.name_any(), uid.to_string())));
            }
        }
    }
    found
}
