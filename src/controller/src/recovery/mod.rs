//! One recovery from its first look to its end.
//!
//! # Expected flow
//! [`Executor::drive`] (`drive.rs`) reads the VolumeRecovery, takes one [`Turn`], and waits for a change or for the moment that the
//! turn named. Before a plan is accepted a turn diagnoses and plans (`before.rs`); afterwards it asks
//! [`reattach_core::run::next`] for the one next thing and does it (`run.rs`).
//!
//! # Guarantees
//! Every effect is journaled before it is issued and its outcome after, by compare-and-swap. Every effect passes the
//! gate. A lost compare-and-swap means: read again. A turn that led nowhere is followed by a pause that grows
//! (`pace.rs`).
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
mod drive;
mod journal;
mod mandate;
mod ordered;
mod reserve;
mod run;
mod sightings;
mod undo;
mod unsound;

pub(crate) use drive::InLine;
pub use mandate::Rights;
pub use reserve::Reservations;
#[cfg(test)]
pub(crate) use run::note_of;
pub(crate) use undo::let_boot;

use crate::collect::Collector;
use crate::metrics::Metrics;
use crate::pace::{Backoff, Fruitless};
use crate::policies::PlanRules;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use reattach_api::metadata::MissingField;
use reattach_api::{Budgets, Phase, PowerOffRule, RecoveryPolicy, Retries, VolumeRecovery};
use reattach_cluster::gate::Gate;
use reattach_cluster::reply::is_refused;
use reattach_cluster::store::SaveError;
use reattach_core::authority::Ceiling;
use reattach_core::check::Violation;
use reattach_core::cloud::CloudVolume;
use reattach_core::evidence::Evidence;
use reattach_core::ids::ObjectName;
use reattach_core::policy::Mode;
use reattach_core::run::{PolicySays, Unattended};
use tokio::time::Instant;

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
    /// The record lacks what identifies it.
    #[error("{0}, so nothing is done about it")]
    Incomplete(#[from] MissingField),
    /// Another process works on it.
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
            Self::Save(SaveError::Refused(_) | SaveError::Incomplete(_)) | Self::Incomplete(_) => {
                Some(Fruitless::Refused)
            }
            Self::Kubernetes(_) | Self::Save(SaveError::Other(_)) => Some(Fruitless::Away),
            Self::Save(SaveError::Conflict) | Self::Lost | Self::NotLeader => {
                Some(Fruitless::Raced)
            }
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
pub struct DriverState {
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
    /// When the policy lets an attempt be made again.
    pub(crate) retries: Option<Retries>,
    /// The time of the current step in which nobody could act.
    unattended: Unattended,
    /// Whether the plan that was made last may begin: the next one is made for that.
    begins: bool,
    /// Whether this turn stored a line, or put something back without one.
    moved: bool,
    /// The phase that stands, and since when this driver has seen it so.
    stands: Option<(Option<Phase>, Timestamp)>,
    /// Since when the cloud's rate limit cuts each look short.
    throttled_since: Option<Timestamp>,
    /// Since when the API server refuses the status.
    refused_since: Option<Timestamp>,
    /// The number of the next line of a journal that a newer leader wrote.
    frozen: Option<u32>,
    backoff: Backoff,
}

impl DriverState {
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
    /// What the policy that rules the claim now says about steps and losses of a plan, whoever made the recovery.
    pub rules: PlanRules,
    /// When the policy lets an attempt be made again. None: no policy does.
    pub retries: Option<Retries>,
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
        Self {
            policy: policy.name_any(),
            mode,
            power_off,
        }
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
                power_off: ruling.power_off != PowerOffRule::Never
                    || recovery.spec.power_off.is_some(),
            },
        })
    }

    /// Whether a policy made the recovery and lets instances be powered off now.
    pub(crate) fn power_off(&self) -> PowerOffRule {
        let ruling = self.ruling.as_ref().filter(|_| self.made_by_policy);
        ruling.map_or(PowerOffRule::Never, |ruling| ruling.power_off)
    }

    fn patience(&self) -> SignedDuration {
        self.escalate_after_seconds.map_or(PATIENCE, |seconds| {
            SignedDuration::from_secs(seconds.into())
        })
    }
}

/// Time for which looks that the cloud's rate limit cut short leave the record as it is, 5 min. After that the status says why
/// nothing moves.
const THROTTLED_FOR_LONG: SignedDuration = SignedDuration::from_mins(5);

impl Executor {
    /// When to look again after a look that the cloud's rate limit cut short. Such a look is no news, so the last verdict stands and
    /// nothing is written. `None`: the look was complete, or looks have been cut short for long.
    fn throttled(&self, evidence: &Evidence, memory: &mut DriverState) -> Option<Timestamp> {
        let Some(until) = evidence.cloud_throttled_until() else {
            memory.throttled_since = None;
            return None;
        };
        let now = self.collector.clock.now();
        let since = *memory.throttled_since.get_or_insert(now);
        (now.duration_since(since) < THROTTLED_FOR_LONG).then_some(until)
    }

    pub(crate) fn later(&self, by: SignedDuration) -> Timestamp {
        self.collector
            .clock
            .now()
            .saturating_add(by)
            .unwrap_or(Timestamp::MAX)
    }
}
