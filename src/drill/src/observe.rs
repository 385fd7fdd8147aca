//! Observes the world from outside, as an engineer with `kubectl` would, and makes a line of each change.

use crate::app::App;
use crate::timeline::{Actor, Line, block, span};
use crate::world::{APPS, World};
use jiff::Timestamp;
use kube::ResourceExt;
use reattach_api::{Phase, VolumeRecovery, VolumeRecoveryStatus};
use reattach_core::ids::StepIx;
use reattach_core::journal::{End, Entry, Event, Outcome};
use reattach_core::plan::Plan;
use reattach_core::policy::Mode;
use reattach_core::steps::StepKind;
use reattach_report::proof_in_words;
use reattach_sim::object::{is_ready, name, text};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Last observed state of one recovery.
#[derive(Default)]
struct SeenRecovery {
    version: String,
    lines: usize,
    phase: Option<Phase>,
    message: String,
    /// The number of the last question to agents.
    epoch: i64,
}

/// Last observed state of one app.
#[derive(Default)]
struct SeenApp {
    ready: Option<bool>,
    since: Option<Timestamp>,
    complained: BTreeSet<String>,
}

/// Compares the world with the state that the timeline shows already.
#[derive(Default)]
pub(crate) struct Observer {
    apps: Vec<App>,
    seen_apps: BTreeMap<String, SeenApp>,
    recoveries: BTreeMap<String, SeenRecovery>,
    /// The last conclusion told per app: a second recovery that says the same says nothing new.
    concluded: BTreeMap<String, String>,
    leader: String,
    looked_at: u64,
    plan_shown: bool,
    detach_shown: bool,
}

impl Observer {
    pub(crate) fn follow(&mut self, app: &App) {
        self.apps.push(app.clone());
    }

    /// The app of a claim, or its pod where it has several; a claim that no app has speaks for itself.
    fn app_of(&self, claim: &str) -> String {
        let found = self
            .apps
            .iter()
            .find(|a| a.volumes.iter().any(|v| v.claim == claim));
        match found {
            Some(app) if app.volumes.len() == 1 => app.name.clone(),
            Some(_) => claim.strip_prefix("data-").unwrap_or(claim).to_owned(),
            None => claim.to_owned(),
        }
    }

    /// Lines for the changes since the last look, in the order of time.
    pub(crate) fn look(&mut self, world: &World) -> Vec<Line> {
        let version = world.server().resource_version();
        if version == self.looked_at {
            return Vec::new();
        }
        self.looked_at = version;
        let mut lines = self.pods(world);
        lines.extend(self.leader(world));
        lines.extend(self.work(world));
        lines.sort_by_key(|l| l.at);
        lines
    }

    fn leader(&mut self, world: &World) -> Option<Line> {
        let lease = world.server().read(
            "coordination.k8s.io",
            "leases",
            crate::replica::NAMESPACE,
            crate::replica::LEASE,
        )?;
        let holder = text(&lease, "/spec/holderIdentity").to_owned();
        if holder == self.leader || holder.is_empty() {
            return None;
        }
        let term = lease["spec"]["leaseTransitions"].as_i64().unwrap_or(0);
        let text = format!("{holder} is leader now (term {term})");
        self.leader = holder;
        Some(line(world.now(), Actor::Reattach, "", text))
    }

