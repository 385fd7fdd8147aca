//! Builds the post-mortem as a document that Markdown and HTML render.

use crate::doc::{Block, Inline, Line, Tone, code, labelled, text};
use crate::format::{
    class_in_words, class_name, clock, clock_since, count, date_clock, event_in_words, millis,
    proof_in_words, relative, same_day, sentence, span, step_name,
};
use crate::summary::{CloudDetach, RecoverySummary, StepSummary, is_provider_lock, outstanding};
use crate::text::next_step;
use crate::timing::Stretch;
use crate::{Incident, Record, support_ticket};
use jiff::Timestamp;
use reattach_core::diagnosis::{Class, Verdict};
use reattach_core::ids::StepIx;
use reattach_core::phase::{Phase, Reason, Standing};
use reattach_core::plain::{clean, quoted};
use reattach_core::plan::{Plan, PlannedStep};
use reattach_core::policy::Mode;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Line of the merged timeline.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TimelineLine {
    at: Timestamp,
    /// `None` for a note.
    claim: Option<String>,
    by: Option<String>,
    text: String,
}

/// Merges the notes, creations and journal lines of all records in order of time. Lines of one journal keep their order
/// even if the clocks of two writers disagree.
pub(crate) fn timeline(incident: &Incident) -> Vec<TimelineLine> {
    // Each line with the time by which it is sorted. The time that is shown is the writer's own.
    let mut lines: Vec<(Timestamp, TimelineLine)> = Vec::new();
    for note in &incident.notes {
        let line = TimelineLine {
            at: note.at,
            claim: None,
            by: None,
            text: quoted(&note.text),
        };
        lines.push((note.at, line));
    }
    for record in &incident.records {
        let line = |at: Timestamp, by: &str, text: String| TimelineLine {
            at,
            claim: Some(record.claim.to_string()),
            by: Some(clean(by)),
            text,
        };
        let created = quoted(&format!(
            "problem detected; recovery {} created in mode {}{}",
            record.recovery.name,
            record.mode,
            because(record)
        ));
        lines.push((
            record.created,
            line(record.created, &record.requester, created),
        ));
        let mut last = record.created;
        for entry in &record.journal {
            last = last.max(entry.at);
            let event = event_in_words(record.plan.as_ref(), &entry.event);
            lines.push((last, line(entry.at, &entry.by, event)));
        }
    }
    lines.sort_by_key(|(at, _)| *at);
    lines.into_iter().map(|(_, line)| line).collect()
}

/// Returns the requester's reason as the end of a sentence; empty if there is none.
fn because(record: &Record) -> String {
    match &record.reason {
        Some(reason) => format!(", because: {reason}"),
        None => String::new(),
    }
}

