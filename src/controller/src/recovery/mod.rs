//! One recovery from its first look to its end.
//!
//! # Expected flow
//! [`Executor::drive`] reads the VolumeRecovery, takes one [`Turn`], and waits for a change or for the moment that the
//! turn named. Before a plan is accepted a turn diagnoses and plans (`before.rs`); afterwards it asks
//! [`reattach_core::run::next`] for the one next thing and does it (`run.rs`).
//!
//! # Guarantees
//! Every effect is journaled before it is issued and its outcome after, by compare-and-swap. Every effect passes the
//! gate. A lost compare-and-swap means: read again. A turn that led nowhere is followed by a pause that grows
//! ([`crate::pace`]).
//!
//! # Assumptions
//! One driver per recovery and process; across processes the leader Lease and the journal keep order.
//!
//! # Caveats
//! A turn that fails (API server or cloud away) changes nothing and is taken again.
//!
//! # Errors
//! [`TurnError`].

mod before;
mod journal;
mod mandate;
mod ordered;
mod reserve;
mod run;
mod sightings;
mod undo;
mod unsound;

pub use mandate::Rights;
pub use reserve::Reservations;
#[cfg(test)]
pub(crate) use run::note_of;

use crate::collect::Collector;
use crate::finish;
use crate::metrics::Metrics;
use crate::pace::{Backoff, Fruitless};
use jiff::{SignedDuration, Timestamp};
use kube::{Api, Resource, ResourceExt};
use reattach_api::{
    Budgets, ORDER_ANNOTATION, Phase, PowerOffRule, RecoveryPolicy, SnapshotRule, VolumeRecovery,
};
use reattach_cluster::gate::Gate;
use reattach_cluster::reply::is_refused;
use reattach_cluster::store::SaveError;
use reattach_cluster::view::View;
use reattach_core::authority::Ceiling;
use reattach_core::check::Violation;
use reattach_core::cloud::CloudVolume;
use reattach_core::consent::PolicySays;
use reattach_core::evidence::Evidence;
use reattach_core::ids::{ObjectName, Uid};
use reattach_core::policy::Mode;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A turn is taken at least this often, whatever happens: level-triggered means not to depend on a wake-up.
const AT_LEAST_EVERY: SignedDuration = SignedDuration::from_secs(20);
/// Changes that come in bursts are looked at together.
const SETTLE: Duration = Duration::from_millis(20);

/// A recovery that no policy speaks about calls for a person after so long: the default of
/// `RecoveryPolicy.spec.escalateAfterSeconds`.
const PATIENCE: SignedDuration = SignedDuration::from_mins(30);

/// Drives recoveries.
#[derive(Clone)]
pub struct Executor {
    /// Collects evidence.
    pub collector: Collector,
    /// Every effect passes it.
    pub gate: Gate,
    /// Who writes the journal: pod name and UID, or user and host.
    pub identity: String,
    /// Metrics of the process.
    pub metrics: Metrics,
    /// Places of the runs under way; shared by all drivers of the process.
    pub reservations: Reservations,
    /// How far people's rights reach.
    pub rights: Rights,
}

/// What a turn leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Look again at once.
    Again,
    /// Look again on a change, or then.
    Pause {
        /// The latest moment.
        until: Timestamp,
    },
    /// Only a person, or a change, can make it go on: look again on a change, or after a pause that grows.
    NeedsPerson,
    /// The recovery is over.
    Final(Phase),
}

/// Why a turn could not be taken. Nothing was changed by it, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// A Kubernetes read or write failed.
    #[error("the API server could not be used: {0}")]
    Kubernetes(#[from] Box<kube::Error>),
    /// The status could not be stored.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// Someone else works on it.
    #[error("another process wrote to the journal")]
    Lost,
    /// Not leader.
    #[error("not leader")]
    NotLeader,
}

