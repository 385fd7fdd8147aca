//! The pauses between attempts after errors.

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use kube::runtime::utils::Backoff;
use reattach_core::ids::NodeName;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// First pause after an error.
const FIRST_PAUSE: Duration = Duration::from_millis(800);

/// Longest pause after an error, without the jitter.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Endless growing pauses with a jitter. The seed of the jitter is the node's name, so that agents spread out and tests
/// repeat.
pub(super) struct ErrorBackoff {
    builder: ExponentialBuilder,
    pauses: ExponentialBackoff,
}

impl ErrorBackoff {
    pub(super) fn new(node: &NodeName) -> Self {
        let mut seed = [0; 8];
        seed.iter_mut()
            .zip(Sha256::digest(node.as_str()))
            .for_each(|(to, from)| *to = from);
        let builder = ExponentialBuilder::new()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(u64::from_be_bytes(seed));
        Self {
            builder,
            pauses: builder.build(),
        }
    }
}

impl Iterator for ErrorBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.pauses.next()
    }
}

impl Backoff for ErrorBackoff {
    fn reset(&mut self) {
        self.pauses = self.builder.build();
    }
}
