//! The controller's leader Lease: where it is, and whether a controller holds it.

use crate::fail::{Fail, one_line};
use crate::output::note;
use crate::session::Session;
use anyhow::Result;
use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use reattach_api::metadata;
use reattach_cluster::lease::{Elector, LEASE_DURATION, Leadership, VACANT};
use reattach_core::ids::ObjectName;
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// How often the Lease is looked at while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A Lease whose renewal is older, by this machine's clock, may be a dead controller's: clocks differ by seconds.
const FRESH: i64 = 20;
/// A standby replica that watched the leader give the Lease up takes it within this time.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);
/// The first controller of an installation takes a Lease that does not exist within this time: it waits for one whole lease
/// duration.
const FIRST_WITHIN: Duration = LEASE_DURATION.saturating_add(Duration::from_secs(5));
/// The namespace that `deploy/` installs into.
const USUAL_NAMESPACE: &str = "reattach-system";
/// The name that `deploy/` gives to the Lease.
const USUAL_NAME: &str = "reattach-controller";
/// What the name of a leader Lease begins with: the writing client refuses any other.
const PREFIX: &str = "reattach-";
/// Leases in one page of a list. Each node has one.
const PAGE: u32 = 500;

/// Where the controller's leader Lease is.
#[derive(Args, Clone, Debug)]
pub struct LeaseArgs {
    /// Namespace of the controller's leader Lease. Without it, the whole cluster is searched.
    #[arg(long, value_name = "NAME")]
    pub controller_namespace: Option<String>,
    /// Name of the controller's leader Lease. It is `reattach-controller` unless the controller was given another.
    #[arg(long, value_name = "NAME")]
    pub lease: Option<String>,
}

/// The name of a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl LeaseName {
    /// The user name of the controller as `deploy/` installs it, in the namespace of its Lease.
    pub fn controller_user(&self) -> String {
        format!(
            "system:serviceaccount:{}:reattach-controller",
            self.namespace
        )
    }
}

impl fmt::Display for LeaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a search for the controller's leader Lease found.
enum Found {
    /// The flag says where it is, or the cluster has these.
    Named(Vec<LeaseName>),
    /// This user may not list Leases in the whole cluster.
    Hidden,
}

impl LeaseArgs {
    /// Makes sure that the writing client will accept the name.
    ///
    /// # Errors
    /// [`Fail::Usage`].
    pub fn check(&self) -> Result<(), Fail> {
        match &self.lease {
            Some(name) if !name.starts_with(PREFIX) => Err(Fail::Usage(format!(
                "--lease {name:?} must begin with \"{PREFIX}\""
            ))),
            _ => Ok(()),
        }
    }

    /// The one Lease that a controller of this cluster would take. A second Lease would be a second leader.
    ///
    /// # Errors
    /// None or several were found, or they may not be listed, and no flag says which it is.
    pub async fn only(&self, session: &Session) -> Result<LeaseName, Fail> {
        let refuse = |why: String| {
            Err(Fail::Other(format!(
                "{why}. Two leaders must never work at once, so nothing was begun. Name the namespace of the controller's Lease with --controller-namespace (deploy/ uses {USUAL_NAMESPACE})"
            )))
        };
        if let Some(named) = self.named() {
            // By any name: a controller may have been installed under another one.
            if let Found::Named(all) = Self::search(session, None).await? {
                for other in all.iter().filter(|other| **other != named) {
                    note(&format!(
                        "note: Lease {other} exists too. This command ignores it, and would not notice a controller that holds it."
                    ));
                }
            }
            return Ok(named);
        }
        match Self::search(session, self.lease.as_deref()).await? {
            Found::Named(all) => match all.as_slice() {
                [one] => Ok(one.clone()),
                [] => refuse(format!(
                    "no Lease {} exists in this cluster",
                    self.pattern()
                )),
                several => {
                    let names: Vec<String> = several.iter().map(ToString::to_string).collect();
                    refuse(format!(
                        "several Leases may be the controller's: {}",
                        names.join(", ")
                    ))
                }
            },
            Found::Hidden => refuse("you may not list the Leases of the whole cluster".to_owned()),
        }
    }

