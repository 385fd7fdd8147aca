//! What the guest shows: block devices, who uses them, and kubelet's CSI volumes, read from /proc and /sys below a
//! [`HostRoot`]. Opens no device, follows no device link, writes nothing.
//!
//! # Flow
//! Devices first, then mount tables, kubelet's folders, swap, and processes. One [`Scan`] is one look; everything else is
//! derived from it without another look.
//!
//! # Guarantees
//! What could not be read is listed, never left out silently. No call waits for a remote filesystem's server or looks
//! into a mount point. Output is sorted and bounded; the same state gives the same inventory.
//!
//! # Caveats
//! This is the *basic* level: it can say "no device" and "in use", never "clean". It does not see mounts in a namespace
//! without any process, files that are only mapped into memory, descriptor tables of single threads, or openers inside
//! the kernel that show neither in `holders/` nor as a loop or swap device.

mod block;
mod csi;
pub mod mountinfo;
mod process;
mod root;
mod users;
pub mod vpd;

pub use root::HostRoot;

use block::{Blocks, Family};
use csi::{Folders, Key, Place};
use jiff::Timestamp;
use mountinfo::{Dev, Mount, parse_swaps};
use process::Openers;
use reattach_core::cloud::DeviceIdentity;
use reattach_core::guest::{
    Answer, Challenge, GuestCsiVolume, GuestDevice, GuestInventory, GuestMount, Level, Seen,
};
use reattach_core::ids::BootId;
use root::Reader;
use std::collections::{BTreeMap, BTreeSet};

/// Entries in each list of a report (see [`reattach_core::guest::DeviceUsers`]). Lists of devices and volumes are never
/// cut: what is missing from them counts as absent.
pub const MAX_ENTRIES: usize = 16;

/// Why there is no report at all: without a boot it belongs to, nothing that was seen means anything.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The boot ID could not be read.
    #[error("the host's boot ID cannot be read from {path}: {source}")]
    BootId {
        /// Where it should be.
        path: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The boot time could not be read.
    #[error("the host's boot time cannot be read from {path}: {why}")]
    BootTime {
        /// Where it should be.
        path: String,
        /// What went wrong.
        why: String,
    },
}

/// A mount with the devices behind it and the mount namespace it is in.
#[derive(Debug)]
struct View {
    mount: Mount,
    devs: BTreeSet<Dev>,
    place: Option<Place>,
    /// A process of its namespace; `None` for the host's own.
    process: Option<String>,
}

impl View {
    /// The mount point, with the namespace if it is not the host's.
    fn label(&self) -> String {
        match &self.process {
            None => self.mount.point.clone(),
            Some(process) => format!("{} (mount namespace of {process})", self.mount.point),
        }
    }
}

/// One look at a host.
#[derive(Debug)]
pub struct Scan {
    boot_id: BootId,
    booted_at: Timestamp,
    blocks: Blocks,
    families: BTreeMap<String, Family>,
    views: Vec<View>,
    openers: Openers,
    swaps: BTreeSet<Dev>,
    folders: Folders,
    /// Numbers that are mounted somewhere while no such device is in /sys.
    dead: BTreeSet<Dev>,
    unreadable: Vec<String>,
}

/// One look, as an unasked report.
///
/// # Errors
/// [`ScanError`] if the host's boot is not known. Everything else that cannot be read is listed in the report.
pub fn scan(root: &HostRoot) -> Result<GuestInventory, ScanError> {
    Ok(Scan::new(root)?.inventory())
}

/// A new look for one challenge. `scanned_at` is the node's time at the call.
///
/// # Errors
/// [`ScanError`] if the host's boot is not known. Everything else that cannot be read is listed in the answer.
pub fn answer(root: &HostRoot, challenge: &Challenge, scanned_at: Timestamp) -> Result<Answer, ScanError> {
    Ok(Scan::new(root)?.answer(challenge, scanned_at))
}

