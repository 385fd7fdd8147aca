//! The controller: nominate claims, create recoveries under policies, drive every recovery while leader.

use crate::collect::{Collector, Depth};
use crate::finish;
use crate::janitor::Janitor;
use crate::machines::Machines;
use crate::metrics::Metrics;
use crate::nominate::{Nominee, nominees};
use crate::pace::Rest;
use crate::policies::{Subject, ruling};
use crate::providers::Providers;
use crate::recovery::{Executor, Limits, Rights, Ruling};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use reattach_api::{
    Opaque, Phase, PowerOffRule, RecoveryPolicy, RecoveryPolicySpec, VolumeRecovery, VolumeRecoverySpec,
};
use reattach_cluster::cache::Cache;
use reattach_cluster::gate::Gate;
use reattach_cluster::lease::{Elector, Leadership};
use reattach_cluster::{Clients, Clock, facts};
use reattach_core::authority::Ceiling;
use reattach_core::diagnosis::{Class, Diagnosis, NotOurs, Verdict, WaitReason, diagnose};
use reattach_core::evidence::Evidence;
use reattach_core::ids::ObjectName;
use reattach_core::plain;
use reattach_core::plan::Plan;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Signals are looked through at least this often.
const SWEEP: Duration = Duration::from_secs(5);
/// Finished recoveries that are kept per claim; older ones are deleted.
const KEEP_PER_CLAIM: usize = 5;

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
        Leader {
            executor,
            cache,
            settings: self.settings,
            leadership,
            driven: BTreeMap::new(),
            rest: Rest::default(),
            drivers: JoinSet::new(),
            janitor: Janitor::default(),
            machines: Machines::default(),
            seen: BTreeSet::new(),
        }
        .run(stop)
        .await;
        end_election.send_replace(true);
        // The election task ends by itself once told to; a panic in it has nothing left to lose here.
        let _ = election.join_next().await;
    }
}

struct Leader {
    executor: Executor,
    cache: Cache,
    settings: Settings,
    leadership: watch::Receiver<Option<Leadership>>,
    /// The drivers, with the version that the cache had of the recovery when each began.
    driven: BTreeMap<ObjectName, (tokio::task::Id, String)>,
    rest: Rest,
    drivers: JoinSet<ObjectName>,
    janitor: Janitor,
    machines: Machines,
    /// Policies that were looked at, by UID and generation.
    seen: BTreeSet<(String, i64)>,
}

