//! Explains the catalogue of reported events, as written and as other clusters would write it, and texts that are no
//! messages.

use reattach_messages::{Explanation, Meaning, Message, Remedy, explain};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Row {
    #[serde(flatten)]
    message: Message,
    remedy: Remedy,
    source: String,
}

fn rows() -> Vec<Row> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/mount-events.jsonl"
    );
    let text = std::fs::read_to_string(path).expect("the catalogue is readable");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a row of the catalogue"))
        .collect()
}

fn is_right(explanation: &Explanation, expected: Remedy) -> bool {
    match expected {
        Remedy::NotOurs => explanation.remedies == [Remedy::NotOurs],
        remedy => {
            explanation.remedies.contains(&remedy)
                && !explanation.remedies.contains(&Remedy::NotOurs)
        }
    }
}

/// Explains every row after a change and returns what went wrong.
fn wrong_after(change: impl Fn(&Message) -> Message) -> Vec<String> {
    rows()
        .iter()
        .filter_map(|row| {
            let message = change(&row.message);
            let got = explain(&message);
            let wrong = !is_right(&got, row.remedy);
            wrong.then(|| {
                format!(
                    "{}: {:?} wanted, got {got:?}\n  for {message:?}",
                    row.source, row.remedy
                )
            })
        })
        .collect()
}