    fn pods(&mut self, world: &World) -> Vec<Line> {
        let mut lines = Vec::new();
        let now = world.now();
        let events = world.server().list("", "events", Some(APPS));
        for app in &self.apps {
            let pods = world.pods(&app.name);
            let seen = self.seen_apps.entry(app.name.clone()).or_default();
            let ready = pods.len() >= app.replicas && pods.iter().all(|p| is_ready(p));
            match (seen.ready, ready) {
                (None | Some(false), true) => {
                    let node = pods
                        .first()
                        .and_then(|p| p["spec"]["nodeName"].as_str())
                        .unwrap_or("?");
                    let text = match seen.since {
                        Some(since) => format!(
                            "runs again on {node}, after {}",
                            span(now.duration_since(since).as_secs_f64())
                        ),
                        None => format!("{} runs on {node}", app.role),
                    };
                    lines.push(line(now, Actor::Kubernetes, &app.name, text));
                    seen.ready = Some(true);
                }
                (Some(true), false) => {
                    (seen.ready, seen.since) = (Some(false), Some(now));
                    lines.push(line(
                        now,
                        Actor::Kubernetes,
                        &app.name,
                        "is down: its pod is not Ready".to_owned(),
                    ));
                }
                _ => {}
            }
            let about = |e: &Value| {
                let uid = &e["involvedObject"]["uid"];
                pods.iter().any(|p| p["metadata"]["uid"] == *uid)
            };
            for event in events
                .iter()
                .filter(|e| e["reason"] == "FailedMount" && about(e))
            {
                let message = text(event, "/message");
                let key = format!("{}{message}", event["involvedObject"]["uid"]);
                if seen.ready != Some(true) && seen.complained.insert(key) {
                    lines.push(line(
                        now,
                        Actor::Kubernetes,
                        &app.name,
                        format!("FailedMount: {}", cut(message)),
                    ));
                }
            }
        }
        lines
    }

    fn work(&mut self, world: &World) -> Vec<Line> {
        let mut lines = Vec::new();
        for raw in world
            .server()
            .list("reattach.dev", "volumerecoveries", None)
        {
            let version = text(&raw, "/metadata/resourceVersion");
            let seen = self.recoveries.entry(name(&raw).to_owned()).or_default();
            if seen.version == version {
                continue;
            }
            version.clone_into(&mut seen.version);
            let Ok(recovery) = VolumeRecovery::deserialize(&*raw) else {
                continue;
            };
            let mut seen = std::mem::take(seen);
            lines.extend(self.recovery(&recovery, &mut seen, world));
            self.recoveries.insert(recovery.name_any(), seen);
        }
        lines
    }

    fn recovery(
        &mut self,
        recovery: &VolumeRecovery,
        seen: &mut SeenRecovery,
        world: &World,
    ) -> Vec<Line> {
        let Some(status) = &recovery.status else {
            return Vec::new();
        };
        let about = self.app_of(&recovery.spec.claim_name);
        let mut lines = Vec::new();
        if let Ok((Some(plan), journal)) = recovery.history() {
            for entry in journal.iter().skip(seen.lines) {
                let accepted = journal.first().map(|e| e.at);
                let text = self.told(&about, plan, entry, accepted);
                lines.extend(text.map(|text| line(entry.at, Actor::Reattach, &about, text)));
            }
        }
        seen.lines = status.journal.len();
        if status.journal.is_empty()
            && (seen.phase != Some(status.phase) || seen.message != status.message)
        {
            lines.extend(self.concluded(recovery, status, &about, seen, world));
        }
        (seen.phase, seen.message) = (Some(status.phase), status.message.clone());
        seen.epoch = status.epoch;
        lines
    }

    /// A conclusion before any step.
    fn concluded(
        &mut self,
        recovery: &VolumeRecovery,
        status: &VolumeRecoveryStatus,
        about: &str,
        seen: &SeenRecovery,
        world: &World,
    ) -> Option<Line> {
        let (message, now) = (&status.message, world.now());
        let text = match status.phase {
            Phase::Diagnosing if message.is_empty() => return None,
            // A question that is answered within a second is no news.
            Phase::Diagnosing if status.epoch > seen.epoch => return None,
            Phase::Diagnosing => format!("needs another look: {message}"),
            Phase::NotOurs => format!("{}. Nothing is changed", cut(message)),
            Phase::Waiting => format!("waits: {message}"),
            Phase::Refused => format!("refuses: {message}"),
            Phase::Resolved => format!("the trouble ended without reattach: {message}"),
            Phase::Aborted if is_replaced(recovery, world) => return None,
            Phase::Aborted => message.clone(),
            Phase::Planned | Phase::AwaitingApproval => {
                return self.planned(recovery, status, about, seen, now);
            }
            _ => return None,
        };
        let before = self.concluded.insert(about.to_owned(), text.clone());
        (before.as_ref() != Some(&text)).then(|| line(now, Actor::Reattach, about, text))
    }

