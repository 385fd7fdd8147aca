//! A CSI controller that does not detach, and one that is not there.

use crate::STOCK;
use crate::common::logs::{CONTROLLER, journal};
use crate::common::{AWAY, LIMIT, Stage, StageOptions};
use jiff::Timestamp;
use kube::ResourceExt;
use reattach_api::{Phase, VolumeRecovery};
use reattach_cloud_simulator::{Operation, RequestRecord, VolumeNo};
use reattach_core::journal::Event;
use reattach_core::proof::ProofKind;
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_controlplane::{AuditEvent, Component, Unpublish, eventually, say};

/// Every detach of the volume that anybody asked the cloud for.
fn detaches(stage: &Stage, volume: VolumeNo) -> Vec<RequestRecord> {
    let path = format!("/volumes/{volume}/");
    let all = stage.cloud.requests().into_iter();
    all.filter(|r| r.operation == Some(Operation::DetachVolume) && r.path.contains(&path))
        .collect()
}

/// The proof that the journal gives for the cloud detach: when the volume had no user, and the Lease renewal after it.
fn proof(recovery: &VolumeRecovery) -> (Timestamp, Timestamp) {
    let journal = recovery.history().expect("it can be read").1;
    let found = journal.iter().find_map(|e| match &e.event {
        Event::Started {
            proof:
                Some(ProofKind::KubeletHandshake {
                    no_user_since,
                    lease_renewed,
                    ..
                }),
            ..
        } => Some((*no_user_since, *lease_renewed)),
        _ => None,
    });
    found.expect("a started step with a proof")
}

/// When the node's kubelet reported that it does not use the volume, the last time before `before`.
fn freed(stage: &Stage, node: &str, volume: VolumeNo, before: Timestamp) -> Timestamp {
    let mut freed = None;
    let events = stage.audit();
    let reports = events.iter().filter(|e| {
        e.resource == "nodes"
            && e.name.as_deref() == Some(node)
            && e.subresource.as_deref() == Some("status")
            && e.took_effect()
            && e.received < before
    });
    for report in reports {
        let Some(in_use) = report
            .body
            .as_ref()
            .and_then(|b| b.pointer("/status/volumesInUse"))
        else {
            continue;
        };
        let used = in_use.to_string().contains(&format!("^{volume}-"));
        freed = if used {
            None
        } else {
            freed.or(Some(report.reached))
        };
    }
    freed.expect("volumesInUse was empty of the volume")
}

/// The CSI controller answers each detach with an error.
pub async fn a_proven_cloud_detach_heals_a_failing_driver() {
    let stage = Stage::share(&STOCK, "unpublish", StageOptions::default()).await;
    stage.namespace("unpublish").await;
    let volume = stage.deployment("unpublish", "redis", "unpublish-1").await;
    stage.await_ready("unpublish", "redis", 1).await;
    stage.unpublish(&[volume], Unpublish::Fail).await;
    stage
        .kubelet("unpublish-1")
        .recycle(DiskAfter::Kept, AWAY)
        .await;
    let recovery = stage
        .await_phase("unpublish", "redis", &[Phase::Recovered])
        .await;
    stage.await_ready("unpublish", "redis", 1).await;
    one_proven_detach(&stage, &recovery, volume, "unpublish-1");
    stage.assert_one_holder(&[volume]);
    stage.await_nothing_left().await;
}

/// The CSI controller is down: the cloud detach frees the volume, and the rest waits for the driver.
pub async fn a_proven_cloud_detach_heals_a_driver_that_is_down() {
    let stage = Stage::set(StageOptions::default()).await;
    stage.namespace("shop").await;
    let volume = stage.stateful_set("shop", "sql", 1, "node-2").await[0];
    stage.await_ready("shop", "sql", 1).await;
    stage
        .plane
        .stop_component(Component::CsiController)
        .expect("it ran");
    stage.kubelet("node-2").recycle(DiskAfter::Kept, AWAY).await;
    let detached = |e: &AuditEvent| {
        let last = journal(e)
            .last()
            .map(ToString::to_string)
            .unwrap_or_default();
        e.user == CONTROLLER
            && e.name
                .as_deref()
                .is_some_and(|n| n.starts_with("data-sql-0"))
            && last.contains("the cloud names no holder")
    };
    let what = "a journal line that says that the cloud has let go";
    let seen = eventually(what, LIMIT, async || {
        stage.audit().iter().any(detached).then_some(())
    })
    .await;
    if seen.is_err() {
        stage
            .await_phase("shop", "data-sql-0", &[Phase::Recovered])
            .await;
    }
    assert_eq!(
        stage.count("shop", "StatefulSet", "sql").await,
        (0, true),
        "it waits for the VolumeAttachment"
    );
    stage
        .plane
        .start_component(Component::CsiController)
        .await
        .expect("it starts");
    let recovery = stage
        .await_phase("shop", "data-sql-0", &[Phase::Recovered])
        .await;
    stage.await_ready("shop", "sql", 1).await;
    one_proven_detach(&stage, &recovery, volume, "node-2");
    stage.assert_one_holder(&[volume]);
    stage.await_nothing_left().await;
}

fn one_proven_detach(stage: &Stage, recovery: &VolumeRecovery, volume: VolumeNo, node: &str) {
    let asked = detaches(stage, volume);
    let ours: Vec<_> = stage
        .cloud_mutations()
        .into_iter()
        .filter(|r| asked.contains(r))
        .collect();
    assert_eq!(ours.len(), 1, "{asked:#?}");
    let (no_user, lease) = proof(recovery);
    let freed = freed(stage, node, volume, ours[0].at);
    assert!(
        no_user < lease && lease < ours[0].at,
        "no user {no_user}, Lease {lease}, detach {}",
        ours[0].at
    );
    assert!(
        freed < ours[0].at,
        "volumesInUse let go at {freed}, the detach was asked for at {}",
        ours[0].at
    );
    let effects = stage.assert_journaled_first(recovery, volume);
    say!(
        "{}: one detach of ours, {:.1} s after the last user, {:.1} s after volumesInUse, {:.1} s after the Lease; {effects} effects journaled first",
        recovery.name_any(),
        ours[0].at.duration_since(no_user).as_secs_f64(),
        ours[0].at.duration_since(freed).as_secs_f64(),
        ours[0].at.duration_since(lease).as_secs_f64(),
    );
}
