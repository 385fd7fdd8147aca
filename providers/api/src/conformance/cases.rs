//! Cases that apply to every provider: reads, detach, preflight, jobs.

use super::{Checked, CloudFault, Harness, TIMEOUT, ensure, expect_eq};
use crate::{
    DetachOutcome, DetachRequest, EffectKnowledge, Lookup, ProviderError, Right, RightUse,
};
use jiff::Timestamp;
use reattach_core::cloud::{CloudJob, InstanceState, JobStatus, OwnerTags};
use std::time::Duration;

pub(super) async fn detach(harness: &impl Harness) -> Result<DetachOutcome, ProviderError> {
    detach_within(harness, TIMEOUT).await
}

async fn detach_within(
    harness: &impl Harness,
    timeout: Duration,
) -> Result<DetachOutcome, ProviderError> {
    let fixture = harness.fixture();
    let proof = harness.proof(&fixture.volume, &fixture.holder);
    harness
        .provider()
        .detach(DetachRequest::plain(proof, timeout))
        .await
}

/// Expects this outcome of a detach, after this number of mutations.
async fn expect(harness: &impl Harness, expected: DetachOutcome, mutations: usize) -> Checked {
    expect_eq("the outcome", detach(harness).await, Ok(expected))?;
    expect_eq(
        "the number of mutating requests",
        harness.mutations(),
        mutations,
    )
}

async fn still_held(harness: &impl Harness) -> Checked {
    harness.settle().await;
    let fixture = harness.fixture();
    expect_eq(
        "the holder",
        harness.true_holder(&fixture.volume),
        Some(fixture.holder),
    )
}

async fn freed(harness: &impl Harness) -> Checked {
    harness.settle().await;
    expect_eq(
        "the holder",
        harness.true_holder(&harness.fixture().volume),
        None,
    )
}

pub(super) async fn plain<H: Harness>(harness: &H) -> Checked {
    expect(harness, DetachOutcome::Accepted, 1).await?;
    freed(harness).await
}

/// `Accepted` is a promise: the history shows the pending job until the detach has finished.
pub(super) async fn stuck<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::DetachStuck);
    let since = harness.now();
    expect(harness, DetachOutcome::Accepted, 1).await?;
    still_held(harness).await?;
    let jobs = harness
        .provider()
        .jobs(&harness.fixture().volume, since)
        .await
        .map_err(|e| e.to_string())?;
    expect_eq(
        "the number of pending jobs",
        jobs.iter().filter(|j| j.is_pending()).count(),
        1,
    )
}

pub(super) async fn slow<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::Slow(Duration::from_secs(3)));
    expect(harness, DetachOutcome::Accepted, 1).await?;
    freed(harness).await
}

pub(super) async fn too_slow<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::Slow(Duration::from_secs(7)));
    let outcome = detach_within(harness, Duration::from_secs(10)).await;
    let error = outcome
        .err()
        .ok_or("a detach whose answer came too late is no success")?;
    ensure(error.effect() == EffectKnowledge::Unknown, || {
        format!("{error:?} says that nothing happened")
    })?;
    expect_eq("the number of mutating requests", harness.mutations(), 1)?;
    let outcome = detach_within(harness, Duration::from_secs(5)).await;
    let error = outcome
        .err()
        .ok_or("a detach without time for the reading is no success")?;
    ensure(error.effect() == EffectKnowledge::NotApplied, || {
        format!("{error:?} without a mutation")
    })?;
    expect_eq("the number of mutating requests", harness.mutations(), 1)?;
    // "Unknown" was right: the effect happened later.
    freed(harness).await
}

pub(super) async fn locked<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::Locked);
    let outcome = detach(harness).await;
    ensure(matches!(outcome, Ok(DetachOutcome::Locked { .. })), || {
        format!("{outcome:?} is not Locked")
    })?;
    still_held(harness).await
}

