//! An independent second look at a finished plan: it re-derives the safety rules from plan and evidence, shares no code
//! with the planner, and can veto.

mod identity;

use crate::diagnosis::Trouble;
use crate::evidence::{AccessMode, AttachmentFacts, ClaimFacts, Evidence, MAX_AGE, PodFacts};
use crate::fact::Reading;
use crate::ids::{ObjectName, PlanHash};
use crate::loss::PodsGo;
use crate::plan::{EffectClass, PLAN_VERSION, Plan};
use crate::runbook::{StepKind, hash16};
use crate::workload::{ManagerKind, ScalePath, WorkloadFacts};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A rule that a plan breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{rule}: {what}")]
pub struct Violation {
    /// `S1`, `S2`, `S3`, `S5`, `S7`, `S8`, `S9` or `S10`.
    pub rule: String,
    /// What is wrong.
    pub what: String,
}

/// Everything that is wrong with a plan. Empty: the checker has no objection.
pub fn check(plan: &Plan, evidence: &Evidence, confirmed: Option<&str>, now: Timestamp) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut say = |rule: &str, ok: bool, what: &str| {
        if !ok {
            found.push(Violation { rule: rule.to_owned(), what: what.to_owned() });
        }
    };
    say("S8", plan.version == PLAN_VERSION, "the plan is of another version");
    say(
        "S8",
        plan.computed_hash() == plan.hash && plan.hash != PlanHash::from(""),
        "the plan's hash does not match its content",
    );
    shape(plan, &mut say);
    pins(plan, evidence, now, &mut say);
    losses(plan, evidence, confirmed, now, &mut say);
    identity::identity(plan, evidence, now, &mut say);
    found
}

/// S1 and S2 by the order of the steps alone.
fn shape(plan: &Plan, say: &mut impl FnMut(&str, bool, &str)) {
    let kinds: Vec<StepKind> = plan.steps.iter().map(|s| s.kind).collect();
    let first = |k| kinds.iter().position(|x| *x == k);
    let last = |k| kinds.iter().rposition(|x| *x == k);
    let (scale, restore) = (first(StepKind::ScaleToZero), first(StepKind::Restore));
    let (hold, lift) = (first(StepKind::Hold), first(StepKind::Lift));
    let away = scale.or(hold);
    let back = restore.or(lift);
    for kind in [StepKind::CloudDetach, StepKind::CloudForce] {
        let Some(detach) = first(kind) else { continue };
        say("S1", away.is_some_and(|s| s < detach), "a cloud detach without the claim held away first");
        say(
            "S1",
            plan.steps[detach].effect_class == EffectClass::Once,
            "a cloud detach that could be repeated blindly",
        );
        say(
            "S1",
            back.is_none_or(|r| last(kind).is_some_and(|d| d < r)),
            "a cloud detach after pods may run again",
        );
    }
    say(
        "S3",
        first(StepKind::Snapshot).is_none_or(|s| {
            plan.steps[s].effect_class == EffectClass::Once
                && last(StepKind::Snapshot) == Some(s)
                && kinds.get(s + 1) == Some(&StepKind::CloudForce)
        }),
        "a snapshot that could be repeated blindly, or that no detach by force follows",
    );
    say(
        "S1",
        first(StepKind::DeleteAttachment).is_none_or(|d| away.is_some_and(|a| a < d) && back > Some(d)),
        "a VolumeAttachment deleted while pods may come",
    );
    say(
        "S1",
        !plan.closes_node
            || (hold.is_some() && first(StepKind::CloudDetach).or(first(StepKind::CloudForce)).is_none()),
        "a cloud detach while pods of the claim may start on other nodes",
    );
    let (taint, untaint) = (first(StepKind::TaintOutOfService), first(StepKind::Untaint));
    say(
        "S9",
        taint.is_none() == untaint.is_none()
            && untaint >= taint
            && last(StepKind::TaintOutOfService) == taint,
        "an out-of-service taint without exactly one end of it",
    );
    say(
        "S1",
        taint.is_none_or(|t| first(StepKind::Prove).is_some_and(|p| p < t)),
        "an out-of-service taint without a proof before it",
    );
    let whole_node = [taint, first(StepKind::PowerOff), first(StepKind::Quarantine)];
    say(
        "S7",
        plan.pins.node_wide.is_some() || whole_node.iter().all(Option::is_none),
        "an effect on a whole node that does not list what is on it",
    );
    say(
        "S2",
        scale.is_none()
            || (last(StepKind::ScaleToZero) == scale
                && restore > scale
                && last(StepKind::Restore) == restore),
        "a scale to zero without exactly one restore after it",
    );
    say("S2", scale.is_none() || hold.is_none(), "both a hold and a scale to zero");
    say(
        "S2",
        hold.is_none() || (last(StepKind::Hold) == hold && lift > hold && last(StepKind::Lift) == lift),
        "a hold without exactly one lift after it",
    );
    say(
        "S1",
        first(StepKind::Release).is_none_or(|r| hold.is_some_and(|h| h < r))
            && last(StepKind::Release).is_none_or(|r| lift > Some(r)),
        "a pod evicted while another may come",
    );
    say(
        "S2",
        back.is_none_or(|r| {
            r > 0 && kinds[r - 1] == StepKind::AwaitDetached && plan.steps[r - 1].patience_seconds.is_none()
        }),
        "pods that come back before the detach",
    );
    say("S5", plan.steps.iter().all(|s| s.deadline_seconds > 0), "a step without a deadline");
}

