//! Tenants and writers of cluster objects attack objects of others: claims, PersistentVolumes, Nodes, records and
//! words free, mark, detach and power off nothing of others. Everybody here is a user of the API server with the shipped roles;
//! a policy allows as much as the attack needs. Attacks that admission refuses stand in `tests/deploy/attacks.rs`, the same worlds
//! in virtual time in `tests/simulation/tests/{identity,authority,attacks}.rs`.

use crate::STOCK;
use crate::common::fencing::{effects, told};
use crate::common::workloads::{pin, prefer};
use crate::common::{AWAY, LIMIT, Stage, StageOptions};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use reattach_api::{Phase, VolumeRecovery};
use reattach_cloud_simulator::{InstanceNo, InstanceStatus, NewInstance, Timings, VolumeNo};
use reattach_core::names::{OUT_OF_SERVICE_TAINT, QUARANTINE_TAINT};
use reattach_core::steps::StepKind;
use reattach_sim::kubelet::DiskAfter;
use reattach_sim::manifests::{self, claim_volume, secret_volume};
use reattach_tests_controlplane::{eventually, say};
use serde_json::{Value, json};

/// The tenants' namespace; its policy lets reattach act and power machines off.
const TENANTS: &str = "tenants";
/// The namespace of the others; it is opted out.
const VICTIMS: &str = "tenants-victims";

/// A user of the API server with these ClusterRoles in a namespace.
async fn user(stage: &Stage, name: &str, namespace: &str, roles: &[&str]) -> Client {
    let name = stage.user(name);
    let config = stage.person(&name, namespace, roles).await;
    stage.plane.client_from(&config).await.expect("a client")
}

/// Creates a namespaced object as this user.
async fn create_as(client: &Client, object: Value) -> kube::Result<DynamicObject> {
    let text = |at: &str| {
        object
            .pointer(at)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (group, version) = text("/apiVersion")
        .split_once('/')
        .unwrap_or(("", text("/apiVersion")));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("/kind")));
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), text("/metadata/namespace"), &resource);
    let made = serde_json::from_value(object.clone()).expect("an object");
    api.create(&PostParams::default(), &made).await
}

/// A Deployment of the tenant's on one node, whose claim has the same name.
async fn deployment(tina: &Client, name: &str, node: &str) {
    let mut object = manifests::deployment(TENANTS, name, 1, &[claim_volume("data", name)]);
    pin(&mut object, node);
    create_as(tina, object).await.expect("a tenant may");
}

/// A PersistentVolume by a writer of PersistentVolumes, and a tenant's claim that Kubernetes binds to it.
async fn claim_over(stage: &Stage, tina: &Client, name: &str, driver: Option<&str>, handle: &str) {
    let pv = format!("pv-{TENANTS}-{name}");
    let mut volume = manifests::linode_volume(&pv, handle, "ext4", TENANTS, name);
    if let Some(driver) = driver {
        volume["spec"]["csi"]["driver"] = json!(driver);
    }
    stage.create(volume).await;
    create_as(tina, manifests::claim(TENANTS, name, &pv))
        .await
        .expect("a tenant may");
}

/// Another cluster's machine that is off, and its volume; a PersistentVolume here names that volume.
async fn foreign_machine(stage: &Stage, tina: &Client) -> VolumeNo {
    let machine = InstanceNo(stage.instance_number(12));
    stage
        .cloud
        .create_instance(NewInstance::new("another-cluster").with_id(machine.0))
        .expect("an instance");
    let (volume, handle) = stage.volume("foreign");
    stage.cloud.attach_now(volume, machine).expect("attached");
    stage.cloud.shutdown(machine).expect("it runs");
    claim_over(stage, tina, "foreign", None, &handle).await;
    deployment(tina, "foreign", "tenants-3").await;
    volume
}

