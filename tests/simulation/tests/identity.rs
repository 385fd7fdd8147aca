//! Whose the volume is and whose the machine is: what names something of others in a cluster frees nothing of theirs.

use reattach_api::{Phase, VolumeRecoveryStatus};
use reattach_cloud_simulator::{
    ErrorBody, Fault, FaultRule, InstanceNo, InstanceStatus, NewInstance, Operation, VolumeNo, When,
};
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_drill::app::App;
use reattach_drill::in_virtual_time;
use reattach_drill::stage::{Expect, Stage};
use reattach_drill::world::{PERSON, World, WorldError};
use reattach_sim::apiserver::{self, RequestMatch, Verb};
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_simulation::fixture::{on_first_node, policy};
use reattach_tests_simulation::{NODES, secs};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The number of the victim's volume at the cloud.
const VOLUME: VolumeNo = VolumeNo(7001);
/// A machine of the same account that is no node of this cluster.
const STRANGER: u64 = 999;
const RECOVERIES: &str = "/apis/reattach.dev/v1alpha1/namespaces";

fn redis() -> App {
    App::deployment("redis", VOLUME.0, "pvcbb1d06139b334c1f", "the cache")
}

fn claim_path() -> String {
    "/api/v1/namespaces/default/persistentvolumeclaims/redis-data".to_owned()
}

fn pv_path() -> String {
    format!("/api/v1/persistentvolumes/{}", redis().volumes[0].pv())
}

/// Redis on the first of two nodes, and a policy that allows everything.
async fn stage() -> Result<Stage, WorldError> {
    let mut s = on_first_node(1, [(redis(), Expect::Restored)]).await?;
    let fields = json!({"powerOff": "Allowed", "nodes": {"patienceSeconds": 60}});
    policy(&s, &fields).await?;
    s.start_replica("reattach-controller-0", None);
    s.pass(secs(60)).await;
    Ok(s)
}

/// The end of a run, for assertions outside of virtual time.
#[derive(Debug, Default)]
struct Aftermath {
    /// Every changing request of the controller to what is not its own.
    effects: Vec<String>,
    /// The instance that has the victim's volume by the cloud's word.
    holder: Option<InstanceNo>,
    /// Power states of the first node's machine and of the stranger.
    power: [Option<InstanceStatus>; 2],
    /// Violations that the stage found.
    broken: Vec<String>,
    /// Namespace, claim, phase, message and refusals of every recovery.
    recoveries: Vec<String>,
    story: String,
}

impl Aftermath {
    fn of(s: &Stage) -> Self {
        let line = |r: &reattach_api::VolumeRecovery| {
            let VolumeRecoveryStatus {
                phase,
                message,
                refusals,
                ..
            } = r.status.clone().unwrap_or_default();
            let namespace = r.metadata.namespace.clone().unwrap_or_default();
            format!(
                "{namespace}/{}: {phase:?}: {message}; {}",
                r.spec.claim_name,
                refusals.join("; ")
            )
        };
        let power = |n| s.world.cloud.instance(InstanceNo(n)).map(|i| i.status);
        Self {
            effects: s
                .world
                .request_log
                .effects()
                .iter()
                .map(|e| e.line())
                .collect(),
            holder: s.world.cloud.volume(VOLUME).and_then(|v| v.holder),
            power: [power(NODES[0].1), power(STRANGER)],
            broken: s.broken.clone(),
            recoveries: s.world.recoveries().iter().map(line).collect(),
            story: s.lines().iter().map(|l| l.render()).collect(),
        }
    }

    fn says(&self, words: &str) -> bool {
        self.recoveries.iter().any(|r| r.contains(words))
    }

    /// Nothing was even tried.
    #[track_caller]
    fn nothing_tried(&self) {
        assert!(
            self.effects.is_empty() && self.broken.is_empty(),
            "{self:#?}\n{}",
            self.story
        );
    }

    /// The victim's machine and volume are as they were, and nothing was even tried.
    #[track_caller]
    fn untouched(&self, holder: u64) {
        self.nothing_tried();
        assert_eq!(
            self.holder,
            Some(InstanceNo(holder)),
            "{self:#?}\n{}",
            self.story
        );
    }
}

