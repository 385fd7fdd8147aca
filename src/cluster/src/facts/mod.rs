//! From Kubernetes objects to facts. Pure.

mod objects;

use crate::view::View;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use reattach_api::OPT_OUT_ANNOTATION;
use reattach_api::metadata::{self, MissingField};
use reattach_core::evidence::{ClaimFacts, ClaimPhase, EventFacts, Evidence, NodeFacts};
use reattach_core::fact::{Fact, Source};
use reattach_core::guest::{Answer, GuestInventory};
use reattach_core::identity::binding;
use reattach_core::ids::{InstanceId, NodeName, ObjectName, Uid};
use std::collections::BTreeMap;

pub(crate) use objects::{KURED_ANNOTATION, node};
pub use objects::{claim, claim_ref, pod, pod_of, volume};

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
    let opted_out = view
        .namespace
        .as_ref()
        .and_then(|n| opt_out(n.metadata.annotations.as_ref(), "the namespace"));
    let claim = view.claim.as_ref().map(|c| {
        let facts = objects::claim(c)?;
        Ok(ClaimFacts {
            opted_out: facts.opted_out.or(opted_out),
            ..facts
        })
    });
    let volume = view
        .volume
        .as_ref()
        .map(|v| objects::volume(v, view.driver.as_deref()));
    let pods: Result<Vec<_>, _> = view
        .pods_of(&name.name)
        .into_iter()
        .map(|p| objects::pod(p))
        .collect();
    let attachments: Result<Vec<_>, _> = view
        .attachments
        .iter()
        .map(|a| objects::attachment(a))
        .collect();
    let attachments = attachments.map(|mut all| {
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    });
    let own = |e: &EventFacts| pods.iter().flatten().any(|p| p.name == e.pod);
    let mut events: Vec<_> = view
        .events
        .iter()
        .filter_map(|e| objects::event(e))
        .filter(own)
        .collect();
    events.sort_by_key(|e| e.last_seen);
    let unknown_cloud = || Source::Cloud("none".to_owned());
    Evidence {
        collected_at: at,
        claim_name: name.clone(),
        claim: fact(claim, api("PersistentVolumeClaim"), at),
        volume: fact(volume, api("PersistentVolume"), at),
        attachments: fact(Some(attachments), api("VolumeAttachments"), at),
        pods: fact(Some(pods), api("Pods"), at),
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
        budgets: None,
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

/// What a read says. An object that lacks what the API server sets on every object is no fact: an empty UID would equal the
/// empty UID of another object.
fn fact<T>(read: Option<Result<T, MissingField>>, source: Source, at: Timestamp) -> Fact<T> {
    match read {
        Some(Ok(value)) => Fact::present(value, source, at),
        Some(Err(missing)) => Fact::unknown(missing.to_string(), source, at),
        None => Fact::absent(source, at),
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
///
/// # Errors
/// One of the two lacks what every stored object has.
pub fn is_bound(
    claim: &PersistentVolumeClaim,
    volume: Option<&PersistentVolume>,
) -> Result<bool, MissingField> {
    let name = metadata::of(claim).object_name()?;
    let claim = objects::claim(claim)?;
    Ok(match volume {
        Some(volume) => binding(&name, &claim, &objects::volume(volume, None)?).is_ok(),
        None => claim.volume_name.is_some() && claim.phase != ClaimPhase::Pending,
    })
}

/// Names and UIDs of pods, sorted.
///
/// # Errors
/// A pod lacks one of the two.
pub fn names<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
) -> Result<Vec<(ObjectName, Uid)>, MissingField> {
    let name = |p: &Pod| {
        let meta = metadata::of(p);
        Ok((meta.object_name()?, meta.uid()?))
    };
    let mut names: Vec<_> = pods.into_iter().map(name).collect::<Result<_, _>>()?;
    names.sort();
    Ok(names)
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
    let mut nodes = BTreeMap::new();
    for (name, node) in &view.nodes {
        let lease = view.leases.get(name).map(AsRef::as_ref);
        let csi_node = view.csi_nodes.get(name).map(AsRef::as_ref);
        let facts = node
            .as_ref()
            .map(|node| self::node(node, lease, csi_node, resolve));
        let source = Source::Kubernetes(format!("Node {name}"));
        nodes.insert(NodeName::from(name.as_str()), fact(facts, source, at));
    }
    nodes
}

fn guests(view: &View, at: Timestamp) -> BTreeMap<NodeName, Fact<GuestInventory>> {
    let mut guests = BTreeMap::new();
    for name in view.nodes.keys() {
        let source = Source::Agent(name.clone());
        let said = view.reports.get(name).map(|r| r.said()).transpose();
        let fact = match said.map(|s| s.and_then(|s| s.inventory.cloned())) {
            Ok(Some(inventory)) => Fact::present(inventory, source, at),
            Ok(None) => Fact::absent(source, at),
            Err(why) => Fact::unknown(format!("NodeVolumeReport {name}: {why}"), source, at),
        };
        guests.insert(NodeName::from(name.as_str()), fact);
    }
    guests
}

fn answers(view: &View, asked: Option<&(Uid, u64)>) -> BTreeMap<NodeName, Answer> {
    let mut answers = BTreeMap::new();
    let Some((recovery, epoch)) = asked else {
        return answers;
    };
    for (name, report) in &view.reports {
        // What cannot be read is no answer.
        let given = report.said().map(|said| said.answers).unwrap_or_default();
        let own = given
            .iter()
            .find(|a| a.recovery == *recovery && a.epoch == *epoch);
        if let Some(own) = own {
            answers.insert(NodeName::from(name.as_str()), (*own).clone());
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use reattach_core::fact::Known;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn meta(name: &str) -> Value {
        json!({"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": "1"})
    }

    fn pod(metadata: Value) -> Arc<Pod> {
        let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}});
        Arc::new(object(json!({
            "metadata": metadata,
            "spec": {"containers": [], "nodeName": "n", "volumes": [volume]},
        })))
    }

    fn without(mut metadata: Value, field: &str) -> Value {
        metadata.as_object_mut().unwrap().remove(field);
        metadata
    }

    fn seen(view: &View) -> Evidence {
        let claim = ObjectName::new("shop", "data");
        evidence(&claim, view, None, &|_| None, Timestamp::UNIX_EPOCH)
    }

    fn why<T: std::fmt::Debug>(fact: &Fact<T>) -> &str {
        match &fact.value {
            Known::Unknown { why } | Known::Away { why } => why,
            other => panic!("{other:?} is an answer"),
        }
    }

    #[test]
    fn an_object_without_a_uid_is_no_fact() {
        let node = object(json!({"metadata": without(meta("n"), "uid")}));
        let attachment = json!({
            "metadata": without(meta("csi-1"), "uid"),
            "spec": {"attacher": "csi", "nodeName": "n", "source": {"persistentVolumeName": "pv"}},
        });
        let view = View {
            claim: Some(Arc::new(object(
                json!({"metadata": without(meta("data"), "uid")}),
            ))),
            volume: Some(Arc::new(object(
                json!({"metadata": {"name": "pv", "uid": ""}}),
            ))),
            pods: vec![pod(without(meta("db-0"), "uid"))],
            attachments: vec![Arc::new(object(attachment))],
            nodes: BTreeMap::from([("n".to_owned(), Some(Arc::new(node)))]),
            ..View::default()
        };
        let seen = seen(&view);
        assert_eq!(
            why(&seen.claim),
            "PersistentVolumeClaim shop/data has no UID"
        );
        assert_eq!(why(&seen.volume), "PersistentVolume pv has no UID");
        assert_eq!(why(&seen.pods), "Pod shop/db-0 has no UID");
        assert_eq!(
            why(&seen.attachments),
            "VolumeAttachment shop/csi-1 has no UID"
        );
        assert_eq!(why(&seen.nodes[&"n".into()]), "Node shop/n has no UID");
    }

    #[test]
    fn one_pod_without_a_uid_leaves_all_pods_unknown() {
        let whole = pod(meta("db-0"));
        let mut view = View {
            pods: vec![whole.clone()],
            ..View::default()
        };
        assert_eq!(seen(&view).pods.shown().map(Vec::len), Some(1));
        view.pods.push(pod(without(meta("db-1"), "uid")));
        assert_eq!(why(&seen(&view).pods), "Pod shop/db-1 has no UID");
        let refused = names([&*whole, &*view.pods[1]]).unwrap_err();
        assert_eq!(refused.to_string(), "Pod shop/db-1 has no UID");
    }

    #[test]
    fn an_attachment_without_a_version_is_no_fact() {
        let view = View {
            attachments: vec![Arc::new(object(json!({
                "metadata": {"name": "csi-1", "uid": "u"},
                "spec": {"attacher": "csi", "nodeName": "n", "source": {}},
            })))],
            ..View::default()
        };
        assert_eq!(
            why(&seen(&view).attachments),
            "VolumeAttachment csi-1 has no resourceVersion"
        );
    }

    #[test]
    fn a_claim_ref_without_a_namespace_is_no_fact() {
        let volume: PersistentVolume = object(json!({
            "metadata": {"name": "pv", "uid": "u"},
            "spec": {"claimRef": {"name": "data"}},
        }));
        let view = View {
            volume: Some(Arc::new(volume)),
            ..View::default()
        };
        assert_eq!(
            why(&seen(&view).volume),
            "PersistentVolume pv has no claimRef.namespace"
        );
    }
}
