//! *Declared*: a named human says that the holder cannot write. Their word is taken as long as no fact contradicts it.

use super::veto::veto_by_answer;
use super::{
    FenceProof, Ground, NoProof, ProofKind, for_a_while, held_by, nothing_lives, the_volume,
};
use crate::evidence::{Declaration, EvidenceAt};
use crate::fact::Source;
use crate::ids::InstanceId;

/// Makes the *declared* proof.
///
/// # Errors
/// One [`NoProof`]: a declaration about another instance, without a name or a reason, too old or of the future, or
/// contradicted by a Ready Node of that instance, by its agent's answer to this recovery, or by the cloud's holder.
pub fn declared(
    evidence: EvidenceAt<'_>,
    holder: &InstanceId,
    declaration: &Declaration,
) -> Result<FenceProof, NoProof> {
    let invalid = |why: &str| {
        Err(NoProof::Declaration {
            by: declaration.by.clone(),
            why: why.to_owned(),
        })
    };
    if declaration.holder != *holder {
        return invalid("it is about another instance");
    }
    if let Err(why) = declaration.is_valid(evidence.now) {
        return invalid(why);
    }
    let volume = the_volume(evidence, holder)?;
    let mut grounds = nothing_lives(evidence, holder)?;
    // What it reported unasked may be from before its end; an answer to this recovery's question is a sign of life.
    for (name, node) in &evidence.nodes {
        if node
            .shown()
            .is_some_and(|n| n.instance.as_ref() == Some(holder))
        {
            veto_by_answer(evidence, name)?;
        }
    }
    grounds.push(held_by(evidence, holder));
    grounds.push(Ground {
        says: format!("{} says so: {}", declaration.by, declaration.reason),
        source: Source::Kubernetes("VolumeRecovery".to_owned()),
        at: declaration.at,
    });
    let Declaration {
        by,
        reason,
        at,
        cluster_wide,
        ..
    } = declaration.clone();
    Ok(FenceProof::new(
        volume,
        holder,
        ProofKind::Declared {
            by,
            reason,
            at,
            cluster_wide,
        },
        grounds,
        for_a_while(evidence.now),
        evidence.now,
    ))
}