    /// The Leases that may be the controller's.
    async fn candidates(&self, session: &Session) -> Result<Vec<LeaseName>, Fail> {
        if let Some(named) = self.named() {
            return Ok(vec![named]);
        }
        match Self::search(session, self.lease.as_deref()).await? {
            Found::Named(all) if !all.is_empty() => Ok(all),
            Found::Named(_) | Found::Hidden => Ok(vec![LeaseName {
                namespace: USUAL_NAMESPACE.to_owned(),
                name: self.usual_name(),
            }]),
        }
    }

    fn named(&self) -> Option<LeaseName> {
        let namespace = self.controller_namespace.clone()?;
        Some(LeaseName {
            namespace,
            name: self.usual_name(),
        })
    }

    fn usual_name(&self) -> String {
        self.lease.clone().unwrap_or_else(|| USUAL_NAME.to_owned())
    }

    fn pattern(&self) -> String {
        self.lease.clone().unwrap_or_else(|| format!("{PREFIX}*"))
    }

    /// Every Lease of the cluster that has the name; none given: each name that a leader Lease can have.
    async fn search(session: &Session, wanted: Option<&str>) -> Result<Found, Fail> {
        let api: Api<Lease> = Api::all(session.clients.read.clone());
        let mut params = ListParams::default().limit(PAGE);
        let mut found = Vec::new();
        loop {
            let doing = "find the controller's leader Lease";
            let page = match session.ask(doing, api.list_metadata(&params)).await {
                Err(Fail::Forbidden { .. }) => return Ok(Found::Hidden),
                other => other?,
            };
            for lease in &page.items {
                let ObjectName { namespace, name } =
                    metadata::of_kind("Lease", &lease.metadata).object_name()?;
                let fits = wanted.map_or(name.starts_with(PREFIX), |wanted| wanted == name);
                if fits {
                    found.push(LeaseName { namespace, name });
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(Found::Named(found)),
            }
        }
    }
}

/// What the Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leader {
    /// A controller holds it and renews it.
    Live,
    /// No controller does.
    None {
        /// Which Lease was looked at.
        lease: LeaseName,
        /// What was seen, in words.
        why: String,
    },
    /// This user may not read it.
    Hidden {
        /// Which Lease.
        lease: LeaseName,
    },
}

/// Whether the command waits for a controller to take the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Look once.
    None,
    /// A holder that seems to be gone gets one lease duration to renew, and a first controller as long as it needs.
    OneLease,
}

