//! The shipped controller with the AWS provider, over a cluster and an EC2 in memory, in virtual time: the requests of a
//! recovery to EC2, their order, and that each was in the journal first.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use reattach_api::{Phase, VolumeRecovery};
use reattach_aws::{AwsConfig, AwsProvider};
use reattach_cloud_simulator::{DetachBehaviour, Effect, InstanceStatus, Timings, VolumeNo};
use reattach_core::journal::{Entry, Event, Outcome};
use reattach_core::plan::Plan;
use reattach_core::proof::ProofKind;
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_core::steps::StepKind;
use reattach_drill::app::App;
use reattach_drill::baseline::on_one_node;
use reattach_drill::cloud_profile::CloudProfile;
use reattach_drill::replica::TOKEN;
use reattach_drill::request_log::Target;
use reattach_drill::stage::{Expect, Stage};
use reattach_drill::world::{World, WorldError};
use reattach_drill::{checks, in_virtual_time};
use reattach_provider_api::Provider;
use reattach_sim::cloud::Ground;
use reattach_sim::kubelet::DiskAfter;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const NODES: [(&str, u64); 2] = [("ip-10-0-0-1", 0x5001), ("ip-10-0-0-2", 0x5002)];
const APP: &str = "postgres";
const VOLUME: VolumeNo = VolumeNo(0x7001);
const LABEL: &str = "pvc5c1f6f0e6a0d4d0e";
/// A duration longer than any recovery here.
const LONG: Duration = Duration::from_secs(1500);

const STOP: &str = "StopInstances i-00000000000005001";
const PLAIN: &str = "DetachVolume vol-00000000000007001 from i-00000000000005001";
const FORCE: &str = "DetachVolume vol-00000000000007001 from i-00000000000005001 by force";
const SNAPSHOT: &str = "CreateSnapshot vol-00000000000007001";

fn profile() -> CloudProfile {
    let provider = |transport| {
        let config = AwsConfig::fixed("eu-central-1", "http://127.0.0.1", TOKEN, "secret");
        let config = config.map_err(|e| e.to_string())?;
        Ok(Arc::new(AwsProvider::new(transport, config)) as Arc<dyn Provider>)
    };
    CloudProfile {
        ground: Ground::Ebs,
        provider: Arc::new(provider),
    }
}

/// A database on the first of two nodes, and two replicas of the controller in a mode that acts.
async fn stage(seed: u64, snapshots: &str) -> Result<Stage, WorldError> {
    let start = "2026-03-02T03:00:00Z".parse().unwrap();
    let world = World::build_on(profile(), seed, start, &NODES).await?;
    let mut s = Stage::with(world, Arc::new(|_| {}));
    s.world.follow_power();
    let app = App::stateful_set(APP, VOLUME.0, LABEL, 1, "the database");
    on_one_node(&mut s, &NODES, [(app, Expect::Running)].into_iter()).await?;
    let policy = json!({"mode": "Auto", "precedence": 0, "runbook": DEFAULT_RUNBOOK, "powerOff": "Allowed",
        "snapshotBeforeForce": snapshots, "nodes": {"patienceSeconds": 60}});
    s.world.policy_of("everything", &policy).await?;
    for replica in ["reattach-controller-0", "reattach-controller-1"] {
        s.start_replica(replica, None);
        s.pass(Duration::from_secs(5)).await;
    }
    Ok(s)
}

