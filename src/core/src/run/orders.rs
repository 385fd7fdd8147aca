//! What became of an order to the cloud: a request that may land at any later time (safety rule S3).
//!
//! # Guarantees
//! No timer ends an order. It is known by the provider's own history, which shows that the request arrived; by the
//! provider's own refusal of requests of that age; by the end of the volume itself, which neither cluster nor cloud has any
//! more; or by a named person's word that nothing is under way. The word counts where the cloud cannot be asked, too: the
//! claim's PersistentVolume may be gone, and with it the way to the provider.
//!
//! # Caveats
//! A job that another client ordered after our request was sent, on the same object and of the same kind, counts as ours:
//! histories do not name the request.

use super::RunCx;
use crate::cloud::{CloudJob, JobKind, JobStatus, PowerChange, PowerJob};
use crate::fact::Missing;
use crate::ids::StepIx;
use crate::journal::NewestJob;
use jiff::{SignedDuration, Timestamp};

/// What is known of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Something must be read first.
    Unread(&'static str),
    /// Nothing leads to the cloud that was asked: the PersistentVolume is gone, and no provider is known to be the one.
    Unreachable,
    /// A job of the object is under way.
    Pending,
    /// The provider's history shows that it arrived, and how it ended.
    Ended {
        /// In words.
        seen: String,
        /// Whether it ended well.
        well: bool,
    },
    /// It cannot have an effect any more, for this reason.
    Over(String),
    /// Nothing tells. It may still arrive.
    Unseen,
}

/// A job of a history, reduced to what tells of an order.
struct Job<'a> {
    id: &'a str,
    status: &'a JobStatus,
    /// Of the kind that was ordered.
    fits: bool,
}

impl RunCx<'_> {
    /// What became of a detach that was ordered by this step; read at `since` or later.
    pub(crate) fn fate_of_detach(self, step: StepIx, since: Timestamp) -> Fate {
        if self.is_unreachable() {
            return self.by_word(step, self.cx.now).unwrap_or(Fate::Unreachable);
        }
        let found = match self.evidence.cloud_volume() {
            Ok(_) => true,
            Err(Missing::Absent) => false,
            Err(_) => {
                return Fate::Unread("the cloud must be read to know what became of the detach");
            }
        };
        let jobs = self.evidence.jobs().ok();
        let read = jobs.map_or(self.evidence.cloud_volume.at, |_| {
            self.evidence.cloud_volume.at.min(self.evidence.jobs.at)
        });
        if read < since {
            return Fate::Unread("the cloud must be read again to know what became of the detach");
        }
        if !found && self.is_gone() {
            return Fate::Over(format!(
                "neither the cluster nor the cloud has volume {} any more",
                self.plan.pins.volume
            ));
        }
        match jobs {
            Some(jobs) => self.of_history(step, detaches(jobs), read),
            None => {
                let unread = Fate::Unread(
                    "the provider's job history must be read to know what became of the detach",
                );
                // Some providers have no history of a volume that they do not find.
                if found {
                    unread
                } else {
                    self.by_word(step, read).unwrap_or(Fate::Unseen)
                }
            }
        }
    }

    /// Whether nothing leads from the cluster to the plan's volume at its cloud any more, and no provider is known to be the
    /// one that the run began with.
    pub(crate) fn is_unreachable(self) -> bool {
        let gone = match self.evidence.volume() {
            Err(Missing::Absent) => true,
            Ok(volume) => volume.uid != self.plan.pins.pv,
            Err(_) => false,
        };
        gone && self.evidence.cloud_id.as_ref() != Some(&self.plan.pins.volume)
    }

    /// Whether the volume does not exist any more: its PersistentVolume is gone, and the cloud does not find it for the very
    /// credential that showed it as the holder's earlier in this recovery.
    fn is_gone(self) -> bool {
        let no_object = matches!(self.evidence.volume(), Err(Missing::Absent));
        let not_found = matches!(self.evidence.cloud_volume(), Err(Missing::Absent));
        let the_same = self.evidence.sightings.iter().any(|s| {
            s.instance == self.plan.pins.holder
                && s.at < self.evidence.cloud_volume.at
                && Some(&s.scope) == self.evidence.cloud_scope.as_ref()
        });
        no_object && not_found && the_same
    }

    /// What became of an order to power the holder off or on that was given by this step.
    pub(crate) fn fate_of_power_order(
        self,
        step: StepIx,
        change: PowerChange,
        since: Timestamp,
    ) -> Fate {
        if self.is_unreachable() {
            return self.by_word(step, self.cx.now).unwrap_or(Fate::Unreachable);
        }
        let power = self.evidence.since(since).power(&self.plan.pins.holder);
        let (Some(fact), Ok(facts)) = (self.evidence.power.get(&self.plan.pins.holder), power)
        else {
            return Fate::Unread(
                "the history of the instance's power must be read to know what became of the order",
            );
        };
        self.of_history(step, of_power(&facts.jobs, change), fact.at)
    }

    fn of_history(self, step: StepIx, jobs: Vec<Job<'_>>, read: Timestamp) -> Fate {
        let (newest, sent) = (self.state.newest_before(step), self.state.sent_at(step));
        match by_jobs(
            newest,
            sent,
            self.evidence.orders_expire_after_seconds,
            &jobs,
            read,
        ) {
            Fate::Unseen => self.by_word(step, read).unwrap_or(Fate::Unseen),
            known => known,
        }
    }

    /// The sentence of a person's word that nothing is under way, where it was said after this step's effect was sent.
    pub(crate) fn declared_over(self, step: StepIx) -> Option<String> {
        match self.by_word(step, self.cx.now)? {
            Fate::Over(seen) => Some(seen),
            Fate::Unread(_)
            | Fate::Unreachable
            | Fate::Pending
            | Fate::Ended { .. }
            | Fate::Unseen => None,
        }
    }

    /// A person's word that nothing is under way. Said before the order was sent, or after `until`, it says nothing about it.
    fn by_word(self, step: StepIx, until: Timestamp) -> Option<Fate> {
        let sent = self.state.sent_at(step)?;
        let word = self
            .cx
            .nothing_under_way
            .as_ref()
            .filter(|word| word.at >= sent && word.at <= until)?;
        Some(Fate::Over(format!(
            "{} declared that nothing is under way: {}",
            word.by, word.reason
        )))
    }
}

