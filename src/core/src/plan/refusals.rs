//! What stands against acting: the general refusals (S1, S7, S9) and those of scaling to zero (S2).

use super::{Releases, Scope};
use crate::cloud::VolumeState;
use crate::evidence::{AccessMode, AttachmentFacts, EvidenceAt, PodFacts, Read};
use crate::fact::Missing;
use crate::ids::NodeName;
use crate::names::OUT_OF_SERVICE_TAINT;
use crate::plan::Refusal;
use crate::runbook::Holding;
use crate::workload::{ManagerKind, PodRefusal, ScalePath, WorkloadFacts};

/// Taints by which other remediators or people say that they are at work on a node.
/// Sources: KEP-2268 (out-of-service), medik8s self-node-remediation and node maintenance, Karpenter's disruption taint.
const OTHERS_TAINTS: [&str; 5] = [
    OUT_OF_SERVICE_TAINT,
    "medik8s.io/remediation",
    "medik8s.io/drain",
    "remediation.medik8s.io/self-node-remediation",
    "karpenter.sh/disrupted",
];

/// Refusals that hold for every remedy.
pub fn general(evidence: EvidenceAt<'_>, scope: &Scope<'_>) -> Vec<Refusal> {
    let Scope {
        node,
        releases,
        holder,
    } = *scope;
    let mut out = super::identity::refusals(evidence, Some(holder));
    if let Some(claim) = present(evidence.claim(), "the claim", &mut out) {
        if let Some(what) = &claim.opted_out {
            out.push(Refusal::OptedOut { what: what.clone() });
        }
        let shared: Vec<_> = claim
            .access_modes
            .iter()
            .copied()
            .filter(|m| matches!(m, AccessMode::ReadWriteMany | AccessMode::ReadOnlyMany))
            .collect();
        if claim.access_modes.is_empty() {
            out.push(Refusal::NoAccessMode);
        } else if !shared.is_empty() {
            out.push(Refusal::SharedAccess { modes: shared });
        }
        if claim.deleting {
            out.push(Refusal::ClaimDeleting {
                claim: evidence.claim_name.to_string(),
            });
        }
    }
    match evidence.cloud_volume() {
        Ok(cloud) => {
            if cloud.holders.len() > 1 {
                out.push(Refusal::ManyHolders {
                    holders: cloud.holders.clone(),
                });
            }
            if !matches!(cloud.state, VolumeState::Active | VolumeState::Detaching) {
                out.push(Refusal::Missing {
                    what: "a usable state of the cloud volume".into(),
                    why: format!("it is {}", cloud.state),
                });
            }
        }
        Err(Missing::Absent) => out.push(Refusal::Missing {
            what: "the cloud volume".into(),
            why: "the cloud does not know it".into(),
        }),
        Err(Missing::TooOld { age_secs }) => out.push(Refusal::ProviderOutage {
            why: format!("its last answer is {age_secs} s old"),
        }),
        Err(missing) => out.push(Refusal::ProviderOutage {
            why: missing.to_string(),
        }),
    }
    match evidence.node(node) {
        Ok(facts) => {
            let foreign = |t: &&String| {
                OTHERS_TAINTS.contains(&t.as_str())
                    && !(facts.out_of_service_by_us && *t == OUT_OF_SERVICE_TAINT)
            };
            for taint in facts.taints.iter().filter(foreign) {
                out.push(Refusal::OthersAtWork {
                    node: node.to_string(),
                    taint: taint.clone(),
                });
            }
        }
        Err(Missing::Absent) if releases == Releases::OldHolder => {}
        _ => out.push(Refusal::Missing {
            what: format!("Node {node}"),
            why: "no fresh read of it".into(),
        }),
    }
    if let Some(attachments) = present(
        evidence.attachments(),
        "the list of VolumeAttachments",
        &mut out,
    ) {
        // Who waits elsewhere may keep a record of that, as long as it is not attached there.
        let waits = |a: &AttachmentFacts| releases == Releases::OldHolder && !a.attached;
        for other in attachments.iter().filter(|a| a.node != *node && !waits(a)) {
            out.push(Refusal::OtherAttachment {
                attachment: other.name.clone(),
                node: other.node.to_string(),
            });
        }
    }
    out
}

/// Every refusal of scaling the workload to zero (S2), besides what would be lost (`plan::losses`). `confirmed` is the workload that a person named, as `Kind/name`.
pub fn before_scaling(evidence: EvidenceAt<'_>, confirmed: Option<&str>) -> Vec<Refusal> {
    with_workload(evidence, |w, out| {
        identity(w, out);
        shape(w, confirmed, out);
        claims(w, out);
        accepted(w, out);
        pre_stop(w, w.pods.iter(), out);
        owners_of_the_count(w, out);
        foreign_pods(evidence, w, out);
    })
}

