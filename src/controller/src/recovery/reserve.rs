//! S7 and S4: how much may be under way at once, and one recovery per claim.

use super::Limits;
use reattach_core::ids::ObjectName;
use reattach_core::plan::Refusal;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The runs that this process has begun or is about to. The cache shows a run only a moment after it began, so that
/// drivers which decide at the same moment must count each other here.
#[derive(Clone, Debug, Default)]
pub struct Reservations {
    places: Arc<Mutex<BTreeMap<ObjectName, Place>>>,
    questions: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone, Debug)]
struct Place {
    claim: ObjectName,
    node: String,
    /// The run has changed nothing and waits, so that it takes nothing of the budgets.
    waits: bool,
}

/// Why a run may not begin now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotNow {
    /// A budget is spent.
    #[error(transparent)]
    Budget(Refusal),
    /// Another recovery of the same claim is under way.
    #[error("recovery {0} of the same claim goes first")]
    Rival(ObjectName),
}

impl Reservations {
    /// Reserves a place for a run, or says why there is none.
    pub(super) fn take(
        &self,
        name: &ObjectName,
        claim: &ObjectName,
        node: &str,
        limits: &Limits,
    ) -> Result<(), NotNow> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let others = || places.iter().filter(|(n, _)| *n != name);
        let rival = others()
            .find(|(_, p)| p.claim == *claim)
            .map(|(n, _)| n.clone())
            .or_else(|| limits.rival.clone());
        if let Some(rival) = rival {
            return Err(NotNow::Rival(rival));
        }
        let mut busy: BTreeMap<&ObjectName, &str> = limits
            .running
            .iter()
            .map(|(n, node)| (n, node.as_str()))
            .collect();
        for (other, place) in others() {
            if place.waits {
                busy.remove(other);
            } else {
                busy.insert(other, &place.node);
            }
        }
        busy.remove(name);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (running, here) = (
            count(busy.len()),
            count(busy.values().filter(|n| **n == node).count()),
        );
        let over = |scope: String, running, limit| {
            Err(NotNow::Budget(Refusal::Budget {
                scope,
                running,
                limit,
            }))
        };
        if running >= limits.budgets.cluster {
            return over("in the cluster".to_owned(), running, limits.budgets.cluster);
        }
        if here >= limits.budgets.node {
            return over(format!("on node {node}"), here, limits.budgets.node);
        }
        places.insert(
            name.clone(),
            Place {
                claim: claim.clone(),
                node: node.to_owned(),
                waits: false,
            },
        );
        Ok(())
    }

    /// A run that has changed nothing waits: the budgets are about disruption, so it takes nothing of them until it takes a place
    /// anew for its first effect. No other run of its claim begins meanwhile.
    pub(super) fn waits(&self, name: &ObjectName, claim: &ObjectName, node: &str) {
        self.places
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(
                name.clone(),
                Place {
                    claim: claim.clone(),
                    node: node.to_owned(),
                    waits: true,
                },
            );
    }

    /// Gives the place back.
    pub(super) fn give_back(&self, name: &ObjectName) {
        self.places
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
    }

    /// The turn to change what agents are asked. All drivers change the one report of a node by compare-and-swap: many at
    /// once would only refuse each other, and keep the agent from writing its answers.
    pub(crate) async fn turn_to_ask(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.questions.lock().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reattach_api::Budgets;

    fn name(n: &str) -> ObjectName {
        ObjectName::new("ns", n)
    }

    #[test]
    fn drivers_that_decide_at_once_count_each_other() {
        let places = Reservations::default();
        let limits = Limits {
            budgets: Budgets {
                cluster: 3,
                node: 2,
            },
            ..Limits::default()
        };
        assert_eq!(
            places.take(&name("r1"), &name("c1"), "node-1", &limits),
            Ok(())
        );
        assert_eq!(
            places.take(&name("r1"), &name("c1"), "node-1", &limits),
            Ok(()),
            "its own place does not count"
        );
        assert_eq!(
            places.take(&name("r2"), &name("c1"), "node-1", &limits),
            Err(NotNow::Rival(name("r1")))
        );
        assert_eq!(
            places.take(&name("r3"), &name("c3"), "node-1", &limits),
            Ok(())
        );
        let full = places
            .take(&name("r4"), &name("c4"), "node-1", &limits)
            .expect_err("two on the node");
        assert!(
            full.to_string()
                .contains("on node node-1 and the budget is 2"),
            "{full}"
        );
        assert_eq!(
            places.take(&name("r5"), &name("c5"), "node-2", &limits),
            Ok(())
        );
        let full = places
            .take(&name("r6"), &name("c6"), "node-3", &limits)
            .expect_err("three in the cluster");
        assert!(
            full.to_string()
                .contains("in the cluster and the budget is 3"),
            "{full}"
        );
        places.give_back(&name("r1"));
        assert_eq!(
            places.take(&name("r6"), &name("c1"), "node-3", &limits),
            Ok(())
        );
    }

    #[test]
    fn a_run_that_only_waits_takes_no_budget() {
        let places = Reservations::default();
        let limits = Limits {
            budgets: Budgets {
                cluster: 1,
                node: 1,
            },
            // As the watch shows both once they have begun.
            running: vec![
                (name("r1"), "node-1".to_owned()),
                (name("r2"), "node-1".to_owned()),
            ],
            ..Limits::default()
        };
        let take = |r: &str, c: &str| places.take(&name(r), &name(c), "node-1", &limits);
        places.waits(&name("r1"), &name("c1"), "node-1");
        assert_eq!(take("r2", "c2"), Ok(()));
        assert_eq!(take("r3", "c1"), Err(NotNow::Rival(name("r1"))));
        assert!(
            matches!(take("r1", "c1"), Err(NotNow::Budget(_))),
            "its first effect waits for a place"
        );
        places.give_back(&name("r2"));
        assert!(
            matches!(take("r1", "c1"), Err(NotNow::Budget(_))),
            "the watch still shows the other one"
        );
        places.waits(&name("r2"), &name("c2"), "node-1");
        assert_eq!(take("r1", "c1"), Ok(()));
        assert!(matches!(take("r2", "c2"), Err(NotNow::Budget(_))));
    }

    #[test]
    fn runs_of_another_process_count_too() {
        let running = vec![(name("other"), "node-1".to_owned())];
        let limits = Limits {
            budgets: Budgets {
                cluster: 9,
                node: 1,
            },
            running,
            ..Limits::default()
        };
        assert!(matches!(
            Reservations::default().take(&name("r"), &name("c"), "node-1", &limits),
            Err(NotNow::Budget(_))
        ));
        assert_eq!(
            Reservations::default().take(&name("other"), &name("c"), "node-1", &limits),
            Ok(())
        );
    }
}
