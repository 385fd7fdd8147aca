//! Sentences and numbers that every kind of output shares.

use crate::diagnosis::{Class, Verdict, WaitReason};
use crate::journal::{End, Mark, Outcome};
use crate::plan::{EffectClass, Plan, StepIx};
use crate::proof::ProofKind;
use crate::runbook::StepKind;
use jiff::Timestamp;

/// Text from outside made safe for any output: control characters (terminal escapes among them) and characters that
/// reorder text become spaces, so a message can neither move the cursor nor hide a part of itself.
pub(super) fn clean(text: &str) -> String {
    let hidden = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    text.chars().map(|c| if c.is_control() || hidden(c) { ' ' } else { c }).collect()
}

/// `01:13:05`, in UTC.
pub(super) fn clock(at: Timestamp) -> String {
    at.strftime("%H:%M:%S").to_string()
}

/// `2021-07-11 01:13:05`, in UTC.
pub(super) fn date_clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Whether two moments fall on one UTC day, so that a clock time says enough.
pub(super) fn same_day(a: Timestamp, b: Timestamp) -> bool {
    a.strftime("%Y-%m-%d").to_string() == b.strftime("%Y-%m-%d").to_string()
}

/// Milliseconds from `from` to `to`; 0 when the clocks of two writers disagree about the order.
pub(super) fn millis(from: Timestamp, to: Timestamp) -> i64 {
    (to.as_millisecond() - from.as_millisecond()).max(0)
}

/// A duration as people say it: `420 ms`, `16.8 s`, `5 min 20 s`, `5 h 20 min`, `2 d 3 h`.
pub(super) fn span(millis: i64) -> String {
    let seconds = (millis + 500) / 1000;
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big} {unit}"),
        _ => format!("{big} {unit} {small} {small_unit}"),
    };
    match millis {
        ..1_000 => format!("{millis} ms"),
        1_000..59_950 => format!("{}.{} s", (millis + 50) / 1000, (millis + 50) % 1000 / 100),
        _ if seconds < 3_600 => two(seconds / 60, "min", seconds % 60, "s"),
        _ if seconds < 86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// Seconds since `from`, signed: `+16.8 s`.
pub(super) fn relative(from: Timestamp, at: Timestamp) -> String {
    let millis = at.as_millisecond() - from.as_millisecond();
    let tenths = (millis.abs() + 50) / 100;
    format!("{}{}.{} s", if millis < 0 { '-' } else { '+' }, tenths / 10, tenths % 10)
}

/// `1 claim`, `2 claims`.
pub(super) fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// A class for someone who has not read the manual.
pub(super) fn class_in_words(class: Class) -> &'static str {
    match class {
        Class::A => "the node died while it had the volume, so no other node may have it",
        Class::B => "Kubernetes and the cloud both say that the volume is attached, but the machine does not see the disk",
        Class::C => "Kubernetes says that the volume is attached, but the cloud has let go of it",
        Class::D => "Kubernetes' own record of the attachment does not finish",
        Class::E => "the cloud keeps the volume with a machine that Kubernetes no longer counts",
    }
}

/// `class B (phantom attachment)`.
pub(super) fn class_name(class: Class) -> String {
    format!("class {class} ({})", class.title())
}

/// A step's kind in a few words.
pub(super) fn step_title(kind: StepKind) -> &'static str {
    match kind {
        StepKind::ScaleToZero => "scale to zero",
        StepKind::AwaitDetached => "wait for the detach",
        StepKind::CloudDetach => "detach at the cloud",
        StepKind::Requeue => "nudge the attacher",
        StepKind::Restore => "scale back",
        StepKind::Verify => "verify",
    }
}

/// `step 3, detach at the cloud`, or the number alone when the plan is not known.
pub(super) fn step_name(plan: Option<&Plan>, step: StepIx) -> String {
    match plan.and_then(|p| p.steps.get(step.index())) {
        Some(planned) => format!("step {step}, {}", step_title(planned.kind)),
        None => format!("step {step}"),
    }
}

/// What a crash in the middle of a step means, in words.
pub(super) fn effect_in_words(kind: StepKind, class: EffectClass) -> &'static str {
    match (kind, class) {
        (StepKind::AwaitDetached | StepKind::Verify, _) => "only looks, changes nothing",
        (_, EffectClass::Repeatable) => "may safely be done again after a crash",
        (_, EffectClass::Conditional) => "written only if the object has not changed since it was read",
        (_, EffectClass::Once) => "sent once, never repeated blindly; after a crash the cloud is asked what became of it",
    }
}

/// What a proof rests on, as one sentence without its full stop.
pub(super) fn proof_in_words(proof: &ProofKind) -> String {
    match proof {
        ProofKind::KubeletHandshake { node, no_user_since, lease_renewed } => format!(
            "kubelet on {node} itself reported that it does not use the volume, after the last pod was gone ({}) and after a newer sign of life ({})",
            clock(*no_user_since),
            clock(*lease_renewed)
        ),
    }
}

