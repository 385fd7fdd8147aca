//! Drives every recovery that is not over, each in a task of its own.
//!
//! # Expected flow
//! A recovery whose run has begun is driven until it is over. One that has had no effect yet takes a place of its namespace
//! ([`PLACES`]); while others of its namespace wait, it gives the place up after `TURN` and gets in line again.
//!
//! # Guarantees
//! A run never waits for a place. The recoveries of one namespace without effects cost at most [`PLACES`] tasks, however many
//! there are, and the places of a namespace are its own.
//!
//! # Caveats
//! A driver that gave its place up forgets what it asked the agents; the next one asks again.

use crate::finalizer::FINALIZER;
use crate::limits::{has_a_run, limits, phase, running};
use crate::pace::Rest;
use crate::records;
use crate::recovery::{Executor, InLine};
use crate::turns::{After, Bounds, Offer, Turns};
use crate::wakeup::{AT_LEAST_EVERY, Wakeup, Woken};
use kube::ResourceExt;
use reattach_api::VolumeRecovery;
use reattach_cluster::cache::Cache;
use reattach_core::ids::ObjectName;
use reattach_core::policy::Mode;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

/// Recoveries without effects that are driven at once for one namespace. More claims than these are seldom in trouble
/// together, and a driver takes some 100 KiB.
pub const PLACES: usize = 32;
/// A driver keeps its place for so long: as long as a diagnosis stands before it is made anew.
const TURN: Duration = Duration::from_secs(5);

/// Drives recoveries while this process leads.
pub(crate) struct Drivers {
    executor: Executor,
    cache: Cache,
    /// The user name of the controller.
    username: String,
    stop: watch::Receiver<bool>,
    driven: BTreeMap<ObjectName, Driver>,
    line: Turns,
    rest: Rest,
    /// Recoveries whose last driver gave its place up.
    gave_way: BTreeSet<ObjectName>,
    tasks: JoinSet<ObjectName>,
}

struct Driver {
    task: Id,
    /// The version that the cache had of the recovery when the driver began.
    version: Option<String>,
    since: Instant,
    /// Tells the driver to give its place up, if it has one.
    give_way: watch::Sender<bool>,
}

impl Drivers {
    pub fn new(
        executor: Executor,
        cache: Cache,
        username: String,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let bounds = Bounds {
            at_once: usize::MAX,
            per_namespace: PLACES,
        };
        Self {
            executor,
            cache,
            username,
            stop,
            driven: BTreeMap::new(),
            line: Turns::new(bounds),
            rest: Rest::default(),
            gave_way: BTreeSet::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Runs until the process is to stop; then the drivers end what is under way.
    pub async fn run(mut self, mut wakeup: Wakeup) {
        loop {
            let leading = self.executor.gate.leadership().is_some();
            self.executor.metrics.leader.set(leading.into());
            // A standby remembers too since when nodes are down, so that a new leader need not begin to wait.
            let nodes = self.cache.nodes.filter(|_| true);
            let now = self.executor.collector.clock.now();
            self.executor
                .collector
                .neighbours
                .note(nodes.iter().map(AsRef::as_ref), now);
            if leading {
                let begun = Instant::now();
                self.drive_all();
                wakeup.took(begun.elapsed());
            }
            let driven = i64::try_from(self.driven.len()).unwrap_or(i64::MAX);
            self.executor.metrics.driven.set(driven);
            let at = Instant::now() + AT_LEAST_EVERY;
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next_with_id() => self.forget(ended),
                woken = wakeup.next(at) => if woken == Woken::Stop {
                    break;
                },
            }
        }
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.forget(ended);
        }
    }

