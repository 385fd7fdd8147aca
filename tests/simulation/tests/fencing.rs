//! Class A under crashes, aborts, partitions and dry runs: never a second writer, never a taint left behind.

use reattach_drill::replica::{CrashPoint, Side};
use reattach_drill::stage::Stage;
use reattach_tests_simulation::dead_node::{DeadNodeSetup, run_dead_node};
use reattach_tests_simulation::fixture::abort_before;
use reattach_tests_simulation::{Part, RunResult, cut_off_the_leader, parts, seeds};
use std::sync::Arc;
use std::time::Duration;

fn good(case: &str, result: &RunResult) {
    assert!(
        result.broken.is_empty(),
        "{case}\nbroken: {:#?}\ndied: {:?}\n{}",
        result.broken,
        result.died,
        result.timeline
    );
}

/// Every changing request of an undisturbed run is a crash point, on both sides.
fn crash_everywhere(unpublish_fails: bool, stride: usize, part: Part) {
    for seed in seeds(1) {
        let calm = DeadNodeSetup {
            unpublish_fails,
            ..DeadNodeSetup::default()
        };
        let undisturbed = run_dead_node(seed, calm.clone());
        good(&format!("seed {seed}, undisturbed"), &undisturbed);
        assert!(
            undisturbed.requests > 20,
            "an undisturbed run makes {} requests",
            undisturbed.requests
        );
        let mut died = 0;
        for number in part.of((1..=undisturbed.requests).step_by(stride)) {
            for side in [Side::Before, Side::After] {
                let crash = Some(CrashPoint { number, side });
                let result = run_dead_node(
                    seed,
                    DeadNodeSetup {
                        crash,
                        ..calm.clone()
                    },
                );
                died += usize::from(result.died.is_some());
                good(
                    &format!("seed {seed}, dead {side:?} request {number}"),
                    &result,
                );
            }
        }
        assert!(
            died * part.count > 10,
            "only {died} crash points were reached in {part:?}"
        );
    }
}

parts!(
    the_leader_dies_at_every_request_of_a_fencing {
        part_1,
        part_2,
        part_3,
        part_4
    } | part
        | { crash_everywhere(false, 1, part) }
);

parts!(
    the_leader_dies_at_every_request_of_a_fencing_with_a_cloud_detach { part_1, part_2 } | part | {
        crash_everywhere(true, 3, part)
    }
);

fn partition(s: &Stage, seed: u64) {
    // The node is NotReady after 50 s; powering off, proof and taint are in the minutes after.
    cut_off_the_leader(s, seed, Duration::from_secs(50 + seed * 13 % 130));
}

#[test]
fn two_leaders_under_a_partition_while_a_node_is_fenced() {
    for seed in seeds(8) {
        let setup = DeadNodeSetup {
            unpublish_fails: seed % 3 == 0,
            then: Arc::new(partition),
            ..DeadNodeSetup::default()
        };
        good(&format!("seed {seed}"), &run_dead_node(seed, setup));
    }
}

/// Leftovers after an abort: the taint, a hold. A quarantine may stay, because its machine is off.
fn left(s: &Stage) -> Vec<String> {
    let mut found = Vec::new();
    for node in s.world.server().list("", "nodes", None) {
        if reattach_drill::taint_recorder::is_out_of_service_by_us(&node) {
            found.push(format!("{} is still tainted", node["metadata"]["name"]));
        }
    }
    for recovery in s.world.recoveries() {
        let phase = recovery.status.unwrap_or_default().phase;
        if !phase.is_final() {
            found.push(format!("a recovery is {phase:?} long after its abort"));
        }
    }
    found
}

parts!(an_abort_during_fencing_leaves_no_taint { part_1, part_2 } aborts);

fn aborts(part: Part) {
    let mut aborted = 0;
    for seed in seeds(1) {
        let requests = run_dead_node(seed, DeadNodeSetup::default()).requests;
        for number in part.of((1..=requests).step_by(2)) {
            let setup = DeadNodeSetup {
                then: Arc::new(move |s, _| {
                    abort_before(s, number);
                }),
                at_the_end: left,
                heals: false,
                ..DeadNodeSetup::default()
            };
            let result = run_dead_node(seed, setup);
            aborted += usize::from(result.timeline.contains("ABORTED"));
            // What the checks say of a quarantine on a machine that stays off is as it should be.
            let broken: Vec<&String> = result
                .broken
                .iter()
                .filter(|b| !b.contains("reattach.dev/quarantine") && !b.contains("is still asked"))
                .collect();
            assert!(
                broken.is_empty(),
                "seed {seed}, abort before request {number}: {broken:#?}\n{}",
                result.timeline
            );
        }
    }
    assert!(
        aborted * part.count > 5,
        "only {aborted} aborts found something to abort in {part:?}"
    );
}

#[test]
fn a_dry_run_on_a_dead_node_changes_nothing() {
    for seed in seeds(2) {
        let untouched = |s: &Stage| {
            s.world
                .request_log
                .effects()
                .iter()
                .map(|e| e.line())
                .collect()
        };
        let setup = DeadNodeSetup {
            mode: "DryRun",
            heals: false,
            at_the_end: untouched,
            ..DeadNodeSetup::default()
        };
        let result = run_dead_node(seed, setup);
        good(&format!("seed {seed}"), &result);
        assert!(
            result.timeline.contains("DryRun"),
            "a plan is shown\n{}",
            result.timeline
        );
    }
}
