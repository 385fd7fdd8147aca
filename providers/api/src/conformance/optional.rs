//! Cases about what some providers can and others cannot.

use super::{Case, Checked, Harness, TIMEOUT, Trouble, Verdict, cases::detach, same, that};
use crate::{
    DetachOutcome, EffectError, EffectKnowledge, ForceDetachRequest, Optional, PowerOffManner,
    PowerOffRequest, PowerOutcome, ProviderError, SnapshotRequest, Unsupported,
};
use reattach_core::cloud::{InstanceState, PowerChange, SnapshotState};
use std::time::Duration;

/// What snapshots are ordered with in these cases.
const LABEL: &str = "reattach 7d1c";

/// The volume gets another holder after the read: a provider that compares the holder does not take it away.
pub(super) async fn moved_meanwhile<H: Harness>(harness: &H) -> Case {
    if !harness.provider().capabilities().detach_compares_holder {
        let why = "a detach of this provider names no holder; the caller's hold closes the race".to_owned();
        return Ok(Verdict::NotApplicable(why));
    }
    harness.trouble(Trouble::MovedMeanwhile);
    let outcome = detach(harness).await;
    let refused = match &outcome {
        Ok(DetachOutcome::AttachedElsewhere(other)) => *other == harness.scene().other,
        Err(error) => error.effect() == EffectKnowledge::NotApplied,
        _ => false,
    };
    that(refused, || format!("{outcome:?} although the volume has another holder"))?;
    same("the number of mutating requests", harness.mutations(), 1)?;
    harness.settle().await;
    let scene = harness.scene();
    same("the holder", harness.true_holder(&scene.volume), Some(scene.other))?;
    Ok(Verdict::Held)
}

/// A kubelet's word lets its instance run on, so it is no ground for force.
pub(super) async fn force_needs_more_than_a_handshake<H: Harness>(harness: &H) -> Checked {
    let scene = harness.scene();
    let proof = harness.proof(&scene.volume, &scene.holder);
    let made = ForceDetachRequest::new(proof, TIMEOUT);
    that(made.is_err(), || format!("{made:?} rests on a kubelet handshake"))?;
    same("the number of mutating requests", harness.mutations(), 0)
}

fn off(harness: &impl Harness, timeout: Duration) -> PowerOffRequest {
    PowerOffRequest { instance: harness.scene().holder, manner: PowerOffManner::Forced, timeout }
}

async fn state(harness: &impl Harness) -> Option<InstanceState> {
    let id = harness.scene().holder;
    let mut found = harness.provider().describe_instances(std::slice::from_ref(&id)).await;
    found.remove(&id)?.found().map(|instance| instance.state)
}

/// Off and on again, or a plain "cannot".
pub(super) async fn power<H: Harness>(harness: &H) -> Checked {
    let (provider, scene) = (harness.provider(), harness.scene());
    let on = async || provider.power_on(&scene.holder, TIMEOUT).await;
    if !provider.capabilities().can_fence {
        let cannot = Err(EffectError::Unsupported(Unsupported::new(provider.name(), Optional::Power)));
        same("powering off", provider.power_off(off(harness, TIMEOUT)).await, cannot.clone())?;
        same("powering on", on().await, cannot)?;
        return same("the number of mutating requests", harness.mutations(), 0);
    }
    same("powering off", provider.power_off(off(harness, TIMEOUT)).await, Ok(PowerOutcome::Accepted))?;
    same("the state soon after", state(harness).await, Some(InstanceState::Stopping))?;
    harness.settle().await;
    same("the state in the end", state(harness).await, Some(InstanceState::Off))?;
    let again = provider.power_off(off(harness, TIMEOUT)).await;
    same("powering off again", again, Ok(PowerOutcome::AlreadyThere))?;
    same("powering on", on().await, Ok(PowerOutcome::Accepted))?;
    // A boot takes longer than a detach.
    harness.settle().await;
    harness.settle().await;
    same("the state after the boot", state(harness).await, Some(InstanceState::Running))?;
    same("the holder", harness.true_holder(&scene.volume), Some(scene.holder))
}

pub(super) async fn power_of_unknown_outcome<H: Harness>(harness: &H) -> Case {
    let provider = harness.provider();
    if !provider.capabilities().can_fence {
        return Ok(Verdict::NotApplicable(Unsupported::new(provider.name(), Optional::Power).to_string()));
    }
    harness.trouble(Trouble::EveryErrorAfterEffect);
    let outcome = provider.power_off(off(harness, TIMEOUT)).await;
    let unknown = matches!(outcome, Err(EffectError::Failed(ProviderError::Unknown { .. })));
    that(unknown, || format!("{outcome:?} is not Unknown"))?;
    same("the number of mutating requests", harness.mutations(), 1)?;
    harness.settle().await;
    same("the state in the end", state(harness).await, Some(InstanceState::Off))?;
    Ok(Verdict::Held)
}

