//! Short scenarios on two nodes, each about one thing that can go wrong.

use super::{TWO_NODES, fail_detaches, postgres, reading, redis};
use crate::app::App;
use crate::replica::{CrashPoint, Side};
use crate::request_log::Target;
use crate::stage::{Expect, START, Sink, Stage, recovery_path};
use crate::timeline::Actor;
use crate::world::{APPS, PERSON, World, WorldError};
use kube::ResourceExt;
use reattach_api::{Phase, VolumeRecovery};
use reattach_cloud_simulator::{ErrorBody, Fault, FaultRule, Operation, When};
use reattach_core::hold::HOLD_TAINT_PREFIX;
use reattach_core::policy::Mode;
use reattach_core::runbook::{DEFAULT_RUNBOOK, SCALE_TO_ZERO};
use reattach_sim::kubelet::DiskAfter;
use serde_json::json;
use std::time::Duration;

/// A recovery whose cloud detach is needed may wait out the runbook's patience and external-attacher's back-off.
const LONG: Duration = Duration::from_secs(900);

/// Redis and PostgreSQL run, two replicas of the controller watch, and the policy has this mode.
async fn set(
    seed: u64,
    mode: Mode,
    apps: &[(App, Expect)],
    sink: Sink,
) -> Result<Stage, WorldError> {
    set_by(SCALE_TO_ZERO, seed, mode, apps, sink).await
}

/// As [`set`], with any runbook.
async fn set_by(
    runbook: &str,
    seed: u64,
    mode: Mode,
    apps: &[(App, Expect)],
    sink: Sink,
) -> Result<Stage, WorldError> {
    let mut s = Stage::new(seed, START, &TWO_NODES, sink).await?;
    s.heading(
        &format!("Two nodes at Linode; the policy's mode is {mode}, its runbook {runbook}"),
        &[],
    );
    for (app, expect) in apps {
        s.add(app.clone(), *expect).await?;
    }
    s.world.policy("everything", mode, 0, runbook).await?;
    let names: Vec<&str> = apps.iter().map(|(a, _)| a.name.as_str()).collect();
    s.running(&names, Duration::from_secs(300)).await?;
    s.start_replica("reattach-controller-0", None);
    s.pass(Duration::from_secs(5)).await;
    s.start_replica("reattach-controller-1", None);
    s.pass(Duration::from_secs(15)).await;
    s.from = s.world.now();
    Ok(s)
}

async fn recycle_both(s: &mut Stage) -> Result<(), WorldError> {
    for (node, _) in TWO_NODES {
        s.recycle(node, DiskAfter::Kept, Duration::from_secs(6))
            .await?;
    }
    Ok(())
}

async fn healed(s: &mut Stage, apps: &[&str]) -> Result<(), WorldError> {
    s.phases(apps, &[Phase::Recovered], LONG).await?;
    s.running(apps, Duration::from_secs(120)).await?;
    s.pass(Duration::from_secs(20)).await;
    Ok(())
}

pub(super) async fn stuck_unpublish(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let mut s = set(
        seed,
        Mode::Auto,
        &[(redis(), Expect::Running), (postgres(), Expect::Running)],
        sink,
    )
    .await?;
    detach_at_the_cloud(&mut s).await?;
    Ok(s)
}

pub(super) async fn hold_and_release(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let cluster = App::stateful_set(
        "postgres",
        7_002,
        "pvc5c1f6f0e6a0d4d0e",
        3,
        "the database, three replicas",
    );
    let apps = [
        (redis(), Expect::Running),
        (cluster.clone(), Expect::Running),
    ];
    let mut s = set_by(DEFAULT_RUNBOOK, seed, Mode::Auto, &apps, sink).await?;
    let spec = |s: &Stage| {
        apps.clone().map(|(app, _)| {
            app.read(s.world.server())
                .map(|w| w["metadata"]["generation"].clone())
        })
    };
    let before = spec(&s);
    recycle_both(&mut s).await?;
    healed(&mut s, &["redis", "postgres"]).await?;
    if spec(&s) != before {
        s.broken
            .push("a workload was changed, although a hold changes none".to_owned());
    }
    without_the_cloud(&mut s);
    Ok(s)
}

/// Checks that the cloud was not called: Kubernetes can detach by itself.
fn without_the_cloud(s: &mut Stage) {
    let effects = s.world.request_log.effects();
    if effects.iter().any(|e| e.target != Target::Kubernetes) {
        s.broken
            .push("the cloud was called, although Kubernetes can detach by itself here".to_owned());
    }
}

