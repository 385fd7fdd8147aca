//! Setting up what recoveries are driven with: the same for the controller, the command line and the drill.

use crate::collect::Collector;
use crate::metrics::Metrics;
use crate::neighbours::Neighbours;
use crate::providers::Providers;
use crate::recovery::{Executor, Reservations, Rights};
use reattach_cluster::cache::Cache;
use reattach_cluster::gate::Gate;
use reattach_cluster::{Clients, Clock};
use reattach_provider_api::{PreflightReport, RightUse};

impl Collector {
    /// Makes a collector. Without a cache each collection reads live.
    pub fn new(clients: Clients, cache: Option<Cache>, providers: Providers, clock: Clock) -> Self {
        Self {
            clients,
            cache,
            providers,
            clock,
            neighbours: Neighbours::default(),
        }
    }
}

impl Executor {
    /// Makes an executor. `identity` signs the journal and is unique per process; `username` is the name that the API server knows
    /// the process by.
    pub fn new(
        collector: Collector,
        gate: Gate,
        identity: String,
        username: &str,
        metrics: Metrics,
    ) -> Self {
        Self {
            collector,
            gate,
            identity,
            metrics,
            reservations: Reservations::default(),
            rights: Rights::of(username),
        }
    }
}

/// What the credential of one provider may do.
#[derive(Clone, Debug)]
pub struct Preflight {
    /// Name of the provider.
    pub provider: String,
    /// Rights without which nothing can be diagnosed, by the provider's names.
    pub missing_to_read: Vec<String>,
    /// Rights that a detach needs, by the provider's names. Observe and DryRun work without them.
    pub missing_to_detach: Vec<String>,
    /// The provider's whole answer.
    pub report: PreflightReport,
}

/// Asks each provider what its credential may do. Changes nothing.
pub async fn preflight(providers: &Providers) -> Vec<Preflight> {
    let mut all = Vec::new();
    for provider in providers.all() {
        let report = provider.preflight().await;
        let missing = |uses: &[RightUse]| {
            report
                .missing(uses)
                .into_iter()
                .map(|r| r.name.clone())
                .collect()
        };
        all.push(Preflight {
            provider: provider.name().to_owned(),
            missing_to_read: missing(&[
                RightUse::ReadVolumes,
                RightUse::ReadInstances,
                RightUse::ReadJobs,
            ]),
            missing_to_detach: missing(&[RightUse::Detach]),
            report,
        });
    }
    all
}
