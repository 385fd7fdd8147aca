//! `recover --break-glass`: the controller's own executor in this process, with the same Lease, gate and journal.

use crate::exit::Exit;
use crate::fail::Fail;
use crate::interrupt::Interrupt;
use crate::leader::take;
use crate::output::note;
use crate::records;
use crate::request::{RecoverArgs, follow, running, say_rights, spec};
use crate::session::{Global, Session, preflight, providers};
use crate::watches;
use anyhow::Result;
use prometheus_client::registry::Registry;
use reattach_cluster::gate::Gate;
use reattach_cluster::rights::RecordedUser;
use reattach_controller::metrics::Metrics;
use reattach_controller::{Collector, Executor, limits};
use reattach_core::ids::ObjectName;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// An effect under way ends within the gate's time-out; its outcome is journaled after it.
const DRIVER_ENDS_WITHIN: Duration = Duration::from_secs(30);

/// Runs the verb without a controller.
///
/// # Errors
/// What stands against beginning; nothing was created then. Later: lost leadership, an API server that stays away.
pub async fn run(args: &RecoverArgs, global: &Global) -> Result<Exit> {
    let providers = providers(global)?;
    let session = Session::open(global).await?;
    let claim = session.claim(&args.claim)?;
    session.require_claim(&claim).await?;
    preflight(&providers, !args.dry_run).await?;
    let user = session.me().await?;
    say_rights(args, &session, &claim, &user).await?;
    // A Lease that no controller looks at would exclude none.
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
    if let Some(left) = running(&session, &claim).await.ok().flatten() {
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

/// The users that a record may name.
struct Users {
    /// The person at the command line.
    me: RecordedUser,
    /// The user name of the controller, whose recoveries go as far as their policy.
    controller: String,
}

async fn drive(
    args: &RecoverArgs,
    session: &Session,
    executor: Executor,
    cache: &reattach_cluster::cache::Cache,
    claim: &ObjectName,
    users: Users,
    interrupt: &mut Interrupt,
) -> Result<Exit> {
    let recovery = match running(session, claim).await? {
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
    // The turn under way ends first: an effect is never cut off between itself and its journal line.
    let settle = async {
        let last = records::again(session, &name).await;
        if !matches!(last, Ok(None)) && !matches!(last, Ok(Some(r)) if r.phase().is_final()) {
            stop.send_replace(true);
        }
        driver.await
    };
    if tokio::time::timeout(DRIVER_ENDS_WITHIN, settle)
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

/// This machine's name, for the journal.
fn host() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        "unknown-host".to_owned()
    } else {
        name.to_owned()
    }
}
