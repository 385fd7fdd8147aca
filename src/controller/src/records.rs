//! How many VolumeRecoveries are kept and looked at, per claim and per namespace.
//!
//! # Expected flow
//! `Records::run` ends the unfinished records beyond the quota of their namespace, and deletes finished ones beyond what is
//! kept. Namespaces take turns.
//!
//! # Guarantees
//! No record with effects is ended here. A deleted record that acted is kept as one line of the log. A namespace whose records
//! cannot be written or deleted does not keep those of others from it.
//!
//! # Errors
//! What cannot be written or deleted is logged and tried again later.

use crate::limits::phase;
use crate::recovery::Executor;
use crate::status;
use crate::turns::{After, Bounds, Offer, Turns};
use crate::wakeup::{AT_LEAST_EVERY, Wakeup, Woken};
use crate::{finalizer, notify};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt};
use reattach_api::{Phase, VolumeRecovery, metadata};
use reattach_cluster::cache::Cache;
use reattach_cluster::store;
use reattach_core::ids::ObjectName;
use reattach_core::policy::Mode;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Finished recoveries that are kept for each claim; older ones are deleted.
const KEEP_PER_CLAIM: usize = 5;
/// Finished recoveries that are kept for each namespace.
pub const KEEP_PER_NAMESPACE: usize = 200;
/// Unfinished recoveries without effects that people may have in one namespace. Those that policies make do not count.
pub const QUOTA: usize = 100;
/// Records that are ended or deleted before the cluster is looked at again.
const AT_ONCE: usize = 50;
/// The pause while there is more to do.
const BETWEEN: Duration = Duration::from_secs(1);
/// What could not be written is tried again after at most this time.
const RETRY: Duration = Duration::from_secs(60);

/// Ends and deletes records while this process leads.
pub(crate) struct Records {
    executor: Executor,
    cache: Cache,
    /// The user name of the controller.
    username: String,
    work: Turns,
    /// Policies that were looked at, by UID and generation.
    warned: BTreeSet<(Option<String>, Option<i64>)>,
}

impl Records {
    pub fn new(executor: Executor, cache: Cache, username: String) -> Self {
        let bounds = Bounds {
            at_once: 1,
            per_namespace: 1,
        };
        Self {
            executor,
            cache,
            username,
            work: Turns::new(bounds),
            warned: BTreeSet::new(),
        }
    }

    /// Runs until the process is to stop. What is under way then is dropped: it changes our own records alone.
    pub async fn run(mut self, mut wakeup: Wakeup) {
        loop {
            let mut pause = AT_LEAST_EVERY;
            if self.executor.gate.leadership().is_some() {
                tokio::select! {
                    biased;
                    () = wakeup.stop() => return,
                    more = self.pass() => if more {
                        pause = BETWEEN;
                    },
                }
            }
            if wakeup.next(Instant::now() + pause).await == Woken::Stop {
                return;
            }
        }
    }

    /// Tells each version of a policy once that it selects what no provider knows.
    async fn warn_of_policies(&mut self) {
        for policy in self
            .cache
            .policies
            .filter(|p| !p.spec.selector.drivers.is_empty())
        {
            if self
                .warned
                .insert((policy.uid(), policy.metadata.generation))
            {
                notify::unknown_drivers(&self.executor, &policy).await;
            }
        }
    }

    /// Does part of what there is to do. Returns whether there is more.
    async fn pass(&mut self) -> bool {
        self.warn_of_policies().await;
        let all = self.cache.recoveries.named(|_| true);
        let crowd = beyond_the_quota(&all, &self.username);
        let old = surplus(&all, &self.username);
        let work = crowd
            .iter()
            .chain(&old)
            .map(|name| (name.clone(), Offer::default()));
        self.work.offer(work);
        for _ in 0..AT_ONCE {
            let Some(name) = self.work.next(Instant::now()) else {
                return false;
            };
            let Some(recovery) = self.cache.recoveries.get(&name.namespace, &name.name) else {
                self.work.leave(&name);
                continue;
            };
            // Leadership may have gone since.
            let done = match self.executor.gate.leadership() {
                None => false,
                Some(_) if old.contains(&name) => self.delete(&name, &recovery).await,
                Some(_) => self.end(&name, &recovery).await,
            };
            if !done {
                tracing::debug!(recovery = %name, "a record beyond its namespace's bound stays for now");
            }
            // Until the watch tells that it is done.
            self.work.ended(&name, After::Rest(RETRY), Instant::now());
        }
        true
    }

