//! `status`: shows phase, diagnosis, plan and journal of recoveries.

use crate::exit::Exit;
use crate::fail::Fail;
use crate::output::{Format, note, print, print_json_line, print_line, print_value, width};
use crate::plan::{refused, whole_plan};
use crate::records;
use crate::session::{Global, Session};
use crate::table::{Table, age};
use anyhow::Result;
use clap::Args;
use reattach_api::{Phase, StoredRecovery, UnreadableField, VolumeRecovery};
use reattach_core::ids::Uid;
use reattach_report::{
    TEXT_WIDTH, diagnosis_text, journal_text, paragraph, status_line, support_ticket,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

/// Interval of reads of `--watch`.
const READ_EVERY: Duration = Duration::from_millis(500);

/// Shows where recoveries stand.
///
/// With a RECOVERY or CLAIM, it shows diagnosis, plan and journal of that recovery.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl reattach status -A
  kubectl reattach status -n cache --watch
  kubectl reattach status data-redis-0          # diagnosis, plan, journal
  kubectl reattach status data-redis-0 --watch  # until it is over; exit code by its end")]
pub struct StatusArgs {
    /// VolumeRecovery, or a claim.
    #[arg(value_name = "RECOVERY|CLAIM", conflicts_with = "all_namespaces")]
    name: Option<String>,
    /// All namespaces.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Keep running, and print what changes.
    #[arg(long, short)]
    watch: bool,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

pub async fn run(args: StatusArgs, global: &Global) -> Result<Exit> {
    if args.watch && args.output == Format::Yaml {
        return Err(Fail::Usage(
            "--watch prints a table or one JSON object per line, not YAML".to_owned(),
        )
        .into());
    }
    let session = Session::open(global).await?;
    if args.watch {
        return tokio::select! {
            biased;
            ended = watch(&args, &session) => ended,
            interrupted = tokio::signal::ctrl_c() => { interrupted?; Ok(Exit::Interrupted) }
        };
    }
    match &args.name {
        Some(name) => {
            let recovery = records::find(&session, name).await?;
            match args.output {
                Format::Table => print(&text(&recovery))?,
                format => print_value(format, &recovery)?,
            }
            Ok(exit_code(&recovery))
        }
        None => {
            let all = list(&args, &session).await?;
            match args.output {
                Format::Table if all.is_empty() => note(&no_recoveries(&args, &session)),
                Format::Table => {
                    print(&table(&all, args.all_namespaces, &session).text(width()))?;
                    // The table is cut where it does not fit, and this sentence must not be.
                    for recovery in all.iter().filter(|r| r.history().is_err()) {
                        note(&format!(
                            "note: recovery {}: {}",
                            recovery.name(),
                            records::message(recovery)
                        ));
                    }
                }
                format => print_value(
                    format,
                    &json!({ "apiVersion": "v1", "kind": "List", "items": all }),
                )?,
            }
            Ok(Exit::Done)
        }
    }
}

async fn list(args: &StatusArgs, session: &Session) -> Result<Vec<StoredRecovery>, Fail> {
    records::list(
        session,
        (!args.all_namespaces).then_some(session.namespace.as_str()),
    )
    .await
}

fn no_recoveries(args: &StatusArgs, session: &Session) -> String {
    match args.all_namespaces {
        true => "No recoveries in any namespace.".to_owned(),
        false => format!(
            "No recoveries in namespace {}; -A shows all.",
            session.namespace
        ),
    }
}

fn table(recoveries: &[StoredRecovery], all_namespaces: bool, session: &Session) -> Table {
    let mut head = vec!["CLAIM", "CLASS", "MODE", "PHASE", "AGE", "MESSAGE"];
    if all_namespaces {
        head.insert(0, "NAMESPACE");
    }
    let mut table = Table::new(&head);
    for recovery in recoveries {
        let status = recovery.status.clone().unwrap_or_default();
        let mut row = vec![
            recovery.spec.claim_name.clone(),
            status.class_name().unwrap_or_default(),
            recovery.spec.mode.to_string(),
            status.phase.to_string(),
            age(recovery.created(), session.clock.now()),
            records::message(recovery),
        ];
        if all_namespaces {
            row.insert(0, recovery.name().namespace.clone());
        }
        table.row(row);
    }
    table
}

/// Describes one recovery.
fn text(recovery: &StoredRecovery) -> String {
    let record = match recovery.record(None) {
        Ok(record) => record,
        Err(unreadable) => return unreadable_text(recovery, &unreadable),
    };
    let mut text = format!("{}\n", status_line(&record));
    let mut row = |label: &str, words: &str| text.push_str(&property(label, words));
    row("recovery", &record.recovery.to_string());
    row(
        "mode",
        &format!("{}, requested by {}", record.mode, record.requester),
    );
    if let Some(reason) = &record.reason {
        row("reason", reason);
    }
    row("created", &format!("{:.0}", record.created));
    row("phase", &record.phase.to_string());
    row("message", &record.message);
    if let Some(left_out) = recovery.status.as_ref().and_then(|s| s.left_out.as_ref()) {
        row("left out", left_out);
    }
    if let Some(escalation) = &record.escalation {
        row(
            "escalated",
            &format!(
                "it has waited since {:.0}: {}",
                escalation.since, escalation.summary
            ),
        );
    }
    if let Some(approval) = &recovery.spec.approval {
        row(
            "approval",
            &format!("plan {} by {}", approval.plan_hash, approval.approver),
        );
    }
    if let Some(declaration) = &recovery.spec.declaration {
        let ours = if declaration.of_this_cluster {
            " and is this cluster's"
        } else {
            ""
        };
        row(
            "declared",
            &format!(
                "instance {} cannot write{ours}, by {} at {:.0}: {}",
                declaration.holder, declaration.declared_by, declaration.at.0, declaration.reason
            ),
        );
    }
    if let Some(declaration) = &recovery.spec.nothing_under_way {
        row(
            "declared",
            &format!(
                "nothing is under way at the cloud, by {} at {:.0}: {}",
                declaration.declared_by, declaration.at.0, declaration.reason
            ),
        );
    }
    if let Some(allowed) = &recovery.spec.power_off {
        row("power-off", &format!("allowed by {}", allowed.allowed_by));
    }
    if let Some(abort) = &recovery.spec.abort {
        let why = match &abort.reason {
            Some(reason) => format!(": {reason}"),
            None => String::new(),
        };
        row("abort", &format!("by {}{why}", abort.by));
    }
    if let Some(diagnosis) = &record.diagnosis
        && record.journal.is_empty()
    {
        text.push_str(&format!("\n{}", diagnosis_text(diagnosis)));
    }
    if !record.refusals.is_empty() {
        text.push_str(&format!("\n{}", refused("Refused", "", &record.refusals)));
    }
    match &record.plan {
        Some(plan) if record.journal.is_empty() => {
            text.push_str(&format!("\n{}", whole_plan(plan, None)))
        }
        Some(plan) => text.push_str(&format!("\n{}", journal_text(plan, &record.journal))),
        None => {}
    }
    if let Some(ticket) = support_ticket(&record) {
        text.push_str(&format!("\nFor the provider's support:\n\n{ticket}\n"));
    }
    text
}

/// Writes one property of a recovery.
fn property(label: &str, words: &str) -> String {
    paragraph(&format!("  {label:<10} "), words, TEXT_WIDTH)
}

/// Describes a recovery with a field that this version cannot read.
fn unreadable_text(recovery: &StoredRecovery, unreadable: &UnreadableField) -> String {
    let mut text = format!("{}: {}\n", recovery.claim(), recovery.phase());
    let mut row = |label: &str, words: &str| text.push_str(&property(label, words));
    row("recovery", &recovery.name().name);
    row(
        "mode",
        &format!(
            "{}, requested by {}",
            recovery.spec.mode, recovery.spec.requester
        ),
    );
    row("unreadable", &records::unreadable_sentence(unreadable));
    if let Some(status) = recovery.status.as_ref().filter(|s| !s.message.is_empty()) {
        row("message", &status.message);
    }
    text
}

/// Prints what changes, until the named recovery is over or the user interrupts.
async fn watch(args: &StatusArgs, session: &Session) -> Result<Exit> {
    let mut shown: BTreeMap<Uid, String> = BTreeMap::new();
    let mut first = true;
    loop {
        let now = match &args.name {
            Some(name) => vec![records::find(session, name).await?],
            None => list(args, session).await?,
        };
        let fresh: Vec<&StoredRecovery> = now
            .iter()
            .filter(|r| {
                let state = format!("{} {}", r.phase(), records::message(r));
                shown.insert(r.uid().clone(), state.clone()) != Some(state)
            })
            .collect();
        if args.output == Format::Json {
            for recovery in fresh {
                print_json_line(recovery)?;
            }
        } else if !fresh.is_empty() {
            // The widths are those of all recoveries, so that later lines stay under the head.
            let lines = table(&now, args.all_namespaces, session).lines(width());
            if first {
                print_line(&lines[0])?;
            }
            let is_fresh = |r: &StoredRecovery| fresh.iter().any(|f| f.uid() == r.uid());
            for (recovery, text) in now.iter().zip(&lines[1..]) {
                if is_fresh(recovery) {
                    print_line(text)?;
                }
            }
        } else if first && now.is_empty() {
            note(&no_recoveries(args, session));
        }
        first &= now.is_empty();
        if let (Some(_), [one]) = (&args.name, now.as_slice())
            && (one.phase().is_final() || one.phase() == Phase::Stuck)
        {
            let last = one
                .record(None)
                .map_or_else(|_| records::message(one), |record| status_line(&record));
            note(&format!("\n{last}"));
            return Ok(exit_code(one));
        }
        tokio::time::sleep(READ_EVERY).await;
    }
}

/// Returns the exit code for one recovery.
fn exit_code(recovery: &VolumeRecovery) -> Exit {
    let phase = recovery.phase();
    if recovery.history().is_err() && !phase.is_final() {
        return Exit::Unhealed;
    }
    phase.into()
}
