//! The plan that is stored with a run is checked at every turn: of another version, or edited, it stops the run.

use reattach_api::{Phase, VolumeRecovery};
use reattach_core::journal::{Event, Outcome};
use reattach_core::runbook::SCALE_TO_ZERO;
use reattach_drill::in_virtual_time;
use reattach_drill::stage::{Expect, Stage, recovery_of};
use reattach_drill::world::{APPS, World};
use reattach_tests_simulation::fixture::{
    on_first_node, policy, redis_to_zero, redis_under, replicas,
};
use reattach_tests_simulation::{NODES, redis, secs};
use serde_json::{Value, json};

const PERSON: &str = "sre@example.org";

/// A run under scale-to-zero, up to the moment at which its workload is at zero. `stuck`: until its detach was issued.
async fn at_zero(seed: u64, stuck: bool) -> Stage {
    let mut s = redis_under(seed, SCALE_TO_ZERO).await.expect("redis runs");
    s.world.csi.set_unpublish_fails(stuck);
    redis_to_zero(&mut s).await.expect("at zero");
    s
}

/// Changes the stored plan, as any account with the right to write the status can.
async fn edit(s: &Stage, change: impl Fn(&mut Value)) {
    let recovery = recovery_of(&s.world, &redis()).expect("a recovery");
    let name = recovery.metadata.name.expect("a name");
    let path =
        format!("/apis/reattach.dev/v1alpha1/namespaces/{APPS}/volumerecoveries/{name}/status");
    let stored = s
        .world
        .server()
        .read("reattach.dev", "volumerecoveries", APPS, &name)
        .expect("the object");
    let mut plan = stored["status"]["plan"].clone();
    change(&mut plan);
    s.world
        .merge(PERSON, &path, &json!({ "status": { "plan": plan } }))
        .await
        .expect("accepted");
}

fn said(r: &VolumeRecovery) -> (Phase, String, usize) {
    let status = r.status.clone().unwrap_or_default();
    (status.phase, status.message, status.journal.len())
}

/// Asserts that the workload is restored by its stamp, a person is called, and nothing else is issued or journaled.
fn stops_and_puts_back(
    seed: u64,
    change: impl Fn(&mut Value) + Send + 'static,
    sentence: &'static str,
) {
    in_virtual_time(move || async move {
        let mut s = at_zero(seed, false).await;
        edit(&s, change).await;
        let lines = said(&recovery_of(&s.world, &redis()).expect("a recovery")).2;
        let effects = s.world.request_log.effects().len();
        s.phases(&["redis"], &[Phase::Stuck], secs(60))
            .await
            .expect("a person is called");
        s.until("restored", secs(60), |w| replicas(w) == 1)
            .await
            .expect("put back");
        s.pass(secs(900)).await;
        let (phase, message, now) = said(&recovery_of(&s.world, &redis()).expect("a recovery"));
        assert_eq!(phase, Phase::Stuck, "{message}");
        assert!(
            message.contains(sentence) && message.contains("gets its count back"),
            "{message}"
        );
        assert_eq!(now, lines, "nothing is journaled by such a plan");
        let after: Vec<String> = s.world.request_log.effects()[effects..]
            .iter()
            .map(|e| e.line())
            .collect();
        assert!(
            after.len() == 1 && after[0].contains("deployments/redis"),
            "one write that restores: {after:#?}"
        );
    })
    .expect("virtual time");
}

#[test]
fn an_edited_plan_stops_the_run_and_the_stamp_restores() {
    stops_and_puts_back(
        1,
        |plan| plan["pins"]["holder"] = json!("999"),
        "the plan was changed after it was made",
    );
}

#[test]
fn another_versions_plan_stops_the_run_and_the_stamp_restores() {
    stops_and_puts_back(
        2,
        |plan| plan["version"] = json!(1),
        "the plan is of version 1",
    );
}

/// S3: a detach of ours is under way, and the plan that says of which volume is not to be trusted.
#[test]
fn an_edited_plan_restores_nothing_after_a_detach() {
    in_virtual_time(|| async {
        let mut s = at_zero(3, true).await;
        let detached = |w: &World| {
            recovery_of(w, &redis())
                .and_then(|r| r.status)
                .is_some_and(|status| {
                    let freeing = |m: &Event| matches!(m, Event::Started { proof: Some(_), .. });
                    status
                        .journal
                        .iter()
                        .any(|e| e.get().is_ok_and(|e| freeing(&e.event)))
                })
        };
        s.until("a detach", secs(600), detached)
            .await
            .expect("issued");
        edit(&s, |plan| plan["pins"]["volume"] = json!("999")).await;
        let effects = s.world.request_log.effects().len();
        s.pass(secs(900)).await;
        let (phase, message, _) = said(&recovery_of(&s.world, &redis()).expect("a recovery"));
        assert_eq!(phase, Phase::Stuck, "{message}");
        assert!(message.contains("A detach may be under way"), "{message}");
        assert_eq!(
            replicas(&s.world),
            0,
            "better at zero than a disk pulled from under the next pod"
        );
        assert_eq!(s.world.request_log.effects().len(), effects);
    })
    .expect("virtual time");
}

/// The escalation names the machine that the run powered off: no other record of the power-off is readable.
#[test]
fn an_edited_plan_names_the_machine_that_was_powered_off() {
    in_virtual_time(|| async {
        let apps = [(redis(), Expect::Running)];
        let mut s = on_first_node(4, apps).await.expect("redis runs");
        let fields = json!({"powerOff": "AllowedAndOn"});
        policy(&s, &fields).await.expect("a policy");
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(10)).await;
        s.hang(NODES[0].0).expect("a node");
        let ordered = |w: &World| {
            recovery_of(w, &redis()).and_then(|r| r.status).is_some_and(|status| {
                let off = |m: &Event| {
                    matches!(m, Event::Outcome { outcome: Outcome::Applied { detail }, .. } if detail.contains("power the instance off"))
                };
                status.journal.iter().any(|e| e.get().is_ok_and(|e| off(&e.event)))
            })
        };
        s.until("powered off", secs(900), ordered).await.expect("ordered");
        edit(&s, |plan| plan["pins"]["holder"] = json!("999")).await;
        s.phases(&["redis"], &[Phase::Stuck], secs(60)).await.expect("a person is called");
        let (_, message, _) = said(&recovery_of(&s.world, &redis()).expect("a recovery"));
        let (node, instance) = NODES[0];
        assert!(
            message.contains(&format!("power instance {instance} ({node}) off (accepted)")),
            "{message}"
        );
    })
    .expect("virtual time");
}
