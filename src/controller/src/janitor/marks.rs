//! Gates, labels of holds and questions.

use super::{EVERY, Sweep, is_final, is_over};
use crate::collect::HISTORY;
use crate::turns::{After, Offer, Turns};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use reattach_api::VolumeRecovery;
use reattach_api::metadata;
use reattach_cluster::effects::hold;
use reattach_cluster::view::claims_of;
use reattach_cluster::{reports, tidy};
use reattach_core::cloud::VolumeState;
use reattach_core::evidence::CsiSource;
use reattach_core::guest::Challenge;
use reattach_core::hold::HOLD_LABEL;
use reattach_core::ids::{DriverName, NodeName, ObjectName, Uid, VolumeHandle};
use reattach_core::run::{State, StepState};
use reattach_core::stamp::STAMP_ANNOTATION;
use reattach_core::steps::StepKind;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum number of volumes that one sweep asks the cloud about for gates without a recovery. The others wait for the next sweep.
const VOLUMES_PER_SWEEP: usize = 20;
/// Gated pods that are read for and freed in one sweep. The janitor's other work waits meanwhile.
const PODS_PER_SWEEP: usize = 50;
/// A sweep over gated pods ends after this time, where the API server is slow.
const SWEEP_ENDS_AFTER: Duration = Duration::from_secs(2);