/// Runs the recovery in virtual time.
fn simulate<F>(play: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = Result<(), WorldError>>,
{
    in_virtual_time(move || async move { play().await.map_err(|e| e.to_string()) })
        .unwrap()
        .unwrap();
}

/// Returns the mutations sent to EC2, in order.
fn orders(s: &Stage) -> Vec<String> {
    let entries = s
        .world
        .request_log
        .entries()
        .into_iter()
        .filter(|e| e.target == Target::Cloud);
    let line = |e: reattach_drill::request_log::Entry| {
        let of = |key: &str| e.body[key].as_str().unwrap_or_default().to_owned();
        match of("Action").as_str() {
            "DetachVolume" => {
                let force = if of("Force") == "true" {
                    " by force"
                } else {
                    ""
                };
                format!(
                    "DetachVolume {} from {}{force}",
                    of("VolumeId"),
                    of("InstanceId")
                )
            }
            "CreateSnapshot" => format!("CreateSnapshot {}", of("VolumeId")),
            action => format!("{action} {}", of("InstanceId.1")),
        }
    };
    entries.map(line).collect()
}

fn recovery(s: &Stage) -> VolumeRecovery {
    s.recovery_of(APP).unwrap()
}

fn history(recovery: &VolumeRecovery) -> (Plan, Vec<Entry>) {
    let (plan, journal) = recovery.history().unwrap();
    (
        plan.unwrap().clone(),
        journal.into_iter().cloned().collect(),
    )
}

/// Returns the kinds of the steps whose effect is in the journal, in order.
fn begun(s: &Stage) -> Vec<StepKind> {
    let (plan, journal) = history(&recovery(s));
    let kind = |e: &Entry| match &e.event {
        Event::Started { step, .. } => Some(plan.steps[step.index()].kind),
        _ => None,
    };
    journal.iter().filter_map(kind).collect()
}

fn timeline(s: &Stage) -> String {
    s.lines().iter().map(|l| l.render()).collect()
}

/// Checks that the app runs, its recovery has ended, and all rules were kept: one writer, journal before effect, true
/// proofs, nothing left behind.
async fn all_is_well(s: &mut Stage) -> Result<(), WorldError> {
    let late = s.running(&[APP], LONG).await.err();
    assert!(late.is_none(), "{late:?}\n{}", timeline(s));
    let late = s.phases(&[APP], &[Phase::Recovered], LONG).await.err();
    assert!(late.is_none(), "{late:?}\n{}", timeline(s));
    s.pass(Duration::from_secs(30)).await;
    s.boot_again(NODES[0].0).await?;
    s.look();
    for check in checks::all(s) {
        assert!(
            check.held(),
            "{} {}: {:#?}\n{}",
            check.rule,
            check.promise,
            check.broken,
            timeline(s)
        );
    }
    // EC2 got the requests that the controllers sent, and each had its effect once.
    let got: Vec<_> = s
        .world
        .cloud
        .requests()
        .into_iter()
        .filter(|r| r.is_mutation())
        .collect();
    assert_eq!(got.len(), orders(s).len(), "{got:#?}");
    assert!(
        got.iter()
            .all(|r| r.status == Some(200) && r.effect != Effect::None),
        "{got:#?}"
    );
    Ok(())
}

#[test]
fn a_phantom_is_healed_without_a_request_to_ec2() {
    simulate(|| async {
        let mut s = stage(1, "Required").await?;
        s.recycle(NODES[0].0, DiskAfter::Kept, Duration::from_secs(20))
            .await?;
        s.phases(&[APP], &[Phase::Running, Phase::Recovered], LONG)
            .await?;
        all_is_well(&mut s).await?;
        assert_eq!(
            begun(&s),
            [StepKind::Hold, StepKind::Release, StepKind::Lift],
            "{}",
            timeline(&s)
        );
        assert_eq!(
            history(&recovery(&s)).0.class(),
            reattach_core::diagnosis::Class::B
        );
        assert!(orders(&s).is_empty(), "{:?}", orders(&s));
        Ok(())
    });
}

#[test]
fn a_dead_node_is_stopped_proven_off_and_tainted() {
    simulate(|| async {
        let mut s = stage(2, "Required").await?;
        s.hang(NODES[0].0)?;
        s.phases(&[APP], &[Phase::Running], LONG).await?;
        all_is_well(&mut s).await?;
        let (plan, journal) = history(&recovery(&s));
        assert_eq!(plan.class(), reattach_core::diagnosis::Class::A);
        assert_eq!(plan.pins.holder.as_str(), "i-00000000000005001");
        assert_eq!(plan.pins.identity.serial, "vol00000000000007001");
        let proofs: Vec<_> = journal
            .iter()
            .filter_map(|e| match &e.event {
                Event::Started {
                    proof: Some(proof), ..
                } => Some(proof),
                _ => None,
            })
            .collect();
        // EC2 keeps no history, so the proof needs the state, read twice.
        assert!(
            matches!(proofs[..], [ProofKind::Off { job: None, .. }]),
            "{proofs:?}"
        );
        assert_eq!(orders(&s), [STOP], "{}", timeline(&s));
        assert!(
            s.world.cloud.snapshots().is_empty(),
            "a detach that works needs no snapshot"
        );
        Ok(())
    });
}

/// The volume stays in `detaching` although its instance is stopped. `by_us`: the driver sends no detach, so the stuck
/// detach is ours; otherwise it is the driver's.
fn stuck_in_detaching(
    seed: u64,
    snapshots: &'static str,
    by_us: bool,
    expected: &'static [&'static str],
) {
    simulate(move || async move {
        let mut s = stage(seed, snapshots).await?;
        s.world.csi.set_unpublish_fails(by_us);
        s.world.cloud.set_detach(VOLUME, DetachBehaviour::Stuck)?;
        s.hang(NODES[0].0)?;
        s.phases(&[APP], &[Phase::Running], LONG).await?;
        all_is_well(&mut s).await?;
        assert_eq!(orders(&s), expected, "{}", timeline(&s));
        let taken = s.world.cloud.snapshots();
        assert_eq!(
            taken.len(),
            expected.iter().filter(|o| **o == SNAPSHOT).count()
        );
        let recovery = recovery(&s);
        for snapshot in taken {
            assert_eq!(Some(snapshot.description), recovery.metadata.uid);
        }
        let (plan, journal) = history(&recovery);
        let line = |kind, is: &dyn Fn(&Event) -> bool| {
            let ix = plan.find(kind).unwrap();
            let of = |m: &Event| match m {
                Event::Started { step, .. }
                | Event::Outcome { step, .. }
                | Event::Completed { step, .. } => *step == ix,
                _ => false,
            };
            journal
                .iter()
                .position(|e| of(&e.event) && is(&e.event))
                .unwrap()
        };
        let started = |m: &Event| matches!(m, Event::Started { .. });
        if expected.contains(&SNAPSHOT) {
            let done = |m: &Event| matches!(m, Event::Completed { seen, .. } if seen.contains("is complete"));
            assert!(line(StepKind::Snapshot, &done) < line(StepKind::CloudForce, &started));
        }
        let applied = |m: &Event| matches!(m, Event::Outcome { outcome, .. } if matches!(outcome, Outcome::Applied { .. }));
        assert!(line(StepKind::CloudForce, &started) < line(StepKind::CloudForce, &applied));
        Ok(())
    });
}

