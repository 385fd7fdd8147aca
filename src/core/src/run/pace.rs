//! How long the machine waits, and how it says so.

use super::Next;
use jiff::{SignedDuration, Timestamp};

/// How long a write to Kubernetes, or an order of a snapshot, is waited for after its reply was lost: the client's own limit
/// (30 s) and as much again for proxies. No safety rests on it: what lands later is conditional on UID and version, and the
/// janitor takes it away again. An order that frees a volume or changes an instance's power has no such limit.
pub(crate) const IN_FLIGHT: SignedDuration = SignedDuration::from_secs(60);
/// How often the cloud is looked at while waiting for it.
pub(crate) const CLOUD_POLL: SignedDuration = SignedDuration::from_secs(1);
/// A busy cloud is asked again after so long.
pub(crate) const BUSY: SignedDuration = SignedDuration::from_secs(5);
/// A write that was refused is tried again after so long.
pub(crate) const RETRY: SignedDuration = SignedDuration::from_secs(1);
/// The pause between two tries never grows beyond this.
const LONGEST_RETRY: SignedDuration = SignedDuration::from_secs(60);

/// How long to pause after the last of so many tries.
pub(crate) fn backoff(attempts: u32) -> SignedDuration {
    let factor = 1_i32
        .checked_shl(attempts.saturating_sub(1).min(6))
        .unwrap_or(1);
    RETRY.saturating_mul(factor).min(LONGEST_RETRY)
}

/// `at + by`, without a panic at the end of time.
pub(crate) fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

pub(crate) fn wait(why: String, until: Timestamp) -> Next {
    Next::Wait { why, until }
}
