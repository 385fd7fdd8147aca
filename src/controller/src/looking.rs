//! Looks at the claims that hints point at, and creates recoveries where a policy wants one.
//!
//! # Expected flow
//! [`Looks::run`] reads the hints from the watches, puts the claims in line, and looks at several of them side by side. A look
//! that has nothing to say is made again when something of the claim changes, or after a pause that grows.
//!
//! # Guarantees
//! Namespaces take turns ([`crate::turns`]). A claim that does not exist or is bound to nothing costs no request, neither to the
//! API server nor to the cloud.
//!
//! # Errors
//! A look that fails is logged and made again.

use crate::collect::Needs;
use crate::limits::{has_a_run, is_for, phase, retries};
use crate::nominate::{Nominee, nominees};
use crate::past::{May, Past};
use crate::policies::{Subject, ruling, ruling_policy};
use crate::recovery::Executor;
use crate::turns::{After, Bounds, Offer, Turns};
use crate::wakeup::{Wakeup, Woken};
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use reattach_api::{RecoveryPolicy, VolumeRecovery, VolumeRecoverySpec};
use reattach_cluster::cache::Cache;
use reattach_cluster::facts;
use reattach_core::diagnosis::{Class, Diagnosis, NotOurs, Verdict, WaitReason, diagnose};
use reattach_core::evidence::Evidence;
use reattach_core::ids::ObjectName;
use reattach_core::plain;
use reattach_core::policy::Mode;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

/// Claims that are looked at side by side. A look waits for the cloud most of its time.
const BOUNDS: Bounds = Bounds {
    at_once: 8,
    per_namespace: 4,
};
/// Everything is looked at anew after so long without news: only a VolumeAttachment that has been going for long becomes trouble
/// by time alone.
const EVERYTHING: Duration = Duration::from_secs(15);
/// Longest pause of a claim whose trouble may be over soon, or become one of ours.
const WAIT: Duration = Duration::from_secs(5);
/// Longest pause of a claim about which there is nothing to say.
const NOTHING: Duration = Duration::from_secs(60);

/// Looks at claims while this process leads.
pub(crate) struct Looks {
    look: Arc<Look>,
    line: Turns,
    nominated: BTreeMap<ObjectName, Nominee>,
    tasks: JoinSet<After>,
    under_way: BTreeMap<Id, ObjectName>,
}

/// What a look needs.
struct Look {
    executor: Executor,
    cache: Cache,
    /// The user name of the controller.
    username: String,
}

impl Looks {
    pub fn new(executor: Executor, cache: Cache, username: String) -> Self {
        Self {
            look: Arc::new(Look {
                executor,
                cache,
                username,
            }),
            line: Turns::new(BOUNDS),
            nominated: BTreeMap::new(),
            tasks: JoinSet::new(),
            under_way: BTreeMap::new(),
        }
    }

    /// Runs until the process is to stop. Looks that are under way then are dropped: they change our own records alone.
    pub async fn run(mut self, mut wakeup: Wakeup) {
        loop {
            if self.look.executor.gate.leadership().is_some() {
                let begun = Instant::now();
                self.nominate();
                wakeup.took(begun.elapsed());
            } else {
                self.forget_all().await;
            }
            let next_pass = Instant::now() + EVERYTHING;
            loop {
                let now = Instant::now();
                self.begin_looks(now);
                let at = self
                    .line
                    .next_rested(now)
                    .map_or(next_pass, |rested| rested.min(next_pass));
                tokio::select! {
                    biased;
                    Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                    woken = wakeup.next(at) => match woken {
                        Woken::Stop => return,
                        Woken::News => break,
                        Woken::Time if Instant::now() >= next_pass => break,
                        Woken::Time => {}
                    },
                }
            }
        }
    }

    /// Puts the claims in line that hints point at now.
    fn nominate(&mut self) {
        let look = &self.look;
        let mut records: BTreeMap<ObjectName, Vec<Arc<VolumeRecovery>>> = BTreeMap::new();
        for (name, recovery) in look.cache.recoveries.named(|_| true) {
            let claim = ObjectName::new(name.namespace, recovery.spec.claim_name.as_str());
            records.entry(claim).or_default().push(recovery);
        }
        self.nominated.clear();
        let mut line = Vec::new();
        for nominee in nominees(&look.cache)
            .into_iter()
            .filter(|n| is_bound(&look.cache, &n.claim))
        {
            let Some(policy) = ruling_policy(&look.cache, &nominee.claim) else {
                continue;
            };
            let own = records.get(&nominee.claim).map_or(&[][..], Vec::as_slice);
            if own
                .iter()
                .any(|r| stands_for_its_claim(r, policy.spec.mode, &look.username))
            {
                continue;
            }
            let mut version = DefaultHasher::new();
            (nominee.version, policy.uid(), policy.metadata.generation).hash(&mut version);
            for record in own {
                (record.uid(), record.resource_version()).hash(&mut version);
            }
            line.push((
                nominee.claim.clone(),
                Offer {
                    version: version.finish(),
                    rank: 0,
                },
            ));
            self.nominated.insert(nominee.claim.clone(), nominee);
        }
        self.line.offer(line);
    }

