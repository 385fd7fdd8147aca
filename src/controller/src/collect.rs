//! Collecting evidence: Kubernetes objects (from the watches or live), the owning workload, the cloud.

use crate::providers::{Providers, SHARED_FOR};
use jiff::{SignedDuration, Timestamp};
use reattach_cluster::cache::Cache;
use reattach_cluster::view::View;
use reattach_cluster::workloads::{self, Detail, Owner};
use reattach_cluster::{Clients, Clock, facts};
use reattach_core::diagnosis::{Verdict, diagnose};
use reattach_core::evidence::Evidence;
use reattach_core::fact::{Fact, Source};
use reattach_core::ids::{ObjectName, Uid};
use reattach_core::plan::Plan;

/// How far back the provider's job history is read before a run's own beginning.
const JOBS_BEFORE: SignedDuration = SignedDuration::from_mins(10);

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub enum Depth<'a> {
    /// For a diagnosis: no workload.
    Diagnose,
    /// For a plan: the workload with everything that stands against scaling it.
    Plan,
    /// For the next step of a plan that runs; live reads only, if `live`.
    Execute {
        /// The plan.
        plan: &'a Plan,
        /// Whether the workload's full detail is needed (before it is scaled).
        scaling: bool,
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
        let (remembered, detail) = match depth {
            Depth::Diagnose => return Ok(()),
            Depth::Plan => (None, Detail::Full),
            Depth::Execute { plan, scaling, .. } => {
                (Some(&plan.pins.workload), if scaling { Detail::Full } else { Detail::Count })
            }
        };
        let source = Source::Kubernetes("the owning workload".to_owned());
        let found = workloads::read(&self.clients.read, view, &e.claim_name, remembered, detail).await?;
        e.workload = match found {
            Owner::Workload(mut workload) => {
                if detail == Detail::Full {
                    let clients = &self.clients;
                    let answer =
                        workloads::dry_run_pod(&clients.records, &clients.read, &workload.workload).await?;
                    workload.pod_dry_run = Some(answer);
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
            Depth::Plan | Depth::Execute { scaling: true, .. } => {
                matches!(diagnose(e, now()).verdict, Verdict::Ours { .. })
            }
            Depth::Execute { jobs, .. } => jobs,
        };
        if jobs {
            let since = now().saturating_sub(JOBS_BEFORE).unwrap_or(Timestamp::MIN);
            e.jobs = located.jobs(since, now).await;
        }
    }
}
