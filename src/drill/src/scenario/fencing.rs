//! Class A: a node that is dead or cannot be reached holds volumes. Nothing is freed before it cannot write.

use super::{TWO_NODES, fail_detaches, postgres, reading, redis};
use crate::app::App;
use crate::baseline::{self, on_one_node, ready_elsewhere, took};
use crate::stage::{Expect, START, Sink, Stage, phases_of};
use crate::taint_recorder::is_out_of_service_by_us;
use crate::timeline::Actor;
use crate::world::{World, WorldError};
use jiff::Timestamp;
use reattach_api::Phase;
use reattach_cloud_simulator::{InstanceNo, InstanceStatus};
use reattach_core::journal::Event;
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_core::steps::StepKind;
use serde_json::json;
use std::time::Duration;

/// Longer than any recovery here takes: NotReady, power off, pod garbage collection, detach, mount.
pub(super) const LONG: Duration = Duration::from_secs(1500);

pub(super) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A StatefulSet, a Deployment and a StatefulSet of two: four volumes on one node.
pub(super) fn apps() -> Vec<App> {
    vec![
        redis(),
        postgres(),
        App::stateful_set(
            "kafka",
            7_010,
            "pvc9b2e8a61f40c4b3d",
            2,
            "the queue, two replicas",
        ),
    ]
}

pub(super) fn names(apps: &[App]) -> Vec<&str> {
    apps.iter().map(|a| a.name.as_str()).collect()
}

/// Machines follow the cloud's power; the apps run on the first node; two replicas of the controller watch under this
/// rule for powering off.
pub(super) async fn set(
    seed: u64,
    power_off: &str,
    apps: &[App],
    sink: Sink,
) -> Result<Stage, WorldError> {
    let mut s = Stage::new(seed, START, &TWO_NODES, sink).await?;
    s.heading(
        &format!("Two nodes at Linode, everything on the first; mode Auto, runbook {DEFAULT_RUNBOOK}, powerOff {power_off}"),
        &[],
    );
    s.world.follow_power();
    on_one_node(
        &mut s,
        &TWO_NODES,
        apps.iter().map(|a| (a.clone(), Expect::Running)),
    )
    .await?;
    let spec = json!({"mode": "Auto", "precedence": 0, "runbook": DEFAULT_RUNBOOK, "powerOff": power_off,
        "escalateAfterSeconds": 300, "nodes": {"patienceSeconds": 60}});
    s.world.policy_of("everything", &spec).await?;
    s.start_replica("reattach-controller-0", None);
    s.pass(secs(5)).await;
    s.start_replica("reattach-controller-1", None);
    s.pass(secs(15)).await;
    s.from = s.world.now();
    Ok(s)
}

fn power(w: &World, instance: InstanceNo) -> Option<InstanceStatus> {
    w.cloud.instance(instance).map(|i| i.status)
}

fn tainted(w: &World, node: &str) -> bool {
    w.server()
        .read("", "nodes", "", node)
        .is_some_and(|n| is_out_of_service_by_us(&n))
}

/// Every recovery of these apps is over, and everything runs.
pub(super) async fn over(s: &mut Stage, apps: &[App], limit: Duration) -> Result<(), WorldError> {
    let names = names(apps);
    s.running(&names, limit).await?;
    let done = |w: &World| phases_of(w).iter().all(|p| p.is_final());
    s.until("every recovery over", secs(600), done).await?;
    s.running(&names, secs(300)).await?;
    s.pass(secs(20)).await;
    Ok(())
}

/// The machine is off, and a person boots it: it takes no pods before its agent has answered clean.
pub(super) async fn booted_again(s: &mut Stage, node: &str) -> Result<(), WorldError> {
    let instance = s.world.instance(node)?;
    s.tell(
        Actor::Person,
        "",
        format!("boots {node} again: linode-cli linodes boot {instance}"),
    );
    s.world.cloud.boot(instance)?;
    s.until(&format!("{node} Ready"), secs(180), |w| {
        w.cluster.node_ready(node)
    })
    .await?;
    if !s.world.is_quarantined(node) {
        s.broken
            .push(format!("{node} came back and was not in quarantine"));
    }
    let free = s
        .until(&format!("{node} out of quarantine"), secs(300), |w| {
            !w.is_quarantined(node)
        })
        .await?;
    s.tell(
        Actor::Reattach,
        "",
        format!(
            "removed the quarantine of {node} {:.0} s after the Node was Ready: its agent answered clean",
            free.as_secs_f64()
        ),
    );
    Ok(())
}

