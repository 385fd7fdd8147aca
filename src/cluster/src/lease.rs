//! The leader Lease, with a term.
//!
//! # Expected flow
//! [`Elector::run`] keeps trying: read the Lease, decide, compare-and-swap it with the `resourceVersion` that was
//! read. Being leader is published as a [`Leadership`], which says until when it may be relied on.
//!
//! # Guarantees
//! Two holders never overlap as long as clocks run at about the same rate, also when requests are slow:
//! - A holder counts its lease from the moment *before* it sent the write that renewed it, and stops relying on the lease
//!   `MARGIN` before the end.
//! - A contender takes over only after the record has been unchanged for one whole lease duration, counted on its own
//!   monotonic clock from the moment *after* its read was answered. That wait ends earlier only where this process itself
//!   saw the Lease in the hands of a holder and then given up in the same term. A Lease without a holder at the first read
//!   may come from a backup, while a leader of a later term works that has not seen it yet.
//! - A missing Lease is no free Lease: it may have been deleted under a leader that cannot see that yet. A contender writes
//!   a record with the holder [`VACANT`] first, which must then stay unchanged as any other; a leader that lives replaces
//!   it with its own.
//!
//! Terms never shrink. The term (`leaseTransitions`) grows with every change of holder and stands in every journal entry,
//! so a late write of an old leader is recognised. A new term is higher than that of the Lease, than every term that this
//! process ever read in it *and* than every line of every journal in the cluster, so a Lease that was deleted or restored
//! from a backup does not bring an old term back.
//!
//! # Assumptions
//! The API server refuses a PUT with an old `resourceVersion` (409). Clock rates differ by less than a tenth. A backup that
//! is restored is older than `WATCHED_WITHIN`.
//!
//! # Caveats
//! The lease alone is no fence for effects: each is also conditional by UID and resourceVersion, or issued only when its
//! time-out ends before the lease does. The first leader of a new installation waits one lease duration, and so does one
//! that starts after every replica was stopped.
//!
//! # Errors
//! An API server that cannot be reached costs leadership when the lease runs out, never earlier and never later. Journals
//! that cannot be listed keep a contender from becoming leader: an unknown term is not a low one.

use crate::conditional::write_lease;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client};
use reattach_api::VolumeRecovery;
use reattach_api::metadata::{self, MissingField};
use reattach_core::ids::ResourceVersion;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a lease lasts without renewal (client-go's default for controllers is 15 s).
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How long one read of the Lease with its write may take: two of them fit into a lease.
const ROUND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to list every journal before a new term is taken. No lease runs out meanwhile that is ours.
const COUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// VolumeRecoveries in one page of that list. One may be 100 KiB and more.
const PAGE: u32 = 50;
/// A holder stops relying on its lease this long before a contender may take it.
const MARGIN: Duration = Duration::from_secs(2);
/// Maximum time between two reads for which a Lease that had a holder at the first and none at the second was given up in
/// between. After a longer time another leader may have come, and a backup may have brought the Lease of before it back.
const WATCHED_WITHIN: Duration = RENEW_EVERY.saturating_add(ROUND_TIMEOUT);

/// A leader's term, and until when it may be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// Grows with every change of holder.
    pub term: u64,
    /// Effects must be over by then.
    pub until: Instant,
}

/// The holder in a Lease that a contender wrote because there was none. No process leads by it.
pub const VACANT: &str = "vacant";

/// The Lease as last read, and since when it has been unchanged on our own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Record {
    /// It does not exist.
    Missing,
    /// It exists.
    Found {
        /// The holder's identity; empty when the last holder gave it up, [`VACANT`] when there was no Lease.
        holder: String,
        /// `leaseTransitions`.
        term: u64,
        /// `resourceVersion`.
        version: ResourceVersion,
        /// `leaseDurationSeconds` of the holder.
        duration: Duration,
        /// When the first read that found this version was answered.
        since: Instant,
        /// This process saw a holder of this term right before it saw the Lease without one (`WATCHED_WITHIN`).
        seen_released: bool,
    },
}

impl Record {
    /// Did this process see a holder of this term, or that one give the Lease up?
    fn was_held_in(&self, of: u64) -> bool {
        match self {
            Self::Missing => false,
            Self::Found {
                holder,
                term,
                seen_released,
                ..
            } => {
                let held = !holder.is_empty() && holder != VACANT;
                *term == of && (held || *seen_released)
            }
        }
    }
}