pub(super) async fn locked_unseen<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::LockedUnseen);
    let outcome = detach(harness).await;
    ensure(matches!(outcome, Ok(DetachOutcome::Locked { .. })), || {
        format!("{outcome:?} is not Locked")
    })?;
    expect_eq("the number of mutating requests", harness.mutations(), 1)?;
    still_held(harness).await
}

pub(super) async fn busy<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::Busy);
    let outcome = detach(harness).await;
    ensure(matches!(outcome, Ok(DetachOutcome::Busy { .. })), || {
        format!("{outcome:?} is not Busy")
    })?;
    ensure(harness.mutations() <= 1, || {
        "a busy answer was repeated".to_owned()
    })?;
    still_held(harness).await
}

pub(super) async fn detaching<H: Harness>(harness: &H) -> Checked {
    expect(harness, DetachOutcome::Accepted, 1).await?;
    let again = detach(harness).await;
    expect_eq("the second outcome", again, Ok(DetachOutcome::Detaching))?;
    freed(harness).await
}

pub(super) async fn throttled<H: Harness>(harness: &H) -> Checked {
    throttled_with(harness, Some(Duration::from_secs(17))).await
}

pub(super) async fn throttled_without_a_time<H: Harness>(harness: &H) -> Checked {
    throttled_with(harness, None).await
}

async fn throttled_with(harness: &impl Harness, wait: Option<Duration>) -> Checked {
    harness.inject(CloudFault::ThrottledDetach { retry_after: wait });
    let outcome = detach(harness).await;
    let as_expected = matches!(&outcome, Err(ProviderError::Throttled { retry_after, .. }) if *retry_after == wait);
    ensure(as_expected, || {
        format!("{outcome:?} is not Throttled with {wait:?}")
    })?;
    expect_eq("the number of mutating requests", harness.mutations(), 1)?;
    still_held(harness).await
}

/// Expects an unknown outcome after one mutation.
async fn unknown(harness: &impl Harness, fault: CloudFault) -> Checked {
    harness.inject(fault);
    let outcome = detach(harness).await;
    ensure(
        matches!(outcome, Err(ProviderError::Unknown { .. })),
        || format!("{outcome:?} is not Unknown"),
    )?;
    expect_eq("the number of mutating requests", harness.mutations(), 1)
}

pub(super) async fn error_before_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, CloudFault::ErrorBeforeEffect).await?;
    still_held(harness).await
}

pub(super) async fn error_after_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, CloudFault::ErrorAfterEffect).await?;
    freed(harness).await
}

pub(super) async fn cut_before_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, CloudFault::CutBeforeEffect).await?;
    still_held(harness).await
}

pub(super) async fn cut_after_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, CloudFault::CutAfterEffect).await?;
    freed(harness).await
}

pub(super) async fn foreign_success<H: Harness>(harness: &H) -> Checked {
    unknown(harness, CloudFault::ForeignSuccess).await
}

/// A stale read is no reason to repeat a detach.
pub(super) async fn stale_read<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::StaleReads);
    expect(harness, DetachOutcome::Accepted, 1).await?;
    freed(harness).await?;
    let again = detach(harness).await;
    let harmless = matches!(
        again,
        Ok(DetachOutcome::Accepted
            | DetachOutcome::AlreadyDetached
            | DetachOutcome::Busy { .. }
            | DetachOutcome::Detaching)
            | Err(ProviderError::NotApplied { .. } | ProviderError::NotFound { .. })
    );
    ensure(harmless, || {
        format!("a detach after the fact answers {again:?}")
    })?;
    ensure(harness.mutations() <= 2, || {
        "a detach was repeated".to_owned()
    })
}

pub(super) async fn wrong_holder<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::WrongHolder);
    let fixture = harness.fixture();
    expect(
        harness,
        DetachOutcome::AttachedElsewhere(fixture.other.clone()),
        0,
    )
    .await?;
    harness.settle().await;
    expect_eq(
        "the holder",
        harness.true_holder(&fixture.volume),
        Some(fixture.other),
    )
}

