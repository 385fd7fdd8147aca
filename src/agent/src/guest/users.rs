//! Finds the users of a device in one [`Scan`].

use super::block::Family;
use super::mountinfo::Dev;
use super::{MAX_ENTRIES, Scan};
use reattach_core::guest::DeviceUsers;
use std::collections::BTreeSet;

/// The detail of a list of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// For the inventory: users that a mount of the host explains are left out (the filesystem in a container's namespace,
    /// processes with files on it), because they change with every process that starts.
    Stable,
    /// For an answer to a challenge: all users.
    Everything,
}

/// Returns the first [`MAX_ENTRIES`] entries, sorted.
pub(super) fn first_entries(entries: BTreeSet<String>) -> Vec<String> {
    entries.into_iter().take(MAX_ENTRIES).collect()
}

impl Scan {
    /// Returns the users of these disks and of all devices on top of them.
    pub(super) fn users(&self, families: &[&Family], detail: Detail) -> DeviceUsers {
        let devs: BTreeSet<Dev> = families
            .iter()
            .flat_map(|family| &family.devs)
            .copied()
            .collect();
        let views = || {
            self.views
                .iter()
                .filter(|view| !view.devs.is_disjoint(&devs))
        };
        let hosts: BTreeSet<&str> = views()
            .filter(|view| view.process.is_none())
            .map(|view| view.mount.point.as_str())
            .collect();
        let host_devs: BTreeSet<Dev> = views()
            .filter(|view| view.process.is_none())
            .flat_map(|view| &view.devs)
            .copied()
            .collect();
        let mut mounts: BTreeSet<String> = hosts.iter().map(|point| (*point).to_owned()).collect();
        let mut seen = BTreeSet::new();
        for view in views().filter(|view| view.process.is_some()) {
            let explained = detail == Detail::Stable && !view.devs.is_disjoint(&host_devs);
            if !explained
                && !hosts.contains(view.mount.point.as_str())
                && seen.insert(view.mount.point.as_str())
            {
                mounts.insert(view.label());
            }
        }
        let mounted: BTreeSet<Dev> = views().flat_map(|view| &view.devs).copied().collect();
        let raw = devs.iter().filter_map(|dev| self.openers.raw.get(dev));
        let files = devs
            .iter()
            .filter(|dev| detail == Detail::Everything || !mounted.contains(*dev))
            .filter_map(|dev| self.openers.files.get(dev));
        let close = self
            .close
            .iter()
            .filter(|_| detail == Detail::Everything)
            .map(|close| &close.processes.openers);
        let hidden = close
            .flat_map(|openers| {
                devs.iter()
                    .flat_map(|dev| [openers.raw.get(dev), openers.files.get(dev)])
            })
            .flatten();
        DeviceUsers {
            mounts: first_entries(mounts),
            holders: first_entries(
                families
                    .iter()
                    .flat_map(|family| &family.holders)
                    .cloned()
                    .collect(),
            ),
            loops: first_entries(
                families
                    .iter()
                    .flat_map(|family| &family.loops)
                    .cloned()
                    .collect(),
            ),
            openers: first_entries(raw.chain(files).chain(hidden).flatten().cloned().collect()),
            swap: devs.iter().any(|dev| self.swaps.contains(dev)),
            ..DeviceUsers::default()
        }
    }
}
