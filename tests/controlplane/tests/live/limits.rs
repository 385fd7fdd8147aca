//! Limits of a run besides the workload itself: budgets, a cloud that does not answer, and changes
//! between the plan and its first effect.

use crate::common::logs::{CONTROLLER, is_workload, line, replicas};
use crate::common::{AWAY, LIMIT, Stage, StageOptions};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use reattach_api::{Phase, RecoveryPolicy, VolumeRecovery, VolumeRecoveryStatus};
use reattach_cloud_simulator::{ErrorBody, Fault, FaultNo, FaultRule, Operation, When};
use reattach_core::journal::{Entry, Event};
use reattach_core::policy::Mode;
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_controlplane::{eventually, say};
use serde_json::{Value, json};
use std::path::Path;

const NS: &str = "shop";
const NODE: &str = "node-1";
/// How long a slow cloud takes to describe a volume, in milliseconds: enough for a person to do something between the
/// acceptance of a plan and its first effect, before which the cloud is read again.
const SLOW: u64 = 1_500;

/// The newest recovery of a claim.
async fn newest(stage: &Stage, namespace: &str, claim: &str) -> Option<VolumeRecovery> {
    let mut all = stage.recoveries(namespace).await;
    all.retain(|r| r.spec.claim_name == claim);
    all.pop()
}

/// Waits until the newest recovery of a claim stands like this.
async fn await_status(
    stage: &Stage,
    namespace: &str,
    claim: &str,
    what: &str,
    wanted: impl Fn(&VolumeRecoveryStatus) -> bool,
) -> VolumeRecovery {
    let mut last = String::new();
    let found = eventually(what, LIMIT, async || {
        let recovery = newest(stage, namespace, claim).await?;
        let status = recovery.status.as_ref()?;
        last = format!("{:?}: {}", status.phase, status.message);
        wanted(status).then_some(recovery)
    });
    match found.await {
        Ok(recovery) => recovery,
        Err(_) => panic!(
            "{claim} should come to {what:?}, and it says {last}\n{}",
            stage.logs()
        ),
    }
}

/// Waits until the newest recovery of a claim has this phase and this in its message; prints the message.
async fn await_says(
    stage: &Stage,
    namespace: &str,
    claim: &str,
    phase: Phase,
    text: &str,
) -> VolumeRecovery {
    let wanted = |s: &VolumeRecoveryStatus| s.phase == phase && s.message.contains(text);
    let recovery = await_status(stage, namespace, claim, text, wanted).await;
    say!(
        "  {claim}: {:?}: {}",
        phase,
        recovery.status.as_ref().expect("a status").message
    );
    recovery
}

fn journal(recovery: &VolumeRecovery) -> Vec<&Entry> {
    let status = recovery.status.as_ref().expect("a status");
    status
        .journal
        .iter()
        .map(|e| e.get().expect("a readable line"))
        .collect()
}

/// When the run was accepted and when it ended, by its journal.
fn run(recovery: &VolumeRecovery) -> (Timestamp, Timestamp) {
    let journal = journal(recovery);
    let begun = journal
        .iter()
        .find(|e| matches!(e.event, Event::Accepted { .. }))
        .expect("accepted")
        .at;
    let ended = journal
        .iter()
        .find(|e| matches!(e.event, Event::Ended { .. }))
        .expect("ended")
        .at;
    (begun, ended)
}

async fn budget(stage: &Stage, namespace: &str, cluster: u32, node: u32) {
    let policy: RecoveryPolicy = serde_json::from_value(json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "RecoveryPolicy", "metadata": {"name": namespace},
        "spec": {"mode": "Auto", "precedence": 20, "selector": {"namespaces": [namespace]},
            "budgets": {"cluster": cluster, "node": node}},
    }))
    .expect("a policy");
    let api: Api<RecoveryPolicy> = Api::all(stage.admin.clone());
    api.create(&kube::api::PostParams::default(), &policy)
        .await
        .expect("accepted");
}

