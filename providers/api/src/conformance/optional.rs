//! Cases about operations that not every provider supports.

use super::{
    Case, Checked, CloudFault, Harness, TIMEOUT, Verdict, cases::detach, ensure, expect_eq,
};
use crate::{
    DetachOutcome, EffectError, EffectKnowledge, ForceDetachRequest, Optional, PowerOffManner,
    PowerOffRequest, PowerOutcome, ProviderError, SnapshotRequest, Unsupported,
};
use reattach_core::cloud::{InstanceState, PowerChange, SnapshotState};
use std::time::Duration;

/// Label of the snapshots in these cases.
const LABEL: &str = "reattach 7d1c";

/// The volume gets another holder after the read. A provider that compares the holder does not detach it.
pub(super) async fn moved_meanwhile<H: Harness>(harness: &H) -> Case {
    if !harness.provider().capabilities().detach_compares_holder {
        let why = "a detach of this provider names no holder; the caller's hold closes the race"
            .to_owned();
        return Ok(Verdict::NotApplicable(why));
    }
    harness.inject(CloudFault::MovedMeanwhile);
    let outcome = detach(harness).await;
    let refused = match &outcome {
        Ok(DetachOutcome::AttachedElsewhere(other)) => *other == harness.fixture().other,
        Err(error) => error.effect() == EffectKnowledge::NotApplied,
        _ => false,
    };
    ensure(refused, || {
        format!("{outcome:?} although the volume has another holder")
    })?;
    expect_eq("the number of mutating requests", harness.mutations(), 1)?;
    harness.settle().await;
    let fixture = harness.fixture();
    expect_eq(
        "the holder",
        harness.true_holder(&fixture.volume),
        Some(fixture.other),
    )?;
    Ok(Verdict::Held)
}

/// A kubelet handshake leaves the instance running, so it is no proof for a forced detach.
pub(super) async fn force_needs_more_than_a_handshake<H: Harness>(harness: &H) -> Checked {
    let fixture = harness.fixture();
    let proof = harness.proof(&fixture.volume, &fixture.holder);
    let made = ForceDetachRequest::new(proof, TIMEOUT);
    ensure(made.is_err(), || {
        format!("{made:?} rests on a kubelet handshake")
    })?;
    expect_eq("the number of mutating requests", harness.mutations(), 0)
}

fn off(harness: &impl Harness, timeout: Duration) -> PowerOffRequest {
    PowerOffRequest {
        instance: harness.fixture().holder,
        manner: PowerOffManner::Forced,
        timeout,
    }
}

async fn state(harness: &impl Harness) -> Option<InstanceState> {
    let id = harness.fixture().holder;
    let mut found = harness
        .provider()
        .describe_instances(std::slice::from_ref(&id))
        .await;
    found.remove(&id)?.found().map(|instance| instance.state)
}

/// Powers an instance off and on, or expects `Unsupported`.
pub(super) async fn power<H: Harness>(harness: &H) -> Checked {
    let (provider, fixture) = (harness.provider(), harness.fixture());
    let on = async || provider.power_on(&fixture.holder, TIMEOUT).await;
    if !provider.capabilities().can_fence {
        let cannot = Err(EffectError::Unsupported(Unsupported::new(
            provider.name(),
            Optional::Power,
        )));
        expect_eq(
            "powering off",
            provider.power_off(off(harness, TIMEOUT)).await,
            cannot.clone(),
        )?;
        expect_eq("powering on", on().await, cannot)?;
        return expect_eq("the number of mutating requests", harness.mutations(), 0);
    }
    expect_eq(
        "powering off",
        provider.power_off(off(harness, TIMEOUT)).await,
        Ok(PowerOutcome::Accepted),
    )?;
    expect_eq(
        "the state soon after",
        state(harness).await,
        Some(InstanceState::Stopping),
    )?;
    harness.settle().await;
    expect_eq(
        "the state in the end",
        state(harness).await,
        Some(InstanceState::Off),
    )?;
    let again = provider.power_off(off(harness, TIMEOUT)).await;
    expect_eq("powering off again", again, Ok(PowerOutcome::AlreadyThere))?;
    expect_eq("powering on", on().await, Ok(PowerOutcome::Accepted))?;
    // A boot takes longer than a detach.
    harness.settle().await;
    harness.settle().await;
    expect_eq(
        "the state after the boot",
        state(harness).await,
        Some(InstanceState::Running),
    )?;
    expect_eq(
        "the holder",
        harness.true_holder(&fixture.volume),
        Some(fixture.holder),
    )
}

pub(super) async fn power_of_unknown_outcome<H: Harness>(harness: &H) -> Case {
    let provider = harness.provider();
    if !provider.capabilities().can_fence {
        return Ok(Verdict::NotApplicable(
            Unsupported::new(provider.name(), Optional::Power).to_string(),
        ));
    }
    harness.inject(CloudFault::EveryErrorAfterEffect);
    let outcome = provider.power_off(off(harness, TIMEOUT)).await;
    let unknown = matches!(
        outcome,
        Err(EffectError::Failed(ProviderError::Unknown { .. }))
    );
    ensure(unknown, || format!("{outcome:?} is not Unknown"))?;
    expect_eq("the number of mutating requests", harness.mutations(), 1)?;
    harness.settle().await;
    expect_eq(
        "the state in the end",
        state(harness).await,
        Some(InstanceState::Off),
    )?;
    Ok(Verdict::Held)
}

