//! The arguments of `recover`, and the steps that are the same with and without a controller.

use crate::fail::Fail;
use crate::follow::{Consent, Follow, interactive};
use crate::leader::LeaseArgs;
use crate::output::Format;
use crate::records;
use crate::rights;
use crate::session::Session;
use clap::Args;
use reattach_api::{PowerOff, StoredRecovery, VolumeRecoverySpec};
use reattach_cluster::rights::RecordedUser;
use reattach_core::ids::ObjectName;
use reattach_core::policy::Mode;
use reattach_core::runbook::DEFAULT_RUNBOOK;
use std::time::Duration;
use tokio::time::Instant;

/// Heals one claim's volume.
///
/// Asks for a recovery, shows the plan, asks for your consent, and follows the recovery to its end. The controller does the work within its budgets and safety rules. With --break-glass this command does the work itself,
/// by the same gate and journal, when no controller is running.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl reattach recover data-redis-0 -n cache
  kubectl reattach recover data-redis-0 --dry-run
  kubectl reattach recover data-redis-0 --yes --reason 'INC-42' -o json
  kubectl reattach recover data-web --confirm-workload Deployment/web   # all its replicas stop
  kubectl reattach recover data-redis-0 --allow-power-off   # of a dead node's machine
  LINODE_TOKEN=... kubectl reattach recover data-redis-0 --break-glass

Exit codes: 0 healed; 4 refused; 5 not ours; 6 not over (no consent yet, or timed out);
7 aborted, failed or stuck. `kubectl reattach --help` has the whole table.")]
pub struct RecoverArgs {
    /// PersistentVolumeClaim.
    #[arg(value_name = "CLAIM")]
    pub claim: String,
    /// Show and record the plan, and do nothing else.
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Approve the plan without asking.
    #[arg(long, short)]
    pub yes: bool,
    /// Name of the runbook.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_RUNBOOK)]
    pub runbook: String,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Workload with several replicas whose stop you accept.
    #[arg(long, value_name = "KIND/NAME")]
    pub confirm_workload: Option<String>,
    /// Let the plan power off the holder's instance, with everything that runs on it. Needs the RBAC verb `poweroff`. The plan then has
    /// that step and waits for your consent as always. The instance stays off: power it on yourself when the volume is free.
    #[arg(long)]
    pub allow_power_off: bool,
    /// Ask for the recovery and return at once. Approve and watch it later.
    #[arg(long, conflicts_with_all = ["yes", "break_glass"])]
    pub no_wait: bool,
    /// How long to follow the recovery.
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration)]
    pub timeout: Duration,
    /// Work without a controller: take its leader Lease and act from here. Needs the cloud token.
    #[arg(long)]
    pub break_glass: bool,
    /// Output format of the recovery at its end. With json and yaml, progress goes to standard error.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Format,
    #[command(flatten)]
    pub lease: LeaseArgs,
    /// With --break-glass: namespace of the node locks, if the controller was given another than its own.
    #[arg(long, value_name = "NAME", requires = "break_glass")]
    pub node_lock_namespace: Option<String>,
}

/// Checks the user's rights for the request.
pub async fn check_rights(
    args: &RecoverArgs,
    session: &Session,
    claim: &ObjectName,
    user: &RecordedUser,
) -> Result<(), Fail> {
    if args.allow_power_off {
        rights::require_power_off(session, claim, user).await?;
    }
    if !args.dry_run {
        rights::note_approval(session, claim, user).await;
    }
    Ok(())
}

/// Returns the follower of the recovery that these arguments create.
pub fn follow<'a>(
    session: &'a Session,
    args: &RecoverArgs,
    name: ObjectName,
    user: RecordedUser,
) -> Follow<'a> {
    let consent = match (args.dry_run, args.yes, interactive()) {
        (true, _, _) => Consent::ShowOnly,
        (_, true, _) => Consent::Given,
        (_, _, true) => Consent::Ask,
        _ => Consent::Later,
    };
    Follow {
        session,
        name,
        consent,
        user,
        format: args.output,
        deadline: Instant::now() + args.timeout,
        driven_here: args.break_glass,
    }
}

/// Returns the spec of the recovery that these arguments create.
pub fn spec(args: &RecoverArgs, claim: &ObjectName, user: &RecordedUser) -> VolumeRecoverySpec {
    let mode = if args.dry_run {
        Mode::DryRun
    } else {
        Mode::Approve
    };
    VolumeRecoverySpec {
        reason: args.reason.clone(),
        requester_groups: user.groups.clone(),
        confirm_workload: args.confirm_workload.clone(),
        power_off: args.allow_power_off.then(|| PowerOff {
            allowed_by: user.name.clone(),
            groups: user.groups.clone(),
        }),
        ..VolumeRecoverySpec::new(&claim.name, mode, &args.runbook, &user.name)
    }
}

/// Returns the recovery of this claim that is under way.
pub async fn under_way(
    session: &Session,
    claim: &ObjectName,
) -> Result<Option<StoredRecovery>, Fail> {
    let all = records::list(session, Some(&claim.namespace)).await?;
    Ok(all
        .into_iter()
        .find(|r| r.spec.claim_name == claim.name && records::under_way(r)))
}

/// Parses a duration of at most a day: `90s`, `15m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|_| format!("{text:?} is no duration such as 90s, 15m or 1h"))?;
    match Duration::try_from(span) {
        Ok(duration) if !duration.is_zero() && duration <= Duration::from_secs(86_400) => {
            Ok(duration)
        }
        _ => Err(format!("{text:?} must be more than 0 and at most 24h")),
    }
}
