//! From a stuck pod to the workload that owns it, and everything that scaling it to zero and back depends on.

use crate::names::{controller_of, group_version, is_api_word, is_object_name};
use crate::view::{View, claims_of};
use crate::{facts, losses};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec};
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client, ResourceExt};
use reattach_api::EXPENDABLE_EMPTYDIRS_ANNOTATION;
use reattach_api::metadata::{self, MissingField};
use reattach_core::evidence::ClaimFacts;
use reattach_core::ids::{ObjectName, ResourceVersion, Uid};
use reattach_core::stamp::{STAMP_ANNOTATION, Stamp};
use reattach_core::workload::{
    AutoscalerFacts, ManagerFacts, ManagerKind, ScalePath, TemplateFacts, WorkloadFacts,
    WorkloadRef,
};
use serde_json::Value;
use std::collections::BTreeSet;

/// A chain of owners is never followed further: a loop of references would be a broken cluster.
const MAX_OWNERS: usize = 8;
/// KEDA's pause (keda.sh, "Pausing autoscaling").
const KEDA_PAUSE: [&str; 2] = [
    "autoscaling.keda.sh/paused",
    "autoscaling.keda.sh/paused-replicas",
];
/// Flux's pause for one object (fluxcd.io, kustomize-controller "Controlling the apply behavior").
const FLUX_PAUSE: &str = "kustomize.toolkit.fluxcd.io/reconcile";

/// The `kube` description of a workload's resource.
pub(crate) fn api_resource(w: &WorkloadRef) -> ApiResource {
    resource(&w.api_version, &w.kind, &w.plural)
}

fn resource(api_version: &str, kind: &str, plural: &str) -> ApiResource {
    let (group, version) = group_version(api_version);
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// How much of a workload is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Everything that a decision to scale depends on.
    Full,
    /// Count, stamp and pods: enough once it is at zero.
    Count,
}

/// What the owners of a claim's pods lead to.
#[derive(Clone, Debug, PartialEq)]
pub enum Owner {
    /// A workload.
    Workload(Box<WorkloadFacts>),
    /// Nothing: no pod has a controlling owner, or the owner is gone.
    None,
    /// An object that could not be read, such as an operator's own: whether it would make new pods is not known.
    Unreadable {
        /// Why, as one sentence that names pod and owner.
        why: String,
    },
}

/// Follows the owners of the claim's pods to the workload whose count is to be changed, and reads it. `remembered` is
/// the workload that a plan has pinned: with it at zero no pod leads there any more.
///
/// # Errors
/// A read that failed.
pub async fn read(
    client: &Client,
    view: &View,
    claim: &ObjectName,
    remembered: Option<&WorkloadRef>,
    detail: Detail,
) -> Result<Owner, kube::Error> {
    let found = match remembered {
        Some(w) => {
            let api: Api<DynamicObject> =
                Api::namespaced_with(client.clone(), &w.name.namespace, &api_resource(w));
            match api.get_opt(&w.name.name).await? {
                Some(object) if object.uid().as_deref() == Some(w.uid.as_str()) => {
                    Box::new(Found {
                        manager: controller_of(&object.metadata).cloned(),
                        object,
                        workload: w.clone(),
                    })
                }
                _ => return Ok(Owner::None),
            }
        }
        None => match climb(client, view, claim).await? {
            Climbed::To(found) => found,
            Climbed::Nowhere => return Ok(Owner::None),
            Climbed::Stopped { why } => return Ok(Owner::Unreadable { why }),
        },
    };
    // A scale to zero without a resourceVersion would have no condition.
    let meta = metadata::of_kind(&found.workload.kind, &found.object.metadata);
    let version = match meta.version() {
        Ok(version) => version,
        Err(missing) => {
            return Ok(Owner::Unreadable {
                why: missing.to_string(),
            });
        }
    };
    let facts = describe(client, view, *found, version, detail).await?;
    Ok(Owner::Workload(Box::new(facts)))
}

/// A workload, and the owner that stands above it.
struct Found {
    object: DynamicObject,
    workload: WorkloadRef,
    manager: Option<OwnerReference>,
}

