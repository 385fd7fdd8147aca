//! `declare`: records a person's declaration that an instance cannot write.

use crate::exit::Exit;
use crate::fail::Fail;
use crate::follow::follow_hint;
use crate::output::note;
use crate::records;
use crate::session::{Global, Session};
use anyhow::Result;
use clap::Args;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reattach_api::{Declaration, NothingUnderWay, Phase, StoredRecovery};
use reattach_core::plan::Plan;
use reattach_core::policy::Mode;
use reattach_report::count;

/// Time for which a declaration counts.
const GOOD_FOR: SignedDuration = SignedDuration::from_hours(1);

/// Declares that an instance cannot write.
///
/// For one hour, the recovery frees the volume on your word, without any other proof. Declare it only when you know more than the cluster and the cloud do: the machine is unplugged, its disks are gone, or the provider's support has stopped it.
/// If the instance does write, two machines write to one volume and its data is lost. Your word does not count while a fact contradicts it, such as a Ready node of that instance. `kubectl reattach abort` ends its effect.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl reattach status data-redis-0          # the plan names the instance and what is missing
  kubectl reattach declare data-redis-0 --holder 4711 --reason 'ticket 991: no power'
  kubectl reattach declare data-redis-0 --nothing-under-way --reason 'no detach in the account events of the last hour'

Needs the RBAC verb `declare` on volumerecoveries.reattach.dev (ClusterRole reattach-declarer).
A plan that waits for an approval still needs it: kubectl reattach approve.
Declare again to extend your word by another hour.")]
pub struct DeclareArgs {
    /// VolumeRecovery, or the claim that it is for.
    #[arg(value_name = "RECOVERY|CLAIM")]
    name: String,
    /// Instance that cannot write, as the cloud and the plan name it. Required.
    #[arg(long, value_name = "INSTANCE")]
    holder: Option<String>,
    /// Declare instead that no order of the recovery is under way at the cloud any more. It ends the wait for a request that was
    /// lost before it arrived. Read the cloud's job history first: a detach that still arrives takes the volume from the
    /// machine that has it then.
    #[arg(long, conflicts_with = "holder")]
    nothing_under_way: bool,
    /// Why you are sure, for the record. Required.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Declare also that the instance is a machine of this cluster, though it is behind no Node and reattach never saw it as one. Needs the verb `declare` in the whole cluster.
    #[arg(long)]
    of_this_cluster: bool,
}

