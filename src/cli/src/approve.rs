//! `approve`: lets one exact plan run.

use crate::exit::Exit;
use crate::fail::Fail;
use crate::follow::{Consent, Follow};
use crate::interrupt::Interrupt;
use crate::output::{Format, note};
use crate::records;
use crate::request::duration;
use crate::rights;
use crate::session::{Global, Session};
use anyhow::Result;
use clap::Args;
use reattach_core::policy::Mode;
use std::time::Duration;
use tokio::time::Instant;

/// Lets one exact plan run.
///
/// If the facts have changed since, the plan has another hash and does not run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl reattach status data-redis-0          # shows the plan and its hash
  kubectl reattach approve data-redis-0 --plan 3f9c0a1b2c3d4e5f
  kubectl reattach approve data-redis-0-x7k2p --plan 3f9c0a1b2c3d4e5f --wait

Needs the RBAC verb `approve` on volumerecoveries.reattach.dev.")]
pub struct ApproveArgs {
    /// VolumeRecovery, or the claim that it is for.
    #[arg(value_name = "RECOVERY|CLAIM")]
    name: String,
    /// Hash of the plan that you have read.
    #[arg(long, value_name = "HASH")]
    plan: String,
    /// Follow the recovery to its end.
    #[arg(long)]
    wait: bool,
    /// How long to follow the recovery.
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration)]
    timeout: Duration,
}

/// Runs the verb.
///
/// # Errors
/// No such recovery, another plan, a recovery that needs no approval, or the API server's refusal.
pub async fn run(args: ApproveArgs, global: &Global) -> Result<Exit> {
    if args.plan.len() != 16
        || !args
            .plan
            .bytes()
            .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    {
        return Err(Fail::Usage(format!(
            "--plan {:?} must be the 16 hexadecimal digits that status shows",
            args.plan
        ))
        .into());
    }
    let session = Session::open(global).await?;
    let recovery = records::find(&session, &args.name).await?;
    let name = recovery.name().clone();
    let status = recovery.status.clone().unwrap_or_default();
    let no = |why: String| Err(Fail::Other(why).into());
    if records::under_way(&recovery) || status.phase.is_final() {
        return no(format!(
            "{name} needs no approval any more: {}, {}",
            status.phase, status.message
        ));
    }
    if recovery.spec.mode != Mode::Approve {
        return no(format!(
            "{name} is in mode {} and never acts, so it needs no approval; to act on this claim: kubectl reattach recover -n {} {}",
            recovery.spec.mode, name.namespace, recovery.spec.claim_name
        ));
    }
    match (&recovery.spec.approval, &status.plan_hash) {
        (Some(given), _) => {
            return no(format!(
                "{name} has been approved already: plan {} by {}",
                given.plan_hash, given.approver
            ));
        }
        (None, None) => {
            return no(format!(
                "{name} has no plan to approve: {}, {}",
                status.phase, status.message
            ));
        }
        (None, Some(now)) if *now != args.plan => {
            return no(format!(
                "the plan of {name} is now {now}, not {}, so nothing was approved; read it again: kubectl reattach status -n {} {}",
                args.plan, name.namespace, name.name
            ));
        }
        _ => {}
    }
    let user = session.me().await?;
    rights::tell_of_approval(&session, &name, &user).await;
    records::approve(&session, &name, &args.plan, &user).await?;
    note(&format!(
        "Plan {} of {name} approved by {}.",
        args.plan, user.name
    ));
    if !args.wait {
        note(&format!(
            "Follow it: kubectl reattach status -n {} {} --watch",
            name.namespace, name.name
        ));
        return Ok(Exit::Done);
    }
    let deadline = Instant::now() + args.timeout;
    Follow {
        session: &session,
        name,
        consent: Consent::Watch,
        user,
        format: Format::Table,
        deadline,
        driven_here: false,
    }
    .run(None, &mut Interrupt::listen(false)?)
    .await
}
