//! Runs work that can hang in the kernel, with a timeout: opening a device whose driver recovers from errors, or reading the
//! memory map of a process that waits for such a device.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Maximum duration of the work.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Number of threads whose work timed out and has not ended. While there is one, no other work is started, because it would
/// hang as well.
static HANGING_THREADS: AtomicUsize = AtomicUsize::new(0);

/// The place of the result.
enum Slot<T> {
    /// The work has not ended.
    Waiting,
    /// The work has ended.
    Done(T),
    /// The timeout has passed.
    Abandoned,
}

/// Runs the work in a new thread and returns its result, or an error after the timeout.
///
/// # Errors
/// One sentence that begins with `what`: the work did not end in time, or earlier work still hangs.
pub(crate) fn run<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    if HANGING_THREADS.load(Ordering::SeqCst) > 0 {
        return Err(format!(
            "{what}: not tried, because an earlier scan still hangs in the kernel"
        ));
    }
    let slot = Arc::new((Mutex::new(Slot::Waiting), Condvar::new()));
    let shared = Arc::clone(&slot);
    let thread = std::thread::Builder::new()
        .name("with-timeout".to_owned())
        .spawn(move || {
            let result = work();
            let mut slot = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(*slot, Slot::Abandoned) {
                HANGING_THREADS.fetch_sub(1, Ordering::SeqCst);
            }
            *slot = Slot::Done(result);
            shared.1.notify_one();
        });
    if let Err(e) = thread {
        return Err(format!("{what}: no thread could be started: {e}"));
    }
    let waiting = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
    let ended = slot
        .1
        .wait_timeout_while(waiting, TIMEOUT, |slot| matches!(slot, Slot::Waiting));
    let (mut slot, _) = ended.unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *slot, Slot::Abandoned) {
        Slot::Done(result) => Ok(result),
        Slot::Waiting | Slot::Abandoned => {
            HANGING_THREADS.fetch_add(1, Ordering::SeqCst);
            Err(format!(
                "{what}: did not end within {} s",
                TIMEOUT.as_secs()
            ))
        }
    }
}
