//! Our taints on Nodes.

use super::{Sweep, is_final};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};
use reattach_api::{NodeVolumeReport, VolumeRecovery, metadata};
use reattach_cluster::effects::node::{
    closed_by, is_out_of_service_by_us, is_ready, quarantined_by,
};
use reattach_cluster::effects::node_lock::{self, Lock};
use reattach_cluster::open_orders::Note;
use reattach_cluster::{reports, store, tidy};
use reattach_core::evidence::CsiSource;
use reattach_core::guest::{Answer, Challenge};
use reattach_core::ids::{DriverName, NodeName, ObjectName, Uid, VolumeHandle};
use std::sync::Arc;
use std::time::Duration;

/// An agent answers each question once. Where it saw a device or a mount it is asked again after this time: the device may have
/// been on its way out.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(60);

impl Sweep<'_> {
    /// The out-of-service taint goes at once from a Node that is Ready: the attach/detach controller pulls volumes that are
    /// mounted there (measured).
    pub(super) async fn ready_again(&self) {
        for node in self
            .cache
            .nodes
            .filter(|n| is_out_of_service_by_us(n) && is_ready(n))
        {
            self.untaint(&node, "it is Ready").await;
        }
    }

    /// Taints whose lock or recovery is no more.
    pub(super) async fn out_of_service(&self) {
        for node in self
            .cache
            .nodes
            .filter(|n| is_out_of_service_by_us(n) && !is_ready(n))
        {
            let name = NodeName::from(node.name_any());
            let (locks, now) = (
                self.executor.gate.locks(),
                self.executor.collector.clock.now(),
            );
            let lock = match node_lock::read(&self.read(), locks, &name, now).await {
                Ok(lock) => lock,
                Err(error) => {
                    tracing::warn!(node = %name, %error, "the lock of a tainted node could not be read");
                    continue;
                }
            };
            let why = match lock {
                Lock::Free => "no recovery has the node's lock".to_owned(),
                // A run renews its lock with its first turn, and a new leader has just begun to drive it.
                Lock::Expired { holder } if self.has_a_run(&holder) => continue,
                Lock::Expired { holder } if self.has_ordered(&holder).await => continue,
                Lock::Expired { holder } => format!("the lock of {holder} has expired"),
                Lock::Held { holder } => match node_lock::recovery_of(&holder) {
                    None => format!("{holder} has the node's lock"),
                    Some(recovery) => match self.ended(&recovery).await {
                        Ok(Some(why)) => {
                            self.untaint(&node, &why).await;
                            self.give_back(&name, &recovery).await;
                            continue;
                        }
                        Ok(None) => continue,
                        Err(error) => {
                            tracing::warn!(node = %name, %error, "the recovery of a taint could not be read");
                            continue;
                        }
                    },
                },
            };
            self.untaint(&node, &why).await;
        }
    }

    /// Why a recovery will do nothing more; `None`: it is under way.
    async fn ended(&self, name: &ObjectName) -> Result<Option<String>, kube::Error> {
        let api: Api<VolumeRecovery> = Api::namespaced(self.read(), &name.namespace);
        Ok(match api.get_opt(&name.name).await? {
            None if self.has_ordered(&node_lock::holder(name)).await => None,
            None => Some(format!("recovery {name} is gone")),
            Some(recovery) if is_final(&recovery) => Some(format!("recovery {name} is over")),
            Some(_) => None,
        })
    }

    /// Whether the holder of a lock is a recovery with a run under way.
    fn has_a_run(&self, holder: &str) -> bool {
        let recovery = node_lock::recovery_of(holder);
        let recovery = recovery.and_then(|r| self.cache.recoveries.get(&r.namespace, &r.name));
        recovery.is_some_and(|r| {
            !is_final(&r)
                && r.status
                    .as_ref()
                    .is_some_and(|status| !status.journal.is_empty())
        })
    }

    /// Whether an order to the cloud is open of the recovery that holds a lock, and whose record is gone.
    async fn has_ordered(&self, holder: &str) -> bool {
        let Some(recovery) = node_lock::recovery_of(holder) else {
            return false;
        };
        let about = |note: &Note| {
            note.order
                .as_ref()
                .map_or(true, |order| order.recovery == recovery)
        };
        let why = self.ordered(about).await;
        if let Some(why) = &why {
            tracing::warn!(%recovery, why, "the taint of a recovery that is gone stays");
        }
        why.is_some()
    }

    /// The recovery of this UID, as the watch has it.
    fn recovery_of(&self, uid: &Uid) -> Option<Arc<VolumeRecovery>> {
        self.cache
            .recoveries
            .filter(|r| r.metadata.uid.as_deref() == Some(uid.as_str()))
            .into_iter()
            .next()
    }

    /// Whether no recovery has this UID, read live: the watch of the recoveries may lag behind the one of the nodes.
    async fn is_gone(&self, uid: &Uid) -> bool {
        match self.recoveries().await {
            Ok(known) => !known.contains(uid),
            Err(error) => {
                tracing::warn!(%error, "the recovery of a taint could not be read");
                false
            }
        }
    }

    async fn untaint(&self, node: &Node, why: &str) {
        let Ok(pass) = self.executor.gate.tidy() else {
            return;
        };
        let name = NodeName::from(node.name_any());
        let Some(uid) = uid_of_node(node) else { return };
        let outcome = tidy::untaint(&pass, &name, &uid).await;
        self.tell(
            &format!("the out-of-service taint of node {name} ({why})"),
            &outcome,
        );
    }

    async fn give_back(&self, node: &NodeName, recovery: &ObjectName) {
        let Ok(pass) = self.executor.gate.tidy() else {
            return;
        };
        let outcome = tidy::release_lock(&pass, node, recovery).await;
        self.tell(&format!("the lock of node {node}"), &outcome);
    }

    /// Quarantines that are over; and the question that a late agent has to answer for it.
    pub(super) async fn quarantines(&self) {
        for node in self.cache.nodes.filter(|n| quarantined_by(n).is_some()) {
            let Some(by) = quarantined_by(&node) else {
                continue;
            };
            let report = self.cache.reports.get("", &node.name_any());
            let own = self.recovery_of(&by);
            let over = own.as_ref().is_none_or(|r| is_final(r));
            // Only the question that is open counts, and it has a number of its own.
            let open = report.as_ref().and_then(|r| question_of(r, &by));
            let question = own
                .as_ref()
                .filter(|r| over && !r.spec.claim_name.is_empty());
            let again = |open| {
                report
                    .as_ref()
                    .is_some_and(|r| self.answered_long_ago(r, &node, open))
            };
            let unaskable = match question.filter(|_| open.is_none_or(again)) {
                Some(recovery) => !self.ask(&node, recovery).await,
                None => own.is_none(),
            };
            let clean = match (&report, unaskable) {
                (Some(report), false) => {
                    open.is_some_and(|open| answered_clean(report, &node, open))
                }
                (Some(report), true) => shows_no_dead_mount(report, &node),
                (None, _) => false,
            };
            if !is_ready(&node) || !clean {
                continue;
            }
            if own.is_none() && !self.is_gone(&by).await {
                continue;
            }
            self.unquarantine(&node, &by, over).await;
        }
    }

    /// Closing taints whose recovery will not take them off any more.
    pub(super) async fn closed_nodes(&self) {
        for node in self.cache.nodes.filter(|n| !closed_by(n).is_empty()) {
            for by in closed_by(&node) {
                let over = match self.recovery_of(&by) {
                    Some(own) => is_final(&own),
                    None => {
                        self.is_gone(&by).await
                            && self.ordered(|note| note.recovery == by).await.is_none()
                    }
                };
                if !over {
                    continue;
                }
                let Ok(pass) = self.executor.gate.tidy() else {
                    return;
                };
                let Some(uid) = uid_of_node(&node) else {
                    continue;
                };
                let name = NodeName::from(node.name_any());
                let outcome = tidy::open(&pass, &name, &uid, &by).await;
                self.tell(
                    &format!("the closing taint of recovery {by} on node {name}"),
                    &outcome,
                );
            }
        }
    }

    /// Whether the agent answered something else than "clean" some time ago.
    fn answered_long_ago(&self, report: &NodeVolumeReport, node: &Node, open: &Challenge) -> bool {
        let name = NodeName::from(node.name_any());
        let old = |a: &Answer| self.answers.seen_for(&name, a) >= ASKED_AGAIN_AFTER;
        answer_to(report, node, open).is_some_and(|a| !a.is_clean() && old(a))
    }

    async fn unquarantine(&self, node: &Node, by: &Uid, over: bool) {
        let name = NodeName::from(node.name_any());
        // The question first: after a crash in between the quarantine is there, and asks again.
        if over && !self.withdraw(&name, by).await {
            return;
        }
        let Ok(pass) = self.executor.gate.tidy() else {
            return;
        };
        let Some(uid) = uid_of_node(node) else { return };
        let outcome = tidy::unquarantine(&pass, &name, &uid, by).await;
        self.tell(
            &format!("the quarantine of node {name}, which is clean"),
            &outcome,
        );
    }

    /// Asks for a recovery that is over, under a new number. Returns whether it can be asked at all.
    async fn ask(&self, node: &Node, recovery: &Arc<VolumeRecovery>) -> bool {
        let Some(plan) = recovery.sound_plan() else {
            return false;
        };
        let csi = self
            .cache
            .volumes
            .filter(|v| v.uid().as_deref() == Some(plan.pins.pv.as_str()));
        let csi = csi
            .first()
            .and_then(|v| v.spec.as_ref()?.csi.as_ref())
            .map(|c| CsiSource {
                driver: DriverName::from(c.driver.as_str()),
                handle: VolumeHandle::from(c.volume_handle.as_str()),
            });
        let Some(CsiSource { driver, handle }) = csi else {
            return false;
        };
        let identity = plan.pins.identity.clone();
        let mut raised = VolumeRecovery::clone(recovery);
        let status = raised.status.get_or_insert_default();
        status.epoch += 1;
        let epoch = u64::try_from(status.epoch).unwrap_or(0);
        let records = &self.executor.collector.clients.records;
        let stored = match store::save(records, &raised).await {
            Ok(stored) => stored,
            Err(error) => {
                tracing::debug!(%error, "the number of a challenge could not be stored; the agent is asked later");
                return true;
            }
        };
        let challenge = Challenge {
            recovery: stored.uid().clone(),
            epoch,
            identity,
            driver,
            handle,
        };
        let _turn = self.executor.reservations.turn_to_ask().await;
        if let Err(error) =
            reports::ask(records, &NodeName::from(node.name_any()), &challenge).await
        {
            tracing::warn!(node = node.name_any(), %error, "a node in quarantine could not be asked");
        }
        true
    }
}

