//! `abort`: ends a recovery and undoes what it did in the cluster.

use crate::exit::Exit;
use crate::fail::Fail;
use crate::follow::{Follow, follow_hint};
use crate::interrupt::Interrupt;
use crate::leader::{Leader, LeaseArgs, Patience, find_leader};
use crate::output::note;
use crate::records;
use crate::request::duration;
use crate::session::{Global, Session};
use anyhow::Result;
use clap::Args;
use reattach_api::{Phase, StoredRecovery};
use std::time::Duration;

/// Ends a recovery and undoes what it did in the cluster.
///
/// Of a recovery that failed, it forbids the attempts that reattach would make by itself. The controller, or a --break-glass run, restores the replicas and lifts the hold on new pods. It removes reattach's out-of-service taint, the stamp and the finalizer. Effects at the cloud stay: a detached volume is not attached again, and an instance that was powered off stays off.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl reattach abort data-redis-0
  kubectl reattach abort data-redis-0-x7k2p --reason 'moving the data by hand' --wait

Exit code 0: the abort is recorded; with --wait, everything is also restored.")]
pub struct AbortArgs {
    /// VolumeRecovery, or the claim that it is for.
    #[arg(value_name = "RECOVERY|CLAIM")]
    name: String,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Wait until everything is restored.
    #[arg(long)]
    wait: bool,
    /// How long to wait.
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    lease: LeaseArgs,
}

pub async fn run(args: AbortArgs, global: &Global) -> Result<Exit> {
    args.lease.check()?;
    let reason = records::reason(args.reason.as_deref())?;
    let session = Session::open(global).await?;
    let recovery = records::find(&session, &args.name).await?;
    let name = recovery.name().clone();
    if recovery.phase().is_final() {
        return forbid_the_next_attempt(&session, &recovery, reason.as_deref()).await;
    }
    let user = session.me().await?;
    match &recovery.spec.abort {
        Some(abort) => note(&format!("{name} was already aborted by {}.", abort.by)),
        None => {
            records::abort(&session, &name, &user.name, reason.as_deref()).await?;
            note(&format!("{name} aborted by {}.", user.name));
        }
    }
    if let Leader::None { lease, why } = find_leader(&session, &args.lease, Patience::None).await? {
        note(&format!(
            "note: no controller holds Lease {lease} ({why}), so nothing is restored yet. Start a controller, or run\n  kubectl reattach recover -n {} {} --break-glass",
            name.namespace, recovery.spec.claim_name
        ));
    }
    if !args.wait {
        note(&follow_hint(&name));
        return Ok(Exit::Done);
    }
    let follow = Follow::watching(&session, name.clone(), user, args.timeout);
    match follow.run(None, &mut Interrupt::listen(false)?).await? {
        // An aborted recovery is unhealed, and here that is the success.
        Exit::Unhealed => match records::read(&session, &name).await?.map(|r| r.phase()) {
            Some(Phase::Aborted) | None => Ok(Exit::Done),
            Some(_) => Ok(Exit::Unhealed),
        },
        other => Ok(other),
    }
}

/// Forbids the next attempt that reattach would make by itself after a recovery that is over.
async fn forbid_the_next_attempt(
    session: &Session,
    recovery: &StoredRecovery,
    reason: Option<&str>,
) -> Result<Exit> {
    let (name, phase) = (recovery.name(), recovery.phase());
    let next = recovery
        .status
        .as_ref()
        .and_then(|s| s.next_attempt.as_ref());
    if next.is_none() {
        return Err(Fail::Other(format!(
            "{name} is over already: {phase}; there is nothing to abort"
        ))
        .into());
    }
    if recovery.spec.abort.is_none() {
        let user = session.me().await?;
        records::abort(session, name, &user.name, reason).await?;
    }
    note(&format!(
        "{name} is over already: {phase}. reattach makes no other attempt at this problem by itself. To make one: kubectl reattach recover -n {} {}",
        name.namespace, recovery.spec.claim_name
    ));
    Ok(Exit::Done)
}
