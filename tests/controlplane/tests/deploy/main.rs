//! The objects that `deploy/` installs: rendered, applied to a real API server with strict validation, and tried out by the people
//! and ServiceAccounts that it speaks about.

mod admission;
mod attacks;
mod bounds;
mod cluster;
mod deletions;
mod hold;
mod rendered;
mod rights;
mod schema;
mod tenants;
mod words;

use cluster::Installed;
use reattach_tests_controlplane::{ControlPlane, Options};

/// One control plane for all of it: starting one costs more than any of these.
#[tokio::test]
async fn installed_on_a_real_control_plane() {
    let options = Options {
        // No kubelet renews a Lease here, and these Nodes must stay Ready.
        controller_manager_flags: vec!["--node-monitor-grace-period=1h".to_owned()],
        ..Options::default()
    };
    let options = [
        "alice", "olga", "paul", "erin", "adam", "vera", "dora", "dana", "pat", "pete", "petra",
    ]
    .into_iter()
    .fold(options, |o, who| o.user(who, &[]));
    let plane = ControlPlane::start(options).await.expect("a control plane");
    let installed = Installed::install(&plane).await;

    installed.settles().await;
    installed.a_second_apply_changes_nothing().await;
    installed.strict_validation_is_in_force().await;
    installed.pods_are_admitted_and_placed().await;

    schema::creation(&installed).await;
    schema::immutable_fields(&installed).await;
    schema::nothing_written_counts_as_nothing(&installed).await;
    schema::policies(&installed).await;

    rights::of_the_controller(&installed).await;
    rights::of_the_agent(&installed).await;
    rights::of_people(&installed).await;

    admission::requesters(&installed).await;
    admission::modes(&installed).await;
    admission::approvals(&installed).await;
    admission::aborts(&installed).await;
    admission::status_of_recoveries(&installed).await;
    admission::reports(&installed).await;

    words::declarations(&installed).await;
    words::power_off(&installed).await;
    words::never_by_the_controller(&installed).await;
    words::power_off_by_policy(&installed).await;
    words::nodes_by_policy(&installed).await;
    words::a_policy_that_keeps_claims_from_another(&installed).await;
    words::groups_of_others(&installed).await;

    tenants::what_is_not_theirs(&installed).await;
    tenants::names_that_are_not_theirs(&installed).await;
    tenants::claims_of_other_namespaces(&installed).await;
    tenants::reports_of_other_nodes(&installed).await;
    tenants::rights_that_they_lack(&installed).await;
    tenants::records_that_they_may_not_delete(&installed).await;

    attacks::each_is_refused_by_name(&installed).await;

    hold::gates_new_pods_of_the_claim_and_only_those(&installed).await;
    hold::the_gate_keeps_the_scheduler_away(&installed).await;
    hold::only_reattach_holds(&installed).await;
    hold::evictions_are_by_uid(&installed).await;
    deletions::deletions_are_by_uid_and_leave_time(&installed).await;
    hold::pods_keep_everything_but_the_gate(&installed).await;

    bounds::pods_as_dry_run_only(&installed).await;
    bounds::volume_attachments(&installed).await;
    bounds::nodes(&installed).await;
    bounds::workloads(&installed).await;
}
