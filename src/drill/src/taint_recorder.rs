//! Records every change of every Node: polling ten times a second would miss some of them.

use jiff::Timestamp;
use reattach_core::names::{OUT_OF_SERVICE_TAINT, TAINT_VALUE};
use reattach_sim::ApiServer;
use reattach_sim::apiserver::AdmissionRequest;
use reattach_sim::kapi::lock;
use reattach_sim::object::{is_ready, items, name, text, uid};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

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
                lock(&seen).push(node);
            }
            Ok(Default::default())
        }));
        taint_recorder
    }

    /// Every change so far of a Node that carried an out-of-service taint of ours.
    pub fn tainted(&self) -> Vec<Tainted> {
        lock(&self.0).clone()
    }
}

/// Whether a Node carries an out-of-service taint of ours.
pub fn is_out_of_service_by_us(node: &Value) -> bool {
    items(node, "/spec/taints")
        .any(|t| t["key"] == OUT_OF_SERVICE_TAINT && t["value"] == TAINT_VALUE)
}

fn tainted(request: &AdmissionRequest<'_>, at: Timestamp) -> Option<Tainted> {
    if request.resource != "nodes" || request.dry_run {
        return None;
    }
    let node = request.object.filter(|n| is_out_of_service_by_us(n))?;
    let name = name(node);
    let pods = request.list("", "pods", None);
    let bound = pods.iter().filter(|p| p["spec"]["nodeName"] == name);
    let volumes = items(node, "/status/volumesAttached");
    Some(Tainted {
        at,
        node: name.to_owned(),
        ready: is_ready(node),
        new: !request.old.is_some_and(is_out_of_service_by_us),
        pods: bound.map(|p| uid(p).to_owned()).collect(),
        volumes: volumes.map(|v| text(v, "/name").to_owned()).collect(),
    })
}