#[track_caller]
fn assert_right_after(name: &str, change: impl Fn(&Message) -> Message) {
    let wrong = wrong_after(change);
    assert!(
        wrong.is_empty(),
        "{name}: {} wrong\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn with_text(message: &Message, change: impl Fn(&str) -> String) -> Message {
    Message {
        message: change(&message.message),
        ..message.clone()
    }
}

#[test]
fn every_row_of_the_catalogue() {
    assert_eq!(rows().len(), 54);
    assert_right_after("as written", Message::clone);
}

#[test]
fn explanations_are_complete() {
    for row in rows() {
        let explanation = explain(&row.message);
        assert!(explanation.sentence.len() > 40, "{explanation:?}");
        assert!(!explanation.deciding_facts.is_empty(), "{explanation:?}");
        let ours = !explanation.remedies.contains(&Remedy::NotOurs);
        assert_eq!(ours, explanation.meaning.is_ours(), "{explanation:?}");
        assert_eq!(ours, row.remedy != Remedy::NotOurs, "{row:?}");
        assert!(
            !matches!(
                explanation.meaning,
                Meaning::Unknown | Meaning::Umbrella { .. }
            ),
            "no row of the catalogue is unreadable: {row:?}"
        );
    }
}

#[test]
fn fields_may_be_missing() {
    assert_right_after("no reason", |m| Message {
        reason: None,
        ..m.clone()
    });
    assert_right_after("no component", |m| Message {
        source_component: None,
        ..m.clone()
    });
    assert_right_after("no driver", |m| Message {
        driver: None,
        ..m.clone()
    });
    assert_right_after("text only", |m| Message {
        message: m.message.clone(),
        ..Message::default()
    });
    assert_right_after("a line of text", |m| Message::from_line(&m.message));
    assert_right_after("a driver nobody knows", |m| Message {
        driver: m
            .driver
            .as_deref()
            .filter(|d| !d.starts_with("kubernetes.io/"))
            .map(|_| "csi.example.com".into()),
        ..m.clone()
    });
}

#[test]
fn quotes_may_differ() {
    type Requote = fn(&str) -> String;
    let texts: [(&str, Requote); 5] = [
        ("single", |t| t.replace('"', "'")),
        ("back", |t| t.replace('"', "`")),
        ("typographic", |t| t.replace(" \"", " “").replace('"', "”")),
        ("escaped", |t| t.replace('"', "\\\"")),
        ("none", |t| t.replace('"', "")),
    ];
    for (name, change) in texts {
        assert_right_after(name, |m| with_text(m, change));
        assert_right_after(name, |m| Message::from_line(&change(&m.message)));
    }
}

#[test]
fn names_and_numbers_may_differ() {
    let digits = |text: &str| -> String {
        // Status codes and exit codes stay: they carry meaning.
        text.split_inclusive(' ')
            .map(
                |word| match word.chars().filter(char::is_ascii_digit).count() {
                    0..=3 => word.to_owned(),
                    _ => word.replace('0', "7").replace('1', "3").replace('2', "9"),
                },
            )
            .collect()
    };
    assert_right_after("digits", |m| with_text(m, digits));
    for (node, other) in [
        (
            "ip-10-0-0-1.eu-central-1.compute.internal",
            "lke13311-16405-5fafd1b46dcf",
        ),
        (
            "aks-nodepool1-12345678-vmss000000",
            "gke-prod-default-pool-0a1b2c3d-x1y2",
        ),
        ("locked-server", "deleted-host"),
    ] {
        assert_right_after(node, |m| {
            with_text(m, |t| t.replace("node-a", node).replace("node-b", other))
        });
    }
    // Names that read like errors must not be taken for the message.
    for name in [
        "volume-not-found",
        "quota-exceeded",
        "my-secret",
        "server-locked",
        "being-deleted",
        "nfs",
    ] {
        assert_right_after(name, |m| {
            let (_, rest) = m.message.split_once("volume \"").unwrap_or_default();
            let (volume, _) = rest.split_once('"').unwrap_or_default();
            let named = format!("\"{volume}\"");
            with_text(m, |t| t.replacen(&named, &format!("\"{name}\""), 1))
        });
        assert_right_after(name, |m| {
            with_text(m, |t| {
                [
                    "webhook-tls",
                    "kube-apiserver",
                    "app-0",
                    "default-token-xxxxx",
                ]
                .iter()
                .filter(|n| !n.starts_with("default"))
                .fold(t.to_owned(), |t, old| t.replace(old, name))
            })
        });
    }
}

#[test]
fn prefixes_and_suffixes_may_be_added() {
    for prefix in [
        "Warning  3m (x12 over 25m)  ",
        "E0711 01:13:05.123456    2817 nestedpendingoperations.go:348] Error: ",
        "2021-07-11T01:13:05Z WARN ",
        "Error: ",
        "  ",
    ] {
        assert_right_after(prefix, |m| with_text(m, |t| format!("{prefix}{t}")));
        assert_right_after(prefix, |m| {
            Message::from_line(&format!("{prefix}{}", m.message))
        });
    }
    for suffix in [
        " (x7 over 10m)",
        ". Will retry.",
        ", request id: 00000000-0000-0000-0000-000000000000",
        " (requestID=0000)",
        "\n",
        " durationBeforeRetry 2m2s",
    ] {
        assert_right_after(suffix, |m| with_text(m, |t| format!("{t}{suffix}")));
    }
}

#[test]
fn spacing_and_case_may_differ() {
    assert_right_after("double spaces", |m| with_text(m, |t| t.replace(' ', "  ")));
    assert_right_after("no space before the colon", |m| {
        with_text(m, |t| t.replace("\" : ", "\": "))
    });
    assert_right_after("line breaks", |m| {
        with_text(m, |t| t.replace(" desc = ", "\ndesc = "))
    });
    assert_right_after("a capital after desc", |m| {
        with_text(m, |t| match t.split_once("desc = ") {
            Some((head, tail)) => {
                let mut chars = tail.chars();
                let first = chars
                    .next()
                    .map(|c| c.to_uppercase().to_string())
                    .unwrap_or_default();
                format!("{head}desc = {first}{}", chars.as_str())
            }
            None => t.to_owned(),
        })
    });
    assert_right_after("another log frame", |m| {
        with_text(m, |t| {
            t.replacen(
                "\" : ",
                "\" (UniqueName: \"kubernetes.io/csi/x^v\") pod \"p-0\" (UID: \"0000\") : ",
                1,
            )
        })
    });
}

#[test]
fn synonyms_are_recognised() {
    for (from, to) in [
        ("can't", "cannot"),
        ("can't", "could not"),
        ("Unable to", "Could not"),
        ("Could not", "failed to"),
        ("already attached", "still attached"),
        ("currently attached", "already attached"),
        ("different node", "another node"),
        ("is already being used by", "is in use by"),
        ("not found", "could not be found"),
        ("not found", "does not exist"),
        ("does not exist", "was not found"),
        ("timed out waiting", "timeout waiting"),
        ("context deadline exceeded", "deadline exceeded"),
        (
            "You are not authorized to perform this operation",
            "The caller does not have permission to do this",
        ),
        ("already exists", "is already in progress"),
        ("is locked", "is currently locked by another action"),
        ("Resource busy", "Device or resource busy"),
        ("a server", "another server"),
        ("I/O error", "Input/output error"),
        (
            "exceed max volume count",
            "exceed the maximum number of volumes",
        ),
        ("is marked for deletion", "is being deleted"),
        (
            "volume attachment is being deleted",
            "VolumeAttachment has a deletion timestamp",
        ),
    ] {
        let name = format!("{from} -> {to}");
        assert!(
            rows().iter().any(|row| row.message.message.contains(from)),
            "{name} changes nothing"
        );
        assert_right_after(&name, |m| with_text(m, |t| t.replace(from, to)));
    }
}

/// A small generator, so that a failure can be repeated from its seed (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n.max(1)).expect("fits")).expect("fits")
    }
}