/// What to do about the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    /// Create or take it, with this term.
    Acquire {
        /// The new term.
        term: u64,
    },
    /// It is ours: renew it with this term.
    Renew {
        /// The term that we hold.
        term: u64,
    },
    /// There is none: write one without a holder, and see whether it stays unchanged.
    Reserve,
    /// Another process may rely on it: read it again then.
    Wait {
        /// The earliest moment at which it may be taken.
        until: Instant,
    },
}

/// What this process knows of its own hold on the Lease. A new process never continues an old one's term: it has not
/// proven when that one's effects ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// It does not hold the Lease, or not any more.
    None,
    /// It has sent a write that takes the Lease, and has not heard whether the write was applied.
    Tried {
        /// The new term.
        term: u64,
    },
    /// It holds the Lease.
    Held {
        /// Its term.
        term: u64,
        /// When it may not rely on it any more.
        until: Instant,
    },
}

impl Hold {
    fn term(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Tried { term } | Self::Held { term, .. } => Some(term),
        }
    }
}

/// Decides from the record and our own hold alone. `highest` is the highest term in any journal, and of those that this
/// process ever read in the Lease. Pure.
fn decide(record: &Record, me: &str, hold: Hold, highest: u64, now: Instant) -> Decision {
    let Record::Found {
        holder,
        term,
        duration,
        since,
        seen_released,
        ..
    } = record
    else {
        return match hold {
            // Deleted under a holder whose lease has not run out: no other process can have taken it yet.
            Hold::Held { term, until } if now < until => Decision::Renew { term },
            Hold::Held { .. } | Hold::Tried { .. } | Hold::None => Decision::Reserve,
        };
    };
    let free = holder.is_empty() || holder == VACANT;
    let acquire = Decision::Acquire {
        term: (*term).max(highest).saturating_add(1),
    };
    match hold {
        // No other process can have written our identity with our term.
        Hold::Held { .. } | Hold::Tried { .. } if holder == me && hold.term() == Some(*term) => {
            Decision::Renew { term: *term }
        }
        // Written by a contender that found none, or restored from a backup, before another process can have taken it.
        Hold::Held { term, until } if free && now < until => Decision::Renew { term },
        // A higher term in a journal, or read earlier, shows that this is not the Lease's newest state: its holder is not
        // known. Neither is it where this process did not see the holder give it up.
        Hold::Held { .. } | Hold::Tried { .. } | Hold::None
            if *seen_released && *term >= highest =>
        {
            acquire
        }
        // Our own identity with a term that we do not hold comes from a backup: another process may lead.
        Hold::Held { .. } | Hold::Tried { .. } | Hold::None => {
            let lapses = *since + *duration;
            if now >= lapses {
                acquire
            } else {
                Decision::Wait { until: lapses }
            }
        }
    }
}

/// Takes part in the election.
pub struct Elector {
    api: Api<Lease>,
    journals: Api<DynamicObject>,
    name: String,
    me: String,
    clock: crate::Clock,
    record: Record,
    hold: Hold,
    /// The highest term in any journal, as listed since the Lease last changed.
    highest: Option<u64>,
    /// The highest term that this process ever read in the Lease.
    highest_seen: u64,
    /// When the last read of the Lease was answered.
    read_at: Option<Instant>,
}

/// What one read of the Lease led to.
enum Round {
    /// The Lease is ours.
    Leading {
        /// The term, and until when.
        mine: Leadership,
        /// When to renew it.
        wake: Instant,
    },
    /// Another process may rely on it, or was faster.
    Waiting {
        /// When to read it again.
        wake: Instant,
    },
    /// It may be taken once the highest term of the journals is known.
    MustCount,
}

impl Elector {
    /// An elector for the Lease `name` in `namespace`, as `me` (unique per process: pod name and UID).
    pub fn new(
        records: Client,
        namespace: &str,
        name: &str,
        me: &str,
        clock: crate::Clock,
    ) -> Self {
        Self {
            api: Api::namespaced(records.clone(), namespace),
            journals: Api::all_with(records, &ApiResource::erase::<VolumeRecovery>(&())),
            name: name.into(),
            me: me.into(),
            clock,
            record: Record::Missing,
            hold: Hold::None,
            highest: None,
            highest_seen: 0,
            read_at: None,
        }
    }

