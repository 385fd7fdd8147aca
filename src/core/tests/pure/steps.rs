//! What each step waits for, to the second and to the single fact.

use super::clocks::until;
use super::walk::{
    ALL, QUIET, Walk, World, change, dead_node, dead_node_off, detach_error, orphan,
    phantom_without_policy,
};
use jiff::SignedDuration;
use reattach_core::cloud::{CloudJob, CloudScope, JobKind, JobStatus, VolumeState};
use reattach_core::evidence::{AttachmentFacts, NodeClaim};
use reattach_core::fact::{Fact, Known, Source};
use reattach_core::hold::hold_taint;
use reattach_core::ids::ObjectName;
use reattach_core::journal::{Event, Outcome, UnwindReason};
use reattach_core::plan::Allowed;
use reattach_core::run::{Effect, Next};
use reattach_core::steps::StepKind;
use reattach_core::testkit::{
    Case, INSTANCE, NODE, OTHER_INSTANCE, OTHER_NODE, attachment, start, volume_name,
};

pub fn phantom() -> Case {
    Case::statefulset()
        .holdable()
        .with_node(OTHER_NODE, OTHER_INSTANCE)
}

/// A run that has come to this step.
pub fn reached(case: Case, allowed: Allowed, kind: StepKind) -> Walk {
    let mut walk = Walk::with(case, QUIET, allowed);
    until(&mut walk, |walk, _| {
        walk.state().current() == walk.plan.find(kind)
    });
    walk
}

pub fn is_wait(said: &Next, what: &str) -> bool {
    matches!(said, Next::Wait { why, .. } if why.contains(what))
}

pub fn is_completed(said: &Next) -> bool {
    matches!(said, Next::Record(Event::Completed { .. }))
}

fn is_seen(said: &Next, what: &str) -> bool {
    matches!(said, Next::Record(Event::Completed { seen, .. }) if seen.contains(what))
}

pub fn is_skipped(said: &Next, what: &str) -> bool {
    matches!(said, Next::Record(Event::Skipped { why, .. }) if why.contains(what))
}

fn detaches(said: &Next) -> bool {
    matches!(said, Next::Act(a) if matches!(a.effect, Effect::CloudDetach { .. }))
}

pub fn holders(walk: &mut Walk, holders: &[&str]) {
    let holders = holders.iter().map(|h| (*h).into()).collect();
    change(&mut walk.case.evidence.cloud_volume, |c| {
        c.holders = holders
    });
}

/// Whether a detach that another ordered is under way at the cloud.
pub fn pending(walk: &mut Walk, pending: bool) {
    let job = CloudJob {
        id: "9".into(),
        kind: JobKind::Detach,
        action: "detach".into(),
        status: JobStatus::Started,
        volume: None,
        instance: None,
        created: start(),
    };
    let jobs = if pending { vec![job] } else { Vec::new() };
    walk.case.evidence.jobs = Fact::present(jobs, Source::Cloud("linode".into()), walk.case.now);
}

/// One thing that still holds the volume, and the words of the wait for it; none: it holds nothing.
type Holding = (&'static str, fn(Case) -> Case, Option<&'static str>);

fn record(name: &'static str, node: &str) -> AttachmentFacts {
    attachment(name, node)
}

const WHOLE: &[Holding] = &[
    ("nothing", |c| c, None),
    (
        "kubelet",
        |c| c.node(|n| n.volumes_in_use = vec![volume_name()]),
        Some("reports the volume in use"),
    ),
    (
        "the attach/detach controller",
        |c| c.node(|n| n.volumes_attached = vec![volume_name()]),
        Some("in volumesAttached"),
    ),
    (
        "a later record of the node",
        |c| c.attachments(|all| all.push(record("later", NODE))),
        Some("VolumeAttachment later is still there"),
    ),
    (
        "a record of another node",
        |c| c.attachments(|all| all.push(record("other", OTHER_NODE))),
        Some("VolumeAttachment other is still there"),
    ),
    (
        "the cloud",
        |c| c.cloud(|c| c.holders = vec![INSTANCE.into()]),
        Some("the cloud still names"),
    ),
    (
        "the cloud, for another",
        |c| c.cloud(|c| c.holders = vec![OTHER_INSTANCE.into()]),
        Some("the cloud still names"),
    ),
];

