//! What a recovery may do now: the policy that rules its claim, and how far the rights of the people reach whose words the
//! record has. Read with the other evidence, live before each effect.

use super::{Executor, Limits};
use crate::limits::ceiling;
use crate::policies::{Subject, ruling};
use jiff::{SignedDuration, Timestamp};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use reattach_api::{RecoveryPolicy, StoredRecovery};
use reattach_cluster::rights::{self, RecordedUser};
use reattach_core::authority::{Approved, Asker, Ceiling, Mandate, Person, Reach};
use reattach_core::evidence::Evidence;
use reattach_core::fact::{Fact, Source};
use reattach_core::ids::{ObjectName, PlanHash};
use reattach_core::policy::Mode;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Between effects a right is asked for again after so long.
const RIGHT_KNOWN_FOR: SignedDuration = SignedDuration::from_secs(15);

/// The answers about people's rights. Clones share one memory.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    /// The user name of this process.
    me: String,
    known: Arc<Mutex<BTreeMap<Question, (Timestamp, Reach)>>>,
}

/// A person, a verb and a recovery.
type Question = (RecordedUser, String, ObjectName);

impl Rights {
    /// For a process that the API server knows by this user name.
    pub fn of(me: &str) -> Self {
        Self {
            me: me.to_owned(),
            known: Arc::default(),
        }
    }

    /// The user name of this process.
    pub(crate) fn me(&self) -> &str {
        &self.me
    }
}

impl Executor {
    /// Puts into the evidence what the recovery may do, and takes out of it the declarations whose author has no right to them.
    pub(super) async fn add_mandate(
        &self,
        evidence: &mut Evidence,
        recovery: &StoredRecovery,
        limits: &Limits,
        live: bool,
    ) -> Result<(), kube::Error> {
        let source = || Source::Kubernetes("RecoveryPolicies and access reviews".to_owned());
        let now = self.collector.clock.now();
        let spec = &recovery.spec;
        let name = recovery.name();
        if let Some(word) = &spec.nothing_under_way {
            match self
                .reach(&word.declared_by, &word.groups, "declare", name, live)
                .await
            {
                Reach::Cluster | Reach::Namespace => {}
                Reach::Nowhere | Reach::Unknown { .. } => evidence.nothing_under_way = None,
            }
        }
        let declared = match &spec.declaration {
            Some(word) => {
                let reach = self
                    .reach(&word.declared_by, &word.groups, "declare", name, live)
                    .await;
                Some(Person {
                    name: word.declared_by.clone(),
                    reach,
                })
            }
            None => None,
        };
        match declared.as_ref().map(|p| &p.reach) {
            Some(Reach::Cluster) => {
                evidence
                    .declaration
                    .iter_mut()
                    .for_each(|d| d.cluster_wide = true);
            }
            // That a machine is this cluster's is said with a right at cluster scope only.
            Some(Reach::Namespace) => {
                evidence
                    .declaration
                    .iter_mut()
                    .for_each(|d| d.of_this_cluster = false);
            }
            Some(Reach::Nowhere | Reach::Unknown { .. }) | None => evidence.declaration = None,
        }
        let (ceiling, at) = match &self.collector.cache {
            Some(cache) if !live => (limits.ceiling.clone(), cache.as_of()),
            _ => (self.ceiling_now(evidence).await?, now),
        };
        if ceiling.is_none() && evidence.claim.shown().is_none() {
            // Which policy would rule it cannot be said; what is under way goes by what else is known.
            let why = "the claim is not there, so no policy can rule it";
            evidence.mandate = Some(Fact::unknown(why, source(), now));
            return Ok(());
        }
        let asker = if limits.made_by_policy {
            Asker::Controller
        } else {
            // Asking for a plan needs no right; acting without an approval does.
            let reach = match spec.mode {
                Mode::Auto => {
                    self.reach(
                        &spec.requester,
                        &spec.requester_groups,
                        "approve",
                        name,
                        live,
                    )
                    .await
                }
                Mode::Observe | Mode::DryRun | Mode::Approve => Reach::Nowhere,
            };
            Asker::Person(Person {
                name: spec.requester.clone(),
                reach,
            })
        };
        let approved = match &spec.approval {
            Some(word) => {
                let reach = self
                    .reach(&word.approver, &word.groups, "approve", name, live)
                    .await;
                let by = Person {
                    name: word.approver.clone(),
                    reach,
                };
                Some(Approved {
                    plan: PlanHash::from(word.plan_hash.as_str()),
                    by,
                })
            }
            None => None,
        };
        let power_off = match &spec.power_off {
            Some(word) => {
                let reach = self
                    .reach(&word.allowed_by, &word.groups, "poweroff", name, live)
                    .await;
                Some(Person {
                    name: word.allowed_by.clone(),
                    reach,
                })
            }
            None => None,
        };
        let mandate = Mandate {
            mode: spec.mode,
            runbook: spec.runbook.clone(),
            ceiling,
            asker,
            approved,
            power_off,
            declared,
        };
        evidence.mandate = Some(Fact::present(mandate, source(), at));
        Ok(())
    }

    /// What the policy that rules the claim allows, read live.
    async fn ceiling_now(&self, evidence: &Evidence) -> Result<Option<Ceiling>, kube::Error> {
        let api: Api<RecoveryPolicy> = Api::all(self.collector.clients.read.clone());
        let policies: Vec<_> = api
            .list(&ListParams::default())
            .await?
            .items
            .into_iter()
            .map(Arc::new)
            .collect();
        let ruling = Subject::of(evidence).and_then(|s| ruling(&policies, &s));
        Ok(ruling.map(|p| ceiling(p.name_any(), &p.spec)))
    }

    async fn reach(
        &self,
        who: &str,
        groups: &[String],
        verb: &str,
        recovery: &ObjectName,
        live: bool,
    ) -> Reach {
        let user = RecordedUser {
            name: who.to_owned(),
            groups: groups.to_vec(),
        };
        let now = self.collector.clock.now();
        let key = (user, verb.to_owned(), recovery.clone());
        let known = |rights: &Rights| {
            let known = rights.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(&key).cloned()
        };
        if let Some((at, reach)) = known(&self.rights)
            && !live
            && now.duration_since(at) < RIGHT_KNOWN_FOR
        {
            return reach;
        }
        let records = &self.collector.clients.records;
        let reach = rights::reach(records, &self.rights.me, &key.0, verb, recovery).await;
        let mut known = self
            .rights
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (at, _)| now.duration_since(*at) < RIGHT_KNOWN_FOR);
        if !matches!(reach, Reach::Unknown { .. }) {
            known.insert(key, (now, reach.clone()));
        }
        reach
    }
}
