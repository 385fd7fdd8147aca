//! Class B by the default runbook: new pods are held away, the stuck one is evicted, Kubernetes detaches.

use crate::STOCK;
use crate::common::logs::{CONTROLLER, is_workload};
use crate::common::measure::{Pace, Timeline, median, summary};
use crate::common::workloads::{is_ready, prefer};
use crate::common::{AWAY, LIMIT, Stage, StageOptions};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind};
use kube::{Api, ResourceExt};
use reattach_api::Phase;
use reattach_core::hold::hold_taint;
use reattach_core::journal::Event;
use reattach_core::policy::Mode;
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_core::steps::StepKind;
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_controlplane::{eventually, say};
use serde_json::json;

/// The sets of one replica that get stuck: kind and name.
const STUCK: [(&str, &str); 4] = [
    ("Deployment", "redis"),
    ("Deployment", "bot"),
    ("ReplicaSet", "metrics"),
    ("StatefulSet", "wiki"),
];

/// The fields of a healthy pod that must not change: UID, node, restarts, and since when it is Ready.
fn life(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let restarts: i32 = status
        .container_statuses
        .iter()
        .flatten()
        .map(|c| c.restart_count)
        .sum();
    let ready = status
        .conditions
        .into_iter()
        .flatten()
        .find(|c| c.type_ == "Ready");
    format!(
        "{:?} on {:?}, {restarts} restarts, {ready:?}",
        pod.uid(),
        pod.spec.as_ref().and_then(|s| s.node_name.clone())
    )
}

pub async fn measured_hold_and_release_touch_no_replica() {
    let options = StageOptions {
        nodes: 3,
        mode: None,
        ..StageOptions::default()
    };
    let stage = Stage::set(options).await;
    stage.policy_by(Mode::Auto, DEFAULT_RUNBOOK).await;
    stage.namespace("shop").await;
    let mut volumes = Vec::new();
    for (kind, name) in STUCK {
        volumes.push(match kind {
            "StatefulSet" => stage.stateful_set("shop", name, 1, "node-1").await[0],
            "ReplicaSet" => stage.replica_set("shop", name, "node-1").await,
            _ => stage.deployment("shop", name, "node-1").await,
        });
    }
    let spread = |set: &mut serde_json::Value| {
        let pods = &mut set["spec"]["template"]["spec"];
        pods.as_object_mut().expect("a pod").remove("nodeSelector");
        pods["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "sql"}},
        }]);
    };
    volumes.extend(
        stage
            .stateful_set_with("shop", "sql", 3, "node-1", spread)
            .await,
    );
    for (_, name) in STUCK {
        stage.await_ready("shop", name, 1).await;
    }
    stage.await_ready("shop", "sql", 3).await;
    let on_node = |p: &Pod| {
        p.spec
            .as_ref()
            .and_then(|s| s.node_name.clone())
            .unwrap_or_default()
    };
    let (stuck, healthy): (Vec<Pod>, Vec<Pod>) = stage
        .pods("shop", "sql")
        .await
        .into_iter()
        .partition(|p| on_node(p) == "node-1");
    assert_eq!(
        (stuck.len(), healthy.len()),
        (1, 2),
        "one of three per node"
    );

    let pace = Pace::start(&stage);
    stage.kubelet("node-1").recycle(DiskAfter::Kept, AWAY).await;
    let mut timelines = Vec::new();
    let mut effects = 0;
    let sql = (stuck[0].name_any(), format!("data-{}", stuck[0].name_any()));
    let claims = STUCK.map(|(kind, name)| {
        (
            name,
            if kind == "StatefulSet" {
                format!("data-{name}-0")
            } else {
                name.to_owned()
            },
        )
    });
    let number: usize = sql
        .0
        .rsplit('-')
        .next()
        .and_then(|n| n.parse().ok())
        .expect("an ordinal");
    let all = claims
        .iter()
        .cloned()
        .zip(volumes.clone())
        .chain([(("sql", sql.1.clone()), volumes[4 + number])]);
    for ((name, claim), volume) in all {
        let recovery = stage.await_phase("shop", &claim, &[Phase::Recovered]).await;
        stage
            .await_ready("shop", name, if name == "sql" { 3 } else { 1 })
            .await;
        let pods = stage.pods("shop", name).await;
        let pod = if name == "sql" {
            sql.0.clone()
        } else {
            pods[0].name_any()
        };
        timelines.push(stage.timeline(&recovery, volume, &pod));
        effects += stage.assert_journaled_first(&recovery, volume);
    }
    say!("{effects} effects, each after the journal line that announces it");
    assert_eq!(
        effects,
        3 * timelines.len(),
        "hold, release and lift for each volume"
    );
    let (whole, own) = summary(&timelines);
    // Where between two of kubelet's ticks, 10 s apart, all five evictions fall is luck; `tests/node` goes over the phases.
    let detach = median(timelines.iter().map(Timeline::detach).collect());
    say!(
        "{:.1} s of the median are Kubernetes' own detach",
        detach.as_secs_f64()
    );
    pace.at_most(
        "median without Kubernetes' own detach",
        whole - detach,
        SignedDuration::from_secs(10),
    );
    pace.at_most(
        "median of Kubernetes' own detach",
        detach,
        SignedDuration::from_secs(15),
    );
    // Five begin in the same second, on the cores that also run the whole control plane; `tests/node` measures one alone.
    pace.at_most("median of our own share", own, SignedDuration::from_secs(4));

    for before in &healthy {
        let now = stage
            .pods("shop", "sql")
            .await
            .into_iter()
            .find(|p| p.name_any() == before.name_any());
        assert_eq!(
            now.as_ref().map(life),
            Some(life(before)),
            "a healthy pod of the same set"
        );
    }
    let written: Vec<_> = stage
        .foreign_writes(&[])
        .into_iter()
        .filter(is_workload)
        .collect();
    assert!(written.is_empty(), "{written:#?}");
    assert_eq!(
        stage.cloud_mutations(),
        [],
        "Kubernetes detached every volume by itself"
    );
    stage.assert_one_holder(&volumes);
    stage.await_nothing_left().await;
}

