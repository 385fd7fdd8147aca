//! Renders plain text for terminals: no colours, lines of at most [`TEXT_WIDTH`] columns.

use crate::Record;
use crate::format::{
    class_in_words, class_name, clock_since, count, date_clock, effect_in_words, event_in_words,
    headline, relative, sentence, span,
};
use crate::summary::RecoverySummary;
use reattach_core::budget::StuckPods;
use reattach_core::diagnosis::{Class, Diagnosis, NotOurs, Verdict, WaitReason};
use reattach_core::journal::Entry;
use reattach_core::plain::{clean, quoted};
use reattach_core::plan::{Plan, PlannedStep};
use reattach_core::steps::way_out;

/// Maximum width of plain text in columns. A longer word (a handle, a path) is not broken, so that it can be copied.
pub const TEXT_WIDTH: usize = 100;

/// Renders a diagnosis: the verdict, its meaning, the facts it rests on, and what happens next.
pub fn diagnosis_text(diagnosis: &Diagnosis) -> String {
    let mut out = Page::default();
    out.line(&headline(&diagnosis.verdict));
    out.para("  ", &sentence(&quoted(&diagnosis.verdict.finding())));
    if let Verdict::Wait { reason } = &diagnosis.verdict
        && let Some(class) = reason.class()
    {
        out.para(
            "  ",
            &format!(
                "Once that is over, it is {}: {}.",
                class_name(class),
                class_in_words(class)
            ),
        );
    }
    if let Verdict::Unclassified { missing } = &diagnosis.verdict {
        out.heading("Missing");
        for m in missing {
            out.para("  - ", &quoted(&m.to_string()));
        }
    }
    if !diagnosis.facts.is_empty() {
        out.heading("Seen");
        for fact in &diagnosis.facts {
            out.para("  - ", &quoted(fact));
        }
    }
    out.heading("Next");
    out.para("  ", &next_step(&diagnosis.verdict));
    out.text
}

/// Describes what reattach does about a verdict and what a person can do.
pub(crate) fn next_step(verdict: &Verdict) -> String {
    let text = match verdict {
        Verdict::Healthy { .. } => "Nothing to do.",
        Verdict::Ours { trouble } if trouble.class() == Class::B => {
            "See the plan: kubectl reattach plan (changes nothing). Act on it: kubectl reattach recover."
        }
        Verdict::Ours { .. } => {
            "See the plan: kubectl reattach plan (changes nothing). Act on it: kubectl reattach recover. Not every runbook heals this class; the default, lightest-first, does."
        }
        Verdict::Wait {
            reason: WaitReason::ProviderLock { .. },
        } => {
            "reattach goes on by itself once the lock is gone. Only the provider can lift the lock: send the support ticket, which kubectl reattach status CLAIM prints."
        }
        Verdict::Wait { .. } => "reattach looks again when something changes. Nothing to do yet.",
        Verdict::NotOurs {
            reason: NotOurs::HeldByLivePod { pod, node },
        } => {
            return format!(
                "reattach never cuts off a healthy writer. End pod {pod} on {node}; a rollout with a single-node volume needs the strategy Recreate."
            );
        }
        Verdict::NotOurs { .. } => {
            "reattach touches nothing, because detaching the volume would not help. Fix the cause that is named above."
        }
        Verdict::Unclassified { .. } => {
            "reattach touches nothing until the missing facts are known. Check that the agent runs and that its rights and the cloud token suffice; then diagnose again."
        }
    };
    text.to_owned()
}

/// Renders a plan: what is wrong, everything that it touches, and for each step its effect, the command that a person
/// would type, and what could go wrong.
pub fn plan_text(plan: &Plan) -> String {
    let mut out = Page::default();
    out.line(&format!(
        "Plan {} for claim {}",
        plan.hash,
        clean(&plan.claim.to_string())
    ));
    out.para(
        "  ",
        &format!(
            "{}, by runbook {} ({}).",
            count(plan.steps.len(), "step"),
            clean(&plan.runbook),
            plan.runbook_hash
        ),
    );
    out.heading(&format!("What is wrong: {}", class_name(plan.class())));
    out.para("  ", &sentence(&clean(&plan.trouble.finding())));
    out.heading("What the plan touches or relies on; the run stops if one of these changes");
    pinned(&mut out, plan);
    if !plan.losses.is_empty() {
        out.heading("What is lost for good");
        for loss in &plan.losses {
            out.para("  - ", &sentence(&clean(&loss.to_string())));
        }
    }
    if !plan.budgets.is_empty() {
        out.heading("PodDisruptionBudgets that would refuse the eviction of the stuck pod now");
        for budget in &plan.budgets {
            out.para("  - ", &sentence(&clean(&budget.to_string())));
        }
        out.para("  ", &after_refused_eviction(plan.stuck_pods));
        out.para("  ", &sentence(&clean(&way_out(plan))));
    }
    out.heading("Expected downtime");
    let (typical, long) = (
        plan.downtime.typical_seconds,
        plan.downtime.with_cloud_detach_seconds,
    );
    out.para("  ", &format!("About {typical} s from the first step; about {long} s if Kubernetes cannot detach and the cloud has to. The pod is down already."));
    out.heading("Steps");
    for (i, step) in plan.steps.iter().enumerate() {
        planned(&mut out, i + 1, step);
    }
    out.text
}

