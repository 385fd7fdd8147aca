//! Decides which request of a credential may be sent, and when.

use super::bucket::Bucket;
use super::limit::{Announced, Held, Published, Purpose, RequestKind};
use super::usage::{RequestOutcome, Usage};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Maximum time for which a look waits for its turn, 2 s. It leaves most of the timeout of one read (10 s) to the read itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// First pause after a refusal for which the provider names no time, 1 s: linodego's first wait is as long. A recorded 429 of
/// Linode's API has no `Retry-After`.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest pause after refusals for which the provider names no time, 60 s: the window of Linode's limits.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Decides when a request of one credential may be sent.
///
/// # Expected flow
/// 1. [`limited`](super::limited) wraps the transport of a provider's client. Each request passes [`Limiter::admit`].
/// 2. Each answer is passed to [`Limiter::answered`] with the limits that it announces.
/// 3. The controller reads [`Limiter::held_for`] before it starts an effect, and [`Limiter::usage`] for its metrics.
///
/// # Guarantees
/// - Within any window, looks use at most half of the requests that the provider allows.
/// - After a look was refused (429), no look is sent before the time that the provider named is over. After an effect was
///   refused, neither an effect nor a look is sent.
/// - An effect never waits behind looks: it is sent at once, or held back because the provider refused an effect.
/// - A look waits at most 2 s, in the order of arrival. One that would have to wait longer is held back at once.
///
/// # Assumptions
/// All requests of the credential in this process pass one limiter. Other processes of reattach send few requests: a standby
/// reads nothing.
///
/// # Caveats
/// - Effects take from the share of looks and may exceed it for a moment. They are few.
/// - Where the provider has limits of its own for single operations, the lowest that an answer announces counts for its kind
///   until the next answer.
///
/// # Errors
/// [`Held`] with the time after which a request would be sent.
#[derive(Debug)]
pub struct Limiter {
    origin: Instant,
    published: Published,
    state: Mutex<State>,
}

/// All moments are durations since the limiter's origin.
#[derive(Debug)]
struct State {
    all: Bucket,
    lists: Bucket,
    refused_looks: Refused,
    refused_effects: Refused,
    usage: Usage,
}

/// Refusals of one purpose.
#[derive(Clone, Copy, Debug, Default)]
struct Refused {
    /// Until when requests are held back because of them.
    until: Duration,
    /// Refusals in a row for which the provider named no time.
    untimed: u32,
}

impl Limiter {
    /// Makes a limiter for a credential that has sent nothing yet.
    pub fn new(published: Published) -> Self {
        Self {
            origin: Instant::now(),
            published,
            state: Mutex::new(State {
                all: Bucket::new(published.all),
                lists: Bucket::new(published.lists),
                refused_looks: Refused::default(),
                refused_effects: Refused::default(),
                usage: Usage::default(),
            }),
        }
    }

    /// Waits until the request may be sent.
    ///
    /// # Errors
    /// [`Held`]: it must not be sent now.
    pub async fn admit(&self, kind: RequestKind, purpose: Purpose) -> Result<(), Held> {
        let wait = self.reserve(kind, purpose)?;
        if wait.is_zero() {
            return Ok(());
        }
        tokio::time::sleep(wait).await;
        // A request that was sent meanwhile may have been refused.
        let now = self.now();
        let mut state = self.state();
        match state.refused_for(purpose, now) {
            None => Ok(()),
            Some(retry_after) => Err(state.hold(kind, retry_after)),
        }
    }

    /// Reserves a place for the request. Returns how long it waits for it.
    fn reserve(&self, kind: RequestKind, purpose: Purpose) -> Result<Duration, Held> {
        let now = self.now();
        let mut state = self.state();
        if let Some(retry_after) = state.refused_for(purpose, now) {
            return Err(state.hold(kind, retry_after));
        }
        let wait = match purpose {
            Purpose::Effect => Duration::ZERO,
            Purpose::Look => state.wait(kind, now),
        };
        if wait > PATIENCE {
            return Err(state.hold(kind, wait));
        }
        state.take(kind, now);
        state.usage.waited += wait;
        Ok(wait)
    }

    /// Notes the answer to a request. `announced` is what it says about the limit.
    pub fn answered(&self, kind: RequestKind, purpose: Purpose, announced: Announced) {
        let now = self.now();
        let mut state = self.state();
        let outcome = match announced.refused {
            None => RequestOutcome::Answered,
            Some(_) => RequestOutcome::Refused,
        };
        state.usage.count(kind, outcome);
        state.note_limits(kind, &announced, self.published, now);
        match announced.refused {
            None => state.refused(purpose).untimed = 0,
            Some(named) => {
                let named = named.or(announced.resets_in);
                state.refuse(purpose, named, now);
            }
        }
    }

    /// Notes that a request got no answer.
    pub fn unanswered(&self, kind: RequestKind) {
        self.state().usage.count(kind, RequestOutcome::Unanswered);
    }

    /// Returns for how long requests of this purpose are held back because the provider refused one. `None`: they are not.
    pub fn held_for(&self, purpose: Purpose) -> Option<Duration> {
        self.state().refused_for(purpose, self.now())
    }

    /// Returns the number of requests so far and what is left of the limits.
    pub fn usage(&self) -> Usage {
        let now = self.now();
        let state = self.state();
        let mut usage = state.usage.clone();
        usage.budget = state.all.at_once(now);
        usage.remaining = state.all.remaining(now);
        usage
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How long requests of this purpose are refused. A refused effect holds looks back, too.
    fn refused_for(&self, purpose: Purpose, now: Duration) -> Option<Duration> {
        let (looks, effects) = (self.refused_looks.until, self.refused_effects.until);
        let until = match purpose {
            Purpose::Effect => effects,
            Purpose::Look => looks.max(effects),
        };
        Some(until.saturating_sub(now)).filter(|left| !left.is_zero())
    }

    /// How long a look of this kind waits for its turn.
    fn wait(&self, kind: RequestKind, now: Duration) -> Duration {
        match kind {
            RequestKind::List => self.all.wait(now).max(self.lists.wait(now)),
            RequestKind::Read | RequestKind::Change => self.all.wait(now),
        }
    }

    fn take(&mut self, kind: RequestKind, now: Duration) {
        self.all.take(now);
        match kind {
            RequestKind::List => self.lists.take(now),
            RequestKind::Read | RequestKind::Change => {}
        }
    }

    fn hold(&mut self, kind: RequestKind, retry_after: Duration) -> Held {
        self.usage.count(kind, RequestOutcome::Held);
        Held { retry_after }
    }

    fn note_limits(
        &mut self,
        kind: RequestKind,
        announced: &Announced,
        published: Published,
        now: Duration,
    ) {
        match kind {
            RequestKind::Read => self.all.announce(announced, published.all.window, now),
            RequestKind::List => self.lists.announce(announced, published.lists.window, now),
            // The limits of changes are those of single operations.
            RequestKind::Change => {}
        }
    }

    fn refused(&mut self, purpose: Purpose) -> &mut Refused {
        match purpose {
            Purpose::Look => &mut self.refused_looks,
            Purpose::Effect => &mut self.refused_effects,
        }
    }

    fn refuse(&mut self, purpose: Purpose, named: Option<Duration>, now: Duration) {
        let refused = self.refused(purpose);
        let pause = match named {
            Some(named) => named,
            None => {
                let pause = FIRST_PAUSE * 2_u32.saturating_pow(refused.untimed.min(6));
                refused.untimed += 1;
                pause.min(LONGEST_PAUSE)
            }
        };
        refused.until = refused.until.max(now + pause);
    }
}

#[cfg(test)]
mod tests;
