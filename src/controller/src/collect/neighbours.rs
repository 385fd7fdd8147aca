//! What an effect on a whole node would reach besides its own claim: the claims of the node's other pods, with their opt-outs; and
//! which other nodes are down.

use super::Collector;
use crate::neighbours::lock;
use crate::policies::{Subject, ruling};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ListParams, ObjectMeta};
use kube::{Api, Client, ResourceExt};
use reattach_api::RecoveryPolicy;
use reattach_api::metadata;
use reattach_cluster::cache::Key;
use reattach_cluster::facts;
use reattach_cluster::names::is_object_name;
use reattach_cluster::view::claims_of;
use reattach_cluster::workloads::custom_opt_out;
use reattach_core::evidence::NodeClaim;
use reattach_core::ids::{NodeName, ObjectName};
use reattach_core::outage::DownNode;
use reattach_core::policy::Mode;
use std::sync::Arc;

/// What an owner of pods says is asked for anew after so long, unless everything is read anew.
const OWNERS_KNOWN_FOR: SignedDuration = SignedDuration::from_secs(15);
/// A chain of owners is never followed further.
const MAX_OWNERS: usize = 3;

impl Collector {
    /// Every Node that is down, from the watches or live.
    pub(crate) async fn down(&self, live: bool) -> Result<(Vec<DownNode>, Timestamp), kube::Error> {
        let now = self.clock.now();
        match &self.cache {
            Some(cache) if !live => {
                let nodes = cache.nodes.filter(|_| true);
                Ok((
                    self.neighbours.note(nodes.iter().map(AsRef::as_ref), now),
                    cache.as_of(),
                ))
            }
            _ => {
                let nodes = Api::<Node>::all(self.clients.read.clone())
                    .list(&ListParams::default())
                    .await?;
                Ok((self.neighbours.note(&nodes.items, now), now))
            }
        }
    }

