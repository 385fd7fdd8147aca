//! The refusals of a plan because of what would be lost for good.

use crate::evidence::{EvidenceAt, OwnerFacts, PodFacts};
use crate::ids::NodeName;
use crate::loss::{Acceptance, AcceptedLoss, EmptyDirs, Loss, PodLoss, PodsGo};
use crate::plan::Refusal;
use crate::workload::WorkloadFacts;
use std::collections::BTreeSet;

/// By which word emptyDirs may be lost.
#[derive(Clone, Copy)]
pub(crate) enum Accepting<'a> {
    /// The policy's, for a plan that is being made.
    Rule(EmptyDirs),
    /// That of a plan that runs: it names what was accepted.
    Planned(&'a [AcceptedLoss]),
}

impl Accepting<'_> {
    /// Whether the emptyDir may be lost by another word than the workload's owner's.
    fn accepts(self, volume: &str) -> bool {
        match self {
            Self::Rule(EmptyDirs::Lose) => true,
            Self::Rule(EmptyDirs::Keep) => false,
            Self::Planned(losses) => losses.iter().any(|loss| match loss {
                AcceptedLoss::EmptyDir {
                    volume: named,
                    accepted: Acceptance::Policy,
                } => named == volume,
                // The owner's word counts for as long as the annotation is there, which is read anew.
                AcceptedLoss::EmptyDir {
                    accepted: Acceptance::Owner,
                    ..
                } => false,
            }),
        }
    }
}

/// Everything that these pods lose for good when they go away and that may be lost: what a plan shows and its hash covers.
pub(crate) fn accepted_losses(evidence: EvidenceAt<'_>, going: PodsGo) -> Vec<AcceptedLoss> {
    let Some(w) = evidence.workload().ok().filter(|_| going != PodsGo::None) else {
        return Vec::new();
    };
    let accepted = if w.emptydirs_expendable {
        Acceptance::Owner
    } else {
        Acceptance::Policy
    };
    let volumes = w.template.empty_dirs.iter().cloned();
    volumes
        .map(|volume| AcceptedLoss::EmptyDir { volume, accepted })
        .collect()
}

/// Every refusal because of what would be lost when these pods go away. What is known of the workload holds for its own
/// pods; of other pods on `node`, what was read of each.
pub(crate) fn losses(
    evidence: EvidenceAt<'_>,
    node: &NodeName,
    going: PodsGo,
    accepting: Accepting<'_>,
) -> Vec<Refusal> {
    let mut out = Vec::new();
    if going == PodsGo::None {
        return out;
    }
    let workload = evidence.workload();
    // What else stands against an effect says that the workload is gone or cannot be read.
    if let Ok(w) = &workload {
        of_the_workload(w, going, &mut out);
        empty_dirs(evidence, w, node, going, accepting, &mut out);
    }
    if going == PodsGo::OfTheNode {
        of_the_node(evidence, node, workload.ok(), &mut out);
    }
    out
}

fn of_the_workload(w: &WorkloadFacts, going: PodsGo, out: &mut Vec<Refusal>) {
    let workload = w.workload.to_string();
    if w.deletes_claims_when_scaled && (going == PodsGo::WithTheCount || has_condemned_pod(w)) {
        out.push(Refusal::ScaleDeletesClaims {
            workload: workload.clone(),
        });
    }
    for (name, claim) in &w.claims {
        let Some(claim) = claim else { continue };
        if claim.deleting {
            out.push(Refusal::ClaimDeleting {
                claim: name.clone(),
            });
        }
        let own = |o: &&OwnerFacts| o.kind == "StatefulSet" && o.uid == w.workload.uid;
        if let Some(owner) = claim.owners.iter().find(|o| !own(o)) {
            let owner = format!("{} {}", owner.kind, owner.name);
            out.push(Refusal::ClaimForeignOwner {
                claim: name.clone(),
                owner,
            });
        }
    }
    for volume in &w.template.ephemeral_volumes {
        out.push(Refusal::EphemeralVolume {
            workload: workload.clone(),
            volume: volume.clone(),
        });
    }
    if let Some(why) = &w.not_remade {
        out.push(Refusal::NotRemade {
            workload,
            why: why.clone(),
        });
    }
}