/// Where pods may wait elsewhere, only what is about the old holder counts, and a dead kubelet's word does not.
const OLD: &[Holding] = &[
    ("nothing", |c| c, None),
    (
        "kubelet",
        |c| c.node(|n| n.volumes_in_use = vec![volume_name()]),
        None,
    ),
    (
        "the attach/detach controller",
        |c| c.node(|n| n.volumes_attached = vec![volume_name()]),
        None,
    ),
    (
        "a later record of the node",
        |c| {
            c.attachments(|all| {
                all.push(AttachmentFacts {
                    uid: "later".into(),
                    ..record("later", NODE)
                })
            })
        },
        Some("VolumeAttachment later is still there"),
    ),
    (
        "a record of another node",
        |c| c.attachments(|all| all.push(record("other", OTHER_NODE))),
        None,
    ),
    (
        "the cloud",
        |c| c.cloud(|c| c.holders = vec![INSTANCE.into()]),
        Some("the cloud still names"),
    ),
    (
        "the cloud, for another",
        |c| c.cloud(|c| c.holders = vec![OTHER_INSTANCE.into()]),
        None,
    ),
];

#[test]
fn each_remaining_user_is_waited_for_alone() {
    for (case, rows) in [(phantom(), WHOLE), (dead_node_off(), OLD)] {
        let walk = reached(case, ALL, StepKind::AwaitDetached);
        let free = walk
            .case
            .clone()
            .attachments(Vec::clear)
            .cloud(|c| c.holders.clear())
            .node(|n| {
                n.volumes_in_use.clear();
                n.volumes_attached.clear();
            });
        for (name, holding, waits) in rows {
            let mut walk = walk.clone();
            walk.case = holding(free.clone());
            let said = walk.ask();
            match waits {
                Some(what) => assert!(is_wait(&said, what), "{name}: {said:?}"),
                None => assert!(is_completed(&said), "{name}: {said:?}"),
            }
        }
    }
}

/// Where the record is being deleted already, nothing is deleted and nothing is waited for a second time.
#[test]
fn a_wait_after_an_unneeded_step_is_skipped() {
    let mut walk = Walk::new(
        phantom(),
        World {
            stuck: true,
            ..QUIET
        },
    );
    until(&mut walk, |_, said| detaches(said));
    let skipped = |e: &reattach_core::journal::Entry| {
        is_skipped(
            &Next::Record(e.event.clone()),
            "this run did nothing that could have detached the volume",
        )
    };
    assert!(walk.journal.iter().any(skipped), "{}", walk.story());
}

/// An orphan's run whose detach the cloud has accepted and not carried out.
pub fn accepted() -> Walk {
    told(orphan(), |e| matches!(e, Effect::CloudDetach { .. }))
}

/// S3: neither a holder nor a pending job may be left.
#[test]
fn an_accepted_detach_ends_once_holder_and_job_are_gone() {
    let mut walk = accepted();
    for (named, under_way, ends) in [
        (true, true, false),
        (true, false, false),
        (false, true, false),
        (false, false, true),
    ] {
        walk.pass(1);
        holders(&mut walk, if named { &["26000009"] } else { &[] });
        pending(&mut walk, under_way);
        let said = walk.ask();
        assert_eq!(
            is_completed(&said),
            ends,
            "holder {named}, job {under_way}: {said:?}"
        );
        assert!(
            ends || is_wait(&said, "the cloud's detach is under way"),
            "{said:?}"
        );
    }
}

/// A plain detach has a minute before the one by force, and the one by force has nothing after it.
#[test]
fn a_detach_by_force_takes_over_after_a_minute() {
    let mut walk = accepted();
    for (seconds, over) in [(59, false), (1, true)] {
        walk.pass(seconds);
        let said = walk.ask();
        assert_eq!(
            is_skipped(&said, "the plain detach has not ended after 60 s"),
            over,
            "{said:?}"
        );
    }
    let accepts = |e: &Effect| {
        matches!(e, Effect::CloudForce { .. }).then(|| Outcome::Applied {
            detail: "200".into(),
        })
    };
    walk.answer(accepts, |_| {});
    walk.pass(61);
    assert!(
        is_wait(&walk.ask(), "the cloud's detach is under way"),
        "{:?}",
        walk.ask()
    );
}

#[test]
fn a_busy_cloud_is_asked_again_after_five_seconds() {
    let is_detach = |e: &Effect| matches!(e, Effect::CloudDetach { .. });
    let mut walk = Walk::answered(orphan(), is_detach, refused("busy", true));
    for seconds in [0, 1, 3] {
        walk.pass(seconds);
        assert!(
            is_wait(&walk.ask(), "the detach is tried again: busy"),
            "{:?}",
            walk.ask()
        );
    }
    walk.pass(1);
    assert!(detaches(&walk.ask()), "{:?}", walk.ask());
}

