//! The bounds of a recovery's status.
//!
//! Much of a status was written by others: Events, errors of drivers and of the cloud, names. All of it is made plain,
//! and each text and list keeps to the bound that the schema gives it, so that the API server never refuses a status for
//! the words in it. A status that is too large as a whole loses its longest texts first; the plan and every line of the
//! journal stay, since a run goes by them.

use crate::opaque::Opaque;
use crate::volume_recovery::VolumeRecoveryStatus;
use reattach_core::diagnosis::Diagnosis;
use reattach_core::journal::Entry;
use reattach_core::plain::{self, SENTENCE_CHARS, TEXT_CHARS};
use reattach_report::TICKET_CHARS;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Maximum size of a status in bytes, as JSON. etcd takes 1.5 MiB for a whole object by default, managed fields and the
/// person's spec included.
pub const STATUS_BYTES: usize = 512 << 10;

/// Maximum size of a status in bytes after the API server refused a larger one.
pub const SMALL_STATUS_BYTES: usize = 64 << 10;

/// Maximum number of facts that a stored diagnosis has. A diagnosis has about ten; one about a claim that many pods use
/// has a fact for each of them.
const FACTS: usize = 64;
/// Maximum number of refusals: the schema's bound.
const REFUSALS: usize = 64;
/// Maximum number of timings: the schema's bound.
const TIMINGS: usize = 128;
/// Maximum length of a text that had to be cut for the size of the whole, in characters. Names in the journal have up to
/// 253 and stay whole.
const SHORT_CHARS: usize = 256;
/// Maximum number of facts, refusals and timings in a status that had to be cut.
const FEW: usize = 16;

type Cut = fn(&mut VolumeRecoveryStatus) -> Option<&'static str>;

/// What is cut from a status that is too large, in this order, and how that is called. The longest texts of the least
/// use go first.
const CUTS: [Cut; 6] = [
    cut_ticket,
    cut_facts,
    cut_refusals,
    cut_timings,
    cut_journal,
    drop_diagnosis,
];

impl VolumeRecoveryStatus {
    /// Makes every text plain that people read in the status, within the schema's bounds. The plan and the journal are
    /// made plain before they get here: a plan by its hash, a line when it is appended.
    pub fn make_plain(&mut self) {
        let sentence = |text: &mut String| *text = plain::sentence(text, TEXT_CHARS);
        sentence(&mut self.message);
        if let Some(class) = &mut self.class {
            *class = plain::line(class, SHORT_CHARS.min(16));
        }
        shorten(&mut self.refusals, REFUSALS, "reasons");
        self.refusals.iter_mut().for_each(sentence);
        for condition in &mut self.conditions {
            sentence(&mut condition.message);
        }
        if let Some(told) = &mut self.escalation {
            told.summary = plain::sentence(&told.summary, SENTENCE_CHARS);
            told.ticket = told
                .ticket
                .as_ref()
                .map(|t| plain::cut(&plain::page(t), TICKET_CHARS));
        }
        let old = self.timings.len().saturating_sub(TIMINGS);
        self.timings.drain(..old);
        for timing in &mut self.timings {
            timing.name = plain::line(&timing.name, 253);
        }
        self.left_out = self
            .left_out
            .as_ref()
            .map(|text| plain::line(text, SENTENCE_CHARS));
        if let Some(diagnosis) = &mut self.diagnosis {
            change(diagnosis, |d: &mut Diagnosis| {
                shorten(&mut d.facts, FACTS, "facts");
                d.facts.iter_mut().for_each(sentence);
                *d = plain::made_plain(d, TEXT_CHARS);
            });
        }
        for sighting in &mut self.sightings {
            change(sighting, |s| *s = plain::made_plain(s, TEXT_CHARS));
        }
    }

    /// Makes the status plain and, where it is larger than `bytes`, cuts it. What was cut stands in `left_out` from then
    /// on. The plan and the number of journal lines never change.
    pub fn fit(&mut self, bytes: usize) {
        self.make_plain();
        let mut cut = Vec::new();
        for one in CUTS {
            if self.bytes() <= bytes {
                break;
            }
            cut.extend(one(self));
        }
        if !cut.is_empty() {
            self.left_out = Some(format!(
                "the API server stores no record of this size, so these are cut or left out here: {}; the controller's log has each as it happened",
                cut.join(", ")
            ));
        }
    }

    fn bytes(&self) -> usize {
        // A status always serialises.
        serde_json::to_vec(self).map_or(0, |text| text.len())
    }
}

fn change<T: Clone>(value: &mut Opaque<T>, change: impl FnOnce(&mut T)) {
    // What cannot be read stays as it was found.
    if let Ok(read) = value.get() {
        let mut read = read.clone();
        change(&mut read);
        *value = read.into();
    }
}

/// The first texts of a list, and how many more there were.
fn shorten(list: &mut Vec<String>, most: usize, what: &str) {
    if list.len() > most {
        let more = list.len() - (most - 1);
        list.truncate(most - 1);
        list.push(format!("… and {more} more {what}"));
    }
}

fn cut_ticket(status: &mut VolumeRecoveryStatus) -> Option<&'static str> {
    let ticket = status.escalation.as_mut()?.ticket.as_mut()?;
    let cut = plain::cut(ticket, TEXT_CHARS);
    let changed = cut != *ticket;
    *ticket = cut;
    changed.then_some("the ticket")
}

fn cut_facts(status: &mut VolumeRecoveryStatus) -> Option<&'static str> {
    let diagnosis = status.diagnosis.as_mut()?;
    let before = diagnosis.clone();
    change(diagnosis, |d: &mut Diagnosis| {
        shorten(&mut d.facts, FEW, "facts");
        d.facts
            .iter_mut()
            .for_each(|fact| *fact = plain::cut(fact, SHORT_CHARS));
    });
    (*diagnosis != before).then_some("facts of the diagnosis")
}

