//! The machines behind the Nodes, written into `NodeVolumeReport.spec`: a machine whose Node is gone and that still has a
//! volume is known to be this cluster's then, and no other is (safety rule S10).
//!
//! # Guarantees
//! Written on change only, and never from a broken watch. A machine is forgotten [`FORGET_AFTER`] its Node went, and with
//! the last one the report.
//!
//! # Caveats
//! A Node that came and went while no controller ran was seen by nobody.
//!
//! # Errors
//! What cannot be read or written is logged and tried again with the next sweep.

use crate::recovery::Executor;
use crate::wakeup::{AT_LEAST_EVERY, Wakeup, Woken};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use reattach_api::{NodeVolumeReport, Opaque};
use reattach_cluster::cache::Cache;
use reattach_cluster::reports;
use reattach_core::cloud::CloudScope;
use reattach_core::identity::SeenMachine;
use reattach_core::ids::{BootId, NodeName, Uid};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// A machine is forgotten so long after its Node went: as long as Linode's own history of jobs reaches back.
pub const FORGET_AFTER: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Machines kept for one name: what the schema of `spec.machines` allows.
const KEPT: usize = 16;
/// The nodes are compared with the records so often. A Node seldom lives for less.
const EVERY: Duration = Duration::from_secs(5);
/// A provider that could not tell its account is asked again after so long.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Reports written in one sweep: a cluster of 5,000 nodes is recorded within ten minutes of an upgrade.
const MOST_WRITES: usize = 50;

/// The namespace whose UID tells clusters apart.
pub(crate) const CLUSTER: &str = "kube-system";

/// What is kept between sweeps.
#[derive(Default)]
pub(crate) struct Machines {
    next: Option<Instant>,
    scopes: BTreeMap<&'static str, (Instant, Option<CloudScope>)>,
}

impl Machines {
    /// Runs until the process is to stop. What is under way then is dropped: it changes our own records alone.
    pub(crate) async fn run(mut self, executor: Executor, cache: Cache, mut wakeup: Wakeup) {
        loop {
            if executor.gate.leadership().is_some() {
                tokio::select! {
                    biased;
                    () = wakeup.stop() => return,
                    () = self.sweep(&executor, &cache) => {}
                }
            }
            if wakeup.next(Instant::now() + AT_LEAST_EVERY).await == Woken::Stop {
                return;
            }
        }
    }

    /// Compares Nodes and records once, if it is time.
    async fn sweep(&mut self, executor: &Executor, cache: &Cache) {
        let started = Instant::now();
        if self.next.is_some_and(|at| started < at) {
            return;
        }
        self.next = Some(started + EVERY);
        let now = executor.collector.clock.now();
        // A watch that is broken misses Nodes that came.
        if cache.as_of() < now {
            return;
        }
        let Some(cluster) = cluster(cache) else { return };
        let nodes = cache.nodes.filter(|_| true);
        let known = cache.reports.filter(|_| true);
        let names: BTreeSet<String> =
            nodes.iter().map(|n| n.name_any()).chain(known.iter().map(|r| r.name_any())).collect();
        let mut writes = 0;
        for name in names {
            let (node, report) = (cache.nodes.get("", &name), cache.reports.get("", &name));
            let machine = match &node {
                Some(node) => self.machine(executor, node, &cluster).await,
                None => None,
            };
            let old = report.as_ref().map_or(&[][..], |r| r.spec.machines.as_slice());
            let new = remembered(old, machine, now);
            let written = match (&node, &report) {
                (None, Some(report)) if new.is_empty() => self.forget(executor, report).await,
                _ if old != new || report.as_ref().is_some_and(|r| goes_with_its_node(r)) => {
                    let name = NodeName::from(name.as_str());
                    reports::record(&executor.collector.clients.records, &name, &new).await
                }
                _ => continue,
            };
            if let Err(error) = written {
                tracing::debug!(node = name, %error, "the machine behind a node could not be recorded");
            }
            writes += 1;
            if writes >= MOST_WRITES {
                return;
            }
        }
    }

    async fn forget(&self, executor: &Executor, report: &NodeVolumeReport) -> Result<(), kube::Error> {
        tracing::info!(node = report.name_any(), "the record of a node that is long gone is deleted");
        reports::forget(&executor.collector.clients.records, report).await
    }

    /// The machine behind a Node now. None: no provider knows it, or its kubelet has not said its boot yet.
    async fn machine(&mut self, executor: &Executor, node: &Node, cluster: &Uid) -> Option<SeenMachine> {
        let id = node.spec.as_ref()?.provider_id.as_deref()?;
        let instance = executor.collector.providers.instance(id)?;
        let boot = node.status.as_ref()?.node_info.as_ref().map(|i| i.boot_id.clone())?;
        Some(SeenMachine {
            instance,
            node: NodeName::from(node.name_any()),
            node_uid: Uid::from(node.uid()?),
            cluster: cluster.clone(),
            boot_id: BootId::from(boot),
            scope: self.scope(executor, id).await,
            node_gone_since: None,
        })
    }

