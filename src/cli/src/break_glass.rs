//! `recover --break-glass`: runs the controller's executor in this process, with the same Lease, gate and journal.

use crate::exit::Exit;
use crate::fail::Fail;
use crate::interrupt::Interrupt;
use crate::leader::take;
use crate::output::note;
use crate::records;
use crate::request::{RecoverArgs, check_rights, follow, spec, under_way};
use crate::session::{Global, Session, preflight, providers};
use crate::watches;
use anyhow::Result;
use prometheus_client::registry::Registry;
use reattach_cluster::cache::Cache;
use reattach_cluster::gate::Gate;
use reattach_cluster::rights::RecordedUser;
use reattach_controller::metrics::Metrics;
use reattach_controller::{Collector, Executor, limits};
use reattach_core::ids::ObjectName;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Maximum time for the last turn to end: an effect ends within the gate's timeout, and its outcome is journaled after it.
const DRIVER_ENDS_WITHIN: Duration = Duration::from_secs(30);

pub async fn run(args: &RecoverArgs, global: &Global) -> Result<Exit> {
    let providers = providers(global)?;
    let session = Session::open(global).await?;
    let claim = session.claim(&args.claim)?;
    session.require_claim(&claim).await?;
    preflight(&providers, !args.dry_run).await?;
    let user = session.me().await?;
    check_rights(args, &session, &claim, &user).await?;
    // A Lease that no controller reads would not keep a controller from acting.
    let lease = args.lease.only(&session).await?;
    let mut tasks = JoinSet::new();
    let cache = watches::start(&session, &mut tasks).await?;

    let identity = format!("{}@{}/{}", user.name, host(), std::process::id());
    let mut interrupt = Interrupt::listen(true)?;
    let (elector, leadership) = tokio::select! {
        biased;
        () = interrupt.heard() => return Ok(Exit::Interrupted),
        taken = take(&session, &lease, &identity) => taken?,
    };
    let (publish, leading) = watch::channel(Some(leadership));
    let (end_election, election_ended) = watch::channel(false);
    let election = tokio::spawn(elector.run(publish, election_ended));
    note(&format!("Lease {lease} taken, term {}.", leadership.term));

    let collector = Collector::new(
        session.clients.clone(),
        Some(cache.clone()),
        providers,
        session.clock.clone(),
    );
    let gate = Gate::new(session.clients.clone(), leading).locking_nodes_in(
        args.node_lock_namespace
            .as_deref()
            .unwrap_or(&lease.namespace),
    );
    let metrics = Metrics::register(&mut Registry::default());
    let executor = Executor::new(collector, gate, identity, &user.name, metrics);
    let users = Users {
        me: user,
        controller: lease.controller_user(),
    };
    let ended = drive(
        args,
        &session,
        executor,
        &cache,
        &claim,
        users,
        &mut interrupt,
    )
    .await;
    end_election.send_replace(true);
    if election.await.is_err() {
        note(&format!(
            "note: Lease {lease} could not be released. It expires by itself."
        ));
    }
    if let Some(left) = under_way(&session, &claim).await.ok().flatten() {
        let (ns, name) = (&claim.namespace, &claim.name);
        let plan = left
            .status
            .as_ref()
            .and_then(|s| s.plan.as_ref()?.get().ok());
        let workload = plan.map(|p| p.pins.workload.to_string());
        note(&format!(
            "\nThe recovery is not over, and {} may be at 0 replicas. It continues when a controller runs, or when you run again\n  kubectl reattach recover -n {ns} {name} --break-glass\nTo restore everything instead, run first\n  kubectl reattach abort -n {ns} {name}",
            workload.unwrap_or_else(|| "the workload".to_owned())
        ));
    }
    ended
}

/// Users by whom a recovery may have been created.
struct Users {
    /// Person at the command line.
    me: RecordedUser,
    /// User name of the controller, whose recoveries go as far as their policy.
    controller: String,
}

/// Resumes or creates the recovery and follows it while the executor drives it.
async fn drive(
    args: &RecoverArgs,
    session: &Session,
    executor: Executor,
    cache: &Cache,
    claim: &ObjectName,
    users: Users,
    interrupt: &mut Interrupt,
) -> Result<Exit> {
    let recovery = match under_way(session, claim).await? {
        Some(old) if args.dry_run => {
            return Err(Fail::Other(format!(
                "recovery {} of this claim is under way, so a dry run beside it would show nothing; follow that recovery instead",
                old.name().name
            ))
            .into());
        }
        Some(old) if args.allow_power_off && old.spec.power_off.is_none() => {
            return Err(Fail::Other(format!(
                "recovery {} of this claim is under way without --allow-power-off; continue it without that flag, or abort it first",
                old.name().name
            ))
            .into());
        }
        Some(old) => {
            note(&format!("Resuming recovery {}.", old.name().name));
            old
        }
        None => records::create(session, &claim.namespace, spec(args, claim, &users.me)).await?,
    };
    let name = recovery.name().clone();
    note(&format!(
        "Recovery {name}, requested by {}.",
        recovery.spec.requester
    ));
    let (stop, stopped) = watch::channel(false);
    let (gone_tx, gone) = watch::channel(false);
    let driver = tokio::spawn({
        let (name, cache, controller) = (name.clone(), cache.clone(), users.controller);
        async move {
            let phase = executor
                .drive(&name, |n| limits(&cache, n, &controller), stopped)
                .await;
            gone_tx.send_replace(true);
            phase
        }
    });
    let ended = follow(session, args, name.clone(), users.me)
        .run(Some(gone), interrupt)
        .await;
    // The turn under way ends first, so that no effect stays without its journal line.
    let driver_end = async {
        let last = records::read(session, &name).await;
        let is_over = match last {
            Ok(Some(recovery)) => recovery.phase().is_final(),
            Ok(None) => true,
            Err(_) => false,
        };
        if !is_over {
            stop.send_replace(true);
        }
        driver.await
    };
    if tokio::time::timeout(DRIVER_ENDS_WITHIN, driver_end)
        .await
        .is_err()
    {
        stop.send_replace(true);
        note(
            "note: the last step did not end in time. Its outcome is observed when the recovery continues.",
        );
    }
    ended
}

/// Returns this machine's name, for the journal.
fn host() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    kernel
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown-host".to_owned())
}
