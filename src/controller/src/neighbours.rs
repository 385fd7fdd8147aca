//! What one process remembers of other nodes and workloads between looks.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use reattach_cluster::dry_run::DryRun;
use reattach_cluster::effects::node::{is_ready, silence};
use reattach_core::ids::{NodeName, ObjectName, ResourceVersion};
use reattach_core::outage::DownNode;
use reattach_core::workload::WorkloadRef;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Since when nodes are down, as this process saw it; and what owners of pods say. Clones share one memory.
#[derive(Clone, Default)]
pub struct Neighbours {
    seen: Arc<Mutex<Seen>>,
    pub(crate) owners: Arc<Mutex<BTreeMap<Owned, Said>>>,
    pub(crate) probed: Arc<Mutex<BTreeMap<(WorkloadRef, ObjectName), Probed>>>,
}

/// The Nodes at the last look.
#[derive(Default)]
struct Seen {
    /// Those that were Ready.
    up: BTreeSet<Identity>,
    /// Those that were not: since when, and whether they were Ready at the look before.
    down: BTreeMap<Identity, (Timestamp, bool)>,
}

/// Name and UID of a Node. It is compared, and no request is made with it.
type Identity = (String, Option<String>);

/// When an owner was read, and its opt-out in words.
pub(crate) type Said = (Timestamp, Option<String>);

/// The version of a workload for which the API server would have accepted one more pod, when it was asked, and its answer.
pub(crate) type Probed = (ResourceVersion, Timestamp, DryRun);

/// Namespace, kind and name of an owner, with its UID.
pub(crate) type Owned = (String, String, String, String);

/// Locks a mutex, also after a panic of another holder: each value is whole between two writes.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Neighbours {
    /// Notes which of all Nodes are down at `now`, and answers since when each of them is.
    pub fn note<'a>(
        &self,
        nodes: impl IntoIterator<Item = &'a Node>,
        now: Timestamp,
    ) -> Vec<DownNode> {
        let mut before = lock(&self.seen);
        let mut seen = Seen::default();
        let mut found = Vec::new();
        for node in nodes {
            let key = (node.name_any(), node.uid());
            if is_ready(node) {
                seen.up.insert(key);
                continue;
            }
            let (since, fell) = before
                .down
                .get(&key)
                .copied()
                .unwrap_or_else(|| (now, before.up.contains(&key)));
            let (silent, changed) = silence(node);
            found.push(DownNode {
                name: NodeName::from(node.name_any()),
                since,
                fell,
                changed,
                silent,
            });
            seen.down.insert(key, (since, fell));
        }
        *before = seen;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use serde_json::json;

    fn node(name: &str, ready: &str) -> Node {
        serde_json::from_value(
            json!({"metadata": {"name": name, "uid": name}, "status": {"conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": "2026-03-02T03:00:00Z"}]}}),
        )
        .expect("a Node")
    }

    #[test]
    fn a_node_is_down_since_it_was_first_seen_down() {
        let memory = Neighbours::default();
        let at = |s: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(s);
        // Name, since when, whether it was seen to fall, whether it is silent.
        let since = |nodes: &[Node], now: i64| -> Vec<(String, i64, bool, bool)> {
            let down = memory.note(nodes, at(now));
            down.iter()
                .map(|d| (d.name.to_string(), d.since.as_second(), d.fell, d.silent))
                .collect()
        };
        let (a, b) = ("a".to_owned(), "b".to_owned());
        assert_eq!(
            since(&[node("a", "Unknown"), node("b", "True")], 10),
            [(a.clone(), 10, false, true)],
            "it may have been down for long"
        );
        assert_eq!(
            since(&[node("a", "Unknown"), node("b", "False")], 20),
            [(a.clone(), 10, false, true), (b, 20, true, false)]
        );
        assert_eq!(since(&[node("a", "True")], 30), []);
        assert_eq!(
            since(&[node("a", "Unknown")], 40),
            [(a, 40, true, true)],
            "it was back in between"
        );
    }
}
