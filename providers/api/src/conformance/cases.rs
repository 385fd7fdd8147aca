//! Cases that every provider is held to: reads, detach, preflight, jobs.

use super::{Checked, Harness, TIMEOUT, Trouble, same, that};
use crate::{DetachOutcome, DetachRequest, EffectKnowledge, Lookup, ProviderError, Right, RightUse};
use jiff::Timestamp;
use reattach_core::cloud::{CloudJob, InstanceState, JobStatus, OwnerTags};
use std::time::Duration;

pub(super) async fn detach(harness: &impl Harness) -> Result<DetachOutcome, ProviderError> {
    detach_within(harness, TIMEOUT).await
}

async fn detach_within(harness: &impl Harness, timeout: Duration) -> Result<DetachOutcome, ProviderError> {
    let scene = harness.scene();
    let proof = harness.proof(&scene.volume, &scene.holder);
    harness.provider().detach(DetachRequest::plain(proof, timeout)).await
}

/// The detach answered `expected`, after so many mutating requests, and the holder afterwards is as told.
async fn expect(harness: &impl Harness, expected: DetachOutcome, mutations: usize) -> Checked {
    same("the outcome", detach(harness).await, Ok(expected))?;
    same("the number of mutating requests", harness.mutations(), mutations)
}

async fn still_held(harness: &impl Harness) -> Checked {
    harness.settle().await;
    let scene = harness.scene();
    same("the holder", harness.true_holder(&scene.volume), Some(scene.holder))
}

async fn freed(harness: &impl Harness) -> Checked {
    harness.settle().await;
    same("the holder", harness.true_holder(&harness.scene().volume), None)
}

pub(super) async fn plain<H: Harness>(harness: &H) -> Checked {
    expect(harness, DetachOutcome::Accepted, 1).await?;
    freed(harness).await
}

/// Accepted is a promise: the history shows the job for as long as it is not kept.
pub(super) async fn stuck<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::DetachStuck);
    let since = harness.now();
    expect(harness, DetachOutcome::Accepted, 1).await?;
    still_held(harness).await?;
    let jobs = harness.provider().jobs(&harness.scene().volume, since).await.map_err(|e| e.to_string())?;
    same("the number of pending jobs", jobs.iter().filter(|j| j.is_pending()).count(), 1)
}

pub(super) async fn slow<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::Slow(Duration::from_secs(3)));
    expect(harness, DetachOutcome::Accepted, 1).await?;
    freed(harness).await
}

pub(super) async fn too_slow<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::Slow(Duration::from_secs(7)));
    let outcome = detach_within(harness, Duration::from_secs(10)).await;
    let error = outcome.err().ok_or("a detach whose answer came too late is no success")?;
    that(error.effect() == EffectKnowledge::Unknown, || format!("{error:?} says that nothing happened"))?;
    same("the number of mutating requests", harness.mutations(), 1)?;
    let outcome = detach_within(harness, Duration::from_secs(5)).await;
    let error = outcome.err().ok_or("a detach without time for the reading is no success")?;
    that(error.effect() == EffectKnowledge::NotApplied, || format!("{error:?} without a mutation"))?;
    same("the number of mutating requests", harness.mutations(), 1)?;
    // "Unknown" was the truth: the effect comes after all.
    freed(harness).await
}

pub(super) async fn locked<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::Locked);
    let outcome = detach(harness).await;
    that(matches!(outcome, Ok(DetachOutcome::Locked { .. })), || format!("{outcome:?} is not Locked"))?;
    still_held(harness).await
}

pub(super) async fn locked_unseen<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::LockedUnseen);
    let outcome = detach(harness).await;
    that(matches!(outcome, Ok(DetachOutcome::Locked { .. })), || format!("{outcome:?} is not Locked"))?;
    same("the number of mutating requests", harness.mutations(), 1)?;
    still_held(harness).await
}

pub(super) async fn busy<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::Busy);
    let outcome = detach(harness).await;
    that(matches!(outcome, Ok(DetachOutcome::Busy { .. })), || format!("{outcome:?} is not Busy"))?;
    that(harness.mutations() <= 1, || "a busy answer was repeated".to_owned())?;
    still_held(harness).await
}

pub(super) async fn detaching<H: Harness>(harness: &H) -> Checked {
    expect(harness, DetachOutcome::Accepted, 1).await?;
    let again = detach(harness).await;
    same("the second outcome", again, Ok(DetachOutcome::Detaching))?;
    freed(harness).await
}

