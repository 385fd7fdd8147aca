//! A plan and the checker's look at it: a veto is a refusal that no waiting removes, with what is broken as data.

use super::walk::{ALL, dead_node, detach_error, orphan, plan};
use reattach_core::check::{Rule, Violation};
use reattach_core::plan::Refusal;
use reattach_core::plan::{Commands, PLAN_VERSION, Plan, Request, make_vetted};
use reattach_core::runbook::Runbook;
use reattach_core::steps::StepKind;
use reattach_core::testkit::Case;

fn vetted(case: &Case) -> Result<Plan, Vec<Refusal>> {
    let runbook = Runbook::built_in("lightest-first").unwrap();
    let request = Request {
        runbook: &runbook,
        confirm_workload: None,
        commands: Commands::default(),
        for_show: false,
        allowed: ALL,
    };
    make_vetted(case.evidence.at(case.now), &case.diagnosis(), &request).map(Plan::from)
}

/// The only refusal, which is a veto.
fn veto(refused: Result<impl Sized, Vec<Refusal>>) -> (Refusal, Vec<Violation>) {
    let refusals = refused.err().unwrap();
    let [refusal @ Refusal::Vetoed { violations }] = &refusals[..] else {
        panic!("{refusals:?}")
    };
    (refusal.clone(), violations.clone())
}

#[test]
fn a_plan_without_violations_is_returned_unchanged() {
    for case in [dead_node(), detach_error(), orphan()] {
        assert_eq!(vetted(&case), plan(&case, ALL));
    }
}

/// The planner knows medik8s' taints by name and the checker by their domain, so they disagree about this one.
#[test]
fn a_vetoed_plan_is_a_lasting_refusal_and_our_fault() {
    let taint = "remediation.medik8s.io/another".to_owned();
    let case = detach_error().node(|n| n.taints.push(taint.clone()));
    assert!(plan(&case, ALL).is_ok(), "the planner has no objection");
    let (refusal, violations) = veto(vetted(&case));
    assert_eq!(violations, [Violation::OthersAtWork { taint }]);
    assert_eq!(violations[0].rule(), Rule::S9);
    assert!(!refusal.may_pass());
    let said = refusal.to_string();
    for part in [
        "S9: someone else is at work on the node (taint remediation.medik8s.io/another)",
        "This is a fault of reattach",
        "Nothing is done by this plan",
        "send an issue",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    let text = serde_json::to_string(&refusal).unwrap();
    assert_eq!(
        serde_json::from_str::<Refusal>(&text).unwrap(),
        refusal,
        "{text}"
    );
}

/// Every violation is told, and an unsound plan is one.
#[test]
fn a_tampered_plan_is_vetoed() {
    let case = dead_node();
    let edited = |change: fn(&mut Plan)| {
        let mut made = plan(&case, ALL).unwrap();
        change(&mut made);
        veto(made.vetted(case.evidence.at(case.now), None)).1
    };
    let found = edited(|p| p.version = PLAN_VERSION + 1);
    assert_eq!(
        found[0],
        Violation::OtherVersion {
            found: PLAN_VERSION + 1
        }
    );
    assert!(
        matches!(found[1], Violation::HashMismatch { .. }),
        "{found:?}"
    );
    let found = edited(|p| {
        p.steps.retain(|s| s.kind != StepKind::Prove);
        p.pins.node_wide = None;
        p.hash = p.computed_hash();
    });
    assert_eq!(
        found,
        [Violation::FenceWithoutProof, Violation::NodeNotListed]
    );
}
