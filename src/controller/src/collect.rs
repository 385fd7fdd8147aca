//! Collecting evidence: Kubernetes objects (from the watches or live), the owning workload, the cloud.

mod identity;
mod neighbours;

use crate::neighbours::Neighbours;
use crate::providers::{Located, Providers, SHARED_AT_ONCE_FOR, SHARED_FOR};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use reattach_api::StoredRecovery;
use reattach_cluster::budgets;
use reattach_cluster::cache::Cache;
use reattach_cluster::effects::hold;
use reattach_cluster::view::View;
use reattach_cluster::workloads::{self, Detail, Owner};
use reattach_cluster::{Clients, Clock, dry_run, facts};
use reattach_core::cloud::{CloudScope, InstanceObservation};
use reattach_core::diagnosis::{Verdict, diagnose};
use reattach_core::evidence::{Declaration, Evidence, Word};
use reattach_core::fact::{Fact, Source};
use reattach_core::identity::binding_in;
use reattach_core::ids::{InstanceId, NodeName, ObjectName, Uid};
use reattach_core::plain;
use reattach_core::plan::{Pins, Plan};
use reattach_core::runbook::Holding;
use reattach_core::steps::StepKind;
use reattach_provider_api::HandleError;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How far back the provider's histories are read, of a volume's jobs and of an instance's power: a detach may be under way
/// for days, and a person may have shut the instance down long ago.
pub(crate) const HISTORY: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub enum Needs<'a> {
    /// For a diagnosis: no workload.
    Diagnose,
    /// For a plan: the workload with everything that stands against changing it.
    Plan,
    /// The same for a plan that begins now: answers of the cloud are shared with looks of the same moment alone.
    Begin,
    /// For the next step of a plan that runs; live reads only, if `live`.
    Execute {
        /// The plan.
        plan: &'a Plan,
        /// Whether a change to the workload or its pods is being weighed: everything that stands against it is needed.
        changing: bool,
        /// Whether the hold is probed by a dry-run create.
        probing: bool,
        /// Whether the provider's job history is needed (around a detach of ours).
        jobs: bool,
        /// The recovery whose snapshots are needed, which carry its UID as their label. None: they are not needed.
        snapshots: Option<&'a Uid>,
        /// No answer of the cloud from before this moment is of use: the journal's last line, or the change that made
        /// this look due.
        since: Timestamp,
        /// Right before an effect: read everything anew.
        live: bool,
    },
}

/// What the record of a recovery adds to the evidence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecoveryContext {
    /// The challenge that is open: the recovery's UID and the epoch.
    pub asked: Option<(Uid, u64)>,
    /// What it saw of instances before, oldest first.
    pub sightings: Vec<InstanceObservation>,
    /// A person's word that a holder cannot write.
    pub declaration: Option<Declaration>,
    /// A person's word that nothing which it ordered is under way.
    pub nothing_under_way: Option<Word>,
}

impl RecoveryContext {
    /// Of this recovery. A sighting that cannot be read is none.
    pub fn of(recovery: &StoredRecovery) -> Self {
        let status = recovery.status.as_ref();
        let epoch = status
            .and_then(|s| u64::try_from(s.epoch).ok())
            .filter(|epoch| *epoch > 0);
        let sightings = status
            .iter()
            .flat_map(|s| &s.sightings)
            .filter_map(|s| s.get().ok().cloned());
        let declaration = recovery.spec.declaration.as_ref().map(|d| Declaration {
            holder: InstanceId::from(d.holder.as_str()),
            by: plain::line(&d.declared_by, plain::SENTENCE_CHARS),
            reason: plain::sentence(&d.reason, plain::SENTENCE_CHARS),
            at: d.at.0,
            of_this_cluster: d.of_this_cluster,
            cluster_wide: false,
        });
        let nothing_under_way = recovery.spec.nothing_under_way.as_ref().map(|w| Word {
            by: w.declared_by.clone(),
            reason: w.reason.clone(),
            at: w.at.0,
        });
        let asked = epoch.map(|epoch| (recovery.uid().clone(), epoch));
        Self {
            asked,
            sightings: sightings.collect(),
            declaration,
            nothing_under_way,
        }
    }
}

/// Collects evidence. Without a cache every collection reads live, as the command line does.
#[derive(Clone)]
pub struct Collector {
    /// The clients.
    pub clients: Clients,
    /// The watches, if this process has them.
    pub cache: Option<Cache>,
    /// The providers.
    pub providers: Providers,
    /// The clock.
    pub clock: Clock,
    /// What this process remembers of other nodes and workloads.
    pub neighbours: Neighbours,
}

