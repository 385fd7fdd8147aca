//! Waiting for conditions.

use anyhow::{Result, bail};
use std::time::Duration;
use tokio::time::Instant;

/// How long to wait between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks again and again until there is something, and gives that.
///
/// # Errors
/// That of a look, and the limit.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if begun.elapsed() > limit {
            bail!("not within {} s: {what}", limit.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}
