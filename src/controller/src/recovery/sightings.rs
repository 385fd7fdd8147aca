//! What a recovery saw of instances: "not found" and "off" mean something only after it was seen there before.

use reattach_api::VolumeRecovery;
use reattach_core::cloud::{InstanceState, JobStatus, PowerChange};
use reattach_core::evidence::Evidence;
use reattach_core::ids::InstanceId;
use reattach_core::proof::Sighting;
use std::collections::BTreeSet;

/// How many are kept: what the schema of `status.sightings` allows.
const KEPT: usize = 32;

/// Writes down what the evidence shows of instances and was not seen so before. Returns whether it wrote anything.
///
/// A sighting is as old as the request that brought it, so that the same answer never counts twice.
pub(super) fn note(recovery: &mut VolumeRecovery, evidence: &Evidence) -> bool {
    let Some(scope) = &evidence.cloud_scope else { return false };
    let holders = evidence.cloud_volume.shown().map(|v| v.holders.as_slice()).unwrap_or_default();
    let known: BTreeSet<&InstanceId> = evidence.instances.keys().chain(holders).collect();
    let seen = known.into_iter().filter_map(|instance| {
        let fact = evidence.instances.get(instance);
        let described = fact.and_then(|f| Some((Some(f.shown()?.state.clone()), f.at)));
        // Not described itself; then at least as the holder of its volume.
        let as_holder = || holders.contains(instance).then_some((None, evidence.cloud_volume.at));
        let (state, at) = described.or_else(as_holder)?;
        Some(Sighting { instance: instance.clone(), scope: scope.clone(), state, at })
    });
    let status = recovery.status.get_or_insert_default();
    let mut wrote = false;
    for new in seen {
        let last =
            status.sightings.iter().rev().filter_map(|s| s.get().ok()).find(|s| s.instance == new.instance);
        let news = last.is_none_or(|last| {
            last.at < new.at
                && (last.state != new.state || last.scope != new.scope || is_of_before(last, &new, evidence))
        });
        if news {
            status.sightings.push(new.into());
            wrote = true;
        }
    }
    let too_many = status.sightings.len().saturating_sub(KEPT);
    status.sightings.drain(..too_many);
    wrote
}

/// Off both times, and a shutdown job ended in between: only a reading from after it counts as the first of two.
fn is_of_before(last: &Sighting, new: &Sighting, evidence: &Evidence) -> bool {
    if new.state != Some(InstanceState::Off) {
        return false;
    }
    let facts = evidence.power.get(&new.instance).and_then(|f| f.shown());
    let off = facts.into_iter().flat_map(|f| &f.jobs).filter(|j| j.change == PowerChange::Off);
    let finished = off.filter(|j| j.status == JobStatus::Finished).filter_map(|j| j.finished).max();
    finished.is_some_and(|finished| last.at < finished && finished <= new.at)
}
