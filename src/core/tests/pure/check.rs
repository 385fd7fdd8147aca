//! The independent checker: silent about what the planner makes, and loud about every plan with a rule taken out.

use super::walk::{ALL, orphan, plan};
use reattach_core::check::check;
use reattach_core::evidence::AccessMode;
use reattach_core::fact::Known;
use reattach_core::plan::{Allowed, EffectClass, Plan, PlannedStep, Snapshots};
use reattach_core::runbook::StepKind;
use reattach_core::stamp::Stamp;
use reattach_core::testkit::{Case, NODE, OTHER_INSTANCE, OTHER_NODE, attachment, start};
use reattach_core::workload::{AutoscalerFacts, ManagerFacts, ManagerKind, ScalePath};

fn rules(plan: &Plan, case: &Case) -> Vec<String> {
    check(plan, &case.evidence, None, case.now).iter().map(ToString::to_string).collect()
}

fn remove(plan: &mut Plan, kind: StepKind) {
    plan.steps.retain(|s| s.kind != kind);
}

/// A change of the plan, and the rule and words of the violation.
type Mutation = (&'static str, fn(&mut Plan), &'static str);

const MUTATIONS: &[Mutation] = &[
    ("version", |p| p.version = 1, "S8: the plan is of another version"),
    ("claim name", |p| p.claim.name = "other".into(), "S8: the plan is for another claim"),
    ("claim UID", |p| p.pins.claim = "x".into(), "S8: the claim is not the pinned one"),
    ("PV UID", |p| p.pins.pv = "x".into(), "S8: the PersistentVolume is not the pinned one"),
    ("cloud volume", |p| p.pins.volume = "x".into(), "S8: the cloud volume is not the pinned one"),
    ("identity", |p| p.pins.identity.serial = "x".into(), "S8: the cloud volume is not the pinned one"),
    ("size", |p| p.pins.size_gib = 1, "S8: the cloud volume is not the pinned one"),
    ("holder", |p| p.pins.holder = "x".into(), "S1: the pinned holder is not the cloud's only holder"),
    ("node", |p| p.pins.node = "x".into(), "S8: the node is another machine or another boot"),
    ("boot", |p| p.pins.boot_id = Some("x".into()), "S8: the node is another machine or another boot"),
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
    ("workload", |p| p.pins.workload.uid = "x".into(), "S8: the workload is not the pinned one"),
    ("replicas", |p| p.pins.replicas = 2, "S8: the workload is not the pinned one, or its count changed"),
    ("pods", |p| p.pins.pods.clear(), "S7: the workload's pods are not the pinned ones"),
    (
        "no scale",
        |p| remove(p, StepKind::ScaleToZero),
        "S1: a cloud detach without the claim held away first",
    ),
    ("no restore", |p| remove(p, StepKind::Restore), "S2: a scale to zero without exactly one restore"),
    ("restore first", |p| p.steps.swap(0, 5), "S2: a scale to zero without exactly one restore"),
    ("two restores", |p| p.steps.push(p.steps[5].clone()), "S2: a scale to zero without exactly one restore"),
    ("two scales", |p| p.steps.push(p.steps[0].clone()), "S2: a scale to zero without exactly one restore"),
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
    ("detach first", |p| p.steps.swap(0, 2), "S1: a cloud detach without the claim held away first"),
    (
        "repeatable detach",
        |p| p.steps[2].effect_class = EffectClass::Repeatable,
        "S1: a cloud detach that could be repeated blindly",
    ),
    ("no deadline", |p| p.steps[1].deadline_seconds = 0, "S5: a step without a deadline"),
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
    ("no hold", |p| remove(p, StepKind::Hold), "S1: a cloud detach without the claim held away first"),
    ("no lift", |p| remove(p, StepKind::Lift), "S2: a hold without exactly one lift"),
    ("two holds", |p| p.steps.push(p.steps[0].clone()), "S2: a hold without exactly one lift"),
    ("lift first", |p| p.steps.swap(0, 9), "S2: a hold without exactly one lift"),
    ("release first", |p| p.steps.swap(0, 1), "S1: a pod evicted while another may come"),
    ("release last", |p| p.steps.push(p.steps[1].clone()), "S1: a pod evicted while another may come"),
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
];