impl Collector {
    /// Everything about one claim; for a recovery with what its record adds.
    ///
    /// # Errors
    /// A Kubernetes read that failed; nothing may be concluded then. Failures of the cloud are facts, not errors.
    pub async fn collect(
        &self,
        claim: &ObjectName,
        own: Option<RecoveryContext>,
        needs: Needs<'_>,
    ) -> Result<Evidence, kube::Error> {
        let RecoveryContext {
            asked,
            sightings,
            declaration,
            nothing_under_way,
        } = own.unwrap_or_default();
        let live = is_live(needs);
        let pinned = pinned(needs);
        let (mut view, at) = match &self.cache {
            Some(cache) if !live => (View::cached(cache, claim, pinned), cache.as_of()),
            _ => {
                let at = self.clock.now();
                (View::live(&self.clients.read, claim, pinned).await?, at)
            }
        };
        if matches!(needs, Needs::Execute { .. }) && view.leases.is_empty() {
            view.read_leases(&self.clients.read).await?;
        }
        let resolve = |id: &str| self.providers.instance(id);
        let mut evidence = facts::evidence(claim, &view, asked, &resolve, at);
        evidence.sightings = sightings;
        evidence.declaration = declaration;
        evidence.nothing_under_way = nothing_under_way;
        // Nothing is looked up for a claim that has no right to the volume that it names. In the course of a run what was
        // done with the volume has an end to be seen, whatever became of the claim.
        let executing = matches!(needs, Needs::Execute { .. });
        if !executing && binding_in(evidence.at(self.clock.now())).is_err() {
            evidence.collected_at = self.clock.now();
            return Ok(evidence);
        }
        self.add_workload(&mut evidence, &view, needs).await?;
        self.add_cloud(&mut evidence, needs).await?;
        if !matches!(needs, Needs::Diagnose) {
            self.add_node_pods(&mut evidence, needs).await?;
        }
        evidence.collected_at = self.clock.now();
        Ok(evidence)
    }

    async fn add_workload(
        &self,
        e: &mut Evidence,
        view: &View,
        needs: Needs<'_>,
    ) -> Result<(), kube::Error> {
        // Who else owns the count matters only where the count is changed, and the policy only to a hold.
        let (remembered, full, policy, probed) = match needs {
            Needs::Diagnose => return Ok(()),
            Needs::Plan | Needs::Begin => (None, true, true, true),
            Needs::Execute {
                plan,
                changing,
                probing,
                ..
            } => {
                let holding = plan.holding();
                let (scales, by_gate) = (holding == Holding::AtZero, holding == Holding::ByGate);
                (
                    Some(&plan.pins.workload),
                    changing && scales,
                    changing && by_gate,
                    changing || probing,
                )
            }
        };
        let detail = if full { Detail::Full } else { Detail::Count };
        if policy {
            e.hold_policy = Some(hold::policy(&self.clients.read, self.clock.now()).await);
        }
        if evicts(needs) {
            let now = self.clock.now();
            let pods = e.pods.shown().map_or(&[][..], Vec::as_slice);
            e.budgets = Some(budgets::read(&self.clients.read, view, pods, now).await);
        }
        let source = Source::Kubernetes("the owning workload".to_owned());
        let found =
            workloads::read(&self.clients.read, view, &e.claim_name, remembered, detail).await?;
        e.workload = match found {
            Owner::Workload(mut workload) => {
                if probed {
                    let clients = &self.clients;
                    let (records, read) = (&clients.records, &clients.read);
                    let answer =
                        dry_run::pod(records, read, &workload.workload, &e.claim_name).await?;
                    workload.pod_dry_run = Some(answer.accepted);
                    workload.dry_run_held = answer.held;
                }
                Fact::present(*workload, source, self.clock.now())
            }
            Owner::None => Fact::absent(source, self.clock.now()),
            // Not absent: something may well make new pods.
            Owner::Unreadable { why } => Fact::unknown(why, source, self.clock.now()),
        };
        Ok(())
    }

