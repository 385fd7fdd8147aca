//! Writing a recovery's status: phase, message, conditions, plan and journal.

use crate::attempts;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use reattach_api::{Phase, VolumeRecovery, VolumeRecoveryStatus, condition};
use reattach_core::cloud::CloudVolume;
use reattach_core::plain;

/// The reason of the condition `Stalled` while a person was called for.
pub(crate) const ESCALATED: &str = "Escalated";

/// Sets phase and message, and the conditions that follow from them. Returns whether anything changed.
///
/// A recovery in `Diagnosing` or `Waiting` waits for others from then on; a run does where [`waits_since`] says so,
/// until its journal steps on.
pub(crate) fn set(
    recovery: &mut VolumeRecovery,
    phase: Phase,
    message: impl Into<String>,
    now: Timestamp,
) -> bool {
    set_waiting(recovery, phase, message, now, true)
}

/// Sets phase `Waiting` for a recovery that waits only for its turn. That calls no person.
pub(crate) fn set_in_line(
    recovery: &mut VolumeRecovery,
    message: impl Into<String>,
    now: Timestamp,
) -> bool {
    set_waiting(recovery, Phase::Waiting, message, now, false)
}

/// A run has waited since `since`, or longer.
pub(crate) fn waits_since(recovery: &mut VolumeRecovery, since: Timestamp) {
    recovery
        .status
        .get_or_insert_default()
        .waiting_since
        .get_or_insert(Time(since));
}

/// Calls for a person when it has waited for `after`. Returns whether it does so now: once for each wait.
pub(crate) fn escalate(
    recovery: &mut VolumeRecovery,
    after: SignedDuration,
    now: Timestamp,
) -> bool {
    let generation = recovery.metadata.generation;
    let Some(status) = &mut recovery.status else {
        return false;
    };
    let long = status
        .waiting_since
        .as_ref()
        .is_some_and(|t| now.duration_since(t.0) >= after);
    if !long || is_escalated(status) {
        return false;
    }
    let message = status.message.clone();
    set_condition(
        status,
        condition::STALLED,
        true,
        ESCALATED,
        &message,
        generation,
        now,
    );
    true
}

/// Writes down what the person who was called has to do, with the ticket for the provider where it is the provider's;
/// for as long as the call stands, and as things are now. `cloud` is the cloud's last word on the volume.
pub(crate) fn explain(recovery: &mut VolumeRecovery, cloud: Option<&CloudVolume>) {
    let Some(status) = &recovery.status else {
        return;
    };
    let since = status
        .waiting_since
        .clone()
        .filter(|_| is_escalated(status));
    let told = since.and_then(|since| {
        // One that cannot be read is held, which is another call.
        let record = recovery.record(cloud.cloned()).ok()?;
        Some(reattach_report::escalation(&record, since.0).into())
    });
    if let Some(status) = &mut recovery.status {
        status.escalation = told;
    }
}

fn is_escalated(status: &VolumeRecoveryStatus) -> bool {
    let stalled = status
        .conditions
        .iter()
        .find(|c| c.type_ == condition::STALLED);
    stalled.is_some_and(|c| c.status == "True" && c.reason == ESCALATED)
}

