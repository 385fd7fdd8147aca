//! Objects, resource versions and the log that watches read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::{Value, json};

use super::resource::{ResourceType, StoreId};

/// The kind of change of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Added,
    Modified,
    Deleted,
}

/// One change; its position in the log is its resource version.
#[derive(Debug)]
pub(super) struct LogEntry {
    pub rv: u64,
    pub store: StoreId,
    pub namespace: String,
    pub change: Change,
    pub object: Arc<Value>,
    pub previous: Option<Arc<Value>>,
    /// The object as bytes: many watchers send the same.
    pub encoded: OnceLock<Bytes>,
}

type Objects = BTreeMap<(String, String), Arc<Value>>;

/// The object store.
#[derive(Debug, Default)]
pub(super) struct Store {
    rv: u64,
    objects: BTreeMap<StoreId, Objects>,
    log: VecDeque<Arc<LogEntry>>,
    /// Watches from below this version get 410.
    compacted: u64,
    uids: BTreeSet<String>,
}

/// Log entries that are kept for watches.
const LOG_LIMIT: usize = 20_000;

impl Store {
    pub fn new() -> Self {
        Self {
            rv: 1,
            ..Self::default()
        }
    }

    pub fn rv(&self) -> u64 {
        self.rv
    }

    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Forgets the history: watches that are behind get 410.
    pub fn compact(&mut self) {
        self.log.clear();
        self.compacted = self.rv;
    }

    pub fn get(&self, store: &StoreId, ns: &str, name: &str) -> Option<Arc<Value>> {
        self.objects
            .get(store)?
            .get(&(ns.to_owned(), name.to_owned()))
            .cloned()
    }

    /// Objects of one kind, ordered by namespace and name.
    pub fn list(&self, store: &StoreId, ns: Option<&str>) -> Vec<Arc<Value>> {
        let all = self.objects.get(store).into_iter().flatten();
        all.filter(|((n, _), _)| ns.is_none_or(|want| want == n))
            .map(|(_, o)| o.clone())
            .collect()
    }

    /// All objects with their place.
    pub fn iter(&self) -> impl Iterator<Item = (&StoreId, &(String, String), &Arc<Value>)> {
        self.objects
            .iter()
            .flat_map(|(s, m)| m.iter().map(move |(k, o)| (s, k, o)))
    }

    pub fn uid_lives(&self, uid: &str) -> bool {
        self.uids.contains(uid)
    }

    /// Stores an object under the next resource version.
    pub fn put(&mut self, store: &StoreId, ns: &str, name: &str, mut object: Value) -> Arc<Value> {
        self.rv += 1;
        object["metadata"]["resourceVersion"] = json!(self.rv.to_string());
        if let Some(uid) = object["metadata"]["uid"].as_str() {
            self.uids.insert(uid.to_owned());
        }
        let object = Arc::new(object);
        let objects = self.objects.entry(store.clone()).or_default();
        let previous = objects.insert((ns.to_owned(), name.to_owned()), object.clone());
        let change = if previous.is_some() {
            Change::Modified
        } else {
            Change::Added
        };
        self.record(store, ns, change, object.clone(), previous);
        object
    }

    /// Removes an object; its last state carries the version of the removal.
    pub fn remove(&mut self, store: &StoreId, ns: &str, name: &str) -> Option<Arc<Value>> {
        let previous = self
            .objects
            .get_mut(store)?
            .remove(&(ns.to_owned(), name.to_owned()))?;
        self.rv += 1;
        if let Some(uid) = previous["metadata"]["uid"].as_str() {
            self.uids.remove(uid);
        }
        let mut last = (*previous).clone();
        last["metadata"]["resourceVersion"] = json!(self.rv.to_string());
        let last = Arc::new(last);
        self.record(store, ns, Change::Deleted, last.clone(), Some(previous));
        Some(last)
    }

    fn record(
        &mut self,
        store: &StoreId,
        ns: &str,
        change: Change,
        object: Arc<Value>,
        previous: Option<Arc<Value>>,
    ) {
        self.log.push_back(Arc::new(LogEntry {
            rv: self.rv,
            store: store.clone(),
            namespace: ns.to_owned(),
            change,
            object,
            previous,
            encoded: OnceLock::new(),
        }));
        if self.log.len() > LOG_LIMIT
            && let Some(dropped) = self.log.pop_front()
        {
            self.compacted = dropped.rv;
        }
    }

    /// Changes after `rv`, oldest first.
    pub fn since(&self, rv: u64) -> impl Iterator<Item = &Arc<LogEntry>> {
        let from = self.log.partition_point(|e| e.rv <= rv);
        self.log.range(from..)
    }
}

/// [`outward`] of a stored object, without a copy where it is stored as it is shown: objects are read far more often than
/// they are written.
pub(super) fn shown(rt: &ResourceType, object: &Arc<Value>) -> Arc<Value> {
    let as_stored = !rt.is_new_event()
        && object["apiVersion"] == rt.api_version().as_str()
        && object["kind"] == rt.kind.as_str();
    if as_stored {
        object.clone()
    } else {
        Arc::new(outward(rt, object))
    }
}

/// An object as this version of its resource shows it.
pub(super) fn outward(rt: &ResourceType, object: &Value) -> Value {
    let mut out = object.clone();
    if rt.is_new_event() {
        super::events::to_new(&mut out);
    }
    out["apiVersion"] = json!(rt.api_version());
    out["kind"] = json!(rt.kind);
    out
}

/// Only the metadata, for clients that ask for `PartialObjectMetadata`.
pub(super) fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}