    /// The evidence's volume at its provider. In the course of a run it is the one that the plan pins, also after everything in
    /// the cluster that leads there is gone; then with the scope in which the recovery saw the holder before.
    ///
    /// # Errors
    /// A provider knows the driver and cannot read the handle.
    pub(crate) async fn locate(
        &self,
        e: &Evidence,
        pins: Option<&Pins>,
    ) -> Result<Option<(Located, Option<CloudScope>)>, HandleError> {
        let volume = e.volume.shown();
        let by_handle = match volume.and_then(|v| v.csi.as_ref()) {
            Some(csi) => self.providers.locate(csi),
            None => Ok(None),
        };
        let pins = match pins {
            Some(pins) if volume.is_none_or(|v| v.uid != pins.pv) => pins,
            _ => return Ok(by_handle?.map(|located| (located, None))),
        };
        // Another PersistentVolume, or none: what was done is read at the volume that it was done to.
        if let Ok(Some(located)) = by_handle
            && located.id == pins.volume
        {
            return Ok(Some((located, None)));
        }
        let seen = e.sightings.iter().filter(|s| s.instance == pins.holder);
        let scopes: Vec<&CloudScope> = seen.map(|s| &s.scope).collect();
        let since = self
            .clock
            .now()
            .saturating_sub(SHARED_AT_ONCE_FOR)
            .unwrap_or(Timestamp::MIN);
        Ok(self
            .providers
            .locate_again(&pins.volume, &scopes, since, || self.clock.now())
            .await)
    }

    async fn add_cloud(&self, e: &mut Evidence, needs: Needs<'_>) -> Result<(), kube::Error> {
        let now = || self.clock.now();
        let (located, scope) = match self.locate(e, pinned(needs)).await {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(()),
            Err(error) => {
                e.unreadable_handle = Some(error.to_string());
                e.cloud_volume =
                    Fact::unknown(error.to_string(), Source::Cloud("none".to_owned()), now());
                return Ok(());
            }
        };
        e.cloud_scope = scope;
        let shared_for = |time| now().saturating_sub(time).unwrap_or(Timestamp::MIN);
        let since = match needs {
            Needs::Execute { live: true, .. } => now(),
            Needs::Execute { since, .. } => since.max(shared_for(SHARED_AT_ONCE_FOR)),
            Needs::Begin => shared_for(SHARED_AT_ONCE_FOR),
            Needs::Diagnose | Needs::Plan => shared_for(SHARED_FOR),
        };
        let located = match needs {
            Needs::Execute { live: true, .. } => located.before_effects(),
            Needs::Execute { live: false, .. } | Needs::Diagnose | Needs::Plan | Needs::Begin => {
                located
            }
        };
        let expire = located.provider().orders_expire_after();
        e.orders_expire_after_seconds = expire.and_then(|d| i64::try_from(d.as_secs()).ok());
        e.cloud_id = Some(located.id.clone());
        e.cloud_volume = located.describe(since, now).await;
        self.add_nodes_of_machines(e, needs).await?;
        self.add_machines(e, needs).await?;
        self.add_identity(e, &located, needs).await?;
        let jobs = match needs {
            Needs::Diagnose => false,
            // Linode names the holder before its attach has ended: such a volume looks like one that its guest has lost.
            Needs::Plan | Needs::Begin => {
                matches!(diagnose(e.at(now())).verdict, Verdict::Ours { .. })
            }
            // In the course of a run the volume may be detaching, which is no trouble by itself; its jobs count then, too.
            Needs::Execute { changing, jobs, .. } => changing || jobs,
        };
        self.add_power(e, &located, since, needs).await;
        if jobs {
            let since = now().saturating_sub(HISTORY).unwrap_or(Timestamp::MIN);
            e.jobs = located.jobs(since, now).await;
        }
        if let Needs::Execute {
            snapshots: Some(recovery),
            ..
        } = needs
        {
            e.snapshots = Some(located.snapshots(recovery.as_str(), now).await);
        }
        Ok(())
    }