/// Three claims are stuck; two of them on one node that may have one run at a time, the third under a policy that allows
/// one run in the whole cluster. Each waits, says why, and goes on when it may.
pub async fn budgets_limit_concurrent_runs() {
    let stage = Stage::set(StageOptions {
        mode: None,
        ..StageOptions::default()
    })
    .await;
    let mut volumes = Vec::new();
    for (namespace, name, node) in [
        (NS, "one", NODE),
        (NS, "two", NODE),
        ("lab", "three", "node-2"),
    ] {
        if name != "two" {
            stage.namespace(namespace).await;
        }
        volumes.push(stage.deployment(namespace, name, node).await);
    }
    budget(&stage, NS, 10, 1).await;
    budget(&stage, "lab", 1, 5).await;
    for (namespace, name) in [(NS, "one"), (NS, "two"), ("lab", "three")] {
        stage.await_ready(namespace, name, 1).await;
    }
    let kubelet = stage.kubelet("node-2").clone();
    tokio::join!(stage.kubelet(NODE).recycle(DiskAfter::Kept, AWAY), async {
        // It is struck once the first run on the other node is under way.
        let begun = eventually("a run", LIMIT, async || {
            let all = stage.recoveries(NS).await;
            let runs =
                |r: &VolumeRecovery| r.status.as_ref().is_some_and(|s| !s.journal.is_empty());
            all.iter().any(runs).then_some(())
        });
        begun.await.expect("in time");
        kubelet.recycle(DiskAfter::Kept, AWAY).await;
    });
    let says = |s: &VolumeRecoveryStatus, text: &str| {
        s.phase == Phase::Waiting && s.journal.is_empty() && s.message.contains(text)
    };
    let (node_text, cluster_text) = (
        "under way on node node-1 and the budget is 1; this one waits",
        "in the cluster and the budget is 1",
    );
    let mut waited = (None, None);
    let both = eventually("both budgets said", LIMIT, async || {
        for claim in ["one", "two"] {
            let status = newest(&stage, NS, claim).await.and_then(|r| r.status);
            if let Some(s) = status.filter(|s| says(s, node_text)) {
                waited.0 = Some((claim, s.message));
            }
        }
        let status = newest(&stage, "lab", "three").await.and_then(|r| r.status);
        if let Some(s) = status.filter(|s| says(s, cluster_text)) {
            waited.1 = Some(("three", s.message));
        }
        (waited.0.is_some() && waited.1.is_some()).then_some(())
    });
    if both.await.is_err() {
        panic!("said only {waited:?}\n{}", stage.logs());
    }
    for (claim, message) in [waited.0, waited.1].into_iter().flatten() {
        say!("  {claim}: Waiting: {message}");
    }
    let mut runs = Vec::new();
    for (namespace, name) in [(NS, "one"), (NS, "two"), ("lab", "three")] {
        let recovery = stage
            .await_phase(namespace, name, &[Phase::Recovered])
            .await;
        stage.await_ready(namespace, name, 1).await;
        assert_eq!(stage.count(namespace, "Deployment", name).await, (1, false));
        runs.push((name, run(&recovery)));
    }
    // On the node one run at a time; the third began while none was under way, and the second may have joined it. A place is
    // taken some requests before the run's first line is stored, so the lines of two runs that begin at once come in any order.
    let [(_, one), (_, two), (_, three)] = runs[..] else {
        panic!("three runs: {runs:?}")
    };
    assert!(
        one.1 <= two.0 || two.1 <= one.0,
        "two runs at once on {NODE}: {runs:#?}"
    );
    for (name, other) in &runs[..2] {
        let under_way = other.0 + AT_ONCE <= three.0 && three.0 < other.1;
        assert!(
            !under_way,
            "three began while {name} was under way: {runs:#?}"
        );
    }
    runs.sort_by_key(|(_, (begun, _))| *begun);
    say!(
        "  began in this order: {}",
        runs.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ")
    );
    stage.await_nothing_left().await;
    stage.assert_one_holder(&volumes);
}

/// Runs whose first lines are less than this apart may have begun at once. Seen under load: 0.13 s; a run takes 28 s.
const AT_ONCE: SignedDuration = SignedDuration::from_secs(3);

