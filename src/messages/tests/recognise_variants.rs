//! Wordings of other drivers and other Kubernetes versions than those of the catalogue, each with the remedy that must
//! be offered, from the text and the driver alone. Identifiers are made up or restated as zeros. The group `reported`
//! holds wordings from public issue threads and troubleshooting pages that were collected after the tables had been
//! written; the others follow the drivers' and Kubernetes' own formats.

use reattach_messages::{Message, Remedy, explain};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    group: String,
    remedy: Remedy,
    #[serde(flatten)]
    message: Message,
}

fn rows() -> Vec<Row> {
    include_str!("recognise_variants.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row of the variants"))
        .collect()
}

fn wrong(rows: &[Row], change: impl Fn(&Message) -> Message) -> Vec<String> {
    rows.iter()
        .filter_map(|row| {
            let message = change(&row.message);
            let got = explain(&message);
            let right = match row.remedy {
                Remedy::NotOurs => got.remedies == [Remedy::NotOurs],
                remedy => {
                    got.remedies.contains(&remedy) && !got.remedies.contains(&Remedy::NotOurs)
                }
            };
            let text = &message.message;
            (!right).then(|| {
                format!(
                    "{}: {:?} wanted, {:?} {:?} got: {text}",
                    row.group, row.remedy, got.remedies, got.meaning
                )
            })
        })
        .collect()
}

#[test]
fn every_variant() {
    let rows = rows();
    assert!(rows.len() >= 200, "{}", rows.len());
    let wrong = wrong(&rows, Message::clone);
    assert!(
        wrong.is_empty(),
        "{} of {}\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
}

#[test]
fn quotes_and_spaces_do_not_matter() {
    let rows = rows();
    for (from, to) in [("\"", "'"), ("\"", "\\\""), (" ", "  "), ("'", "`")] {
        let wrong = wrong(&rows, |m| Message {
            message: m.message.replace(from, to),
            ..m.clone()
        });
        assert!(
            wrong.is_empty(),
            "{from} -> {to}: {} of {}\n{}",
            wrong.len(),
            rows.len(),
            wrong.join("\n")
        );
    }
}

#[test]
fn every_remedy_and_both_sides_are_covered() {
    let rows = rows();
    for remedy in [
        Remedy::ForceDetach,
        Remedy::DeleteVolumeattachment,
        Remedy::Wait,
        Remedy::Escalate,
        Remedy::NotOurs,
    ] {
        assert!(
            rows.iter().filter(|row| row.remedy == remedy).count() >= 20,
            "{remedy:?}"
        );
    }
}
