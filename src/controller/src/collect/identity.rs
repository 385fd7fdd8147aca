//! Whose the volume and its machines are (safety rule S10): everything in the cluster that leads to the cloud volume,
//! every Node of the machines in question, and the records of machines whose Node is gone.

use super::{Collector, Needs, is_live};
use crate::machines;
use crate::providers::Located;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use reattach_api::NodeVolumeReport;
use reattach_cluster::effects::node::is_ready;
use reattach_cluster::facts;
use reattach_cluster::view::View;
use reattach_core::evidence::{
    CsiSource, Evidence, OtherRegion, OtherUse, OwnClusters, SeenMachine, VolumeFacts,
    VolumeIdentity,
};
use reattach_core::fact::{Fact, Source};
use reattach_core::ids::{
    CloudCluster, DriverName, InstanceId, NodeName, ObjectName, PvName, Uid, VolumeHandle,
};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Collector {
    /// What else leads to the cloud volume, by the provider's reading of every handle and name.
    pub(super) async fn add_identity(
        &self,
        e: &mut Evidence,
        located: &Located,
        needs: Needs<'_>,
    ) -> Result<(), kube::Error> {
        let Some(own) = e.volume.shown().cloned() else {
            return Ok(());
        };
        let ways = self.ways(located, &own, needs).await?;
        let mut others = Vec::new();
        for volume in &ways.volumes {
            others.push(self.other(volume, &ways, needs).await?);
        }
        let inline = |a: &Arc<VolumeAttachment>| match &a.spec.source.inline_volume_spec {
            Some(spec) => handle_of(spec).is_some_and(|csi| located.leads_here(&csi)),
            None => false,
        };
        others.extend(ways.attachments.iter().filter(|a| inline(a)).map(|a| {
            OtherUse::InlineAttachment {
                name: a.name_any(),
                node: NodeName::from(a.spec.node_name.as_str()),
            }
        }));
        others.sort();
        let (holder_clusters, own_clusters) = self.clusters(e, located, &own).await?;
        let cloud = e.cloud_volume.shown();
        let identity = VolumeIdentity {
            canonical: cloud.map(|c| located.provider().canonical_handle(c)),
            others,
            aliases: aliases(e, located, &own),
            region: cloud.and_then(|c| located.other_region(&own, &c.region)),
            own_clusters,
            holder_clusters,
        };
        let source = Source::Kubernetes("PersistentVolumes and VolumeAttachments".to_owned());
        e.identity = Fact::present(identity, source, ways.at);
        Ok(())
    }

    /// The clusters in the tags of the volume's holder, and the names of this cluster in the cloud's tags, where there is
    /// anything to compare them with.
    ///
    /// The holder is left out as long as other machines have names: a Node whose providerID leads to a machine of others would
    /// vouch for itself and for its volume.
    async fn clusters(
        &self,
        e: &Evidence,
        located: &Located,
        own: &VolumeFacts,
    ) -> Result<(BTreeSet<CloudCluster>, OwnClusters), kube::Error> {
        let Some(volume) = e.cloud_volume.shown() else {
            return Ok(Default::default());
        };
        let now = || self.clock.now();
        let holders: BTreeSet<InstanceId> = match &volume.holders[..] {
            [one] => [one.clone()].into(),
            // Without a holder nothing is freed, and more than one is refused anyway.
            _ => BTreeSet::new(),
        };
        let holder_clusters = match located.clusters(&holders, now).await {
            OwnClusters::Known { names } => names,
            OwnClusters::NotAsked | OwnClusters::Unread { .. } => BTreeSet::new(),
        };
        let tagged = &volume.owner.clusters;
        let accepted =
            tagged.is_empty() || tagged.iter().any(|c| own.tagged_as.contains(c.as_str()));
        if accepted && holder_clusters.is_empty() {
            return Ok((holder_clusters, OwnClusters::NotAsked));
        }
        let other = |n: &Node| is_ready(n) && !e.nodes.contains_key(&NodeName::from(n.name_any()));
        // Tags of machines are older than any cache, so that a live read of the volume needs no live list of Nodes.
        let mut others: Vec<Arc<Node>> = match &self.cache {
            Some(cache) => cache.nodes.filter(other),
            None => {
                let all = Api::<Node>::all(self.clients.read.clone())
                    .list(&ListParams::default())
                    .await?;
                all.items.into_iter().filter(other).map(Arc::new).collect()
            }
        };
        others.sort_by_key(|n| n.name_any());
        let instance = |n: &Arc<Node>| {
            let id = n.spec.as_ref().and_then(|s| s.provider_id.as_deref())?;
            located.provider().resolve_instance(id)?.ok()
        };
        let mut machines: BTreeSet<InstanceId> = others
            .iter()
            .filter_map(instance)
            .take(OTHER_MACHINES)
            .collect();
        machines.extend(e.nodes.values().filter_map(|f| f.shown()?.instance.clone()));
        let machines = machines.difference(&holders).cloned().collect();
        let names = match located.clusters(&machines, now).await {
            // No other machine has a name to compare with, as in a cluster of one node.
            OwnClusters::Known { names } if names.is_empty() => OwnClusters::Known {
                names: holder_clusters.clone(),
            },
            told => told,
        };
        Ok((holder_clusters, names))
    }

    /// Every PersistentVolume but the claim's own that leads to the cloud volume, and every VolumeAttachment.
    async fn ways(
        &self,
        located: &Located,
        own: &VolumeFacts,
        needs: Needs<'_>,
    ) -> Result<Ways, kube::Error> {
        let leads_here = |v: &PersistentVolume| {
            v.name_any() != own.name.as_str()
                && v.spec
                    .as_ref()
                    .and_then(handle_of)
                    .is_some_and(|csi| located.leads_here(&csi))
        };
        let may_lead_here = |volumes: &[Arc<PersistentVolume>], a: &VolumeAttachment| {
            let source = &a.spec.source;
            let named = source.persistent_volume_name.as_ref();
            source.inline_volume_spec.is_some()
                || volumes.iter().any(|v| Some(&v.name_any()) == named)
        };
        if let Some(cache) = self.cache.as_ref().filter(|_| !is_live(needs)) {
            let volumes = cache.volumes.filter(leads_here);
            let attachments = cache.attachments.filter(|a| may_lead_here(&volumes, a));
            return Ok(Ways {
                at: cache.as_of(),
                volumes,
                attachments,
            });
        }
        let (at, all) = (self.clock.now(), ListParams::default());
        let read = &self.clients.read;
        let volumes = Api::<PersistentVolume>::all(read.clone())
            .list(&all)
            .await?
            .items;
        let volumes: Vec<_> = volumes
            .into_iter()
            .filter(leads_here)
            .map(Arc::new)
            .collect();
        let attachments = Api::<VolumeAttachment>::all(read.clone())
            .list(&all)
            .await?
            .items;
        let attachments = attachments
            .into_iter()
            .filter(|a| may_lead_here(&volumes, a));
        let attachments = attachments.map(Arc::new).collect();
        Ok(Ways {
            at,
            volumes,
            attachments,
        })
    }

    /// Another PersistentVolume with its claim, its VolumeAttachments and the pods of that claim.
    async fn other(
        &self,
        volume: &PersistentVolume,
        ways: &Ways,
        needs: Needs<'_>,
    ) -> Result<OtherUse, kube::Error> {
        let name = volume.name_any();
        let own = ways
            .attachments
            .iter()
            .filter(|a| a.spec.source.persistent_volume_name.as_ref() == Some(&name));
        let attachments = own
            .map(|a| format!("{} on {}", a.name_any(), a.spec.node_name))
            .collect();
        let claim = facts::claim_ref(volume)?.map(|of| of.claim);
        let pods = match &claim {
            Some(claim) => self.pods_of(claim, needs).await?,
            None => Vec::new(),
        };
        Ok(OtherUse::PersistentVolume {
            name: PvName::from(name),
            claim,
            attachments,
            pods,
        })
    }

    async fn pods_of(
        &self,
        claim: &ObjectName,
        needs: Needs<'_>,
    ) -> Result<Vec<ObjectName>, kube::Error> {
        let pods = self.pods_that_name(claim, is_live(needs)).await?;
        let pods = facts::names(pods.iter().map(AsRef::as_ref))?;
        Ok(pods.into_iter().map(|(name, _)| name).collect())
    }

    /// Every Node of a machine that the evidence is about: the cloud's holders, to which no VolumeAttachment and no pod may
    /// lead, and the machines of the Nodes that were read, which another Node may claim too.
    pub(super) async fn add_nodes_of_machines(
        &self,
        e: &mut Evidence,
        needs: Needs<'_>,
    ) -> Result<(), kube::Error> {
        let mut machines: BTreeSet<InstanceId> = e
            .nodes
            .values()
            .filter_map(|f| f.shown()?.instance.clone())
            .collect();
        machines.extend(
            e.cloud_volume
                .shown()
                .into_iter()
                .flat_map(|v| v.holders.clone()),
        );
        if machines.is_empty() {
            return Ok(());
        }
        let resolve = |id: &str| self.providers.instance(id);
        let known: BTreeSet<String> = e.nodes.keys().map(ToString::to_string).collect();
        let instance = |n: &Node| {
            n.spec
                .as_ref()
                .and_then(|s| resolve(s.provider_id.as_deref()?))
        };
        let which = |n: &Node| {
            !known.contains(&n.name_any()) && instance(n).is_some_and(|i| machines.contains(&i))
        };
        let (mut view, at) = match &self.cache {
            Some(cache) if !is_live(needs) => (View::cached_nodes(cache, which), cache.as_of()),
            _ => {
                let at = self.clock.now();
                (View::live_nodes(&self.clients.read, which).await?, at)
            }
        };
        if matches!(needs, Needs::Execute { .. })
            && view.leases.is_empty()
            && !view.nodes.is_empty()
        {
            view.read_leases(&self.clients.read).await?;
        }
        facts::add_nodes(e, &view, &resolve, at);
        Ok(())
    }

    /// What our records say of holders that are behind no Node now.
    pub(super) async fn add_machines(
        &self,
        e: &mut Evidence,
        needs: Needs<'_>,
    ) -> Result<(), kube::Error> {
        let behind_a_node = |i: &&InstanceId| {
            e.nodes
                .values()
                .any(|f| f.shown().is_some_and(|n| n.instance.as_ref() == Some(*i)))
        };
        let holders = e
            .cloud_volume
            .shown()
            .map_or(&[][..], |v| v.holders.as_slice());
        let strange: BTreeSet<&InstanceId> = holders.iter().filter(|i| !behind_a_node(i)).collect();
        let source = Source::Kubernetes("NodeVolumeReports".to_owned());
        let cache = self.cache.as_ref().filter(|_| !is_live(needs));
        let (at, cluster, reports) = match cache {
            _ if strange.is_empty() => (self.clock.now(), None, Vec::new()),
            Some(cache) => {
                let reports = cache.reports.filter(|r| !r.spec.machines.is_empty());
                (cache.as_of(), machines::cluster(cache), reports)
            }
            None => {
                let at: Timestamp = self.clock.now();
                let all = Api::<NodeVolumeReport>::all(self.clients.read.clone());
                let all = all.list(&ListParams::default()).await?.items;
                // A person may lack the right; then no record is known to be of this cluster.
                let own = Api::<Namespace>::all(self.clients.read.clone())
                    .get(machines::CLUSTER)
                    .await;
                let cluster = own.ok().and_then(|n| n.uid()).map(Uid::from);
                (at, cluster, all.into_iter().map(Arc::new).collect())
            }
        };
        // A record that cannot be read shows no machine.
        let seen = reports
            .iter()
            .flat_map(|r| &r.spec.machines)
            .filter_map(|m| m.get().ok());
        let ours = |m: &&SeenMachine| {
            strange.contains(&m.instance) && Some(&m.cluster) == cluster.as_ref()
        };
        let machines = seen.filter(ours).cloned().collect();
        e.machines = Fact::present(machines, source, at);
        Ok(())
    }
}

