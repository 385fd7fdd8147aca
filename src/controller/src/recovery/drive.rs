//! The loop that takes one turn of a recovery after another, and pauses in between.

use super::{DriverState, Executor, Limits, Turn, TurnError};
use crate::finalizer;
use crate::pace::Fruitless;
use jiff::{SignedDuration, Timestamp};
use kube::{Api, Resource, ResourceExt};
use reattach_api::{ORDER_ANNOTATION, Phase, StoredRecovery, VolumeRecovery};
use reattach_cluster::view::View;
use reattach_core::ids::ObjectName;
use std::time::Duration;
use tokio::sync::watch;

/// A turn is taken at least this often, whatever happens: level-triggered means not to depend on a wake-up.
const AT_LEAST_EVERY: SignedDuration = SignedDuration::from_secs(20);
/// Changes that come in bursts are looked at together.
const SETTLE: Duration = Duration::from_millis(20);

/// The place that a driver has in the line of its namespace, for as long as its recovery has had no effect.
pub(crate) struct InLine {
    /// Becomes true when the driver is to give its place up.
    give_way: watch::Receiver<bool>,
    /// Whether an earlier driver of this process gave its place up: people were told where the recovery stands.
    again: bool,
    /// Whether it woke the driver.
    told: bool,
}

impl InLine {
    /// A place that is to be given up when `give_way` becomes true.
    pub(crate) fn new(give_way: watch::Receiver<bool>, again: bool) -> Self {
        Self {
            give_way,
            again,
            told: false,
        }
    }
}

/// What ended a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// Others wait for the driver's place.
    GiveWay,
    /// The process ends.
    Stop,
    /// The pause is over.
    Time,
    /// Something changed.
    News,
}

/// Resolves once when others wait for the driver's place; never for a driver without one.
async fn told_to_give_way(line: &mut Option<InLine>) {
    let Some(line) = line.as_mut().filter(|line| !line.told) else {
        return std::future::pending().await;
    };
    if line.give_way.wait_for(|told| *told).await.is_err() {
        std::future::pending().await
    }
    // A run that has begun meanwhile keeps its place, and must not be woken again and again.
    line.told = true;
}

impl Executor {
    /// Drives one recovery until it is over, it is gone, `stop` turns true, or leadership is lost.
    pub async fn drive(
        &self,
        name: &ObjectName,
        limits: impl Fn(&ObjectName) -> Limits,
        stop: watch::Receiver<bool>,
    ) -> Option<Phase> {
        let phase = self.drive_to_the_end(name, limits, stop, None).await;
        self.reservations.give_back(name);
        phase
    }

    /// The same for one of many, which gives its place up when it is told to and its recovery has had no effect.
    pub(crate) async fn drive_in_line(
        &self,
        name: &ObjectName,
        limits: impl Fn(&ObjectName) -> Limits,
        stop: watch::Receiver<bool>,
        line: InLine,
    ) -> Option<Phase> {
        let phase = self.drive_to_the_end(name, limits, stop, Some(line)).await;
        self.reservations.give_back(name);
        phase
    }

    async fn drive_to_the_end(
        &self,
        name: &ObjectName,
        limits: impl Fn(&ObjectName) -> Limits,
        mut stop: watch::Receiver<bool>,
        mut line: Option<InLine>,
    ) -> Option<Phase> {
        let api: Api<VolumeRecovery> =
            Api::namespaced(self.collector.clients.read.clone(), &name.namespace);
        let mut memory = DriverState::default();
        let mut changes = self
            .collector
            .cache
            .as_ref()
            .map(reattach_cluster::cache::Cache::changes);
        // Whether the last turn is known to have begun no run. After a lost reply that is not known.
        let mut may_give_way = false;
        loop {
            if *stop.borrow() || self.gate.leadership().is_none() {
                return None;
            }
            // Before the turn: what changes while it is taken must not wait for the next poll.
            let seen = self.fingerprint(name);
            let mut about = None;
            let turn = match api.get_opt(&name.name).await {
                Ok(None) => return None,
                Ok(Some(recovery)) => {
                    let status = recovery.status.as_ref();
                    if let Some(line) = &line {
                        let acted = status.is_some_and(|s| !s.journal.is_empty());
                        if may_give_way && !acted && *line.give_way.borrow() {
                            return None;
                        }
                        if line.again && memory.told.is_none() {
                            memory.told = status.map(|s| s.phase);
                        }
                    }
                    about = Some(recovery.object_ref(&()));
                    self.turn(recovery, &limits(name), &mut memory).await
                }
                Err(error) => Err(error.into()),
            };
            if memory.told == Some(Phase::Stuck) {
                // What only waits for a person takes no place from others.
                self.reservations.give_back(name);
            }
            may_give_way = match &turn {
                Ok(Turn::Pause { .. } | Turn::NeedsPerson) => true,
                Ok(Turn::Again | Turn::Final(_)) => false,
                Err(error) => error.pace() == Some(Fruitless::Refused),
            };
            let fruitless = match turn {
                Ok(Turn::Again) if std::mem::take(&mut memory.moved) => {
                    memory.backoff.reset();
                    continue;
                }
                Ok(Turn::Again) => Fruitless::Raced,
                Ok(Turn::Final(phase)) => return Some(phase),
                Ok(Turn::Pause { until }) => {
                    memory.backoff.reset();
                    memory.refused_since = None;
                    let until = until.min(self.later(AT_LEAST_EVERY));
                    let pause =
                        self.pause(name, until, Timestamp::MIN, &mut changes, &seen, &mut stop);
                    let woken = tokio::select! {
                        biased;
                        woken = pause => woken,
                        () = told_to_give_way(&mut line) => Woken::GiveWay,
                    };
                    match woken {
                        Woken::Stop => return None,
                        Woken::News => memory.woken = Some(self.collector.clock.now()),
                        Woken::Time | Woken::GiveWay => {}
                    }
                    continue;
                }
                Ok(Turn::NeedsPerson) => Fruitless::NeedsPerson,
                Err(TurnError::NotLeader) if self.gate.leadership().is_none() => return None,
                Err(error) => {
                    let fruitless = error.pace()?;
                    memory.unattended.away();
                    if fruitless != Fruitless::Raced {
                        tracing::warn!(recovery = %name, %error, "the turn is taken again");
                    }
                    if matches!(&error, TurnError::Save(refused) if refused.is_refused()) {
                        self.unwritten(name, about, &error, &mut memory).await;
                    }
                    fruitless
                }
            };
            memory.moved = false;
            let pause = memory.backoff.after(fruitless);
            let (until, calm) = (self.later(pause), self.later(pause / 4));
            match self
                .pause(name, until, calm, &mut changes, &seen, &mut stop)
                .await
            {
                Woken::Stop => return None,
                Woken::News => memory.woken = Some(self.collector.clock.now()),
                Woken::Time | Woken::GiveWay => {}
            }
        }
    }

