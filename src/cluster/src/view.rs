//! The Kubernetes objects that matter for one claim, read live or taken from the watches.

use crate::cache::{Cache, Key};
use crate::names::is_object_name;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use reattach_api::NodeVolumeReport;
use reattach_core::ids::ObjectName;
use reattach_core::plan::Pins;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The namespace of the nodes' Leases (Kubernetes `pkg/controller/nodelifecycle`, KEP-589).
pub const NODE_LEASES: &str = "kube-node-lease";

/// The objects around one claim. `None` and empty mean that the API server said so.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The claim.
    pub claim: Option<Arc<PersistentVolumeClaim>>,
    /// All claims of its namespace.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    /// The PersistentVolume that a running plan pins, if it exists; else the claim's.
    pub volume: Option<Arc<PersistentVolume>>,
    /// The driver's CSIDriver.
    pub driver: Option<Arc<CSIDriver>>,
    /// VolumeAttachments of the PersistentVolume, and the one that a running plan pins.
    pub attachments: Vec<Arc<VolumeAttachment>>,
    /// All pods of the namespace.
    pub pods: Vec<Arc<Pod>>,
    /// The Nodes that attachments or pods of the claim name; `None`: no such Node.
    pub nodes: BTreeMap<String, Option<Arc<Node>>>,
    /// Their Leases; read live only.
    pub leases: BTreeMap<String, Arc<Lease>>,
    /// Their CSINodes.
    pub csi_nodes: BTreeMap<String, Arc<CSINode>>,
    /// Their agents' reports.
    pub reports: BTreeMap<String, Arc<NodeVolumeReport>>,
    /// The namespace.
    pub namespace: Option<Arc<Namespace>>,
    /// Warning events of the namespace.
    pub events: Vec<Arc<Event>>,
}

/// The claims that a pod names, generic ephemeral volumes included (claim `<pod>-<volume>`). A text that no claim can be called
/// is none: such a pod never starts.
pub fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let mut names: Vec<String> = volumes
        .into_iter()
        .flatten()
        .filter_map(|v| {
            let claim = v
                .persistent_volume_claim
                .as_ref()
                .map(|c| c.claim_name.clone());
            claim.or_else(|| {
                v.ephemeral
                    .as_ref()
                    .map(|_| format!("{}-{}", pod.name_any(), v.name))
            })
        })
        .filter(|name| is_object_name(name))
        .collect();
    names.sort();
    names
}

impl View {
    /// From the watches. Leases are not watched and stay empty. `pinned` is what a plan that runs has pinned: once the claim
    /// is gone nothing else leads to its PersistentVolume, and once pods and VolumeAttachments are gone nothing else leads to
    /// its node.
    pub fn cached(cache: &Cache, claim: &ObjectName, pinned: Option<&Pins>) -> Self {
        let mut view = Self {
            claim: cache.claims.get(&claim.namespace, &claim.name),
            claims: cache.claims.in_namespace(&claim.namespace),
            namespace: cache.namespaces.get("", &claim.namespace),
            pods: cache.pods.in_namespace(&claim.namespace),
            events: cache.events.in_namespace(&claim.namespace),
            ..Self::default()
        };
        let named = view.claimed_volume();
        let by_claim = || named.as_deref().and_then(|pv| cache.volumes.get("", pv));
        let by_pin = |pins: &Pins| cache.volumes.by(&Key::Uid(pins.pv.to_string())).pop();
        view.volume = pinned.and_then(by_pin).or_else(by_claim);
        let pv = view.volume.as_ref().map(|v| v.name_any()).or(named);
        let pinned_attachment = pinned.and_then(|pins| pins.attachment.as_ref());
        let keys = [
            pv.map(Key::Volume),
            pinned_attachment.map(|a| Key::Uid(a.uid.to_string())),
        ];
        view.attachments = keys
            .iter()
            .flatten()
            .flat_map(|key| cache.attachments.by(key))
            .collect();
        view.attachments.sort_by_key(|a| a.name_any());
        view.attachments.dedup_by_key(|a| a.name_any());
        view.driver = view.driver_name().and_then(|d| cache.drivers.get("", &d));
        view.add_cached_nodes(cache, view.node_names(claim, pinned));
        view
    }