impl Sweep<'_> {
    /// Gates of pods for whose claims no recovery speaks, and labels of recoveries that are over. Returns whether there are
    /// more of them.
    pub(super) async fn holds(&self, gates: &mut Turns) -> bool {
        for recovery in self
            .cache
            .recoveries
            .filter(|r| r.labels().contains_key(HOLD_LABEL) && is_over(r))
        {
            let Ok(pass) = self.executor.gate.tidy() else {
                return false;
            };
            let outcome = tidy::unhold(&pass, &recovery).await;
            self.tell(
                &format!("the hold of recovery {}", recovery.name_any()),
                &outcome,
            );
        }
        let gated = self.cache.pods.named(|p| hold::is_gated(p) && !is_bound(p));
        gates.offer(gated.into_iter().map(|(name, _)| (name, Offer::default())));
        let begun = Instant::now();
        let mut asked = BTreeMap::new();
        let mut read = 0;
        while let Some(name) = gates.next(Instant::now()) {
            if let Some(pod) = self.cache.pods.get(&name.namespace, &name.name)
                && self.ungate(&name, &pod, &mut asked).await
            {
                read += 1;
            }
            // Until the watch tells that the gate is gone, or a recovery speaks for it no more.
            gates.ended(&name, After::Rest(EVERY), Instant::now());
            let enough = read >= PODS_PER_SWEEP || begun.elapsed() >= SWEEP_ENDS_AFTER;
            if enough || self.wakeup.is_told_to_stop() {
                return true;
            }
        }
        false
    }

    /// Takes the gate off a pod that no recovery speaks for. Returns whether anything was asked for it.
    async fn ungate(
        &self,
        name: &ObjectName,
        pod: &Pod,
        asked: &mut BTreeMap<Vec<ObjectName>, Option<String>>,
    ) -> bool {
        let seen = self
            .cache
            .recoveries
            .filter(|r| r.metadata.namespace.as_ref() == Some(&name.namespace));
        if seen.iter().any(|r| speaks_for(r, pod)) {
            return false;
        }
        let api: Api<VolumeRecovery> = Api::namespaced(self.read(), &name.namespace);
        let live = match api.list(&ListParams::default()).await {
            Ok(live) => live.items,
            Err(error) => {
                tracing::warn!(pod = %name, %error, "whether a hold is in force could not be read");
                return true;
            }
        };
        if live.iter().any(|r| speaks_for(r, pod)) {
            return true;
        }
        // Many pods may wait for one volume: it is asked about once.
        let claims: Vec<ObjectName> = claims_of(pod)
            .into_iter()
            .map(|c| ObjectName::new(name.namespace.as_str(), c))
            .collect();
        if !asked.contains_key(&claims) {
            if asked.len() >= VOLUMES_PER_SWEEP {
                return true;
            }
            let answer = match self
                .ordered(|note| claims.iter().any(|c| note.may_be_about(c)))
                .await
            {
                Some(why) => Some(why),
                None => self.detach_under_way(&claims, false).await,
            };
            asked.insert(claims.clone(), answer);
        }
        if let Some(why) = asked.get(&claims).and_then(Option::as_ref) {
            tracing::error!(
                pod = name.name,
                namespace = name.namespace,
                why,
                "a person is needed: a recovery that is gone holds the pod, and the pod is not released yet"
            );
            return true;
        }
        let Ok(pass) = self.executor.gate.tidy() else {
            return true;
        };
        let uid = match metadata::of(pod).uid() {
            Ok(uid) => uid,
            Err(error) => {
                tracing::warn!(pod = %name, %error, "the gate of a pod is left");
                return true;
            }
        };
        let outcome = tidy::ungate(&pass, name, &uid).await;
        self.tell(&format!("the gate of pod {name}"), &outcome);
        true
    }

    /// Why a detach of a volume behind these claims is, or may be, under way at the cloud. A driver that no provider knows has
    /// none of ours. A claim or PersistentVolume that is gone has none for a pod that needs both of them to start. Where
    /// `one_known` is asked for and none of the claims leads to a volume any more, it is not known what is under way.
    pub(super) async fn detach_under_way(
        &self,
        claims: &[ObjectName],
        one_known: bool,
    ) -> Option<String> {
        let volume_of = |claim: &ObjectName| {
            let claim = self.cache.claims.get(&claim.namespace, &claim.name)?;
            self.cache
                .volumes
                .get("", claim.spec.as_ref()?.volume_name.as_ref()?)
        };
        if let Some(claim) = claims.first().filter(|_| one_known)
            && claims.iter().all(|claim| volume_of(claim).is_none())
        {
            return Some(format!(
                "claim {claim} or its PersistentVolume was not found, so it is not known what is under way at its volume. Once you are sure that nothing is: scale the workload by hand, and remove annotation {STAMP_ANNOTATION}"
            ));
        }
        for claim in claims {
            let volume = volume_of(claim);
            let Some(csi) = volume.and_then(|v| csi_of(&v)) else {
                continue;
            };
            let located = match self.executor.collector.providers.locate(&csi) {
                Ok(Some(located)) => located,
                Ok(None) => continue,
                Err(error) => {
                    return Some(format!("the volume of claim {claim} is not known: {error}"));
                }
            };
            let now = || self.executor.collector.clock.now();
            let since = now().saturating_sub(HISTORY).unwrap_or(Timestamp::MIN);
            let (jobs, volume) = (
                located.jobs(since, now).await,
                located.describe(now(), now).await,
            );
            let pending = jobs
                .shown()
                .map(|jobs| jobs.iter().find(|j| j.is_pending()));
            match (pending, volume.shown().map(|v| &v.state)) {
                (Some(None), Some(VolumeState::Active)) => {}
                (Some(Some(job)), _) => {
                    return Some(format!(
                        "job {} ({}) of volume {} is pending",
                        job.id, job.action, located.id
                    ));
                }
                (Some(None), Some(state)) => {
                    return Some(format!("volume {} is {state}", located.id));
                }
                (None, _) | (_, None) => {
                    return Some(format!(
                        "what is under way at volume {} could not be read",
                        located.id
                    ));
                }
            }
        }
        None
    }

    /// Questions of recoveries that are gone.
    pub(super) async fn questions(&self) {
        let seen = self.cache.recoveries.uids(|_| true);
        let mut strange: Vec<(NodeName, Uid)> = Vec::new();
        for report in self.cache.reports.filter(|r| !r.spec.challenges.is_empty()) {
            let asked = report.spec.challenges.iter().filter_map(|c| c.get().ok());
            let gone = asked
                .map(|c: &Challenge| &c.recovery)
                .filter(|r| !seen.contains(r));
            let node = NodeName::from(report.name_any());
            strange.extend(gone.map(|r| (node.clone(), r.clone())));
        }
        if strange.is_empty() {
            return;
        }
        let known = match self.recoveries().await {
            Ok(known) => known,
            Err(error) => {
                return tracing::warn!(%error, "the recoveries of the challenges could not be listed");
            }
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

fn csi_of(volume: &PersistentVolume) -> Option<CsiSource> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    Some(CsiSource {
        driver: DriverName::from(csi.driver.as_str()),
        handle: VolumeHandle::from(csi.volume_handle.as_str()),
    })
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref())
        .is_some_and(|n| !n.is_empty())
}

/// Whether a recovery that is under way holds a claim of the pod, or is about to remove the gate itself.
fn speaks_for(recovery: &VolumeRecovery, pod: &Pod) -> bool {
    !is_final(recovery)
        && claims_of(pod).contains(&recovery.spec.claim_name)
        && (recovery
            .labels()
            .get(HOLD_LABEL)
            .is_some_and(|v| v == "true")
            || lifts(recovery))
}

/// Whether the run's next step about its hold is to end it: the label goes first, and the gates in the same step.
fn lifts(recovery: &VolumeRecovery) -> bool {
    let Some(plan) = recovery.sound_plan() else {
        return false;
    };
    let Ok((_, journal)) = recovery.history() else {
        return false;
    };
    let Ok(state) = State::replay(&plan, journal) else {
        return false;
    };
    let lift = plan.find(StepKind::Lift).map(|ix| state.step(ix));
    state.in_force(&plan, StepKind::Hold) && !matches!(lift, None | Some(StepState::Closed { .. }))
}
