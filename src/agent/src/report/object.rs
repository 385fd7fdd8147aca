//! Reads a report object, and computes its status after a scan. No input or output.

use crate::guest::{Counters, HostRoot, Scan, ScanError, boot_id};
use jiff::Timestamp;
use kube::api::DynamicObject;
use reattach_api::NodeVolumeReportStatus;
use reattach_core::guest::{Answer, Challenge, GuestInventory};
use reattach_core::ids::BootId;

/// Maximum difference of two boot times of one boot. The kernel computes `btime` from the wall clock at each read, so it
/// moves by seconds while the clock is adjusted.
const BOOT_TIME_NOISE: jiff::SignedDuration = jiff::SignedDuration::from_secs(5);

/// A scan to come. Made after the challenges were read.
#[derive(Debug)]
pub(super) struct ScanTask {
    /// Challenges without an answer of this boot.
    open: Vec<Challenge>,
    /// The disks' counters, read if there is an open challenge.
    before: Option<Counters>,
}

/// The result of one scan.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) inventory: GuestInventory,
    /// Answers to the open challenges.
    answers: Vec<Answer>,
}

impl ScanTask {
    /// Finds the open challenges and, if there are any, reads the counters for the first time.
    pub(super) fn new(
        root: &HostRoot,
        old: Option<&NodeVolumeReportStatus>,
        challenges: &[Challenge],
    ) -> Result<Self, ScanError> {
        let boot = boot_id(root)?;
        let is_open =
            |c: &&Challenge| old.is_none_or(|old| answer_to(old, c, Some(&boot)).is_none());
        let open: Vec<Challenge> = challenges.iter().filter(is_open).cloned().collect();
        let before = (!open.is_empty()).then(|| Counters::read(root));
        Ok(Self { open, before })
    }

    /// Returns whether a challenge is open.
    pub(super) fn has_open_challenge(&self) -> bool {
        self.before.is_some()
    }

    /// Scans the host. `scanned_at`: a time between the read of the challenges and this call.
    pub(super) fn scan(self, root: &HostRoot, scanned_at: Timestamp) -> Result<Scanned, ScanError> {
        let scan = match self.before {
            None => Scan::new(root)?,
            Some(before) => Scan::for_challenges(root, before, &self.open)?,
        };
        let answer = |challenge: &Challenge| {
            let mut answer = scan.answer(challenge, scanned_at);
            answer.seen.make_plain();
            answer
        };
        let answers = self.open.iter().map(answer).collect();
        Ok(Scanned {
            inventory: scan.inventory(),
            answers,
        })
    }
}

/// Returns the status after a scan: the inventory, and the answers of this boot to the present challenges.
pub(super) fn status(
    old: Option<&NodeVolumeReportStatus>,
    scanned: Scanned,
    challenges: &[Challenge],
    generation: Option<i64>,
) -> NodeVolumeReportStatus {
    let Scanned {
        mut inventory,
        answers: new,
    } = scanned;
    if let Some(old) = old.and_then(|status| status.inventory.as_ref()?.get().ok())
        && is_same_boot(old, &inventory)
    {
        inventory.booted_at = old.booted_at;
    }
    inventory.make_plain();
    let answer = |challenge: &Challenge| {
        let old = old.and_then(|status| answer_to(status, challenge, Some(&inventory.boot_id)));
        // There may be neither, if the boot ID changed during the scan. The next scan answers.
        old.or_else(|| new.iter().find(|answer| is_to(answer, challenge)))
            .cloned()
    };
    let mut answers: Vec<Answer> = challenges.iter().filter_map(answer).collect();
    answers.sort();
    answers.dedup();
    NodeVolumeReportStatus {
        answers: answers.into_iter().map(Into::into).collect(),
        inventory: Some(inventory.into()),
        observed_generation: generation,
    }
}

/// Returns whether two inventories are of one boot. Their boot times may differ by an adjustment of the clock.
fn is_same_boot(old: &GuestInventory, new: &GuestInventory) -> bool {
    old.boot_id == new.boot_id
        && old.booted_at.duration_since(new.booted_at).abs() <= BOOT_TIME_NOISE
}

/// Returns the answer to exactly this challenge, of boot `boot` if it is given.
pub(super) fn answer_to<'a>(
    status: &'a NodeVolumeReportStatus,
    challenge: &Challenge,
    boot: Option<&BootId>,
) -> Option<&'a Answer> {
    let answers = status.answers.iter().filter_map(|answer| answer.get().ok());
    answers
        .filter(|answer| is_to(answer, challenge))
        .find(|answer| boot.is_none_or(|boot| answer.boot_id == *boot))
}

fn is_to(answer: &Answer, challenge: &Challenge) -> bool {
    answer.recovery == challenge.recovery
        && answer.epoch == challenge.epoch
        && answer.identity == challenge.identity
}

/// Returns the challenges of a report. A challenge that this version cannot read gets no answer, which never counts as
/// "clean".
pub(super) fn challenges_of(object: &DynamicObject) -> Vec<Challenge> {
    let listed = object
        .data
        .pointer("/spec/challenges")
        .and_then(|list| list.as_array());
    let parse = |value: &serde_json::Value| match serde_json::from_value(value.clone()) {
        Ok(challenge) => Some(challenge),
        Err(e) => {
            tracing::warn!(error = %e, "this version cannot read a challenge, so it gets no answer");
            None
        }
    };
    listed.into_iter().flatten().filter_map(parse).collect()
}

/// Returns the status of a report, if it has one that this version can read.
pub(super) fn status_of(object: &DynamicObject) -> Option<NodeVolumeReportStatus> {
    serde_json::from_value(object.data.get("status")?.clone()).ok()
}
