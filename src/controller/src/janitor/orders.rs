//! Orders to the cloud whose recovery is gone: what it put there stays in force until they are accounted for.

use super::{Sweep, is_over};
use crate::collect::HISTORY;
use crate::notify;
use crate::providers::Located;
use crate::recovery::let_boot;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use reattach_api::{ORDER_ANNOTATION, VolumeRecovery, VolumeRecoverySpec};
use reattach_cluster::open_orders::{self, Note, OpenOrder, Ordered};
use reattach_cluster::tidy;
use reattach_core::cloud::InstanceState;
use reattach_core::hold::HOLD_LABEL;
use reattach_core::ids::{ObjectName, Uid};
use reattach_core::journal::Outcome;
use reattach_core::plain;
use reattach_core::policy::Mode;
use reattach_core::run::{History, Sent, accounted_for};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// What the janitor knows of orders beside what the cluster shows.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Recoveries that were seen with a run and its finalizer.
    running: Mutex<BTreeSet<Uid>>,
    /// Notes whose order a person was called for.
    called: Mutex<BTreeSet<String>>,
}

impl Known {
    /// Whether a recovery with a run has vanished since the last call.
    pub(super) fn any_vanished(
        &self,
        running: BTreeSet<Uid>,
        there: impl Fn(&Uid) -> bool,
    ) -> bool {
        let mut before = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let vanished = before.iter().any(|uid| !there(uid));
        *before = running;
        vanished
    }

    /// Is the note new? A person is called for a new note once.
    fn is_news(&self, note: &str) -> bool {
        self.called
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(note.to_owned())
    }
}

