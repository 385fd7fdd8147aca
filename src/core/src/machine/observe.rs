//! Effects that were started and whose outcome nobody recorded: they are observed, never repeated (S3).

use super::{Context, Next, State, StepState};
use crate::evidence::{Evidence, MAX_AGE};
use crate::fact::Reading;
use crate::journal::{Mark, Outcome};
use crate::plan::{Plan, StepIx};
use crate::runbook::StepKind;
use jiff::{SignedDuration, Timestamp};

/// A request in flight is given up for lost this long after it was started: the provider client's own limit (30 s) and
/// as much again for proxies. Used only together with the provider's job history.
pub(super) const IN_FLIGHT: SignedDuration = SignedDuration::from_secs(60);
/// How often the cloud is looked at while waiting for it.
pub(super) const CLOUD_POLL: SignedDuration = SignedDuration::from_secs(1);

/// What to do about an outstanding effect. `None`: there is none.
pub(super) fn outstanding(plan: &Plan, state: &State, evidence: &Evidence, cx: &Context<'_>) -> Option<Next> {
    let step = state.outstanding()?;
    let started = match state.step(step) {
        StepState::Started { at } | StepState::Issued { started: at, .. } => *at,
        _ => return None,
    };
    Some(match plan.steps.get(step.index()).map(|s| s.kind) {
        Some(StepKind::ScaleToZero) => scaled(step, evidence, cx, started, true),
        Some(StepKind::Restore) => scaled(step, evidence, cx, started, false),
        Some(StepKind::CloudDetach | StepKind::CloudForce) => detached(step, plan, evidence, cx, started),
        Some(StepKind::Snapshot) => snapshotted(step, plan, evidence, cx, started),
        // These are conditional writes that may be made again: say that it did not happen, and what is still due is issued.
        _ => observed(step, false, "a write that may be made again"),
    })
}

/// The workload itself tells: our stamp is on it or not.
fn scaled(step: StepIx, evidence: &Evidence, cx: &Context<'_>, started: Timestamp, to_zero: bool) -> Next {
    if evidence.workload.at < started {
        return wait(cx.now, "the workload was read before the last write was started");
    }
    match evidence.workload.read(cx.now, MAX_AGE) {
        Reading::Present(w) => {
            let stamped = matches!(&w.stamp, Some(Ok(s)) if s.recovery == *cx.recovery);
            let seen = format!("{} has {} replicas, stamp of ours: {stamped}", w.workload, w.replicas);
            // A stamp without the zero (a crash between the two writes of the /scale path) counts as not applied; the
            // effect is then issued again on the stamp that is there.
            let applied = if to_zero { stamped && w.replicas == 0 } else { !stamped };
            observed(step, applied, &seen)
        }
        Reading::Absent => observed(step, !to_zero, "the workload is gone"),
        _ => wait(cx.now, "the workload must be read to know whether the last write was applied"),
    }
}

/// The cloud tells: the holder is gone, or the job history shows what became of the request.
fn detached(step: StepIx, plan: &Plan, evidence: &Evidence, cx: &Context<'_>, started: Timestamp) -> Next {
    let Some(cloud) = evidence.cloud_volume.read(cx.now, MAX_AGE).present() else {
        return wait(cx.now, "the cloud must be read to know whether the detach was applied");
    };
    let Some(jobs) = evidence.jobs.read(cx.now, MAX_AGE).present() else {
        return wait(cx.now, "the provider's job history must be read to know what became of the detach");
    };
    let read = evidence.cloud_volume.at.min(evidence.jobs.at);
    if read < started {
        return wait(cx.now, "the cloud was read before the detach was started");
    }
    if jobs.iter().any(|j| j.is_pending()) {
        return wait(cx.now, "a job of the volume is pending at the provider");
    }
    if !cloud.holders.contains(&plan.pins.holder) {
        return observed(step, true, "the cloud no longer names the holder and no job is pending");
    }
    if read.duration_since(started) > IN_FLIGHT {
        return observed(
            step,
            false,
            "the holder is unchanged, no job is pending, and the request's time is over",
        );
    }
    wait(cx.now, "the detach request may still be on its way")
}

/// The label tells: a snapshot carries it or not. What stays unread until the step's deadline is given up: no snapshot
/// frees anything, and after the deadline none is begun.
fn snapshotted(step: StepIx, plan: &Plan, evidence: &Evidence, cx: &Context<'_>, started: Timestamp) -> Next {
    let seconds = plan.steps.get(step.index()).map_or(0, |s| s.deadline_seconds);
    let given_up = cx.now.duration_since(started) > SignedDuration::from_secs(seconds.into());
    let unread = "the snapshots must be read to know whether one was begun";
    let read = evidence.snapshots.as_ref().filter(|f| f.at >= started);
    match read.and_then(|f| Some((f.at, f.read(cx.now, MAX_AGE).present()?))) {
        Some((_, all)) if !all.is_empty() => {
            observed(step, true, &format!("snapshot {} carries this recovery's label", all[0].id))
        }
        Some((at, _)) if at.duration_since(started) > IN_FLIGHT => {
            observed(step, false, "no snapshot carries this recovery's label, and the request's time is over")
        }
        Some(_) => wait(cx.now, "the request for a snapshot may still be on its way"),
        None if given_up => observed(step, false, "the snapshots could not be read until the deadline"),
        None => wait(cx.now, unread),
    }
}

fn observed(step: StepIx, applied: bool, seen: &str) -> Next {
    let seen = seen.to_owned();
    let outcome =
        if applied { Outcome::ObservedApplied { seen } } else { Outcome::ObservedNotApplied { seen } };
    Next::Record(Mark::Outcome { step, outcome })
}

fn wait(now: Timestamp, why: &str) -> Next {
    Next::Wait { why: why.to_owned(), until: now.saturating_add(CLOUD_POLL).unwrap_or(now) }
}
