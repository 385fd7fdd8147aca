//! Scans a host: its block devices, their users, and kubelet's CSI volumes, read from /proc and /sys below a [`HostRoot`].
//! Follows no device link and writes nothing.
//!
//! # Expected flow
//! A [`Scan`] reads devices first, then mount tables, kubelet's folders, swap areas and processes. Inventory and answers are
//! derived from it without further reads, except for the exclusive open of the full level.
//!
//! # Two levels
//! *Basic* opens no device. It can answer "no device" and "in use", and never "clean" about a device that exists. *Full* may
//! open the device of a challenge (`probe.rs`) and reads every thread. It answers "clean" only if each item was read and
//! none shows a user.
//!
//! # Guarantees
//! - Every item that could not be read is listed.
//! - No call waits for a remote filesystem's server or reads below a mount point.
//! - Output is sorted and bounded. One state gives one inventory.
//!
//! # Caveats
//! - Neither level names a file that is only registered with an `io_uring`, or a user inside the kernel without a claim (an
//!   NVMe target). Only the counters show them, while they write.
//! - The basic level does not see mounts in a namespace without any process, or descriptor tables of single threads.

mod answer;
mod backing;
mod block;
mod csi;
mod io;
pub mod mountinfo;
mod probe;
mod process;
mod process_scan;
mod root;
mod users;
pub mod vpd;
mod with_timeout;

pub use io::Counters;
pub use root::HostRoot;

use block::{Blocks, Family};
use csi::{Folders, Key, Place};
use jiff::Timestamp;
use mountinfo::{Dev, Mount, parse_swaps};
use process::Openers;
use process_scan::ProcessScan;
use reattach_core::cloud::DeviceIdentity;
use reattach_core::guest::{Challenge, GuestCsiVolume, GuestDevice, GuestInventory, GuestMount};
use reattach_core::ids::BootId;
use root::Reader;
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of entries in a list of a report (see [`reattach_core::guest::DeviceUsers`]). Lists of devices and volumes
/// have no maximum, because a missing entry counts as absent.
const MAX_ENTRIES: usize = 16;

/// A scan without a result. A result without a known boot would prove nothing.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The boot ID could not be read.
    #[error("the host's boot ID cannot be read from {path}: {source}")]
    BootId {
        /// Path of the file.
        path: String,
        /// Cause of the failure.
        source: std::io::Error,
    },
    /// The boot time could not be read.
    #[error("the host's boot time cannot be read from {path}: {why}")]
    BootTime {
        /// Path of the file.
        path: String,
        /// Cause of the failure.
        why: String,
    },
}

/// A mount with its devices and its mount namespace.
#[derive(Debug)]
struct MountView {
    mount: Mount,
    devs: BTreeSet<Dev>,
    place: Option<Place>,
    /// A process of its namespace. `None`: the host's own namespace.
    process: Option<String>,
}

impl MountView {
    /// Returns the mount point, with its namespace if that is not the host's.
    fn label(&self) -> String {
        match &self.process {
            None => self.mount.point.clone(),
            Some(process) => format!("{} (mount namespace of {process})", self.mount.point),
        }
    }
}

/// The part of a scan that only challenges need.
#[derive(Debug)]
struct CloseScan {
    /// Counters before and after the scan.
    before: Counters,
    after: Counters,
    /// Processes. Empty if none of the devices exists.
    processes: ProcessScan,
}

/// One scan of a host.
#[derive(Debug)]
pub struct Scan {
    root: HostRoot,
    close: Option<CloseScan>,
    /// Loop devices whose backing file is uncertain, one sentence each.
    unresolved_loops: Vec<String>,
    boot_id: BootId,
    booted_at: Timestamp,
    blocks: Blocks,
    families: BTreeMap<String, Family>,
    views: Vec<MountView>,
    openers: Openers,
    swaps: BTreeSet<Dev>,
    folders: Folders,
    /// Device numbers that are mounted somewhere and do not exist in /sys.
    dead: BTreeSet<Dev>,
    unreadable: Vec<String>,
}

impl Scan {
    /// Scans a host for the inventory. Takes some tens of milliseconds on a busy node, and blocks the calling thread.
    ///
    /// # Errors
    /// [`ScanError`] if the host's boot is not known.
    pub fn new(root: &HostRoot) -> Result<Self, ScanError> {
        Self::run(root, None)
    }