/// A detach of the CSI driver that hangs gives way to one by force after a minute, where the plan has one.
#[test]
fn only_force_follows_a_hanging_detach_of_others() {
    let forced = ALL;
    let plain = Allowed {
        force: false,
        ..ALL
    };
    for (allowed, state, seconds, over) in [
        (forced, VolumeState::Detaching, 59, false),
        (forced, VolumeState::Detaching, 60, true),
        (forced, VolumeState::Active, 60, false),
        (plain, VolumeState::Detaching, 60, false),
    ] {
        let mut walk = reached(orphan(), allowed, StepKind::CloudDetach);
        walk.pass(seconds);
        pending(&mut walk, true);
        change(&mut walk.case.evidence.cloud_volume, |c| {
            c.state = state.clone()
        });
        let said = walk.ask();
        let skipped = is_skipped(
            &said,
            "a detach by another client has been under way for more than 60 s",
        );
        assert_eq!(skipped, over, "{state:?} for {seconds} s: {said:?}");
        assert!(
            over || is_wait(&said, "a job on the volume is pending"),
            "{said:?}"
        );
    }
}

pub fn touches(said: &Next) -> bool {
    matches!(said, Next::Act(a) if matches!(a.effect, Effect::Requeue { .. }))
}

/// The attacher is told at most three times, and a run never fails for it.
#[test]
fn a_requeue_is_retried_three_times_and_never_fails() {
    let outcome = |retry| {
        move || Outcome::NotApplied {
            why: "409".into(),
            retry,
        }
    };
    let told = || Outcome::Applied {
        detail: "200".into(),
    };
    let replies: [(&dyn Fn() -> Outcome, usize, fn(&Next) -> bool); 3] = [
        (&told, 1, |said| is_completed(said)),
        (&outcome(true), 3, |said| {
            is_skipped(said, "the attacher tries again by itself")
        }),
        (&outcome(false), 1, |said| {
            is_skipped(said, "the attacher tries again by itself")
        }),
    ];
    for (reply, times, ends) in replies {
        let mut walk = reached(detach_error(), ALL, StepKind::Requeue);
        for n in 0..times {
            assert!(touches(&walk.ask()), "time {n}: {:?}", walk.ask());
            walk.answer(|e| matches!(e, Effect::Requeue { .. }).then(reply), |_| {});
        }
        assert!(ends(&walk.ask()), "{times}: {:?}", walk.ask());
    }
}

/// P1 for every kind of proof: where a gate holds pods away, it was seen in force; where a taint does, it is on the node.
#[test]
fn nothing_is_freed_while_the_hold_is_unconfirmed() {
    for seen in [None, Some(false)] {
        let mut walk = reached(orphan(), ALL, StepKind::CloudDetach);
        assert!(detaches(&walk.ask()), "{:?}", walk.ask());
        change(&mut walk.case.evidence.workload, |w| w.dry_run_held = seen);
        assert!(
            is_wait(&walk.ask(), "the hold must be seen in force"),
            "{:?}",
            walk.ask()
        );
    }
    let mut walk = Walk::new(
        phantom_without_policy(),
        World {
            lingers: true,
            ..QUIET
        },
    );
    let deletes = |said: &Next| matches!(said, Next::Act(a) if matches!(a.effect, Effect::DeleteAttachment { .. }));
    until(&mut walk, |_, said| deletes(said));
    walk.case = walk.case.clone().node(|n| n.taints.clear());
    assert!(!deletes(&walk.ask()), "{:?}", walk.ask());
}

/// S7: one claim, pod or volume on the node that the plan does not list is enough to leave the node alone.
#[test]
fn an_unlisted_claim_keeps_the_node_unfenced() {
    let mut walk = reached(dead_node_off(), ALL, StepKind::Quarantine);
    assert!(matches!(&walk.ask(), Next::Act(a) if matches!(a.effect, Effect::Quarantine { .. })));
    let claims = walk
        .case
        .evidence
        .node_claims
        .get_mut(&NODE.into())
        .unwrap();
    change(claims, |all| {
        all.push(NodeClaim {
            claim: ObjectName::new("shop", "carts"),
            opted_out: None,
        });
    });
    let said = walk.ask();
    let refused = matches!(
        &said,
        Next::Record(Event::UnwindStarted { why: UnwindReason::Refused { why, .. } }) if why.starts_with("1 more of the claims")
    );
    assert!(refused, "{said:?}");
}

