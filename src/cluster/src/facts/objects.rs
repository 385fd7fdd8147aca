//! One conversion per kind.

use super::{ResolveInstance, opt_out};
use crate::effects::node::{is_out_of_service_by_us, is_quarantined, is_ready};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ContainerStatus, Event, Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
    Pod,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use reattach_api::MAINTENANCE_ANNOTATION;
use reattach_api::metadata::{self, Field, MissingField};
use reattach_core::evidence::{
    AccessMode, AttachmentFacts, ClaimFacts, ClaimPhase, ClaimRef, CsiSource, EventFacts,
    NodeFacts, OwnerFacts, PodFacts, VolumeFacts,
};
use reattach_core::identity::TAGGED_AS_ANNOTATION;
use reattach_core::ids::{BootId, DriverName, NodeName, ObjectName, PvName, Uid, VolumeHandle};
use reattach_core::plain;
use std::collections::{BTreeMap, BTreeSet};

/// Maximum length of a message of others in the evidence, in characters. Tenants write Events, and drivers the errors of
/// VolumeAttachments.
const MESSAGE_CHARS: usize = 4_096;

/// Maximum length of a word of others in the evidence, in characters.
const WORD_CHARS: usize = 253;

/// kured's annotation on a Node that it reboots (kubereboot/kured, `KuredRebootInProgressAnnotation`).
pub(crate) const KURED_ANNOTATION: &str = "weave.works/kured-reboot-in-progress";

/// A PersistentVolumeClaim.
///
/// # Errors
/// The object has no UID.
pub fn claim(c: &PersistentVolumeClaim) -> Result<ClaimFacts, MissingField> {
    let spec = c.spec.clone().unwrap_or_default();
    Ok(ClaimFacts {
        uid: metadata::of(c).uid()?,
        access_modes: spec
            .access_modes
            .unwrap_or_default()
            .iter()
            .filter_map(|m| access_mode(m))
            .collect(),
        phase: match c.status.as_ref().and_then(|s| s.phase.as_deref()) {
            Some("Bound") => ClaimPhase::Bound,
            Some("Lost") => ClaimPhase::Lost,
            _ => ClaimPhase::Pending,
        },
        volume_name: spec.volume_name.filter(|n| !n.is_empty()).map(PvName::from),
        deleting: c.metadata.deletion_timestamp.is_some(),
        owners: c.owner_references().iter().map(owner).collect(),
        opted_out: opt_out(
            c.metadata.annotations.as_ref(),
            &format!("claim {}", c.name_any()),
        ),
        storage_class: spec.storage_class_name,
        labels: c.metadata.labels.clone().unwrap_or_default(),
    })
}

fn access_mode(word: &str) -> Option<AccessMode> {
    Some(match word {
        "ReadWriteOnce" => AccessMode::ReadWriteOnce,
        "ReadWriteOncePod" => AccessMode::ReadWriteOncePod,
        "ReadOnlyMany" => AccessMode::ReadOnlyMany,
        // A word of a later Kubernetes version is treated as the least safe one.
        _ => AccessMode::ReadWriteMany,
    })
}

pub(crate) fn owner(o: &OwnerReference) -> OwnerFacts {
    OwnerFacts {
        api_version: o.api_version.clone(),
        kind: o.kind.clone(),
        name: o.name.clone(),
        uid: Uid::from(o.uid.as_str()),
    }
}

/// A PersistentVolume with its CSIDriver.
///
/// # Errors
/// The object has no name or no UID, or its `claimRef` names no claim.
pub fn volume(
    v: &PersistentVolume,
    driver: Option<&CSIDriver>,
) -> Result<VolumeFacts, MissingField> {
    let csi = v.spec.as_ref().and_then(|s| s.csi.as_ref());
    let meta = metadata::of(v);
    Ok(VolumeFacts {
        name: PvName::from(meta.name()?),
        uid: meta.uid()?,
        claim_ref: claim_ref(v)?,
        csi: csi.map(|c| CsiSource {
            driver: DriverName::from(c.driver.as_str()),
            handle: VolumeHandle::from(c.volume_handle.as_str()),
        }),
        topology: v.spec.as_ref().map(topology).unwrap_or_default(),
        deleting: v.metadata.deletion_timestamp.is_some(),
        attach_required: driver.and_then(|d| d.spec.attach_required),
        tagged_as: tagged_as(v),
    })
}

