//! An independent second look at a finished plan: it re-derives the safety rules from plan and evidence, shares no code
//! with the planner, and can veto.

mod identity;
mod violation;

use crate::diagnosis::Trouble;
use crate::evidence::{AccessMode, AttachmentFacts, ClaimFacts, EvidenceAt, PodFacts};
use crate::fact::Missing;
use crate::ids::{ObjectName, PlanHash, StepIx};
use crate::loss::{AcceptedLoss, PodsGo};
use crate::plan::{PLAN_VERSION, Plan};
use crate::runbook::hash16;
use crate::steps::EffectClass;
use crate::steps::StepKind;
use crate::workload::{ManagerKind, ScalePath, WorkloadFacts};
use std::collections::BTreeSet;

pub use violation::{Rule, Violation};

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Violation>);

impl Findings {
    /// Notes the violation unless the rule holds.
    fn require(&mut self, holds: bool, violation: Violation) {
        if !holds {
            self.object(violation);
        }
    }

    fn object(&mut self, violation: Violation) {
        self.0.push(violation);
    }
}

/// Everything that is wrong with a plan. Empty: the checker has no objection.
pub fn check(plan: &Plan, evidence: EvidenceAt<'_>, confirmed: Option<&str>) -> Vec<Violation> {
    let mut found = Findings::default();
    found.require(
        plan.version == PLAN_VERSION,
        Violation::OtherVersion {
            found: plan.version,
        },
    );
    let content = plan.computed_hash();
    let sealed = content == plan.hash && plan.hash != PlanHash::from("");
    found.require(
        sealed,
        Violation::HashMismatch {
            hash: plan.hash.clone(),
            content,
        },
    );
    shape(plan, &mut found);
    pins(plan, evidence, &mut found);
    losses(plan, evidence, confirmed, &mut found);
    identity::identity(plan, evidence, &mut found);
    found.0
}

