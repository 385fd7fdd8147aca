//! Draws the timeline as SVG: the whole incident with one lane per volume, and each run step by step.

use crate::Incident;
use crate::escape::escape;
use crate::format::{clock, millis, relative, same_day, span};
use crate::scale::Axis;
use crate::summary::{RecoverySummary, StepSummary, is_provider_lock};
use crate::timing::Stretch;
use jiff::Timestamp;
use reattach_core::phase::{Phase, Reason, Standing};
use reattach_core::plain::{cut, quoted};
use reattach_core::policy::Mode;
use reattach_core::steps::StepKind;
use std::fmt::Write;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 985.0;
const LANE: f64 = 26.0;
const TOP: f64 = 40.0;
/// Minimum width of a bar in pixels, so that a step of milliseconds stays visible.
const THINNEST: f64 = 3.0;
/// Maximum number of characters of a claim's name left of the lanes.
const LABEL: usize = 34;

struct Bar {
    from: i64,
    to: i64,
    class: &'static str,
    title: String,
    inside: String,
}

struct Lane {
    label: String,
    summary: String,
    bars: Vec<Bar>,
}

/// Picture without its lanes.
struct Frame<'a> {
    id: &'a str,
    title: &'a str,
    caption: String,
    axis: Axis,
    ticks: Vec<(i64, String)>,
    notes: Vec<(i64, String)>,
    legend: Vec<(&'static str, &'static str)>,
}

/// Draws both pictures. Empty if there is no recovery.
pub(crate) fn pictures(incident: &Incident) -> String {
    let recoveries: Vec<RecoverySummary<'_>> =
        incident.records.iter().map(RecoverySummary::of).collect();
    if recoveries.is_empty() {
        return String::new();
    }
    incident_picture(incident, &recoveries) + &runs_picture(&recoveries)
}

