//! From a VolumeRecovery to the record that the post-mortem is made of.

use crate::replica::linode_config;
use crate::world::World;
use kube::ResourceExt;
use reattach_api::VolumeRecovery;
use reattach_cloud_simulator::in_memory;
use reattach_core::cloud::CloudVolume;
use reattach_core::ids::{ObjectName, VolumeId};
use reattach_core::report::Record;
use reattach_linode::LinodeProvider;
use reattach_provider_api::{Lookup, Provider};

/// The record of one recovery, with the cloud's view of its volume.
pub(crate) fn record(recovery: &VolumeRecovery, cloud_volume: Option<CloudVolume>) -> Record {
    let status = recovery.status.clone().unwrap_or_default();
    let namespace = recovery.namespace().unwrap_or_default();
    Record {
        recovery: ObjectName::new(namespace.as_str(), recovery.name_any()),
        claim: ObjectName::new(namespace, recovery.spec.claim_name.as_str()),
        mode: recovery.spec.mode,
        requester: recovery.spec.requester.clone(),
        reason: recovery.spec.reason.clone(),
        phase: format!("{:?}", status.phase),
        message: status.message,
        diagnosis: status.diagnosis.map(|d| d.0),
        refusals: status.refusals,
        plan: status.plan.map(|p| p.0),
        journal: status.journal.into_iter().map(|e| e.0).collect(),
        created: recovery.creation_timestamp().map_or(jiff::Timestamp::UNIX_EPOCH, |t| t.0),
        cloud_volume,
    }
}

/// What the cloud says of a volume, as the shipped provider reads it.
pub(crate) async fn describe(world: &World, number: u64) -> Option<CloudVolume> {
    let provider = LinodeProvider::new(in_memory(world.cloud.clone()), linode_config().ok()?);
    let id = VolumeId::new(number.to_string());
    match provider.describe_volumes(std::slice::from_ref(&id)).await.remove(&id) {
        Some(Lookup::Found(volume)) => Some(volume),
        _ => None,
    }
}
