//! From Kubernetes objects to facts. Pure.

mod objects;

use crate::view::View;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use reattach_api::OPT_OUT_ANNOTATION;
use reattach_core::evidence::{ClaimFacts, Evidence, NodeFacts};
use reattach_core::fact::{Fact, Source};
use reattach_core::identity::{ClaimPhase, binding};
use reattach_core::ids::{InstanceId, NodeName, ObjectName, Uid};
use std::collections::BTreeMap;

pub use objects::{claim, pod, pod_of, volume};

/// How a provider reads `spec.providerID`.
pub type ResolveInstance<'a> = &'a dyn Fn(&str) -> Option<InstanceId>;

/// Fills the Kubernetes part of the evidence; the workload and the cloud are still unknown afterwards.
pub fn evidence(
    name: &ObjectName,
    view: &View,
    asked: Option<(Uid, u64)>,
    resolve: ResolveInstance<'_>,
    at: Timestamp,
) -> Evidence {
    let api = |what: &str| Source::Kubernetes(what.to_owned());
    let optional = |value: Option<ClaimFacts>, what: &str| match value {
        Some(v) => Fact::present(v, api(what), at),
        None => Fact::absent(api(what), at),
    };
    let opted_out = view
        .namespace
        .as_ref()
        .and_then(|n| opt_out(n.metadata.annotations.as_ref(), "the namespace"));
    let claim = view.claim.as_ref().map(|c| {
        let mut facts = objects::claim(c);
        facts.opted_out = facts.opted_out.or(opted_out.clone());
        facts
    });
    let volume = view
        .volume
        .as_ref()
        .map(|v| objects::volume(v, view.driver.as_deref()));
    let pods: Vec<_> = view
        .pods_of(&name.name)
        .into_iter()
        .map(|p| objects::pod(p))
        .collect();
    let mut attachments: Vec<_> = view
        .attachments
        .iter()
        .map(|a| objects::attachment(a))
        .collect();
    attachments.sort_by(|a, b| a.name.cmp(&b.name));
    let mut events: Vec<_> = view
        .events
        .iter()
        .filter_map(|e| objects::event(e))
        .filter(|e| pods.iter().any(|p| p.name == e.pod))
        .collect();
    events.sort_by_key(|e| e.last_seen);
    let unknown_cloud = || Source::Cloud("none".to_owned());
    Evidence {
        collected_at: at,
        claim_name: name.clone(),
        claim: optional(claim, "PersistentVolumeClaim"),
        volume: match volume {
            Some(v) => Fact::present(v, api("PersistentVolume"), at),
            None => Fact::absent(api("PersistentVolume"), at),
        },
        attachments: Fact::present(attachments, api("VolumeAttachments"), at),
        pods: Fact::present(pods, api("Pods"), at),
        workload: Fact::unknown("it was not read", api("workload"), at),
        nodes: nodes(view, resolve, at),
        guests: guests(view, at),
        answers: answers(view, asked.as_ref()),
        asked,
        cloud_id: None,
        unreadable_handle: None,
        identity: Fact::unknown(
            "the handles of the cluster were not read",
            unknown_cloud(),
            at,
        ),
        machines: Fact::unknown(
            "the records of the nodes were not read",
            api("NodeVolumeReports"),
            at,
        ),
        cloud_volume: Fact::unknown("the cloud was not asked", unknown_cloud(), at),
        instances: BTreeMap::new(),
        power: BTreeMap::new(),
        cloud_scope: None,
        snapshots: None,
        jobs: Fact::unknown("the cloud was not asked", unknown_cloud(), at),
        orders_expire_after_seconds: None,
        hold_policy: None,
        node_pods: BTreeMap::new(),
        node_losses: BTreeMap::new(),
        sightings: Vec::new(),
        declaration: None,
        nothing_under_way: None,
        node_claims: BTreeMap::new(),
        down: None,
        mandate: None,
        events,
    }
}

