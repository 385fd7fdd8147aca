//! Whether a controller is there: the leader Lease as a person's command sees it.

use crate::fail::{Fail, one_line};
use crate::session::Session;
use anyhow::Result;
use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt};
use reattach_cluster::lease::{Elector, LEASE_DURATION, Leadership};
use std::time::Duration;
use tokio::time::Instant;

/// How often the Lease is looked at while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A Lease whose renewal is older, by this machine's clock, may be a dead controller's: clocks differ by seconds.
const FRESH: i64 = 20;
/// A controller that is there takes a Lease that was given back within this time.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);

/// Where the controller's leader Lease is.
#[derive(Args, Clone, Debug)]
pub struct LeaseArgs {
    /// The namespace of the controller's leader Lease.
    #[arg(long, value_name = "NAME", default_value = "reattach-system")]
    pub controller_namespace: String,
    /// The name of the controller's leader Lease.
    #[arg(long, value_name = "NAME", default_value = "reattach-controller")]
    pub lease: String,
}

impl LeaseArgs {
    /// `namespace/name`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.controller_namespace, self.lease)
    }

    /// Makes sure that the writing client will accept the name.
    ///
    /// # Errors
    /// [`Fail::Usage`].
    pub fn check(&self) -> Result<(), Fail> {
        match self.lease.starts_with("reattach-") {
            true => Ok(()),
            false => Err(Fail::Usage(format!("--lease {:?} must begin with \"reattach-\"", self.lease))),
        }
    }
}

/// What the Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leader {
    /// A controller holds it and renews it.
    Live {
        /// Its identity.
        holder: String,
    },
    /// Nobody does, in words.
    None {
        /// What was seen.
        why: String,
    },
    /// This user may not read it.
    Hidden,
}

/// Reads the Lease; a holder that seems to be gone gets until `patience` to renew.
///
/// # Errors
/// The API server's, as a sentence.
pub async fn look(session: &Session, args: &LeaseArgs, patience: Duration) -> Result<Leader, Fail> {
    let began = Instant::now();
    let mut first_version = None;
    loop {
        let lease = match read(session, args).await {
            Err(Fail::Forbidden { .. }) => return Ok(Leader::Hidden),
            other => other?,
        };
        let Some(lease) = lease else { return Ok(Leader::None { why: "it does not exist".to_owned() }) };
        let version = lease.resource_version();
        let changed = first_version.get_or_insert_with(|| version.clone()) != &version;
        let holder = holder(&lease);
        let renewed = lease.spec.as_ref().and_then(|s| s.renew_time.as_ref()).map(|t| t.0);
        let age = renewed.map(|t| session.clock.now().duration_since(t).as_secs());
        if !holder.is_empty() && (changed || age.is_some_and(|a| a.abs() < FRESH)) {
            return Ok(Leader::Live { holder });
        }
        let patience = if holder.is_empty() { patience.min(TAKEN_WITHIN) } else { patience };
        if began.elapsed() >= patience {
            let why = match (holder.as_str(), renewed) {
                ("", _) => "its last holder gave it up".to_owned(),
                (gone, Some(at)) => format!("{} has not renewed it since {at:.0}", one_line(gone)),
                (gone, None) => format!("{} has not renewed it", one_line(gone)),
            };
            return Ok(Leader::None { why });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Takes the Lease for this process, or says why not. Waits at most a little more than one lease duration, and only to
/// be sure that a holder that does not renew is gone.
///
/// # Errors
/// A controller holds it; the namespace is missing; the API server's error.
pub async fn take(session: &Session, args: &LeaseArgs, me: &str) -> Result<(Elector, Leadership)> {
    let lease = args.name();
    let records = session.clients.records.clone();
    let mut elector =
        Elector::new(records, &args.controller_namespace, &args.lease, me, session.clock.clone());
    let give_up = Instant::now() + LEASE_DURATION * 2;
    let mut before: Option<(String, Option<String>)> = None;
    loop {
        if let Some(now) = read(session, args).await? {
            let seen = (holder(&now), now.resource_version());
            let renewed = before.as_ref().is_some_and(|b| b.0 == seen.0 && b.1 != seen.1);
            if !seen.0.is_empty() && seen.0 != me {
                if renewed {
                    return Err(Fail::Other(format!(
                        "the controller {:?} is alive and holds Lease {lease}: run recover without --break-glass",
                        one_line(&seen.0)
                    ))
                    .into());
                }
                if before.is_none() {
                    crate::output::note(&format!(
                        "Lease {lease} was last held by {}; watching for up to {} s whether it is alive.",
                        one_line(&seen.0),
                        LEASE_DURATION.as_secs()
                    ));
                }
            }
            before = Some(seen);
        }
        let round = async {
            match elector.round().await {
                Err(kube::Error::Api(s)) if s.is_not_found() => Ok(None),
                other => other.map(Some),
            }
        };
        match session.ask(&format!("take Lease {lease}"), round).await? {
            None => {
                return Err(Fail::Other(format!(
                    "namespace {:?} for the leader Lease does not exist; create it (kubectl create namespace {0}) or name another with --controller-namespace",
                    args.controller_namespace
                ))
                .into());
            }
            Some((Some(leadership), _)) => return Ok((elector, leadership)),
            Some((None, _)) if Instant::now() >= give_up => {
                return Err(Fail::Other(format!(
                    "Lease {lease} could not be taken; someone else is after it too"
                ))
                .into());
            }
            Some((None, _)) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

async fn read(session: &Session, args: &LeaseArgs) -> Result<Option<Lease>, Fail> {
    let api: Api<Lease> = Api::namespaced(session.clients.read.clone(), &args.controller_namespace);
    session.ask(&format!("read the leader Lease {}", args.name()), api.get_opt(&args.lease)).await
}

fn holder(lease: &Lease) -> String {
    lease.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default()
}
