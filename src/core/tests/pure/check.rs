//! The independent checker: silent about what the planner makes, and loud about every plan with a rule taken out.

use super::walk::{ALL, dead_node, detach_error, lost, node_missing, orphan, plan, without_policy};
use reattach_core::check::{Rule, Violation, check};
use reattach_core::diagnosis::Trouble;
use reattach_core::evidence::AccessMode;
use reattach_core::fact::Known;
use reattach_core::plan::{Allowed, Plan, PlannedStep, Snapshots};
use reattach_core::stamp::Stamp;
use reattach_core::steps::EffectClass;
use reattach_core::steps::StepKind;
use reattach_core::testkit::{Case, INSTANCE, NODE, OTHER_INSTANCE, OTHER_NODE, attachment, start};
use reattach_core::workload::{AutoscalerFacts, ManagerFacts, ManagerKind, ScalePath};

fn rules(plan: &Plan, case: &Case) -> Vec<String> {
    let found = check(plan, case.evidence.at(case.now), None);
    let sentence = |v: &Violation| {
        let text = v.to_string();
        assert!(
            text.starts_with(&format!("{}: ", v.rule())),
            "{:?} is not the rule of: {text}",
            v.rule()
        );
        text
    };
    found.iter().map(sentence).collect()
}

fn remove(plan: &mut Plan, kind: StepKind) {
    plan.steps.retain(|s| s.kind != kind);
}

/// A change of the plan, and the rule and words of the violation.
type Mutation = (&'static str, fn(&mut Plan), &'static str);

const MUTATIONS: &[Mutation] = &[
    (
        "version",
        |p| p.version = 1,
        "S8: the plan is of another version",
    ),
    (
        "claim name",
        |p| p.claim.name = "other".into(),
        "S8: the plan is for another claim",
    ),
    (
        "claim UID",
        |p| p.pins.claim = "x".into(),
        "S8: the claim is not the pinned one",
    ),
    (
        "PV UID",
        |p| p.pins.pv = "x".into(),
        "S8: the PersistentVolume is not the pinned one",
    ),
    (
        "cloud volume",
        |p| p.pins.volume = "x".into(),
        "S8: the cloud volume is not the pinned one",
    ),
    (
        "identity",
        |p| p.pins.identity.serial = "x".into(),
        "S8: the cloud volume is not the pinned one",
    ),
    (
        "size",
        |p| p.pins.size_gib = 1,
        "S8: the cloud volume is not the pinned one",
    ),
    (
        "holder",
        |p| p.pins.holder = "x".into(),
        "S1: the pinned holder is not the cloud's only holder",
    ),
    (
        "node",
        |p| p.pins.node = "x".into(),
        "S8: the node is another machine or another boot",
    ),
    (
        "boot",
        |p| p.pins.boot_id = Some("x".into()),
        "S8: the node is another machine or another boot",
    ),
    (
        "attachment UID",
        |p| p.pins.attachment.as_mut().unwrap().uid = "x".into(),
        "S8: the VolumeAttachment is not the pinned one",
    ),
    (
        "attachment name",
        |p| p.pins.attachment.as_mut().unwrap().name = "x".into(),
        "S8: the VolumeAttachment is not the pinned one",
    ),
    (
        "workload",
        |p| p.pins.workload.uid = "x".into(),
        "S8: the workload is not the pinned one",
    ),
    (
        "replicas",
        |p| p.pins.replicas = 2,
        "S8: the workload is not the pinned one, or its count changed",
    ),
    (
        "pods",
        |p| p.pins.pods.clear(),
        "S7: the workload's pods are not the pinned ones",
    ),
    (
        "no scale",
        |p| remove(p, StepKind::ScaleToZero),
        "S1: a cloud detach without the claim held away first",
    ),
    (
        "no restore",
        |p| remove(p, StepKind::Restore),
        "S2: a scale to zero without exactly one restore",
    ),
    (
        "restore first",
        |p| p.steps.swap(0, 5),
        "S2: a scale to zero without exactly one restore",
    ),
    (
        "two restores",
        |p| p.steps.push(p.steps[5].clone()),
        "S2: a scale to zero without exactly one restore",
    ),
    (
        "two scales",
        |p| p.steps.push(p.steps[0].clone()),
        "S2: a scale to zero without exactly one restore",
    ),
    (
        "no wait",
        |p| {
            p.steps.remove(4);
        },
        "S2: pods that come back before the detach",
    ),
    (
        "an impatient wait",
        |p| p.steps[4].patience_seconds = Some(1),
        "S2: pods that come back before the detach",
    ),
    (
        "detach after restore",
        |p| {
            let d = p.steps.remove(2);
            p.steps.push(d);
        },
        "S1: a cloud detach after pods may run again",
    ),
    (
        "detach first",
        |p| p.steps.swap(0, 2),
        "S1: a cloud detach without the claim held away first",
    ),
    (
        "repeatable detach",
        |p| p.steps[2].effect_class = EffectClass::Repeatable,
        "S1: a cloud detach that could be repeated blindly",
    ),
    (
        "no deadline",
        |p| p.steps[1].deadline_seconds = 0,
        "S5: a step without a deadline",
    ),
    (
        "diagnosis of another pod",
        |p| {
            if let reattach_core::diagnosis::Trouble::Phantom { at, .. } = &mut p.trouble {
                at.instance = "x".into();
            }
        },
        "S8: the diagnosis and the pins disagree",
    ),
];