impl TurnError {
    /// What the pause after it depends on. `None`: there is nothing to drive any more.
    fn pace(&self) -> Option<Fruitless> {
        match self {
            Self::Kubernetes(error) if is_refused(error) => Some(Fruitless::Refused),
            Self::Save(error) if error.is_refused() => Some(Fruitless::Refused),
            Self::Save(SaveError::Refused(_)) => Some(Fruitless::Refused),
            Self::Kubernetes(_) | Self::Save(SaveError::Other(_)) => Some(Fruitless::Away),
            Self::Save(SaveError::Conflict) | Self::Lost | Self::NotLeader => Some(Fruitless::Raced),
            Self::Save(SaveError::Gone) => None,
        }
    }
}

impl From<kube::Error> for TurnError {
    fn from(error: kube::Error) -> Self {
        Self::Kubernetes(Box::new(error))
    }
}

/// What a driver remembers between turns. Losing it costs a new challenge, nothing else.
#[derive(Debug, Default)]
pub struct Memory {
    /// The epoch that was asked, and when.
    pub(crate) asked: Option<(u64, Instant)>,
    /// The phase that was last told to people.
    pub(crate) told: Option<Phase>,
    /// What the safety checker objected to when a plan was made last.
    pub(crate) vetoed: Option<Vec<Violation>>,
    /// When a change made the next turn due.
    pub(crate) woken: Option<Timestamp>,
    /// When the lock of the plan's node was renewed last.
    pub(crate) lock_renewed: Option<Instant>,
    /// After how long a wait calls for a person.
    pub(crate) patience: SignedDuration,
    /// The cloud's last word on the volume, for a ticket to its support.
    pub(crate) cloud: Option<CloudVolume>,
    /// Whether this turn stored a line, or put something back without one.
    moved: bool,
    /// Since when the API server refuses the status.
    refused_since: Option<Timestamp>,
    /// The number of the next line of a journal that a newer leader wrote.
    frozen: Option<u32>,
    backoff: Backoff,
}

impl Memory {
    fn wrote_a_line(&mut self) {
        self.moved = true;
        self.refused_since = None;
    }

    /// Keeps what the cloud said, where it was asked.
    pub(crate) fn note_cloud(&mut self, evidence: &Evidence) {
        if let Some(volume) = evidence.cloud_volume.shown() {
            self.cloud = Some(volume.clone());
        }
    }
}

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
        Self { give_way, again, told: false }
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

/// What limits a recovery besides its own plan.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The policy's budgets.
    pub budgets: Budgets,
    /// Recoveries with a run under way: name and node.
    pub running: Vec<(ObjectName, String)>,
    /// Another recovery of the same claim that has a run under way, or came first.
    pub rival: Option<ObjectName>,
    /// Whether a policy made the recovery.
    pub made_by_policy: bool,
    /// The policy that rules the claim now. None: no policy selects it.
    pub ruling: Option<Ruling>,
    /// What that policy allows anybody who has no right at cluster scope.
    pub ceiling: Option<Ceiling>,
    /// Whether the policy that rules the claim now wants a snapshot before a detach by force, whoever made the recovery.
    pub snapshot: SnapshotRule,
    /// After how many seconds the policy calls for a person when a recovery waits for others. None: no policy says so.
    pub escalate_after_seconds: Option<u32>,
}

/// What the policy that rules a claim says of it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The policy's name.
    pub policy: String,
    /// How far it goes.
    pub mode: Mode,
    /// Whether it lets instances be powered off.
    pub power_off: PowerOffRule,
}

impl Ruling {
    /// Of this policy.
    pub fn of(policy: &RecoveryPolicy) -> Self {
        let (mode, power_off) = (policy.spec.mode, policy.spec.counting_power_off());
        Self { policy: policy.name_any(), mode, power_off }
    }
}