/// Describes what is the case, what reattach does and what a person has to do. `None` if a person has nothing to do.
pub(crate) fn needs_human(recovery: &RecoverySummary<'_>) -> Option<String> {
    let standing = &recovery.standing;
    let why = recovery
        .why()
        .unwrap_or_else(|| recovery.title().to_owned());
    let why = why.trim_end_matches('.');
    let text = match (standing.phase, &standing.reason) {
        (Phase::Stuck, _) => match outstanding(recovery.record) {
            Some(step) => format!(
                "{why}. reattach restores nothing until the outcome of {} is known. A person must look at it now",
                step_name(recovery.record.plan.as_ref(), step)
            ),
            None => format!("{why}. A person must look at it now"),
        },
        (Phase::Failed, _) => format!(
            "{why}. The run restored what it had changed, and the pod is still without its volume. Find the cause. {}",
            next_attempt(recovery.record)
        ),
        (Phase::Withdrawn, _) => format!("{why}. Nothing was changed. {}", next_attempt(recovery.record)),
        (Phase::Waiting, _) if is_provider_lock(standing) => {
            "the provider has locked the volume. reattach goes on by itself once the lock is gone. Send the support ticket: only the provider can lift the lock"
                .to_owned()
        }
        (Phase::Refused, _) | (Phase::Waiting, Some(Reason::Refusals(_))) => {
            format!(
                "{why}. reattach does nothing as long as this holds. Remove the reason, or free the volume by hand"
            )
        }
        (Phase::AwaitingApproval, _) => match &recovery.record.plan {
            Some(plan) => {
                format!(
                    "plan {} waits for a person. Read it, then approve it (kubectl reattach approve) or abort it (kubectl reattach abort)",
                    plan.hash
                )
            }
            None => return None,
        },
        (Phase::Planned, Some(Reason::Mode(Mode::Auto))) => return None,
        (Phase::Planned, _) => {
            "nothing was done, because the mode does not allow it. To act: kubectl reattach recover"
                .to_owned()
        }
        (Phase::NotOurs, _) => format!("{why}. reattach leaves the volume alone. The owner has to fix the cause"),
        (Phase::Diagnosing, Some(Reason::Missing(_))) => {
            format!(
                "a fact is missing: {why}. reattach touches nothing until the fact is known. Make it readable"
            )
        }
        (Phase::Diagnosing, Some(Reason::NoPlan)) => {
            "the problem has a class, and no plan was made yet. Read the diagnosis".to_owned()
        }
        (Phase::Aborted, _) => {
            "the recovery was aborted, and the pod is still without its volume. Free the volume by hand, or start another recovery (kubectl reattach recover)"
                .to_owned()
        }
        (
            Phase::Recovered
            | Phase::Resolved
            | Phase::Running
            | Phase::Restoring
            | Phase::Waiting
            | Phase::Diagnosing,
            _,
        ) => return None,
    };
    Some(quoted(&text))
}

/// Says when reattach makes the next attempt, or how a person makes one.
fn next_attempt(record: &Record) -> String {
    match record.next_attempt {
        Some(at) => format!(
            "reattach makes the next attempt by itself at {}; to forbid that: kubectl reattach abort {} -n {}",
            date_clock(at),
            record.recovery.name,
            record.recovery.namespace
        ),
        None => "To make another attempt: kubectl reattach recover".to_owned(),
    }
}

fn tone(standing: &Standing) -> Tone {
    match (standing.phase, &standing.reason) {
        (Phase::Recovered | Phase::Resolved, _) => Tone::Good,
        (Phase::Stuck | Phase::Failed, _) => Tone::Bad,
        (Phase::Planned, Some(Reason::Mode(Mode::Auto))) => Tone::Wait,
        (Phase::NotOurs | Phase::Planned, _)
        | (Phase::Diagnosing, Some(Reason::Missing(_) | Reason::NoPlan)) => Tone::Plain,
        (
            Phase::Running
            | Phase::Restoring
            | Phase::Waiting
            | Phase::AwaitingApproval
            | Phase::Diagnosing
            | Phase::Aborted
            | Phase::Withdrawn
            | Phase::Refused,
            _,
        ) => Tone::Wait,
    }
}

/// Builds the whole post-mortem.
pub(crate) fn document(incident: &Incident) -> Vec<Block> {
    let recoveries: Vec<RecoverySummary<'_>> =
        incident.records.iter().map(RecoverySummary::of).collect();
    let mut out = vec![
        Block::Heading(1, clean(&incident.title)),
        Block::Heading(2, "Summary".into()),
    ];
    summary(incident, &recoveries, &mut out);
    if !recoveries.is_empty() {
        out.push(Block::Heading(2, "Volumes".into()));
        out.push(overview(incident, &recoveries));
        out.push(Block::Para(text("Times are UTC. A volume counts as down from the creation of its VolumeRecovery; its pod may have been down before. Time to heal runs from the acceptance of the plan until the pod runs with its volume.")));
    }
    out.push(Block::Picture);
    people(&recoveries, &mut out);
    let lines = timeline(incident);
    if !lines.is_empty() {
        out.push(Block::Heading(2, "Timeline".into()));
        out.push(timeline_table(incident, &lines));
    }
    left_alone(&recoveries, &mut out);
    if !recoveries.is_empty() {
        out.push(Block::Heading(2, "Each volume".into()));
        recoveries.iter().for_each(|s| volume(s, &mut out));
    }
    out
}