    fn begin_looks(&mut self, now: Instant) {
        while let Some(claim) = self.line.next(now) {
            let Some(nominee) = self.nominated.get(&claim).cloned() else {
                self.line.leave(&claim);
                continue;
            };
            let look = self.look.clone();
            let task = self.tasks.spawn(async move { look.at(&nominee).await });
            self.under_way.insert(task.id(), claim);
        }
    }

    fn ended(&mut self, ended: Result<(Id, After), JoinError>) {
        let (id, after) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "a look at a claim failed; it is made again");
                (error.id(), After::Rest(NOTHING))
            }
        };
        if let Some(claim) = self.under_way.remove(&id) {
            self.line.ended(&claim, after, Instant::now());
        }
    }

    /// Drops all work: another process leads.
    async fn forget_all(&mut self) {
        self.tasks.shutdown().await;
        self.under_way.clear();
        self.nominated.clear();
        self.line = Turns::new(BOUNDS);
    }
}

/// Whether Kubernetes has bound the claim to a PersistentVolume. Anyone who may create pods and claims in a namespace can make
/// up as many others as they like, and there is nothing to say about those.
fn is_bound(cache: &Cache, claim: &ObjectName) -> bool {
    let Some(claim) = cache.claims.get(&claim.namespace, &claim.name) else {
        return false;
    };
    let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
    facts::is_bound(
        &claim,
        volume
            .and_then(|name| cache.volumes.get("", name))
            .as_deref(),
    )
    .unwrap_or(false)
}

/// Whether a recovery keeps a policy of this mode from beginning one for the same claim: its run is not over, a policy made it,
/// or it goes as far as the policy does. What a person asked for to be shown (DryRun), and left, does not keep Auto from acting.
fn stands_for_its_claim(recovery: &VolumeRecovery, policy: Mode, controller: &str) -> bool {
    let spec = &recovery.spec;
    let shown = recovery.status.as_ref().and_then(|s| s.plan_hash.as_ref());
    // An approval of an earlier plan lets nothing begin.
    let approved = spec
        .approval
        .as_ref()
        .is_some_and(|a| Some(&a.plan_hash) == shown);
    let goes_as_far = spec.requester == controller || spec.mode >= policy || approved;
    !phase(recovery).is_final() && (has_a_run(recovery) || goes_as_far)
}

impl Look {
    /// Looks at a nominated claim once.
    async fn at(&self, nominee: &Nominee) -> After {
        self.consider(nominee).await.unwrap_or_else(|error| {
            tracing::warn!(claim = %nominee.claim, %error, "the claim could not be diagnosed");
            After::Rest(WAIT)
        })
    }