    fn planned(
        &mut self,
        recovery: &VolumeRecovery,
        status: &VolumeRecoveryStatus,
        about: &str,
        seen: &SeenRecovery,
        now: Timestamp,
    ) -> Option<Line> {
        if seen.phase == Some(status.phase) && recovery.spec.mode == Mode::DryRun {
            return None;
        }
        let plan = status.plan.as_ref()?.get().ok()?;
        let would = match recovery.spec.mode {
            Mode::Approve => "Has a plan and waits for a person to approve it",
            _ => "Shows its plan and changes nothing (DryRun)",
        };
        let trouble = plan.trouble.to_string();
        let shown = if self.concluded.get(about) == Some(&trouble) {
            String::new()
        } else {
            format!("{trouble}. ")
        };
        self.concluded.insert(about.to_owned(), trouble);
        let mut said = line(
            now,
            Actor::Reattach,
            about,
            format!(
                "{shown}{would}: plan {}, {} to 0 and back, about {} s of downtime",
                plan.hash, plan.pins.workload, plan.downtime.typical_seconds
            ),
        );
        if !self.plan_shown {
            self.plan_shown = true;
            said.text.push_str(". The first plan in short, with the commands that a person would type (kubectl reattach plan shows all of it):");
            for (n, step) in plan.steps.iter().enumerate() {
                said.block
                    .extend(block(3, &format!("{}. {}", n + 1, elided(&step.what))));
                said.block.extend(
                    step.command
                        .lines()
                        .map(|l| format!("     $ {}", elided(l.trim()))),
                );
            }
        }
        Some(said)
    }

