//! Effects on a node and its machine, over the API server in memory and the simulated cloud.

#[path = "../../tests/common/cloud.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "helpers of several test binaries"
)]
mod cloud;

use super::*;
use crate::collect::Collector;
use crate::metrics::Metrics;
use crate::providers::Providers;
use crate::recovery::note_of;
use cloud::Cloud;
use prometheus_client::registry::Registry;
use reattach_api::VolumeRecovery;
use reattach_cloud_simulator::{
    Fault, FaultRule, Instance, InstanceStatus, Operation, Timings, When,
};
use reattach_cluster::gate::{Authority, Gate};
use reattach_cluster::lease::Leadership;
use reattach_cluster::{Clients, Clock};
use reattach_core::cloud::{CloudSnapshot, SnapshotState};
use reattach_core::evidence::Declaration;
use reattach_core::ids::{StepIx, Uid};
use reattach_core::policy::Mode;
use reattach_core::proof::{UnusedSince, kubelet_handshake};
use reattach_core::run::Action;
use reattach_core::stamp::Stamp;
use reattach_core::testkit::{Case, INSTANCE};
use reattach_provider_api::{Optional, Unsupported};
use reattach_sim::ApiServer;
use reattach_sim::apiserver::{self, RequestMatch};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

const NODE: &str = "lke-1";

struct Scene {
    server: ApiServer,
    cloud: Cloud,
    executor: Executor,
    evidence: Evidence,
    recovery: StoredRecovery,
    clock: Clock,
}

impl Scene {
    fn new() -> Self {
        let start = reattach_core::testkit::start();
        let server = ApiServer::new(reattach_sim::Clock::starting_at(start), 1);
        for crd in reattach_api::all_crds() {
            assert!(server.register_crd(&serde_json::to_value(crd).unwrap()));
        }
        for namespace in ["reattach-system", "cache"] {
            server.insert(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
            );
        }
        let recovery = server.insert(&json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
            "metadata": {"name": "r", "namespace": "cache"},
            "spec": {"claimName": "data", "mode": "Auto", "runbook": "lightest-first", "requester": "jane"},
            "status": {"phase": "Running", "message": "", "epoch": 7},
        }));
        let recovery: VolumeRecovery = serde_json::from_value(Value::clone(&recovery)).unwrap();
        let recovery = recovery.try_into().unwrap();
        let evidence = Case::deployment().evidence;
        let csi = evidence.at(start).csi().unwrap();
        let cloud = Cloud::attached(csi.handle.as_str(), INSTANCE, start);
        cloud.sim.set_timings(Timings {
            shutdown_ms: 2_000,
            ..Timings::default()
        });
        let mut providers = Providers::default();
        providers.register(Arc::new(cloud.clone()));
        let clients = Clients::over(server.client(), server.client());
        let leadership = Leadership {
            term: 1,
            until: Instant::now() + Duration::from_secs(3600),
        };
        let (_, leading) = watch::channel(Some(leadership));
        let clock = Clock::starting_at(start);
        let gate = Gate::new(clients.clone(), leading);
        let collector = Collector::new(clients, None, providers, clock.clone());
        let metrics = Metrics::register(&mut Registry::default());
        let executor = Executor::new(collector, gate, "test".to_owned(), "test", metrics);
        Self {
            server,
            cloud,
            executor,
            evidence,
            recovery,
            clock,
        }
    }

    fn node(&self, ready: &str) -> Uid {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
            "spec": {"providerID": format!("linode://{INSTANCE}")},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        Uid::from(
            self.server.insert(&node)["metadata"]["uid"]
                .as_str()
                .unwrap(),
        )
    }

    async fn perform(&self, effect: &Effect) -> Outcome {
        let plan = Case::deployment().plan().unwrap().sound().unwrap();
        let authority = Authority {
            mode: Mode::Auto,
            approved: None,
        };
        let pass = self.executor.gate.pass(&plan, &authority, 1).unwrap();
        let csi = self.evidence.at(self.clock.now()).csi().unwrap();
        let volume = self.executor.collector.providers.locate(csi).unwrap();
        let (step, intent) = (StepIx(0), "a test".to_owned());
        let action = Action {
            step,
            intent,
            effect: effect.clone(),
        };
        let order = note_of(
            &self.recovery,
            &plan,
            &action,
            &self.evidence,
            self.clock.now(),
        );
        let stage = Stage {
            order,
            executor: &self.executor,
            pass: &pass,
            recovery: &self.recovery,
            evidence: &self.evidence,
            volume,
        };
        perform(&stage, effect).await
    }

    /// The volume of the evidence at the cloud.
    fn volume(&self) -> VolumeId {
        let csi = self.evidence.at(self.clock.now()).csi().unwrap();
        let located = self.executor.collector.providers.locate(csi).unwrap();
        located.unwrap().id
    }

    /// The machine under [`NODE`], as it is at the cloud.
    fn instance(&self) -> Instance {
        self.cloud.sim.instance(INSTANCE.parse().unwrap()).unwrap()
    }

    /// Waits for the end of the shutdown that was ordered.
    async fn shut_down(&self) {
        assert_eq!(self.instance().status, InstanceStatus::ShuttingDown);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(self.instance().status, InstanceStatus::Offline);
    }

    fn lock_holder(&self) -> Option<String> {
        let lease = self.server.read(
            "coordination.k8s.io",
            "leases",
            "reattach-system",
            &format!("node-{NODE}"),
        )?;
        lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }

    fn locked_by(&self, holder: &str) {
        self.server.insert(
            &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": format!("node-{NODE}"), "namespace": "reattach-system"},
            "spec": {"holderIdentity": holder}}),
        );
    }

    fn taints(&self) -> usize {
        let node = self.server.read("", "nodes", "", NODE).unwrap();
        node["spec"]["taints"].as_array().map_or(0, Vec::len)
    }

    /// A person's word for it, which no fact contradicts.
    fn proof(&self) -> FenceProof {
        let case = Case::deployment().node(|n| n.ready = false);
        let holder = InstanceId::from(INSTANCE);
        let word = Declaration {
            holder: holder.clone(),
            by: "jane".to_owned(),
            reason: "unplugged".to_owned(),
            at: case.now,
            of_this_cluster: false,
            cluster_wide: true,
        };
        reattach_core::proof::declared(case.evidence.at(case.now), &holder, &word).unwrap()
    }
}