    /// The claims of these pods of one node, with what keeps reattach away from each.
    pub(crate) async fn claims_of_pods(
        &self,
        pods: &[Arc<Pod>],
        live: bool,
    ) -> Result<Vec<NodeClaim>, kube::Error> {
        let finished = |p: &Pod| {
            let phase = p.status.as_ref().and_then(|s| s.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        let mut found = Vec::new();
        let mut policies: Option<Vec<Arc<RecoveryPolicy>>> = None;
        for pod in pods.iter().filter(|p| !finished(p)) {
            let claims = claims_of(pod);
            if claims.is_empty() {
                continue;
            }
            let ns = metadata::of(&**pod).namespace()?;
            let of_pod = self.pod_opts_out(pod, live).await?;
            if policies.is_none() {
                policies = Some(self.policies(live).await?);
            }
            for name in claims {
                let claim = ObjectName::new(ns, name.as_str());
                let mut opted_out = of_pod.clone();
                if opted_out.is_none() {
                    opted_out = self
                        .claim_opts_out(&claim, policies.as_deref().unwrap_or_default(), live)
                        .await?;
                }
                found.push(NodeClaim { claim, opted_out });
            }
        }
        Ok(found)
    }

    /// The claims whose volumes have a VolumeAttachment on the node, with what keeps reattach away from each: whether a pod of
    /// theirs is there or not, a fence detaches them. Those that are `known` by their pods are left out.
    pub(crate) async fn claims_attached_to(
        &self,
        node: &NodeName,
        known: &[NodeClaim],
        live: bool,
    ) -> Result<Vec<NodeClaim>, kube::Error> {
        let attachments = match &self.cache {
            Some(cache) if !live => cache.attachments.by(&Key::Node(node.to_string())),
            _ => {
                let api: Api<VolumeAttachment> = Api::all(self.clients.read.clone());
                let all = api.list(&ListParams::default()).await?.items;
                let here = |a: &VolumeAttachment| a.spec.node_name == node.as_str();
                all.into_iter().filter(here).map(Arc::new).collect()
            }
        };
        let volumes = attachments
            .iter()
            .filter_map(|a| a.spec.source.persistent_volume_name.clone());
        let mut found = Vec::new();
        let mut policies: Option<Vec<Arc<RecoveryPolicy>>> = None;
        for volume in volumes.filter(|v| is_object_name(v)) {
            let Some(volume) = self.volume_named(&volume, live).await? else {
                continue;
            };
            let Some(claim) = facts::claim_ref(&volume)?.map(|of| of.claim) else {
                continue;
            };
            if known.iter().any(|k| k.claim == claim) {
                continue;
            }
            if policies.is_none() {
                policies = Some(self.policies(live).await?);
            }
            let mut opted_out = self.namespace_opts_out(&claim.namespace, live).await?;
            if opted_out.is_none() {
                opted_out = self
                    .claim_opts_out(&claim, policies.as_deref().unwrap_or_default(), live)
                    .await?;
            }
            // The pods that wait elsewhere for the volume say whose workload it is.
            for pod in self.pods_that_name(&claim, live).await? {
                if opted_out.is_none() {
                    opted_out = self.pod_opts_out(&pod, live).await?;
                }
            }
            found.push(NodeClaim { claim, opted_out });
        }
        Ok(found)
    }

    pub(super) async fn pods_that_name(
        &self,
        claim: &ObjectName,
        live: bool,
    ) -> Result<Vec<Arc<Pod>>, kube::Error> {
        match &self.cache {
            Some(cache) if !live => Ok(cache.pods.by(&Key::Claim(claim.clone()))),
            _ => {
                let api: Api<Pod> = Api::namespaced(self.clients.read.clone(), &claim.namespace);
                let all = api.list(&ListParams::default()).await?.items;
                let names = |p: &Pod| claims_of(p).contains(&claim.name);
                Ok(all.into_iter().filter(names).map(Arc::new).collect())
            }
        }
    }

    /// The opt-out of a pod, of its namespace, or of a workload above it.
    async fn pod_opts_out(&self, pod: &Pod, live: bool) -> Result<Option<String>, kube::Error> {
        let ns = metadata::of(pod).namespace()?;
        let annotations = pod.metadata.annotations.as_ref();
        if let Some(what) = facts::opt_out(annotations, &format!("pod {ns}/{}", pod.name_any())) {
            return Ok(Some(what));
        }
        if let Some(what) = self.namespace_opts_out(ns, live).await? {
            return Ok(Some(what));
        }
        self.owner_opts_out(ns, &pod.metadata, live).await
    }

    /// The opt-out of a claim itself: its annotation, or a policy that only observes it.
    async fn claim_opts_out(
        &self,
        claim: &ObjectName,
        policies: &[Arc<RecoveryPolicy>],
        live: bool,
    ) -> Result<Option<String>, kube::Error> {
        let Some(object) = self.claim_on_node(claim, live).await? else {
            return Ok(None);
        };
        match facts::opt_out(
            object.metadata.annotations.as_ref(),
            &format!("claim {claim}"),
        ) {
            Some(what) => Ok(Some(what)),
            None => self.observed(claim, &object, policies, live).await,
        }
    }

    async fn volume_named(
        &self,
        name: &str,
        live: bool,
    ) -> Result<Option<Arc<PersistentVolume>>, kube::Error> {
        match &self.cache {
            Some(cache) if !live => Ok(cache.volumes.get("", name)),
            _ => {
                let api: Api<PersistentVolume> = Api::all(self.clients.read.clone());
                Ok(api.get_opt(name).await?.map(Arc::new))
            }
        }
    }

    async fn policies(&self, live: bool) -> Result<Vec<Arc<RecoveryPolicy>>, kube::Error> {
        match &self.cache {
            Some(cache) if !live => Ok(cache.policies.filter(|_| true)),
            _ => {
                let api: Api<RecoveryPolicy> = Api::all(self.clients.read.clone());
                match api.list(&ListParams::default()).await {
                    Ok(list) => Ok(list.items.into_iter().map(Arc::new).collect()),
                    // A person who sees only a namespace cannot read them; what observes is not known then, and opt-outs by
                    // annotation count all the same.
                    Err(kube::Error::Api(s)) if s.is_forbidden() && self.cache.is_none() => {
                        Ok(Vec::new())
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn claim_on_node(
        &self,
        name: &ObjectName,
        live: bool,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, kube::Error> {
        match &self.cache {
            Some(cache) if !live => Ok(cache.claims.get(&name.namespace, &name.name)),
            _ => {
                let api: Api<PersistentVolumeClaim> =
                    Api::namespaced(self.clients.read.clone(), &name.namespace);
                Ok(api.get_opt(&name.name).await?.map(Arc::new))
            }
        }
    }

    async fn namespace_opts_out(
        &self,
        name: &str,
        live: bool,
    ) -> Result<Option<String>, kube::Error> {
        let namespace = match &self.cache {
            Some(cache) if !live => cache.namespaces.get("", name),
            _ => Api::<Namespace>::all(self.clients.read.clone())
                .get_opt(name)
                .await?
                .map(Arc::new),
        };
        let annotations = namespace
            .as_ref()
            .and_then(|n| n.metadata.annotations.as_ref());
        Ok(facts::opt_out(annotations, &format!("namespace {name}")))
    }

    /// A policy that only observes the claim.
    async fn observed(
        &self,
        name: &ObjectName,
        claim: &PersistentVolumeClaim,
        policies: &[Arc<RecoveryPolicy>],
        live: bool,
    ) -> Result<Option<String>, kube::Error> {
        let pv = claim
            .spec
            .as_ref()
            .and_then(|s| s.volume_name.clone())
            .filter(|n| is_object_name(n));
        let by_driver = policies.iter().any(|p| !p.spec.selector.drivers.is_empty());
        let volume = match pv.filter(|_| by_driver) {
            Some(pv) => self.volume_named(&pv, live).await?,
            None => None,
        };
        let driver = volume
            .as_ref()
            .and_then(|v| v.spec.as_ref()?.csi.as_ref())
            .map(|c| c.driver.as_str());
        let subject = Subject {
            namespace: &name.namespace,
            claim: &facts::claim(claim)?,
            driver,
        };
        let observes = ruling(policies, &subject).filter(|p| p.spec.mode == Mode::Observe);
        Ok(observes.map(|p| {
            format!(
                "RecoveryPolicy {}, whose mode for it is Observe",
                p.name_any()
            )
        }))
    }

    /// The opt-out of a workload above the pod, or of an operator's object above that, where reattach may read it.
    async fn owner_opts_out(
        &self,
        namespace: &str,
        of: &ObjectMeta,
        live: bool,
    ) -> Result<Option<String>, kube::Error> {
        let now = self.clock.now();
        let Some(first) = controller_of(of).cloned() else {
            return Ok(None);
        };
        let key = (
            namespace.to_owned(),
            first.kind.clone(),
            first.name.clone(),
            first.uid.clone(),
        );
        let known = lock(&self.neighbours.owners).get(&key).cloned();
        if let Some((at, said)) = known
            && !live
            && now.duration_since(at) < OWNERS_KNOWN_FOR
        {
            return Ok(said);
        }
        let mut said = None;
        let mut owner = Some(first);
        for _ in 0..MAX_OWNERS {
            let Some(next) = owner.take() else { break };
            if !is_built_in(&next) {
                said = custom_opt_out(&self.clients.read, namespace, &next).await?;
                break;
            }
            let Some(object) = read_owner(&self.clients.read, namespace, &next).await? else {
                break;
            };
            said = facts::opt_out(
                object.annotations.as_ref(),
                &format!("{} {namespace}/{}", next.kind, next.name),
            );
            if said.is_some() {
                break;
            }
            owner = controller_of(&object).cloned();
        }
        let mut owners = lock(&self.neighbours.owners);
        owners.retain(|_, (at, _)| now.duration_since(*at) < OWNERS_KNOWN_FOR);
        owners.insert(key, (now, said.clone()));
        Ok(said)
    }
}

fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true))
}

fn is_built_in(owner: &OwnerReference) -> bool {
    matches!(owner.api_version.as_str(), "apps/v1" | "batch/v1" | "v1")
}

/// The metadata of a built-in owner; none where it is gone, of another kind, or hidden from us.
async fn read_owner(
    client: &Client,
    namespace: &str,
    owner: &OwnerReference,
) -> Result<Option<ObjectMeta>, kube::Error> {
    async fn get<K>(
        client: &Client,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ObjectMeta>, kube::Error>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        match Api::<K>::namespaced(client.clone(), namespace)
            .get_opt(name)
            .await
        {
            Ok(found) => Ok(found.map(|o| o.meta().clone())),
            Err(kube::Error::Api(s)) if s.is_forbidden() => Ok(None),
            Err(error) => Err(error),
        }
    }
    let name = owner.name.as_str();
    if !is_object_name(name) {
        return Ok(None);
    }
    match (owner.api_version.as_str(), owner.kind.as_str()) {
        ("apps/v1", "StatefulSet") => get::<StatefulSet>(client, namespace, name).await,
        ("apps/v1", "ReplicaSet") => get::<ReplicaSet>(client, namespace, name).await,
        ("apps/v1", "Deployment") => get::<Deployment>(client, namespace, name).await,
        ("apps/v1", "DaemonSet") => get::<DaemonSet>(client, namespace, name).await,
        ("batch/v1", "Job") => get::<Job>(client, namespace, name).await,
        ("batch/v1", "CronJob") => get::<CronJob>(client, namespace, name).await,
        _ => Ok(None),
    }
}
