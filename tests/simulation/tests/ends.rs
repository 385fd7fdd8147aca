//! The ends of a run: what was powered off is powered on, and the lock of a node stays while its run lives.

use reattach_api::Phase;
use reattach_cloud_simulator::{DetachBehaviour, InstanceStatus, JobAction, VolumeNo};
use reattach_drill::in_virtual_time;
use reattach_drill::stage::{Expect, Stage};
use reattach_drill::taint_recorder::is_out_of_service_by_us;
use reattach_drill::world::{PERSON, World, WorldError};
use reattach_tests_simulation::fixture::{on_first_node, policy, recovery_path};
use reattach_tests_simulation::{NODES, redis, secs, story};
use serde_json::json;

/// An app on a node whose kernel then hangs, under a policy with this rule about power.
async fn stage(power_off: &str) -> Result<Stage, WorldError> {
    let mut s = on_first_node(1, [(redis(), Expect::Restored)]).await?;
    policy(&s, &json!({"powerOff": power_off})).await?;
    s.start_replica("reattach-controller-0", None);
    s.pass(secs(10)).await;
    Ok(s)
}

fn power(s: &Stage) -> Option<InstanceStatus> {
    let instance = s.world.instance(NODES[0].0).ok()?;
    s.world.cloud.instance(instance).map(|i| i.status)
}

fn shutdown_ordered(w: &World) -> bool {
    w.cloud
        .jobs()
        .iter()
        .any(|j| j.action == JobAction::Shutdown)
}

fn messages(s: &Stage) -> Vec<String> {
    let said = |r: reattach_api::VolumeRecovery| {
        let status = r.status.unwrap_or_default();
        format!("{:?}: {}", status.phase, status.message)
    };
    s.world.recoveries().into_iter().map(said).collect()
}

/// After the power-off a pod of a DaemonSet is bound to the dead node: it never ran there, and the fence goes on.
#[test]
fn a_pod_bound_to_a_powered_off_node_ends_no_fence() {
    let played = in_virtual_time(|| async {
        let mut s = stage("Allowed").await?;
        s.hang(NODES[0].0)?;
        s.until("shutdown ordered", secs(600), shutdown_ordered)
            .await?;
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "logs-x7k2p", "namespace": "default", "labels": {"app": "logs"}},
            "spec": {"nodeName": NODES[0].0, "containers": [{"name": "c", "image": "i"}],
                "tolerations": [{"operator": "Exists"}]}});
        s.world
            .create(
                "system:serviceaccount:kube-system:daemon-set-controller",
                &pod,
            )
            .await?;
        s.running(&["redis"], secs(900)).await?;
        s.phases(&["redis"], &[Phase::Recovered], secs(300)).await?;
        Ok::<_, WorldError>((power(&s), story(&s)))
    });
    let (power, story) = played.expect("virtual time").expect("the stage");
    assert_eq!(power, Some(InstanceStatus::Offline), "{story}");
}

/// The policy is taken back when the machine has just been powered off.
#[test]
fn a_refused_run_powers_the_machine_on_again() {
    let played = in_virtual_time(|| async {
        let mut s = stage("AllowedAndOn").await?;
        s.hang(NODES[0].0)?;
        s.until("shutdown ordered", secs(600), shutdown_ordered)
            .await?;
        let policy = "/apis/reattach.dev/v1alpha1/recoverypolicies/everything";
        s.world
            .merge("oncall", policy, &json!({"spec": {"mode": "Observe"}}))
            .await?;
        s.pass(secs(3_600)).await;
        Ok::<_, WorldError>((
            power(&s),
            s.world.app_ready("redis", 1),
            messages(&s),
            story(&s),
        ))
    });
    let (power, ready, messages, story) = played.expect("virtual time").expect("the stage");
    assert!(
        ready && power == Some(InstanceStatus::Running),
        "{power:?}, ready {ready}, {messages:#?}\n{story}"
    );
}

