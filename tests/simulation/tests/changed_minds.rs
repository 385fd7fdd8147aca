//! People and policies that change their minds in the middle of a run (safety rule S5): no freeing effect follows, and what
//! was changed is put back.

use reattach_api::{Phase, VolumeRecovery};
use reattach_cloud_simulator::JobAction;
use reattach_core::hold::HOLD_LABEL;
use reattach_core::runbook::{DEFAULT_RUNBOOK, SCALE_TO_ZERO};
use reattach_drill::in_virtual_time;
use reattach_drill::request_log::Entry;
use reattach_drill::stage::{Expect, Stage};
use reattach_drill::world::{PERSON, World, WorldError};
use reattach_sim::apiserver::{Fault, FaultRule, RequestMatch, Verb, WatchBreak};
use reattach_tests_simulation::fixture::{
    on_first_node, policy, recycle_redis, redis_under, replicas,
};
use reattach_tests_simulation::{NODES, redis, secs, story};
use serde_json::{Value, json};

const POLICY: &str = "/apis/reattach.dev/v1alpha1/recoverypolicies/everything";
const CLAIM: &str = "/api/v1/namespaces/default/persistentvolumeclaims/redis-data";
const MERGE: &str = "application/merge-patch+json";

/// How a person changes their mind.
#[derive(Clone)]
struct Change {
    method: &'static str,
    path: &'static str,
    body: Value,
    /// The controller's watch of the policies does not hear of it.
    silent: bool,
}

impl Change {
    fn merge(path: &'static str, body: Value) -> Self {
        Self {
            method: "PATCH",
            path,
            body,
            silent: false,
        }
    }
}

fn is_held(w: &World) -> bool {
    let label = |r: &VolumeRecovery| {
        r.metadata
            .labels
            .as_ref()
            .is_some_and(|l| l.contains_key(HOLD_LABEL))
    };
    w.recoveries().iter().any(label)
}

/// The state after the change.
struct After {
    /// Changing requests of the controller that are no records of its own.
    effects: Vec<Entry>,
    held: bool,
    replicas: i64,
    /// Phase and message of the recovery that had a run.
    first: (Phase, String),
    story: String,
}

/// A phantom attachment whose driver cannot detach, so that a cloud detach is to come; `change` happens once `when` holds.
fn phantom(runbook: &'static str, when: fn(&World) -> bool, change: Change) -> After {
    let played = in_virtual_time(move || async move {
        let mut s = redis_under(1, runbook).await?;
        s.world.csi.set_unpublish_fails(true);
        recycle_redis(&mut s).await?;
        s.until("the run under way", secs(300), when).await?;
        if change.silent {
            silence_the_policies(&s);
        }
        s.world
            .request(PERSON, change.method, change.path, MERGE, &change.body)
            .await?;
        let at = s.world.request_log.len();
        s.pass(secs(600)).await;
        let effects: Vec<Entry> = s.world.request_log.entries()[at..]
            .iter()
            .filter(|e| !e.is_a_record())
            .cloned()
            .collect();
        // Another record may follow it, by what the policies say then.
        let ran = |r: &VolumeRecovery| r.status.as_ref().is_some_and(|st| !st.journal.is_empty());
        let run = s.world.recoveries().into_iter().find(ran);
        let first = run.and_then(|r| r.status).unwrap_or_default();
        Ok::<_, WorldError>(After {
            effects,
            held: is_held(&s.world),
            replicas: replicas(&s.world),
            first: (first.phase, first.message),
            story: story(&s),
        })
    });
    played.expect("virtual time").expect("the stage")
}

/// The watch of the policies ends, and the next one never answers.
fn silence_the_policies(s: &Stage) {
    let policies = |verb| RequestMatch {
        client: Some("reattach-controller".into()),
        resource: Some("recoverypolicies".into()),
        verb,
        ..RequestMatch::default()
    };
    let hang = |verb| FaultRule {
        requests: policies(Some(verb)),
        fault: Fault::Hang,
        probability: 1.0,
        times: None,
    };
    s.world.server().add_fault(hang(Verb::Watch));
    s.world
        .server()
        .break_watches(&policies(None), WatchBreak::End);
}