/// A Node that was deleted meanwhile needs no fence any more.
#[test]
fn a_node_that_is_gone_is_not_fenced() {
    for kind in [StepKind::Quarantine, StepKind::TaintOutOfService] {
        let mut walk = reached(dead_node_off(), ALL, kind);
        walk.case
            .evidence
            .nodes
            .get_mut(&NODE.into())
            .unwrap()
            .value = Known::Absent;
        let said = walk.ask();
        assert!(
            is_skipped(&said, "the Node does not exist any more"),
            "{kind:?}: {said:?}"
        );
    }
}

/// Who may not power a machine off waits for others who do.
#[test]
fn a_permanently_refused_power_off_is_skipped() {
    let powers_off = |e: &Effect| matches!(e, Effect::PowerOff { .. });
    let walk = Walk::answered(dead_node(), powers_off, refused("403", false));
    assert!(is_skipped(&walk.ask(), "403"), "{:?}", walk.ask());
}

/// The other volumes of the node have a minute to be detached under the taint, and no longer.
#[test]
fn the_taint_stays_a_minute_for_the_nodes_other_volumes() {
    let untaints =
        |said: &Next| matches!(said, Next::Act(a) if matches!(a.effect, Effect::Untaint { .. }));
    let mut walk = reached(dead_node_off(), ALL, StepKind::Untaint);
    assert!(untaints(&walk.ask()), "{:?}", walk.ask());
    walk.case = walk
        .case
        .clone()
        .node(|n| n.volumes_attached = vec!["kubernetes.io/csi/x^other".into()]);
    for seconds in [0, 59] {
        walk.pass(seconds);
        assert!(
            is_wait(&walk.ask(), "other volumes of the node are still attached"),
            "{:?}",
            walk.ask()
        );
    }
    walk.pass(1);
    assert!(untaints(&walk.ask()), "{:?}", walk.ask());
}

/// Our taint is off once the Node is seen without it, in a read that is not from before the write; until then it is tried again.
#[test]
fn a_taint_is_removed_when_the_node_is_read_without_it() {
    let untaints =
        |said: &Next| matches!(said, Next::Act(a) if matches!(a.effect, Effect::Untaint { .. }));
    let with = |walk: &Walk, tainted: bool, read_before: bool| {
        let mut walk = walk.clone();
        walk.case = walk.case.node(|n| n.out_of_service_by_us = tainted);
        if read_before {
            walk.case.evidence.nodes.get_mut(&NODE.into()).unwrap().at -=
                SignedDuration::from_secs(1);
        }
        walk
    };
    for applied in [true, false] {
        let mut walk = reached(dead_node_off(), ALL, StepKind::Untaint);
        let outcome = move || match applied {
            true => Outcome::Applied {
                detail: "200".into(),
            },
            false => Outcome::NotApplied {
                why: "409".into(),
                retry: true,
            },
        };
        walk.answer(
            move |e| matches!(e, Effect::Untaint { .. }).then(outcome),
            |_| {},
        );
        assert!(
            is_wait(
                &with(&walk, false, true).ask(),
                "the Node must be read again"
            ),
            "{applied}"
        );
        assert_eq!(is_completed(&with(&walk, false, false).ask()), applied);
        let mut there = with(&walk, true, false);
        assert!(
            is_wait(
                &there.ask(),
                "waiting until the Node is seen without the taint"
            ),
            "{:?}",
            there.ask()
        );
        there.pass(1);
        assert!(untaints(&there.ask()), "{:?}", there.ask());
    }
    let mut gone = reached(dead_node_off(), ALL, StepKind::Untaint);
    gone.case
        .evidence
        .nodes
        .get_mut(&NODE.into())
        .unwrap()
        .value = Known::Absent;
    assert!(is_completed(&gone.ask()), "{:?}", gone.ask());
}

/// A run whose first effect of this kind was accepted, while the world has not moved.
pub fn told(case: Case, kind: fn(&Effect) -> bool) -> Walk {
    let accepted = Outcome::Applied {
        detail: "200".into(),
    };
    Walk::answered(case, kind, accepted)
}

/// A write that was refused, for good or for now.
pub fn refused(why: &str, retry: bool) -> Outcome {
    let why = why.to_owned();
    Outcome::NotApplied { why, retry }
}