/// What a living kubelet says is about one volume.
#[tokio::test(start_paused = true)]
async fn a_proof_about_the_volume_fences_no_node() {
    let scene = Scene::new();
    let uid = scene.node("False");
    let case = Case::deployment()
        .pods(Vec::clear)
        .workload(|w| {
            let (workload, recovery) = (w.workload.uid.clone(), Case::recovery());
            let at = reattach_core::testkit::start();
            (w.replicas, w.stamp) = (
                0,
                Some(Ok(Stamp {
                    replicas: 1,
                    workload,
                    recovery,
                    at,
                })),
            );
        })
        .node(|n| n.volumes_in_use.clear());
    let (node, holder) = (NodeName::from(NODE), InstanceId::from(INSTANCE));
    let before = case.now - jiff::SignedDuration::from_secs(20);
    let no_user = UnusedSince {
        at: before,
        lease: Some(before),
    };
    let proof = kubelet_handshake(
        case.evidence.at(case.now),
        &node,
        &holder,
        &no_user,
        &Case::recovery(),
    )
    .unwrap();
    let outcome = scene
        .perform(&Effect::TaintOutOfService { proof, node, uid })
        .await;
    assert_eq!(retry(&outcome), Some(false), "{outcome:?}");
    assert_eq!((scene.taints(), scene.lock_holder()), (0, None));
}

fn retry(outcome: &Outcome) -> Option<bool> {
    match outcome {
        Outcome::NotApplied { retry, .. } => Some(*retry),
        _ => None,
    }
}

fn unknown() -> ProviderError {
    ProviderError::Unknown {
        operation: "power".to_owned(),
        reason: "reset".to_owned(),
    }
}

