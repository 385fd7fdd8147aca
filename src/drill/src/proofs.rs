//! Nothing is freed without a proof, and every proof was true: what the journal says against what the cloud's own history
//! and the guests' say of that very moment.

use crate::judged::{Check, Stored, latest, pinned, started};
use crate::request_log::{Entry, Target};
use crate::stage::Stage;
use crate::taint_recorder::is_out_of_service_by_us;
use kube::ResourceExt;
use reattach_api::VolumeRecovery;
use reattach_cloud_simulator::{HolderInterval, InstanceStatus};
use reattach_core::plan::Plan;
use reattach_core::proof::ProofKind;
use reattach_sim::cloud::{instance_no, volume_no};
use std::collections::BTreeSet;

/// The checks of this module.
pub(crate) fn checks(stage: &Stage, entries: &[Entry], stored: &Stored) -> Vec<Check> {
    vec![
        Check::new(
            "S1",
            format!(
                "no volume was freed without a proof, and each proof was true at that moment ({} freed)",
                entries.iter().filter(|e| frees(e)).count()
            ),
            unproven(stage, entries, stored),
        ),
        Check::new(
            "S1",
            "no Node was ever Ready while it had an out-of-service taint of reattach",
            tainted_while_ready(stage),
        ),
        Check::new(
            "S7",
            "every pod and volume of a fenced node was in the plan before it was fenced",
            unlisted(stage, stored),
        ),
    ]
}

/// Whether a request takes a volume from a holder: at the cloud, by its VolumeAttachment, or by the taint.
fn frees(entry: &Entry) -> bool {
    if entry.target == Target::Cloud {
        return entry.path.ends_with("/detach");
    }
    match entry.resource().1 {
        "volumeattachments" => entry.method == "DELETE",
        "nodes" => is_out_of_service_by_us(&entry.body),
        _ => false,
    }
}

fn unproven(stage: &Stage, entries: &[Entry], stored: &Stored) -> Vec<String> {
    let mut broken = Vec::new();
    for (n, entry) in entries.iter().enumerate().filter(|(_, e)| frees(e)) {
        // A list of taints is written as a whole: one that only keeps the taint frees nothing.
        if entry.resource().1 == "nodes" && carried(&entries[..n], entry) {
            continue;
        }
        let all = latest(stored, entry.sent);
        // Another recovery of the node may wait for an order of its own meanwhile, which needs no proof.
        let begun = all
            .values()
            .filter(|r| pinned(stage, r, entry))
            .filter_map(|r| {
                let (plan, proof) = (plan(r)?, started(r)?);
                Some((plan, proof))
            });
        let announced = begun.max_by_key(|(_, proof)| proof.is_some());
        match announced {
            None => broken.push(format!("not in any journal: {}", entry.line())),
            Some((_, None)) => broken.push(format!("without a proof: {}", entry.line())),
            Some((plan, Some(proof))) => {
                let untrue = against(stage, plan, &proof, entry);
                broken.extend(untrue.map(|why| format!("{why}: {}", entry.line())));
            }
        }
    }
    broken
}

/// Whether our last write of this Node before left the taint there.
fn carried(before: &[Entry], entry: &Entry) -> bool {
    let last = before
        .iter()
        .rev()
        .find(|e| e.path == entry.path && e.method == "PATCH" && e.accepted());
    last.is_some_and(|e| is_out_of_service_by_us(&e.body))
}

fn plan(recovery: &VolumeRecovery) -> Option<&Plan> {
    recovery.status.as_ref()?.plan.as_ref()?.get().ok()
}

/// The facts of that moment that contradict a proof.
fn against(stage: &Stage, plan: &Plan, proof: &ProofKind, entry: &Entry) -> Option<String> {
    let cloud = &stage.world.cloud;
    let holder = instance_no(plan.pins.holder.as_str())?;
    let volume = volume_no(plan.pins.volume.as_str())?;
    let at = entry.at;
    let has = |all: &[HolderInterval]| all.iter().any(|i| i.instance == holder && i.covers(at));
    if has(&cloud.writer_intervals(volume)) {
        return Some(format!(
            "instance {holder} had volume {volume} mounted, against the proof {proof:?}"
        ));
    }
    // The taint detaches every volume of the node.
    if entry.resource().1 == "nodes"
        && let Some(other) = cloud
            .volumes()
            .into_iter()
            .find(|v| has(&cloud.writer_intervals(v.id)))
    {
        return Some(format!("instance {holder} had volume {} mounted", other.id));
    }
    let power = cloud.power_at(holder, at);
    let true_ = match proof {
        ProofKind::Off { .. } | ProofKind::KeptOff { .. } => {
            power == Some(InstanceStatus::Offline) && !has(&cloud.holder_intervals(volume))
        }
        ProofKind::Gone { .. } => power.is_none(),
        _ => true,
    };
    (!true_).then(|| format!("instance {holder} was {power:?}, against the proof {proof:?}"))
}

