//! The plan's hash: the same for the same work, another for any other.

use jiff::SignedDuration;
use reattach_core::plan::Plan;
use reattach_core::testkit::{Case, NODE};
use std::collections::BTreeSet;

fn later(mut case: Case, seconds: i64) -> Case {
    let by = SignedDuration::from_secs(seconds);
    case.now += by;
    let e = &mut case.evidence;
    e.collected_at += by;
    e.claim.at += by;
    e.volume.at += by;
    e.attachments.at += by;
    e.pods.at += by;
    e.workload.at += by;
    e.cloud_volume.at += by;
    e.identity.at += by;
    e.machines.at += by;
    e.jobs.at += by;
    e.nodes.values_mut().for_each(|n| n.at += by);
    case
}

#[test]
fn time_and_resource_versions_do_not_change_the_hash() {
    let hash = Case::deployment().plan().unwrap().hash;
    for seconds in [1, 60, 86_400] {
        assert_eq!(
            later(Case::deployment(), seconds).plan().unwrap().hash,
            hash,
            "{seconds} s later"
        );
    }
    let busy = Case::deployment()
        .workload(|w| w.resource_version = "999".into())
        .node(|n| n.lease_renewed = None);
    assert_eq!(
        busy.plan().unwrap().hash,
        hash,
        "versions and leases change all the time"
    );
}

#[test]
fn the_shown_plan_has_the_executed_plans_hash() {
    let shown = Case::deployment().unasked().plan_as(None, true).unwrap();
    let executed = Case::deployment().plan().unwrap();
    assert_eq!(shown.hash, executed.hash);
    assert_eq!(shown.steps, executed.steps);
    assert_eq!(shown.pins, executed.pins);
}

#[test]
fn the_order_of_pods_does_not_change_the_hash() {
    let case = Case::deployment()
        .with_pod("redis-2", Some(NODE), true)
        .workload(|w| w.replicas = 2);
    let turned = case.clone().workload(|w| w.pods.reverse());
    let plan = |c: &Case| c.plan_as(Some("Deployment/redis"), false).unwrap();
    assert_eq!(plan(&case).hash, plan(&turned).hash);
}

#[test]
fn every_pin_step_and_name_changes_the_hash() {
    let changes: [fn(&mut Plan); 27] = [
        |p| p.version += 1,
        |p| p.claim.namespace = "x".into(),
        |p| p.claim.name = "x".into(),
        |p| p.runbook = "x".into(),
        |p| p.runbook_hash = "x".into(),
        |p| p.pins.claim = "x".into(),
        |p| p.pins.pv = "x".into(),
        |p| p.pins.volume = "x".into(),
        |p| p.pins.identity.serial = "x".into(),
        |p| p.pins.size_gib += 1,
        |p| p.pins.holder = "x".into(),
        |p| p.pins.node = "x".into(),
        |p| p.pins.boot_id = Some("x".into()),
        |p| p.pins.attachment.as_mut().unwrap().name = "x".into(),
        |p| p.pins.attachment.as_mut().unwrap().uid = "x".into(),
        |p| p.pins.workload.uid = "x".into(),
        |p| p.pins.workload.api_version = "x".into(),
        |p| p.pins.replicas += 1,
        |p| p.pins.pods[0].1 = "x".into(),
        |p| p.pins.pods.clear(),
        |p| {
            p.steps.pop();
        },
        |p| p.steps.swap(1, 2),
        |p| p.steps[0].deadline_seconds += 1,
        |p| p.steps[1].patience_seconds = None,
        |p| p.steps[0].command = "x".into(),
        |p| p.downtime.typical_seconds += 1,
        |p| {
            if let reattach_core::diagnosis::Trouble::Phantom { dead_mount, .. } = &mut p.trouble {
                *dead_mount = true
            }
        },
    ];
    let good = Case::deployment().plan().unwrap();
    let mut seen = BTreeSet::from([good.hash.clone()]);
    for (n, change) in changes.iter().enumerate() {
        let mut plan = good.clone();
        change(&mut plan);
        assert!(
            seen.insert(plan.computed_hash()),
            "change {n} gives a hash that was there before"
        );
    }
}

#[test]
fn a_plan_survives_serialisation_with_its_hash() {
    let plan = Case::statefulset().plan().unwrap();
    let read: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
    assert_eq!(read, plan);
    assert_eq!(read.computed_hash(), plan.hash);
    assert_eq!(plan.hash.as_str().len(), 16);
}
