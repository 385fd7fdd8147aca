//! The cases that the walks begin with, one for each class.

use super::{change, cloud, shut_down, sighting};
use jiff::SignedDuration;
use reattach_core::cloud::{CloudScope, InstanceState, PowerFacts};
use reattach_core::fact::{Fact, Known, Source};
use reattach_core::ids::{InstanceId, NodeName, ObjectName};
use reattach_core::testkit::{Case, INSTANCE, NODE, OTHER_INSTANCE, OTHER_NODE, attachment};

/// A cluster that can hold pods away, with a second node, whose cloud says who answers.
fn base() -> Case {
    let mut case = Case::statefulset()
        .holdable()
        .with_node(OTHER_NODE, OTHER_INSTANCE);
    case.evidence.cloud_scope = Some(CloudScope("account".into()));
    case
}

/// Class B on a cluster that has no policy to hold pods away with.
pub fn phantom_without_policy() -> Case {
    without_policy(
        Case::statefulset()
            .holdable()
            .with_node(OTHER_NODE, OTHER_INSTANCE),
    )
}

/// The case on a cluster that is known to have no policy.
pub fn without_policy(mut case: Case) -> Case {
    let fact = case.evidence.hold_policy.take().unwrap();
    case.evidence.hold_policy = Some(Fact::absent(fact.source, fact.at));
    case
}

/// Class A: the node is dead, its pod terminates, the machine runs as far as the cloud knows.
pub fn dead_node() -> Case {
    let mut case = base()
        .pod(|p| p.deleting_since = Some(p.created))
        .node(|n| n.ready = false);
    let on_it = vec![(ObjectName::new("default", "redis-0"), "pod-1".into())];
    let source = Source::Kubernetes("Pods on the node".into());
    case.evidence
        .node_pods
        .insert(NODE.into(), Fact::present(on_it, source.clone(), case.now));
    case.evidence
        .node_losses
        .insert(NODE.into(), Fact::present(Vec::new(), source, case.now));
    case = case.alone_down(NODE);
    let none = PowerFacts {
        jobs: Vec::new(),
        off_stays_off: false,
    };
    case.evidence
        .power
        .insert(INSTANCE.into(), Fact::present(none, cloud(), case.now));
    case
}

/// Class A once somebody has shut the machine down, seen for the first time some seconds ago.
pub fn dead_node_off() -> Case {
    let mut case = dead_node();
    let at = case.now;
    shut_down(&mut case.evidence, at - SignedDuration::from_secs(60));
    case.evidence.sightings.push(sighting(
        Some(InstanceState::Off),
        at - SignedDuration::from_secs(20),
    ));
    case
}

/// Class C: the cloud names nobody.
pub fn lost() -> Case {
    base().cloud(|c| c.holders.clear())
}

/// Class D: the detach from a Ready node keeps failing; the pod waits elsewhere.
pub fn detach_error() -> Case {
    elsewhere(base().node(|n| n.volumes_in_use.clear())).attachment(|a| {
        a.deleting_since = Some(a.created);
        a.detach_error = Some("rpc error: code = Unknown desc = the cloud says no".into());
    })
}

/// Class D: the Node of the VolumeAttachment is gone, and its machine as well.
pub fn node_missing() -> Case {
    let mut case = elsewhere(base());
    case.evidence
        .nodes
        .get_mut(&NodeName::from(NODE))
        .unwrap()
        .value = Known::Absent;
    let fact = case
        .evidence
        .instances
        .get_mut(&InstanceId::from(INSTANCE))
        .unwrap();
    change(fact, |i| i.state = InstanceState::Gone);
    case
}

/// Class E: the cloud's holder is an instance for which no Node speaks, and it is gone.
pub fn orphan() -> Case {
    let mut case = elsewhere(base())
        .attachments(|all| all.retain(|a| a.node.as_str() != NODE))
        .cloud(|c| c.holders = vec!["26000009".into()])
        .attachments(|all| all[0].attach_error = Some("volume 5551 is already attached".into()));
    let gone = case.evidence.instances[&InstanceId::from(INSTANCE)].clone();
    case.evidence.instances.insert("26000009".into(), gone);
    let fact = case
        .evidence
        .instances
        .get_mut(&InstanceId::from("26000009"))
        .unwrap();
    change(fact, |i| {
        (i.id, i.state) = ("26000009".into(), InstanceState::Gone)
    });
    case.node(|n| {
        n.volumes_in_use.clear();
        n.volumes_attached.clear();
    })
}

/// Class E: a new machine has the old one's name, and with it the pod and a VolumeAttachment that calls the volume attached.
pub fn orphan_of_the_same_name() -> Case {
    orphan()
        .pod(|p| p.node = Some(NODE.into()))
        .attachments(|all| *all = vec![attachment("csi-redis-1", NODE)])
}

/// The pod is bound to the other node, whose VolumeAttachment waits.
fn elsewhere(case: Case) -> Case {
    case.pod(|p| p.node = Some(OTHER_NODE.into()))
        .attachments(|all| {
            all.push(reattach_core::evidence::AttachmentFacts {
                attached: false,
                ..attachment("csi-redis-2", OTHER_NODE)
            });
        })
}
