//! The history of holders, which shows whether a volume ever had two at one time.

use crate::model::{InstanceNo, InstanceStatus, VolumeNo};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The place at which an instance holds a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldSource {
    /// The API names the instance as the holder.
    Api,
    /// The instance's guest runs and has the device: it can write.
    Guest,
    /// The instance's guest has the device mounted or open: writes may be under way.
    Writer,
}

/// A time in which an instance held a volume. The end is exclusive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderInterval {
    /// Volume that was held.
    pub volume: VolumeNo,
    /// Instance that held it.
    pub instance: InstanceNo,
    /// Place at which the instance held the volume.
    pub source: HoldSource,
    /// Begin of the interval.
    pub from: Timestamp,
    /// End of the interval. `None`: it has not ended.
    pub until: Option<Timestamp>,
}

impl HolderInterval {
    /// Returns whether the interval covers this time.
    pub fn covers(&self, at: Timestamp) -> bool {
        self.from <= at && self.until.is_none_or(|until| at < until)
    }
}

/// A device that was taken from a running guest while the guest had it in use (mounted or open).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// Volume that was taken.
    pub volume: VolumeNo,
    /// Instance whose guest used it.
    pub instance: InstanceNo,
    /// Time at which it was taken.
    pub at: Timestamp,
}

/// All intervals since the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    intervals: Vec<HolderInterval>,
    pub(crate) pulled: Vec<Pulled>,
    /// Real power states of the instances, each with the time from which it holds. `None`: the instance was deleted.
    power: Vec<(InstanceNo, Timestamp, Option<InstanceStatus>)>,
}

impl History {
    pub(crate) fn gained(
        &mut self,
        volume: VolumeNo,
        instance: InstanceNo,
        source: HoldSource,
        at: Timestamp,
    ) {
        if !self.holds(volume, instance, source) {
            self.intervals.push(HolderInterval {
                volume,
                instance,
                source,
                from: at,
                until: None,
            });
        }
    }

    pub(crate) fn lost(
        &mut self,
        volume: VolumeNo,
        instance: InstanceNo,
        source: HoldSource,
        at: Timestamp,
    ) {
        for interval in &mut self.intervals {
            let same = interval.volume == volume
                && interval.instance == instance
                && interval.source == source;
            if same && interval.until.is_none() {
                interval.until = Some(at);
            }
        }
    }

    pub(crate) fn powered(
        &mut self,
        instance: InstanceNo,
        status: Option<InstanceStatus>,
        at: Timestamp,
    ) {
        self.power.push((instance, at, status));
    }

    /// Returns the power state at a time. `None`: before the instance was created, or after it was deleted.
    pub(crate) fn power_at(&self, instance: InstanceNo, at: Timestamp) -> Option<InstanceStatus> {
        let known = self
            .power
            .iter()
            .rev()
            .find(|(i, from, _)| *i == instance && *from <= at);
        known.and_then(|(_, _, status)| status.clone())
    }

    fn holds(&self, volume: VolumeNo, instance: InstanceNo, source: HoldSource) -> bool {
        self.intervals.iter().any(|i| {
            i.volume == volume && i.instance == instance && i.source == source && i.until.is_none()
        })
    }

    pub(crate) fn of(&self, volume: VolumeNo, source: HoldSource) -> Vec<HolderInterval> {
        self.intervals
            .iter()
            .filter(|i| i.volume == volume && i.source == source)
            .cloned()
            .collect()
    }

    /// Returns the greatest number of instances that held the volume at one time, at any of these places. The number rises
    /// only where an interval begins, so only those times are counted.
    pub(crate) fn max_holders(&self, volume: VolumeNo, sources: &[HoldSource]) -> usize {
        let mine: Vec<_> = self
            .intervals
            .iter()
            .filter(|i| i.volume == volume && sources.contains(&i.source))
            .collect();
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
