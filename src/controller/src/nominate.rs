//! Which claims are looked at: what events, pods and agents' reports hint at. A hint nominates and decides nothing.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::{Resource, ResourceExt};
use reattach_api::NodeVolumeReport;
use reattach_cluster::cache::Cache;
use reattach_cluster::effects::node;
use reattach_cluster::facts;
use reattach_cluster::view::claims_of;
use reattach_core::ids::{ObjectName, Uid};
use reattach_core::plain;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
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
    /// Changes with each object that the hint and a look at the claim rest on.
    pub version: u64,
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
    let pods = cache
        .pods
        .named(|p| !finished(p) && !claims_of(p).is_empty());
    let events = cache
        .events
        .filter(|e| e.reason.as_deref().is_some_and(|r| REASONS.contains(&r)));
    let by_pod: BTreeMap<(ObjectName, Uid), Arc<Event>> = events
        .into_iter()
        .filter_map(|e| Some((facts::pod_of(&e)?, e)))
        .collect();
    let dead = dead_handles(&cache.reports.filter(|_| true));
    let mut records: BTreeMap<String, Vec<Arc<VolumeAttachment>>> = BTreeMap::new();
    for record in cache.attachments.filter(|_| true) {
        if let Some(volume) = record.spec.source.persistent_volume_name.clone() {
            records.entry(volume).or_default().push(record);
        }
    }
    let mut found: BTreeMap<ObjectName, Found> = BTreeMap::new();
    for (pod_name, pod) in pods {
        let namespace = pod_name.namespace.as_str();
        for claim in claims_of(&pod) {
            if names_what_it_is_not_bound_to(cache, namespace, &claim) {
                continue;
            }
            let of_the_volume = || {
                let claim = cache.claims.get(namespace, &claim)?;
                records.get(claim.spec.as_ref()?.volume_name.as_deref()?)
            };
            let event = event_of(&pod_name, &pod, &by_pod);
            let why = hint(cache, &pod, event, &dead).or_else(|| {
                let records = of_the_volume().filter(|_| !is_ready(&pod))?;
                records
                    .iter()
                    .rev()
                    .find_map(|record| trouble(cache, record))
            });
            let claim = ObjectName::new(namespace, claim);
            let found = found.entry(claim).or_default();
            hash_object(&*pod, &mut found.version);
            event
                .iter()
                .for_each(|event| hash_object(&***event, &mut found.version));
            pod.spec
                .as_ref()
                .and_then(|s| s.node_name.as_deref())
                .into_iter()
                .for_each(|n| hash_node(cache, n, &mut found.version));
            if let (None, Some(why)) = (&found.nominee, why) {
                found.nominee = Some((pod_name.clone(), why));
            }
        }
    }
    let nominee = |(claim, mut found): (ObjectName, Found)| {
        let (pod, why) = found.nominee?;
        if let Some(object) = cache.claims.get(&claim.namespace, &claim.name) {
            hash_object(&*object, &mut found.version);
            let volume = object
                .spec
                .as_ref()
                .and_then(|s| s.volume_name.as_deref())
                .unwrap_or_default();
            cache
                .volumes
                .get("", volume)
                .into_iter()
                .for_each(|v| hash_object(&*v, &mut found.version));
            for record in records.get(volume).into_iter().flatten() {
                hash_object(&**record, &mut found.version);
                hash_node(cache, &record.spec.node_name, &mut found.version);
            }
        }
        let why = plain::sentence(&why, WHY_CHARS);
        Some(Nominee {
            claim,
            pod,
            why,
            version: found.version.finish(),
        })
    };
    found.into_iter().filter_map(nominee).collect()
}

/// What was found about a claim so far.
#[derive(Default)]
struct Found {
    /// The pod that led to it, and the hint.
    nominee: Option<(ObjectName, String)>,
    version: DefaultHasher,
}

fn hash_object<K: Resource>(object: &K, version: &mut DefaultHasher) {
    (
        object.meta().uid.as_deref(),
        object.meta().resource_version.as_deref(),
    )
        .hash(version);
}

/// A Node, and what its agent says. A kubelet's heartbeat is no reason to look again.
fn hash_node(cache: &Cache, node: &str, version: &mut DefaultHasher) {
    (cache.nodes.change("", node), cache.reports.change("", node)).hash(version);
}

fn event_of<'a>(
    name: &ObjectName,
    pod: &Pod,
    events: &'a BTreeMap<(ObjectName, Uid), Arc<Event>>,
) -> Option<&'a Arc<Event>> {
    events.get(&(name.clone(), Uid::from(pod.uid()?)))
}

/// Whether the claim names a PersistentVolume that Kubernetes has not bound to it: anybody who may create a claim can
/// name any volume in it, and whatever its pods wait for is no trouble of that volume.
fn names_what_it_is_not_bound_to(cache: &Cache, namespace: &str, claim: &str) -> bool {
    let Some(claim) = cache.claims.get(namespace, claim) else {
        return false;
    };
    let named = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_name.clone())
        .filter(|n| !n.is_empty());
    named.is_some_and(|name| {
        let volume = cache.volumes.get("", &name);
        !facts::is_bound(&claim, volume.as_deref()).unwrap_or(false)
    })
}

fn hint(
    cache: &Cache,
    pod: &Pod,
    event: Option<&Arc<Event>>,
    dead: &BTreeSet<(String, String)>,
) -> Option<String> {
    let node = pod
        .spec
        .as_ref()
        .and_then(|s| s.node_name.clone())
        .unwrap_or_default();
    if is_ready(pod) {
        // Kubernetes is content with such a pod and emits nothing: only the agent sees that its mount is dead.
        let on_dead_mount = dead
            .iter()
            .any(|(n, uid)| *n == node && pod.uid().as_ref() == Some(uid));
        return on_dead_mount
            .then(|| format!("the agent on {node} sees a dead mount under a Ready pod"));
    }
    if let Some(event) = event {
        return Some(format!(
            "{}: {}",
            event.reason.as_deref().unwrap_or("event"),
            event.message.as_deref().unwrap_or("")
        ));
    }
    (!node.is_empty() && !lives(cache, &node))
        .then(|| format!("node {node} is not Ready or does not exist"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

fn lives(cache: &Cache, node: &str) -> bool {
    cache
        .nodes
        .get("", node)
        .is_some_and(|n| node::is_ready(&n))
}

/// What is wrong with a VolumeAttachment, as far as the record itself shows it. Kubernetes says so in an Event once, if at all,
/// and Events go after an hour.
fn trouble(cache: &Cache, a: &VolumeAttachment) -> Option<String> {
    let now = cache.as_of();
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
    let since = a
        .metadata
        .deletion_timestamp
        .as_ref()
        .map(|t| now.duration_since(t.0));
    since.filter(|d| *d > GOING_FOR_LONG).map(|d| {
        format!(
            "VolumeAttachment {name} has been going for {} s",
            d.as_secs()
        )
    })
}

fn finished(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .is_some_and(|p| p == "Succeeded" || p == "Failed")
}

/// Node and pod UID of every dead mount that an agent reports.
fn dead_handles(reports: &[Arc<NodeVolumeReport>]) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for report in reports {
        let inventory = report.said().ok().and_then(|said| said.inventory);
        for volume in inventory.iter().flat_map(|i| &i.csi_volumes) {
            if volume.mounts.iter().any(|m| m.dead) {
                found.extend(
                    volume
                        .pods
                        .iter()
                        .map(|uid| (report.name_any(), uid.to_string())),
                );
            }
        }
    }
    found
}