/// When the run of an app's recovery had its proof: the end of the step that waits for it.
fn proven(s: &Stage, app: &str) -> Option<Timestamp> {
    let recovery = s.recovery_of(app)?;
    let (plan, journal) = recovery.history().ok()?;
    let prove = plan?.find(StepKind::Prove)?;
    let end = |m: &Event| match m {
        Event::Completed { step, .. } | Event::Skipped { step, .. } => *step == prove,
        _ => false,
    };
    journal.iter().find(|e| end(&e.event)).map(|e| e.at)
}

pub(super) async fn dead_node(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = apps();
    let mut s = set(seed, "Allowed", &apps, sink).await?;
    let dead = TWO_NODES[0].0;
    let instance = s.world.instance(dead)?;
    s.hang(dead)?;
    let ready = ready_elsewhere(&mut s, &apps, dead, LONG).await?;
    s.phases(&names(&apps), &[Phase::Recovered], secs(300))
        .await?;
    s.pass(secs(20)).await;
    if power(&s.world, instance) != Some(InstanceStatus::Offline) {
        s.broken.push(format!("{dead} is not off"));
    }
    s.heading("The same world without reattach", &[]);
    let baseline = baseline::with_a_taint(seed, &TWO_NODES, &apps).await?;
    for app in &apps {
        let Some(known) = proven(&s, &app.name) else {
            s.broken
                .push(format!("{}: no proof is in the journal", app.name));
            continue;
        };
        let words = |t: baseline::Took| {
            format!(
                "{:.1} s ({:.1} s less cloud time)",
                t.seconds,
                t.less_cloud()
            )
        };
        let ours = took(&s.world, app, known, ready[&app.name]);
        let what = format!("{}, from the proof or a human's taint", app.name);
        s.figures
            .push([what, words(ours), words(baseline[&app.name])]);
    }
    let healed = baseline::alone(seed, &TWO_NODES, &apps).await?;
    let alone = if healed {
        "runs again"
    } else {
        "nothing runs after 20 min"
    };
    s.figures.push([
        "without any taint".to_owned(),
        "-".to_owned(),
        alone.to_owned(),
    ]);
    s.tell(
        Actor::Kubernetes,
        "",
        format!("stock Kubernetes without any action: {alone}"),
    );
    if healed {
        s.broken
            .push("stock Kubernetes healed class A (held by a dead node) without help: the world is not as measured".to_owned());
    }
    s.heading("The fenced machine is booted again", &[]);
    booted_again(&mut s, dead).await?;
    s.pass(secs(30)).await;
    Ok(s)
}

pub(super) async fn no_permission(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = apps();
    let mut s = set(seed, "Never", &apps, sink).await?;
    let dead = TWO_NODES[0].0;
    s.hang(dead)?;
    s.phases(&names(&apps), &[Phase::Waiting], secs(300))
        .await?;
    s.pass(secs(420)).await;
    for app in &apps {
        let recovery = s.recovery_of(&app.name);
        let called = recovery
            .as_ref()
            .and_then(|r| r.status.as_ref())
            .is_some_and(|st| {
                st.conditions
                    .iter()
                    .any(|c| c.type_ == "Stalled" && c.status == "True" && c.reason == "Escalated")
            });
        if !called {
            s.broken.push(format!(
                "{}: nobody was called after the policy's 300 s",
                app.name
            ));
        }
        if recovery
            .and_then(|r| r.status)
            .is_none_or(|st| st.plan.is_none())
        {
            s.broken.push(format!("{}: no plan is shown", app.name));
        }
        if !reading(&s, &app.name, Phase::Waiting) {
            s.broken
                .push(format!("{}: it does not wait for the proof", app.name));
        }
    }
    let effects = s.world.request_log.effects();
    if let Some(first) = effects.first() {
        s.broken.push(format!(
            "without permission and without a proof: {}",
            first.line()
        ));
    }
    let instance = s.world.instance(dead)?;
    s.tell(
        Actor::Person,
        "",
        format!("shuts the machine down: linode-cli linodes shutdown {instance}"),
    );
    s.world.cloud.shutdown(instance)?;
    ready_elsewhere(&mut s, &apps, dead, LONG).await?;
    over(&mut s, &apps, secs(300)).await?;
    booted_again(&mut s, dead).await?;
    Ok(s)
}