/// Every refusal of holding the claim in this way and releasing its stuck pods on `node`. The count is not touched, so
/// nothing that owns it matters; that its owner can make a new pod does, and what is lost (`plan::losses`).
pub fn before_holding(evidence: EvidenceAt<'_>, node: &NodeName, holding: Holding) -> Vec<Refusal> {
    let mut out = with_workload(evidence, |w, out| {
        unchanged(w, out);
        if let Some(what) = &w.rollout {
            out.push(Refusal::RolloutInProgress {
                workload: w.workload.to_string(),
                what: what.clone(),
            });
        }
        let own = w
            .claims
            .iter()
            .find(|(name, _)| *name == evidence.claim_name.name);
        if let Some(what) = own.and_then(|(_, claim)| claim.as_ref()?.opted_out.as_ref()) {
            out.push(Refusal::OptedOut { what: what.clone() });
        }
        accepted(w, out);
        let released = evidence.pods.shown().map_or(&[][..], Vec::as_slice);
        pre_stop(
            w,
            released.iter().filter(|p| p.node.as_ref() == Some(node)),
            out,
        );
        foreign_pods(evidence, w, out);
        if let (Holding::ByTaint, Some(why)) = (holding, &w.template.ignores_taints) {
            out.push(Refusal::IgnoresTaints {
                workload: w.workload.to_string(),
                why: why.clone(),
            });
        }
    });
    if holding != Holding::ByTaint {
        hold_policy(evidence, &mut out);
    }
    out
}

/// Every refusal of ending the hold of a node that does not use the volume any more: the workload must want a pod and the
/// pod must be accepted. What a fence would lose is asked for besides (`plan::losses`).
pub fn before_fencing(evidence: EvidenceAt<'_>, holding: Holding) -> Vec<Refusal> {
    let mut out = with_workload(evidence, |w, out| {
        unchanged(w, out);
        let own = w
            .claims
            .iter()
            .find(|(name, _)| *name == evidence.claim_name.name);
        if let Some(what) = own.and_then(|(_, claim)| claim.as_ref()?.opted_out.as_ref()) {
            out.push(Refusal::OptedOut { what: what.clone() });
        }
        accepted(w, out);
        foreign_pods(evidence, w, out);
    });
    if holding == Holding::ByGate {
        hold_policy(evidence, &mut out);
    }
    out
}

/// Whether the cluster can hold pods away.
fn hold_policy(evidence: EvidenceAt<'_>, out: &mut Vec<Refusal>) {
    match evidence.hold_policy() {
        Ok(_) => {}
        Err(Missing::Absent) => out.push(Refusal::NoHoldPolicy),
        Err(missing) => out.push(Refusal::Missing {
            what: "whether the cluster can hold pods away".into(),
            why: missing.to_string(),
        }),
    }
}

fn with_workload(
    evidence: EvidenceAt<'_>,
    judge: impl FnOnce(&WorkloadFacts, &mut Vec<Refusal>),
) -> Vec<Refusal> {
    let mut out = Vec::new();
    // A volume whose attach is still under way looks like one that its machine has lost; only the jobs tell.
    if let Err(why) = Missing::or_absent(evidence.jobs()) {
        out.push(Refusal::Missing {
            what: "the provider's job history".into(),
            why: why.to_string(),
        });
    }
    match evidence.workload() {
        Ok(w) => judge(w, &mut out),
        Err(Missing::Absent) => {
            let pods = evidence.pods.shown().map_or(&[][..], Vec::as_slice);
            match pods.first() {
                Some(pod) => out.push(Refusal::BarePod {
                    pod: pod.name.to_string(),
                }),
                None => out.push(Refusal::Missing {
                    what: "the workload".into(),
                    why: "no pod leads to one".into(),
                }),
            }
        }
        Err(missing) => {
            out.push(Refusal::Missing {
                what: "the workload".into(),
                why: missing.to_string(),
            });
        }
    }
    out
}

fn identity(w: &WorkloadFacts, out: &mut Vec<Refusal>) {
    if w.scaling == ScalePath::None {
        out.push(Refusal::NotScalable {
            workload: w.workload.to_string(),
        });
    }
    unchanged(w, out);
}

