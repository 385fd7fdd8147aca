//! Removes the leftovers of recoveries: taints, gates, labels, stamps, challenges.
//!
//! # Expected flow
//! [`Janitor::run`] is one of the leader's loops. The watches say what carries a mark of ours; before
//! something goes, the recovery that speaks for it is looked for live: a watch that lags must not take a hold away from a
//! run that has just begun.
//!
//! # Guarantees
//! Nothing is touched that does not carry a mark of ours, in no mode; every write is conditional and needs leadership
//! ([`reattach_cluster::gate::Gate::tidy`]). The rules:
//!
//! | Mark | goes when |
//! |---|---|
//! | out-of-service taint of ours | its Node is Ready; its lock has expired or is free; its recovery is over or gone |
//! | quarantine | its Node is Ready and the agent of this boot answered clean; recovery gone: its report shows no dead mount |
//! | closing taint of a hold | its recovery is over or gone |
//! | scheduling gate, label of a hold | no recovery of the claim is under way with the label, or about to end its hold; gate: no job of the volume is pending at the cloud |
//! | stamp | its recovery is over or gone, reattach did scale the workload, and no job of its volumes is pending at the cloud: a workload that is still at 0 is restored to the journal's count, or without a journal within its own past ([`reattach_core::stamp`]) |
//! | note of an order to the cloud | its recovery is over, or gone and the provider's history accounts for the order |
//! | automatic restart of a machine that is off | its recovery is gone, and no other order of it is noted: it is switched on again by the note |
//! | question to an agent | its recovery is gone |
//!
//! While an order of a recovery that is gone is noted and not accounted for, everything else that the recovery put there stays.
//!
//! # Assumptions
//! A recovery that is under way cares for its own marks; its finalizer keeps it from vanishing meanwhile.
//!
//! # Caveats
//! Gates are taken off in turns: some at a time, the namespaces one after another. Stamps are looked for once a minute, in
//! Deployments, StatefulSets and ReplicaSets. A stamp on a workload that reattach did not scale stays where it is, and is
//! reported once.
//!
//! # Errors
//! What cannot be read or written is logged and tried again with the next sweep.

mod marks;
mod nodes;
mod orders;
mod stamps;

use crate::recovery::Executor;
use crate::turns::{Bounds, Turns};
use crate::wakeup::{AT_LEAST_EVERY, Wakeup, Woken};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use reattach_api::metadata::{self, MissingField};
use reattach_api::{Phase, VolumeRecovery};
use reattach_cluster::cache::Cache;
use reattach_core::guest::Answer;
use reattach_core::ids::{NodeName, Uid};
use reattach_core::journal::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Minimum time between two urgent sweeps: changes come in bursts, and a right may be missing.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Time between two sweeps that are not urgent. Each costs reads.
const EVERY: Duration = Duration::from_secs(5);
/// Time between two searches for stamps and challenges without a recovery. Each costs lists.
const SELDOM: Duration = Duration::from_secs(60);
/// Time after which an answer is forgotten. The agent is asked once a minute under a new number.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// The leader's janitor, with the moments at which it looks again.
#[derive(Debug)]
pub(crate) struct Janitor {
    next_urgent: Option<Instant>,
    next: Option<Instant>,
    next_seldom: Option<Instant>,
    answers: Answers,
    /// Pods with a gate of ours.
    gates: Turns,
    stamps: stamps::Known,
    orders: orders::Known,
}

impl Default for Janitor {
    fn default() -> Self {
        Self {
            next_urgent: None,
            next: None,
            next_seldom: None,
            answers: Answers::default(),
            gates: Turns::new(Bounds {
                at_once: 1,
                per_namespace: 1,
            }),
            stamps: stamps::Known::default(),
            orders: orders::Known::default(),
        }
    }
}

impl Janitor {
    /// Runs until the process is to stop, and ends what it has begun then: a write of its own must not land after the Lease was
    /// released.
    pub(crate) async fn run(mut self, executor: Executor, cache: Cache, mut wakeup: Wakeup) {
        loop {
            if executor.gate.leadership().is_some() {
                self.sweep(&executor, &cache, &wakeup).await;
            }
            let now = Instant::now();
            let at = self
                .next
                .unwrap_or(now)
                .clamp(now + AT_ONCE, now + AT_LEAST_EVERY);
            if wakeup.next(at).await == Woken::Stop {
                return;
            }
        }
    }

