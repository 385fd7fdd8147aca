//! `drill`: plays an incident against a simulated cluster and cloud. Needs no cluster and no credentials.

use crate::exit::Exit;
use crate::fail::Fail;
use anyhow::{Context, Result};
use clap::Args;
use reattach_drill::timeline::{Line, paragraph, span};
use reattach_drill::{Pace, SCENARIOS, Scenario, play};
use std::path::PathBuf;
use std::sync::Arc;

/// Plays an incident against a simulated cluster and cloud; needs neither.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  kubectl reattach drill
  kubectl reattach drill --list
  kubectl reattach drill --scenario leader-crash --seed 7
  kubectl reattach drill --html post-mortem.html --quiet

Exit codes: 0 every workload came back and every safety rule held; 1 otherwise; 2 wrong usage.")]
pub struct DrillArgs {
    /// List the scenarios and exit.
    #[arg(long)]
    list: bool,
    /// Seed of everything random. Equal seeds give equal transcripts.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Scenario to play.
    #[arg(long, value_name = "NAME", default_value = "incident-2021-07-11")]
    scenario: String,
    /// Also write the post-mortem as one self-contained HTML file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print one JSON document at the end instead of text.
    #[arg(long)]
    json: bool,
    /// Print no timeline, only the summary and the post-mortem.
    #[arg(long, short)]
    quiet: bool,
}

pub fn run(args: DrillArgs) -> Result<Exit> {
    if args.list {
        for scenario in SCENARIOS {
            print!(
                "{:<20}  {}",
                scenario.name,
                paragraph(22, scenario.summary).trim_start()
            );
        }
        return Ok(Exit::Done);
    }
    if Scenario::named(&args.scenario).is_none() {
        let known: Vec<&str> = SCENARIOS.iter().map(|s| s.name).collect();
        return Err(Fail::Usage(format!(
            "there is no scenario {:?}; there are: {}",
            args.scenario,
            known.join(", ")
        ))
        .into());
    }
    // Wall time, for the last line. The drill's own time is virtual.
    let started = tokio::time::Instant::now();
    let live = !args.json && !args.quiet;
    if live {
        println!(
            "reattach drill, scenario {}, seed {}. Times are UTC in virtual time.",
            args.scenario, args.seed
        );
    }
    let sink = Arc::new(move |line: &Line| {
        if live {
            print!("{}", line.render());
        }
    });
    let outcome = play(&args.scenario, args.seed, Pace::Full, sink)?;
    if let Some(file) = &args.html {
        let page = reattach_report::html(&outcome.incident);
        std::fs::write(file, page)
            .with_context(|| format!("--html {} cannot be written", file.display()))?;
    }
    if args.json {
        let mut document = serde_json::to_value(&outcome)?;
        document["good"] = outcome.good().into();
        document["report"] = serde_json::from_str(&reattach_report::json(&outcome.incident))?;
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        println!("{}", outcome.summary());
        println!(
            "== Post-mortem\n\n{}",
            reattach_report::markdown(&outcome.incident)
        );
        let cluster_time = outcome.incident.to.duration_since(outcome.incident.from);
        eprintln!(
            "{} of cluster time in {:.1} s.",
            span(cluster_time.as_secs_f64()),
            started.elapsed().as_secs_f64()
        );
        if let Some(file) = &args.html {
            eprintln!("The post-mortem with its picture: {}", file.display());
        }
    }
    Ok(if outcome.good() {
        Exit::Done
    } else {
        Exit::Error
    })
}
