//! When an attempt that did not heal a volume is made again, and by which pauses.

use crate::limits::phase;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reattach_api::{Phase, Retries, VolumeRecovery};

/// The pause after a first attempt that had no effect.
const AFTER_NOTHING: SignedDuration = SignedDuration::from_secs(10);
/// The pause after a first attempt that failed.
const AFTER_FAILURE: SignedDuration = SignedDuration::from_secs(60);
/// From this attempt on one that ended without an effect calls a person, as each failed one does.
pub(crate) const CALLS_A_PERSON: u32 = 3;

/// Whether another attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// At this time.
    At(Timestamp),
    /// No: a person said so.
    Forbidden,
    /// No: the policy allows no more attempts than this.
    Enough(u32),
    /// No: no policy lets reattach act for the claim by itself.
    NoPolicy,
}

/// Whether a recovery that ended at `ended`, as `phase`, is followed by another attempt.
fn again(
    recovery: &VolumeRecovery,
    phase: Phase,
    ended: Timestamp,
    retries: Option<&Retries>,
) -> Again {
    let attempt = recovery.spec.attempt;
    if recovery.spec.abort.is_some() {
        return Again::Forbidden;
    }
    let Some(retries) = retries else {
        return Again::NoPolicy;
    };
    if let Some(most) = retries.attempts.filter(|most| attempt >= *most) {
        return Again::Enough(most);
    }
    let first = if phase == Phase::Withdrawn {
        AFTER_NOTHING
    } else {
        AFTER_FAILURE
    };
    let longest = SignedDuration::from_secs(retries.longest_pause_seconds.into());
    let doubled = 1_i32.checked_shl(attempt.saturating_sub(1).min(20));
    let pause = first.saturating_mul(doubled.unwrap_or(1)).min(longest);
    Again::At(ended.saturating_add(pause).unwrap_or(Timestamp::MAX))
}

/// The same of a recovery whose run is over. None: it did not run, or its end needs no other attempt.
pub(crate) fn after(recovery: &VolumeRecovery, retries: Option<&Retries>) -> Option<Again> {
    let phase = phase(recovery);
    if !matches!(phase, Phase::Failed | Phase::Withdrawn) {
        return None;
    }
    Some(again(recovery, phase, ended(recovery)?, retries))
}

/// When the run of a recovery ended: the time of its last line.
pub(crate) fn ended(recovery: &VolumeRecovery) -> Option<Timestamp> {
    let journal = &recovery.status.as_ref()?.journal;
    journal.last()?.get().ok().map(|line| line.at)
}

/// Writes down when the next attempt is made, if this phase is the end of one that did not heal the volume. Returns the
/// message with that time.
pub(crate) fn announce(
    recovery: &mut VolumeRecovery,
    phase: Phase,
    message: String,
    now: Timestamp,
    retries: Option<&Retries>,
) -> String {
    if !matches!(phase, Phase::Failed | Phase::Withdrawn) {
        return message;
    }
    let again = again(recovery, phase, now, retries);
    let at = match again {
        Again::At(at) => Some(at),
        Again::Forbidden | Again::Enough(_) | Again::NoPolicy => None,
    };
    recovery.status.get_or_insert_default().next_attempt = at.map(Time);
    let then = match again {
        Again::At(at) => format!(
            "attempt {} is made at {}",
            recovery.spec.attempt.saturating_add(1),
            at.strftime("%Y-%m-%dT%H:%M:%SZ")
        ),
        Again::Forbidden => "it was aborted, so no other attempt is made".to_owned(),
        Again::Enough(most) => {
            format!("no other attempt is made, because the policy allows {most}")
        }
        Again::NoPolicy => {
            "no other attempt is made, because no policy lets reattach act for the claim".to_owned()
        }
    };
    format!("{message}; {then}")
}
