//! The founding incident: 2021-07-11, python-discord on Linode LKE. Its public post-mortem took 5 h 20 min.

use super::{Pace, after, reading};
use crate::app::App;
use crate::record::describe;
use crate::stage::{Expect, Sink, Stage};
use crate::timeline::Actor;
use crate::world::{PERSON, WorldError};
use jiff::Timestamp;
use reattach_api::Phase;
use reattach_cloud_simulator::VolumeNo;
use reattach_core::runbook::SCALE_TO_ZERO;
use reattach_report::support_ticket;
use reattach_sim::kubelet::DiskAfter;
use serde_json::json;
use std::time::Duration;

/// When the drill begins: 2021-07-11T00:52:00Z, nine minutes before the first failure.
const START: Timestamp = Timestamp::constant(1_625_964_720, 0);
/// The nodes of the incident's pool: the first is the one that its post-mortem names.
const NODES: [(&str, u64); 3] = [
    ("lke13311-16405-5fafd1b46dcf", 28_871_421),
    ("lke13311-16405-5fafd1b4a0e2", 28_871_422),
    ("lke13311-16405-60ae35c8b1f7", 28_871_423),
];
/// The workloads that reattach can heal at once.
const OURS: [&str; 5] = ["redis", "postgres", "bot", "hastebin", "wiki"];
const LOCKED: &str = "prestashop";
const LOCKED_VOLUME: u64 = 411_806;
const NOT_OURS: [&str; 2] = ["site", "grafana"];
const POLICY: &str = "/apis/reattach.dev/v1alpha1/recoverypolicies/default";

pub(super) async fn play(seed: u64, pace: Pace, sink: Sink) -> Result<Stage, WorldError> {
    let unlocked_at = match pace {
        Pace::Full => "2021-07-11T06:36:00Z",
        Pace::Short => "2021-07-11T01:20:00Z",
    };
    let mut s = Stage::new(seed, START, &NODES, sink).await?;
    s.heading(
        "A cluster of three nodes at Linode; reattach is installed with its default policy: DryRun",
        &[
            "Real code: two controller replicas, one agent for each node, the runbook, the Linode provider.",
            "Simulated: API server, Kubernetes' own controllers, kubelets, the cloud, and the time.",
        ],
    );
    s.world
        .merge(PERSON, POLICY, &json!({"spec": {"runbook": SCALE_TO_ZERO}}))
        .await?;
    s.tell(
        Actor::Person,
        "",
        "chooses the runbook that people followed that day: kubectl patch recoverypolicy default --type merge -p '{\"spec\":{\"runbook\":\"scale-to-zero\"}}'",
    );
    open(&mut s).await?;
    s.heading("Nodes are recycled, one after another", &[]);
    recycle_all(&mut s).await?;
    s.heading("Two more pods fail to mount, for reasons of their own", &[]);
    not_ours(&mut s).await?;
    dry_run(&mut s).await?;
    for_real(&mut s).await?;
    unlock(&mut s, unlocked_at).await?;
    Ok(s)
}

async fn open(s: &mut Stage) -> Result<(), WorldError> {
    let apps = [
        App::stateful_set(
            "postgres",
            411_801,
            "pvc5c1f6f0e6a0d4d0e",
            1,
            "the database",
        ),
        App::deployment("redis", 411_802, "pvcbb1d06139b334c1f", "the cache"),
        App::deployment("bot", 411_803, "pvc7e0a4b7c2d214f9a", "the Discord bot"),
        App::deployment(
            "hastebin",
            411_804,
            "pvc0d9a3f5be1c24c77",
            "the paste service",
        ),
        App::stateful_set("wiki", 411_805, "pvc9b2e8a61f40c4b3d", 1, "the wiki"),
        App::stateful_set(LOCKED, LOCKED_VOLUME, "pvc3f6d1c9a8e7b4250", 1, "the shop"),
    ];
    for app in apps {
        s.add(app, Expect::Running).await?;
    }
    let all: Vec<&str> = OURS.into_iter().chain([LOCKED]).collect();
    s.running(&all, Duration::from_secs(180)).await?;
    s.start_replica("reattach-controller-0", None);
    s.start_replica("reattach-controller-1", None);
    s.pass(Duration::from_secs(20)).await;
    Ok(())
}

