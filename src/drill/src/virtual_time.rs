//! Running a future in virtual time.

use tokio::runtime::Builder;

/// Runs `future` to its end on a thread of its own, single-threaded, with tokio's clock paused: time moves only when
/// every task waits, and then at once to the next moment at which something is due.
///
/// # Errors
/// The runtime or its thread could not be made.
///
/// # Panics
/// When the future panics.
pub fn in_virtual_time<T, F>(future: impl FnOnce() -> F + Send + 'static) -> std::io::Result<T>
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    // A thread of its own: the caller may be inside another runtime.
    let thread = std::thread::Builder::new()
        .name("drill".to_owned())
        .stack_size(16 << 20)
        .spawn(move || {
            let runtime = Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()?;
            Ok(runtime.block_on(future()))
        })?;
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