/// Looks for a controller that leads. Says on standard error what it waits for.
///
/// # Errors
/// The API server's, as a sentence.
pub async fn look(session: &Session, args: &LeaseArgs, patience: Patience) -> Result<Leader, Fail> {
    let began = Instant::now();
    let mut first: Vec<(LeaseName, Option<String>)> = Vec::new();
    let mut told = false;
    loop {
        let mut last = None;
        let mut wait = Duration::ZERO;
        for name in args.candidates(session).await? {
            let lease = match read(session, &name).await {
                Err(Fail::Forbidden { .. }) => return Ok(Leader::Hidden { lease: name }),
                other => other?,
            };
            let version = lease.as_ref().and_then(ResourceExt::resource_version);
            let changed = match first.iter().find(|(n, _)| *n == name) {
                Some((_, before)) => *before != version,
                None => {
                    first.push((name.clone(), version));
                    false
                }
            };
            let (why, limit) = match lease.as_ref().map(|l| (holder(l), l)) {
                None => ("it does not exist".to_owned(), FIRST_WITHIN),
                Some((holder, _)) if holder == VACANT => {
                    ("no controller has held it yet".to_owned(), FIRST_WITHIN)
                }
                Some((holder, _)) if holder.is_empty() => {
                    ("its last holder released it".to_owned(), TAKEN_WITHIN)
                }
                Some((holder, lease)) => {
                    let renewed = lease
                        .spec
                        .as_ref()
                        .and_then(|s| s.renew_time.as_ref())
                        .map(|t| t.0);
                    let age = renewed.map(|t| session.clock.now().duration_since(t).as_secs());
                    if changed || age.is_some_and(|a| a.abs() < FRESH) {
                        return Ok(Leader::Live);
                    }
                    let since = renewed
                        .map(|at| format!(" since {at:.0}"))
                        .unwrap_or_default();
                    (
                        format!("{} has not renewed it{since}", one_line(&holder)),
                        LEASE_DURATION,
                    )
                }
            };
            wait = wait.max(limit);
            last.get_or_insert((name, why));
        }
        let limit = if patience == Patience::None {
            Duration::ZERO
        } else {
            wait
        };
        if let Some((lease, why)) = last {
            if began.elapsed() >= limit {
                return Ok(Leader::None { lease, why });
            }
            if !told && limit > TAKEN_WITHIN {
                told = true;
                note(&format!(
                    "No controller holds Lease {lease} ({why}). Waiting up to {} s for one.",
                    limit.as_secs()
                ));
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Takes the Lease for this process, or says why not. Waits at most a little more than one lease duration, to be sure that
/// no process relies on the Lease, by this record or by a newer one that a backup has replaced.
///
/// # Errors
/// A controller holds it; the namespace is missing; the API server's error.
pub async fn take(session: &Session, lease: &LeaseName, me: &str) -> Result<(Elector, Leadership)> {
    let records = session.clients.records.clone();
    let mut elector = Elector::new(
        records,
        &lease.namespace,
        &lease.name,
        me,
        session.clock.clone(),
    );
    let give_up = Instant::now() + LEASE_DURATION * 2;
    let mut before: Option<(String, Option<String>)> = None;
    let mut told = false;
    loop {
        let found = read(session, lease).await?;
        if found.is_none() && !told {
            told = true;
            note(&format!(
                "Lease {lease} does not exist. Waiting {} s to see whether a controller writes it.",
                LEASE_DURATION.as_secs()
            ));
        }
        if let Some(now) = found {
            let holder = Some(holder(&now))
                .filter(|h| h != VACANT)
                .unwrap_or_default();
            let seen = (holder, now.resource_version());
            let renewed = before
                .as_ref()
                .is_some_and(|b| b.0 == seen.0 && b.1 != seen.1);
            if seen.0.is_empty() && !told {
                told = true;
                note(&format!(
                    "Lease {lease} has no holder. Waiting up to {} s to see whether a controller takes it.",
                    LEASE_DURATION.as_secs()
                ));
            }
            if !seen.0.is_empty() && seen.0 != me {
                if renewed {
                    return Err(Fail::Other(format!(
                        "controller {:?} is alive and holds Lease {lease}, so this command does not act beside it; run recover without --break-glass",
                        one_line(&seen.0)
                    ))
                    .into());
                }
                if before.is_none() {
                    note(&format!(
                        "Lease {lease} was last held by {}. Waiting up to {} s to see whether that process is alive.",
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
                    "namespace {:?} for the leader Lease does not exist; create it (kubectl create namespace {0}), or name another with --controller-namespace",
                    lease.namespace
                ))
                .into());
            }
            Some((Some(leadership), _)) => return Ok((elector, leadership)),
            Some((None, _)) if Instant::now() >= give_up => {
                return Err(Fail::Other(format!(
                    "Lease {lease} could not be taken because another process tries too; wait for that process, or stop it and try again"
                ))
                .into());
            }
            Some((None, _)) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

async fn read(session: &Session, name: &LeaseName) -> Result<Option<Lease>, Fail> {
    let api: Api<Lease> = Api::namespaced(session.clients.read.clone(), &name.namespace);
    session
        .ask(
            &format!("read the leader Lease {name}"),
            api.get_opt(&name.name),
        )
        .await
}

fn holder(lease: &Lease) -> String {
    lease
        .spec
        .as_ref()
        .and_then(|s| s.holder_identity.clone())
        .unwrap_or_default()
}