/// Returns the claim that a PersistentVolume is for. `None`: it has no `claimRef`.
///
/// # Errors
/// The `claimRef` lacks namespace or name.
pub fn claim_ref(v: &PersistentVolume) -> Result<Option<ClaimRef>, MissingField> {
    let Some(of) = v.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return Ok(None);
    };
    let meta = metadata::of(v);
    let namespace = meta.require(Field::ClaimRefNamespace, of.namespace.as_deref())?;
    let name = meta.require(Field::ClaimRefName, of.name.as_deref())?;
    Ok(Some(ClaimRef {
        claim: ObjectName::new(namespace, name),
        uid: of
            .uid
            .as_deref()
            .filter(|uid| !uid.is_empty())
            .map(Uid::from),
    }))
}

/// The names that the annotation accepts, separated by commas.
fn tagged_as(v: &PersistentVolume) -> BTreeSet<String> {
    let value = v
        .annotations()
        .get(TAGGED_AS_ANNOTATION)
        .map_or("", String::as_str);
    value
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// For each key of the required node affinity every value that one of its terms allows. A term that allows it by
/// anything else than a list of values is left out: it contradicts nothing.
fn topology(spec: &PersistentVolumeSpec) -> BTreeMap<String, BTreeSet<String>> {
    let required = spec
        .node_affinity
        .as_ref()
        .and_then(|a| a.required.as_ref());
    let terms = required.map_or(&[][..], |r| r.node_selector_terms.as_slice());
    let mut found = BTreeMap::<String, BTreeSet<String>>::new();
    for wanted in terms
        .iter()
        .flat_map(|t| t.match_expressions.iter().flatten())
    {
        if wanted.operator == "In" {
            found
                .entry(wanted.key.clone())
                .or_default()
                .extend(wanted.values.iter().flatten().cloned());
        }
    }
    // A term without the key allows every value of it.
    found.retain(|key, _| {
        terms.iter().all(|t| {
            t.match_expressions
                .iter()
                .flatten()
                .any(|w| w.key == *key && w.operator == "In")
        })
    });
    found
}

/// A VolumeAttachment.
///
/// # Errors
/// The object lacks name, UID or resourceVersion.
pub(super) fn attachment(a: &VolumeAttachment) -> Result<AttachmentFacts, MissingField> {
    let status = a.status.clone().unwrap_or_default();
    let said = |e: Option<k8s_openapi::api::storage::v1::VolumeError>| {
        e.map(|e| {
            e.message.map_or_else(
                || "no message".to_owned(),
                |m| plain::sentence(&m, MESSAGE_CHARS),
            )
        })
    };
    let meta = metadata::of(a);
    let (uid, resource_version) = meta.condition()?;
    Ok(AttachmentFacts {
        name: meta.name()?.to_owned(),
        uid,
        resource_version,
        node: NodeName::from(a.spec.node_name.as_str()),
        created: a
            .creation_timestamp()
            .map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        deleting_since: a.metadata.deletion_timestamp.as_ref().map(|t| t.0),
        attached: status.attached,
        attach_error: said(status.attach_error),
        detach_error: said(status.detach_error),
    })
}

/// A Pod.
///
/// # Errors
/// The object lacks namespace, name or UID.
pub fn pod(p: &Pod) -> Result<PodFacts, MissingField> {
    let status = p.status.clone().unwrap_or_default();
    let ready = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "Ready");
    let containers: Vec<&ContainerStatus> =
        [&status.container_statuses, &status.init_container_statuses]
            .into_iter()
            .flatten()
            .flatten()
            .collect();
    let waiting = containers
        .iter()
        .find_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let meta = metadata::of(p);
    Ok(PodFacts {
        name: meta.object_name()?,
        uid: meta.uid()?,
        node: p
            .spec
            .as_ref()
            .and_then(|s| s.node_name.clone())
            .filter(|n| !n.is_empty())
            .map(NodeName::from),
        phase: status.phase.unwrap_or_else(|| "Pending".to_owned()),
        ready: ready.is_some_and(|c| c.status == "True"),
        ready_since: ready
            .and_then(|c| c.last_transition_time.as_ref())
            .map(|t| t.0),
        containers_running: containers
            .iter()
            .any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())),
        deleting_since: p.metadata.deletion_timestamp.as_ref().map(|t| t.0),
        created: p
            .creation_timestamp()
            .map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        // ContainerCreating is how every wait for a volume looks.
        waiting_reason: waiting
            .filter(|r| r != "ContainerCreating" && r != "PodInitializing")
            .map(|r| plain::line(&r, WORD_CHARS)),
        held: crate::effects::hold::is_gated(p),
    })
}

