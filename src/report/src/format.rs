//! Formats times, names, proofs and journal lines for every kind of output.

use jiff::Timestamp;
use reattach_core::diagnosis::{Class, Verdict, WaitReason};
use reattach_core::ids::StepIx;
use reattach_core::journal::{End, Event, Outcome};
use reattach_core::plain::quoted;
use reattach_core::plan::Plan;
use reattach_core::proof::ProofKind;
use reattach_core::steps::{EffectClass, Role, StepKind};

/// Formats a time of day: `01:13:05`, in UTC.
pub(crate) fn clock(at: Timestamp) -> String {
    at.strftime("%H:%M:%S").to_string()
}

/// Formats date and time: `2021-07-11 01:13:05`, in UTC.
pub(crate) fn date_clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Do two moments fall on one UTC day, so that the time of day suffices?
pub(crate) fn same_day(a: Timestamp, b: Timestamp) -> bool {
    a.strftime("%Y-%m-%d").to_string() == b.strftime("%Y-%m-%d").to_string()
}

/// Formats a time on the UTC day of `from` as a time of day, and any other time with its date.
pub(crate) fn clock_since(from: Timestamp, at: Timestamp) -> String {
    if same_day(from, at) {
        clock(at)
    } else {
        date_clock(at)
    }
}

/// Returns the milliseconds from `from` to `to`; 0 if the clocks of two writers disagree about the order.
pub(crate) fn millis(from: Timestamp, to: Timestamp) -> i64 {
    (to.as_millisecond() - from.as_millisecond()).max(0)
}

/// Formats a duration: `420 ms`, `16.8 s`, `5 min 20 s`, `5 h 20 min`, `2 d 3 h`.
pub(crate) fn span(millis: i64) -> String {
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

/// Formats the seconds since `from`, signed: `+16.8 s`.
pub(crate) fn relative(from: Timestamp, at: Timestamp) -> String {
    let millis = at.as_millisecond() - from.as_millisecond();
    let tenths = (millis.abs() + 50) / 100;
    format!(
        "{}{}.{} s",
        if millis < 0 { '-' } else { '+' },
        tenths / 10,
        tenths % 10
    )
}

/// Formats a number with its noun: `1 claim`, `2 claims`.
pub(crate) fn count(n: usize, noun: &str) -> String {
    if n == 1 {
        format!("1 {noun}")
    } else {
        format!("{n} {noun}s")
    }
}

/// Describes a class without words that only the manual explains. No full stop.
pub(crate) fn class_in_words(class: Class) -> &'static str {
    match class {
        Class::A => "the node died while it had the volume, so no other node may have it",
        Class::B => {
            "Kubernetes and the cloud both say that the volume is attached, but the machine does not see the disk"
        }
        Class::C => "Kubernetes says that the volume is attached, but the cloud has detached it",
        Class::D => "a VolumeAttachment does not finish attaching or detaching",
        Class::E => {
            "the cloud keeps the volume attached to an instance for which Kubernetes has no VolumeAttachment"
        }
    }
}

/// Names a class: `class B (phantom attachment)`.
pub(crate) fn class_name(class: Class) -> String {
    format!("class {}", class.named())
}

/// Names a step: `step 3 (detach at the cloud)`, or the number alone without a plan.
pub(crate) fn step_name(plan: Option<&Plan>, step: StepIx) -> String {
    match plan.and_then(|p| p.steps.get(step.index())) {
        Some(planned) => format!("step {step} ({})", planned.kind.spec().title),
        None => format!("step {step}"),
    }
}

/// Describes what a crash in the middle of a step means.
pub(crate) fn effect_in_words(kind: StepKind, class: EffectClass) -> &'static str {
    match (kind.spec().role, class) {
        (Role::Waits | Role::Verifies, _) => "reads only, changes nothing",
        (_, EffectClass::Repeatable) => "safe to repeat after a crash",
        (_, EffectClass::Conditional) => {
            "written only if the object has not changed since it was read"
        }
        (_, EffectClass::Once) => {
            "sent once; after a crash its outcome is observed first, and it is never repeated blindly"
        }
    }
}

