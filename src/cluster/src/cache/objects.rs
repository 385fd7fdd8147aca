//! The objects of one kind: in the order of namespace and name, found by what they are about, and with the number of the change
//! that each came with.

use super::kept::Key;
use crate::cache::Cached;
use kube::runtime::watcher::Event as Change;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::watch;

/// The objects of one kind, shared by its watch and its readers.
///
/// # Expected flow
/// The watch applies each of its events ([`Objects::apply`]); everybody else reads.
///
/// # Guarantees
/// A list that is read anew replaces the objects one by one, and what the new list lacks goes at its end: two copies of a kind
/// are never held at once. A change of nothing that is kept ([`super::Kept`]) gets no new number.
///
/// # Caveats
/// While a list is read anew, old and new objects stand side by side; the cache says since when the watch is broken.
pub(super) struct Objects<K: Cached> {
    held: Arc<RwLock<Held<K>>>,
    listed: watch::Sender<bool>,
}

impl<K: Cached> Clone for Objects<K> {
    fn clone(&self) -> Self {
        Self {
            held: self.held.clone(),
            listed: self.listed.clone(),
        }
    }
}

struct Held<K> {
    by_namespace: BTreeMap<String, BTreeMap<String, Entry<K>>>,
    by_key: HashMap<Key, Vec<Arc<K>>>,
    /// Number of the list that was begun last.
    list: u64,
    /// Number of the last change.
    change: u64,
}

struct Entry<K> {
    object: Arc<K>,
    /// Number of the list, or of the watch after it, that showed the object last.
    list: u64,
    /// Number of the last change of what is kept of the object.
    change: u64,
}

impl<K: Cached> Default for Objects<K> {
    fn default() -> Self {
        let held = Held {
            by_namespace: BTreeMap::new(),
            by_key: HashMap::new(),
            list: 0,
            change: 0,
        };
        Self {
            held: Arc::new(RwLock::new(held)),
            listed: watch::Sender::new(false),
        }
    }
}