/// The same for the plan that holds.
const HOLD_MUTATIONS: &[Mutation] = &[
    (
        "no hold",
        |p| remove(p, StepKind::Hold),
        "S1: a cloud detach without the claim held away first",
    ),
    (
        "no lift",
        |p| remove(p, StepKind::Lift),
        "S2: a hold without exactly one lift",
    ),
    (
        "two holds",
        |p| p.steps.push(p.steps[0].clone()),
        "S2: a hold without exactly one lift",
    ),
    (
        "lift first",
        |p| p.steps.swap(0, 9),
        "S2: a hold without exactly one lift",
    ),
    (
        "release first",
        |p| p.steps.swap(0, 1),
        "S1: a pod evicted while another may come",
    ),
    (
        "release last",
        |p| p.steps.push(p.steps[1].clone()),
        "S1: a pod evicted while another may come",
    ),
    (
        "an impatient wait",
        |p| p.steps[8].patience_seconds = Some(1),
        "S2: pods that come back before the detach",
    ),
    (
        "detach after the lift",
        |p| {
            let d = p.steps.remove(6);
            p.steps.push(d);
        },
        "S1: a cloud detach after pods may run again",
    ),
    (
        "record deleted before the hold",
        |p| {
            let delete = taken_out(p, StepKind::DeleteAttachment);
            p.steps.insert(0, delete);
        },
        "S1: a VolumeAttachment deleted while pods may come",
    ),
    (
        "record deleted after the lift",
        |p| {
            let delete = taken_out(p, StepKind::DeleteAttachment);
            p.steps.push(delete);
        },
        "S1: a VolumeAttachment deleted while pods may come",
    ),
];

/// The same for the plan that fences a node.
const FENCE_MUTATIONS: &[Mutation] = &[
    (
        "repeatable power-off",
        |p| {
            let at = place(p, StepKind::PowerOff);
            p.steps[at].effect_class = EffectClass::Repeatable;
        },
        "S3: an order about power that could be repeated blindly (PowerOff)",
    ),
    (
        "repeatable power-on",
        |p| {
            let at = place(p, StepKind::PowerOn);
            p.steps[at].effect_class = EffectClass::Repeatable;
        },
        "S3: an order about power that could be repeated blindly (PowerOn)",
    ),
    (
        "no taint",
        |p| remove(p, StepKind::TaintOutOfService),
        "S9: an out-of-service taint without",
    ),
    (
        "no untaint",
        |p| remove(p, StepKind::Untaint),
        "S9: an out-of-service taint without",
    ),
    (
        "untaint first",
        |p| {
            let (taint, untaint) = (
                place(p, StepKind::TaintOutOfService),
                place(p, StepKind::Untaint),
            );
            p.steps.swap(taint, untaint);
        },
        "S9: an out-of-service taint without",
    ),
    (
        "two taints",
        |p| {
            let at = place(p, StepKind::TaintOutOfService);
            p.steps.insert(at, p.steps[at].clone());
        },
        "S9: an out-of-service taint without",
    ),
    (
        "no proof",
        |p| remove(p, StepKind::Prove),
        "S1: an out-of-service taint without a proof",
    ),
    (
        "nothing listed",
        |p| p.pins.node_wide = None,
        "S7: an effect on a whole node",
    ),
    (
        "diagnosis of another node",
        |p| {
            if let Trouble::DeadNode { node, .. } = &mut p.trouble {
                *node = "x".into();
            }
        },
        "S8: the diagnosis and the pins disagree",
    ),
    (
        "diagnosis of another machine",
        |p| {
            if let Trouble::DeadNode { instance, .. } = &mut p.trouble {
                *instance = "x".into();
            }
        },
        "S8: the diagnosis and the pins disagree",
    ),
];

