//! A machine that lost its power without a shutdown job: its automatic restart is switched off for the time of the recovery, and
//! that makes the proof that no shutdown can make.

use reattach_cloud_simulator::{DeadHost, Effect, InstanceStatus};
use reattach_drill::replica::{CrashPoint, Side};
use reattach_drill::stage::{Expect, Stage, phases_of};
use reattach_drill::world::{World, WorldError};
use reattach_tests_simulation::dead_node::{DeadNodeSetup, Death, run_dead_node};
use reattach_tests_simulation::fixture::{abort_before, on_first_node, policy, recovery_path};
use reattach_tests_simulation::{
    NODES, Part, RunResult, broken_rules, parts, redis, secs, seeds, simulate, story,
};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const ANSWERS: [DeadHost; 2] = [DeadHost::Silent, DeadHost::BootsFail];

fn lost(shown: DeadHost) -> DeadNodeSetup {
    DeadNodeSetup {
        death: Death::LosesPower(shown),
        ..DeadNodeSetup::default()
    }
}

fn good(case: &str, result: &RunResult) {
    assert!(
        result.broken.is_empty(),
        "{case}\nbroken: {:#?}\ndied: {:?}\n{}",
        result.broken,
        result.died,
        result.timeline
    );
}

/// The switches of a watchdog that the cloud carried out: off is `false`.
fn switches(s: &Stage) -> Vec<bool> {
    let effects = s.world.cloud.requests().into_iter().map(|r| r.effect);
    effects
        .filter_map(|e| match e {
            Effect::Watchdog { on, .. } => Some(on),
            Effect::None | Effect::Snapshot { .. } | Effect::Accepted { .. } => None,
        })
        .collect()
}

fn switched_once(s: &Stage) -> Vec<String> {
    let switches = switches(s);
    (switches != [false, true])
        .then(|| format!("the watchdog was switched {switches:?}"))
        .into_iter()
        .collect()
}

#[test]
fn class_a_heals_after_a_loss_of_power() {
    for shown in ANSWERS {
        for seed in seeds(2) {
            let setup = DeadNodeSetup {
                at_the_end: switched_once,
                ..lost(shown)
            };
            good(
                &format!("{shown:?}, seed {seed}"),
                &run_dead_node(seed, setup),
            );
        }
    }
}

parts!(
    the_leader_dies_at_every_request_after_a_loss_of_power {
        part_1,
        part_2,
        part_3,
        part_4
    } | part
        | { crash_everywhere(part) }
);

fn crash_everywhere(part: Part) {
    for seed in seeds(1) {
        let calm = lost(DeadHost::Silent);
        let requests = run_dead_node(seed, calm.clone()).requests;
        for number in part.of((1..=requests).step_by(2)) {
            for side in [Side::Before, Side::After] {
                let setup = DeadNodeSetup {
                    crash: Some(CrashPoint { number, side }),
                    ..calm.clone()
                };
                let result = run_dead_node(seed, setup);
                good(&format!("dead {side:?} request {number}"), &result);
            }
        }
    }
}

/// Whatever an abort interrupts, the run ends with the watchdog as it was (checked by the run itself).
#[test]
fn an_abort_switches_the_watchdog_on_again() {
    let requests = run_dead_node(1, lost(DeadHost::Silent)).requests;
    for number in (1..=requests).step_by(3) {
        let setup = DeadNodeSetup {
            then: Arc::new(move |s, _| {
                abort_before(s, number);
            }),
            heals: false,
            ..lost(DeadHost::Silent)
        };
        let result = run_dead_node(1, setup);
        let broken: Vec<&String> = result
            .broken
            .iter()
            .filter(|b| b.contains("watchdog"))
            .collect();
        assert!(
            broken.is_empty(),
            "abort before request {number}: {broken:#?}\n{}",
            result.timeline
        );
    }
}

/// Redis on the first node, under a policy that allows powering off.
async fn stage(seed: u64) -> Result<Stage, WorldError> {
    let s = on_first_node(seed, [(redis(), Expect::Running)]).await?;
    policy(
        &s,
        &json!({"mode": "Auto", "powerOff": "Allowed", "nodes": {"patienceSeconds": 60}}),
    )
    .await?;
    s.world.cloud.set_dead_host(DeadHost::Silent);
    Ok(s)
}

