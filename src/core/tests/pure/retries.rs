//! When an effect that was refused for the moment is tried again.

use super::walk::{ALL, By, QUIET, Walk, World, dead_node, dead_node_off, orphan};
use jiff::SignedDuration;
use reattach_core::journal::Outcome;
use reattach_core::plan::{Allowed, Snapshots};
use reattach_core::run::{Effect, Next};
use reattach_core::testkit::{Case, OTHER_INSTANCE, OTHER_NODE};

/// One second after the first refusal, then twice as long each time. Not sooner, or the other side is asked
/// without a pause; and at that moment, or the run waits for nothing until its step's deadline.
#[test]
fn a_refused_effect_is_retried_after_its_pause() {
    let phantom = || {
        Case::statefulset()
            .holdable()
            .with_node(OTHER_NODE, OTHER_INSTANCE)
    };
    let lingers = World {
        lingers: true,
        ..QUIET
    };
    let hangs = World {
        stuck: true,
        hangs: Some(By::Us),
        ..QUIET
    };
    let with_snapshot = Allowed {
        snapshot: Snapshots::Required,
        ..ALL
    };
    let table: [(Case, World, fn(&Effect) -> bool); 8] = [
        (phantom(), QUIET, |e| matches!(e, Effect::Hold)),
        (phantom(), QUIET, |e| matches!(e, Effect::Release { .. })),
        (phantom(), QUIET, |e| matches!(e, Effect::Lift { .. })),
        (phantom(), lingers, |e| {
            matches!(e, Effect::DeleteAttachment { .. })
        }),
        (dead_node(), QUIET, |e| matches!(e, Effect::PowerOff { .. })),
        (dead_node_off(), QUIET, |e| {
            matches!(e, Effect::Quarantine { .. })
        }),
        (dead_node_off(), QUIET, |e| {
            matches!(e, Effect::TaintOutOfService { .. })
        }),
        (orphan(), hangs, |e| matches!(e, Effect::Snapshot { .. })),
    ];
    for (case, world, which) in table {
        let mut walk = Walk::with(case, world, with_snapshot);
        let refused = || Outcome::NotApplied {
            why: "409".into(),
            retry: true,
        };
        for pause in [1, 2, 4] {
            walk.answer(|e| which(e).then(refused), |_| {});
            let again = walk.case.now + SignedDuration::from_secs(pause);
            while walk.case.now < again {
                let said = walk.ask();
                let in_time = matches!(&said, Next::Wait { until, .. } if *until == again);
                assert!(in_time, "{said:?}\n{}", walk.story());
                walk.pass(1);
            }
            let said = walk.ask();
            assert!(
                matches!(&said, Next::Act(a) if which(&a.effect)),
                "{said:?}\n{}",
                walk.story()
            );
        }
    }
}