    /// Runs until `stop` turns true, publishing leadership; releases the lease at the end.
    pub async fn run(
        mut self,
        publish: watch::Sender<Option<Leadership>>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            let wake = match self.round_in_time().await {
                Ok((leadership, wake)) => {
                    publish.send_if_modified(|now| {
                        let changed = *now != leadership;
                        *now = leadership;
                        changed
                    });
                    wake
                }
                Err(error) => {
                    tracing::warn!(%error, lease = self.name, "the leader Lease could not be read or written");
                    if publish.borrow().is_none_or(|l| Instant::now() >= l.until) {
                        publish.send_replace(None);
                    }
                    Instant::now() + Duration::from_secs(1)
                }
            };
            tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s) => break,
                () = tokio::time::sleep_until(wake) => {}
            }
        }
        let was_leader = publish.send_replace(None).is_some();
        if was_leader && let Err(error) = self.release().await {
            tracing::warn!(%error, "the leader Lease could not be released; it expires by itself");
        }
    }

    /// One round, of which no request may hang: a contender must be able to try again.
    async fn round_in_time(&mut self) -> Result<(Option<Leadership>, Instant), String> {
        let late = |what: &str, limit: Duration| {
            format!("no answer to {what} within {} s", limit.as_secs())
        };
        loop {
            let round = tokio::time::timeout(ROUND_TIMEOUT, self.attempt()).await;
            match round.map_err(|_| late("the read or write of the Lease", ROUND_TIMEOUT))? {
                Ok(Round::Leading { mine, wake }) => return Ok((Some(mine), wake)),
                Ok(Round::Waiting { wake }) => return Ok((None, wake)),
                Ok(Round::MustCount) => {
                    let counted = tokio::time::timeout(COUNT_TIMEOUT, self.count()).await;
                    let counted =
                        counted.map_err(|_| late("the list of VolumeRecoveries", COUNT_TIMEOUT))?;
                    counted.map_err(|e| {
                        format!("the terms of the journals could not be listed: {e}")
                    })?;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// One try for the lease, for a process that lives for one recovery only (break-glass).
    ///
    /// # Errors
    /// The API server's error.
    pub async fn round(&mut self) -> Result<(Option<Leadership>, Instant), kube::Error> {
        loop {
            match self.attempt().await? {
                Round::Leading { mine, wake } => return Ok((Some(mine), wake)),
                Round::Waiting { wake } => return Ok((None, wake)),
                Round::MustCount => self.count().await?,
            }
        }
    }

    /// Reads the Lease, decides, and writes it where it is ours to write.
    async fn attempt(&mut self) -> Result<Round, kube::Error> {
        let lease = self.api.get_opt(&self.name).await?;
        // After the answer: the holder may have renewed it at any moment before that.
        let now = Instant::now();
        self.note(lease.as_ref(), now)?;
        if matches!(self.hold, Hold::Held { until, .. } if now >= until) {
            self.hold = Hold::None;
        }
        let highest = self.highest.unwrap_or(0).max(self.highest_seen);
        let decision = decide(&self.record, &self.me, self.hold, highest, now);
        let (term, acquires) = match decision {
            Decision::Reserve => {
                self.hold = Hold::None;
                return self.reserve().await;
            }
            Decision::Wait { until } => {
                self.hold = Hold::None;
                return Ok(Round::Waiting {
                    wake: until.min(now + RENEW_EVERY),
                });
            }
            Decision::Acquire { .. } if self.highest.is_none() => return Ok(Round::MustCount),
            Decision::Acquire { term } => (term, true),
            Decision::Renew { term } => (term, false),
        };
        if acquires {
            self.hold = Hold::Tried { term };
        }
        // Before the write leaves: another process may read it at any moment after that.
        let sent = Instant::now();
        match self.write(lease, term, acquires, &self.me).await {
            Ok(written) => {
                self.note(Some(&written), Instant::now())?;
                let until = sent + LEASE_DURATION - MARGIN;
                self.hold = Hold::Held { term, until };
                Ok(Round::Leading {
                    mine: Leadership { term, until },
                    wake: sent + RENEW_EVERY,
                })
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                let wake = Instant::now() + Duration::from_millis(200);
                match self.hold {
                    // Another writer was faster, which the next read tells more about. No process can have taken our lease.
                    Hold::Held { term, until } => Ok(Round::Leading {
                        mine: Leadership { term, until },
                        wake,
                    }),
                    Hold::Tried { .. } | Hold::None => {
                        self.hold = Hold::None;
                        Ok(Round::Waiting { wake })
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a Lease without a holder.
    async fn reserve(&mut self) -> Result<Round, kube::Error> {
        let term = self.highest_seen;
        let again = |seconds| {
            Ok(Round::Waiting {
                wake: Instant::now() + seconds,
            })
        };
        match self.write(None, term, true, VACANT).await {
            Ok(written) => {
                self.note(Some(&written), Instant::now())?;
                again(RENEW_EVERY)
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                again(Duration::from_millis(200))
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps what a read that was answered at `now` said.
    ///
    /// # Errors
    /// The Lease has no resourceVersion. Two such reads would look like a Lease that its holder does not renew.
    fn note(&mut self, lease: Option<&Lease>, now: Instant) -> Result<(), MissingField> {
        let read = lease
            .map(|lease| metadata::of(lease).version())
            .transpose()?;
        let before = self.read_at.replace(now);
        let (Some(lease), Some(read)) = (lease, read) else {
            self.record = Record::Missing;
            self.highest = None;
            return Ok(());
        };
        if matches!(&self.record, Record::Found { version, .. } if *version == read) {
            return Ok(());
        }
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(15)).unwrap_or(15);
        let term = u64::try_from(spec.lease_transitions.unwrap_or(0)).unwrap_or(0);
        let holder = spec.holder_identity.unwrap_or_default();
        let watched = before.is_some_and(|at| now.duration_since(at) <= WATCHED_WITHIN);
        let seen_released = watched && holder.is_empty() && self.record.was_held_in(term);
        self.highest = None;
        self.highest_seen = self.highest_seen.max(term);
        self.record = Record::Found {
            holder,
            term,
            version: read,
            duration: Duration::from_secs(seconds),
            since: now,
            seen_released,
        };
        Ok(())
    }

    /// Lists every journal for the highest term. A term that no Lease can have is of no leader: its run stays held by the
    /// driver, and must not use up the terms of all others.
    async fn count(&mut self) -> Result<(), kube::Error> {
        let possible = u64::from(i32::MAX.unsigned_abs());
        let mut highest = 0;
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = match self.journals.list(&params).await {
                Ok(page) => page,
                // Without the custom resource there is no journal. The answer may be in plain text, without a reason.
                Err(kube::Error::Api(status)) if status.code == 404 => break,
                Err(error) => return Err(error),
            };
            let lines = page
                .items
                .iter()
                .flat_map(|r| r.data["status"]["journal"].as_array());
            let terms = lines.flatten().filter_map(|line| line["term"].as_u64());
            highest = terms
                .filter(|term| *term < possible)
                .fold(highest, u64::max);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        self.highest = Some(highest);
        Ok(())
    }

    async fn write(
        &self,
        old: Option<Lease>,
        term: u64,
        acquires: bool,
        holder: &str,
    ) -> Result<Lease, kube::Error> {
        let now = MicroTime(self.clock.now());
        write_lease(&self.api, &self.name, old, |lease| {
            let acquired = lease.spec.take().and_then(|spec| spec.acquire_time);
            lease.spec = Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(i32::try_from(LEASE_DURATION.as_secs()).unwrap_or(15)),
                lease_transitions: Some(i32::try_from(term).unwrap_or(i32::MAX)),
                acquire_time: acquired.filter(|_| !acquires).or_else(|| Some(now.clone())),
                renew_time: Some(now),
                ..LeaseSpec::default()
            });
        })
        .await
    }

    /// Gives the lease up, so that another replica need not wait for it to run out.
    ///
    /// # Errors
    /// The API server's error; the lease then runs out by itself.
    pub async fn release(&mut self) -> Result<(), kube::Error> {
        let Some(term) = std::mem::replace(&mut self.hold, Hold::None).term() else {
            return Ok(());
        };
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            return Ok(());
        };
        let holder = lease
            .spec
            .as_ref()
            .and_then(|s| s.holder_identity.as_deref());
        if holder == Some(self.me.as_str()) {
            let written = self.write(Some(lease), term, false, "").await?;
            self.note(Some(&written), Instant::now())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