/// Nodes that claim what others are: the machine of `tenants-5`, and the host name of `tenants-2`.
async fn false_nodes(stage: &Stage) {
    let real = stage.node("tenants-5").await.expect("a Node");
    let machine = real.spec.and_then(|s| s.provider_id).expect("a providerID");
    let label = json!({"kubernetes.io/hostname": "tenants-2"});
    for (name, labels, id) in [
        ("tenants-0-twin", json!({}), json!(machine)),
        ("tenants-0-host", label, Value::Null),
    ] {
        let spec = json!({"providerID": id, "unschedulable": true});
        let metadata = json!({"name": name, "labels": labels});
        stage
            .create(json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec}))
            .await;
    }
}

/// Spellings of the handle of the victims' volume `lives`, and what is said of each.
fn spellings(
    volume: VolumeNo,
    label: &str,
) -> [(&'static str, Option<&'static str>, String, &'static str); 7] {
    let n = volume.0;
    let wrapped = u128::from(n) + (1 << 64);
    let unknown = "it does not begin with a volume number; driver linodebs.csi.linode.com gives no volume such a handle";
    [
        (
            "alias",
            None,
            format!("{n}-x"),
            "is not the one that driver linodebs.csi.linode.com gives to cloud volume",
        ),
        (
            "case",
            None,
            format!("{n}-{}", label.to_uppercase()),
            "is not the one that driver",
        ),
        (
            "same",
            None,
            format!("{n}-{label}"),
            "is also used through PersistentVolume",
        ),
        ("signed", None, format!("+{n}-{label}"), unknown),
        ("padded", None, format!("0{n}-{label}"), unknown),
        ("wrapped", None, format!("{wrapped}-{label}"), unknown),
        (
            "driver",
            Some("LinodeBS.csi.linode.com"),
            format!("{n}-{label}"),
            "no cloud provider of this installation knows",
        ),
    ]
}

/// Victims on a machine that is cut off and on one that runs, and everything that a tenant and writers of PersistentVolumes,
/// VolumeAttachments and Nodes can name of theirs. The tenant's own volume on a third machine heals meanwhile.
pub async fn forged_names_free_no_foreign_volume() {
    let options = StageOptions {
        nodes: 5,
        mode: None,
        volumes_per_node: 16,
        ..StageOptions::default()
    };
    let mut stage = Stage::share(&STOCK, TENANTS, options).await;
    stage.set_timings(Timings {
        shutdown_ms: 5_000,
        boot_ms: 5_000,
        ..Timings::default()
    });
    stage.policy_saying(json!({"powerOff": "Allowed"})).await;
    stage.namespace(TENANTS).await;
    let opted_out = json!({"reattach.dev/opt-out": "true"});
    stage
        .create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": VICTIMS, "annotations": opted_out}}))
        .await;
    stage
        .plane
        .await_namespace(VICTIMS)
        .await
        .expect("its ServiceAccount");
    let tina = user(&stage, "tina", TENANTS, &["edit"]).await;
    let olga = user(&stage, "olga", TENANTS, &["admin"]).await;
    let cut = stage.deployment(VICTIMS, "cut", "tenants-1").await;
    let lives = stage.deployment(VICTIMS, "lives", "tenants-2").await;
    let own = stage
        .deployment_with(TENANTS, "own", "tenants-4", |o| {
            prefer(o, &["tenants-4", "tenants-3"])
        })
        .await;
    let beside = stage.deployment(TENANTS, "beside", "tenants-1").await;
    let doubled = stage.deployment(TENANTS, "doubled", "tenants-5").await;
    let ready = [
        (VICTIMS, "cut"),
        (VICTIMS, "lives"),
        (TENANTS, "own"),
        (TENANTS, "beside"),
        (TENANTS, "doubled"),
    ];
    for (namespace, app) in ready {
        stage.await_ready(namespace, app, 1).await;
    }

    // These claims stay Pending: the PersistentVolume is bound to the victims'. The thief's pod is on the victims' dead node.
    create_as(
        &tina,
        manifests::claim(TENANTS, "stolen", &format!("pv-{VICTIMS}-cut")),
    )
    .await
    .expect("a tenant may");
    let mut thief = manifests::deployment(TENANTS, "stolen", 1, &[claim_volume("data", "stolen")]);
    thief["spec"]["template"]["spec"]["nodeName"] = json!("tenants-1");
    create_as(&tina, thief).await.expect("a tenant may");
    let mut picked = manifests::claim(TENANTS, "picked", "");
    let spec = picked["spec"].as_object_mut().expect("a spec");
    spec.remove("volumeName");
    spec.insert(
        "selector".to_owned(),
        json!({"matchLabels": {"of": "the-victims"}}),
    );
    let volumes: Api<k8s_openapi::api::core::v1::PersistentVolume> = Api::all(stage.admin.clone());
    stage
        .patch(
            &volumes,
            &format!("pv-{VICTIMS}-cut"),
            json!({"metadata": {"labels": {"of": "the-victims"}}}),
        )
        .await;
    create_as(&tina, picked).await.expect("a tenant may");
    deployment(&tina, "picked", "tenants-1").await;
    let label = stage.cloud.volume(lives).expect("a volume").label;
    for (name, driver, handle, _) in spellings(lives, &label) {
        claim_over(&stage, &tina, name, driver, &handle).await;
        deployment(&tina, name, "tenants-3").await;
    }
    stage
        .create(json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "tenants-forged"},
            "spec": {"attacher": "linodebs.csi.linode.com", "nodeName": "tenants-3",
                "source": {"persistentVolumeName": format!("pv-{VICTIMS}-lives")}},
        }))
        .await;
    false_nodes(&stage).await;
    let foreign = foreign_machine(&stage, &tina).await;

    // Kubernetes takes any text for the claim of a pod: one that is a query without an end, and one that is no path. Their pods
    // are on the node that is to be fenced.
    for (name, claim) in [
        ("query", "?watch=true"),
        ("space", "no name"),
        ("deep", "a/b/c/d"),
    ] {
        let mut object = manifests::deployment(TENANTS, name, 1, &[claim_volume("data", claim)]);
        object["spec"]["template"]["spec"]["nodeName"] = json!("tenants-4");
        create_as(&tina, object).await.expect("a tenant may");
    }

    // The victims' machine is cut off and runs on, and so does the one that two Nodes claim. The machine of the tenant's own
    // volume is off, says the cloud.
    stage.hang("tenants-1");
    stage.hang("tenants-5");
    stage
        .cloud
        .shutdown(stage.instance("tenants-4"))
        .expect("it runs, says the cloud");
    stage.hang("tenants-4");
    stage
        .await_instance("tenants-4", &InstanceStatus::Offline)
        .await;
    // An approver of the namespace asks for more than the nominations bring.
    for claim in ["stolen", "picked"] {
        ask(
            &olga,
            TENANTS,
            &format!("{claim}-by-olga"),
            claim,
            &stage.user("olga"),
            "Auto",
        )
        .await
        .expect("she may ask");
    }
    let mine = stage.await_recovered(TENANTS, "own").await;
    stage.await_ready_on(TENANTS, "own", "tenants-3").await;
    say!("the tenant's own volume:\n{}", told(&mine));
    assert!(
        effects(&mine).contains(&StepKind::TaintOutOfService),
        "{:?}",
        effects(&mine)
    );

    let spelled = spellings(lives, &label).map(|(claim, _, _, says)| (claim, says));
    for (claim, says) in OTHERS.iter().chain(&spelled) {
        let waits = |r: &VolumeRecovery| sentences(r).contains(says);
        let recovery = stage.await_recovery(TENANTS, claim, says, waits).await;
        assert!(effects_or_none(&recovery).is_empty(), "{}", told(&recovery));
        say!("{claim}: {}", sentences(&recovery));
    }
    for claim in ["stolen", "picked"] {
        let about = stage
            .recoveries(TENANTS)
            .await
            .into_iter()
            .filter(|r| r.spec.claim_name == claim);
        let names: Vec<String> = about.map(|r| r.name_any()).collect();
        assert_eq!(
            names,
            [format!("{claim}-by-olga")],
            "nominated by a claim that is not bound"
        );
    }

    let count = stage.assert_pinned_and_journaled(&[mine]);
    say!("{count} effects, all of the tenant's own recovery");
    for node in [
        "tenants-1",
        "tenants-2",
        "tenants-3",
        "tenants-5",
        "tenants-0-twin",
        "tenants-0-host",
    ] {
        let ours = [OUT_OF_SERVICE_TAINT, QUARANTINE_TAINT];
        assert_eq!(
            ours.map(|key| stage.taint_writes(node, key)),
            [0, 0],
            "{node}"
        );
    }
    for (volume, node) in [
        (cut, "tenants-1"),
        (beside, "tenants-1"),
        (lives, "tenants-2"),
        (doubled, "tenants-5"),
    ] {
        assert_eq!(
            stage.cloud.volume(volume).and_then(|v| v.holder),
            Some(stage.instance(node)),
            "{node}"
        );
        let power = stage.cloud.instance(stage.instance(node)).map(|i| i.status);
        assert_eq!(power, Some(InstanceStatus::Running), "{node}");
    }
    let held = stage.cloud.volume(foreign).and_then(|v| v.holder);
    let machine = InstanceNo(stage.instance_number(12));
    assert_eq!(
        held,
        Some(machine),
        "another cluster's machine keeps its volume"
    );
    stage.await_ready(VICTIMS, "lives", 1).await;
    stage.assert_one_holder(&[cut, beside, lives, doubled, own, foreign]);
}