impl Scan {
    /// Looks at a host. Takes some tens of milliseconds on a busy node; blocks the calling thread.
    ///
    /// # Errors
    /// [`ScanError`] if the host's boot is not known.
    pub fn new(root: &HostRoot) -> Result<Self, ScanError> {
        let boot_id = boot_id(root)?;
        let booted_at = boot_time(root)?;
        let mut reader = Reader::new(root);
        let reader = &mut reader;
        let blocks = block::read(reader);
        let pids = process::pids(reader);
        let namespaces = process::namespaces(reader, &pids);
        let mut views = Vec::new();
        for namespace in namespaces {
            for mount in namespace.mounts {
                // In a namespace of its own a tenant may mount a tmpfs wherever it likes, but no block device.
                let trusted = namespace.process.is_none() || mount.dev.major != 0;
                let place = if trusted { csi::place(&mount.point) } else { None };
                let devs = devices_of(reader, &blocks, &mount);
                if place.is_some() || !devs.is_empty() {
                    views.push(View { mount, devs, place, process: namespace.process.clone() });
                }
            }
        }
        let folders = csi::read(reader);
        let backing = backing(reader, &blocks, &views);
        let disks = blocks.nodes.iter().filter(|(_, node)| !node.identities.is_empty());
        let families: BTreeMap<_, _> =
            disks.map(|(name, _)| (name.clone(), blocks.family(name, &backing))).collect();
        let watched = families.values().flat_map(|family| &family.devs).copied().collect();
        let openers = process::openers(reader, &pids, &watched, &blocks);
        let swaps = swaps(reader, &blocks);
        let mounted: BTreeSet<Dev> =
            views.iter().map(|view| view.mount.dev).filter(|dev| dev.major != 0).collect();
        // Asked now, not of the list made before: a device may have come since.
        let gone = |dev: &Dev| {
            !blocks.has(*dev)
                && std::fs::symlink_metadata(root.join(&format!("/sys/dev/block/{dev}"))).is_err()
        };
        let dead = mounted.into_iter().filter(gone).collect();
        let unreadable = reader.items();
        Ok(Self { boot_id, booted_at, blocks, families, views, openers, swaps, folders, dead, unreadable })
    }

    /// The unasked report.
    pub fn inventory(&self) -> GuestInventory {
        let devices = self.families.iter().filter_map(|(name, family)| {
            let node = self.blocks.nodes.get(name)?;
            Some(GuestDevice {
                kernel_name: name.clone(),
                dev: node.dev.to_string(),
                identity: DeviceIdentity { serial: node.identities.first()?.clone() },
                size_bytes: node.size_bytes,
                users: self.users(family, users::Detail::Stable),
            })
        });
        let csi_volumes = self.folders.volumes.iter().map(|(key, folder)| GuestCsiVolume {
            pv: folder.pv.clone(),
            driver: key.0.clone(),
            handle: key.1.clone(),
            pods: folder.pods.iter().take(MAX_ENTRIES).cloned().collect(),
            mounts: self.mounts(self.views.iter().filter(|view| self.owner(view) == Some(key))),
        });
        let mut csi_volumes: Vec<_> = csi_volumes.collect();
        csi_volumes.sort();
        let orphans = self.views.iter().filter(|view| self.is_orphan(view)).map(orphan);
        GuestInventory {
            boot_id: self.boot_id.clone(),
            booted_at: self.booted_at,
            level: Level::Basic,
            devices: devices.collect(),
            csi_volumes,
            unreadable: bounded(self.unreadable.iter().cloned().chain(orphans).collect()),
        }
    }

    /// What this look says about one challenge. It must have begun after the challenge was read, at `scanned_at`.
    pub fn answer(&self, challenge: &Challenge, scanned_at: Timestamp) -> Answer {
        Answer {
            recovery: challenge.recovery.clone(),
            epoch: challenge.epoch,
            identity: challenge.identity.clone(),
            boot_id: self.boot_id.clone(),
            scanned_at,
            seen: self.seen(challenge),
        }
    }