/// Nobody deletes the workload or keeps it at zero.
fn unchanged(w: &WorkloadFacts, out: &mut Vec<Refusal>) {
    let workload = w.workload.to_string();
    if w.deleting {
        out.push(Refusal::WorkloadDeleting {
            workload: workload.clone(),
        });
    }
    match &w.stamp {
        Some(Ok(stamp)) => {
            out.push(Refusal::StampedByOther {
                workload,
                recovery: stamp.recovery.to_string(),
            });
        }
        Some(Err(why)) => out.push(Refusal::StampUnreadable {
            workload,
            why: why.clone(),
        }),
        None if w.replicas == 0 => out.push(Refusal::AtZero { workload }),
        None => {}
    }
}

fn shape(w: &WorkloadFacts, confirmed: Option<&str>, out: &mut Vec<Refusal>) {
    let workload = w.workload.to_string();
    let short = format!("{}/{}", w.workload.kind, w.workload.name.name);
    if w.replicas > 1 && !confirmed.is_some_and(|c| c.eq_ignore_ascii_case(&short)) {
        out.push(Refusal::ManyReplicas {
            workload: workload.clone(),
            short,
            replicas: w.replicas,
        });
    }
    let unready: Vec<String> = w
        .pods
        .iter()
        .filter(|p| !p.ready || p.deleting_since.is_some())
        .map(|p| p.name.name.clone())
        .collect();
    let terminating = w.pods.iter().any(|p| p.deleting_since.is_some());
    if w.ordered && (unready.len() > 1 || terminating) {
        out.push(Refusal::OrderedStuck {
            workload: workload.clone(),
            pods: unready,
        });
    }
    if let Some(what) = &w.rollout {
        out.push(Refusal::RolloutInProgress {
            workload,
            what: what.clone(),
        });
    }
}

fn claims(w: &WorkloadFacts, out: &mut Vec<Refusal>) {
    for (name, claim) in &w.claims {
        let Some(claim) = claim else {
            out.push(Refusal::ClaimMissing {
                workload: w.workload.to_string(),
                claim: name.clone(),
            });
            continue;
        };
        if let Some(what) = &claim.opted_out {
            out.push(Refusal::OptedOut { what: what.clone() });
        }
    }
}

/// A pod made now would be accepted.
fn accepted(w: &WorkloadFacts, out: &mut Vec<Refusal>) {
    let workload = w.workload.to_string();
    match &w.pod_dry_run {
        Some(Ok(())) => {}
        Some(Err(PodRefusal { why, no_right })) => {
            out.push(Refusal::PodWouldBeRefused {
                workload,
                why: why.clone(),
                no_right: *no_right,
            });
        }
        None => out.push(Refusal::PodDryRunMissing { workload }),
    }
}

/// A preStop hook runs in a pod that is Ready and has to go.
fn pre_stop<'a>(
    w: &WorkloadFacts,
    mut going: impl Iterator<Item = &'a PodFacts>,
    out: &mut Vec<Refusal>,
) {
    if let (Some(container), Some(pod)) = (w.template.pre_stop.first(), going.find(|p| p.ready)) {
        out.push(Refusal::PreStopHook {
            pod: pod.name.to_string(),
            container: container.clone(),
        });
    }
}

fn owners_of_the_count(w: &WorkloadFacts, out: &mut Vec<Refusal>) {
    for hpa in w.autoscalers.iter().filter(|h| h.min_replicas == 0) {
        out.push(Refusal::AutoscalerMinZero {
            name: hpa.name.clone(),
        });
    }
    // Argo CD's self-heal cannot be paused per object; the others need a pause that was verified.
    for manager in w
        .managers
        .iter()
        .filter(|m| !m.paused || m.kind == ManagerKind::ArgoCd)
    {
        out.push(Refusal::CountManaged {
            workload: w.workload.to_string(),
            manager: manager.kind.to_string(),
            evidence: manager.evidence.clone(),
        });
    }
}

fn foreign_pods(evidence: EvidenceAt<'_>, w: &WorkloadFacts, out: &mut Vec<Refusal>) {
    let Some(pods) = present(evidence.pods(), "the list of pods", out) else {
        return;
    };
    for pod in pods
        .iter()
        .filter(|p| !p.is_finished() && !w.pods.iter().any(|own| own.uid == p.uid))
    {
        out.push(Refusal::ForeignPod {
            pod: pod.name.to_string(),
            workload: w.workload.to_string(),
        });
    }
}

fn present<'a, T>(read: Read<'a, T>, what: &str, out: &mut Vec<Refusal>) -> Option<&'a T> {
    let missing = |why: Missing| Refusal::Missing {
        what: what.to_owned(),
        why: why.to_string(),
    };
    read.map_err(|why| out.push(missing(why))).ok()
}
