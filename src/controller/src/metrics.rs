//! Prometheus metrics of the controller.

pub mod cloud;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use reattach_core::journal::Outcome;
use std::sync::atomic::AtomicI64;

/// How a recovery ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndLabels {
    /// The phase.
    pub phase: String,
    /// The class.
    pub class: String,
}

/// A problem class.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ClassLabels {
    /// The class; empty while none is known.
    pub class: String,
}

/// An effect and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EffectLabels {
    /// The step.
    pub step: String,
    /// `applied`, `not_applied`, `unknown`, `shut` (the gate stayed shut), or `ignored` (a stamp that reattach does not believe).
    pub outcome: String,
}

/// The metrics.
#[derive(Clone)]
pub struct Metrics {
    /// Recoveries that ended.
    pub ended: Family<EndLabels, Counter>,
    /// Recoveries that called for a person because they waited for long.
    pub escalated: Family<ClassLabels, Counter>,
    /// Effects issued.
    pub effects: Family<EffectLabels, Counter>,
    /// Whether this process is leader.
    pub leader: Gauge<i64, AtomicI64>,
    /// Recoveries with a run under way.
    pub running: Gauge<i64, AtomicI64>,
    /// Recoveries that are driven now, with or without a run.
    pub driven: Gauge<i64, AtomicI64>,
    /// Seconds from the plan's acceptance to the end of a recovery that succeeded.
    pub duration: Histogram,
}

impl Metrics {
    /// Counts an effect of a step, or of the janitor, by what came of it.
    pub(crate) fn count_effect(&self, step: String, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Applied { .. } | Outcome::ObservedApplied { .. } => "applied",
            Outcome::Unknown { .. } => "unknown",
            Outcome::Withheld { .. } => "shut",
            Outcome::NotApplied { .. }
            | Outcome::RefusedByBudget { .. }
            | Outcome::ObservedNotApplied { .. }
            | Outcome::Repeatable { .. } => "not_applied",
        };
        self.effects
            .get_or_create(&EffectLabels {
                step,
                outcome: outcome.to_owned(),
            })
            .inc();
    }

    /// Registers every metric.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            ended: Family::default(),
            escalated: Family::default(),
            effects: Family::default(),
            leader: Gauge::default(),
            running: Gauge::default(),
            driven: Gauge::default(),
            duration: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
        };
        registry.register(
            "reattach_recoveries_ended",
            "Recoveries that ended",
            metrics.ended.clone(),
        );
        registry.register(
            "reattach_recoveries_escalated",
            "Waits so long that a person was called for",
            metrics.escalated.clone(),
        );
        registry.register(
            "reattach_effects",
            "Effects that passed or met the gate",
            metrics.effects.clone(),
        );
        registry.register(
            "reattach_leader",
            "1 while this process is leader",
            metrics.leader.clone(),
        );
        registry.register(
            "reattach_recoveries_running",
            "Recoveries under way",
            metrics.running.clone(),
        );
        registry.register(
            "reattach_recoveries_driven",
            "Recoveries that are driven, with or without a run",
            metrics.driven.clone(),
        );
        registry.register_with_unit(
            "reattach_recovery",
            "From acceptance to recovery",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        metrics
    }
}
