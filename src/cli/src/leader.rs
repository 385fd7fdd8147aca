//! Finds the controller's leader Lease, says whether a controller holds it, and takes it for `--break-glass`.

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

/// Interval of reads of the Lease while waiting.
const READ_EVERY: Duration = Duration::from_millis(500);
/// Maximum age of the renewal of a living controller, in seconds by this machine's clock. Clocks differ by seconds.
const FRESH_SECONDS: i64 = 20;
/// Time within which a standby replica takes a Lease that the leader has released.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);
/// Time within which the first controller of an installation takes a Lease that does not exist: it waits for one whole lease
/// duration.
const FIRST_WITHIN: Duration = LEASE_DURATION.saturating_add(Duration::from_secs(5));
/// Namespace that `deploy/` installs into.
const USUAL_NAMESPACE: &str = "reattach-system";
/// Name that `deploy/` gives to the Lease.
const USUAL_NAME: &str = "reattach-controller";
/// Prefix of the name of a leader Lease. The client for our own records refuses any other.
const PREFIX: &str = "reattach-";
/// Number of Leases in one page of a list. Each node has one.
const PAGE: u32 = 500;

/// Where the controller's leader Lease is.
#[derive(Args, Clone, Debug)]
pub struct LeaseArgs {
    /// Namespace of the controller's leader Lease. Without it, the whole cluster is searched.
    #[arg(long, value_name = "NAME")]
    controller_namespace: Option<String>,
    /// Name of the controller's leader Lease. It is `reattach-controller` unless the controller was given another.
    #[arg(long, value_name = "NAME")]
    lease: Option<String>,
}

/// Namespace and name of a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    pub namespace: String,
    pub name: String,
}