    fn forget(&mut self, ended: Result<(Id, ObjectName), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => {
                tracing::error!(%error, "a recovery's driver failed; it is started again");
                error.id()
            }
        };
        let Some((name, _)) = self.driven.iter().find(|(_, driver)| driver.task == id) else {
            return;
        };
        let name = name.clone();
        let Some(driver) = self.driven.remove(&name) else {
            return;
        };
        self.line.ended(&name, After::InLine, Instant::now());
        if *driver.give_way.borrow() {
            self.gave_way.insert(name);
        } else {
            self.rest.ended(name, driver.version);
        }
    }

    fn drive_all(&mut self) {
        let now = Instant::now();
        let mut pending = self
            .cache
            .recoveries
            .named(|r| !phase(r).is_final() || has_finalizer(r));
        self.executor
            .metrics
            .running
            .set(i64::try_from(running(&self.cache).len()).unwrap_or(i64::MAX));
        let crowd = records::beyond_the_quota(&pending, &self.username);
        pending.retain(|(name, _)| !crowd.contains(name));
        // The oldest recovery is first in line.
        pending.sort_by_cached_key(|(name, r)| (r.creation_timestamp(), name.clone()));
        let names: BTreeSet<&ObjectName> = pending.iter().map(|(name, _)| name).collect();
        self.rest.keep(|name| names.contains(name));
        self.gave_way.retain(|name| names.contains(name));
        let mut line = Vec::new();
        for (name, recovery) in &pending {
            let version = recovery.resource_version();
            let driven = self.driven.contains_key(name);
            if !driven && !self.rest.may_begin(name, version.as_deref()) {
                continue;
            }
            if has_effects(recovery) {
                self.line.leave(name);
                if !driven {
                    self.begin(name.clone(), version);
                }
            } else {
                let rank = u8::from(!is_urgent(recovery, &self.username));
                line.push((name.clone(), Offer { version: 0, rank }));
            }
        }
        self.line.offer(line);
        while let Some(name) = self.line.next(now) {
            // One that is driven and had no place has just lost its effects from the watch's view, which cannot be.
            if self.driven.contains_key(&name) {
                continue;
            }
            let recovery = self.cache.recoveries.get(&name.namespace, &name.name);
            let version = recovery.and_then(|r| r.resource_version());
            self.begin(name, version);
        }
        self.make_room(&pending, now);
    }

    /// Tells drivers to give their places up where others wait for one.
    fn make_room(&mut self, pending: &[records::Named], now: Instant) {
        let mut waiting: BTreeMap<String, usize> = BTreeMap::new();
        for ObjectName { namespace, .. } in pending.iter().map(|(name, _)| name) {
            if !waiting.contains_key(namespace) {
                waiting.insert(namespace.clone(), self.line.waiting(namespace, now));
            }
        }
        let effects: BTreeSet<&ObjectName> = pending
            .iter()
            .filter(|(_, r)| has_effects(r))
            .map(|(name, _)| name)
            .collect();
        let mut oldest: Vec<(&ObjectName, &Driver)> = self
            .driven
            .iter()
            .filter(|(name, _)| !effects.contains(name))
            .collect();
        oldest.sort_by_key(|(_, driver)| driver.since);
        for (name, driver) in oldest {
            let Some(waiting) = waiting.get_mut(&name.namespace).filter(|n| **n > 0) else {
                continue;
            };
            if driver.since + TURN <= now {
                driver.give_way.send_replace(true);
                *waiting -= 1;
            }
        }
    }

    fn begin(&mut self, name: ObjectName, version: Option<String>) {
        let (executor, cache, stop) =
            (self.executor.clone(), self.cache.clone(), self.stop.clone());
        let (task_name, username) = (name.clone(), self.username.clone());
        let (give_way, told) = watch::channel(false);
        let line = InLine::new(told, self.gave_way.remove(&name));
        let handle = self.tasks.spawn(async move {
            let limits = |n: &ObjectName| limits(&cache, n, &username);
            executor.drive_in_line(&task_name, limits, stop, line).await;
            task_name
        });
        let driver = Driver {
            task: handle.id(),
            version,
            since: Instant::now(),
            give_way,
        };
        self.driven.insert(name, driver);
    }
}

/// May an effect of reattach have to be undone? Only what the controller writes counts, because a person who may create a
/// record could give it our finalizer.
fn has_effects(recovery: &VolumeRecovery) -> bool {
    has_a_run(recovery) || has_finalizer(recovery) && has_journal(recovery)
}

fn has_journal(recovery: &VolumeRecovery) -> bool {
    recovery
        .status
        .as_ref()
        .is_some_and(|s| !s.journal.is_empty())
}

fn has_finalizer(recovery: &VolumeRecovery) -> bool {
    recovery.finalizers().iter().any(|f| f == FINALIZER)
}

/// Whether it goes before the others of its namespace: a policy made it, it may act, or it is to end.
fn is_urgent(recovery: &VolumeRecovery, controller: &str) -> bool {
    let spec = &recovery.spec;
    spec.requester == controller
        || spec.mode == Mode::Auto
        || spec.approval.is_some()
        || spec.abort.is_some()
        || has_finalizer(recovery)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(change: impl FnOnce(&mut serde_json::Value)) -> VolumeRecovery {
        let mut record = json!({
            "metadata": {"name": "r", "namespace": "ns"},
            "spec": {"claimName": "data", "mode": "DryRun", "runbook": "lightest-first", "requester": "jane"},
            "status": {"phase": "Planned", "message": "", "epoch": 0},
        });
        change(&mut record);
        serde_json::from_value(record).unwrap()
    }

    #[test]
    fn a_finalizer_without_a_journal_is_no_effect() {
        let claimed = |r: &mut serde_json::Value| r["metadata"]["finalizers"] = json!([FINALIZER]);
        assert!(!has_effects(&record(claimed)), "an editor can create it so");
        let begun = |r: &mut serde_json::Value| r["status"]["journal"] = json!([{"any": "line"}]);
        assert!(has_effects(&record(begun)));
        let over = |r: &mut serde_json::Value| {
            begun(r);
            claimed(r);
            r["status"]["phase"] = json!("Failed");
        };
        assert!(has_effects(&record(over)), "its finalizer is to go");
    }

    #[test]
    fn acting_records_are_driven_before_diagnosing_ones() {
        assert!(!is_urgent(&record(|_| {}), "controller"));
        assert!(is_urgent(
            &record(|r| r["spec"]["requester"] = json!("controller")),
            "controller"
        ));
        assert!(is_urgent(
            &record(|r| r["spec"]["mode"] = json!("Auto")),
            "controller"
        ));
        assert!(!is_urgent(
            &record(|r| r["spec"]["mode"] = json!("Approve")),
            "controller"
        ));
    }
}