/// The same for the plan about a record that is stuck.
const RECORD_MUTATIONS: &[Mutation] = &[
    (
        "diagnosis of another node",
        |p| {
            if let Trouble::StuckRecord { node, .. } = &mut p.trouble {
                *node = "x".into();
            }
        },
        "S8: the diagnosis and the pins disagree",
    ),
    (
        "diagnosis of another record",
        |p| {
            if let Trouble::StuckRecord { attachment, .. } = &mut p.trouble {
                *attachment = Some("x".into());
            }
        },
        "S8: the diagnosis and the pins disagree",
    ),
];

/// The same for the plan about a holder for which no Node speaks.
const ORPHAN_MUTATIONS: &[Mutation] = &[
    (
        "diagnosis of another holder",
        |p| {
            if let Trouble::Orphan { holder, .. } = &mut p.trouble {
                *holder = "x".into();
            }
        },
        "S8: the diagnosis and the pins disagree",
    ),
    (
        "a record is pinned",
        |p| {
            let pinned = plan(&detach_error(), ALL).unwrap().pins.attachment;
            p.pins.attachment = pinned;
        },
        "S8: the diagnosis and the pins disagree",
    ),
];

#[test]
fn each_broken_rule_of_a_plan_is_a_violation() {
    let case = Case::statefulset();
    each_is_missed(&case, &case.plan().unwrap(), MUTATIONS);
    let case = case.holdable();
    each_is_missed(
        &case,
        &case.plan_by("lightest-first", None, false).unwrap(),
        HOLD_MUTATIONS,
    );
    let by_ladder: [(Case, &[Mutation]); 3] = [
        (dead_node(), FENCE_MUTATIONS),
        (detach_error(), RECORD_MUTATIONS),
        (orphan(), ORPHAN_MUTATIONS),
    ];
    for (case, mutations) in by_ladder {
        each_is_missed(&case, &plan(&case, ALL).unwrap(), mutations);
    }
}

/// The cloud may name nobody where the volume is lost, and nobody or the pinned holder where a record is stuck.
#[test]
fn holders_that_differ_from_the_diagnosis_are_a_violation() {
    let (nobody, pinned, another): (&[&str], &[&str], &[&str]) =
        (&[], &[INSTANCE], &[OTHER_INSTANCE]);
    let table = [
        (lost(), vec![nobody], vec![pinned, another]),
        (detach_error(), vec![nobody, pinned], vec![another]),
        (node_missing(), vec![nobody, pinned], vec![another]),
    ];
    for (case, fitting, others) in table {
        let plan = plan(&case, ALL).unwrap();
        let found = |holders: &[&str]| {
            let holders = holders.iter().map(|h| (*h).into()).collect();
            rules(&plan, &case.clone().cloud(|c| c.holders = holders))
        };
        for holders in fitting {
            assert_eq!(
                found(holders),
                Vec::<String>::new(),
                "{:?}, {holders:?}",
                plan.trouble
            );
        }
        for holders in others {
            let found = found(holders);
            let named = found
                .iter()
                .any(|v| v.starts_with("S1: the pinned holder is not the cloud's only holder"));
            assert!(named, "{:?}, {holders:?}: {found:?}", plan.trouble);
        }
    }
}

