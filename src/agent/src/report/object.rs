//! What a report object says, and what its status becomes after a look. No input or output.

use crate::guest::{Counters, HostRoot, Scan, ScanError, boot_id};
use jiff::Timestamp;
use kube::api::DynamicObject;
use reattach_api::NodeVolumeReportStatus;
use reattach_core::guest::{Answer, Challenge, GuestInventory};
use reattach_core::ids::BootId;

/// The kernel derives `btime` from the wall clock at each read: a clock that is being adjusted moves it by seconds.
const BOOT_TIME_NOISE: jiff::SignedDuration = jiff::SignedDuration::from_secs(5);

/// What a look is for: decided after the challenges were read.
#[derive(Debug)]
pub(super) struct Task {
    /// Challenges that have no answer of this boot.
    open: Vec<Challenge>,
    /// The disks' counters, read if there are any.
    before: Option<Counters>,
}

/// What one look brought.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) inventory: GuestInventory,
    /// To the challenges that were open.
    answers: Vec<Answer>,
}

impl Task {
    /// Which challenges are open, and the first reading of the counters if any is.
    pub(super) fn new(
        root: &HostRoot,
        old: Option<&NodeVolumeReportStatus>,
        challenges: &[Challenge],
    ) -> Result<Self, ScanError> {
        let boot = boot_id(root)?;
        let is_open = |c: &&Challenge| old.is_none_or(|old| given(old, c, Some(&boot)).is_none());
        let open: Vec<Challenge> = challenges.iter().filter(is_open).cloned().collect();
        let before = (!open.is_empty()).then(|| Counters::read(root));
        Ok(Self { open, before })
    }

    /// Whether a challenge is to be answered.
    pub(super) fn is_asked(&self) -> bool {
        self.before.is_some()
    }

    /// Looks. `scanned_at`: a time between the reading of the challenges and this call.
    pub(super) fn look(self, root: &HostRoot, scanned_at: Timestamp) -> Result<Looked, ScanError> {
        let scan = match self.before {
            None => Scan::new(root)?,
            Some(before) => Scan::asked(root, before, &self.open)?,
        };
        let answer = |challenge: &Challenge| {
            let mut answer = scan.answer(challenge, scanned_at);
            answer.seen.make_plain();
            answer
        };
        let answers = self.open.iter().map(answer).collect();
        Ok(Looked { inventory: scan.inventory(), answers })
    }
}

/// The status after a look: the inventory (the old one while nothing changed), and one answer for each challenge that is
/// still asked, given in this boot.
pub(super) fn status(
    old: Option<&NodeVolumeReportStatus>,
    looked: Looked,
    challenges: &[Challenge],
    generation: Option<i64>,
) -> NodeVolumeReportStatus {
    let Looked { mut inventory, answers: new } = looked;
    if let Some(old) = old.and_then(|status| status.inventory.as_ref()?.get().ok())
        && is_same_boot(old, &inventory)
    {
        inventory.booted_at = old.booted_at;
    }
    inventory.make_plain();
    let answer = |challenge: &Challenge| {
        let old = old.and_then(|status| given(status, challenge, Some(&inventory.boot_id)));
        // Neither: the machine's boot ID changed while it was looked at. The next look answers.
        old.or_else(|| new.iter().find(|answer| is_to(answer, challenge))).cloned()
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

/// Whether two boot times differ by no more than what a clock under adjustment explains.
fn is_same_boot(old: &GuestInventory, new: &GuestInventory) -> bool {
    old.boot_id == new.boot_id && old.booted_at.duration_since(new.booted_at).abs() <= BOOT_TIME_NOISE
}

/// The answer to exactly this challenge, given in that boot if one is named.
pub(super) fn given<'a>(
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

/// The challenges of a report. One that this version cannot read is left unanswered, which is never "clean".
pub(super) fn challenges_of(object: &DynamicObject) -> Vec<Challenge> {
    let listed = object.data.pointer("/spec/challenges").and_then(|list| list.as_array());
    let parse = |value: &serde_json::Value| match serde_json::from_value(value.clone()) {
        Ok(challenge) => Some(challenge),
        Err(e) => {
            tracing::warn!(error = %e, "a challenge is not understood and stays unanswered");
            None
        }
    };
    listed.into_iter().flatten().filter_map(parse).collect()
}

/// The status of a report, if there is one that this version can read.
pub(super) fn status_of(object: &DynamicObject) -> Option<NodeVolumeReportStatus> {
    serde_json::from_value(object.data.get("status")?.clone()).ok()
}
