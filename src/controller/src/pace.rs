//! The pace of the drivers: how long a recovery pauses after a turn that led nowhere.
//!
//! # Expected flow
//! A driver tells its [`Backoff`] how each turn ended and pauses for what it answers. Drivers that ended are remembered by
//! the leader's [`Rest`], so that a recovery which ends its driver is not driven again at once.
//!
//! # Guarantees
//! Nothing is driven in a loop without a pause: pauses double with each turn in a row that led nowhere, and begin anew
//! with the first one that leads somewhere. They never grow beyond the limits below, so nothing is given up.
//!
//! # Assumptions
//! A turn that stored a line or came to a wait led somewhere.

use jiff::SignedDuration;
use reattach_core::ids::ObjectName;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Why a turn led nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fruitless {
    /// Another writer was faster, or two looks in a row did not agree.
    Raced,
    /// The API server or the cloud gave no usable answer.
    Away,
    /// The API server refused a request for good: a right is missing, or the object is not as it must be.
    Refused,
    /// A person is needed. The run moves when something changes, or when its pause is over.
    NeedsPerson,
}

impl Fruitless {
    /// The first pause, and the longest.
    const fn limits(self) -> (SignedDuration, SignedDuration) {
        match self {
            // The second look in a row: the first one follows at once.
            Self::Raced => (
                SignedDuration::from_millis(200),
                SignedDuration::from_secs(20),
            ),
            Self::Away => (SignedDuration::from_secs(1), SignedDuration::from_secs(5)),
            Self::Refused => (SignedDuration::from_secs(1), SignedDuration::from_secs(60)),
            Self::NeedsPerson => (SignedDuration::from_secs(20), SignedDuration::from_mins(5)),
        }
    }
}

/// The back-off of one recovery.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    last: Option<(Fruitless, u32)>,
}

impl Backoff {
    /// The pause after a turn that led nowhere.
    pub fn after(&mut self, why: Fruitless) -> SignedDuration {
        let before = match self.last {
            Some((last, times)) if last == why => times,
            _ => 0,
        };
        self.last = Some((why, before.saturating_add(1)));
        match (why, before) {
            (Fruitless::Raced, 0) => SignedDuration::ZERO,
            (Fruitless::Raced, n) => doubled(why, n - 1),
            (_, n) => doubled(why, n),
        }
    }

    /// A turn led somewhere.
    pub fn reset(&mut self) {
        self.last = None;
    }
}

fn doubled(why: Fruitless, times: u32) -> SignedDuration {
    let (first, longest) = why.limits();
    let factor = 1_i32.checked_shl(times.min(16)).unwrap_or(i32::MAX);
    first.saturating_mul(factor).min(longest)
}

/// Recoveries whose drivers ended, although the cache still shows them as not over.
#[derive(Debug, Default)]
pub struct Rest {
    resting: BTreeMap<ObjectName, Resting>,
}

#[derive(Debug)]
struct Resting {
    version: Option<String>,
    backoff: Backoff,
    until: Instant,
}

impl Rest {
    /// The driver of `name`, begun when the cache had this version of it, has ended.
    pub fn ended(&mut self, name: ObjectName, version: Option<String>) {
        let now = Instant::now();
        let fresh = || Resting {
            version: None,
            backoff: Backoff::default(),
            until: now,
        };
        let resting = self.resting.entry(name).or_insert_with(fresh);
        if resting.version != version {
            *resting = Resting { version, ..fresh() };
        }
        let pause = resting.backoff.after(Fruitless::Raced);
        resting.until = now + Duration::try_from(pause).unwrap_or_default();
    }

    /// Whether `name` may be driven now: something changed since its last driver began, or the pause is over.
    pub fn may_begin(&self, name: &ObjectName, version: Option<&str>) -> bool {
        let resting = self.resting.get(name);
        resting.is_none_or(|r| r.version.as_deref() != version || Instant::now() >= r.until)
    }

    /// Forgets recoveries that are not pending any more.
    pub fn keep(&mut self, is_pending: impl Fn(&ObjectName) -> bool) {
        self.resting.retain(|name, _| is_pending(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(why: Fruitless, times: usize) -> Vec<i128> {
        let mut backoff = Backoff::default();
        (0..times).map(|_| backoff.after(why).as_millis()).collect()
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        assert_eq!(pauses(Fruitless::Raced, 4), [0, 200, 400, 800]);
        assert_eq!(
            pauses(Fruitless::Away, 5),
            [1_000, 2_000, 4_000, 5_000, 5_000]
        );
        assert_eq!(pauses(Fruitless::Refused, 3), [1_000, 2_000, 4_000]);
        assert_eq!(pauses(Fruitless::NeedsPerson, 3), [20_000, 40_000, 80_000]);
        for why in [
            Fruitless::Raced,
            Fruitless::Away,
            Fruitless::Refused,
            Fruitless::NeedsPerson,
        ] {
            let (first, longest) = why.limits();
            assert!(first < longest);
            assert_eq!(
                pauses(why, 100).last().copied(),
                Some(longest.as_millis()),
                "{why:?}"
            );
        }
    }

    #[test]
    fn progress_resets_the_pause() {
        let mut backoff = Backoff::default();
        let first = backoff.after(Fruitless::Refused);
        assert!(backoff.after(Fruitless::Refused) > first);
        backoff.reset();
        assert_eq!(backoff.after(Fruitless::Refused), first);
        // So does trouble of another kind.
        backoff.after(Fruitless::Refused);
        assert_eq!(backoff.after(Fruitless::Away), SignedDuration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_driver_restarts_on_news_or_after_its_pause() {
        let mut rest = Rest::default();
        let name = ObjectName::new("ns", "r");
        assert!(rest.may_begin(&name, Some("1")));
        rest.ended(name.clone(), Some("1".into()));
        assert!(
            rest.may_begin(&name, Some("1")),
            "once more at once: the cache may lag behind"
        );
        rest.ended(name.clone(), Some("1".into()));
        assert!(!rest.may_begin(&name, Some("1")));
        assert!(rest.may_begin(&name, Some("2")), "something changed");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(rest.may_begin(&name, Some("1")));
        for _ in 0..20 {
            rest.ended(name.clone(), Some("1".into()));
        }
        tokio::time::sleep(Duration::from_secs(19)).await;
        assert!(!rest.may_begin(&name, Some("1")));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(rest.may_begin(&name, Some("1")));
        rest.ended(name.clone(), Some("1".into()));
        rest.keep(|_| false);
        assert!(rest.may_begin(&name, Some("1")));
    }
}
