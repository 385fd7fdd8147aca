//! Nodes that fall silent: which are fenced, when, and what on them or around them keeps reattach from it.

use reattach_api::Phase;
use reattach_cloud_simulator::{InstanceStatus, JobAction, VolumeNo};
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_drill::app::App;
use reattach_drill::baseline::on_one_node;
use reattach_drill::stage::{Expect, Stage};
use reattach_drill::world::{PERSON, World, WorldError};
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_simulation::fixture::new_stage;
use reattach_tests_simulation::{postgres, redis, secs, simulate, story};
use serde_json::{Value, json};

const NODES: [(&str, u64); 3] = [("node-a", 101), ("node-b", 102), ("node-c", 103)];
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";

async fn stage(nodes: &[(&str, u64)]) -> Result<Stage, WorldError> {
    let s = new_stage(1, nodes).await?;
    s.world.follow_power();
    Ok(s)
}

/// A policy for everything in mode Auto that lets machines be powered off, with these rules for nodes.
async fn policy(s: &Stage, power_off: &str, nodes: Option<Value>) -> Result<(), WorldError> {
    let mut spec =
        json!({"mode": "Auto", "precedence": 0, "runbook": DEFAULT_RUNBOOK, "powerOff": power_off});
    if let Some(nodes) = nodes {
        spec["nodes"] = nodes;
    }
    s.world.policy_of("everything", &spec).await
}

async fn controller(s: &mut Stage) {
    s.start_replica("reattach-controller-0", None);
    s.pass(secs(10)).await;
}

fn shutdowns(w: &World) -> usize {
    w.cloud
        .jobs()
        .iter()
        .filter(|j| j.action == JobAction::Shutdown)
        .count()
}

fn is_off(w: &World, node: &str) -> bool {
    let instance = w.instance(node).ok().and_then(|i| w.cloud.instance(i));
    instance.is_some_and(|i| i.status != InstanceStatus::Running)
}

/// The message of the newest recovery of an app.
fn says(s: &Stage, app: &str) -> String {
    let status = s
        .recovery_of(app)
        .and_then(|r| r.status)
        .unwrap_or_default();
    format!("{:?}: {}", status.phase, status.message)
}

/// One app on each node.
async fn spread(s: &mut Stage, nodes: &[(&str, u64)]) -> Result<(), WorldError> {
    for (number, (node, _)) in nodes.iter().enumerate() {
        let n = number as u64;
        let name = format!("app{n}");
        let app = App::deployment(&name, 7100 + n, &format!("pvcbb1d06139b33{n:04}"), "an app");
        close_all_but(s, nodes, Some(node)).await?;
        s.add(app, Expect::Restored).await?;
        s.running(&[&name], secs(600)).await?;
    }
    close_all_but(s, nodes, None).await
}

/// Cordons every node but one; none: no node is cordoned any more.
async fn close_all_but(
    s: &Stage,
    nodes: &[(&str, u64)],
    open: Option<&str>,
) -> Result<(), WorldError> {
    for (node, _) in nodes {
        let closed = open.is_some_and(|open| open != *node).then_some(true);
        let body = json!({"spec": {"unschedulable": closed}});
        s.world
            .merge(PERSON, &format!("/api/v1/nodes/{node}"), &body)
            .await?;
    }
    Ok(())
}

