//! `kubectl reattach drill`: the embedded game day. Needs no cluster and no credentials.

use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

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
    /// List the scenarios and end.
    #[arg(long)]
    pub list: bool,
    /// Seed of everything random; the same seed gives the same transcript.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// The scenario to play.
    #[arg(long, value_name = "NAME", default_value = "incident-2021-07-11")]
    pub scenario: String,
    /// Also write the post-mortem as one self-contained HTML file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print one JSON document at the end instead of text.
    #[arg(long)]
    pub json: bool,
    /// No timeline: only the summary and the post-mortem.
    #[arg(long, short)]
    pub quiet: bool,
}

/// Plays a scenario.
///
/// # Errors
/// The scenario does not exist, the simulated cluster could not be built, or the HTML file cannot be written.
pub fn run(_args: DrillArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("drill is being built")
}
