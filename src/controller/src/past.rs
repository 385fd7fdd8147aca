//! What became of earlier recoveries of a claim, and when another one may begin.

use crate::attempts::{self, Again};
use crate::limits::phase;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use reattach_api::{Phase, Retries, VolumeRecovery};
use reattach_core::diagnosis::Class;
use std::sync::Arc;

/// The pause after a failed attempt at other trouble of the claim never grows beyond this: a machine that was booted meanwhile
/// may heal at once.
const LONGEST_AFTER_OTHER: SignedDuration = SignedDuration::from_mins(5);
/// An attempt at other trouble of the claim counts as one before this for so long.
const RECENT: SignedDuration = SignedDuration::from_hours(1);

/// When a recovery of a claim's present trouble may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum May {
    /// At once.
    Now,
    /// At this time: an earlier one did not heal the volume.
    From(Timestamp),
    /// Not by itself: a person ended one of this very trouble, or the policy allows no other attempt.
    Never,
}

/// The recoveries of one claim that are over, as they bear on its present trouble.
#[derive(Debug, Default)]
pub(crate) struct Past<'a> {
    /// The newest one of this very trouble.
    last: Option<&'a VolumeRecovery>,
    /// A person aborted one of this very trouble, since one came right.
    aborted: bool,
    /// The newest one of this very trouble and class that did not heal the volume, since one came right.
    unhealed: Option<&'a VolumeRecovery>,
    /// The same of other trouble of this class.
    unhealed_other: Option<&'a VolumeRecovery>,
    /// The newest one of another class that did not heal the volume.
    of_other_class: Option<&'a VolumeRecovery>,
}

impl<'a> Past<'a> {
    /// Of these recoveries of the claim. `trouble` is the fingerprint of the present trouble, and `class` its class: none if
    /// it cannot be told, or is not ours to heal now.
    pub fn of(own: &'a [Arc<VolumeRecovery>], trouble: &str, class: Option<Class>) -> Self {
        let is_same = |r: &VolumeRecovery| {
            r.name_any()
                .rsplit_once('-')
                .is_some_and(|(same, _)| same == trouble)
        };
        let newest = |which: &dyn Fn(&VolumeRecovery) -> bool| {
            own.iter()
                .map(|r| &**r)
                .filter(|r| phase(r).is_final() && which(r))
                .max_by_key(|r| (r.creation_timestamp(), attempts::ended(r), r.spec.attempt))
        };
        let right = newest(&|r| is_same(r) && came_right(r)).map(|r| r.creation_timestamp());
        let since = |r: &VolumeRecovery| {
            right
                .as_ref()
                .is_none_or(|right| r.creation_timestamp() >= *right)
        };
        let unhealed = |r: &VolumeRecovery| is_unhealed(r) && is_of_class(r, class) && since(r);
        Self {
            last: newest(&is_same),
            aborted: newest(&|r| is_same(r) && is_aborted(r) && since(r)).is_some(),
            unhealed: newest(&|r| is_same(r) && unhealed(r)),
            unhealed_other: newest(&|r| !is_same(r) && unhealed(r)),
            of_other_class: newest(&|r| is_unhealed(r) && !is_of_class(r, class)),
        }
    }

    /// When another recovery may begin, by what the policy says of attempts. None: no policy lets anything be done.
    pub fn again(&self, retries: Option<&Retries>) -> May {
        if self.aborted {
            return May::Never;
        }
        let other = self.unhealed_other.and_then(|r| {
            let longest = attempts::ended(r)?
                .saturating_add(LONGEST_AFTER_OTHER)
                .ok()?;
            match attempts::after(r, retries)? {
                Again::At(at) => Some(at.min(longest)),
                Again::Forbidden | Again::Enough(_) | Again::NoPolicy => None,
            }
        });
        let same = match self.unhealed.map(|r| attempts::after(r, retries)) {
            None => None,
            Some(Some(Again::At(at))) => Some(at),
            Some(Some(Again::Forbidden | Again::Enough(_) | Again::NoPolicy) | None) => {
                return May::Never;
            }
        };
        same.max(other).map_or(May::Now, May::From)
    }

