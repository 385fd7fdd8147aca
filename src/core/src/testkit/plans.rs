//! What a case is diagnosed as, and the plans for it.

use super::{Case, kubernetes};
use crate::diagnosis::{Diagnosis, diagnose};
use crate::fact::Fact;
use crate::hold::HOLD_POLICY;
use crate::plan::Refusal;
use crate::plan::{Commands, Plan, Request, make};
use crate::runbook::{Runbook, SCALE_TO_ZERO};

impl Case {
    /// The diagnosis.
    pub fn diagnosis(&self) -> Diagnosis {
        diagnose(self.evidence.at(self.now))
    }

    /// The plan by the founding runbook, for execution.
    ///
    /// # Errors
    /// The refusals.
    pub fn plan(&self) -> Result<Plan, Vec<Refusal>> {
        self.plan_as(None, false)
    }

    /// The plan by the founding runbook, with the workload that a person named; `for_show` as in [`Request`].
    ///
    /// # Errors
    /// The refusals.
    pub fn plan_as(
        &self,
        confirm_workload: Option<&str>,
        for_show: bool,
    ) -> Result<Plan, Vec<Refusal>> {
        self.plan_by(SCALE_TO_ZERO, confirm_workload, for_show)
    }

    /// The same on a cluster that can hold pods away by admission.
    pub fn holdable(mut self) -> Self {
        let source = kubernetes("MutatingAdmissionPolicyBinding reattach-hold");
        self.evidence.hold_policy = Some(Fact::present(HOLD_POLICY.to_owned(), source, self.now));
        self
    }

    /// The plan by any built-in runbook.
    ///
    /// # Errors
    /// The refusals.
    pub fn plan_by(
        &self,
        runbook: &str,
        confirm_workload: Option<&str>,
        for_show: bool,
    ) -> Result<Plan, Vec<Refusal>> {
        let runbook = Runbook::built_in(runbook).unwrap_or_else(|e| panic!("testkit: {e}"));
        let request = Request {
            runbook: &runbook,
            confirm_workload,
            commands: Commands {
                detach: "linode-cli volumes detach 5551",
                ..Commands::default()
            },
            for_show,
            allowed: Default::default(),
        };
        self.plan_for(&request)
    }

    /// The plan for this request, without the checker's look at it.
    ///
    /// # Errors
    /// The refusals.
    pub fn plan_for(&self, request: &Request<'_>) -> Result<Plan, Vec<Refusal>> {
        make(self.evidence.at(self.now), &self.diagnosis(), request)
    }
}
