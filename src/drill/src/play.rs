//! Playing a scenario from its first line to its verdict.

use crate::checks;
use crate::judged::Check;
use crate::record::describe;
use crate::scenario::{Pace, SCENARIOS, Scenario};
use crate::stage::{Expect, Sink, Stage, recovery_of};
use crate::timeline::{Line, paragraph, span, table};
use crate::virtual_time::in_virtual_time;
use crate::world::WorldError;
use jiff::Timestamp;
use reattach_api::VolumeRecovery;
use reattach_core::ids::StepIx;
use reattach_core::journal::Event;
use reattach_core::phase::Phase;
use reattach_core::steps::StepKind;
use reattach_report::{Incident, standing, title};
use serde::Serialize;
use std::fmt::Write as _;

/// Why a drill could not be played.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// No such scenario.
    #[error("there is no scenario {name:?}; there are: {known}")]
    NoSuchScenario {
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// No thread or runtime.
    #[error("the drill could not be started: {0}")]
    Start(#[from] std::io::Error),
    /// The scenario did not take its course.
    #[error("the scenario stopped (seed {seed}): {source}")]
    Course {
        /// The seed.
        seed: u64,
        /// The event that did not happen.
        source: WorldError,
    },
}

/// The result for one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadResult {
    /// The workload.
    pub workload: String,
    /// The result, in words.
    pub result: String,
    /// The class.
    pub class: String,
    /// From the plan's acceptance to its end, in words.
    pub healed_in: String,
    /// Whether the cloud had to be asked to detach.
    pub cloud_detach: bool,
    /// Whether it runs now.
    pub runs: bool,
}

/// The result of a drill.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// The timeline.
    pub lines: Vec<Line>,
    /// Every workload.
    pub workloads: Vec<WorkloadResult>,
    /// Measured times: with reattach, and in the same world without it.
    pub figures: Vec<[String; 3]>,
    /// The safety rules.
    pub checks: Vec<Check>,
    /// The input of the post-mortem.
    #[serde(skip)]
    pub incident: Incident,
}

impl Outcome {
    /// Whether every rule held and every workload is as it should be.
    pub fn good(&self) -> bool {
        self.checks.iter().all(Check::held)
    }

    /// The tables after the timeline.
    pub fn summary(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .workloads
            .iter()
            .map(|w| {
                let detach = if w.cloud_detach { "yes" } else { "no" };
                let runs = if w.runs { "runs" } else { "DOWN" };
                [
                    w.workload.as_str(),
                    &w.class,
                    &w.result,
                    &w.healed_in,
                    detach,
                    runs,
                ]
                .map(str::to_owned)
                .to_vec()
            })
            .collect();
        let mut out = String::from("\n== How it went\n\n");
        out.push_str(&table(
            &[
                "workload",
                "class",
                "what reattach did",
                "took",
                "cloud detach",
                "now",
            ],
            &rows,
        ));
        if !self.figures.is_empty() {
            out.push_str(
                "\n== How long it took, compared with stock Kubernetes in the same world\n\n",
            );
            let rows: Vec<Vec<String>> = self.figures.iter().map(|row| row.to_vec()).collect();
            out.push_str(&table(
                &["until Ready", "reattach", "stock Kubernetes"],
                &rows,
            ));
        }
        out.push_str("\n== The safety rules, checked from outside reattach\n\n");
        for check in &self.checks {
            let word = if check.held() { "held  " } else { "BROKEN" };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  {word}  {:<3} {}", check.rule, check.promise);
            for broken in &check.broken {
                out.push_str(&paragraph(14, broken));
            }
        }
        let verdict = if self.good() {
            "Good: every rule held and every workload is as expected."
        } else {
            "NOT GOOD: see BROKEN above."
        };
        let _ = writeln!(
            out,
            "\n  {verdict}\n  Replay: kubectl reattach drill --scenario {} --seed {}",
            self.scenario, self.seed
        );
        out
    }

    /// Everything as text: for comparing two runs.
    pub fn transcript(&self) -> String {
        let lines: String = self.lines.iter().map(Line::render).collect();
        lines + &self.summary()
    }
}

