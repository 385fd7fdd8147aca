//! What must still hold right before each effect: taken away at that moment, the effect is not proposed.

use super::clocks::until;
use super::walk::{
    QUIET, Walk, World, change, dead_node, dead_node_off, detach_error, orphan,
    phantom_without_policy,
};
use jiff::SignedDuration;
use reattach_core::authority::{Person, Reach};
use reattach_core::evidence::Evidence;
use reattach_core::fact::{Fact, Known};
use reattach_core::ids::{NodeName, Uid};
use reattach_core::journal::{Event, Outcome, UnwindReason};
use reattach_core::run::{Action, Effect, Next};
use reattach_core::testkit::{Case, NODE, OTHER_INSTANCE, OTHER_NODE};
use std::mem::discriminant;

/// Runs that come to every kind of effect.
fn runs() -> Vec<Walk> {
    let held = || {
        Case::statefulset()
            .holdable()
            .with_node(OTHER_NODE, OTHER_INSTANCE)
    };
    let stuck = World {
        stuck: true,
        ..QUIET
    };
    vec![
        Walk::new(held(), QUIET),
        Walk::new(
            held(),
            World {
                lingers: true,
                ..QUIET
            },
        ),
        Walk::new(
            held(),
            World {
                lingers: true,
                ..stuck
            },
        ),
        Walk::new(held(), stuck),
        Walk::new(dead_node(), QUIET),
        Walk::new(dead_node_off(), stuck),
        Walk::new(detach_error(), stuck),
        Walk::new(orphan(), stuck),
    ]
}

/// The moments before the effects that `which` names.
fn moments(which: impl Fn(&Effect) -> bool) -> Vec<(Walk, Effect)> {
    let mut found = Vec::new();
    for mut walk in runs() {
        walk.run(|walk, action: &Action| {
            if which(&action.effect) {
                found.push((walk.clone(), action.effect.clone()));
            }
        });
    }
    assert!(!found.is_empty(), "no run comes to such an effect");
    found
}

/// Asserts that the effect is not proposed any more after the change.
fn stopped(which: impl Fn(&Effect) -> bool, change: impl Fn(&mut Walk)) {
    for (mut walk, effect) in moments(which) {
        change(&mut walk);
        let said = walk.ask();
        let same =
            matches!(&said, Next::Act(a) if discriminant(&a.effect) == discriminant(&effect));
        assert!(!same, "{effect:?} all the same: {said:?}\n{}", walk.story());
    }
}

/// While it is not known what a run may do, a step that needs somebody's word has no effect. Nothing is left
/// in force by that: what puts back belongs to steps that need nobody's.
#[test]
fn exactly_the_undoing_steps_need_no_mandate() {
    for mut walk in runs()
        .into_iter()
        .chain([Walk::new(phantom_without_policy(), QUIET)])
    {
        walk.run(|walk, action| {
            let state = walk.state();
            if state.unwinding().is_some() {
                return;
            }
            let kind = walk.plan.steps[state.current().unwrap().index()].kind;
            assert_eq!(
                kind.spec().needs_no_mandate(),
                action.effect.puts_back(),
                "{kind:?}: {action:?}"
            );
        });
    }
}

fn node(e: &mut Evidence, change: impl FnOnce(&mut reattach_core::evidence::NodeFacts)) {
    if let Some(Known::Present(node)) = e.nodes.get_mut(&NodeName::from(NODE)).map(|f| &mut f.value)
    {
        change(node);
    }
}

/// S5: an executor that was away begins nothing on an old decision. Putting back is never too late.
#[test]
fn no_effect_begins_after_its_deadline() {
    let puts_back = |e: &Effect| match e {
        Effect::Restore { .. }
        | Effect::Lift { .. }
        | Effect::OpenNode { .. }
        | Effect::Untaint { .. }
        | Effect::PowerOn { .. }
        | Effect::LetBoot { .. }
        | Effect::Requeue { .. } => true,
        Effect::ScaleToZero { .. }
        | Effect::Hold
        | Effect::Release { .. }
        | Effect::DeletePod { .. }
        | Effect::CloseNode { .. }
        | Effect::CloudDetach { .. }
        | Effect::Snapshot { .. }
        | Effect::CloudForce { .. }
        | Effect::KeepOff { .. }
        | Effect::PowerOff { .. }
        | Effect::TaintOutOfService { .. }
        | Effect::Quarantine { .. }
        | Effect::Challenge { .. }
        | Effect::DeleteAttachment { .. } => false,
    };
    stopped(
        |e| !puts_back(e),
        |walk| {
            let step = walk.state().current().unwrap();
            let deadline =
                SignedDuration::from_secs(walk.plan.steps[step.index()].deadline_seconds.into());
            let entered = walk.state().entered_at().unwrap();
            let late = (entered + deadline).duration_since(walk.case.now).as_secs();
            walk.clock_jumps(late.max(0));
        },
    );
}

