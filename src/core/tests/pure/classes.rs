//! Classes A, C, D and E, and B where kubelet does not let go: which effects, in which order, and that nothing is left.

use super::walk::{
    ALL, QUIET, Walk, World, change, dead_node, dead_node_off, detach_error, lost, node_missing,
    orphan, orphan_of_the_same_name, phantom_without_policy, plan, without_policy,
};
use reattach_core::check::check;
use reattach_core::cloud::CloudVolume;
use reattach_core::diagnosis::{Class, StuckCause, Trouble, Verdict, diagnose};
use reattach_core::evidence::Declaration;
use reattach_core::fact::Known;
use reattach_core::ids::{InstanceId, NodeName};
use reattach_core::journal::{End, Entry, Event, Outcome, UnwindReason};
use reattach_core::plan::Refusal;
use reattach_core::plan::{Allowed, may_begin};
use reattach_core::proof::ProofKind;
use reattach_core::run::{Effect, Next};
use reattach_core::testkit::{Case, INSTANCE, NODE, OTHER_INSTANCE, OTHER_NODE, volume_name};

type Row = (&'static str, fn() -> Case, World, &'static [&'static str]);

const STUCK: World = World {
    stuck: true,
    ..QUIET
};

fn phantom() -> Case {
    Case::statefulset()
        .holdable()
        .with_node(OTHER_NODE, OTHER_INSTANCE)
}

const ROWS: &[Row] = &[
    (
        "A, the machine runs as far as the cloud knows",
        dead_node,
        QUIET,
        &[
            "PowerOff",
            "Quarantine",
            "TaintOutOfService",
            "Untaint",
            "PowerOn",
        ],
    ),
    (
        "A, off already",
        dead_node_off,
        QUIET,
        &["Quarantine", "TaintOutOfService", "Untaint"],
    ),
    (
        "A, and the driver cannot detach",
        dead_node_off,
        STUCK,
        &[
            "Quarantine",
            "TaintOutOfService",
            "Hold",
            "CloudDetach",
            "Requeue",
            "Lift",
            "Untaint",
        ],
    ),
    (
        "B, by the ladder",
        phantom,
        QUIET,
        &["Hold", "Release", "Lift"],
    ),
    (
        "B, and kubelet keeps it in volumesInUse",
        phantom,
        World {
            lingers: true,
            ..QUIET
        },
        &["Hold", "Release", "Challenge", "DeleteAttachment", "Lift"],
    ),
    (
        "B, without the policy",
        phantom_without_policy,
        QUIET,
        &["CloseNode", "Release", "OpenNode"],
    ),
    (
        "B, without the policy and without another node",
        phantom_without_policy,
        World {
            alone: true,
            ..QUIET
        },
        &["CloseNode", "Release", "OpenNode"],
    ),
    (
        "B, without the policy, and kubelet keeps it in volumesInUse",
        phantom_without_policy,
        World {
            lingers: true,
            ..QUIET
        },
        &[
            "CloseNode",
            "Release",
            "Challenge",
            "DeleteAttachment",
            "OpenNode",
        ],
    ),
    (
        "C, by the ladder",
        lost,
        QUIET,
        &["Hold", "Release", "Lift"],
    ),
    (
        "C, without the policy",
        || without_policy(lost()),
        QUIET,
        &["CloseNode", "Release", "OpenNode"],
    ),
    (
        "C, healed by external-attacher",
        lost,
        World {
            heals_after: Some(40),
            ..QUIET
        },
        &[],
    ),
    (
        "D, detach error",
        detach_error,
        STUCK,
        &["Requeue", "Hold", "CloudDetach", "Requeue", "Lift"],
    ),
    (
        "D, Node gone",
        node_missing,
        QUIET,
        &["Hold", "DeleteAttachment", "Lift"],
    ),
    (
        "E",
        orphan,
        QUIET,
        &["Hold", "CloudDetach", "Requeue", "Lift"],
    ),
];

#[test]
fn each_class_is_healed_by_the_effects_of_its_order() {
    for (name, case, world, expected) in ROWS {
        let mut walk = Walk::new(case(), *world);
        let end = walk.run(|_, _| {});
        assert_eq!(end, End::Recovered, "{name}\n{}", walk.story());
        assert_eq!(walk.kinds(), *expected, "{name}\n{}", walk.story());
        assert!(walk.is_clean(), "{name}\n{}", walk.story());
    }
}

/// Wherever a person aborts, the taint, the hold and the workload are as they were.
#[test]
fn an_abort_at_any_line_leaves_nothing() {
    for (name, case, world, _) in ROWS {
        let mut whole = Walk::new(case(), *world);
        whole.run(|_, _| {});
        for line in 1..whole.journal.len() {
            let mut walk = Walk::new(
                case(),
                World {
                    abort_at: Some(line),
                    ..*world
                },
            );
            let end = walk.run(|_, _| {});
            let story = walk.story();
            assert!(
                matches!(end, End::Aborted | End::Recovered),
                "{name}, line {line}: {end:?}\n{story}"
            );
            assert!(walk.is_clean(), "{name}, line {line}\n{story}");
        }
    }
}

/// A closing taint whose reply was lost may be accepted later: an aborted run does not end before its time is over.
#[test]
fn an_abort_waits_for_a_closing_taint_of_unknown_outcome() {
    let mut walk = Walk::new(
        phantom_without_policy(),
        World {
            abort_at: Some(3),
            ..QUIET
        },
    );
    let lost = Outcome::Unknown { why: "502".into() };
    walk.answer(
        |e| matches!(e, Effect::CloseNode { .. }).then(|| lost.clone()),
        |_| {},
    );
    let end = walk.run(|_, _| {});
    assert_eq!(
        (end, walk.kinds()),
        (End::Aborted, vec!["CloseNode".into(), "OpenNode".into()]),
        "{}",
        walk.story()
    );
    let begun = |e: &&Entry| matches!(e.event, Event::Started { .. });
    let at: Vec<_> = walk.journal.iter().filter(begun).map(|e| e.at).collect();
    assert_eq!(
        at[1].duration_since(at[0]).as_secs(),
        60,
        "{}",
        walk.story()
    );
}

/// No attacher puts the new machine's attachment right: what is left is class C, and its order heals it.
#[test]
fn a_leftover_of_an_orphan_gets_its_own_recovery() {
    let mut walk = Walk::new(orphan_of_the_same_name(), QUIET);
    let end = walk.run(|_, _| {});
    let story = walk.story();
    assert!(
        matches!(&end, End::Failed { why } if why.contains("class C")),
        "{end:?}\n{story}"
    );
    assert_eq!(walk.kinds(), ["Hold", "CloudDetach", "Lift"], "{story}");
    assert!(walk.is_clean(), "{story}");
    let lifted = walk
        .journal
        .iter()
        .rfind(|e| matches!(e.event, Event::Completed { .. }))
        .unwrap();
    let ended = walk.journal.last().unwrap();
    assert_eq!(ended.at.duration_since(lifted.at).as_secs(), 150, "{story}");

    // The same class again has no other order: Verify waits on.
    let mut again = walk.clone();
    again.journal.pop();
    again.case = again.case.cloud(|c| c.holders = vec!["26000009".into()]);
    assert_eq!(
        diagnose(again.case.evidence.at(again.case.now)).class(),
        Some(Class::E)
    );
    assert!(
        matches!(again.ask(), Next::Wait { .. }),
        "{:?}",
        again.ask()
    );

    let mut left = walk.case.clone();
    left.evidence.jobs = orphan().evidence.jobs;
    left.evidence.jobs.at = left.now;
    let mut next = Walk::new(left, QUIET);
    let end = next.run(|_, _| {});
    assert_eq!(end, End::Recovered, "{}", next.story());
    assert_eq!(
        next.kinds(),
        ["Hold", "Release", "Lift"],
        "{}",
        next.story()
    );
}

#[test]
fn every_freeing_effect_journals_its_proof() {
    for (name, case, world, _) in ROWS {
        let mut walk = Walk::new(case(), *world);
        walk.run(|_, _| {});
        for entry in &walk.journal {
            let Event::Started { intent, proof, .. } = &entry.event else {
                continue;
            };
            let frees = [
                "detach volume",
                "delete VolumeAttachment",
                "out-of-service taint on",
            ];
            assert_eq!(
                proof.is_some(),
                frees.iter().any(|w| intent.contains(w)),
                "{name}: {intent}"
            );
        }
    }
}

#[test]
fn a_recovered_node_loses_the_taint_at_once() {
    let back = World {
        back_at: Some(2),
        stuck: true,
        ..QUIET
    };
    let mut walk = Walk::new(dead_node_off(), back);
    let end = walk.run(|_, _| {});
    assert!(
        matches!(end, End::Failed { .. }),
        "{end:?}\n{}",
        walk.story()
    );
    assert!(walk.is_clean(), "{}", walk.story());
    let turned = |e: &&Entry| matches!(&e.event, Event::UnwindStarted { why: UnwindReason::Refused { why, .. } } if why.contains("Ready again"));
    let turned = walk
        .journal
        .iter()
        .find(turned)
        .unwrap_or_else(|| panic!("{}", walk.story()));
    assert_eq!(
        turned.at.duration_since(walk.journal[0].at).as_secs(),
        2,
        "{}",
        walk.story()
    );
}

#[test]
fn a_node_back_before_the_first_effect_needs_nothing() {
    let mut walk = Walk::new(
        dead_node(),
        World {
            back_at: Some(20),
            ..QUIET
        },
    );
    let end = walk.run(|_, _| {});
    assert!(
        walk.effects.is_empty(),
        "{:?}\n{}",
        walk.effects,
        walk.story()
    );
    assert!(matches!(end, End::Withdrawn { .. }), "{end:?}");
}

/// S9: a taint that another recovery of the same node put there, while this one was refused the lock, is not this one's to
/// take off.
#[test]
fn a_taint_of_another_recovery_is_left_alone() {
    let mut walk = Walk::new(dead_node_off(), QUIET);
    let refused = Outcome::NotApplied {
        why: "another recovery has the lock".into(),
        retry: true,
    };
    let tainting = |e: &Effect| matches!(e, Effect::TaintOutOfService { .. });
    walk.answer(
        |e| tainting(e).then(|| refused.clone()),
        |walk| {
            let node = walk
                .case
                .evidence
                .nodes
                .get_mut(&NodeName::from(NODE))
                .unwrap();
            change(node, |n| n.out_of_service_by_us = true);
        },
    );
    walk.run(|_, _| {});
    let mine = walk.kinds();
    assert!(
        !mine.contains(&"Untaint".to_owned()),
        "{mine:?}\n{}",
        walk.story()
    );
    assert!(
        walk.story().contains("by another recovery"),
        "{}",
        walk.story()
    );
}

/// S8: a pod that is Ready with a volume of another identity, or of another size, is no recovery.
#[test]
fn another_volume_under_the_same_name_is_no_recovery() {
    let edits: [fn(&mut CloudVolume); 2] = [
        |v| v.identity.serial = "another".into(),
        |v| v.size_gib += 1,
    ];
    for edit in edits {
        let mut walk = Walk::new(dead_node_off(), QUIET);
        walk.answer(
            |e| {
                matches!(e, Effect::Untaint { .. }).then(|| Outcome::Applied {
                    detail: "200".into(),
                })
            },
            |walk| {
                let node = walk
                    .case
                    .evidence
                    .nodes
                    .get_mut(&NodeName::from(NODE))
                    .unwrap();
                change(node, |n| n.out_of_service_by_us = false);
                change(&mut walk.case.evidence.cloud_volume, edit);
            },
        );
        let end = walk.run(|_, _| {});
        assert!(
            matches!(&end, End::Failed { why } if why.contains("identity or size")),
            "{end:?}\n{}",
            walk.story()
        );
    }
}

/// Without a permission the run waits for a proof that others bring about: none is made from time alone.
#[test]
fn without_a_permission_a_dead_node_waits_for_others() {
    let none = Allowed::default();
    let case = dead_node();
    let made = plan(&case, none).unwrap();
    assert!(
        made.steps
            .iter()
            .all(|s| !format!("{:?}", s.kind).starts_with("Power")),
        "{made:?}"
    );
    let refusal = may_begin(&made, case.evidence.at(case.now)).unwrap_err();
    assert!(
        matches!(refusal, Refusal::NoProofYet { .. }) && refusal.may_pass(),
        "{refusal}"
    );
    let off = dead_node_off();
    assert_eq!(
        may_begin(&plan(&off, none).unwrap(), off.evidence.at(off.now)),
        Ok(())
    );
    assert_eq!(
        may_begin(&plan(&case, ALL).unwrap(), case.evidence.at(case.now)),
        Ok(())
    );
    let mut declared = dead_node();
    declared.evidence.declaration = Some(Declaration {
        holder: INSTANCE.into(),
        by: "jane".into(),
        reason: "I pulled the plug".into(),
        at: declared.now,
        of_this_cluster: false,
        cluster_wide: true,
    });
    let made = plan(&declared, none).unwrap();
    assert_eq!(may_begin(&made, declared.evidence.at(declared.now)), Ok(()));
    // By a right in one namespace it is a word about one volume.
    declared
        .evidence
        .declaration
        .iter_mut()
        .for_each(|d| d.cluster_wide = false);
    let refusal = may_begin(&made, declared.evidence.at(declared.now)).unwrap_err();
    assert!(
        refusal.to_string().contains("at cluster scope") && refusal.may_pass(),
        "{refusal}"
    );
    let mut walk = Walk::with(declared, QUIET, none);
    walk.once();
    for _ in 0..600 {
        walk.once();
    }
    assert_eq!(walk.kinds(), Vec::<String>::new(), "{}", walk.story());
}

#[test]
fn a_declared_node_is_fenced_and_says_by_whom() {
    let mut case = dead_node();
    case.evidence.declaration = Some(Declaration {
        holder: INSTANCE.into(),
        by: "jane".into(),
        reason: "I pulled the plug".into(),
        at: case.now,
        of_this_cluster: false,
        cluster_wide: true,
    });
    let mut walk = Walk::new(case, QUIET);
    assert_eq!(walk.run(|_, _| {}), End::Recovered, "{}", walk.story());
    assert_eq!(walk.kinds(), ["Quarantine", "TaintOutOfService", "Untaint"]);
    let by = |m: &Event| matches!(m, Event::Started { proof: Some(ProofKind::Declared { by, .. }), .. } if by == "jane");
    assert!(
        walk.journal.iter().any(|e| by(&e.event)),
        "{}",
        walk.story()
    );
}

/// S7: a plan for a whole node lists what is on it, and what comes later stops it.
#[test]
fn an_unlisted_volume_stops_an_effect_on_the_node() {
    let mut walk = Walk::new(dead_node_off(), QUIET);
    let new = (
        reattach_core::ids::ObjectName::new("default", "late"),
        "late-1".into(),
    );
    change(
        walk.case
            .evidence
            .node_pods
            .get_mut(&NodeName::from(NODE))
            .unwrap(),
        |p| p.push(new),
    );
    let end = walk.run(|_, _| {});
    assert!(
        matches!(&end, End::Withdrawn { why } if why.contains("default/late")),
        "{end:?}"
    );
    assert!(walk.effects.is_empty());
    let mut case = dead_node_off();
    case.evidence.node_pods.clear();
    let refusals = plan(&case, ALL).unwrap_err();
    assert!(
        refusals
            .iter()
            .any(|r| r.to_string().contains("the pods on lke-1")),
        "{refusals:?}"
    );
}

/// A plan stands in the claim's namespace: it pins what is on the node of other namespaces, and names nothing of it.
#[test]
fn a_plan_for_a_node_names_nothing_of_other_namespaces() {
    let salaries = |n: &str| {
        (
            reattach_core::ids::ObjectName::new("payroll", format!("salaries-{n}")),
            format!("uid-{n}").into(),
        )
    };
    let foreign = "kubernetes.io/csi/linodebs.csi.linode.com^7099-pvcsalaries";
    let mut case = dead_node_off().node(|n| n.volumes_attached.push(foreign.to_owned()));
    change(
        case.evidence
            .node_pods
            .get_mut(&NodeName::from(NODE))
            .unwrap(),
        |p| p.push(salaries("a")),
    );
    let made = plan(&case, ALL).unwrap();
    let text = serde_json::to_string(&made).unwrap();
    for name in ["payroll", "salaries", "7099"] {
        assert!(!text.contains(name), "{name} in {text}");
    }
    let wide = made.pins.node_wide.as_ref().unwrap();
    assert_eq!((wide.pods.len(), wide.pod_count()), (1, 2));
    assert!(wide.lists_pod(&salaries("a")) && wide.lists_volume(foreign));
    assert_eq!(check(&made, case.evidence.at(case.now), None), Vec::new());
    let mut walk = Walk::new(case.clone(), QUIET);
    assert_eq!(walk.run(|_, _| {}), End::Recovered, "{}", walk.story());

    // What comes later stops it, and is not named either.
    let mut later = Walk::new(case.clone(), QUIET);
    change(
        later
            .case
            .evidence
            .node_pods
            .get_mut(&NodeName::from(NODE))
            .unwrap(),
        |p| p.push(salaries("b")),
    );
    let end = later.run(|_, _| {});
    let said = |why: &str| why.contains("a pod of another namespace") && !why.contains("salaries");
    assert!(
        matches!(&end, End::Withdrawn { why } if said(why)),
        "{end:?}"
    );
    assert!(later.effects.is_empty());
    let mut other = case.clone();
    change(
        other
            .evidence
            .node_pods
            .get_mut(&NodeName::from(NODE))
            .unwrap(),
        |p| p.push(salaries("b")),
    );
    assert!(
        !check(&made, other.evidence.at(other.now), None).is_empty(),
        "the checker sees it, too"
    );
    let other = case.node(|n| {
        n.volumes_attached
            .push("kubernetes.io/csi/x^another".to_owned())
    });
    assert!(!check(&made, other.evidence.at(other.now), None).is_empty());
}

/// The volume of a pod of which no container was ever reported running is free before Kubernetes has deleted the pod. Without
/// the taint it would never do so.
#[test]
fn the_taint_stays_until_the_old_pod_is_deleted() {
    let mut walk = Walk::new(
        dead_node_off(),
        World {
            deletes_after: Some(25),
            ..QUIET
        },
    );
    let mut left = None;
    let end = walk.run(|walk, action| {
        if let Effect::Untaint { .. } = action.effect {
            let pods = walk.case.evidence.pods.shown().into_iter().flatten();
            left = Some(pods.filter(|p| p.deleting_since.is_some()).count());
        }
    });
    assert_eq!((end, left), (End::Recovered, Some(0)), "{}", walk.story());
    // A pod that cannot be deleted, such as by a finalizer, keeps the taint for a minute and no longer.
    let mut walk = Walk::new(
        dead_node_off(),
        World {
            deletes_after: Some(3600),
            ..QUIET
        },
    );
    assert_eq!(walk.run(|_, _| {}), End::Recovered, "{}", walk.story());
    assert!(
        walk.kinds().contains(&"Untaint".to_owned()),
        "{}",
        walk.story()
    );
}

/// A dead node is fenced even where the cluster cannot hold pods away; only the cloud's own detach is left out.
#[test]
fn a_dead_node_is_fenced_without_the_hold_policy() {
    let mut case = dead_node_off();
    if let Some(policy) = &mut case.evidence.hold_policy {
        policy.value = Known::Absent;
    }
    let mut walk = Walk::new(case, QUIET);
    assert_eq!(walk.run(|_, _| {}), End::Recovered, "{}", walk.story());
    let kinds: Vec<String> = walk
        .plan
        .steps
        .iter()
        .map(|s| format!("{:?}", s.kind))
        .collect();
    assert!(
        !kinds
            .iter()
            .any(|k| ["Hold", "CloudDetach", "CloudForce", "Lift"].contains(&k.as_str())),
        "{kinds:?}"
    );
}

/// The causes of class D that only people can mend: named, with what to do, and nothing is planned.
#[test]
fn causes_for_people_are_named() {
    let going = |case: Case, error: Option<&str>| {
        let error = error.map(str::to_owned);
        case.attachment(|a| {
            a.deleting_since = Some(a.created);
            a.detach_error.clone_from(&error);
        })
    };
    let mut no_volume = going(
        detach_error(),
        Some("persistentvolume \"pvc-redis\" not found"),
    );
    no_volume.evidence.volume.value = Known::Absent;
    let no_secret = going(
        detach_error(),
        Some("failed to load secret: secrets \"csi\" not found"),
    );
    let mut no_driver = going(detach_error(), None);
    for node in [NODE, OTHER_NODE] {
        no_driver = no_driver.node_named(node, |n| n.csi_drivers.clear());
    }
    let no_driver = no_driver.volume(|v| v.attach_required = None);
    let unrecorded = detach_error()
        .attachments(Vec::clear)
        .node(|n| (n.ready, n.volumes_attached) = (false, vec![volume_name()]))
        .cloud(|c| c.holders.clear());
    let table: [(&str, Case, fn(&StuckCause) -> bool, &str); 4] = [
        (
            "PersistentVolume",
            no_volume,
            |c| matches!(c, StuckCause::VolumeMissing { .. }),
            "finalizers",
        ),
        (
            "Secret",
            no_secret,
            |c| matches!(c, StuckCause::SecretMissing { .. }),
            "create the Secret",
        ),
        (
            "driver",
            no_driver,
            |c| matches!(c, StuckCause::DriverMissing { .. }),
            "install driver",
        ),
        (
            "unrecorded",
            unrecorded,
            |c| matches!(c, StuckCause::Unrecorded { .. }),
            "kubectl taint",
        ),
    ];
    for (name, case, is, advice) in table {
        let verdict = case.diagnosis().verdict;
        let cause = match &verdict {
            Verdict::Ours {
                trouble: Trouble::StuckRecord { cause, .. },
            } => cause,
            other => panic!("{name}: {other:?}"),
        };
        assert!(is(cause), "{name}: {cause:?}");
        let refusals = plan(&case, ALL).unwrap_err();
        let [Refusal::NeedsPeople { advice: said, .. }] = &refusals[..] else {
            panic!("{name}: {refusals:?}")
        };
        assert!(
            said.contains(advice) && refusals[0].may_pass(),
            "{name}: {said}"
        );
    }
}

/// Whoever speaks for the cloud's holder keeps it: a missing Node's record says nothing about another node's instance.
#[test]
fn a_missing_node_never_costs_another_node_its_volume() {
    let mut case = node_missing().cloud(|c| c.holders = vec![OTHER_INSTANCE.into()]);
    case.evidence.instances.remove(&InstanceId::from(INSTANCE));
    let refusals = plan(&case, ALL).unwrap_err();
    assert!(
        refusals[0]
            .to_string()
            .contains("an attach to lke-2 is under way"),
        "{refusals:?}"
    );
    let refusals = plan(
        &case
            .attachments(|all| all.truncate(1))
            .pods(|p| p[0].node = None),
        ALL,
    )
    .unwrap_err();
    assert!(
        refusals[0]
            .to_string()
            .contains("the cloud's holder 26000002 is Node lke-2"),
        "{refusals:?}"
    );
    let alone = node_missing()
        .attachments(|all| all.truncate(1))
        .pods(|p| p[0].node = None);
    let nobody = plan(&alone.cloud(|c| c.holders.clear()), ALL).unwrap_err();
    assert!(
        nobody[0].to_string().contains("within 6 minutes"),
        "{nobody:?}"
    );
}