/// A record on another node may stay only where the old holder's record goes, and only while it is not attached.
#[test]
fn an_attachment_on_another_node_is_a_violation() {
    let seen = |plan: &Plan, case: &Case| {
        let found = rules(plan, case);
        found.iter().any(|v| {
            *v == format!("S7: another node has a VolumeAttachment of the volume ({OTHER_NODE})")
        })
    };
    let elsewhere = |attached: bool| {
        let other = reattach_core::evidence::AttachmentFacts {
            attached,
            ..attachment("x", OTHER_NODE)
        };
        Case::statefulset()
            .with_node(OTHER_NODE, OTHER_INSTANCE)
            .attachments(|all| all.push(other))
    };
    let phantom = Case::statefulset().plan().unwrap();
    assert!(seen(&phantom, &elsewhere(true)) && seen(&phantom, &elsewhere(false)));
    let stuck = plan(&detach_error(), ALL).unwrap();
    assert!(!seen(&stuck, &detach_error()));
    assert!(seen(
        &stuck,
        &detach_error().attachments(|all| all[1].attached = true)
    ));
}

/// The claim and each claim of its workload can be opted out alone.
#[test]
fn one_opted_out_claim_is_a_violation() {
    let plan = Case::statefulset().plan().unwrap();
    let mut claim = Case::statefulset();
    super::walk::change(&mut claim.evidence.claim, |c| {
        c.opted_out = Some("claim".into())
    });
    let of_workload = Case::statefulset()
        .workload(|w| w.claims[0].1.as_mut().unwrap().opted_out = Some("claim".into()));
    for case in [claim, of_workload] {
        assert_eq!(
            rules(&plan, &case),
            ["S7: the claim, its namespace or its workload is opted out"]
        );
    }
}

/// Other remediators' taints are named, also beside our own out-of-service taint.
#[test]
fn another_remediators_lock_is_a_violation() {
    let plan = Case::statefulset().plan().unwrap();
    let found = |by_us: bool, taints: &[&str]| {
        rules(
            &plan,
            &Case::statefulset().node(|n| {
                n.out_of_service_by_us = by_us;
                n.taints = taints.iter().map(|t| (*t).to_owned()).collect();
            }),
        )
    };
    const OUT: &str = "node.kubernetes.io/out-of-service";
    for taints in [&[][..], &["dedicated"]] {
        assert_eq!(found(false, taints), Vec::<String>::new(), "{taints:?}");
    }
    assert_eq!(found(true, &[OUT]), Vec::<String>::new(), "our own");
    let foreign = [
        "karpenter.sh/disrupted",
        "medik8s.io/remediation",
        "remediation.medik8s.io/x",
    ];
    for taints in foreign.map(|t| vec![t]).into_iter().chain([vec![OUT]]) {
        let named = taints[0];
        let expected = format!("S9: someone else is at work on the node (taint {named})");
        assert_eq!(found(false, &taints), [expected], "{taints:?}");
    }
    for taint in foreign {
        let expected = format!("S9: someone else is at work on the node (taint {taint})");
        assert_eq!(found(true, &[OUT, taint]), [expected]);
    }
}

fn each_is_missed(case: &Case, good: &Plan, mutations: &[Mutation]) {
    assert_eq!(rules(good, case), Vec::<String>::new());
    for (name, change, expected) in mutations {
        let mut plan = good.clone();
        change(&mut plan);
        let unsealed = rules(&plan, case);
        assert!(
            unsealed.iter().any(|v| v.contains("hash")),
            "{name}: the hash does not show it: {unsealed:?}"
        );
        plan.hash = plan.computed_hash();
        let found = rules(&plan, case);
        assert!(
            found.iter().any(|v| v.starts_with(expected)),
            "{name}: expected {expected:?}, found {found:?}"
        );
    }
}

/// A change of the evidence after the plan was made, and the violation.
type Drift = (&'static str, fn(Case) -> Case, &'static str);

