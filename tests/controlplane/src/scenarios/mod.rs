//! Tests that share a control plane, and the process in which it lives.
//!
//! cargo-nextest runs each test in a process of its own, and a control plane that carries many tests lives in one. So a test
//! binary with shared scenarios has a `main` of its own ([`main`]) with the command line of libtest, and one of its processes,
//! the *host*, runs the scenarios for all others.
//!
//! # Expected flow
//! 1. Without `REATTACH_SCENARIOS` (plain `cargo test`) everything runs in the one process that was started.
//! 2. With it, a process that is asked for a [`Place::Shared`] scenario connects to the host, starts it if there is none,
//!    prints what the scenario prints, and ends as the scenario ended. A [`Place::Own`] scenario runs where it was asked for.
//! 3. The host stops its control planes and ends when it has had no scenario for 15 s, or at once when the file
//!    `stop` appears in the folder that `REATTACH_SCENARIOS` names.
//!
//! # Guarantees
//! - A client that is killed (a time limit, Ctrl-C) cancels its scenario in the host, and no other.
//! - There is one host for a test binary at a time; its process ID stands in `NAME.pid`, its own output in `NAME.log`.
//!
//! # Caveats
//! - What a scenario prints reaches its test only through [`say!`](crate::say), from the scenario's own thread: `println!` goes to
//!   the host's log.

mod client;
mod host;

use libtest_mimic::{Arguments, Failed, Trial};
use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::LazyLock;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedSender;

/// Names the folder of the hosts' sockets, process IDs and logs.
const FOLDER: &str = "REATTACH_SCENARIOS";
/// The argument that makes a process the host.
const HOST: &str = "--scenario-host";

/// The future of a scenario. It stays on one thread.
pub type Run = Pin<Box<dyn Future<Output = ()>>>;

/// The process in which a scenario runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the host, on a control plane that it shares with others.
    Shared,
    /// In the test's own process, on a control plane of its own.
    Own,
}

/// One scenario; made by [`scenarios!`](macro@crate::scenarios).
#[derive(Clone, Copy)]
pub struct Scenario {
    /// `shared::module::function` or `own::module::function`: .config/nextest.toml limits the second kind, each of which has a
    /// control plane.
    pub name: &'static str,
    /// Where it runs.
    pub place: Place,
    /// Starts it.
    pub run: fn() -> Run,
}

/// Lists the scenarios of a test binary: `scenarios! { Shared: module::function, …; Own: module::function, …; }`.
#[macro_export]
macro_rules! scenarios {
    ($($place:ident: $($module:ident :: $function:ident),+ $(,)?;)+) => {
        &[$($($crate::scenarios::Scenario {
            name: concat!($crate::scenarios!(@ $place), "::", stringify!($module), "::", stringify!($function)),
            place: $crate::scenarios::Place::$place,
            run: || Box::pin($module::$function()),
        },)+)+]
    };
    (@ Shared) => { "shared" };
    (@ Own) => { "own" };
}

/// Prints a line as the output of the scenario that runs.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::scenarios::print(format_args!($($argument)*)) };
}

/// Where the lines of a scenario go.
#[derive(Clone)]
enum Output {
    Stdout,
    Client(UnboundedSender<String>),
}

thread_local! {
    /// The output of the scenario that runs on this thread.
    static OUTPUT: RefCell<Output> = const { RefCell::new(Output::Stdout) };
}

/// Implementation of [`say!`](crate::say).
pub fn print(line: fmt::Arguments<'_>) {
    OUTPUT.with_borrow(|output| match output {
        Output::Stdout => println!("{line}"),
        // It fails only when the client is gone, and then the scenario is about to be cancelled.
        Output::Client(client) => _ = client.send(line.to_string()),
    });
}

/// Connections to a shared control plane outlive the scenario that made them, so all scenarios have one runtime.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));

/// A panic is part of the output of its scenario.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("a panic without text");
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        print(format_args!("panicked at {place}:\n{text}"));
    }));
}

/// Runs a scenario on this thread until it ends or `cancelled` resolves. An error says what it failed of.
fn run(
    scenario: Scenario,
    output: Output,
    cancelled: impl Future<Output = ()>,
) -> Result<(), String> {
    OUTPUT.set(output);
    let run = async {
        tokio::select! {
            () = (scenario.run)() => Ok(()),
            () = cancelled => Err("cancelled".to_owned()),
        }
    };
    let ended = catch_unwind(AssertUnwindSafe(|| RUNTIME.block_on(run)));
    // The panic hook has printed the rest.
    let ended = ended.unwrap_or_else(|_| Err("it panicked".to_owned()));
    OUTPUT.set(Output::Stdout);
    ended
}

/// The `main` of a test binary. `name` is unique among those of a run; `end` stops what the shared scenarios ran on.
pub fn main(name: &'static str, scenarios: &'static [Scenario], end: fn() -> Run) -> ExitCode {
    report_panics();
    let folder = std::env::var_os(FOLDER).map(PathBuf::from);
    if std::env::args()
        .nth(1)
        .is_some_and(|argument| argument == HOST)
    {
        let Some(folder) = folder else {
            eprintln!("{HOST}: {FOLDER} must name a folder");
            return ExitCode::FAILURE;
        };
        return host::serve(&folder, name, scenarios, end);
    }
    let trial = |scenario: Scenario| {
        let folder = folder.clone();
        Trial::test(scenario.name, move || match (folder, scenario.place) {
            (Some(folder), Place::Shared) => {
                client::run(&folder, name, scenario).map_err(Failed::from)
            }
            _ => run(scenario, Output::Stdout, std::future::pending()).map_err(Failed::from),
        })
    };
    let trials = scenarios.iter().copied().map(trial).collect();
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    RUNTIME.block_on(end());
    conclusion.exit_code()
}

/// One line from the host to its client.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Frame {
    /// The host has taken the scenario.
    Begun,
    /// A line of its output.
    Said(String),
    /// It is over; with what it failed of.
    Ended(Option<String>),
}
