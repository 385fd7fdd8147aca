//! Code that the simulation tests share.

pub mod dead_node;
pub mod fixture;

use kube::Api;
use kube::api::{Patch, PatchParams};
use reattach_api::VolumeRecovery;
use reattach_cloud_simulator::{Job, JobStatus};
use reattach_core::policy::Mode;
use reattach_core::runbook::SCALE_TO_ZERO;
use reattach_drill::app::App;
use reattach_drill::checks;
use reattach_drill::in_virtual_time;
use reattach_drill::replica::CrashPoint;
use reattach_drill::stage::{Expect, Stage, recovery_of};
use reattach_drill::world::{World, WorldError};
use reattach_sim::apiserver::{Fault, FaultRule, RequestMatch};
use reattach_sim::kubelet::DiskAfter;
use serde_json::json;
use std::future::Future;
use std::time::Duration;

/// The nodes of [`run_phantom`].
pub const NODES: [(&str, u64); 2] = [("node-a", 101), ("node-b", 102)];

/// Returns a duration of this many seconds.
pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A cache with one replica.
pub fn redis() -> App {
    App::deployment("redis", 7001, "pvcbb1d06139b334c1f", "the cache")
}

/// A database with one replica.
pub fn postgres() -> App {
    App::stateful_set("postgres", 7002, "pvc5c1f6f0e6a0d4d0e", 1, "the database")
}

/// The safety rules that a stage broke, each with what happened.
pub fn broken_rules(s: &Stage) -> Vec<String> {
    let broken = checks::all(s).into_iter().flat_map(|c| {
        let rule = c.rule;
        c.broken.into_iter().map(move |b| format!("{rule}: {b}"))
    });
    broken.collect()
}

/// Timeline of a stage, for the message of a failed assertion.
pub fn story(s: &Stage) -> String {
    s.lines().iter().map(|l| l.render()).collect()
}

/// Runs a future in virtual time. A failed assertion in it fails the test.
///
/// # Panics
/// Without virtual time.
pub fn play<F: Future<Output = ()>>(scenario: impl FnOnce() -> F + Send + 'static) {
    in_virtual_time(scenario).expect("virtual time");
}

/// Runs a scenario in virtual time. An error or a failed assertion in it fails the test.
///
/// # Panics
/// Without virtual time, and when the scenario returns an error.
pub fn simulate<F>(scenario: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = Result<(), WorldError>>,
{
    in_virtual_time(scenario)
        .expect("virtual time")
        .unwrap_or_else(|error| panic!("{error}"));
}

/// The seeds of one test: 1 to `usual`, or as many as `REATTACH_SEEDS` says; `REATTACH_SEED` names a single one.
pub fn seeds(usual: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    match (number("REATTACH_SEED"), number("REATTACH_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, many) => (1..=many.unwrap_or(usual)).collect(),
    }
}

/// A share of the cases of a long test. Each share is a test of its own, so that they run beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl Part {
    /// The cases of this part: every `count`th, so that long cases are shared out, too.
    pub fn of<T>(self, all: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
        all.into_iter().skip(self.index).step_by(self.count)
    }
}

/// Makes one test of each part of a long test: `parts!(name { part_1, part_2 } |part| …)`.
#[macro_export]
macro_rules! parts {
    ($name:ident { $($part:ident),+ } $run:expr) => {
        mod $name {
            use super::*;

            const PARTS: &[&str] = &[$(stringify!($part)),+];

            $(
                #[test]
                fn $part() {
                    let index = PARTS.iter().position(|part| *part == stringify!($part));
                    let run: fn($crate::Part) = $run;
                    run($crate::Part { index: index.expect("it is one of them"), count: PARTS.len() });
                }
            )+
        }
    };
}

/// The first replica is cut off from the API server after a while; it is not dead, and comes back as one that believes.
pub fn cut_off_the_leader(s: &Stage, seed: u64, after: Duration) {
    let cut = FaultRule {
        requests: RequestMatch {
            client: Some("reattach-controller-0".into()),
            ..RequestMatch::default()
        },
        fault: if seed.is_multiple_of(2) {
            Fault::Disconnect {
                after_effect: false,
            }
        } else {
            Fault::Hang
        },
        probability: 1.0,
        times: None,
    };
    let server = s.world.server().clone();
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        let id = server.add_fault(cut);
        tokio::time::sleep(Duration::from_secs(10 + seed * 7 % 50)).await;
        server.remove_fault(id);
    });
}

/// A person on call: where a recovery waits for an order of unknown outcome, and the cloud has no job pending, they declare
/// that nothing is under way. They are right: no request of the tests that have them arrives late.
pub fn on_call(s: &Stage) {
    let (cloud, server) = (s.world.cloud.clone(), s.world.server().clone());
    let client = s.world.client_as("oncall");
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let pending = |j: &Job| matches!(j.status, JobStatus::Scheduled | JobStatus::Started);
            if cloud.jobs().iter().any(pending) {
                continue;
            }
            for recovery in server.list("reattach.dev", "volumerecoveries", None) {
                let message = recovery["status"]["message"].as_str().unwrap_or_default();
                if !message.contains("--nothing-under-way") {
                    continue;
                }
                let text = |field: &str| {
                    recovery["metadata"][field]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned()
                };
                let api: Api<VolumeRecovery> = Api::namespaced(client.clone(), &text("namespace"));
                let word =
                    json!({"declaredBy": "oncall", "reason": "no job", "at": server.clock().now()});
                let body = Patch::Merge(json!({"spec": {"nothingUnderWay": word}}));
                // A conflict or a fault: they try again.
                let _ = api
                    .patch(&text("name"), &PatchParams::default(), &body)
                    .await;
            }
        }
    });
}

