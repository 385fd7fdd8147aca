//! Stamps that no recovery cares for any more.

use super::{Sweep, is_final, is_over};
use crate::metrics::EffectLabels;
use crate::notify;
use kube::ResourceExt;
use reattach_api::{VolumeRecovery, metadata};
use reattach_cluster::stamped::{self, Marked, Stamped};
use reattach_cluster::tidy;
use reattach_core::ids::Uid;
use reattach_core::journal::Event;
use reattach_core::plan::SoundPlan;
use reattach_core::stamp::{STAMP_ANNOTATION, Scaled, Stamp, Verdict, judge};
use reattach_core::steps::StepKind;
use reattach_core::workload::{ScalePath, WorkloadRef};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Maximum number of stamps of one namespace that are acted on or reported in one sweep; the others wait for the next.
/// Everybody who may write workloads can write as many stamps as there are workloads, and no namespace must delay another.
const STAMPS_PER_NAMESPACE: usize = 20;

/// What the janitor knows of stamps beside what the cluster shows.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Scales to zero that were seen in journals, by the UID of the recovery: what counts after a record was deleted by
    /// force, for as long as this process lives.
    scales: Mutex<BTreeMap<Uid, Scale>>,
    /// Stamps that were reported, by the UID of the workload: each is reported once.
    reported: Mutex<BTreeMap<Uid, Result<Stamp, String>>>,
}

/// A workload that a journal says was scaled to zero, and the count before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scale {
    workload: Uid,
    replicas: i32,
}

impl Scale {
    /// A recovery scales one workload, and a stamp of it on another one is forged.
    fn word_about(&self, workload: &WorkloadRef) -> Word {
        Word::Scaled(if self.workload == workload.uid {
            Scaled::Journaled {
                replicas: self.replicas,
            }
        } else {
            Scaled::Never
        })
    }
}

impl Known {
    fn scale_of(&self, recovery: &Uid) -> Option<Scale> {
        self.scales
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(recovery)
            .cloned()
    }

    /// Forgets everything that no stamp and no recovery is about any more.
    fn forget(&self, found: &[Marked], live: impl Fn(&Uid) -> bool) {
        let named = |uid: &Uid| {
            found
                .iter()
                .any(|m| m.stamp.as_ref().is_ok_and(|s| s.recovery == *uid))
        };
        let mut scales = self.scales.lock().unwrap_or_else(PoisonError::into_inner);
        scales.retain(|recovery, _| live(recovery) || named(recovery));
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.retain(|workload, _| found.iter().any(|m| m.workload.uid == *workload));
    }

    /// Whether this stamp was not reported yet. From now on it was.
    fn is_news(&self, marked: &Marked) -> bool {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported
            .insert(marked.workload.uid.clone(), marked.stamp.clone())
            .as_ref()
            != Some(&marked.stamp)
    }
}

/// What the record of a recovery says of a stamp that names it.
enum Word {
    /// The recovery is under way and cares for its own stamp.
    CaresItself,
    /// The recovery is over or gone, or did not scale this workload.
    Scaled(Scaled),
    /// No journal says; the workload itself has to be looked at.
    Silent,
}

