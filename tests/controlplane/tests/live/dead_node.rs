//! Class A: a node that is dead, or only looks so.

use crate::STOCK;
use crate::common::fencing::{DEATH, completed, effects, history, print_returns, told};
use crate::common::logs::CONTROLLER;
use crate::common::measure::Pace;
use crate::common::workloads::prefer;
use crate::common::{LIMIT, Stage, StageOptions};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use reattach_api::{Phase, VolumeRecovery};
use reattach_cloud_simulator::{InstanceStatus, RequestRecord, Timings, VolumeNo};
use reattach_core::names::{OUT_OF_SERVICE_TAINT, QUARANTINE_TAINT};
use reattach_core::steps::StepKind;
use reattach_tests_controlplane::{AuditEvent, Unpublish, eventually, say};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// How long a partition is watched once it is waited for; well before Kubernetes' own eviction after 300 s.
const WATCHED: Duration = Duration::from_secs(90);

/// Workloads on one node: kind, name, claim.
const WORKLOADS: [(&str, &str, &str); 3] = [
    ("StatefulSet", "sql", "data-sql-0"),
    ("Deployment", "redis", "redis"),
    ("Deployment", "bot", "bot"),
];

/// The workloads of [`WORKLOADS`], Ready on the first of these nodes; their volumes.
async fn cast(stage: &Stage, namespace: &str, nodes: &[&str], annotations: Value) -> Vec<VolumeNo> {
    stage
        .create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "annotations": annotations}}))
        .await;
    stage
        .plane
        .await_namespace(namespace)
        .await
        .expect("its ServiceAccount");
    let mut volumes = Vec::new();
    for (kind, name, _) in WORKLOADS {
        volumes.push(match kind {
            "StatefulSet" => {
                stage
                    .stateful_set_with(namespace, name, 1, nodes[0], |o| prefer(o, nodes))
                    .await[0]
            }
            _ => {
                stage
                    .deployment_with(namespace, name, nodes[0], |o| prefer(o, nodes))
                    .await
            }
        });
    }
    for (_, name, _) in WORKLOADS {
        stage.await_ready(namespace, name, 1).await;
        assert_eq!(
            stage.node_of(namespace, name).await,
            nodes[0],
            "{name} prefers it"
        );
    }
    volumes
}

