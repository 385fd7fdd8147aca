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
        dead_node::a_fenced_node_that_recovers_loses_the_taint_at_once,
        dead_node::a_node_that_the_watchdog_boots_again_is_left_alone,
        hold::a_disruption_budget_is_shown_and_not_overridden,
        lost::published_nodes_are_healed_by_the_attacher,
        observe::observe_only_records_and_auto_runs_the_shown_plan,
        orphan::an_orphan_of_a_recreated_node_is_freed,
        stuck::a_proven_cloud_detach_heals_a_failing_driver,
        stuck_record::a_refused_detach_is_done_at_the_cloud,
        stuck_record::a_deleted_node_that_is_off_frees_the_volume,
        tenants::forged_names_free_no_foreign_volume,
        tenants::rights_in_one_namespace_reach_no_other;
    Own:
        // They stop a component, a controller, or the cloud, or take a part of the driver away.
        crash::another_controller_resumes_after_a_crash,
        errors::each_error_is_one_sentence,
        limits::a_change_after_the_plan_stops_the_effect,
        people::approvals_aborts_and_declarations_decide,
        restarted::a_manager_restart_still_frees_a_dead_nodes_volume,
        restarted::a_manual_deletion_after_a_restart_needs_the_taint,
        stuck::a_proven_cloud_detach_heals_a_driver_that_is_down,
        stuck_record::a_recreated_persistent_volume_frees_the_attachment,
        stuck_record::causes_for_people_are_named_and_nothing_changes,
        // A budget for the whole cluster counts what other scenarios do.
        limits::budgets_limit_concurrent_runs,
        // Other flags, other feature gates, another policy.
        hold::without_the_policy_the_node_is_closed,
        lost::unpublished_nodes_are_healed_by_the_runbook,
        refusals::each_refusal_is_caused_by_its_object,
        // They measure.
        dead_node::measured_a_powered_off_node_frees_its_volumes,
        hold::measured_hold_and_release_touch_no_replica,
        incident::measured_auto_heals_the_incident,
        parity::measured_in_memory_cluster_matches_the_real_one;
};

fn main() -> ExitCode {
    scenarios::main("controlplane", SCENARIOS, || Box::pin(STOCK.stop()))
}