fn summary(incident: &Incident, recoveries: &[RecoverySummary<'_>], out: &mut Vec<Block>) {
    let window = format!(
        "From {} to {} UTC ({})",
        date_clock(incident.from),
        clock_since(incident.from, incident.to),
        span(millis(incident.from, incident.to))
    );
    if recoveries.is_empty() {
        out.push(Block::Para(text(format!(
            "{window}: reattach saw no stuck volume and touched nothing."
        ))));
        return;
    }
    let were = if recoveries.len() == 1 { "was" } else { "were" };
    out.push(Block::Para(text(format!(
        "{window}, {} {were} in trouble: {}.",
        count(recoveries.len(), "claim"),
        counted_titles(recoveries)
    ))));
    let mut lines = causes(recoveries);
    lines.extend(time_to_heal(recoveries));
    let down = claims(recoveries, |s| s.still_down());
    if !down.is_empty() {
        lines.push(labelled(
            "Still down",
            format!(
                "{}, as far as is known: {}.",
                count(down.len(), "claim"),
                down.join(", ")
            ),
        ));
    }
    authority(recoveries, &mut lines);
    cloud_detaches(recoveries, &mut lines);
    out.push(Block::List(lines));
}

/// Counts the recoveries of each title: "3 recovered, 1 not ours".
fn counted_titles(recoveries: &[RecoverySummary<'_>]) -> String {
    // A list and no map: the titles keep the order of the records.
    let mut titles: Vec<(&str, usize)> = Vec::new();
    for title in recoveries.iter().map(RecoverySummary::title) {
        match titles.iter_mut().find(|(t, _)| *t == title) {
            Some((_, n)) => *n += 1,
            None => titles.push((title, 1)),
        }
    }
    let counted: Vec<String> = titles
        .iter()
        .map(|(title, n)| format!("{n} {title}"))
        .collect();
    counted.join(", ")
}

/// Returns the claims of the recoveries for which `of` is true.
fn claims(
    recoveries: &[RecoverySummary<'_>],
    of: impl Fn(&RecoverySummary<'_>) -> bool,
) -> Vec<String> {
    recoveries
        .iter()
        .filter(|s| of(s))
        .map(RecoverySummary::claim)
        .collect()
}

/// Says for each class what was wrong and with which claims.
fn causes(recoveries: &[RecoverySummary<'_>]) -> Vec<Line> {
    let classes: BTreeSet<_> = recoveries
        .iter()
        .filter_map(RecoverySummary::class)
        .collect();
    let cause = |class| {
        let which = claims(recoveries, |s| s.class() == Some(class));
        labelled(
            "Why",
            format!(
                "{} of {}: {}. ({})",
                count(which.len(), "claim"),
                class_name(class),
                class_in_words(class),
                which.join(", ")
            ),
        )
    };
    classes.into_iter().map(cause).collect()
}

/// Says how long the healed claims took. `None` if no claim was healed.
fn time_to_heal(recoveries: &[RecoverySummary<'_>]) -> Option<Line> {
    let mut times: Vec<i64> = recoveries
        .iter()
        .filter_map(RecoverySummary::heal_millis)
        .collect();
    times.sort_unstable();
    let longest = times.last()?;
    let median = (times[times.len() / 2] + times[(times.len() - 1) / 2]) / 2;
    let longest_down = recoveries
        .iter()
        .filter_map(|s| Some(millis(s.record.created, s.healed_at()?)))
        .max()?;
    let healed = if times.len() == 1 {
        format!("Healed {} after its plan was accepted", span(median))
    } else {
        format!(
            "{} healed: median {}, longest {} after the plan was accepted",
            times.len(),
            span(median),
            span(*longest)
        )
    };
    Some(labelled(
        "How long",
        format!(
            "{healed}. The longest downtime was {}, waiting included.",
            span(longest_down)
        ),
    ))
}

/// Adds which claims needed a detach at the cloud, and whether each rested on a proof.
fn cloud_detaches(recoveries: &[RecoverySummary<'_>], lines: &mut Vec<Line>) {
    let detached = claims(recoveries, |s| s.cloud_detach == CloudDetach::Used);
    let tried = claims(recoveries, |s| s.cloud_detach == CloudDetach::Tried);
    let all_proven = recoveries
        .iter()
        .filter(|s| s.cloud_detach == CloudDetach::Used)
        .all(|s| s.proof().is_some());
    if !detached.is_empty() {
        let proven = if all_proven {
            " Each detach rested on a proof that the old holder could not write."
        } else {
            ""
        };
        lines.push(labelled(
            "Cloud detach",
            format!(
                "Needed for {}, because Kubernetes' own detach was stuck.{proven}",
                detached.join(", ")
            ),
        ));
    }
    if !tried.is_empty() {
        lines.push(labelled(
            "Cloud detach that did not succeed",
            format!("{}.", tried.join(", ")),
        ));
    }
    if detached.is_empty() && tried.is_empty() && recoveries.iter().any(RecoverySummary::touched) {
        lines.push(labelled(
            "Cloud detach",
            "Not needed: Kubernetes did each detach itself.",
        ));
    }
}

/// Adds the writers of the journals, and the policies and persons that allowed the runs.
fn authority(recoveries: &[RecoverySummary<'_>], lines: &mut Vec<Line>) {
    let mut by_authority: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut writers = BTreeSet::new();
    for recovery in recoveries {
        if let Some((_, authority)) = recovery.accepted {
            by_authority
                .entry(clean(authority))
                .or_default()
                .push(recovery.claim());
            writers.extend(recovery.record.journal.iter().map(|e| clean(&e.by)));
        }
    }
    for (authority, claims) in &by_authority {
        lines.push(labelled(
            "Allowed by",
            format!("{authority}: {}.", claims.join(", ")),
        ));
    }
    if writers.is_empty() {
        lines.push(labelled("Done", "Nothing: no plan was accepted."));
    } else {
        lines.push(labelled(
            "Done by",
            format!("{}.", writers.into_iter().collect::<Vec<_>>().join(", ")),
        ));
    }
}

fn overview(incident: &Incident, recoveries: &[RecoverySummary<'_>]) -> Block {
    let when = |at| {
        if same_day(incident.from, at) && same_day(incident.from, incident.to) {
            clock(at)
        } else {
            date_clock(at)
        }
    };
    let rows = recoveries
        .iter()
        .map(|s| {
            let down = match (s.healed_at(), s.still_down()) {
                (Some(to), _) => format!(
                    "{}–{} ({})",
                    when(s.record.created),
                    when(to),
                    span(millis(s.record.created, to))
                ),
                (None, true) => format!("{}– (still)", when(s.record.created)),
                (None, false) => "–".to_owned(),
            };
            let detach = match s.cloud_detach {
                CloudDetach::No => "no",
                CloudDetach::Used => "yes",
                CloudDetach::Tried => "tried",
            };
            vec![
                code(s.claim()),
                text(s.class().map_or("–".to_owned(), Class::named)),
                vec![Inline::Badge(tone(&s.standing), s.title().to_owned())],
                text(down),
                text(s.heal_millis().map_or("–".to_owned(), span)),
                text(detach),
            ]
        })
        .collect();
    Block::Table {
        head: vec![
            "Claim",
            "Class",
            "What happened",
            "Down",
            "Time to heal",
            "Cloud detach",
        ],
        rows,
    }
}

fn timeline_table(incident: &Incident, lines: &[TimelineLine]) -> Block {
    let one_day = lines.iter().all(|l| same_day(incident.from, l.at));
    let time = if one_day { clock } else { date_clock };
    let rows = lines
        .iter()
        .map(|line| {
            let claim = line.claim.as_ref();
            vec![
                text(time(line.at)),
                text(relative(incident.from, line.at)),
                claim.map_or_else(|| text("–"), |c| code(clean(c))),
                text(sentence(&line.text)),
            ]
        })
        .collect();
    Block::Table {
        head: vec!["UTC", "Since start", "Claim", "What"],
        rows,
    }
}

/// Adds the section about what a person has to do, with the tickets.
fn people(recoveries: &[RecoverySummary<'_>], out: &mut Vec<Block>) {
    out.push(Block::Heading(2, "What still needs a person".into()));
    let lines: Vec<Line> = recoveries
        .iter()
        .filter_map(|s| {
            Some(vec![
                Inline::Code(s.claim()),
                Inline::Text(format!(": {}", sentence(&needs_human(s)?))),
            ])
        })
        .collect();
    out.push(if lines.is_empty() {
        Block::Para(text("Nothing."))
    } else {
        Block::List(lines)
    });
    for recovery in recoveries {
        if let Some(ticket) = support_ticket(recovery.record) {
            out.push(Block::Copy(
                format!(
                    "Ticket for the provider about {}, ready to send:",
                    recovery.claim()
                ),
                ticket,
            ));
        }
    }
}

fn left_alone(recoveries: &[RecoverySummary<'_>], out: &mut Vec<Block>) {
    let item = |s: &RecoverySummary<'_>| {
        vec![
            Inline::Code(s.claim()),
            Inline::Text(format!(
                ": {}",
                sentence(&s.why().unwrap_or_else(|| s.title().to_owned()))
            )),
        ]
    };
    let (foreign, ours): (Vec<&RecoverySummary<'_>>, Vec<&RecoverySummary<'_>>) = recoveries
        .iter()
        .filter(|s| !s.touched())
        .partition(|s| s.standing.phase == Phase::NotOurs);
    if !foreign.is_empty() {
        out.push(Block::Heading(2, "What was not ours, and why".into()));
        out.push(Block::List(foreign.into_iter().map(item).collect()));
    }
    out.push(Block::Heading(2, "What was left alone".into()));
    if !ours.is_empty() {
        out.push(Block::List(ours.into_iter().map(item).collect()));
    }
    let touched: Vec<&Record> = recoveries
        .iter()
        .filter(|s| s.touched())
        .map(|s| s.record)
        .collect();
    let objects: BTreeSet<String> = touched
        .iter()
        .filter_map(|r| r.plan.as_ref())
        .map(|p| {
            clean(&format!(
                "{}, VolumeAttachment {}, volume {}",
                p.pins.workload,
                p.pins.attachment_name(),
                p.pins.volume
            ))
        })
        .collect();
    out.push(Block::Para(text(match objects.is_empty() {
        true => {
            "Everything: no effect was issued on any workload, attachment or volume.".to_owned()
        }
        false => {
            "Everything else. Effects were issued only by the plans for these objects:".to_owned()
        }
    })));
    if !objects.is_empty() {
        out.push(Block::List(objects.into_iter().map(text).collect()));
    }
}

fn volume(recovery: &RecoverySummary<'_>, out: &mut Vec<Block>) {
    out.push(Block::Heading(3, recovery.claim()));
    let mut head = vec![Inline::Badge(
        tone(&recovery.standing),
        recovery.title().to_owned(),
    )];
    if let Some(why) = recovery.why() {
        head.push(Inline::Text(format!(": {}", sentence(&why))));
    }
    out.push(Block::Para(head));
    out.push(Block::List(course(recovery)));
    let facts = recovery.record.facts();
    if !facts.is_empty() {
        out.push(Block::Heading(4, "Facts found".into()));
        out.push(Block::List(facts.iter().map(|f| text(quoted(f))).collect()));
    }
    let Some(plan) = &recovery.record.plan else {
        return;
    };
    if !plan.losses.is_empty() {
        out.push(Block::Heading(4, "What the plan loses for good".into()));
        let lost = plan
            .losses
            .iter()
            .map(|l| text(sentence(&clean(&l.to_string()))));
        out.push(Block::List(lost.collect()));
    }
    let (heading, steps) = match recovery.accepted {
        Some(_) => ("Steps", steps_done(recovery, plan)),
        None => ("What it would do", steps_planned(plan)),
    };
    out.push(Block::Heading(4, format!("{heading} (plan {})", plan.hash)));
    out.push(steps);
}

/// Says who requested and allowed the recovery, what was wrong, what happens next, and which proof there was.
fn course(recovery: &RecoverySummary<'_>) -> Vec<Line> {
    let record = recovery.record;
    let by = |label: &str, words: String| labelled(label, sentence(&quoted(&words)));
    let mut lines = vec![by(
        "Requested",
        format!(
            "{} by {}, in mode {}{}",
            date_clock(record.created),
            record.requester,
            record.mode,
            because(record)
        ),
    )];
    if let Some((at, authority)) = recovery.accepted {
        lines.push(by(
            "Allowed",
            format!(
                "{} by {authority}, {} after the request",
                date_clock(at),
                span(millis(record.created, at))
            ),
        ));
    }
    // The plan comes first: once the volume is healed, the last diagnosis says that nothing is wrong. A verdict without a
    // class stands above already, as the reason for the standing.
    match (&record.plan, record.verdict()) {
        (Some(Plan { trouble, .. }), _) | (None, Some(Verdict::Ours { trouble })) => {
            lines.push(by("Diagnosis", trouble.to_string()));
        }
        _ => {}
    }
    if let Some(verdict) = record.verdict()
        && let Some(Reason::Wait(_) | Reason::NotOurs(_) | Reason::Missing(_) | Reason::NoPlan) =
            recovery.standing.reason
    {
        lines.push(labelled("Next", clean(&next_step(verdict))));
    }
    let proof = match recovery.proof() {
        Some(proof) => Some(proof_in_words(proof)),
        None if recovery.touched() => {
            Some("not needed: reattach itself detached nothing".to_owned())
        }
        None => None,
    };
    lines.extend(proof.map(|words| by("Proof that the old holder could not write", words)));
    lines
}

fn steps_done(recovery: &RecoverySummary<'_>, plan: &Plan) -> Block {
    let unwinds = recovery.stretches.iter().any(|s| s.step.is_none());
    let row = |(i, step): (u32, &PlannedStep)| {
        let (outcome, stretch) = recovery.step(StepIx(i));
        let how = match outcome {
            StepSummary::NotBegun => "not begun".to_owned(),
            StepSummary::Done(seen) => format!("done: {seen}"),
            StepSummary::Skipped(why) => format!("skipped: {why}"),
            StepSummary::Unfinished if recovery.ended.is_none() && !unwinds => {
                "under way".to_owned()
            }
            StepSummary::Unfinished => "not finished".to_owned(),
        };
        let took = |of: fn(&Stretch) -> i64| text(stretch.map_or("–".to_owned(), |s| span(of(s))));
        vec![
            text(StepIx(i).to_string()),
            text(step.kind.spec().title),
            text(how),
            took(|s| millis(s.from, s.to)),
            took(|s| s.ours),
        ]
    };
    let mut rows: Vec<Vec<Line>> = (0..).zip(&plan.steps).map(row).collect();
    for s in recovery.stretches.iter().filter(|s| s.step.is_none()) {
        let how = if s.closed {
            "done: everything was restored"
        } else {
            "under way"
        };
        rows.push(vec![
            text("–"),
            text("unwind"),
            text(how),
            text(span(millis(s.from, s.to))),
            text(span(s.ours)),
        ]);
    }
    Block::Table {
        head: vec!["#", "Step", "Outcome", "Took", "Share of reattach"],
        rows,
    }
}

fn steps_planned(plan: &Plan) -> Block {
    let rows = (0..)
        .zip(&plan.steps)
        .map(|(i, step)| {
            vec![
                text(StepIx(i).to_string()),
                text(sentence(&clean(&step.what))),
                code(clean(&step.command)),
                text(sentence(&clean(&step.risk))),
            ]
        })
        .collect();
    Block::Table {
        head: vec!["#", "What would happen", "By hand", "What could go wrong"],
        rows,
    }
}
