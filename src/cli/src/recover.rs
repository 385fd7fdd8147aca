//! `recover`: heals one claim's volume, by the controller or, with `--break-glass`, without one.

use crate::break_glass;
use crate::exit::Exit;
use crate::fail::Fail;
use crate::follow::interactive;
use crate::interrupt::Interrupt;
use crate::leader::{Leader, LeaseArgs, Patience, find_leader};
use crate::output::{Format, note, print_line, print_value};
use crate::plan::{built_in, check_confirmation};
use crate::records;
use crate::request::{RecoverArgs, check_rights, follow, spec, under_way};
use crate::session::{Global, Session};
use anyhow::Result;

pub async fn run(args: RecoverArgs, global: &Global) -> Result<Exit> {
    built_in(&args.runbook)?;
    check_confirmation(args.confirm_workload.as_deref())?;
    args.lease.check()?;
    let args = RecoverArgs {
        reason: records::reason(args.reason.as_deref())?,
        ..args
    };
    if args.break_glass {
        if !args.yes && !args.dry_run && !interactive() {
            return Err(Fail::Usage("--break-glass acts from here and needs your consent; add --yes or --dry-run, or run it on a terminal".to_owned()).into());
        }
        return break_glass::run(&args, global).await;
    }
    let session = Session::open(global).await?;
    let claim = session.claim(&args.claim)?;
    session.require_claim(&claim).await?;
    if let Some(other) = under_way(&session, &claim).await? {
        let name = &other.name().name;
        return Err(Fail::Other(format!(
            "recovery {name} of this claim is under way, so no other one was created; follow it: kubectl reattach status -n {} {name} --watch",
            claim.namespace
        ))
        .into());
    }
    require_controller(&session, &args.lease).await?;
    let user = session.me().await?;
    check_rights(&args, &session, &claim, &user).await?;
    // From here on an interrupt must withdraw the request.
    let mut interrupt = Interrupt::listen(false)?;
    let recovery = records::create(&session, &claim.namespace, spec(&args, &claim, &user)).await?;
    let name = recovery.name().clone();
    if args.no_wait {
        match args.output {
            Format::Table => print_line(&format!("VolumeRecovery {name} was created."))?,
            format => print_value(format, &recovery)?,
        }
        note(&format!(
            "See its plan: kubectl reattach status -n {} {}",
            name.namespace, name.name
        ));
        return Ok(Exit::Done);
    }
    note(&format!("Recovery {name}, requested by {}.", user.name));
    follow(&session, &args, name, user)
        .run(None, &mut interrupt)
        .await
}

async fn require_controller(session: &Session, lease: &LeaseArgs) -> Result<(), Fail> {
    match find_leader(session, lease, Patience::OneLease).await? {
        Leader::Live => Ok(()),
        Leader::Hidden { lease } => {
            note(&format!(
                "note: you may not read Lease {lease}, so this command sees a controller only when the controller answers."
            ));
            Ok(())
        }
        Leader::None { lease, why } => Err(Fail::Other(format!(
            "no controller holds Lease {lease} ({why}), so no recovery was created; install or start a controller, or use --break-glass"
        ))),
    }
}