    /// Makes one sweep.
    async fn sweep(&mut self, executor: &Executor, cache: &Cache, wakeup: &Wakeup) {
        let (answers, stamps, orders) = (&self.answers, &self.stamps, &self.orders);
        let sweep = Sweep {
            executor,
            cache,
            answers,
            wakeup,
            stamps,
            orders,
        };
        if due(&mut self.next_urgent, AT_ONCE) {
            sweep.ready_again().await;
        }
        let seldom = due(&mut self.next_seldom, SELDOM);
        // New pods of its claim must not come meanwhile.
        if sweep.a_run_vanished() || seldom {
            sweep.orders().await;
        }
        if due(&mut self.next, EVERY) {
            sweep.out_of_service().await;
            sweep.quarantines().await;
            if sweep.holds(&mut self.gates).await {
                self.next = Some(Instant::now() + AT_ONCE);
            }
            sweep.closed_nodes().await;
            sweep.note_scales();
        }
        if seldom {
            sweep.questions().await;
            sweep.stamps().await;
        }
    }
}

/// Is the next time reached? Sets the one after it.
fn due(next: &mut Option<Instant>, every: Duration) -> bool {
    let now = Instant::now();
    let due = next.is_none_or(|at| now >= at);
    if due {
        *next = Some(now + every);
    }
    due
}

/// When this process first saw an answer of an agent that was not clean, by node, recovery and number of the question. The
/// time in an answer is the node's own, and tells this process nothing.
#[derive(Debug, Default)]
struct Answers(Mutex<BTreeMap<(NodeName, Uid, u64), Instant>>);

impl Answers {
    /// How long ago this answer was first seen: now, if it was not seen before.
    fn seen_for(&self, node: &NodeName, answer: &Answer) -> Duration {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, first| first.elapsed() < FORGOTTEN);
        let key = (node.clone(), answer.recovery.clone(), answer.epoch);
        seen.entry(key).or_insert_with(Instant::now).elapsed()
    }
}

/// One sweep of the janitor, with all that it reads and remembers.
struct Sweep<'a> {
    executor: &'a Executor,
    cache: &'a Cache,
    answers: &'a Answers,
    wakeup: &'a Wakeup,
    stamps: &'a stamps::Known,
    orders: &'a orders::Known,
}

impl Sweep<'_> {
    fn read(&self) -> kube::Client {
        self.executor.collector.clients.read.clone()
    }

    /// The UIDs of all recoveries, read live.
    async fn recoveries(&self) -> Result<BTreeSet<Uid>, kube::Error> {
        let all = Api::<VolumeRecovery>::all(self.read())
            .list(&ListParams::default())
            .await?;
        let uids = all.items.iter().map(|r| metadata::of(r).uid());
        Ok(uids.collect::<Result<_, _>>()?)
    }

    /// All recoveries by UID, read live.
    async fn records(&self) -> Result<BTreeMap<Uid, VolumeRecovery>, kube::Error> {
        let all = Api::<VolumeRecovery>::all(self.read())
            .list(&ListParams::default())
            .await?
            .items;
        let by_uid = all.into_iter().map(|r| Ok((metadata::of(&r).uid()?, r)));
        Ok(by_uid.collect::<Result<_, MissingField>>()?)
    }

    /// Counts and logs what was done.
    fn tell(&self, what: &str, outcome: &Outcome) {
        self.executor
            .metrics
            .count_effect("Janitor".to_owned(), outcome);
        tracing::warn!(?outcome, "removing a leftover: {what}");
    }
}

/// Whether nothing of a recovery can be under way any more.
fn is_over(recovery: &VolumeRecovery) -> bool {
    is_final(recovery) && recovery.finalizers().is_empty()
}

/// Whether it has come to its end. Its finalizer may still be there for a moment.
fn is_final(recovery: &VolumeRecovery) -> bool {
    recovery
        .status
        .as_ref()
        .map_or(Phase::default(), |s| s.phase)
        .is_final()
}