fn order(harness: &impl Harness) -> SnapshotRequest {
    SnapshotRequest { volume: harness.scene().volume, label: LABEL.to_owned(), timeout: TIMEOUT }
}

/// A snapshot that completes and is found by its label, or a plain "cannot".
pub(super) async fn snapshot<H: Harness>(harness: &H) -> Checked {
    let (provider, scene) = (harness.provider(), harness.scene());
    if !provider.capabilities().can_snapshot {
        let cannot = EffectError::Unsupported(Unsupported::new(provider.name(), Optional::Snapshot));
        same("a snapshot", provider.snapshot(order(harness)).await, Err(cannot.clone()))?;
        same("the snapshots", provider.snapshots(&scene.volume, LABEL).await, Err(cannot))?;
        return same("the number of mutating requests", harness.mutations(), 0);
    }
    let read = async |label| provider.snapshots(&scene.volume, label).await.map_err(|e| e.to_string());
    same("the number of snapshots before", read(LABEL).await?.len(), 0)?;
    let begun = provider.snapshot(order(harness)).await.map_err(|e| e.to_string())?;
    same("the snapshot's volume", &begun.volume, &scene.volume)?;
    harness.settle().await;
    let found = read(LABEL).await?;
    let seen: Vec<_> = found.iter().map(|s| (s.id.as_str(), &s.state)).collect();
    same("the snapshots", seen, vec![(begun.id.as_str(), &SnapshotState::Completed)])?;
    same("the number of snapshots with another label", read("another label").await?.len(), 0)?;
    same("the holder", harness.true_holder(&scene.volume), Some(scene.holder.clone()))
}

/// An order of unknown outcome is found again by its label, and was not repeated.
pub(super) async fn snapshot_of_unknown_outcome<H: Harness>(harness: &H) -> Case {
    let provider = harness.provider();
    if !provider.capabilities().can_snapshot {
        return Ok(Verdict::NotApplicable(Unsupported::new(provider.name(), Optional::Snapshot).to_string()));
    }
    harness.trouble(Trouble::EveryErrorAfterEffect);
    let outcome = provider.snapshot(order(harness)).await;
    let unknown = matches!(outcome, Err(EffectError::Failed(ProviderError::Unknown { .. })));
    that(unknown, || format!("{outcome:?} is not Unknown"))?;
    same("the number of mutating requests", harness.mutations(), 1)?;
    harness.settle().await;
    let found = provider.snapshots(&harness.scene().volume, LABEL).await.map_err(|e| e.to_string())?;
    same("the number of snapshots", found.len(), 1)?;
    Ok(Verdict::Held)
}

/// The same account answers the same, another one does not, and neither shows its name.
pub(super) async fn scope<H: Harness>(harness: &H) -> Case {
    let provider = harness.provider();
    let mine = match provider.scope().await {
        Err(EffectError::Unsupported(cannot)) => return Ok(Verdict::NotApplicable(cannot.to_string())),
        other => other.map_err(|e| e.to_string())?,
    };
    same("the scope asked again", provider.scope().await, Ok(mine.clone()))?;
    harness.trouble(Trouble::WrongAccount);
    let other = provider.scope().await;
    that(other.as_ref() != Ok(&mine), || format!("another account has the same scope {mine:?}"))?;
    Ok(Verdict::Held)
}

/// A shutdown and a boot under way show, and nothing is left of them when they are over but what is over.
pub(super) async fn power_history<H: Harness>(harness: &H) -> Case {
    let (provider, holder, since) = (harness.provider(), harness.scene().holder, harness.now());
    let pending = async || {
        let facts = provider.power_facts(&holder, since).await?;
        let under_way = facts.jobs.iter().filter(|j| j.is_pending()).map(|j| j.change).collect::<Vec<_>>();
        Ok::<_, EffectError>(under_way)
    };
    match pending().await {
        Err(EffectError::Unsupported(cannot)) => return Ok(Verdict::NotApplicable(cannot.to_string())),
        other => same("power jobs before", other, Ok(vec![]))?,
    }
    let outcome = provider.power_off(off(harness, TIMEOUT)).await;
    same("powering off", outcome, Ok(PowerOutcome::Accepted))?;
    same("power jobs under way", pending().await, Ok(vec![PowerChange::Off]))?;
    harness.settle().await;
    same("power jobs when off", pending().await, Ok(vec![]))?;
    same("powering on", provider.power_on(&holder, TIMEOUT).await, Ok(PowerOutcome::Accepted))?;
    same("power jobs under way", pending().await, Ok(vec![PowerChange::On]))?;
    Ok(Verdict::Held)
}
