//! The refusals of a plan because of what would be lost for good.

use crate::evidence::{EvidenceAt, OwnerFacts};
use crate::ids::NodeName;
use crate::loss::{Loss, PodLoss, PodsGo};
use crate::plan::Refusal;
use crate::workload::WorkloadFacts;
use std::collections::BTreeSet;

/// Every refusal because of what would be lost when these pods go away. What is known of the workload holds for its own
/// pods; of other pods on `node`, what was read of each.
pub fn losses(evidence: EvidenceAt<'_>, node: &NodeName, going: PodsGo) -> Vec<Refusal> {
    let mut out = Vec::new();
    if going == PodsGo::None {
        return out;
    }
    let workload = evidence.workload();
    // What else stands against an effect says that the workload is gone or cannot be read.
    if let Ok(w) = &workload {
        of_the_workload(w, going, &mut out);
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
    if !w.emptydirs_expendable {
        for volume in &w.template.empty_dirs {
            out.push(Refusal::EmptyDir {
                workload: workload.clone(),
                volume: volume.clone(),
            });
        }
    }
    if let Some(why) = &w.not_remade {
        out.push(Refusal::NotRemade {
            workload,
            why: why.clone(),
        });
    }
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