/// S1 and S2 by the order of the steps alone.
fn shape(plan: &Plan, found: &mut Findings) {
    let kinds: Vec<StepKind> = plan.steps.iter().map(|s| s.kind).collect();
    let first = |k| kinds.iter().position(|x| *x == k);
    let last = |k| kinds.iter().rposition(|x| *x == k);
    let (scale, restore) = (first(StepKind::ScaleToZero), first(StepKind::Restore));
    let (hold, lift) = (first(StepKind::Hold), first(StepKind::Lift));
    let away = scale.or(hold);
    let back = restore.or(lift);
    for step in [StepKind::CloudDetach, StepKind::CloudForce] {
        let Some(detach) = first(step) else { continue };
        found.require(
            away.is_some_and(|s| s < detach),
            Violation::DetachBeforeHold { step },
        );
        let once = plan.steps[detach].effect_class == EffectClass::Once;
        found.require(once, Violation::DetachMayRepeat { step });
        let in_time = back.is_none_or(|r| last(step).is_some_and(|d| d < r));
        found.require(in_time, Violation::DetachAfterReturn { step });
    }
    for planned in &plan.steps {
        let step = planned.kind;
        found.require(
            !matches!(step, StepKind::PowerOff | StepKind::PowerOn)
                || planned.effect_class == EffectClass::Once,
            Violation::PowerMayRepeat { step },
        );
    }
    found.require(
        first(StepKind::Snapshot).is_none_or(|s| {
            plan.steps[s].effect_class == EffectClass::Once
                && last(StepKind::Snapshot) == Some(s)
                && kinds.get(s + 1) == Some(&StepKind::CloudForce)
        }),
        Violation::SnapshotMisplaced,
    );
    found.require(
        first(StepKind::DeleteAttachment)
            .is_none_or(|d| away.is_some_and(|a| a < d) && back > Some(d)),
        Violation::AttachmentDeletedUnheld,
    );
    found.require(
        !plan.closes_node
            || (hold.is_some()
                && first(StepKind::CloudDetach)
                    .or(first(StepKind::CloudForce))
                    .is_none()),
        Violation::DetachUnderNodeTaint,
    );
    let (taint, untaint) = (first(StepKind::TaintOutOfService), first(StepKind::Untaint));
    found.require(
        taint.is_none() == untaint.is_none()
            && untaint >= taint
            && last(StepKind::TaintOutOfService) == taint,
        Violation::FenceUnpaired,
    );
    found.require(
        taint.is_none_or(|t| first(StepKind::Prove).is_some_and(|p| p < t)),
        Violation::FenceWithoutProof,
    );
    let (keep, boot) = (first(StepKind::KeepOff), first(StepKind::LetBoot));
    found.require(
        keep.is_none() == boot.is_none()
            && boot >= keep
            && last(StepKind::KeepOff) == keep
            && keep.is_none_or(|k| first(StepKind::Prove).is_some_and(|p| k < p)),
        Violation::RestartUnpaired,
    );
    let whole_node = [
        taint,
        first(StepKind::PowerOff),
        first(StepKind::Quarantine),
    ];
    found.require(
        plan.pins.node_wide.is_some() || whole_node.iter().all(Option::is_none),
        Violation::NodeNotListed,
    );
    found.require(
        scale.is_none()
            || (last(StepKind::ScaleToZero) == scale
                && restore > scale
                && last(StepKind::Restore) == restore),
        Violation::ScaleUnpaired,
    );
    found.require(scale.is_none() || hold.is_none(), Violation::HoldAndScale);
    found.require(
        hold.is_none()
            || (last(StepKind::Hold) == hold && lift > hold && last(StepKind::Lift) == lift),
        Violation::HoldUnpaired,
    );
    found.require(
        first(StepKind::Release).is_none_or(|r| hold.is_some_and(|h| h < r))
            && last(StepKind::Release).is_none_or(|r| lift > Some(r)),
        Violation::ReleaseUnheld,
    );
    found.require(
        back.is_none_or(|r| {
            r > 0
                && kinds[r - 1] == StepKind::AwaitDetached
                && plan.steps[r - 1].patience_seconds.is_none()
        }),
        Violation::ReturnBeforeDetach,
    );
    for (step, _) in (0..)
        .map(StepIx)
        .zip(&plan.steps)
        .filter(|(_, s)| s.deadline_seconds == 0)
    {
        found.object(Violation::NoDeadline { step });
    }
}

