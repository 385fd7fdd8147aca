//! The safety rules, checked from outside: from the cloud's own history, the objects as they are, and every request.

use crate::judged::{Check, Stored, latest, pinned, started};
use crate::proofs;
use crate::request_log::Entry;
use crate::stage::{Expect, Stage, Workload, state_of};
use crate::world::World;
use kube::ResourceExt;
use reattach_api::{Phase, VolumeRecovery};
use reattach_core::hold::{HOLD_GATE, HOLD_LABEL};
use reattach_core::stamp::STAMP_ANNOTATION;
use reattach_sim::apiserver::AuditEntry;
use reattach_sim::object::{items, name, text};
use serde::Deserialize;

/// Every rule, at the end of a scenario.
pub fn all(stage: &Stage) -> Vec<Check> {
    let world = &stage.world;
    let entries = world.request_log.entries();
    let stored = journals(&entries, &world.recoveries());
    let mut checks = vec![one_writer(world)];
    checks.extend(stage.dry_until.map(|until| dry_run(&entries[..until])));
    checks.extend(proofs::checks(stage, &entries, &stored));
    checks.extend([
        Check::new(
            "S2",
            "no workload is left at zero, and no stamp, hold, gate, finalizer or question of reattach is left",
            leftovers(stage),
        ),
        Check::new(
            "S3",
            format!(
                "every effect was in the journal before it was issued ({} effects)",
                effects(&entries).len()
            ),
            unjournaled(stage, &entries, &stored),
        ),
        Check::new(
            "S7",
            "only workloads, attachments and volumes that a plan names were changed",
            strangers(stage, &entries, &stored),
        ),
        Check::new(
            "S6",
            "agents wrote their own reports and nothing else",
            agents(&world.agents_audit()),
        ),
    ]);
    let expected = |expect: Expect| {
        let all = stage.workloads.values();
        all.filter(move |w| w.expect == expect).peekable()
    };
    let mut running = expected(Expect::Running);
    if running.peek().is_some() {
        checks.push(Check::new(
            "",
            "every workload that reattach had to heal runs, with as many replicas as before",
            running.filter_map(|w| not_running(world, w)).collect(),
        ));
    }
    let mut untouched = expected(Expect::Untouched);
    if untouched.peek().is_some() {
        checks.push(Check::new(
            "S7",
            "failures that are not reattach's to heal were named, and nothing of theirs was changed: same pods, same generation",
            untouched.filter_map(|w| touched(world, w)).collect(),
        ));
    }
    checks.push(Check::new(
        "",
        "the scenario ran as written",
        stage.broken.clone(),
    ));
    checks
}

fn dry_run(entries: &[Entry]) -> Check {
    Check::new(
        "S6",
        format!(
            "DryRun changed nothing ({} writes, all to reattach's own records)",
            entries.len()
        ),
        effects(entries).into_iter().map(Entry::line).collect(),
    )
}

fn one_writer(world: &World) -> Check {
    let mut broken = Vec::new();
    for volume in world.cloud.volumes() {
        let most = world.cloud.max_holders(volume.id);
        if most > 1 {
            broken.push(format!(
                "volume {} ({}) had {most} holders at one moment",
                volume.id, volume.label
            ));
        }
        let writers = world.cloud.max_writers(volume.id);
        if writers > 1 {
            broken.push(format!(
                "volume {} ({}) had {writers} writers at one moment",
                volume.id, volume.label
            ));
        }
    }
    for pulled in world.cloud.pulled() {
        broken.push(format!(
            "volume {} was detached from instance {} while in use at {}",
            pulled.volume, pulled.instance, pulled.at
        ));
    }
    Check::new(
        "S1",
        "no volume ever had two holders or two writers, and none was detached from a guest that used it",
        broken,
    )
}

fn leftovers(stage: &Stage) -> Vec<String> {
    let mut found = proofs::leftovers(stage);
    found.extend(unfinished(&stage.world));
    found.extend(gated(&stage.world));
    found.extend(stage.workloads.values().flat_map(|w| left(&stage.world, w)));
    found.extend(asked(&stage.world));
    found.extend(tainted(&stage.world));
    found
}

/// Recoveries that still run, hold pods, or keep a finalizer although they are over.
fn unfinished(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for recovery in world.recoveries() {
        let (name, phase) = (recovery.name_any(), phase(&recovery));
        if phase.is_final() && !recovery.finalizers().is_empty() {
            found.push(format!(
                "VolumeRecovery {name} is over and keeps finalizers {:?}",
                recovery.finalizers()
            ));
        }
        if matches!(phase, Phase::Running | Phase::Restoring | Phase::Stuck) {
            found.push(format!("VolumeRecovery {name} is still in phase {phase:?}"));
        }
        if recovery.labels().contains_key(HOLD_LABEL) {
            found.push(format!(
                "VolumeRecovery {name} still holds its claim's pods"
            ));
        }
    }
    found
}

