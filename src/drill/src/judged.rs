//! The parts of a check: a rule with its violations, and the recoveries as they were stored at each moment.

use crate::request_log::{Entry, Target};
use crate::stage::Stage;
use kube::ResourceExt;
use reattach_api::VolumeRecovery;
use reattach_cloud_simulator::VolumeNo;
use reattach_core::journal::Event;
use reattach_core::proof::ProofKind;
use reattach_sim::cloud::volume_no;
use reattach_sim::names::attachment_name;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// One rule and its violations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The rule of the design.
    pub rule: &'static str,
    /// The promise, as a sentence.
    pub promise: String,
    /// Violations. Empty: the rule held.
    pub broken: Vec<String>,
}

/// Every stored version of every recovery, with the place of its answer in the order of requests.
pub(crate) type Stored = [(u64, VolumeRecovery)];

impl Check {
    pub(crate) fn new(rule: &'static str, promise: impl Into<String>, broken: Vec<String>) -> Self {
        Self {
            rule,
            promise: promise.into(),
            broken,
        }
    }

    /// Whether it held.
    pub fn held(&self) -> bool {
        self.broken.is_empty()
    }
}

/// The effect that a recovery's journal, as it was stored, says is under way: its proof, where it has one.
pub(crate) fn started(recovery: &VolumeRecovery) -> Option<Option<ProofKind>> {
    let journal = &recovery.status.as_ref()?.journal;
    journal
        .iter()
        .rev()
        .find_map(|e| match &e.get().ok()?.event {
            Event::Started { proof, .. } => Some(Some(proof.clone())),
            Event::Outcome { .. } => Some(None),
            _ => None,
        })?
}

/// Whether the recovery's plan names what the request changes.
pub(crate) fn pinned(stage: &Stage, recovery: &VolumeRecovery, effect: &Entry) -> bool {
    let Some(plan) = recovery
        .status
        .as_ref()
        .and_then(|s| s.plan.as_ref()?.get().ok())
    else {
        return false;
    };
    let pins = &plan.pins;
    if effect.target == Target::Cloud {
        let power = ["shutdown", "boot"].map(|verb| format!("/instances/{}/{verb}", pins.holder));
        let restart = effect
            .path
            .ends_with(&format!("/instances/{}", pins.holder))
            && effect.method == "PUT"
            && keys(&effect.body) == ["watchdog_enabled"];
        return effect.path.contains(&format!("/volumes/{}/", pins.volume))
            || power.iter().any(|p| effect.path.ends_with(p))
            || restart;
    }
    let (_, resource, name) = effect.resource();
    let workload = &pins.workload;
    match resource {
        // A touch of another VolumeAttachment of the volume makes external-attacher look again, and changes nothing.
        "volumeattachments" => {
            name == pins.attachment_name()
                || (effect.method == "PATCH"
                    && keys(&effect.body["spec"]).is_empty()
                    && of_volume(stage, name) == volume_no(pins.volume.as_str()))
        }
        "volumerecoveries" => name == recovery.name_any(),
        "nodes" => name == pins.node.as_str() && keys(&effect.body["spec"]) == ["taints"],
        "leases" => {
            let named = effect.body["metadata"]["name"]
                .as_str()
                .filter(|_| name.is_empty())
                .unwrap_or(name);
            named == format!("node-{}", pins.node)
        }
        // The stuck pod is evicted, or deleted; pods that came under the hold, which no plan can name, only lose the gate.
        "pods" if effect.path.ends_with("/eviction") || effect.method == "DELETE" => {
            pins.pods.iter().any(|(pod, _)| pod.name == name)
        }
        "pods" => effect.method == "PATCH" && keys(&effect.body["spec"]) == ["schedulingGates"],
        _ => resource == workload.plural && name == workload.name.name,
    }
}

/// The volume of a VolumeAttachment, by its name, which follows from volume, driver and node.
fn of_volume(stage: &Stage, attachment: &str) -> Option<VolumeNo> {
    let nodes = stage.world.cluster.nodes();
    let volumes = stage.workloads.values().flat_map(|c| &c.app.volumes);
    let ground = stage.world.ground();
    let is =
        |handle: &str, node: &String| attachment_name(handle, ground.driver(), node) == attachment;
    volumes
        .filter(|v| nodes.keys().any(|n| is(&v.handle(ground), n)))
        .map(|v| VolumeNo(v.number))
        .next()
}

/// The version of each recovery that was stored before a request was sent; a newer one replaces an older.
pub(crate) fn latest(stored: &Stored, sent: u64) -> BTreeMap<String, &VolumeRecovery> {
    let before = stored.iter().take_while(|(at, _)| *at < sent);
    before
        .map(|(_, recovery)| (recovery.uid().unwrap_or_default(), recovery))
        .collect()
}

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .map(|o| o.keys().map(String::as_str).collect())
        .unwrap_or_default()
}
