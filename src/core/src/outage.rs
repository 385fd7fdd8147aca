//! The brake for outages: several nodes that fall silent together are a fault of the network or of the control plane,
//! until the cloud says otherwise. Powering one of them off proves nothing about the others, and stops pods that write.

use crate::ids::NodeName;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Nodes whose silence began within so long of each other count as silent together. Longer than kube-controller-manager
/// takes to notice every node of a partition (40 s), and than the fence of a first node takes.
pub const TOGETHER: SignedDuration = SignedDuration::from_mins(15);

/// A Node that is not Ready now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DownNode {
    /// Its name.
    pub name: NodeName,
    /// When this process first saw it not Ready, on this process's own clock.
    pub since: Timestamp,
    /// When the control plane last changed its condition `Ready`, on the control plane's clock: compare with other nodes'
    /// only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Timestamp>,
    /// Its kubelet has stopped posting: `Ready` is `Unknown`. A kubelet that says `False` can be reached.
    pub silent: bool,
}

impl DownNode {
    /// How long it has been down at `now`.
    pub fn down_for(&self, now: Timestamp) -> SignedDuration {
        now.duration_since(self.since).max(SignedDuration::ZERO)
    }

    /// Whether the silence of both may have one cause. Two moments of one clock are compared: the control plane's where both
    /// have one, else our own.
    fn began_with(&self, other: &Self) -> bool {
        let apart = match (self.changed, other.changed) {
            (Some(own), Some(others)) => own.duration_since(others),
            _ => self.since.duration_since(other.since),
        };
        apart.abs() <= TOGETHER
    }
}

/// The nodes whose silence may have the same cause as this node's, itself included. Empty: it is not down.
pub fn silent_together(down: &[DownNode], node: &NodeName) -> Vec<NodeName> {
    let Some(own) = down.iter().find(|d| d.name == *node) else { return Vec::new() };
    let same = |d: &&DownNode| d.name == own.name || (d.silent && d.began_with(own));
    down.iter().filter(same).map(|d| d.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(name: &str, since: i64, changed: Option<i64>) -> DownNode {
        let at = |s: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(s);
        DownNode { name: name.into(), since: at(since), changed: changed.map(at), silent: true }
    }

    fn with(down: &[DownNode], node: &str) -> Vec<String> {
        silent_together(down, &node.into()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nodes_that_fall_silent_together_are_counted_together() {
        let all = [down("a", 0, None), down("b", 40, None), down("c", 4_000, None)];
        assert_eq!(with(&all, "a"), ["a", "b"]);
        assert_eq!(with(&all, "c"), ["c"]);
        assert!(with(&all, "d").is_empty(), "it is Ready");
    }

    #[test]
    fn a_restart_of_reattach_joins_no_nodes_that_fell_silent_apart() {
        // Both were first seen at the start of the process.
        let all = [down("a", 50_000, Some(100)), down("b", 50_000, Some(49_900))];
        assert_eq!(with(&all, "b"), ["b"]);
    }

    #[test]
    fn a_node_whose_kubelet_posts_false_is_not_cut_off() {
        let speaks = DownNode { silent: false, ..down("b", 10, None) };
        assert_eq!(with(&[down("a", 0, None), speaks.clone()], "a"), ["a"]);
        assert_eq!(with(&[down("a", 0, None), speaks], "b"), ["a", "b"]);
    }
}
