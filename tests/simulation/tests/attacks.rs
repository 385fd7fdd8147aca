//! Attacks by tenants and writers of cluster objects besides those in `identity.rs` and `authority.rs`; the same worlds on a
//! real API server stand in `tests/controlplane/tests/live/tenants.rs`.

use reattach_api::Phase;
use reattach_cloud_simulator::{InstanceNo, InstanceStatus, VolumeNo};
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_drill::stage::{Expect, Stage, phases_of};
use reattach_drill::world::{PERSON, World, WorldError};
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_simulation::fixture::{effects, on_first_node, policy};
use reattach_tests_simulation::{NODES, postgres, redis, secs, simulate, story};
use serde_json::{Value, json};

const VOLUME: VolumeNo = VolumeNo(7001);
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const RECORDS: &str = "/apis/reattach.dev/v1alpha1/namespaces/default/volumerecoveries";
const MERGE: &str = "application/merge-patch+json";

/// Redis on the first of two nodes, under a policy that allows as much as this.
async fn stage(changes: Value) -> Result<Stage, WorldError> {
    let mut s = on_first_node(1, [(redis(), Expect::Running)]).await?;
    let mut fields = json!({"powerOff": "Allowed", "nodes": {"patienceSeconds": 60}});
    for (key, value) in changes.as_object().into_iter().flatten() {
        fields[key] = value.clone();
    }
    policy(&s, &fields).await?;
    s.start_replica("reattach-controller-0", None);
    s.pass(secs(60)).await;
    Ok(s)
}