fn assert_well_formed(message: &Message) {
    let explanation = explain(message);
    let remedies = &explanation.remedies;
    assert!(
        (1..=3).contains(&remedies.len()),
        "{remedies:?} for {message:?}"
    );
    let mut distinct = remedies.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(
        distinct.len(),
        remedies.len(),
        "{remedies:?} for {message:?}"
    );
    assert!(
        !remedies.contains(&Remedy::NotOurs) || remedies.len() == 1,
        "{remedies:?} for {message:?}"
    );
    assert!(!explanation.sentence.is_empty());
}

#[test]
fn arbitrary_bytes_are_read() {
    let mut random = Random(0x2021_0711);
    for _ in 0..1_500 {
        let length = random.below(200);
        let bytes: Vec<u8> = (0..length)
            .map(|_| random.next().to_le_bytes()[3])
            .collect();
        assert_well_formed(&Message::from_line(&String::from_utf8_lossy(&bytes)));
    }
}

#[test]
fn mangled_messages_are_read() {
    const SPICE: &[&str] = &[
        "\"",
        "'",
        "“",
        "ß",
        "é",
        "\u{1F4A5}",
        "\\",
        "[",
        ")",
        " : ",
        "rpc error: code",
        "=",
        "desc =",
        "\0",
        "'s",
        "K",
        "İ",
    ];
    let texts: Vec<Message> = rows().into_iter().map(|row| row.message).collect();
    let mut random = Random(0x5eed);
    for round in 0..1_500 {
        let source = &texts[round % texts.len()];
        let mut chars: Vec<char> = source.message.chars().collect();
        for _ in 0..=random.below(8) {
            let at = random.below(chars.len());
            match random.below(4) {
                0 => chars.truncate(at),
                1 => drop(chars.drain(at..(at + random.below(20)).min(chars.len()))),
                2 => drop(chars.splice(at..at, SPICE[random.below(SPICE.len())].chars())),
                _ => chars.rotate_left(at),
            }
        }
        let message = Message {
            message: chars.into_iter().collect(),
            ..source.clone()
        };
        assert_well_formed(&message);
        assert_well_formed(&Message::from_line(&message.message));
    }
}

#[test]
fn long_texts_end() {
    assert_well_formed(&Message::from_line(&"volume ".repeat(100_000)));
    assert_well_formed(&Message::from_line(
        &"rpc error: code = Internal desc = ".repeat(5_000),
    ));
    assert_well_formed(&Message::from_line(&"\"".repeat(10_000)));
    assert_well_formed(&Message::from_line(""));
}

#[test]
fn a_line_is_an_object_or_a_text() {
    let line = r#"{"message":"x","reason":"FailedMount","driver":null,"cause":"ignored"}"#;
    let message = Message::from_line(line);
    assert_eq!(message.message, "x");
    assert_eq!(message.reason.as_deref(), Some("FailedMount"));
    assert_eq!(Message::from_line("plain").message, "plain");
    let broken = r#"{"message": 1}"#;
    assert_eq!(Message::from_line(broken).message, broken);
}
