//! Every scenario of the drill, over several seeds, and the same seed twice. With `REATTACH_SHOW` the timelines are
//! printed.

use reattach_drill::timeline::Line;
use reattach_drill::{Outcome, Pace, play};
use reattach_tests_simulation::seeds;
use std::sync::Arc;

fn run(name: &str, seed: u64) -> Outcome {
    let show = std::env::var_os("REATTACH_SHOW").is_some();
    let sink = move |line: &Line| {
        if show {
            print!("{}", line.render());
        }
    };
    let outcome = play(name, seed, Pace::Short, Arc::new(sink))
        .unwrap_or_else(|e| panic!("{name} --seed {seed}: {e}"));
    if show {
        println!("{}", outcome.summary());
    }
    outcome
}

fn good(name: &str, all: &[u64]) {
    for seed in all {
        let outcome = run(name, *seed);
        assert!(
            outcome.good(),
            "replay: kubectl reattach drill --scenario {name} --seed {seed}\n{}",
            outcome.transcript()
        );
    }
}

#[test]
fn the_founding_incident() {
    good("incident-2021-07-11", &seeds(2));
}

#[test]
fn stuck_unpublish() {
    good("stuck-unpublish", &seeds(8));
}

#[test]
fn hold_by_taint() {
    good("hold-by-taint", &seeds(12));
}

#[test]
fn hold_and_release() {
    good("hold-and-release", &seeds(12));
}

#[test]
fn hold_stuck_unpublish() {
    good("hold-stuck-unpublish", &seeds(8));
}

#[test]
fn abort() {
    good("abort", &seeds(8));
}

#[test]
fn leader_crash() {
    good("leader-crash", &seeds(24));
}

#[test]
fn lost_reply() {
    good("lost-reply", &seeds(8));
}

#[test]
fn refusals() {
    good("refusals", &seeds(2));
}

#[test]
fn approve() {
    good("approve", &seeds(4));
}

#[test]
fn dead_node() {
    good("dead-node", &seeds(3));
}

#[test]
fn dead_node_no_permission() {
    good("dead-node-no-permission", &seeds(3));
}

#[test]
fn partition() {
    good("partition", &seeds(3));
}

#[test]
fn partition_fenced() {
    good("partition-fenced", &seeds(3));
}

#[test]
fn dead_node_returns() {
    good("dead-node-returns", &seeds(3));
}

#[test]
fn lost_attachment() {
    good("lost-attachment", &seeds(4));
}

#[test]
fn lost_attachment_unpublished() {
    good("lost-attachment-unpublished", &seeds(4));
}

#[test]
fn detach_error() {
    good("detach-error", &seeds(4));
}

#[test]
fn node_deleted() {
    good("node-deleted", &seeds(4));
}

#[test]
fn manager_restarted() {
    good("manager-restarted", &seeds(4));
}

#[test]
fn missing_objects() {
    good("missing-objects", &seeds(4));
}

#[test]
fn driver_uninstalled() {
    good("driver-uninstalled", &seeds(4));
}

#[test]
fn detach_locked() {
    good("detach-locked", &seeds(4));
}

#[test]
fn orphan() {
    good("orphan", &seeds(4));
}

#[test]
fn orphan_gone() {
    good("orphan-gone", &seeds(4));
}

#[test]
fn the_same_seed_gives_the_same_transcript() {
    for name in ["stuck-unpublish", "leader-crash", "manager-restarted"] {
        let (one, two) = (run(name, 5), run(name, 5));
        assert_eq!(one.transcript(), two.transcript(), "{name} --seed 5");
        assert_eq!(
            reattach_report::markdown(&one.incident),
            reattach_report::markdown(&two.incident)
        );
    }
}

#[test]
fn an_unknown_scenario_error_lists_the_known_ones() {
    let error = play("no-such", 1, Pace::Short, Arc::new(|_| {}))
        .err()
        .map(|e| e.to_string());
    let text = error.unwrap_or_default();
    assert!(
        text.contains("no-such") && text.contains("leader-crash"),
        "{text}"
    );
}
