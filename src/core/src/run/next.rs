//! The way forward: the current step's precondition, effect, end condition and deadline.

use super::pace::later;
use super::{Action, Next, RunCx, StepState};
use crate::diagnosis::{Verdict, diagnose};
use crate::journal::{End, Event, Outcome, UnwindReason};
use crate::loss::PodsGo;
use crate::plan::{Accepting, PlannedStep, losses};
use crate::steps::{StepCx, StepKind};
use jiff::SignedDuration;

impl RunCx<'_> {
    /// The next thing on the way forward. Before each effect policy, rights and approval are read again with the other evidence, so
    /// that a run whose mandate was withdrawn unwinds.
    pub(super) fn next_forward(self) -> Next {
        let step = self
            .state
            .current()
            .and_then(|ix| self.plan.steps.get(ix.index()))
            .map(|s| s.kind);
        // What only puts back, or looks, needs no word.
        if step.is_none_or(|kind| kind.spec().needs_no_mandate()) {
            return self.next_of_step();
        }
        let doubt = match self.evidence.mandate() {
            Ok(mandate) => match mandate.may_act(&self.plan.hash) {
                Ok(()) => return self.next_of_step(),
                Err(denial) if !denial.may_pass() => {
                    return Next::Record(Event::UnwindStarted {
                        why: UnwindReason::Denied { denial },
                    });
                }
                Err(denial) => denial.to_string(),
            },
            Err(why) => {
                format!("whether policy and approval allow this recovery is not known ({why})")
            }
        };
        match self.next_of_step() {
            // None of these steps has an effect that puts back.
            Next::Act(_) => self.poll(&doubt),
            other => other,
        }
    }

    /// The next thing on the way forward, whatever the mandate says.
    fn next_of_step(self) -> Next {
        let Some(ix) = self.state.current() else {
            return Next::Record(Event::Ended {
                end: End::Recovered,
            });
        };
        let Some(look) = self.step(ix) else {
            return Next::Record(Event::Ended {
                end: End::Recovered,
            });
        };
        let over = look
            .identity_lost()
            .or_else(|| look.nothing_wrong())
            .or_else(|| look.machine_is_back());
        if over.is_none()
            && let Some(spared) = look.node_is_spared()
        {
            return spared;
        }
        let proposal = match over.unwrap_or_else(|| look.next()) {
            Next::Act(action) => look.unless_lost(action),
            other => other,
        };
        look.within_deadline(proposal)
    }
}

impl StepCx<'_> {
    /// S2: an effect by which pods go away is not issued while something would be lost with them. Asked for by the effect,
    /// and so for each step that has one, from the evidence that was read for it.
    fn unless_lost(&self, action: Action) -> Next {
        let going = self
            .plan
            .steps
            .get(action.step.index())
            .map_or(PodsGo::None, |s| s.kind.spec().pods_go);
        let accepting = Accepting::Planned(&self.plan.losses);
        let lost = losses(self.evidence, &self.plan.pins.node, going, accepting);
        match lost.iter().find(|r| !r.may_pass()).or(lost.first()) {
            None => Next::Act(action),
            Some(refusal) if refusal.may_pass() => self.poll(&refusal.to_string()),
            Some(refusal) => self.refused(&refusal.to_string()),
        }
    }

    /// S5: a step that can only wait, past its deadline, turns the run back. Time in which nobody could act does not count.
    fn within_deadline(&self, proposal: Next) -> Next {
        let deadline = later(
            self.entered,
            SignedDuration::from_secs(self.step.deadline_seconds.into())
                .saturating_add(self.cx.unattended),
        );
        let (why, until) = match proposal {
            Next::Wait { why, until } => (why, until),
            // An executor that was away starts nothing on an old decision. Restoring is never too late.
            Next::Act(_) if self.cx.now >= deadline && self.step.kind.spec().starts_work => {
                let refused = match self.state.step(self.ix) {
                    StepState::Issued {
                        outcome: Outcome::NotApplied { why, .. },
                        ..
                    } => why.clone(),
                    StepState::Issued {
                        outcome: Outcome::RefusedByBudget { why },
                        ..
                    } => self.budget_refuses(why),
                    StepState::Issued {
                        outcome: Outcome::Withheld { shut },
                        ..
                    } => shut.to_string(),
                    _ => "it was never started".to_owned(),
                };
                (refused, deadline)
            }
            other => return other,
        };
        if self.cx.now < deadline {
            return Next::Wait {
                why,
                until: until.min(deadline),
            };
        }
        let seconds = self.step.deadline_seconds.into();
        // After PowerOn the volume is free; a machine that stays off is somebody's business and no reason to fail.
        if self.step.best_effort || self.step.kind == StepKind::PowerOn {
            return self.skipped(&format!("not done within {seconds} s: {why}"));
        }
        if self.step.kind == StepKind::Verify {
            // The workload is restored already: there is nothing to put back, only someone to tell.
            let why = format!(
                "the workload was restored and its pod is not Ready after {seconds} s: {why}"
            );
            return Next::Record(Event::Ended {
                end: End::Failed { why },
            });
        }
        Next::Record(Event::UnwindStarted {
            why: UnwindReason::Deadline {
                step: self.ix,
                seconds,
                waiting_for: why,
            },
        })
    }

    /// An order that begins by waiting is over when there is nothing wrong any more: all that follows is skipped.
    fn nothing_wrong(&self) -> Option<Next> {
        let patient = |s: &PlannedStep| matches!(s.kind, StepKind::Await | StepKind::Requeue);
        if self.state.touched() || !self.plan.steps.first().is_some_and(patient) {
            return None;
        }
        let verdict = diagnose(self.evidence).verdict;
        let Verdict::Healthy { .. } = verdict else {
            return None;
        };
        Some(if self.step.kind == StepKind::Verify {
            self.completed(&verdict.to_string())
        } else {
            self.skipped(&verdict.to_string())
        })
    }
}