/// The tenant's claims besides those of [`spellings`], and what is said of them.
const OTHERS: [(&str, &str); 5] = [
    (
        "stolen",
        "which is bound to a claim of another namespace; reattach treats it as no volume of tenants/stolen",
    ),
    ("picked", "the claim is not bound to a PersistentVolume"),
    (
        "beside",
        "is on node tenants-1 and is opted out by an annotation or its policy, so the node is not fenced",
    ),
    (
        "doubled",
        "Nodes tenants-0-twin, tenants-5 all have the providerID of instance",
    ),
    (
        "foreign",
        "is behind no Node of this cluster, and reattach never saw it as one",
    ),
];

/// A person asks for a recovery.
async fn ask(
    client: &Client,
    namespace: &str,
    name: &str,
    claim: &str,
    who: &str,
    mode: &str,
) -> kube::Result<DynamicObject> {
    create_as(
        client,
        json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"claimName": claim, "mode": mode, "runbook": "lightest-first", "requester": who},
        }),
    )
    .await
}

/// Everything that a status says in sentences.
fn sentences(recovery: &VolumeRecovery) -> String {
    let Some(status) = &recovery.status else {
        return String::new();
    };
    let all: Vec<&str> = std::iter::once(&status.message)
        .chain(&status.refusals)
        .map(String::as_str)
        .collect();
    all.join("\n")
}