    /// Diagnoses a nominated claim and, where there is something to say, creates its recovery.
    async fn consider(&self, nominee: &Nominee) -> Result<After, kube::Error> {
        let evidence = self
            .executor
            .collector
            .collect(&nominee.claim, None, Needs::Diagnose)
            .await?;
        let policies = self.cache.policies.filter(|_| true);
        let nothing = Ok(After::Rest(NOTHING));
        let Some(policy) = Subject::of(&evidence).and_then(|s| ruling(&policies, &s)) else {
            return nothing;
        };
        let diagnosis = diagnose(evidence.at(self.executor.collector.clock.now()));
        if !worth_a_record(&diagnosis) {
            return match diagnosis.verdict {
                Verdict::Wait { .. } => Ok(After::Rest(WAIT)),
                _ => nothing,
            };
        }
        let trouble = trouble_fingerprint(&evidence);
        let class = match &diagnosis.verdict {
            Verdict::Ours { trouble } => Some(trouble.class()),
            _ => None,
        };
        let own = self.cache.recoveries.filter(|r| is_for(r, &nominee.claim));
        let past = Past::of(&own, &trouble, class);
        let now = self.executor.collector.clock.now();
        match past.again(retries(policy).as_ref()) {
            May::Never => return nothing,
            May::From(at) if now < at => {
                let rest = Duration::try_from(at.duration_since(now)).unwrap_or(NOTHING);
                return Ok(After::Rest(rest.min(NOTHING)));
            }
            May::From(_) | May::Now => {}
        }
        let name = format!(
            "{trouble}-{}",
            recovery_suffix(&evidence, class, policy, past.last())
        );
        let records = self.executor.collector.clients.records.clone();
        let api: Api<VolumeRecovery> = Api::namespaced(records, &nominee.claim.namespace);
        let stands = |r: &VolumeRecovery| stands_for_its_claim(r, policy.spec.mode, &self.username);
        // The watch may lag behind: what it does not know of yet may be under way already, under another name.
        if self
            .cache
            .recoveries
            .get(&nominee.claim.namespace, &name)
            .is_some()
            || api
                .list(&ListParams::default())
                .await?
                .iter()
                .any(|r| is_for(r, &nominee.claim) && stands(r))
        {
            return nothing;
        }
        let recovery = VolumeRecovery {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(nominee.claim.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: VolumeRecoverySpec {
                reason: Some(plain::sentence(
                    &past.reason(
                        &format!("policy {}; {}", policy.name_any(), nominee.why),
                        now,
                    ),
                    plain::SENTENCE_CHARS,
                )),
                attempt: past.next_attempt(now),
                ..VolumeRecoverySpec::new(
                    &nominee.claim.name,
                    policy.spec.mode,
                    &policy.spec.runbook,
                    &self.username,
                )
            },
            status: None,
        };
        match api.create(&PostParams::default(), &recovery).await {
            Ok(_) => nothing,
            // The same trouble has a record already: the cache has not seen it yet, or it is over.
            Err(kube::Error::Api(s)) if s.is_already_exists() => nothing,
            Err(error) => Err(error),
        }
    }
}

/// Whether a diagnosis is worth an object: one of ours, a provider's lock, or trouble that people should see named.
fn worth_a_record(diagnosis: &Diagnosis) -> bool {
    match &diagnosis.verdict {
        // A claim that is bound to nothing says nothing about the volume that it names.
        Verdict::NotOurs {
            reason: NotOurs::Identity { problem },
        } => !problem.is_about_the_binding(),
        Verdict::Ours { .. } | Verdict::NotOurs { .. } | Verdict::Unclassified { .. } => true,
        Verdict::Wait { reason } => matches!(reason, WaitReason::ProviderLock { .. }),
        Verdict::Healthy { .. } => false,
    }
}

/// Returns a fingerprint of the trouble: claim, the VolumeAttachments that hold it, and the boots of their nodes; where there is no
/// VolumeAttachment, the cloud's holders. Pods are no part of it: a recovery that a person ended must not begin again because the
/// waiting pod was replaced.
fn trouble_fingerprint(evidence: &Evidence) -> String {
    let mut parts = vec![
        evidence
            .claim
            .shown()
            .map(|c| c.uid.to_string())
            .unwrap_or_default(),
    ];
    let records = evidence.attachments.shown().into_iter().flatten();
    for record in records.filter(|a| a.attached || a.deleting_since.is_some()) {
        parts.push(record.uid.to_string());
        let node = evidence.nodes.get(&record.node).and_then(|n| n.shown());
        parts.extend(node.map(|n| n.boot_id.to_string()));
    }
    if parts.len() == 1 {
        let holders = evidence
            .cloud_volume
            .shown()
            .map_or(&[][..], |c| c.holders.as_slice());
        parts.extend(holders.iter().map(ToString::to_string));
    }
    let mut claim = evidence.claim_name.name.clone();
    claim.truncate(200);
    format!("{claim}-{}", reattach_core::plan::short_hash(&parts))
}

/// Returns the last part of a recovery's name. It differs between recoveries of one trouble under two policies, of two classes, with
/// other pods, or after `last`, the newest recovery of the trouble that is over. Equal circumstances give an equal name, so two sweeps
/// never create two recoveries. Only the newest counts, because older ones are pruned.
fn recovery_suffix(
    evidence: &Evidence,
    class: Option<Class>,
    policy: &RecoveryPolicy,
    last: Option<&VolumeRecovery>,
) -> String {
    let mut parts: Vec<String> = policy.uid().into_iter().collect();
    parts.push(policy.metadata.generation.unwrap_or(0).to_string());
    parts.extend(class.map(|c| c.to_string()));
    parts.extend(
        evidence
            .pods
            .shown()
            .into_iter()
            .flatten()
            .map(|p| p.uid.to_string()),
    );
    parts.extend(last.and_then(|r| r.uid()));
    reattach_core::plan::short_hash(&parts)
}

#[cfg(test)]
mod tests {
    use super::{recovery_suffix, stands_for_its_claim, trouble_fingerprint};
    use reattach_api::{RecoveryPolicy, VolumeRecovery};
    use reattach_core::evidence::AttachmentFacts;
    use reattach_core::policy::Mode;
    use reattach_core::testkit::{Case, NODE, OTHER_INSTANCE, OTHER_NODE, attachment};

