//! Whether a plan's run may begin now, or waits for a proof that only others can bring about.

use super::Plan;
use super::build::advice;
use super::nodes::may_keep_off;
use crate::diagnosis::Class;
use crate::evidence::EvidenceAt;
use crate::plan::Refusal;
use crate::proof;
use crate::steps::StepKind;

/// Whether the run of this plan may begin: the proof that it needs is there, or its own steps bring it about (by powering
/// the holder off, or by the handshake with the holder's live kubelet).
///
/// # Errors
/// The refusal to wait for.
pub fn may_begin(plan: &Plan, evidence: EvidenceAt<'_>) -> Result<(), Refusal> {
    if matches!(plan.class(), Class::B | Class::C) || plan.find(StepKind::PowerOff).is_some() {
        return Ok(());
    }
    if plan.find(StepKind::KeepOff).is_some() && may_keep_off(plan, evidence).is_empty() {
        return Ok(());
    }
    let holder = &plan.pins.holder;
    let cloud = evidence.cloud_volume().ok();
    let held = cloud.is_none_or(|c| c.holders.contains(holder));
    let lives = evidence
        .node(&plan.pins.node)
        .is_ok_and(|n| n.ready && n.instance.as_ref() == Some(holder));
    if !held || lives {
        return Ok(());
    }
    let proof = match plan.fences() {
        true => proof::of_the_whole_machine(evidence, holder),
        false => proof::of_the_machine(evidence, holder),
    };
    match proof {
        Ok(_) => Ok(()),
        Err(why) => Err(Refusal::NoProofYet {
            holder: holder.clone(),
            why: why.to_string(),
            advice: format!(
                "{}; or declare it: kubectl reattach declare",
                advice(&plan.trouble)
            ),
        }),
    }
}
