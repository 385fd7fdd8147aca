//! The controller process: leader election, and the loops that run while it leads.
//!
//! Election, driving, looking, tidying, the record of machines and the records' bounds each have a loop of their own.

use crate::collect::Collector;
use crate::driving::Drivers;
use crate::janitor::Janitor;
use crate::looking::Looks;
use crate::machines::Machines;
use crate::metrics::Metrics;
use crate::providers::Providers;
use crate::records::Records;
use crate::recovery::Executor;
use crate::wakeup::Wakeup;
use reattach_cluster::cache::Cache;
use reattach_cluster::gate::Gate;
use reattach_cluster::lease::Elector;
use reattach_cluster::{Clients, Clock};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How a controller process is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of the leader Lease.
    pub namespace: String,
    /// The leader Lease's name.
    pub lease: String,
    /// Unique per process: pod name and UID.
    pub identity: String,
    /// The user name that the API server knows this process by: the requester of automatic recoveries.
    pub username: String,
}

/// The controller.
pub struct Controller {
    clients: Clients,
    providers: Providers,
    clock: Clock,
    settings: Settings,
    metrics: Metrics,
    locks: Option<String>,
}

impl Controller {
    /// A controller over these clients and providers.
    pub fn new(
        clients: Clients,
        providers: Providers,
        clock: Clock,
        settings: Settings,
        metrics: Metrics,
    ) -> Self {
        Self {
            clients,
            providers,
            clock,
            settings,
            metrics,
            locks: None,
        }
    }

    /// The same, with the locks of nodes in another namespace than the leader Lease's: in `medik8s-leases` they are those
    /// of the medik8s operators.
    #[must_use]
    pub fn locking_nodes_in(mut self, namespace: &str) -> Self {
        self.locks = Some(namespace.to_owned());
        self
    }

    /// Runs until `stop` turns true; then effects under way end, are journaled, and the Lease is released.
    pub async fn run(self, ready: watch::Sender<bool>, stop: watch::Receiver<bool>) {
        let mut watches = JoinSet::new();
        let cache = Cache::start(&self.clients.read, self.clock.clone(), &mut watches);
        let mut stopping = stop.clone();
        tokio::select! {
            biased;
            _ = stopping.wait_for(|s| *s) => return,
            () = cache.ready() => {}
        }
        ready.send_replace(true);
        let (publish, leadership) = watch::channel(None);
        let Settings {
            namespace,
            lease,
            identity,
            ..
        } = &self.settings;
        let elector = Elector::new(
            self.clients.records.clone(),
            namespace,
            lease,
            identity,
            self.clock.clone(),
        );
        // The elector outlives the drivers: an effect under way must end inside our lease.
        let (end_election, election_ended) = watch::channel(false);
        // In a set, so that a run that is dropped stops renewing the Lease.
        let mut election = JoinSet::new();
        election.spawn(elector.run(publish, election_ended));
        let collector = Collector::new(
            self.clients.clone(),
            Some(cache.clone()),
            self.providers.clone(),
            self.clock.clone(),
        );
        let gate = Gate::new(self.clients.clone(), leadership.clone())
            .locking_nodes_in(self.locks.as_deref().unwrap_or(namespace));
        let username = &self.settings.username;
        let executor = Executor::new(
            collector,
            gate,
            identity.clone(),
            username,
            self.metrics.clone(),
        );
        // Each in a loop of its own: what one of them waits for delays no other.
        let wakeup = || Wakeup::new(stop.clone(), leadership.clone(), &cache);
        let mut loops = JoinSet::new();
        let drivers = Drivers::new(
            executor.clone(),
            cache.clone(),
            username.clone(),
            stop.clone(),
        );
        loops.spawn(drivers.run(wakeup()));
        loops.spawn(Looks::new(executor.clone(), cache.clone(), username.clone()).run(wakeup()));
        loops.spawn(Records::new(executor.clone(), cache.clone(), username.clone()).run(wakeup()));
        loops.spawn(Janitor::default().run(executor.clone(), cache.clone(), wakeup()));
        loops.spawn(Machines::default().run(executor, cache.clone(), wakeup()));
        while let Some(ended) = loops.join_next().await {
            if let Err(error) = ended {
                // Nothing works without it, so the process ends and is started again.
                std::panic::resume_unwind(error.into_panic());
            }
        }
        end_election.send_replace(true);
        // The election task ends by itself once told to; a panic in it has nothing left to lose here.
        let _ = election.join_next().await;
    }
}
