//! What the order of a runbook's steps must keep to. A runbook may add caution and never remove a safety rule.

use super::{RunbookStep, StepKind};
use crate::diagnosis::Class;
use crate::steps::UndoneBy;

/// Checks the steps for one class.
///
/// # Errors
/// The first rule that they break, as a sentence with the fix.
pub(super) fn check(class: Class, steps: &[RunbookStep]) -> Result<(), String> {
    let at = |kind| steps.iter().position(|s| s.step == kind);
    if let Some(twice) = steps
        .iter()
        .map(|s| s.step)
        .find(|kind| !kind.spec().repeats && steps.iter().filter(|s| s.step == *kind).count() > 1)
    {
        return Err(format!("{twice:?} may stand only once"));
    }
    let opener = at(StepKind::ScaleToZero).or(at(StepKind::Hold));
    if opener.is_none() && !(class == Class::A && at(StepKind::TaintOutOfService).is_some()) {
        return Err("it has no ScaleToZero and no Hold; every order keeps the claim's pods away by one of them (class A by TaintOutOfService), add it first".to_owned());
    }
    pairs(steps)?;
    if let Some(open) = opener {
        held_away(class, steps, open)?;
    }
    if let Some(free) = steps
        .iter()
        .position(|s| s.step.spec().frees)
        .filter(|f| opener.is_none_or(|o| o > *f))
    {
        return Err(format!(
            "{:?} must stand after Hold or ScaleToZero: new pods must be kept away first",
            steps[free].step
        ));
    }
    if let Some(taint) = at(StepKind::TaintOutOfService)
        && at(StepKind::Prove).is_none_or(|prove| prove > taint)
    {
        return Err(
            "TaintOutOfService must stand after Prove: the node must be proven unable to write"
                .to_owned(),
        );
    }
    if at(StepKind::CloudForce)
        .is_some_and(|force| at(StepKind::CloudDetach).is_none_or(|plain| plain > force))
    {
        return Err(
            "CloudForce must stand after CloudDetach: a plain detach is tried first".to_owned(),
        );
    }
    if let Some(snapshot) = at(StepKind::Snapshot)
        && steps.get(snapshot + 1).map(|s| s.step) != Some(StepKind::CloudForce)
    {
        return Err(
            "Snapshot must stand right before CloudForce: it keeps what a detach by force may cost"
                .to_owned(),
        );
    }
    if steps.last().map(|s| s.step) != Some(StepKind::Verify) {
        return Err("the last step must be Verify".to_owned());
    }
    times(steps)
}

/// What begins must end: nothing is left at zero, held or tainted.
fn pairs(steps: &[RunbookStep]) -> Result<(), String> {
    let at = |kind| steps.iter().position(|s| s.step == kind);
    if at(StepKind::ScaleToZero).is_some() && at(StepKind::Hold).is_some() {
        return Err(
            "it has both ScaleToZero and Hold: one of them keeps the pods away, remove the other"
                .to_owned(),
        );
    }
    for open in StepKind::ALL {
        let Some(UndoneBy { step: close, why }) = open.spec().undone_by else {
            continue;
        };
        match (at(open), at(close)) {
            (Some(_), None) => {
                return Err(format!(
                    "it has {open:?} and no {close:?}: {why}, add {close:?}"
                ));
            }
            (None, Some(_)) => {
                return Err(format!(
                    "{close:?} belongs to {open:?}, which it does not have"
                ));
            }
            (Some(begin), Some(end)) if end < begin => {
                return Err(format!("{close:?} must stand after {open:?}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What stands between keeping the pods away and letting them come again.
fn held_away(class: Class, steps: &[RunbookStep], open: usize) -> Result<(), String> {
    let at = |kind| steps.iter().position(|s| s.step == kind);
    let opener = steps[open].step;
    let close = at(if opener == StepKind::Hold {
        StepKind::Lift
    } else {
        StepKind::Restore
    })
    .unwrap_or(0);
    if open != 0 && (opener == StepKind::ScaleToZero || class == Class::B) {
        return Err(format!(
            "{opener:?} must be the first step: no later step is safe while pods can come"
        ));
    }
    match (opener, at(StepKind::Release), class) {
        (StepKind::Hold, Some(release), _) if release != open + 1 => {
            return Err("Release must stand right after Hold: under a hold the stuck pod has to go before anything is freed".to_owned());
        }
        (StepKind::Hold, None, Class::B | Class::C) => {
            return Err("Release must stand right after Hold: under a hold the stuck pod has to go before anything is freed".to_owned());
        }
        (StepKind::ScaleToZero, Some(_), _) => {
            return Err("Release belongs to Hold: at zero no pod is left to release".to_owned());
        }
        _ => {}
    }
    let closing = steps[close].step;
    let before = close.checked_sub(1).map(|i| &steps[i]);
    if before.is_none_or(|s| s.step != StepKind::AwaitDetached || s.patience_seconds.is_some()) {
        return Err(format!(
            "the step before {closing:?} must be AwaitDetached without patienceSeconds: a pod that starts before the VolumeAttachment is gone gets no volume"
        ));
    }
    match steps
        .iter()
        .rposition(|s| s.step.spec().frees)
        .filter(|last| *last > close)
    {
        Some(late) => Err(format!(
            "{:?} must stand before {closing:?}: later the volume is in use",
            steps[late].step
        )),
        None => Ok(()),
    }
}

fn times(steps: &[RunbookStep]) -> Result<(), String> {
    for step in steps {
        let RunbookStep {
            step: kind,
            deadline_seconds: deadline,
            patience_seconds: patience,
        } = *step;
        if deadline == 0 || deadline > 86_400 {
            return Err(format!(
                "deadlineSeconds of {kind:?} is {deadline} and must be 1 to 86400"
            ));
        }
        let Some(patience) = patience else { continue };
        if !kind.spec().patient {
            return Err(format!(
                "patienceSeconds is for Await and AwaitDetached only, not for {kind:?}"
            ));
        }
        if patience == 0 || patience > deadline {
            return Err(format!(
                "patienceSeconds of {kind:?} is {patience} and must be 1 to its deadlineSeconds, {deadline}"
            ));
        }
    }
    Ok(())
}
