//! Collecting evidence: Kubernetes objects (from the watches or live), the owning workload, the cloud.

use crate::providers::{Located, Providers, SHARED_FOR};
use jiff::{SignedDuration, Timestamp};
use reattach_cluster::cache::Cache;
use reattach_cluster::view::View;
use reattach_cluster::workloads::{self, Detail, Owner};
use reattach_cluster::{Clients, Clock, dry_run, facts, hold};
use reattach_core::diagnosis::{Verdict, diagnose};
use reattach_core::evidence::Evidence;
use reattach_core::fact::{Fact, Source};
use reattach_core::ids::{InstanceId, ObjectName, Uid};
use reattach_core::plan::Plan;
use reattach_core::runbook::Holding;
use std::collections::BTreeSet;

/// How far back the provider's job history is read before a run's own beginning.
const JOBS_BEFORE: SignedDuration = SignedDuration::from_mins(10);

/// How far back the history of an instance's power is read: someone may have shut it down long ago.
const POWER_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub enum Depth<'a> {
    /// For a diagnosis: no workload.
    Diagnose,
    /// For a plan: the workload with everything that stands against changing it.
    Plan,
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
        /// No answer of the cloud from before this moment is of use: the journal's last line, or the change that made
        /// this look due.
        since: Timestamp,
        /// Right before an effect: read everything anew.
        live: bool,
    },
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
}

impl Collector {
    /// Everything about one claim.
    ///
    /// # Errors
    /// A Kubernetes read that failed; nothing may be concluded then. Failures of the cloud are facts, not errors.
    pub async fn collect(
        &self,
        claim: &ObjectName,
        asked: Option<(Uid, u64)>,
        depth: Depth<'_>,
    ) -> Result<Evidence, kube::Error> {
        let live = matches!(depth, Depth::Execute { live: true, .. });
        let pinned = match depth {
            Depth::Execute { plan, .. } => Some(plan.pins.node.as_str()),
            Depth::Diagnose | Depth::Plan => None,
        };
        let (mut view, at) = match &self.cache {
            Some(cache) if !live => (View::cached(cache, claim, pinned), cache.as_of()),
            _ => {
                let at = self.clock.now();
                (View::live(&self.clients.read, claim, pinned).await?, at)
            }
        };
        if matches!(depth, Depth::Execute { .. }) && view.leases.is_empty() {
            view.read_leases(&self.clients.read).await?;
        }
        let resolve = |id: &str| self.providers.instance(id);
        let mut evidence = facts::evidence(claim, &view, asked, &resolve, at);
        self.add_workload(&mut evidence, &view, depth).await?;
        self.add_cloud(&mut evidence, depth).await;
        evidence.collected_at = self.clock.now();
        Ok(evidence)
    }

    async fn add_workload(&self, e: &mut Evidence, view: &View, depth: Depth<'_>) -> Result<(), kube::Error> {
        // Who else owns the count matters only where the count is changed, and the policy only to a hold.
        let (remembered, full, policy, probed) = match depth {
            Depth::Diagnose => return Ok(()),
            Depth::Plan => (None, true, true, true),
            Depth::Execute { plan, changing, probing, .. } => {
                let by_gate = plan.holding() == Holding::ByGate;
                (Some(&plan.pins.workload), changing && !by_gate, changing && by_gate, changing || probing)
            }
        };
        let detail = if full { Detail::Full } else { Detail::Count };
        if policy {
            e.hold_policy = Some(hold::policy(&self.clients.read, self.clock.now()).await);
        }
        let source = Source::Kubernetes("the owning workload".to_owned());
        let found = workloads::read(&self.clients.read, view, &e.claim_name, remembered, detail).await?;
        e.workload = match found {
            Owner::Workload(mut workload) => {
                if probed {
                    let clients = &self.clients;
                    let (records, read) = (&clients.records, &clients.read);
                    let answer = dry_run::pod(records, read, &workload.workload, &e.claim_name).await?;
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

    async fn add_cloud(&self, e: &mut Evidence, depth: Depth<'_>) {
        let Some(csi) = e.volume.shown().and_then(|v| v.csi.clone()) else { return };
        let now = || self.clock.now();
        let located = match self.providers.locate(&csi) {
            Ok(Some(located)) => located,
            Ok(None) => return,
            Err(error) => {
                e.cloud_volume = Fact::unknown(error.to_string(), Source::Cloud("none".to_owned()), now());
                return;
            }
        };
        let shared = now().saturating_sub(SHARED_FOR).unwrap_or(Timestamp::MIN);
        let since = match depth {
            Depth::Execute { live: true, .. } => now(),
            Depth::Execute { since, .. } => since.max(shared),
            Depth::Diagnose | Depth::Plan => shared,
        };
        e.cloud_id = Some(located.id.clone());
        e.cloud_volume = located.describe(since, now).await;
        let jobs = match depth {
            Depth::Diagnose => false,
            // Linode names the holder before its attach has ended: such a volume looks like one that its guest has lost.
            Depth::Plan | Depth::Execute { changing: true, .. } => {
                matches!(diagnose(e, now()).verdict, Verdict::Ours { .. })
            }
            Depth::Execute { jobs, .. } => jobs,
        };
        self.add_power(e, &located, since).await;
        if jobs {
            let since = now().saturating_sub(JOBS_BEFORE).unwrap_or(Timestamp::MIN);
            e.jobs = located.jobs(since, now).await;
        }
    }

    /// What the cloud says of holders for which no kubelet may be able to speak: what the proofs *gone* and *off* rest
    /// on.
    async fn add_power(&self, e: &mut Evidence, located: &Located, since: Timestamp) {
        let now = || self.clock.now();
        let ids = unspoken_for(e, now());
        if ids.is_empty() {
            return;
        }
        let history = now().saturating_sub(POWER_BEFORE).unwrap_or(Timestamp::MIN);
        let (instances, power, scope) = tokio::join!(
            located.instances(&ids, since, now),
            located.power(&ids, history, since, now),
            located.scope(since, now)
        );
        e.instances = instances;
        e.power = power;
        e.cloud_scope =
            scope.inspect_err(|error| tracing::debug!(%error, "who answers for the cloud is not known")).ok();
    }
}

/// The instances that hold the volume, by the cloud's word or by Kubernetes', and whose kubelet cannot give the proof:
/// there is no Ready Node of that instance, or no VolumeAttachment names its Node. None while the cloud does not answer.
fn unspoken_for(e: &Evidence, now: Timestamp) -> Vec<InstanceId> {
    let Some(volume) = e.cloud_volume.shown() else { return Vec::new() };
    let speaks = |instance: &InstanceId| {
        let ready =
            |name| e.node(name, now).is_some_and(|n| n.ready && n.instance.as_ref() == Some(instance));
        e.nodes.keys().any(ready)
    };
    let named = e.attachments.shown().into_iter().flatten();
    let attached: BTreeSet<&InstanceId> =
        named.filter_map(|a| e.nodes.get(&a.node)?.shown()?.instance.as_ref()).collect();
    let held = volume.holders.iter().filter(|h| !speaks(h) || !attached.contains(h));
    let silent = attached.iter().copied().filter(|i| !speaks(i));
    held.chain(silent).cloned().collect::<BTreeSet<_>>().into_iter().collect()
}