fn detaches(jobs: &[CloudJob]) -> Vec<Job<'_>> {
    jobs.iter()
        .map(|j| Job {
            id: &j.id,
            status: &j.status,
            fits: j.kind == JobKind::Detach,
        })
        .collect()
}

fn of_power(jobs: &[PowerJob], change: PowerChange) -> Vec<Job<'_>> {
    jobs.iter()
        .map(|j| Job {
            id: &j.id,
            status: &j.status,
            fits: j.change == change,
        })
        .collect()
}

/// What the provider's history alone says of an order. `newest` is the newest job right before it was sent.
fn by_jobs(
    newest: Option<&NewestJob>,
    sent: Option<Timestamp>,
    expires: Option<i64>,
    jobs: &[Job<'_>],
    read: Timestamp,
) -> Fate {
    if jobs
        .iter()
        .any(|j| matches!(j.status, JobStatus::Scheduled | JobStatus::Started))
    {
        return Fate::Pending;
    }
    let later: &[Job<'_>] = match newest {
        // A journal of an earlier version, or a history that was not read: nothing tells which job is new.
        None => &[],
        Some(NewestJob::Nothing) => jobs,
        // A provider that keeps no history forgets what has ended (EC2); a history that was cut off is an error of its own.
        Some(NewestJob::Job { id }) => {
            let at = jobs.iter().position(|j| j.id == id);
            at.and_then(|at| jobs.get(at + 1..)).unwrap_or_default()
        }
    };
    let ended =
        |j: &&Job<'_>| j.fits && matches!(j.status, JobStatus::Finished | JobStatus::Failed);
    if let Some(job) = later.iter().rev().find(ended) {
        let well = *job.status == JobStatus::Finished;
        let seen = format!(
            "the provider's job {} {}",
            job.id,
            if well { "has finished" } else { "has failed" }
        );
        return Fate::Ended { seen, well };
    }
    if let (Some(sent), Some(secs)) = (sent, expires)
        && read.duration_since(sent) > SignedDuration::from_secs(secs)
    {
        return Fate::Over(format!(
            "the provider refuses requests that are older than {secs} s"
        ));
    }
    Fate::Unseen
}

/// An order to the cloud, as far as a history can tell what became of it: for one whose journal is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent<'a> {
    /// When it was sent.
    pub at: Timestamp,
    /// The newest job of the provider's history right before. None: it was not read.
    pub newest_job: Option<&'a NewestJob>,
    /// After how many seconds the provider itself refuses it. None: it never does.
    pub expires_after_seconds: Option<i64>,
}

/// What became of an order whose journal is gone, by the provider's history alone, as one sentence. The history was read at
/// `read`.
///
/// # Errors
/// The sentence that says what is not known: the order may still have an effect.
pub fn accounted_for(
    sent: &Sent<'_>,
    history: History<'_>,
    read: Timestamp,
) -> Result<String, String> {
    let jobs = match history {
        History::Detach(jobs) => detaches(jobs),
        History::Power(jobs, change) => of_power(jobs, change),
    };
    match by_jobs(
        sent.newest_job,
        Some(sent.at),
        sent.expires_after_seconds,
        &jobs,
        read,
    ) {
        Fate::Ended { seen, .. } | Fate::Over(seen) => Ok(seen),
        Fate::Pending => Err("a job is under way at the provider".to_owned()),
        Fate::Unseen | Fate::Unread(_) | Fate::Unreachable => {
            Err("the provider's history does not show it, so it may still arrive".to_owned())
        }
    }
}

/// A provider's history, with the kind of order that is looked for in it.
#[derive(Clone, Copy, Debug)]
pub enum History<'a> {
    /// The jobs of a volume, oldest first; a detach is looked for.
    Detach(&'a [CloudJob]),
    /// The jobs of an instance's power, oldest first; an order for this change is looked for.
    Power(&'a [PowerJob], PowerChange),
}