pub(super) async fn throttled<H: Harness>(harness: &H) -> Checked {
    throttled_with(harness, Some(Duration::from_secs(17))).await
}

pub(super) async fn throttled_without_a_time<H: Harness>(harness: &H) -> Checked {
    throttled_with(harness, None).await
}

async fn throttled_with(harness: &impl Harness, wait: Option<Duration>) -> Checked {
    harness.trouble(Trouble::ThrottledDetach { retry_after: wait });
    let outcome = detach(harness).await;
    let as_expected =
        matches!(&outcome, Err(ProviderError::Throttled { retry_after, .. }) if *retry_after == wait);
    that(as_expected, || format!("{outcome:?} is not Throttled with {wait:?}"))?;
    same("the number of mutating requests", harness.mutations(), 1)?;
    still_held(harness).await
}

/// The outcome is unknown, and nothing was repeated.
async fn unknown(harness: &impl Harness, trouble: Trouble) -> Checked {
    harness.trouble(trouble);
    let outcome = detach(harness).await;
    that(matches!(outcome, Err(ProviderError::Unknown { .. })), || format!("{outcome:?} is not Unknown"))?;
    same("the number of mutating requests", harness.mutations(), 1)
}

pub(super) async fn error_before_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, Trouble::ErrorBeforeEffect).await?;
    still_held(harness).await
}

pub(super) async fn error_after_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, Trouble::ErrorAfterEffect).await?;
    freed(harness).await
}

pub(super) async fn cut_before_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, Trouble::CutBeforeEffect).await?;
    still_held(harness).await
}

pub(super) async fn cut_after_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, Trouble::CutAfterEffect).await?;
    freed(harness).await
}

pub(super) async fn foreign_success<H: Harness>(harness: &H) -> Checked {
    unknown(harness, Trouble::ForeignSuccess).await
}

/// Reads lag: the provider may not take an old answer for a reason to repeat its detach.
pub(super) async fn stale_read<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::StaleReads);
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
    that(harmless, || format!("a detach after the fact answers {again:?}"))?;
    that(harness.mutations() <= 2, || "a detach was repeated".to_owned())
}

pub(super) async fn wrong_holder<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::WrongHolder);
    let scene = harness.scene();
    expect(harness, DetachOutcome::AttachedElsewhere(scene.other.clone()), 0).await?;
    harness.settle().await;
    same("the holder", harness.true_holder(&scene.volume), Some(scene.other))
}

pub(super) async fn unattached_forgiving<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::Unattached { forgiving: true });
    expect(harness, DetachOutcome::AlreadyDetached, 0).await
}

pub(super) async fn unattached_strict<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::Unattached { forgiving: false });
    expect(harness, DetachOutcome::AlreadyDetached, 0).await
}

pub(super) async fn detached_meanwhile<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::DetachedMeanwhile);
    expect(harness, DetachOutcome::AlreadyDetached, 1).await
}

pub(super) async fn volume_gone<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::VolumeGone);
    let scene = harness.scene();
    let found = harness.provider().describe_volumes(std::slice::from_ref(&scene.volume)).await;
    same("the volume", found.get(&scene.volume), Some(&Lookup::NotFound))?;
    let outcome = detach(harness).await;
    that(matches!(outcome, Err(ProviderError::NotFound { .. })), || format!("{outcome:?} is not NotFound"))?;
    same("the number of mutating requests", harness.mutations(), 0)
}

/// Some providers go on showing a deleted instance for a while, as deleted.
pub(super) async fn instance_gone<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::InstanceGone);
    let scene = harness.scene();
    let found = harness.provider().describe_instances(std::slice::from_ref(&scene.holder)).await;
    let gone = match found.get(&scene.holder) {
        Some(Lookup::NotFound) => true,
        Some(Lookup::Found(instance)) => instance.state == InstanceState::Gone,
        _ => false,
    };
    that(gone, || format!("{found:?} for a deleted instance"))?;
    let outcome = detach(harness).await;
    let harmless =
        matches!(outcome, Ok(DetachOutcome::AlreadyDetached) | Err(ProviderError::NotFound { .. }));
    that(harmless, || format!("a detach from a deleted instance answers {outcome:?}"))
}

