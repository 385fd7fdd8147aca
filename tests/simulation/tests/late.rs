//! Late effects (safety rule S3): what was sent to the cloud may land at any later time. Hold, lock and zero stay until the
//! provider's history, or a person, accounts for it; also when the record is gone.

use reattach_api::Phase;
use reattach_cloud_simulator::{
    DetachBehaviour, Fault as CloudFault, FaultRule as CloudRule, JobAction, JobStatus, Operation,
    VolumeNo, When,
};
use reattach_core::hold::HOLD_GATE;
use reattach_core::runbook::{DEFAULT_RUNBOOK, SCALE_TO_ZERO};
use reattach_drill::in_virtual_time;
use reattach_drill::stage::Stage;
use reattach_drill::world::{PERSON, World, WorldError};
use reattach_tests_simulation::fixture::{recovery_path, recycle_redis, redis_under, replicas};
use reattach_tests_simulation::{broken_rules, redis, secs, story};
use serde_json::json;

const VOLUME: VolumeNo = VolumeNo(7001);

fn pending_detach(w: &World) -> bool {
    let pending = |status| matches!(status, JobStatus::Scheduled | JobStatus::Started);
    w.cloud
        .jobs()
        .iter()
        .any(|j| j.action == JobAction::VolumeDetach && pending(j.status))
}

/// A pod of the app waits behind our gate.
fn is_gated(w: &World) -> bool {
    let gated = |p: &serde_json::Value| {
        p["spec"]["schedulingGates"]
            .as_array()
            .is_some_and(|g| g.iter().any(|g| g["name"] == HOLD_GATE))
    };
    w.pods("redis").iter().any(|p| gated(p))
}

/// A phantom attachment of an app whose driver cannot detach, so that the cloud's detach is needed.
async fn stage(runbook: &str) -> Result<Stage, WorldError> {
    let s = redis_under(1, runbook).await?;
    s.world.csi.set_unpublish_fails(true);
    Ok(s)
}

/// The cloud accepts the detach of a phantom attachment by reattach, and never ends it.
async fn hanging_detach(s: &mut Stage) -> Result<(), WorldError> {
    s.world.cloud.set_detach(VOLUME, DetachBehaviour::Stuck)?;
    recycle_redis(s).await?;
    s.until("our detach job", secs(900), pending_detach)
        .await
        .map(|_| ())
}

#[test]
fn a_detach_pending_for_an_hour_is_not_forgotten() {
    let played = in_virtual_time(|| async {
        let mut s = stage(SCALE_TO_ZERO).await?;
        hanging_detach(&mut s).await?;
        let back = s.until("restored", secs(5_400), |w| replicas(w) == 1).await;
        Ok::<_, WorldError>((back.is_ok(), pending_detach(&s.world), story(&s)))
    });
    let (restored, pending, story) = played.expect("virtual time").expect("the stage");
    assert!(
        pending && !restored,
        "restored {restored}, pending {pending}\n{story}"
    );
}

#[test]
fn an_abort_lifts_no_hold_while_the_detach_is_pending() {
    let played = in_virtual_time(|| async {
        let mut s = stage(DEFAULT_RUNBOOK).await?;
        hanging_detach(&mut s).await?;
        s.pass(secs(660)).await;
        let recovery = recovery_path(&s);
        s.world
            .merge(
                "oncall",
                &recovery,
                &json!({"spec": {"abort": {"by": "oncall"}}}),
            )
            .await?;
        s.pass(secs(300)).await;
        Ok::<_, WorldError>((is_gated(&s.world), pending_detach(&s.world), story(&s)))
    });
    let (held, pending, story) = played.expect("virtual time").expect("the stage");
    assert!(pending && held, "held {held}, pending {pending}\n{story}");
}

#[test]
fn a_late_detach_takes_no_disk_in_use() {
    for late in [20, 75, 130, 400] {
        let played = in_virtual_time(move || async move {
            let mut s = stage(DEFAULT_RUNBOOK).await?;
            s.replicas[0].detach_late(secs(late));
            recycle_redis(&mut s).await?;
            s.pass(secs(1_200)).await;
            s.look();
            let broken = broken_rules(&s);
            let pulled = s.world.cloud.pulled().len();
            Ok::<_, WorldError>((pulled, s.world.app_ready("redis", 1), broken, story(&s)))
        });
        let (pulled, ready, broken, story) = played.expect("virtual time").expect("the stage");
        assert!(
            pulled == 0 && ready && broken.is_empty(),
            "{late} s late: {pulled} disks pulled, ready {ready}, {broken:#?}\n{story}"
        );
    }
}

