//! Answers a challenge from one scan.

use super::block::Family;
use super::csi::{self, Place};
use super::io::Traffic;
use super::mountinfo::Dev;
use super::probe::{Claim, claim};
use super::{MountView, Scan, bounded, orphan, users};
use jiff::Timestamp;
use reattach_core::guest::{Answer, Challenge, DeviceUsers, Level, ScanResult};
use std::collections::BTreeSet;

/// Driver states of a working disk. In other states its removal has begun and not finished: `offline`, `transport-offline`,
/// `cancel`, `deleted` (SCSI), `deleting`, `dead` (NVMe).
const WORKING: [&str; 2] = ["running", "live"];

impl Scan {
    /// Returns the answer of this scan to one challenge. The scan must have begun at `scanned_at`, after the challenge was
    /// read, with [`Scan::for_challenges`]. A scan by [`Scan::new`] never answers "clean".
    ///
    /// At the full level this opens the device, if it exists and has no other sign of a user.
    pub fn answer(&self, challenge: &Challenge, scanned_at: Timestamp) -> Answer {
        Answer {
            recovery: challenge.recovery.clone(),
            epoch: challenge.epoch,
            identity: challenge.identity.clone(),
            boot_id: self.boot_id.clone(),
            scanned_at,
            level: self.root.level(),
            seen: self.seen(challenge),
        }
    }

    /// Answers "in use" also when some items could not be read. Any other answer needs all items.
    fn seen(&self, challenge: &Challenge) -> ScanResult {
        let wanted = &challenge.identity.serial;
        let is_wanted = |(name, _): &(&String, &Family)| {
            self.blocks
                .nodes
                .get(*name)
                .is_some_and(|node| node.identities.contains(wanted))
        };
        let (disks, found): (Vec<&String>, Vec<&Family>) =
            self.families.iter().filter(is_wanted).unzip();
        let devs: BTreeSet<Dev> = found
            .iter()
            .flat_map(|family| &family.devs)
            .copied()
            .collect();
        let mut users = self.users(&found, users::Detail::Everything);
        let (dead, live): (Vec<&MountView>, Vec<&MountView>) = self
            .of_volume(challenge)
            .into_iter()
            .partition(|view| self.dead.contains(&view.mount.dev));
        // A volume that kubelet has mounted from another device than the challenge's is not idle either.
        let elsewhere = live
            .iter()
            .filter(|view| view.devs.is_disjoint(&devs))
            .map(|view| view.label());
        users.mounts = users::first_entries(users.mounts.into_iter().chain(elsewhere).collect());
        if !found.is_empty() {
            self.add_close_findings(challenge, &disks, &devs, &mut users);
        }
        let paths = users::first_entries(dead.iter().map(|view| view.label()).collect());
        if !users.is_empty() {
            return ScanResult::InUse { users };
        }
        let unexplained =
            |view: &&MountView| self.is_orphan(view) && !self.is_anothers(view, challenge);
        let orphans = self.views.iter().filter(unexplained).map(orphan);
        // Processes were scanned only if the device exists.
        let hidden = self
            .close
            .iter()
            .flat_map(|close| &close.processes.unreadable);
        let items = bounded(
            self.unreadable
                .iter()
                .chain(hidden)
                .cloned()
                .chain(orphans)
                .collect(),
        );
        match (items.is_empty(), found.is_empty(), paths.is_empty()) {
            (false, _, _) => ScanResult::Unreadable { items },
            (true, true, true) => ScanResult::NoDevice,
            (true, true, false) => ScanResult::DeadMount { paths },
            (true, false, true) => self.idle(&disks, &devs),
            (true, false, false) => {
                // The device has returned under another number, and kubelet still has the mount of the old one.
                users.mounts = paths
                    .into_iter()
                    .map(|path| format!("{path} (dead)"))
                    .collect();
                ScanResult::InUse { users }
            }
        }
    }