/// Settings of [`run_phantom`].
#[derive(Clone, Copy)]
pub struct Setup {
    /// The policy's runbook.
    pub runbook: &'static str,
    /// The CSI driver cannot detach: the cloud detach is needed.
    pub unpublish_fails: bool,
    /// Where the first leader dies.
    pub crash: Option<CrashPoint>,
    /// Called right after the nodes have come back.
    pub then: fn(&Stage, u64),
    /// How long it may take until everything runs again.
    pub within: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            runbook: SCALE_TO_ZERO,
            unpublish_fails: false,
            crash: None,
            then: |_, _| {},
            within: Duration::from_secs(900),
        }
    }
}

/// The result of one run.
#[derive(Debug, Clone)]
pub struct RunResult {
    /// Violated safety rules, and apps that did not come back.
    pub broken: Vec<String>,
    /// Changing requests of the first replica.
    pub requests: u64,
    /// The request at which the first replica died, if it reached its crash point.
    pub died: Option<String>,
    /// Timeline of the run.
    pub timeline: String,
}

/// Two apps on two nodes, both nodes recycled uncleanly; ends when both run again, or too late.
pub fn run_phantom(seed: u64, setup: Setup) -> RunResult {
    run(move || play_phantom(seed, setup))
}

async fn play_phantom(seed: u64, setup: Setup) -> Result<RunResult, WorldError> {
    let mut s = fixture::new_stage(seed, &NODES).await?;
    s.add(redis(), Expect::Running).await?;
    s.add(postgres(), Expect::Running).await?;
    s.world
        .policy("everything", Mode::Auto, 0, setup.runbook)
        .await?;
    let apps = ["redis", "postgres"];
    s.running(&apps, Duration::from_secs(180)).await?;
    s.world.csi.set_unpublish_fails(setup.unpublish_fails);
    s.start_replica("reattach-controller-0", setup.crash);
    s.pass(Duration::from_secs(5)).await;
    s.start_replica("reattach-controller-1", None);
    s.pass(Duration::from_secs(5)).await;
    for (node, _) in NODES {
        s.recycle(node, DiskAfter::Kept, Duration::from_secs(6))
            .await?;
    }
    on_call(&s);
    (setup.then)(&s, seed);
    // A node that has just come back still shows its pods as they were.
    let down = |w: &World| apps.iter().all(|a| !w.app_ready(a, 1));
    s.until_stored("both apps down", Duration::from_secs(60), down)
        .await?;
    let late = match s.running(&apps, setup.within).await {
        Ok(_) => settle(&mut s).await.err(),
        Err(error) => Some(error),
    };
    s.world.cloud.clear_faults();
    s.world.server().clear_faults();
    s.pass(Duration::from_secs(30)).await;
    Ok(finish(s, Vec::new(), late).await)
}

/// Plays a run in virtual time. A run that does not take its course counts as broken.
fn run<F>(play: impl FnOnce() -> F + Send + 'static) -> RunResult
where
    F: Future<Output = Result<RunResult, WorldError>>,
{
    let played = in_virtual_time(play).expect("virtual time");
    played.unwrap_or_else(|error| RunResult {
        broken: vec![error.to_string()],
        requests: 0,
        died: None,
        timeline: String::new(),
    })
}

/// Stops the replicas and checks the safety rules. `broken` and `late` were found before.
async fn finish(mut s: Stage, mut broken: Vec<String>, late: Option<WorldError>) -> RunResult {
    let requests = s.replicas.first().map_or(0, |r| r.requests());
    let died = s.replicas.first().and_then(|r| r.died_at());
    for replica in std::mem::take(&mut s.replicas) {
        replica.stop().await;
    }
    s.look();
    broken.extend(broken_rules(&s));
    broken.extend(late.map(|e| e.to_string()));
    RunResult {
        broken,
        requests,
        died,
        timeline: story(&s),
    }
}

/// Every recovery is over.
async fn settle(s: &mut Stage) -> Result<(), WorldError> {
    let apps: Vec<App> = s.workloads.values().map(|c| c.app.clone()).collect();
    let over = move |w: &World| {
        apps.iter().all(|a| {
            recovery_of(w, a)
                .and_then(|r| r.status)
                .is_none_or(|st| st.phase.is_final())
        })
    };
    s.until_stored("every recovery over", Duration::from_secs(300), over)
        .await
        .map(|_| ())
}

/// Runs the phantom scenario once per seed. The message of a failure tells how to replay it.
///
/// # Panics
/// When a safety rule was broken or an app stayed down.
pub fn all_good(test: &str, usual: u64, setup: impl Fn(u64) -> Setup) {
    for seed in seeds(usual) {
        let result = run_phantom(seed, setup(seed));
        assert!(
            result.broken.is_empty(),
            "replay: REATTACH_SEED={seed} cargo test -p reattach-tests-simulation {test}\nbroken: {:#?}\ndied: {:?}\n{}",
            result.broken,
            result.died,
            result.timeline
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_cover_every_case_once() {
        for count in 1..6 {
            let parts = (0..count).map(|index| Part { index, count });
            let mut all: Vec<u64> = parts.flat_map(|part| part.of(1..=23)).collect();
            all.sort_unstable();
            assert_eq!(all, (1..=23).collect::<Vec<_>>(), "{count} parts");
        }
    }
}
