//! Everything behind the server's lock.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::hooks::{
    AccessFn, AdmissionFn, AuditEntry, Fault, FaultId, FaultRule, RequestMatch, WatchBreak,
};
use super::request::ApiRequest;
use super::resource::{ResourceType, StoreId, built_in};
use super::store::Store;
use crate::rng::Rng;

/// An open watch, so that tests can break it.
#[derive(Debug)]
pub(super) struct OpenWatch {
    pub request: ApiRequest,
    pub broken: Option<WatchBreak>,
}

/// The server's state.
pub(super) struct State {
    pub types: Vec<ResourceType>,
    pub store: Store,
    pub rng: Rng,
    pub admission: Vec<AdmissionFn>,
    pub access: Option<AccessFn>,
    pub audit: Vec<AuditEntry>,
    pub faults: BTreeMap<FaultId, FaultRule>,
    pub next_fault: u64,
    pub watches: BTreeMap<u64, OpenWatch>,
    pub next_watch: u64,
    /// The last apply of each field manager: store, namespace/name, manager/subresource.
    pub applied: BTreeMap<(StoreId, String, String), Value>,
}

impl State {
    pub fn new(seed: u64, created: &str) -> Self {
        let mut state = Self {
            types: built_in(),
            store: Store::new(),
            rng: Rng::new(seed, "apiserver"),
            admission: Vec::new(),
            access: None,
            audit: Vec::new(),
            faults: BTreeMap::new(),
            next_fault: 0,
            watches: BTreeMap::new(),
            next_watch: 0,
            applied: BTreeMap::new(),
        };
        for ns in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let uid = state.rng.uuid();
            let object = json!({
                "apiVersion": "v1", "kind": "Namespace", "spec": {"finalizers": ["kubernetes"]},
                "metadata": {"name": ns, "uid": uid, "creationTimestamp": created,
                    "labels": {"kubernetes.io/metadata.name": ns}},
                "status": {"phase": "Active"},
            });
            state
                .store
                .put(&(String::new(), "namespaces".into()), "", ns, object);
        }
        state.install_hold(seed, created);
        state
    }

    /// The first served version of a resource.
    pub fn type_of(&self, group: &str, plural: &str) -> Option<ResourceType> {
        self.types.iter().find(|t| t.is(group, plural)).cloned()
    }

    /// Serves more resources; a resource that is served already is replaced.
    pub fn register_types(&mut self, types: Vec<ResourceType>) {
        for rt in types {
            self.types
                .retain(|t| !(t.is(&rt.group, &rt.plural) && t.version == rt.version));
            self.types.push(rt);
        }
    }

    /// Adds a fault rule.
    pub fn add_fault(&mut self, rule: FaultRule) -> FaultId {
        self.next_fault += 1;
        let id = FaultId(self.next_fault);
        self.faults.insert(id, rule);
        id
    }

    /// The faults that hit this request, in the order in which they were added.
    pub fn faults_for(&mut self, req: &ApiRequest) -> Vec<Fault> {
        let mut hit = Vec::new();
        for rule in self.faults.values_mut() {
            if rule.times == Some(0) || !rule.requests.matches(req) {
                continue;
            }
            if rule.probability < 1.0 && !self.rng.chance(rule.probability) {
                continue;
            }
            rule.times = rule.times.map(|n| n.saturating_sub(1));
            hit.push(rule.fault.clone());
        }
        hit
    }

    /// Marks open watches as broken; how many.
    pub fn break_watches(&mut self, requests: &RequestMatch, how: WatchBreak) -> usize {
        let mut n = 0;
        for watch in self
            .watches
            .values_mut()
            .filter(|w| requests.matches(&w.request))
        {
            watch.broken = Some(how);
            n += 1;
        }
        n
    }
}