/// Every read of a volume goes wrong in this way until the rule is removed.
fn cloud_reads(stage: &Stage, fault: Fault) -> FaultNo {
    stage.cloud.add_fault(FaultRule::new(
        [Operation::ListVolumes, Operation::DescribeVolume],
        fault,
    ))
}

fn away() -> Fault {
    let reason = "upstream connect error".to_owned();
    Fault::Error {
        status: 503,
        reason,
        when: When::BeforeEffect,
        body: ErrorBody::Html,
    }
}

async fn retain(stage: &Stage, set: &str, when_scaled: &str) {
    let api: Api<StatefulSet> = Api::namespaced(stage.admin.clone(), NS);
    let policy = json!({"whenScaled": when_scaled, "whenDeleted": "Retain"});
    stage
        .patch(
            &api,
            set,
            json!({"spec": {"persistentVolumeClaimRetentionPolicy": policy}}),
        )
        .await;
}

/// Approves the plan of a claim's recovery as a person does, while the cloud is slow; the moment after which the
/// controller may begin, and the slowness.
async fn approve(stage: &Stage, person: &Path, claim: &str) -> (Timestamp, FaultNo) {
    let recovery = stage
        .await_phase(NS, claim, &[Phase::AwaitingApproval])
        .await;
    let slow = cloud_reads(
        stage,
        Fault::Latency {
            before_ms: SLOW,
            after_ms: 0,
        },
    );
    let hash = recovery.status.and_then(|s| s.plan_hash).expect("a plan");
    stage
        .reattach(person, &["approve", claim, "-n", NS, "--plan", &hash])
        .await
        .ended(0);
    let accepted = await_status(stage, NS, claim, "an accepted plan", |s| {
        !s.journal.is_empty()
    })
    .await;
    let journal = journal(&accepted);
    let at = journal
        .iter()
        .find(|e| matches!(e.event, Event::Accepted { .. }))
        .expect("accepted")
        .at;
    let effects = journal
        .iter()
        .filter(|e| matches!(e.event, Event::Started { .. }))
        .count();
    assert_eq!(
        effects, 0,
        "the cloud was not slow enough for this test: {journal:#?}"
    );
    (at, slow)
}

/// Waits until the controller has read the workload so often since the acceptance: each time it asks with `dryRun=All`
/// whether a new pod would be accepted, and then reads the slow cloud.
async fn await_looks(stage: &Stage, app: &str, since: Timestamp, count: usize) {
    let name = format!("{app}-dry-run-");
    let asked = |e: &reattach_tests_controlplane::AuditEvent| {
        let generated = e
            .body
            .as_ref()
            .and_then(|b| b.pointer("/metadata/generateName"));
        e.user == CONTROLLER
            && e.dry_run
            && e.resource == "pods"
            && e.received > since
            && generated.and_then(Value::as_str) == Some(name.as_str())
    };
    let looked = eventually("the controller's look", LIMIT, async || {
        (stage.audit().iter().filter(|e| asked(e)).count() >= count).then_some(())
    });
    looked.await.expect("in time");
}

/// Every write of a workload that the controller asked for, with its answer.
fn workload_writes(stage: &Stage) -> Vec<String> {
    let foreign = stage.foreign_writes(&[]);
    foreign
        .iter()
        .filter(|e| is_workload(e))
        .map(|e| format!("{} {:?}", line(e), replicas(e)))
        .collect()
}

/// Nothing of the workload is changed, and its pod is where it was.
async fn assert_untouched(stage: &Stage, kind: &str, name: &str) {
    assert_eq!(stage.count(NS, kind, name).await, (1, false));
    assert_eq!(stage.pods(NS, name).await.len(), 1);
    let claims: Api<k8s_openapi::api::core::v1::PersistentVolumeClaim> =
        Api::namespaced(stage.admin.clone(), NS);
    let claim = if kind == "StatefulSet" {
        format!("data-{name}-0")
    } else {
        name.to_owned()
    };
    let claim = claims.get(&claim).await.expect("the claim is there");
    assert!(
        claim.metadata.deletion_timestamp.is_none(),
        "{} is being deleted",
        claim.name_any()
    );
}