const DRIFTS: [Drift; 26] = [
    (
        "claim deleting",
        |c| c.claim(|c| c.deleting = true),
        "S8: the claim",
    ),
    (
        "shared",
        |c| c.claim(|c| c.access_modes = vec![AccessMode::ReadWriteMany]),
        "S1: the claim is not for a single writer",
    ),
    (
        "no access mode",
        |c| c.claim(|c| c.access_modes.clear()),
        "S1: the claim is not for a single writer",
    ),
    (
        "opted out",
        |c| c.claim(|c| c.opted_out = Some("claim".into())),
        "S7: the claim, its namespace or its workload is opted out",
    ),
    (
        "two holders",
        |c| c.cloud(|c| c.holders.push("7".into())),
        "S1: the pinned holder is not the cloud's only holder",
    ),
    (
        "no holder",
        |c| c.cloud(|c| c.holders.clear()),
        "S1: the pinned holder is not the cloud's only holder",
    ),
    (
        "rebooted",
        |c| c.node(|n| n.boot_id = "later".into()),
        "S8: the node is another machine or another boot",
    ),
    (
        "replaced",
        |c| c.node(|n| n.instance = Some("7".into())),
        "S8: the node is another machine or another boot",
    ),
    (
        "second record",
        |c| {
            c.with_node(OTHER_NODE, OTHER_INSTANCE)
                .attachments(|a| a.push(attachment("x", OTHER_NODE)))
        },
        "S7: another node has a VolumeAttachment",
    ),
    (
        "new record",
        |c| c.attachment(|a| a.uid = "new".into()),
        "S8: the VolumeAttachment is not the pinned one",
    ),
    (
        "whenScaled",
        |c| c.workload(|w| w.deletes_claims_when_scaled = true),
        "S2: the workload deletes its claims",
    ),
    (
        "ephemeral",
        |c| c.workload(|w| w.template.ephemeral_volumes = vec!["x".into()]),
        "S2: a generic ephemeral volume",
    ),
    (
        "emptyDir",
        |c| c.workload(|w| w.template.empty_dirs = vec!["x".into()]),
        "S2: an emptyDir would be lost",
    ),
    (
        "rollout",
        |c| c.workload(|w| w.rollout = Some("x".into())),
        "S2: the workload is being changed",
    ),
    (
        "autoscaler",
        |c| {
            c.workload(|w| {
                w.autoscalers = vec![AutoscalerFacts {
                    name: "x".into(),
                    min_replicas: 0,
                }]
            })
        },
        "S2: an autoscaler",
    ),
    (
        "manager",
        |c| {
            c.workload(|w| {
                w.managers = vec![ManagerFacts {
                    kind: ManagerKind::Keda,
                    evidence: "x".into(),
                    paused: false,
                }]
            })
        },
        "S2: someone else owns the count",
    ),
    (
        "Argo CD",
        |c| {
            c.workload(|w| {
                w.managers = vec![ManagerFacts {
                    kind: ManagerKind::ArgoCd,
                    evidence: "x".into(),
                    paused: true,
                }]
            })
        },
        "S2: someone else owns the count",
    ),
    (
        "dry run",
        |c| c.workload(|w| w.pod_dry_run = None),
        "S2: a new pod is not known to be accepted",
    ),
    (
        "foreign owner",
        |c| {
            c.workload(|w| {
                w.claims[0].1.as_mut().unwrap().owners = vec![Case::owner("Backup", "b")]
            })
        },
        "S2: a claim of the workload would not survive",
    ),
    (
        "claim missing",
        |c| c.workload(|w| w.claims[0].1 = None),
        "S2: a claim of the workload would not survive",
    ),
    (
        "ordered",
        |c| c.with_pod("redis-1", Some(NODE), true),
        "S2: ordered pods would never reach zero",
    ),
    (
        "preStop",
        |c| {
            c.pod_ready()
                .workload(|w| w.template.pre_stop = vec!["x".into()])
        },
        "S2: a healthy pod's preStop hook",
    ),
    (
        "foreign pod",
        |c| c.with_pod("zz", Some(NODE), false),
        "S7: a pod outside the workload uses the claim",
    ),
    (
        "not scalable",
        |c| c.workload(|w| w.scaling = ScalePath::None),
        "S2: the workload cannot be scaled back",
    ),
    (
        "stamped",
        |c| {
            c.workload(|w| {
                w.stamp = Some(Ok(Stamp {
                    replicas: 1,
                    workload: "workload-1".into(),
                    recovery: "recovery-2".into(),
                    at: start(),
                }))
            })
        },
        "S2: another recovery's stamp",
    ),
    (
        "taint",
        |c| c.node(|n| n.taints = vec!["node.kubernetes.io/out-of-service".into()]),
        "S9: someone else is at work on the node",
    ),
];