/// The steps that were started, also where there is no plan.
fn effects_or_none(recovery: &VolumeRecovery) -> Vec<StepKind> {
    match recovery
        .status
        .as_ref()
        .is_some_and(|s| !s.journal.is_empty())
    {
        true => effects(recovery),
        false => Vec::new(),
    }
}

/// The namespace of people whose rights end there.
const SPEAKERS: &str = "speakers";
/// Another namespace, opted out.
const OTHERS_THERE: &str = "speakers-others";
/// Text that a terminal would show as a line of its own, as a cleared screen or in another order.
const ESCAPES: &str = "\u{1b}[2J\r\nerror: scaled to 5000\u{202e}\u{7}";

/// The record of this name, once it says this.
async fn await_said(stage: &Stage, name: &str, says: &str) -> VolumeRecovery {
    let api: Api<VolumeRecovery> = Api::namespaced(stage.admin.clone(), SPEAKERS);
    let mut last = String::new();
    let found = eventually(says, LIMIT, async || {
        let recovery = api.get_opt(name).await.ok()??;
        last = format!(
            "{:?}: {}",
            recovery.status.as_ref().map(|s| s.phase),
            sentences(&recovery)
        );
        last.contains(says).then_some(recovery)
    });
    match found.await {
        Ok(recovery) => {
            say!("{name}: {}", sentences(&recovery));
            recovery
        }
        Err(error) => panic!("{name}: {error}; it says {last}\n{}", stage.logs()),
    }
}

/// The plan of a record that waits for an approval.
fn planned(recovery: &VolumeRecovery) -> String {
    recovery
        .status
        .as_ref()
        .and_then(|s| s.plan_hash.clone())
        .expect("a plan")
}