/// Before Kubernetes 1.36: the node is closed by a taint of the recovery's own. A pod that may run elsewhere does; one that
/// may not waits until the node is open again.
pub async fn without_the_policy_the_node_is_closed() {
    let stage = Stage::set(StageOptions {
        mode: None,
        ..StageOptions::default()
    })
    .await;
    for kind in ["MutatingAdmissionPolicyBinding", "MutatingAdmissionPolicy"] {
        let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        let api: Api<DynamicObject> =
            Api::all_with(stage.admin.clone(), &ApiResource::from_gvk(&kind));
        api.delete("reattach-hold", &DeleteParams::default())
            .await
            .expect("deleted");
    }
    stage.policy_by(Mode::Auto, DEFAULT_RUNBOOK).await;
    stage.namespace("shop").await;
    let bound = stage.deployment("shop", "redis", "node-1").await;
    let free = stage
        .deployment_with("shop", "bot", "node-1", |set| {
            prefer(set, &["node-1", "node-2"])
        })
        .await;
    for name in ["redis", "bot"] {
        stage.await_ready("shop", name, 1).await;
        assert_eq!(stage.node_of("shop", name).await, "node-1");
    }
    stage.kubelet("node-1").recycle(DiskAfter::Kept, AWAY).await;
    for name in ["redis", "bot"] {
        let recovery = stage.await_phase("shop", name, &[Phase::Recovered]).await;
        stage.await_ready("shop", name, 1).await;
        let (plan, journal) = recovery.history().expect("it can be read");
        let plan = plan.expect("a plan");
        assert!(plan.closes_node);
        let at = |kind: StepKind| {
            let ix = plan.find(kind).expect("the step");
            let mut of = journal
                .iter()
                .filter(|e| matches!(&e.event, Event::Started { step, .. } if *step == ix));
            of.next().expect("journaled").at
        };
        let (closed, opened) = (at(StepKind::Hold), at(StepKind::Lift));
        say!(
            "{name}: the node was closed for {:.1} s",
            opened.duration_since(closed).as_secs_f64()
        );
        let key = hold_taint(&recovery.uid().expect("a UID").as_str().into());
        let written: Vec<bool> = stage
            .audit()
            .iter()
            .filter(|e| e.user == CONTROLLER && e.resource == "nodes" && e.took_effect())
            .filter_map(|e| {
                Some(
                    e.body
                        .as_ref()?
                        .pointer("/spec/taints")?
                        .to_string()
                        .contains(&key),
                )
            })
            .collect();
        assert!(
            written.contains(&true),
            "closed by a taint of its own: {written:?}"
        );
    }
    assert_eq!(
        stage.node_of("shop", "redis").await,
        "node-1",
        "back where it has to be"
    );
    assert_eq!(
        stage.node_of("shop", "bot").await,
        "node-2",
        "where the scheduler sent it meanwhile"
    );
    assert_eq!(
        stage.cloud_mutations(),
        [],
        "Kubernetes detached both volumes by itself"
    );
    stage.assert_one_holder(&[bound, free]);
    stage.await_nothing_left().await;
}

pub async fn a_disruption_budget_is_shown_and_not_overridden() {
    let stage = Stage::share(
        &STOCK,
        "disruption",
        StageOptions {
            mode: None,
            ..StageOptions::default()
        },
    )
    .await;
    stage.policy_by(Mode::Auto, DEFAULT_RUNBOOK).await;
    stage.namespace("disruption").await;
    let volume = stage
        .deployment("disruption", "redis", "disruption-1")
        .await;
    stage.await_ready("disruption", "redis", 1).await;
    stage
        .create(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": "redis", "namespace": "disruption"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "redis"}}},
        }))
        .await;
    stage
        .kubelet("disruption-1")
        .recycle(DiskAfter::Kept, AWAY)
        .await;
    let what = "a recovery that names the budget";
    let named = eventually(what, LIMIT, async || {
        let all = stage.recoveries("disruption").await;
        let message = all.last()?.status.as_ref()?.message.clone();
        message
            .contains("PodDisruptionBudget redis (")
            .then_some(message)
    });
    say!("{}", named.await.expect(what));
    assert!(!stage.pods("disruption", "redis").await.iter().any(is_ready));

    let budgets: Api<PodDisruptionBudget> = Api::namespaced(stage.admin.clone(), "disruption");
    budgets
        .delete("redis", &DeleteParams::default())
        .await
        .expect("deleted");
    stage
        .await_phase("disruption", "redis", &[Phase::Recovered])
        .await;
    stage.await_ready("disruption", "redis", 1).await;
    stage.assert_one_holder(&[volume]);
    stage.await_nothing_left().await;
}
