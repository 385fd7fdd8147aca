//! What wakes the loops of the leader: news in the watches, another leader, the end of the process, and time.

use reattach_cluster::cache::Cache;
use reattach_cluster::lease::Leadership;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Each loop looks at everything at least this often, whatever it hears.
pub(crate) const AT_LEAST_EVERY: Duration = Duration::from_secs(5);
/// Changes that come in bursts are looked at together.
const SETTLE: Duration = Duration::from_millis(20);
/// A burst is never waited for longer.
const LONGEST_SETTLE: Duration = Duration::from_secs(2);
/// After a pass over everything news waits for so many times what that pass took: a loop uses a fifth of a processor at the most.
const SHARE: u32 = 4;

/// What woke a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The process is to stop, or the election has ended.
    Stop,
    /// Something changed.
    News,
    /// It is time.
    Time,
}

/// Wakes one loop.
pub(crate) struct Wakeup {
    stop: watch::Receiver<bool>,
    leadership: watch::Receiver<Option<Leadership>>,
    changes: watch::Receiver<u64>,
    settle: Duration,
    /// There was a change, and the burst is over then.
    settled: Option<Instant>,
}

impl Wakeup {
    /// For a loop that works from this cache.
    pub fn new(
        stop: watch::Receiver<bool>,
        leadership: watch::Receiver<Option<Leadership>>,
        cache: &Cache,
    ) -> Self {
        Self {
            stop,
            leadership,
            changes: cache.changes(),
            settle: SETTLE,
            settled: None,
        }
    }

    /// Waits for news, at most until `at`. Nothing is lost when it is dropped before it ends.
    pub async fn next(&mut self, at: Instant) -> Woken {
        loop {
            let settled = self.settled;
            tokio::select! {
                biased;
                () = told(&mut self.stop) => return Woken::Stop,
                changed = self.leadership.changed() => {
                    return if changed.is_ok() { Woken::News } else { Woken::Stop };
                }
                changed = self.changes.changed(), if settled.is_none() => {
                    if changed.is_err() {
                        return Woken::Stop;
                    }
                    self.settled = Some(Instant::now() + self.settle);
                }
                () = tokio::time::sleep_until(settled.unwrap_or(at)), if settled.is_some() => {
                    self.settled = None;
                    self.changes.mark_unchanged();
                    return Woken::News;
                }
                () = tokio::time::sleep_until(at), if settled.is_none() => return Woken::Time,
            }
        }
    }

    /// Notes how long a pass over everything took.
    pub fn took(&mut self, pass: Duration) {
        self.settle = (pass * SHARE).clamp(SETTLE, LONGEST_SETTLE);
    }

    /// Whether the process is to stop.
    pub fn is_told_to_stop(&self) -> bool {
        *self.stop.borrow()
    }

    /// Resolves when the process is to stop.
    pub async fn stop(&mut self) {
        told(&mut self.stop).await;
    }
}

/// Resolves when `stop` becomes true. Drops the watch guard, so that the future stays `Send`.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|s| *s).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_wakes_once_and_is_not_lost_with_a_dropped_wait() {
        let (stop, stopped) = watch::channel(false);
        let (leads, leadership) = watch::channel(None);
        let (changed, changes) = watch::channel(0_u64);
        let mut wakeup = Wakeup {
            stop: stopped,
            leadership,
            changes,
            settle: SETTLE,
            settled: None,
        };
        let soon = || Instant::now() + AT_LEAST_EVERY;
        changed.send_replace(1);
        // The wait is dropped while the burst goes on.
        let dropped = tokio::time::timeout(SETTLE / 2, wakeup.next(soon())).await;
        assert!(dropped.is_err());
        changed.send_replace(2);
        let start = Instant::now();
        assert_eq!(wakeup.next(soon()).await, Woken::News);
        assert_eq!(start.elapsed(), SETTLE / 2);
        assert_eq!(
            wakeup.next(soon()).await,
            Woken::Time,
            "the burst was heard whole"
        );
        wakeup.took(Duration::from_secs(60));
        changed.send_replace(3);
        let start = Instant::now();
        assert_eq!(wakeup.next(soon()).await, Woken::News);
        assert_eq!(
            start.elapsed(),
            LONGEST_SETTLE,
            "passes that take long are made less often"
        );
        stop.send_replace(true);
        assert_eq!(wakeup.next(soon()).await, Woken::Stop);
        drop(leads);
    }
}
