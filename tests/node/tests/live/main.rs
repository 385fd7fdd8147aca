//! Real kubelets, and the shipped agent and controller that judge and heal what happens to them. Scenarios share a control plane
//! and its controller, with nodes, namespace, volume and policy of their own.

// The stage for the shipped binaries on a real control plane; its simulated kubelets are not used here.
#[allow(dead_code)]
#[path = "../../../controlplane/tests/live/common/mod.rs"]
mod common;
mod dead;
mod fixture;
mod lost;
mod partition;
mod plugin;
mod recycled;
mod truth;

use common::StageOptions;
use common::cluster::Shared;
use reattach_tests_controlplane::{scenarios, scenarios::Scenario};
use std::process::ExitCode;

/// One controller, and a user for each kubelet.
static REAL: Shared = Shared::new(|| {
    let nodes = NAMES
        .iter()
        .flat_map(|name| [1, 2].map(|n| format!("{name}-{n}")));
    StageOptions {
        users: nodes.map(|node| fixture::kubelet(&node)).collect(),
        ..fixture::options()
    }
});

/// The names of the scenes on it.
const NAMES: [&str; 17] = [
    "cut-off",
    "dead",
    "device",
    "gives-up",
    "hangs",
    "in-use",
    "keeps",
    "phase-0",
    "phase-1",
    "phase-2",
    "phase-3",
    "phase-4",
    "raw",
    "re-imaged",
    "recycled",
    "release",
    "unregistered",
];

static SCENARIOS: &[Scenario] = scenarios! {
    Shared:
        dead::a_dead_nodes_volume_moves_to_another_node,
        dead::a_partitioned_node_is_off_before_its_volume_moves,
        lost::a_device_lost_under_a_ready_pod,
        lost::a_volume_in_use_is_not_detached,
        partition::a_partitioned_node_keeps_its_volume,
        plugin::a_plugin_that_gives_up_is_not_ours,
        plugin::a_plugin_that_hangs_only_delays,
        plugin::a_plugin_that_is_not_registered_only_delays,
        recycled::a_recycled_node_is_healed,
        recycled::a_recycled_and_re_imaged_node_is_healed,
        recycled::a_raw_block_volume_is_healed,
        recycled::a_recycled_node_is_healed_by_hold_and_release,
        recycled::measured_hold_and_release_over_the_phases_of_kubelets_tick;
    Own:
        // No controller may take the questions away that they ask the agent.
        truth::every_device_user_is_seen,
        truth::every_device_user_is_seen_at_the_full_level;
};

fn main() -> ExitCode {
    scenarios::main("node", SCENARIOS, || Box::pin(REAL.stop()))
}