#[test]
fn our_hanging_detach_is_forced_after_a_snapshot() {
    stuck_in_detaching(3, "Required", true, &[STOP, PLAIN, SNAPSHOT, FORCE]);
}

#[test]
fn the_drivers_hanging_detach_is_forced_after_a_snapshot() {
    stuck_in_detaching(4, "BestEffort", false, &[STOP, SNAPSHOT, FORCE]);
}

#[test]
fn a_policy_without_snapshots_makes_none() {
    stuck_in_detaching(5, "Never", true, &[STOP, PLAIN, FORCE]);
}

/// Class E: a new instance has the node's name. No record names the old instance, which is stopped and holds the volume, and
/// its detach is stuck. EBS' driver does not report which nodes have a volume, so no controller corrects the new
/// instance's VolumeAttachment afterwards: a recovery of class C does.
#[test]
fn an_orphan_is_force_detached_and_its_record_is_healed() {
    simulate(|| async {
        let mut s = stage(7, "Required").await?;
        s.world.cloud.set_detach(VOLUME, DetachBehaviour::Stuck)?;
        s.replace(NODES[0].0, 0x5901, false).await?;
        s.phases(&[APP], &[Phase::Running], LONG).await?;
        all_is_well(&mut s).await?;
        assert_eq!(orders(&s), [PLAIN, SNAPSHOT, FORCE], "{}", timeline(&s));
        let text = |r: &serde_json::Value, at: &str| {
            r.pointer(at).and_then(|v| v.as_str()).unwrap().to_owned()
        };
        let all = s
            .world
            .server()
            .list("reattach.dev", "volumerecoveries", None);
        let mut told: Vec<_> = all
            .iter()
            .map(|r| {
                (
                    text(r, "/metadata/creationTimestamp"),
                    text(r, "/status/class"),
                    text(r, "/status/phase"),
                )
            })
            .collect();
        told.sort();
        let told: Vec<_> = told
            .iter()
            .map(|(_, class, phase)| (class.as_str(), phase.as_str()))
            .collect();
        assert_eq!(
            told,
            [("E", "Failed"), ("C", "Recovered")],
            "{}",
            timeline(&s)
        );
        assert_eq!(
            begun(&s),
            [StepKind::Hold, StepKind::Release, StepKind::Lift],
            "{}",
            timeline(&s)
        );
        Ok(())
    });
}

