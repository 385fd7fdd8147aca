//! A plan and the second look at it, in one: nobody gets the one without the other.

use super::{Plan, Request, SoundPlan, make};
use crate::check::{Violation, check};
use crate::diagnosis::Diagnosis;
use crate::evidence::Evidence;
use crate::plan::Refusal;
use jiff::Timestamp;

/// Makes the plan for a diagnosis of one of the five classes and has the independent checker look at it.
///
/// # Errors
/// Every refusal of the planner; or [`Refusal::Vetoed`] where the checker objects to what the planner made.
pub fn make_vetted(
    evidence: &Evidence,
    diagnosis: &Diagnosis,
    request: &Request<'_>,
    now: Timestamp,
) -> Result<SoundPlan, Vec<Refusal>> {
    make(evidence, diagnosis, request, now)?.vetted(evidence, request.confirm_workload, now)
}

impl Plan {
    /// Has the independent checker look at the plan. `confirmed` is the workload that a person named, as `Kind/name`.
    ///
    /// # Errors
    /// [`Refusal::Vetoed`]: nothing may be done by this plan.
    pub fn vetted(
        self,
        evidence: &Evidence,
        confirmed: Option<&str>,
        now: Timestamp,
    ) -> Result<SoundPlan, Vec<Refusal>> {
        let violations = check(&self, evidence, confirmed, now);
        if !violations.is_empty() {
            return Err(vec![Refusal::Vetoed { violations }]);
        }
        self.sound().map_err(|unsound| {
            vec![Refusal::Vetoed {
                violations: vec![Violation::from(unsound)],
            }]
        })
    }
}
