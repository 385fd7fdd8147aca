//! What one look says about one challenge.

use super::block::Family;
use super::csi::{self, Place};
use super::io::Traffic;
use super::mountinfo::Dev;
use super::probe::{Claim, claim};
use super::{Scan, View, bounded, orphan, users};
use jiff::Timestamp;
use reattach_core::guest::{Answer, Challenge, DeviceUsers, Level, Seen};
use std::collections::BTreeSet;

/// Driver states of a disk that works. Others: `offline`, `transport-offline`, `cancel`, `deleted` (SCSI), `deleting`,
/// `dead` (NVMe): its removal was begun and not finished.
const WORKING: [&str; 2] = ["running", "live"];

impl Scan {
    /// What this look says about one challenge. It must have begun after the challenge was read, at `scanned_at`, and
    /// with [`Scan::asked`]; a mere look for the unasked report never says "clean".
    ///
    /// At the full level this opens the device, if it is there and nothing else shows a user.
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

    /// "In use" is said whatever else could not be read; everything else only if all could.
    fn seen(&self, challenge: &Challenge) -> Seen {
        let wanted = &challenge.identity.serial;
        let is_wanted = |(name, _): &(&String, &Family)| {
            self.blocks.nodes.get(*name).is_some_and(|node| node.identities.contains(wanted))
        };
        let (disks, found): (Vec<&String>, Vec<&Family>) = self.families.iter().filter(is_wanted).unzip();
        let devs: BTreeSet<Dev> = found.iter().flat_map(|family| &family.devs).copied().collect();
        let mut users = self.users_of(&found, users::Detail::Everything);
        let (dead, live): (Vec<&View>, Vec<&View>) =
            self.of_volume(challenge).into_iter().partition(|view| self.dead.contains(&view.mount.dev));
        // Mounted by kubelet from something else than the device that the challenge means: still no idle volume.
        let elsewhere = live.iter().filter(|view| view.devs.is_disjoint(&devs)).map(|view| view.label());
        users.mounts = users::bounded_set(users.mounts.into_iter().chain(elsewhere).collect());
        if !found.is_empty() {
            self.add_traces(challenge, &disks, &devs, &mut users);
        }
        let paths = users::bounded_set(dead.iter().map(|view| view.label()).collect());
        if !users.is_empty() {
            return Seen::InUse { users };
        }
        let stranger = |view: &&View| self.is_orphan(view) && !self.is_anothers(view, challenge);
        let orphans = self.views.iter().filter(stranger).map(orphan);
        // Only where the device is there: otherwise nothing of it was looked for.
        let hidden = self.asked.iter().flat_map(|asked| &asked.traces.unreadable);
        let items = bounded(self.unreadable.iter().chain(hidden).cloned().chain(orphans).collect());
        match (items.is_empty(), found.is_empty(), paths.is_empty()) {
            (false, _, _) => Seen::Unreadable { items },
            (true, true, true) => Seen::NoDevice,
            (true, true, false) => Seen::DeadMount { paths },
            (true, false, true) => self.idle(&disks, &devs),
            (true, false, false) => {
                // The device came back under another number; kubelet still holds the mount of the old one.
                users.mounts = paths.into_iter().map(|path| format!("{path} (dead)")).collect();
                Seen::InUse { users }
            }
        }
    }

    /// Users of a device that is there, which only a look for a challenge finds: programs at work on it or on a place of
    /// the volume, processes of pods that had it, and traffic.
    fn add_traces(
        &self,
        challenge: &Challenge,
        disks: &[&String],
        devs: &BTreeSet<Dev>,
        users: &mut DeviceUsers,
    ) {
        let Some(asked) = &self.asked else { return };
        let key = (challenge.driver.clone(), challenge.handle.clone());
        let is_own_place = |path: &String| {
            csi::place(path).is_some_and(|place| {
                self.folders.owner(&place) == Some(&key)
                    || place
                        == Place::Staging(challenge.driver.to_string(), csi::staging_hash(&challenge.handle))
            })
        };
        let mut openers: BTreeSet<String> = users.openers.drain(..).collect();
        for program in &asked.traces.programs {
            if !program.devs.is_disjoint(devs) || program.arguments.iter().any(is_own_place) {
                openers.insert(program.name.clone());
            }
        }
        let pods = self.folders.volumes.get(&key).into_iter().flat_map(|folder| &folder.pods);
        for (pod, processes) in pods.filter_map(|pod| asked.traces.pods.get_key_value(pod)) {
            openers.extend(processes.iter().map(|process| format!("{process} (of pod {pod})")));
        }
        users.openers = users::bounded_set(openers);
        let traffic = |disk: &&String| asked.after.since(&asked.before, disk);
        users.active = disks.iter().any(|disk| traffic(disk) == Traffic::Active);
    }

    /// Nothing shows a user of a device that is there. "Clean" takes more: the full level, a look made for the challenge,
    /// no gap in it, and an exclusive open.
    fn idle(&self, disks: &[&String], devs: &BTreeSet<Dev>) -> Seen {
        let (Level::Full, Some(asked)) = (self.root.level(), &self.asked) else { return Seen::Idle };
        let mut doubts: BTreeSet<String> = self.riddles.iter().cloned().collect();
        let riddles = asked.traces.programs.iter().filter(|program| program.is_riddle);
        doubts.extend(
            riddles.map(|program| format!("{}: on which device it works is not known", program.name)),
        );
        for disk in disks {
            if let Traffic::Unknown(why) = asked.after.since(&asked.before, disk) {
                doubts.insert(why);
            }
            let state = self.blocks.nodes.get(*disk).and_then(|node| node.state.as_deref());
            if let Some(state) = state.filter(|state| !WORKING.contains(state)) {
                doubts
                    .insert(format!("/sys/block/{disk}/device/state: {state}, its removal is not finished"));
            }
        }
        if !doubts.is_empty() {
            return Seen::Unreadable { items: bounded(doubts) };
        }
        let names = devs.iter().filter_map(|dev| Some((self.blocks.name_of(*dev)?, *dev))).collect();
        match claim(&self.root, names) {
            Claim::Free => Seen::Clean,
            Claim::Taken => Seen::InUse { users: DeviceUsers { claimed: true, ..DeviceUsers::default() } },
            Claim::Unknown(why) => Seen::Unreadable { items: vec![why] },
        }
    }

    /// Every mount of the challenge's volume: at one of kubelet's places for it, and, where that mount is dead, every
    /// other mount of the same vanished device.
    fn of_volume(&self, challenge: &Challenge) -> Vec<&View> {
        let key = (challenge.driver.clone(), challenge.handle.clone());
        let staging = Place::Staging(challenge.driver.to_string(), csi::staging_hash(&challenge.handle));
        let is_own = |view: &&View| self.owner(view) == Some(&key) || view.place.as_ref() == Some(&staging);
        let own: Vec<&View> = self.views.iter().filter(is_own).collect();
        let gone: BTreeSet<Dev> =
            own.iter().map(|view| view.mount.dev).filter(|dev| self.dead.contains(dev)).collect();
        self.views.iter().filter(|view| is_own(view) || gone.contains(&view.mount.dev)).collect()
    }

    /// Whether an unexplained mount is certainly not the challenge's: it is staged under another handle's hash, or its
    /// device is there and has another identity.
    fn is_anothers(&self, view: &View, challenge: &Challenge) -> bool {
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
