//! Each refusal of scaling to zero, with the object that causes it. Nothing may be touched.

use crate::app::{App, AppVolume};
use crate::stage::{Expect, Sink, Stage};
use crate::timeline::Who;
use crate::world::{APPS, WorldError};
use reattach_api::Phase;
use reattach_core::policy::Mode;
use reattach_sim::kubelet::DiskAfter;
use reattach_sim::manifests;
use serde_json::{Value, json};
use std::time::Duration;

const NODES: [(&str, u64); 3] =
    [("lke-pool-node-1", 6_001), ("lke-pool-node-2", 6_002), ("lke-pool-node-3", 6_003)];

/// One workload that must not be scaled to zero, and words of the sentence that says why.
struct Case {
    app: App,
    because: &'static str,
    /// A change made after the node was recycled.
    later: Option<Value>,
}

fn case(app: App, because: &'static str) -> Case {
    Case { app, because, later: None }
}

fn volume(w: &mut Value, volume: Value) {
    match w["spec"]["template"]["spec"]["volumes"].as_array_mut() {
        Some(list) => list.push(volume),
        None => w["spec"]["template"]["spec"]["volumes"] = json!([volume]),
    }
}

fn cases() -> Vec<Case> {
    let stateful = |name: &str, number: u64, replicas| {
        App::stateful_set(name, number, &format!("pvc{name}"), replicas, "an app")
    };
    let stateless = |name: &str, number: u64| App::deployment(name, number, &format!("pvc{name}"), "an app");
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
            stateless("emptydir", 8_011).with(|w| volume(w, json!({"name": "scratch", "emptyDir": {}}))),
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
            stateless("ephemeral", 8_091).with(|w| {
                let template = json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "linode-block-storage-retain",
                    "resources": {"requests": {"storage": "10Gi"}}}});
                volume(w, json!({"name": "cache", "ephemeral": {"volumeClaimTemplate": template}}));
            }),
            "generic ephemeral volume cache",
        ),
    ];
    all.push(Case {
        app: stateful("rollout", 8_081, 1),
        because: "is being rolled out",
        later: Some(json!({"spec": {"template": {"metadata": {"annotations": {"release": "2"}}}}})),
    });
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
    let start = "2026-03-02T03:00:00Z".parse().unwrap_or_default();
    let mut s = Stage::new(seed, start, &NODES, sink).await?;
    s.heading("Ten workloads that must not be scaled to zero, under a policy in mode Auto", &[]);
    let cases = cases();
    // The claim of a generic ephemeral volume is made per pod: its volume is found by the pod's name, which is only
    // known later, so the binder is given a PersistentVolume for it as soon as the claim is there.
    for case in &cases {
        s.add(case.app.clone(), Expect::Untouched).await?;
    }
    bind_ephemeral(&mut s).await?;
    let names: Vec<&str> = cases.iter().map(|c| c.app.name.as_str()).collect();
    s.running(&names, Duration::from_secs(180)).await?;
    s.world.policy("everything", Mode::Auto, 0).await?;
    for (node, _) in NODES {
        s.recycle(node, DiskAfter::Kept, Duration::from_secs(6)).await?;
    }
    for case in &cases {
        if let Some(change) = &case.later {
            s.tell(Who::Person, &case.app.name, "rolls out another release, which cannot start either");
            s.world.merge("sre@example.org", &case.app.path(), change).await?;
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
    let effects = s.world.ledger.effects().len();
    if effects > 0 {
        s.broken.push(format!("{effects} effects on workloads that were refused"));
    }
    Ok(s)
}

fn verdict(s: &mut Stage, case: &Case) {
    let name = &case.app.name;
    let said = s.recovery_of(name).and_then(|r| r.status).map(|st| (st.phase, st.message));
    match said {
        Some((Phase::Refused | Phase::Waiting, message)) if message.contains(case.because) => {}
        other => {
            s.broken.push(format!("{name}: expected a refusal with {:?}, found {other:?}", case.because))
        }
    }
}

async fn bind_ephemeral(s: &mut Stage) -> Result<(), WorldError> {
    s.until("the pod of the ephemeral volume", Duration::from_secs(30), |w| !w.pods("ephemeral").is_empty())
        .await?;
    let pods = s.world.pods("ephemeral");
    let Some(pod) = pods.first() else { return Ok(()) };
    let (name, uid) = (pod["metadata"]["name"].as_str().unwrap_or_default(), &pod["metadata"]["uid"]);
    let claim = format!("{name}-cache");
    let v = AppVolume {
        number: 8_092,
        label: "pvcephemeralcache".to_owned(),
        claim: claim.clone(),
        fs_type: "ext4".to_owned(),
    };
    v.create(&s.world.cloud, s.world.server())?;
    let mut owned = manifests::claim(APPS, &claim, &v.pv());
    owned["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true}]);
    s.world.server().insert(&owned);
    Ok(())
}
