//! *Declared*: a named human says that the holder cannot write. Their word is taken as long as no fact contradicts it.

use super::veto::veto_by_answer;
use super::{
    FenceProof, Ground, NoProof, ProofKind, for_a_while, held_by, nothing_lives, the_volume,
};
use crate::evidence::EvidenceAt;
use crate::fact::Source;
use crate::ids::InstanceId;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A declaration is about now: an older one is given anew.
const GOOD_FOR: SignedDuration = SignedDuration::from_hours(1);

/// What a human declares. Admission sees to it that `by` is who they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Declaration {
    /// The instance that cannot write.
    pub holder: InstanceId,
    /// Who says so: the authenticated user.
    pub by: String,
    /// Why they are sure.
    pub reason: String,
    /// When they said it.
    pub at: Timestamp,
    /// They also say that the instance is a machine of this cluster, though no Node shows it. Admission lets only those
    /// say so who may declare in the whole cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_this_cluster: bool,
    /// They may declare in the whole cluster, so it is a word about the machine. With a right in one namespace it is a word
    /// about that namespace's volume alone (S10). Set by the access review, never by what the record says.
    #[serde(skip)]
    pub cluster_wide: bool,
}

impl Declaration {
    /// Whether somebody gave it, with a reason, within the last hour.
    ///
    /// # Errors
    /// What is missing.
    pub fn is_valid(&self, now: Timestamp) -> Result<(), &'static str> {
        if self.by.trim().is_empty() || self.reason.trim().is_empty() {
            return Err("it lacks a person's name or a reason");
        }
        let age = now.duration_since(self.at);
        if age > GOOD_FOR || age < SignedDuration::ZERO {
            return Err("it was not given within the last hour");
        }
        Ok(())
    }
}

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
