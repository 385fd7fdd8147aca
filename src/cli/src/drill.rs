//! `kubectl reattach drill`: the embedded game day. Needs no cluster and no credentials.

use anyhow::Context;
use clap::Args;
use reattach_drill::timeline::{Line, paragraph, span};
use reattach_drill::{Pace, SCENARIOS, Scenario, play};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Arguments of `drill`.
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
    pub list: bool,
    /// Seed of everything random. Equal seeds give equal transcripts.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Scenario to play.
    #[arg(long, value_name = "NAME", default_value = "incident-2021-07-11")]
    pub scenario: String,
    /// Also write the post-mortem as one self-contained HTML file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print one JSON document at the end instead of text.
    #[arg(long)]
    pub json: bool,
    /// Print no timeline, only the summary and the post-mortem.
    #[arg(long, short)]
    pub quiet: bool,
}

/// Plays a scenario.
///
/// # Errors
/// The scenario does not exist, the simulated cluster could not be built, the scenario got stuck, or the HTML file cannot
/// be written.
pub fn run(args: DrillArgs) -> anyhow::Result<ExitCode> {
    if args.list {
        for scenario in SCENARIOS {
            print!(
                "{:<20}  {}",
                scenario.name,
                paragraph(22, scenario.summary).trim_start()
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    #[allow(clippy::disallowed_methods)]
    // Wall time for the last line; the drill's own time is virtual.
    if Scenario::named(&args.scenario).is_none() {
        let known = SCENARIOS
            .iter()
            .map(|s| s.name)
            .collect::<Vec<_>>()
            .join(", ");
        eprintln!(
            "error: there is no scenario {:?}; there are: {known}",
            args.scenario
        );
        return Ok(ExitCode::from(2));
    }
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
        let (virtual_time, wall) = (
            outcome.incident.to.duration_since(outcome.incident.from),
            started.elapsed(),
        );
        let virtual_time = span(virtual_time.as_secs_f64());
        eprintln!(
            "{virtual_time} of cluster time in {:.1} s.",
            wall.as_secs_f64()
        );
        if let Some(file) = &args.html {
            eprintln!("The post-mortem with its picture: {}", file.display());
        }
    }
    Ok(if outcome.good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
