//! A run in which a node dies: class A, with the further faults that a test adds.

use crate::fixture::{on_first_node, policy};
use crate::{NODES, RunResult, postgres, redis};
use reattach_cloud_simulator::DeadHost;
use reattach_drill::replica::CrashPoint;
use reattach_drill::stage::{Expect, Stage, phases_of};
use reattach_drill::world::{World, WorldError};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// A change of the world that a test makes; the number is the seed.
pub type Hook = Arc<dyn Fn(&Stage, u64) + Send + Sync>;

/// The end of the first node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Its kernel hangs, and the cloud shows the machine as running.
    Hangs,
    /// It loses its power without a shutdown job, and the cloud shows this until the end of the run.
    LosesPower(DeadHost),
}

/// Settings of [`run_dead_node`].
#[derive(Clone)]
pub struct DeadNodeSetup {
    /// The policy's mode.
    pub mode: &'static str,
    /// How the node dies.
    pub death: Death,
    /// The CSI driver cannot detach.
    pub unpublish_fails: bool,
    /// Where the first leader dies.
    pub crash: Option<CrashPoint>,
    /// Called right after the node's death.
    pub then: Hook,
    /// Called when the recoveries have ended, before the machine is booted again. Returns the violated expectations.
    pub at_the_end: fn(&Stage) -> Vec<String>,
    /// Whether the apps must run on the other node at the end.
    pub heals: bool,
}

impl Default for DeadNodeSetup {
    fn default() -> Self {
        Self {
            mode: "Auto",
            death: Death::Hangs,
            unpublish_fails: false,
            crash: None,
            then: Arc::new(|_, _| {}),
            at_the_end: |_| Vec::new(),
            heals: true,
        }
    }
}

/// Two apps on one of two nodes, which dies; the policy allows to power it off. In the end the machine is booted
/// again.
///
/// # Panics
/// Without virtual time.
pub fn run_dead_node(seed: u64, setup: DeadNodeSetup) -> RunResult {
    crate::run(move || play(seed, setup))
}

/// The automatic restart of a node's machine, if it was left off.
fn restart_is_off(s: &Stage, node: &str) -> Result<Option<String>, WorldError> {
    let instance = s.world.instance(node)?;
    let on = s
        .world
        .cloud
        .instance(instance)
        .is_some_and(|i| i.watchdog_enabled);
    Ok((!on).then(|| format!("the watchdog of {node} was left off")))
}

/// Names of the apps on the node that dies.
pub const APPS: [&str; 2] = ["redis", "postgres"];

async fn play(seed: u64, setup: DeadNodeSetup) -> Result<RunResult, WorldError> {
    let expect = if setup.heals {
        Expect::Running
    } else {
        Expect::Restored
    };
    let apps = [redis(), postgres()];
    let mut s = on_first_node(seed, apps.map(|a| (a, expect))).await?;
    let fields =
        json!({"mode": setup.mode, "powerOff": "Allowed", "nodes": {"patienceSeconds": 60}});
    policy(&s, &fields).await?;
    s.world.csi.set_unpublish_fails(setup.unpublish_fails);
    s.start_replica("reattach-controller-0", setup.crash);
    s.pass(Duration::from_secs(5)).await;
    s.start_replica("reattach-controller-1", None);
    s.pass(Duration::from_secs(5)).await;
    let dead = NODES[0].0;
    match setup.death {
        Death::Hangs => s.hang(dead)?,
        Death::LosesPower(shown) => {
            s.world.cloud.set_dead_host(shown);
            s.world.cloud.kill(s.world.instance(dead)?)?;
        }
    }
    crate::on_call(&s);
    (setup.then)(&s, seed);
    let down = |w: &World| APPS.iter().all(|a| !w.app_ready(a, 1));
    s.until_stored("both apps down", Duration::from_secs(120), down)
        .await?;
    let late = match setup.heals {
        true => s.running(&APPS, Duration::from_secs(1200)).await.err(),
        false => {
            // Before the pods are evicted (300 s), which is another story.
            s.pass(Duration::from_secs(200)).await;
            None
        }
    };
    let over = |w: &World| phases_of(w).iter().all(|p| p.is_final());
    let late = match late {
        None if setup.heals => s
            .until_stored("every recovery over", Duration::from_secs(900), over)
            .await
            .err(),
        other => other,
    };
    s.world.cloud.clear_faults();
    s.world.server().clear_faults();
    s.pass(Duration::from_secs(30)).await;
    let mut broken = (setup.at_the_end)(&s);
    if let Death::LosesPower(_) = setup.death {
        broken.extend(restart_is_off(&s, dead)?);
        s.world.cloud.host_is_back(s.world.instance(dead)?)?;
        // The watchdog's boot takes two minutes.
        s.pass(Duration::from_secs(130)).await;
    }
    if setup.heals {
        broken.extend(s.boot_again(dead).await.err().map(|e| e.to_string()));
    }
    Ok(crate::finish(s, broken, late).await)
}