fn set_waiting(
    recovery: &mut VolumeRecovery,
    phase: Phase,
    message: impl Into<String>,
    now: Timestamp,
    for_others: bool,
) -> bool {
    let generation = recovery.metadata.generation;
    let status = recovery
        .status
        .get_or_insert_with(VolumeRecoveryStatus::default);
    let before = status.clone();
    status.phase = phase;
    status.message = plain::sentence(&message.into(), plain::TEXT_CHARS);
    status.observed_generation = generation;
    match phase {
        // A diagnosis may wait for ever, too: for an agent that is not there.
        Phase::Waiting | Phase::Diagnosing if for_others => {
            status.waiting_since.get_or_insert(Time(now));
        }
        // What a run waits for is told by its steps.
        Phase::Running | Phase::Restoring => {}
        _ => status.waiting_since = None,
    }
    if status.waiting_since.is_none() {
        status.escalation = None;
    }
    let escalated = status.waiting_since.is_some() && is_escalated(status);
    let again_and_again = recovery.spec.attempt >= attempts::CALLS_A_PERSON;
    let (recovered, progressing, stalled) = match phase {
        Phase::Recovered | Phase::Resolved => (true, false, false),
        Phase::Running | Phase::Restoring | Phase::Diagnosing | Phase::Waiting => {
            (false, true, false)
        }
        Phase::Stuck | Phase::Failed | Phase::Refused => (false, false, true),
        Phase::Withdrawn => (false, false, again_and_again),
        Phase::NotOurs | Phase::Planned | Phase::AwaitingApproval | Phase::Aborted => {
            (false, false, false)
        }
    };
    let (reason, message) = (format!("{phase:?}"), status.message.clone());
    for (kind, on) in [
        (condition::RECOVERED, recovered),
        (condition::PROGRESSING, progressing),
        (condition::STALLED, stalled),
    ] {
        let (on, reason) = match kind {
            condition::STALLED if escalated => (true, ESCALATED),
            _ => (on, reason.as_str()),
        };
        set_condition(status, kind, on, reason, &message, generation, now);
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
            *old = Condition {
                last_transition_time: since,
                ..fresh
            };
        }
        Some(old) => *old = fresh,
        None => status.conditions.push(fresh),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reattach_api::VolumeRecoverySpec;
    use reattach_core::cloud::VolumeState;
    use reattach_core::testkit::Case;

    const AFTER: SignedDuration = SignedDuration::from_mins(30);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_626_006_000 + seconds).unwrap()
    }

    fn recovery() -> VolumeRecovery {
        let spec = serde_json::json!({"claimName": "data", "runbook": "lightest-first", "requester": "jane"});
        let spec = serde_json::from_value::<VolumeRecoverySpec>(spec).unwrap();
        let mut recovery = VolumeRecovery::new("r", spec);
        recovery.metadata.namespace = Some("shop".to_owned());
        recovery
    }

    fn stalled(recovery: &VolumeRecovery) -> (String, String) {
        let conditions = &recovery.status.as_ref().unwrap().conditions;
        let stalled = conditions
            .iter()
            .find(|c| c.type_ == condition::STALLED)
            .unwrap();
        (stalled.status.clone(), stalled.reason.clone())
    }

    fn pair(status: &str, reason: &str) -> (String, String) {
        (status.to_owned(), reason.to_owned())
    }

    #[test]
    fn each_long_wait_calls_a_person_once() {
        let mut r = recovery();
        set(&mut r, Phase::Waiting, "locked", at(0));
        assert!(!escalate(&mut r, AFTER, at(1799)));
        assert_eq!(stalled(&r), pair("False", "Waiting"));
        set(&mut r, Phase::Waiting, "still locked", at(1700));
        assert!(escalate(&mut r, AFTER, at(1800)));
        assert_eq!(stalled(&r), pair("True", ESCALATED));
        // What is said later does not take it back, and calls nobody again.
        set(&mut r, Phase::Waiting, "locked by staff", at(1900));
        assert!(!escalate(&mut r, AFTER, at(1900)));
        assert_eq!(stalled(&r), pair("True", ESCALATED));
        set(&mut r, Phase::Diagnosing, "looking", at(2000));
        assert_eq!(stalled(&r), pair("True", ESCALATED), "it still waits");
        set(&mut r, Phase::Planned, "a plan", at(2050));
        assert_eq!(stalled(&r), pair("False", "Planned"));
        set(&mut r, Phase::Diagnosing, "looking", at(2100));
        assert!(!escalate(&mut r, AFTER, at(3899)));
        assert!(escalate(&mut r, AFTER, at(3900)));
    }

    #[test]
    fn an_escalation_text_stays_as_long_as_the_escalation() {
        let told = |r: &VolumeRecovery| r.status.as_ref().and_then(|s| s.escalation.clone());
        let mut r = recovery();
        set(
            &mut r,
            Phase::Waiting,
            "pod shop/a-0 has not been bound to a node",
            at(0),
        );
        explain(&mut r, None);
        assert_eq!(told(&r), None, "nobody was called yet");
        assert!(escalate(&mut r, AFTER, at(1800)));
        let mut cloud = Case::deployment()
            .evidence
            .cloud_volume
            .shown()
            .unwrap()
            .clone();
        explain(&mut r, Some(&cloud));
        let first = told(&r).unwrap();
        assert_eq!(
            (first.since.0, first.ticket),
            (at(0), None),
            "no provider can mend that"
        );
        assert!(
            first.summary.contains("has not been bound"),
            "{}",
            first.summary
        );
        // The cloud's word at a later look is what counts.
        cloud.state = VolumeState::Locked {
            reason: "by staff".into(),
        };
        set(&mut r, Phase::Waiting, "locked", at(1900));
        explain(&mut r, Some(&cloud));
        let ticket = told(&r).unwrap().ticket.unwrap();
        assert!(
            ticket.contains("it is locked (by staff)") && ticket.contains(cloud.id.as_str()),
            "{ticket}"
        );
        // Even where nothing explains it anew.
        set(&mut r, Phase::Planned, "a plan", at(2000));
        assert_eq!(told(&r), None);
    }

    #[test]
    fn waiting_for_a_turn_escalates_nothing() {
        let mut r = recovery();
        set_in_line(&mut r, "the budget is spent", at(0));
        assert!(!escalate(&mut r, AFTER, at(99_999)));
        assert_eq!(r.status.as_ref().unwrap().phase, Phase::Waiting);
    }

    #[test]
    fn a_run_waits_since_its_step_began() {
        let mut r = recovery();
        set(&mut r, Phase::Running, "step 1", at(0));
        waits_since(&mut r, at(0));
        waits_since(&mut r, at(900));
        set(
            &mut r,
            Phase::Running,
            "step 1; waiting: for the cloud",
            at(1000),
        );
        assert!(!escalate(&mut r, AFTER, at(1799)));
        assert!(escalate(&mut r, AFTER, at(1800)));
        set(
            &mut r,
            Phase::Running,
            "step 1; waiting: for the cloud",
            at(1810),
        );
        assert_eq!(stalled(&r), pair("True", ESCALATED));
        r.status.as_mut().unwrap().waiting_since = None;
        set(&mut r, Phase::Running, "step 2", at(1900));
        assert_eq!(stalled(&r), pair("False", "Running"));
    }
}