fn played<F>(play: impl FnOnce() -> F + Send + 'static) -> Aftermath
where
    F: Future<Output = Result<Stage, WorldError>>,
{
    let out = in_virtual_time(move || async move { play().await.map(|s| Aftermath::of(&s)) });
    match out {
        Ok(Ok(aftermath)) => aftermath,
        Ok(Err(error)) => panic!("{error}"),
        Err(error) => panic!("no virtual time: {error}"),
    }
}

fn namespace(s: &Stage, name: &str) {
    s.world
        .server()
        .insert(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
}

/// A claim of `evil` that names a volume, and a Deployment on it with its pods bound to this node by hand.
async fn claim_with_pods(s: &Stage, claim: &str, pv: &str, node: &str) -> Result<(), WorldError> {
    s.world.server().insert(&json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": "evil"},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": pv, "resources": {"requests": {"storage": "10Gi"}}},
        "status": {"phase": "Pending"},
    }));
    let mut deployment = redis().objects.pop().unwrap_or_default();
    deployment["metadata"] = json!({"name": "thief", "namespace": "evil"});
    let spec = &mut deployment["spec"]["template"]["spec"];
    spec["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!(claim);
    spec["nodeName"] = json!(node);
    s.world.create("tenant", &deployment).await.map(|_| ())
}

async fn ask_for(s: &Stage, claim: &str) -> Result<(), WorldError> {
    let recovery = json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery", "metadata": {"name": "mine", "namespace": "evil"},
        "spec": {"claimName": claim, "mode": "Auto", "runbook": DEFAULT_RUNBOOK, "requester": "tenant"},
    });
    s.world.create("tenant", &recovery).await.map(|_| ())
}

/// The victim is opted out; its node dies. A claim of another namespace names the victim's volume, and its pods are bound to the
/// dead node by name.
#[test]
fn a_claim_that_is_bound_to_nothing_fences_no_node() {
    let after = played(|| async {
        let mut s = stage().await?;
        let out = json!({"metadata": {"annotations": {"reattach.dev/opt-out": "true"}}});
        s.world.merge(PERSON, &claim_path(), &out).await?;
        namespace(&s, "evil");
        claim_with_pods(&s, "steal", &redis().volumes[0].pv(), NODES[0].0).await?;
        s.pass(secs(5)).await;
        s.hang(NODES[0].0)?;
        s.pass(secs(120)).await;
        ask_for(&s, "steal").await?;
        s.pass(secs(900)).await;
        Ok(s)
    });
    after.untouched(NODES[0].1);
    assert_eq!(after.power[0], Some(InstanceStatus::Running), "{after:#?}");
    assert!(
        after.says("evil/steal: NotOurs")
            && after.says("claim evil/steal names PersistentVolume pvc-bb1d06139b334c1f, which is bound to a claim of another namespace"),
        "{after:#?}"
    );
    let by_the_policy = after
        .recoveries
        .iter()
        .filter(|r| r.starts_with("evil/"))
        .count();
    assert_eq!(
        by_the_policy, 1,
        "such a claim nominates nothing: {after:#?}"
    );
}

/// The claim loses its volume while the run waits for the node to come back.
#[test]
fn a_claim_that_loses_its_binding_unwinds_the_run() {
    let after = played(|| async {
        let mut s = stage().await?;
        s.hang(NODES[0].0)?;
        let running = |w: &World| phases(w).contains(&Phase::Running);
        s.until("a run", secs(300), running).await?;
        let other = json!({"spec": {"claimRef": {"uid": "of-an-earlier-claim"}}});
        s.world.merge(PERSON, &pv_path(), &other).await?;
        s.pass(secs(600)).await;
        Ok(s)
    });
    // Kubernetes itself detaches a volume that no bound claim wants.
    after.nothing_tried();
    assert_eq!(after.power[0], Some(InstanceStatus::Running), "{after:#?}");
    assert!(
        after.says("Withdrawn") && after.says("bound to an earlier claim of that name"),
        "{after:#?}"
    );
}

fn phases(w: &World) -> Vec<Phase> {
    w.recoveries()
        .iter()
        .filter_map(|r| Some(r.status.as_ref()?.phase))
        .collect()
}

