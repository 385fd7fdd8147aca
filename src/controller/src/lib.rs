//! From signals to recoveries: nominate claims, collect evidence, plan, and perform plans through the one gate.
//!
//! The binary `reattach-controller` runs it in a cluster; `kubectl reattach recover --break-glass` runs the same
//! executor for one recovery; the simulation runs all of it in virtual time.

mod attempts;
pub mod collect;
pub mod driving;
mod finalizer;
pub mod http;
mod janitor;
pub mod leader_loops;
mod limits;
pub mod listener;
mod looking;
mod losses;
mod machines;
pub mod metrics;
mod neighbours;
mod nominate;
mod notify;
mod pace;
mod past;
mod perform;
pub mod policies;
pub mod providers;
pub mod records;
pub mod recovery;
pub mod setup;
mod status;
mod turns;
mod wakeup;

pub use collect::{Collector, Needs};
pub use leader_loops::{Controller, Settings};
pub use limits::{ceiling, limits};
pub use nominate::{Nominee, nominees};
pub use providers::Providers;
pub use recovery::{Executor, Turn};

/// Stack of each worker thread, in bytes. A turn polls evidence, plan, effect and request inside one another; in a build for
/// tests that has overflowed tokio's default of 2 MiB, which aborts the process.
const WORKER_STACK: usize = 8 << 20;

/// The runtime of a process that drives recoveries.
///
/// # Errors
/// The operating system gives no threads.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_stack_size(WORKER_STACK)
        .enable_all()
        .build()
}