fn before<T>(fact: &mut Fact<T>) {
    fact.at -= SignedDuration::from_secs(1);
}

pub fn is_refused(said: &Next, what: &str) -> bool {
    matches!(said, Next::Record(Event::UnwindStarted { why: UnwindReason::Refused { why, .. } }) if why.contains(what))
}

/// A change of the evidence, and what the machine says then.
type Seen = (&'static str, fn(&mut Walk), fn(&Next) -> bool);

pub fn probe(walk: &mut Walk, held: Option<bool>) {
    change(&mut walk.case.evidence.workload, |w| w.dry_run_held = held);
}

#[test]
fn a_hold_is_in_force_when_a_later_probe_shows_it() {
    let walk = told(phantom(), |e| matches!(e, Effect::Hold));
    let table: [Seen; 6] = [
        (
            "seen",
            |w| probe(w, Some(true)),
            |said| is_seen(said, "comes back with the gate"),
        ),
        (
            "seen before the label was written",
            |w| {
                probe(w, Some(true));
                before(&mut w.case.evidence.workload);
            },
            |said| is_wait(said, "the hold must be probed again"),
        ),
        (
            "not seen",
            |w| probe(w, Some(false)),
            |said| is_wait(said, "does not come back with the gate"),
        ),
        (
            "not probed",
            |w| probe(w, None),
            |said| is_wait(said, "does not come back with the gate"),
        ),
        (
            "gone",
            |w| w.case.evidence.workload.value = Known::Absent,
            |said| is_refused(said, "the workload is gone"),
        ),
        (
            "unknown",
            |w| w.case.evidence.workload.value = Known::Unknown { why: "503".into() },
            |said| is_wait(said, "the workload must be read"),
        ),
    ];
    for (name, spoil, fits) in table {
        let mut walk = walk.clone();
        spoil(&mut walk);
        assert!(fits(&walk.ask()), "{name}: {:?}", walk.ask());
    }
}

fn closed_by(walk: &mut Walk, recovery: &str) {
    let taint = hold_taint(&recovery.into());
    walk.case = walk.case.clone().node(|n| n.taints = vec![taint]);
}

#[test]
fn a_node_is_closed_when_a_later_read_shows_our_taint() {
    let walk = told(phantom_without_policy(), |e| {
        matches!(e, Effect::CloseNode { .. })
    });
    let ours = |w: &mut Walk| closed_by(w, Case::recovery().as_str());
    let table: [(&str, &dyn Fn(&mut Walk), fn(&Next) -> bool); 8] = [
        ("closed", &ours, |said| {
            is_seen(said, "the taint is on the node")
        }),
        ("open", &|_| {}, |said| {
            is_wait(said, "does not carry our taint")
        }),
        (
            "closed by another recovery",
            &|w| closed_by(w, "another"),
            |said| is_wait(said, "does not carry our taint"),
        ),
        (
            "read before the taint was written",
            &|w| {
                ours(w);
                before(w.case.evidence.nodes.get_mut(&NODE.into()).unwrap());
            },
            |said| is_wait(said, "must be read again"),
        ),
        (
            "the node is gone",
            &|w| {
                w.case.evidence.cloud_scope = Some(CloudScope("account".into()));
                w.case.evidence.nodes.get_mut(&NODE.into()).unwrap().value = Known::Absent;
            },
            |said| is_refused(said, "Node lke-1 is gone"),
        ),
        (
            "the workload is gone",
            &|w| {
                ours(w);
                w.case.evidence.workload.value = Known::Absent;
            },
            |said| is_refused(said, "the workload is gone"),
        ),
        (
            "the workload is not known",
            &|w| {
                ours(w);
                w.case.evidence.workload.value = Known::Unknown { why: "503".into() };
            },
            |said| is_wait(said, "the workload must be read"),
        ),
        (
            "pods that ignore the taint",
            &|w| {
                ours(w);
                w.case = w
                    .case
                    .clone()
                    .workload(|w| w.template.ignores_taints = Some("they ignore it".into()));
            },
            |said| is_refused(said, "they ignore it"),
        ),
    ];
    for (name, spoil, fits) in table {
        let mut walk = walk.clone();
        spoil(&mut walk);
        assert!(fits(&walk.ask()), "{name}: {:?}", walk.ask());
    }
}

/// The pod of a dead mount is Ready for kubelet, and its every access fails: it is evicted all the same.
#[test]
fn a_ready_pod_over_a_dead_mount_is_released() {
    let mut walk = Walk::new(phantom().with_mount(true).pod_ready(), QUIET);
    until(
        &mut walk,
        |_, said| matches!(said, Next::Act(a) if matches!(a.effect, Effect::Release { .. })),
    );
    assert_eq!(walk.kinds(), ["Hold"]);
}

/// A hold is over when pods and workload, both read after the lift, show no gate.
#[test]
fn a_hold_is_lifted_when_later_reads_show_no_gate() {
    let walk = told(phantom(), |e| matches!(e, Effect::Lift { .. }));
    let open = |w: &mut Walk| {
        probe(w, Some(false));
        w.case = w
            .case
            .clone()
            .pods(|all| all.iter_mut().for_each(|p| p.held = false));
    };
    let again = |said: &Next| is_wait(said, "the claim's pods must be read again");
    let looked = |said: &Next| is_wait(said, "waiting until no pod is seen with the gate");
    let table: [(&str, &dyn Fn(&mut Walk), &dyn Fn(&Next) -> bool); 5] = [
        ("open", &open, &is_completed),
        (
            "pods of before",
            &|w| {
                open(w);
                before(&mut w.case.evidence.pods);
            },
            &again,
        ),
        (
            "a probe of before",
            &|w| {
                open(w);
                before(&mut w.case.evidence.workload);
            },
            &again,
        ),
        (
            "a gated pod",
            &|w| {
                open(w);
                w.case = w
                    .case
                    .clone()
                    .pods(|all| all.iter_mut().for_each(|p| p.held = true));
            },
            &looked,
        ),
        (
            "a gate for new pods",
            &|w| {
                open(w);
                probe(w, Some(true));
            },
            &looked,
        ),
    ];
    for (name, spoil, fits) in table {
        let mut walk = walk.clone();
        spoil(&mut walk);
        assert!(fits(&walk.ask()), "{name}: {:?}", walk.ask());
    }
}

/// The machine has the device again: whatever the plan says, no pod is stuck any more.
#[test]
fn no_node_is_closed_once_the_trouble_is_over() {
    let mut walk = Walk::new(phantom_without_policy(), QUIET);
    let closes =
        |said: &Next| matches!(said, Next::Act(a) if matches!(a.effect, Effect::CloseNode { .. }));
    assert!(closes(&walk.ask()), "{:?}", walk.ask());
    walk.case = walk.case.clone().device_in_use();
    assert!(
        is_refused(&walk.ask(), "the diagnosis changed"),
        "{:?}",
        walk.ask()
    );
}

/// A volume that is let go before the first effect is another situation than the planned one: the run turns
/// back at its first step and goes through no other.
#[test]
fn a_volume_that_is_free_before_the_first_effect_ends_the_run() {
    let mut walk = Walk::new(phantom_without_policy(), QUIET);
    walk.case = walk
        .case
        .clone()
        .attachments(Vec::clear)
        .cloud(|c| c.holders.clear())
        .node(|n| {
            n.volumes_in_use.clear();
            n.volumes_attached.clear();
        });
    assert!(
        is_refused(&walk.ask(), "the VolumeAttachment changed"),
        "{:?}",
        walk.ask()
    );
}

/// Two pods of the claim are stuck on a closed node. Once the first is evicted its successor waits on another
/// node, where the trouble looks different; the second is evicted all the same.
#[test]
fn the_second_stuck_pod_of_a_closed_node_is_released_too() {
    let releases = |e: &Effect| matches!(e, Effect::Release { .. });
    let case = phantom_without_policy().with_pod("redis-1", Some(NODE), true);
    let mut walk = told(case, releases);
    let waits = AttachmentFacts {
        attached: false,
        ..record("csi-redis-2", OTHER_NODE)
    };
    walk.case = walk
        .case
        .clone()
        .pod(|p| (p.uid, p.node) = ("successor".into(), Some(OTHER_NODE.into())))
        .attachments(|all| all.push(waits));
    assert_ne!(
        walk.case.diagnosis().verdict.to_string(),
        walk.plan.trouble.to_string()
    );
    let said = walk.ask();
    let second = |e: &Effect| matches!(e, Effect::Release { pod, .. } if pod.name == "redis-1");
    assert!(
        matches!(&said, Next::Act(a) if second(&a.effect)),
        "{said:?}\n{}",
        walk.story()
    );
}
