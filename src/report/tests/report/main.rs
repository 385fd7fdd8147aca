//! Compares the texts for people with golden files. `UPDATE_GOLDEN=1 cargo test -p reattach-report --test report` writes them.

#![allow(clippy::unwrap_used)] // Test code outside of #[test] functions.

mod escalation;
mod sample;

use reattach_core::diagnosis::{Diagnosis, Verdict, WaitReason};
use reattach_core::ids::{ObjectName, StepIx};
use reattach_core::journal::{Entry, Event, UnwindReason};
use reattach_core::phase::{Phase, Reason, Standing};
use reattach_core::policy::Mode;
use reattach_report::{
    Incident, Record, TEXT_WIDTH, diagnosis_text, html, journal_text, json, markdown, plan_text,
    standing, status_line, support_ticket, timings,
};
use sample::*;
use std::path::PathBuf;

/// Compares with a golden file, or writes it.
fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let want = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{name}: {e}; write it with UPDATE_GOLDEN=1"));
    if let Some((i, (got, want))) = text
        .lines()
        .zip(want.lines())
        .enumerate()
        .find(|(_, (a, b))| a != b)
    {
        panic!(
            "{name}, line {}:\n  got  {got}\n  want {want}\nUPDATE_GOLDEN=1 accepts the new text",
            i + 1
        );
    }
    assert_eq!(
        text.lines().count(),
        want.lines().count(),
        "{name}: another number of lines"
    );
}

/// The founding incident, reduced to one record of each kind of end.
fn mixed() -> Incident {
    let notes = vec![
        (0, "the node is back and Ready"),
        (
            95_000,
            "provider's support answered: the lock is being looked at",
        ),
    ];
    let records = vec![
        recovered("redis", 30_000),
        recovered_by_cloud("postgres", 30_500),
        aborted("bot"),
        failed("shop"),
        stuck("queue"),
        locked("hastebin"),
        not_ours("site"),
        refused_record("search"),
        unclassified("wiki"),
        dry_run("metrics"),
    ];
    incident(
        "2021-07-11: volumes gone after a node was recycled",
        10,
        records,
        notes,
    )
}

/// The founding incident at full length: seconds of healing in hours of waiting.
fn night() -> Incident {
    let mut late = recovered("hastebin", 18_900_000);
    late.created = at(30_000);
    let notes = vec![
        (0, "the node is back and Ready"),
        (18_890_000, "the provider lifted the lock"),
    ];
    incident(
        "The night of 2021-07-11",
        330,
        vec![
            recovered("redis", 30_000),
            recovered_by_cloud("postgres", 31_000),
            late,
            not_ours("site"),
        ],
        notes,
    )
}

fn hostile() -> Incident {
    let mut bad = not_ours("x");
    bad.claim = ObjectName::new("a|b", "<script>alert('1')</script>`|\u{1b}[31m");
    bad.requester = "**root** & <b>co</b>".into();
    bad.reason = Some("line one\nline | two".into());
    let title = "</title><script>alert(1)</script> # *all* | down";
    incident(
        title,
        1,
        vec![bad],
        vec![(5_000, "<img src=x onerror=alert(2)> \u{202e}evil")],
    )
}

#[test]
fn the_post_mortem_in_markdown() {
    golden("mixed.md", &markdown(&mixed()));
    golden(
        "dry-run.md",
        &markdown(&incident("Dry-run", 2, vec![dry_run("redis")], Vec::new())),
    );
    golden(
        "empty.md",
        &markdown(&incident("Nothing", 1, Vec::new(), Vec::new())),
    );
    golden("night.md", &markdown(&night()));
    golden("hostile.md", &markdown(&hostile()));
}

#[test]
fn the_post_mortem_in_html() {
    golden("mixed.html", &html(&mixed()));
    golden("night.html", &html(&night()));
    golden("hostile.html", &html(&hostile()));
    golden(
        "empty.html",
        &html(&incident("Nothing", 1, Vec::new(), Vec::new())),
    );
}