    /// "In use" is said whatever else could not be read; everything else only if all could.
    fn seen(&self, challenge: &Challenge) -> Seen {
        let wanted = &challenge.identity.serial;
        let found: Vec<&Family> = self
            .families
            .iter()
            .filter(|(name, _)| {
                self.blocks.nodes.get(*name).is_some_and(|node| node.identities.contains(wanted))
            })
            .map(|(_, family)| family)
            .collect();
        let devs: BTreeSet<Dev> = found.iter().flat_map(|family| &family.devs).copied().collect();
        let mut users = self.users_of(&found, users::Detail::Everything);
        let (dead, live): (Vec<&View>, Vec<&View>) =
            self.of_volume(challenge).into_iter().partition(|view| self.dead.contains(&view.mount.dev));
        // Mounted by kubelet from something else than the device that the challenge means: still no idle volume.
        let elsewhere = live.iter().filter(|view| view.devs.is_disjoint(&devs)).map(|view| view.label());
        users.mounts = users::bounded_set(users.mounts.into_iter().chain(elsewhere).collect());
        let paths = users::bounded_set(dead.iter().map(|view| view.label()).collect());
        if !users.is_empty() {
            return Seen::InUse { users };
        }
        let stranger = |view: &&View| self.is_orphan(view) && !self.is_anothers(view, challenge);
        let orphans = self.views.iter().filter(stranger).map(orphan);
        let items = bounded(self.unreadable.iter().cloned().chain(orphans).collect());
        match (items.is_empty(), found.is_empty(), paths.is_empty()) {
            (false, _, _) => Seen::Unreadable { items },
            (true, true, true) => Seen::NoDevice,
            (true, true, false) => Seen::DeadMount { paths },
            (true, false, true) => Seen::Idle,
            (true, false, false) => {
                // The device came back under another number; kubelet still holds the mount of the old one.
                users.mounts = paths.into_iter().map(|path| format!("{path} (dead)")).collect();
                Seen::InUse { users }
            }
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

    fn owner(&self, view: &View) -> Option<&Key> {
        self.folders.owner(view.place.as_ref()?)
    }

    /// A mount at a CSI volume's place that no `vol_data.json` explains.
    fn is_orphan(&self, view: &View) -> bool {
        let is_csi = matches!(view.place, Some(Place::Staging(..) | Place::Named(_) | Place::Publish(..)));
        is_csi && self.owner(view).is_none()
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

    /// Mounts as a report shows them: the host's, and of devices that the host does not have mounted there, each mount
    /// point that another namespace has. (Every pod that sees the host's `/`, this agent too, repeats the host's mounts.)
    fn mounts<'a>(&self, views: impl Iterator<Item = &'a View>) -> Vec<GuestMount> {
        let views: Vec<&View> = views.collect();
        let is_hosts = |view: &&&View| view.process.is_none();
        let host: BTreeSet<Dev> = views.iter().filter(is_hosts).map(|view| view.mount.dev).collect();
        let mut seen = BTreeSet::new();
        let mut mounts: Vec<GuestMount> = views
            .iter()
            .filter(|view| view.process.is_none() || !host.contains(&view.mount.dev))
            .filter(|view| seen.insert((view.mount.point.clone(), view.mount.dev)))
            .map(|view| GuestMount {
                path: view.label(),
                dev: view.mount.dev.to_string(),
                dead: self.dead.contains(&view.mount.dev),
                read_only: view.mount.read_only,
            })
            .collect();
        mounts.sort_by_key(|mount| mount.dead);
        mounts.truncate(MAX_ENTRIES);
        mounts.sort();
        mounts
    }
}

/// The devices behind a mount: its own number; where a multi-device filesystem has an anonymous one, the devices it was
/// mounted from; and for a device node that is itself bind-mounted (raw block volumes), that device. Elsewhere the source
/// is any text that whoever mounted it liked: a tenant's tmpfs named `/dev/sda` must not look like a user of the disk.
fn devices_of(reader: &mut Reader<'_>, blocks: &Blocks, mount: &Mount) -> BTreeSet<Dev> {
    if mount.dev.major != 0 {
        return BTreeSet::from([mount.dev]);
    }
    match mount.fs_type.as_str() {
        "devtmpfs" => blocks.by_name(mount.root.trim_start_matches('/')).into_iter().collect(),
        "btrfs" | "bcachefs" => {
            let sources = mount.source.split(':').filter(|source| source.starts_with("/dev/"));
            sources.filter_map(|source| blocks.by_path(reader, source)).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// On which device each loop's backing file is: the file itself is one, or it lies on a filesystem of one.
fn backing(reader: &mut Reader<'_>, blocks: &Blocks, views: &[View]) -> BTreeMap<String, Dev> {
    let mut found = BTreeMap::new();
    for (name, file) in blocks.loops() {
        let file = file.strip_suffix(" (deleted)").unwrap_or(&file);
        let host = || views.iter().filter(|view| view.process.is_none());
        let node = host().find(|view| view.mount.point == file).and_then(|view| view.devs.first().copied());
        let around = || {
            let on = |point: &str| {
                file.strip_prefix(point).is_some_and(|rest| point == "/" || rest.starts_with('/'))
            };
            let mounts = host().filter(|view| on(&view.mount.point));
            mounts.max_by_key(|view| view.mount.point.len()).and_then(|view| view.devs.first().copied())
        };
        if let Some(dev) = node.or_else(|| blocks.by_path(reader, file)).or_else(around) {
            found.insert(name, dev);
        }
    }
    found
}

fn swaps(reader: &mut Reader<'_>, blocks: &Blocks) -> BTreeSet<Dev> {
    let Some(table) = reader.read("/proc/swaps") else { return BTreeSet::new() };
    let (swaps, all_good) = parse_swaps(&table);
    if let Err(e) = all_good {
        reader.unreadable("/proc/swaps", e);
    }
    let mut found = BTreeSet::new();
    for swap in swaps.into_iter().filter(|swap| swap.is_device) {
        match blocks.by_path(reader, &swap.path) {
            Some(dev) => {
                found.insert(dev);
            }
            None => reader.unreadable("/proc/swaps", format!("no device is known as {}", swap.path)),
        }
    }
    found
}

fn boot_id(root: &HostRoot) -> Result<BootId, ScanError> {
    let place = root.join("/proc/sys/kernel/random/boot_id");
    let path = place.display().to_string();
    let text = match std::fs::read_to_string(&place) {
        Ok(text) => text.trim().to_owned(),
        Err(source) => return Err(ScanError::BootId { path, source }),
    };
    if text.is_empty() {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, "the file is empty");
        return Err(ScanError::BootId { path, source });
    }
    Ok(BootId::new(text))
}

fn boot_time(root: &HostRoot) -> Result<Timestamp, ScanError> {
    let place = root.join("/proc/stat");
    let fail = |why: String| ScanError::BootTime { path: place.display().to_string(), why };
    let stat = std::fs::read_to_string(&place).map_err(|e| fail(e.to_string()))?;
    let btime = stat.lines().find_map(|line| line.strip_prefix("btime "));
    let seconds = btime.ok_or_else(|| fail("it has no btime line".to_owned()))?;
    let seconds = seconds.trim().parse().map_err(|e: std::num::ParseIntError| fail(e.to_string()))?;
    Timestamp::from_second(seconds).map_err(|e| fail(e.to_string()))
}

fn orphan(view: &View) -> String {
    format!("{}: a CSI volume is mounted there and no vol_data.json says which", view.label())
}

/// At most [`MAX_ENTRIES`] of the sentences, sorted; the last one says that there are more.
fn bounded(items: BTreeSet<String>) -> Vec<String> {
    let more = items.len() > MAX_ENTRIES;
    let keep = if more { MAX_ENTRIES - 1 } else { MAX_ENTRIES };
    items.into_iter().take(keep).chain(more.then(|| "and more".to_owned())).collect()
}