/// The annotation that says that the node is under maintenance.
fn maintenance(annotations: Option<&BTreeMap<String, String>>) -> Option<String> {
    let keys = [MAINTENANCE_ANNOTATION, KURED_ANNOTATION];
    let said = |key: &&str| {
        annotations
            .and_then(|a| a.get(*key))
            .is_some_and(|v| v != "false")
    };
    keys.into_iter().find(said).map(str::to_owned)
}

/// A Node with its Lease and CSINode.
///
/// # Errors
/// The Node has no name or no UID.
pub(crate) fn node(
    n: &Node,
    lease: Option<&Lease>,
    csi: Option<&CSINode>,
    resolve: ResolveInstance<'_>,
) -> Result<NodeFacts, MissingField> {
    let status = n.status.clone().unwrap_or_default();
    let spec = n.spec.clone().unwrap_or_default();
    let meta = metadata::of(n);
    Ok(NodeFacts {
        name: NodeName::from(meta.name()?),
        uid: meta.uid()?,
        instance: spec.provider_id.as_deref().and_then(resolve),
        ready: is_ready(n),
        boot_id: BootId::from(status.node_info.map(|i| i.boot_id).unwrap_or_default()),
        volumes_in_use: status.volumes_in_use.unwrap_or_default(),
        volumes_attached: status
            .volumes_attached
            .unwrap_or_default()
            .into_iter()
            .map(|v| v.name)
            .collect(),
        out_of_service_by_us: is_out_of_service_by_us(n),
        quarantined: is_quarantined(n),
        labels: n.metadata.labels.clone().unwrap_or_default(),
        maintenance: maintenance(n.metadata.annotations.as_ref()),
        taints: spec
            .taints
            .unwrap_or_default()
            .into_iter()
            .map(|t| t.key)
            .collect(),
        lease_renewed: lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0)),
        csi_drivers: csi
            .map(|c| {
                c.spec
                    .drivers
                    .iter()
                    .map(|d| DriverName::from(d.name.as_str()))
                    .collect()
            })
            .unwrap_or_default(),
    })
}

/// The pod that an Event is about, with its UID. An Event may name any object: one that names a pod of another namespace
/// than its own was not written by a component of Kubernetes, says nothing about that pod, and is about no pod here.
pub fn pod_of(e: &Event) -> Option<(ObjectName, Uid)> {
    let about = &e.involved_object;
    let namespace = e.metadata.namespace.as_deref()?;
    if about.kind.as_deref() != Some("Pod") || about.namespace.as_deref() != Some(namespace) {
        return None;
    }
    Some((
        ObjectName::new(namespace, about.name.as_deref()?),
        Uid::from(about.uid.as_deref()?),
    ))
}

/// An Event about a pod.
pub(super) fn event(e: &Event) -> Option<EventFacts> {
    let (pod, _) = pod_of(e)?;
    let series = e
        .series
        .as_ref()
        .and_then(|s| s.last_observed_time.as_ref())
        .map(|t| t.0);
    let last = series
        .or(e.last_timestamp.as_ref().map(|t| t.0))
        .or(e.event_time.as_ref().map(|t| t.0))
        .or(e.metadata.creation_timestamp.as_ref().map(|t| t.0));
    let component = e
        .source
        .as_ref()
        .and_then(|s| s.component.clone())
        .filter(|c| !c.is_empty());
    Some(EventFacts {
        pod,
        reason: plain::line(e.reason.as_deref().unwrap_or_default(), WORD_CHARS),
        component: plain::line(
            &component
                .or(e.reporting_component.clone())
                .unwrap_or_default(),
            WORD_CHARS,
        ),
        message: plain::sentence(e.message.as_deref().unwrap_or_default(), MESSAGE_CHARS),
        last_seen: last.unwrap_or(Timestamp::UNIX_EPOCH),
    })
}