/// A pod of the tenant's with this claim, bound to the victims' healthy node by name. It never runs: its Secret is missing.
async fn bait(tina: &Client, name: &str, claim: &str) -> kube::Result<DynamicObject> {
    create_as(
        tina,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": SPEAKERS, "annotations": {"note": ESCAPES}},
            "spec": {
                "nodeName": "speakers-2", "automountServiceAccountToken": false,
                "containers": [{"name": "app", "image": "none"}],
                "volumes": [claim_volume("data", claim), secret_volume("secret", "missing")],
            },
        }),
    )
    .await
}

/// The tenant makes up what kubelet would say of a pod.
async fn made_up_event(tina: &Client, pod: &DynamicObject, at: &str) {
    let name = pod.name_any();
    let says = format!(
        "MountVolume.MountDevice failed for volume pv-{OTHERS_THERE}-other {ESCAPES} {}",
        "x".repeat(800)
    );
    let object = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": format!("{name}-made-up"), "namespace": SPEAKERS},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": name, "namespace": SPEAKERS, "uid": pod.uid()},
        "reason": "FailedMount", "message": says, "type": "Warning", "count": 5000,
        "firstTimestamp": at, "lastTimestamp": at, "source": {"component": "kubelet", "host": "speakers-2"},
    });
    create_as(tina, object)
        .await
        .expect("an event of her own pod");
}

/// A forged Event about a foreign pod, by the API that lets an Event of one namespace be about another one.
async fn made_up_event_of_others(stage: &Stage, tina: &Client, app: &str) {
    let pod = stage.pods(OTHERS_THERE, app).await.remove(0);
    let at = stage
        .cloud
        .now()
        .strftime("%Y-%m-%dT%H:%M:%S.000000Z")
        .to_string();
    let about = json!({"apiVersion": "v1", "kind": "Pod", "name": pod.name_any(), "namespace": OTHERS_THERE, "uid": pod.uid()});
    let object = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "of-others", "namespace": SPEAKERS},
        "regarding": about, "reason": "FailedMount", "type": "Warning", "action": "Mounting", "eventTime": at,
        "note": format!("Multi-Attach error for volume pv-{OTHERS_THERE}-{app}"),
        "reportingController": "kubelet", "reportingInstance": "speakers-2",
    });
    create_as(tina, object)
        .await
        .expect("the API server takes it");
}

