//! Gates, labels of holds, stamps and questions.

use super::{Room, is_final, is_over};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use reattach_api::VolumeRecovery;
use reattach_cluster::stamped::{self, Stamped};
use reattach_cluster::view::claims_of;
use reattach_cluster::{hold, reports, tidy};
use reattach_core::guest::Challenge;
use reattach_core::hold::HOLD_LABEL;
use reattach_core::ids::{NodeName, ObjectName, Uid};
use reattach_core::workload::ScalePath;
use std::collections::BTreeSet;

impl Room<'_> {
    /// Gates of pods for whose claims no recovery speaks, and labels of recoveries that are over.
    pub(super) async fn holds(&self) {
        for recovery in self.cache.recoveries.filter(|r| r.labels().contains_key(HOLD_LABEL) && is_over(r)) {
            let Ok(pass) = self.executor.gate.tidy() else { return };
            let outcome = tidy::unhold(&pass, &recovery).await;
            self.tell(&format!("the hold of recovery {}", recovery.name_any()), &outcome);
        }
        for pod in self.cache.pods.filter(|p| hold::is_gated(p) && !is_bound(p)) {
            let namespace = pod.namespace().unwrap_or_default();
            let seen = self.cache.recoveries.filter(|r| r.namespace().as_ref() == Some(&namespace));
            if seen.iter().any(|r| speaks_for(r, &pod)) {
                continue;
            }
            let api: Api<VolumeRecovery> = Api::namespaced(self.read(), &namespace);
            let live = match api.list(&ListParams::default()).await {
                Ok(live) => live.items,
                Err(error) => return tracing::warn!(%error, "whether a hold is in force could not be read"),
            };
            if live.iter().any(|r| speaks_for(r, &pod)) {
                continue;
            }
            let Ok(pass) = self.executor.gate.tidy() else { return };
            let name = ObjectName::new(namespace, pod.name_any());
            let outcome = tidy::ungate(&pass, &name, &Uid::from(pod.uid().unwrap_or_default())).await;
            self.tell(&format!("the gate of pod {name}"), &outcome);
        }
    }

    /// Workloads whose stamp no recovery leads to any more.
    pub(super) async fn stamps(&self) {
        let found = match stamped::find(&self.read()).await {
            Ok(found) if found.is_empty() => return,
            Ok(found) => found,
            Err(error) => return tracing::warn!(%error, "stamps could not be looked for"),
        };
        // After the stamps: a recovery exists before its stamp does.
        let known = match self.recoveries().await {
            Ok(known) => known,
            Err(error) => return tracing::warn!(%error, "whose the stamps are could not be read"),
        };
        for Stamped { workload, resource_version, replicas, stamp } in found {
            if known.contains(&stamp.recovery) {
                continue;
            }
            // Someone else has set a count already: theirs stands.
            let count = (replicas == 0).then_some(stamp.replicas);
            let Ok(pass) = self.executor.gate.tidy() else { return };
            let path = ScalePath::Replicas;
            let outcome = tidy::restore(&pass, &workload, &resource_version, path, count).await;
            self.tell(&format!("{workload} with the stamp of recovery {}", stamp.recovery), &outcome);
        }
    }

    /// Questions of recoveries that are gone.
    pub(super) async fn questions(&self) {
        let seen: BTreeSet<Uid> = self.cache.recoveries.filter(|_| true).iter().map(|r| uid(r)).collect();
        let mut strange: Vec<(NodeName, Uid)> = Vec::new();
        for report in self.cache.reports.filter(|r| !r.spec.challenges.is_empty()) {
            let asked = report.spec.challenges.iter().filter_map(|c| c.get().ok());
            let gone = asked.map(|c: &Challenge| &c.recovery).filter(|r| !seen.contains(r));
            let node = NodeName::from(report.name_any());
            strange.extend(gone.map(|r| (node.clone(), r.clone())));
        }
        if strange.is_empty() {
            return;
        }
        let known = match self.recoveries().await {
            Ok(known) => known,
            Err(error) => return tracing::warn!(%error, "whose the questions are could not be read"),
        };
        for (node, recovery) in strange.into_iter().filter(|(_, r)| !known.contains(r)) {
            self.withdraw(&node, &recovery).await;
        }
    }

    /// Takes a recovery's question to a node back: our own record. Returns whether it is gone.
    pub(super) async fn withdraw(&self, node: &NodeName, recovery: &Uid) -> bool {
        let _turn = self.executor.reservations.turn_to_ask().await;
        let records = &self.executor.collector.clients.records;
        let withdrawn = reports::withdraw(records, node, recovery).await;
        if let Err(error) = &withdrawn {
            tracing::warn!(%node, %error, "a question could not be withdrawn");
        }
        withdrawn.is_ok()
    }
}

fn uid(recovery: &VolumeRecovery) -> Uid {
    Uid::from(recovery.uid().unwrap_or_default())
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty())
}

/// Whether a recovery that is under way holds a claim of the pod.
fn speaks_for(recovery: &VolumeRecovery, pod: &Pod) -> bool {
    !is_final(recovery)
        && recovery.labels().get(HOLD_LABEL).is_some_and(|v| v == "true")
        && claims_of(pod).contains(&recovery.spec.claim_name)
}
