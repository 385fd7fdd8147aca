//! The runbook that holds, releases and lifts: nothing is scaled, nothing stays held.

use super::run::{Faults, Reply, Run};
use super::world::World;
use reattach_core::check::{Rule, check};
use reattach_core::fact::Fact;
use reattach_core::journal::{End, Event};
use reattach_core::plan::Refusal;
use reattach_core::runbook::Holding;
use reattach_core::steps::StepKind;
use reattach_core::testkit::Case;

fn run(stuck: bool, faults: Faults) -> Run {
    Run::new(World::held_by_gate(stuck), faults)
}

fn lines(stuck: bool) -> usize {
    let mut run = run(stuck, Faults::default());
    run.drive(3_600);
    run.journal.len()
}

fn assert_nothing_held(run: &Run, what: &str) {
    assert!(!run.world.hold, "{what}: the label is on\n{}", run.story());
    assert!(
        !run.world.pod.as_ref().is_some_and(|p| p.gated),
        "{what}: a pod is gated\n{}",
        run.story()
    );
    assert_eq!(run.world.replicas, 1, "{what}: scaled\n{}", run.story());
}

#[test]
fn a_planned_hold_takes_three_effects_and_no_cloud_call() {
    let mut run = run(false, Faults::default());
    run.assert_recovered("as planned", 0);
    assert_eq!(run.effects, 3, "hold, release, lift\n{}", run.story());
    assert_nothing_held(&run, "as planned");
    assert!(run.world.now < 40, "{} s\n{}", run.world.now, run.story());
}

#[test]
fn a_failing_driver_gets_one_proven_cloud_detach() {
    let mut run = run(true, Faults::default());
    run.assert_recovered("stuck unpublish", 1);
    assert_eq!(run.world.detaches, 1);
    assert!(
        run.has(|m| matches!(m, Event::Started { proof: Some(_), .. })),
        "the proof is journaled"
    );
    assert_nothing_held(&run, "stuck unpublish");
}

#[test]
fn a_crash_at_any_line_or_effect_is_survived() {
    for stuck in [false, true] {
        for n in 1..=lines(stuck) {
            let mut run = run(
                stuck,
                Faults {
                    crash_after: vec![n],
                    ..Faults::default()
                },
            );
            run.assert_recovered(&format!("crash after line {n}, stuck {stuck}"), 1);
            assert_nothing_held(&run, "after a crash");
        }
        for n in 1..=4 {
            let mut run = run(
                stuck,
                Faults {
                    crash_between: vec![n],
                    ..Faults::default()
                },
            );
            run.assert_recovered(&format!("crash after effect {n}, stuck {stuck}"), 1);
            assert_nothing_held(&run, "after a crash");
        }
    }
}

#[test]
fn a_lost_reply_is_observed() {
    for reply in [
        Reply::LostBefore,
        Reply::LostAfter,
        Reply::Busy,
        Reply::Shut,
    ] {
        for n in 1..=4 {
            let mut run = run(
                true,
                Faults {
                    replies: vec![(n, reply)],
                    ..Faults::default()
                },
            );
            run.assert_recovered(&format!("{reply:?} at effect {n}"), 1);
            assert_nothing_held(&run, "after a lost reply");
        }
    }
}

#[test]
fn an_abort_at_any_line_lifts_the_hold() {
    for stuck in [false, true] {
        for n in 1..lines(stuck) {
            let mut run = run(
                stuck,
                Faults {
                    abort_after: Some(n),
                    ..Faults::default()
                },
            );
            let end = run.drive(3_600);
            assert!(
                matches!(end, Some(End::Aborted | End::Recovered)),
                "abort after line {n}: {end:?}\n{}",
                run.story()
            );
            assert_nothing_held(&run, &format!("abort after line {n}, stuck {stuck}"));
        }
    }
}

#[test]
fn a_refused_release_unwinds_and_lifts_the_hold() {
    let mut run = run(
        false,
        Faults {
            replies: vec![(2, Reply::Refused)],
            ..Faults::default()
        },
    );
    let end = run.drive(3_600);
    assert!(
        matches!(&end, Some(End::Failed { why }) if why.contains("forbidden")),
        "{end:?}"
    );
    assert_nothing_held(&run, "refused");
}