/// Another PersistentVolume leads to the victim's volume, by the number in its handle; the victim runs and writes, without an
/// agent that could object.
fn another_spelling(handle: &'static str) -> Aftermath {
    played(move || async move {
        let mut s = stage().await?;
        s.world.stop_agent(NODES[0].0);
        namespace(&s, "evil");
        let mut pv = s
            .world
            .server()
            .read("", "persistentvolumes", "", &redis().volumes[0].pv());
        let pv = pv.as_mut().map(|pv| Value::clone(pv)).unwrap_or_default();
        let mut spec = pv["spec"].clone();
        spec["csi"]["volumeHandle"] = json!(handle);
        spec["claimRef"] =
            json!({"kind": "PersistentVolumeClaim", "namespace": "evil", "name": "alias"});
        s.world.server().insert(&json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pvc-alias"}, "spec": spec,
            "status": {"phase": "Available"},
        }));
        claim_with_pods(&s, "alias", "pvc-alias", NODES[1].0).await?;
        s.pass(secs(60)).await;
        ask_for(&s, "alias").await?;
        s.pass(secs(1200)).await;
        if !s.world.app_ready("redis", 1) {
            s.broken.push("the victim does not run any more".to_owned());
        }
        Ok(s)
    })
}

#[test]
fn another_spelling_of_a_handle_frees_nothing() {
    let after = another_spelling("7001-x");
    after.untouched(NODES[0].1);
    assert!(
        after.says("evil/alias: NotOurs") && after.says("volume handle 7001-x is not the one"),
        "{after:#?}"
    );
}

#[test]
fn a_second_volume_with_the_same_handle_frees_nothing() {
    let after = another_spelling("7001-pvcbb1d06139b334c1f");
    after.untouched(NODES[0].1);
    assert!(
        after.says("cloud volume 7001 is also used through PersistentVolume pvc-bb1d"),
        "{after:#?}"
    );
}

/// A dead node, and another Node with its providerID.
#[test]
fn a_machine_that_two_nodes_claim_is_not_fenced() {
    let after = played(|| async {
        let mut s = stage().await?;
        let first = s.world.server().read("", "nodes", "", NODES[0].0);
        let spec = first.map(|n| n["spec"].clone()).unwrap_or_default();
        s.world.server().insert(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "a-double"}, "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"bootID": "b"}},
        }));
        s.hang(NODES[0].0)?;
        s.pass(secs(900)).await;
        Ok(s)
    });
    after.untouched(NODES[0].1);
    assert_eq!(after.power[0], Some(InstanceStatus::Running), "{after:#?}");
    assert!(
        after.says("Nodes a-double, node-a all have the providerID of instance 101"),
        "{after:#?}"
    );
}

/// Redis is scaled to zero, and a machine that was never a node has its volume and is shut down; then redis is wanted again.
async fn held_by_a_stranger() -> Result<Stage, WorldError> {
    let s = stage().await?;
    s.world
        .cloud
        .create_instance(NewInstance::new("db-of-others").with_id(STRANGER))?;
    to_the_stranger(s).await
}

async fn to_the_stranger(mut s: Stage) -> Result<Stage, WorldError> {
    let app = redis();
    s.world
        .merge(PERSON, &app.path(), &json!({"spec": {"replicas": 0}}))
        .await?;
    let free = |w: &World| w.cloud.volume(VOLUME).is_some_and(|v| v.holder.is_none());
    s.until("the volume free", secs(300), free).await?;
    s.pass(secs(30)).await;
    s.world.cloud.attach_now(VOLUME, InstanceNo(STRANGER))?;
    s.world.cloud.shutdown(InstanceNo(STRANGER))?;
    s.pass(secs(60)).await;
    s.world
        .merge(PERSON, &app.path(), &json!({"spec": {"replicas": 1}}))
        .await?;
    Ok(s)
}

#[test]
fn a_machine_that_was_never_a_node_keeps_its_volume() {
    let after = played(|| async {
        let mut s = held_by_a_stranger().await?;
        s.pass(secs(1200)).await;
        Ok(s)
    });
    after.untouched(STRANGER);
    assert_eq!(after.power[1], Some(InstanceStatus::Offline), "{after:#?}");
    assert!(
        after.says("default/redis-data: Refused") && after.says("instance 999"),
        "{after:#?}"
    );
}