    fn add_cached_nodes(&mut self, cache: &Cache, names: impl IntoIterator<Item = String>) {
        for node in names {
            self.nodes.insert(node.clone(), cache.nodes.get("", &node));
            self.csi_nodes
                .extend(cache.csi_nodes.get("", &node).map(|n| (node.clone(), n)));
            self.reports
                .extend(cache.reports.get("", &node).map(|r| (node.clone(), r)));
        }
    }

    /// Nothing but the Nodes that `which` picks, from the watches. Leases stay empty.
    pub fn cached_nodes(cache: &Cache, which: impl Fn(&Node) -> bool) -> Self {
        let mut view = Self::default();
        view.add_cached_nodes(
            cache,
            cache.nodes.filter(which).iter().map(|n| n.name_any()),
        );
        view
    }

    /// Nothing but the Nodes that `which` picks, by live reads.
    ///
    /// # Errors
    /// The first read that failed: nothing may be concluded then.
    pub async fn live_nodes(
        client: &Client,
        which: impl Fn(&Node) -> bool,
    ) -> Result<Self, kube::Error> {
        let mut view = Self::default();
        let all = Api::<Node>::all(client.clone())
            .list(&ListParams::default())
            .await?
            .items;
        for node in all.into_iter().filter(which) {
            view.add_live_node(client, node.name_any(), Some(node))
                .await?;
        }
        view.read_leases(client).await?;
        Ok(view)
    }

    async fn add_live_node(
        &mut self,
        client: &Client,
        name: String,
        node: Option<Node>,
    ) -> Result<(), kube::Error> {
        let csi = Api::<CSINode>::all(client.clone()).get_opt(&name).await?;
        let report = Api::<NodeVolumeReport>::all(client.clone())
            .get_opt(&name)
            .await?;
        self.nodes.insert(name.clone(), node.map(Arc::new));
        self.csi_nodes
            .extend(csi.map(|n| (name.clone(), Arc::new(n))));
        self.reports.extend(report.map(|r| (name, Arc::new(r))));
        Ok(())
    }