    /// The newest recovery of this very trouble that is over.
    pub fn last(&self) -> Option<&'a VolumeRecovery> {
        self.last
    }

    /// The number of the attempt that may begin at `now`.
    pub fn next_attempt(&self, now: Timestamp) -> u32 {
        let recent = |r: &&VolumeRecovery| is_recent(r, now);
        let before = [self.unhealed, self.unhealed_other.filter(recent)];
        let most = before.into_iter().flatten().map(|r| r.spec.attempt).max();
        most.map_or(1, |attempt| attempt.saturating_add(1))
    }

    /// The reason of the recovery that may begin at `now`.
    pub fn reason(&self, why: &str, now: Timestamp) -> String {
        if let Some(unhealed) = self.unhealed {
            return format!("{why}; again after {}", unhealed.name_any());
        }
        let other = self.of_other_class.filter(|r| is_recent(r, now));
        match other.and_then(|r| Some((r, r.status.as_ref()?.class_name()?))) {
            Some((other, class)) => format!(
                "{why}; it takes over from {}, which was for class {class}",
                other.name_any()
            ),
            None => why.to_owned(),
        }
    }
}

fn is_recent(recovery: &VolumeRecovery, now: Timestamp) -> bool {
    attempts::ended(recovery).is_some_and(|at| now.duration_since(at) < RECENT)
}

/// Whether this recovery is over and did not heal the volume.
fn is_unhealed(recovery: &VolumeRecovery) -> bool {
    matches!(phase(recovery), Phase::Failed | Phase::Withdrawn)
}

/// Whether a person ended this recovery, or forbade the attempts after it. An abort that came too late is none.
fn is_aborted(recovery: &VolumeRecovery) -> bool {
    let over = is_unhealed(recovery) || phase(recovery) == Phase::Aborted;
    over && recovery.spec.abort.is_some()
}

/// Whether it was for trouble of this class, as far as both are known. What one that failed left may have another class,
/// which has another order and begins at once.
fn is_of_class(recovery: &VolumeRecovery, class: Option<Class>) -> bool {
    let was = recovery.status.as_ref().and_then(|s| s.class.as_deref());
    was.zip(class)
        .is_none_or(|(was, now)| now.to_string() == was)
}

