//! What counts as recovered: a new pod, Ready for a moment, whose node alone has the volume by Kubernetes and
//! by the cloud.

use super::clocks::until;
use super::walk::{QUIET, Walk, change, detach_error};
use jiff::SignedDuration;
use reattach_core::evidence::{AttachmentFacts, PodFacts};
use reattach_core::ids::InstanceId;
use reattach_core::journal::Event;
use reattach_core::run::Next;
use reattach_core::steps::StepKind;
use reattach_core::testkit::{Case, INSTANCE, NODE, OTHER_INSTANCE, OTHER_NODE, attachment};

fn ready_for(walk: &mut Walk, seconds: i64) {
    let since = walk.case.now - SignedDuration::from_secs(seconds);
    walk.case = walk
        .case
        .clone()
        .pods(|all| all[0].ready_since = Some(since));
    // The node's own clock has not shown that much time.
    walk.case = walk
        .case
        .clone()
        .node_named(OTHER_NODE, |n| n.lease_renewed = Some(since));
}

/// A run that has come to its last step, with a pod that has been Ready there for three seconds.
fn at_its_end(case: Case) -> Walk {
    let mut walk = Walk::new(case, QUIET);
    until(&mut walk, |walk, _| {
        let pods = walk.case.evidence.pods.shown().unwrap();
        walk.state().current() == walk.plan.find(StepKind::Verify) && pods[0].ready
    });
    ready_for(&mut walk, 3);
    walk
}

fn recovered(walk: &Walk) -> bool {
    match walk.ask() {
        Next::Record(Event::Completed { .. }) => true,
        Next::Wait { .. } => false,
        other => panic!("{other:?}\n{}", walk.story()),
    }
}

fn pod(walk: &mut Walk, change: impl Fn(&mut PodFacts)) {
    walk.case = walk.case.clone().pod(change);
}

fn records(walk: &mut Walk, records: Vec<AttachmentFacts>) {
    change(&mut walk.case.evidence.attachments, |all| *all = records);
}

fn holders(walk: &mut Walk, holders: &[&str]) {
    let holders: Vec<InstanceId> = holders.iter().map(|h| (*h).into()).collect();
    change(&mut walk.case.evidence.cloud_volume, |c| {
        c.holders = holders
    });
}

fn record() -> AttachmentFacts {
    attachment("csi-redis-2", OTHER_NODE)
}

#[test]
fn a_pod_counts_as_recovered_only_if_all_facts_agree() {
    let good = at_its_end(
        Case::statefulset()
            .holdable()
            .with_node(OTHER_NODE, OTHER_INSTANCE),
    );
    assert!(recovered(&good), "{:?}", good.ask());
    let table: [(&str, fn(&mut Walk)); 12] = [
        ("Ready for two seconds", |w| ready_for(w, 2)),
        ("not Ready", |w| pod(w, |p| p.ready = false)),
        ("being deleted", |w| {
            pod(w, |p| p.deleting_since = Some(p.created))
        }),
        ("a pod of before", |w| pod(w, |p| p.uid = "pod-1".into())),
        ("no record", |w| records(w, Vec::new())),
        ("another node's record", |w| {
            records(w, vec![attachment("csi-redis-1", NODE)])
        }),
        ("a record that is not attached", |w| {
            records(
                w,
                vec![AttachmentFacts {
                    attached: false,
                    ..record()
                }],
            );
        }),
        ("a record that is being deleted", |w| {
            let at = Some(w.case.now);
            records(
                w,
                vec![AttachmentFacts {
                    deleting_since: at,
                    ..record()
                }],
            );
        }),
        ("no holder", |w| holders(w, &[])),
        ("another holder", |w| holders(w, &[INSTANCE])),
        ("two holders", |w| holders(w, &[OTHER_INSTANCE, INSTANCE])),
        ("no holder, and the node's instance is not known", |w| {
            holders(w, &[]);
            w.case = w.case.clone().node_named(OTHER_NODE, |n| n.instance = None);
        }),
    ];
    for (name, spoil) in table {
        let mut walk = good.clone();
        spoil(&mut walk);
        assert!(!recovered(&walk), "{name}: {:?}", walk.ask());
    }
}

/// A pod that waited elsewhere stays the same pod. One that is Ready where the old holder has the volume may
/// sit on a dead mount.
#[test]
fn an_old_pod_counts_only_if_it_waited_on_another_node() {
    let good = at_its_end(detach_error());
    assert!(
        good.plan
            .pins
            .pods
            .iter()
            .any(|(_, uid)| uid.as_str() == "pod-1")
    );
    assert!(recovered(&good), "{:?}", good.ask());
    let mut there = good;
    pod(&mut there, |p| p.node = Some(NODE.into()));
    records(&mut there, vec![attachment("csi-redis-1", NODE)]);
    holders(&mut there, &[INSTANCE]);
    assert!(!recovered(&there), "{:?}", there.ask());
}
