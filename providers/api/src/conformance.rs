//! What every provider must do when its cloud misbehaves, as a suite over a [`Harness`].
//!
//! A provider's own tests implement [`Harness`] over a simulated cloud and run [`all`]. The cases judge by the cloud's
//! truth as the harness tells it, not by the provider's words alone.

use crate::{
    DetachOutcome, DetachRequest, EffectKnowledge, Lookup, Provider, ProviderError, Right, RightUse,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use reattach_core::{
    cloud::JobStatus,
    ids::{InstanceId, VolumeId},
    proof::FenceProof,
};
use std::time::Duration;

/// How long a detach may take in these cases.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The objects of a fresh cloud: `volume` is attached to `holder` and nothing else happens.
#[derive(Clone, Debug)]
pub struct Scene {
    /// An attached volume.
    pub volume: VolumeId,
    /// Who holds it.
    pub holder: InstanceId,
    /// Another running instance of the same region.
    pub other: InstanceId,
    /// A volume number that does not exist.
    pub no_volume: VolumeId,
    /// An instance number that does not exist.
    pub no_instance: InstanceId,
}

/// What to do to the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Every request is carried out and answered this much later, even when its sender has given up by then.
    Slow(Duration),
    /// The provider locks the volume and shows it.
    Locked,
    /// The provider locks the volume and does not show it; a detach is refused with words.
    LockedUnseen,
    /// Another job of the cloud's own has the volume.
    Busy,
    /// A detach takes for ever.
    DetachStuck,
    /// Detaches are answered "too many requests".
    ThrottledDetach {
        /// How long to wait, if the answer says.
        retry_after: Option<Duration>,
    },
    /// The next detach is answered 5xx, without an effect.
    ErrorBeforeEffect,
    /// The next detach is answered 5xx, with its effect.
    ErrorAfterEffect,
    /// The connection of the next detach breaks off after its effect.
    CutAfterEffect,
    /// The connection of the next detach breaks off before any effect.
    CutBeforeEffect,
    /// The next detach is answered with a success that is not the provider's own, such as a proxy's page.
    ForeignSuccess,
    /// Reads answer the present state from now on, whatever changes.
    StaleReads,
    /// The volume moves to [`Scene::other`].
    WrongHolder,
    /// The volume is detached at the cloud.
    Unattached {
        /// Whether detaching it again is answered with success; otherwise with an error.
        forgiving: bool,
    },
    /// The volume loses its holder between the read and the detach, and a detach of an unattached volume is an error.
    DetachedMeanwhile,
    /// The volume is deleted.
    VolumeGone,
    /// The holder is deleted.
    InstanceGone,
    /// The credential may only read.
    NoRights,
    /// The credential is not known.
    BadCredential,
    /// The next read fails once in passing.
    ReadFailsOnce,
    /// No read succeeds.
    ReadsFail,
}

/// A provider over a cloud that can be troubled. Each case gets a new one.
pub trait Harness {
    /// The provider under test.
    fn provider(&self) -> &dyn Provider;
    /// What the fresh cloud contains.
    fn scene(&self) -> Scene;
    /// Troubles the cloud.
    fn trouble(&self, trouble: Trouble);
    /// A proof that the holder cannot write to the volume, made by core's checking function.
    fn proof(&self, volume: &VolumeId, holder: &InstanceId) -> FenceProof;
    /// Who holds the volume in truth.
    fn true_holder(&self, volume: &VolumeId) -> Option<InstanceId>;
    /// How many requests to change something arrived.
    fn mutations(&self) -> usize;
    /// Lets every job that can end come to its end.
    fn settle(&self) -> BoxFuture<'_, ()>;
    /// The cloud's present moment.
    fn now(&self) -> Timestamp;
}

/// A broken expectation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{case}: {what}")]
pub struct Broken {
    /// Which case.
    pub case: &'static str,
    /// What was expected and what was found.
    pub what: String,
}

type Checked = Result<(), String>;

/// Runs every case, each on a cloud of its own, and answers what broke.
pub async fn all<H: Harness>(fresh: impl Fn() -> H) -> Vec<Broken> {
    let mut broken = Vec::new();
    macro_rules! run {
        ($($case:ident),* $(,)?) => {$(
            if let Err(what) = $case(&fresh()).await {
                broken.push(Broken { case: stringify!($case), what });
            }
        )*};
    }
    run!(
        plain,
        stuck,
        slow,
        too_slow,
        locked,
        locked_unseen,
        busy,
        detaching,
        throttled,
        throttled_without_a_time,
        error_before_effect,
        error_after_effect,
        cut_before_effect,
        cut_after_effect,
        foreign_success,
        stale_read,
        wrong_holder,
        unattached_forgiving,
        unattached_strict,
        detached_meanwhile,
        volume_gone,
        instance_gone,
        no_rights,
        bad_credential,
        read_retries,
        reads_fail,
        batches,
        job_history,
    );
    broken
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Checked {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found:?}, expected {expected:?}")) }
}

fn that(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

async fn detach(harness: &impl Harness) -> Result<DetachOutcome, ProviderError> {
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

async fn plain<H: Harness>(harness: &H) -> Checked {
    expect(harness, DetachOutcome::Accepted, 1).await?;
    freed(harness).await
}

/// Accepted is a promise: the history shows the job for as long as it is not kept.
async fn stuck<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::DetachStuck);
    let since = harness.now();
    expect(harness, DetachOutcome::Accepted, 1).await?;
    still_held(harness).await?;
    let jobs = harness.provider().jobs(&harness.scene().volume, since).await.map_err(|e| e.to_string())?;
    same("the number of pending jobs", jobs.iter().filter(|j| j.is_pending()).count(), 1)
}