    /// Who answers for the provider of this machine.
    async fn scope(&mut self, executor: &Executor, provider_id: &str) -> Option<CloudScope> {
        let provider = executor.collector.providers.of_instance(provider_id)?;
        let again = |(at, scope): &(Instant, Option<CloudScope>)| {
            scope.is_none() && at.elapsed() >= ASKED_AGAIN_AFTER
        };
        if self.scopes.get(provider.name()).is_none_or(again) {
            let scope = provider.scope().await;
            let scope = scope.inspect_err(|error| tracing::debug!(%error, "the account is not known")).ok();
            self.scopes.insert(provider.name(), (Instant::now(), scope));
        }
        self.scopes.get(provider.name()).and_then(|(_, scope)| scope.clone())
    }
}

/// What tells this cluster from others: the UID of a namespace that every cluster has from its beginning.
pub(crate) fn cluster(cache: &Cache) -> Option<Uid> {
    cache.namespaces.get("", CLUSTER).and_then(|n| n.uid()).map(Uid::from)
}

/// Whether the garbage collector deletes the report with its Node, as agents of earlier versions asked for.
fn goes_with_its_node(report: &NodeVolumeReport) -> bool {
    report.owner_references().iter().any(|o| o.kind == "Node")
}

/// The machines of one name after a look at its Node. `machine` is the one behind it now.
fn remembered(
    old: &[Opaque<SeenMachine>],
    machine: Option<SeenMachine>,
    now: Timestamp,
) -> Vec<Opaque<SeenMachine>> {
    let is_it = |m: &SeenMachine| {
        machine.as_ref().is_some_and(|new| {
            new.instance == m.instance && new.node_uid == m.node_uid && new.cluster == m.cluster
        })
    };
    // What cannot be read was written by another version, which will read it again.
    let kept = old.iter().filter_map(|opaque| match opaque.get() {
        Err(_) => Some(opaque.clone()),
        Ok(m) if is_it(m) => None,
        Ok(m) => {
            let since = m.node_gone_since.unwrap_or(now);
            let m = SeenMachine { node_gone_since: Some(since), ..m.clone() };
            (now.duration_since(since) < FORGET_AFTER).then(|| m.into())
        }
    });
    let mut all: Vec<Opaque<SeenMachine>> = kept.collect();
    let before = old.iter().filter_map(|o| o.get().ok()).find(|m| is_it(m)).cloned();
    all.extend(machine.map(|new| {
        let scope = new.scope.clone().or(before.and_then(|b| b.scope));
        SeenMachine { scope, ..new }.into()
    }));
    let too_many = all.len().saturating_sub(KEPT);
    all.drain(..too_many);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use reattach_core::testkit::{machine, start};

    fn of(all: &[Opaque<SeenMachine>]) -> Vec<SeenMachine> {
        all.iter().map(|m| m.get().unwrap().clone()).collect()
    }

    fn days(n: i64) -> SignedDuration {
        SignedDuration::from_hours(24 * n)
    }

    #[test]
    fn a_machine_is_kept_for_90_days_after_its_node_went() {
        let first = machine(("n1", "1"));
        let seen = remembered(&[], Some(first.clone()), start());
        assert_eq!(of(&seen), std::slice::from_ref(&first));
        assert_eq!(remembered(&seen, Some(first), start() + days(400)), seen, "nothing to write");
        let gone = remembered(&seen, None, start());
        assert_eq!(of(&gone)[0].node_gone_since, Some(start()));
        assert_eq!(remembered(&gone, None, start() + days(89)), gone);
        assert_eq!(remembered(&gone, None, start() + days(90)), []);
    }

    #[test]
    fn another_machine_of_the_name_does_not_replace_the_first() {
        let seen = remembered(&[], Some(machine(("n1", "1"))), start());
        let new = SeenMachine { node_uid: "another".into(), ..machine(("n1", "2")) };
        let both = of(&remembered(&seen, Some(new.clone()), start()));
        assert_eq!((&both[0].instance, both[0].node_gone_since), (&"1".into(), Some(start())));
        assert_eq!(both[1], new);
    }

    #[test]
    fn a_reboot_changes_the_boot_alone_and_a_known_account_stays() {
        let seen = remembered(&[], Some(machine(("n1", "1"))), start());
        let rebooted = SeenMachine { boot_id: "later".into(), scope: None, ..machine(("n1", "1")) };
        let now = of(&remembered(&seen, Some(rebooted), start()));
        assert_eq!(now, [SeenMachine { boot_id: "later".into(), ..machine(("n1", "1")) }]);
    }

    #[test]
    fn the_newest_sixteen_machines_of_a_name_are_kept() {
        let mut all = Vec::new();
        for n in 0..20 {
            let id = n.to_string();
            all = remembered(&all, Some(machine(("n1", &id))), start());
        }
        let kept = of(&all);
        assert_eq!((kept.len(), &kept[0].instance), (KEPT, &"4".into()));
    }
}
