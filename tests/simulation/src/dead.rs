//! A night in which a node dies: class A, with everything a test wants to go wrong besides.

use crate::{Morning, NODES, postgres, redis, story};
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_drill::checks;
use reattach_drill::in_virtual_time;
use reattach_drill::replica::CrashPoint;
use reattach_drill::stage::{Expect, Stage, phases_of};
use reattach_drill::stock::on_one_node;
use reattach_drill::world::{World, WorldError};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Something done to the world, by the seed.
pub type Deed = Arc<dyn Fn(&Stage, u64) + Send + Sync>;

/// What a test does to the world of the night.
#[derive(Clone)]
pub struct DeadNight {
    /// The policy's mode.
    pub mode: &'static str,
    /// The CSI driver cannot detach.
    pub unpublish_fails: bool,
    /// Where the first leader dies.
    pub crash: Option<CrashPoint>,
    /// Done when the node has just died.
    pub then: Deed,
    /// What must be so at the end of the recoveries, before the machine is booted again; the answer is what is not.
    pub at_the_end: fn(&Stage) -> Vec<String>,
    /// Whether the apps must run on the other node in the end.
    pub heals: bool,
}

impl Default for DeadNight {
    fn default() -> Self {
        Self {
            mode: "Auto",
            unpublish_fails: false,
            crash: None,
            then: Arc::new(|_, _| {}),
            at_the_end: |_| Vec::new(),
            heals: true,
        }
    }
}

/// Two apps on one of two nodes, whose kernel hangs; the policy allows to power it off. In the end the machine is booted
/// again.
///
/// # Panics
/// Without virtual time.
pub fn dead_night(seed: u64, night: DeadNight) -> Morning {
    let played = in_virtual_time(move || async move {
        match play(seed, night).await {
            Ok(morning) => morning,
            Err(error) => {
                Morning { broken: vec![error.to_string()], requests: 0, died: None, timeline: String::new() }
            }
        }
    });
    played.unwrap_or_else(|error| panic!("no virtual time: {error}"))
}

/// The apps of the night.
pub const APPS: [&str; 2] = ["redis", "postgres"];

async fn play(seed: u64, night: DeadNight) -> Result<Morning, WorldError> {
    let start = "2026-03-02T03:00:00Z".parse().unwrap_or_default();
    let mut s = Stage::new(seed, start, &NODES, Arc::new(|_| {})).await?;
    s.world.follow_power();
    let expect = if night.heals { Expect::Running } else { Expect::Restored };
    let apps = [redis(), postgres()];
    on_one_node(&mut s, &NODES, apps.into_iter().map(|a| (a, expect))).await?;
    let policy = json!({"mode": night.mode, "precedence": 0, "runbook": DEFAULT_RUNBOOK, "powerOff": "Allowed",
        "nodes": {"patienceSeconds": 60}});
    s.world.policy_of("everything", &policy).await?;
    s.world.csi.set_unpublish_fails(night.unpublish_fails);
    s.start_replica("reattach-controller-0", night.crash);
    s.pass(Duration::from_secs(5)).await;
    s.start_replica("reattach-controller-1", None);
    s.pass(Duration::from_secs(5)).await;
    let dead = NODES[0].0;
    s.hang(dead)?;
    crate::on_call(&s);
    (night.then)(&s, seed);
    let down = |w: &World| APPS.iter().all(|a| !w.app_ready(a, 1));
    s.until_stored("both apps down", Duration::from_secs(120), down).await?;
    let late = match night.heals {
        true => s.running(&APPS, Duration::from_secs(1200)).await.err(),
        false => {
            // Before the pods are evicted (300 s), which is another story.
            s.pass(Duration::from_secs(200)).await;
            None
        }
    };
    let over = |w: &World| phases_of(w).iter().all(|p| p.is_final());
    let late = match late {
        None if night.heals => {
            s.until_stored("every recovery over", Duration::from_secs(900), over).await.err()
        }
        other => other,
    };
    s.world.cloud.clear_faults();
    s.world.server().clear_faults();
    s.pass(Duration::from_secs(30)).await;
    let mut broken = (night.at_the_end)(&s);
    if night.heals {
        broken.extend(s.boot_again(dead).await.err().map(|e| e.to_string()));
    }
    let requests = s.replicas.first().map_or(0, |r| r.requests());
    let died = s.replicas.first().and_then(|r| r.died_at());
    for replica in std::mem::take(&mut s.replicas) {
        replica.stop().await;
    }
    s.look();
    let found = checks::all(&s).into_iter();
    broken.extend(found.flat_map(|c| c.broken.into_iter().map(move |b| format!("{}: {b}", c.rule))));
    broken.extend(late.map(|e| e.to_string()));
    let timeline = story(&s);
    Ok(Morning { broken, requests, died, timeline })
}