/// Another account sees neither the volume nor the instance: nothing may be concluded from that, and nothing sent.
pub(super) async fn wrong_account<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::WrongAccount);
    let scene = harness.scene();
    let hidden =
        |e: &ProviderError| matches!(e, ProviderError::Denied { .. } | ProviderError::NotFound { .. });
    let found = harness.provider().describe_volumes(std::slice::from_ref(&scene.volume)).await;
    let unseen = match found.get(&scene.volume) {
        Some(Lookup::NotFound) => true,
        Some(Lookup::Failed(error)) => hidden(error),
        _ => false,
    };
    that(unseen, || format!("{found:?} of another account's volume"))?;
    let found = harness.provider().describe_instances(std::slice::from_ref(&scene.holder)).await;
    let unseen = match found.get(&scene.holder) {
        Some(Lookup::NotFound) => true,
        Some(Lookup::Failed(error)) => hidden(error),
        _ => false,
    };
    that(unseen, || format!("{found:?} of another account's instance"))?;
    let outcome = detach(harness).await;
    that(outcome.as_ref().is_err_and(hidden), || format!("{outcome:?} in another account"))?;
    same("the number of mutating requests", harness.mutations(), 0)?;
    still_held(harness).await
}

/// An answer about another object is refused: the other volume has no holder, so its answer would read as "detached".
pub(super) async fn mixed_up<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::MixedUp);
    let scene = harness.scene();
    let refused = |e: &ProviderError| matches!(e, ProviderError::OtherObject { .. });
    let found = harness.provider().describe_volumes(std::slice::from_ref(&scene.volume)).await;
    let look = found.get(&scene.volume);
    that(matches!(look, Some(Lookup::Failed(e)) if refused(e)), || format!("{look:?} of another volume"))?;
    let found = harness.provider().describe_instances(std::slice::from_ref(&scene.holder)).await;
    let look = found.get(&scene.holder);
    that(matches!(look, Some(Lookup::Failed(e)) if refused(e)), || format!("{look:?} of another instance"))?;
    let outcome = detach(harness).await;
    that(outcome.as_ref().is_err_and(refused), || format!("{outcome:?} after another volume's answer"))?;
    same("the number of mutating requests", harness.mutations(), 0)?;
    still_held(harness).await
}

/// What the cloud knows of an owner is told of the object that has the tags, and of no other.
pub(super) async fn owner_tags<H: Harness>(harness: &H) -> Checked {
    let scene = harness.scene();
    let (volumes, instances) = ([scene.volume.clone()], [scene.holder.clone(), scene.other.clone()]);
    let read = async || {
        let volume = harness.provider().describe_volumes(&volumes).await.remove(&scene.volume);
        let mut machines = harness.provider().describe_instances(&instances).await;
        let mut machine = |id| machines.remove(id).and_then(Lookup::found).map(|i| i.owner);
        (volume.and_then(Lookup::found).map(|v| v.owner), machine(&scene.holder), machine(&scene.other))
    };
    let nothing = Some(OwnerTags::default());
    same("what is told without tags", read().await, (nothing.clone(), nothing.clone(), nothing.clone()))?;
    harness.trouble(Trouble::Tagged);
    let (volume, holder, other) = read().await;
    let cluster = OwnerTags { clusters: ["lke7".into()].into(), ..OwnerTags::default() };
    same("the holder's cluster", holder, Some(cluster.clone()))?;
    same("what is told of the other instance", other, nothing)?;
    let volume = volume.ok_or("the volume was not read")?;
    same("the volume's cluster", volume.clusters, cluster.clusters)?;
    that(volume.volumes.iter().all(|v| v.as_str() == "pvc-7"), || format!("{:?}", volume.volumes))?;
    let claim = volume.claim.map(|c| c.to_string());
    that(claim.as_deref().is_none_or(|c| c == "shop/data"), || format!("{claim:?}"))
}

pub(super) async fn no_rights<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::NoRights);
    let report = harness.provider().preflight().await;
    that(!report.missing(&[RightUse::Detach]).is_empty(), || format!("{report:?} misses no right"))?;
    that(report.missing(&[RightUse::ReadVolumes]).is_empty(), || format!("{report:?} cannot read"))?;
    let outcome = detach(harness).await;
    let named = matches!(&outcome, Err(ProviderError::Denied { missing, .. })
        if report.missing(&[RightUse::Detach]).iter().all(|Right { name, .. }| missing.contains(name)));
    that(named, || format!("{outcome:?} is not Denied, or does not name the missing rights"))?;
    still_held(harness).await
}

