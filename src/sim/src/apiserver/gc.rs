//! Consequences of a removal: owner references, namespaces, definitions.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::resource::{ResourceType, StoreId};
use super::state::State;
use super::write::DeleteOptions;
use crate::clock::rfc3339;
use crate::object::{self, items, name, namespace, terminating, text};

impl State {
    /// Removes an object for good and deletes what only it owned (background propagation, at once).
    pub fn remove(
        &mut self,
        rt: &ResourceType,
        ns: &str,
        name: &str,
        now: Timestamp,
    ) -> Option<Arc<Value>> {
        let last = self.store.remove(&rt.store(), ns, name)?;
        if rt.is("apiextensions.k8s.io", "customresourcedefinitions") {
            self.drop_definition(&last, now);
        }
        if let Some(uid) = last["metadata"]["uid"].as_str() {
            self.collect_garbage(uid, now);
        }
        if rt.namespaced {
            self.finish_namespace(ns);
        }
        Some(last)
    }

    fn dependents(&self, uid: &str) -> Vec<(StoreId, String, String)> {
        let owned = |o: &Value| items(o, "/metadata/ownerReferences").any(|r| r["uid"] == uid);
        let all = self.store.iter().filter(|(_, _, o)| owned(o));
        all.map(|(store, (ns, name), _)| (store.clone(), ns.clone(), name.clone()))
            .collect()
    }

    fn collect_garbage(&mut self, uid: &str, now: Timestamp) {
        for (store, ns, name) in self.dependents(uid) {
            let Some(object) = self.store.get(&store, &ns, &name) else {
                continue;
            };
            let living: Vec<Value> = items(&object, "/metadata/ownerReferences")
                .filter(|r| self.store.uid_lives(text(r, "/uid")))
                .cloned()
                .collect();
            if !living.is_empty() {
                let mut next = (*object).clone();
                next["metadata"]["ownerReferences"] = Value::Array(living);
                self.store.put(&store, &ns, &name, next);
            } else if let Some(rt) = self.type_of(&store.0, &store.1) {
                // Not found: another branch of the same collection was faster.
                let _gone = self.delete(&rt, &ns, &name, &DeleteOptions::default(), now);
            }
        }
    }

    /// Takes `uid` out of its dependents' owner references.
    pub fn orphan_dependents(&mut self, uid: &str) {
        for (store, ns, name) in self.dependents(uid) {
            if let Some(object) = self.store.get(&store, &ns, &name) {
                let mut next = (*object).clone();
                if let Some(refs) = next["metadata"]["ownerReferences"].as_array_mut() {
                    refs.retain(|r| r["uid"] != uid);
                }
                self.store.put(&store, &ns, &name, next);
            }
        }
    }

    fn drop_definition(&mut self, crd: &Value, now: Timestamp) {
        let (group, plural) = (text(crd, "/spec/group"), text(crd, "/spec/names/plural"));
        if let Some(rt) = self.type_of(group, plural) {
            for object in self.store.list(&rt.store(), None) {
                let (ns, name) = (namespace(&object), name(&object));
                let _gone = self.delete(&rt, ns, name, &DeleteOptions::default(), now);
            }
        }
        self.types.retain(|t| !t.is(group, plural));
    }

    /// Marks a namespace and deletes its content; it goes when it is empty.
    pub fn delete_namespace(
        &mut self,
        object: &Arc<Value>,
        name: &str,
        now: Timestamp,
    ) -> (Arc<Value>, bool) {
        let store: StoreId = (String::new(), "namespaces".into());
        let mut next = (**object).clone();
        if !terminating(&next) {
            next["metadata"]["deletionTimestamp"] = json!(rfc3339(now));
            next["status"]["phase"] = json!("Terminating");
        }
        let marked = self.store.put(&store, "", name, next);
        for rt in self.types.clone() {
            for object in self.store.list(&rt.store(), Some(name)) {
                if rt.namespaced && !terminating(&object) {
                    let item = object::name(&object);
                    let _gone = self.delete(&rt, name, item, &DeleteOptions::default(), now);
                }
            }
        }
        self.finish_namespace(name);
        let gone = self.store.get(&store, "", name).is_none();
        (marked, gone)
    }

    fn finish_namespace(&mut self, name: &str) {
        let store: StoreId = (String::new(), "namespaces".into());
        let terminating = self
            .store
            .get(&store, "", name)
            .is_some_and(|ns| object::terminating(&ns));
        if terminating && !self.store.iter().any(|(_, (ns, _), _)| ns == name) {
            self.store.remove(&store, "", name);
        }
    }
}