impl Sweep<'_> {
    /// Whether a recovery with a run has vanished from the watch since the last look: its orders are looked at without delay.
    pub(super) fn a_run_vanished(&self) -> bool {
        let runs = |r: &VolumeRecovery| {
            !r.finalizers().is_empty() && r.status.as_ref().is_some_and(|s| !s.journal.is_empty())
        };
        let all = self.cache.recoveries.uids(|_| true);
        self.orders
            .any_vanished(self.cache.recoveries.uids(runs), |uid| all.contains(uid))
    }

    /// Looks after every order that is noted and whose recovery does not care for it any more.
    pub(super) async fn orders(&self) {
        let notes = match self.notes().await {
            Ok(notes) if notes.is_empty() => return,
            Ok(notes) => notes,
            Err(error) => return tracing::warn!(%error, "the notes of orders could not be read"),
        };
        // After the notes: a recovery exists before its orders do.
        let records = match self.records().await {
            Ok(records) => records,
            Err(error) => {
                return tracing::warn!(%error, "the recoveries of the orders could not be listed");
            }
        };
        for note in &notes {
            match records.get(&note.recovery) {
                // Its run has ended, and it does not before it knows what became of what it ordered.
                Some(own) if is_over(own) => self.executor.take_note_away(&note.name).await,
                Some(_) => {}
                None => self.orphan(note, &notes, &records).await,
            }
        }
    }

    /// Switches the automatic restart of a machine on again whose recovery is gone.
    ///
    /// # Errors
    /// Why not, as one sentence.
    async fn let_boot(&self, order: &OpenOrder) -> Result<String, String> {
        let volume = self.located(order).await?;
        let pass = self.executor.gate.tidy().map_err(|shut| shut.to_string())?;
        let outcome = let_boot(&pass, &volume, &order.holder).await;
        self.tell(
            &format!("the automatic restart of instance {}", order.holder),
            &outcome,
        );
        match outcome {
            Outcome::Applied { detail } => {
                tidy::give_back(&pass, &order.node, &order.recovery).await;
                Ok(detail)
            }
            Outcome::NotApplied { why, .. } | Outcome::Unknown { why } => Err(why),
            Outcome::RefusedByBudget { why: seen }
            | Outcome::ObservedApplied { seen }
            | Outcome::ObservedNotApplied { seen }
            | Outcome::Repeatable { why: seen } => Err(seen),
            Outcome::Withheld { shut } => Err(shut.to_string()),
        }
    }

    /// What became of an order whose recovery is gone: the automatic restart is switched on again, anything else is found out.
    /// While another order of the recovery is open, the machine is not let boot.
    async fn account_for(
        &self,
        note: &Note,
        order: &OpenOrder,
        notes: &[Note],
    ) -> Result<String, String> {
        if !matches!(order.ordered, Ordered::KeepOff) {
            return self.fate(order).await;
        }
        let other = |n: &&Note| n.recovery == note.recovery && n.name != note.name;
        match notes.iter().find(other) {
            Some(open) => Err(format!(
                "the automatic restart of instance {} stays off until the order {} is accounted for",
                order.holder, open.name
            )),
            None => self.let_boot(order).await,
        }
    }

    /// An order whose record was deleted by force.
    async fn orphan(&self, note: &Note, notes: &[Note], records: &BTreeMap<Uid, VolumeRecovery>) {
        let why = match &note.order {
            Ok(order) => match self.account_for(note, order, notes).await {
                Ok(seen) => {
                    tracing::warn!(
                        note = note.name,
                        intent = order.intent,
                        seen,
                        "the outcome of an order is known"
                    );
                    return self.executor.take_note_away(&note.name).await;
                }
                Err(why) => why,
            },
            Err(why) => why.clone(),
        };
        let sentence = sentence(note, &why, self.executor.gate.locks());
        if self.orders.is_news(&note.name) {
            let lease = k8s_openapi::api::core::v1::ObjectReference {
                api_version: Some("coordination.k8s.io/v1".to_owned()),
                kind: Some("Lease".to_owned()),
                name: Some(note.name.clone()),
                namespace: Some(self.executor.gate.locks().to_owned()),
                ..Default::default()
            };
            notify::person_needed(self.executor, &lease, "OrderUnaccounted", sentence.clone())
                .await;
        }
        let Ok(order) = &note.order else { return };
        let Ok(pass) = self.executor.gate.tidy() else {
            return;
        };
        let now = self.executor.collector.clock.now();
        let kept = tidy::keep_lock(&pass, &order.node, &order.recovery, now).await;
        if !kept.applied() {
            tracing::warn!(node = %order.node, outcome = ?kept, "the lock of the node could not be renewed");
        }
        if order.by_gate && matches!(order.ordered, Ordered::Detach) {
            self.hold_again(note, order, &sentence, records).await;
        }
    }

    /// Every note, read live.
    pub(super) async fn notes(&self) -> Result<Vec<Note>, kube::Error> {
        open_orders::list(&self.read(), self.executor.gate.locks()).await
    }

    /// Why something may not be restored yet: an order to the cloud that `about` picks is noted. What cannot be read is no "no".
    pub(super) async fn ordered(&self, about: impl Fn(&Note) -> bool) -> Option<String> {
        match self.notes().await {
            Ok(notes) => {
                let note = notes.iter().find(|note| about(note))?;
                let why = "its outcome is not known";
                Some(sentence(note, why, self.executor.gate.locks()))
            }
            Err(error) => Some(format!(
                "whether an order to the cloud is open could not be read: {error}"
            )),
        }
    }

    /// What became of an order, by the cloud's word.
    ///
    /// # Errors
    /// What is not known, as one sentence.
    async fn fate(&self, order: &OpenOrder) -> Result<String, String> {
        let now = || self.executor.collector.clock.now();
        let located = self.located(order).await?;
        let expires = located.provider().orders_expire_after();
        let sent = Sent {
            at: order.sent,
            newest_job: order.newest_job.as_ref(),
            expires_after_seconds: expires.and_then(|d| i64::try_from(d.as_secs()).ok()),
        };
        let (read, since) = (
            now(),
            now().saturating_sub(HISTORY).unwrap_or(Timestamp::MIN),
        );
        let unread = || "the provider's history could not be read".to_owned();
        match order.ordered {
            Ordered::Detach => {
                let jobs = located.jobs(since, now).await;
                let jobs = jobs.shown().ok_or_else(unread)?;
                accounted_for(&sent, History::Detach(jobs), read)
            }
            // It is switched on again instead (`account_for`).
            Ordered::KeepOff => Err("the automatic restart is off".to_owned()),
            Ordered::Power(change) => {
                let holder = std::slice::from_ref(&order.holder);
                let (power, instances) = tokio::join!(
                    located.power(holder, since, now(), now),
                    located.instances(holder, now(), now)
                );
                let gone = instances.get(&order.holder).and_then(|f| f.shown());
                if gone.is_some_and(|i| i.state == InstanceState::Gone) {
                    return Ok("the instance is gone".to_owned());
                }
                let facts = power
                    .get(&order.holder)
                    .and_then(|f| f.shown())
                    .ok_or_else(unread)?;
                accounted_for(&sent, History::Power(&facts.jobs, change), read)
            }
        }
    }

    /// The volume of an order at its provider.
    ///
    /// # Errors
    /// That it is not known, as one sentence.
    async fn located(&self, order: &OpenOrder) -> Result<Located, String> {
        let collector = &self.executor.collector;
        let now = || collector.clock.now();
        let by_handle = order
            .csi
            .as_ref()
            .and_then(|csi| collector.providers.locate(csi).ok().flatten());
        match by_handle.filter(|l| l.id == order.volume) {
            Some(located) => Ok(located),
            None => collector
                .providers
                .locate_again(&order.volume, &[], now(), now)
                .await
                .map(|(located, _)| located)
                .ok_or_else(|| "it is not known which provider got the order".to_owned()),
        }
    }

    /// The label of the hold went with the record, and new pods of the claim would come. Another record keeps them away: it
    /// waits for the order and does nothing else.
    async fn hold_again(
        &self,
        note: &Note,
        order: &OpenOrder,
        why: &str,
        records: &BTreeMap<Uid, VolumeRecovery>,
    ) {
        let holds = |r: &VolumeRecovery| {
            r.annotations().get(ORDER_ANNOTATION) == Some(&note.name)
                && r.metadata.deletion_timestamp.is_none()
        };
        if records.values().any(holds) {
            return;
        }
        let ObjectName {
            namespace,
            name: claim,
        } = order.claim.clone();
        let recovery = VolumeRecovery {
            metadata: ObjectMeta {
                name: Some(note.name.clone()),
                namespace: Some(namespace),
                labels: Some(BTreeMap::from([(HOLD_LABEL.to_owned(), "true".to_owned())])),
                annotations: Some(BTreeMap::from([(
                    ORDER_ANNOTATION.to_owned(),
                    note.name.clone(),
                )])),
                ..ObjectMeta::default()
            },
            spec: VolumeRecoverySpec {
                reason: Some(plain::sentence(why, plain::SENTENCE_CHARS)),
                ..VolumeRecoverySpec::new(
                    &claim,
                    Mode::Observe,
                    reattach_core::runbook::DEFAULT_RUNBOOK,
                    self.executor.rights.me(),
                )
            },
            status: None,
        };
        let Ok(pass) = self.executor.gate.tidy() else {
            return;
        };
        let outcome = tidy::keep_held(&pass, &recovery).await;
        self.tell(
            &format!(
                "the hold of claim {} for the order {}",
                order.claim, note.name
            ),
            &outcome,
        );
    }
}

/// What is the case, what reattach does, and what a person can do.
fn sentence(note: &Note, why: &str, namespace: &str) -> String {
    let what = match &note.order {
        Ok(order) => format!("recovery {} ordered: {}", order.recovery, order.intent),
        Err(_) => format!(
            "the recovery with UID {} sent an order to the cloud",
            note.recovery
        ),
    };
    format!(
        "{what}; {why}. The record of the recovery was deleted, so its holds, taints and locks stay in force. Once you are sure that nothing is under way: kubectl delete lease -n {namespace} {}",
        note.name
    )
}
