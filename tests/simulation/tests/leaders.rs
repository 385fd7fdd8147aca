//! The leader dies at every point of a recovery; two leaders under a partition.

use reattach_core::runbook::{DEFAULT_RUNBOOK, SCALE_TO_ZERO};
use reattach_drill::replica::{CrashPoint, Side};
use reattach_drill::stage::Stage;
use reattach_tests_simulation::{Night, Part, all_good, cut_off_the_leader, parts, phantom_night, seeds};
use std::time::Duration;

/// Every changing request of an undisturbed night is a crash point, on both sides; each `stride`th is tried.
fn crash_everywhere(runbook: &'static str, unpublish_fails: bool, stride: usize, part: Part) {
    for seed in seeds(1) {
        let calm = Night { runbook, unpublish_fails, ..Night::default() };
        let requests = phantom_night(seed, calm).requests;
        assert!(requests > 20, "an undisturbed night makes {requests} changing requests");
        let mut died = 0;
        for number in part.of((1..=requests).step_by(stride)) {
            for side in [Side::Before, Side::After] {
                let morning = phantom_night(seed, Night { crash: Some(CrashPoint { number, side }), ..calm });
                died += usize::from(morning.died.is_some());
                assert!(
                    morning.broken.is_empty(),
                    "{runbook}, Unpublish fails {unpublish_fails}, seed {seed}: dead {side:?} request {number} ({:?})\n\
                    replay: REATTACH_SEED={seed} and the name of this test\nbroken: {:#?}\n{}",
                    morning.died,
                    morning.broken,
                    morning.timeline
                );
            }
        }
        assert!(died * part.count > 10, "only {died} crash points were reached in {part:?}");
    }
}

parts!(
    the_leader_dies_at_every_request { part_1, part_2, part_3, part_4 } | part | {
        crash_everywhere(SCALE_TO_ZERO, false, 1, part)
    }
);

parts!(
    the_leader_dies_at_every_request_of_a_cloud_detach { part_1, part_2 } | part | {
        crash_everywhere(SCALE_TO_ZERO, true, 2, part)
    }
);

parts!(
    the_leader_dies_at_every_request_of_a_hold { part_1, part_2, part_3, part_4 } | part | {
        crash_everywhere(DEFAULT_RUNBOOK, false, 1, part)
    }
);

parts!(
    the_leader_dies_at_every_request_of_a_cloud_detach_under_a_hold { part_1, part_2 } | part | {
        crash_everywhere(DEFAULT_RUNBOOK, true, 2, part)
    }
);

fn partition(s: &Stage, seed: u64) {
    cut_off_the_leader(s, seed, Duration::from_millis(200 + seed * 1_300 % 9_000));
}

#[test]
fn two_leaders_under_a_partition() {
    all_good("two_leaders_under_a_partition", 12, |seed| Night {
        then: partition,
        unpublish_fails: seed % 3 == 0,
        runbook: if seed % 4 < 2 { SCALE_TO_ZERO } else { DEFAULT_RUNBOOK },
        ..Night::default()
    });
}