impl Leader {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut changes = self.cache.changes();
        loop {
            let leading = self.executor.gate.leadership().is_some();
            self.executor.metrics.leader.set(leading.into());
            // A standby remembers too since when nodes are down, so that a new leader need not begin to wait.
            let nodes = self.cache.nodes.filter(|_| true);
            let now = self.executor.collector.clock.now();
            self.executor.collector.neighbours.note(nodes.iter().map(AsRef::as_ref), now);
            if leading {
                self.sweep(&stop).await;
            }
            tokio::select! {
                biased;
                () = told(&mut stop) => break,
                Some(ended) = self.drivers.join_next_with_id() => self.forget(ended),
                _ = self.leadership.changed() => {}
                _ = changes.changed() => tokio::time::sleep(Duration::from_millis(20)).await,
                () = tokio::time::sleep(SWEEP) => {}
            }
            changes.mark_unchanged();
        }
        while let Some(ended) = self.drivers.join_next_with_id().await {
            self.forget(ended);
        }
    }

    fn forget(&mut self, ended: Result<(tokio::task::Id, ObjectName), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => {
                tracing::error!(%error, "a recovery's driver failed; it is started again");
                error.id()
            }
        };
        let ended = self.driven.extract_if(.., |_, (other, _)| *other == id);
        for (name, (_, version)) in ended {
            self.rest.ended(name, version);
        }
    }

    /// Looks at everything that is there now.
    async fn sweep(&mut self, stop: &watch::Receiver<bool>) {
        self.drive_all(stop);
        self.warn_of_policies().await;
        let busy: BTreeSet<ObjectName> = self
            .cache
            .recoveries
            .filter(|r| !phase(r).is_final())
            .iter()
            .map(|r| Executor::claim_of(r))
            .collect();
        for nominee in nominees(&self.cache).into_iter().filter(|n| !busy.contains(&n.claim)) {
            if let Err(error) = self.consider(&nominee).await {
                tracing::warn!(claim = %nominee.claim, %error, "the claim could not be looked at");
            }
        }
        self.janitor.sweep(&self.executor, &self.cache).await;
        self.machines.sweep(&self.executor, &self.cache).await;
        if let Err(error) = self.prune().await {
            tracing::debug!(%error, "old recoveries could not be deleted");
        }
    }

    /// Tells each version of a policy once that it selects what no provider knows.
    async fn warn_of_policies(&mut self) {
        for policy in self.cache.policies.filter(|p| !p.spec.selector.drivers.is_empty()) {
            let generation = policy.metadata.generation.unwrap_or_default();
            if self.seen.insert((policy.uid().unwrap_or_default(), generation)) {
                finish::warn(&self.executor, &policy).await;
            }
        }
    }

    fn drive_all(&mut self, stop: &watch::Receiver<bool>) {
        let pending = self.cache.recoveries.filter(|r| !phase(r).is_final() || !r.finalizers().is_empty());
        self.executor.metrics.running.set(i64::try_from(running(&self.cache).len()).unwrap_or(i64::MAX));
        let names: BTreeSet<ObjectName> = pending
            .iter()
            .map(|r| ObjectName::new(r.namespace().unwrap_or_default(), r.name_any()))
            .collect();
        self.rest.keep(|name| names.contains(name));
        for recovery in pending {
            let name = ObjectName::new(recovery.namespace().unwrap_or_default(), recovery.name_any());
            let version = recovery.resource_version().unwrap_or_default();
            if self.driven.contains_key(&name) || !self.rest.may_begin(&name, &version) {
                continue;
            }
            let (executor, cache, stop) = (self.executor.clone(), self.cache.clone(), stop.clone());
            let (task_name, username) = (name.clone(), self.settings.username.clone());
            let handle = self.drivers.spawn(async move {
                let limits = |n: &ObjectName| limits(&cache, n, &username);
                executor.drive(&task_name, limits, stop).await;
                task_name
            });
            self.driven.insert(name, (handle.id(), version));
        }
    }

    /// Diagnoses a nominated claim and, where there is something to say, creates its recovery.
    async fn consider(&self, nominee: &Nominee) -> Result<(), kube::Error> {
        let evidence = self.executor.collector.collect(&nominee.claim, None, Depth::Diagnose).await?;
        let policies = self.cache.policies.filter(|_| true);
        let Some(policy) = Subject::of(&evidence).and_then(|s| ruling(&policies, &s)) else { return Ok(()) };
        let diagnosis = diagnose(&evidence, self.executor.collector.clock.now());
        if !worth_a_record(&diagnosis) {
            return Ok(());
        }
        let trouble = trouble_name(&evidence);
        let class = match &diagnosis.verdict {
            Verdict::Ours { trouble } => Some(trouble.class()),
            _ => None,
        };
        let over =
            |r: &VolumeRecovery| Executor::claim_of(r) == nominee.claim && given_up(r, &trouble, class);
        if !self.cache.recoveries.filter(over).is_empty() {
            return Ok(());
        }
        let ended = self
            .cache
            .recoveries
            .filter(|r| Executor::claim_of(r) == nominee.claim && came_right(r, &trouble));
        let last = ended.iter().max_by_key(|r| r.creation_timestamp());
        let name = format!("{trouble}-{}", occasion(&evidence, class, policy, last.map(|r| &**r)));
        let records = self.executor.collector.clients.records.clone();
        let api: Api<VolumeRecovery> = Api::namespaced(records, &nominee.claim.namespace);
        // The watch may lag behind: what it does not know of yet may be under way already, on another occasion.
        if self.cache.recoveries.get(&nominee.claim.namespace, &name).is_some()
            || api
                .list(&ListParams::default())
                .await?
                .iter()
                .any(|r| Executor::claim_of(r) == nominee.claim && !phase(r).is_final())
        {
            return Ok(());
        }
        let recovery = VolumeRecovery {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(nominee.claim.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: VolumeRecoverySpec {
                claim_name: nominee.claim.name.clone(),
                mode: policy.spec.mode,
                runbook: policy.spec.runbook.clone(),
                reason: Some(plain::sentence(
                    &format!("policy {}; {}", policy.name_any(), nominee.why),
                    plain::SENTENCE_CHARS,
                )),
                requester: self.settings.username.clone(),
                requester_groups: Vec::new(),
                confirm_workload: None,
                abort: None,
                approval: None,
                declaration: None,
                power_off: None,
                nothing_under_way: None,
            },
            status: None,
        };
        match api.create(&PostParams::default(), &recovery).await {
            Ok(_) => Ok(()),
            // The same trouble has a record already: the cache has not seen it yet, or it is over.
            Err(kube::Error::Api(s)) if s.is_already_exists() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn prune(&self) -> Result<(), kube::Error> {
        let mut per_claim: BTreeMap<ObjectName, Vec<Arc<VolumeRecovery>>> = BTreeMap::new();
        for recovery in self.cache.recoveries.filter(|r| phase(r).is_final() && r.finalizers().is_empty()) {
            per_claim.entry(Executor::claim_of(&recovery)).or_default().push(recovery);
        }
        for (claim, mut old) in per_claim {
            old.sort_by_key(|r| std::cmp::Reverse(r.creation_timestamp()));
            for recovery in old.into_iter().skip(KEEP_PER_CLAIM) {
                let records = self.executor.collector.clients.records.clone();
                let api: Api<VolumeRecovery> = Api::namespaced(records, &claim.namespace);
                match api.delete(&recovery.name_any(), &DeleteParams::default()).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(s)) if s.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// Returns once `stop` says so, without keeping its guard: a run must be able to move between threads.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|s| *s).await;
}

fn phase(recovery: &VolumeRecovery) -> Phase {
    recovery.status.as_ref().map(|s| s.phase).unwrap_or_default()
}

/// Whether a run of this recovery has begun and is not over.
fn has_a_run(recovery: &VolumeRecovery) -> bool {
    let begun = recovery.status.as_ref().is_some_and(|s| !s.journal.is_empty());
    begun && !phase(recovery).is_final()
}

/// Recoveries whose runs take a place of the budgets, and their nodes. One that is stuck takes none: it does nothing until
/// a person has looked at it, and ten of them must not keep every other claim waiting.
fn running(cache: &Cache) -> Vec<(ObjectName, String)> {
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

/// The policy that rules a claim now.
fn ruling_policy(cache: &Cache, name: &ObjectName) -> Option<Arc<RecoveryPolicy>> {
    let claim = cache.claims.get(&name.namespace, &name.name)?;
    let pv =
        claim.spec.as_ref().and_then(|s| s.volume_name.as_ref()).and_then(|pv| cache.volumes.get("", pv));
    let driver = pv.as_ref().and_then(|v| v.spec.as_ref()?.csi.as_ref()).map(|c| c.driver.as_str());
    let subject = Subject { namespace: &name.namespace, claim: &facts::claim(&claim), driver };
    let policies = cache.policies.filter(|_| true);
    let ruling = ruling(&policies, &subject)?.name_any();
    policies.into_iter().find(|p| p.name_any() == ruling)
}

/// How far a policy lets anybody go who has no right at cluster scope.
pub fn ceiling(policy: String, spec: &RecoveryPolicySpec) -> Ceiling {
    Ceiling {
        policy,
        mode: spec.mode,
        runbook: spec.runbook.clone(),
        power_off: spec.power_off != PowerOffRule::Never,
        nodes: spec.nodes.as_ref().map(Into::into),
    }
}

/// Whether a diagnosis is worth an object: one of ours, a provider's lock, or trouble that people should see named.
fn worth_a_record(diagnosis: &Diagnosis) -> bool {
    match &diagnosis.verdict {
        // A claim that is bound to nothing says nothing about the volume that it names.
        Verdict::NotOurs { reason: NotOurs::Identity { problem } } => !problem.is_about_the_binding(),
        Verdict::Ours { .. } | Verdict::NotOurs { .. } | Verdict::Unclassified { .. } => true,
        Verdict::Wait { reason } => matches!(reason, WaitReason::ProviderLock { .. }),
        Verdict::Healthy { .. } => false,
    }
}

/// The same trouble has the same name: claim, the VolumeAttachments that hold it and the boots of their nodes; where there
/// is none, the cloud's holders. Whoever comes to wait for the volume changes nothing about it: what a person ended must
/// not begin again because the pod was replaced.
fn trouble_name(evidence: &Evidence) -> String {
    let mut parts = vec![evidence.claim.shown().map(|c| c.uid.to_string()).unwrap_or_default()];
    let records = evidence.attachments.shown().into_iter().flatten();
    for record in records.filter(|a| a.attached || a.deleting_since.is_some()) {
        parts.push(record.uid.to_string());
        let node = evidence.nodes.get(&record.node).and_then(|n| n.shown());
        parts.extend(node.map(|n| n.boot_id.to_string()));
    }
    if parts.len() == 1 {
        let holders = evidence.cloud_volume.shown().map_or(&[][..], |c| c.holders.as_slice());
        parts.extend(holders.iter().map(ToString::to_string));
    }
    let mut claim = evidence.claim_name.name.clone();
    claim.truncate(200);
    format!("{claim}-{}", reattach_core::plan::short_hash(&parts))
}

/// Whether a person ended this recovery of this very trouble, or its order failed: it is not begun again until someone asks.
/// One that failed may have left trouble of another class, which has another order; `class` is of trouble that is ours to
/// heal now, so that a look that could not tell, or a lock, begins nothing.
fn given_up(recovery: &VolumeRecovery, trouble: &str, class: Option<Class>) -> bool {
    let over = match phase(recovery) {
        Phase::Failed => {
            let was = recovery.status.as_ref().and_then(|s| s.class.as_deref());
            was.zip(class).is_none_or(|(was, now)| now.to_string() == was)
        }
        Phase::Aborted => recovery.spec.abort.is_some(),
        _ => false,
    };
    over && recovery.name_any().rsplit_once('-').is_some_and(|(same, _)| same == trouble)
}

/// Whether this recovery of this very trouble ended well, or because it was not wanted at the time and without a person's
/// abort (a policy, an opt-out). What goes wrong after it is a new occasion, also where pods, machine and VolumeAttachment
/// are still the same: a slow attach that came right, and later a device that is lost; an opt-out that is taken back.
fn came_right(recovery: &VolumeRecovery, trouble: &str) -> bool {
    let over = match phase(recovery) {
        Phase::Recovered | Phase::Resolved => true,
        Phase::Aborted => recovery.spec.abort.is_none(),
        _ => false,
    };
    over && recovery.name_any().rsplit_once('-').is_some_and(|(same, _)| same == trouble)
}

/// Tells apart recoveries of the same trouble under another policy, of what one of them left, or of trouble that went away
/// and came back: with other pods, or after `last`, the newest one that came right. The same occasion has the same name, so
/// two sweeps never make two recoveries of it. Only the newest counts, since older ones are pruned.
fn occasion(
    evidence: &Evidence,
    class: Option<Class>,
    policy: &RecoveryPolicy,
    last: Option<&VolumeRecovery>,
) -> String {
    let mut parts =
        vec![policy.uid().unwrap_or_default(), policy.metadata.generation.unwrap_or(0).to_string()];
    parts.extend(class.map(|c| c.to_string()));
    parts.extend(evidence.pods.shown().into_iter().flatten().map(|p| p.uid.to_string()));
    parts.extend(last.and_then(|r| r.uid()));
    reattach_core::plan::short_hash(&parts)
}

#[cfg(test)]
mod tests {
    use super::{came_right, given_up, occasion, trouble_name};
    use reattach_api::{RecoveryPolicy, VolumeRecovery};
    use reattach_core::diagnosis::Class;
    use reattach_core::evidence::AttachmentFacts;
    use reattach_core::testkit::{Case, NODE, OTHER_INSTANCE, OTHER_NODE, attachment};

    #[test]
    fn who_waits_for_the_volume_is_no_other_trouble() {
        let dead = Case::deployment().node(|n| n.ready = false);
        let name = trouble_name(&dead.evidence);
        let replaced = dead
            .clone()
            .with_node(OTHER_NODE, OTHER_INSTANCE)
            .with_pod("redis-replacement", Some(OTHER_NODE), true)
            .attachments(|all| {
                all.push(AttachmentFacts { attached: false, ..attachment("csi-redis-2", OTHER_NODE) });
            });
        assert_eq!(trouble_name(&replaced.evidence), name);
        let booted = dead.clone().node(|n| n.boot_id = "another boot".into());
        assert_ne!(trouble_name(&booted.evidence), name, "another boot of {NODE} is another trouble");
        let another = dead.attachments(|all| all[0].uid = "another".into());
        assert_ne!(trouble_name(&another.evidence), name);
    }

    /// A slow attach had a look and came right; then the device is lost under the same pod, which the first look cannot class.
    #[test]
    fn what_goes_wrong_after_a_good_end_is_a_new_occasion() {
        let evidence = Case::deployment().evidence;
        let policy: RecoveryPolicy =
            serde_json::from_value(serde_json::json!({"metadata": {"uid": "p"}, "spec": {}}))
                .unwrap_or_else(|e| panic!("{e}"));
        let trouble = trouble_name(&evidence);
        let record = |phase: &str, of: &str| -> VolumeRecovery {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": format!("{of}-1"), "uid": format!("uid of {phase}")},
                "spec": {"claimName": "redis-data", "mode": "Auto", "runbook": "lightest-first", "requester": "reattach"},
                "status": {"phase": phase},
            }))
            .unwrap_or_else(|e| panic!("{e}"))
        };
        let first = occasion(&evidence, None, &policy, None);
        assert_eq!(occasion(&evidence, None, &policy, None), first);
        for phase in ["Resolved", "Recovered"] {
            let ended = record(phase, &trouble);
            assert!(came_right(&ended, &trouble), "{phase}");
            let next = occasion(&evidence, None, &policy, Some(&ended));
            assert_ne!(next, first, "{phase}");
            assert_eq!(occasion(&evidence, None, &policy, Some(&ended)), next);
        }
        for phase in ["Failed", "Waiting", "Running"] {
            assert!(!came_right(&record(phase, &trouble), &trouble), "{phase}");
        }
        let mut aborted = record("Aborted", &trouble);
        assert!(came_right(&aborted, &trouble), "a policy or an opt-out ended it, which may be taken back");
        aborted.spec.abort = Some(reattach_api::Abort { by: "jane".to_owned(), reason: None });
        assert!(!came_right(&aborted, &trouble), "a person's abort stands");
        assert!(!came_right(&record("Resolved", "another-trouble"), &trouble));
    }

    #[test]
    fn what_is_given_up_is_the_class_that_failed_or_what_a_person_ended() {
        let over = |phase: &str, abort: bool| -> VolumeRecovery {
            let abort = abort.then(|| serde_json::json!({"by": "jane", "reason": "enough"}));
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "redis-data-cafe-1"},
                "spec": {"claimName": "redis-data", "mode": "Auto", "runbook": "lightest-first", "requester": "reattach",
                    "abort": abort},
                "status": {"phase": phase, "class": "E"},
            }))
            .unwrap_or_else(|e| panic!("{e}"))
        };
        let trouble = "redis-data-cafe";
        let failed = over("Failed", false);
        assert!(given_up(&failed, trouble, Some(Class::E)));
        assert!(!given_up(&failed, trouble, Some(Class::C)), "what it left has another order");
        assert!(given_up(&failed, trouble, None), "what cannot be told, or is locked, is no other trouble");
        assert!(!given_up(&failed, "redis-data-babe", Some(Class::E)));
        let ended = over("Aborted", true);
        assert!(given_up(&ended, trouble, Some(Class::E)) && given_up(&ended, trouble, Some(Class::C)));
        assert!(!given_up(&over("Aborted", false), trouble, Some(Class::E)), "nobody asked for that");
        assert!(!given_up(&over("Recovered", false), trouble, Some(Class::E)));
    }
}
