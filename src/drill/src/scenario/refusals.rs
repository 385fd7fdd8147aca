//! Each refusal of scaling to zero, with the object that causes it. Nothing may be touched.

use crate::app::{App, AppVolume};
use crate::stage::{Expect, START, Sink, Stage};
use crate::timeline::Actor;
use crate::world::{APPS, PERSON, WorldError};
use reattach_api::Phase;
use reattach_cloud_simulator::VolumeNo;
use reattach_core::policy::Mode;
use reattach_core::runbook::SCALE_TO_ZERO;
use reattach_sim::apiserver::{AdmissionFn, ApiStatus, Verb};
use reattach_sim::kubelet::DiskAfter;
use reattach_sim::manifests;
use reattach_sim::object::{name, uid};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// All but the last are recycled.
const NODES: [(&str, u64); 4] = [
    ("lke-pool-node-1", 6_001),
    ("lke-pool-node-2", 6_002),
    ("lke-pool-node-3", 6_003),
    ("lke-pool-node-4", 6_004),
];
/// The workload whose device vanishes under its live mount, on the node that is not recycled.
const DEAD_MOUNT: &str = "prestop";
/// The workload whose pods admission refuses from some moment on.
const UNWELCOME: &str = "unwelcome";

/// One workload that must not be scaled to zero, and words of the sentence that says why.
struct Case {
    app: App,
    because: &'static str,
    /// A change made after the node was recycled.
    later: Option<Value>,
}

fn case(app: App, because: &'static str) -> Case {
    Case {
        app,
        because,
        later: None,
    }
}

/// KEDA's custom resource, as far as a target needs it.
fn scaled_object_definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "scaledobjects.keda.sh"},
        "spec": {
            "group": "keda.sh", "scope": "Namespaced", "names": {"kind": "ScaledObject", "plural": "scaledobjects"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
}

/// Binds the workload's pods to a node.
fn pin(app: App, node: &str) -> App {
    let selector = json!({"kubernetes.io/hostname": node});
    app.with(|w| {
        let spec = if w["kind"] == "Pod" {
            &mut w["spec"]
        } else {
            &mut w["spec"]["template"]["spec"]
        };
        spec["nodeSelector"] = selector;
    })
}

fn cases() -> Vec<Case> {
    let stateful = |name: &str, number: u64, replicas| {
        App::stateful_set(name, number, &format!("pvc{name}"), replicas, "an app")
    };
    let stateless =
        |name: &str, number: u64| App::deployment(name, number, &format!("pvc{name}"), "an app");
    let label = |key: &'static str, value: &'static str| {
        move |w: &mut Value| w["metadata"]["labels"][key] = json!(value)
    };
    let note = |key: &'static str, value: &'static str| {
        move |w: &mut Value| w["metadata"]["annotations"][key] = json!(value)
    };
    let mut all = vec![
        case(
            stateful("whenscaled", 8_001, 1)
                .with(|w| w["spec"]["persistentVolumeClaimRetentionPolicy"] = json!({"whenScaled": "Delete", "whenDeleted": "Retain"})),
            "whenScaled is Delete",
        ),
        case(
            stateless("emptydir", 8_011).with_volume(json!({"name": "scratch", "emptyDir": {}})),
            "has the emptyDir scratch",
        ),
        case(stateful("ordered", 8_021, 2), "2 of them are not"),
        case(
            stateful("many", 8_031, 2).with(|w| w["spec"]["podManagementPolicy"] = json!("Parallel")),
            "has 2 replicas",
        ),
        case(
            stateless("autoscaled", 8_041).with_object(json!({
                "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "autoscaled", "namespace": APPS},
                "spec": {"minReplicas": 0, "maxReplicas": 3,
                    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "autoscaled"}},
            })),
            "minReplicas 0",
        ),
        case(stateless("flux", 8_051).with(label("kustomize.toolkit.fluxcd.io/name", "apps")), "Flux owns the replica count"),
        case(stateless("argo", 8_061).with(note("argocd.argoproj.io/tracking-id", "apps:apps/Deployment:default/argo")), "Argo CD owns"),
        case(optedout(stateless("optedout", 8_071)), "carries reattach.dev/opt-out"),
        case(
            stateless("ephemeral", 8_091).with_volume(json!({"name": "cache", "ephemeral": {"volumeClaimTemplate": {
                "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "linode-block-storage-retain",
                    "resources": {"requests": {"storage": "10Gi"}}}}}})),
            "generic ephemeral volume cache",
        ),
    ];
    all.extend([
        case(
            stateless(DEAD_MOUNT, 8_101).with(|w| {
                let hook = json!({"preStop": {"exec": {"command": ["/bin/flush"]}}});
                w["spec"]["template"]["spec"]["containers"][0]["lifecycle"] = hook;
            }),
            "is Ready and has a preStop hook",
        ),
        case(
            stateless("keda", 8_111).with_object(json!({
                "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "keda", "namespace": APPS},
                "spec": {"scaleTargetRef": {"name": "keda"}},
            })),
            "KEDA owns the replica count",
        ),
        case(App::pod("bare", 8_121, "pvcbare", "a pod of its own"), "has no owner that would make a new one"),
        case(stateless(UNWELCOME, 8_131), "would be refused now (no more of these)"),
    ]);
    all.push(Case {
        app: stateful("rollout", 8_081, 1),
        because: "is being rolled out",
        later: Some(json!({"spec": {"template": {"metadata": {"annotations": {"release": "2"}}}}})),
    });
    for (n, case) in all.iter_mut().enumerate() {
        let node = if case.app.name == DEAD_MOUNT {
            NODES[3].0
        } else {
            NODES[n % 3].0
        };
        case.app = pin(case.app.clone(), node);
    }
    all
}