    /// Ends a record beyond the quota without a look.
    async fn end(&self, name: &ObjectName, recovery: &VolumeRecovery) -> bool {
        let mut ended = recovery.clone();
        let message = format!(
            "namespace {} has {QUOTA} older VolumeRecoveries of people that are not over and have had no effect, which is the limit. This one was ended without a diagnosis. Delete those that are not needed, and ask again",
            name.namespace
        );
        status::set(
            &mut ended,
            Phase::Aborted,
            message,
            self.executor.collector.clock.now(),
        );
        store::save(&self.executor.collector.clients.records, &ended)
            .await
            .is_ok()
    }

    async fn delete(&self, name: &ObjectName, recovery: &VolumeRecovery) -> bool {
        let records = self.executor.collector.clients.records.clone();
        let api: Api<VolumeRecovery> = Api::namespaced(records, &name.namespace);
        // Another record of that name may have taken its place.
        let Ok(uid) = metadata::of(recovery).uid() else {
            return false;
        };
        let this_one = Preconditions {
            uid: Some(uid.to_string()),
            resource_version: None,
        };
        let params = DeleteParams {
            preconditions: Some(this_one),
            ..DeleteParams::default()
        };
        match api.delete(&name.name, &params).await {
            Ok(_) => {
                if let Some(record) = finalizer::record_that_acted(recovery) {
                    tracing::info!(
                        recovery = name.name,
                        namespace = name.namespace,
                        record,
                        "an old VolumeRecovery was deleted; this line keeps its record"
                    );
                }
                true
            }
            Err(kube::Error::Api(s)) => s.is_not_found() || s.is_conflict(),
            Err(_) => false,
        }
    }
}

/// A VolumeRecovery with its namespace and name.
pub(crate) type Named = (ObjectName, Arc<VolumeRecovery>);

fn names<'a>(records: impl IntoIterator<Item = &'a Named>) -> impl Iterator<Item = ObjectName> {
    records.into_iter().map(|(name, _)| name.clone())
}

fn acted(recovery: &VolumeRecovery) -> bool {
    recovery
        .status
        .as_ref()
        .is_some_and(|s| !s.journal.is_empty())
}

/// The unfinished records of people, without effects, beyond the quota of their namespace: those that may act are kept first,
/// then the oldest.
pub(crate) fn beyond_the_quota(all: &[Named], controller: &str) -> BTreeSet<ObjectName> {
    let counts = |r: &VolumeRecovery| {
        !phase(r).is_final()
            && !acted(r)
            && r.spec.requester != controller
            && r.metadata.deletion_timestamp.is_none()
    };
    let only_looks = |r: &VolumeRecovery| r.spec.mode != Mode::Auto && r.spec.approval.is_none();
    let mut by_namespace: BTreeMap<&str, Vec<&Named>> = BTreeMap::new();
    for record in all.iter().filter(|(_, r)| counts(r)) {
        by_namespace
            .entry(record.0.namespace.as_str())
            .or_default()
            .push(record);
    }
    let mut beyond = BTreeSet::new();
    for (_, mut records) in by_namespace
        .into_iter()
        .filter(|(_, records)| records.len() > QUOTA)
    {
        records
            .sort_by_cached_key(|(name, r)| (only_looks(r), r.creation_timestamp(), name.clone()));
        beyond.extend(names(records.into_iter().skip(QUOTA)));
    }
    beyond
}