enum Climbed {
    To(Box<Found>),
    /// There is no owner.
    Nowhere,
    /// The pod's own owner could not be read.
    Stopped {
        why: String,
    },
}

impl Climbed {
    fn to(
        (object, workload): (DynamicObject, WorkloadRef),
        manager: Option<OwnerReference>,
    ) -> Self {
        Self::To(Box::new(Found {
            object,
            workload,
            manager,
        }))
    }
}

/// Climbs from a pod to the topmost owner that can be scaled; what stands above it is returned as its manager.
async fn climb(client: &Client, view: &View, claim: &ObjectName) -> Result<Climbed, kube::Error> {
    let pods = view.pods_of(&claim.name);
    let Some((pod, mut owner)) = pods
        .iter()
        .find_map(|p| Some((p.name_any(), controller_of(&p.metadata)?.clone())))
    else {
        return Ok(Climbed::Nowhere);
    };
    let mut best: Option<(DynamicObject, WorkloadRef)> = None;
    for _ in 0..MAX_OWNERS {
        let (object, reference) = match (
            get_owner(client, &claim.namespace, &owner).await?,
            best.take(),
        ) {
            (Read::There(object, reference), below) => {
                if let Some(below) = below.filter(|_| !is_built_in(&reference)) {
                    return Ok(Climbed::to(below, Some(owner)));
                }
                (*object, reference)
            }
            // An owner of a kind that we may not read stands above the workload all the same: it manages the count.
            (_, Some(below)) => return Ok(Climbed::to(below, Some(owner))),
            (Read::Gone, None) => return Ok(Climbed::Nowhere),
            (Read::Refused { why }, None) => {
                let OwnerReference {
                    kind,
                    name,
                    api_version,
                    ..
                } = &owner;
                let why = format!(
                    "pod {}/{pod} is owned by {kind} {name} ({api_version}), which cannot be read: {why}",
                    claim.namespace
                );
                return Ok(Climbed::Stopped { why });
            }
        };
        let above = controller_of(&object.metadata).cloned();
        best = Some((object, reference));
        match above {
            Some(next) => owner = next,
            None => break,
        }
    }
    Ok(best.map_or(Climbed::Nowhere, |best| Climbed::to(best, None)))
}

fn is_built_in(w: &WorkloadRef) -> bool {
    matches!(w.api_version.as_str(), "apps/v1" | "batch/v1" | "v1")
}

/// One owner.
enum Read {
    There(Box<DynamicObject>, WorkloadRef),
    /// The API server says that it does not exist (any more).
    Gone,
    /// We may not read it, or the cluster serves no such kind now.
    Refused {
        why: String,
    },
}

/// The opt-out on an object of a kind that Kubernetes does not come with (an operator's), or on such objects above it.
///
/// An object that does not exist, is of a kind that is not served, or that reattach may not read, has none: the places that an
/// opt-out is promised to count at are claim, workload and namespace, and an operator's pods must be healed without a right
/// to read its objects. A read that failed otherwise is an error: what stands there is not known.
///
/// # Errors
/// The read failed.
pub async fn custom_opt_out(
    client: &Client,
    namespace: &str,
    owner: &OwnerReference,
) -> Result<Option<String>, kube::Error> {
    let mut owner = owner.clone();
    for _ in 0..MAX_OWNERS {
        let Some(resource) = served(client, &owner).await? else {
            return Ok(None);
        };
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let object = match api.get_metadata_opt(&owner.name).await {
            Ok(object) => object.filter(|o| o.uid().as_deref() == Some(owner.uid.as_str())),
            Err(kube::Error::Api(s)) if s.is_forbidden() => None,
            Err(error) => return Err(error),
        };
        let Some(object) = object else {
            return Ok(None);
        };
        let what = format!("{} {namespace}/{}", owner.kind, owner.name);
        let said = facts::opt_out(object.metadata.annotations.as_ref(), &what);
        match controller_of(&object.metadata) {
            Some(above) if said.is_none() => owner = above.clone(),
            Some(_) | None => return Ok(said),
        }
    }
    Ok(None)
}

