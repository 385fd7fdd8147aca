//! A fenced node that is back: when that turns the run, and which proof an effect on the node lacks.

use super::late::settled;
use super::steps::{
    holders, is_completed, is_refused, is_skipped, is_wait, phantom, reached, told,
};
use super::walk::{ALL, QUIET, Walk, World, change, dead_node, dead_node_off};
use reattach_core::journal::{End, Outcome};
use reattach_core::plan::Allowed;
use reattach_core::run::{Effect, Next};
use reattach_core::steps::StepKind;
use reattach_core::testkit::{ATTACHMENT, INSTANCE, NODE, attachment};

/// The node is Ready, and the volume is attached to it.
fn back(mut walk: Walk) -> Walk {
    walk.case = walk
        .case
        .node(|n| n.ready = true)
        .cloud(|c| c.holders = vec![INSTANCE.into()])
        .attachments(|all| *all = vec![attachment(ATTACHMENT, NODE)]);
    walk
}

/// Between taint and untaint the node must be down. Afterwards it may come back and get the volume again.
#[test]
fn a_recovered_node_unwinds_the_run_only_while_tainted() {
    let turns = |said: &Next| is_refused(said, "is Ready again");
    let written = told(dead_node_off(), |e| {
        matches!(e, Effect::TaintOutOfService { .. })
    });
    let mut written = back(written);
    written.case = written.case.clone().node(|n| n.out_of_service_by_us = true);
    assert!(is_completed(&written.ask()), "{:?}", written.ask());

    let tainted = back(reached(dead_node_off(), ALL, StepKind::AwaitDetached));
    assert!(turns(&tainted.ask()), "{:?}", tainted.ask());

    let untaint = back(reached(dead_node_off(), ALL, StepKind::Untaint)).ask();
    assert!(untaints(&untaint), "{untaint:?}");

    let verify = back(reached(dead_node_off(), ALL, StepKind::Verify)).ask();
    assert!(!turns(&verify), "{verify:?}");
}

/// S9: this run took its own taint off and saw that. A taint that is on the node now is of another recovery of the node.
#[test]
fn an_abort_after_untaint_leaves_foreign_taints() {
    let mut walk = reached(dead_node_off(), ALL, StepKind::Verify);
    assert!(
        walk.kinds().contains(&"Untaint".to_owned()),
        "{}",
        walk.story()
    );
    walk.case = walk.case.clone().node(|n| n.out_of_service_by_us = true);
    assert_eq!(
        settled(&mut walk, Some("jane"), None),
        Next::Done(End::Aborted),
        "{}",
        walk.story()
    );
}

fn taints(said: &Next) -> bool {
    matches!(said, Next::Act(a) if matches!(a.effect, Effect::TaintOutOfService { .. }))
}

fn untaints(said: &Next) -> bool {
    matches!(said, Next::Act(a) if matches!(a.effect, Effect::Untaint { .. }))
}

/// A run whose out-of-service taint got no reply.
fn taint_unheard() -> Walk {
    let mut walk = Walk::new(dead_node_off(), QUIET);
    walk.answer(
        |e| {
            matches!(e, Effect::TaintOutOfService { .. }).then(|| Outcome::Unknown {
                why: "no answer".into(),
            })
        },
        |_| {},
    );
    walk
}

fn arrives(walk: &mut Walk) {
    walk.case = walk.case.clone().node(|n| n.out_of_service_by_us = true);
}

/// The first write got no reply and the second was refused: the taint that is there may be the first one's, so this run takes
/// it off.
#[test]
fn a_taint_of_unknown_outcome_counts_as_ours_after_a_refusal() {
    let mut walk = taint_unheard();
    let Next::Act(again) = settled(&mut walk, None, None) else {
        panic!("{}", walk.story())
    };
    walk.issue(
        again,
        Outcome::NotApplied {
            why: "conflict".into(),
            retry: true,
        },
    );
    arrives(&mut walk);
    assert!(is_completed(&walk.ask()), "{:?}", walk.ask());
    let said = settled(&mut walk, Some("jane"), None);
    assert!(is_wait(&said, "may still take effect"), "{said:?}");
    walk.pass(61);
    let said = settled(&mut walk, Some("jane"), None);
    assert!(untaints(&said), "{said:?}\n{}", walk.story());
}

/// The volume is freed by others while the taint may still arrive: a step that is skipped is not unwound.
#[test]
fn a_taint_of_unknown_outcome_is_awaited_before_a_skip() {
    let mut walk = taint_unheard();
    assert!(taints(&settled(&mut walk, None, None)), "{}", walk.story());
    walk.case = walk.case.clone().attachments(Vec::clear).node(|n| {
        n.volumes_in_use.clear();
        n.volumes_attached.clear();
    });
    holders(&mut walk, &[]);
    assert!(
        is_wait(
            &walk.ask(),
            "the out-of-service taint may still take effect"
        ),
        "{:?}",
        walk.ask()
    );
    let mut late = walk.clone();
    arrives(&mut late);
    assert!(is_completed(&late.ask()), "{:?}", late.ask());
    walk.pass(61);
    assert!(
        is_skipped(&walk.ask(), "nothing of the node holds the volume"),
        "{:?}",
        walk.ask()
    );
}

/// A taint that arrives after the run was aborted is taken off as well.
#[test]
fn an_abort_waits_for_a_taint_of_unknown_outcome() {
    let mut walk = taint_unheard();
    let said = settled(&mut walk, Some("jane"), None);
    assert!(
        is_wait(&said, "the out-of-service taint may still take effect"),
        "{said:?}"
    );
    arrives(&mut walk);
    walk.pass(61);
    let said = settled(&mut walk, Some("jane"), None);
    assert!(untaints(&said), "{said:?}\n{}", walk.story());
}

/// A wait for a proof says what the proof that can be made of this node lacks: of a dead one the machine's, of a living one
/// its kubelet's.
#[test]
fn a_wait_for_a_proof_names_what_is_missing() {
    let dead = reached(dead_node(), Allowed::default(), StepKind::Prove).ask();
    assert!(
        is_wait(&dead, "is not off: the cloud says Running"),
        "{dead:?}"
    );
    let mut alive = Walk::new(
        phantom(),
        World {
            stuck: true,
            ..QUIET
        },
    );
    let detaches = |e: &Effect| matches!(e, Effect::CloudDetach { .. });
    super::clocks::until(
        &mut alive,
        |_, said| matches!(said, Next::Act(a) if detaches(&a.effect)),
    );
    change(
        alive.case.evidence.nodes.get_mut(&NODE.into()).unwrap(),
        |n| n.lease_renewed = None,
    );
    alive.case.evidence.answers.clear();
    let said = alive.ask();
    // Nothing about the machine: no cloud proves of a Ready node that it cannot write.
    let last = "has not answered clean in this boot: no answer";
    assert!(
        matches!(&said, Next::Wait { why, .. } if why.ends_with(last)),
        "{said:?}"
    );
}