async fn recycle_all(s: &mut Stage) -> Result<(), WorldError> {
    after(s, "2021-07-11T01:01:00Z").await;
    s.from = s.world.now();
    let first = s.node_of("postgres");
    let mut nodes: Vec<&str> = NODES.iter().map(|(name, _)| *name).collect();
    nodes.sort_by_key(|n| (*n != first, *n));
    for (node, off) in nodes.into_iter().zip([75, 20, 8]) {
        s.recycle(node, DiskAfter::Kept, Duration::from_secs(off))
            .await?;
        if node == first {
            s.world.cloud.lock_volume(
                VolumeNo(LOCKED_VOLUME),
                "locked by the provider after the host's failure",
                true,
            )?;
            s.tell(
                Actor::Provider,
                LOCKED,
                "the volume is locked; the provider gives neither a reason nor an end",
            );
        }
        s.pass(Duration::from_secs(40)).await;
    }
    Ok(())
}

async fn not_ours(s: &mut Stage) -> Result<(), WorldError> {
    s.tell(
        Actor::Person,
        "site",
        "deploys a release that wants Secret site-secrets, which does not exist",
    );
    s.add(
        App::deployment("site", 411_807, "pvc1a7c4e90b35d4f68", "the web site")
            .with_secret("site-secrets"),
        Expect::Untouched,
    )
    .await?;
    s.tell(
        Actor::Person,
        "grafana",
        "moves dashboards to a volume with an fsType that no node supports (ext5)",
    );
    s.add(
        App::deployment("grafana", 411_808, "pvc64f2d8b01c9e4a35", "dashboards")
            .with_fs_type("ext5"),
        Expect::Untouched,
    )
    .await?;
    s.pass(Duration::from_secs(30)).await;
    for app in NOT_OURS {
        s.remember(app);
    }
    Ok(())
}

async fn dry_run(s: &mut Stage) -> Result<(), WorldError> {
    let all: Vec<&str> = OURS.into_iter().chain([LOCKED]).chain(NOT_OURS).collect();
    s.phases(
        &all,
        &[Phase::Planned, Phase::Waiting, Phase::NotOurs],
        Duration::from_secs(180),
    )
    .await?;
    s.pass(Duration::from_secs(30)).await;
    let planned = OURS
        .iter()
        .filter(|a| reading(s, a, Phase::Planned))
        .count();
    s.dry_until = Some(s.world.request_log.len());
    if planned != OURS.len() {
        s.broken.push(format!(
            "{planned} of {} workloads have a plan in DryRun",
            OURS.len()
        ));
    }
    if !reading(s, LOCKED, Phase::Waiting) {
        s.broken
            .push(format!("{LOCKED} does not wait for the provider's lock"));
    }
    for app in NOT_OURS {
        if !reading(s, app, Phase::NotOurs) {
            s.broken.push(format!(
                "{app} was not recognised as a failure that reattach cannot heal"
            ));
        }
    }
    Ok(())
}

async fn for_real(s: &mut Stage) -> Result<(), WorldError> {
    s.heading(
        "The plans look right: a person switches the policy to Auto",
        &[],
    );
    let body = json!({"spec": {"mode": "Auto"}});
    s.world.merge(PERSON, POLICY, &body).await?;
    s.tell(
        Actor::Person,
        "",
        "kubectl patch recoverypolicy default --type merge -p '{\"spec\":{\"mode\":\"Auto\"}}'",
    );
    s.running(&OURS, Duration::from_secs(600)).await?;
    s.phases(&OURS, &[Phase::Recovered], Duration::from_secs(120))
        .await?;
    s.phases(&[LOCKED], &[Phase::Waiting], Duration::from_secs(120))
        .await?;
    Ok(())
}

/// The support ticket for the locked volume.
async fn ticket(s: &Stage) -> Option<String> {
    let recovery = s.recovery_of(LOCKED)?;
    support_ticket(
        &recovery
            .record(describe(&s.world, LOCKED_VOLUME).await)
            .ok()?,
    )
}

async fn unlock(s: &mut Stage, unlocked_at: &str) -> Result<(), WorldError> {
    s.heading("All workloads but the one behind the lock run. Hours pass: reattach keeps reading the volume's state and changes nothing", &[]);
    if let Some(ticket) = ticket(s).await {
        s.show(
            Actor::Reattach,
            LOCKED,
            "prepared a ticket for the provider:",
            &ticket,
        );
    }
    after(s, unlocked_at).await;
    let still = reading(s, LOCKED, Phase::Waiting);
    if !still {
        s.broken
            .push(format!("{LOCKED} did not wait until the lock was lifted"));
    }
    s.world.cloud.unlock_volume(VolumeNo(LOCKED_VOLUME))?;
    s.tell(Actor::Provider, LOCKED, "the lock is lifted");
    s.running(&[LOCKED], Duration::from_secs(300)).await?;
    s.phases(&[LOCKED], &[Phase::Recovered], Duration::from_secs(120))
        .await?;
    s.pass(Duration::from_secs(15)).await;
    Ok(())
}
