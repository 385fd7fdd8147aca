//! A plan that a run may go by: of this version's shape, with the content that its hash names.

use super::{PLAN_VERSION, Plan};
use crate::ids::{PlanHash, StepIx};
use crate::journal::{Entry, Event, Outcome};
use std::ops::Deref;

/// A plan whose version and hash were checked. Only [`Plan::sound`] makes one, and nothing changes it afterwards.
///
/// # Expected flow
/// A stored plan is checked at every turn, before anything is done with it: the machine, the gate and the journal take
/// a `SoundPlan` and no [`Plan`].
///
/// # Caveats
/// That the accepted plan has this hash is told by the journal: [`crate::run::State::replay`] compares them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoundPlan(Plan);

/// Why no run may go by a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// Another version of reattach made it.
    #[error(
        "the plan is of version {found}, and this reattach runs plans of version {PLAN_VERSION} only"
    )]
    Version {
        /// The plan's version.
        found: u32,
    },
    /// Its content is not the content that was hashed, shown and approved.
    #[error(
        "the plan was changed after it was made: its content has the hash {content}, and it names {hash}"
    )]
    Edited {
        /// The hash that it names.
        hash: PlanHash,
        /// The hash that its content has.
        content: PlanHash,
    },
}

impl Plan {
    /// Checks version and hash.
    ///
    /// # Errors
    /// [`Unsound`]: nothing may be done by this plan.
    pub fn sound(self) -> Result<SoundPlan, Unsound> {
        // Of another version's plan not even the hash can be computed: fields that this version does not know are gone.
        if self.version != PLAN_VERSION {
            return Err(Unsound::Version {
                found: self.version,
            });
        }
        let content = self.computed_hash();
        if self.hash != content {
            return Err(Unsound::Edited {
                hash: self.hash,
                content,
            });
        }
        Ok(SoundPlan(self))
    }
}

impl Deref for SoundPlan {
    type Target = Plan;

    fn deref(&self) -> &Plan {
        &self.0
    }
}

impl From<SoundPlan> for Plan {
    fn from(sound: SoundPlan) -> Self {
        sound.0
    }
}

/// Whether an effect of this journal may have freed a volume, or may still do so. The answer does not need the plan,
/// which may be unsound: every effect that frees a volume was journaled with the proof that it rests on.
pub fn may_have_freed<'a>(journal: impl IntoIterator<Item = &'a Entry>) -> bool {
    let mut freeing = Vec::new();
    for entry in journal {
        match &entry.event {
            Event::Started {
                step,
                proof: Some(_),
                ..
            } => freeing.push(*step),
            // A definite no of the target, or nothing was sent. "Observed not to have been applied" is no such answer: the
            // request may come late.
            Event::Outcome {
                step,
                outcome:
                    Outcome::NotApplied { .. }
                    | Outcome::RefusedByBudget { .. }
                    | Outcome::Withheld { .. },
            } => {
                if let Some(at) = freeing.iter().rposition(|s| s == step) {
                    freeing.remove(at);
                }
            }
            Event::Accepted { .. }
            | Event::Started { .. }
            | Event::Outcome { .. }
            | Event::Completed { .. }
            | Event::Skipped { .. }
            | Event::UnusedSince { .. }
            | Event::UnwindStarted { .. }
            | Event::Ended { .. } => {}
        }
    }
    !freeing.is_empty()
}

/// What a journal says of orders about the power of machines, one phrase each, as it was journaled: for a person who has
/// to look after them. The answer does not need the plan, which may be unsound: an order to the cloud was journaled with the
/// end of the provider's history, and one that frees a volume with its proof besides.
pub fn power_orders<'a>(journal: impl IntoIterator<Item = &'a Entry>) -> Vec<String> {
    let mut orders: Vec<(StepIx, String, &str)> = Vec::new();
    for entry in journal {
        match &entry.event {
            Event::Started {
                step,
                intent,
                proof: None,
                newest_job: Some(_),
            } => {
                orders.push((*step, intent.clone(), "its outcome is not known"));
            }
            Event::Outcome { step, outcome } => {
                let Some(at) = orders.iter().rposition(|(ordered, ..)| ordered == step) else {
                    continue;
                };
                match outcome {
                    Outcome::NotApplied { .. }
                    | Outcome::RefusedByBudget { .. }
                    | Outcome::Withheld { .. } => {
                        orders.remove(at);
                    }
                    Outcome::Applied { .. } => orders[at].2 = "accepted",
                    Outcome::ObservedApplied { .. } => orders[at].2 = "seen to have been done",
                    Outcome::ObservedNotApplied { .. } => {
                        orders[at].2 = "seen not to have been done"
                    }
                    Outcome::Unknown { .. } | Outcome::Repeatable { .. } => {}
                }
            }
            Event::Accepted { .. }
            | Event::Started { .. }
            | Event::Completed { .. }
            | Event::Skipped { .. }
            | Event::UnusedSince { .. }
            | Event::UnwindStarted { .. }
            | Event::Ended { .. } => {}
        }
    }
    orders
        .into_iter()
        .map(|(_, intent, end)| format!("{intent} ({end})"))
        .collect()
}