fn power(on: bool) -> Effect {
    let (instance, node) = (InstanceId::from(INSTANCE), NodeName::from(NODE));
    if on {
        Effect::PowerOn { instance, node }
    } else {
        Effect::PowerOff { instance, node }
    }
}

#[tokio::test(start_paused = true)]
async fn power_off_takes_the_node_lock_and_power_on_releases_it() {
    let s = Scene::new();
    assert!(s.perform(&power(false)).await.applied());
    assert_eq!(s.lock_holder().as_deref(), Some("reattach/cache/r"));
    s.shut_down().await;
    assert!(s.perform(&power(true)).await.applied());
    assert_eq!(s.lock_holder(), None);
    assert_eq!(
        s.cloud.orders(),
        [format!("Forced off {INSTANCE}"), format!("on {INSTANCE}")]
    );
    assert_eq!(s.instance().status, InstanceStatus::Booting);
}

/// S3: nothing else tells of an order after its record was deleted by force.
#[tokio::test(start_paused = true)]
async fn an_order_without_a_stored_note_is_not_sent() {
    let s = Scene::new();
    let note = open_orders::name(s.recovery.uid(), StepIx(0));
    let stored = |s: &Scene| {
        s.server
            .read("coordination.k8s.io", "leases", "reattach-system", &note)
            .is_some()
    };
    assert!(!stored(&s));
    assert!(s.perform(&power(false)).await.applied());
    assert!(stored(&s));

    let s = Scene::new();
    s.server.add_fault(apiserver::FaultRule {
        requests: RequestMatch {
            resource: Some("leases".into()),
            name: Some(note.clone()),
            ..RequestMatch::default()
        },
        fault: apiserver::Fault::Disconnect {
            after_effect: false,
        },
        probability: 1.0,
        times: None,
    });
    let outcome = s.perform(&power(false)).await;
    assert_eq!(retry(&outcome), Some(true), "{outcome:?}");
    assert!(
        format!("{outcome:?}").contains("could not be noted"),
        "{outcome:?}"
    );
    assert!(s.cloud.orders().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lock_of_another_holder_stops_every_order() {
    let s = Scene::new();
    s.locked_by("node-maintenance");
    let uid = s.node("Unknown");
    let taint = Effect::TaintOutOfService {
        proof: s.proof(),
        node: NodeName::from(NODE),
        uid,
    };
    for effect in [power(false), power(true), taint] {
        let outcome = s.perform(&effect).await;
        assert_eq!(retry(&outcome), Some(true), "{outcome:?}");
        assert!(
            format!("{outcome:?}").contains("node-maintenance"),
            "{outcome:?}"
        );
    }
    assert!(s.cloud.orders().is_empty());
    assert_eq!(s.taints(), 0);
}

#[tokio::test(start_paused = true)]
async fn power_answers_of_the_cloud_become_outcomes() {
    let s = Scene::new();
    let lost = Fault::Cut {
        when: When::AfterEffect,
    };
    let instance = s.instance().id;
    s.cloud
        .sim
        .add_fault(FaultRule::new([Operation::ShutdownInstance], lost).times(1));
    let outcome = s.perform(&power(false)).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    for (status, wanted) in [
        (InstanceStatus::Booting, true),
        (InstanceStatus::Offline, false),
    ] {
        s.cloud.sim.set_instance_status(instance, status).unwrap();
        let outcome = s.perform(&power(false)).await;
        assert_eq!(retry(&outcome), Some(wanted), "{outcome:?}");
    }
    s.cloud
        .script(|a| a.power = Some(Unsupported::new("test", Optional::Power).into()));
    let outcome = s.perform(&power(false)).await;
    assert_eq!(retry(&outcome), Some(false), "{outcome:?}");
    assert!(matches!(
        failed(EffectError::Failed(unknown())),
        Outcome::Unknown { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn an_expired_proof_frees_nothing() {
    let s = Scene::new();
    let uid = s.node("Unknown");
    let node = NodeName::from(NODE);
    let taint = Effect::TaintOutOfService {
        proof: s.proof(),
        node: node.clone(),
        uid: uid.clone(),
    };
    let delete = Effect::DeleteAttachment {
        proof: s.proof(),
        name: "csi-1".to_owned(),
        uid: Uid::from("u"),
    };
    let force = Effect::CloudForce { proof: s.proof() };
    tokio::time::sleep(Duration::from_secs(11)).await;
    for effect in [&taint, &delete, &force] {
        let outcome = s.perform(effect).await;
        assert_eq!(retry(&outcome), Some(true), "{effect:?}: {outcome:?}");
    }
    assert_eq!((s.taints(), s.lock_holder()), (0, None));
    assert!(s.cloud.orders().is_empty());

    let s = Scene::new();
    let uid = s.node("Unknown");
    let taint = Effect::TaintOutOfService {
        proof: s.proof(),
        node: node.clone(),
        uid: uid.clone(),
    };
    assert!(s.perform(&taint).await.applied());
    assert_eq!(
        (s.taints(), s.lock_holder().as_deref()),
        (1, Some("reattach/cache/r"))
    );
    assert!(s.perform(&Effect::Untaint { node, uid }).await.applied());
    assert_eq!((s.taints(), s.lock_holder()), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_declaration_alone_allows_no_force_detach() {
    let s = Scene::new();
    let outcome = s.perform(&Effect::CloudForce { proof: s.proof() }).await;
    assert_eq!(retry(&outcome), Some(false), "{outcome:?}");
    assert!(s.cloud.orders().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_challenge_carries_the_records_epoch() {
    let s = Scene::new();
    assert!(
        s.perform(&Effect::Challenge {
            node: NodeName::from(NODE)
        })
        .await
        .applied()
    );
    let report = s
        .server
        .read("reattach.dev", "nodevolumereports", "", NODE)
        .unwrap();
    let asked = &report["spec"]["challenges"][0];
    assert_eq!(
        (&asked["epoch"], &asked["recovery"]),
        (&json!(7), &json!(s.recovery.uid().as_str()))
    );
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_labelled_with_the_records_uid() {
    let s = Scene::new();
    let volume = s.volume();
    let begun = CloudSnapshot {
        id: "snap-1".to_owned(),
        volume: volume.clone(),
        label: s.recovery.uid().to_string(),
        state: SnapshotState::Pending,
        started: s.clock.now(),
    };
    s.cloud.script(|a| a.snapshot = Some(Ok(begun)));
    let effect = Effect::Snapshot {
        volume: volume.clone(),
    };
    assert!(s.perform(&effect).await.applied());
    assert_eq!(
        s.cloud.orders(),
        [format!(
            "snapshot {volume} as {}",
            s.recovery.uid().as_str()
        )]
    );
    for (answer, wanted) in [
        (
            Unsupported::new("test", Optional::Snapshot).into(),
            Some(false),
        ),
        (EffectError::Failed(unknown()), None),
    ] {
        s.cloud.script(|a| a.snapshot = Some(Err(answer)));
        let outcome = s.perform(&effect).await;
        assert_eq!(retry(&outcome), wanted, "{outcome:?}");
        assert!(!outcome.applied());
    }
    let other = s
        .perform(&Effect::Snapshot {
            volume: VolumeId::from("another"),
        })
        .await;
    assert_eq!(retry(&other), Some(false), "{other:?}");
    assert_eq!(s.cloud.orders().len(), 3);
}

/// A namespace has 32 of them at the most while they have no effects ([`crate::driving`]).
#[tokio::test(start_paused = true)]
async fn a_driver_takes_less_than_128_kib() {
    let scene = Scene::new();
    let name = reattach_core::ids::ObjectName::new("cache", "r");
    let (_, stop) = watch::channel(false);
    let driver = scene
        .executor
        .drive(&name, |_| crate::recovery::Limits::default(), stop);
    let bytes = size_of_val(&driver);
    println!("{bytes} bytes");
    assert!(bytes < 128 * 1024, "{bytes} bytes");
}