pub(super) async fn unattached_forgiving<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::Unattached { forgiving: true });
    expect(harness, DetachOutcome::AlreadyDetached, 0).await
}

pub(super) async fn unattached_strict<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::Unattached { forgiving: false });
    expect(harness, DetachOutcome::AlreadyDetached, 0).await
}

pub(super) async fn detached_meanwhile<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::DetachedMeanwhile);
    expect(harness, DetachOutcome::AlreadyDetached, 1).await
}

pub(super) async fn volume_gone<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::VolumeGone);
    let fixture = harness.fixture();
    let found = harness
        .provider()
        .describe_volumes(std::slice::from_ref(&fixture.volume))
        .await;
    expect_eq(
        "the volume",
        found.get(&fixture.volume),
        Some(&Lookup::NotFound),
    )?;
    let outcome = detach(harness).await;
    ensure(
        matches!(outcome, Err(ProviderError::NotFound { .. })),
        || format!("{outcome:?} is not NotFound"),
    )?;
    expect_eq("the number of mutating requests", harness.mutations(), 0)
}

/// Some providers show a deleted instance for a while, as deleted.
pub(super) async fn instance_gone<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::InstanceGone);
    let fixture = harness.fixture();
    let found = harness
        .provider()
        .describe_instances(std::slice::from_ref(&fixture.holder))
        .await;
    let gone = match found.get(&fixture.holder) {
        Some(Lookup::NotFound) => true,
        Some(Lookup::Found(instance)) => instance.state == InstanceState::Gone,
        _ => false,
    };
    ensure(gone, || format!("{found:?} for a deleted instance"))?;
    let outcome = detach(harness).await;
    let harmless = matches!(
        outcome,
        Ok(DetachOutcome::AlreadyDetached) | Err(ProviderError::NotFound { .. })
    );
    ensure(harmless, || {
        format!("a detach from a deleted instance answers {outcome:?}")
    })
}

/// Another account sees neither the volume nor the instance. Nothing may be concluded from that, and nothing sent.
pub(super) async fn wrong_account<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::WrongAccount);
    let fixture = harness.fixture();
    let hidden = |e: &ProviderError| {
        matches!(
            e,
            ProviderError::Denied { .. } | ProviderError::NotFound { .. }
        )
    };
    let found = harness
        .provider()
        .describe_volumes(std::slice::from_ref(&fixture.volume))
        .await;
    let unseen = match found.get(&fixture.volume) {
        Some(Lookup::NotFound) => true,
        Some(Lookup::Failed(error)) => hidden(error),
        _ => false,
    };
    ensure(unseen, || format!("{found:?} of another account's volume"))?;
    let found = harness
        .provider()
        .describe_instances(std::slice::from_ref(&fixture.holder))
        .await;
    let unseen = match found.get(&fixture.holder) {
        Some(Lookup::NotFound) => true,
        Some(Lookup::Failed(error)) => hidden(error),
        _ => false,
    };
    ensure(unseen, || {
        format!("{found:?} of another account's instance")
    })?;
    let outcome = detach(harness).await;
    ensure(outcome.as_ref().is_err_and(hidden), || {
        format!("{outcome:?} in another account")
    })?;
    expect_eq("the number of mutating requests", harness.mutations(), 0)?;
    still_held(harness).await
}