/// People of one namespace under a policy that only observes, then under one that waits for an approval: their records, words,
/// pods and events reach nothing beyond what the policy allows there.
pub async fn rights_in_one_namespace_reach_no_other() {
    let options = StageOptions {
        nodes: 4,
        mode: None,
        ..StageOptions::default()
    };
    let mut stage = Stage::share(&STOCK, SPEAKERS, options).await;
    stage
        .policy_saying(json!({"mode": "Observe", "powerOff": "Never", "nodes": null}))
        .await;
    stage.namespace(SPEAKERS).await;
    stage.namespace(OTHERS_THERE).await;
    let tina = user(&stage, "tina", SPEAKERS, &["edit"]).await;
    let olga = user(&stage, "olga", SPEAKERS, &["admin"]).await;
    let (by_olga, by_tina) = (stage.user("olga"), stage.user("tina"));
    let near = stage
        .deployment_with(SPEAKERS, "near", "speakers-1", |o| {
            prefer(o, &["speakers-1", "speakers-4"])
        })
        .await;
    let theirs = stage.deployment(OTHERS_THERE, "theirs", "speakers-1").await;
    let other = stage.deployment(OTHERS_THERE, "other", "speakers-2").await;
    let light = stage.deployment(SPEAKERS, "light", "speakers-3").await;
    stage.bound_claim(SPEAKERS, "bait").await;
    for (namespace, app) in [
        (SPEAKERS, "near"),
        (OTHERS_THERE, "theirs"),
        (OTHERS_THERE, "other"),
        (SPEAKERS, "light"),
    ] {
        stage.await_ready(namespace, app, 1).await;
    }
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(stage.admin.clone());
    let out = json!({"metadata": {"annotations": {"reattach.dev/opt-out": "true"}}});
    stage.patch(&namespaces, OTHERS_THERE, out).await;
    let before = stage.untouched(OTHERS_THERE, &[theirs, other]).await;

    // Claim names that are paths and queries, and what kubelet never said, about pods on a node of others.
    let now = stage.cloud.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let path = format!("../../{OTHERS_THERE}/persistentvolumeclaims/other");
    for (name, claim) in [
        ("bait", "bait"),
        ("path", path.as_str()),
        ("query", "?watch=true"),
        ("part", "light/status"),
    ] {
        match bait(&tina, name, claim).await {
            Ok(pod) => made_up_event(&tina, &pod, &now).await,
            Err(error) => panic!("{name}: {error}"),
        }
    }

    made_up_event_of_others(&stage, &tina, "other").await;

    // The machine is shut down by its owner, so that there is a proof to misuse.
    stage
        .cloud
        .shutdown(stage.instance("speakers-1"))
        .expect("it runs, says the cloud");
    stage.hang("speakers-1");
    stage.await_node("speakers-1", false).await;
    ask(&olga, SPEAKERS, "auto", "near", &by_olga, "Auto")
        .await
        .expect("she may ask");
    let auto = await_said(&stage, "auto", "at most mode Observe").await;
    assert_eq!(effects_or_none(&auto), []);
    let looked = stage
        .await_recovery(SPEAKERS, "bait", "a record", |r| r.status.is_some())
        .await;
    let reason = looked.spec.reason.clone().unwrap_or_default();
    say!("bait: {reason:?}: {}", sentences(&looked));
    let hidden = |c: char| c.is_control() || c == '\u{202e}';
    assert!(!reason.is_empty() && !reason.contains(hidden), "{reason:?}");
    assert!(
        !sentences(&looked).replace('\n', " ").contains(hidden),
        "{}",
        sentences(&looked)
    );
    stage.assert_only_records(&[]);

    // Under a policy that lets an approver of the namespace decide about the namespace.
    stage
        .policy_saying(json!({"mode": "Approve", "powerOff": "Never", "nodes": null}))
        .await;
    ask(&olga, SPEAKERS, "asked", "near", &by_olga, "Approve")
        .await
        .expect("she may ask");
    stage
        .kubelet("speakers-3")
        .recycle(DiskAfter::Kept, AWAY)
        .await;
    stage.await_down(SPEAKERS, "light").await;
    ask(
        &tina,
        SPEAKERS,
        "light-by-tina",
        "light",
        &by_tina,
        "Approve",
    )
    .await
    .expect("she may ask");
    approvals_of_other_plans(&stage, &olga, &by_olga).await;
    // A finalizer of ours that a tenant puts on keeps nothing.
    let mut owned = json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
        "metadata": {"name": "kept", "namespace": SPEAKERS, "finalizers": ["reattach.dev/restore"]},
        "spec": {"claimName": "near", "mode": "DryRun", "runbook": "lightest-first", "requester": by_tina},
    });
    owned["spec"]["abort"] = json!({"by": by_tina, "reason": ESCAPES});
    create_as(&tina, owned).await.expect("a tenant may");
    stage.assert_only_records(&[]);
    let after = stage.untouched(OTHERS_THERE, &[theirs, other]).await;
    let other_pods = |all: &[String]| {
        all.iter()
            .filter(|l| l.contains("\"other-"))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(other_pods(&after), other_pods(&before));

    // Withdrawn by its author, it makes way for the policy's own; approved as it stands, that one heals.
    let records: Api<VolumeRecovery> = Api::namespaced(tina.clone(), SPEAKERS);
    let merge = |body: Value| Patch::Merge(body);
    let params = PatchParams::default();
    let abort = merge(json!({"spec": {"abort": {"by": by_tina, "reason": ESCAPES}}}));
    records
        .patch("light-by-tina", &params, &abort)
        .await
        .expect("her own");
    ask(&tina, SPEAKERS, "light-again", "light", &by_tina, "Approve")
        .await
        .expect("she may ask");
    let waits = await_phase_of(&stage, "light-again", Phase::AwaitingApproval).await;
    let approval =
        merge(json!({"spec": {"approval": {"planHash": planned(&waits), "approver": by_olga}}}));
    let records: Api<VolumeRecovery> = Api::namespaced(olga.clone(), SPEAKERS);
    records
        .patch("light-again", &params, &approval)
        .await
        .expect("she may");
    let healed = await_phase_of(&stage, "light-again", Phase::Recovered).await;
    stage.await_ready(SPEAKERS, "light", 1).await;
    let aborted = await_phase_of(&stage, "light-by-tina", Phase::Aborted).await;
    assert!(
        !sentences(&aborted).replace('\n', " ").contains(hidden),
        "{}",
        sentences(&aborted)
    );

    let count = stage.assert_pinned_and_journaled(&[healed]);
    say!("{count} effects, all of the recovery that was approved");
    for node in ["speakers-1", "speakers-2"] {
        let ours = [OUT_OF_SERVICE_TAINT, QUARANTINE_TAINT];
        assert_eq!(
            ours.map(|key| stage.taint_writes(node, key)),
            [0, 0],
            "{node}"
        );
    }
    for (volume, node) in [
        (near, "speakers-1"),
        (theirs, "speakers-1"),
        (other, "speakers-2"),
    ] {
        assert_eq!(
            stage.cloud.volume(volume).and_then(|v| v.holder),
            Some(stage.instance(node)),
            "{node}"
        );
    }
    let pods: Api<Pod> = Api::namespaced(tina.clone(), SPEAKERS);
    for name in ["bait", "path", "query", "part"] {
        pods.delete(name, &kube::api::DeleteParams::default().grace_period(0))
            .await
            .expect("her own");
    }
    stage.await_nothing_left().await;
    stage.assert_one_holder(&[near, theirs, other, light]);
}