/// Describes what a proof rests on, as one sentence without its full stop.
pub fn proof_in_words(proof: &ProofKind) -> String {
    match proof {
        ProofKind::KubeletHandshake {
            node,
            no_user_since,
            lease_renewed,
        } => format!(
            "kubelet on {node} reported that it does not use the volume, after the last pod was gone ({}) and after a newer Lease renewal ({})",
            clock(*no_user_since),
            clock(*lease_renewed)
        ),
        ProofKind::AnsweredClean {
            node,
            no_user_since,
            epoch,
        } => format!(
            "the agent on {node} answered challenge {epoch} clean; the challenge was sent more than two minutes after the last pod was gone ({})",
            clock(*no_user_since)
        ),
        ProofKind::Gone { last_seen: None } => {
            "the cloud reports the instance as deleted".to_owned()
        }
        ProofKind::Gone {
            last_seen: Some(at),
        } => format!(
            "the cloud no longer finds the instance, with the same credential that saw it at {}",
            clock(*at)
        ),
        ProofKind::Off {
            job: Some(job),
            first_seen,
        } => format!(
            "the instance is off after the finished shutdown job {job}, read twice (first at {})",
            clock(*first_seen)
        ),
        ProofKind::Off {
            job: None,
            first_seen,
        } => {
            format!(
                "the instance is off, read twice (first at {}); this cloud never boots an instance by itself",
                clock(*first_seen)
            )
        }
        ProofKind::KeptOff {
            first_seen,
            newest_job,
        } => format!(
            "the instance is off without a shutdown job; its automatic restart was switched off, and after that it was read as off twice (first at {}) with {}",
            clock(*first_seen),
            match newest_job {
                Some(job) => format!("nothing that boots after job {job}"),
                None => "an empty history".to_owned(),
            }
        ),
        ProofKind::RebootedAndClean { node, boot, epoch } => format!(
            "{node} has rebooted (boot {boot}), and its agent answered challenge {epoch}: no such device, and no mount of it"
        ),
        ProofKind::Declared {
            by,
            reason,
            at,
            cluster_wide: _,
        } => {
            format!(
                "{by} declared at {} that the instance cannot write: {reason}",
                clock(*at)
            )
        }
    }
}

/// Headline of a verdict, without words that only the glossary explains.
pub(crate) fn headline(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Healthy { .. } => "Nothing is wrong".to_owned(),
        Verdict::Ours { trouble } => format!("Stuck volume, {}", class_name(trouble.class())),
        Verdict::Wait {
            reason: WaitReason::ProviderLock { .. },
        } => "Locked: waiting for the provider to lift a lock".to_owned(),
        Verdict::Wait { .. } => "Waiting: something must happen first".to_owned(),
        Verdict::NotOurs { .. } => "Not an attachment problem: reattach leaves it alone".to_owned(),
        Verdict::Unclassified { .. } => {
            "Not classified: facts are missing, so reattach touches nothing".to_owned()
        }
    }
}

/// Describes a journal line in one sentence without its full stop.
pub(crate) fn event_in_words(plan: Option<&Plan>, event: &Event) -> String {
    let text = match event {
        Event::Accepted { plan_hash, authority } => {
            format!("plan {plan_hash} accepted, allowed by {authority}")
        }
        Event::Started { step, intent, proof, .. } => {
            let proof = proof.as_ref().map(|p| format!("; proof: {}", proof_in_words(p))).unwrap_or_default();
            format!("{} begins: {intent}{proof}", step_name(plan, *step))
        }
        Event::Outcome { step, outcome } => {
            format!("{} {}", step_name(plan, *step), outcome_in_words(outcome))
        }
        Event::Completed { step, seen } => format!("{} done: {seen}", step_name(plan, *step)),
        Event::Skipped { step, why } => format!("{} skipped: {why}", step_name(plan, *step)),
        // A line without the node's Lease voids the one before it. It must not read as "no pod is left", because no proof
        // can rest on it.
        Event::UnusedSince { seen } => match seen.lease {
            Some(_) => "no pod uses the claim any more".to_owned(),
            None => "no proof can begin yet: a pod of the claim was seen again, or the node's Lease could not be read".to_owned(),
        },
        Event::UnwindStarted { why } => format!("unwinding starts: {why}; from here on the run only restores"),
        Event::Ended { end } => end_in_words(end),
    };
    quoted(&text)
}