fn phase(recovery: &VolumeRecovery) -> Phase {
    let status = recovery.status.as_ref();
    status.map(|s| s.phase).unwrap_or_default()
}

fn gated(world: &World) -> Vec<String> {
    let pods = world.server().list("", "pods", None);
    let gated = pods
        .iter()
        .filter(|p| items(p, "/spec/schedulingGates").any(|g| g["name"] == HOLD_GATE));
    gated
        .map(|p| format!("pod {} still has the gate", name(p)))
        .collect()
}

/// What differs at a workload from what it was before.
fn left(world: &World, workload: &Workload) -> Vec<String> {
    let app = &workload.app;
    let (kind, name) = (&app.kind, &app.name);
    let Some(object) = app.read(world.server()) else {
        return vec![format!("{kind} {name} is gone")];
    };
    let mut found = Vec::new();
    let replicas = object["spec"]["replicas"].as_u64().unwrap_or(1);
    if replicas != app.replicas as u64 {
        found.push(format!(
            "{kind} {name} has {replicas} replicas and had {}",
            app.replicas
        ));
    }
    if !object["metadata"]["annotations"][STAMP_ANNOTATION].is_null() {
        found.push(format!("{kind} {name} still has the stamp"));
    }
    found
}

/// Questions to agents of recoveries that are over.
fn asked(world: &World) -> Vec<String> {
    let recoveries = world.recoveries();
    let open: Vec<_> = recoveries
        .iter()
        .filter(|r| !phase(r).is_final())
        .filter_map(|r| r.metadata.uid.as_deref())
        .collect();
    let mut found = Vec::new();
    for report in world
        .server()
        .list("reattach.dev", "nodevolumereports", None)
    {
        for challenge in items(&report, "/spec/challenges") {
            if !open.iter().any(|uid| challenge["recovery"] == *uid) {
                found.push(format!(
                    "node {} is still asked a question of a recovery that is over",
                    name(&report)
                ));
            }
        }
    }
    found
}

fn tainted(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for node in world.server().list("", "nodes", None) {
        for key in items(&node, "/spec/taints").map(|t| text(t, "/key")) {
            if key.contains("reattach.dev/") {
                found.push(format!("node {} still has taint {key}", name(&node)));
            }
        }
    }
    found
}

fn effects(entries: &[Entry]) -> Vec<&Entry> {
    entries.iter().filter(|e| !e.is_a_record()).collect()
}

/// Whether a recovery's journal, as it was stored, says that this very effect is under way.
fn announces(stage: &Stage, recovery: &VolumeRecovery, effect: &Entry) -> bool {
    started(recovery).is_some() && pinned(stage, recovery, effect)
}

/// Every stored version of a recovery: when its answer came, and the object. A write whose reply was lost counts if its
/// last journal line is in the journal now, and no write of that line got a reply.
fn journals(entries: &[Entry], now: &[VolumeRecovery]) -> Vec<(u64, VolumeRecovery)> {
    let writes = entries
        .iter()
        .filter(|e| e.resource().1 == "volumerecoveries" && e.path.ends_with("/status"));
    let parsed: Vec<(&Entry, VolumeRecovery)> = writes
        .filter_map(|e| Some((e, VolumeRecovery::deserialize(&e.body).ok()?)))
        .collect();
    let last = |r: &VolumeRecovery| {
        Some((
            r.uid()?,
            r.status.as_ref()?.journal.last()?.get().ok()?.clone(),
        ))
    };
    let replied = |line: &(String, reattach_core::journal::Entry)| {
        parsed
            .iter()
            .any(|(e, r)| e.accepted() && last(r).as_ref() == Some(line))
    };
    let there = |line: &(String, reattach_core::journal::Entry)| {
        let own = now
            .iter()
            .find(|r| r.uid().as_ref() == Some(&line.0))
            .and_then(|r| r.status.as_ref());
        own.is_some_and(|s| s.journal.iter().any(|e| e.get() == Ok(&line.1)))
    };
    let stored = |(e, r): &&(&Entry, VolumeRecovery)| {
        e.accepted() || last(r).is_some_and(|line| there(&line) && !replied(&line))
    };
    let mut all: Vec<(u64, VolumeRecovery)> = parsed
        .iter()
        .filter(stored)
        .map(|(e, r)| (e.answered.map_or(e.sent, |(at, _)| at), r.clone()))
        .collect();
    all.sort_by_key(|(at, _)| *at);
    all
}

/// S3: effects that no journal announced when they were sent. The removal of something of ours needs no line.
fn unjournaled(stage: &Stage, entries: &[Entry], stored: &Stored) -> Vec<String> {
    let mut broken = Vec::new();
    for (n, effect) in entries.iter().enumerate().filter(|(_, e)| !e.is_a_record()) {
        let announced = latest(stored, effect.sent)
            .values()
            .any(|r| announces(stage, r, effect));
        if !announced && !proofs::only_removes(effect, &entries[..n], stored) {
            broken.push(format!("not announced: {}", effect.line()));
        }
    }
    broken
}

