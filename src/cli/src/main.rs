//! `kubectl-reattach`: the command line. One file per verb.

mod abort;
mod approve;
mod break_glass;
mod declare;
mod diagnose;
mod drill;
mod exit;
mod explain;
mod fail;
mod follow;
mod interrupt;
mod leader;
mod output;
mod plan;
mod records;
mod recover;
mod report;
mod request;
mod rights;
mod session;
mod status;
mod table;
mod watches;

use clap::{Parser, Subcommand};
use exit::Exit;
use fail::Fail;
use reattach_core::plain::{LogForm, LogLines};
use std::process::ExitCode;

/// Gets stateful pods running again after a node died uncleanly. It says why a volume is stuck, plans a repair, carries it
/// out under safety rules, and leaves a record.
#[derive(Parser)]
#[command(name = "kubectl-reattach", bin_name = "kubectl reattach", version, about, long_about = None)]
#[command(disable_help_subcommand = true, after_help = exit::TABLE)]
struct Cli {
    #[command(flatten)]
    global: session::Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Explain(explain::ExplainArgs),
    Diagnose(diagnose::DiagnoseArgs),
    Plan(plan::PlanArgs),
    Recover(request::RecoverArgs),
    Approve(approve::ApproveArgs),
    Declare(declare::DeclareArgs),
    Abort(abort::AbortArgs),
    Status(status::StatusArgs),
    Report(report::ReportArgs),
    Drill(drill::DrillArgs),
}

fn main() -> ExitCode {
    let Cli { global, verb } = Cli::parse();
    let ended = match verb {
        Verb::Explain(args) => explain::run(args),
        Verb::Diagnose(args) => block_on(diagnose::run(args, &global)),
        Verb::Plan(args) => block_on(plan::run(args, &global)),
        Verb::Recover(args) => block_on(recover::run(args, &global)),
        Verb::Approve(args) => block_on(approve::run(args, &global)),
        Verb::Declare(args) => block_on(declare::run(args, &global)),
        Verb::Abort(args) => block_on(abort::run(args, &global)),
        Verb::Status(args) => block_on(status::run(args, &global)),
        Verb::Report(args) => block_on(report::run(args, &global)),
        // It builds its own runtime, with virtual time.
        Verb::Drill(args) => drill::run(args),
    };
    ended.unwrap_or_else(|error| report_error(&error)).into()
}

/// Runs a command that talks to the cluster, with the log of the libraries on standard error.
fn block_on(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    // What a person needs to know is printed; RUST_LOG shows the rest.
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogLines::new(std::io::stderr(), LogForm::Text))
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(command);
    // Watches have nothing left to do.
    runtime.shutdown_background();
    ended
}

/// Prints an error as one sentence. A reader that went away is no error.
fn report_error(error: &anyhow::Error) -> Exit {
    let pipe = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    if error.downcast_ref::<std::io::Error>().is_some_and(pipe) {
        return Exit::Done;
    }
    output::note(&format!("error: {}", fail::one_line(&format!("{error:#}"))));
    error.downcast_ref::<Fail>().map_or(Exit::Error, Fail::exit)
}
