//! What a plan pinned is looked at again before new pods are kept away and before a pod is released (S8), and so is whether
//! the trouble is still the one that the plan is for.

use super::clocks::until;
use super::walk::{QUIET, Walk, World, change, dead_node_off, node_missing, orphan};
use reattach_core::journal::{Event, UnwindReason};
use reattach_core::run::{Effect, Next};
use reattach_core::steps::StepKind;
use reattach_core::testkit::{Case, OTHER_INSTANCE, OTHER_NODE};

/// A run right before its first effect of this kind.
fn before(case: Case, world: World, kind: fn(&Effect) -> bool) -> Walk {
    let mut walk = Walk::new(case, world);
    until(
        &mut walk,
        |_, said| matches!(said, Next::Act(a) if kind(&a.effect)),
    );
    walk
}

fn holds(effect: &Effect) -> bool {
    matches!(effect, Effect::Hold)
}

fn releases(effect: &Effect) -> bool {
    matches!(effect, Effect::Release { .. })
}

fn phantom() -> Case {
    Case::statefulset()
        .holdable()
        .with_node(OTHER_NODE, OTHER_INSTANCE)
}

type Change = (&'static str, fn(&mut Walk), &'static str);

fn holders(walk: &mut Walk, holders: &[&str]) {
    let holders = holders.iter().map(|h| (*h).into()).collect();
    change(&mut walk.case.evidence.cloud_volume, |c| {
        c.holders = holders
    });
}

fn no_record(walk: &mut Walk) {
    let pinned = walk.plan.pins.attachment.clone().unwrap();
    change(&mut walk.case.evidence.attachments, |all| {
        all.retain(|a| a.uid != pinned.uid)
    });
}

fn another_record(walk: &mut Walk) {
    let pinned = walk.plan.pins.attachment.clone().unwrap();
    change(&mut walk.case.evidence.attachments, |all| {
        all.iter_mut()
            .filter(|a| a.uid == pinned.uid)
            .for_each(|a| a.uid = "another".into());
    });
}

const NO_RECORD: Change = ("no record", no_record, "the VolumeAttachment changed");
const FREE: Change = (
    "nobody holds it",
    |w| holders(w, &[]),
    "the cloud's holder changed",
);
const HELD_ELSEWHERE: Change = (
    "another holds it",
    |w| holders(w, &[OTHER_INSTANCE]),
    "the cloud's holder changed",
);
const OF_THE_CLOUD: [Change; 3] = [
    (
        "another volume",
        |w| change(&mut w.case.evidence.cloud_volume, |c| c.id = "7".into()),
        "the cloud volume changed",
    ),
    (
        "another identity",
        |w| {
            change(&mut w.case.evidence.cloud_volume, |c| {
                c.identity.serial = "another".into()
            })
        },
        "the cloud volume changed",
    ),
    (
        "another size",
        |w| change(&mut w.case.evidence.cloud_volume, |c| c.size_gib += 1),
        "the cloud volume changed",
    ),
];

fn refusal(said: &Next) -> &str {
    match said {
        Next::Record(Event::UnwindStarted {
            why: UnwindReason::Refused { why, .. },
        }) => why,
        _ => "",
    }
}

/// Where everybody has to let go, nothing may have let go by itself, also not after the hold.
#[test]
fn any_change_of_a_pin_unwinds_the_run() {
    for walk in [
        before(phantom(), QUIET, holds),
        before(phantom(), QUIET, releases),
    ] {
        let changes = [
            NO_RECORD,
            ("another record", another_record, NO_RECORD.2),
            FREE,
            HELD_ELSEWHERE,
        ];
        for (name, change, says) in changes.into_iter().chain(OF_THE_CLOUD) {
            let mut walk = walk.clone();
            change(&mut walk);
            let said = walk.ask();
            assert!(refusal(&said).contains(says), "{name}: {said:?}");
        }
    }
}

/// Where others wait, what lets go of the old holder in the course of the run is no change; what lets go before the run did
/// anything is one.
#[test]
fn a_runs_own_effects_are_no_change() {
    let stuck = World {
        stuck: true,
        ..QUIET
    };
    let touched = before(dead_node_off(), stuck, holds);
    assert!(touched.state().touched());
    let untouched = before(node_missing(), stuck, holds);
    assert!(!untouched.state().touched());
    for (walk, (name, change, says), stops) in [
        (&touched, NO_RECORD, false),
        (&touched, FREE, false),
        (&touched, HELD_ELSEWHERE, true),
        (&untouched, NO_RECORD, true),
        // The stuck record is the trouble, whether the cloud has let go or not.
        (&untouched, FREE, false),
        (&untouched, HELD_ELSEWHERE, true),
        (&before(orphan(), QUIET, holds), FREE, true),
    ] {
        let mut walk = walk.clone();
        change(&mut walk);
        let said = walk.ask();
        assert_eq!(
            refusal(&said).contains(says),
            stops,
            "{:?}, {name}: {said:?}",
            walk.plan.trouble
        );
    }
}

/// The plan's order is the remedy of one trouble; another one on the same objects has an order of its own.
#[test]
fn another_trouble_unwinds_the_run() {
    let mut walk = before(phantom(), QUIET, holds);
    walk.case = walk.case.clone().node(|n| n.ready = false);
    let said = walk.ask();
    assert!(
        refusal(&said).contains("the diagnosis changed: class A"),
        "{said:?}"
    );
}

/// The trouble of an untouched run is looked for again also where others wait for the volume.
#[test]
fn a_healed_claim_is_not_held() {
    let mut walk = before(orphan(), QUIET, holds);
    assert_eq!(walk.plan.steps[0].kind, StepKind::Hold);
    walk.case = walk.case.clone().pods(Vec::clear);
    let said = walk.ask();
    assert!(!matches!(said, Next::Act(_)), "{said:?}");
}