/// A Node with the machine's providerID existed for a minute. No kubelet ever renewed its Lease.
#[test]
fn a_short_lived_node_makes_no_machine_of_this_cluster() {
    let after = played(|| async {
        let mut s = stage().await?;
        s.world
            .cloud
            .create_instance(NewInstance::new("db-of-others").with_id(STRANGER))?;
        s.world.server().insert(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "for-a-minute"},
            "spec": {"providerID": format!("linode://{STRANGER}"), "unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"bootID": "b"}},
        }));
        s.pass(secs(60)).await;
        let node = "/api/v1/nodes/for-a-minute";
        s.world
            .request(PERSON, "DELETE", node, "application/json", &json!({}))
            .await?;
        let mut s = to_the_stranger(s).await?;
        s.pass(secs(1200)).await;
        Ok(s)
    });
    after.untouched(STRANGER);
    assert_eq!(after.power[1], Some(InstanceStatus::Offline), "{after:#?}");
    assert!(
        after.says("default/redis-data: Refused") && after.says("instance 999"),
        "{after:#?}"
    );
}

/// A person who may declare in the whole cluster says that the machine is this cluster's.
#[test]
fn a_machine_vouched_for_by_a_person_is_freed() {
    let after = played(|| async {
        let mut s = held_by_a_stranger().await?;
        let refused = |w: &World| phases(w).contains(&Phase::Refused);
        s.until("the refusal", secs(300), refused).await?;
        let all = s.world.recoveries();
        let name = all
            .first()
            .and_then(|r| r.metadata.name.clone())
            .unwrap_or_default();
        let word = json!({"spec": {"declaration": {"holder": "999", "declaredBy": "oncall", "ofThisCluster": true,
            "reason": "the node that was removed by hand last week", "at": s.world.now().to_string()}}});
        s.world
            .merge(
                "oncall",
                &format!("{RECOVERIES}/default/volumerecoveries/{name}"),
                &word,
            )
            .await?;
        s.running(&["redis"], secs(900)).await?;
        Ok(s)
    });
    assert!(
        after.effects.iter().any(|e| e.contains("7001/detach")),
        "{after:#?}"
    );
    assert!(
        NODES
            .iter()
            .any(|(_, n)| after.holder == Some(InstanceNo(*n))),
        "{after:#?}"
    );
}

/// The person who vouched for the machine has lost the right since: before the run begins, or while it runs; everywhere, or
/// in the whole cluster only.
#[test]
fn a_withdrawn_right_to_vouch_for_a_machine_frees_nothing() {
    for (in_the_run, keeps_namespace) in
        [(false, false), (false, true), (true, false), (true, true)]
    {
        let after = played(move || async move {
            let mut s = held_by_a_stranger().await?;
            let withdrawn = Arc::new(AtomicBool::new(false));
            let lost = withdrawn.clone();
            s.world
                .server()
                .set_access(Some(Arc::new(move |user, what| {
                    let word = user == "oncall"
                        && what["verb"] == "declare"
                        && lost.load(Ordering::SeqCst);
                    !word || keeps_namespace && what["namespace"] == "default"
                })));
            let refused = |w: &World| phases(w).contains(&Phase::Refused);
            s.until("the refusal", secs(300), refused).await?;
            let name = s
                .world
                .recoveries()
                .first()
                .and_then(|r| r.metadata.name.clone())
                .unwrap_or_default();
            let word = json!({"spec": {"declaration": {"holder": "999", "declaredBy": "oncall",
                "ofThisCluster": true, "reason": "a node of last week", "at": s.world.now().to_string()}}});
            s.world
                .merge(
                    "oncall",
                    &format!("{RECOVERIES}/default/volumerecoveries/{name}"),
                    &word,
                )
                .await?;
            if in_the_run {
                // The run holds the claim first; that takes so long that the right is lost before the next step.
                let requests = RequestMatch {
                    verb: Some(Verb::Patch),
                    resource: Some("volumerecoveries".into()),
                    subresource: Some(String::new()),
                    client: Some("reattach-controller".into()),
                    ..RequestMatch::default()
                };
                let slow =
                    apiserver::FaultRule::always(requests, apiserver::Fault::Latency(secs(2)));
                s.world.server().add_fault(slow);
                s.until("a run", secs(300), |w| phases(w).contains(&Phase::Running))
                    .await?;
            }
            withdrawn.store(true, Ordering::SeqCst);
            s.pass(secs(900)).await;
            Ok(s)
        });
        let freed = after.effects.iter().any(|e| e.contains("/detach"));
        assert!(
            !freed,
            "in the run: {in_the_run}\n{after:#?}\n{}",
            after.story
        );
        assert_eq!(after.holder, Some(InstanceNo(STRANGER)), "{after:#?}");
        assert!(after.says("instance 999"), "{after:#?}");
    }
}

