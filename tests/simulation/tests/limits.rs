//! The cloud's rate limit, which the CSI driver shares with the controller: what the controller leaves to the driver while many
//! volumes are stuck.

use kube::ResourceExt;
use reattach_api::Phase;
use reattach_cloud_simulator::{Fault, FaultRule};
use reattach_drill::app::App;
use reattach_drill::stage::{Expect, Stage};
use reattach_drill::world::{PERSON, World, WorldError};
use reattach_tests_simulation::fixture::{new_stage, on_first_node, policy};
use reattach_tests_simulation::{redis, secs, simulate, story};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// Three nodes that die, and as many that live.
const NODES: [(&str, u64); 6] = [
    ("node-a", 101),
    ("node-b", 102),
    ("node-c", 103),
    ("node-d", 104),
    ("node-e", 105),
    ("node-f", 106),
];
/// Nodes that die: the first ones.
const DEAD: usize = 3;
/// Volumes on each node that dies.
const VOLUMES: u64 = 8;
/// Requests per minute of the account: half of what Linode documents for one user (800), as older recordings show it.
const LIMIT: u32 = 400;

/// One app per volume, [`VOLUMES`] of them on each of the first `dead` nodes.
async fn stage(dead: usize) -> Result<(Stage, Vec<String>), WorldError> {
    let mut s = new_stage(1, &NODES).await?;
    s.world.follow_power();
    let mut names = Vec::new();
    for (node, (open, _)) in (0..).zip(&NODES[..dead]) {
        only(&s.world, Some(open)).await?;
        for volume in 0..VOLUMES {
            let (n, name) = (node * VOLUMES + volume, format!("app{node}{volume}"));
            let label = format!("pvcbb1d06139b33{n:04}");
            let app = App::deployment(&name, 7_100 + n, &label, "an app");
            s.add(app, Expect::Running).await?;
            names.push(name);
        }
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        s.running(&all, secs(600)).await?;
    }
    only(&s.world, None).await?;
    Ok((s, names))
}

/// Cordons every node but one. None: no node is cordoned any more.
async fn only(w: &World, open: Option<&str>) -> Result<(), WorldError> {
    for (node, _) in NODES {
        let closed = open.is_some_and(|open| open != node);
        let body =
            json!({"spec": {"unschedulable": if closed { json!(true) } else { Value::Null }}});
        w.merge(PERSON, &format!("/api/v1/nodes/{node}"), &body)
            .await?;
    }
    Ok(())
}

/// The controller's requests to the cloud since the log had `from` lines, by status.
fn by_status(w: &World, from: usize) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for request in &w.cloud.requests()[from..] {
        *counts.entry(request.status.unwrap_or(0)).or_default() += 1;
    }
    counts
}

/// The controller's requests to the cloud since the log had `from` lines, by operation.
fn by_operation(w: &World, from: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in &w.cloud.requests()[from..] {
        *counts
            .entry(format!("{:?}", request.operation))
            .or_default() += 1;
    }
    counts
}

#[test]
fn the_driver_keeps_its_share_while_three_nodes_are_dead() {
    simulate(|| async {
        let (mut s, names) = stage(DEAD).await?;
        policy(&s, &json!({"nodes": {"patienceSeconds": 60}})).await?;
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(30)).await;
        s.world.cloud.set_rate_limit(Some(LIMIT));
        let from = s.world.cloud.requests().len();
        for (node, _) in &NODES[..DEAD] {
            s.hang(node)?;
        }
        // A person finds out, and shuts the machines down.
        s.pass(secs(180)).await;
        for (node, _) in &NODES[..DEAD] {
            s.shut_down(node).await?;
        }
        let off = Instant::now();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let running = s.running(&all, secs(1200)).await;
        println!(
            "healed {:.0} s after the machines were off; our requests by status {:?}, by operation {:?}; the driver's answered 429: {}",
            off.elapsed().as_secs_f64(),
            by_status(&s.world, from),
            by_operation(&s.world, from),
            s.world.cloud.refused_others(),
        );
        if let Err(error) = running {
            panic!("{error}\n{}", story(&s));
        }
        assert_eq!(s.world.cloud.refused_others(), 0, "the driver's requests");
        assert_eq!(by_status(&s.world, from).get(&429), None, "our requests");
        Ok(())
    });
}

/// Nobody shuts the machine down, so its recoveries wait.
#[test]
fn waiting_recoveries_ask_the_cloud_ever_more_seldom() {
    simulate(|| async {
        let (mut s, _) = stage(1).await?;
        policy(&s, &json!({"nodes": {"patienceSeconds": 60}})).await?;
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(30)).await;
        s.hang(NODES[0].0)?;
        s.pass(secs(240)).await;
        let from = s.world.cloud.requests().len();
        s.pass(secs(180)).await;
        let per_minute = (s.world.cloud.requests().len() - from) / 3;
        println!(
            "a dead node with {VOLUMES} volumes: {per_minute} requests a minute, by operation in 3 min {:?}",
            by_operation(&s.world, from)
        );
        assert!(per_minute < 100, "{per_minute}");
        Ok(())
    });
}

#[test]
fn a_look_that_the_limit_cuts_short_changes_no_status() {
    simulate(|| async {
        let mut s = on_first_node(1, [(redis(), Expect::Running)]).await?;
        policy(&s, &json!({"mode": "DryRun"})).await?;
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(30)).await;
        s.hang(NODES[0].0)?;
        s.phases(&["redis"], &[Phase::Planned], secs(120)).await?;
        s.pass(secs(20)).await;
        let before = s.recovery_of("redis").expect("a recovery");
        let throttle = Fault::Throttle {
            retry_after_seconds: Some(60),
        };
        let fault = s.world.cloud.add_fault(FaultRule::new([], throttle));
        let refused = |w: &World| w.cloud.requests().last().and_then(|r| r.status) == Some(429);
        s.until("a look that is refused", secs(30), refused).await?;
        let sent = s.world.cloud.requests().len();
        s.pass(secs(50)).await;
        let requests = s.world.cloud.requests().len();
        assert_eq!(requests, sent, "sent before the time was over");
        s.pass(secs(60)).await;
        let after = s.recovery_of("redis").expect("a recovery");
        assert_eq!(after.status, before.status);
        assert_eq!(after.resource_version(), before.resource_version());
        s.world.cloud.remove_fault(fault);
        s.pass(secs(70)).await;
        assert!(!refused(&s.world), "it looks again");
        let later = s.recovery_of("redis").and_then(|r| r.status);
        assert_eq!(later.map(|s| s.phase), Some(Phase::Planned));
        Ok(())
    });
}