/// The resource of a custom kind. `None`: the cluster serves no such kind, or no object can be called that.
async fn served(
    client: &Client,
    owner: &OwnerReference,
) -> Result<Option<ApiResource>, kube::Error> {
    let (group, version) = group_version(&owner.api_version);
    if ![group, version, owner.kind.as_str()]
        .into_iter()
        .all(is_api_word)
        || !is_object_name(&owner.name)
    {
        return Ok(None);
    }
    let gvk = GroupVersionKind::gvk(group, version, &owner.kind);
    match kube::discovery::pinned_kind(client, &gvk).await {
        Ok((resource, _)) => Ok(Some(resource)),
        Err(kube::Error::Discovery(_)) => Ok(None),
        Err(kube::Error::Api(s)) if s.is_not_found() || s.is_forbidden() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn get_owner(
    client: &Client,
    namespace: &str,
    owner: &OwnerReference,
) -> Result<Read, kube::Error> {
    let (group, version) = group_version(&owner.api_version);
    let words = [version, owner.kind.as_str()];
    if !words.iter().all(|w| is_api_word(w)) || !(group.is_empty() || is_api_word(group)) {
        return Ok(Read::Refused {
            why: "there can be no such kind".to_owned(),
        });
    }
    if !is_object_name(&owner.name) {
        return Ok(Read::Gone);
    }
    let gvk = GroupVersionKind::gvk(group, version, &owner.kind);
    let resource = match owner.api_version.as_str() {
        // The plural of the built-in kinds is known without asking.
        "apps/v1" | "batch/v1" | "v1" => ApiResource::from_gvk(&gvk),
        _ => match kube::discovery::pinned_kind(client, &gvk).await {
            Ok((resource, _)) => resource,
            Err(error) => {
                return Ok(Read::Refused {
                    why: format!("the kind could not be looked up ({error})"),
                });
            }
        },
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let object = match api.get_opt(&owner.name).await {
        Ok(Some(object)) => object,
        Ok(None) => return Ok(Read::Gone),
        Err(kube::Error::Api(s)) if s.is_forbidden() => {
            let why = format!(
                "reattach lacks the right to get {}.{group}",
                resource.plural
            );
            return Ok(Read::Refused { why });
        }
        Err(error) => return Err(error),
    };
    if object.uid().as_deref() != Some(owner.uid.as_str()) {
        return Ok(Read::Gone);
    }
    let reference = WorkloadRef {
        api_version: owner.api_version.clone(),
        kind: owner.kind.clone(),
        plural: resource.plural,
        name: ObjectName::new(namespace, owner.name.as_str()),
        uid: Uid::from(owner.uid.as_str()),
    };
    Ok(Read::There(Box::new(object), reference))
}

async fn describe(
    client: &Client,
    view: &View,
    found: Found,
    resource_version: ResourceVersion,
    detail: Detail,
) -> Result<WorkloadFacts, kube::Error> {
    let Found {
        object,
        workload,
        manager,
    } = found;
    let ns = workload.name.namespace.clone();
    let own_uids = owner_uids(client, &ns, &workload).await?;
    let pods: Vec<&Pod> = view
        .pods
        .iter()
        .filter(|p| controller_of(&p.metadata).is_some_and(|o| own_uids.contains(&o.uid)))
        .map(AsRef::as_ref)
        .collect();
    let template = template_of(&object);
    let annotations = object.metadata.annotations.clone().unwrap_or_default();
    let stamp = annotations
        .get(STAMP_ANNOTATION)
        .map(|v| Stamp::from_annotation(v));
    let set: Option<StatefulSet> = (workload.kind == "StatefulSet")
        .then(|| parse(&object))
        .flatten();
    let mut managers = managers(&object, manager.as_ref());
    let mut scalers = Vec::new();
    if detail == Detail::Full {
        managers.extend(keda(client, &workload).await?);
        scalers = autoscalers(client, &workload).await?;
    }
    let mut claims = used_claims(view, &pods)?;
    let mut opted_out = facts::opt_out(object.metadata.annotations.as_ref(), &workload.to_string());
    if let Some(above) = manager.as_ref().filter(|_| opted_out.is_none()) {
        opted_out = custom_opt_out(client, &ns, above).await?;
    }
    if let Some(what) = opted_out {
        for (_, claim) in &mut claims {
            if let Some(claim) = claim {
                claim.opted_out.get_or_insert_with(|| what.clone());
            }
        }
    }
    Ok(WorkloadFacts {
        resource_version,
        generation: object.metadata.generation.unwrap_or(0),
        deleting: object.metadata.deletion_timestamp.is_some(),
        replicas: replicas_of(&object),
        scaling: scaling(&object, &workload),
        stamp,
        rollout: rollout(&object, &workload),
        deletes_claims_when_scaled: set.as_ref().is_some_and(deletes_claims),
        ordered: set.as_ref().is_some_and(is_ordered),
        autoscalers: scalers,
        managers,
        pods: pods
            .iter()
            .map(|p| facts::pod(p))
            .collect::<Result<_, _>>()?,
        claims,
        template: template
            .as_ref()
            .and_then(|t| t.spec.as_ref())
            .map(template_facts)
            .unwrap_or_default(),
        pod_dry_run: None,
        dry_run_held: None,
        emptydirs_expendable: annotations
            .get(EXPENDABLE_EMPTYDIRS_ANNOTATION)
            .is_some_and(|v| v == "true"),
        not_remade: (workload.kind == "Job")
            .then(|| parse(&object))
            .flatten()
            .and_then(|j| losses::spent(&j, &pods)),
        workload,
    })
}

pub(crate) fn parse<K: serde::de::DeserializeOwned>(object: &DynamicObject) -> Option<K> {
    serde_json::from_value(serde_json::to_value(object).ok()?).ok()
}

/// The claims that the pods name, each with its facts if it exists.
fn used_claims(
    view: &View,
    pods: &[&Pod],
) -> Result<Vec<(String, Option<ClaimFacts>)>, MissingField> {
    let names: BTreeSet<String> = pods.iter().flat_map(|p| claims_of(p)).collect();
    let with_facts = names.into_iter().map(|name| {
        let found = view.claims.iter().find(|c| c.name_any() == name);
        let facts = found.map(|c| facts::claim(c)).transpose()?;
        Ok((name, facts))
    });
    with_facts.collect()
}

/// `spec.replicas`, with the default of every built-in kind.
pub(crate) fn replicas_of(object: &DynamicObject) -> i32 {
    let replicas = object.data.pointer("/spec/replicas");
    let replicas = replicas.and_then(Value::as_i64);
    replicas.map_or(1, |n| i32::try_from(n).unwrap_or(i32::MAX))
}

/// The UIDs by which pods name this workload as their owner: its own, and those of a Deployment's ReplicaSets.
async fn owner_uids(
    client: &Client,
    ns: &str,
    w: &WorkloadRef,
) -> Result<Vec<String>, kube::Error> {
    let mut uids = vec![w.uid.to_string()];
    if w.kind == "Deployment" {
        let sets = Api::<ReplicaSet>::namespaced(client.clone(), ns)
            .list(&ListParams::default())
            .await?;
        let own =
            |s: &&ReplicaSet| controller_of(&s.metadata).is_some_and(|o| o.uid == w.uid.as_str());
        uids.extend(sets.items.iter().filter(own).filter_map(ResourceExt::uid));
    }
    Ok(uids)
}

fn scaling(object: &DynamicObject, w: &WorkloadRef) -> ScalePath {
    match (w.api_version.as_str(), w.kind.as_str()) {
        ("apps/v1", "Deployment" | "StatefulSet" | "ReplicaSet") => ScalePath::Replicas,
        ("apps/v1" | "batch/v1", _) => ScalePath::None,
        // A custom resource that counts in spec.replicas is changed through /scale, which its owner chose to offer.
        _ if object.data.pointer("/spec/replicas").is_some() => ScalePath::ScaleSubresource,
        _ => ScalePath::None,
    }
}

fn is_ordered(set: &StatefulSet) -> bool {
    let policy = set
        .spec
        .as_ref()
        .and_then(|s| s.pod_management_policy.as_deref());
    matches!(policy, None | Some("OrderedReady"))
}

fn deletes_claims(set: &StatefulSet) -> bool {
    let policy = set
        .spec
        .as_ref()
        .and_then(|s| s.persistent_volume_claim_retention_policy.as_ref());
    policy.and_then(|p| p.when_scaled.as_deref()) == Some("Delete")
}

/// A rollout in progress, in words.
fn rollout(object: &DynamicObject, w: &WorkloadRef) -> Option<String> {
    let generation = object.metadata.generation.unwrap_or(0);
    match w.kind.as_str() {
        "Deployment" => {
            let deployment: Deployment = parse(object)?;
            let status = deployment.status.clone().unwrap_or_default();
            let want = deployment
                .spec
                .as_ref()
                .and_then(|s| s.replicas)
                .unwrap_or(1);
            if status.observed_generation.unwrap_or(0) < generation {
                return Some("its controller has not seen the newest generation".to_owned());
            }
            let (total, updated) = (
                status.replicas.unwrap_or(0),
                status.updated_replicas.unwrap_or(0),
            );
            (want > 0 && (updated < want || total > want))
                .then(|| format!("{updated} of {want} pods are of the new version, {total} in all"))
        }
        "StatefulSet" => {
            let set: StatefulSet = parse(object)?;
            let status = set.status.clone().unwrap_or_default();
            if status.observed_generation.unwrap_or(0) < generation {
                return Some("its controller has not seen the newest generation".to_owned());
            }
            match (status.current_revision, status.update_revision) {
                (Some(current), Some(update)) if current != update => {
                    Some(format!("from {current} to {update}"))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

pub(crate) fn template_of(object: &DynamicObject) -> Option<PodTemplateSpec> {
    serde_json::from_value(object.data.pointer("/spec/template")?.clone()).ok()
}

fn template_facts(spec: &PodSpec) -> TemplateFacts {
    let volumes = spec.volumes.iter().flatten();
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    TemplateFacts {
        // What is in memory is gone with the machine or the last container anyway.
        empty_dirs: volumes
            .clone()
            .filter(|v| {
                v.empty_dir
                    .as_ref()
                    .is_some_and(|e| e.medium.as_deref() != Some("Memory"))
            })
            .map(|v| v.name.clone())
            .collect(),
        ephemeral_volumes: volumes
            .filter(|v| v.ephemeral.is_some())
            .map(|v| v.name.clone())
            .collect(),
        pre_stop: containers
            .filter(|c| c.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some()))
            .map(|c| c.name.clone())
            .collect(),
        ignores_taints: ignores_taints(spec),
    }
}

/// Why a taint of ours would not keep such pods from a node. Only a toleration without a key tolerates a key that its
/// author does not know (`ToleratesTaint` in Kubernetes `k8s.io/api/core/v1/toleration.go`), and a pod that names its node passes by the
/// scheduler.
fn ignores_taints(spec: &PodSpec) -> Option<String> {
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(format!(
            "its template names node {node}, so the scheduler is not asked"
        ));
    }
    let all = spec.tolerations.iter().flatten().any(|t| {
        let any_key = t.key.as_deref().unwrap_or_default().is_empty();
        let any_effect = matches!(t.effect.as_deref(), None | Some("" | "NoSchedule"));
        any_key && any_effect && t.operator.as_deref() == Some("Exists")
    });
    all.then(|| "its pods tolerate every taint".to_owned())
}

async fn autoscalers(
    client: &Client,
    w: &WorkloadRef,
) -> Result<Vec<AutoscalerFacts>, kube::Error> {
    let api: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), &w.name.namespace);
    let list = api.list(&ListParams::default()).await?;
    let facts = list.items.iter().filter_map(|h| {
        Some(AutoscalerFacts {
            name: h.name_any(),
            min_replicas: scaling_spec(h, w)?.min_replicas.unwrap_or(1),
        })
    });
    Ok(facts.collect())
}

/// The spec of a HorizontalPodAutoscaler, if it scales this workload.
pub(crate) fn scaling_spec<'a>(
    autoscaler: &'a HorizontalPodAutoscaler,
    w: &WorkloadRef,
) -> Option<&'a HorizontalPodAutoscalerSpec> {
    let spec = autoscaler.spec.as_ref()?;
    let target = &spec.scale_target_ref;
    (target.kind == w.kind && target.name == w.name.name).then_some(spec)
}

fn managers(object: &DynamicObject, above: Option<&OwnerReference>) -> Vec<ManagerFacts> {
    let mut found = Vec::new();
    let empty = Default::default();
    let labels = object.metadata.labels.as_ref().unwrap_or(&empty);
    let annotations = object.metadata.annotations.as_ref().unwrap_or(&empty);
    if let Some(owner) = above {
        found.push(ManagerFacts {
            kind: ManagerKind::Operator,
            evidence: format!("owned by {} {}", owner.kind, owner.name),
            paused: false,
        });
    }
    for key in [
        "kustomize.toolkit.fluxcd.io/name",
        "helm.toolkit.fluxcd.io/name",
    ] {
        if labels.contains_key(key) {
            let paused = annotations.get(FLUX_PAUSE).is_some_and(|v| v == "disabled");
            found.push(ManagerFacts {
                kind: ManagerKind::Flux,
                evidence: format!("label {key}"),
                paused,
            });
        }
    }
    if annotations.contains_key("argocd.argoproj.io/tracking-id")
        || labels.contains_key("argocd.argoproj.io/instance")
    {
        found.push(ManagerFacts {
            kind: ManagerKind::ArgoCd,
            evidence: "its tracking annotation or label".to_owned(),
            paused: false,
        });
    }
    found
}

/// KEDA's ScaledObjects that target the workload; a cluster without KEDA has none.
async fn keda(client: &Client, w: &WorkloadRef) -> Result<Vec<ManagerFacts>, kube::Error> {
    let resource = resource("keda.sh/v1alpha1", "ScaledObject", "scaledobjects");
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &w.name.namespace, &resource);
    let list = match api.list(&ListParams::default()).await {
        Ok(list) => list,
        // A cluster without KEDA answers in plain text, which has a code and no reason.
        Err(kube::Error::Api(s)) if s.code == 404 => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let targets = |o: &&DynamicObject| {
        let target = |key: &str| {
            o.data
                .pointer(&format!("/spec/scaleTargetRef/{key}"))
                .and_then(Value::as_str)
        };
        target("name") == Some(w.name.name.as_str())
            && target("kind").unwrap_or("Deployment") == w.kind
    };
    Ok(list
        .items
        .iter()
        .filter(targets)
        .map(|o| ManagerFacts {
            kind: ManagerKind::Keda,
            evidence: format!("ScaledObject {}", o.name_any()),
            paused: KEDA_PAUSE.iter().any(|k| o.annotations().contains_key(*k)),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blanket_tolerations_and_fixed_nodes_ignore_the_taint() {
        let why = |spec: Value| {
            let spec: PodSpec = serde_json::from_value(spec).unwrap_or_else(|e| panic!("{e}"));
            ignores_taints(&spec)
        };
        let tolerates = |t: Value| why(json!({"containers": [], "tolerations": [t]}));
        for (toleration, ignores) in [
            (json!({"operator": "Exists"}), true),
            (json!({"operator": "Exists", "effect": "NoSchedule"}), true),
            (json!({"key": "", "operator": "Exists", "effect": ""}), true),
            (json!({"operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "dedicated", "operator": "Exists"}), false),
            (
                json!({"key": "dedicated", "operator": "Equal", "value": "db"}),
                false,
            ),
        ] {
            assert_eq!(
                tolerates(toleration.clone()).is_some(),
                ignores,
                "{toleration}"
            );
        }
        assert_eq!(why(json!({"containers": [], "nodeName": ""})), None);
        assert!(why(json!({"containers": [], "nodeName": "n1"})).is_some_and(|w| w.contains("n1")));
    }
}