#[test]
fn each_rule_taken_out_of_a_plan_is_missed() {
    let case = Case::statefulset();
    each_is_missed(&case, &case.plan().unwrap(), MUTATIONS);
    let case = case.holdable();
    each_is_missed(&case, &case.plan_by("lightest-first", None, false).unwrap(), HOLD_MUTATIONS);
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
    ("claim deleting", |c| c.claim(|c| c.deleting = true), "S8: the claim"),
    (
        "shared",
        |c| c.claim(|c| c.access_modes = vec![AccessMode::ReadWriteMany]),
        "S1: the claim is not for a single writer",
    ),
    ("no access mode", |c| c.claim(|c| c.access_modes.clear()), "S1: the claim is not for a single writer"),
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
    ("no holder", |c| c.cloud(|c| c.holders.clear()), "S1: the pinned holder is not the cloud's only holder"),
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
        |c| c.with_node(OTHER_NODE, OTHER_INSTANCE).attachments(|a| a.push(attachment("x", OTHER_NODE))),
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
    ("rollout", |c| c.workload(|w| w.rollout = Some("x".into())), "S2: the workload is being changed"),
    (
        "autoscaler",
        |c| c.workload(|w| w.autoscalers = vec![AutoscalerFacts { name: "x".into(), min_replicas: 0 }]),
        "S2: an autoscaler",
    ),
    (
        "manager",
        |c| {
            c.workload(|w| {
                w.managers =
                    vec![ManagerFacts { kind: ManagerKind::Keda, evidence: "x".into(), paused: false }]
            })
        },
        "S2: someone else owns the count",
    ),
    (
        "Argo CD",
        |c| {
            c.workload(|w| {
                w.managers =
                    vec![ManagerFacts { kind: ManagerKind::ArgoCd, evidence: "x".into(), paused: true }]
            })
        },
        "S2: someone else owns the count",
    ),
    ("dry run", |c| c.workload(|w| w.pod_dry_run = None), "S2: a new pod is not known to be accepted"),
    (
        "foreign owner",
        |c| c.workload(|w| w.claims[0].1.as_mut().unwrap().owners = vec![Case::owner("Backup", "b")]),
        "S2: a claim of the workload would not survive",
    ),
    (
        "claim missing",
        |c| c.workload(|w| w.claims[0].1 = None),
        "S2: a claim of the workload would not survive",
    ),
    ("ordered", |c| c.with_pod("redis-1", Some(NODE), true), "S2: ordered pods would never reach zero"),
    (
        "preStop",
        |c| c.pod_ready().workload(|w| w.template.pre_stop = vec!["x".into()]),
        "S2: a healthy pod's preStop hook",
    ),
    ("foreign pod", |c| c.with_pod("zz", Some(NODE), false), "S7: a pod outside the workload uses the claim"),
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

#[test]
fn a_volume_on_the_node_that_the_plan_does_not_list_is_seen() {
    let plan = super::walk::plan(&super::walk::dead_node(), super::walk::ALL).unwrap();
    assert_eq!(rules(&plan, &super::walk::dead_node()), Vec::<String>::new());
    let more =
        super::walk::dead_node().node(|n| n.volumes_attached.push("kubernetes.io/csi/x^another".into()));
    let found = rules(&plan, &more);
    assert!(found.iter().any(|v| v.starts_with("S7: the plan does not list")), "{found:?}");
}

#[test]
fn a_claim_for_several_writers_is_seen() {
    use reattach_core::evidence::AccessMode::{ReadOnlyMany, ReadWriteMany, ReadWriteOnce};
    let plan = Case::statefulset().plan().unwrap();
    for modes in [vec![], vec![ReadWriteMany], vec![ReadOnlyMany], vec![ReadWriteOnce, ReadWriteMany]] {
        let found = rules(&plan, &Case::statefulset().claim(|c| c.access_modes = modes.clone()));
        assert_eq!(found, ["S1: the claim is not for a single writer"], "{modes:?}");
    }
}

#[test]
fn each_drift_of_the_evidence_is_seen() {
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
fn what_is_not_known_is_a_violation() {
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
    assert_eq!(check(&plan, &case.evidence, Some("StatefulSet/redis"), case.now), []);
    for named in [None, Some("StatefulSet/other")] {
        let found = check(&plan, &case.evidence, named, case.now);
        assert!(found.iter().any(|v| v.rule == "S2"), "{named:?}: {found:?}");
    }
}

/// The same for the plan with a snapshot and a detach by force.
const SNAPSHOT_MUTATIONS: &[Mutation] = &[
    ("no force", |p| remove(p, StepKind::CloudForce), "S3: a snapshot that could be repeated blindly"),
    (
        "repeatable snapshot",
        |p| snapshot(p).effect_class = EffectClass::Repeatable,
        "S3: a snapshot that could be repeated blindly",
    ),
    (
        "two snapshots",
        |p| {
            let (at, again) = (place(p), snapshot(p).clone());
            p.steps.insert(at, again);
        },
        "S3: a snapshot that could be repeated blindly",
    ),
    (
        "a snapshot after force",
        |p| {
            let at = place(p);
            p.steps.swap(at, at + 1);
        },
        "S3: a snapshot that could be repeated blindly",
    ),
];

fn place(plan: &Plan) -> usize {
    plan.find(StepKind::Snapshot).unwrap().index()
}

fn snapshot(plan: &mut Plan) -> &mut PlannedStep {
    let at = place(plan);
    &mut plan.steps[at]
}

#[test]
fn a_snapshot_stands_once_and_right_before_force() {
    let case = orphan();
    let plan = plan(&case, Allowed { snapshot: Snapshots::Required, ..ALL }).unwrap();
    each_is_missed(&case, &plan, SNAPSHOT_MUTATIONS);
}