pub async fn run(args: DeclareArgs, global: &Global) -> Result<Exit> {
    let given = |text: &Option<String>| {
        let text = text.as_deref().map(str::trim);
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let reason = records::reason(given(&args.reason).as_deref())?.ok_or_else(|| {
        Fail::Usage("--reason is missing; say why you are sure, for the record".to_owned())
    })?;
    let session = Session::open(global).await?;
    let recovery = records::find(&session, &args.name).await?;
    if args.nothing_under_way {
        return nothing_under_way(&session, &recovery, reason).await;
    }
    let name = recovery.name();
    let plan = match plan(&recovery) {
        Ok(plan) => Some(plan),
        // Which cluster the machine belongs to can be declared before there is a plan.
        Err(NoPlan::NotYet(_)) if args.of_this_cluster => None,
        Err(NoPlan::NotYet(why) | NoPlan::Never(why)) => return Err(Fail::Other(why).into()),
    };
    let Some(holder) = given(&args.holder) else {
        return Err(Fail::Usage(match plan {
            Some(plan) => format!(
                "--holder is missing; name the instance that cannot write (the plan of {name} is about {})",
                plan.pins.holder
            ),
            None => format!(
                "--holder is missing; name the instance that belongs to this cluster (kubectl reattach status {name} shows it)"
            ),
        })
        .into());
    };
    if let Some(plan) = plan
        && plan.pins.holder.as_str() != holder
    {
        return Err(Fail::Usage(format!(
            "--holder {holder:?} is not the instance of the plan of {name}, so nothing was declared; the plan is about {}",
            plan.pins.holder
        ))
        .into());
    }
    let user = session.me().await?;
    let declaration = Declaration {
        holder,
        declared_by: user.name,
        reason,
        at: Time(session.server_time().await?),
        groups: user.groups,
        of_this_cluster: args.of_this_cluster,
    };
    records::declare(&session, name, &declaration).await?;
    note_effect(&recovery, plan, &declaration);
    Ok(Exit::Done)
}

/// Declares that no order of the recovery is under way at the cloud. This counts for an aborted recovery, too.
async fn nothing_under_way(
    session: &Session,
    recovery: &StoredRecovery,
    reason: String,
) -> Result<Exit> {
    let name = recovery.name();
    if !records::under_way(recovery) {
        return Err(Fail::Other(format!(
            "{name} has no run under way ({}), so no order of it can be under way",
            recovery.phase()
        ))
        .into());
    }
    let user = session.me().await?;
    let declaration = NothingUnderWay {
        declared_by: user.name,
        reason,
        at: Time(session.server_time().await?),
        groups: user.groups,
    };
    records::declare_nothing_under_way(session, name, &declaration).await?;
    note(&format!(
        "Declared by {}: nothing that {name} ordered is under way at the cloud ({}).",
        declaration.declared_by, declaration.reason
    ));
    note(
        "Your word counts for orders from before now. If the cloud shows a pending job, the recovery still waits for that job.",
    );
    note(&follow_hint(name));
    Ok(Exit::Done)
}

/// Why a recovery has no plan to declare for.
enum NoPlan {
    /// There may be one later.
    NotYet(String),
    /// A declaration would change nothing.
    Never(String),
}

/// Returns the plan that the declaration is for.
fn plan(recovery: &StoredRecovery) -> Result<&Plan, NoPlan> {
    let (name, phase) = (recovery.name(), recovery.phase());
    if phase.is_final() {
        return Err(NoPlan::Never(format!(
            "{name} is over already: {phase}, so a declaration would change nothing"
        )));
    }
    if let Some(abort) = &recovery.spec.abort {
        return Err(NoPlan::Never(format!(
            "{name} was aborted by {}, so a declaration would change nothing",
            abort.by
        )));
    }
    if matches!(recovery.spec.mode, Mode::Observe | Mode::DryRun) {
        return Err(NoPlan::Never(format!(
            "{name} is in mode {} and never frees a volume; to act on this claim: kubectl reattach recover -n {} {}",
            recovery.spec.mode, name.namespace, recovery.spec.claim_name
        )));
    }
    let (plan, _) = recovery
        .history()
        .map_err(|e| NoPlan::Never(records::unreadable_sentence(&e)))?;
    plan.ok_or_else(|| {
        NoPlan::NotYet(format!(
            "{name} has no plan, so there is no instance to declare about: {phase}, {}",
            records::message(recovery)
        ))
    })
}

/// Says what the declaration allows, and what the user can do next.
fn note_effect(recovery: &StoredRecovery, plan: Option<&Plan>, declaration: &Declaration) {
    let name = recovery.name();
    let Declaration {
        holder,
        declared_by,
        reason,
        at,
        of_this_cluster,
        ..
    } = declaration;
    let until = at.0.saturating_add(GOOD_FOR).unwrap_or(at.0);
    note(&format!(
        "Declared by {declared_by}: instance {holder} cannot write ({reason})."
    ));
    if *of_this_cluster {
        note(&format!(
            "Declared too: instance {holder} is a machine of this cluster."
        ));
    }
    let Some(plan) = plan else {
        note(&format!(
            "There is no plan yet. A plan that is made before {until:.0} relies on this word.\n{}",
            follow_hint(name)
        ));
        return;
    };
    note(&format!(
        "Until {until:.0}, volume {} is freed from it on this word alone, unless a fact contradicts it.",
        plan.pins.volume
    ));
    if let Some(wide) = &plan.pins.node_wide {
        note(&format!(
            "Node {} is fenced as a whole: it has {} and {}.",
            plan.pins.node,
            count(wide.pod_count(), "pod"),
            count(wide.volumes.len(), "attached volume")
        ));
    }
    if recovery.phase() == Phase::AwaitingApproval {
        note(&format!(
            "The plan still waits for an approval: kubectl reattach approve -n {} {} --plan {}",
            name.namespace, name.name, plan.hash
        ));
    }
    note(&format!(
        "If you were wrong, abort at once: kubectl reattach abort -n {} {}\n{}",
        name.namespace,
        name.name,
        follow_hint(name)
    ));
}