pub(super) async fn bad_credential<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::BadCredential);
    let report = harness.provider().preflight().await;
    let denied = matches!(report.failure, Some(ProviderError::Denied { .. }));
    that(denied && !report.is_complete(), || {
        format!("{report:?} does not say that the credential is wrong")
    })?;
    let outcome = detach(harness).await;
    that(matches!(outcome, Err(ProviderError::Denied { .. })), || format!("{outcome:?} is not Denied"))?;
    same("the number of mutating requests", harness.mutations(), 0)
}

pub(super) async fn read_retries<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::ReadFailsOnce);
    let scene = harness.scene();
    let found = harness.provider().describe_volumes(std::slice::from_ref(&scene.volume)).await;
    let there = matches!(found.get(&scene.volume), Some(Lookup::Found(_)));
    that(there, || format!("{found:?} after a failure in passing"))
}

pub(super) async fn reads_fail<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::ReadsFail);
    let scene = harness.scene();
    let volumes = [scene.volume.clone(), scene.no_volume];
    let found = harness.provider().describe_volumes(&volumes).await;
    let failed = |l: &Lookup<_>| matches!(l, Lookup::Failed(e) if e.effect() == EffectKnowledge::NotApplied);
    that(found.len() == 2 && found.values().all(failed), || format!("{found:?} while no read succeeds"))?;
    let outcome = detach(harness).await;
    let error = outcome.err().ok_or("a detach without a read of the holder is no success")?;
    that(error.effect() == EffectKnowledge::NotApplied, || format!("{error:?} without a mutation"))?;
    same("the number of mutating requests", harness.mutations(), 0)
}

pub(super) async fn batches<H: Harness>(harness: &H) -> Checked {
    let scene = harness.scene();
    let volumes = [scene.volume.clone(), scene.no_volume.clone()];
    let found = harness.provider().describe_volumes(&volumes).await;
    same("the number of volumes", found.len(), 2)?;
    same("the missing volume", found.get(&scene.no_volume), Some(&Lookup::NotFound))?;
    let holders = found.get(&scene.volume).cloned().and_then(Lookup::found).map(|v| v.holders);
    same("the holders", holders, Some(vec![scene.holder.clone()]))?;
    let instances = [scene.holder.clone(), scene.other.clone(), scene.no_instance.clone()];
    let found = harness.provider().describe_instances(&instances).await;
    same("the number of instances", found.len(), 3)?;
    same("the missing instance", found.get(&scene.no_instance), Some(&Lookup::NotFound))?;
    let there = |id| matches!(found.get(id), Some(Lookup::Found(_)));
    that(there(&scene.holder) && there(&scene.other), || format!("{found:?}"))
}

/// A detach under way shows as a pending job, whenever it was begun, and no longer when it is over.
pub(super) async fn pending_job<H: Harness>(harness: &H) -> Checked {
    let since = harness.now();
    expect(harness, DetachOutcome::Accepted, 1).await?;
    let volume = harness.scene().volume;
    let jobs = jobs(harness, since).await?;
    let pending: Vec<_> = jobs.iter().filter(|j| j.is_pending()).collect();
    same("the number of pending jobs", pending.len(), 1)?;
    same("the pending job's volume", pending[0].volume.clone(), Some(volume))?;
    harness.settle().await;
    let jobs = self::jobs(harness, since).await?;
    that(jobs.iter().all(|j| !j.is_pending()), || format!("{jobs:?} still shows a pending job"))
}

/// A detach that is over stays in the history.
pub(super) async fn finished_job<H: Harness>(harness: &H) -> Checked {
    let since = harness.now();
    expect(harness, DetachOutcome::Accepted, 1).await?;
    harness.settle().await;
    let jobs = jobs(harness, since).await?;
    let done = jobs.last().map(|j| (j.status.clone(), j.volume.clone()));
    same("the last job", done, Some((JobStatus::Finished, Some(harness.scene().volume))))
}

async fn jobs(harness: &impl Harness, since: Timestamp) -> Result<Vec<CloudJob>, String> {
    harness.provider().jobs(&harness.scene().volume, since).await.map_err(|e| e.to_string())
}