/// The refusals because of emptyDirs on disk. Those of other pods on a node that is fenced are not judged: a pod whose machine
/// cannot write any more has none that Kubernetes would ever give back to it.
fn empty_dirs(
    evidence: EvidenceAt<'_>,
    w: &WorkloadFacts,
    node: &NodeName,
    going: PodsGo,
    accepting: Accepting<'_>,
    out: &mut Vec<Refusal>,
) {
    if w.emptydirs_expendable {
        return;
    }
    for volume in &w.template.empty_dirs {
        if !accepting.accepts(volume) {
            out.push(Refusal::EmptyDir {
                workload: w.workload.to_string(),
                volume: volume.clone(),
            });
        } else if let Some(pod) = running(evidence, w, node, going) {
            out.push(Refusal::EmptyDirInUse {
                pod: pod.name.to_string(),
                volume: volume.clone(),
            });
        }
    }
}

/// The first pod that would go away although a container of it runs, by its kubelet's word. On a node that is fenced no
/// kubelet can say so: its last word stands in the API for ever, and the proof that the machine cannot write comes before the
/// fence.
fn running<'a>(
    evidence: EvidenceAt<'a>,
    w: &'a WorkloadFacts,
    node: &NodeName,
    going: PodsGo,
) -> Option<&'a PodFacts> {
    let mut pods = match going {
        PodsGo::None | PodsGo::OfTheNode => return None,
        PodsGo::WithTheCount => w.pods.iter(),
        PodsGo::OfTheClaim => evidence.pods().map(|pods| pods.iter()).unwrap_or_default(),
    };
    let goes = |p: &PodFacts| match going {
        PodsGo::None | PodsGo::OfTheNode => false,
        PodsGo::WithTheCount => true,
        PodsGo::OfTheClaim => !p.is_kept_from(node),
    };
    // A pod that is being deleted loses its emptyDirs, whatever reattach does.
    pods.find(|p| p.containers_running && p.deleting_since.is_none() && goes(p))
}

/// Whether a pod's number is beyond the count: its StatefulSet is taking it away, and with `whenScaled: Delete` its claims go
/// with it. Where the count stays, no other pod's claims are deleted.
fn has_condemned_pod(w: &WorkloadFacts) -> bool {
    let number = |name: &str| {
        name.rsplit_once('-')
            .and_then(|(_, n)| n.parse::<i32>().ok())
    };
    w.pods
        .iter()
        .any(|p| number(&p.name.name).is_some_and(|n| n >= w.replicas))
}

fn of_the_node(
    evidence: EvidenceAt<'_>,
    node: &NodeName,
    workload: Option<&WorkloadFacts>,
    out: &mut Vec<Refusal>,
) {
    let what = || format!("what the pods on {node} would lose");
    let found = match evidence.node_losses(node) {
        Ok(found) => found,
        Err(missing) => {
            return out.push(Refusal::Missing {
                what: what(),
                why: missing.to_string(),
            });
        }
    };
    let judged = |l: &PodLoss| {
        let own = workload.filter(|w| w.pods.iter().any(|p| p.name == l.pod));
        own.is_some_and(|w| is_judged_by_the_workload(w, &l.loss))
    };
    let here = &evidence.claim_name.namespace;
    let (near, elsewhere): (Vec<&PodLoss>, Vec<&PodLoss>) = found
        .iter()
        .filter(|l| !judged(l))
        .partition(|l| l.pod.namespace == *here);
    for PodLoss { pod, loss } in near {
        let (node, pod) = (node.to_string(), pod.to_string());
        out.push(Refusal::LostOnNode {
            node,
            pod,
            loss: loss.clone(),
        });
    }
    if !elsewhere.is_empty() {
        let pods = elsewhere
            .iter()
            .map(|l| &l.pod)
            .collect::<BTreeSet<_>>()
            .len();
        let may_pass = elsewhere.iter().all(|l| l.loss.may_pass());
        out.push(Refusal::LostElsewhereOnNode {
            node: node.to_string(),
            pods,
            may_pass,
        });
    }
}

/// Does what is known of the workload say whether its own pod has this loss? It knows the claims that its pods use, and no
/// others that one of them owns.
fn is_judged_by_the_workload(w: &WorkloadFacts, loss: &Loss) -> bool {
    match loss {
        Loss::ClaimOfPod { claim } => w.claims.iter().any(|(name, _)| name == claim),
        Loss::ClaimDeleting { .. } | Loss::EphemeralVolume { .. } | Loss::NotRemade { .. } => true,
    }
}