/// The request never arrives. The hold stays, a person is called, and their word ends the wait.
#[test]
fn a_detach_that_was_lost_waits_for_a_person() {
    let played = in_virtual_time(|| async {
        let mut s = stage(DEFAULT_RUNBOOK).await?;
        let mut cut = CloudRule::new(
            vec![Operation::DetachVolume],
            CloudFault::Cut {
                when: When::BeforeEffect,
            },
        );
        cut.times = Some(1);
        s.world.cloud.add_fault(cut);
        recycle_redis(&mut s).await?;
        s.phases(&["redis"], &[Phase::Stuck], secs(1_200)).await?;
        s.pass(secs(7_200)).await;
        let held = is_gated(&s.world);
        let message = s
            .recovery_of("redis")
            .and_then(|r| r.status)
            .map(|st| st.message)
            .unwrap_or_default();
        let word =
            json!({"declaredBy": "oncall", "reason": "no job in the events", "at": s.world.now()});
        let recovery = recovery_path(&s);
        s.world
            .merge(
                "oncall",
                &recovery,
                &json!({"spec": {"nothingUnderWay": word}}),
            )
            .await?;
        s.running(&["redis"], secs(900)).await?;
        s.phases(&["redis"], &[Phase::Recovered], secs(60)).await?;
        Ok::<_, WorldError>((held, message, story(&s)))
    });
    let (held, message, story) = played.expect("virtual time").expect("the stage");
    assert!(
        held && message.contains("declare --nothing-under-way"),
        "held {held}: {message}\n{story}"
    );
}

const CLAIM: &str = "/api/v1/namespaces/default/persistentvolumeclaims/redis-data";

/// Deletes something at once, also what a finalizer keeps.
async fn delete(w: &World, path: &str) -> Result<(), WorldError> {
    w.request(PERSON, "DELETE", path, "application/json", &json!({}))
        .await?;
    // It may be gone already.
    let _ = w
        .merge(PERSON, path, &json!({"metadata": {"finalizers": null}}))
        .await;
    Ok(())
}

/// Returns whether the count is restored, and no gate and no finalizer of the run is left.
fn is_given_back(w: &World) -> bool {
    let kept =
        |r: &reattach_api::VolumeRecovery| r.metadata.finalizers.iter().flatten().next().is_some();
    replicas(w) == 1 && !is_gated(w) && !w.recoveries().iter().any(kept)
}

/// The claim leads nowhere any more: the run goes by what its plan pinned.
#[test]
fn a_claim_deleted_during_a_detach_still_ends_the_run() {
    for runbook in [SCALE_TO_ZERO, DEFAULT_RUNBOOK] {
        let played = in_virtual_time(move || async move {
            let mut s = stage(runbook).await?;
            hanging_detach(&mut s).await?;
            delete(&s.world, CLAIM).await?;
            s.pass(secs(600)).await;
            let (pending, free) = (pending_detach(&s.world), is_given_back(&s.world));
            s.world.cloud.set_detach(VOLUME, DetachBehaviour::Normal)?;
            let back = s
                .until("given back", secs(300), is_given_back)
                .await
                .is_ok();
            Ok::<_, WorldError>((pending, free, back, s.world.cloud.pulled().len(), story(&s)))
        });
        let (pending, free, back, pulled, story) =
            played.expect("virtual time").expect("the stage");
        assert!(
            pending && !free,
            "{runbook}: given back {free} while the detach is pending {pending}\n{story}"
        );
        assert!(
            back && pulled == 0,
            "{runbook}: given back {back}, {pulled} disks pulled\n{story}"
        );
    }
}

