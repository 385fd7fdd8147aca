//! The agent's loop with an API server in memory, under virtual time.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use common::world::{LONG, RESCAN, World, on, refusal};
use common::{BOOT, LABEL, Tree, challenge};
use jiff::Timestamp;
use kube::CustomResourceExt;
use reattach_api::NodeVolumeReport;
use reattach_core::guest::ScanResult;
use reattach_core::product::Product;
use reattach_sim::apiserver::{Fault, FaultRule, Verb, WatchBreak};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn unasked_reports_are_written_on_change_only() {
    let world = World::running(Tree::with_volume()).await;
    let report = world.report();
    assert!(
        report["metadata"]["ownerReferences"].is_null(),
        "the report outlives the Node: {report}"
    );
    let inventory = world.inventory();
    assert_eq!(
        (
            inventory.boot_id.as_str(),
            inventory.devices[0].identity.serial.as_str()
        ),
        (BOOT, LABEL)
    );
    let entries = world.writes();
    assert!(
        entries
            .iter()
            .all(|entry| entry.field_manager == Product::Agent.user_agent()),
        "{entries:?}"
    );
    let writes: Vec<_> = entries
        .iter()
        .map(|entry| (entry.verb, entry.subresource.clone()))
        .collect();
    assert_eq!(
        writes,
        [
            (Verb::Create, None),
            (Verb::Patch, Some("status".to_owned()))
        ]
    );

    sleep(LONG).await;
    assert_eq!(world.writes().len(), 0);

    // The wall clock is being adjusted: the boot time of one boot moves by a second.
    world.tree.file("proc/stat", "cpu 1\nbtime 1752192001\n");
    sleep(LONG).await;
    assert_eq!(world.writes().len(), 0);

    world.tree.mount("95 22 8:0 / /srv rw - ext4 /dev/sda rw");
    sleep(RESCAN).await;
    assert_eq!(world.writes().len(), 1);
    assert_eq!(world.inventory().devices[0].users.mounts, ["/srv"]);
    sleep(LONG).await;
    assert_eq!(world.writes().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_scans_at_once() {
    let mut world = World::running(Tree::with_volume()).await;
    for (change, writes) in [
        (None, 0),
        (Some("95 22 8:0 / /srv rw - ext4 /dev/sda rw"), 1),
    ] {
        world.stop.take().unwrap().send(()).unwrap();
        world.agent.take().unwrap().await.unwrap();
        change.into_iter().for_each(|mount| world.tree.mount(mount));
        world.writes();
        world.start();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(
            world.writes().len(),
            writes,
            "{change:?}, within {RESCAN:?}"
        );
    }
    assert_eq!(world.inventory().devices[0].users.mounts, ["/srv"]);
    sleep(LONG).await;
    assert_eq!(world.writes().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_challenge_is_answered_once_at_once_with_its_triple() {
    let world = World::running(Tree::with_volume()).await;
    world.writes();
    let asked_at = world.server.clock().now();
    let question = challenge("recovery-1", 3);
    world.ask("n1", std::slice::from_ref(&question)).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(world.writes().len(), 1);
    let answers = world.answers();
    assert_eq!(answers.len(), 1);
    let answer = &answers[0];
    assert_eq!(
        (&answer.recovery, answer.epoch, &answer.identity),
        (&question.recovery, question.epoch, &question.identity)
    );
    assert_eq!(
        (answer.boot_id.as_str(), &answer.seen),
        (BOOT, &ScanResult::Idle)
    );
    assert!(answer.scanned_at >= asked_at && answer.scanned_at <= world.server.clock().now());
    let generation = world.report()["metadata"]["generation"].as_i64();
    assert_eq!(world.status().observed_generation, generation);
    // A later change goes into the inventory and not into an earlier answer.
    world.tree.mount("95 22 8:0 / /srv rw - ext4 /dev/sda rw");
    sleep(LONG).await;
    assert_eq!(world.writes().len(), 1);
    assert_eq!(world.answers(), answers);
}

#[tokio::test(start_paused = true)]
async fn a_new_epoch_is_answered_by_a_new_scan() {
    let world = World::running(Tree::with_volume()).await;
    world
        .ask(
            "n1",
            &[challenge("recovery-1", 1), challenge("recovery-2", 1)],
        )
        .await;
    sleep(Duration::from_secs(60)).await;
    let first = world.answers();
    assert_eq!(first.len(), 2);
    world.tree.mount("95 22 8:0 / /srv rw - ext4 /dev/sda rw");
    let asked_at = world.server.clock().now();
    world
        .ask(
            "n1",
            &[challenge("recovery-1", 2), challenge("recovery-2", 1)],
        )
        .await;
    sleep(Duration::from_millis(100)).await;
    let second = world.answers();
    assert_eq!((second.len(), second[0].epoch), (2, 2));
    assert!(second[0].scanned_at >= asked_at);
    assert!(matches!(&second[0].seen, ScanResult::InUse { users } if users.mounts == ["/srv"]));
    assert_eq!(second[1], first[1], "the other recovery's answer stands");
    world.ask("n1", &[]).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(world.answers(), []);
    world.writes();
    sleep(LONG).await;
    assert_eq!(world.writes().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn another_nodes_report_is_never_touched() {
    let mut world = World::new(Tree::with_volume());
    let foreign = world.server.insert(&json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport", "metadata": { "name": "n2" },
        "spec": { "challenges": [challenge("recovery-1", 1)] },
    }));
    world.start();
    world.ask("n2", &[challenge("recovery-1", 2)]).await;
    sleep(LONG).await;
    let writes = world.writes();
    assert!(
        !writes.is_empty() && writes.iter().all(|entry| entry.name == "n1"),
        "{writes:?}"
    );
    let now = world
        .server
        .read("reattach.dev", "nodevolumereports", "", "n2")
        .unwrap();
    assert_eq!(
        (&now["status"], &now["metadata"]["uid"]),
        (&Value::Null, &foreign["metadata"]["uid"])
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_boot_answers_again() {
    let world = World::running(Tree::with_volume()).await;
    world.ask("n1", &[challenge("recovery-1", 1)]).await;
    sleep(Duration::from_secs(1)).await;
    world
        .tree
        .file("proc/sys/kernel/random/boot_id", "another-boot\n");
    world.tree.file("proc/stat", "btime 1752199999\n");
    sleep(RESCAN).await;
    let inventory = world.inventory();
    assert_eq!(
        (inventory.boot_id.as_str(), inventory.booted_at.as_second()),
        ("another-boot", 1_752_199_999)
    );
    assert_eq!(world.answers()[0].boot_id.as_str(), "another-boot");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_report_comes_back() {
    let world = World::running(Tree::with_volume()).await;
    let old = world.report()["metadata"]["uid"].clone();
    let reports: kube::Api<NodeVolumeReport> = kube::Api::all(world.server.client());
    reports
        .delete("n1", &kube::api::DeleteParams::default())
        .await
        .unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_ne!(world.report()["metadata"]["uid"], old);
    assert!(world.status().inventory.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_status_of_another_version_is_replaced() {
    let mut world = World::new(Tree::with_volume());
    world.server.insert(&json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport", "metadata": { "name": "n1" },
        "spec": { "challenges": [{ "not": "understood" }, challenge("recovery-1", 1)] },
        "status": { "inventory": { "shape": "of the future" }, "answers": [] },
    }));
    world.start();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.inventory().boot_id.as_str(), BOOT);
    assert_eq!(world.answers().len(), 1);
    world.writes();
    sleep(LONG).await;
    assert_eq!(world.writes().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_read_again_and_scanned_again() {
    let world = World::running(Tree::with_volume()).await;
    world.writes();
    world
        .server
        .add_fault(FaultRule::always(on(Verb::Patch), refusal(409)).times(1));
    let asked_at = world.server.clock().now();
    world.ask("n1", &[challenge("recovery-1", 1)]).await;
    sleep(Duration::from_millis(100)).await;
    let codes: Vec<u16> = world.writes().iter().map(|entry| entry.code).collect();
    assert_eq!(codes, [409, 200]);
    assert!(world.answers()[0].scanned_at >= asked_at);
    // Every write contains the version that it was computed from.
    world.tree.mount("95 22 8:0 / /srv rw - ext4 /dev/sda rw");
    let version = world.report()["metadata"]["resourceVersion"].clone();
    sleep(RESCAN).await;
    let writes = world.writes();
    assert_eq!(writes.len(), 1);
    assert_eq!(
        writes[0].body.as_ref().unwrap()["metadata"]["resourceVersion"],
        version
    );
}

#[tokio::test(start_paused = true)]
async fn errors_slow_the_agent_down_and_do_not_end_it() {
    let world = World::running(Tree::with_volume()).await;
    for fault in [
        refusal(503),
        Fault::Disconnect {
            after_effect: false,
        },
        Fault::Hang,
    ] {
        let id = world
            .server
            .add_fault(FaultRule::always(on(Verb::Patch), fault.clone()));
        world.writes();
        let epoch = u64::from(world.server.clock().now().as_second().unsigned_abs() as u32);
        world.ask("n1", &[challenge("recovery-1", epoch)]).await;
        sleep(LONG).await;
        let tries = world.writes().len();
        // 600 s with pauses that grow to 30 s and more by jitter; a hanging request takes its 15 s.
        assert!(
            (8..40).contains(&tries) || matches!(fault, Fault::Hang),
            "{fault:?}: {tries}"
        );
        world.server.remove_fault(id);
        sleep(Duration::from_secs(120)).await;
        assert_eq!(world.answers()[0].epoch, epoch, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn new_questions_do_not_shorten_the_pause_after_an_error() {
    let world = World::running(Tree::with_volume()).await;
    world.writes();
    world
        .server
        .add_fault(FaultRule::always(on(Verb::Patch), refusal(503)));
    for epoch in 1..=50 {
        world.ask("n1", &[challenge("recovery-1", epoch)]).await;
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.writes().len(), 1);
    world.server.clear_faults();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.answers()[0].epoch, 50);
}

#[tokio::test(start_paused = true)]
async fn a_broken_watch_loses_no_challenge() {
    let world = World::running(Tree::with_volume()).await;
    for (epoch, how) in [
        (1, WatchBreak::End),
        (2, WatchBreak::Expired),
        (3, WatchBreak::Disconnect),
    ] {
        world.server.break_watches(&on(Verb::Watch), how);
        world.ask("n1", &[challenge("recovery-1", epoch)]).await;
        sleep(Duration::from_secs(60)).await;
        assert_eq!(world.answers()[0].epoch, epoch);
    }
}

#[tokio::test(start_paused = true)]
async fn the_agent_waits_for_its_crd_and_a_readable_boot_id() {
    let tree = Tree::with_volume();
    let mut world = World {
        server: World::bare(),
        tree,
        stop: None,
        agent: None,
    };
    world.start();
    sleep(LONG).await;
    assert_eq!(world.writes().len(), 0);
    std::fs::remove_file(world.tree.0.join("proc/stat")).unwrap();
    world
        .server
        .register_crd(&serde_json::to_value(NodeVolumeReport::crd()).unwrap());
    sleep(Duration::from_secs(120)).await;
    assert_eq!(world.report()["status"], Value::Null, "no boot, no report");
    world.tree.file("proc/stat", "btime 1752192000\n");
    sleep(Duration::from_secs(120)).await;
    assert!(world.status().inventory.is_some());
}

#[tokio::test(start_paused = true)]
async fn the_agent_stops_in_the_middle_of_a_request() {
    for fault in [None, Some(Fault::Hang)] {
        let mut world = World::running(Tree::with_volume()).await;
        if let Some(fault) = fault {
            world
                .server
                .add_fault(FaultRule::always(on(Verb::Patch), fault));
            world.ask("n1", &[challenge("recovery-1", 1)]).await;
            sleep(Duration::from_secs(1)).await;
        }
        let told = Instant::now();
        world.stop.take().unwrap().send(()).unwrap();
        world.agent.take().unwrap().await.unwrap();
        assert_eq!(told.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn two_runs_have_equal_requests_and_times() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let world = World::running(Tree::with_volume()).await;
        world
            .server
            .add_fault(FaultRule::always(on(Verb::Patch), refusal(503)).times(5));
        world.ask("n1", &[challenge("recovery-1", 1)]).await;
        sleep(LONG).await;
        let audit: Vec<(Timestamp, Verb, u16)> = world
            .server
            .take_audit()
            .iter()
            .map(|e| (e.at, e.verb, e.code))
            .collect();
        assert!(audit.len() > 8);
        runs.push(audit);
    }
    assert_eq!(runs[0], runs[1]);
}