async fn await_phase_of(stage: &Stage, name: &str, phase: Phase) -> VolumeRecovery {
    let api: Api<VolumeRecovery> = Api::namespaced(stage.admin.clone(), SPEAKERS);
    let mut last = String::new();
    let what = format!("{name} {phase:?}");
    let found = eventually(&what, LIMIT, async || {
        let recovery = api.get_opt(name).await.ok()??;
        let status = recovery.status.as_ref()?;
        last = format!("{:?}: {}", status.phase, status.message);
        (status.phase == phase).then_some(recovery)
    });
    match found.await {
        Ok(recovery) => recovery,
        Err(error) => panic!("{error}; it says {last}\n{}", stage.logs()),
    }
}

/// An approval that names the plan of another record, and one that was copied with a record, let nothing run.
async fn approvals_of_other_plans(stage: &Stage, olga: &Client, by_olga: &str) {
    let asked = await_phase_of(stage, "light-by-tina", Phase::AwaitingApproval).await;
    let records: Api<VolumeRecovery> = Api::namespaced(olga.clone(), SPEAKERS);
    let hash = planned(&asked);
    let of_another: String = hash.chars().rev().collect();
    let approval = json!({"spec": {"approval": {"planHash": of_another, "approver": by_olga}}});
    records
        .patch(
            "light-by-tina",
            &PatchParams::default(),
            &Patch::Merge(approval),
        )
        .await
        .expect("a word of her own");
    // Copied by olga herself with what the original says, for another claim: whatever plan comes, it is not this one.
    let copied = json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
        "metadata": {"name": "copied", "namespace": SPEAKERS},
        "spec": {"claimName": "near", "mode": "Approve", "runbook": "lightest-first", "requester": by_olga,
            "approval": {"planHash": hash, "approver": by_olga}},
        "status": asked.status,
    });
    create_as(olga, copied).await.expect("a word of her own");
    for name in ["light-by-tina", "copied", "asked"] {
        let generation = records.get(name).await.expect("there").metadata.generation;
        let seen = eventually("a look at the word", LIMIT, async || {
            let recovery = records.get(name).await.ok()?;
            (recovery.status.as_ref()?.observed_generation >= generation).then_some(recovery)
        });
        let recovery = seen.await.expect("in time");
        assert_eq!(effects_or_none(&recovery), [], "{name}");
        say!("{name}: {}", sentences(&recovery));
    }
}