/// The finished records beyond what is kept: per claim the newest, and per namespace first those that acted, then those that a
/// policy made, then the newest.
fn surplus(all: &[Named], controller: &str) -> BTreeSet<ObjectName> {
    let finished = all.iter().filter(|(_, r)| {
        phase(r).is_final() && r.finalizers().is_empty() && r.metadata.deletion_timestamp.is_none()
    });
    let mut by_claim: BTreeMap<(&str, &str), Vec<&Named>> = BTreeMap::new();
    for record in finished {
        let (name, recovery) = record;
        by_claim
            .entry((&name.namespace, &recovery.spec.claim_name))
            .or_default()
            .push(record);
    }
    let mut surplus = BTreeSet::new();
    let mut by_namespace: BTreeMap<&str, Vec<&Named>> = BTreeMap::new();
    for ((namespace, _), mut records) in by_claim {
        records.sort_by_key(|(_, r)| Reverse(r.creation_timestamp()));
        let old = records.split_off(records.len().min(KEEP_PER_CLAIM));
        surplus.extend(names(old));
        by_namespace.entry(namespace).or_default().extend(records);
    }
    for (_, mut records) in by_namespace
        .into_iter()
        .filter(|(_, records)| records.len() > KEEP_PER_NAMESPACE)
    {
        records.sort_by_cached_key(|(name, r)| {
            (
                Reverse(acted(r)),
                Reverse(r.spec.requester == controller),
                Reverse(r.creation_timestamp()),
                name.clone(),
            )
        });
        surplus.extend(names(records.into_iter().skip(KEEP_PER_NAMESPACE)));
    }
    surplus
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(namespace: &str, n: usize, change: impl FnOnce(&mut serde_json::Value)) -> Named {
        let at = jiff::Timestamp::from_second(1_700_000_000 + i64::try_from(n).unwrap()).unwrap();
        let mut record = json!({
            "metadata": {"name": format!("r-{n:04}"), "namespace": namespace, "creationTimestamp": at.to_string()},
            "spec": {"claimName": format!("data-{n}"), "mode": "DryRun", "runbook": "lightest-first", "requester": "jane"},
            "status": {"phase": "Planned", "message": "", "epoch": 0},
        });
        change(&mut record);
        let name = ObjectName::new(namespace, format!("r-{n:04}"));
        (name, Arc::new(serde_json::from_value(record).unwrap()))
    }

    fn shown(all: &BTreeSet<ObjectName>) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_oldest_hundred_records_of_a_namespace_are_driven() {
        let mut all: Vec<_> = (0..QUOTA + 2)
            .rev()
            .map(|n| record("crowd", n, |_| {}))
            .collect();
        all.extend((0..QUOTA).map(|n| record("others", n, |_| {})));
        assert_eq!(
            shown(&beyond_the_quota(&all, "controller")),
            ["crowd/r-0100", "crowd/r-0101"]
        );
        // Those of policies, those that are over and those that acted do not count.
        all.push(record("crowd", 500, |r| {
            r["spec"]["requester"] = json!("controller")
        }));
        all.push(record("crowd", 501, |r| {
            r["status"]["phase"] = json!("Aborted")
        }));
        all.push(record("crowd", 502, |r| {
            r["status"]["journal"] = json!([{"any": "line"}])
        }));
        assert_eq!(
            shown(&beyond_the_quota(&all, "controller")),
            ["crowd/r-0100", "crowd/r-0101"]
        );
        // One that may act needed a right to be there, and crowds out one to look at.
        all.push(record("crowd", 503, |r| r["spec"]["mode"] = json!("Auto")));
        assert_eq!(
            shown(&beyond_the_quota(&all, "controller")),
            ["crowd/r-0099", "crowd/r-0100", "crowd/r-0101"]
        );
    }

    #[test]
    fn finished_records_that_acted_are_kept_the_longest() {
        let over = |r: &mut serde_json::Value| r["status"]["phase"] = json!("Aborted");
        let mut all: Vec<_> = (2..KEEP_PER_NAMESPACE + 2)
            .map(|n| record("crowd", n, over))
            .collect();
        assert_eq!(surplus(&all, "controller"), BTreeSet::new());
        all.push(record("crowd", 0, |r| {
            over(r);
            r["status"]["journal"] = json!([{"any": "line"}]);
        }));
        all.push(record("crowd", 1, |r| {
            over(r);
            r["spec"]["requester"] = json!("controller");
        }));
        assert_eq!(
            shown(&surplus(&all, "controller")),
            ["crowd/r-0002", "crowd/r-0003"]
        );
    }

    #[test]
    fn the_newest_five_of_a_claim_are_kept() {
        let of_one_claim = |r: &mut serde_json::Value| {
            r["status"]["phase"] = json!("Failed");
            r["spec"]["claimName"] = json!("data");
        };
        let mut all: Vec<_> = (0..6).map(|n| record("ns", n, of_one_claim)).collect();
        all.push(record("others", 0, of_one_claim));
        assert_eq!(shown(&surplus(&all, "controller")), ["ns/r-0000"]);
        all.push(record("ns", 9, |r| {
            of_one_claim(r);
            r["metadata"]["finalizers"] = json!(["reattach.dev/restore"]);
        }));
        assert_eq!(
            shown(&surplus(&all, "controller")),
            ["ns/r-0000"],
            "it is not over yet"
        );
    }
}