impl<K: Cached> Objects<K> {
    /// Applies an event of the watch. Returns whether it changed anything that is kept.
    pub(super) fn apply(&self, event: Change<K>) -> bool {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Change::Init => {
                held.list += 1;
                false
            }
            Change::InitApply(object) | Change::Apply(object) => held.put(object.kept()),
            Change::Delete(object) => {
                let (namespace, name) = place(&object);
                held.remove(namespace, name)
            }
            Change::InitDone => {
                let changed = held.end_list();
                self.listed.send_replace(true);
                changed
            }
        }
    }

    /// Waits until the kind was listed once. Returns at once when its watch has ended, which ends the process, too.
    pub(super) async fn listed(&self) {
        let _ = self.listed.subscribe().wait_for(|listed| *listed).await;
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let held = self.read();
        let entry = held.by_namespace.get(namespace)?.get(name)?;
        Some(entry.object.clone())
    }

    pub(super) fn change(&self, namespace: &str, name: &str) -> Option<u64> {
        let held = self.read();
        Some(held.by_namespace.get(namespace)?.get(name)?.change)
    }

    pub(super) fn by(&self, key: &Key) -> Vec<Arc<K>> {
        let mut found = self.read().by_key.get(key).cloned().unwrap_or_default();
        found.sort_by(|a, b| place(&**a).cmp(&place(&**b)));
        found
    }

    pub(super) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let held = self.read();
        let of = held.by_namespace.get(namespace).into_iter().flatten();
        of.map(|(_, entry)| entry.object.clone()).collect()
    }

    pub(super) fn filter(&self, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let held = self.read();
        let all = held.by_namespace.values().flat_map(BTreeMap::values);
        all.filter(|entry| keep(&entry.object))
            .map(|entry| entry.object.clone())
            .collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Held<K>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Cached> Held<K> {
    fn put(&mut self, mut object: K) -> bool {
        let list = self.list;
        let (namespace, name) = place(&object);
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let of = self.by_namespace.get_mut(&namespace);
        if let Some(entry) = of.and_then(|of| of.get_mut(&name)) {
            entry.list = list;
            if is_same(&*entry.object, &mut object) {
                // Only the version is news: a write on a condition must name the newest.
                let newest = Arc::new(object);
                let old = std::mem::replace(&mut entry.object, newest.clone());
                for key in old.keys() {
                    let found = self.by_key.get_mut(&key).into_iter().flatten();
                    if let Some(slot) = found.into_iter().find(|slot| Arc::ptr_eq(slot, &old)) {
                        *slot = newest.clone();
                    }
                }
                return false;
            }
        }
        self.change += 1;
        self.unlink(&namespace, &name);
        let object = Arc::new(object);
        for key in object.keys() {
            self.by_key.entry(key).or_default().push(object.clone());
        }
        let entry = Entry {
            object,
            list,
            change: self.change,
        };
        self.by_namespace
            .entry(namespace)
            .or_default()
            .insert(name, entry);
        true
    }

    fn remove(&mut self, namespace: &str, name: &str) -> bool {
        self.unlink(namespace, name);
        let Some(of) = self.by_namespace.get_mut(namespace) else {
            return false;
        };
        let gone = of.remove(name).is_some();
        if of.is_empty() {
            self.by_namespace.remove(namespace);
        }
        self.change += u64::from(gone);
        gone
    }

    /// Takes an object out of the index.
    fn unlink(&mut self, namespace: &str, name: &str) {
        let of = self.by_namespace.get(namespace);
        let Some(entry) = of.and_then(|of| of.get(name)) else {
            return;
        };
        let object = entry.object.clone();
        for key in object.keys() {
            if let Some(found) = self.by_key.get_mut(&key) {
                found.retain(|other| !Arc::ptr_eq(other, &object));
                if found.is_empty() {
                    self.by_key.remove(&key);
                }
            }
        }
    }

    /// Removes what the list that has ended did not show.
    fn end_list(&mut self) -> bool {
        let list = self.list;
        let gone: Vec<(String, String)> = self
            .by_namespace
            .iter()
            .flat_map(|(namespace, of)| {
                of.iter().map(move |(name, entry)| (namespace, name, entry))
            })
            .filter(|(_, _, entry)| entry.list != list)
            .map(|(namespace, name, _)| (namespace.clone(), name.clone()))
            .collect();
        for (namespace, name) in &gone {
            self.remove(namespace, name);
        }
        true
    }
}

/// Whether both are the same but for the version.
fn is_same<K: Cached>(old: &K, new: &mut K) -> bool {
    let version = new.meta().resource_version.clone();
    new.meta_mut()
        .resource_version
        .clone_from(&old.meta().resource_version);
    let same = old == new;
    new.meta_mut().resource_version = version;
    same
}

/// Namespace (empty for a kind of the whole cluster) and name. The watch takes no object without a name.
fn place<K: Cached>(object: &K) -> (&str, &str) {
    let meta = object.meta();
    (
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::json;

    fn pod(name: &str, version: u32, node: &str) -> Pod {
        let pod = json!({"metadata": {"namespace": "shop", "name": name, "uid": name,
            "resourceVersion": version.to_string()}, "spec": {"nodeName": node, "containers": []}});
        serde_json::from_value(pod).unwrap()
    }

    fn names(found: &[Arc<Pod>]) -> Vec<String> {
        found.iter().map(|p| place(&**p).1.to_owned()).collect()
    }

    fn on(node: &str) -> Key {
        Key::Node(node.to_owned())
    }

    #[test]
    fn what_a_new_list_lacks_goes_at_its_end() {
        let all = Objects::default();
        assert!(all.apply(Change::Apply(pod("a", 1, "n1"))));
        all.apply(Change::Apply(pod("b", 1, "n1")));
        all.apply(Change::Init);
        all.apply(Change::InitApply(pod("b", 1, "n1")));
        assert_eq!(names(&all.by(&on("n1"))), ["a", "b"], "not over yet");
        all.apply(Change::InitDone);
        assert_eq!(names(&all.by(&on("n1"))), ["b"]);
        assert_eq!(names(&all.in_namespace("shop")), ["b"]);
        assert_eq!(names(&all.filter(|_| true)), ["b"]);
        assert!(all.apply(Change::Delete(pod("b", 2, "n1"))));
        assert!(all.by(&on("n1")).is_empty() && all.in_namespace("shop").is_empty());
        assert!(!all.apply(Change::Delete(pod("b", 2, "n1"))));
        assert!(all.read().by_key.is_empty() && all.read().by_namespace.is_empty());
    }

    #[test]
    fn the_index_follows_each_change() {
        let all = Objects::default();
        all.apply(Change::Apply(pod("a", 1, "")));
        assert!(all.by(&on("")).is_empty(), "it is on no node");
        all.apply(Change::Apply(pod("a", 2, "n1")));
        all.apply(Change::Apply(pod("a", 3, "n2")));
        assert!(all.by(&on("n1")).is_empty());
        assert_eq!(names(&all.by(&on("n2"))), ["a"]);
    }

    #[test]
    fn a_heartbeat_is_no_change_and_brings_its_version() {
        let node = |version: u32, beat: &str, ready: &str| -> Node {
            let node = json!({"metadata": {"name": "n1", "uid": "u", "resourceVersion": version.to_string()},
                "status": {"conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": beat,
                    "lastTransitionTime": "2026-03-02T03:00:00Z"}]}});
            serde_json::from_value(node).unwrap()
        };
        let all = Objects::default();
        assert!(all.apply(Change::Apply(node(1, "2026-03-02T03:00:00Z", "True"))));
        let change = all.change("", "n1");
        assert!(!all.apply(Change::Apply(node(2, "2026-03-02T03:05:00Z", "True"))));
        assert_eq!(all.change("", "n1"), change);
        let version = |n: Arc<Node>| n.metadata.resource_version.clone();
        assert_eq!(all.get("", "n1").and_then(version).as_deref(), Some("2"));
        assert!(all.apply(Change::Apply(node(3, "2026-03-02T03:10:00Z", "Unknown"))));
        assert_ne!(all.change("", "n1"), change);
    }
}
