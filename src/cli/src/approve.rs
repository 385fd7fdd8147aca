//! `approve`: lets one exact plan run.

use crate::exit::Exit;
use crate::fail::Fail;
use crate::follow::{Follow, follow_hint};
use crate::interrupt::Interrupt;
use crate::output::note;
use crate::records;
use crate::request::duration;
use crate::rights;
use crate::session::{Global, Session};
use anyhow::Result;
use clap::Args;
use reattach_api::StoredRecovery;
use reattach_core::ids::ObjectName;
use reattach_core::policy::Mode;
use std::time::Duration;

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

pub async fn run(args: ApproveArgs, global: &Global) -> Result<Exit> {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if args.plan.len() != 16 || !args.plan.bytes().all(is_digit) {
        return Err(Fail::Usage(format!(
            "--plan {:?} must be the 16 hexadecimal digits that status shows",
            args.plan
        ))
        .into());
    }
    let session = Session::open(global).await?;
    let recovery = records::find(&session, &args.name).await?;
    let name = recovery.name().clone();
    if let Some(why) = no_approval(&recovery, &args.plan) {
        return Err(Fail::Other(why).into());
    }
    let user = session.me().await?;
    rights::note_approval(&session, &name, &user).await;
    records::approve(&session, &name, &args.plan, &user).await?;
    note(&format!(
        "Plan {} of {name} approved by {}.",
        args.plan, user.name
    ));
    if !args.wait {
        note(&follow_hint(&name));
        return Ok(Exit::Done);
    }
    Follow::watching(&session, name, user, args.timeout)
        .run(None, &mut Interrupt::listen(false)?)
        .await
}

/// Returns the reason why this plan of the recovery cannot be approved.
fn no_approval(recovery: &StoredRecovery, plan: &str) -> Option<String> {
    let (name, phase) = (recovery.name(), recovery.phase());
    let message = records::message(recovery);
    let ObjectName {
        namespace,
        name: bare,
    } = name;
    if records::under_way(recovery) || phase.is_final() {
        return Some(format!(
            "{name} needs no approval any more: {phase}, {message}"
        ));
    }
    if recovery.spec.mode != Mode::Approve {
        return Some(format!(
            "{name} is in mode {} and never acts, so it needs no approval; to act on this claim: kubectl reattach recover -n {namespace} {}",
            recovery.spec.mode, recovery.spec.claim_name
        ));
    }
    if let Some(given) = &recovery.spec.approval {
        return Some(format!(
            "{name} has been approved already: plan {} by {}",
            given.plan_hash, given.approver
        ));
    }
    match recovery.status.as_ref().and_then(|s| s.plan_hash.as_ref()) {
        None => Some(format!("{name} has no plan to approve: {phase}, {message}")),
        Some(now) if now != plan => Some(format!(
            "the plan of {name} is now {now}, not {plan}, so nothing was approved; read it again: kubectl reattach status -n {namespace} {bare}"
        )),
        Some(_) => None,
    }
}