/// The opt-out is on the claim: the app's own objects stay as they are.
fn optedout(mut app: App) -> App {
    for v in &app.volumes {
        let mut claim = manifests::claim(APPS, &v.claim, &v.pv());
        claim["metadata"]["annotations"] = json!({"reattach.dev/opt-out": "true"});
        app.claims.push(claim);
    }
    app
}

pub(super) async fn play(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let mut s = Stage::new(seed, START, &NODES, sink).await?;
    s.heading(
        "Fourteen workloads that must not be scaled to zero, under a policy in mode Auto that keeps emptyDirs",
        &[],
    );
    s.world.server().register_crd(&scaled_object_definition());
    let cases = cases();
    // The claim of a generic ephemeral volume is made per pod: its volume is found by the pod's name, which is only
    // known later, so the binder is given a PersistentVolume for it as soon as the claim is there.
    for case in &cases {
        s.add(case.app.clone(), Expect::Untouched).await?;
    }
    bind_ephemeral(&mut s).await?;
    let names: Vec<&str> = cases.iter().map(|c| c.app.name.as_str()).collect();
    s.running(&names, Duration::from_secs(180)).await?;
    let policy = json!({"mode": Mode::Auto, "runbook": SCALE_TO_ZERO, "emptyDirs": "Keep"});
    s.world.policy_of("everything", &policy).await?;
    for (node, _) in &NODES[..3] {
        s.recycle(node, DiskAfter::Kept, Duration::from_secs(6))
            .await?;
    }
    for volume in cases
        .iter()
        .filter(|c| c.app.name == DEAD_MOUNT)
        .flat_map(|c| &c.app.volumes)
    {
        s.tell(
            Actor::Provider,
            DEAD_MOUNT,
            "removes the disk from the machine while the pod runs",
        );
        s.world.cloud.make_phantom(VolumeNo(volume.number))?;
    }
    s.tell(
        Actor::Person,
        UNWELCOME,
        "installs an admission policy that refuses new pods of this Deployment",
    );
    s.world.server().add_admission(no_more());
    for case in &cases {
        if let Some(change) = &case.later {
            s.tell(
                Actor::Person,
                &case.app.name,
                "rolls out another release, which cannot start either",
            );
            s.world.merge(PERSON, &case.app.path(), change).await?;
        }
    }
    s.pass(Duration::from_secs(15)).await;
    for name in &names {
        s.remember(name);
    }
    s.start_replica("reattach-controller-0", None);
    s.pass(Duration::from_secs(90)).await;
    for case in &cases {
        verdict(&mut s, case);
    }
    let effects = s.world.request_log.effects().len();
    if effects > 0 {
        s.broken
            .push(format!("{effects} effects on workloads that were refused"));
    }
    Ok(s)
}

/// Admission that refuses new pods of one workload.
fn no_more() -> AdmissionFn {
    Arc::new(|request| {
        let main = request.subresource.is_none();
        let new_pod = request.verb == Verb::Create && request.resource == "pods" && main;
        if new_pod
            && request
                .object
                .is_some_and(|o| o["metadata"]["labels"]["app"] == UNWELCOME)
        {
            return Err(ApiStatus::new(403, "no more of these"));
        }
        Ok(Default::default())
    })
}

fn verdict(s: &mut Stage, case: &Case) {
    let name = &case.app.name;
    let said = s
        .recovery_of(name)
        .and_then(|r| r.status)
        .map(|st| (st.phase, st.message));
    match said {
        Some((Phase::Refused | Phase::Waiting, message)) if message.contains(case.because) => {}
        other => s.broken.push(format!(
            "{name}: expected a refusal with {:?}, found {other:?}",
            case.because
        )),
    }
}

async fn bind_ephemeral(s: &mut Stage) -> Result<(), WorldError> {
    s.until(
        "the pod of the ephemeral volume",
        Duration::from_secs(30),
        |w| !w.pods("ephemeral").is_empty(),
    )
    .await?;
    let pods = s.world.pods("ephemeral");
    let Some(pod) = pods.first() else {
        return Ok(());
    };
    let (name, uid) = (name(pod), uid(pod));
    let claim = format!("{name}-cache");
    let v = AppVolume {
        number: 8_092,
        label: "pvcephemeralcache".to_owned(),
        claim: claim.clone(),
        fs_type: "ext4".to_owned(),
    };
    v.create(&s.world.cloud, s.world.ground(), s.world.server())?;
    let mut owned = manifests::claim(APPS, &claim, &v.pv());
    owned["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true}]);
    s.world.server().insert(&owned);
    Ok(())
}