/// A human's way: the out-of-service taint, once the Node is NotReady and the machine is off. Gives the moment of the taint.
async fn a_human_taints(stage: &Stage, node: &str) -> Timestamp {
    stage
        .cloud
        .shutdown(stage.instance(node))
        .expect("it runs, says the cloud");
    stage.await_instance(node, &InstanceStatus::Offline).await;
    stage.await_node(node, false).await;
    let mut taints = stage.taints(node, |_| true).await;
    taints.push(serde_json::from_value(json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"})).expect("a taint"));
    let at = stage.cloud.now();
    let nodes: Api<Node> = Api::all(stage.admin.clone());
    let body = json!({"spec": {"taints": taints}});
    nodes
        .patch(node, &PatchParams::default(), &Patch::Merge(&body))
        .await
        .expect("tainted");
    at
}

/// The calls of reattach to a power endpoint of the cloud.
fn power_calls(stage: &Stage, word: &str) -> Vec<RequestRecord> {
    stage
        .cloud_mutations()
        .into_iter()
        .filter(|r| r.path.ends_with(word))
        .collect()
}

pub async fn measured_a_powered_off_node_frees_its_volumes() {
    let options = StageOptions {
        nodes: 4,
        mode: None,
        ..StageOptions::default()
    };
    let mut stage = Stage::set(options).await;
    stage.cloud.set_timings(Timings {
        shutdown_ms: 5_000,
        boot_ms: 5_000,
        ..Timings::default()
    });
    stage.policy_saying(json!({"powerOff": "Allowed"})).await;
    let ours = cast(&stage, "shop", &["node-1", "node-3"], json!({})).await;
    // The same beside it, healed by Kubernetes alone after a human's taint.
    let stock = cast(
        &stage,
        "stock",
        &["node-2", "node-4"],
        json!({"reattach.dev/opt-out": "true"}),
    )
    .await;

    let pace = Pace::start(&stage);
    stage.hang("node-1");
    stage.hang("node-2");
    let tainted = a_human_taints(&stage, "node-2").await;
    let mut by_hand = Vec::new();
    for ((_, name, claim), volume) in WORKLOADS.iter().zip(&stock) {
        let pod = stage.await_ready_on("stock", name, "node-4").await;
        by_hand.push(stage.back_after("stock", claim, &pod, *volume, tainted));
    }

    let (mut returns, mut recoveries) = (Vec::new(), Vec::new());
    for ((kind, name, claim), volume) in WORKLOADS.iter().zip(&ours) {
        let recovery = stage.await_recovered("shop", claim).await;
        let pod = stage.await_ready_on("shop", name, "node-3").await;
        assert_eq!(stage.count("shop", kind, name).await, (1, false), "{name}");
        let proven = completed(&recovery, StepKind::Prove).expect("a proof");
        returns.push(stage.back_after("shop", claim, &pod, *volume, proven));
        recoveries.push(recovery);
    }
    print_returns("a human's taint to Ready elsewhere", &by_hand);
    let (whole, rest) = print_returns("proof to Ready elsewhere", &returns);

    // Once for the instance, whatever the requester.
    let off = power_calls(&stage, "/shutdown");
    assert_eq!(off.len(), 1, "{off:#?}");
    assert!(
        off[0]
            .path
            .contains(&format!("/{}/", stage.instance("node-1"))),
        "{}",
        off[0].path
    );
    for key in [OUT_OF_SERVICE_TAINT, QUARANTINE_TAINT] {
        assert_eq!(
            stage.taint_writes("node-1", key),
            1,
            "one of them puts {key} there"
        );
    }
    assert!(
        recoveries
            .iter()
            .all(|r| !effects(r).contains(&StepKind::CloudDetach)),
        "Kubernetes detached"
    );
    let count = stage.assert_pinned_and_journaled(&recoveries);
    say!("{count} effects, each pinned by its plan and after the journal line that announces it");

    assert!(
        !stage.is_out_of_service("node-1").await,
        "the taint is off again"
    );
    let left = stage.node_locks().await;
    assert!(left.is_empty(), "locks: {left:?}");
    let quarantine = stage.taints("node-1", |t| t.key == QUARANTINE_TAINT).await;
    assert_eq!(
        quarantine.len(),
        1,
        "until its next boot's agent answers clean"
    );
    for (_, _, claim) in WORKLOADS {
        assert!(
            stage
                .attachments("shop", claim)
                .await
                .iter()
                .all(|va| va.spec.node_name == "node-3")
        );
        assert!(
            stage
                .recoveries("stock")
                .await
                .iter()
                .all(|r| r.status.as_ref().is_none_or(|s| s.journal.is_empty()))
        );
    }
    let all: Vec<VolumeNo> = ours.iter().chain(&stock).copied().collect();
    stage.assert_one_holder(&all);
    // Pod garbage collection comes at any time within its 20 s, once for all volumes of the node.
    pace.at_most(
        "median without the wait for pod garbage collection",
        rest,
        SignedDuration::from_secs(15),
    );
    pace.at_most("median of the whole", whole, SignedDuration::from_secs(35));

    stage.boot("node-1").await;
    stage.await_node("node-1", true).await;
    stage.await_nothing_left().await;
}

/// Whether a recovery waits for a proof with its plan shown, and its message says this.
fn waits(recovery: &VolumeRecovery, says: &str) -> bool {
    let Some(status) = &recovery.status else {
        return false;
    };
    status.phase == Phase::Waiting && status.plan.is_some() && status.message.contains(says)
}

pub async fn without_permission_a_person_gives_the_proof() {
    let options = StageOptions {
        nodes: 4,
        mode: None,
        ..StageOptions::default()
    };
    let mut stage = Stage::share(&STOCK, "permission", options).await;
    let slow_watchdog = Timings {
        watchdog_ms: 3_600_000,
        shutdown_ms: 5_000,
        boot_ms: 5_000,
        ..Timings::default()
    };
    stage.set_timings(slow_watchdog);
    stage.policy_saying(json!({})).await;
    stage.namespace("permission").await;
    let redis = stage
        .deployment_with("permission", "redis", "permission-1", |o| {
            prefer(o, &["permission-1", "permission-3"])
        })
        .await;
    let sql = stage
        .stateful_set_with("permission", "sql", 1, "permission-2", |o| {
            prefer(o, &["permission-2", "permission-4"])
        })
        .await[0];
    for app in ["redis", "sql"] {
        stage.await_ready("permission", app, 1).await;
    }
    let before = stage.untouched("permission", &[redis, sql]).await;

    // One hangs, the other is off without anybody having shut it down: its cloud may boot it at any moment.
    stage.hang("permission-1");
    stage.lose_power("permission-2").await;
    let seen = stage
        .await_recovery("permission", "redis", "waiting with its plan", |r| {
            waits(r, "class A")
        })
        .await;
    say!(
        "hangs: {}",
        seen.status
            .as_ref()
            .map(|s| s.message.clone())
            .unwrap_or_default()
    );
    assert!(
        history(&seen).0.find(StepKind::PowerOff).is_none(),
        "no step that nobody allowed"
    );
    let seen = stage
        .await_recovery("permission", "data-sql-0", "waiting with its plan", |r| {
            waits(r, "no shutdown job")
        })
        .await;
    say!(
        "off, and nobody did it: {}",
        seen.status
            .as_ref()
            .map(|s| s.message.clone())
            .unwrap_or_default()
    );
    assert_eq!(stage.untouched("permission", &[redis, sql]).await, before);
    stage.assert_only_records(&[]);

    stage
        .cloud
        .shutdown(stage.instance("permission-1"))
        .expect("the cloud says that it runs");
    let redis_back = stage.await_recovered("permission", "redis").await;
    stage
        .await_ready_on("permission", "redis", "permission-3")
        .await;

    let holder = stage.instance("permission-2").to_string();
    let word = [
        "declare",
        "data-sql-0",
        "-n",
        "permission",
        "--holder",
        &holder,
        "--reason",
        "INC-42: no power in the rack",
    ];
    let (olga, tina_name) = (stage.user("olga"), stage.user("tina"));
    let tina = stage
        .person(&tina_name, "permission", &["reattach-operator"])
        .await;
    stage
        .reattach(&tina, &word)
        .await
        .one_sentence(1, &["declare"]);
    // A fence affects more than this namespace: a declaration by a right in this namespace alone is no proof for it.
    let tina = stage
        .person(&tina_name, "permission", &["reattach-declarer"])
        .await;
    stage.reattach(&tina, &word).await.ended(0);
    let seen = stage
        .await_recovery(
            "permission",
            "data-sql-0",
            "waiting for a word that reaches the node",
            |r| waits(r, "given by a right in one namespace"),
        )
        .await;
    assert!(
        !stage.is_out_of_service("permission-2").await,
        "no taint by that word"
    );
    // By hand, and with more digits than reattach itself would write: what she wrote stays hers.
    stage
        .person_everywhere(&olga, &["reattach-operator", "reattach-declarer"])
        .await;
    let her = stage
        .plane
        .client_from(&stage.plane.kubeconfig_for(&olga).expect("a user"))
        .await
        .expect("a client");
    let at = stage.cloud.now().to_string();
    let declaration = json!({"holder": holder, "declaredBy": olga, "reason": "INC-42: no power in the rack", "at": at});
    let hers: Api<VolumeRecovery> = Api::namespaced(her, "permission");
    let body = json!({"spec": {"declaration": declaration}});
    hers.patch(
        &seen.name_any(),
        &PatchParams::default(),
        &Patch::Merge(&body),
    )
    .await
    .expect("she may declare");
    let sql_back = stage.await_recovered("permission", "data-sql-0").await;
    stage
        .await_ready_on("permission", "sql", "permission-4")
        .await;
    assert!(told(&sql_back).contains(&olga), "{}", told(&sql_back));

    let count = stage.assert_pinned_and_journaled(&[redis_back, sql_back]);
    say!("{count} effects, each pinned by its plan and after the journal line that announces it");
    assert_eq!(
        stage.cloud_mutations(),
        [],
        "nobody but people changed anything at the cloud"
    );
    stage.assert_one_holder(&[redis, sql]);
    for node in ["permission-1", "permission-2"] {
        assert!(
            !stage.is_out_of_service(node).await,
            "{node}: the taint is off again"
        );
        stage.boot(node).await;
        stage.await_node(node, true).await;
    }
    stage.await_nothing_left().await;
}

pub async fn a_partition_frees_nothing() {
    let mut stage = Stage::share(
        &STOCK,
        "partition",
        StageOptions {
            nodes: 2,
            mode: None,
            ..StageOptions::default()
        },
    )
    .await;
    stage.policy_saying(json!({})).await;
    stage.namespace("partition").await;
    let redis = stage
        .deployment_with("partition", "redis", "partition-1", |o| {
            prefer(o, &["partition-1", "partition-2"])
        })
        .await;
    let sql = stage
        .stateful_set_with("partition", "sql", 1, "partition-1", |o| {
            prefer(o, &["partition-1", "partition-2"])
        })
        .await[0];
    for app in ["redis", "sql"] {
        stage.await_ready("partition", app, 1).await;
    }
    let before = stage.untouched("partition", &[redis, sql]).await;

    stage.partition("partition-1", true).await;
    stage.await_node("partition-1", false).await;
    for claim in ["redis", "data-sql-0"] {
        let seen = stage
            .await_recovery("partition", claim, "waiting with its plan", |r| {
                waits(r, "class A")
            })
            .await;
        say!(
            "{claim}: {}",
            seen.status
                .as_ref()
                .map(|s| s.message.clone())
                .unwrap_or_default()
        );
    }
    let watched = Instant::now();
    let freed = eventually("something freed", WATCHED, async || {
        let now = stage.untouched("partition", &[redis, sql]).await;
        (now != before).then_some(now)
    });
    if let Ok(now) = freed.await {
        panic!(
            "after {:?}: {now:#?}\nbefore: {before:#?}",
            watched.elapsed()
        );
    }
    assert_eq!(
        stage.cloud.guest_devices(stage.instance("partition-1")),
        [redis, sql],
        "it writes on"
    );
    say!(
        "nothing freed in {:.0} s of waiting",
        watched.elapsed().as_secs_f64()
    );

    stage.partition("partition-1", false).await;
    for (app, claim) in [("redis", "redis"), ("sql", "data-sql-0")] {
        stage.await_ready("partition", app, 1).await;
        let ended = stage
            .await_recovery("partition", claim, "an end", |r| {
                r.status.as_ref().is_some_and(|s| s.phase.is_final())
            })
            .await;
        let status = ended.status.expect("a status");
        say!("{claim}: {:?}: {}", status.phase, status.message);
        assert_eq!(
            (status.phase, status.journal.len()),
            (Phase::Resolved, 0),
            "{}",
            status.message
        );
    }
    assert_eq!(
        stage.untouched("partition", &[redis, sql]).await,
        before,
        "everything as before"
    );
    stage.assert_only_records(&[]);
    stage.assert_one_holder(&[redis, sql]);
    stage.await_nothing_left().await;
}

pub async fn a_fenced_node_that_recovers_loses_the_taint_at_once() {
    let mut stage = Stage::share(
        &STOCK,
        "fenced",
        StageOptions {
            nodes: 2,
            mode: None,
            ..StageOptions::default()
        },
    )
    .await;
    stage.set_timings(Timings {
        shutdown_ms: 5_000,
        boot_ms: 5_000,
        ..Timings::default()
    });
    stage.policy_saying(json!({"powerOff": "Allowed"})).await;
    stage.namespace("fenced").await;
    let redis = stage
        .deployment_with("fenced", "redis", "fenced-1", |o| {
            prefer(o, &["fenced-1", "fenced-2"])
        })
        .await;
    stage.await_ready("fenced", "redis", 1).await;

    let pace = Pace::start(&stage);
    // So that the taint stays.
    stage.unpublish(&[redis], Unpublish::Hang).await;
    stage.hang("fenced-1");
    let what = "the out-of-service taint";
    let tainted = eventually(what, DEATH, async || {
        stage.is_out_of_service("fenced-1").await.then_some(())
    })
    .await;
    if let Err(error) = tainted {
        panic!("{error}\n{}\n{}", stage.story("fenced").await, stage.logs());
    }
    assert_eq!(stage.node_locks().await, ["node-fenced-1"]);
    stage.boot("fenced-1").await;
    stage.await_node("fenced-1", true).await;
    let gone = eventually("no taint", LIMIT, async || {
        (!stage.is_out_of_service("fenced-1").await).then_some(())
    });
    gone.await
        .unwrap_or_else(|e| panic!("{e}\n{}", stage.logs()));
    // A write is there to see an instant before the audit log has it.
    let what = "the audit log's word of the report and of the end of the taint";
    let late = eventually(what, LIMIT, async || ready_and_tainted(&stage, "fenced-1"))
        .await
        .expect(what);
    say!(
        "the taint is off {:.2} s after the Node is Ready",
        late.as_secs_f64()
    );
    pace.at_most(
        "a Ready node with the taint",
        late,
        SignedDuration::from_secs(2),
    );

    stage.unpublish(&[redis], Unpublish::Ok).await;
    let what = "a Ready pod and no recovery under way";
    let healed = eventually(what, DEATH, async || {
        let pods = stage.pods("fenced", "redis").await;
        let over = stage
            .recoveries("fenced")
            .await
            .iter()
            .all(|r| r.status.as_ref().is_some_and(|s| s.phase.is_final()));
        (over && pods.len() == 1 && pods.iter().all(crate::common::workloads::is_ready))
            .then_some(())
    });
    if let Err(error) = healed.await {
        panic!("{error}\n{}\n{}", stage.story("fenced").await, stage.logs());
    }
    say!("{}", stage.story("fenced").await);
    let with_plan = stage
        .recoveries("fenced")
        .await
        .into_iter()
        .filter(|r| r.status.as_ref().is_some_and(|s| s.plan.is_some()));
    stage.assert_pinned_and_journaled(&with_plan.collect::<Vec<_>>());
    stage.assert_one_holder(&[redis]);
    let left = stage.node_locks().await;
    assert!(left.is_empty(), "locks: {left:?}");
    stage.await_nothing_left().await;
}

/// How long a Node was Ready and had the taint, by the audit log: from kubelet's report to the write that takes it off. None
/// while the log lacks one of them.
fn ready_and_tainted(stage: &Stage, node: &str) -> Option<SignedDuration> {
    let events = stage.audit();
    let of_node = |e: &&AuditEvent| {
        e.resource == "nodes" && e.name.as_deref() == Some(node) && e.took_effect()
    };
    let with_taint = |e: &&AuditEvent| {
        e.user == CONTROLLER
            && e.body
                .as_ref()
                .is_some_and(|b| b.to_string().contains(OUT_OF_SERVICE_TAINT))
    };
    let tainted = events.iter().filter(of_node).find(with_taint)?.reached;
    let says_ready = |e: &&AuditEvent| {
        let conditions = e
            .body
            .as_ref()
            .and_then(|b| b.pointer("/status/conditions")?.as_array());
        e.received > tainted
            && conditions.is_some_and(|c| {
                c.iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True")
            })
    };
    let ready = events.iter().filter(of_node).find(says_ready)?.reached;
    let off =
        |e: &&AuditEvent| e.user == CONTROLLER && e.received > tainted && e.subresource.is_none();
    let off = events
        .iter()
        .filter(of_node)
        .filter(off)
        .find(|e| !with_taint(e))?
        .reached;
    Some(off.duration_since(ready))
}

/// Off without a shutdown job, and booted again by the cloud: there is never a proof, and the run must not wait for one
/// once the node is back.
pub async fn a_node_that_the_watchdog_boots_again_is_left_alone() {
    let mut stage = Stage::share(
        &STOCK,
        "watchdog",
        StageOptions {
            nodes: 2,
            mode: None,
            ..StageOptions::default()
        },
    )
    .await;
    // Before the recovery has waited long enough to power it off: by default it takes as long as that.
    stage.set_timings(Timings {
        watchdog_ms: 60_000,
        ..Timings::default()
    });
    stage.policy_saying(json!({"powerOff": "Allowed"})).await;
    stage.namespace("watchdog").await;
    let redis = stage
        .deployment_with("watchdog", "redis", "watchdog-1", |o| {
            prefer(o, &["watchdog-1", "watchdog-2"])
        })
        .await;
    stage.await_ready("watchdog", "redis", 1).await;
    // A boot drops the attachment at the cloud, by the cloud's own doing.
    let before = stage.untouched("watchdog", &[]).await;

    stage.lose_power("watchdog-1").await;
    stage
        .await_instance("watchdog-1", &InstanceStatus::Running)
        .await;
    stage.await_node("watchdog-1", false).await;
    assert_eq!(
        stage.untouched("watchdog", &[]).await,
        before,
        "nothing was freed while it was off"
    );
    stage.boot("watchdog-1").await;
    stage.await_ready("watchdog", "redis", 1).await;
    let back = Instant::now();
    let what = "no recovery under way";
    let over = eventually(what, LIMIT, async || {
        let all = stage.recoveries("watchdog").await;
        all.iter()
            .all(|r| r.status.as_ref().is_some_and(|s| s.phase.is_final()))
            .then_some(())
    });
    if let Err(error) = over.await {
        panic!(
            "{error}\n{}\n{}",
            stage.story("watchdog").await,
            stage.logs()
        );
    }
    say!(
        "over {:.0} s after the pod is Ready again\n{}",
        back.elapsed().as_secs_f64(),
        stage.story("watchdog").await
    );
    let power = stage.cloud_mutations();
    assert!(power.is_empty(), "it was off: {power:#?}");
    assert_eq!(stage.node_of("watchdog", "redis").await, "watchdog-1");
    stage.assert_one_holder(&[redis]);
    let left = stage.node_locks().await;
    assert!(left.is_empty(), "locks: {left:?}");
    stage.await_nothing_left().await;
}
