//! What the guest shows: block devices, who uses them, and kubelet's CSI volumes, read from /proc and /sys below a
//! [`HostRoot`]. Follows no device link and writes nothing.
//!
//! # Flow
//! Devices first, then mount tables, kubelet's folders, swap, and processes. One [`Scan`] is one look; everything else is
//! derived from it without another look, but for the exclusive open of the full level.
//!
//! # Two levels
//! *Basic* opens no device: it can say "no device" and "in use", never "clean" of a device that is there. *Full*
//! may open the device that a challenge asks for (`probe.rs`) and looks at every thread. Only if each item of the list was
//! read and none shows a user, it says "clean".
//!
//! # Guarantees
//! What could not be read is listed, never left out silently. No call waits for a remote filesystem's server or looks
//! into a mount point. Output is sorted and bounded; the same state gives the same inventory.
//!
//! # Caveats
//! Neither level names a file that is only registered with an `io_uring`, or a user inside the kernel without a claim (an NVMe
//! target): those show by the counters alone, while they write. The basic level does not see mounts in a namespace without
//! any process and descriptor tables of single threads.

mod answer;
mod backing;
mod block;
mod csi;
mod io;
mod limited;
pub mod mountinfo;
mod probe;
mod process;
mod root;
mod traces;
mod users;
pub mod vpd;

pub use io::Counters;
pub use root::HostRoot;

use block::{Blocks, Family};
use csi::{Folders, Key, Place};
use jiff::Timestamp;
use mountinfo::{Dev, Mount, parse_swaps};
use process::Openers;
use reattach_core::cloud::DeviceIdentity;
use reattach_core::guest::{Answer, Challenge, GuestCsiVolume, GuestDevice, GuestInventory, GuestMount};
use reattach_core::ids::BootId;
use root::Reader;
use std::collections::{BTreeMap, BTreeSet};
use traces::Traces;

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

/// What only a look for a challenge has.
#[derive(Debug)]
struct Asked {
    /// Counters before and after.
    before: Counters,
    after: Counters,
    /// Of the devices that are there; nothing where none is.
    traces: Traces,
}

/// One look at a host.
#[derive(Debug)]
pub struct Scan {
    root: HostRoot,
    asked: Option<Asked>,
    /// Loops whose backing file cannot be told for sure.
    riddles: Vec<String>,
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
    Ok(Scan::asked(root, Counters::read(root), std::slice::from_ref(challenge))?
        .answer(challenge, scanned_at))
}

impl Scan {
    /// Looks at a host for the unasked report. Takes some tens of milliseconds on a busy node; blocks the calling thread.
    ///
    /// # Errors
    /// [`ScanError`] if the host's boot is not known.
    pub fn new(root: &HostRoot) -> Result<Self, ScanError> {
        Self::look(root, None)
    }

    /// Looks at a host closely, for these challenges, which were read before. `before`: the disks' counters, read after the
    /// challenges too; the longer before the call, the more they say.
    ///
    /// # Errors
    /// [`ScanError`] if the host's boot is not known.
    pub fn asked(root: &HostRoot, before: Counters, challenges: &[Challenge]) -> Result<Self, ScanError> {
        Self::look(root, Some((before, challenges)))
    }

    fn look(root: &HostRoot, asked: Option<(Counters, &[Challenge])>) -> Result<Self, ScanError> {
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
        let (backing, riddles) = backing::resolve(reader, &blocks, &views);
        let disks = blocks.nodes.iter().filter(|(_, node)| !node.identities.is_empty());
        let families: BTreeMap<_, _> =
            disks.map(|(name, _)| (name.clone(), blocks.family(name, &backing))).collect();
        let watched: BTreeSet<Dev> = families.values().flat_map(|family| &family.devs).copied().collect();
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
        let asked = asked.map(|(before, challenges)| {
            let wanted: BTreeSet<&str> = challenges.iter().map(|c| c.identity.serial.as_str()).collect();
            let is_there = blocks.nodes.values().any(|n| n.identities.iter().any(|i| wanted.contains(&**i)));
            // Where the device is gone nobody writes to it, and a process that hangs for its sake must not keep the answer.
            let traces = if is_there {
                let pods = folders.volumes.values().flat_map(|folder| &folder.pods).cloned().collect();
                traces::look(root, &blocks, &watched, pods)
            } else {
                Traces::default()
            };
            Asked { before, traces, after: Counters::read(root) }
        });
        Ok(Self {
            root: root.clone(),
            asked,
            riddles,
            boot_id,
            booted_at,
            blocks,
            families,
            views,
            openers,
            swaps,
            folders,
            dead,
            unreadable: reader.items(),
        })
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
            level: self.root.level(),
            devices: devices.collect(),
            csi_volumes,
            unreadable: bounded(self.unreadable.iter().cloned().chain(orphans).collect()),
        }
    }

    fn owner(&self, view: &View) -> Option<&Key> {
        self.folders.owner(view.place.as_ref()?)
    }

    /// A mount at a CSI volume's place that no `vol_data.json` explains.
    fn is_orphan(&self, view: &View) -> bool {
        let is_csi = matches!(view.place, Some(Place::Staging(..) | Place::Named(_) | Place::Publish(..)));
        is_csi && self.owner(view).is_none()
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

/// The boot that the host is in.
///
/// # Errors
/// [`ScanError::BootId`].
pub fn boot_id(root: &HostRoot) -> Result<BootId, ScanError> {
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