/// S8: the pins are what the evidence says now. S1: one writer's volume, one holder.
fn pins(plan: &Plan, e: EvidenceAt<'_>, found: &mut Findings) {
    let p = &plan.pins;
    let claim = e.claim().ok();
    found.require(
        plan.claim == e.claim_name,
        Violation::OtherClaim {
            claim: plan.claim.clone(),
        },
    );
    found.require(
        claim.is_some_and(|c| c.uid == p.claim && !c.deleting),
        Violation::ClaimNotPinned,
    );
    let one_writer =
        |m: &AccessMode| matches!(m, AccessMode::ReadWriteOnce | AccessMode::ReadWriteOncePod);
    found.require(
        claim.is_some_and(|c| !c.access_modes.is_empty() && c.access_modes.iter().all(one_writer)),
        Violation::NotSingleWriter {
            modes: claim.map(|c| c.access_modes.clone()).unwrap_or_default(),
        },
    );
    let claims = e.workload().ok().map_or(&[][..], |w| w.claims.as_slice());
    let out = |c: &ClaimFacts| c.opted_out.is_some();
    found.require(
        !claim.is_some_and(out) && !claims.iter().any(|(_, c)| c.as_ref().is_some_and(out)),
        Violation::OptedOut,
    );
    found.require(
        e.volume().is_ok_and(|v| v.uid == p.pv),
        Violation::VolumeNotPinned,
    );
    let cloud = e.cloud_volume().ok();
    found.require(
        cloud.is_some_and(|c| {
            c.id == p.volume && c.identity == p.identity && c.size_gib == p.size_gib
        }),
        Violation::CloudVolumeNotPinned {
            volume: p.volume.clone(),
        },
    );
    let holders = cloud.map(|c| c.holders.as_slice());
    let alone = holders == Some(std::slice::from_ref(&p.holder));
    let free = holders == Some(&[]);
    let as_it_should = match plan.trouble {
        Trouble::Lost { .. } => free,
        Trouble::StuckRecord { .. } => free || alone,
        _ => alone,
    };
    found.require(
        as_it_should,
        Violation::HolderNotAlone {
            pinned: p.holder.clone(),
            holders: holders.map(<[_]>::to_vec).unwrap_or_default(),
        },
    );
    let node = e.node(&p.node);
    let attachments = e.attachments().ok();
    found.require(agrees(plan), Violation::TroubleNotPinned);
    let other_machine = || Violation::NodeNotPinned {
        node: p.node.clone(),
    };
    match (&plan.trouble, &node) {
        // Nobody speaks for the orphan's holder, or a node that has no record of the volume.
        (Trouble::Orphan { .. }, Ok(_)) => {}
        (Trouble::StuckRecord { .. }, Err(Missing::Absent)) => {
            found.require(
                p.boot_id.is_none(),
                Violation::BootOfMissingNode {
                    node: p.node.clone(),
                },
            );
        }
        (_, Ok(n)) => found.require(
            n.instance.as_ref() == Some(&p.holder) && Some(&n.boot_id) == p.boot_id.as_ref(),
            other_machine(),
        ),
        _ => found.object(other_machine()),
    }
    if let Ok(n) = node {
        let ours = |t: &str| n.out_of_service_by_us && t == "node.kubernetes.io/out-of-service";
        let foreign = |t: &str| {
            t == "node.kubernetes.io/out-of-service"
                || t.contains("medik8s.io/")
                || t == "karpenter.sh/disrupted"
        };
        if let Some(taint) = n.taints.iter().find(|t| foreign(t) && !ours(t)) {
            found.object(Violation::OthersAtWork {
                taint: taint.clone(),
            });
        }
        if let Trouble::DeadNode { .. } = plan.trouble {
            found.require(
                !n.ready,
                Violation::DeadNodeIsReady {
                    node: p.node.clone(),
                },
            );
        }
        let Some(listed) = &p.node_wide else {
            return others(plan, attachments, found);
        };
        let on_it = e.node_pods(&p.node).ok();
        let used = e.node_claims(&p.node).ok();
        found.require(
            on_it.is_some_and(|pods| {
                pods.iter()
                    .all(|pod| listed.pods.contains(pod) || listed.other_pods.contains(&pod.1))
            }) && used.is_some_and(|all| {
                all.iter().all(|c| {
                    listed.claims.contains(&c.claim)
                        || listed.other_claims.contains(&hash16(&c.claim))
                })
            }) && n.volumes_attached.iter().all(|v| {
                let mark = hash16(v);
                listed
                    .volumes
                    .iter()
                    .any(|known| known == v || *known == mark)
            }),
            Violation::NodeListIncomplete {
                node: p.node.clone(),
            },
        );
    }
    others(plan, attachments, found);
}

/// Whether the diagnosis is about what is pinned.
fn agrees(plan: &Plan) -> bool {
    let p = &plan.pins;
    match &plan.trouble {
        Trouble::Phantom { at, attachment, .. } | Trouble::Lost { at, attachment } => {
            at.node == p.node && at.instance == p.holder && p.is_attachment(attachment)
        }
        Trouble::DeadNode { node, instance } => *node == p.node && *instance == p.holder,
        Trouble::StuckRecord {
            attachment, node, ..
        } => *node == p.node && attachment.as_ref() == p.attachment.as_ref().map(|a| &a.uid),
        Trouble::Orphan { holder, .. } => *holder == p.holder && p.attachment.is_none(),
    }
}