impl Limits {
    /// What rules a recovery that a policy made. None: a person made it.
    pub(crate) fn policy_says(&self, recovery: &VolumeRecovery) -> Option<PolicySays> {
        self.made_by_policy.then(|| match &self.ruling {
            None => PolicySays::Nothing,
            Some(ruling) => PolicySays::Rules {
                policy: ruling.policy.clone(),
                mode: ruling.mode,
                power_off: ruling.power_off != PowerOffRule::Never || recovery.spec.power_off.is_some(),
            },
        })
    }

    /// Whether a policy made the recovery and lets instances be powered off now.
    pub(crate) fn power_off(&self) -> PowerOffRule {
        let ruling = self.ruling.as_ref().filter(|_| self.made_by_policy);
        ruling.map_or(PowerOffRule::Never, |ruling| ruling.power_off)
    }

    fn patience(&self) -> SignedDuration {
        self.escalate_after_seconds.map_or(PATIENCE, |seconds| SignedDuration::from_secs(seconds.into()))
    }
}

/// Resolves once when others wait for the driver's place; never for a driver without one.
async fn told_to_give_way(line: &mut Option<InLine>) {
    let Some(line) = line.as_mut().filter(|line| !line.told) else { return std::future::pending().await };
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
        let api: Api<VolumeRecovery> = Api::namespaced(self.collector.clients.read.clone(), &name.namespace);
        let mut memory = Memory::default();
        let mut changes = self.collector.cache.as_ref().map(reattach_cluster::cache::Cache::changes);
        // Whether the last turn is known to have begun no run. After a lost reply nobody knows.
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
                    let pause = self.pause(name, until, Timestamp::MIN, &mut changes, &seen, &mut stop);
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
            match self.pause(name, until, calm, &mut changes, &seen, &mut stop).await {
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
        seen: &[String],
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
        seen: &[String],
    ) {
        let Some(changes) = changes else { return std::future::pending().await };
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
    fn fingerprint(&self, name: &ObjectName) -> Vec<String> {
        let Some(cache) = &self.collector.cache else { return Vec::new() };
        let Some(recovery) = cache.recoveries.get(&name.namespace, &name.name) else { return Vec::new() };
        let claim = ObjectName::new(name.namespace.as_str(), recovery.spec.claim_name.as_str());
        // Unchecked: it tells only what wakes the driver.
        let plan = recovery.status.as_ref().and_then(|s| s.plan.as_ref()?.get().ok());
        let view = View::cached(cache, &claim, plan.map(|p| &p.pins));
        let version = |m: Option<String>| m.unwrap_or_default();
        // Our own writes to its status are no news: only what people change.
        let meta = &recovery.metadata;
        let asked = meta.deletion_timestamp.is_some().to_string() + &meta.generation.unwrap_or(0).to_string();
        let mut all = vec![asked];
        all.extend(view.claim.iter().map(|o| version(o.resource_version())));
        all.extend(view.volume.iter().map(|o| version(o.resource_version())));
        all.extend(view.attachments.iter().map(|o| version(o.resource_version())));
        all.extend(view.pods.iter().map(|o| version(o.resource_version())));
        all.extend(view.nodes.values().flatten().map(|o| version(o.resource_version())));
        all.extend(view.reports.values().map(|o| version(o.resource_version())));
        all.extend(view.csi_nodes.values().map(|o| version(o.resource_version())));
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
        memory: &mut Memory,
    ) -> Result<Turn, TurnError> {
        memory.patience = limits.patience();
        let status = recovery.status.clone().unwrap_or_default();
        if status.phase.is_final() {
            return finish::release(self, recovery).await;
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

    pub(crate) fn later(&self, by: SignedDuration) -> Timestamp {
        self.collector.clock.now().saturating_add(by).unwrap_or(Timestamp::MAX)
    }

    pub(crate) fn claim_of(recovery: &VolumeRecovery) -> ObjectName {
        ObjectName::new(recovery.namespace().unwrap_or_default(), recovery.spec.claim_name.as_str())
    }

    pub(crate) fn uid_of(recovery: &VolumeRecovery) -> Uid {
        Uid::from(recovery.uid().unwrap_or_default())
    }
}