#[test]
fn a_blocking_disruption_budget_is_named_at_the_deadline() {
    let replies = (2..60).map(|n| (n, Reply::Busy)).collect();
    let mut run = run(
        false,
        Faults {
            replies,
            ..Faults::default()
        },
    );
    let end = run.drive(3_600);
    assert!(
        matches!(&end, Some(End::Failed { why }) if why.contains("busy") && why.contains("300 s")),
        "{end:?}"
    );
    assert_nothing_held(&run, "refused for ever");
}

/// Only a cluster that is known to have no policy gets its node closed, and only for pods that a taint keeps away.
#[test]
fn a_cluster_without_the_policy_closes_the_node() {
    let mut case = Case::deployment().holdable();
    let refusals = |case: &Case| {
        case.plan_by("lightest-first", None, false)
            .err()
            .unwrap_or_default()
    };
    let by_gate = case.plan_by("lightest-first", None, false).expect("a plan");
    assert!(!by_gate.closes_node);
    let fact = case.evidence.hold_policy.take().expect("the policy");
    assert!(
        matches!(refusals(&case)[..], [Refusal::Missing { .. }]),
        "not asked is no answer"
    );
    case.evidence.hold_policy = Some(Fact::unknown("503", fact.source.clone(), fact.at));
    assert!(
        matches!(refusals(&case)[..], [Refusal::Missing { .. }]),
        "no answer is none either"
    );

    case.evidence.hold_policy = Some(Fact::absent(fact.source, fact.at));
    let mut plan = case.plan_by("lightest-first", None, false).expect("a plan");
    assert!(plan.closes_node);
    assert_eq!(plan.holding(), Holding::ByTaint);
    assert_eq!(
        plan.find(StepKind::CloudDetach),
        None,
        "pods may start elsewhere"
    );
    assert_eq!(check(&plan, case.evidence.at(case.now), None), []);
    assert!(
        plan.steps[0].what.contains("off lke-1 by a taint"),
        "{}",
        plan.steps[0].what
    );
    assert!(
        plan.steps[0].command.contains("hold.reattach.dev/"),
        "{}",
        plan.steps[0].command
    );

    // The checker would not let a cloud detach pass here, nor this plan on pods that a taint does not keep away.
    let detach = by_gate
        .steps
        .iter()
        .find(|s| s.kind == StepKind::CloudDetach)
        .expect("the step");
    plan.steps.insert(3, detach.clone());
    plan.hash = plan.computed_hash();
    let found = check(&plan, case.evidence.at(case.now), None);
    assert!(
        found
            .iter()
            .any(|v| v.rule() == Rule::S1 && v.to_string().contains("other nodes")),
        "{found:?}"
    );
    let all = "its pods tolerate every taint".to_owned();
    let case = case.workload(|w| w.template.ignores_taints = Some(all.clone()));
    let workload = "Deployment default/redis".to_owned();
    assert_eq!(
        refusals(&case),
        [Refusal::IgnoresTaints { workload, why: all }]
    );
    plan.steps.remove(3);
    plan.hash = plan.computed_hash();
    let found = check(&plan, case.evidence.at(case.now), None);
    assert!(
        found
            .iter()
            .any(|v| v.to_string().contains("would not keep")),
        "{found:?}"
    );
}

/// A record whose node may be gone cannot be held by a taint on it.
#[test]
fn classes_that_need_the_policy_are_refused_without_it() {
    for case in [super::walk::detach_error(), super::walk::orphan()] {
        let refused = super::walk::plan(&super::walk::without_policy(case), super::walk::ALL);
        assert_eq!(refused.err().unwrap_or_default(), [Refusal::NoHoldPolicy]);
    }
}

#[test]
fn a_hold_ignores_replicas_and_their_owners() {
    let case = Case::statefulset().holdable().workload(|w| {
        w.replicas = 3;
        w.deletes_claims_when_scaled = true;
    });
    let plan = case.plan_by("lightest-first", None, false).expect("a plan");
    assert_eq!(
        reattach_core::check::check(&plan, case.evidence.at(case.now), None),
        []
    );
    assert!(
        case.plan().is_err(),
        "the founding runbook refuses the same"
    );
}
