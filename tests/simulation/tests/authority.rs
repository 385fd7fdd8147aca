//! Authority: a policy is a ceiling for every account without a right at cluster scope, and a right that was
//! taken away since stops a run.

use reattach_api::{Phase, VolumeRecovery};
use reattach_cloud_simulator::{InstanceStatus, JobAction};
use reattach_core::runbook::{DEFAULT_RUNBOOK, SCALE_TO_ZERO};
use reattach_drill::baseline::on_one_node;
use reattach_drill::stage::{Expect, Stage};
use reattach_drill::world::{PERSON, World, WorldError};
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_simulation::fixture::{new_stage, policy};
use reattach_tests_simulation::{NODES, redis, secs, simulate, story};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

const POLICY: &str = "/apis/reattach.dev/v1alpha1/recoverypolicies/everything";
/// Has every verb on VolumeRecoveries in the namespace of the apps.
const ADAM: &str = "adam@example.org";
/// Has them at cluster scope.
const CARLA: &str = "carla@example.org";

/// The people who have lost their rights.
type Withdrawn = Arc<Mutex<BTreeSet<&'static str>>>;

/// Redis on the first of two nodes, under a policy; adam and carla have their rights until they are withdrawn.
async fn stage(fields: Value) -> Result<(Stage, Withdrawn), WorldError> {
    let mut s = new_stage(1, &NODES).await?;
    s.world.follow_power();
    let withdrawn = Withdrawn::default();
    let gone = withdrawn.clone();
    s.world
        .server()
        .set_access(Some(Arc::new(move |user, what| {
            let lost = gone.lock().is_ok_and(|g| g.contains(user));
            let own = what["group"] == "reattach.dev" && what["resource"] == "volumerecoveries";
            own && !lost && (user == CARLA || user == ADAM && what["namespace"] == "default")
        })));
    on_one_node(&mut s, &NODES, [(redis(), Expect::Running)].into_iter()).await?;
    policy(&s, &fields).await?;
    s.start_replica("reattach-controller-0", None);
    s.pass(secs(10)).await;
    Ok((s, withdrawn))
}

/// The node of redis hangs, and Kubernetes has called it not Ready for a while.
async fn dead_node(s: &mut Stage) -> Result<(), WorldError> {
    s.hang(NODES[0].0)?;
    s.pass(secs(70)).await;
    Ok(())
}

async fn phantom(s: &mut Stage) -> Result<(), WorldError> {
    s.recycle(NODES[0].0, DiskAfter::Kept, secs(6)).await?;
    s.pass(secs(30)).await;
    Ok(())
}

/// A person asks for a recovery of redis.
async fn ask(s: &Stage, who: &str, spec: Value) -> Result<(), WorldError> {
    let mut body = json!({"claimName": "redis-data", "requester": who, "mode": "Auto", "runbook": DEFAULT_RUNBOOK});
    for (key, value) in spec.as_object().expect("an object") {
        body[key] = value.clone();
    }
    let name = format!("by-{}", who.split('@').next().unwrap_or_default());
    let object = json!({"apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
        "metadata": {"name": name, "namespace": "default"}, "spec": body});
    s.world.create(who, &object).await.map(|_| ())
}

fn of(w: &World, who: &str) -> Option<VolumeRecovery> {
    w.recoveries().into_iter().find(|r| r.spec.requester == who)
}

/// Phase and message of a person's recovery.
fn says(s: &Stage, who: &str) -> String {
    let status = of(&s.world, who).and_then(|r| r.status).unwrap_or_default();
    format!("{:?}: {}", status.phase, status.message)
}

/// A person approves the plan of the recovery that `asked` asked for.
async fn approve(s: &mut Stage, asked: &str, who: &str) -> Result<(), WorldError> {
    let waits = |w: &World| {
        of(w, asked)
            .and_then(|r| r.status)
            .is_some_and(|st| st.phase == Phase::AwaitingApproval)
    };
    s.until("a plan to approve", secs(300), waits).await?;
    let recovery = of(&s.world, asked).expect("it is there");
    let hash = recovery.status.and_then(|st| st.plan_hash).expect("a hash");
    let name = recovery.metadata.name.unwrap_or_default();
    let path = format!("/apis/reattach.dev/v1alpha1/namespaces/default/volumerecoveries/{name}");
    s.world
        .merge(
            who,
            &path,
            &json!({"spec": {"approval": {"planHash": hash, "approver": who}}}),
        )
        .await?;
    Ok(())
}