/// The instances that have the app's first volume mounted now.
fn writers(w: &World, app: &App) -> Vec<InstanceNo> {
    let volume = reattach_cloud_simulator::VolumeNo(app.volumes[0].number);
    let now = w.cloud.now();
    w.cloud
        .writer_intervals(volume)
        .iter()
        .filter(|i| i.covers(now))
        .map(|i| i.instance)
        .collect()
}

pub(super) async fn partition(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = apps();
    let mut s = set(seed, "Never", &apps, sink).await?;
    let cut = TWO_NODES[0].0;
    let instance = s.world.instance(cut)?;
    s.partition(cut, true)?;
    s.phases(&names(&apps), &[Phase::Waiting], secs(300))
        .await?;
    s.pass(secs(900)).await;
    for app in &apps {
        if writers(&s.world, app) != [instance] {
            s.broken.push(format!(
                "{}: the pod that writes on was disturbed",
                app.name
            ));
        }
    }
    if let Some(first) = s.world.request_log.effects().first() {
        s.broken.push(format!("without a proof: {}", first.line()));
    }
    s.partition(cut, false)?;
    over(&mut s, &apps, LONG).await?;
    Ok(s)
}

pub(super) async fn partition_fenced(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = apps();
    let mut s = set(seed, "AllowedAndOn", &apps, sink).await?;
    let cut = TWO_NODES[0].0;
    s.partition(cut, true)?;
    ready_elsewhere(&mut s, &apps, cut, LONG).await?;
    s.partition(cut, false)?;
    over(&mut s, &apps, LONG).await?;
    let back = |w: &World| w.cluster.node_ready(cut) && !w.is_quarantined(cut);
    s.until(
        &format!("{cut} on again, and answered clean"),
        secs(600),
        back,
    )
    .await?;
    Ok(s)
}

pub(super) async fn returns(seed: u64, sink: Sink) -> Result<Stage, WorldError> {
    let apps = apps();
    let mut s = set(seed, "Allowed", &apps, sink).await?;
    let dead = TWO_NODES[0].0;
    s.world.csi.set_unpublish_fails(true);
    s.tell(
        Actor::Provider,
        "",
        "the CSI driver's controller fails every detach, so the out-of-service taint will stay for a while",
    );
    s.hang(dead)?;
    s.until("the out-of-service taint", secs(600), |w| tainted(w, dead))
        .await?;
    s.pass(Duration::from_millis(500 + seed % 10 * 700)).await;
    let instance = s.world.instance(dead)?;
    s.tell(
        Actor::Person,
        "",
        format!("boots {dead}, which is fenced: linode-cli linodes boot {instance}"),
    );
    s.world.cloud.boot(instance)?;
    let off = s
        .until("the taint off", secs(60), |w| !tainted(w, dead))
        .await?;
    s.tell(
        Actor::Reattach,
        "",
        format!(
            "removed the out-of-service taint {:.1} s after the boot was ordered",
            off.as_secs_f64()
        ),
    );
    if s.world.cluster.node_ready(dead) {
        s.broken
            .push(format!("{dead} was Ready before the taint was removed"));
    }
    s.until(&format!("{dead} Ready"), secs(180), |w| {
        w.cluster.node_ready(dead)
    })
    .await?;
    if !s.world.is_quarantined(dead) {
        s.broken
            .push(format!("{dead} came back late and was not in quarantine"));
    }
    fail_detaches(&mut s, false);
    over(&mut s, &apps, LONG).await?;
    s.until(&format!("{dead} out of quarantine"), secs(600), |w| {
        !w.is_quarantined(dead)
    })
    .await?;
    Ok(s)
}