#[test]
fn the_post_mortem_in_json() {
    let text = json(&mixed());
    golden("mixed.json", &text);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let records: Vec<Record> = serde_json::from_value(value["records"].clone()).unwrap();
    assert_eq!(records, mixed().records, "the records can be read back");
    assert_eq!(value["volumes"][0]["phase"], "Recovered");
    assert_eq!(value["volumes"][0]["healMillis"], 11_915 + 5_310);
    assert_eq!(value["volumes"][1]["cloudDetach"], "used");
    assert!(
        value["volumes"][5]["supportTicket"]
            .as_str()
            .unwrap()
            .contains("77001")
    );
}

/// A withheld order says nothing about the provider, so the ticket keeps the provider's last answer.
#[test]
fn a_ticket_quotes_the_provider_and_not_ourselves() {
    let mut record = failed("shop");
    let refusal = record
        .journal
        .iter()
        .position(|e| matches!(&e.event, Event::Outcome { outcome, .. } if !outcome.applied()));
    let at = refusal.unwrap() + 1;
    let order = started(2, "detach volume 1042 from instance 28871423 at the cloud");
    for (n, event) in [order, withheld(2)].into_iter().enumerate() {
        let line = Entry {
            event,
            ..record.journal[at - 1].clone()
        };
        record.journal.insert(at + n, line);
    }
    for (seq, line) in (0..).zip(&mut record.journal) {
        line.seq = seq;
    }
    let ticket = support_ticket(&record).unwrap();
    assert!(
        ticket.contains("Volume is locked by an administrator") && !ticket.contains("leader"),
        "{ticket}"
    );
    assert_eq!(ticket, support_ticket(&failed("shop")).unwrap());
}

#[test]
fn terminal_texts() {
    golden("plan.txt", &plan_text(&plan("redis")));
    let cloud = recovered_by_cloud("postgres", 30_000);
    golden(
        "journal.txt",
        &journal_text(cloud.plan.as_ref().unwrap(), &cloud.journal),
    );
    let all: Vec<String> = mixed()
        .records
        .iter()
        .map(|r| diagnosis_text(r.diagnosis.as_ref().unwrap()))
        .collect();
    golden("diagnoses.txt", &all.join("\n---\n\n"));
    let lines: Vec<String> = mixed().records.iter().map(status_line).collect();
    golden("status.txt", &format!("{}\n", lines.join("\n")));
    golden("ticket.txt", &support_ticket(&locked("hastebin")).unwrap());
    golden(
        "ticket-refused-detach.txt",
        &support_ticket(&failed("shop")).unwrap(),
    );
}

#[test]
fn terminal_texts_keep_to_their_width() {
    let mut texts = vec![plan_text(&plan("redis"))];
    for record in mixed().records {
        texts.extend(
            record
                .plan
                .as_ref()
                .map(|p| journal_text(p, &record.journal)),
        );
        texts.extend(record.diagnosis.as_ref().map(diagnosis_text));
        texts.push(status_line(&record));
    }
    for line in texts.iter().flat_map(|t| t.lines()) {
        assert!(
            line.chars().count() <= TEXT_WIDTH,
            "{} columns: {line}",
            line.chars().count()
        );
        assert_eq!(line, line.trim_end(), "trailing space");
    }
}

#[test]
fn markup_in_names_stays_text() {
    let page = html(&hostile());
    for evil in ["<script", "<img", "<b>"] {
        assert!(!page.contains(evil), "{evil} got through");
    }
    assert_eq!(
        page.matches("</title>").count(),
        page.matches("<title").count(),
        "the title does not end early"
    );
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "no link to anything outside"
    );
    let text = markdown(&hostile());
    assert!(
        !text.contains("<script")
            || text
                .lines()
                .filter(|l| l.contains("<script"))
                .all(|l| l.contains('`')),
        "only inside code"
    );
    let table: Vec<&str> = text.lines().filter(|l| l.starts_with("| ")).collect();
    // A pipe of the data must not make another cell: every table has as many unescaped pipes per row as its head.
    let pipes = |l: &str| l.replace("\\|", "").matches('|').count();
    let volumes = table
        .iter()
        .position(|l| l.starts_with("| Claim |"))
        .unwrap();
    assert_eq!(pipes(table[volumes]), pipes(table[volumes + 1]));
    for text in [&page, &text] {
        assert!(
            !text.contains(['\u{1b}', '\u{202e}']),
            "control characters are gone"
        );
    }
    assert!(!json(&hostile()).contains('\u{1b}'), "JSON escapes them");
}

