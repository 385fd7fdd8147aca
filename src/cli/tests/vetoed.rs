//! A plan that the safety checker vetoes: what a person, the record and the controller's log say.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::world::{Running, turn};
use common::{CLAIM, NODE, Stage, ended, until};
use reattach_sim::apiserver::Verb;
use serde_json::{Value, json};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// What this process logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Collects this process's errors.
    fn of_errors() -> Self {
        let log = Self::default();
        let to = log.clone();
        let errors = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::ERROR)
            .with_ansi(false);
        errors.with_writer(move || to.clone()).init();
        log
    }

    /// The errors about a veto.
    fn vetoes(&self) -> Vec<String> {
        let bytes = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines()
            .filter(|l| l.contains("safety checker"))
            .map(str::to_owned)
            .collect()
    }
}

/// Puts a taint on the node that planner and checker judge differently: the planner knows medik8s' taints by name, the checker
/// by their domain.
fn taint(stage: &Stage, name: &str) {
    let mut node = (*stage.server.read("", "nodes", "", NODE).unwrap()).clone();
    node["spec"]["taints"] =
        json!([{"key": format!("remediation.medik8s.io/{name}"), "effect": "NoSchedule"}]);
    stage.server.insert(&node);
}

fn status(stage: &Stage, field: &str) -> String {
    let recovery = stage.recovery();
    recovery
        .and_then(|r| Some(r["status"][field].as_str()?.to_owned()))
        .unwrap_or_default()
}

/// How often the controller asked whether a new pod would be accepted: once for each plan.
fn plans(stage: &Stage) -> usize {
    let asked = |e: &reattach_sim::apiserver::AuditEntry| {
        e.user == "controller" && e.verb == Verb::Create && e.resource == "pods"
    };
    stage.server.audit().iter().filter(|e| asked(e)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vetoed_plan_is_refused_and_reported_as_our_fault() {
    let log = Log::of_errors();
    let stage = Arc::new(Stage::new("veto").await);
    taint(&stage, "first");
    let told = [
        "S9: someone else is at work on the node (taint remediation.medik8s.io/first)",
        "breaks a rule of reattach's own safety checker",
        "This is a fault of reattach",
        "Nothing is done",
        "send",
    ];
    ended(&stage.run(&["plan", CLAIM]).await, 4, &told);
    let ran = stage.run(&["plan", CLAIM, "-o", "json"]).await;
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    let refusal = &value["refusals"][0];
    assert_eq!(
        (ran.code, &refusal["refusal"], &value["plan"]),
        (4, &json!("vetoed"), &Value::Null)
    );
    let expected = json!([{"violation": "othersAtWork", "taint": "remediation.medik8s.io/first"}]);
    assert_eq!(refusal["violations"], expected);

    let world = turn(&stage);
    let controller = Running::start(&stage).await;
    ended(
        &stage.run(&["recover", CLAIM, "--no-wait"]).await,
        0,
        &["was created"],
    );
    let judged = || !matches!(status(&stage, "phase").as_str(), "" | "Diagnosing");
    until("a verdict on the plan", judged).await;
    let message = status(&stage, "message");
    assert_eq!(status(&stage, "phase"), "Refused", "{message}");
    assert!(
        told[..2].iter().all(|part| message.contains(part)),
        "{message}"
    );
    // One line for each change, however often the plan is made anew.
    let before = plans(&stage);
    until("more plans", || plans(&stage) >= before + 2).await;
    assert_eq!(log.vetoes().len(), 1, "{:?}", log.vetoes());
    taint(&stage, "second");
    until("another message", || {
        status(&stage, "message").contains("io/second")
    })
    .await;
    let lines = log.vetoes();
    assert!(
        lines.len() == 2 && lines[1].contains("ERROR") && lines[1].contains("io/second"),
        "{lines:?}"
    );
    controller.stop().await;
    world.abort();
}