/// A cluster is restored from a backup beside the one that was backed up: the same names with other UIDs, the same account, and
/// the records of the other cluster's machines. The other cluster's machine has the volume, and is off.
#[test]
fn a_restored_cluster_frees_nothing_of_the_first() {
    let after = played(|| async {
        let mut s = held_by_a_stranger().await?;
        let scope = s
            .world
            .server()
            .list("reattach.dev", "nodevolumereports", None);
        let scope = scope
            .iter()
            .map(|r| r["spec"]["machines"][0]["scope"].clone())
            .next()
            .unwrap_or_default();
        s.world.server().insert(&json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport", "metadata": {"name": "node-of-the-first"},
            "spec": {"challenges": [], "machines": [{"instance": "999", "node": "node-of-the-first", "nodeUid": "u",
                "cluster": "the UID of the first", "bootId": "b", "scope": scope}]},
        }));
        s.pass(secs(1200)).await;
        Ok(s)
    });
    after.untouched(STRANGER);
    assert!(after.says("instance 999"), "{after:#?}");
}

/// In the restored cluster the PersistentVolume still names the UID that the claim had in the first.
#[test]
fn a_restored_claim_is_not_the_one_that_the_volume_names() {
    let after = played(|| async {
        let mut s = stage().await?;
        let first = json!({"spec": {"claimRef": {"uid": "uid-in-the-first-cluster"}}});
        s.world.merge(PERSON, &pv_path(), &first).await?;
        s.hang(NODES[0].0)?;
        s.pass(secs(900)).await;
        Ok(s)
    });
    after.nothing_tried();
    assert_eq!(after.power[0], Some(InstanceStatus::Running), "{after:#?}");
    assert!(
        after.recoveries.is_empty(),
        "such a claim nominates nothing: {after:#?}"
    );
}

/// Tags redis' volume as one of this LKE cluster. The stage's machines are nodes of `lke13311`.
fn tag(s: &Stage, clusters: &[&str]) -> Result<(), WorldError> {
    let tags = clusters
        .iter()
        .map(|name| ((*name).to_owned(), String::new()))
        .collect();
    Ok(s.world.cloud.set_volume_tags(VOLUME, tags)?)
}

const OF_ANOTHER: &str = "cloud volume 7001 is tagged as cluster lke99999's, and this cluster's machines are tagged as lke13311's";

/// The node dies, and the cloud's tags say that its volume is another cluster's.
async fn tagged_as_anothers() -> Result<Stage, WorldError> {
    let mut s = stage().await?;
    tag(&s, &["lke99999", "databases"])?;
    s.hang(NODES[0].0)?;
    Ok(s)
}

#[test]
fn a_volume_tagged_as_another_clusters_is_not_freed() {
    let after = played(|| async {
        let mut s = tagged_as_anothers().await?;
        s.pass(secs(900)).await;
        Ok(s)
    });
    after.untouched(NODES[0].1);
    assert_eq!(after.power[0], Some(InstanceStatus::Running), "{after:#?}");
    assert!(
        after.says("default/redis-data: Refused") && after.says(OF_ANOTHER),
        "{after:#?}"
    );
}