impl After {
    /// Asserts that nothing was freed, everything was restored, and the run ended for this reason.
    fn is_unwound(&self, because: &str) {
        let frees = |e: &&Entry| {
            let line = e.line();
            line.contains("/detach") || line.contains("eviction") || e.method == "DELETE"
        };
        let freeing: Vec<String> = self.effects.iter().filter(frees).map(Entry::line).collect();
        assert!(
            freeing.is_empty(),
            "after the change: {freeing:#?}\n{}",
            self.story
        );
        assert!(!self.held, "the hold is left\n{}", self.story);
        assert_eq!(self.replicas, 1, "{}", self.story);
        let (phase, message) = &self.first;
        assert!(
            *phase == Phase::Aborted && message.contains(because),
            "{phase:?}: {message}\n{}",
            self.story
        );
    }
}

fn mode(mode: &str) -> Value {
    json!({"spec": {"mode": mode}})
}

#[test]
fn a_policy_set_to_observe_ends_a_held_run() {
    phantom(
        DEFAULT_RUNBOOK,
        is_held,
        Change::merge(POLICY, mode("Observe")),
    )
    .is_unwound("mode Observe");
}

#[test]
fn a_policy_set_to_observe_restores_a_workload_at_zero() {
    let at_zero = |w: &World| replicas(w) == 0;
    phantom(
        SCALE_TO_ZERO,
        at_zero,
        Change::merge(POLICY, mode("Observe")),
    )
    .is_unwound("mode Observe");
}

#[test]
fn a_policy_is_read_live_before_an_effect() {
    let change = Change {
        silent: true,
        ..Change::merge(POLICY, mode("DryRun"))
    };
    phantom(DEFAULT_RUNBOOK, is_held, change).is_unwound("mode DryRun");
}

/// Another policy of the cluster, which only shows, rules the claim then.
#[test]
fn a_deleted_policy_ends_its_runs() {
    let change = Change {
        method: "DELETE",
        path: POLICY,
        body: json!({}),
        silent: false,
    };
    phantom(DEFAULT_RUNBOOK, is_held, change)
        .is_unwound("RecoveryPolicy default now says mode DryRun");
}

#[test]
fn an_opt_out_ends_the_run_of_its_claim() {
    let out = || json!({"metadata": {"annotations": {"reattach.dev/opt-out": "true"}}});
    phantom(DEFAULT_RUNBOOK, is_held, Change::merge(CLAIM, out())).is_unwound("opted out");
    let namespace = "/api/v1/namespaces/default";
    phantom(DEFAULT_RUNBOOK, is_held, Change::merge(namespace, out())).is_unwound("opted out");
    let at_zero = |w: &World| replicas(w) == 0;
    phantom(SCALE_TO_ZERO, at_zero, Change::merge(CLAIM, out())).is_unwound("opted out");
}

#[test]
fn a_deleted_claim_ends_its_run() {
    let change = Change {
        method: "DELETE",
        path: CLAIM,
        body: json!({}),
        silent: false,
    };
    let at_zero = |w: &World| replicas(w) == 0;
    let after = phantom(SCALE_TO_ZERO, at_zero, change);
    let detached = after.effects.iter().any(|e| e.line().contains("/detach"));
    assert!(
        !detached && after.replicas == 1,
        "replicas {}\n{}",
        after.replicas,
        after.story
    );
}

/// The plan powers the machine off after a minute; in that minute the policy stops allowing it.
#[test]
fn a_revoked_power_off_permission_stops_the_order() {
    let played = in_virtual_time(|| async {
        let mut s = on_first_node(1, [(redis(), Expect::Restored)]).await?;
        policy(&s, &json!({"powerOff": "Allowed"})).await?;
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(10)).await;
        s.hang(NODES[0].0)?;
        s.phases(&["redis"], &[Phase::Running], secs(600)).await?;
        s.world
            .merge(PERSON, POLICY, &json!({"spec": {"powerOff": "Never"}}))
            .await?;
        s.pass(secs(600)).await;
        let ordered = s
            .world
            .cloud
            .jobs()
            .iter()
            .any(|j| j.action == JobAction::Shutdown);
        let story: String = s.lines().iter().map(|l| l.render()).collect();
        Ok::<_, WorldError>((ordered, story))
    });
    let (ordered, story) = played.expect("virtual time").expect("the stage");
    assert!(!ordered, "{story}");
}