/// So many machines of Ready Nodes are asked for their tags, besides those of the Nodes that the evidence has anyway. All
/// machines of a cluster are tagged alike; more than one is asked, since one may have been made by hand.
const OTHER_MACHINES: usize = 3;

/// What may lead to the cloud volume.
struct Ways {
    at: Timestamp,
    volumes: Vec<Arc<PersistentVolume>>,
    attachments: Vec<Arc<VolumeAttachment>>,
}

/// Driver and handle of a PersistentVolume, as the CSI driver gets them: also of an in-tree EBS volume, which Kubernetes
/// hands to the driver (`pkg/volume/csi-translation-lib/plugins/aws_ebs.go`: the last part of `aws://<zone>/vol-…`).
fn handle_of(spec: &k8s_openapi::api::core::v1::PersistentVolumeSpec) -> Option<CsiSource> {
    if let Some(csi) = &spec.csi {
        return Some(CsiSource {
            driver: DriverName::from(csi.driver.as_str()),
            handle: VolumeHandle::from(csi.volume_handle.as_str()),
        });
    }
    let in_tree = spec.aws_elastic_block_store.as_ref()?;
    Some(in_tree_ebs(&in_tree.volume_id))
}

fn in_tree_ebs(volume: &str) -> CsiSource {
    let id = volume.rsplit('/').next().unwrap_or(volume);
    CsiSource {
        driver: DriverName::from("ebs.csi.aws.com"),
        handle: VolumeHandle::from(id),
    }
}