/// An answer about another object is refused. The other volume has no holder, so its answer would look like "detached".
pub(super) async fn mixed_up<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::MixedUp);
    let fixture = harness.fixture();
    let refused = |e: &ProviderError| matches!(e, ProviderError::OtherObject { .. });
    let found = harness
        .provider()
        .describe_volumes(std::slice::from_ref(&fixture.volume))
        .await;
    let look = found.get(&fixture.volume);
    ensure(
        matches!(look, Some(Lookup::Failed(e)) if refused(e)),
        || format!("{look:?} of another volume"),
    )?;
    let found = harness
        .provider()
        .describe_instances(std::slice::from_ref(&fixture.holder))
        .await;
    let look = found.get(&fixture.holder);
    ensure(
        matches!(look, Some(Lookup::Failed(e)) if refused(e)),
        || format!("{look:?} of another instance"),
    )?;
    let outcome = detach(harness).await;
    ensure(outcome.as_ref().is_err_and(refused), || {
        format!("{outcome:?} after another volume's answer")
    })?;
    expect_eq("the number of mutating requests", harness.mutations(), 0)?;
    still_held(harness).await
}

/// The owner tags of an object are reported for this object only.
pub(super) async fn owner_tags<H: Harness>(harness: &H) -> Checked {
    let fixture = harness.fixture();
    let (volumes, instances) = (
        [fixture.volume.clone()],
        [fixture.holder.clone(), fixture.other.clone()],
    );
    let read = async || {
        let volume = harness
            .provider()
            .describe_volumes(&volumes)
            .await
            .remove(&fixture.volume);
        let mut machines = harness.provider().describe_instances(&instances).await;
        let mut machine = |id| machines.remove(id).and_then(Lookup::found).map(|i| i.owner);
        (
            volume.and_then(Lookup::found).map(|v| v.owner),
            machine(&fixture.holder),
            machine(&fixture.other),
        )
    };
    let nothing = Some(OwnerTags::default());
    expect_eq(
        "what is told without tags",
        read().await,
        (nothing.clone(), nothing.clone(), nothing.clone()),
    )?;
    harness.inject(CloudFault::Tagged);
    let (volume, holder, other) = read().await;
    let cluster = OwnerTags {
        clusters: ["lke7".into()].into(),
        ..OwnerTags::default()
    };
    expect_eq("the holder's cluster", holder, Some(cluster.clone()))?;
    expect_eq("what is told of the other instance", other, nothing)?;
    let volume = volume.ok_or("the volume was not read")?;
    expect_eq("the volume's cluster", volume.clusters, cluster.clusters)?;
    ensure(volume.volumes.iter().all(|v| v.as_str() == "pvc-7"), || {
        format!("{:?}", volume.volumes)
    })?;
    let claim = volume.claim.map(|c| c.to_string());
    ensure(claim.as_deref().is_none_or(|c| c == "shop/data"), || {
        format!("{claim:?}")
    })
}

pub(super) async fn no_rights<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::NoRights);
    let report = harness.provider().preflight().await;
    ensure(!report.missing(&[RightUse::Detach]).is_empty(), || {
        format!("{report:?} misses no right")
    })?;
    ensure(report.missing(&[RightUse::ReadVolumes]).is_empty(), || {
        format!("{report:?} cannot read")
    })?;
    let outcome = detach(harness).await;
    let named = matches!(&outcome, Err(ProviderError::Denied { missing, .. })
        if report.missing(&[RightUse::Detach]).iter().all(|Right { name, .. }| missing.contains(name)));
    ensure(named, || {
        format!("{outcome:?} is not Denied, or does not name the missing rights")
    })?;
    still_held(harness).await
}

pub(super) async fn bad_credential<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::BadCredential);
    let report = harness.provider().preflight().await;
    let denied = matches!(report.failure, Some(ProviderError::Denied { .. }));
    ensure(denied && !report.is_complete(), || {
        format!("{report:?} does not say that the credential is wrong")
    })?;
    let outcome = detach(harness).await;
    ensure(matches!(outcome, Err(ProviderError::Denied { .. })), || {
        format!("{outcome:?} is not Denied")
    })?;
    expect_eq("the number of mutating requests", harness.mutations(), 0)
}

pub(super) async fn read_retries<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::ReadFailsOnce);
    let fixture = harness.fixture();
    let found = harness
        .provider()
        .describe_volumes(std::slice::from_ref(&fixture.volume))
        .await;
    let there = matches!(found.get(&fixture.volume), Some(Lookup::Found(_)));
    ensure(there, || format!("{found:?} after a failure in passing"))
}