    /// Every pod on each node that is not Ready and is, or may be, a holder: what an effect on the whole node reaches.
    async fn add_node_pods(&self, e: &mut Evidence, needs: Needs<'_>) -> Result<(), kube::Error> {
        let mut names: BTreeSet<NodeName> = e
            .attachments
            .shown()
            .into_iter()
            .flatten()
            .map(|a| a.node.clone())
            .collect();
        if let Needs::Execute { plan, .. } = needs {
            names.insert(plan.pins.node.clone());
        }
        let holders = e.cloud_volume.shown().into_iter().flat_map(|v| &v.holders);
        names.extend(holders.filter_map(|h| e.node_of_instance(h).cloned()));
        let down = |n: &NodeName| {
            e.nodes
                .get(n)
                .is_some_and(|f| !f.shown().is_some_and(|n| n.ready))
        };
        names.retain(down);
        if names.is_empty() {
            return Ok(());
        }
        let live = is_live(needs);
        let (down, at) = self.down(live).await?;
        e.down = Some(Fact::present(
            down,
            Source::Kubernetes("Nodes".to_owned()),
            at,
        ));
        for node in names {
            let source = Source::Kubernetes(format!("Pods on {node}"));
            let (pods, at) = match &self.cache {
                Some(cache) if !live => {
                    let bound = |p: &Pod| {
                        p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node.as_str())
                    };
                    (cache.pods.filter(bound), cache.as_of())
                }
                _ => {
                    let at = self.clock.now();
                    let bound = ListParams::default().fields(&format!("spec.nodeName={node}"));
                    let pods = Api::<Pod>::all(self.clients.read.clone())
                        .list(&bound)
                        .await?
                        .items;
                    (pods.into_iter().map(Arc::new).collect(), at)
                }
            };
            let names = facts::names(pods.iter().map(AsRef::as_ref))?;
            e.node_pods
                .insert(node.clone(), Fact::present(names, source.clone(), at));
            let lost = self.losses_of(&pods, live).await?;
            e.node_losses
                .insert(node.clone(), Fact::present(lost, source, at));
            let source = Source::Kubernetes(format!("the claims of the pods on {node}"));
            let mut claims = self.claims_of_pods(&pods, live).await?;
            // A volume stays attached after its pod: deleted by force, or evicted from a node that never said so.
            let attached = self.claims_attached_to(&node, &claims, live).await?;
            claims.extend(attached);
            claims.sort();
            claims.dedup();
            e.node_claims
                .insert(node, Fact::present(claims, source, at));
        }
        Ok(())
    }

    /// What the cloud says of holders for which no kubelet may be able to speak: what the proofs *gone* and *off* rest
    /// on.
    async fn add_power(
        &self,
        e: &mut Evidence,
        located: &Located,
        since: Timestamp,
        needs: Needs<'_>,
    ) {
        let now = || self.clock.now();
        let mut ids = unspoken_for(e, now());
        // What became of the power is asked for after the volume is free, too.
        if let Needs::Execute { plan, .. } = needs
            && [StepKind::PowerOff, StepKind::PowerOn, StepKind::KeepOff]
                .into_iter()
                .any(|kind| plan.find(kind).is_some())
            && !ids.contains(&plan.pins.holder)
        {
            ids.push(plan.pins.holder.clone());
        }
        if ids.is_empty() {
            return;
        }
        let history = now().saturating_sub(HISTORY).unwrap_or(Timestamp::MIN);
        // The scope is asked for first. If the rate limit holds it back, it holds back the others, too, whose facts say so.
        let (scope, instances, power) = tokio::join!(
            located.scope(since, now),
            located.instances(&ids, since, now),
            located.power(&ids, history, since, now)
        );
        e.instances = instances;
        e.power = power;
        e.cloud_scope = scope
            .inspect_err(
                |error| tracing::debug!(%error, "the scope of the cloud's answers is not known"),
            )
            .ok();
    }
}

/// Whether a pod may be evicted by what is planned or done: PodDisruptionBudgets then count.
fn evicts(needs: Needs<'_>) -> bool {
    match needs {
        Needs::Diagnose => false,
        Needs::Plan | Needs::Begin => true,
        Needs::Execute { plan, changing, .. } => changing && plan.find(StepKind::Release).is_some(),
    }
}

/// What a plan that runs has pinned.
fn pinned(needs: Needs<'_>) -> Option<&Pins> {
    match needs {
        Needs::Execute { plan, .. } => Some(&plan.pins),
        Needs::Diagnose | Needs::Plan | Needs::Begin => None,
    }
}

/// Whether everything is to be read anew.
fn is_live(needs: Needs<'_>) -> bool {
    matches!(needs, Needs::Execute { live: true, .. })
}

/// The instances that hold the volume, by the cloud's word or by Kubernetes', and whose kubelet cannot give the proof:
/// there is no Ready Node of that instance, or no VolumeAttachment names its Node. None while the cloud does not answer.
fn unspoken_for(e: &Evidence, now: Timestamp) -> Vec<InstanceId> {
    let Some(volume) = e.cloud_volume.shown() else {
        return Vec::new();
    };
    let speaks = |instance: &InstanceId| {
        let ready = |name| {
            e.at(now)
                .node(name)
                .is_ok_and(|n| n.ready && n.instance.as_ref() == Some(instance))
        };
        e.nodes.keys().any(ready)
    };
    let named = e.attachments.shown().into_iter().flatten();
    let attached: BTreeSet<&InstanceId> = named
        .filter_map(|a| e.nodes.get(&a.node)?.shown()?.instance.as_ref())
        .collect();
    let held = volume
        .holders
        .iter()
        .filter(|h| !speaks(h) || !attached.contains(h));
    let silent = attached.iter().copied().filter(|i| !speaks(i));
    held.chain(silent)
        .cloned()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}