#[test]
fn a_namespace_deleted_during_a_detach_terminates() {
    let played = in_virtual_time(|| async {
        let mut s = stage(SCALE_TO_ZERO).await?;
        hanging_detach(&mut s).await?;
        let namespace = "/api/v1/namespaces/default";
        s.world
            .request(PERSON, "DELETE", namespace, "application/json", &json!({}))
            .await?;
        s.pass(secs(300)).await;
        let there = |w: &World| w.server().read("", "namespaces", "", "default").is_some();
        let kept = there(&s.world) && !s.world.recoveries().is_empty();
        s.world.cloud.set_detach(VOLUME, DetachBehaviour::Normal)?;
        let gone = s
            .until("the namespace gone", secs(600), move |w| !there(w))
            .await
            .is_ok();
        Ok::<_, WorldError>((kept, gone, story(&s)))
    });
    let (kept, gone, story) = played.expect("virtual time").expect("the stage");
    assert!(
        kept,
        "the record went while the detach was pending\n{story}"
    );
    assert!(gone, "the namespace hangs\n{story}");
}

/// The request never arrives, and claim and PersistentVolume go meanwhile. A person's word ends the wait all the same.
#[test]
fn a_persons_statement_counts_after_the_volume_is_gone() {
    let played = in_virtual_time(|| async {
        let mut s = stage(SCALE_TO_ZERO).await?;
        let mut cut = CloudRule::new(
            vec![Operation::DetachVolume],
            CloudFault::Cut {
                when: When::BeforeEffect,
            },
        );
        cut.times = Some(1);
        s.world.cloud.add_fault(cut);
        recycle_redis(&mut s).await?;
        s.phases(&["redis"], &[Phase::Stuck], secs(1_200)).await?;
        delete(&s.world, CLAIM).await?;
        delete(
            &s.world,
            &format!("/api/v1/persistentvolumes/{}", redis().volumes[0].pv()),
        )
        .await?;
        s.pass(secs(600)).await;
        let held = replicas(&s.world) == 0;
        let word =
            json!({"declaredBy": "oncall", "reason": "no job in the events", "at": s.world.now()});
        let recovery = recovery_path(&s);
        s.world
            .merge(
                "oncall",
                &recovery,
                &json!({"spec": {"nothingUnderWay": word}}),
            )
            .await?;
        let back = s
            .until("given back", secs(300), is_given_back)
            .await
            .is_ok();
        Ok::<_, WorldError>((held, back, story(&s)))
    });
    let (held, back, story) = played.expect("virtual time").expect("the stage");
    assert!(held && back, "held {held}, given back {back}\n{story}");
}

/// The notes of orders whose outcome is not known.
fn notes(w: &World) -> Vec<String> {
    let leases = w.server().list("coordination.k8s.io", "leases", None);
    let names = leases
        .iter()
        .filter_map(|l| l["metadata"]["name"].as_str().map(str::to_owned));
    names
        .filter(|name| name.starts_with("reattach-order-"))
        .collect()
}

/// Policy and record are deleted by force.
async fn delete_the_record(s: &Stage) -> Result<(), WorldError> {
    let policy = "/apis/reattach.dev/v1alpha1/recoverypolicies/everything";
    s.world
        .request(PERSON, "DELETE", policy, "application/json", &json!({}))
        .await?;
    delete(&s.world, &recovery_path(s)).await
}

/// The request is sent and has not arrived when the record goes: no history shows it, and the note alone tells of it.
#[test]
fn a_deleted_records_late_detach_takes_no_disk_in_use() {
    for runbook in [SCALE_TO_ZERO, DEFAULT_RUNBOOK] {
        let played = in_virtual_time(move || async move {
            let mut s = stage(runbook).await?;
            s.replicas[0].detach_late(secs(200));
            recycle_redis(&mut s).await?;
            s.until("the note of our order", secs(900), |w| !notes(w).is_empty())
                .await?;
            s.pass(secs(15)).await;
            delete_the_record(&s).await?;
            s.pass(secs(150)).await;
            let free = replicas(&s.world) == 1 && !is_gated(&s.world);
            let back = s
                .until("ready", secs(900), |w| {
                    w.app_ready("redis", 1) && notes(w).is_empty()
                })
                .await;
            Ok::<_, WorldError>((free, back.is_ok(), s.world.cloud.pulled().len(), story(&s)))
        });
        let (free, back, pulled, story) = played.expect("virtual time").expect("the stage");
        assert!(
            !free,
            "{runbook}: released before the order was accounted for\n{story}"
        );
        assert!(
            back && pulled == 0,
            "{runbook}: ready {back}, {pulled} disks pulled\n{story}"
        );
    }
}

