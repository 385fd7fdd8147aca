//! A plan and the second look at it, in one: nobody gets the one without the other.

use super::{Plan, Request, SoundPlan, make};
use crate::check::{Violation, check};
use crate::diagnosis::Diagnosis;
use crate::evidence::EvidenceAt;
use crate::plan::Refusal;

/// Makes the plan for a diagnosis of one of the five classes and has the independent checker look at it.
///
/// # Errors
/// Every refusal of the planner; or [`Refusal::Vetoed`] where the checker objects to what the planner made.
pub fn make_vetted(
    evidence: EvidenceAt<'_>,
    diagnosis: &Diagnosis,
    request: &Request<'_>,
) -> Result<SoundPlan, Vec<Refusal>> {
    make(evidence, diagnosis, request)?.vetted(evidence, request.confirm_workload)
}

impl Plan {
    /// Has the independent checker look at the plan. `confirmed` is the workload that a person named, as `Kind/name`.
    ///
    /// # Errors
    /// [`Refusal::Vetoed`]: nothing may be done by this plan.
    pub fn vetted(
        self,
        evidence: EvidenceAt<'_>,
        confirmed: Option<&str>,
    ) -> Result<SoundPlan, Vec<Refusal>> {
        let violations = check(&self, evidence, confirmed);
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