#[test]
fn a_stopping_instance_frees_nothing() {
    simulate(|| async {
        let mut s = stage(6, "Never").await?;
        s.world.cloud.set_timings(Timings {
            shutdown_ms: 800_000,
            ..Timings::default()
        });
        s.hang(NODES[0].0)?;
        s.pass(Duration::from_secs(850)).await;
        let instance = s.world.instance(NODES[0].0)?;
        assert_eq!(
            s.world.cloud.instance(instance).map(|i| i.status),
            Some(InstanceStatus::ShuttingDown)
        );
        assert_eq!(orders(&s), [STOP], "{}", timeline(&s));
        assert!(
            s.world.taint_recorder.tainted().is_empty(),
            "{}",
            timeline(&s)
        );
        assert_eq!(
            s.world.cloud.volume(VOLUME).and_then(|v| v.holder),
            Some(instance)
        );
        assert_eq!(begun(&s), [StepKind::PowerOff], "{}", timeline(&s));
        // Once it is stopped it does.
        all_is_well(&mut s).await?;
        assert_eq!(orders(&s), [STOP], "{}", timeline(&s));
        Ok(())
    });
}

/// The driver tags a volume with its PersistentVolume: this volume was made for another one.
#[test]
fn a_volume_tagged_for_another_pv_waits_for_a_person() {
    simulate(|| async {
        let mut s = stage(8, "Never").await?;
        let tags = [
            ("CSIVolumeName", "pvc-of-others"),
            ("kubernetes.io/cluster/shop", "owned"),
            ("kubernetes.io/created-for/pv/name", "pvc-of-others"),
        ];
        let tags = tags.map(|(key, value)| (key.to_owned(), value.to_owned()));
        s.world.cloud.set_volume_tags(VOLUME, tags.into())?;
        s.hang(NODES[0].0)?;
        s.phases(&[APP], &[Phase::Refused], LONG).await?;
        s.pass(Duration::from_secs(300)).await;
        assert!(s.world.request_log.effects().is_empty(), "{}", timeline(&s));
        let said = recovery(&s).status.unwrap().refusals.join("; ");
        assert!(
            said.contains("is tagged as made for PersistentVolume pvc-of-others, and"),
            "{said}"
        );
        let pv = format!(
            "/api/v1/persistentvolumes/{}",
            LABEL.replacen("pvc", "pvc-", 1)
        );
        let word =
            json!({"metadata": {"annotations": {"reattach.dev/tagged-as": "pvc-of-others"}}});
        s.world.merge("sre@example.org", &pv, &word).await?;
        all_is_well(&mut s).await?;
        assert_eq!(orders(&s), [STOP], "{}", timeline(&s));
        Ok(())
    });
}
