//! An API server in memory: a `tower` service that `kube::Client` can be built on.
//!
//! It keeps JSON objects and knows the rules that clients rely on: resource versions and compare-and-swap, UID
//! preconditions, watches with bookmarks and 410, the patch kinds, graceful deletion of pods, finalizers, owner
//! references, the `status`, `scale`, `eviction` and `binding` subresources, dry runs and server-side admission.
//! Of a custom resource's schema only the defaults are used: fields are not validated or pruned, and CEL rules are not
//! evaluated. Built-in kinds are checked only where a controller's safety depends on it. Of admission policies it knows
//! reattach's own hold, which is installed from the start; everything else is a function that a test adds.
//!
//! # Caveats
//! Lists are not paged (`limit` and `continue` are accepted and ignored). Garbage collection is immediate. Server-side
//! apply merges and removes what the same manager applied before, but does not detect conflicts between managers.

mod defaults;
mod discovery;
mod events;
mod gc;
mod hold;
mod hooks;
mod managers;
mod patch;
mod request;
mod resource;
mod rules;
mod selector;
mod serve;
mod state;
mod status;
mod store;
mod subresource;
mod watch;
mod write;

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::sync::Notify;

pub use hooks::{
    AccessFn, AdmissionFn, AdmissionRequest, AuditEntry, Fault, FaultId, FaultRule, RequestMatch,
    WatchBreak,
};
pub use request::Verb;
pub use serve::{ApiService, ReplyBody};
pub use status::ApiStatus;

use crate::clock::{Clock, rfc3339};
use crate::kapi::lock;
use crate::object::text;
use defaults::default;
use state::State;

/// The server. Clones share one state.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Woken after every change; `Notify` wakes in the order of waiting, which keeps runs repeatable.
    changed: Notify,
    clock: Clock,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer")
            .field("resource_version", &self.resource_version())
            .finish_non_exhaustive()
    }
}

impl ApiServer {
    /// An empty cluster of Kubernetes 1.36 with the namespaces that every cluster has, and with the policy
    /// `reattach-hold` and its binding. Delete either by a request to have a cluster where it is not installed.
    ///
    /// `seed` decides UIDs, generated names and the draws of faults with a probability.
    #[must_use]
    pub fn new(clock: Clock, seed: u64) -> Self {
        let state = Mutex::new(State::new(seed, &rfc3339(clock.now())));
        Self {
            inner: Arc::new(Inner {
                state,
                changed: Notify::new(),
                clock,
            }),
        }
    }

    /// Makes it an API server of Kubernetes 1.35: by default that one serves no MutatingAdmissionPolicy, so nothing holds
    /// new pods away.
    pub fn without_mutating_policies(&self) {
        lock(&self.inner.state).drop_mutating_policies();
        self.inner.changed.notify_waiters();
    }

    /// The clock that the server stamps objects with.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.inner.clock
    }

    /// The server as a `tower` service; requests are recorded as those of `user`.
    #[must_use]
    pub fn service_as(&self, user: &str) -> ApiService {
        ApiService::new(self.clone(), user)
    }

    /// A client with the identity `system:admin` and the namespace `default`. It has no retry layer.
    ///
    /// # Panics
    /// Outside a tokio runtime (the client's buffer is a task).
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client_as("system:admin")
    }

    /// A client whose requests are recorded as those of `user`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn client_as(&self, user: &str) -> kube::Client {
        kube::Client::new(self.service_as(user), "default")
    }

    /// The latest resource version.
    #[must_use]
    pub fn resource_version(&self) -> u64 {
        lock(&self.inner.state).store.rv()
    }

    /// Serves a custom resource as if its CustomResourceDefinition had been created, and stores the definition.
    ///
    /// `crd` is the definition as JSON. Returns `false` if it names no kind.
    pub fn register_crd(&self, crd: &Value) -> bool {
        let types = resource::from_crd(crd);
        if types.is_empty() {
            return false;
        }
        self.insert(crd);
        lock(&self.inner.state).register_types(types);
        true
    }

    /// Stores an object as it is, without admission, defaults or status rules; fills in UID and creation time.
    ///
    /// For setting a stage. The kind must be served.
    ///
    /// # Panics
    /// If the kind is not served: a stage that is set wrongly.
    pub fn insert(&self, object: &Value) -> Arc<Value> {
        let mut state = lock(&self.inner.state);
        let (api_version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
        let Some(rt) = state
            .types
            .iter()
            .find(|t| t.kind == kind && t.api_version() == api_version)
            .cloned()
        else {
            panic!("{api_version} {kind} is not served");
        };
        let mut object = object.clone();
        if rt.is_new_event() {
            events::to_core(&mut object);
        }
        let uid = state.rng.uuid();
        let created = rfc3339(self.inner.clock.now());
        let meta = &mut object["metadata"];
        default(meta, "uid", json!(uid));
        default(meta, "creationTimestamp", json!(created));
        default(meta, "generation", json!(1));
        if rt.namespaced {
            default(meta, "namespace", json!("default"));
        }
        let name = text(meta, "/name").to_owned();
        let ns = match rt.namespaced {
            true => text(meta, "/namespace").to_owned(),
            false => String::new(),
        };
        let stored = state.store.put(&rt.store(), &ns, &name, object);
        drop(state);
        self.inner.changed.notify_waiters();
        stored
    }

    /// Reads an object without a request (nothing is recorded).
    #[must_use]
    pub fn read(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Value>> {
        lock(&self.inner.state)
            .store
            .get(&(group.to_owned(), plural.to_owned()), namespace, name)
    }

    /// Lists objects without a request, ordered by namespace and name; `None`: all namespaces.
    #[must_use]
    pub fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        lock(&self.inner.state)
            .store
            .list(&(group.to_owned(), plural.to_owned()), namespace)
    }

    /// Adds an admission function; they run in the order in which they were added.
    pub fn add_admission(&self, function: AdmissionFn) {
        lock(&self.inner.state).admission.push(function);
    }

    /// Decides how access reviews are answered; without it everything is allowed.
    pub fn set_access(&self, function: Option<AccessFn>) {
        lock(&self.inner.state).access = function;
    }

    /// Injects a fault.
    pub fn add_fault(&self, rule: FaultRule) -> FaultId {
        lock(&self.inner.state).add_fault(rule)
    }

    /// Removes a fault.
    pub fn remove_fault(&self, id: FaultId) {
        lock(&self.inner.state).faults.remove(&id);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        lock(&self.inner.state).faults.clear();
    }

    /// Breaks open watches; how many.
    pub fn break_watches(&self, requests: &RequestMatch, how: WatchBreak) -> usize {
        let n = lock(&self.inner.state).break_watches(requests, how);
        self.inner.changed.notify_waiters();
        n
    }

    /// Forgets the change history: watches from an older version get 410, as after etcd's compaction.
    pub fn compact(&self) {
        lock(&self.inner.state).store.compact();
    }

    /// All requests so far.
    #[must_use]
    pub fn audit(&self) -> Vec<AuditEntry> {
        lock(&self.inner.state).audit.clone()
    }

    /// Takes the requests so far out of the log.
    #[must_use]
    pub fn take_audit(&self) -> Vec<AuditEntry> {
        std::mem::take(&mut lock(&self.inner.state).audit)
    }
}
