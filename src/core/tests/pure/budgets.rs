//! A PodDisruptionBudget that refuses the eviction of a stuck pod: it is named with its numbers, and the policy says what becomes of
//! the pod.

use super::walk::{ALL, QUIET, Walk, change, plan};
use jiff::SignedDuration;
use reattach_core::budget::{BudgetFacts, BudgetLimit, StuckPods, UnhealthyPods};
use reattach_core::check::check;
use reattach_core::fact::{Fact, Source};
use reattach_core::journal::{End, Event, Outcome};
use reattach_core::plan::Allowed;
use reattach_core::run::{Effect, Next};
use reattach_core::steps::StepKind;
use reattach_core::testkit::{Case, OTHER_INSTANCE, OTHER_NODE};

const DELETES: Allowed = Allowed {
    stuck_pods: StuckPods::DeleteByUid { after_seconds: 120 },
    ..ALL
};
const NAMED: &str = "PodDisruptionBudget redis (maxUnavailable 0, disruptionsAllowed 0, currentHealthy 0, desiredHealthy 1)";
const WAY_OUT: &str = "kubectl reattach recover -n default redis-data --runbook scale-to-zero";

fn phantom() -> Case {
    Case::statefulset()
        .holdable()
        .with_node(OTHER_NODE, OTHER_INSTANCE)
}

fn budget() -> BudgetFacts {
    BudgetFacts {
        name: "redis".into(),
        limit: BudgetLimit::MaxUnavailable("0".into()),
        unhealthy: UnhealthyPods::IfHealthyBudget,
        current_healthy: 0,
        desired_healthy: 1,
        disruptions_allowed: 0,
        pods: vec!["pod-1".into()],
    }
}

fn covered() -> Case {
    let mut case = phantom();
    let source = Source::Kubernetes("PodDisruptionBudgets".into());
    case.evidence.budgets = Some(Fact::present(vec![budget()], source, case.now));
    case
}

fn by_the_budget() -> Outcome {
    Outcome::RefusedByBudget {
        why: "Cannot evict pod".into(),
    }
}

/// Runs on for so many seconds, while the budget refuses every eviction. Returns what was said last.
fn refused_for(walk: &mut Walk, seconds: i64) -> Next {
    let until = walk.case.now + SignedDuration::from_secs(seconds);
    loop {
        let said = walk.ask();
        match &said {
            Next::Act(action) if matches!(action.effect, Effect::Release { .. }) => {
                walk.issue(action.clone(), by_the_budget());
            }
            Next::Wait { .. } if walk.case.now < until => walk.pass(1),
            _ => return said,
        }
    }
}

/// A run of this plan up to its first eviction, which the budget refuses.
fn refused_once(allowed: Allowed) -> Walk {
    let mut walk = Walk::with(covered(), QUIET, allowed);
    walk.answer(
        |e| matches!(e, Effect::Release { .. }).then(by_the_budget),
        |_| {},
    );
    walk
}

#[test]
fn kubernetes_rules_for_an_eviction_are_known() {
    let case = phantom();
    let pod = case.evidence.pods.shown().unwrap()[0].clone();
    assert!(pod.is_kept_by(&budget()));
    let table: [(&str, fn(&mut BudgetFacts), bool); 5] = [
        (
            "AlwaysAllow",
            |b| b.unhealthy = UnhealthyPods::AlwaysAllow,
            false,
        ),
        ("a disruption allowed", |b| b.disruptions_allowed = 1, false),
        (
            "as many healthy pods as needed",
            |b| b.current_healthy = 1,
            false,
        ),
        (
            "none needed and none allowed",
            |b| (b.desired_healthy, b.current_healthy) = (0, 0),
            true,
        ),
        (
            "it covers another pod",
            |b| b.pods = vec!["pod-2".into()],
            false,
        ),
    ];
    for (what, alter, refuses) in table {
        let mut budget = budget();
        alter(&mut budget);
        assert_eq!(pod.is_kept_by(&budget), refuses, "{what}");
    }
    let mut ready = pod.clone();
    ready.ready = true;
    let mut always = budget();
    always.unhealthy = UnhealthyPods::AlwaysAllow;
    assert!(ready.is_kept_by(&always), "a Ready pod is not unhealthy");
    let mut pending = pod;
    pending.phase = "Pending".into();
    assert!(!pending.is_kept_by(&budget()));
}

