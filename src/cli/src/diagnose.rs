//! `diagnose`: says what is wrong with a claim's volume. Reads only.

use crate::exit::Exit;
use crate::fail::{Fail, one_line};
use crate::output::{Format, note, print, print_line, print_value, width};
use crate::session::{Global, Session, preflight, providers, unknown_driver_note};
use crate::table::Table;
use crate::watches;
use anyhow::Result;
use clap::Args;
use reattach_controller::{Collector, Needs, nominees};
use reattach_core::diagnosis::{Diagnosis, Verdict, diagnose};
use reattach_core::ids::ObjectName;
use reattach_report::{TEXT_WIDTH, diagnosis_text, paragraph};
use serde_json::json;
use std::collections::BTreeSet;
use tokio::task::JoinSet;

/// Says what is wrong with a claim's volume; writes nothing.
///
/// Prints the verdict and the facts behind it. Without a CLAIM, it looks at every claim that an event, an unready pod or an agent's report points at.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl reattach diagnose data-redis-0 -n cache
  kubectl reattach diagnose -A
  kubectl reattach diagnose -A -o json | jq -r '.items[] | select(.class == \"B\") | .claim.name'

Needs no controller. Agents report what the machines see; without them some trouble stays
unclassified.
Exit codes: 0 nothing is wrong; 3 trouble that reattach can heal; 5 not ours; 6 wait, or facts
are missing.")]
pub struct DiagnoseArgs {
    /// PersistentVolumeClaims.
    #[arg(value_name = "CLAIM", conflicts_with = "all_namespaces")]
    claims: Vec<String>,
    /// All namespaces.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Print the facts of every claim, not only the table.
    #[arg(long)]
    facts: bool,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

struct Finding {
    claim: ObjectName,
    /// Why the claim was looked at, if the user did not name it.
    why: Option<String>,
    diagnosis: Diagnosis,
}

pub async fn run(args: DiagnoseArgs, global: &Global) -> Result<Exit> {
    let providers = providers(global)?;
    let session = Session::open(global).await?;
    preflight(&providers, false).await?;
    let mut collector = Collector::new(
        session.clients.clone(),
        None,
        providers,
        session.clock.clone(),
    );
    let mut tasks = JoinSet::new();
    let wanted: Vec<(ObjectName, Option<String>)> = if args.claims.is_empty() {
        let cache = watches::start(&session, &mut tasks).await?;
        let all = nominees(&cache);
        collector.cache = Some(cache);
        let here = |n: &ObjectName| args.all_namespaces || n.namespace == session.namespace;
        all.into_iter()
            .filter(|n| here(&n.claim))
            .map(|n| (n.claim, Some(n.why)))
            .collect()
    } else {
        args.claims
            .iter()
            .map(|c| Ok((session.claim(c)?, None)))
            .collect::<Result<_, Fail>>()?
    };
    let mut findings = Vec::new();
    for (claim, why) in wanted {
        let collected = collector.collect(&claim, None, Needs::Diagnose);
        let evidence = session
            .ask(&format!("collect the facts about claim {claim}"), collected)
            .await?;
        if evidence.claim.shown().is_none() && why.is_none() {
            return Err(Fail::NoClaim {
                namespace: claim.namespace,
                name: claim.name,
            }
            .into());
        }
        findings.push(Finding {
            claim,
            why,
            diagnosis: diagnose(evidence.at(session.clock.now())),
        });
    }
    match args.output {
        Format::Table => show(&findings, &args, &session)?,
        format => {
            let items: Vec<_> = findings
                .iter()
                .map(|f| {
                    json!({
                        "claim": f.claim,
                        "class": f.diagnosis.class(),
                        "sentence": f.diagnosis.verdict.to_string(),
                        "nominatedBy": f.why,
                        "diagnosis": f.diagnosis,
                    })
                })
                .collect();
            print_value(format, &json!({ "items": items }))?;
        }
    }
    let hints: BTreeSet<_> = findings
        .iter()
        .filter_map(|f| unknown_driver_note(&collector.providers, &f.diagnosis.verdict))
        .collect();
    hints.iter().for_each(|hint| note(hint));
    let exits = findings.iter().map(|f| exit_code(&f.diagnosis.verdict));
    Ok(exits.max_by_key(urgency).unwrap_or(Exit::Done))
}

fn show(findings: &[Finding], args: &DiagnoseArgs, session: &Session) -> Result<()> {
    if findings.is_empty() {
        let place = if args.all_namespaces {
            "any namespace".to_owned()
        } else {
            format!("namespace {}", session.namespace)
        };
        note(&format!(
            "No event, unready pod or agent's report points at a claim in {place}."
        ));
        return Ok(());
    }
    if args.claims.is_empty() || findings.len() > 1 {
        let mut table = Table::new(&["NAMESPACE", "CLAIM", "CLASS", "VERDICT", "WHY"]);
        for f in findings {
            let class = f.diagnosis.class().map(|c| c.named()).unwrap_or_default();
            table.row(vec![
                f.claim.namespace.clone(),
                f.claim.name.clone(),
                class,
                title(&f.diagnosis.verdict).to_owned(),
                f.diagnosis.verdict.finding(),
            ]);
        }
        print(&table.text(width()))?;
        if !args.facts {
            let example = findings
                .iter()
                .find(|f| matches!(f.diagnosis.verdict, Verdict::Ours { .. }))
                .or(findings.first());
            if let Some(f) = example {
                note(&format!(
                    "\nFacts: kubectl reattach diagnose -n {} {}, or --facts for all.",
                    f.claim.namespace, f.claim.name
                ));
            }
            return Ok(());
        }
        print_line("")?;
    }
    for (i, f) in findings.iter().enumerate() {
        let gap = if i == 0 { "" } else { "\n" };
        print(&format!("{gap}Claim {}\n", f.claim))?;
        if let Some(why) = &f.why {
            print(&paragraph(
                "  looked at because of: ",
                &one_line(why),
                TEXT_WIDTH,
            ))?;
        }
        print(&diagnosis_text(&f.diagnosis))?;
    }
    Ok(())
}

/// Describes a verdict in one or two words, for tables.
fn title(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Healthy { .. } => "healthy",
        Verdict::Ours { .. } => "trouble",
        Verdict::Wait { .. } => "wait",
        Verdict::NotOurs { .. } => "not ours",
        Verdict::Unclassified { .. } => "unclassified",
    }
}

/// Returns the exit code for one verdict.
pub fn exit_code(verdict: &Verdict) -> Exit {
    match verdict {
        Verdict::Healthy { .. } => Exit::Done,
        Verdict::Ours { .. } => Exit::Trouble,
        Verdict::Wait { .. } | Verdict::Unclassified { .. } => Exit::Waiting,
        Verdict::NotOurs { .. } => Exit::NotOurs,
    }
}

/// Rank of an exit code where several claims have different ones; the highest counts.
fn urgency(exit: &Exit) -> u8 {
    match exit {
        Exit::Trouble => 3,
        Exit::Waiting => 2,
        Exit::NotOurs => 1,
        _ => 0,
    }
}