/// The verdict as a headline, without words of ours that need explaining.
pub(super) fn headline(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Healthy { .. } => "Nothing is wrong".to_owned(),
        Verdict::Ours { trouble } => format!("Stuck volume, {}", class_name(trouble.class())),
        Verdict::Wait { reason: WaitReason::ProviderLock { .. } } => "Waiting for the provider to lift a lock".to_owned(),
        Verdict::Wait { .. } => "Waiting: something must happen first".to_owned(),
        Verdict::NotOurs { .. } => "Not an attachment problem: reattach leaves it alone".to_owned(),
        Verdict::Unclassified { .. } => "Not classified: too little is known, so nothing is touched".to_owned(),
    }
}

/// A journal line as one sentence without its full stop.
pub(super) fn mark_in_words(plan: Option<&Plan>, mark: &Mark) -> String {
    let text = match mark {
        Mark::Accepted { plan_hash, authority } => format!("plan {plan_hash} taken up, allowed by {authority}"),
        Mark::Started { step, intent, proof } => {
            let proof = proof.as_ref().map(|p| format!("; proof: {}", proof_in_words(p))).unwrap_or_default();
            format!("{} begins: {intent}{proof}", step_name(plan, *step))
        }
        Mark::Outcome { step, outcome } => format!("{} {}", step_name(plan, *step), outcome_in_words(outcome)),
        Mark::Completed { step, seen } => format!("{} done: {seen}", step_name(plan, *step)),
        Mark::Skipped { step, why } => format!("{} passed over: {why}", step_name(plan, *step)),
        Mark::NoUser { .. } => "no pod uses the claim any more".to_owned(),
        Mark::TurnedBack { why } => format!("turned back: {why}; from here on only restoring happens"),
        Mark::Ended { end } => end_in_words(end),
    };
    clean(&text)
}

fn outcome_in_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Applied { detail } => format!("accepted: {detail}"),
        Outcome::NotApplied { why, retry: true } => format!("not accepted, will be asked again: {why}"),
        Outcome::NotApplied { why, retry: false } => format!("refused: {why}"),
        Outcome::Unknown { why } => format!("got no usable reply, what became of it is not known: {why}"),
        Outcome::ObservedApplied { seen } => format!("was in fact applied: {seen}"),
        Outcome::ObservedNotApplied { seen } => format!("was in fact not applied: {seen}"),
    }
}

fn end_in_words(end: &End) -> String {
    match end {
        End::Recovered => "recovered: the pod runs with its volume".to_owned(),
        End::Aborted => "aborted by a person; everything was put back".to_owned(),
        End::Failed { why } => format!("failed, everything was put back: {why}"),
        End::Stuck { why } => format!("stuck, a person is needed: {why}"),
    }
}

/// A sentence with a capital first letter and a full stop.
pub(super) fn sentence(text: &str) -> String {
    let text = text.trim();
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return String::new() };
    let stop = if text.ends_with(['.', '!', '?', ':']) { "" } else { "." };
    // A first word that is a name or command keeps its spelling.
    let word: String = text.split_whitespace().next().unwrap_or_default().to_owned();
    let plain = word.chars().all(|c| c.is_ascii_lowercase() || c == '\'' || c == ',' || c == ':');
    let own_name = matches!(word.as_str(), "kubelet" | "kubectl" | "reattach");
    match plain && !own_name {
        true => format!("{}{}{stop}", first.to_uppercase(), chars.as_str()),
        false => format!("{text}{stop}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        let cases = [(0, "0 ms"), (999, "999 ms"), (1_000, "1.0 s"), (16_840, "16.8 s"), (59_949, "59.9 s"), (59_950, "1 min"), (320_000, "5 min 20 s"), (3_599_600, "1 h"), (19_200_000, "5 h 20 min"), (183_600_000, "2 d 3 h")];
        for (millis, want) in cases {
            assert_eq!(span(millis), want, "{millis} ms");
        }
    }

    #[test]
    fn relative_times_are_signed() {
        let from: Timestamp = "2021-07-11T01:13:00Z".parse().unwrap();
        let at = |s: &str| -> Timestamp { s.parse().unwrap() };
        assert_eq!(relative(from, at("2021-07-11T01:13:16.84Z")), "+16.8 s");
        assert_eq!(relative(from, at("2021-07-11T01:12:59.5Z")), "-0.5 s");
        assert_eq!(millis(from, at("2021-07-11T01:12:59.5Z")), 0);
    }

    #[test]
    fn terminal_escapes_and_reordering_are_removed() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{202e}d"), "a [2Jb c d");
    }

    #[test]
    fn sentences_keep_the_spelling_of_names() {
        assert_eq!(sentence("the pod runs"), "The pod runs.");
        assert_eq!(sentence("kubelet says no"), "kubelet says no.");
        assert_eq!(sentence("redis-0 is down."), "redis-0 is down.");
        assert_eq!(sentence(""), "");
    }
}