fn cut_refusals(status: &mut VolumeRecoveryStatus) -> Option<&'static str> {
    let before = status.refusals.clone();
    shorten(&mut status.refusals, FEW, "reasons");
    status
        .refusals
        .iter_mut()
        .for_each(|text| *text = plain::cut(text, SHORT_CHARS));
    (status.refusals != before).then_some("refusals")
}

fn cut_timings(status: &mut VolumeRecoveryStatus) -> Option<&'static str> {
    let old = status.timings.len().saturating_sub(FEW);
    status.timings.drain(..old);
    (old > 0).then_some("timings")
}

fn cut_journal(status: &mut VolumeRecoveryStatus) -> Option<&'static str> {
    let mut changed = false;
    for line in &mut status.journal {
        change(line, |entry: &mut Entry| {
            let cut = shortened(entry);
            changed |= cut != *entry;
            *entry = cut;
        });
    }
    changed.then_some("long texts of the journal")
}

fn drop_diagnosis(status: &mut VolumeRecoveryStatus) -> Option<&'static str> {
    status.diagnosis.take().map(|_| "the diagnosis")
}

fn shortened<T: Serialize + DeserializeOwned + Clone>(value: &T) -> T {
    plain::made_plain(value, SHORT_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume_recovery::{Escalation, PhaseTiming};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use reattach_core::diagnosis::Verdict;
    use reattach_core::fact::MissingFact;
    use reattach_core::journal::Event;

    const EVIL: &str = "\u{1b}[2Jred\nforged\u{202e}\u{200b} Bearer s3cr3t-of-the-cloud";

    fn full(entries: usize, words: usize) -> VolumeRecoveryStatus {
        let evil = || format!("{EVIL} {}", "word ".repeat(words));
        let at = jiff::Timestamp::UNIX_EPOCH;
        let entry = |seq: usize| {
            let event = Event::Accepted {
                plan_hash: "0123456789abcdef".into(),
                authority: "w".repeat(words * 5),
            };
            Entry {
                seq: u32::try_from(seq).unwrap(),
                at,
                term: 1,
                by: "r".into(),
                event,
            }
        };
        VolumeRecoveryStatus {
            class: Some(evil()),
            message: evil(),
            diagnosis: Some(
                Diagnosis {
                    verdict: Verdict::Unclassified {
                        missing: vec![MissingFact {
                            what: evil(),
                            why: evil(),
                        }],
                    },
                    facts: vec![evil(); 3_000],
                }
                .into(),
            ),
            refusals: vec![evil(); 200],
            journal: (0..entries).map(|n| entry(n).into()).collect(),
            conditions: vec![Condition {
                type_: "Stalled".into(),
                status: "True".into(),
                reason: "Escalated".into(),
                message: evil(),
                observed_generation: None,
                last_transition_time: Time(at),
            }],
            timings: vec![
                PhaseTiming {
                    name: evil(),
                    started: Time(at),
                    millis: 1
                };
                300
            ],
            escalation: Some(Escalation {
                since: Time(at),
                summary: evil(),
                ticket: Some(evil().repeat(20)),
            }),
            ..VolumeRecoveryStatus::default()
        }
    }

    #[test]
    fn every_text_of_a_status_is_plain_and_bounded() {
        let mut status = full(3, 2_000);
        status.make_plain();
        let value = serde_json::to_value(&status).unwrap();
        let facts = value["diagnosis"]["facts"].to_string();
        for text in [
            &facts,
            &status.message,
            &status.refusals[0],
            &status.conditions[0].message,
        ] {
            assert!(
                text.contains("Bearer [masked]") && !text.contains("s3cr3t"),
                "{text}"
            );
        }
        let mut longest = 0;
        let mut value_of_ticket = value.clone();
        reattach_core::plain::every_text(&mut value_of_ticket, &|text| {
            assert!(
                !text.contains(|c| c != '\n' && plain::is_hidden(c)),
                "{text:?}"
            );
            text.to_owned()
        });
        for text in [
            &status.message,
            &status.refusals[0],
            &status.conditions[0].message,
        ] {
            longest = longest.max(text.chars().count());
            assert!(
                text.contains("characters in all") && !text.contains('\n'),
                "{text}"
            );
        }
        assert!(longest <= TEXT_CHARS);
        assert_eq!((status.refusals.len(), status.timings.len()), (64, 128));
        assert!(
            status.refusals[63].contains("137 more reasons"),
            "{}",
            status.refusals[63]
        );
        let before = status.clone();
        status.make_plain();
        assert_eq!(status, before, "twice is once");
    }

    #[test]
    fn a_status_that_is_too_large_is_cut_and_says_so() {
        let mut status = full(400, 300);
        status.fit(SMALL_STATUS_BYTES * 4);
        assert!(
            status.bytes() <= SMALL_STATUS_BYTES * 4,
            "{}",
            status.bytes()
        );
        assert_eq!(status.journal.len(), 400, "no line of the journal is lost");
        let said = status.left_out.clone().unwrap();
        for part in [
            "the ticket",
            "facts of the diagnosis",
            "refusals",
            "long texts of the journal",
        ] {
            assert!(said.contains(part), "{said}");
        }
        let before = status.clone();
        status.fit(SMALL_STATUS_BYTES * 4);
        assert_eq!(status, before, "twice is once");
        assert!(serde_json::to_string(&status).unwrap().contains("leftOut"));
    }

    #[test]
    fn a_status_of_usual_size_is_not_cut() {
        let mut status = full(20, 3);
        status.diagnosis = None;
        status.fit(STATUS_BYTES);
        assert_eq!(status.left_out, None);
    }
}
