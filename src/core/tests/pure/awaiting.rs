//! An order that begins by waiting for healing.

use jiff::{SignedDuration, Timestamp};
use reattach_core::fact::{Fact, Source};
use reattach_core::ids::StepIx;
use reattach_core::journal::{Entry, Event, UnwindReason};
use reattach_core::plan::SoundPlan;
use reattach_core::run::{Context, Next, State, next};
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_core::steps::StepKind;
use reattach_core::testkit::Case;

/// A plan for class A, and when it was made.
fn for_a_dead_node() -> (SoundPlan, Timestamp) {
    let mut dead = Case::deployment().holdable().node(|n| n.ready = false);
    let source = Source::Kubernetes("Pods".to_owned());
    let (node, now) = (
        dead.evidence.nodes.keys().next().expect("a node").clone(),
        dead.now,
    );
    dead.evidence
        .node_losses
        .insert(node.clone(), Fact::present(Vec::new(), source.clone(), now));
    dead.evidence
        .node_pods
        .insert(node.clone(), Fact::present(Vec::new(), source, now));
    dead = dead.alone_down(node.as_str());
    (
        dead.plan_by(DEFAULT_RUNBOOK, None, false)
            .expect("a plan for class A")
            .sound()
            .expect("its hash"),
        now,
    )
}

/// What follows the first lines of a journal, all of which are of the moment `at`.
pub fn after(plan: &SoundPlan, events: Vec<Event>, case: &Case, at: Timestamp) -> Next {
    let accepted = Event::Accepted {
        plan_hash: plan.hash.to_string(),
        authority: "test".to_owned(),
    };
    let lines = [accepted].into_iter().chain(events).zip(0..);
    let journal: Vec<Entry> = lines
        .map(|(event, seq)| Entry {
            seq,
            at,
            term: 1,
            by: "test".to_owned(),
            event,
        })
        .collect();
    let state = State::replay(plan, &journal).expect("a journal");
    let uid = Case::recovery();
    let cx = Context {
        recovery: &uid,
        aborted_by: None,
        confirm_workload: None,
        term: 1,
        nothing_under_way: None,
        withdrawn: None,
        unattended: SignedDuration::ZERO,
        now: case.now,
    };
    next(plan, &state, &case.evidence, &cx)
}

fn turns_back(next: &Next, because: &str) -> bool {
    matches!(next, Next::Record(Event::UnwindStarted { why: UnwindReason::Refused { why, .. } }) if why.contains(because))
}

/// The cloud's watchdog boots it: no proof will come, and the node's lock must not be kept until the step's deadline.
#[test]
fn a_recovered_node_ends_the_wait_for_its_proof() {
    let (plan, now) = for_a_dead_node();
    let waited = Event::Skipped {
        step: plan.find(StepKind::Await).expect("a step"),
        why: "patience".to_owned(),
    };
    let back = after(
        &plan,
        vec![waited.clone()],
        &Case::deployment().holdable(),
        now,
    );
    assert!(turns_back(&back, "is Ready again"), "{back:?}");
    let gone = after(
        &plan,
        vec![waited],
        &Case::deployment().holdable().node(|n| n.ready = false),
        now,
    );
    assert!(matches!(gone, Next::Wait { .. }), "{gone:?}");
}

/// What healed by itself needs none of the steps, and nobody may read that they were done.
#[test]
fn an_unneeded_order_is_skipped_with_its_waits() {
    let (plan, now) = for_a_dead_node();
    let healed = Case::deployment().holdable().device_in_use().pod_ready();
    let mut events = Vec::new();
    for (step, planned) in (0..).map(StepIx).zip(&plan.steps) {
        match after(&plan, events.clone(), &healed, now) {
            Next::Record(Event::Completed { step: done, .. })
                if planned.kind == StepKind::Verify =>
            {
                assert_eq!(done, step);
            }
            Next::Record(event @ Event::Skipped { .. }) if planned.kind != StepKind::Verify => {
                events.push(event)
            }
            other => panic!("{:?}: {other:?}", planned.kind),
        }
    }
    assert_eq!(events.len() + 1, plan.steps.len());
}

/// A node that comes back: its volume is attached anew, and the machine has not found the device yet.
#[test]
fn a_device_not_yet_present_keeps_the_fingerprint() {
    let (plan, now) = for_a_dead_node();
    let unasked = after(
        &plan,
        Vec::new(),
        &Case::deployment().holdable().unasked(),
        now,
    );
    assert!(matches!(unasked, Next::Wait { .. }), "{unasked:?}");
    let asked = after(&plan, Vec::new(), &Case::deployment().holdable(), now);
    assert!(turns_back(&asked, "class B"), "{asked:?}");
}
