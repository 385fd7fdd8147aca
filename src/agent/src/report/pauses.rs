//! Pauses after errors.

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use kube::runtime::utils::Backoff;
use reattach_core::ids::NodeName;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// First and longest pause after an error.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(30));

/// Growing pauses with a jitter that is seeded by the node's name: agents spread out, and each repeats itself.
/// They never come to an end.
pub(super) struct Pauses {
    builder: ExponentialBuilder,
    pauses: ExponentialBackoff,
}

impl Pauses {
    pub(super) fn new(node: &NodeName) -> Self {
        let mut seed = [0; 8];
        seed.iter_mut().zip(Sha256::digest(node.as_str())).for_each(|(to, from)| *to = from);
        let builder = ExponentialBuilder::new()
            .with_min_delay(BACKOFF.0)
            .with_max_delay(BACKOFF.1)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(u64::from_be_bytes(seed));
        Self { builder, pauses: builder.build() }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.pauses.next()
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.pauses = self.builder.build();
    }
}
