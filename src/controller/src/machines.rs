//! The machines behind the Nodes, written into `NodeVolumeReport.spec`: a machine whose Node is gone and that still has a
//! volume is known to be this cluster's then, and no other is (safety rule S10).
//!
//! # Guarantees
//! Written on change only, and never from a broken watch. A machine is recorded once its kubelet has shown that it lives: its
//! Node is Ready, says its boot, and the kubelet's Lease was renewed within `LEASE_FRESH`. Anybody who may create a Node can
//! write any `providerID` into it, so a Node alone makes no machine this cluster's. A machine is forgotten [`FORGET_AFTER`]
//! its Node went, and with the last one the report.
//!
//! # Caveats
//! A Node that came and went while no controller ran is not recorded. A user who may create Nodes and also write their
//! status and the Leases of `kube-node-lease` can imitate a kubelet.
//!
//! # Errors
//! What cannot be read or written is logged and tried again with the next sweep.

use crate::recovery::Executor;
use crate::wakeup::{AT_LEAST_EVERY, Wakeup, Woken};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{Api, ResourceExt};
use reattach_api::{NodeVolumeReport, Opaque};
use reattach_cluster::cache::Cache;
use reattach_cluster::effects::node::is_ready;
use reattach_cluster::reports;
use reattach_cluster::view::NODE_LEASES;
use reattach_core::cloud::CloudScope;
use reattach_core::evidence::SeenMachine;
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
/// A kubelet renews its Lease every 10 s, for 40 s each time (its defaults). More is left for clocks that differ.
const LEASE_FRESH: SignedDuration = SignedDuration::from_secs(120);
/// The Lease of a kubelet that did not show that it lives is read again after so long.
const LEASE_READ_AGAIN_AFTER: Duration = Duration::from_secs(15);
/// Reports written in one sweep, and Leases read: a cluster of 5,000 nodes is recorded within ten minutes of an upgrade.
const MOST_WRITES: usize = 50;

/// The namespace whose UID tells clusters apart.
pub(crate) const CLUSTER: &str = "kube-system";

