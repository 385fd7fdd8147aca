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
    /// Plays an incident against a simulated cluster and cloud; needs neither.
    Drill(drill::DrillArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.verb {
        Verb::Drill(args) => drill::run(args),
        verb => run(verb, &cli.global).map(ExitCode::from),
    };
    ended.unwrap_or_else(|error| report_error(&error).into())
}

fn run(verb: Verb, global: &session::Global) -> anyhow::Result<Exit> {
    // What a person needs to know is printed; RUST_LOG shows the rest.
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into());
    let to = || LogLines::new(std::io::stderr(), LogForm::Text);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(to)
        .with_ansi(false)
        .init();
    let runtime = reattach_controller::runtime()?;
    let ended = runtime.block_on(async {
        match verb {
            Verb::Explain(args) => explain::run(args),
            Verb::Diagnose(args) => diagnose::run(args, global).await,
            Verb::Plan(args) => plan::run(args, global).await,
            Verb::Recover(args) => recover::run(args, global).await,
            Verb::Approve(args) => approve::run(args, global).await,
            Verb::Declare(args) => declare::run(args, global).await,
            Verb::Abort(args) => abort::run(args, global).await,
            Verb::Status(args) => status::run(args, global).await,
            Verb::Report(args) => report::run(args, global).await,
            Verb::Drill(args) => drill::run(args).map(|_| Exit::Done),
        }
    });
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
    error.downcast_ref::<Fail>().map_or(Exit::Error, Fail::end)
}