#[test]
fn no_pod_is_released_unless_the_hold_is_seen() {
    stopped(
        |e| matches!(e, Effect::Release { .. }),
        |walk| walk.case = walk.case.clone().workload(|w| w.dry_run_held = Some(false)),
    );
}

/// A VolumeAttachment that nobody deletes would be published again.
#[test]
fn no_detach_before_the_attachment_is_deleted() {
    let (mut tried, all) = (0, moments(|e| matches!(e, Effect::CloudDetach { .. })));
    for (mut walk, effect) in all {
        let here = |e: &Evidence| {
            e.attachments
                .shown()
                .is_some_and(|a| a.iter().any(|a| a.node.as_str() == NODE))
        };
        if !here(&walk.case.evidence) {
            continue;
        }
        tried += 1;
        walk.case = walk
            .case
            .clone()
            .attachments(|all| all.iter_mut().for_each(|a| a.deleting_since = None));
        assert!(
            !matches!(walk.ask(), Next::Act(_)),
            "{effect:?}\n{}",
            walk.story()
        );
    }
    assert!(tried > 0);
}

/// What was pinned is one boot: another one may have mounted the volume.
#[test]
fn another_boot_stops_effects_pinned_to_the_old_one() {
    let of_an_orphan = |walk: &Walk| {
        matches!(
            walk.plan.trouble,
            reattach_core::diagnosis::Trouble::Orphan { .. }
        )
    };
    let rests = |e: &Effect| {
        matches!(
            e,
            Effect::Hold
                | Effect::Release { .. }
                | Effect::DeletePod { .. }
                | Effect::CloudDetach { .. }
                | Effect::PowerOff { .. }
                | Effect::Quarantine { .. }
                | Effect::TaintOutOfService { .. }
        )
    };
    stopped(rests, |walk| {
        if of_an_orphan(walk) {
            // Nobody speaks for its machine; what stops it is another test's business.
            walk.case.evidence.cloud_volume.value = Known::Absent;
        }
        node(&mut walk.case.evidence, |n| n.boot_id = "another".into());
    });
}

/// The word by which a node is fenced is taken back after the quarantine.
#[test]
fn a_taint_rechecks_the_node_mandate() {
    let taint = |e: &Effect| matches!(e, Effect::TaintOutOfService { .. });
    stopped(taint, |walk| {
        walk.case = walk.case.clone().mandate(|m| {
            m.ceiling
                .iter_mut()
                .for_each(|c| (c.nodes, c.power_off) = (None, false));
        });
    });
    stopped(taint, |walk| {
        match walk
            .case
            .evidence
            .node_claims
            .get_mut(&NodeName::from(NODE))
        {
            Some(Fact {
                value: Known::Present(claims),
                ..
            }) => {
                let mut neighbour = claims.first().cloned().expect("the plan's own");
                neighbour.claim.name = "of-a-neighbour".into();
                neighbour.opted_out = Some("namespace shop".into());
                claims.push(neighbour);
            }
            other => panic!("the claims are there: {other:?}"),
        }
    });
}

/// A first power-off was refused; meanwhile the node came back.
#[test]
fn a_ready_node_is_not_powered_off() {
    let mut walk = Walk::new(dead_node(), QUIET);
    walk.answer(
        |e| {
            matches!(e, Effect::PowerOff { .. }).then(|| Outcome::NotApplied {
                why: "busy".into(),
                retry: true,
            })
        },
        |walk| {
            walk.clock_jumps(60);
            assert!(
                matches!(walk.ask(), Next::Act(a) if matches!(a.effect, Effect::PowerOff { .. }))
            );
            node(&mut walk.case.evidence, |n| n.ready = true);
            let said = walk.ask();
            assert!(!matches!(&said, Next::Act(_)), "{said:?}");
        },
    );
}