/// Writes each object that the plan is pinned to, with its identity.
fn pinned(out: &mut Page, plan: &Plan) {
    let pins = &plan.pins;
    out.row(
        "workload",
        &format!(
            "{}, {}, uid {}",
            pins.workload,
            count(pins.replicas.unsigned_abs() as usize, "replica"),
            pins.workload.uid
        ),
    );
    for (name, uid) in &pins.pods {
        out.row("pod", &format!("{name}, uid {uid}"));
    }
    out.row("claim", &format!("{}, uid {}", plan.claim, pins.claim));
    out.row(
        "volume",
        &format!(
            "{} at the cloud, {} GiB, identifies itself as {}; PersistentVolume uid {}",
            pins.volume, pins.size_gib, pins.identity, pins.pv
        ),
    );
    let boot = match &pins.boot_id {
        Some(boot) => format!(", boot {boot}"),
        None => String::new(),
    };
    out.row(
        "holder",
        &format!("instance {}, node {}{boot}", pins.holder, pins.node),
    );
    if let Some(attachment) = &pins.attachment {
        out.row(
            "attachment",
            &format!(
                "VolumeAttachment {}, uid {}",
                attachment.name, attachment.uid
            ),
        );
    }
}

/// Says what reattach does when a PodDisruptionBudget refuses the eviction.
fn after_refused_eviction(stuck_pods: StuckPods) -> String {
    match stuck_pods {
        StuckPods::Evict => "reattach asks again until the step's time limit is over, and then unwinds; with stuckPods: DeleteByUid in the RecoveryPolicy it deletes the pod.".to_owned(),
        StuckPods::DeleteByUid { after_seconds } => format!(
            "reattach asks again, and deletes the pod by its UID after {after_seconds} s, with the pod's own grace period."
        ),
    }
}

fn planned(out: &mut Page, number: usize, step: &PlannedStep) {
    out.para(&format!("{number:>3}. "), &sentence(&clean(&step.what)));
    out.command("by hand", &clean(&step.command));
    if !step.precondition.is_empty() && step.precondition != "none" {
        out.detail("only if", &clean(&step.precondition));
    }
    out.detail("could go wrong", &clean(&step.risk));
    out.detail("end seen by", &clean(&step.observed_by));
    let patience = step
        .patience_seconds
        .map(|p| format!("; if stuck, the next step takes over after {p} s"))
        .unwrap_or_default();
    out.detail(
        "time limit",
        &format!("{} s{patience}", step.deadline_seconds),
    );
    out.detail(
        "kind of effect",
        effect_in_words(step.kind, step.effect_class),
    );
}

/// Renders the journal as a timeline: UTC time, seconds since the first line, event.
pub fn journal_text(plan: &Plan, journal: &[Entry]) -> String {
    let mut out = Page::default();
    out.line(&format!(
        "Run of plan {} for claim {}",
        plan.hash,
        clean(&plan.claim.to_string())
    ));
    let Some(first) = journal.first() else {
        out.para("  ", "Nothing has been done yet.");
        return out.text;
    };
    out.para(
        "  ",
        &format!("Began {} UTC. Times are UTC.", date_clock(first.at)),
    );
    let mut by = "";
    for entry in journal {
        if entry.by != by {
            by = &entry.by;
            out.para(
                "  ",
                &format!("Written by {} (leader term {}):", clean(by), entry.term),
            );
        }
        let time = clock_since(first.at, entry.at);
        out.para(
            &format!("  {time} {:>10}  ", relative(first.at, entry.at)),
            &event_in_words(Some(plan), &entry.event),
        );
    }
    out.text
}