/// Whether it ended well, or because it was not wanted at the time and without a person's abort (a policy, an opt-out). A
/// fault after it is a new one, also where pods, machine and VolumeAttachment are still the same: a slow attach that came
/// right, and later a device that is lost; an opt-out that is taken back.
fn came_right(recovery: &VolumeRecovery) -> bool {
    match phase(recovery) {
        Phase::Recovered | Phase::Resolved => true,
        Phase::Aborted => recovery.spec.abort.is_none(),
        Phase::Diagnosing
        | Phase::NotOurs
        | Phase::Waiting
        | Phase::Refused
        | Phase::Planned
        | Phase::AwaitingApproval
        | Phase::Running
        | Phase::Restoring
        | Phase::Withdrawn
        | Phase::Failed
        | Phase::Stuck => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{May, Past};
    use jiff::Timestamp;
    use reattach_api::{Retries, VolumeRecovery};
    use reattach_core::diagnosis::Class;
    use serde_json::{Value, json};
    use std::sync::Arc;

    const TROUBLE: &str = "redis-data-cafe";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    /// A recovery of class E that ended so many seconds after the beginning.
    fn over(
        phase: &str,
        trouble: &str,
        ended: i64,
        change: impl Fn(&mut Value),
    ) -> Arc<VolumeRecovery> {
        let line = json!({"seq": 0, "at": at(ended).to_string(), "term": 1, "by": "test",
            "mark": {"mark": "accepted", "planHash": "x", "authority": "test"}});
        let mut record = json!({
            "metadata": {"name": format!("{trouble}-{ended}"), "creationTimestamp": at(ended - 100).to_string()},
            "spec": {"claimName": "redis-data", "mode": "Auto", "runbook": "lightest-first", "requester": "reattach"},
            "status": {"phase": phase, "class": "E", "journal": [line]},
        });
        change(&mut record);
        Arc::new(serde_json::from_value(record).unwrap_or_else(|e| panic!("{e}")))
    }

    fn plain(phase: &str, trouble: &str, ended: i64) -> Arc<VolumeRecovery> {
        over(phase, trouble, ended, |_| ())
    }

    fn attempt(phase: &str, number: u32) -> Arc<VolumeRecovery> {
        over(phase, TROUBLE, 0, |r| r["spec"]["attempt"] = number.into())
    }

    fn may(own: &[Arc<VolumeRecovery>], class: Option<Class>) -> May {
        Past::of(own, TROUBLE, class).again(Some(&Retries::default()))
    }

    #[test]
    fn the_pauses_grow_up_to_the_longest() {
        for (phase, number, seconds) in [
            ("Withdrawn", 1, 10),
            ("Withdrawn", 2, 20),
            ("Withdrawn", 30, 3_600),
            ("Failed", 1, 60),
            ("Failed", 2, 120),
            ("Failed", 6, 1_920),
            ("Failed", 7, 3_600),
            ("Failed", 4_000_000_000, 3_600),
        ] {
            let own = [attempt(phase, number)];
            assert_eq!(
                may(&own, Some(Class::E)),
                May::From(at(seconds)),
                "{phase} {number}"
            );
            assert_eq!(
                may(&own, None),
                May::From(at(seconds)),
                "a class that is not known is no other one"
            );
            let past = Past::of(&own, TROUBLE, Some(Class::E));
            assert_eq!(past.next_attempt(at(seconds)), number.saturating_add(1));
        }
    }

    #[test]
    fn a_policy_limits_the_attempts_and_their_pauses() {
        let own = [attempt("Failed", 3)];
        let past = Past::of(&own, TROUBLE, Some(Class::E));
        let of = |attempts, longest_pause_seconds| Retries {
            attempts,
            longest_pause_seconds,
        };
        assert_eq!(past.again(Some(&of(None, 90))), May::From(at(90)));
        assert_eq!(past.again(Some(&of(Some(4), 3_600))), May::From(at(240)));
        assert_eq!(past.again(Some(&of(Some(3), 3_600))), May::Never);
        assert_eq!(past.again(None), May::Never, "no policy lets reattach act");
    }

    #[test]
    fn an_abort_by_a_person_ends_the_attempts() {
        let abort = |r: &mut Value| r["spec"]["abort"] = json!({"by": "jane"});
        for phase in ["Aborted", "Failed", "Withdrawn"] {
            let own = [over(phase, TROUBLE, 0, abort), plain("Failed", TROUBLE, 50)];
            for class in [Some(Class::E), Some(Class::C), None] {
                assert_eq!(may(&own, class), May::Never, "{phase} {class:?}");
            }
            assert_ne!(
                Past::of(&own, "redis-data-babe", Some(Class::E)).again(Some(&Retries::default())),
                May::Never
            );
        }
        let late = [over("Recovered", TROUBLE, 0, abort)];
        assert_eq!(may(&late, Some(Class::E)), May::Now, "it came too late");
        let since = [
            over("Aborted", TROUBLE, 0, abort),
            plain("Recovered", TROUBLE, 200),
        ];
        assert_eq!(
            may(&since, Some(Class::E)),
            May::Now,
            "a person healed it since"
        );
        // A policy or an opt-out ended it, which may be taken back.
        assert_eq!(
            may(&[plain("Aborted", TROUBLE, 0)], Some(Class::E)),
            May::Now
        );
    }

    #[test]
    fn what_a_failed_one_left_has_another_order_at_once() {
        let own = [plain("Failed", TROUBLE, 0)];
        assert_eq!(may(&own, Some(Class::C)), May::Now);
        assert_eq!(may(&[], Some(Class::C)), May::Now);
        let past = Past::of(&own, TROUBLE, Some(Class::C));
        assert_eq!(
            past.reason("why", at(60)),
            "why; it takes over from redis-data-cafe-0, which was for class E (orphan attachment)"
        );
        assert_eq!(
            past.reason("why", at(3_600)),
            "why",
            "that was another night"
        );
    }

    #[test]
    fn other_trouble_of_the_class_waits_for_minutes_at_most() {
        let own = [over("Failed", "redis-data-babe", 0, |r| {
            r["spec"]["attempt"] = 9.into()
        })];
        assert_eq!(may(&own, Some(Class::E)), May::From(at(300)));
        let past = Past::of(&own, TROUBLE, Some(Class::E));
        assert_eq!(past.next_attempt(at(300)), 10);
        assert_eq!(past.next_attempt(at(3_600)), 1, "that was another night");
        assert_eq!(past.reason("why", at(300)), "why");
    }

    #[test]
    fn a_good_end_begins_the_count_anew() {
        let own = [
            plain("Failed", TROUBLE, 0),
            plain("Recovered", TROUBLE, 200),
        ];
        assert_eq!(may(&own, Some(Class::E)), May::Now);
        let past = Past::of(&own, TROUBLE, Some(Class::E));
        assert_eq!(past.next_attempt(at(300)), 1);
        assert_eq!(
            past.last().map(|r| r.status.as_ref().unwrap().phase),
            Some(reattach_api::Phase::Recovered)
        );
        let own = [own[1].clone(), plain("Failed", TROUBLE, 400)];
        assert_eq!(may(&own, Some(Class::E)), May::From(at(460)));
    }
}