#[test]
fn an_aborted_run_powers_the_machine_on_again() {
    for rule in ["AllowedAndOn", "Allowed"] {
        let played = in_virtual_time(move || async move {
            let mut s = stage(rule).await?;
            s.hang(NODES[0].0)?;
            s.until("shutdown ordered", secs(600), shutdown_ordered)
                .await?;
            let path = recovery_path(&s);
            s.world
                .merge(
                    "oncall",
                    &path,
                    &json!({"spec": {"abort": {"by": "oncall"}}}),
                )
                .await?;
            s.phases(&["redis"], &[Phase::Aborted], secs(600)).await?;
            s.pass(secs(120)).await;
            Ok::<_, WorldError>((power(&s), messages(&s), story(&s)))
        });
        let (power, messages, story) = played.expect("virtual time").expect("the stage");
        let told = messages
            .iter()
            .any(|m| m.contains("Node node-a) stays powered off"));
        let on = power == Some(InstanceStatus::Running);
        // Without the policy's wish it is handed to a person by name.
        assert!(
            if rule == "Allowed" {
                !on && told
            } else {
                on && !told
            },
            "{rule}: {power:?}, {messages:#?}\n{story}"
        );
    }
}

/// After the taint the pod is deleted, and with it its deleted claim: nothing in the cluster leads to the volume.
#[test]
fn a_claim_deleted_after_the_taint_powers_the_machine_on() {
    let played = in_virtual_time(|| async {
        let mut s = stage("AllowedAndOn").await?;
        s.world.csi.set_unpublish_fails(true);
        s.hang(NODES[0].0)?;
        let tainted = |w: &World| {
            w.server()
                .read("", "nodes", "", NODES[0].0)
                .is_some_and(|n| is_out_of_service_by_us(&n))
        };
        s.until("tainted", secs(900), tainted).await?;
        let claim = "/api/v1/namespaces/default/persistentvolumeclaims/redis-data";
        s.world
            .request(PERSON, "DELETE", claim, "application/json", &json!({}))
            .await?;
        let _ = s
            .world
            .merge(PERSON, claim, &json!({"metadata": {"finalizers": null}}))
            .await;
        let over = |w: &World| {
            w.recoveries()
                .iter()
                .all(|r| r.status.as_ref().is_some_and(|s| s.phase.is_final()))
        };
        let ended = s.until("the run over", secs(1_800), over).await.is_ok();
        s.pass(secs(120)).await;
        let lock = format!("node-{}", NODES[0].0);
        let locks = s.world.server().list("coordination.k8s.io", "leases", None);
        let locked = locks.iter().any(|l| l["metadata"]["name"] == lock.as_str());
        Ok::<_, WorldError>((
            ended,
            tainted(&s.world),
            power(&s),
            locked,
            messages(&s),
            story(&s),
        ))
    });
    let (ended, tainted, power, locked, messages, story) =
        played.expect("virtual time").expect("the stage");
    assert!(
        ended && !tainted && !locked && power == Some(InstanceStatus::Running),
        "ended {ended}, tainted {tainted}, locked {locked}, {power:?}, {messages:#?}\n{story}"
    );
}

/// The cloud is busy for more than an hour, which the runbook says it waits for.
#[test]
fn the_lock_of_a_waiting_run_does_not_expire() {
    let played = in_virtual_time(|| async {
        let mut s = stage("Allowed").await?;
        s.world.csi.set_unpublish_fails(true);
        let busy = DetachBehaviour::Refused {
            status: 400,
            reason: "Linode busy.".into(),
        };
        s.world.cloud.set_detach(VolumeNo(7001), busy)?;
        s.hang(NODES[0].0)?;
        let tainted = |w: &World| {
            w.server()
                .read("", "nodes", "", NODES[0].0)
                .is_some_and(|n| is_out_of_service_by_us(&n))
        };
        s.until("tainted", secs(900), tainted).await?;
        s.pass(secs(300)).await;
        // Another leader, which has nothing to write into the journal while it waits.
        s.start_replica("reattach-controller-1", None);
        s.pass(secs(5)).await;
        let old = s.replicas.remove(0);
        old.stop().await;
        let gone = s
            .until("the taint gone", secs(5_000), move |w| !tainted(w))
            .await
            .is_ok();
        let phase = s
            .recovery_of("redis")
            .and_then(|r| r.status)
            .map(|st| st.phase)
            .unwrap_or_default();
        Ok::<_, WorldError>((gone, phase, story(&s)))
    });
    let (gone, phase, story) = played.expect("virtual time").expect("the stage");
    // The run takes it off itself, when the cloud was busy for longer than the step waits.
    let by_the_run =
        phase == Phase::Failed && story.contains("take our out-of-service taint off Node node-a");
    assert!(
        !gone || by_the_run,
        "the taint was taken from a run in phase {phase:?}\n{story}"
    );
}