/// S8: the pins are what the evidence says now. S1: one writer's volume, one holder.
fn pins(plan: &Plan, e: &Evidence, now: Timestamp, say: &mut impl FnMut(&str, bool, &str)) {
    let p = &plan.pins;
    let claim = e.claim.read(now, MAX_AGE).present();
    say("S8", plan.claim == e.claim_name, "the plan is for another claim");
    say(
        "S8",
        claim.is_some_and(|c| c.uid == p.claim && !c.deleting),
        "the claim is not the pinned one, or is being deleted",
    );
    let one_writer = |m: &AccessMode| matches!(m, AccessMode::ReadWriteOnce | AccessMode::ReadWriteOncePod);
    say(
        "S1",
        claim.is_some_and(|c| !c.access_modes.is_empty() && c.access_modes.iter().all(one_writer)),
        "the claim is not for a single writer",
    );
    let claims = e.workload.read(now, MAX_AGE).present().map_or(&[][..], |w| w.claims.as_slice());
    let out = |c: &ClaimFacts| c.opted_out.is_some();
    say(
        "S7",
        !claim.is_some_and(out) && !claims.iter().any(|(_, c)| c.as_ref().is_some_and(out)),
        "the claim, its namespace or its workload is opted out",
    );
    say(
        "S8",
        e.volume.read(now, MAX_AGE).present().is_some_and(|v| v.uid == p.pv),
        "the PersistentVolume is not the pinned one",
    );
    let cloud = e.cloud_volume.read(now, MAX_AGE).present();
    say(
        "S8",
        cloud.is_some_and(|c| c.id == p.volume && c.identity == p.identity && c.size_gib == p.size_gib),
        "the cloud volume is not the pinned one",
    );
    let holders = cloud.map(|c| c.holders.as_slice());
    let alone = holders == Some(std::slice::from_ref(&p.holder));
    let free = holders == Some(&[]);
    let as_it_should = match plan.trouble {
        Trouble::Lost { .. } => free,
        Trouble::StuckRecord { .. } => free || alone,
        _ => alone,
    };
    say("S1", as_it_should, "the pinned holder is not the cloud's only holder");
    let node = e.nodes.get(&p.node).map(|f| f.read(now, MAX_AGE));
    let attachments = e.attachments.read(now, MAX_AGE).present();
    say("S8", agrees(plan), "the diagnosis and the pins disagree");
    match (&plan.trouble, &node) {
        // Nobody speaks for the orphan's holder, or a node that has no record of the volume.
        (Trouble::Orphan { .. }, Some(Reading::Present(_))) => {}
        (Trouble::StuckRecord { .. }, Some(Reading::Absent)) => {
            say("S8", p.boot_id.is_none(), "a boot is pinned of a Node that does not exist");
        }
        (_, Some(Reading::Present(n))) => say(
            "S8",
            n.instance.as_ref() == Some(&p.holder) && Some(&n.boot_id) == p.boot_id.as_ref(),
            "the node is another machine or another boot than pinned",
        ),
        _ => say("S8", false, "the node is another machine or another boot than pinned"),
    }
    if let Some(Reading::Present(n)) = node {
        let ours = |t: &str| n.out_of_service_by_us && t == "node.kubernetes.io/out-of-service";
        let foreign = |t: &str| {
            t == "node.kubernetes.io/out-of-service"
                || t.contains("medik8s.io/")
                || t == "karpenter.sh/disrupted"
        };
        say("S9", !n.taints.iter().any(|t| foreign(t) && !ours(t)), "someone else is at work on the node");
        if let Trouble::DeadNode { .. } = plan.trouble {
            say("S1", !n.ready, "the node that is called dead is Ready");
        }
        let Some(listed) = &p.node_wide else { return others(plan, attachments, say) };
        let on_it = e.node_pods.get(&p.node).and_then(|f| f.read(now, MAX_AGE).present());
        let used = e.node_claims.get(&p.node).and_then(|f| f.read(now, MAX_AGE).present());
        say(
            "S7",
            on_it.is_some_and(|pods| {
                pods.iter().all(|pod| listed.pods.contains(pod) || listed.other_pods.contains(&pod.1))
            }) && used.is_some_and(|all| {
                all.iter().all(|c| {
                    listed.claims.contains(&c.claim) || listed.other_claims.contains(&hash16(&c.claim))
                })
            }) && n.volumes_attached.iter().all(|v| {
                let mark = hash16(v);
                listed.volumes.iter().any(|known| known == v || *known == mark)
            }),
            "the plan does not list everything that is on the node",
        );
    }
    others(plan, attachments, say);
}