/// Who else has a record of the volume.
fn others(plan: &Plan, attachments: Option<&Vec<AttachmentFacts>>, found: &mut Findings) {
    let p = &plan.pins;
    if let Some(pinned) = &p.attachment {
        let same =
            |a: &AttachmentFacts| a.uid == pinned.uid && a.name == pinned.name && a.node == p.node;
        found.require(
            attachments.is_some_and(|all| all.iter().any(same)),
            Violation::AttachmentNotPinned {
                attachment: pinned.name.clone(),
            },
        );
    }
    // Where the old holder's record goes and others wait, their records may stay: they are not attached.
    let elsewhere = !matches!(plan.trouble, Trouble::Phantom { .. } | Trouble::Lost { .. });
    let harmless = |a: &AttachmentFacts| a.node == p.node || (elsewhere && !a.attached);
    let other = attachments.and_then(|all| all.iter().find(|a| !harmless(a)));
    found.require(
        attachments.is_some() && other.is_none(),
        Violation::OtherAttachment {
            node: other.map(|a| a.node.clone()),
        },
    );
}

/// S2: nothing is destroyed on the way. S7: nothing else is touched.
fn losses(plan: &Plan, e: EvidenceAt<'_>, confirmed: Option<&str>, found: &mut Findings) {
    let Ok(w) = e.workload() else {
        return found.object(Violation::WorkloadUnknown);
    };
    let p = &plan.pins;
    found.require(
        w.workload == p.workload && w.replicas == p.replicas,
        Violation::WorkloadNotPinned {
            pinned: p.replicas,
            replicas: w.replicas,
        },
    );
    if plan
        .steps
        .iter()
        .any(|s| matches!(s.kind, StepKind::ScaleToZero | StepKind::Release))
    {
        found.require(w.rollout.is_none(), Violation::WorkloadChanging);
    }
    let users = e.pods().ok();
    let goes = |kind| plan.steps.iter().any(|s| s.kind.spec().pods_go == kind);
    if goes(PodsGo::WithTheCount) || goes(PodsGo::OfTheClaim) || goes(PodsGo::OfTheNode) {
        found.require(
            w.template.ephemeral_volumes.is_empty(),
            Violation::EphemeralVolumeLost {
                volumes: w.template.ephemeral_volumes.clone(),
            },
        );
        empty_dirs(plan, w, users, found);
        let survives =
            |c: &ClaimFacts| !c.deleting && c.owners.iter().all(|o| o.uid == w.workload.uid);
        let lost = w
            .claims
            .iter()
            .find(|(_, c)| !c.as_ref().is_none_or(survives));
        if let Some((claim, _)) = lost {
            found.object(Violation::ClaimLost {
                claim: claim.clone(),
            });
        }
        let number = |x: &PodFacts| x.name.name.rsplit('-').next().and_then(|n| n.parse().ok());
        found.require(
            !w.deletes_claims_when_scaled
                || w.pods
                    .iter()
                    .filter_map(number)
                    .all(|n: i32| n < w.replicas),
            Violation::PodTakesClaims,
        );
        found.require(w.not_remade.is_none(), Violation::NotRemade);
    }
    if goes(PodsGo::OfTheNode) {
        let lost = e.node_losses(&p.node).ok();
        let others = |pod: &ObjectName| w.pods.iter().all(|own| own.name != *pod);
        found.require(
            lost.is_some_and(|all| !all.iter().any(|l| others(&l.pod))),
            Violation::OtherPodLoses {
                node: p.node.clone(),
            },
        );
    }
    found.require(!w.deleting, Violation::WorkloadChanging);
    found.require(w.stamp.is_none(), Violation::Stamped);
    found.require(w.pod_dry_run == Some(Ok(())), Violation::PodNotAccepted);
    let now_pods: BTreeSet<_> = w.pods.iter().map(|x| (&x.name, &x.uid)).collect();
    let pinned: BTreeSet<_> = p.pods.iter().map(|(n, u)| (n, u)).collect();
    found.require(now_pods == pinned, Violation::PodsNotPinned);
    found.require(
        users.is_some_and(|u| {
            u.iter()
                .filter(|x| !x.is_finished())
                .all(|x| p.pods.iter().any(|(_, uid)| *uid == x.uid))
        }),
        Violation::ForeignPod,
    );
    if plan.steps.iter().any(|s| s.kind == StepKind::ScaleToZero) {
        whole_workload(w, confirmed, found);
    } else {
        found.require(w.replicas > 0, Violation::KeptAtZero);
        let going = |x: &&PodFacts| x.node.as_ref() == Some(&p.node);
        let releases = plan.steps.iter().any(|s| s.kind == StepKind::Release);
        found.require(
            !releases
                || w.template.pre_stop.is_empty()
                || users.is_some_and(|u| u.iter().filter(going).all(|x| !x.ready)),
            Violation::PreStopHook,
        );
        let holds = plan.steps.iter().any(|s| s.kind == StepKind::Hold);
        let policy = e.hold_policy().ok();
        found.require(
            !holds || policy.is_some() || plan.closes_node,
            Violation::NoHoldPolicy,
        );
        found.require(
            !plan.closes_node || w.template.ignores_taints.is_none(),
            Violation::TaintIgnored {
                node: p.node.clone(),
            },
        );
    }
}