    /// By live reads. `pinned` as for [`View::cached`].
    ///
    /// # Errors
    /// The first read that failed: nothing may be concluded then.
    pub async fn live(
        client: &Client,
        claim: &ObjectName,
        pinned: Option<&Pins>,
    ) -> Result<Self, kube::Error> {
        let ns = claim.namespace.as_str();
        let all = ListParams::default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), ns);
        let pods: Api<Pod> = Api::namespaced(client.clone(), ns);
        let warnings = ListParams::default().fields("type=Warning");
        let claims = arcs(claims.list(&all).await?.items);
        let mut view = Self {
            claim: claims.iter().find(|c| c.name_any() == claim.name).cloned(),
            claims,
            namespace: Api::<Namespace>::all(client.clone())
                .get_opt(ns)
                .await?
                .map(Arc::new),
            pods: arcs(pods.list(&all).await?.items),
            events: arcs(
                Api::<Event>::namespaced(client.clone(), ns)
                    .list(&warnings)
                    .await?
                    .items,
            ),
            ..Self::default()
        };
        view.read_cluster_scoped(client, claim, pinned).await?;
        Ok(view)
    }

    async fn read_cluster_scoped(
        &mut self,
        client: &Client,
        claim: &ObjectName,
        pinned: Option<&Pins>,
    ) -> Result<(), kube::Error> {
        let (named, everything) = (self.claimed_volume(), ListParams::default());
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let mut volume = match &named {
            Some(pv) => volumes.get_opt(pv).await?,
            None => None,
        };
        if let Some(pins) = pinned
            && !volume.as_ref().is_some_and(|v| is_pinned(v, pins))
        {
            let found = volumes
                .list(&everything)
                .await?
                .items
                .into_iter()
                .find(|v| is_pinned(v, pins));
            volume = found.or(volume);
        }
        self.volume = volume.map(Arc::new);
        let pv = self.volume.as_ref().map(|v| v.name_any()).or(named);
        if pv.is_some() || pinned.is_some() {
            let all = Api::<VolumeAttachment>::all(client.clone())
                .list(&everything)
                .await?
                .items;
            self.attachments = arcs(
                all.into_iter()
                    .filter(|a| is_of(a, pv.as_deref(), pinned))
                    .collect(),
            );
        }
        if let Some(driver) = self.driver_name() {
            self.driver = Api::<CSIDriver>::all(client.clone())
                .get_opt(&driver)
                .await?
                .map(Arc::new);
        }
        for name in self.node_names(claim, pinned) {
            let node = Api::<Node>::all(client.clone()).get_opt(&name).await?;
            self.add_live_node(client, name, node).await?;
        }
        self.read_leases(client).await
    }

    /// Reads the Leases of the view's nodes.
    ///
    /// # Errors
    /// The first read that failed.
    pub async fn read_leases(&mut self, client: &Client) -> Result<(), kube::Error> {
        let api: Api<Lease> = Api::namespaced(client.clone(), NODE_LEASES);
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.leases
                .extend(api.get_opt(&name).await?.map(|l| (name, Arc::new(l))));
        }
        Ok(())
    }

    /// Pods of the namespace that name the claim, sorted by name.
    pub fn pods_of(&self, claim: &str) -> Vec<&Arc<Pod>> {
        let mut pods: Vec<_> = self
            .pods
            .iter()
            .filter(|p| claims_of(p).iter().any(|c| c == claim))
            .collect();
        pods.sort_by_key(|p| p.name_any());
        pods
    }

    fn claimed_volume(&self) -> Option<String> {
        self.claim
            .as_ref()?
            .spec
            .as_ref()?
            .volume_name
            .clone()
            .filter(|n| is_object_name(n))
    }

    fn driver_name(&self) -> Option<String> {
        Some(
            self.volume
                .as_ref()?
                .spec
                .as_ref()?
                .csi
                .as_ref()?
                .driver
                .clone(),
        )
    }

    fn node_names(&self, claim: &ObjectName, pinned: Option<&Pins>) -> BTreeSet<String> {
        let attached = self.attachments.iter().map(|a| a.spec.node_name.clone());
        let bound = self
            .pods_of(&claim.name)
            .into_iter()
            .filter_map(|p| p.spec.as_ref()?.node_name.clone());
        let pinned = pinned.map(|pins| pins.node.to_string());
        attached
            .chain(bound)
            .chain(pinned)
            .filter(|n| is_object_name(n))
            .collect()
    }
}

/// Whether it is the PersistentVolume that a plan pins.
fn is_pinned(volume: &PersistentVolume, pins: &Pins) -> bool {
    volume.metadata.uid.as_deref() == Some(pins.pv.as_str())
}

/// Whether a VolumeAttachment is of this PersistentVolume, or is the one that a plan pins.
fn is_of(attachment: &VolumeAttachment, pv: Option<&str>, pinned: Option<&Pins>) -> bool {
    let uid = attachment.metadata.uid.as_deref();
    let pinned = pinned.and_then(|pins| pins.attachment.as_ref());
    pv.is_some() && attachment.spec.source.persistent_volume_name.as_deref() == pv
        || pinned.is_some_and(|a| uid == Some(a.uid.as_str()))
}

fn arcs<K>(items: Vec<K>) -> Vec<Arc<K>> {
    items.into_iter().map(Arc::new).collect()
}
