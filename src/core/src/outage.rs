//! The brake for outages: several nodes that go down together are a fault of the network, of the control plane or of a
//! rollout, until the cloud says otherwise. Powering one of them off proves nothing about the others, and stops pods that write.

use crate::ids::NodeName;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Nodes that went down within so long of each other count as down together. Longer than kube-controller-manager
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
    /// This process saw it Ready before, so that it fell at `since`. Otherwise it may have been down long before.
    #[serde(default)]
    pub fell: bool,
    /// When the control plane last changed its condition `Ready`, on the control plane's clock: compare with other nodes'
    /// only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Timestamp>,
    /// Its kubelet has stopped posting: `Ready` is `Unknown`. A kubelet that says `False` lives: kube-controller-manager
    /// writes `Unknown` over it once its Lease is not renewed for 50 s (`monitorNodeHealth` in
    /// `pkg/controller/nodelifecycle/node_lifecycle_controller.go`).
    pub silent: bool,
}

impl DownNode {
    /// How long it has been down at `now`.
    pub fn down_for(&self, now: Timestamp) -> SignedDuration {
        now.duration_since(self.since).max(SignedDuration::ZERO)
    }

    /// Whether both went down at about one time. Two moments of one clock are compared: the control plane's where both
    /// have one, else our own.
    fn began_with(&self, other: &Self) -> bool {
        let apart = match (self.changed, other.changed) {
            (Some(own), Some(others)) => own.duration_since(others),
            _ => self.since.duration_since(other.since),
        };
        apart.abs() <= TOGETHER
    }
}

/// The nodes that may be down for the same cause as this node, itself included: those that fell together with it, and those
/// that fell within the last minutes, since a node that was back for a moment may be cut off by the same fault. A kubelet that
/// posts that it is not Ready counts, too: a bad rollout reaches every node. Empty: the node is not down.
pub fn down_together(down: &[DownNode], node: &NodeName, now: Timestamp) -> Vec<NodeName> {
    let Some(own) = down.iter().find(|d| d.name == *node) else {
        return Vec::new();
    };
    let same = |d: &&DownNode| {
        d.name == own.name || d.began_with(own) || (d.fell && d.down_for(now) <= TOGETHER)
    };
    down.iter().filter(same).map(|d| d.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(name: &str, since: i64, changed: Option<i64>) -> DownNode {
        let at = |s: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(s);
        DownNode {
            name: name.into(),
            since: at(since),
            fell: false,
            changed: changed.map(at),
            silent: true,
        }
    }

    fn with(down: &[DownNode], node: &str) -> Vec<String> {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(100_000);
        down_together(down, &node.into(), now)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn nodes_that_go_down_together_are_counted_together() {
        let all = [
            down("a", 0, None),
            down("b", 40, None),
            down("c", 4_000, None),
        ];
        assert_eq!(with(&all, "a"), ["a", "b"]);
        assert_eq!(with(&all, "c"), ["c"]);
        assert!(with(&all, "d").is_empty(), "it is Ready");
    }

    #[test]
    fn a_restart_does_not_merge_separate_node_failures() {
        // Both were first seen at the start of the process.
        let all = [
            down("a", 50_000, Some(100)),
            down("b", 50_000, Some(49_900)),
        ];
        assert_eq!(with(&all, "b"), ["b"]);
    }

    #[test]
    fn a_node_whose_kubelet_posts_false_counts() {
        let speaks = DownNode {
            silent: false,
            ..down("b", 10, None)
        };
        assert_eq!(with(&[down("a", 0, None), speaks.clone()], "a"), ["a", "b"]);
        assert_eq!(with(&[down("a", 0, None), speaks], "b"), ["a", "b"]);
    }

    /// Three nodes are cut off; two of them come through for a moment after a while.
    #[test]
    fn a_node_that_failed_again_minutes_ago_counts() {
        let at = |s: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(s);
        let again = |name| DownNode {
            fell: true,
            ..down(name, 960, Some(960))
        };
        let all = [down("a", 0, Some(0)), again("b"), again("c")];
        let with = |now| down_together(&all, &"a".into(), at(now)).len();
        assert_eq!(with(970), 3);
        assert_eq!(with(960 + 900), 3);
        assert_eq!(with(960 + 901), 1);
        let unseen = [
            all[0].clone(),
            DownNode {
                fell: false,
                ..all[1].clone()
            },
        ];
        assert_eq!(
            down_together(&unseen, &"a".into(), at(970)).len(),
            1,
            "it may be down for long"
        );
    }
}