    /// Adds the users of an existing device that only a scan for challenges finds: programs that work on the device or on a
    /// path of the volume, processes of pods that had the volume, and writes.
    fn add_close_findings(
        &self,
        challenge: &Challenge,
        disks: &[&String],
        devs: &BTreeSet<Dev>,
        users: &mut DeviceUsers,
    ) {
        let Some(close) = &self.close else { return };
        let key = (challenge.driver.clone(), challenge.handle.clone());
        let is_own_path =
            |path: &String| csi::place(path).is_some_and(|place| self.is_own(&place, challenge));
        let mut openers: BTreeSet<String> = users.openers.drain(..).collect();
        for program in &close.processes.programs {
            if !program.devs.is_disjoint(devs) || program.arguments.iter().any(is_own_path) {
                openers.insert(program.name.clone());
            }
        }
        let pods = self
            .folders
            .volumes
            .get(&key)
            .into_iter()
            .flat_map(|folder| &folder.pods);
        for (pod, processes) in pods.filter_map(|pod| close.processes.pods.get_key_value(pod)) {
            openers.extend(
                processes
                    .iter()
                    .map(|process| format!("{process} (of pod {pod})")),
            );
        }
        users.openers = users::first_entries(openers);
        let traffic = |disk: &&String| close.after.since(&close.before, disk);
        users.active = disks.iter().any(|disk| traffic(disk) == Traffic::Active);
    }

    /// Returns the answer for an existing device without a sign of a user. "Clean" needs the full level, a scan for the
    /// challenge without gaps, and an exclusive open.
    fn idle(&self, disks: &[&String], devs: &BTreeSet<Dev>) -> ScanResult {
        let (Level::Full, Some(close)) = (self.root.level(), &self.close) else {
            return ScanResult::Idle;
        };
        let mut doubts: BTreeSet<String> = self.unresolved_loops.iter().cloned().collect();
        let ambiguous = close
            .processes
            .programs
            .iter()
            .filter(|program| program.is_ambiguous);
        doubts.extend(
            ambiguous
                .map(|program| format!("{}: on which device it works is not known", program.name)),
        );
        for disk in disks {
            if let Traffic::Unknown(why) = close.after.since(&close.before, disk) {
                doubts.insert(why);
            }
            let state = self
                .blocks
                .nodes
                .get(*disk)
                .and_then(|node| node.state.as_deref());
            if let Some(state) = state.filter(|state| !WORKING.contains(state)) {
                doubts.insert(format!(
                    "/sys/block/{disk}/device/state: {state}, its removal is not finished"
                ));
            }
        }
        if !doubts.is_empty() {
            return ScanResult::Unreadable {
                items: bounded(doubts),
            };
        }
        let names = devs
            .iter()
            .filter_map(|dev| Some((self.blocks.name_of(*dev)?, *dev)))
            .collect();
        match claim(&self.root, names) {
            Claim::Free => ScanResult::Clean,
            Claim::Taken => ScanResult::InUse {
                users: DeviceUsers {
                    claimed: true,
                    ..DeviceUsers::default()
                },
            },
            Claim::Unknown(why) => ScanResult::Unreadable { items: vec![why] },
        }
    }

    /// Returns the mounts of the challenge's volume: those at kubelet's paths for it and, if such a mount is dead, all
    /// further mounts of that vanished device.
    fn of_volume(&self, challenge: &Challenge) -> Vec<&MountView> {
        let is_own = |view: &&MountView| {
            let place = view.place.as_ref();
            place.is_some_and(|place| self.is_own(place, challenge))
        };
        let own: Vec<&MountView> = self.views.iter().filter(is_own).collect();
        let gone: BTreeSet<Dev> = own
            .iter()
            .map(|view| view.mount.dev)
            .filter(|dev| self.dead.contains(dev))
            .collect();
        self.views
            .iter()
            .filter(|view| is_own(view) || gone.contains(&view.mount.dev))
            .collect()
    }

    /// Returns whether a path is of the challenge's volume: a `vol_data.json` says so, or it has the hash of the handle.
    fn is_own(&self, place: &Place, challenge: &Challenge) -> bool {
        let Challenge { driver, handle, .. } = challenge;
        let owner = self.folders.owner(place);
        owner.is_some_and(|key| (&key.0, &key.1) == (driver, handle))
            || matches!(place, Place::Staging(of, hash) if of == driver.as_str() && *hash == csi::staging_hash(handle))
    }

    /// Returns whether an unexplained mount certainly belongs to another volume: its path has the hash of another handle, or
    /// its device exists and has another identity.
    fn is_anothers(&self, view: &MountView, challenge: &Challenge) -> bool {
        if let Some(Place::Staging(..)) = view.place {
            return true;
        }
        let has_another = |(name, family): (&String, &Family)| {
            let node = self.blocks.nodes.get(name);
            !family.devs.is_disjoint(&view.devs)
                && node.is_some_and(|node| !node.identities.contains(&challenge.identity.serial))
        };
        self.families.iter().any(has_another)
    }
}