#[test]
fn a_volume_without_tags_is_freed() {
    let after = played(|| async {
        let mut s = stage().await?;
        tag(&s, &[])?;
        s.hang(NODES[0].0)?;
        let over = |w: &World| phases(w).contains(&Phase::Recovered);
        s.until("the end of the recovery", secs(1200), over).await?;
        Ok(s)
    });
    assert_eq!(
        after.holder,
        Some(InstanceNo(NODES[1].1)),
        "{after:#?}\n{}",
        after.story
    );
    assert_eq!(after.power[0], Some(InstanceStatus::Offline), "{after:#?}");
}

/// A person who may write PersistentVolumes says that the volume was taken over from that cluster.
#[test]
fn a_volume_whose_tags_a_person_accepts_is_freed() {
    let after = played(|| async {
        let mut s = tagged_as_anothers().await?;
        let refused = |w: &World| phases(w).contains(&Phase::Refused);
        s.until("the refusal", secs(600), refused).await?;
        let word =
            json!({"metadata": {"annotations": {"reattach.dev/tagged-as": "lke7, lke99999"}}});
        s.world.merge(PERSON, &pv_path(), &word).await?;
        s.running(&["redis"], secs(1200)).await?;
        Ok(s)
    });
    assert_eq!(
        after.holder,
        Some(InstanceNo(NODES[1].1)),
        "{after:#?}\n{}",
        after.story
    );
    assert!(after.says("default/redis-data: "), "{after:#?}");
}

/// The tags change while the run waits for the node to come back.
#[test]
fn a_volume_tagged_for_another_owner_unwinds_the_run() {
    let after = played(|| async {
        let mut s = stage().await?;
        s.hang(NODES[0].0)?;
        let running = |w: &World| phases(w).contains(&Phase::Running);
        s.until("a run", secs(300), running).await?;
        tag(&s, &["lke99999"])?;
        s.pass(secs(600)).await;
        Ok(s)
    });
    after.untouched(NODES[0].1);
    assert_eq!(after.power[0], Some(InstanceStatus::Running), "{after:#?}");
    assert!(after.says(OF_ANOTHER), "{after:#?}");
}

/// While the machines' own tags cannot be read, nothing says that the volume is this cluster's.
#[test]
fn a_tagged_volume_waits_for_the_machines_tags() {
    let after = played(|| async {
        let mut s = stage().await?;
        let fault = Fault::Error {
            status: 502,
            reason: "bad gateway".to_owned(),
            when: When::BeforeEffect,
            body: ErrorBody::Json,
        };
        let reads = [Operation::DescribeInstance, Operation::ListInstances];
        s.world.cloud.add_fault(FaultRule::new(reads, fault));
        s.recycle(NODES[0].0, DiskAfter::Kept, secs(20)).await?;
        s.pass(secs(300)).await;
        if !s.world.request_log.effects().is_empty() || !phases(&s.world).contains(&Phase::Waiting)
        {
            s.broken
                .push(format!("it does not wait: {:#?}", Aftermath::of(&s)));
        }
        s.world.cloud.clear_faults();
        s.running(&["redis"], secs(900)).await?;
        Ok(s)
    });
    assert!(
        after.broken.is_empty() && !after.effects.is_empty(),
        "{after:#?}\n{}",
        after.story
    );
}

/// The dead node's machine turns out to be one of another LKE cluster: its Node has a providerID that is not its own.
async fn held_by_a_machine_of_others() -> Result<Stage, WorldError> {
    let mut s = stage().await?;
    tag(&s, &[])?;
    s.world
        .cloud
        .set_lke_cluster(InstanceNo(NODES[0].1), Some(99999))?;
    s.hang(NODES[0].0)?;
    Ok(s)
}

#[test]
fn a_machine_tagged_as_another_clusters_is_not_fenced() {
    let after = played(|| async {
        let mut s = held_by_a_machine_of_others().await?;
        s.pass(secs(900)).await;
        Ok(s)
    });
    after.untouched(NODES[0].1);
    assert_eq!(after.power[0], Some(InstanceStatus::Running), "{after:#?}");
    let said = "instance 101, which has the volume, is tagged as cluster lke99999's, and this cluster's other machines are tagged as lke13311's";
    assert!(
        after.says("default/redis-data: Refused") && after.says(said),
        "{after:#?}"
    );
}