    /// Waits for `until`, or for a change; before `calm` only for one that people made to the recovery itself.
    async fn pause(
        &self,
        name: &ObjectName,
        until: Timestamp,
        calm: Timestamp,
        changes: &mut Option<watch::Receiver<u64>>,
        seen: &[Option<String>],
        stop: &mut watch::Receiver<bool>,
    ) -> Woken {
        tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => Woken::Stop,
            () = self.collector.clock.sleep_until(until) => Woken::Time,
            () = self.changed(name, calm, changes, seen) => Woken::News,
        }
    }

    /// Waits until something that matters for this recovery changes. Never returns without a cache.
    async fn changed(
        &self,
        name: &ObjectName,
        calm: Timestamp,
        changes: &mut Option<watch::Receiver<u64>>,
        seen: &[Option<String>],
    ) {
        let Some(changes) = changes else {
            return std::future::pending().await;
        };
        let clock = &self.collector.clock;
        let mut news = false;
        loop {
            tokio::select! {
                biased;
                () = clock.sleep_until(calm), if news => return,
                changed = changes.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
            }
            tokio::time::sleep(SETTLE).await;
            changes.mark_unchanged();
            let now = self.fingerprint(name);
            // The first one is what people ask for.
            if now != seen && (now.first() != seen.first() || clock.now() >= calm) {
                return;
            }
            news |= now != seen;
        }
    }

    /// The versions of everything in the cache that a turn looks at.
    fn fingerprint(&self, name: &ObjectName) -> Vec<Option<String>> {
        let Some(cache) = &self.collector.cache else {
            return Vec::new();
        };
        let Some(recovery) = cache.recoveries.get(&name.namespace, &name.name) else {
            return Vec::new();
        };
        let claim = ObjectName::new(name.namespace.as_str(), recovery.spec.claim_name.as_str());
        // Unchecked: it tells only what wakes the driver.
        let plan = recovery
            .status
            .as_ref()
            .and_then(|s| s.plan.as_ref()?.get().ok());
        let view = View::cached(cache, &claim, plan.map(|p| &p.pins));
        // Our own writes to its status are no news: only what people change.
        let meta = &recovery.metadata;
        let asked = meta.deletion_timestamp.is_some().to_string()
            + &meta.generation.unwrap_or(0).to_string();
        let mut all = vec![Some(asked)];
        all.extend(view.claim.iter().map(|o| o.resource_version()));
        all.extend(view.volume.iter().map(|o| o.resource_version()));
        all.extend(view.attachments.iter().map(|o| o.resource_version()));
        all.extend(view.pods.iter().map(|o| o.resource_version()));
        all.extend(view.nodes.values().flatten().map(|o| o.resource_version()));
        all.extend(view.reports.values().map(|o| o.resource_version()));
        all.extend(view.csi_nodes.values().map(|o| o.resource_version()));
        all
    }

    /// One turn of one recovery.
    ///
    /// # Errors
    /// [`TurnError`].
    pub async fn turn(
        &self,
        recovery: VolumeRecovery,
        limits: &Limits,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        let recovery = StoredRecovery::try_from(recovery)?;
        memory.patience = limits.patience();
        memory.retries.clone_from(&limits.retries);
        let status = recovery.status.clone().unwrap_or_default();
        if status.phase.is_final() {
            return finalizer::remove(self, recovery).await;
        }
        if let Some(note) = recovery.annotations().get(ORDER_ANNOTATION).cloned()
            && status.journal.is_empty()
        {
            return self.hold_for_order(recovery, &note, memory).await;
        }
        if status.journal.is_empty() {
            self.before_the_run(recovery, limits, memory).await
        } else {
            self.one_step(recovery, limits, memory).await
        }
    }
}