fn tainted_while_ready(stage: &Stage) -> Vec<String> {
    let ready = stage
        .world
        .taint_recorder
        .tainted()
        .into_iter()
        .filter(|t| t.ready);
    ready
        .map(|t| format!("Node {} at {}", t.node, t.at.strftime("%H:%M:%S%.3f")))
        .collect()
}

fn unlisted(stage: &Stage, stored: &Stored) -> Vec<String> {
    let mut broken = Vec::new();
    for fenced in stage
        .world
        .taint_recorder
        .tainted()
        .into_iter()
        .filter(|t| t.new)
    {
        let lists = |plan: &Plan| {
            let Some(wide) = plan.pins.node_wide.as_ref() else {
                return false;
            };
            let named = wide.pods.iter().map(|(_, uid)| uid.as_str());
            let pods: BTreeSet<&str> = named
                .chain(wide.other_pods.iter().map(|uid| uid.as_str()))
                .collect();
            let all = |have: &BTreeSet<String>, known: &dyn Fn(&str) -> bool| {
                have.iter().all(|x| known(x))
            };
            plan.pins.node.as_str() == fenced.node
                && all(&fenced.pods, &|uid| pods.contains(uid))
                && all(&fenced.volumes, &|v| wide.lists_volume(v))
        };
        if !stored.iter().filter_map(|(_, r)| plan(r)).any(lists) {
            broken.push(format!(
                "Node {} was tainted with {} pods and {} volumes, and no plan lists them all",
                fenced.node,
                fenced.pods.len(),
                fenced.volumes.len()
            ));
        }
    }
    broken
}

/// Nodes that still have reattach's out-of-service taint, and node locks that were not released.
pub(crate) fn leftovers(stage: &Stage) -> Vec<String> {
    let server = stage.world.server();
    let mut found = Vec::new();
    for node in server
        .list("", "nodes", None)
        .iter()
        .filter(|n| is_out_of_service_by_us(n))
    {
        found.push(format!(
            "node {} still has the out-of-service taint of reattach",
            node["metadata"]["name"]
        ));
    }
    for lease in server.list(
        "coordination.k8s.io",
        "leases",
        Some(crate::replica::NAMESPACE),
    ) {
        let name = lease["metadata"]["name"].as_str().unwrap_or_default();
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        if name.starts_with("node-") && !holder.is_empty() {
            found.push(format!("the lock {name} is still held by {holder}"));
        }
    }
    found
}

/// Whether a request renews the lock of a node that its holder has already.
fn keeps_a_lock(entry: &Entry, name: &str, before: &[Entry]) -> bool {
    let of_it = |e: &&Entry| {
        e.accepted()
            && e.resource().1 == "leases"
            && (e.path == entry.path || e.body["metadata"]["name"] == name)
    };
    let holder = |e: &Entry| e.body["spec"]["holderIdentity"].clone();
    let last = before
        .iter()
        .rev()
        .find(of_it)
        .filter(|e| e.method != "DELETE");
    entry.method == "PUT"
        && last.is_some_and(|e| holder(e).is_string() && holder(e) == holder(entry))
}

/// Whether a request only takes away what is ours: the janitor's, and the end's, without a line in the journal.
pub(crate) fn takes_away(entry: &Entry, before: &[Entry], stored: &Stored) -> bool {
    if entry.target == Target::Cloud {
        // The automatic restart that an earlier request of ours switched off.
        let ours = |e: &Entry| e.path == entry.path && e.body["watchdog_enabled"] == false;
        return entry.method == "PUT"
            && entry.body["watchdog_enabled"] == true
            && before.iter().any(ours);
    }
    match entry.resource() {
        // The lock of a node.
        ("coordination.k8s.io", "leases", name) if name.starts_with("node-") => {
            entry.method == "DELETE" || keeps_a_lock(entry, name, before)
        }
        ("coordination.k8s.io", "leases", _) => false,
        ("", "nodes", _) => {
            let ours = |body: &serde_json::Value| -> BTreeSet<String> {
                let taints = body["spec"]["taints"].as_array().into_iter().flatten();
                let key = |t: &serde_json::Value| t["key"].as_str().unwrap_or_default().to_owned();
                taints
                    .filter(|t| {
                        t["value"] == reattach_core::names::TAINT_VALUE
                            || key(t).contains("reattach.dev/")
                    })
                    .map(key)
                    .collect()
            };
            let last = before
                .iter()
                .rev()
                .find(|e| e.path == entry.path && e.method == "PATCH" && e.accepted());
            let had = last.map(|e| ours(&e.body)).unwrap_or_default();
            let has = ours(&entry.body);
            has.is_subset(&had) && has.len() < had.len()
        }
        // The label of a hold whose recovery is over.
        ("reattach.dev", "volumerecoveries", name) => {
            let all = latest(stored, entry.sent);
            let own = all
                .values()
                .find(|r| r.name_any() == name)
                .and_then(|r| r.status.as_ref());
            entry.body["metadata"]["labels"][reattach_core::hold::HOLD_LABEL].is_null()
                && own.is_some_and(|s| s.phase.is_final())
        }
        _ => false,
    }
}