/// Plays a scenario in virtual time; `sink` gets each line as it comes.
///
/// # Errors
/// [`DrillError`].
///
/// # Panics
/// When the code under test panics.
pub fn play(name: &str, seed: u64, pace: Pace, sink: Sink) -> Result<Outcome, DrillError> {
    let Some(scenario) = Scenario::named(name) else {
        let known = SCENARIOS
            .iter()
            .map(|s| s.name)
            .collect::<Vec<_>>()
            .join(", ");
        return Err(DrillError::NoSuchScenario {
            name: name.to_owned(),
            known,
        });
    };
    in_virtual_time(move || async move {
        match scenario.play(seed, pace, sink).await {
            Ok(stage) => Ok(finish(scenario, seed, stage).await),
            Err(source) => Err(DrillError::Course { seed, source }),
        }
    })?
}

async fn finish(scenario: Scenario, seed: u64, mut stage: Stage) -> Outcome {
    for replica in std::mem::take(&mut stage.replicas) {
        replica.stop().await;
    }
    stage.look();
    let checks = checks::all(&stage);
    let mut records = Vec::new();
    let mut workloads = Vec::new();
    for workload in stage.workloads.values() {
        let runs = stage
            .world
            .app_ready(&workload.app.name, workload.app.replicas);
        let untold = |result: String| WorkloadResult {
            workload: workload.app.name.clone(),
            result,
            class: "-".into(),
            healed_in: "-".into(),
            cloud_detach: false,
            runs,
        };
        let Some(recovery) = recovery_of(&stage.world, &workload.app) else {
            workloads.push(untold("nothing: it found no trouble".to_owned()));
            continue;
        };
        let number = workload
            .app
            .volumes
            .iter()
            .find(|v| v.claim == recovery.spec.claim_name)
            .map(|v| v.number);
        let cloud = match number {
            Some(number) => describe(&stage.world, number).await,
            None => None,
        };
        let mut one = match recovery.record(cloud) {
            Ok(record) => record,
            Err(unreadable) => {
                workloads.push(untold(unreadable.to_string()));
                continue;
            }
        };
        // The trouble was first acted on by the first recovery of the claim, in DryRun perhaps.
        one.created = first_seen(&stage, &recovery).unwrap_or(one.created);
        workloads.push(workload_result(
            &one,
            &workload.app.name,
            runs,
            workload.expect,
        ));
        records.push(one);
    }
    records.sort_by(|a, b| (a.created, &a.claim).cmp(&(b.created, &b.claim)));
    let incident = Incident {
        title: scenario.title.to_owned(),
        from: stage.from,
        to: stage.world.now(),
        records,
        notes: stage.notes.clone(),
    };
    Outcome {
        scenario: scenario.name.to_owned(),
        seed,
        lines: stage.lines().to_vec(),
        workloads,
        figures: stage.figures.clone(),
        checks,
        incident,
    }
}

fn first_seen(stage: &Stage, recovery: &VolumeRecovery) -> Option<Timestamp> {
    let same = |r: &VolumeRecovery| r.spec.claim_name == recovery.spec.claim_name;
    stage
        .world
        .recoveries()
        .into_iter()
        .filter(same)
        .filter_map(|r| r.metadata.creation_timestamp.map(|t| t.0))
        .min()
}

fn workload_result(
    record: &reattach_report::Record,
    app: &str,
    runs: bool,
    expect: Expect,
) -> WorkloadResult {
    let standing = standing(record);
    let class = record
        .diagnosis
        .as_ref()
        .and_then(reattach_core::diagnosis::Diagnosis::class);
    let class = class.or(record.plan.as_ref().map(reattach_core::plan::Plan::class));
    let healed = match (
        standing.phase,
        record.journal.first(),
        record.journal.last(),
    ) {
        (Phase::Recovered, Some(first), Some(last)) => {
            span(last.at.duration_since(first.at).as_secs_f64())
        }
        _ => "-".to_owned(),
    };
    let by_us = |step: StepIx| {
        let kind = record
            .plan
            .as_ref()
            .and_then(|p| p.steps.get(step.index()))
            .map(|s| s.kind);
        matches!(kind, Some(StepKind::CloudDetach | StepKind::CloudForce))
    };
    let detached = record
        .journal
        .iter()
        .any(|e| matches!(&e.event, Event::Started { step, .. } if by_us(*step)));
    let result = match expect {
        Expect::Untouched => format!("called it {}, changed nothing", title(&standing)),
        _ => title(&standing).to_owned(),
    };
    WorkloadResult {
        workload: app.to_owned(),
        result,
        class: class.map_or_else(|| "-".to_owned(), |c| format!("{c}, {}", c.title())),
        healed_in: healed,
        cloud_detach: detached,
        runs,
    }
}
