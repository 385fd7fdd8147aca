//! A PodDisruptionBudget is about disruption: it may refuse the eviction of a stuck pod, is then named with its numbers and the way
//! out, and is passed by where the policy says so.

use reattach_api::Phase;
use reattach_drill::request_log::Entry;
use reattach_drill::stage::Expect;
use reattach_drill::stage::{Stage, recovery_of};
use reattach_drill::world::{APPS, World};
use reattach_tests_simulation::fixture::{on_first_node, policy, recycle_redis};
use reattach_tests_simulation::{play, redis, secs, story};
use serde_json::{Value, json};

const NAMED: &str = "PodDisruptionBudget redis (maxUnavailable 0, disruptionsAllowed 0, currentHealthy 0, desiredHealthy 1)";

/// Redis with a budget that allows no disruption, stuck under a policy with these fields.
async fn stuck(seed: u64, fields: &Value, budget: &Value) -> Stage {
    let mut s = on_first_node(seed, [(redis(), Expect::Running)])
        .await
        .expect("the app runs");
    let mut spec = json!({"maxUnavailable": 0, "selector": {"matchLabels": {"app": "redis"}}});
    for (key, value) in budget.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "redis", "namespace": APPS}, "spec": spec});
    s.world
        .create("sre@example.org", &budget)
        .await
        .expect("a budget");
    policy(&s, fields).await.expect("a policy");
    s.start_replica("reattach-controller-0", None);
    s.pass(secs(5)).await;
    recycle_redis(&mut s).await.expect("a recycle");
    // A node that has just come back still shows its pods as they were.
    let down = |w: &World| !w.app_ready("redis", 1);
    s.until_stored("the app down", secs(60), down)
        .await
        .expect("it is stuck");
    s
}

fn said(s: &Stage) -> (Phase, String) {
    let status = recovery_of(&s.world, &redis())
        .and_then(|r| r.status)
        .unwrap_or_default();
    (status.phase, status.message)
}

/// The requests that remove a pod: evictions and deletions.
fn removals(s: &Stage) -> Vec<Entry> {
    let of_a_pod = |e: &Entry| {
        e.path.ends_with("/eviction") || (e.method == "DELETE" && e.resource().1 == "pods")
    };
    let all = s.world.request_log.effects();
    all.into_iter().filter(of_a_pod).collect()
}

#[test]
fn a_refusing_budget_is_named_with_the_way_out() {
    play(|| async {
        let mut s = stuck(1, &json!({}), &json!({})).await;
        s.pass(secs(120)).await;
        let (_, message) = said(&s);
        let claim = &redis().volumes[0].claim;
        let way_out = format!("kubectl reattach recover -n {APPS} {claim} --runbook scale-to-zero");
        for says in [NAMED, way_out.as_str()] {
            assert!(message.contains(says), "{message}\n{}", story(&s));
        }
        let recovery = recovery_of(&s.world, &redis()).expect("a recovery");
        let plan = json!(recovery.status.unwrap_or_default().plan);
        assert_eq!(plan["budgets"][0]["name"], "redis", "{plan}");
        s.until("the run to fail", secs(600), |w| {
            w.recoveries()
                .iter()
                .any(|r| r.status.as_ref().is_some_and(|s| s.phase == Phase::Failed))
        })
        .await
        .expect("it fails");
        let failed = s.world.recoveries().into_iter().find_map(|r| {
            let status = r.status.unwrap_or_default();
            (status.phase == Phase::Failed).then_some(status.message)
        });
        let failed = failed.expect("a message");
        assert!(failed.contains(NAMED), "{failed}");
        let events = s.world.server().list("", "events", Some(APPS));
        assert!(
            events.iter().any(|e| e["note"]
                .as_str()
                .or(e["message"].as_str())
                .is_some_and(|m| m.contains("PodDisruptionBudget redis"))),
            "the person who is called reads it: {events:?}"
        );
        assert!(
            removals(&s)
                .iter()
                .all(|e| e.method == "POST" && !e.accepted()),
            "{}",
            story(&s)
        );
    });
}

#[test]
fn a_policy_may_delete_the_pod_that_a_budget_keeps() {
    play(|| async {
        let fields = json!({"stuckPods": "DeleteByUid", "budgetPatienceSeconds": 60});
        let mut s = stuck(2, &fields, &json!({})).await;
        s.running(&["redis"], secs(600)).await.expect("healed");
        let removals = removals(&s);
        let (last, before) = removals.split_last().expect("a removal");
        assert!(
            !before.is_empty() && before.iter().all(|e| e.method == "POST" && !e.accepted()),
            "{}",
            story(&s)
        );
        let patience = last.at.duration_since(before[0].at).as_secs();
        assert!((60..=62).contains(&patience), "{patience} s");
        assert!(
            last.accepted() && last.method == "DELETE",
            "{}",
            last.line()
        );
        assert_eq!(last.body["gracePeriodSeconds"], 30, "{}", last.body);
        assert!(
            last.body["preconditions"]["uid"].is_string(),
            "{}",
            last.body
        );
        let recovery = recovery_of(&s.world, &redis()).expect("a recovery");
        let journal = json!(recovery.status.unwrap_or_default().journal).to_string();
        assert!(
            journal.contains("evict pod") && journal.contains("delete pod"),
            "{journal}"
        );
        assert!(journal.contains("refusedByBudget"), "{journal}");
    });
}

#[test]
fn a_budget_that_lets_unhealthy_pods_go_hinders_nothing() {
    play(|| async {
        let always = json!({"unhealthyPodEvictionPolicy": "AlwaysAllow"});
        let mut s = stuck(3, &json!({}), &always).await;
        s.running(&["redis"], secs(600)).await.expect("healed");
        let removals = removals(&s);
        assert!(
            removals.iter().all(|e| e.method == "POST" && e.accepted()),
            "{}",
            story(&s)
        );
    });
}
