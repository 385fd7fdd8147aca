//! Whether a plan's run may begin now, or waits for a proof that only others can bring about.

use super::Plan;
use crate::evidence::Evidence;
use crate::safety::Refusal;
use jiff::Timestamp;

/// Whether the run of this plan may begin.
///
/// # Errors
/// The refusal to wait for: no step of the plan can bring about the proof that it needs, and there is none yet.
pub fn may_begin(_plan: &Plan, _evidence: &Evidence, _now: Timestamp) -> Result<(), Refusal> {
    Ok(())
}
