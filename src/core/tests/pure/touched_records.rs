//! Which VolumeAttachment is touched so that external-attacher tries again: the pinned one, while it is being deleted.

use super::clocks::until;
use super::steps::{is_skipped, phantom, reached, touches};
use super::walk::{ALL, QUIET, Walk, World, detach_error, node_missing};
use reattach_core::evidence::AttachmentFacts;
use reattach_core::fact::Known;
use reattach_core::journal::Event;
use reattach_core::run::Next;
use reattach_core::steps::StepKind;
use reattach_core::testkit::{ATTACHMENT, NODE, attachment};

/// The plan names one record. Another one, or one that nobody deletes, is not ours to write to.
#[test]
fn only_the_pinned_attachment_under_deletion_is_touched() {
    let mut walk = Walk::new(
        phantom(),
        World {
            stuck: true,
            ..QUIET
        },
    );
    until(&mut walk, |walk, _| {
        walk.state().current() == walk.plan.find(StepKind::Requeue)
    });
    for (pinned, deleting) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut record = AttachmentFacts {
            deleting_since: deleting.then_some(walk.case.now),
            ..attachment(ATTACHMENT, NODE)
        };
        if !pinned {
            record.uid = "another".into();
        }
        let mut walk = walk.clone();
        walk.case = walk.case.attachments(|all| *all = vec![record]);
        let said = walk.ask();
        assert_eq!(
            touches(&said),
            pinned && deleting,
            "pinned {pinned}, deleting {deleting}: {said:?}"
        );
        assert!(
            touches(&said) || is_skipped(&said, "no VolumeAttachment waits"),
            "{said:?}"
        );
    }
}

/// An order that begins with another try: the try must have failed, and the trouble must still be the planned one.
#[test]
fn an_order_begins_with_another_try_only_after_a_failed_one() {
    let failed = reached(detach_error(), ALL, StepKind::Requeue);
    assert!(touches(&failed.ask()), "{:?}", failed.ask());
    let mut unclear = failed.clone();
    unclear
        .case
        .evidence
        .nodes
        .get_mut(&NODE.into())
        .unwrap()
        .value = Known::Unknown { why: "503".into() };
    assert!(
        matches!(unclear.ask(), Next::Wait { .. }),
        "{:?}",
        unclear.ask()
    );
    let mut other = failed;
    other.case = other.case.clone().node(|n| n.ready = false);
    assert!(
        matches!(other.ask(), Next::Record(Event::UnwindStarted { .. })),
        "{:?}",
        other.ask()
    );

    let mut not_tried = reached(node_missing(), ALL, StepKind::Requeue);
    let now = not_tried.case.now;
    not_tried.case = not_tried.case.attachment(|a| a.deleting_since = Some(now));
    assert!(
        is_skipped(&not_tried.ask(), "no VolumeAttachment waits"),
        "{:?}",
        not_tried.ask()
    );
}