/// S2: an emptyDir is lost only where the plan names it and no container of its pod runs, or where its owner said so. The
/// last word of a dead node's kubelet counts for nothing.
fn empty_dirs(plan: &Plan, w: &WorkloadFacts, users: Option<&Vec<PodFacts>>, found: &mut Findings) {
    if w.emptydirs_expendable {
        return;
    }
    let named = |v: &&String| {
        plan.losses
            .iter()
            .any(|AcceptedLoss::EmptyDir { volume, .. }| volume == *v)
    };
    let unnamed: Vec<_> = w.template.empty_dirs.iter().filter(|v| !named(v)).collect();
    found.require(
        unnamed.is_empty(),
        Violation::EmptyDirLost {
            volumes: unnamed.into_iter().cloned().collect(),
        },
    );
    let has = |kind| plan.steps.iter().any(|s| s.kind == kind);
    let mut going: Vec<&PodFacts> = Vec::new();
    if has(StepKind::ScaleToZero) {
        going.extend(&w.pods);
    }
    if has(StepKind::Release) {
        let here = |x: &&PodFacts| x.node.as_ref().is_none_or(|n| *n == plan.pins.node);
        going.extend(users.into_iter().flatten().filter(here));
    }
    let live = |x: &&&PodFacts| x.containers_running && x.deleting_since.is_none();
    if let Some(pod) = going
        .iter()
        .find(live)
        .filter(|_| !w.template.empty_dirs.is_empty())
    {
        found.object(Violation::EmptyDirInUse {
            pod: pod.name.to_string(),
        });
    }
}

/// S2, where all of the workload's pods go.
fn whole_workload(w: &WorkloadFacts, confirmed: Option<&str>, found: &mut Findings) {
    found.require(!w.deletes_claims_when_scaled, Violation::ScaleDeletesClaims);
    if let Some(hpa) = w.autoscalers.iter().find(|a| a.min_replicas <= 0) {
        found.object(Violation::AutoscalerMinZero {
            name: hpa.name.clone(),
        });
    }
    let owner = w
        .managers
        .iter()
        .find(|m| !m.paused || m.kind == ManagerKind::ArgoCd);
    if let Some(owner) = owner {
        found.object(Violation::CountManaged {
            manager: owner.kind.to_string(),
        });
    }
    found.require(w.scaling != ScalePath::None, Violation::NotScalable);
    if let Some((claim, _)) = w.claims.iter().find(|(_, c)| c.is_none()) {
        found.object(Violation::ClaimLost {
            claim: claim.clone(),
        });
    }
    let named = confirmed.is_some_and(|c| {
        c.eq_ignore_ascii_case(&format!("{}/{}", w.workload.kind, w.workload.name.name))
    });
    found.require(
        w.replicas == 1 || (w.replicas > 1 && named),
        Violation::ReplicasUnconfirmed {
            replicas: w.replicas,
        },
    );
    let restless = w
        .pods
        .iter()
        .filter(|x| !x.ready || x.deleting_since.is_some())
        .count();
    found.require(
        !w.ordered || (restless <= 1 && w.pods.iter().all(|x| x.deleting_since.is_none())),
        Violation::OrderedStuck,
    );
    found.require(
        w.template.pre_stop.is_empty() || w.pods.iter().all(|x| !x.ready),
        Violation::PreStopHook,
    );
}