/// Renders a recovery as one line of at most [`TEXT_WIDTH`] columns. A longer line is cut with `…`.
pub fn status_line(record: &Record) -> String {
    let recovery = RecoverySummary::of(record);
    let class = recovery
        .class()
        .map(|c| format!(", {}", class_name(c)))
        .unwrap_or_default();
    let took = recovery
        .heal_millis()
        .map(|m| format!(" in {}", span(m)))
        .unwrap_or_default();
    let why = recovery.why().map(|w| format!(": {w}")).unwrap_or_default();
    let line = clean(&format!(
        "{}: {}{took}{class}{why}",
        recovery.claim(),
        recovery.title()
    ));
    shortened(&line, TEXT_WIDTH)
}

/// Text under construction.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(clean(line).trim_end());
        self.text.push('\n');
    }

    /// Writes an empty line and a heading.
    fn heading(&mut self, heading: &str) {
        self.text.push('\n');
        self.line(heading);
    }

    /// Writes a paragraph behind a prefix. Its further lines are indented by the prefix's width.
    fn para(&mut self, prefix: &str, words: &str) {
        self.text
            .push_str(&paragraph(prefix, &clean(words), TEXT_WIDTH));
    }

    fn row(&mut self, label: &str, words: &str) {
        self.para(&format!("  {label:<11} "), &clean(words));
    }

    /// Writes a property of a step.
    fn detail(&mut self, label: &str, words: &str) {
        self.para(&detail_prefix(label), words);
    }

    /// Writes a shell command as a property of a step, wrapped so that it can still be pasted.
    fn command(&mut self, label: &str, command: &str) {
        let prefix = detail_prefix(label);
        let indent = prefix.chars().count();
        for (i, line) in wrap_command(command, TEXT_WIDTH - indent)
            .into_iter()
            .enumerate()
        {
            let lead = if i == 0 {
                prefix.clone()
            } else {
                " ".repeat(indent + 2)
            };
            self.line(&format!("{lead}{line}"));
        }
    }
}

fn detail_prefix(label: &str) -> String {
    format!("     {label:<15} ")
}

/// Breaks text at spaces into lines of at most `width` columns, the first behind `prefix` and the others indented by the
/// prefix's width. Longer words stay whole.
pub fn paragraph(prefix: &str, text: &str, width: usize) -> String {
    let indent = " ".repeat(prefix.chars().count());
    let mut out = String::new();
    let mut line = prefix.to_owned();
    let mut has_word = false;
    for word in text.split_whitespace() {
        if has_word && line.chars().count() + 1 + word.chars().count() > width {
            out.push_str(line.trim_end());
            out.push('\n');
            line.clone_from(&indent);
            has_word = false;
        }
        if has_word {
            line.push(' ');
        }
        line.push_str(word);
        has_word = true;
    }
    out.push_str(line.trim_end());
    out.push('\n');
    out
}

/// Returns the line, or its beginning with an ellipsis: at most `width` characters.
pub fn shortened(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}

/// Breaks a shell command with backslashes at spaces outside quotes and brackets, so that it can still be pasted.
/// Further lines get two columns of indent, which the width allows for.
fn wrap_command(command: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in shell_words(command) {
        let room = width.saturating_sub(if lines.is_empty() { 2 } else { 4 });
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
            lines.push(format!("{} \\", std::mem::take(&mut line)));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    lines.push(line);
    lines
}

/// Splits at spaces that are outside quotes and brackets.
fn shell_words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quote, mut depth) = (None, 0_u32);
    for c in command.chars() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (_, Some(q)) if c == q => quote = None,
            ('(' | '{', None) => depth += 1,
            (')' | '}', None) => depth = depth.saturating_sub(1),
            (' ', None) if depth == 0 => {
                words.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words.retain(|w| !w.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_wrap_and_long_words_stay_whole() {
        assert_eq!(paragraph("- ", "aa bb cc", 7), "- aa bb\n  cc\n");
        assert_eq!(paragraph("", "a verylongword b", 6), "a\nverylongword\nb\n");
        assert_eq!(paragraph("  ", "", 6), "\n");
    }

    #[test]
    fn commands_break_only_where_a_shell_joins_them_again() {
        let lines = wrap_command(
            "kubectl annotate va x a=$(date +%s 'now here') --overwrite",
            24,
        );
        assert_eq!(
            lines,
            [
                "kubectl annotate va x \\",
                "a=$(date +%s 'now here') \\",
                "--overwrite"
            ]
        );
        assert_eq!(wrap_command("kubectl get pods", 80), ["kubectl get pods"]);
    }
}