#[test]
fn the_plan_names_a_budget_in_the_way() {
    let without = plan(&phantom(), ALL).unwrap();
    let named = plan(&covered(), ALL).unwrap();
    assert_eq!(without.budgets, []);
    assert_eq!(named.budgets, [budget()]);
    assert_eq!(named.budgets[0].to_string(), NAMED);
    assert_eq!(
        named.hash, without.hash,
        "how many pods are healthy takes no approval away"
    );
    assert_eq!(
        check(&named, covered().evidence.at(covered().now), None),
        []
    );
    let deletes = plan(&covered(), DELETES).unwrap();
    assert_ne!(deletes.hash, named.hash, "an approval covers the deletion");
    let release = &deletes.steps[deletes.find(StepKind::Release).unwrap().index()];
    assert!(
        release.what.contains("refused that for 120 s"),
        "{}",
        release.what
    );
    assert_eq!(release.deadline_seconds, 300 + 120);
}

#[test]
fn an_eviction_that_stays_refused_fails_with_the_way_out() {
    let mut walk = refused_once(ALL);
    match refused_for(&mut walk, 60) {
        Next::Wait { why, .. } => {
            for says in [NAMED, "asks again for 300 s", WAY_OUT] {
                assert!(why.contains(says), "{why}");
            }
        }
        other => panic!("{other:?}"),
    }
    let end = loop {
        match refused_for(&mut walk, 3_600) {
            Next::Done(end) => break end,
            Next::Record(event) => walk.record(event),
            Next::Act(action) => {
                assert!(!matches!(action.effect, Effect::DeletePod { .. }));
                walk.react(&action.effect);
                let detail = "200".into();
                walk.issue(action, Outcome::Applied { detail });
            }
            other => panic!("{other:?}"),
        }
    };
    let End::Failed { why } = end else {
        panic!("{end:?}")
    };
    assert!(why.contains(NAMED) && why.contains(WAY_OUT), "{why}");
}

#[test]
fn a_policy_may_delete_what_a_budget_keeps() {
    let mut walk = refused_once(DELETES);
    let first = walk.case.now;
    match refused_for(&mut walk, 60) {
        Next::Wait { why, .. } => {
            assert!(
                why.contains(NAMED)
                    && why.contains("deletes the pod by its UID once that has lasted 120 s"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    let Next::Act(action) = refused_for(&mut walk, 3_600) else {
        panic!("{}", walk.story())
    };
    assert!(
        matches!(&action.effect, Effect::DeletePod { uid, .. } if uid.as_str() == "pod-1"),
        "{action:?}"
    );
    assert!(
        action.intent.starts_with("delete pod") && action.intent.contains("UID pod-1"),
        "{}",
        action.intent
    );
    assert_eq!(walk.case.now.duration_since(first).as_secs(), 120);
    let end = walk.run(|_, _| {});
    assert_eq!(end, End::Recovered, "{}", walk.story());
    assert!(
        walk.effects
            .iter()
            .any(|e| matches!(e, Effect::DeletePod { .. })),
        "{:?}",
        walk.kinds()
    );
}

#[test]
fn no_pod_is_deleted_once_the_policy_forbids_it() {
    let mut walk = refused_once(DELETES);
    let mandate = walk.case.evidence.mandate.as_mut().unwrap();
    change(mandate, |m| {
        m.ceiling
            .iter_mut()
            .for_each(|c| c.deletes_stuck_pods = false)
    });
    let said = refused_for(&mut walk, 3_600);
    assert!(
        matches!(&said, Next::Record(Event::UnwindStarted { .. })),
        "{said:?}"
    );
}

/// Another leader has another clock.
#[test]
fn a_new_leader_counts_the_refusals_anew() {
    let mut walk = refused_once(DELETES);
    let _ = refused_for(&mut walk, 100);
    walk.term += 1;
    let taken_over = walk.case.now;
    let said = refused_for(&mut walk, 3_600);
    assert!(
        matches!(&said, Next::Act(a) if matches!(a.effect, Effect::DeletePod { .. })),
        "{said:?}"
    );
    assert!(
        walk.case.now.duration_since(taken_over).as_secs() >= 120,
        "{}",
        walk.story()
    );
}

#[test]
fn a_pod_that_is_ready_again_is_not_deleted() {
    let mut walk = refused_once(DELETES);
    let _ = refused_for(&mut walk, 100);
    walk.case = walk.case.clone().pod(|p| p.ready = true);
    let said = refused_for(&mut walk, 3_600);
    assert!(
        !matches!(&said, Next::Act(a) if matches!(a.effect, Effect::DeletePod { .. })),
        "{said:?}"
    );
}