/// S7: effects on something that no plan names.
fn strangers(stage: &Stage, entries: &[Entry], stored: &Stored) -> Vec<String> {
    let known = |e: &&Entry| !stored.iter().any(|(_, r)| pinned(stage, r, e));
    effects(entries)
        .into_iter()
        .filter(known)
        .map(Entry::line)
        .collect()
}

fn agents(audit: &[AuditEntry]) -> Vec<String> {
    let wrong = |e: &&AuditEntry| e.resource != "nodevolumereports";
    audit
        .iter()
        .filter(wrong)
        .map(|e| format!("{} {} {}", e.verb, e.resource, e.name))
        .collect()
}

fn not_running(world: &World, workload: &Workload) -> Option<String> {
    let pods = world.pods(&workload.app.name);
    (!world.app_ready(&workload.app.name, workload.app.replicas)).then(|| {
        let states: Vec<&str> = pods.iter().map(|p| text(p, "/status/phase")).collect();
        format!(
            "{} {} does not run: pods {states:?}",
            workload.app.kind, workload.app.name
        )
    })
}

fn touched(world: &World, workload: &Workload) -> Option<String> {
    let now = state_of(world, &workload.app);
    match &workload.before {
        Some(before) if *before == now => None,
        Some(_) => Some(format!(
            "{} {} or its pods are not what they were",
            workload.app.kind, workload.app.name
        )),
        None => Some(format!(
            "{} {}: its state before the drill is not known",
            workload.app.kind, workload.app.name
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::App;
    use crate::request_log::Target;
    use crate::stage::{START, Stage};
    use crate::virtual_time::in_virtual_time;
    use reattach_cloud_simulator::InstanceNo;
    use reattach_cloud_simulator::VolumeNo;
    use serde_json::json;
    use std::sync::Arc;
    use std::time::Duration;

    fn effect(sent: u64, path: &str) -> Entry {
        Entry {
            sent,
            answered: Some((sent + 1, 200)),
            at: jiff::Timestamp::UNIX_EPOCH,
            by: "reattach-controller-0".to_owned(),
            target: Target::Kubernetes,
            method: "PATCH".to_owned(),
            path: path.to_owned(),
            query: String::new(),
            body: serde_json::Value::Null,
        }
    }

    #[test]
    fn an_effect_without_a_journal_line_is_found() {
        let found = in_virtual_time(|| async {
            let s = Stage::new(1, START, &[("a", 1)], Arc::new(|_| {}))
                .await
                .expect("a stage");
            let mut taint = effect(1, "/api/v1/nodes/a");
            taint.body = json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service",
                "value": "reattach", "effect": "NoExecute"}]}});
            let mut untaint = effect(3, "/api/v1/nodes/a");
            untaint.body = json!({"spec": {"taints": []}});
            let mut detach = effect(5, "/v4/volumes/7/detach");
            detach.target = Target::Cloud;
            let scale = effect(7, "/apis/apps/v1/namespaces/default/deployments/redis");
            let record = effect(
                9,
                "/apis/reattach.dev/v1alpha1/namespaces/default/volumerecoveries/x/status",
            );
            let entries = [taint, untaint, detach, scale, record];
            let unproven = &proofs::checks(&s, &entries, &[])[0].broken;
            (
                unjournaled(&s, &entries, &[]).len(),
                strangers(&s, &entries, &[]).len(),
                unproven.len(),
            )
        });
        // Removing our own taint needs no line; nothing here is in a plan; the taint and the detach need a proof.
        assert_eq!(found.expect("virtual time"), (3, 4, 2));
    }

    #[test]
    fn a_second_holder_and_a_workload_left_at_zero_are_found() {
        let broken = in_virtual_time(|| async {
            let mut s = Stage::new(1, START, &[("a", 1), ("b", 2)], Arc::new(|_| {}))
                .await
                .expect("a stage");
            let app = App::deployment("redis", 7, "pvc7", "the cache");
            s.add(app.clone(), Expect::Running).await.expect("an app");
            s.running(&["redis"], Duration::from_secs(60))
                .await
                .expect("it runs");
            let before: Vec<&str> = all(&s)
                .iter()
                .filter(|c| !c.held())
                .map(|c| c.rule)
                .collect();
            assert!(before.is_empty(), "{before:?}");
            for instance in [1, 2] {
                s.world
                    .cloud
                    .leak_device(VolumeNo(7), InstanceNo(instance))
                    .expect("leaked");
            }
            s.world
                .merge("x", &app.path(), &json!({"spec": {"replicas": 0}}))
                .await
                .expect("scaled");
            s.pass(Duration::from_secs(5)).await;
            all(&s)
                .into_iter()
                .filter(|c| !c.held())
                .map(|c| c.rule)
                .collect::<Vec<_>>()
        });
        let broken = broken.expect("virtual time");
        assert!(
            broken.contains(&"S1") && broken.contains(&"S2") && broken.contains(&""),
            "{broken:?}"
        );
    }
}
