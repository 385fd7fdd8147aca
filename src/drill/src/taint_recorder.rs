//! Records every change of every Node: polling ten times a second would miss some of them.

use jiff::Timestamp;
use reattach_core::names::{OUT_OF_SERVICE_TAINT, TAINT_VALUE};
use reattach_sim::ApiServer;
use reattach_sim::apiserver::AdmissionRequest;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// A Node as it was stored while it carried an out-of-service taint of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tainted {
    /// When it was stored.
    pub at: Timestamp,
    /// The Node.
    pub node: String,
    /// Whether it was Ready.
    pub ready: bool,
    /// Whether the taint came with this change.
    pub new: bool,
    /// UIDs of the pods that were bound to it.
    pub pods: BTreeSet<String>,
    /// The volumes in the Node's `volumesAttached`.
    pub volumes: BTreeSet<String>,
}

/// The recorded changes. Clones share one list.
#[derive(Clone, Default)]
pub struct TaintRecorder(Arc<Mutex<Vec<Tainted>>>);

impl TaintRecorder {
    /// Watches the Nodes of this API server.
    pub(crate) fn of(server: &ApiServer) -> Self {
        let taint_recorder = Self::default();
        let (seen, clock) = (taint_recorder.0.clone(), server.clock());
        server.add_admission(Arc::new(move |request| {
            if let Some(node) = tainted(request, clock.now()) {
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(node);
            }
            Ok(Default::default())
        }));
        taint_recorder
    }

    /// Every change so far of a Node that carried an out-of-service taint of ours.
    pub fn tainted(&self) -> Vec<Tainted> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Whether a Node carries an out-of-service taint of ours.
pub fn is_out_of_service_by_us(node: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array();
    taints
        .into_iter()
        .flatten()
        .any(|t| t["key"] == OUT_OF_SERVICE_TAINT && t["value"] == TAINT_VALUE)
}

fn tainted(request: &AdmissionRequest<'_>, at: Timestamp) -> Option<Tainted> {
    if request.resource != "nodes" || request.dry_run {
        return None;
    }
    let node = request.object.filter(|n| is_out_of_service_by_us(n))?;
    let name = node["metadata"]["name"].as_str().unwrap_or_default();
    let bound = request.list("", "pods", None);
    let uid = |p: &Arc<Value>| p["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let volumes = node["status"]["volumesAttached"]
        .as_array()
        .into_iter()
        .flatten();
    Some(Tainted {
        at,
        node: name.to_owned(),
        ready: node["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True"),
        new: !request.old.is_some_and(is_out_of_service_by_us),
        pods: bound
            .iter()
            .filter(|p| p["spec"]["nodeName"] == name)
            .map(uid)
            .collect(),
        volumes: volumes
            .filter_map(|v| v["name"].as_str().map(str::to_owned))
            .collect(),
    })
}