/// Adds the Nodes of another view, with what their agents say.
pub fn add_nodes(
    evidence: &mut Evidence,
    view: &View,
    resolve: ResolveInstance<'_>,
    at: Timestamp,
) {
    evidence.nodes.extend(nodes(view, resolve, at));
    evidence.guests.extend(guests(view, at));
    evidence
        .answers
        .extend(answers(view, evidence.asked.as_ref()));
}

/// Whether the claim is bound to the PersistentVolume that it names, or was while that was there. `volume` is that
/// PersistentVolume, if it exists.
pub fn is_bound(claim: &PersistentVolumeClaim, volume: Option<&PersistentVolume>) -> bool {
    let name = ObjectName::new(claim.namespace().unwrap_or_default(), claim.name_any());
    let claim = objects::claim(claim);
    match volume {
        Some(volume) => binding(&name, &claim, &objects::volume(volume, None)).is_ok(),
        None => claim.volume_name.is_some() && claim.phase != ClaimPhase::Pending,
    }
}

/// Names and UIDs of pods, sorted.
pub fn names<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Vec<(ObjectName, Uid)> {
    let name = |p: &Pod| {
        let object = ObjectName::new(p.namespace().unwrap_or_default(), p.name_any());
        (object, Uid::from(p.uid().unwrap_or_default()))
    };
    let mut names: Vec<_> = pods.into_iter().map(name).collect();
    names.sort();
    names
}

/// The opt-out annotation, in words.
pub fn opt_out(annotations: Option<&BTreeMap<String, String>>, what: &str) -> Option<String> {
    let value = annotations?.get(OPT_OUT_ANNOTATION)?;
    (value != "false").then(|| what.to_owned())
}

fn nodes(
    view: &View,
    resolve: ResolveInstance<'_>,
    at: Timestamp,
) -> BTreeMap<NodeName, Fact<NodeFacts>> {
    let one = |(name, node): (
        &String,
        &Option<std::sync::Arc<k8s_openapi::api::core::v1::Node>>,
    )| {
        let source = Source::Kubernetes(format!("Node {name}"));
        let fact = match node {
            Some(node) => {
                let facts = objects::node(
                    node,
                    view.leases.get(name).map(AsRef::as_ref),
                    view.csi_nodes.get(name).map(AsRef::as_ref),
                    resolve,
                );
                Fact::present(facts, source, at)
            }
            None => Fact::absent(source, at),
        };
        (NodeName::from(name.as_str()), fact)
    };
    view.nodes.iter().map(one).collect()
}

fn guests(
    view: &View,
    at: Timestamp,
) -> BTreeMap<NodeName, Fact<reattach_core::guest::GuestInventory>> {
    let one = |name: &String| {
        let source = Source::Agent(name.clone());
        let said = view.reports.get(name).map(|r| r.said()).transpose();
        let fact = match said.map(|s| s.and_then(|s| s.inventory.cloned())) {
            Ok(Some(inventory)) => Fact::present(inventory, source, at),
            Ok(None) => Fact::absent(source, at),
            Err(why) => Fact::unknown(format!("NodeVolumeReport {name}: {why}"), source, at),
        };
        (NodeName::from(name.as_str()), fact)
    };
    view.nodes.keys().map(one).collect()
}

fn answers(
    view: &View,
    asked: Option<&(Uid, u64)>,
) -> BTreeMap<NodeName, reattach_core::guest::Answer> {
    let Some((recovery, epoch)) = asked else {
        return BTreeMap::new();
    };
    let find = |(name, report): (&String, &std::sync::Arc<reattach_api::NodeVolumeReport>)| {
        // What cannot be read is no answer.
        let answers = report.said().ok()?.answers;
        let own = answers
            .into_iter()
            .find(|a| a.recovery == *recovery && a.epoch == *epoch)?;
        Some((NodeName::from(name.as_str()), own.clone()))
    };
    view.reports.iter().filter_map(find).collect()
}