/// S8: another claim, or another PersistentVolume, of the same name is one that nobody planned or approved for.
#[test]
fn replaced_objects_stop_every_forward_effect() {
    let forward = |e: &Effect| !e.puts_back();
    stopped(forward, |walk| {
        change(&mut walk.case.evidence.claim, |c| {
            c.uid = Uid::from("another")
        });
        change(&mut walk.case.evidence.volume, |v| {
            if let Some(of) = &mut v.claim_ref {
                of.uid = Some(Uid::from("another"));
            }
        });
    });
    stopped(forward, |walk| {
        change(&mut walk.case.evidence.volume, |v| {
            v.uid = Uid::from("another")
        })
    });
}

/// A run that has come to this effect.
fn before(case: Case, which: fn(&Effect) -> bool) -> Walk {
    let mut walk = Walk::new(case, QUIET);
    until(
        &mut walk,
        |_, said| matches!(said, Next::Act(a) if which(&a.effect)),
    );
    walk
}

fn turns_back(said: &Next) -> bool {
    matches!(
        said,
        Next::Record(Event::UnwindStarted {
            why: UnwindReason::Refused { .. }
        })
    )
}

fn maintained(walk: &mut Walk) {
    node(&mut walk.case.evidence, |n| {
        n.maintenance = Some("reattach.dev/maintenance".into())
    });
}

/// The rules select other nodes.
fn unselected(walk: &mut Walk) {
    walk.case = walk.case.clone().mandate(|m| {
        let rules = m.ceiling.iter_mut().flat_map(|c| &mut c.nodes);
        rules.for_each(|r| {
            r.match_labels.insert("pool".into(), "web".into());
        });
    });
}

/// What may pass is waited for, and what does not pass turns the run back, whatever else is said.
#[test]
fn node_refusals_wait_or_unwind() {
    let table: [(Case, fn(&Effect) -> bool); 4] = [
        (dead_node(), |e| matches!(e, Effect::PowerOff { .. })),
        (dead_node_off(), |e| matches!(e, Effect::Quarantine { .. })),
        (dead_node_off(), |e| {
            matches!(e, Effect::TaintOutOfService { .. })
        }),
        (phantom_without_policy(), |e| {
            matches!(e, Effect::CloseNode { .. })
        }),
    ];
    for (case, which) in table {
        let walk = before(case, which);
        let (mut maintenance, mut others) = (walk.clone(), walk);
        maintained(&mut maintenance);
        let said = maintenance.ask();
        assert!(
            matches!(&said, Next::Wait { why, .. } if why.contains("maintenance")),
            "{said:?}"
        );
        unselected(&mut others);
        unselected(&mut maintenance);
        for walk in [others, maintenance] {
            let said = walk.ask();
            assert!(turns_back(&said), "{said:?}\n{}", walk.story());
        }
    }
}

/// The word over a node is asked for before something is done to it: what was done already is ended without
/// it.
#[test]
fn node_effects_are_undone_without_a_mandate() {
    let mut taint = before(dead_node_off(), |e| matches!(e, Effect::Untaint { .. }));
    maintained(&mut taint);
    let said = taint.ask();
    assert!(
        matches!(&said, Next::Act(a) if matches!(a.effect, Effect::Untaint { .. })),
        "{said:?}"
    );
    let mut off = Walk::new(dead_node(), QUIET);
    let accepted = || Outcome::Applied {
        detail: "200".into(),
    };
    off.answer(
        |e| matches!(e, Effect::PowerOff { .. }).then(accepted),
        maintained,
    );
    assert!(
        matches!(off.ask(), Next::Record(Event::Completed { .. })),
        "{:?}",
        off.ask()
    );
}

/// The permission to power machines off is taken back, or it is not known how far a person's right to it
/// reaches.
#[test]
fn a_power_off_rechecks_its_permission() {
    let mut walk = before(dead_node(), |e| matches!(e, Effect::PowerOff { .. }));
    walk.case = walk
        .case
        .clone()
        .mandate(|m| m.ceiling.iter_mut().for_each(|c| c.power_off = false));
    assert!(turns_back(&walk.ask()), "{:?}", walk.ask());
    let unread = Reach::Unknown {
        why: "no answer".into(),
    };
    walk.case = walk.case.clone().mandate(|m| {
        m.power_off = Some(Person {
            name: "adam".into(),
            reach: unread,
        });
    });
    assert!(matches!(walk.ask(), Next::Wait { .. }), "{:?}", walk.ask());
}