/// What is kept between sweeps.
#[derive(Default)]
pub(crate) struct Machines {
    next: Option<Instant>,
    scopes: BTreeMap<&'static str, (Instant, Option<CloudScope>)>,
    /// Node UIDs whose kubelet has not shown yet that it lives, and when its Lease was read.
    unproven: BTreeMap<Uid, Instant>,
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
        let Some(cluster) = cluster(cache) else {
            return;
        };
        let nodes = cache.nodes.filter(|_| true);
        let known = cache.reports.filter(|_| true);
        let names: BTreeSet<String> = nodes
            .iter()
            .map(|n| n.name_any())
            .chain(known.iter().map(|r| r.name_any()))
            .collect();
        let uids: BTreeSet<Uid> = nodes
            .iter()
            .filter_map(|n| n.uid())
            .map(Uid::from)
            .collect();
        self.unproven.retain(|uid, _| uids.contains(uid));
        let (mut writes, mut reads) = (0, 0);
        for name in names {
            let (node, report) = (cache.nodes.get("", &name), cache.reports.get("", &name));
            let machine = match &node {
                Some(node) => self.machine(executor, node, &cluster).await,
                None => None,
            };
            let old = report
                .as_ref()
                .map_or(&[][..], |r| r.spec.machines.as_slice());
            let machine = match (&node, machine) {
                (Some(node), Some(new)) if !is_known(old, &new) => {
                    let due =
                        is_ready(node) && reads < MOST_WRITES && self.is_lease_due(&new.node_uid);
                    reads += usize::from(due);
                    let lives = due && self.lives(executor, &new, now).await;
                    lives.then_some(new)
                }
                (_, machine) => machine,
            };
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

    async fn forget(
        &self,
        executor: &Executor,
        report: &NodeVolumeReport,
    ) -> Result<(), kube::Error> {
        tracing::info!(
            node = report.name_any(),
            "the report of a node that is gone is deleted: it remembers no machine"
        );
        reports::forget(&executor.collector.clients.records, report).await
    }

    /// The machine behind a Node now. None: no provider knows it, or its kubelet has not said its boot yet.
    async fn machine(
        &mut self,
        executor: &Executor,
        node: &Node,
        cluster: &Uid,
    ) -> Option<SeenMachine> {
        let id = node.spec.as_ref()?.provider_id.as_deref()?;
        let instance = executor.collector.providers.instance(id)?;
        let boot = node
            .status
            .as_ref()?
            .node_info
            .as_ref()
            .map(|i| i.boot_id.clone())?;
        if boot.is_empty() {
            return None;
        }
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

    fn is_lease_due(&self, node: &Uid) -> bool {
        self.unproven
            .get(node)
            .is_none_or(|at| at.elapsed() >= LEASE_READ_AGAIN_AFTER)
    }

    /// Reads the Lease of the node's kubelet: does the kubelet renew it?
    async fn lives(&mut self, executor: &Executor, machine: &SeenMachine, now: Timestamp) -> bool {
        let api: Api<Lease> = Api::namespaced(executor.collector.clients.read.clone(), NODE_LEASES);
        let lease = match api.get_opt(machine.node.as_str()).await {
            Ok(lease) => lease,
            Err(error) => {
                tracing::debug!(node = %machine.node, %error, "the Lease of a kubelet could not be read");
                None
            }
        };
        let lives = lease
            .and_then(|l| l.spec)
            .is_some_and(|lease| is_renewed(&lease, &machine.node, now));
        if lives {
            self.unproven.remove(&machine.node_uid);
        } else {
            self.unproven
                .insert(machine.node_uid.clone(), Instant::now());
        }
        lives
    }

    /// Who answers for the provider of this machine.
    async fn scope(&mut self, executor: &Executor, provider_id: &str) -> Option<CloudScope> {
        let provider = executor.collector.providers.of_instance(provider_id)?;
        let again = |(at, scope): &(Instant, Option<CloudScope>)| {
            scope.is_none() && at.elapsed() >= ASKED_AGAIN_AFTER
        };
        if self.scopes.get(provider.name()).is_none_or(again) {
            let scope = provider.scope().await;
            let scope = scope
                .inspect_err(|error| tracing::debug!(%error, "the account is not known"))
                .ok();
            self.scopes.insert(provider.name(), (Instant::now(), scope));
        }
        self.scopes
            .get(provider.name())
            .and_then(|(_, scope)| scope.clone())
    }
}

/// Does this node's own kubelet hold the Lease, and has it renewed the Lease a moment ago?
fn is_renewed(lease: &LeaseSpec, node: &NodeName, now: Timestamp) -> bool {
    let fresh = |at: &MicroTime| now.duration_since(at.0).abs() <= LEASE_FRESH;
    lease.holder_identity.as_deref() == Some(node.as_str())
        && lease.renew_time.as_ref().is_some_and(fresh)
}

/// Is the same machine behind the same Node in the records?
fn is_known(old: &[Opaque<SeenMachine>], machine: &SeenMachine) -> bool {
    old.iter()
        .filter_map(|o| o.get().ok())
        .any(|m| is_same(m, machine))
}

fn is_same(one: &SeenMachine, other: &SeenMachine) -> bool {
    one.instance == other.instance && one.node_uid == other.node_uid && one.cluster == other.cluster
}

/// What tells this cluster from others: the UID of a namespace that every cluster has from its beginning.
pub(crate) fn cluster(cache: &Cache) -> Option<Uid> {
    cache
        .namespaces
        .get("", CLUSTER)
        .and_then(|n| n.uid())
        .map(Uid::from)
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
    let is_it = |m: &SeenMachine| machine.as_ref().is_some_and(|new| is_same(new, m));
    // What cannot be read was written by another version, which will read it again.
    let kept = old.iter().filter_map(|opaque| match opaque.get() {
        Err(_) => Some(opaque.clone()),
        Ok(m) if is_it(m) => None,
        Ok(m) => {
            let since = m.node_gone_since.unwrap_or(now);
            let m = SeenMachine {
                node_gone_since: Some(since),
                ..m.clone()
            };
            (now.duration_since(since) < FORGET_AFTER).then(|| m.into())
        }
    });
    let mut all: Vec<Opaque<SeenMachine>> = kept.collect();
    let before = old
        .iter()
        .filter_map(|o| o.get().ok())
        .find(|m| is_it(m))
        .cloned();
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
        assert_eq!(
            remembered(&seen, Some(first), start() + days(400)),
            seen,
            "nothing to write"
        );
        let gone = remembered(&seen, None, start());
        assert_eq!(of(&gone)[0].node_gone_since, Some(start()));
        assert_eq!(remembered(&gone, None, start() + days(89)), gone);
        assert_eq!(remembered(&gone, None, start() + days(90)), []);
    }

    #[test]
    fn a_recent_node_lease_shows_a_live_kubelet() {
        let lease = |holder: &str, age: i64| LeaseSpec {
            holder_identity: Some(holder.into()),
            renew_time: Some(MicroTime(start() - SignedDuration::from_secs(age))),
            ..LeaseSpec::default()
        };
        let lives = |lease: &LeaseSpec| is_renewed(lease, &NodeName::from("n1"), start());
        for age in [0, 120, -120] {
            assert!(lives(&lease("n1", age)), "{age} s");
        }
        for (holder, age) in [("n1", 121), ("n1", -121), ("n2", 0), ("", 0)] {
            assert!(!lives(&lease(holder, age)), "{holder}, {age} s");
        }
        assert!(!lives(&LeaseSpec::default()));
    }

    #[test]
    fn another_machine_of_the_name_does_not_replace_the_first() {
        let seen = remembered(&[], Some(machine(("n1", "1"))), start());
        let new = SeenMachine {
            node_uid: "another".into(),
            ..machine(("n1", "2"))
        };
        let both = of(&remembered(&seen, Some(new.clone()), start()));
        assert_eq!(
            (&both[0].instance, both[0].node_gone_since),
            (&"1".into(), Some(start()))
        );
        assert_eq!(both[1], new);
    }

    #[test]
    fn a_reboot_changes_the_boot_alone_and_a_known_account_stays() {
        let seen = remembered(&[], Some(machine(("n1", "1"))), start());
        let rebooted = SeenMachine {
            boot_id: "later".into(),
            scope: None,
            ..machine(("n1", "1"))
        };
        let now = of(&remembered(&seen, Some(rebooted), start()));
        assert_eq!(
            now,
            [SeenMachine {
                boot_id: "later".into(),
                ..machine(("n1", "1"))
            }]
        );
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