/// Whether the diagnosis is about what is pinned.
fn agrees(plan: &Plan) -> bool {
    let p = &plan.pins;
    match &plan.trouble {
        Trouble::Phantom { at, attachment, .. } | Trouble::Lost { at, attachment } => {
            at.node == p.node && at.instance == p.holder && p.is_attachment(attachment)
        }
        Trouble::DeadNode { node, instance } => *node == p.node && *instance == p.holder,
        Trouble::StuckRecord { attachment, node, .. } => {
            *node == p.node && attachment.as_ref() == p.attachment.as_ref().map(|a| &a.uid)
        }
        Trouble::Orphan { holder, .. } => *holder == p.holder && p.attachment.is_none(),
    }
}

/// Who else has a record of the volume.
fn others(plan: &Plan, attachments: Option<&Vec<AttachmentFacts>>, say: &mut impl FnMut(&str, bool, &str)) {
    let p = &plan.pins;
    if let Some(pinned) = &p.attachment {
        let same = |a: &AttachmentFacts| a.uid == pinned.uid && a.name == pinned.name && a.node == p.node;
        say(
            "S8",
            attachments.is_some_and(|all| all.iter().any(same)),
            "the VolumeAttachment is not the pinned one",
        );
    }
    // Where the old holder's record goes and others wait, their records may stay: they are not attached.
    let elsewhere = !matches!(plan.trouble, Trouble::Phantom { .. } | Trouble::Lost { .. });
    say(
        "S7",
        attachments.is_some_and(|all| all.iter().all(|a| a.node == p.node || (elsewhere && !a.attached))),
        "another node has a VolumeAttachment of the volume",
    );
}