/// Draws the whole incident in absolute time.
fn incident_picture(incident: &Incident, recoveries: &[RecoverySummary<'_>]) -> String {
    let moments = recoveries
        .iter()
        .flat_map(|s| {
            [
                Some(s.record.created),
                s.record.journal.last().map(|e| e.at),
            ]
        })
        .flatten();
    let noted = incident.notes.iter().map(|n| n.at);
    let (mut from, mut to) = (incident.from, incident.to);
    for at in moments.chain(noted) {
        (from, to) = (from.min(at), to.max(at));
    }
    let axis = Axis::new(from.as_millisecond(), to.as_millisecond(), LEFT, RIGHT);
    let lanes: Vec<Lane> = recoveries.iter().map(|s| volume_lane(s, to)).collect();
    let format = match (same_day(from, to), axis.step(7) < 60_000) {
        (true, true) => "%H:%M:%S",
        (true, false) => "%H:%M",
        (false, true) => "%m-%d %H:%M:%S",
        (false, false) => "%m-%d %H:%M",
    };
    let ticks = axis.ticks(7).into_iter().filter_map(|t| {
        let at = Timestamp::from_millisecond(t).ok()?;
        Some((t, at.strftime(format).to_string()))
    });
    let mut legend = vec![
        ("down", "down: being diagnosed or waiting"),
        ("heal", "being healed"),
        ("up", "running with its volume"),
        ("lock", "locked by the provider"),
        ("human", "needs a person"),
        ("rest", "left alone"),
    ];
    legend.retain(|(class, _)| has_bar(&lanes, class));
    let notes: Vec<_> = incident
        .notes
        .iter()
        .map(|n| (n.at.as_millisecond(), quoted(&n.text)))
        .collect();
    let hint = if notes.is_empty() {
        ""
    } else {
        " Dashed lines are notes; the timeline below has their text."
    };
    Frame {
        id: "whole",
        title: "The incident, one lane per volume",
        caption: format!("The incident, one lane per volume, times in UTC.{hint}"),
        ticks: ticks.collect(),
        axis,
        notes,
        legend,
    }
    .draw(&lanes)
}

fn has_bar(lanes: &[Lane], class: &str) -> bool {
    let mut bars = lanes.iter().flat_map(|lane| &lane.bars);
    bars.any(|bar| bar.class == class)
}

/// Makes the lane of one volume, up to the end of the picture.
fn volume_lane(recovery: &RecoverySummary<'_>, end: Timestamp) -> Lane {
    let created = recovery.record.created;
    let mut bars = Vec::new();
    if let Some((accepted, _)) = recovery.accepted {
        if accepted > created {
            bars.push(bar(
                created,
                accepted,
                ("down", "down, being diagnosed or waiting"),
            ));
        }
        // A stuck run may have no end in its journal. Then its last line counts as the end.
        let stopped = recovery
            .record
            .journal
            .last()
            .map(|e| e.at)
            .filter(|_| recovery.standing.phase == Phase::Stuck);
        let over = recovery.ended.or(stopped);
        if let Some(over) = over {
            let kind = match recovery.standing.phase {
                Phase::Recovered => ("up", "running with its volume"),
                Phase::Aborted => ("rest", "restored after an abort"),
                Phase::Withdrawn => ("down", "waiting"),
                _ => ("human", "needs a person"),
            };
            bars.push(bar(over, end, kind));
        }
        // This bar is drawn last, because a run of seconds in an incident of hours would disappear under the next bar.
        bars.push(bar(accepted, over.unwrap_or(end), ("heal", "being healed")));
    } else {
        bars.push(bar(created, end, without_run(&recovery.standing)));
    }
    let summary = match recovery.heal_millis() {
        Some(took) => format!("{} in {}", recovery.title(), span(took)),
        None => recovery.title().to_owned(),
    };
    Lane {
        label: recovery.claim(),
        summary,
        bars,
    }
}

/// Makes a bar of a kind: CSS class and description.
fn bar(from: Timestamp, to: Timestamp, (class, what): (&'static str, &str)) -> Bar {
    Bar {
        from: from.as_millisecond(),
        to: to.as_millisecond(),
        class,
        title: format!(
            "{what}: {} to {} UTC ({})",
            clock(from),
            clock(to),
            span(millis(from, to))
        ),
        inside: String::new(),
    }
}

/// Returns the kind of the bar of a recovery whose plan was not accepted.
fn without_run(standing: &Standing) -> (&'static str, &'static str) {
    match (standing.phase, &standing.reason) {
        (Phase::Waiting, _) if is_provider_lock(standing) => ("lock", "locked by the provider"),
        (Phase::Stuck | Phase::Failed, _) => ("human", "needs a person"),
        (Phase::Resolved, _) => ("up", "nothing to do"),
        (Phase::Planned, Some(Reason::Mode(Mode::Auto))) => ("down", "waiting"),
        (Phase::NotOurs | Phase::Planned | Phase::Refused | Phase::Aborted, _)
        | (Phase::Diagnosing, Some(Reason::Missing(_) | Reason::NoPlan)) => ("rest", "left alone"),
        (
            Phase::Diagnosing
            | Phase::Waiting
            | Phase::AwaitingApproval
            | Phase::Running
            | Phase::Restoring
            | Phase::Withdrawn
            | Phase::Recovered,
            _,
        ) => ("down", "waiting"),
    }
}

/// Draws each run in seconds since its plan was accepted.
fn runs_picture(recoveries: &[RecoverySummary<'_>]) -> String {
    let runs: Vec<(&RecoverySummary<'_>, Timestamp)> = recoveries
        .iter()
        .filter_map(|s| Some((s, s.accepted?.0)))
        .collect();
    let longest = runs
        .iter()
        .flat_map(|(s, from)| s.stretches.iter().map(|p| millis(*from, p.to)))
        .max();
    let Some(longest) = longest else {
        return String::new();
    };
    let lanes: Vec<Lane> = runs
        .iter()
        .map(|(recovery, from)| run_lane(recovery, *from))
        .collect();
    let axis = Axis::new(0, longest, LEFT, RIGHT);
    let zero = Timestamp::UNIX_EPOCH;
    let ticks = axis.ticks(8).into_iter().filter_map(|t| {
        let label = relative(zero, Timestamp::from_millisecond(t).ok()?);
        Some((t, label.replace(".0 s", " s")))
    });
    // Several kinds of steps share a colour; the numbers in the bars tell them apart. The legend has the kinds that occur.
    let mut legend: Vec<(&str, &str)> = Vec::new();
    for kind in runs
        .iter()
        .flat_map(|(s, _)| s.stretches.iter().filter_map(|x| kind_of(s, x)))
    {
        let entry = (kind.spec().colour, kind.spec().title);
        if !legend.contains(&entry) {
            legend.push(entry);
        }
    }
    if has_bar(&lanes, "back") {
        legend.push(("back", "unwind"));
    }
    Frame {
        id: "steps",
        title: "Each run, step by step",
        caption:
            "Each run, in seconds since its plan was accepted. Numbers are those of the steps."
                .to_owned(),
        ticks: ticks.collect(),
        axis,
        notes: Vec::new(),
        legend,
    }
    .draw(&lanes)
}

fn run_lane(recovery: &RecoverySummary<'_>, from: Timestamp) -> Lane {
    let bars = recovery.stretches.iter().map(|stretch| {
        let took = span(millis(stretch.from, stretch.to));
        let (class, title, inside) = match (stretch.step, kind_of(recovery, stretch)) {
            (Some(step), Some(kind)) => {
                let how = match recovery.step(step).0 {
                    StepSummary::Skipped(_) => ", skipped",
                    StepSummary::Unfinished => ", not finished",
                    StepSummary::Done(_) | StepSummary::NotBegun => "",
                };
                (
                    kind.spec().colour,
                    format!("step {step} ({}){how}: {took}", kind.spec().title),
                    step.to_string(),
                )
            }
            _ => ("back", format!("unwind: {took}"), "↩".to_owned()),
        };
        Bar {
            from: millis(from, stretch.from),
            to: millis(from, stretch.to),
            class,
            title,
            inside,
        }
    });
    Lane {
        label: recovery.claim(),
        summary: recovery.title().to_owned(),
        bars: bars.collect(),
    }
}

fn kind_of(recovery: &RecoverySummary<'_>, stretch: &Stretch) -> Option<StepKind> {
    let plan = recovery.record.plan.as_ref()?;
    Some(plan.steps.get(stretch.step?.index())?.kind)
}

impl Frame<'_> {
    /// Draws the picture with these lanes. The results of `writeln!` are dropped, because writing to a String cannot fail.
    fn draw(&self, lanes: &[Lane]) -> String {
        let bottom = TOP + LANE * lanes.len() as f64;
        let height = bottom + 14.0;
        let mut out = String::new();
        let _ = writeln!(
            out,
            "<figure>\n<svg viewBox=\"0 0 {WIDTH:.0} {height:.0}\" role=\"img\" aria-labelledby=\"{0}-title {0}-desc\">",
            self.id
        );
        let _ = writeln!(
            out,
            "<title id=\"{}-title\">{}</title>",
            self.id,
            escape(self.title)
        );
        let descriptions: Vec<String> = lanes
            .iter()
            .map(|l| format!("{}: {}.", l.label, l.summary))
            .collect();
        let _ = writeln!(
            out,
            "<desc id=\"{}-desc\">{}</desc>",
            self.id,
            escape(&descriptions.join(" "))
        );
        for (at, label) in &self.ticks {
            let x = self.axis.at(*at);
            // A label at the edge is pulled inside.
            let anchor = if x > RIGHT - 30.0 { "end" } else { "middle" };
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.0}\" y2=\"{bottom:.0}\"/><text class=\"tick\" x=\"{x:.1}\" y=\"14\" text-anchor=\"{anchor}\">{}</text>",
                TOP - 20.0,
                escape(label)
            );
        }
        for (at, note) in &self.notes {
            let x = self.axis.at(*at);
            let _ = writeln!(
                out,
                "<g><title>{}</title><line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.0}\" y2=\"{bottom:.0}\"/><circle class=\"note\" cx=\"{x:.1}\" cy=\"{:.0}\" r=\"4\"/></g>",
                escape(note),
                TOP - 12.0,
                TOP - 12.0
            );
        }
        for (i, lane) in lanes.iter().enumerate() {
            self.lane(lane, TOP + LANE * i as f64, &mut out);
        }
        let _ = write!(out, "</svg>\n<figcaption>{}", escape(&self.caption));
        for (class, what) in &self.legend {
            let _ = write!(
                out,
                " <span class=\"key\"><svg viewBox=\"0 0 10 10\" aria-hidden=\"true\"><rect class=\"{class}\" width=\"10\" height=\"10\" rx=\"2\"/></svg>{}</span>",
                escape(what)
            );
        }
        out.push_str("</figcaption>\n</figure>\n");
        out
    }

    fn lane(&self, lane: &Lane, y: f64, out: &mut String) {
        let mid = y + LANE / 2.0;
        let full = format!("{}: {}", lane.label, lane.summary);
        let _ = writeln!(
            out,
            "<g><title>{}</title><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text></g>",
            escape(&full),
            LEFT - 10.0,
            mid + 4.0,
            escape(&cut(&lane.label, LABEL))
        );
        for bar in &lane.bars {
            let (from, to) = (self.axis.at(bar.from), self.axis.at(bar.to));
            let width = (to - from).max(THINNEST);
            let x = from.min(RIGHT - width);
            let _ = write!(
                out,
                "<g><title>{}</title><rect class=\"{}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"16\" rx=\"2\"/>",
                escape(&bar.title),
                bar.class,
                mid - 8.0
            );
            if !bar.inside.is_empty() && width >= 14.0 {
                let _ = write!(
                    out,
                    "<text class=\"inbar\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    x + width / 2.0,
                    mid + 4.0,
                    escape(&bar.inside)
                );
            }
            out.push_str("</g>\n");
        }
    }
}