    #[test]
    fn replacing_the_waiting_pod_keeps_the_fingerprint() {
        let dead = Case::deployment().node(|n| n.ready = false);
        let name = trouble_fingerprint(&dead.evidence);
        let replaced = dead
            .clone()
            .with_node(OTHER_NODE, OTHER_INSTANCE)
            .with_pod("redis-replacement", Some(OTHER_NODE), true)
            .attachments(|all| {
                all.push(AttachmentFacts {
                    attached: false,
                    ..attachment("csi-redis-2", OTHER_NODE)
                });
            });
        assert_eq!(trouble_fingerprint(&replaced.evidence), name);
        let booted = dead.clone().node(|n| n.boot_id = "another boot".into());
        assert_ne!(
            trouble_fingerprint(&booted.evidence),
            name,
            "another boot of {NODE} is another trouble"
        );
        let another = dead.attachments(|all| all[0].uid = "another".into());
        assert_ne!(trouble_fingerprint(&another.evidence), name);
    }

    /// A slow attach had a look and came right; then the device is lost under the same pod, which the first look cannot class.
    #[test]
    fn a_new_fault_after_an_end_gets_a_new_suffix() {
        let evidence = Case::deployment().evidence;
        let policy: RecoveryPolicy =
            serde_json::from_value(serde_json::json!({"metadata": {"uid": "p"}, "spec": {}}))
                .unwrap_or_else(|e| panic!("{e}"));
        let ended: VolumeRecovery = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "redis-data-cafe-1", "uid": "ended"},
            "spec": {"claimName": "redis-data", "mode": "Auto", "runbook": "lightest-first", "requester": "reattach"},
        }))
        .unwrap_or_else(|e| panic!("{e}"));
        let first = recovery_suffix(&evidence, None, &policy, None);
        assert_eq!(recovery_suffix(&evidence, None, &policy, None), first);
        let next = recovery_suffix(&evidence, None, &policy, Some(&ended));
        assert_ne!(next, first);
        assert_eq!(
            recovery_suffix(&evidence, None, &policy, Some(&ended)),
            next
        );
    }

    #[test]
    fn a_leftover_dry_run_does_not_stand_for_its_claim_under_auto() {
        let record = |change: &dyn Fn(&mut serde_json::Value)| -> VolumeRecovery {
            let mut record = serde_json::json!({
                "metadata": {"name": "r", "namespace": "ns"},
                "spec": {"claimName": "data", "mode": "DryRun", "runbook": "lightest-first", "requester": "jane"},
                "status": {"phase": "Planned"},
            });
            change(&mut record);
            serde_json::from_value(record).unwrap_or_else(|e| panic!("{e}"))
        };
        let stands =
            |record: &VolumeRecovery, policy| stands_for_its_claim(record, policy, "reattach");
        let of_a_person = record(&|_| {});
        assert!(!stands(&of_a_person, Mode::Auto) && !stands(&of_a_person, Mode::Approve));
        assert!(
            stands(&of_a_person, Mode::DryRun),
            "a second one would show the same"
        );
        let of_a_policy = record(&|r| r["spec"]["requester"] = "reattach".into());
        assert!(
            stands(&of_a_policy, Mode::Auto),
            "it ends by itself first, since its policy says something else"
        );
        let begun = record(&|r| r["status"]["journal"] = serde_json::json!([{"any": "line"}]));
        assert!(
            stands(&begun, Mode::Auto),
            "one recovery with effects for each claim"
        );
        let of_auto = record(&|r| r["spec"]["mode"] = "Auto".into());
        assert!(stands(&of_auto, Mode::Auto));
        let approved = |hash: &str| {
            record(&|r| {
                r["spec"]["mode"] = "Approve".into();
                r["spec"]["approval"] = serde_json::json!({"planHash": hash, "approver": "jane"});
                r["status"]["planHash"] = "cafe".into();
            })
        };
        assert!(stands(&approved("cafe"), Mode::Auto));
        assert!(
            !stands(&approved("babe"), Mode::Auto),
            "it waits for another approval"
        );
        let over = record(&|r| {
            r["spec"]["mode"] = "Auto".into();
            r["status"]["phase"] = "Resolved".into();
        });
        assert!(!stands(&over, Mode::Auto));
    }
}