/// The API server's load balancer lost the kubelets; the machines and their pods run and write.
#[test]
fn a_partition_of_every_node_powers_none_off() {
    simulate(|| async {
        let nodes: [(&str, u64); 8] = [
            ("n1", 101),
            ("n2", 102),
            ("n3", 103),
            ("n4", 104),
            ("n5", 105),
            ("n6", 106),
            ("n7", 107),
            ("n8", 108),
        ];
        for rules in [None, Some(json!({"patienceSeconds": 0}))] {
            let mut s = stage(&nodes).await?;
            spread(&mut s, &nodes).await?;
            policy(&s, "Allowed", rules).await?;
            controller(&mut s).await;
            for (node, _) in nodes {
                s.partition(node, true)?;
            }
            s.pass(secs(1800)).await;
            assert_eq!(shutdowns(&s.world), 0, "{}", story(&s));
            assert!(
                says(&s, "app0").contains("went down together with"),
                "{}",
                says(&s, "app0")
            );
            for (node, _) in nodes {
                s.partition(node, false)?;
            }
            s.pass(secs(300)).await;
            let names: Vec<String> = (0..nodes.len()).map(|n| format!("app{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            s.running(&names, secs(600)).await?;
            assert_eq!(shutdowns(&s.world), 0, "{}", story(&s));
        }
        Ok(())
    });
}

/// The first node's fence proves nothing about the second one, whose silence may have the same cause. The cloud's own word
/// does.
#[test]
fn a_second_silent_node_waits_for_the_clouds_state() {
    simulate(|| async {
        let mut s = stage(&NODES).await?;
        spread(&mut s, &NODES).await?;
        policy(&s, "Allowed", None).await?;
        controller(&mut s).await;
        let (first, second) = (s.node_of("app0"), s.node_of("app1"));
        assert_ne!(first, second);
        s.hang(&first)?;
        s.until("the first machine off", secs(600), |w| is_off(w, &first))
            .await?;
        s.hang(&second)?;
        s.pass(secs(900)).await;
        assert!(!is_off(&s.world, &second), "{}", story(&s));
        assert!(
            says(&s, "app1").contains("went down together with"),
            "{}",
            says(&s, "app1")
        );
        s.shut_down(&second).await?;
        s.running(&["app0", "app1", "app2"], secs(900)).await?;
        Ok(())
    });
}

#[test]
fn one_dead_node_is_fenced_after_its_patience() {
    simulate(|| async {
        let mut s = stage(&NODES).await?;
        on_one_node(&mut s, &NODES, [(redis(), Expect::Running)].into_iter()).await?;
        policy(&s, "Allowed", Some(json!({}))).await?;
        controller(&mut s).await;
        let dead = NODES[0].0;
        s.hang(dead)?;
        s.until("NotReady", secs(120), |w| !w.cluster.node_ready(dead))
            .await?;
        s.pass(secs(175)).await;
        assert_eq!(
            shutdowns(&s.world),
            0,
            "a boot may take so long\n{}",
            story(&s)
        );
        s.until("the machine off", secs(60), |w| is_off(w, dead))
            .await?;
        s.running(&["redis"], secs(900)).await?;
        s.phases(&["redis"], &[Phase::Recovered], secs(300)).await?;
        Ok(())
    });
}

#[test]
fn a_node_is_left_alone_during_maintenance() {
    simulate(|| async {
        for annotation in [
            "reattach.dev/maintenance",
            "weave.works/kured-reboot-in-progress",
        ] {
            let mut s = stage(&NODES).await?;
            on_one_node(&mut s, &NODES, [(redis(), Expect::Running)].into_iter()).await?;
            policy(&s, "Allowed", Some(json!({"patienceSeconds": 60}))).await?;
            controller(&mut s).await;
            let (dead, path) = (NODES[0].0, format!("/api/v1/nodes/{}", NODES[0].0));
            let mark = |value: Value| json!({"metadata": {"annotations": {annotation: value}}});
            s.world
                .merge(PERSON, &path, &mark(json!("2026-03-02")))
                .await?;
            s.hang(dead)?;
            s.pass(secs(900)).await;
            assert!(
                s.world.request_log.effects().is_empty(),
                "{annotation}\n{}",
                story(&s)
            );
            assert!(
                says(&s, "redis").contains(annotation),
                "{}",
                says(&s, "redis")
            );
            s.world.merge(PERSON, &path, &mark(Value::Null)).await?;
            s.running(&["redis"], secs(900)).await?;
        }
        Ok(())
    });
}

/// The machine of redis is also that of postgres, which is opted out.
async fn beside_an_opt_out(what: &str, rules: Value) -> Result<Stage, WorldError> {
    let mut s = stage(&NODES).await?;
    let apps = [(redis(), Expect::Running), (postgres(), Expect::Restored)];
    on_one_node(&mut s, &NODES, apps.into_iter()).await?;
    let opt_out = json!({"metadata": {"annotations": {"reattach.dev/opt-out": "true"}}});
    let claim = format!("{CLAIMS}/data-postgres-0");
    match what {
        "claim" => s.world.merge(PERSON, &claim, &opt_out).await.map(|_| ())?,
        "workload" => {
            let path = "/apis/apps/v1/namespaces/default/statefulsets/postgres";
            s.world.merge(PERSON, path, &opt_out).await.map(|_| ())?;
        }
        "policy" => {
            s.world
                .merge(
                    PERSON,
                    &claim,
                    &json!({"metadata": {"labels": {"tier": "precious"}}}),
                )
                .await?;
            let selector = json!({"claimLabels": {"tier": "precious"}});
            s.world
                .policy_of(
                    "precious",
                    &json!({"mode": "Observe", "precedence": 9, "selector": selector}),
                )
                .await?;
        }
        other => panic!("no such opt-out: {other}"),
    }
    policy(&s, "Allowed", Some(rules)).await?;
    controller(&mut s).await;
    s.hang(NODES[0].0)?;
    // Less than the 300 s after which Kubernetes itself evicts.
    s.pass(secs(280)).await;
    Ok(s)
}

#[test]
fn an_opted_out_claim_keeps_its_node_from_being_fenced() {
    simulate(|| async {
        for what in ["claim", "workload", "policy"] {
            let s = beside_an_opt_out(what, json!({"patienceSeconds": 60})).await?;
            assert!(
                s.world.request_log.effects().is_empty(),
                "{what}\n{}",
                story(&s)
            );
            let said = says(&s, "redis");
            assert!(
                said.contains("data-postgres-0") && said.contains("opted out"),
                "{what}: {said}"
            );
            assert!(said.starts_with("Refused"), "{what}: {said}");
            let holder = s.world.cloud.volume(VolumeNo(7002)).and_then(|v| v.holder);
            assert_eq!(holder.map(|h| h.0), Some(101), "{what}");
        }
        Ok(())
    });
}

/// The owner of a claim labels it, so that a policy with power-off rules it. The API server refuses such a policy now; this one
/// was stored before. In a namespace that the policy names, the label counts.
#[test]
fn a_label_on_a_claim_fences_no_node() {
    simulate(|| async {
        for (namespaces, fenced) in [(json!([]), false), (json!(["default"]), true)] {
            let mut s = stage(&NODES).await?;
            on_one_node(&mut s, &NODES, [(redis(), Expect::Running)].into_iter()).await?;
            let rest = json!({"mode": "Observe", "precedence": 0, "runbook": DEFAULT_RUNBOOK});
            s.world.policy_of("everything", &rest).await?;
            let gold = json!({"mode": "Auto", "precedence": 9, "runbook": DEFAULT_RUNBOOK, "powerOff": "Allowed",
                "nodes": {"patienceSeconds": 60},
                "selector": {"claimLabels": {"tier": "gold"}, "namespaces": namespaces}});
            s.world.policy_of("gold", &gold).await?;
            controller(&mut s).await;
            let label = json!({"metadata": {"labels": {"tier": "gold"}}});
            s.world
                .merge("editor", &format!("{CLAIMS}/redis-data"), &label)
                .await?;
            s.hang(NODES[0].0)?;
            s.pass(secs(900)).await;
            assert_eq!(
                is_off(&s.world, NODES[0].0),
                fenced,
                "{namespaces}\n{}",
                story(&s)
            );
            assert_eq!(
                s.world.request_log.effects().is_empty(),
                !fenced,
                "{namespaces}\n{}",
                story(&s)
            );
        }
        Ok(())
    });
}

#[test]
fn a_policy_may_override_opt_outs_on_a_node() {
    simulate(|| async {
        let rules = json!({"patienceSeconds": 60, "optOuts": "Override"});
        let mut s = beside_an_opt_out("claim", rules).await?;
        s.running(&["redis"], secs(900)).await?;
        assert!(is_off(&s.world, NODES[0].0));
        let recovery = s.recovery_of("redis").expect("a recovery");
        let (plan, _) = recovery.history().expect("readable");
        let wide = plan
            .and_then(|p| p.pins.node_wide.as_ref())
            .expect("a plan for a node");
        let claims: Vec<String> = wide.claims.iter().map(ToString::to_string).collect();
        assert_eq!(claims, ["default/data-postgres-0", "default/redis-data"]);
        Ok(())
    });
}

#[test]
fn a_node_that_the_rules_do_not_select_is_left_alone() {
    simulate(|| async {
        let mut s = stage(&NODES).await?;
        on_one_node(&mut s, &NODES, [(redis(), Expect::Running)].into_iter()).await?;
        policy(
            &s,
            "Allowed",
            Some(json!({"patienceSeconds": 60, "matchLabels": {"pool": "fenced"}})),
        )
        .await?;
        controller(&mut s).await;
        let dead = NODES[0].0;
        s.hang(dead)?;
        s.pass(secs(600)).await;
        assert!(s.world.request_log.effects().is_empty(), "{}", story(&s));
        assert!(
            says(&s, "redis").contains("do not select node node-a"),
            "{}",
            says(&s, "redis")
        );
        let label = json!({"metadata": {"labels": {"pool": "fenced"}}});
        s.world
            .merge(PERSON, &format!("/api/v1/nodes/{dead}"), &label)
            .await?;
        s.running(&["redis"], secs(900)).await?;
        Ok(())
    });
}

/// A policy that lets no machine be powered off and has no rules for nodes: the machine is off by a person, and its node is not
/// tainted by us all the same.
#[test]
fn no_node_rules_means_no_unattended_fence() {
    simulate(|| async {
        let mut s = stage(&NODES).await?;
        on_one_node(&mut s, &NODES, [(redis(), Expect::Running)].into_iter()).await?;
        policy(&s, "Never", None).await?;
        controller(&mut s).await;
        let dead = NODES[0].0;
        s.hang(dead)?;
        s.shut_down(dead).await?;
        s.pass(secs(600)).await;
        assert!(s.world.request_log.effects().is_empty(), "{}", story(&s));
        assert!(
            says(&s, "redis").contains("has no rules for nodes"),
            "{}",
            says(&s, "redis")
        );
        let rules = json!({"spec": {"nodes": {}}});
        s.world
            .merge(
                PERSON,
                "/apis/reattach.dev/v1alpha1/recoverypolicies/everything",
                &rules,
            )
            .await?;
        s.running(&["redis"], secs(900)).await?;
        Ok(())
    });
}

/// A run that is held by the brake has changed nothing, and may be held for hours.
#[test]
fn a_run_that_the_brake_holds_takes_no_budget() {
    simulate(|| async {
        let mut s = stage(&NODES).await?;
        spread(&mut s, &NODES).await?;
        let spec = json!({"mode": "Auto", "precedence": 0, "runbook": DEFAULT_RUNBOOK,
            "powerOff": "Allowed", "nodes": {"patienceSeconds": 60}, "budgets": {"cluster": 1, "node": 1}});
        s.world.policy_of("everything", &spec).await?;
        controller(&mut s).await;
        let of = |app: &str| s.node_of(app);
        let (held, healed, third) = (of("app0"), of("app1"), of("app2"));
        s.hang(&held)?;
        let begun = |w: &World| {
            let runs = |r: &reattach_api::VolumeRecovery| {
                r.status.as_ref().is_some_and(|s| !s.journal.is_empty())
            };
            w.recoveries().iter().any(runs)
        };
        s.until("the run begun", secs(300), begun).await?;
        s.hang(&third)?;
        s.pass(secs(180)).await;
        assert_eq!(shutdowns(&s.world), 0, "{}", story(&s));
        let stands = says(&s, "app0");
        assert!(
            stands.starts_with("Running") && stands.contains("went down together with"),
            "{stands}"
        );
        s.recycle(&healed, DiskAfter::Kept, secs(6)).await?;
        let down = |w: &World| !w.app_ready("app1", 1);
        s.until_stored("app1 down", secs(60), down).await?;
        s.running(&["app1"], secs(120)).await?;
        // The machine that the brake kept on is off at last by a person's hand, and its run takes its place again.
        s.shut_down(&held).await?;
        s.running(&["app0"], secs(600)).await?;
        Ok(())
    });
}

/// A recycle may take longer than Kubernetes needs to call the node dead. Back again the machine lacks the disk, which is
/// another class: its order begins at once and the first one ends without a failure.
#[test]
fn a_machine_back_from_a_long_recycle_is_healed_at_once() {
    simulate(|| async {
        let mut took = Vec::new();
        for off_for in [6, 75, 90] {
            let mut s = stage(&NODES).await?;
            on_one_node(&mut s, &NODES, [(redis(), Expect::Running)].into_iter()).await?;
            policy(&s, "Allowed", Some(json!({"patienceSeconds": 60}))).await?;
            controller(&mut s).await;
            let node = s.node_of("redis");
            s.recycle(&node, DiskAfter::Kept, secs(off_for)).await?;
            let down = |w: &World| w.cluster.node_ready(&node) && !w.app_ready("redis", 1);
            s.until_stored("the node back", secs(60), down).await?;
            took.push(s.running(&["redis"], secs(300)).await?.as_secs());
            s.pass(secs(30)).await;
            assert_eq!(shutdowns(&s.world), 0, "{}", story(&s));
            let mut ends: Vec<_> = s
                .world
                .recoveries()
                .into_iter()
                .map(|r| r.status.unwrap_or_default())
                .map(|s| (s.class.unwrap_or_default(), s.phase))
                .collect();
            ends.sort();
            println!("off for {off_for} s: {ends:?}\n{}", story(&s));
            assert_eq!(ends.last().map(|e| e.1), Some(Phase::Recovered));
        }
        println!("healed after {took:?} s");
        assert!(took.iter().all(|t| *t <= took[0] + 10), "{took:?}");
        Ok(())
    });
}