fn watchdog(w: &World) -> bool {
    let first = w.instance(NODES[0].0).expect("an instance");
    w.cloud
        .instance(first)
        .expect("an instance")
        .watchdog_enabled
}

/// Class D: the Node was deleted after its machine had lost its power, and the driver cannot detach.
#[test]
fn class_d_heals_after_a_loss_of_power() {
    simulate(|| async {
        let mut s = stage(1).await?;
        s.world.csi.set_unpublish_fails(true);
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(5)).await;
        let (first, _) = NODES[0];
        s.world.cloud.kill(s.world.instance(first)?)?;
        s.until("the node not Ready", secs(120), |w| {
            !w.cluster.node_ready(first)
        })
        .await?;
        let node = format!("/api/v1/nodes/{first}");
        s.world
            .request("oncall", "DELETE", &node, "application/json", &json!({}))
            .await?;
        let healed = s.running(&["redis"], secs(1200)).await;
        s.until_stored("every recovery over", secs(900), |w| {
            phases_of(w).iter().all(|p| p.is_final())
        })
        .await?;
        let told = story(&s);
        let healed = healed.unwrap_or_else(|error| panic!("{error}\n{told}"));
        println!(
            "class D healed {} s after the Node was deleted",
            healed.as_secs()
        );
        assert!(told.contains("class D (stuck record)"), "{told}");
        assert!(watchdog(&s.world), "the watchdog is on again\n{told}");
        assert_eq!(switches(&s), [false, true], "{told}");
        assert_eq!(broken_rules(&s), Vec::<String>::new(), "{told}");
        Ok(())
    });
}

/// The record is deleted by force while the watchdog is off: the note tells the janitor to switch it on again.
#[test]
fn a_deleted_record_leaves_no_watchdog_off() {
    simulate(|| async {
        let mut s = stage(1).await?;
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(5)).await;
        s.world.cloud.kill(s.world.instance(NODES[0].0)?)?;
        s.until("the watchdog off", secs(300), |w| !watchdog(w))
            .await?;
        let everything = "/apis/reattach.dev/v1alpha1/recoverypolicies/everything";
        let observe = json!({"spec": {"mode": "Observe"}});
        s.world
            .merge("sre@example.org", everything, &observe)
            .await?;
        let path = recovery_path(&s);
        let body = json!({"metadata": {"finalizers": null}});
        s.world
            .request(
                "oncall",
                "PATCH",
                &path,
                "application/merge-patch+json",
                &body,
            )
            .await?;
        s.world
            .request("oncall", "DELETE", &path, "application/json", &json!({}))
            .await?;
        s.until("the watchdog on again", secs(300), watchdog)
            .await?;
        Ok(())
    });
}

/// A person boots the machine while its watchdog is off: the proof is void, and the volume stays where it is.
#[test]
fn a_boot_after_the_readings_voids_the_proof() {
    for after in 0..12 {
        simulate(move || async move {
            let mut s = stage(1).await?;
            s.start_replica("reattach-controller-0", None);
            s.pass(secs(5)).await;
            let first = s.world.instance(NODES[0].0)?;
            s.world.cloud.kill(first)?;
            s.until("the watchdog off", secs(300), |w| !watchdog(w))
                .await?;
            s.pass(Duration::from_secs(2 * after)).await;
            s.world.cloud.host_is_back(first)?;
            s.world.cloud.boot(first)?;
            s.until("the machine on", secs(300), move |w| {
                w.cloud
                    .instance(first)
                    .is_some_and(|i| i.status == InstanceStatus::Running)
            })
            .await?;
            s.running(&["redis"], secs(1200)).await?;
            s.until("the watchdog on again", secs(1200), watchdog)
                .await?;
            s.until("the quarantine over", secs(600), |w| {
                !w.is_quarantined(NODES[0].0)
            })
            .await?;
            s.pass(secs(60)).await;
            assert_eq!(
                broken_rules(&s),
                Vec::<String>::new(),
                "{} s\n{}",
                2 * after,
                story(&s)
            );
            Ok(())
        });
    }
}