    /// Scans a host closely, for these challenges, which were read before. `before`: the disks' counters, also read after the
    /// challenges. The longer ago they were read, the more writes they show.
    ///
    /// # Errors
    /// [`ScanError`] if the host's boot is not known.
    pub fn for_challenges(
        root: &HostRoot,
        before: Counters,
        challenges: &[Challenge],
    ) -> Result<Self, ScanError> {
        Self::run(root, Some((before, challenges)))
    }

    fn run(
        root: &HostRoot,
        challenges: Option<(Counters, &[Challenge])>,
    ) -> Result<Self, ScanError> {
        let boot_id = boot_id(root)?;
        let booted_at = boot_time(root)?;
        let mut reader = Reader::new(root);
        let reader = &mut reader;
        let blocks = block::read(reader);
        let pids = process::pids(reader);
        let views = mount_views(reader, &pids, &blocks);
        let folders = csi::read(reader);
        let (backing, unresolved_loops) = backing::resolve(reader, &blocks, &views);
        let disks = blocks
            .nodes
            .iter()
            .filter(|(_, node)| !node.identities.is_empty());
        let families: BTreeMap<_, _> = disks
            .map(|(name, _)| (name.clone(), blocks.family(name, &backing)))
            .collect();
        let watched: BTreeSet<Dev> = families
            .values()
            .flat_map(|family| &family.devs)
            .copied()
            .collect();
        let openers = process::openers(reader, &pids, &watched, &blocks);
        let swaps = swaps(reader, &blocks);
        let dead = dead_devices(root, &views, &blocks);
        let close = challenges.map(|(before, challenges)| {
            let processes = if is_any_attached(challenges, &blocks) {
                let pods = folders
                    .volumes
                    .values()
                    .flat_map(|folder| &folder.pods)
                    .cloned()
                    .collect();
                process_scan::run(root, &blocks, &watched, pods)
            } else {
                // A device that does not exist has no writers, and a process that hangs because of it must not block the
                // answer.
                ProcessScan::default()
            };
            CloseScan {
                before,
                processes,
                after: Counters::read(root),
            }
        });
        Ok(Self {
            root: root.clone(),
            close,
            unresolved_loops,
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

    /// Returns the inventory.
    pub fn inventory(&self) -> GuestInventory {
        let devices = self.families.iter().filter_map(|(name, family)| {
            let node = self.blocks.nodes.get(name)?;
            Some(GuestDevice {
                kernel_name: name.clone(),
                dev: node.dev.to_string(),
                identity: DeviceIdentity {
                    serial: node.identities.first()?.clone(),
                },
                size_bytes: node.size_bytes,
                users: self.users(&[family], users::Detail::Stable),
            })
        });
        let csi_volumes = self
            .folders
            .volumes
            .iter()
            .map(|(key, folder)| GuestCsiVolume {
                pv: folder.pv.clone(),
                driver: key.0.clone(),
                handle: key.1.clone(),
                pods: folder.pods.iter().take(MAX_ENTRIES).cloned().collect(),
                mounts: self.mounts(
                    self.views
                        .iter()
                        .filter(|view| self.owner(view) == Some(key)),
                ),
            });
        let mut csi_volumes: Vec<_> = csi_volumes.collect();
        csi_volumes.sort();
        let orphans = self
            .views
            .iter()
            .filter(|view| self.is_orphan(view))
            .map(orphan);
        GuestInventory {
            boot_id: self.boot_id.clone(),
            booted_at: self.booted_at,
            level: self.root.level(),
            devices: devices.collect(),
            csi_volumes,
            unreadable: bounded(self.unreadable.iter().cloned().chain(orphans).collect()),
        }
    }

    fn owner(&self, view: &MountView) -> Option<&Key> {
        self.folders.owner(view.place.as_ref()?)
    }

    /// Returns whether a mount is at a CSI volume's path and no `vol_data.json` explains it.
    fn is_orphan(&self, view: &MountView) -> bool {
        let is_csi = matches!(
            view.place,
            Some(Place::Staging(..) | Place::Named(_) | Place::Publish(..))
        );
        is_csi && self.owner(view).is_none()
    }

    /// Returns the mounts for a report: those of the host and, of devices that the host has not mounted, each mount point in
    /// another namespace. (Every pod with the host's `/`, also this agent, repeats the host's mounts.)
    fn mounts<'a>(&self, views: impl Iterator<Item = &'a MountView>) -> Vec<GuestMount> {
        let views: Vec<&MountView> = views.collect();
        let is_hosts = |view: &&&MountView| view.process.is_none();
        let host: BTreeSet<Dev> = views
            .iter()
            .filter(is_hosts)
            .map(|view| view.mount.dev)
            .collect();
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

/// Reads the mounts of CSI volumes and of devices, in all mount namespaces.
fn mount_views(reader: &mut Reader<'_>, pids: &[u32], blocks: &Blocks) -> Vec<MountView> {
    let mut views = Vec::new();
    for namespace in process::namespaces(reader, pids) {
        for mount in namespace.mounts {
            // In its own namespace a tenant may mount a tmpfs anywhere, but no block device.
            let is_trusted = namespace.process.is_none() || mount.dev.major != 0;
            let place = csi::place(&mount.point).filter(|_| is_trusted);
            let devs = devices_of(reader, blocks, &mount);
            if place.is_some() || !devs.is_empty() {
                views.push(MountView {
                    mount,
                    devs,
                    place,
                    process: namespace.process.clone(),
                });
            }
        }
    }
    views
}

/// Returns the device numbers that are mounted and do not exist in /sys.
fn dead_devices(root: &HostRoot, views: &[MountView], blocks: &Blocks) -> BTreeSet<Dev> {
    let mounted: BTreeSet<Dev> = views.iter().map(|view| view.mount.dev).collect();
    // /sys is read again, because a device may have been added since `blocks` was read.
    let exists = |dev: &Dev| {
        blocks.has(*dev)
            || std::fs::symlink_metadata(root.join(&format!("/sys/dev/block/{dev}"))).is_ok()
    };
    mounted
        .into_iter()
        .filter(|dev| dev.major != 0 && !exists(dev))
        .collect()
}

/// Returns whether the device of any of the challenges exists.
fn is_any_attached(challenges: &[Challenge], blocks: &Blocks) -> bool {
    challenges.iter().any(|challenge| {
        let mut nodes = blocks.nodes.values();
        nodes.any(|node| node.identities.contains(&challenge.identity.serial))
    })
}

/// Returns the devices of a mount: the one with its number; for a multi-device filesystem with an anonymous number, its
/// sources; for a bind-mounted device node (raw block volumes), that device. Any other source is an arbitrary text: a
/// tenant's tmpfs named `/dev/sda` must not count as a user of the disk.
fn devices_of(reader: &mut Reader<'_>, blocks: &Blocks, mount: &Mount) -> BTreeSet<Dev> {
    if mount.dev.major != 0 {
        return BTreeSet::from([mount.dev]);
    }
    match mount.fs_type.as_str() {
        "devtmpfs" => blocks
            .by_name(mount.root.trim_start_matches('/'))
            .into_iter()
            .collect(),
        "btrfs" | "bcachefs" => {
            let sources = mount
                .source
                .split(':')
                .filter(|source| source.starts_with("/dev/"));
            sources
                .filter_map(|source| blocks.by_path(reader, source))
                .collect()
        }
        _ => BTreeSet::new(),
    }
}

fn swaps(reader: &mut Reader<'_>, blocks: &Blocks) -> BTreeSet<Dev> {
    let Some(table) = reader.read("/proc/swaps") else {
        return BTreeSet::new();
    };
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
            None => reader.unreadable(
                "/proc/swaps",
                format!("no device is known as {}", swap.path),
            ),
        }
    }
    found
}

/// Reads the ID of the host's boot.
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
    let fail = |why: String| ScanError::BootTime {
        path: place.display().to_string(),
        why,
    };
    let stat = std::fs::read_to_string(&place).map_err(|e| fail(e.to_string()))?;
    let btime = stat.lines().find_map(|line| line.strip_prefix("btime "));
    let seconds = btime.ok_or_else(|| fail("it has no btime line".to_owned()))?;
    let seconds = seconds
        .trim()
        .parse()
        .map_err(|e: std::num::ParseIntError| fail(e.to_string()))?;
    Timestamp::from_second(seconds).map_err(|e| fail(e.to_string()))
}

fn orphan(view: &MountView) -> String {
    format!(
        "{}: a CSI volume is mounted there and no vol_data.json says which",
        view.label()
    )
}

/// Returns at most [`MAX_ENTRIES`] of the sentences, sorted. The last one says that there are more.
fn bounded(items: BTreeSet<String>) -> Vec<String> {
    let more = items.len() > MAX_ENTRIES;
    let keep = if more { MAX_ENTRIES - 1 } else { MAX_ENTRIES };
    items
        .into_iter()
        .take(keep)
        .chain(more.then(|| "and more".to_owned()))
        .collect()
}