fn outcome_in_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Applied { detail } => format!("accepted: {detail}"),
        Outcome::NotApplied { why, retry: true } => {
            format!("not accepted, will be retried: {why}")
        }
        Outcome::NotApplied { why, retry: false } => format!("refused: {why}"),
        Outcome::RefusedByBudget { why } => {
            format!("refused by a PodDisruptionBudget, will be retried: {why}")
        }
        Outcome::Withheld { shut } => format!("withheld by the gate, nothing was sent: {shut}"),
        Outcome::Unknown { why } => {
            format!("got no usable reply, its outcome is unknown: {why}")
        }
        Outcome::ObservedApplied { seen } => format!("observed as applied: {seen}"),
        Outcome::Repeatable { why } => {
            format!("got no usable reply, and may be issued again: {why}")
        }
        Outcome::ObservedNotApplied { seen } => format!("observed as not applied: {seen}"),
    }
}

fn end_in_words(end: &End) -> String {
    match end {
        End::Recovered => "recovered: the pod runs with its volume".to_owned(),
        End::Aborted => "aborted by a person; everything was restored".to_owned(),
        End::Withdrawn { why } => format!("ended before it had any effect: {why}"),
        End::Failed { why } => format!("failed, everything was restored: {why}"),
        End::Stuck { why } => format!("stuck, a person must act: {why}"),
    }
}

/// Makes a sentence: capital first letter, full stop.
pub(crate) fn sentence(text: &str) -> String {
    let text = text.trim();
    let mut chars = text.chars();
    let Some(first) = chars.next() else {
        return String::new();
    };
    let stop = if text.ends_with(['.', '!', '?', ':']) {
        ""
    } else {
        "."
    };
    // A first word that is a name or command keeps its spelling.
    let word: String = text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned();
    let plain = word
        .chars()
        .all(|c| c.is_ascii_lowercase() || c == '\'' || c == ',' || c == ':');
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
        let cases = [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (16_840, "16.8 s"),
            (59_949, "59.9 s"),
            (59_950, "1 min"),
            (320_000, "5 min 20 s"),
            (3_599_600, "1 h"),
            (19_200_000, "5 h 20 min"),
            (183_600_000, "2 d 3 h"),
        ];
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
    fn credentials_are_masked_and_names_are_not() {
        let cases = [
            (
                "Authorization: Bearer abc123) failed",
                "Authorization: Bearer [masked]) failed",
            ),
            (
                "token=xyz, Password: hunter2 end",
                "token=[masked], Password: [masked] end",
            ),
            (
                "sent 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.",
                "sent [masked].",
            ),
        ];
        for (text, want) in cases {
            assert_eq!(quoted(text), want);
        }
        let hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        for name in [
            "volume 1042 (pvcbb1d06139b334c1f) on lke13311-16405-5fafd1b46dcf, uid 6f1d2c3b-0000-4000-8000-000000000001",
            &format!("VolumeAttachment csi-{hash}: attached"),
            &format!("/var/lib/kubelet/plugins/kubernetes.io/csi/driver/{hash}/globalmount"),
            "secret \"site-config\" not found; a token bucket",
            "(persistentVolumeClaimRetentionPolicy.whenScaled is Delete)",
        ] {
            assert_eq!(quoted(name), name);
        }
    }

    #[test]
    fn a_voided_handshake_does_not_read_as_the_end_of_the_pods() {
        let at = Timestamp::UNIX_EPOCH;
        let say = |lease| {
            event_in_words(
                None,
                &Event::UnusedSince {
                    seen: reattach_core::proof::UnusedSince { at, lease },
                },
            )
        };
        assert_eq!(say(Some(at)), "no pod uses the claim any more");
        assert!(say(None).starts_with("no proof can begin yet"));
    }

    #[test]
    fn sentences_keep_the_spelling_of_names() {
        assert_eq!(sentence("the pod runs"), "The pod runs.");
        assert_eq!(sentence("kubelet says no"), "kubelet says no.");
        assert_eq!(sentence("redis-0 is down."), "redis-0 is down.");
        assert_eq!(sentence(""), "");
    }
}