pub async fn a_change_after_the_plan_stops_the_effect() {
    let users = vec![("olga".into(), vec![])];
    let options = StageOptions {
        mode: Some(Mode::Approve),
        users,
        ..StageOptions::default()
    };
    let stage = Stage::set(options).await;
    stage.namespace(NS).await;
    for name in ["early", "late"] {
        stage.stateful_set(NS, name, 1, NODE).await;
    }
    for name in ["pinned", "cloudless"] {
        stage.deployment(NS, name, NODE).await;
    }
    let olga = stage.person("olga", NS, &["admin"]).await;
    for name in ["early", "late", "pinned", "cloudless"] {
        stage.await_ready(NS, name, 1).await;
    }

    // A cloud that does not answer: nothing is even diagnosed without it.
    let outage = cloud_reads(&stage, away());
    stage.kubelet(NODE).recycle(DiskAfter::Kept, AWAY).await;
    for claim in ["data-early-0", "cloudless"] {
        await_says(
            &stage,
            NS,
            claim,
            Phase::Diagnosing,
            "not classified, because the cloud volume",
        )
        .await;
    }
    stage.assert_only_records(&[]);
    assert!(stage.cloud.remove_fault(outage));
    for claim in ["data-early-0", "data-late-0", "pinned", "cloudless"] {
        stage
            .await_phase(NS, claim, &[Phase::AwaitingApproval])
            .await;
    }

    changed_before_the_approval(&stage, &olga).await;
    changed_in_the_last_moment(&stage, &olga).await;
    pod_replaced_after_the_approval(&stage, &olga).await;
    let late: Vec<String> = workload_writes(&stage);
    assert!(
        late.len() == 1 && late[0].contains("Some(409)"),
        "one write, refused: {late:#?}"
    );
    say!("  the one write of a workload: {}", late[0]);
    cloud_away_after_the_approval(&stage, &olga).await;
}

/// The plan is dropped as soon as its reason is gone, and cannot be approved any more, neither by the command nor past it.
async fn changed_before_the_approval(stage: &Stage, olga: &Path) {
    let planned = stage
        .await_phase(NS, "data-early-0", &[Phase::AwaitingApproval])
        .await;
    let hash = planned
        .status
        .as_ref()
        .and_then(|s| s.plan_hash.clone())
        .expect("a plan");
    retain(stage, "early", "Delete").await;
    await_says(
        stage,
        NS,
        "data-early-0",
        Phase::Refused,
        "deletes its claims when scaled down",
    )
    .await;
    let said = stage
        .reattach(
            olga,
            &["approve", "data-early-0", "-n", NS, "--plan", &hash],
        )
        .await;
    said.one_sentence(
        1,
        &[
            "has no plan to approve",
            "deletes its claims when scaled down",
        ],
    );
    let client = stage.plane.client_from(olga).await.expect("a client");
    let api: Api<VolumeRecovery> = Api::namespaced(client, NS);
    let approval = json!({"spec": {"approval": {"planHash": hash, "approver": "olga"}}});
    stage.patch(&api, &planned.name_any(), approval).await;
    let generation = api
        .get(&planned.name_any())
        .await
        .expect("there")
        .metadata
        .generation;
    let seen =
        |s: &VolumeRecoveryStatus| s.observed_generation >= generation && s.phase == Phase::Refused;
    let recovery = await_status(
        stage,
        NS,
        "data-early-0",
        "a refusal that saw the approval",
        seen,
    )
    .await;
    assert_eq!(recovery.status.expect("a status").journal.len(), 0);
    stage.assert_only_records(&[]);
    stage
        .reattach(olga, &["abort", "data-early-0", "-n", NS])
        .await
        .ended(0);
    stage
        .await_phase(NS, "data-early-0", &[Phase::Aborted])
        .await;
    assert_untouched(stage, "StatefulSet", "early").await;
}