/// What the plan that holds minds, and what it does not mind.
#[test]
fn each_drift_under_a_hold_is_a_violation() {
    let hook = |c: Case| c.workload(|w| w.template.pre_stop = vec!["x".into()]);
    let case = || {
        Case::statefulset()
            .holdable()
            .with_node(OTHER_NODE, OTHER_INSTANCE)
    };
    let made = plan(&case(), ALL).unwrap();
    let would_run = ["S2: a healthy pod's preStop hook would run"];
    assert_eq!(
        rules(&made, &hook(case())),
        Vec::<String>::new(),
        "the pod is not Ready"
    );
    assert_eq!(
        rules(&made, &hook(case().pod(|p| p.ready = true))),
        would_run
    );
    assert_eq!(
        rules(&made, &case().pod(|p| p.ready = true)),
        Vec::<String>::new(),
        "it has no hook"
    );
    let elsewhere = case().pod(|p| (p.ready, p.node) = (true, Some(OTHER_NODE.into())));
    assert_eq!(
        rules(&made, &hook(elsewhere)),
        Vec::<String>::new(),
        "it is not released"
    );
    // A node that is fenced has none released.
    let ready = hook(dead_node().pod(|p| p.ready = true));
    assert_eq!(
        rules(&plan(&dead_node(), ALL).unwrap(), &ready),
        Vec::<String>::new()
    );

    let found = rules(&made, &case().workload(|w| w.replicas = 0));
    assert!(
        found
            .iter()
            .any(|v| v == "S2: someone keeps the workload at zero"),
        "{found:?}"
    );
    let found = rules(&made, &without_policy(case()));
    assert_eq!(
        found,
        ["S1: the cluster is not known to hold pods away by admission"]
    );
    let fence = without_policy(dead_node());
    let made = plan(&fence, ALL).unwrap();
    assert!(made.find(StepKind::Hold).is_none());
    assert_eq!(
        rules(&made, &fence),
        Vec::<String>::new(),
        "it holds nothing"
    );
}

/// A hook matters where a healthy pod would run it.
#[test]
fn a_healthy_pod_without_a_hook_is_no_violation() {
    let made = Case::statefulset().plan().unwrap();
    let hook = |c: Case| c.workload(|w| w.template.pre_stop = vec!["x".into()]);
    assert_eq!(
        rules(&made, &Case::statefulset().pod_ready()),
        Vec::<String>::new()
    );
    assert_eq!(
        rules(&made, &hook(Case::statefulset())),
        Vec::<String>::new()
    );
}

/// An autoscaler that always keeps a pod is no danger to a count of zero that is ours.
#[test]
fn an_autoscaler_that_keeps_a_pod_is_no_violation() {
    let case = Case::statefulset().workload(|w| {
        w.autoscalers = vec![AutoscalerFacts {
            name: "x".into(),
            min_replicas: 1,
        }]
    });
    assert_eq!(
        rules(&Case::statefulset().plan().unwrap(), &case),
        Vec::<String>::new()
    );
}

#[test]
fn an_unlisted_volume_on_the_node_is_a_violation() {
    let plan = super::walk::plan(&super::walk::dead_node(), super::walk::ALL).unwrap();
    assert_eq!(
        rules(&plan, &super::walk::dead_node()),
        Vec::<String>::new()
    );
    let more = super::walk::dead_node().node(|n| {
        n.volumes_attached
            .push("kubernetes.io/csi/x^another".into())
    });
    let found = rules(&plan, &more);
    assert!(
        found
            .iter()
            .any(|v| v.starts_with("S7: the plan does not list")),
        "{found:?}"
    );
}