#[test]
fn a_namespace_admin_is_bound_by_the_policy() {
    simulate(|| async {
        for (mode, words) in [
            ("Observe", "at most mode Observe"),
            ("Approve", "at most mode Approve"),
        ] {
            let (mut s, _) = stage(json!({"mode": mode})).await?;
            phantom(&mut s).await?;
            ask(&s, ADAM, json!({})).await?;
            s.pass(secs(300)).await;
            assert!(
                s.world.request_log.effects().is_empty(),
                "{mode}\n{}",
                story(&s)
            );
            let said = says(&s, ADAM);
            assert!(
                said.starts_with("Refused") && said.contains(words) && said.contains(ADAM),
                "{said}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_cluster_admin_may_exceed_the_policy() {
    simulate(|| async {
        let (mut s, _) = stage(json!({"mode": "Observe"})).await?;
        phantom(&mut s).await?;
        ask(&s, CARLA, json!({})).await?;
        s.running(&["redis"], secs(600)).await?;
        Ok(())
    });
}

#[test]
fn a_claim_without_a_policy_is_left_to_cluster_admins() {
    simulate(|| async {
        let (mut s, _) =
            stage(json!({"mode": "Auto", "selector": {"namespaces": ["elsewhere"]}})).await?;
        for policy in ["default"] {
            let path = format!("/apis/reattach.dev/v1alpha1/recoverypolicies/{policy}");
            s.world
                .request(PERSON, "DELETE", &path, "application/json", &json!({}))
                .await?;
        }
        phantom(&mut s).await?;
        ask(&s, ADAM, json!({})).await?;
        s.pass(secs(200)).await;
        assert!(s.world.request_log.effects().is_empty(), "{}", story(&s));
        assert!(
            says(&s, ADAM).contains("no RecoveryPolicy selects the claim"),
            "{}",
            says(&s, ADAM)
        );
        Ok(())
    });
}

#[test]
fn a_namespace_admin_uses_the_runbook_of_the_policy() {
    simulate(|| async {
        let (mut s, _) = stage(json!({"mode": "Approve", "runbook": SCALE_TO_ZERO})).await?;
        phantom(&mut s).await?;
        ask(&s, ADAM, json!({"mode": "Approve"})).await?;
        approve(&mut s, ADAM, ADAM).await?;
        s.pass(secs(200)).await;
        assert!(s.world.request_log.effects().is_empty(), "{}", story(&s));
        assert!(
            says(&s, ADAM).contains("names runbook scale-to-zero"),
            "{}",
            says(&s, ADAM)
        );
        Ok(())
    });
}

/// The policy lets no machine be powered off, so a permission that reaches no further than a namespace lets none either.
#[test]
fn a_namespace_admin_powers_no_machine_off() {
    simulate(|| async {
        for nodes in [json!({"patienceSeconds": 60}), Value::Null] {
            let (mut s, _) =
                stage(json!({"mode": "Approve", "powerOff": "Never", "nodes": nodes})).await?;
            dead_node(&mut s).await?;
            ask(
                &s,
                ADAM,
                json!({"mode": "Approve", "powerOff": {"allowedBy": ADAM}}),
            )
            .await?;
            approve(&mut s, ADAM, ADAM).await?;
            s.pass(secs(600)).await;
            let off = s
                .world
                .cloud
                .jobs()
                .iter()
                .any(|j| j.action == JobAction::Shutdown);
            assert!(
                !off && s.world.request_log.effects().is_empty(),
                "{}",
                story(&s)
            );
            assert!(
                says(&s, ADAM).contains("lets no machine be powered off"),
                "{}",
                says(&s, ADAM)
            );
        }
        Ok(())
    });
}

/// The machine is off already by its owner; to take its node out of service reaches beyond the namespace.
#[test]
fn a_namespace_admin_fences_no_node() {
    simulate(|| async {
        let (mut s, _) = stage(json!({"mode": "Approve", "powerOff": "Never"})).await?;
        let dead = NODES[0].0;
        dead_node(&mut s).await?;
        s.shut_down(dead).await?;
        // The plan that is shown rests on the finished shutdown.
        s.pass(secs(60)).await;
        ask(&s, ADAM, json!({"mode": "Approve"})).await?;
        approve(&mut s, ADAM, ADAM).await?;
        // Later the pod is evicted, and the plan is another one.
        s.pass(secs(60)).await;
        assert!(s.world.request_log.effects().is_empty(), "{}", story(&s));
        assert!(
            says(&s, ADAM).contains("needs more than a right in one namespace"),
            "{}",
            says(&s, ADAM)
        );
        Ok(())
    });
}

/// The network cuts both nodes off, and their pods write on. The policy has rules for nodes, and lets no machine be powered off.
#[test]
fn a_namespace_declaration_fences_no_node() {
    simulate(|| async {
        for (who, fences) in [(ADAM, false), (CARLA, true)] {
            let (mut s, _) =
                stage(json!({"mode": "Approve", "powerOff": "Never", "nodes": {}})).await?;
            for (node, _) in NODES {
                s.partition(node, true)?;
            }
            s.pass(secs(70)).await;
            let holder = NODES[0].1.to_string();
            let word = json!({"holder": holder, "declaredBy": who, "reason": "dead", "at": s.world.server().clock().now()});
            ask(&s, who, json!({"mode": "Approve", "declaration": word})).await?;
            approve(&mut s, who, who).await?;
            s.pass(secs(30)).await;
            if !fences {
                assert!(
                    says(&s, who).contains("at cluster scope"),
                    "{}",
                    says(&s, who)
                );
            }
            // Then Kubernetes evicts the pods, and the approval is for an older plan.
            s.pass(secs(570)).await;
            assert_eq!(
                !s.world.request_log.effects().is_empty(),
                fences,
                "{who}: {}\n{}",
                says(&s, who),
                story(&s)
            );
        }
        Ok(())
    });
}

#[test]
fn a_cluster_admin_may_power_off_and_fence() {
    simulate(|| async {
        let (mut s, _) = stage(json!({"mode": "Observe"})).await?;
        let dead = NODES[0].0;
        dead_node(&mut s).await?;
        ask(
            &s,
            CARLA,
            json!({"mode": "Approve", "powerOff": {"allowedBy": CARLA}}),
        )
        .await?;
        approve(&mut s, CARLA, CARLA).await?;
        let healed = s.running(&["redis"], secs(900)).await;
        healed.unwrap_or_else(|error| panic!("{error}: {}\n{}", says(&s, CARLA), story(&s)));
        let instance = s.world.instance(dead)?;
        let status = s.world.cloud.instance(instance).map(|i| i.status);
        assert_eq!(status, Some(InstanceStatus::Offline), "{}", story(&s));
        Ok(())
    });
}

/// The run has begun, and waits whether the node comes back; then the approver loses the right.
#[test]
fn a_right_withdrawn_before_the_first_effect_stops_the_run() {
    simulate(|| async {
        for who in [ADAM, CARLA] {
            let spec =
                json!({"mode": "Approve", "powerOff": "Allowed", "nodes": {"patienceSeconds": 0}});
            let (mut s, withdrawn) = stage(spec).await?;
            dead_node(&mut s).await?;
            ask(
                &s,
                who,
                json!({"mode": "Approve", "powerOff": {"allowedBy": who}}),
            )
            .await?;
            approve(&mut s, who, who).await?;
            let runs = |w: &World| {
                of(w, who)
                    .and_then(|r| r.status)
                    .is_some_and(|st| st.phase == Phase::Running)
            };
            s.until("a run", secs(60), runs).await?;
            withdrawn.lock().expect("the lock").insert(who);
            s.pass(secs(300)).await;
            assert!(
                s.world.request_log.effects().is_empty(),
                "{who}\n{}",
                story(&s)
            );
            let said = says(&s, who);
            assert!(
                said.starts_with("Aborted") && said.contains("does not have the verb approve"),
                "{said}"
            );
        }
        Ok(())
    });
}

#[test]
fn an_approval_without_the_right_starts_no_run() {
    simulate(|| async {
        let (mut s, _) = stage(json!({"mode": "Approve"})).await?;
        phantom(&mut s).await?;
        ask(&s, ADAM, json!({"mode": "Approve"})).await?;
        approve(&mut s, ADAM, "eve@example.org").await?;
        s.pass(secs(300)).await;
        assert!(s.world.request_log.effects().is_empty(), "{}", story(&s));
        assert!(
            says(&s, ADAM).contains("eve@example.org does not have the verb approve"),
            "{}",
            says(&s, ADAM)
        );
        Ok(())
    });
}

/// Within the policy a right in the namespace is enough.
#[test]
fn a_namespace_admin_approves_what_the_policy_allows() {
    simulate(|| async {
        let (mut s, _) = stage(json!({"mode": "Approve"})).await?;
        phantom(&mut s).await?;
        ask(&s, ADAM, json!({"mode": "Approve"})).await?;
        approve(&mut s, ADAM, ADAM).await?;
        s.running(&["redis"], secs(600)).await?;
        Ok(())
    });
}

/// A person sets the policy to Observe while a run of the controller holds the claim: it turns back.
#[test]
fn a_policy_that_says_observe_stops_a_run() {
    simulate(|| async {
        let (mut s, _) = stage(json!({"mode": "Auto"})).await?;
        s.world.csi.set_unpublish_fails(true);
        phantom(&mut s).await?;
        let held = |w: &World| {
            let label = |r: &VolumeRecovery| {
                r.metadata
                    .labels
                    .as_ref()
                    .is_some_and(|l| l.contains_key("reattach.dev/hold"))
            };
            w.recoveries().iter().any(label)
        };
        s.until("a hold", secs(300), held).await?;
        s.world
            .merge(PERSON, POLICY, &json!({"spec": {"mode": "Observe"}}))
            .await?;
        s.pass(secs(5)).await;
        let at = s.world.request_log.len();
        s.pass(secs(600)).await;
        let after = s.world.request_log.entries();
        let after: Vec<String> = after[at..]
            .iter()
            .filter(|e| !e.is_a_record())
            .map(|e| e.line())
            .collect();
        let freeing: Vec<&String> = after
            .iter()
            .filter(|l| l.contains("/detach") || l.contains("eviction"))
            .collect();
        assert!(freeing.is_empty(), "{freeing:#?}\n{}", story(&s));
        assert!(!held(&s.world), "the hold is lifted\n{}", story(&s));
        Ok(())
    });
}