fn order(harness: &impl Harness) -> SnapshotRequest {
    SnapshotRequest {
        volume: harness.fixture().volume,
        label: LABEL.to_owned(),
        timeout: TIMEOUT,
    }
}

/// Makes a snapshot and finds it by its label, or expects `Unsupported`.
pub(super) async fn snapshot<H: Harness>(harness: &H) -> Checked {
    let (provider, fixture) = (harness.provider(), harness.fixture());
    if !provider.capabilities().can_snapshot {
        let cannot =
            EffectError::Unsupported(Unsupported::new(provider.name(), Optional::Snapshot));
        expect_eq(
            "a snapshot",
            provider.snapshot(order(harness)).await,
            Err(cannot.clone()),
        )?;
        expect_eq(
            "the snapshots",
            provider.snapshots(&fixture.volume, LABEL).await,
            Err(cannot),
        )?;
        return expect_eq("the number of mutating requests", harness.mutations(), 0);
    }
    let read = async |label| {
        provider
            .snapshots(&fixture.volume, label)
            .await
            .map_err(|e| e.to_string())
    };
    expect_eq(
        "the number of snapshots before",
        read(LABEL).await?.len(),
        0,
    )?;
    let begun = provider
        .snapshot(order(harness))
        .await
        .map_err(|e| e.to_string())?;
    expect_eq("the snapshot's volume", &begun.volume, &fixture.volume)?;
    harness.settle().await;
    let found = read(LABEL).await?;
    let seen: Vec<_> = found.iter().map(|s| (s.id.as_str(), &s.state)).collect();
    expect_eq(
        "the snapshots",
        seen,
        vec![(begun.id.as_str(), &SnapshotState::Completed)],
    )?;
    expect_eq(
        "the number of snapshots with another label",
        read("another label").await?.len(),
        0,
    )?;
    expect_eq(
        "the holder",
        harness.true_holder(&fixture.volume),
        Some(fixture.holder.clone()),
    )
}

/// A snapshot with an unknown outcome is found by its label, and its request was not repeated.
pub(super) async fn snapshot_of_unknown_outcome<H: Harness>(harness: &H) -> Case {
    let provider = harness.provider();
    if !provider.capabilities().can_snapshot {
        return Ok(Verdict::NotApplicable(
            Unsupported::new(provider.name(), Optional::Snapshot).to_string(),
        ));
    }
    harness.inject(CloudFault::EveryErrorAfterEffect);
    let outcome = provider.snapshot(order(harness)).await;
    let unknown = matches!(
        outcome,
        Err(EffectError::Failed(ProviderError::Unknown { .. }))
    );
    ensure(unknown, || format!("{outcome:?} is not Unknown"))?;
    expect_eq("the number of mutating requests", harness.mutations(), 1)?;
    harness.settle().await;
    let found = provider
        .snapshots(&harness.fixture().volume, LABEL)
        .await
        .map_err(|e| e.to_string())?;
    expect_eq("the number of snapshots", found.len(), 1)?;
    Ok(Verdict::Held)
}

/// One account has one scope, and another account has another one.
pub(super) async fn scope<H: Harness>(harness: &H) -> Case {
    let provider = harness.provider();
    let mine = match provider.scope().await {
        Err(EffectError::Unsupported(cannot)) => {
            return Ok(Verdict::NotApplicable(cannot.to_string()));
        }
        other => other.map_err(|e| e.to_string())?,
    };
    expect_eq(
        "the scope asked again",
        provider.scope().await,
        Ok(mine.clone()),
    )?;
    harness.inject(CloudFault::WrongAccount);
    let other = provider.scope().await;
    ensure(other.as_ref() != Ok(&mine), || {
        format!("another account has the same scope {mine:?}")
    })?;
    Ok(Verdict::Held)
}

/// A shutdown and a boot show as pending while they are under way, and not afterwards.
pub(super) async fn power_history<H: Harness>(harness: &H) -> Case {
    let (provider, holder, since) = (harness.provider(), harness.fixture().holder, harness.now());
    let pending = async || {
        let facts = provider.power_facts(&holder, since).await?;
        let under_way = facts
            .jobs
            .iter()
            .filter(|j| j.is_pending())
            .map(|j| j.change)
            .collect::<Vec<_>>();
        Ok::<_, EffectError>(under_way)
    };
    match pending().await {
        Err(EffectError::Unsupported(cannot)) => {
            return Ok(Verdict::NotApplicable(cannot.to_string()));
        }
        other => expect_eq("power jobs before", other, Ok(vec![]))?,
    }
    let outcome = provider.power_off(off(harness, TIMEOUT)).await;
    expect_eq("powering off", outcome, Ok(PowerOutcome::Accepted))?;
    expect_eq(
        "power jobs under way",
        pending().await,
        Ok(vec![PowerChange::Off]),
    )?;
    harness.settle().await;
    expect_eq("power jobs when off", pending().await, Ok(vec![]))?;
    expect_eq(
        "powering on",
        provider.power_on(&holder, TIMEOUT).await,
        Ok(PowerOutcome::Accepted),
    )?;
    expect_eq(
        "power jobs under way",
        pending().await,
        Ok(vec![PowerChange::On]),
    )?;
    Ok(Verdict::Held)
}