/// `whenScaled` becomes `Delete` after the controller has read the StatefulSet for the last time: the conditional write is
/// refused by the API server, and the next look refuses the step.
async fn changed_in_the_last_moment(stage: &Stage, olga: &Path) {
    let (accepted, slow) = approve(stage, olga, "data-late-0").await;
    await_looks(stage, "late", accepted, 2).await;
    retain(stage, "late", "Delete").await;
    assert!(stage.cloud.remove_fault(slow));
    let text = "deletes its claims when scaled down";
    let recovery = await_says(stage, NS, "data-late-0", Phase::Failed, text).await;
    let journal = journal(&recovery);
    let turned = journal
        .iter()
        .any(|e| matches!(e.event, Event::UnwindStarted { .. }));
    assert!(turned, "{journal:#?}");
    assert_untouched(stage, "StatefulSet", "late").await;
}

/// The pod that the plan names is replaced after the acceptance.
async fn pod_replaced_after_the_approval(stage: &Stage, olga: &Path) {
    let (accepted, slow) = approve(stage, olga, "pinned").await;
    await_looks(stage, "pinned", accepted, 1).await;
    let pods: Api<Pod> = Api::namespaced(stage.admin.clone(), NS);
    let old = stage
        .pods(NS, "pinned")
        .await
        .pop()
        .expect("a pod")
        .name_any();
    pods.delete(&old, &DeleteParams::default().grace_period(0))
        .await
        .expect("deleted by force");
    let replaced = eventually("another pod", LIMIT, async || {
        stage
            .pods(NS, "pinned")
            .await
            .iter()
            .any(|p| p.name_any() != old)
            .then_some(())
    });
    replaced.await.expect("the ReplicaSet makes one");
    assert!(stage.cloud.remove_fault(slow));
    let text = "changed since the plan was made";
    let wanted = |s: &VolumeRecoveryStatus| s.phase == Phase::Withdrawn && s.message.contains(text);
    // The policy asks for another recovery of the claim as soon as this one is over.
    let ended = eventually(text, LIMIT, async || {
        let all = stage.recoveries(NS).await;
        all.into_iter()
            .filter(|r| r.spec.claim_name == "pinned")
            .filter_map(|r| r.status)
            .find(wanted)
    });
    match ended.await {
        Ok(status) => say!("  pinned: {:?}: {}", status.phase, status.message),
        Err(_) => panic!("{:#?}\n{}", stage.recoveries(NS).await, stage.logs()),
    }
    assert_untouched(stage, "Deployment", "pinned").await;
}

/// The cloud goes away between the acceptance and the first effect: the run waits, says so, and goes on when it is back.
async fn cloud_away_after_the_approval(stage: &Stage, olga: &Path) {
    let (accepted, slow) = approve(stage, olga, "cloudless").await;
    await_looks(stage, "cloudless", accepted, 1).await;
    let outage = cloud_reads(stage, away());
    assert!(stage.cloud.remove_fault(slow));
    await_says(
        stage,
        NS,
        "cloudless",
        Phase::Running,
        "waiting: the cloud's API does not answer",
    )
    .await;
    assert_untouched(stage, "Deployment", "cloudless").await;
    assert_eq!(
        workload_writes(stage).len(),
        1,
        "{:#?}",
        workload_writes(stage)
    );
    assert!(stage.cloud.remove_fault(outage));
    stage
        .await_phase(NS, "cloudless", &[Phase::Recovered])
        .await;
    stage.await_ready(NS, "cloudless", 1).await;
    assert_eq!(stage.count(NS, "Deployment", "cloudless").await, (1, false));
    let foreign: Vec<String> = stage.foreign_writes(&[]).iter().map(line).collect();
    let strange = foreign
        .iter()
        .filter(|l| !l.contains("cloudless") && !l.contains("shop/late"));
    assert_eq!(strange.count(), 0, "{foreign:#?}");
    assert_eq!(
        stage.cloud_mutations().len(),
        0,
        "Kubernetes' own detach was enough"
    );
}
