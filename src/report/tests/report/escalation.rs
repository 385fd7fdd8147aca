//! What a person is call when a wait has become too long.

use crate::sample::*;
use reattach_core::cloud::{CloudVolume, VolumeState};
use reattach_core::diagnosis::{Diagnosis, StuckCause, Trouble, Verdict, WaitReason};
use reattach_core::journal::{Entry, Event, Outcome};
use reattach_core::phase::Phase;
use reattach_report::{Record, SUMMARY_CHARS, TICKET_CHARS, escalation, support_ticket};

/// Makes a record whose detach by the driver fails with this error.
fn refused_driver(error: &str) -> Record {
    let cause = StuckCause::DetachError {
        node: "n1".into(),
        error: error.to_owned(),
    };
    let trouble = Trouble::StuckRecord {
        attachment: None,
        node: "n1".into(),
        cause,
    };
    let diagnosis = Diagnosis {
        verdict: Verdict::Ours { trouble },
        facts: Vec::new(),
    };
    Record {
        phase: Phase::Waiting,
        message: "a proof is missing: shut the instance down".into(),
        cloud_volume: cloud("locked", VolumeState::Active).cloud_volume,
        ..record("shop", Some(diagnosis))
    }
}

fn cloud(name: &str, state: VolumeState) -> Record {
    let mut record = locked(name);
    record.cloud_volume = record.cloud_volume.map(|v| CloudVolume { state, ..v });
    record
}

#[test]
fn a_provider_lock_makes_a_call_with_a_ticket() {
    let call = escalation(&locked("shop"), at(0));
    let ticket = call.ticket.unwrap();
    assert_eq!(
        call.summary,
        "volume 77001 is locked on the provider's side. reattach goes on by itself once this is over. Send the ticket to the provider's support; its API says: it is locked (maintenance hold)"
    );
    for part in [
        "Volume ID:      77001",
        "Region:         eu-central",
        "Instance:       28871423",
        "Since:          2021-07-11 01:13:00 UTC",
        "it is locked (maintenance hold)",
    ] {
        assert!(ticket.contains(part), "{part} is not in\n{ticket}");
    }
}

#[test]
fn an_escalation_is_kept_for_readers_without_cloud_access() {
    let call = escalation(&locked("shop"), at(0));
    let ticket = call.ticket.clone();
    let blind = Record {
        cloud_volume: None,
        escalation: Some(call),
        ..locked("shop")
    };
    assert_eq!(support_ticket(&blind), ticket);
    // With a view of the cloud the ticket describes the present state.
    let now = cloud(
        "shop",
        VolumeState::Busy {
            doing: "migrating".into(),
        },
    );
    let now = Record {
        escalation: blind.escalation.clone(),
        ..now
    };
    assert!(
        support_ticket(&now)
            .unwrap()
            .contains("it is busy (migrating)")
    );
    // A healed volume needs no ticket.
    let healed = Record {
        escalation: blind.escalation,
        ..recovered("shop", 0)
    };
    assert_eq!(support_ticket(&healed), None);
}

#[test]
fn a_lasting_normal_state_becomes_a_provider_ticket() {
    let detaching = cloud("shop", VolumeState::Detaching);
    let detaching = Record {
        diagnosis: detaching.diagnosis.map(|d| Diagnosis {
            verdict: Verdict::Wait {
                reason: WaitReason::Detaching { node: "n1".into() },
            },
            ..d
        }),
        ..detaching
    };
    assert_eq!(support_ticket(&detaching), None);
    let call = escalation(&detaching, at(0));
    assert!(
        call.ticket
            .unwrap()
            .contains("Volume 77001 does not finish detaching on your side")
    );

    // The run's own detach was accepted and has no end.
    let mut running = recovered_by_cloud("shop", 0);
    let accepted = |e: &Entry| matches!(&e.event, Event::Outcome { outcome: Outcome::Applied { detail }, .. } if detail == "200, job 991");
    let end = running.journal.iter().position(accepted).unwrap();
    running.journal.truncate(end + 1);
    running.phase = Phase::Running;
    assert_eq!(support_ticket(&running), None);
    let ticket = escalation(&running, at(0)).ticket.unwrap();
    assert!(ticket.contains("it accepted the detach at"), "{ticket}");
    assert!(
        ticket.contains("we asked your API to detach volume"),
        "{ticket}"
    );
}

#[test]
fn only_refusals_by_the_cloud_become_a_ticket() {
    for words in [
        "rpc error: code = Internal desc = detach volume 77001: [423] Volume is locked",
        "rpc error: code = Internal desc = [400] Linode busy.",
    ] {
        let call = escalation(&refused_driver(words), at(0));
        let ticket = call
            .ticket
            .unwrap_or_else(|| panic!("{words}: {}", call.summary));
        assert!(
            ticket.contains("cannot be detached on your side") && ticket.contains(words),
            "{ticket}"
        );
    }
    for words in [
        "failed to get node \"n1\": node \"n1\" not found",
        "secrets \"cloud\" not found",
        "rpc error: code = Unauthenticated desc = [401] Invalid Token",
    ] {
        let call = escalation(&refused_driver(words), at(0));
        assert_eq!(
            (call.ticket, call.summary),
            (
                None,
                "a proof is missing: shut the instance down".to_owned()
            ),
            "{words}"
        );
    }
}

/// Texts of clouds and drivers may have any length; a stored ticket may not.
#[test]
fn every_ticket_is_bounded() {
    let long = "ü long ".repeat(3_000);
    let mut record = cloud(
        "shop",
        VolumeState::Locked {
            reason: long.clone(),
        },
    );
    record.message.clone_from(&long);
    record.diagnosis.as_mut().unwrap().facts = vec![long.clone(); 100];
    record
        .cloud_volume
        .as_mut()
        .unwrap()
        .label
        .clone_from(&long);
    record.cloud_volume.as_mut().unwrap().holders = vec!["28871423".into(); 5_000];
    let run = failed("shop");
    record.plan = run.plan;
    record.journal = run.journal.iter().cycle().take(3_000).cloned().collect();
    let call = escalation(&record, at(0));
    let ticket = call.ticket.unwrap();
    assert!(
        ticket.chars().count() <= TICKET_CHARS,
        "{}",
        ticket.chars().count()
    );
    assert_eq!(call.summary.chars().count(), SUMMARY_CHARS);
    assert!(
        ticket.contains("Volume ID:      77001") && ticket.ends_with("Thank you.\n"),
        "{ticket}"
    );
}