    /// A journal line as a sentence; `None` for one that says nothing new.
    fn told(
        &mut self,
        about: &str,
        plan: &Plan,
        entry: &Entry,
        accepted: Option<Timestamp>,
    ) -> Option<String> {
        let kind = |step: &StepIx| plan.steps.get(step.index()).map(|s| s.kind);
        let number = |step: &StepIx| format!("step {step}/{}", plan.steps.len());
        let seconds = |from: Timestamp| span(entry.at.duration_since(from).as_secs_f64());
        Some(match &entry.event {
            Event::Accepted {
                plan_hash,
                authority,
            } => {
                let trouble = plan.trouble.to_string();
                let known = self
                    .concluded
                    .insert(about.to_owned(), trouble.clone())
                    .as_ref()
                    == Some(&trouble);
                let shown = if known {
                    String::new()
                } else {
                    format!("{trouble}. ")
                };
                format!(
                    "{shown}{} plan {plan_hash} ({})",
                    if known { "starts" } else { "Starts" },
                    short(authority)
                )
            }
            Event::Started {
                step,
                intent,
                proof,
                ..
            } => {
                let proof = match proof {
                    Some(proof) => {
                        format!("; proof that no machine writes: {}", proof_in_words(proof))
                    }
                    None => String::new(),
                };
                format!("{}: {intent}{proof}", number(step))
            }
            Event::Outcome { outcome, step } => match outcome {
                Outcome::Applied { .. } => return None,
                Outcome::NotApplied { why, .. } => format!("{}: not applied: {why}", number(step)),
                Outcome::RefusedByBudget { why } => {
                    format!("{}: refused by a PodDisruptionBudget: {why}", number(step))
                }
                Outcome::Withheld { shut } => format!("{}: not sent yet: {shut}", number(step)),
                Outcome::Unknown { why } => {
                    format!(
                        "{}: whether it was applied is NOT KNOWN ({why}); reattach reads the result before it does anything else",
                        number(step)
                    )
                }
                Outcome::ObservedApplied { seen } => {
                    format!("{}: observed that it was applied: {seen}", number(step))
                }
                Outcome::Repeatable { why } => {
                    format!(
                        "{}: whether it was applied is not known ({why})",
                        number(step)
                    )
                }
                Outcome::ObservedNotApplied { seen } => {
                    format!("{}: observed that it was not applied: {seen}", number(step))
                }
            },
            Event::Completed { step, seen } => match kind(step)? {
                StepKind::AwaitDetached
                    if first_wait(plan, *step) || self.concluded.contains_key(&stuck(about)) =>
                {
                    self.concluded.remove(&stuck(about));
                    let who = if std::mem::replace(&mut self.detach_shown, true) {
                        String::new()
                    } else {
                        format!(": {seen}")
                    };
                    format!("{}: the volume is free{who}", number(step))
                }
                StepKind::CloudDetach => format!("{}: {seen}", number(step)),
                _ => return None,
            },
            Event::Skipped { step, why } if kind(step)? == StepKind::AwaitDetached => {
                self.concluded.insert(stuck(about), why.clone());
                format!("{}: {why}", number(step))
            }
            Event::Skipped { .. } | Event::UnusedSince { .. } => return None,
            Event::UnwindStarted { why } => format!("unwinds and restores: {why}"),
            Event::Ended { end } => match end {
                End::Recovered => {
                    format!("RECOVERED in {}", accepted.map(seconds).unwrap_or_default())
                }
                End::Aborted => "ABORTED; everything was restored".to_owned(),
                End::Withdrawn { why } => format!("WITHDRAWN; nothing was changed: {why}"),
                End::Failed { why } => format!("FAILED; everything was restored: {why}"),
                End::Stuck { why } => format!("STUCK; a person is needed: {why}"),
            },
        })
    }
}

/// Whether a recovery that never ran ended because a policy asks for another mode now: another recovery of the claim goes on in
/// its place.
fn is_replaced(recovery: &VolumeRecovery, world: &World) -> bool {
    let by_people = recovery.spec.abort.is_some() || recovery.metadata.deletion_timestamp.is_some();
    let mode = recovery.spec.mode.to_string();
    let policies = world
        .server()
        .list("reattach.dev", "recoverypolicies", None);
    !by_people
        && policies
            .iter()
            .any(|p| p["spec"]["mode"].as_str() != Some(mode.as_str()))
}

/// Under which the observer remembers that Kubernetes' own detach was stuck.
fn stuck(about: &str) -> String {
    format!("{about} stuck")
}

/// Long hashes in names shortened, for reading.
fn elided(text: &str) -> String {
    let short = |word: &str| match word.strip_prefix("csi-") {
        Some(hash) if hash.len() > 16 => format!("csi-{}…", &hash[..8]),
        _ => word.to_owned(),
    };
    text.split(' ').map(short).collect::<Vec<_>>().join(" ")
}

/// A long message of others, cut to a few lines.
fn cut(message: &str) -> String {
    const LONGEST: usize = 230;
    if message.chars().count() <= LONGEST {
        return message.to_owned();
    }
    let head: String = message.chars().take(LONGEST).collect();
    format!("{}…", head.trim_end())
}

fn line(at: Timestamp, actor: Actor, about: &str, text: String) -> Line {
    Line {
        at,
        actor,
        about: about.to_owned(),
        text,
        block: Vec::new(),
    }
}

fn first_wait(plan: &Plan, step: StepIx) -> bool {
    plan.steps
        .iter()
        .position(|s| s.kind == StepKind::AwaitDetached)
        == Some(step.index())
}

/// The authority without the long name of our own service account.
fn short(authority: &str) -> String {
    authority.replace(
        &format!("asked for by {}", crate::replica::CONTROLLER_USER),
        "by policy",
    )
}