impl Sweep<'_> {
    /// Keeps in mind which workloads the recoveries that are under way have scaled to zero.
    pub(super) fn note_scales(&self) {
        for recovery in self
            .cache
            .recoveries
            .filter(|r| !is_final(r) && !r.finalizers().is_empty())
        {
            let scale = recovery
                .sound_plan()
                .and_then(|plan| scale_in(&recovery, &plan));
            // The watch takes no recovery without a UID.
            if let (Some(scale), Ok(uid)) = (scale, metadata::of(&*recovery).uid()) {
                let mut scales = self
                    .stamps
                    .scales
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                scales.insert(uid, scale);
            }
        }
    }

    /// Workloads whose stamp no recovery leads to any more.
    pub(super) async fn stamps(&self) {
        let found = match stamped::find(&self.read()).await {
            Ok(found) => found,
            Err(error) => {
                return tracing::warn!(%error, "the stamps of workloads could not be listed");
            }
        };
        if found.is_empty() {
            let cached = |uid: &Uid| {
                !self
                    .cache
                    .recoveries
                    .filter(|r| r.uid().as_deref() == Some(uid.as_str()))
                    .is_empty()
            };
            return self.stamps.forget(&found, cached);
        }
        // After the stamps: a recovery exists before its stamp does.
        let records = match self.records().await {
            Ok(records) => records,
            Err(error) => {
                return tracing::warn!(%error, "the recoveries of the stamps could not be listed");
            }
        };
        self.stamps.forget(&found, |uid| records.contains_key(uid));
        let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
        for marked in &found {
            if self.wakeup.is_told_to_stop() {
                return;
            }
            let namespace = taken
                .entry(marked.workload.name.namespace.as_str())
                .or_default();
            if *namespace >= STAMPS_PER_NAMESPACE {
                continue;
            }
            let took = match &marked.stamp {
                Ok(stamp) => self.stamp(marked, stamp, &records).await,
                Err(why) => self.no_stamp(marked, why, &records).await,
            };
            match took {
                Ok(took) => *namespace += usize::from(took),
                Err(error) => {
                    *namespace += 1;
                    tracing::warn!(workload = %marked.workload, %error, "a stamped workload could not be read");
                }
            }
        }
    }

    /// Deals with one stamp. Returns whether that took a write, a report or reads of its own.
    async fn stamp(
        &self,
        marked: &Marked,
        stamp: &Stamp,
        records: &BTreeMap<Uid, VolumeRecovery>,
    ) -> Result<bool, kube::Error> {
        let scaled = match self.word(&marked.workload, stamp, records) {
            Word::CaresItself => return Ok(false),
            Word::Scaled(scaled) => scaled,
            // Who wrote it last stands in the metadata: a forged stamp costs no further read.
            Word::Silent if !marked.written.stamp && !marked.written.replicas => {
                Scaled::NoJournal(reattach_core::stamp::Traces::default())
            }
            Word::Silent => match stamped::read(&self.read(), marked).await? {
                Some(own) => Scaled::NoJournal(own.traces(&self.read()).await?),
                None => return Ok(true),
            },
        };
        if let Verdict::Ignore(why) = judge(stamp, &scaled) {
            return Ok(self.report(marked, &why.to_string()).await);
        }
        match stamped::read(&self.read(), marked).await? {
            // What was judged is the stamp that is there.
            Some(own) if own.stamp == *stamp => {
                let gone = !records.contains_key(&stamp.recovery);
                self.restore(&own, &scaled, gone).await;
            }
            Some(_) | None => {}
        }
        Ok(true)
    }

    /// What is said of the stamp by its recovery, as it is now or as this process saw it earlier.
    fn word(
        &self,
        workload: &WorkloadRef,
        stamp: &Stamp,
        records: &BTreeMap<Uid, VolumeRecovery>,
    ) -> Word {
        let now = records
            .get(&stamp.recovery)
            .map_or(Word::Silent, |r| word_of(r, workload));
        match (now, self.stamps.scale_of(&stamp.recovery)) {
            (Word::Silent, Some(scale)) => scale.word_about(workload),
            (word, _) => word,
        }
    }

    /// `gone`: the recovery has no record any more that would say how its orders ended.
    async fn restore(&self, own: &Stamped, scaled: &Scaled, gone: bool) {
        let Stamped {
            workload,
            resource_version,
            stamp,
            ..
        } = own;
        let Verdict::Restore { replicas, doubt } = judge(stamp, scaled) else {
            return;
        };
        // An order of its recovery may still be under way, and no journal tells of it any more.
        let ordered = self.ordered(|note| note.recovery == stamp.recovery).await;
        let under_way = match ordered {
            Some(why) => Some(why),
            None => self.detach_under_way(&own.claims(replicas), gone).await,
        };
        if let Some(why) = under_way {
            tracing::error!(%workload, why, "a person is needed: a recovery that is gone scaled the workload to zero, and it is not restored yet");
            return;
        }
        // Another writer has set a count already, and that count stands.
        let count = (own.replicas == 0).then_some(replicas);
        let Ok(pass) = self.executor.gate.tidy() else {
            return;
        };
        let outcome = tidy::restore(
            &pass,
            workload,
            resource_version,
            ScalePath::Replicas,
            count,
        )
        .await;
        self.tell(
            &format!("{workload} with the stamp of recovery {}", stamp.recovery),
            &outcome,
        );
        if outcome.applied() && count.is_some() {
            self.executor
                .call_about_stamp(workload, doubt.as_ref())
                .await;
        }
    }

    /// Reports an annotation that is no stamp, unless a recovery is under way that has to do with the workload: its run sees
    /// the annotation itself. Returns whether it was reported now.
    async fn no_stamp(
        &self,
        marked: &Marked,
        why: &str,
        records: &BTreeMap<Uid, VolumeRecovery>,
    ) -> Result<bool, kube::Error> {
        let concerns = |r: &&VolumeRecovery| {
            !is_over(r)
                && r.sound_plan()
                    .is_some_and(|plan| plan.pins.workload.uid == marked.workload.uid)
        };
        if records.values().any(|r| concerns(&r)) {
            return Ok(false);
        }
        if !marked.written.replicas {
            return Ok(self
                .report(
                    marked,
                    &format!("{why}, and no recovery refers to the workload. The stamp is ignored"),
                )
                .await);
        }
        if !self.stamps.is_news(marked) {
            return Ok(false);
        }
        let note = format!(
            "{why}, and reattach wrote the workload's count last, so a recovery that is gone may have scaled it to zero. The count before is not known, so nothing is restored. Scale the workload by hand, and remove annotation {STAMP_ANNOTATION}"
        );
        notify::person_needed(
            self.executor,
            &notify::reference(&marked.workload),
            "StampUnreadable",
            note,
        )
        .await;
        Ok(true)
    }

    /// Reports a stamp that is ignored: once, however often it is seen. Returns whether it was reported now.
    async fn report(&self, marked: &Marked, why: &str) -> bool {
        if !self.stamps.is_news(marked) {
            return false;
        }
        let labels = EffectLabels {
            step: "Janitor".to_owned(),
            outcome: "ignored".to_owned(),
        };
        self.executor.metrics.effects.get_or_create(&labels).inc();
        let note = format!("{} carries a stamp of reattach: {why}", marked.workload);
        notify::left_alone(
            self.executor,
            &notify::reference(&marked.workload),
            "StampIgnored",
            note,
        )
        .await;
        true
    }
}