fn namespace(s: &Stage, name: &str) {
    s.world
        .server()
        .insert(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
}

/// Everything that the records say.
fn said(s: &Stage) -> String {
    let line = |r: &reattach_api::VolumeRecovery| {
        let status = r.status.clone().unwrap_or_default();
        format!(
            "{}: {:?}: {}; {}",
            r.spec.claim_name,
            status.phase,
            status.message,
            status.refusals.join("; ")
        )
    };
    s.world
        .recoveries()
        .iter()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

#[track_caller]
fn untouched(s: &Stage) {
    assert!(
        s.world.request_log.effects().is_empty() && s.broken.is_empty(),
        "{}\n{}",
        said(s),
        story(s)
    );
    let holder = s.world.cloud.volume(VOLUME).and_then(|v| v.holder);
    assert_eq!(
        holder,
        Some(InstanceNo(NODES[0].1)),
        "{}\n{}",
        said(s),
        story(s)
    );
    let power = s
        .world
        .cloud
        .instance(InstanceNo(NODES[0].1))
        .map(|i| i.status);
    assert_eq!(
        power,
        Some(InstanceStatus::Running),
        "{}\n{}",
        said(s),
        story(s)
    );
}

/// A Deployment of another namespace with this claim in its pods, bound to a node by name.
async fn pods_of_others(s: &Stage, name: &str, claim: &str, node: &str) -> Result<(), WorldError> {
    let mut deployment = redis().objects.pop().unwrap_or_default();
    deployment["metadata"] = json!({"name": name, "namespace": "evil"});
    deployment["spec"]["selector"]["matchLabels"] = json!({"app": name});
    deployment["spec"]["template"]["metadata"]["labels"] = json!({"app": name});
    let spec = &mut deployment["spec"]["template"]["spec"];
    spec["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!(claim);
    spec["nodeName"] = json!(node);
    s.world.create("tenant", &deployment).await.map(|_| ())
}

/// Kubernetes takes any text for the claim of a pod. Such pods on a dead node keep the volumes of that node from nothing, and
/// nothing asks the API server for what the text leads to.
#[test]
fn a_claim_name_with_a_path_blocks_no_recovery() {
    simulate(|| async {
        let mut s = stage(Value::Null).await?;
        namespace(&s, "evil");
        for (name, claim) in [
            ("query", "?watch=true"),
            ("space", "no name"),
            ("path", "../../default/persistentvolumeclaims/redis-data"),
            ("deep", "a/b/c/d"),
        ] {
            pods_of_others(&s, name, claim, NODES[0].0).await?;
        }
        s.pass(secs(5)).await;
        s.hang(NODES[0].0)?;
        s.until_stored("redis down", secs(120), |w| !w.app_ready("redis", 1))
            .await?;
        s.running(&["redis"], secs(1200)).await?;
        let strange: Vec<String> = s
            .world
            .recoveries()
            .iter()
            .filter(|r| r.spec.claim_name != "redis-data")
            .map(|r| r.spec.claim_name.clone())
            .collect();
        assert!(strange.is_empty(), "{strange:?}");
        Ok(())
    });
}

/// In the middle of a run the claim is deleted and another one is made under its name.
#[test]
fn a_recreated_claim_is_not_the_runs_claim() {
    simulate(|| async {
        let mut s = stage(json!({"nodes": {"patienceSeconds": 120}})).await?;
        s.hang(NODES[0].0)?;
        s.until("a run", secs(300), |w| {
            phases_of(w).contains(&Phase::Running)
        })
        .await?;
        let path = format!("{CLAIMS}/redis-data");
        let old = s
            .world
            .server()
            .read("", "persistentvolumeclaims", "default", "redis-data");
        let mut new = old.map(|c| Value::clone(&c)).unwrap_or_default();
        s.world
            .merge(PERSON, &path, &json!({"metadata": {"finalizers": null}}))
            .await?;
        s.world
            .request(PERSON, "DELETE", &path, MERGE, &json!({}))
            .await?;
        new["metadata"] = json!({"name": "redis-data", "namespace": "default"});
        s.world.server().insert(&new);
        s.pass(secs(900)).await;
        let freeing: Vec<String> = effects(&s)
            .into_iter()
            .filter(|l| l.contains("detach") || l.contains("shutdown"))
            .collect();
        assert!(
            freeing.is_empty(),
            "{freeing:#?}\n{}\n{}",
            said(&s),
            story(&s)
        );
        Ok(())
    });
}

/// In the middle of a run the PersistentVolume is recreated under its name, for a foreign volume.
#[test]
fn a_volume_recreated_over_anothers_handle_is_not_freed() {
    simulate(|| async {
        let mut s = stage(json!({"nodes": {"patienceSeconds": 120}})).await?;
        let other = s
            .world
            .cloud
            .create_volume(reattach_cloud_simulator::NewVolume::new("pvcofothers").with_id(7009))?;
        s.world.cloud.attach_now(other, InstanceNo(NODES[1].1))?;
        s.hang(NODES[0].0)?;
        s.until("a run", secs(300), |w| {
            phases_of(w).contains(&Phase::Running)
        })
        .await?;
        let name = redis().volumes[0].pv();
        let path = format!("/api/v1/persistentvolumes/{name}");
        let old = s.world.server().read("", "persistentvolumes", "", &name);
        let mut new = old.map(|v| Value::clone(&v)).unwrap_or_default();
        s.world
            .merge(PERSON, &path, &json!({"metadata": {"finalizers": null}}))
            .await?;
        s.world
            .request(PERSON, "DELETE", &path, MERGE, &json!({}))
            .await?;
        new["metadata"] = json!({"name": name});
        new["spec"]["csi"]["volumeHandle"] = json!("7009-pvcofothers");
        s.world.server().insert(&new);
        s.pass(secs(900)).await;
        let effects = effects(&s);
        let freeing = effects
            .iter()
            .filter(|l| l.contains("detach") || l.contains("shutdown"));
        assert_eq!(
            freeing.count(),
            0,
            "{effects:#?}\n{}\n{}",
            said(&s),
            story(&s)
        );
        let holder = s.world.cloud.volume(other).and_then(|v| v.holder);
        assert_eq!(holder, Some(InstanceNo(NODES[1].1)), "{}", said(&s));
        Ok(())
    });
}

/// A claim that says Bound, over a PersistentVolume that is reserved for its name and bound to no UID.
#[test]
fn a_volume_without_a_claim_uid_is_not_freed() {
    simulate(|| async {
        let mut s = stage(Value::Null).await?;
        let path = format!("/api/v1/persistentvolumes/{}", redis().volumes[0].pv());
        s.world
            .merge(PERSON, &path, &json!({"spec": {"claimRef": {"uid": null}}}))
            .await?;
        s.hang(NODES[0].0)?;
        s.pass(secs(30)).await;
        // The binder of Kubernetes completes the reference; the attacker removes the UID each time.
        for _ in 0..60 {
            s.world
                .merge(PERSON, &path, &json!({"spec": {"claimRef": {"uid": null}}}))
                .await?;
            s.pass(secs(10)).await;
            if s.world.request_log.effects().is_empty() {
                continue;
            }
            break;
        }
        untouched(&s);
        Ok(())
    });
}

/// A writer of VolumeAttachments makes one of a volume in use, for a healthy node and for one that does not exist.
#[test]
fn a_made_up_attachment_frees_nothing() {
    simulate(|| async {
        let mut s = stage(Value::Null).await?;
        for (name, node) in [
            ("csi-forged", NODES[1].0),
            ("csi-nowhere", "node-of-nobody"),
        ] {
            let object = json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name},
                "spec": {"attacher": "linodebs.csi.linode.com", "nodeName": node,
                    "source": {"persistentVolumeName": redis().volumes[0].pv()}},
            });
            s.world.create(PERSON, &object).await?;
        }
        s.pass(secs(900)).await;
        let effects = effects(&s);
        let freeing = effects
            .iter()
            .filter(|l| l.contains("/detach") || l.contains("shutdown") || l.contains("eviction"));
        assert_eq!(
            freeing.count(),
            0,
            "{effects:#?}\n{}\n{}",
            said(&s),
            story(&s)
        );
        assert!(s.world.app_ready("redis", 1), "{}\n{}", said(&s), story(&s));
        Ok(())
    });
}