impl LeaseName {
    /// Returns the user name of the controller as `deploy/` installs it, in the namespace of its Lease.
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

/// Result of a search for the controller's leader Lease.
enum Found {
    Leases(Vec<LeaseName>),
    /// This user may not list Leases in the whole cluster.
    Hidden,
}

impl LeaseArgs {
    /// Makes sure that the client for our own records will accept the name.
    pub fn check(&self) -> Result<(), Fail> {
        match &self.lease {
            Some(name) if !name.starts_with(PREFIX) => Err(Fail::Usage(format!(
                "--lease {name:?} must begin with \"{PREFIX}\""
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the one Lease that a controller of this cluster would take. A second Lease would be a second leader, so it is an
    /// error if none or several are found and no flag says which it is.
    pub async fn only(&self, session: &Session) -> Result<LeaseName, Fail> {
        if let Some(named) = self.named() {
            // By any name: a controller may have been installed under another one.
            if let Found::Leases(all) = Self::search(session, None).await? {
                for other in all.iter().filter(|other| **other != named) {
                    note(&format!(
                        "note: Lease {other} exists too. This command ignores it, and would not notice a controller that holds it."
                    ));
                }
            }
            return Ok(named);
        }
        let why = match Self::search(session, self.lease.as_deref()).await? {
            Found::Leases(all) => match all.as_slice() {
                [one] => return Ok(one.clone()),
                [] => format!(
                    "no Lease {} exists in this cluster",
                    self.lease.clone().unwrap_or_else(|| format!("{PREFIX}*"))
                ),
                several => {
                    let names: Vec<String> = several.iter().map(ToString::to_string).collect();
                    format!(
                        "several Leases may be the controller's: {}",
                        names.join(", ")
                    )
                }
            },
            Found::Hidden => "you may not list the Leases of the whole cluster".to_owned(),
        };
        Err(Fail::Other(format!(
            "{why}. Two leaders must never work at once, so nothing was begun. Name the namespace of the controller's Lease with --controller-namespace (deploy/ uses {USUAL_NAMESPACE})"
        )))
    }

    /// Returns the Leases that may be the controller's.
    async fn candidates(&self, session: &Session) -> Result<Vec<LeaseName>, Fail> {
        if let Some(named) = self.named() {
            return Ok(vec![named]);
        }
        match Self::search(session, self.lease.as_deref()).await? {
            Found::Leases(all) if !all.is_empty() => Ok(all),
            Found::Leases(_) | Found::Hidden => Ok(vec![LeaseName {
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

    /// Finds the Leases of the cluster that have the name, or without one, a name that a leader Lease can have.
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
                None => return Ok(Found::Leases(found)),
            }
        }
    }
}

/// State of the controller's leader Lease.
pub enum Leader {
    /// A controller holds the Lease and renews it.
    Live,
    /// No controller does.
    None { lease: LeaseName, why: String },
    /// This user may not read the Lease.
    Hidden { lease: LeaseName },
}

/// Does the command wait for a controller to take the Lease?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    None,
    /// A holder that does not renew gets one lease duration, and a first controller as long as it needs.
    OneLease,
}

/// Looks for a controller that leads. Says on standard error what it waits for.
pub async fn find_leader(
    session: &Session,
    args: &LeaseArgs,
    patience: Patience,
) -> Result<Leader, Fail> {
    let began = Instant::now();
    let mut first: Vec<(LeaseName, Option<String>)> = Vec::new();
    let mut noted = false;
    loop {
        let mut vacancy = None;
        let mut limit = Duration::ZERO;
        for name in args.candidates(session).await? {
            let lease = match read(session, &name).await {
                Err(Fail::Forbidden { .. }) => return Ok(Leader::Hidden { lease: name }),
                other => other?,
            };
            let version = lease.as_ref().and_then(ResourceExt::resource_version);
            let renewed = match first.iter().find(|(n, _)| *n == name) {
                Some((_, before)) => *before != version,
                None => {
                    first.push((name.clone(), version));
                    false
                }
            };
            let Some((why, filled_within)) = why_vacant(lease.as_ref(), renewed, session) else {
                return Ok(Leader::Live);
            };
            limit = limit.max(filled_within);
            vacancy.get_or_insert((name, why));
        }
        if patience == Patience::None {
            limit = Duration::ZERO;
        }
        if let Some((lease, why)) = vacancy {
            if began.elapsed() >= limit {
                return Ok(Leader::None { lease, why });
            }
            if !noted && limit > TAKEN_WITHIN {
                noted = true;
                note(&format!(
                    "No controller holds Lease {lease} ({why}). Waiting up to {} s for one.",
                    limit.as_secs()
                ));
            }
        }
        tokio::time::sleep(READ_EVERY).await;
    }
}

/// Says why no controller leads by this Lease, and within which time one would take or renew it. `None`: one leads.
/// `renewed`: the Lease has changed since its first read.
fn why_vacant(
    lease: Option<&Lease>,
    renewed: bool,
    session: &Session,
) -> Option<(String, Duration)> {
    let Some(lease) = lease else {
        return Some(("it does not exist".to_owned(), FIRST_WITHIN));
    };
    let holder = holder(lease);
    if holder == VACANT {
        return Some(("no controller has held it yet".to_owned(), FIRST_WITHIN));
    }
    if holder.is_empty() {
        return Some(("its last holder released it".to_owned(), TAKEN_WITHIN));
    }
    let renew_time = lease
        .spec
        .as_ref()
        .and_then(|s| Some(s.renew_time.as_ref()?.0));
    let age = renew_time.map(|at| session.clock.now().duration_since(at).as_secs());
    if renewed || age.is_some_and(|age| age.abs() < FRESH_SECONDS) {
        return None;
    }
    let since = match renew_time {
        Some(at) => format!(" since {at:.0}"),
        None => String::new(),
    };
    Some((
        format!("{} has not renewed it{since}", one_line(holder)),
        LEASE_DURATION,
    ))
}

/// Takes the Lease for this process, or says why not. Waits at most a little more than one lease duration, to be sure that
/// no process relies on the Lease, by this record or by a newer one that a backup has replaced.
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
    // Holder and resource version of the last read. No holder: the Lease is released or vacant.
    let mut before: Option<(Option<String>, Option<String>)> = None;
    let mut noted = false;
    loop {
        let found = read(session, lease).await?;
        if found.is_none() && !noted {
            noted = true;
            note(&format!(
                "Lease {lease} does not exist. Waiting {} s to see whether a controller writes it.",
                LEASE_DURATION.as_secs()
            ));
        }
        if let Some(found) = found {
            let holder = Some(holder(&found))
                .filter(|holder| !holder.is_empty() && *holder != VACANT)
                .map(str::to_owned);
            let version = found.resource_version();
            match &holder {
                None if !noted => {
                    noted = true;
                    note(&format!(
                        "Lease {lease} has no holder. Waiting up to {} s to see whether a controller takes it.",
                        LEASE_DURATION.as_secs()
                    ));
                }
                Some(other) if other != me => match &before {
                    None => note(&format!(
                        "Lease {lease} was last held by {}. Waiting up to {} s to see whether that process is alive.",
                        one_line(other),
                        LEASE_DURATION.as_secs()
                    )),
                    Some((old_holder, old_version))
                        if *old_holder == holder && *old_version != version =>
                    {
                        return Err(Fail::Other(format!(
                            "controller {:?} is alive and holds Lease {lease}, so this command does not act beside it; run recover without --break-glass",
                            one_line(other)
                        ))
                        .into());
                    }
                    Some(_) => {}
                },
                Some(_) | None => {}
            }
            before = Some((holder, version));
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
            Some((None, _)) => tokio::time::sleep(READ_EVERY).await,
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

/// Returns the holder. Empty: the last holder has released the Lease (client-go writes an empty name).
fn holder(lease: &Lease) -> &str {
    let spec = lease.spec.as_ref();
    spec.and_then(|s| s.holder_identity.as_deref())
        .unwrap_or_default()
}
