//! The cloud's view of a volume, for the post-mortem.

use crate::world::World;
use reattach_cloud_simulator::{VolumeNo, in_memory};
use reattach_core::cloud::CloudVolume;
use reattach_core::ids::{DriverName, VolumeHandle};
use reattach_provider_api::Lookup;

/// Reads a volume at the cloud by the shipped provider.
pub(crate) async fn describe(world: &World, number: u64) -> Option<CloudVolume> {
    let provider = (world.profile().provider)(in_memory(world.cloud.clone())).ok()?;
    let handle = VolumeHandle::from(world.ground().handle(VolumeNo(number), "x"));
    let id = provider
        .resolve_volume(&DriverName::from(world.ground().driver()), &handle)?
        .ok()?;
    match provider
        .describe_volumes(std::slice::from_ref(&id))
        .await
        .remove(&id)
    {
        Some(Lookup::Found(volume)) => Some(volume),
        _ => None,
    }
}