#[test]
fn every_html_tag_is_closed_in_order() {
    // A little parser: enough to see that the renderer nests well, since escaped text cannot contain tags.
    for page in [
        html(&mixed()),
        html(&hostile()),
        html(&incident("Nothing", 1, Vec::new(), Vec::new())),
    ] {
        let body = &page[page.find("<body>").unwrap()..];
        let mut open: Vec<&str> = Vec::new();
        for tag in body.split('<').skip(1).map(|t| &t[..t.find('>').unwrap()]) {
            match tag.strip_prefix('/') {
                Some("html") => break,
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if tag.ends_with('/') => {}
                None => open.push(tag.split_whitespace().next().unwrap()),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }
}

#[test]
fn a_record_shows_phase_and_reason() {
    let plain = |r: &Record, phase| assert_eq!(standing(r), Standing::of(phase));
    let reason = |r: &Record, phase| {
        let found = standing(r);
        assert_eq!(found.phase, phase, "{found:?}");
        found.reason.unwrap()
    };
    plain(&recovered("a", 0), Phase::Recovered);
    plain(&aborted("a"), Phase::Aborted);
    let why = reason(&failed("a"), Phase::Failed);
    assert!(
        matches!(&why, Reason::Sentence(s) if s.contains("300 s")),
        "{why:?}"
    );
    let why = reason(&stuck("a"), Phase::Stuck);
    assert!(
        matches!(&why, Reason::Sentence(s) if s.contains("not known")),
        "{why:?}"
    );
    let why = reason(&locked("a"), Phase::Waiting);
    assert!(
        matches!(&why, Reason::Wait(WaitReason::ProviderLock { .. })),
        "{why:?}"
    );
    assert!(matches!(
        reason(&not_ours("a"), Phase::NotOurs),
        Reason::NotOurs(_)
    ));
    assert!(matches!(
        reason(&refused_record("a"), Phase::Refused),
        Reason::Refusals(_)
    ));
    assert!(matches!(
        reason(&unclassified("a"), Phase::Diagnosing),
        Reason::Missing(_)
    ));
    let dry = dry_run("a");
    assert_eq!(reason(&dry, Phase::Planned), Reason::Mode(dry.mode));
    plain(
        &Record {
            mode: Mode::Approve,
            ..dry_run("a")
        },
        Phase::AwaitingApproval,
    );
    let auto = Record {
        mode: Mode::Auto,
        ..dry_run("a")
    };
    assert_eq!(reason(&auto, Phase::Planned), Reason::Mode(Mode::Auto));
    plain(&record("a", None), Phase::Diagnosing);
    assert_eq!(
        reason(&record("a", Some(diagnosis("a"))), Phase::Diagnosing),
        Reason::NoPlan
    );
    plain(
        &Record {
            phase: Phase::Resolved,
            ..record("a", Some(diagnosis("a")))
        },
        Phase::Resolved,
    );
    let mut going = recovered("a", 0);
    going.phase = Phase::Running;
    going.journal.truncate(5);
    assert_eq!(
        reason(&going, Phase::Running),
        Reason::Step(Some(StepIx(1)))
    );
    assert!(
        status_line(&going).ends_with(": step 2 (wait for the detach)"),
        "{}",
        status_line(&going)
    );
    let mut back = aborted("a");
    back.phase = Phase::Restoring;
    back.journal.pop();
    let why = reason(&back, Phase::Restoring);
    assert!(
        matches!(&why, Reason::Unwinding(UnwindReason::Aborted { by }) if by == "joe@example.org"),
        "{why:?}"
    );
}

/// A recovery waits while its refusals pass by themselves. A queued recovery names its reason.
#[test]
fn a_waiting_record_reads_as_waiting() {
    let waits = Record {
        phase: Phase::Waiting,
        ..refused_record("a")
    };
    let found = standing(&waits);
    assert_eq!(found.phase, Phase::Waiting);
    assert_eq!(found.reason, Some(Reason::Refusals(waits.refusals.clone())));
    assert!(
        status_line(&waits).contains(": waiting"),
        "{}",
        status_line(&waits)
    );
    let queued = Record {
        phase: Phase::Waiting,
        mode: Mode::Auto,
        message: "2 are ahead".into(),
        ..dry_run("a")
    };
    assert_eq!(
        standing(&queued).reason,
        Some(Reason::Sentence("2 are ahead".into()))
    );
}

#[test]
fn each_step_is_timed_from_the_line_that_closed_the_one_before() {
    let record = recovered_by_cloud("postgres", 0);
    let plan = record.plan.as_ref().unwrap();
    let got = timings(plan, &record.journal);
    let measured: Vec<(&str, i64, i64)> = got
        .iter()
        .map(|t| (t.name.as_str(), t.millis, t.ours_millis))
        .collect();
    assert_eq!(
        measured,
        [
            ("ScaleToZero", 2_110, 40 + 25),
            ("AwaitDetached (step 2)", 60_090, 0),
            // The first attempt's lead and call, and of the repetition only the call.
            ("CloudDetach", 12_800, 800 + 300 + 500),
            ("Requeue", 45, 20 + 20),
            ("AwaitDetached (step 5)", 1_955, 0),
            ("Restore", 50, 20 + 25),
            ("Verify", 5_250, 0),
        ]
    );
    assert_eq!(got[0].started, record.journal[0].at);
    let whole: i64 = got.iter().map(|t| t.millis).sum();
    assert_eq!(whole, 77_000 + 5_300, "the steps leave no gap");
}

#[test]
fn undoing_and_unfinished_steps_are_timed() {
    let record = aborted("bot");
    let measured: Vec<_> = timings(record.plan.as_ref().unwrap(), &record.journal)
        .into_iter()
        .map(|t| (t.name, t.millis, t.ours_millis))
        .collect();
    let want = [
        ("ScaleToZero", 2_110, 65),
        ("AwaitDetached (step 2)", 5_890, 0),
        ("PutBack", 70, 60),
    ];
    assert_eq!(measured, want.map(|(n, m, o)| (n.to_owned(), m, o)));
    let record = stuck("queue");
    let last = timings(record.plan.as_ref().unwrap(), &record.journal)
        .pop()
        .unwrap();
    assert_eq!(
        (last.name.as_str(), last.millis, last.ours_millis),
        ("CloudDetach", 30_800, 800 + 30_000)
    );
    assert!(timings(record.plan.as_ref().unwrap(), &[]).is_empty());
}

#[test]
fn clocks_that_disagree_never_count_negative() {
    let mut record = recovered("redis", 0);
    record.journal[2].at = at(0);
    let plan = record.plan.as_ref().unwrap();
    assert!(
        timings(plan, &record.journal)
            .iter()
            .all(|t| t.millis >= 0 && t.ours_millis >= 0)
    );
    let lines = journal_text(plan, &record.journal);
    assert!(
        lines.contains("-1.5 s"),
        "the writer's own time is shown: {lines}"
    );
}

#[test]
fn tickets_name_only_provider_faults_and_no_secret() {
    let ticket = support_ticket(&failed("shop")).unwrap();
    assert!(ticket.contains("Volume ID:      1042") && ticket.contains("Instance:       28871423"));
    assert!(
        !ticket.contains("abcdef0123"),
        "the token in the quoted error is masked"
    );
    assert!(!ticket.contains("serviceaccount") && !ticket.contains("policy"));
    for other in [
        recovered("a", 0),
        aborted("a"),
        not_ours("a"),
        dry_run("a"),
        stuck("a"),
        refused_record("a"),
    ] {
        assert_eq!(support_ticket(&other), None, "{}", other.phase);
    }
    // A lock that was lifted and healed needs no ticket, even if the record still carries the old cloud view.
    let healed = Record {
        cloud_volume: locked("a").cloud_volume,
        ..recovered("a", 0)
    };
    assert_eq!(support_ticket(&healed), None);
}

#[test]
fn a_record_survives_json() {
    for record in mixed().records {
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}

#[test]
fn a_healed_volumes_report_names_the_original_fault() {
    let mut healed = recovered("redis", 30_000);
    let verdict = Verdict::Healthy {
        why: "every pod that wants the volume is Ready".into(),
    };
    healed.diagnosis = Some(Diagnosis {
        verdict,
        facts: Vec::new(),
    });
    let text = markdown(&incident("Healed", 2, vec![healed], Vec::new()));
    assert!(text.contains("1 claim of class B (phantom attachment)"));
    assert!(
        text.contains("**Diagnosis.** Class B (phantom attachment): Kubernetes and the cloud say")
    );
}
