//! What the post-mortem shows of a volume besides its recovery.

use crate::replica::linode_config;
use crate::world::World;
use reattach_cloud_simulator::in_memory;
use reattach_core::cloud::CloudVolume;
use reattach_core::ids::VolumeId;
use reattach_linode::LinodeProvider;
use reattach_provider_api::{Lookup, Provider};

/// What the cloud says of a volume, as the shipped provider reads it.
pub(crate) async fn describe(world: &World, number: u64) -> Option<CloudVolume> {
    let provider = LinodeProvider::new(in_memory(world.cloud.clone()), linode_config().ok()?);
    let id = VolumeId::new(number.to_string());
    match provider.describe_volumes(std::slice::from_ref(&id)).await.remove(&id) {
        Some(Lookup::Found(volume)) => Some(volume),
        _ => None,
    }
}
