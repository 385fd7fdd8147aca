//! The controller: nominate claims, create recoveries under policies, drive every recovery while leader.
//!
//! Election, driving, looking, tidying, the record of machines and the records' bounds each have a loop of their own.

use crate::collect::Collector;
use crate::driving::Drivers;
use crate::janitor::Janitor;
use crate::looking::Looks;
use crate::machines::Machines;
use crate::metrics::Metrics;
use crate::policies::ruling_policy;
use crate::providers::Providers;
use crate::records::Records;
use crate::recovery::{Executor, Limits, Rights, Ruling};
use crate::wakeup::Wakeup;
use kube::ResourceExt;
use reattach_api::{Opaque, Phase, PowerOffRule, RecoveryPolicySpec, VolumeRecovery};
use reattach_cluster::cache::Cache;
use reattach_cluster::gate::Gate;
use reattach_cluster::lease::Elector;
use reattach_cluster::{Clients, Clock};
use reattach_core::authority::Ceiling;
use reattach_core::ids::ObjectName;
use reattach_core::plan::Plan;
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
        Self { clients, providers, clock, settings, metrics, locks: None }
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
        let Settings { namespace, lease, identity, .. } = &self.settings;
        let elector =
            Elector::new(self.clients.records.clone(), namespace, lease, identity, self.clock.clone());
        // The elector outlives the drivers: an effect under way must end inside our lease.
        let (end_election, election_ended) = watch::channel(false);
        // In a set, so that a run that is dropped stops renewing the Lease.
        let mut election = JoinSet::new();
        election.spawn(elector.run(publish, election_ended));
        let executor = Executor {
            collector: Collector {
                clients: self.clients.clone(),
                cache: Some(cache.clone()),
                providers: self.providers.clone(),
                clock: self.clock.clone(),
                neighbours: crate::neighbours::Neighbours::default(),
            },
            gate: Gate::new(self.clients.clone(), leadership.clone())
                .locking_nodes_in(self.locks.as_deref().unwrap_or(namespace)),
            identity: self.settings.identity.clone(),
            metrics: self.metrics.clone(),
            reservations: crate::recovery::Reservations::default(),
            rights: Rights::of(&self.settings.username),
        };
        // Each in a loop of its own: what one of them waits for delays no other.
        let wakeup = || Wakeup::new(stop.clone(), leadership.clone(), &cache);
        let username = &self.settings.username;
        let mut loops = JoinSet::new();
        let drivers = Drivers::new(executor.clone(), cache.clone(), username.clone(), stop.clone());
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

pub(crate) fn phase(recovery: &VolumeRecovery) -> Phase {
    recovery.status.as_ref().map(|s| s.phase).unwrap_or_default()
}

/// Whether a run of this recovery has begun and is not over.
pub(crate) fn has_a_run(recovery: &VolumeRecovery) -> bool {
    let begun = recovery.status.as_ref().is_some_and(|s| !s.journal.is_empty());
    begun && !phase(recovery).is_final()
}

/// Recoveries whose runs take a place of the budgets, and their nodes. One that is stuck takes none: it does nothing until
/// a person has looked at it, and ten of them must not keep every other claim waiting.
pub(crate) fn running(cache: &Cache) -> Vec<(ObjectName, String)> {
    let runs = |r: &VolumeRecovery| has_a_run(r) && phase(r) != Phase::Stuck;
    let node = |r: &VolumeRecovery| {
        // A plan of another version most likely still names its node there, and that run counts, too.
        let node = |p: &Opaque<Plan>| match p.get() {
            Ok(plan) => plan.pins.node.to_string(),
            Err(plan) => plan.raw()["pins"]["node"].as_str().unwrap_or_default().to_owned(),
        };
        r.status.as_ref().and_then(|s| s.plan.as_ref()).map(node).unwrap_or_default()
    };
    let name = |r: &VolumeRecovery| ObjectName::new(r.namespace().unwrap_or_default(), r.name_any());
    cache.recoveries.filter(runs).iter().map(|r| (name(r), node(r))).collect()
}

/// What limits the recovery `name` now. `controller` is the user name of the controller.
pub fn limits(cache: &Cache, name: &ObjectName, controller: &str) -> Limits {
    let own = cache.recoveries.get(&name.namespace, &name.name);
    let claim = own.as_ref().map(|r| Executor::claim_of(r));
    let running: Vec<_> = running(cache).into_iter().filter(|(n, _)| n != name).collect();
    let rival = cache
        .recoveries
        // One that is stuck, too: something of it may be in force.
        .filter(|r| has_a_run(r) && Some(Executor::claim_of(r)) == claim && r.name_any() != name.name)
        .iter()
        .map(|r| ObjectName::new(r.namespace().unwrap_or_default(), r.name_any()))
        .next();
    let policy = claim.and_then(|c| ruling_policy(cache, &c));
    let spec = policy.as_ref().map(|p| &p.spec);
    Limits {
        budgets: spec.map(|p| p.budgets.clone()).unwrap_or_default(),
        running,
        rival,
        made_by_policy: own.is_some_and(|r| r.spec.requester == controller),
        ruling: policy.as_deref().map(Ruling::of),
        ceiling: policy.as_ref().map(|p| ceiling(p.name_any(), &p.spec)),
        snapshot: spec.map(|p| p.snapshot_before_force).unwrap_or_default(),
        escalate_after_seconds: spec.map(|p| p.escalate_after_seconds),
    }
}

/// How far a policy lets anybody go who has no right at cluster scope.
pub fn ceiling(policy: String, spec: &RecoveryPolicySpec) -> Ceiling {
    Ceiling {
        policy,
        mode: spec.mode,
        runbook: spec.runbook.clone(),
        power_off: spec.counting_power_off() != PowerOffRule::Never,
        nodes: spec.counting_nodes().map(Into::into),
    }
}