pub(super) async fn reads_fail<H: Harness>(harness: &H) -> Checked {
    harness.inject(CloudFault::ReadsFail);
    let fixture = harness.fixture();
    let volumes = [fixture.volume.clone(), fixture.no_volume];
    let found = harness.provider().describe_volumes(&volumes).await;
    let failed =
        |l: &Lookup<_>| matches!(l, Lookup::Failed(e) if e.effect() == EffectKnowledge::NotApplied);
    ensure(found.len() == 2 && found.values().all(failed), || {
        format!("{found:?} while no read succeeds")
    })?;
    let outcome = detach(harness).await;
    let error = outcome
        .err()
        .ok_or("a detach without a read of the holder is no success")?;
    ensure(error.effect() == EffectKnowledge::NotApplied, || {
        format!("{error:?} without a mutation")
    })?;
    expect_eq("the number of mutating requests", harness.mutations(), 0)
}

pub(super) async fn batches<H: Harness>(harness: &H) -> Checked {
    let fixture = harness.fixture();
    let volumes = [fixture.volume.clone(), fixture.no_volume.clone()];
    let found = harness.provider().describe_volumes(&volumes).await;
    expect_eq("the number of volumes", found.len(), 2)?;
    expect_eq(
        "the missing volume",
        found.get(&fixture.no_volume),
        Some(&Lookup::NotFound),
    )?;
    let holders = found
        .get(&fixture.volume)
        .cloned()
        .and_then(Lookup::found)
        .map(|v| v.holders);
    expect_eq("the holders", holders, Some(vec![fixture.holder.clone()]))?;
    let instances = [
        fixture.holder.clone(),
        fixture.other.clone(),
        fixture.no_instance.clone(),
    ];
    let found = harness.provider().describe_instances(&instances).await;
    expect_eq("the number of instances", found.len(), 3)?;
    expect_eq(
        "the missing instance",
        found.get(&fixture.no_instance),
        Some(&Lookup::NotFound),
    )?;
    let there = |id| matches!(found.get(id), Some(Lookup::Found(_)));
    ensure(there(&fixture.holder) && there(&fixture.other), || {
        format!("{found:?}")
    })
}

/// A detach shows as a pending job from its begin to its end.
pub(super) async fn pending_job<H: Harness>(harness: &H) -> Checked {
    let since = harness.now();
    expect(harness, DetachOutcome::Accepted, 1).await?;
    let volume = harness.fixture().volume;
    let jobs = jobs(harness, since).await?;
    let pending: Vec<_> = jobs.iter().filter(|j| j.is_pending()).collect();
    expect_eq("the number of pending jobs", pending.len(), 1)?;
    expect_eq(
        "the pending job's volume",
        pending[0].volume.clone(),
        Some(volume),
    )?;
    harness.settle().await;
    let jobs = self::jobs(harness, since).await?;
    ensure(jobs.iter().all(|j| !j.is_pending()), || {
        format!("{jobs:?} still shows a pending job")
    })
}

/// A finished detach stays in the history.
pub(super) async fn finished_job<H: Harness>(harness: &H) -> Checked {
    let since = harness.now();
    expect(harness, DetachOutcome::Accepted, 1).await?;
    harness.settle().await;
    let jobs = jobs(harness, since).await?;
    let done = jobs.last().map(|j| (j.status.clone(), j.volume.clone()));
    expect_eq(
        "the last job",
        done,
        Some((JobStatus::Finished, Some(harness.fixture().volume))),
    )
}

async fn jobs(harness: &impl Harness, since: Timestamp) -> Result<Vec<CloudJob>, String> {
    harness
        .provider()
        .jobs(&harness.fixture().volume, since)
        .await
        .map_err(|e| e.to_string())
}
