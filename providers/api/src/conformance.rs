//! What every provider must do when its cloud misbehaves, as a suite over a [`Harness`].
//!
//! A provider's own tests implement [`Harness`] over a simulated cloud and run [`all`]. The cases judge by the cloud's
//! truth as the harness tells it, not by the provider's words alone. What a provider's API does not have is skipped
//! with its reason in the [`Report`]; nothing is skipped silently.

mod cases;
mod optional;
pub mod proof;

use crate::Provider;
use futures::future::BoxFuture;
use jiff::Timestamp;
use reattach_core::{
    ids::{InstanceId, VolumeId},
    proof::FenceProof,
};
use std::{fmt, time::Duration};

/// How long an effect may take in these cases.
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
    /// Every request to change something is answered 5xx, with its effect.
    EveryErrorAfterEffect,
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
    /// The volume moves to [`Scene::other`] between the read and the detach.
    MovedMeanwhile,
    /// The holder is deleted.
    InstanceGone,
    /// The credential is good, and another account's, which has neither the volume nor the instances.
    WrongAccount,
    /// The credential may only read.
    NoRights,
    /// The credential is not known.
    BadCredential,
    /// The next read fails once in passing.
    ReadFailsOnce,
    /// No read succeeds.
    ReadsFail,
    /// Reads of one volume or instance are answered about another volume, which nobody holds, and about
    /// [`Scene::other`].
    MixedUp,
    /// The volume is tagged as one of cluster `lke7`, and the holder as a machine of it; where drivers of this cloud tag
    /// such things, the volume also as made for PersistentVolume `pvc-7` and claim `shop/data`.
    Tagged,
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
    /// How many requests to change something arrived. A request for a dry-run is none.
    fn mutations(&self) -> usize;
    /// Lets every job that can end come to its end.
    fn settle(&self) -> BoxFuture<'_, ()>;
    /// The cloud's present moment.
    fn now(&self) -> Timestamp;
    /// Cases that this provider's API cannot have, by name, each with the reason.
    fn inapplicable(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
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

/// A case that does not apply to a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Which case.
    pub case: &'static str,
    /// Why.
    pub why: String,
}

/// What came of a run of the suite: every case is in exactly one of the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Cases that held.
    pub passed: Vec<&'static str>,
    /// Cases that do not apply.
    pub skipped: Vec<Skipped>,
    /// Cases that did not hold.
    pub broken: Vec<Broken>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, skipped, broken) = (self.passed.len(), self.skipped.len(), self.broken.len());
        writeln!(f, "conformance: {passed} passed, {skipped} skipped, {broken} broken")?;
        for Skipped { case, why } in &self.skipped {
            writeln!(f, "  SKIPPED {case}: {why}")?;
        }
        self.broken.iter().try_for_each(|broken| writeln!(f, "  BROKEN {broken}"))
    }
}

/// What came of one case.
enum Verdict {
    Held,
    NotApplicable(String),
}

type Checked = Result<(), String>;
type Case = Result<Verdict, String>;

/// Runs every case, each on a cloud of its own.
pub async fn all<H: Harness>(fresh: impl Fn() -> H) -> Report {
    let mut report = Report::default();
    let inapplicable = fresh().inapplicable();
    let mut names = Vec::new();
    macro_rules! run {
        ($($file:ident: $($case:ident),* $(,)?;)*) => {$($(
            let case = stringify!($case);
            names.push(case);
            if let Some((_, why)) = inapplicable.iter().find(|(name, _)| *name == case) {
                report.skipped.push(Skipped { case, why: (*why).to_owned() });
            } else {
                match verdict($file::$case(&fresh()).await) {
                    Ok(Verdict::Held) => report.passed.push(case),
                    Ok(Verdict::NotApplicable(why)) => report.skipped.push(Skipped { case, why }),
                    Err(what) => report.broken.push(Broken { case, what }),
                }
            }
        )*)*};
    }
    run! {
        cases:
            plain, stuck, slow, too_slow, locked, locked_unseen, busy, detaching, throttled, throttled_without_a_time,
            error_before_effect, error_after_effect, cut_before_effect, cut_after_effect, foreign_success, stale_read,
            wrong_holder, unattached_forgiving, unattached_strict, detached_meanwhile, volume_gone, instance_gone,
            wrong_account, no_rights, bad_credential, read_retries, reads_fail, mixed_up, owner_tags, batches,
            pending_job, finished_job;
        optional:
            moved_meanwhile, force_needs_more_than_a_handshake, power, power_of_unknown_outcome, snapshot,
            snapshot_of_unknown_outcome, scope, power_history;
    }
    for (case, _) in inapplicable.iter().filter(|(name, _)| !names.contains(name)) {
        let what = "is declared inapplicable, and there is no such case".to_owned();
        report.broken.push(Broken { case, what });
    }
    report
}

/// Cases that can only hold or break answer [`Checked`]; those that depend on what the provider can do, [`Case`].
fn verdict(found: impl IntoCase) -> Case {
    found.into_case()
}

trait IntoCase {
    fn into_case(self) -> Case;
}

impl IntoCase for Checked {
    fn into_case(self) -> Case {
        self.map(|()| Verdict::Held)
    }
}

impl IntoCase for Case {
    fn into_case(self) -> Case {
        self
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Checked {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found:?}, expected {expected:?}")) }
}

fn that(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}