#[test]
fn a_claim_for_several_writers_is_a_violation() {
    use reattach_core::evidence::AccessMode::{ReadOnlyMany, ReadWriteMany, ReadWriteOnce};
    let plan = Case::statefulset().plan().unwrap();
    for modes in [
        vec![],
        vec![ReadWriteMany],
        vec![ReadOnlyMany],
        vec![ReadWriteOnce, ReadWriteMany],
    ] {
        let found = rules(
            &plan,
            &Case::statefulset().claim(|c| c.access_modes = modes.clone()),
        );
        assert_eq!(
            found,
            [format!(
                "S1: the claim is not for a single writer (access modes {modes:?})"
            )]
        );
    }
}

#[test]
fn each_drift_of_the_evidence_is_a_violation() {
    let plan = Case::statefulset().plan().unwrap();
    for (name, change, expected) in DRIFTS {
        let found = rules(&plan, &change(Case::statefulset()));
        assert!(
            found.iter().any(|v| v.starts_with(expected)),
            "{name}: expected {expected:?}, found {found:?}"
        );
    }
}

#[test]
fn missing_facts_are_violations() {
    let plan = Case::statefulset().plan().unwrap();
    let spoil: [fn(&mut Case); 6] = [
        |c| c.evidence.claim.value = Known::Unknown { why: "x".into() },
        |c| c.evidence.volume.value = Known::Unknown { why: "x".into() },
        |c| c.evidence.attachments.value = Known::Unknown { why: "x".into() },
        |c| c.evidence.pods.value = Known::Unknown { why: "x".into() },
        |c| c.evidence.workload.value = Known::Unknown { why: "x".into() },
        |c| c.evidence.cloud_volume.value = Known::Unknown { why: "x".into() },
    ];
    for (n, spoil) in spoil.iter().enumerate() {
        let mut case = Case::statefulset();
        spoil(&mut case);
        assert!(!rules(&plan, &case).is_empty(), "case {n}");
    }
}

#[test]
fn several_replicas_need_the_name_of_the_workload() {
    let case = Case::statefulset().workload(|w| w.replicas = 3);
    let plan = case.plan_as(Some("StatefulSet/redis"), false).unwrap();
    assert_eq!(
        check(&plan, case.evidence.at(case.now), Some("StatefulSet/redis")),
        []
    );
    for named in [None, Some("StatefulSet/other")] {
        let found = check(&plan, case.evidence.at(case.now), named);
        assert!(
            found.iter().any(|v| v.rule() == Rule::S2),
            "{named:?}: {found:?}"
        );
    }
}

/// The same for the plan with a snapshot and a detach by force.
const SNAPSHOT_MUTATIONS: &[Mutation] = &[
    (
        "no force",
        |p| remove(p, StepKind::CloudForce),
        "S3: a snapshot that could be repeated blindly",
    ),
    (
        "repeatable snapshot",
        |p| snapshot(p).effect_class = EffectClass::Repeatable,
        "S3: a snapshot that could be repeated blindly",
    ),
    (
        "two snapshots",
        |p| {
            let (at, again) = (place(p, StepKind::Snapshot), snapshot(p).clone());
            p.steps.insert(at, again);
        },
        "S3: a snapshot that could be repeated blindly",
    ),
    (
        "a snapshot after force",
        |p| {
            let at = place(p, StepKind::Snapshot);
            p.steps.swap(at, at + 1);
        },
        "S3: a snapshot that could be repeated blindly",
    ),
];

fn place(plan: &Plan, kind: StepKind) -> usize {
    plan.find(kind).unwrap().index()
}

fn taken_out(plan: &mut Plan, kind: StepKind) -> PlannedStep {
    let at = place(plan, kind);
    plan.steps.remove(at)
}

fn snapshot(plan: &mut Plan) -> &mut PlannedStep {
    let at = place(plan, StepKind::Snapshot);
    &mut plan.steps[at]
}

#[test]
fn a_snapshot_comes_once_and_right_before_force() {
    let case = orphan();
    let plan = plan(
        &case,
        Allowed {
            snapshot: Snapshots::Required,
            ..ALL
        },
    )
    .unwrap();
    each_is_missed(&case, &plan, SNAPSHOT_MUTATIONS);
}