/// The names in Node status and agents' reports that come to the cloud volume under another spelling than the claim's.
fn aliases(e: &Evidence, located: &Located, own: &VolumeFacts) -> BTreeSet<String> {
    let own = own.csi.as_ref().map(CsiSource::unique_name);
    let nodes = e.nodes.values().filter_map(|f| f.shown());
    let listed = nodes
        .flat_map(|n| n.volumes_in_use.iter().chain(&n.volumes_attached))
        .cloned();
    let guests = e.guests.values().filter_map(|f| f.shown());
    let mounted = guests.flat_map(|g| &g.csi_volumes).map(|v| {
        CsiSource {
            driver: v.driver.clone(),
            handle: v.handle.clone(),
        }
        .unique_name()
    });
    let leads_here = |name: &String| {
        let in_tree = || Some(in_tree_ebs(name.strip_prefix("kubernetes.io/aws-ebs/")?));
        let csi = CsiSource::of_unique_name(name).or_else(in_tree);
        Some(name) != own.as_ref() && csi.is_some_and(|csi| located.leads_here(&csi))
    };
    listed.chain(mounted).filter(leads_here).collect()
}

impl Located {
    /// Whether the driver takes this source for the same cloud volume, however its handle is spelled.
    fn leads_here(&self, csi: &CsiSource) -> bool {
        self.provider()
            .volume_as_driver_reads(&csi.driver, &csi.handle)
            .as_ref()
            == Some(&self.id)
    }

    /// The region or zone that the PersistentVolume asks for, where the cloud has the volume in another one.
    fn other_region(&self, volume: &VolumeFacts, is: &str) -> Option<OtherRegion> {
        let asked = volume.topology.get(self.provider().topology_key()?)?;
        let asked_for = asked
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        (!asked.contains(is)).then(|| OtherRegion {
            asked: asked_for,
            is: is.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_in_tree_volume_leads_to_the_csi_drivers() {
        let handle = |spec: serde_json::Value| handle_of(&serde_json::from_value(spec).unwrap());
        let csi = |handle: &str| {
            Some(CsiSource {
                driver: "ebs.csi.aws.com".into(),
                handle: handle.into(),
            })
        };
        let in_tree = |id: &str| handle(json!({"awsElasticBlockStore": {"volumeID": id}}));
        assert_eq!(
            in_tree("aws://eu-central-1a/vol-1234abcd"),
            csi("vol-1234abcd")
        );
        assert_eq!(in_tree("vol-1234abcd"), csi("vol-1234abcd"));
        let own = json!({"csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "vol-1"}});
        assert_eq!(handle(own), csi("vol-1"));
        assert_eq!(handle(json!({"hostPath": {"path": "/data"}})), None);
    }
}
