//! The leader Lease, with a term.
//!
//! # Expected flow
//! [`Elector::run`] keeps trying: read the Lease, [`decide`], compare-and-swap it with the `resourceVersion` that was
//! read. Being leader is published as a [`Leadership`], which says until when it may be relied on.
//!
//! # Guarantees
//! Two holders never overlap as long as clocks run at about the same rate: a contender takes over only after it has seen
//! the same record unchanged for one whole lease duration *on its own monotonic clock*, and a holder stops relying on
//! its lease `MARGIN` before that. The term (`leaseTransitions`) grows with every change of holder and stands in every
//! journal entry, so a late write of an old leader is recognised.
//!
//! # Assumptions
//! The API server refuses a PUT with an old `resourceVersion` (409). Clock rates differ by less than a tenth.
//!
//! # Caveats
//! The lease alone is no fence for effects: each is also conditional by UID and resourceVersion, or issued only when its
//! time-out ends before the lease does.
//!
//! # Errors
//! An API server that cannot be reached costs leadership when the lease runs out, never earlier and never later.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a lease lasts without renewal (client-go's default for controllers is 15 s).
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How long one look at the Lease with its write may take: two of them fit into a lease.
pub const ROUND_TIMEOUT: Duration = Duration::from_secs(5);
/// A holder stops relying on its lease this long before a contender may take it.
pub const MARGIN: Duration = Duration::from_secs(2);

/// A leader's term, and until when it may be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// Grows with every change of holder.
    pub term: u64,
    /// Effects must be over by then.
    pub until: Instant,
}

/// The record as last seen, and since when it has been unchanged on our own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who holds it; empty when released.
    pub holder: String,
    /// `leaseTransitions`.
    pub term: u64,
    /// `resourceVersion`.
    pub version: String,
    /// `leaseDurationSeconds` of the holder.
    pub duration: Duration,
    /// When this version was first seen.
    pub since: Instant,
}

/// What to do about the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nobody has it: create or take it with this term.
    Acquire {
        /// The new term.
        term: u64,
    },
    /// It is ours: renew it.
    Renew,
    /// Someone has it: look again then.
    Wait {
        /// The earliest moment at which it may be taken.
        until: Instant,
    },
}

/// Decides from the record alone. Pure.
pub fn decide(record: Option<&Seen>, me: &str, now: Instant) -> Decision {
    match record {
        None => Decision::Acquire { term: 1 },
        Some(seen) if seen.holder == me => Decision::Renew,
        Some(seen) if seen.holder.is_empty() => Decision::Acquire { term: seen.term + 1 },
        Some(seen) if now >= seen.since + seen.duration => Decision::Acquire { term: seen.term + 1 },
        Some(seen) => Decision::Wait { until: seen.since + seen.duration },
    }
}

/// Takes part in the election.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    me: String,
    clock: crate::Clock,
    seen: Option<Seen>,
    /// A new process never continues an old one's term: it has not proven when that one's effects ended.
    held: Option<u64>,
}

impl Elector {
    /// An elector for the Lease `name` in `namespace`, as `me` (unique per process: pod name and UID).
    pub fn new(records: Client, namespace: &str, name: &str, me: &str, clock: crate::Clock) -> Self {
        Self {
            api: Api::namespaced(records, namespace),
            name: name.into(),
            me: me.into(),
            clock,
            seen: None,
            held: None,
        }
    }

    /// Runs until `stop` turns true, publishing leadership; releases the lease at the end.
    pub async fn run(mut self, publish: watch::Sender<Option<Leadership>>, mut stop: watch::Receiver<bool>) {
        loop {
            // A request that never ends must not keep a contender from trying again.
            let round = match tokio::time::timeout(ROUND_TIMEOUT, self.round()).await {
                Ok(round) => round.map_err(|e| e.to_string()),
                Err(_) => Err(format!("no answer within {} s", ROUND_TIMEOUT.as_secs())),
            };
            let wake = match round {
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
                    let lapsed = publish.borrow().is_none_or(|l| Instant::now() >= l.until);
                    if lapsed {
                        self.held = None;
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
            tracing::warn!(%error, "the leader Lease could not be released; it runs out by itself");
        }
    }

    /// One try for the lease, for a process that lives for one recovery only (break-glass).
    ///
    /// # Errors
    /// The API server's error.
    pub async fn round(&mut self) -> Result<(Option<Leadership>, Instant), kube::Error> {
        let before = Instant::now();
        let lease = self.api.get_opt(&self.name).await?;
        self.look(lease.as_ref(), before);
        let term = match decide(self.seen.as_ref(), &self.me, before) {
            Decision::Wait { until } => {
                self.held = None;
                return Ok((None, until.min(before + RENEW_EVERY)));
            }
            Decision::Renew => match self.held {
                Some(term) => term,
                None => self.seen.as_ref().map_or(1, |s| s.term + 1),
            },
            Decision::Acquire { term } => term,
        };
        match self.write(lease, term, &self.me.clone()).await {
            Ok(written) => {
                self.look(Some(&written), before);
                self.held = Some(term);
                let until = before + LEASE_DURATION - MARGIN;
                Ok((Some(Leadership { term, until }), before + RENEW_EVERY))
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                self.held = None;
                Ok((None, before + Duration::from_millis(200)))
            }
            Err(error) => Err(error),
        }
    }

    fn look(&mut self, lease: Option<&Lease>, now: Instant) {
        let Some(lease) = lease else {
            self.seen = None;
            return;
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_some_and(|s| s.version == version) {
            return;
        }
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(15)).unwrap_or(15);
        self.seen = Some(Seen {
            holder: spec.holder_identity.unwrap_or_default(),
            term: u64::try_from(spec.lease_transitions.unwrap_or(0)).unwrap_or(0),
            version,
            duration: Duration::from_secs(seconds),
            since: now,
        });
    }

    async fn write(&self, old: Option<Lease>, term: u64, holder: &str) -> Result<Lease, kube::Error> {
        let now = MicroTime(self.clock.now());
        let old_spec = old.as_ref().and_then(|l| l.spec.clone()).unwrap_or_default();
        let continued = self.held == Some(term);
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(i32::try_from(LEASE_DURATION.as_secs()).unwrap_or(15)),
            lease_transitions: Some(i32::try_from(term).unwrap_or(i32::MAX)),
            acquire_time: if continued { old_spec.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            ..LeaseSpec::default()
        };
        match old {
            Some(mut lease) => {
                lease.spec = Some(spec);
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
            None => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
            }
        }
    }

    /// Gives the lease up, so that another replica need not wait for it to run out.
    ///
    /// # Errors
    /// The API server's error; the lease then runs out by itself.
    pub async fn release(&mut self) -> Result<(), kube::Error> {
        let (Some(term), Some(lease)) = (self.held.take(), self.api.get_opt(&self.name).await?) else {
            return Ok(());
        };
        let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref());
        if holder == Some(self.me.as_str()) {
            self.write(Some(lease), term, "").await?;
        }
        Ok(())
    }
}
