//! The suite of tests that every provider passes, over a [`Harness`]: what a provider does when its cloud misbehaves.
//!
//! A provider's own tests implement [`Harness`] over a simulated cloud and run [`all`]. The cases check the
//! real state of the cloud, which the harness reports, and not only what the provider returns. A case that does not apply
//! to a provider's API is skipped with a reason in the [`Report`].

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

/// Timeout of the effects in these cases.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The objects of a new cloud: `volume` is attached to `holder`, and nothing else happens.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Volume that is attached to `holder`.
    pub volume: VolumeId,
    /// Instance that has `volume`.
    pub holder: InstanceId,
    /// Another running instance in the region of `holder`.
    pub other: InstanceId,
    /// Identifier of a volume that does not exist.
    pub no_volume: VolumeId,
    /// Identifier of an instance that does not exist.
    pub no_instance: InstanceId,
}

/// A fault of the cloud, or a change of its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudFault {
    /// Every request has its effect and is answered after this delay, also when its sender no longer waits.
    Slow(Duration),
    /// The provider locks the volume and shows it.
    Locked,
    /// The provider locks the volume and does not show it. A detach is refused with a text.
    LockedUnseen,
    /// Another job of the cloud's own runs on the volume.
    Busy,
    /// A detach is accepted and does not finish.
    DetachStuck,
    /// Detaches are refused because of the rate limit.
    ThrottledDetach {
        /// Time to wait that the answer names, if any.
        retry_after: Option<Duration>,
    },
    /// The next detach is answered 5xx, without an effect.
    ErrorBeforeEffect,
    /// The next detach is answered 5xx, with its effect.
    ErrorAfterEffect,
    /// Every mutation is answered 5xx, with its effect.
    EveryErrorAfterEffect,
    /// The connection of the next detach breaks off after its effect.
    CutAfterEffect,
    /// The connection of the next detach breaks off before any effect.
    CutBeforeEffect,
    /// The next detach is answered with a success of another server, such as a proxy's page.
    ForeignSuccess,
    /// Reads answer the present state from now on, although the real state changes.
    StaleReads,
    /// The volume moves to [`Fixture::other`].
    WrongHolder,
    /// The volume is detached at the cloud.
    Unattached {
        /// Whether a detach of the unattached volume is answered with success. Otherwise with an error.
        forgiving: bool,
    },
    /// The volume loses its holder between the read and the detach, and a detach of an unattached volume is an error.
    DetachedMeanwhile,
    /// The volume is deleted.
    VolumeGone,
    /// The volume moves to [`Fixture::other`] between the read and the detach.
    MovedMeanwhile,
    /// The holder is deleted.
    InstanceGone,
    /// The credential is valid and belongs to another account, which has neither the volume nor the instances.
    WrongAccount,
    /// The credential has only rights to read.
    NoRights,
    /// The provider does not know the credential.
    BadCredential,
    /// The next read fails; later ones work.
    ReadFailsOnce,
    /// All reads fail.
    ReadsFail,
    /// Reads of one volume are answered with another volume, which is not attached. Reads of one instance are answered
    /// with [`Fixture::other`].
    MixedUp,
    /// Volume and holder have the tags of cluster `lke7`. Where drivers of this cloud set such tags, the volume also has
    /// those of PersistentVolume `pvc-7` and claim `shop/data`.
    Tagged,
}

/// A provider over a simulated cloud. Each case gets a new one.
pub trait Harness {
    /// Returns the provider under test.
    fn provider(&self) -> &dyn Provider;
    /// Returns the objects of the new cloud.
    fn fixture(&self) -> Fixture;
    /// Injects a fault into the cloud.
    fn inject(&self, fault: CloudFault);
    /// Makes a proof that the holder cannot write to the volume, with core's checking function.
    fn proof(&self, volume: &VolumeId, holder: &InstanceId) -> FenceProof;
    /// Returns the real holder of the volume.
    fn true_holder(&self, volume: &VolumeId) -> Option<InstanceId>;
    /// Returns the number of mutations that arrived. A dry-run is no mutation.
    fn mutations(&self) -> usize;
    /// Waits until all jobs have ended that can end.
    fn settle(&self) -> BoxFuture<'_, ()>;
    /// Returns the present time of the cloud.
    fn now(&self) -> Timestamp;
    /// Returns the names of the cases that do not apply to this provider's API, each with the reason.
    fn inapplicable(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
}

/// A case that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{case}: {what}")]
pub struct Broken {
    /// Name of the case.
    pub case: &'static str,
    /// Expected and found values.
    pub what: String,
}

/// A case that does not apply to a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Name of the case.
    pub case: &'static str,
    /// Reason for which it does not apply.
    pub why: String,
}

/// The result of a run of the suite. Every case is in exactly one of the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Cases that passed.
    pub passed: Vec<&'static str>,
    /// Cases that do not apply.
    pub skipped: Vec<Skipped>,
    /// Cases that failed.
    pub broken: Vec<Broken>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, skipped, broken) = (self.passed.len(), self.skipped.len(), self.broken.len());
        writeln!(
            f,
            "conformance: {passed} passed, {skipped} skipped, {broken} broken"
        )?;
        for Skipped { case, why } in &self.skipped {
            writeln!(f, "  SKIPPED {case}: {why}")?;
        }
        self.broken
            .iter()
            .try_for_each(|broken| writeln!(f, "  BROKEN {broken}"))
    }
}

/// The result of one case.
enum Verdict {
    Held,
    NotApplicable(String),
}

type Checked = Result<(), String>;
type Case = Result<Verdict, String>;

/// Runs all cases, each on a new cloud.
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
    for (case, _) in inapplicable
        .iter()
        .filter(|(name, _)| !names.contains(name))
    {
        let what = "is declared inapplicable, and there is no such case".to_owned();
        report.broken.push(Broken { case, what });
    }
    report
}

/// Converts the result of a case. A case that applies to every provider returns [`Checked`], any other returns [`Case`].
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

fn expect_eq<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Checked {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{what} is {found:?}, expected {expected:?}"))
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}