/// Hold and release on a cluster that cannot gate pods: each stuck pod's node is closed, and its successor starts on another node.
pub(super) async fn hold_by_taint(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = [(redis(), Expect::Running), (postgres(), Expect::Running)];
    let mut s = set_by(DEFAULT_RUNBOOK, seed, Mode::Auto, &apps, sink).await?;
    s.world.server().without_mutating_policies();
    s.tell(
        Actor::Kubernetes,
        "",
        "serves no MutatingAdmissionPolicy, as before 1.36",
    );
    let ours = |w: &World| -> Vec<String> {
        let nodes = w.server().list("", "nodes", None);
        let taints = nodes
            .iter()
            .flat_map(|n| n["spec"]["taints"].as_array().cloned().unwrap_or_default());
        let keys = taints.filter_map(|t| t["key"].as_str().map(str::to_owned));
        keys.filter(|k| k.starts_with(HOLD_TAINT_PREFIX)).collect()
    };
    recycle_both(&mut s).await?;
    s.until("a node closed", Duration::from_secs(300), |w| {
        !ours(w).is_empty()
    })
    .await?;
    healed(&mut s, &["redis", "postgres"]).await?;
    if let Some(key) = ours(&s.world).first() {
        s.broken.push(format!("taint {key} is left"));
    }
    without_the_cloud(&mut s);
    Ok(s)
}

pub(super) async fn hold_stuck_unpublish(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = [(redis(), Expect::Running), (postgres(), Expect::Running)];
    let mut s = set_by(DEFAULT_RUNBOOK, seed, Mode::Auto, &apps, sink).await?;
    detach_at_the_cloud(&mut s).await?;
    Ok(s)
}

/// The CSI driver fails every detach: each of the two volumes needs exactly one of ours.
async fn detach_at_the_cloud(s: &mut Stage) -> Result<(), WorldError> {
    fail_detaches(s, true);
    recycle_both(s).await?;
    healed(s, &["redis", "postgres"]).await?;
    let detaches = s
        .world
        .request_log
        .effects()
        .iter()
        .filter(|e| e.path.ends_with("/detach"))
        .count();
    if detaches != 2 {
        s.broken.push(format!(
            "{detaches} detaches were sent to the cloud; 2 are needed"
        ));
    }
    Ok(())
}

pub(super) async fn abort(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let mut s = set(seed, Mode::Auto, &[(redis(), Expect::Running)], sink).await?;
    fail_detaches(&mut s, true);
    recycle_both(&mut s).await?;
    s.phases(&["redis"], &[Phase::Running], Duration::from_secs(120))
        .await?;
    let zero = |w: &World| {
        redis()
            .read(w.server())
            .is_some_and(|d| d["spec"]["replicas"] == 0)
    };
    s.until("redis at zero", Duration::from_secs(60), zero)
        .await?;
    s.pass(Duration::from_secs(10)).await;
    let Some(recovery) = s.recovery_of("redis") else {
        return Ok(s);
    };
    let path = recovery_path(&recovery)?;
    s.tell(
        Actor::Person,
        "redis",
        "aborts: kubectl reattach abort redis-data",
    );
    s.world
        .merge(
            PERSON,
            &path,
            &json!({"spec": {"abort": {"by": PERSON, "reason": "drill"}}}),
        )
        .await?;
    s.phases(&["redis"], &[Phase::Aborted], Duration::from_secs(120))
        .await?;
    s.pass(Duration::from_secs(120)).await;
    if !reading(&s, "redis", Phase::Aborted) {
        s.broken
            .push("a recovery began after the abort without a person's request".to_owned());
    }
    if redis()
        .read(s.world.server())
        .is_none_or(|d| d["spec"]["replicas"] != 1)
    {
        s.broken
            .push("the abort did not restore redis to 1 replica".to_owned());
    }
    fail_detaches(&mut s, false);
    s.tell(
        Actor::Person,
        "redis",
        "asks for a recovery: kubectl reattach recover redis-data --mode Auto",
    );
    let again = json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
        "metadata": {"name": "redis-data-by-hand", "namespace": APPS},
        "spec": {"claimName": "redis-data", "mode": "Auto", "runbook": "scale-to-zero", "requester": PERSON, "reason": "after the abort"},
    });
    s.world.create(PERSON, &again).await?;
    let done = |w: &World| {
        let by_hand = w
            .recoveries()
            .into_iter()
            .find(|r| r.name_any() == "redis-data-by-hand");
        by_hand
            .and_then(|r| r.status)
            .is_some_and(|st| matches!(st.phase, Phase::Recovered | Phase::Resolved))
    };
    s.until(
        "the end of the recovery that a person asked for",
        LONG,
        done,
    )
    .await?;
    s.running(&["redis"], Duration::from_secs(120)).await?;
    s.pass(Duration::from_secs(20)).await;
    Ok(s)
}