/// What the record of a recovery says of a stamp on this workload that names it.
fn word_of(recovery: &VolumeRecovery, workload: &WorkloadRef) -> Word {
    // A record that cannot be read is left to its own run; once that is over, the record says nothing.
    let unless_over = || {
        if is_over(recovery) {
            Word::Silent
        } else {
            Word::CaresItself
        }
    };
    match recovery.history() {
        Err(_) => return unless_over(),
        // It has not begun, or its status was emptied.
        Ok((None, _)) => return Word::Silent,
        Ok((Some(_), _)) => {}
    }
    let Some(plan) = recovery.sound_plan() else {
        return unless_over();
    };
    match scale_in(recovery, &plan) {
        Some(scale) if scale.workload == workload.uid && !is_over(recovery) => Word::CaresItself,
        // A recovery that is over may have left a write on its way, which has landed since.
        Some(scale) => scale.word_about(workload),
        None => Word::Scaled(Scaled::Never),
    }
}

/// The scale to zero that the journal says was begun.
fn scale_in(recovery: &VolumeRecovery, plan: &SoundPlan) -> Option<Scale> {
    let scale = plan.find(StepKind::ScaleToZero)?;
    let (_, journal) = recovery.history().ok()?;
    let begun = |event: &Event| matches!(event, Event::Started { step, .. } if *step == scale);
    journal.iter().any(|e| begun(&e.event)).then(|| Scale {
        workload: plan.pins.workload.uid.clone(),
        replicas: plan.pins.replicas,
    })
}
