//! The shipped binaries on a real control plane. Scenarios that leave its components and the controllers alone share one, with
//! namespace, nodes, volumes and policy of their own; the others, and those that measure, have one each.

// A panic is how a scenario fails.
#![allow(clippy::unwrap_used)]

mod common;
mod crash;
mod dead_node;
mod errors;
mod hold;
mod incident;
mod limits;
mod lost;
mod observe;
mod orphan;
mod parity;
mod people;
mod refusals;
mod restarted;
mod stuck;
mod stuck_record;
mod tenants;

use common::StageOptions;
use common::cluster::{Shared, people};
use reattach_tests_controlplane::{scenarios, scenarios::Scenario};
use std::process::ExitCode;

/// The stock components, a driver that publishes its nodes, and two controllers.
static STOCK: Shared = Shared::new(|| StageOptions {
    users: people(&["olga", "tina"]),
    ..StageOptions::default()
});

static SCENARIOS: &[Scenario] = scenarios! {
    Shared:
        dead_node::without_permission_a_person_gives_the_proof,
        dead_node::a_partition_frees_nothing,
        dead_node::a_fenced_node_that_comes_back_loses_the_taint_at_once,
        dead_node::a_node_that_the_watchdog_boots_again_is_left_alone,
        hold::a_disruption_budget_is_shown_and_not_overridden,
        lost::where_the_driver_publishes_nodes_its_attacher_heals,
        observe::only_records_then_the_very_plan_that_was_shown,
        orphan::a_node_of_the_old_name_and_another_instance,
        stuck::our_detach_with_proof_where_the_drivers_fails,
        stuck_record::a_refused_detach_is_done_at_the_cloud,
        stuck_record::a_deleted_node_that_is_off_lets_go,
        tenants::names_free_nothing_of_others,
        tenants::words_reach_no_further_than_their_right;
    Own:
        // They stop a component, a controller, or the cloud, or take a part of the driver away.
        crash::another_goes_on,
        errors::one_sentence_each,
        limits::what_changes_after_the_plan_is_seen_before_the_effect,
        people::people_decide,
        restarted::a_dead_nodes_volume_comes_back_after_a_restart_of_the_controller_manager,
        restarted::a_deletion_by_hand_after_a_restart_is_finished_by_the_taint,
        stuck::our_detach_with_proof_where_the_driver_is_down,
        stuck_record::a_persistent_volume_that_is_made_again_lets_go,
        stuck_record::what_only_people_can_mend_is_said_and_nothing_is_touched,
        // A budget for the whole cluster counts what other scenarios do.
        limits::budgets_are_kept,
        // Other flags, other feature gates, another policy.
        hold::without_the_policy_the_node_is_closed,
        lost::where_it_does_not_the_ladder_heals,
        refusals::each_with_the_object_that_causes_it,
        // They measure.
        dead_node::measured_a_dead_node_is_powered_off_and_its_volumes_come_back,
        hold::measured_hold_and_release_touch_no_replica,
        incident::measured_auto_heals_the_incident,
        parity::measured_in_memory_cluster_matches_the_real_one;
};

fn main() -> ExitCode {
    scenarios::main("controlplane", SCENARIOS, || Box::pin(STOCK.stop()))
}