async fn slow<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::Slow(Duration::from_secs(3)));
    expect(harness, DetachOutcome::Accepted, 1).await?;
    freed(harness).await
}

async fn too_slow<H: Harness>(harness: &H) -> Checked {
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

async fn locked<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::Locked);
    let outcome = detach(harness).await;
    that(matches!(outcome, Ok(DetachOutcome::Locked { .. })), || format!("{outcome:?} is not Locked"))?;
    still_held(harness).await
}

async fn locked_unseen<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::LockedUnseen);
    let outcome = detach(harness).await;
    that(matches!(outcome, Ok(DetachOutcome::Locked { .. })), || format!("{outcome:?} is not Locked"))?;
    same("the number of mutating requests", harness.mutations(), 1)?;
    still_held(harness).await
}

async fn busy<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::Busy);
    let outcome = detach(harness).await;
    that(matches!(outcome, Ok(DetachOutcome::Busy { .. })), || format!("{outcome:?} is not Busy"))?;
    that(harness.mutations() <= 1, || "a busy answer was repeated".to_owned())?;
    still_held(harness).await
}

async fn detaching<H: Harness>(harness: &H) -> Checked {
    expect(harness, DetachOutcome::Accepted, 1).await?;
    let again = detach(harness).await;
    same("the second outcome", again, Ok(DetachOutcome::Detaching))?;
    freed(harness).await
}

async fn throttled<H: Harness>(harness: &H) -> Checked {
    throttled_with(harness, Some(Duration::from_secs(17))).await
}

async fn throttled_without_a_time<H: Harness>(harness: &H) -> Checked {
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

async fn error_before_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, Trouble::ErrorBeforeEffect).await?;
    still_held(harness).await
}

async fn error_after_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, Trouble::ErrorAfterEffect).await?;
    freed(harness).await
}

async fn cut_before_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, Trouble::CutBeforeEffect).await?;
    still_held(harness).await
}

async fn cut_after_effect<H: Harness>(harness: &H) -> Checked {
    unknown(harness, Trouble::CutAfterEffect).await?;
    freed(harness).await
}

async fn foreign_success<H: Harness>(harness: &H) -> Checked {
    unknown(harness, Trouble::ForeignSuccess).await
}

/// Reads lag: the provider may not take an old answer for a reason to repeat its detach.
async fn stale_read<H: Harness>(harness: &H) -> Checked {
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

async fn wrong_holder<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::WrongHolder);
    let scene = harness.scene();
    expect(harness, DetachOutcome::AttachedElsewhere(scene.other.clone()), 0).await?;
    harness.settle().await;
    same("the holder", harness.true_holder(&scene.volume), Some(scene.other))
}

async fn unattached_forgiving<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::Unattached { forgiving: true });
    expect(harness, DetachOutcome::AlreadyDetached, 0).await
}

async fn unattached_strict<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::Unattached { forgiving: false });
    expect(harness, DetachOutcome::AlreadyDetached, 0).await
}

async fn detached_meanwhile<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::DetachedMeanwhile);
    expect(harness, DetachOutcome::AlreadyDetached, 1).await
}

async fn volume_gone<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::VolumeGone);
    let scene = harness.scene();
    let found = harness.provider().describe_volumes(std::slice::from_ref(&scene.volume)).await;
    same("the volume", found.get(&scene.volume), Some(&Lookup::NotFound))?;
    let outcome = detach(harness).await;
    that(matches!(outcome, Err(ProviderError::NotFound { .. })), || format!("{outcome:?} is not NotFound"))?;
    same("the number of mutating requests", harness.mutations(), 0)
}

async fn instance_gone<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::InstanceGone);
    let scene = harness.scene();
    let found = harness.provider().describe_instances(std::slice::from_ref(&scene.holder)).await;
    same("the instance", found.get(&scene.holder), Some(&Lookup::NotFound))
}

async fn no_rights<H: Harness>(harness: &H) -> Checked {
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

async fn bad_credential<H: Harness>(harness: &H) -> Checked {
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

async fn read_retries<H: Harness>(harness: &H) -> Checked {
    harness.trouble(Trouble::ReadFailsOnce);
    let scene = harness.scene();
    let found = harness.provider().describe_volumes(std::slice::from_ref(&scene.volume)).await;
    let there = matches!(found.get(&scene.volume), Some(Lookup::Found(_)));
    that(there, || format!("{found:?} after a failure in passing"))
}

async fn reads_fail<H: Harness>(harness: &H) -> Checked {
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

async fn batches<H: Harness>(harness: &H) -> Checked {
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

async fn job_history<H: Harness>(harness: &H) -> Checked {
    let scene = harness.scene();
    let since = harness.now();
    expect(harness, DetachOutcome::Accepted, 1).await?;
    let read = async || harness.provider().jobs(&scene.volume, since).await.map_err(|e| e.to_string());
    let jobs = read().await?;
    let pending = jobs.iter().filter(|j| j.is_pending()).count();
    same("the number of pending jobs", pending, 1)?;
    harness.settle().await;
    let jobs = read().await?;
    that(jobs.iter().all(|j| !j.is_pending()), || format!("{jobs:?} still shows a pending job"))?;
    let done = jobs.last().map(|j| (j.status.clone(), j.volume.clone()));
    same("the last job", done, Some((JobStatus::Finished, Some(scene.volume.clone()))))
}