/// S2: nothing is destroyed on the way. S7: nothing else is touched.
fn losses(
    plan: &Plan,
    e: &Evidence,
    confirmed: Option<&str>,
    now: Timestamp,
    say: &mut impl FnMut(&str, bool, &str),
) {
    let Some(w) = e.workload.read(now, MAX_AGE).present() else {
        say("S2", false, "the workload is not known");
        return;
    };
    let p = &plan.pins;
    say(
        "S8",
        w.workload == p.workload && w.replicas == p.replicas,
        "the workload is not the pinned one, or its count changed",
    );
    if plan.steps.iter().any(|s| matches!(s.kind, StepKind::ScaleToZero | StepKind::Release)) {
        say("S2", w.rollout.is_none(), "the workload is being changed");
    }
    let goes = |kind| plan.steps.iter().any(|s| s.kind.spec().pods_go == kind);
    if goes(PodsGo::WithTheCount) || goes(PodsGo::OfTheClaim) || goes(PodsGo::OfTheNode) {
        say("S2", w.template.ephemeral_volumes.is_empty(), "a generic ephemeral volume would be deleted");
        say("S2", w.template.empty_dirs.is_empty() || w.emptydirs_expendable, "an emptyDir would be lost");
        let survives = |c: &ClaimFacts| !c.deleting && c.owners.iter().all(|o| o.uid == w.workload.uid);
        say(
            "S2",
            w.claims.iter().all(|(_, c)| c.as_ref().is_none_or(survives)),
            "a claim of the workload would not survive",
        );
        let number = |x: &PodFacts| x.name.name.rsplit('-').next().and_then(|n| n.parse().ok());
        say(
            "S2",
            !w.deletes_claims_when_scaled || w.pods.iter().filter_map(number).all(|n: i32| n < w.replicas),
            "a pod that its workload is taking away takes its claims with it",
        );
        say("S2", w.not_remade.is_none(), "no pod would come in the place of the one that goes");
    }
    if goes(PodsGo::OfTheNode) {
        let lost = e.node_losses.get(&p.node).and_then(|f| f.read(now, MAX_AGE).present());
        let others = |pod: &ObjectName| w.pods.iter().all(|own| own.name != *pod);
        say(
            "S2",
            lost.is_some_and(|all| !all.iter().any(|l| others(&l.pod))),
            "another pod on the node would lose something",
        );
    }
    say("S2", !w.deleting, "the workload is being changed");
    say("S2", w.stamp.is_none(), "another recovery's stamp, or an unreadable one, is on the workload");
    say("S2", w.pod_dry_run == Some(Ok(())), "a new pod is not known to be accepted");
    let now_pods: BTreeSet<_> = w.pods.iter().map(|x| (&x.name, &x.uid)).collect();
    let pinned: BTreeSet<_> = p.pods.iter().map(|(n, u)| (n, u)).collect();
    say("S7", now_pods == pinned, "the workload's pods are not the pinned ones");
    let users = e.pods.read(now, MAX_AGE).present();
    say(
        "S7",
        users.is_some_and(|u| {
            u.iter().filter(|x| !x.is_finished()).all(|x| p.pods.iter().any(|(_, uid)| *uid == x.uid))
        }),
        "a pod outside the workload uses the claim",
    );
    if plan.steps.iter().any(|s| s.kind == StepKind::ScaleToZero) {
        whole_workload(w, confirmed, say);
    } else {
        say("S2", w.replicas > 0, "someone keeps the workload at zero");
        let going = |x: &&PodFacts| x.node.as_ref() == Some(&p.node);
        let releases = plan.steps.iter().any(|s| s.kind == StepKind::Release);
        say(
            "S2",
            !releases
                || w.template.pre_stop.is_empty()
                || users.is_some_and(|u| u.iter().filter(going).all(|x| !x.ready)),
            "a healthy pod's preStop hook would run",
        );
        let holds = plan.steps.iter().any(|s| s.kind == StepKind::Hold);
        let policy = e.hold_policy.as_ref().and_then(|h| h.read(now, MAX_AGE).present());
        say(
            "S1",
            !holds || policy.is_some() || plan.closes_node,
            "the cluster is not known to hold pods away by admission",
        );
        say(
            "S1",
            !plan.closes_node || w.template.ignores_taints.is_none(),
            "a taint would not keep the workload's pods from the node",
        );
    }
}

/// S2, where all of the workload's pods go.
fn whole_workload(w: &WorkloadFacts, confirmed: Option<&str>, say: &mut impl FnMut(&str, bool, &str)) {
    say("S2", !w.deletes_claims_when_scaled, "the workload deletes its claims when scaled");
    say(
        "S2",
        w.autoscalers.iter().all(|a| a.min_replicas > 0),
        "an autoscaler may keep the workload at zero",
    );
    say(
        "S2",
        w.managers.iter().all(|m| m.paused && m.kind != ManagerKind::ArgoCd),
        "someone else owns the count",
    );
    say("S2", w.scaling != ScalePath::None, "the workload cannot be scaled back");
    say("S2", w.claims.iter().all(|(_, c)| c.is_some()), "a claim of the workload would not survive");
    let named = confirmed
        .is_some_and(|c| c.eq_ignore_ascii_case(&format!("{}/{}", w.workload.kind, w.workload.name.name)));
    say(
        "S2",
        w.replicas == 1 || (w.replicas > 1 && named),
        "the count is not one, and nobody named the workload",
    );
    let restless = w.pods.iter().filter(|x| !x.ready || x.deleting_since.is_some()).count();
    say(
        "S2",
        !w.ordered || (restless <= 1 && w.pods.iter().all(|x| x.deleting_since.is_none())),
        "ordered pods would never reach zero",
    );
    say(
        "S2",
        w.template.pre_stop.is_empty() || w.pods.iter().all(|x| !x.ready),
        "a healthy pod's preStop hook would run",
    );
}
