//! Work that can hang in the kernel: opening a device whose driver recovers from errors, reading the memory map of a process
//! that waits for one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Work that nobody waits for any more and that has not ended: while there is some, no other is begun, for it would hang
/// as well.
static HANGING: AtomicUsize = AtomicUsize::new(0);

/// Where the result is left.
enum Desk<T> {
    Open,
    Done(T),
    /// Nobody waits for it any more.
    Left,
}

/// Does the work in a thread of its own and waits for it, but not for ever.
///
/// # Errors
/// One sentence that begins with `what`, if it does not end in time, or if earlier work still hangs.
pub(crate) fn run<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    if HANGING.load(Ordering::SeqCst) > 0 {
        return Err(format!("{what}: not tried, because an earlier look still hangs in the kernel"));
    }
    let desk = Arc::new((Mutex::new(Desk::Open), Condvar::new()));
    let shared = Arc::clone(&desk);
    let thread = std::thread::Builder::new().name("limited".to_owned()).spawn(move || {
        let result = work();
        let mut desk = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*desk, Desk::Left) {
            HANGING.fetch_sub(1, Ordering::SeqCst);
        }
        *desk = Desk::Done(result);
        shared.1.notify_one();
    });
    if let Err(e) = thread {
        return Err(format!("{what}: no thread for it: {e}"));
    }
    let waiting = desk.0.lock().unwrap_or_else(PoisonError::into_inner);
    let ended = desk.1.wait_timeout_while(waiting, PATIENCE, |desk| matches!(desk, Desk::Open));
    let (mut desk, _) = ended.unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *desk, Desk::Left) {
        Desk::Done(result) => Ok(result),
        Desk::Open | Desk::Left => {
            HANGING.fetch_add(1, Ordering::SeqCst);
            Err(format!("{what}: did not end within {} s", PATIENCE.as_secs()))
        }
    }
}