/// The label of the hold went with the record, and the pod that it gated is deleted, too: the next one waits as well.
#[test]
fn new_pods_stay_gated_after_the_record_was_force_deleted() {
    let played = in_virtual_time(|| async {
        let mut s = stage(DEFAULT_RUNBOOK).await?;
        hanging_detach(&mut s).await?;
        delete_the_record(&s).await?;
        s.pass(secs(15)).await;
        for pod in s.world.pods("redis") {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            delete(&s.world, &format!("/api/v1/namespaces/default/pods/{name}")).await?;
        }
        s.pass(secs(120)).await;
        let (held, pending) = (is_gated(&s.world), pending_detach(&s.world));
        s.world.cloud.set_detach(VOLUME, DetachBehaviour::Normal)?;
        let over = |w: &World| w.app_ready("redis", 1) && notes(w).is_empty() && is_given_back(w);
        let back = s.until("ready", secs(900), over).await.is_ok();
        Ok::<_, WorldError>((held, pending, back, s.world.cloud.pulled().len(), story(&s)))
    });
    let (held, pending, back, pulled, story) = played.expect("virtual time").expect("the stage");
    assert!(held && pending, "held {held}, pending {pending}\n{story}");
    assert!(
        back && pulled == 0,
        "ready {back}, {pulled} disks pulled\n{story}"
    );
}

/// Record, note and claim are gone: nothing tells whether a detach is under way, and that is no "no".
#[test]
fn a_stamp_whose_claim_is_gone_restores_nothing() {
    let played = in_virtual_time(|| async {
        let mut s = stage(SCALE_TO_ZERO).await?;
        hanging_detach(&mut s).await?;
        delete_the_record(&s).await?;
        for note in notes(&s.world) {
            delete(
                &s.world,
                &format!("/apis/coordination.k8s.io/v1/namespaces/reattach-system/leases/{note}"),
            )
            .await?;
        }
        delete(&s.world, CLAIM).await?;
        s.pass(secs(600)).await;
        Ok::<_, WorldError>((replicas(&s.world), pending_detach(&s.world), story(&s)))
    });
    let (replicas, pending, story) = played.expect("virtual time").expect("the stage");
    assert!(
        pending && replicas == 0,
        "{replicas} replicas, pending {pending}\n{story}"
    );
}

#[test]
fn a_force_deleted_record_restores_nothing_during_a_detach() {
    for runbook in [SCALE_TO_ZERO, DEFAULT_RUNBOOK] {
        let played = in_virtual_time(move || async move {
            let mut s = stage(runbook).await?;
            hanging_detach(&mut s).await?;
            let policy = "/apis/reattach.dev/v1alpha1/recoverypolicies/everything";
            s.world
                .request(PERSON, "DELETE", policy, "application/json", &json!({}))
                .await?;
            let recovery = recovery_path(&s);
            s.world
                .merge(
                    PERSON,
                    &recovery,
                    &json!({"metadata": {"finalizers": null}}),
                )
                .await?;
            s.world
                .request(PERSON, "DELETE", &recovery, "application/json", &json!({}))
                .await?;
            s.pass(secs(900)).await;
            let free = replicas(&s.world) == 1 && !is_gated(&s.world);
            let pending = pending_detach(&s.world);
            s.world.cloud.set_detach(VOLUME, DetachBehaviour::Normal)?;
            let back = s
                .until("put back", secs(300), |w| replicas(w) == 1 && !is_gated(w))
                .await
                .is_ok();
            Ok::<_, WorldError>((free, pending, back, story(&s)))
        });
        let (free, pending, back, story) = played.expect("virtual time").expect("the stage");
        assert!(
            pending && !free,
            "{runbook}: released {free} while the detach is pending {pending}\n{story}"
        );
        assert!(
            back,
            "{runbook}: nothing is put back after the detach has ended\n{story}"
        );
    }
}
