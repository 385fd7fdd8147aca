//! Writing a recovery's status: phase, message, conditions, plan and journal.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use reattach_api::{Phase, VolumeRecovery, VolumeRecoveryStatus, condition};

/// Sets phase and message, and the conditions that follow from them. Returns whether anything changed.
pub(crate) fn set(
    recovery: &mut VolumeRecovery,
    phase: Phase,
    message: impl Into<String>,
    now: Timestamp,
) -> bool {
    let generation = recovery.metadata.generation;
    let status = recovery.status.get_or_insert_with(VolumeRecoveryStatus::default);
    let before = status.clone();
    status.phase = phase;
    status.message = message.into();
    status.observed_generation = generation;
    let (recovered, progressing, stalled) = match phase {
        Phase::Recovered | Phase::Resolved => (true, false, false),
        Phase::Running | Phase::Restoring | Phase::Diagnosing | Phase::Waiting => (false, true, false),
        Phase::Stuck | Phase::Failed | Phase::Refused => (false, false, true),
        Phase::NotOurs | Phase::Planned | Phase::AwaitingApproval | Phase::Aborted => (false, false, false),
    };
    let (reason, message) = (format!("{phase:?}"), status.message.clone());
    for (kind, on) in [
        (condition::RECOVERED, recovered),
        (condition::PROGRESSING, progressing),
        (condition::STALLED, stalled),
    ] {
        set_condition(status, kind, on, &reason, &message, generation, now);
    }
    *status != before
}

fn set_condition(
    status: &mut VolumeRecoveryStatus,
    kind: &str,
    on: bool,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) {
    let word = if on { "True" } else { "False" };
    let fresh = Condition {
        type_: kind.to_owned(),
        status: word.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match status.conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(old) if old.status == word => {
            let since = old.last_transition_time.clone();
            *old = Condition { last_transition_time: since, ..fresh };
        }
        Some(old) => *old = fresh,
        None => status.conditions.push(fresh),
    }
}