fn question_of<'a>(report: &'a NodeVolumeReport, recovery: &Uid) -> Option<&'a Challenge> {
    report
        .spec
        .challenges
        .iter()
        .filter_map(|c| c.get().ok())
        .find(|c| c.recovery == *recovery)
}

fn boot_of(node: &Node) -> Option<&str> {
    node.status
        .as_ref()?
        .node_info
        .as_ref()
        .map(|i| i.boot_id.as_str())
}

/// What the agent of the Node's boot answered to this question.
fn answer_to<'a>(
    report: &'a NodeVolumeReport,
    node: &Node,
    open: &Challenge,
) -> Option<&'a Answer> {
    let said = report.said().ok()?;
    said.answers.into_iter().find(|a| {
        a.recovery == open.recovery
            && a.epoch == open.epoch
            && a.identity == open.identity
            && Some(a.boot_id.as_str()) == boot_of(node)
    })
}

/// Whether the agent of the Node's boot answered this question with nothing that can write.
fn answered_clean(report: &NodeVolumeReport, node: &Node, open: &Challenge) -> bool {
    answer_to(report, node, open).is_some_and(|a| a.is_clean())
}

/// Whether the agent of the Node's boot reported, could read everything, and saw no dead mount.
fn shows_no_dead_mount(report: &NodeVolumeReport, node: &Node) -> bool {
    let Some(seen) = report.said().ok().and_then(|said| said.inventory) else {
        return false;
    };
    Some(seen.boot_id.as_str()) == boot_of(node)
        && seen.unreadable.is_empty()
        && !seen
            .csi_volumes
            .iter()
            .flat_map(|v| &v.mounts)
            .any(|m| m.dead)
}

/// Returns the UID of a Node. A Node without one is logged, and its taints are left, because no write can be bound to it.
fn uid_of_node(node: &Node) -> Option<Uid> {
    metadata::of(node)
        .uid()
        .inspect_err(|error| tracing::warn!(%error, "a taint of ours is left"))
        .ok()
}
