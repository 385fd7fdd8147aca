//! An order that begins by waiting for healing.

use reattach_core::fact::{Fact, Source};
use reattach_core::journal::{Entry, Mark, TurnBack};
use reattach_core::machine::{Context, Next, State, next};
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_core::testkit::Case;

/// A node that comes back: its volume is attached anew, and the machine has not found the device yet.
#[test]
fn a_device_that_is_not_there_yet_is_no_other_trouble() {
    let mut dead = Case::deployment().holdable().node(|n| n.ready = false);
    let source = Source::Kubernetes("Pods".to_owned());
    let (node, now) = (dead.evidence.nodes.keys().next().expect("a node").clone(), dead.now);
    dead.evidence.node_pods.insert(node, Fact::present(Vec::new(), source, now));
    let plan = dead.plan_by(DEFAULT_RUNBOOK, None, false).expect("a plan for class A");
    let accepted = Mark::Accepted { plan_hash: plan.hash.to_string(), authority: "test".to_owned() };
    let first = Entry { seq: 0, at: now, term: 1, by: "test".to_owned(), mark: accepted };
    let state = State::replay(&plan, &[first]).expect("a journal");
    let look = |case: &Case| {
        let uid = Case::recovery();
        let cx = Context { recovery: &uid, aborted_by: None, confirm_workload: None, now };
        next(&plan, &state, &case.evidence, &cx)
    };
    let unasked = look(&Case::deployment().holdable().unasked());
    assert!(matches!(unasked, Next::Wait { .. }), "{unasked:?}");
    let asked = look(&Case::deployment().holdable());
    let changed = matches!(&asked, Next::Record(Mark::TurnedBack { why: TurnBack::Refused { why, .. } }) if why.contains("class B"));
    assert!(changed, "{asked:?}");
}