/// An approver approves a plan of another record, and a tenant puts our finalizer on a record of their own.
#[test]
fn an_approval_of_another_plan_starts_no_run() {
    simulate(|| async {
        let mut s = stage(json!({"mode": "Approve"})).await?;
        s.recycle(NODES[0].0, DiskAfter::Kept, secs(6)).await?;
        let waits = |w: &World| phases_of(w).contains(&Phase::AwaitingApproval);
        s.until("a plan to approve", secs(300), waits).await?;
        let recovery = s.world.recoveries().remove(0);
        let hash = recovery
            .status
            .and_then(|st| st.plan_hash)
            .unwrap_or_default();
        let other: String = hash.chars().rev().collect();
        assert_ne!(hash, other);
        let name = recovery.metadata.name.unwrap_or_default();
        let approval = json!({"spec": {"approval": {"planHash": other, "approver": PERSON}}});
        s.world
            .merge(PERSON, &format!("{RECORDS}/{name}"), &approval)
            .await?;
        let kept = json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
            "metadata": {"name": "kept", "namespace": "default", "finalizers": ["reattach.dev/restore"]},
            "spec": {"claimName": "redis-data", "mode": "DryRun", "runbook": DEFAULT_RUNBOOK, "requester": "tenant",
                "abort": {"by": "tenant"}},
        });
        s.world.create("tenant", &kept).await?;
        s.pass(secs(300)).await;
        untouched(&s);
        let kept = s
            .world
            .server()
            .read("reattach.dev", "volumerecoveries", "default", "kept");
        let finalizers = kept
            .map(|r| r["metadata"]["finalizers"].clone())
            .unwrap_or_default();
        let left = finalizers.as_array().is_some_and(|all| !all.is_empty());
        assert!(!left, "{finalizers}");
        Ok(())
    });
}

/// The claim of the database is opted out. Its pod on the dead node was deleted by force, and its volume is still attached there: a
/// fence for the cache beside it would detach it.
#[test]
fn an_opted_out_volume_without_a_pod_keeps_its_node_unfenced() {
    simulate(|| async {
        let apps = [(redis(), Expect::Running), (postgres(), Expect::Running)];
        let mut s = on_first_node(1, apps).await?;
        let fields = json!({"powerOff": "Allowed", "nodes": {"patienceSeconds": 60}});
        policy(&s, &fields).await?;
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(60)).await;
        let out = json!({"metadata": {"annotations": {"reattach.dev/opt-out": "true"}}});
        s.world
            .merge(PERSON, &format!("{CLAIMS}/data-postgres-0"), &out)
            .await?;
        s.hang(NODES[0].0)?;
        s.pass(secs(5)).await;
        let now = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
        let pod = "/api/v1/namespaces/default/pods/postgres-0";
        s.world
            .request(PERSON, "DELETE", pod, "application/json", &now)
            .await?;
        // Kubernetes itself detaches after six minutes.
        s.pass(secs(270)).await;
        untouched(&s);
        assert!(
            said(&s)
                .contains("claim default/data-postgres-0 is on node node-a and is opted out by"),
            "{}",
            said(&s)
        );
        Ok(())
    });
}