pub(super) async fn leader_crash(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let mut s = set(
        seed,
        Mode::Auto,
        &[(redis(), Expect::Running), (postgres(), Expect::Running)],
        sink,
    )
    .await?;
    // The point moves with the seed over the first requests of a run: questions, plan, journal, the scaling itself.
    let number = s.replicas[0].requests() + 4 + seed % 24;
    let side = if seed.is_multiple_of(2) {
        Side::Before
    } else {
        Side::After
    };
    s.replicas[0].crash_at(CrashPoint { number, side });
    recycle_both(&mut s).await?;
    let mut waited = 0;
    while s.replicas[0].died_at().is_none() && waited < 600 {
        s.pass(Duration::from_millis(500)).await;
        waited += 1;
    }
    match s.replicas[0].died_at() {
        Some(at) => {
            let word = if side == Side::Before {
                "right before this request"
            } else {
                "right after this request, before it read the reply"
            };
            s.tell(
                Actor::Kubernetes,
                "",
                format!("the leader's process was killed {word}: {at}"),
            );
        }
        None => s
            .broken
            .push("the leader did not reach the point at which the scenario kills it".to_owned()),
    }
    healed(&mut s, &["redis", "postgres"]).await?;
    Ok(s)
}

pub(super) async fn lost_reply(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let mut s = set(
        seed,
        Mode::Auto,
        &[(redis(), Expect::Running), (postgres(), Expect::Running)],
        sink,
    )
    .await?;
    fail_detaches(&mut s, true);
    let lost = Fault::Error {
        status: 502,
        reason: "bad gateway".into(),
        when: When::AfterEffect,
        body: ErrorBody::Html,
    };
    s.world
        .cloud
        .add_fault(FaultRule::new([Operation::DetachVolume], lost).times(1));
    let cut = Fault::Cut {
        when: When::BeforeEffect,
    };
    s.world.cloud.add_fault(
        FaultRule::new([Operation::DetachVolume], cut)
            .after(1)
            .times(1),
    );
    s.tell(Actor::Provider, "", "its API will carry out the first detach and answer it with an HTML page (502), and will lose the second request");
    recycle_both(&mut s).await?;
    nothing_is_under_way(&mut s).await?;
    healed(&mut s, &["redis", "postgres"]).await?;
    Ok(s)
}

/// The cloud's history shows what became of the first detach. Of the second it shows nothing, so that it might still arrive:
/// nothing is restored until a person has looked.
async fn nothing_is_under_way(s: &mut Stage) -> Result<(), WorldError> {
    let asks = |r: &VolumeRecovery| {
        r.status
            .as_ref()
            .is_some_and(|st| st.phase == Phase::Stuck && st.message.contains("declare"))
    };
    let calls = |w: &World| w.recoveries().iter().any(asks);
    s.until("a recovery calls for a person", LONG, calls)
        .await?;
    for recovery in s.world.recoveries().into_iter().filter(asks) {
        let claim = recovery.spec.claim_name.clone();
        s.tell(
            Actor::Person,
            "",
            format!(
                "finds no detach in the cloud's history: kubectl reattach declare {claim} --nothing-under-way"
            ),
        );
        let path = recovery_path(&recovery)?;
        let word = json!({"declaredBy": PERSON, "reason": "drill", "at": s.world.now()});
        s.world
            .merge(PERSON, &path, &json!({"spec": {"nothingUnderWay": word}}))
            .await?;
    }
    Ok(())
}

pub(super) async fn approve(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let mut s = set(seed, Mode::Approve, &[(redis(), Expect::Running)], sink).await?;
    recycle_both(&mut s).await?;
    s.phases(
        &["redis"],
        &[Phase::AwaitingApproval],
        Duration::from_secs(120),
    )
    .await?;
    s.pass(Duration::from_secs(60)).await;
    if !s.world.request_log.effects().is_empty() {
        s.broken
            .push("an effect was issued before the approval".to_owned());
    }
    let Some(recovery) = s.recovery_of("redis") else {
        return Ok(s);
    };
    let path = recovery_path(&recovery)?;
    let hash = recovery
        .status
        .and_then(|st| st.plan_hash)
        .unwrap_or_default();
    s.tell(
        Actor::Person,
        "redis",
        format!("approves exactly this plan: kubectl reattach approve redis-data --plan {hash}"),
    );
    s.world
        .merge(
            PERSON,
            &path,
            &json!({"spec": {"approval": {"planHash": hash, "approver": PERSON}}}),
        )
        .await?;
    healed(&mut s, &["redis"]).await?;
    Ok(s)
}
