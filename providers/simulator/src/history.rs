//! Who held which volume when: the record against which "never two holders" is checked.

use crate::model::{InstanceNo, InstanceStatus, VolumeNo};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Whose word an interval rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The API named the instance as the holder.
    Api,
    /// The instance's guest had the device and ran: it could write.
    Guest,
    /// The guest had it mounted or open besides: what it wrote may have been under way.
    Writer,
}

/// One stretch of time in which an instance held a volume. The end is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderInterval {
    /// The volume.
    pub volume: VolumeNo,
    /// The holder.
    pub instance: InstanceNo,
    /// Whose word this is.
    pub side: Side,
    /// When it began.
    pub from: Timestamp,
    /// When it ended; `None` while it lasts.
    pub until: Option<Timestamp>,
}

impl HolderInterval {
    /// Whether it held at that moment.
    pub fn covers(&self, at: Timestamp) -> bool {
        self.from <= at && self.until.is_none_or(|until| at < until)
    }
}

/// A device that was taken from a running guest while the guest had it in use (mounted or open).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// The volume.
    pub volume: VolumeNo,
    /// Who used it.
    pub instance: InstanceNo,
    /// When it was taken.
    pub at: Timestamp,
}

/// All intervals since the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    intervals: Vec<HolderInterval>,
    pub(crate) pulled: Vec<Pulled>,
    /// The power of each instance as it really was, from these moments on; none once it is deleted.
    power: Vec<(InstanceNo, Timestamp, Option<InstanceStatus>)>,
}

impl History {
    pub(crate) fn gained(&mut self, volume: VolumeNo, instance: InstanceNo, side: Side, at: Timestamp) {
        if !self.holds(volume, instance, side) {
            self.intervals.push(HolderInterval { volume, instance, side, from: at, until: None });
        }
    }

    pub(crate) fn lost(&mut self, volume: VolumeNo, instance: InstanceNo, side: Side, at: Timestamp) {
        for interval in &mut self.intervals {
            let same = interval.volume == volume && interval.instance == instance && interval.side == side;
            if same && interval.until.is_none() {
                interval.until = Some(at);
            }
        }
    }

    pub(crate) fn powered(&mut self, instance: InstanceNo, status: Option<InstanceStatus>, at: Timestamp) {
        self.power.push((instance, at, status));
    }

    /// The power at a moment; none before the instance was created and after it was deleted.
    pub(crate) fn power_at(&self, instance: InstanceNo, at: Timestamp) -> Option<InstanceStatus> {
        let known = self.power.iter().rev().find(|(i, from, _)| *i == instance && *from <= at);
        known.and_then(|(_, _, status)| status.clone())
    }

    fn holds(&self, volume: VolumeNo, instance: InstanceNo, side: Side) -> bool {
        self.intervals
            .iter()
            .any(|i| i.volume == volume && i.instance == instance && i.side == side && i.until.is_none())
    }

    pub(crate) fn of(&self, volume: VolumeNo, side: Side) -> Vec<HolderInterval> {
        self.intervals.iter().filter(|i| i.volume == volume && i.side == side).cloned().collect()
    }

    /// The greatest number of different instances that held the volume at one moment, by the given sides.
    /// A number can only rise where an interval begins, so those moments are enough.
    pub(crate) fn max_holders(&self, volume: VolumeNo, sides: &[Side]) -> usize {
        let mine: Vec<_> =
            self.intervals.iter().filter(|i| i.volume == volume && sides.contains(&i.side)).collect();
        mine.iter()
            .map(|start| {
                mine.iter()
                    .filter(|i| i.covers(start.from))
                    .map(|i| i.instance)
                    .collect::<BTreeSet<_>>()
                    .len()
            })
            .max()
            .unwrap_or(0)
    }
}
