//! Reads block devices from sysfs: numbers, identities, and how they are stacked.

use super::mountinfo::Dev;
use super::root::{Reader, node_dev, stat, without_deleted_mark};
use super::vpd;
use std::collections::{BTreeMap, BTreeSet};

/// Size of a sector in sysfs, in bytes. Independent of the device's block size.
const SECTOR: u64 = 512;

/// One block device node: a disk, a partition, or a virtual device.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) dev: Dev,
    pub(crate) size_bytes: u64,
    /// All names that the device itself reports, best first. Empty for partitions and virtual devices.
    pub(crate) identities: Vec<String>,
    /// Kernel names of the partitions.
    partitions: Vec<String>,
    holders: Vec<String>,
    /// File or process behind a loop or nbd device in use.
    backing: Option<Backing>,
    /// Name in `/dev/mapper`.
    dm_name: Option<String>,
    /// State that the driver reports (SCSI, NVMe). `None`: the driver reports none.
    pub(crate) state: Option<String>,
}

/// The file or process behind a loop or network block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// A file or device, by its path in the kernel.
    File(String),
    /// The process that serves or connects it. The devices are those that it has open.
    Process(u32),
}

/// All block devices of the host by kernel name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    pub(crate) nodes: BTreeMap<String, Node>,
    by_dev: BTreeMap<Dev, String>,
    /// Members of multi-device filesystems, which have no `holders/` entry: kernel name to `btrfs:UUID`.
    filesystems: BTreeMap<String, BTreeSet<String>>,
}

/// A disk and all devices on top of it.
#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) devs: BTreeSet<Dev>,
    pub(crate) holders: BTreeSet<String>,
    pub(crate) loops: BTreeSet<String>,
}

/// Reads `/sys/block`. A missing folder counts as unreadable: every kernel with block devices has it, so this is not the
/// host's /sys.
pub(crate) fn read(reader: &mut Reader<'_>) -> Blocks {
    let mut blocks = Blocks::default();
    let Some(disks) = reader.list("/sys/block") else {
        reader.unreadable(
            "/sys/block",
            "not there: is the host's /sys below the host root?",
        );
        return blocks;
    };
    for disk in disks {
        let dir = format!("/sys/block/{disk}");
        let Some(mut node) = read_node(reader, &dir) else {
            continue;
        };
        node.identities = identities(reader, &disk);
        node.backing = if disk.starts_with("loop") {
            reader
                .text(&format!("{dir}/loop/backing_file"))
                .map(Backing::File)
        } else if disk.starts_with("nbd") {
            nbd(reader, &dir)
        } else {
            None
        };
        node.state = reader.text(&format!("{dir}/device/state"));
        node.dm_name = if disk.starts_with("dm-") {
            reader.text(&format!("{dir}/dm/name"))
        } else {
            None
        };
        let names = reader.list(&dir).unwrap_or_default();
        for part in names
            .into_iter()
            .filter(|name| name.len() > disk.len() && name.starts_with(&disk))
        {
            if let Some(child) = read_node(reader, &format!("{dir}/{part}")) {
                node.partitions.push(part.clone());
                blocks.add(part, child);
            }
        }
        blocks.add(disk, node);
    }
    for fs in reader.list("/sys/fs/btrfs").unwrap_or_default() {
        for member in reader
            .list(&format!("/sys/fs/btrfs/{fs}/devices"))
            .unwrap_or_default()
        {
            blocks
                .filesystems
                .entry(member)
                .or_default()
                .insert(format!("btrfs:{fs}"));
        }
    }
    blocks
}

/// Reads the common attributes of disks and partitions. `None`: a hidden device (a single path of a multipath NVMe namespace
/// has no number), or a device that was removed meanwhile.
fn read_node(reader: &mut Reader<'_>, dir: &str) -> Option<Node> {
    let file = format!("{dir}/dev");
    let number = reader.text(&file)?;
    let dev = match number.parse() {
        Ok(dev) => dev,
        Err(e) => {
            reader.unreadable(&file, e);
            return None;
        }
    };
    let file = format!("{dir}/size");
    let size_bytes = match reader.text(&file).map(|text| text.parse::<u64>()) {
        Some(Ok(sectors)) => sectors.saturating_mul(SECTOR),
        Some(Err(e)) => {
            reader.unreadable(&file, e);
            0
        }
        None => 0,
    };
    let holders = reader.list(&format!("{dir}/holders")).unwrap_or_default();
    Some(Node {
        dev,
        size_bytes,
        identities: Vec::new(),
        partitions: Vec::new(),
        holders,
        backing: None,
        dm_name: None,
        state: None,
    })
}

/// Returns the process that connected a network block device. The kernel does not show whether the server is on this
/// machine. A server on this machine that has the volume open is found as an opener.
fn nbd(reader: &mut Reader<'_>, dir: &str) -> Option<Backing> {
    let file = format!("{dir}/pid");
    match reader.text(&file)?.parse() {
        Ok(pid) => Some(Backing::Process(pid)),
        Err(e) => {
            reader.unreadable(&file, e);
            None
        }
    }
}

/// Returns all names that a disk reports, best first: SCSI page 0x83, SCSI page 0x80, then the `serial` attribute
/// (NVMe: of the controller or subsystem, where EBS puts the volume ID; virtio: of the disk).
fn identities(reader: &mut Reader<'_>, disk: &str) -> Vec<String> {
    let mut found = Vec::new();
    let file = format!("/sys/block/{disk}/device/vpd_pg83");
    match vpd_page(reader, &file).map(|page| vpd::designators(&page)) {
        Some(Ok(names)) => found.extend(names.into_iter().map(|name| name.value)),
        Some(Err(e)) => reader.unreadable(&file, e),
        None => {}
    }
    let file = format!("/sys/block/{disk}/device/vpd_pg80");
    match vpd_page(reader, &file).map(|page| vpd::unit_serial(&page)) {
        Some(Ok(serial)) => found.extend(serial),
        Some(Err(e)) => reader.unreadable(&file, e),
        None => {}
    }
    for file in ["device/serial", "serial"] {
        found.extend(
            reader
                .text(&format!("/sys/block/{disk}/{file}"))
                .filter(|serial| !serial.is_empty()),
        );
    }
    let mut seen = BTreeSet::new();
    found.retain(|name| seen.insert(name.clone()));
    found
}

/// Reads a VPD page. Older kernels have the file of a page that the device does not have, and return EINVAL.
fn vpd_page(reader: &mut Reader<'_>, file: &str) -> Option<Vec<u8>> {
    match std::fs::read(reader.root.join(file)) {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => None,
        _ => reader.read(file),
    }
}

impl Blocks {
    fn add(&mut self, name: String, node: Node) {
        self.by_dev.insert(node.dev, name.clone());
        self.nodes.insert(name, node);
    }

    /// Returns whether a device with this number existed when /sys was read.
    pub(crate) fn has(&self, dev: Dev) -> bool {
        self.by_dev.contains_key(&dev)
    }

    /// Returns the device of a path: by its kernel name or device-mapper name, otherwise by the number of the node at that
    /// path.
    pub(crate) fn by_path(&self, reader: &mut Reader<'_>, path: &str) -> Option<Dev> {
        let path = without_deleted_mark(path);
        if let Some(name) = path.strip_prefix("/dev/mapper/")
            && let Some(node) = self
                .nodes
                .values()
                .find(|node| node.dm_name.as_deref() == Some(name))
        {
            return Some(node.dev);
        }
        if let Some(name) = path.strip_prefix("/dev/")
            && let Some(dev) = self.by_name(name)
        {
            return Some(dev);
        }
        let place = reader.root.resolve(path).ok()?;
        node_dev(&stat(&place, false).ok()?)
    }

    /// Returns the device with a kernel name. sysfs writes `!` for a slash in a name.
    pub(crate) fn by_name(&self, name: &str) -> Option<Dev> {
        self.nodes.get(&name.replace('/', "!")).map(|node| node.dev)
    }

    /// Returns all loop and nbd devices in use, with the file or process behind each.
    pub(crate) fn backed(&self) -> Vec<(String, Backing)> {
        self.nodes
            .iter()
            .filter_map(|(name, node)| Some((name.clone(), node.backing.clone()?)))
            .collect()
    }

    /// Returns the name of a device in /dev.
    pub(crate) fn name_of(&self, dev: Dev) -> Option<String> {
        self.by_dev.get(&dev).map(|name| name.replace('!', "/"))
    }

    /// Returns a disk with its partitions, all devices stacked on them, and the loop and nbd devices over any of these.
    /// `backing` has the devices behind each loop and nbd device.
    pub(crate) fn family(&self, disk: &str, backing: &BTreeMap<String, BTreeSet<Dev>>) -> Family {
        let mut family = Family::default();
        let mut todo = vec![disk.to_owned()];
        let mut seen = BTreeSet::new();
        while let Some(name) = todo.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            family
                .holders
                .extend(self.filesystems.get(&name).into_iter().flatten().cloned());
            let Some(node) = self.nodes.get(&name) else {
                continue;
            };
            family.devs.insert(node.dev);
            family.holders.extend(node.holders.iter().cloned());
            let loops = backing
                .iter()
                .filter(|(_, devs)| devs.contains(&node.dev))
                .map(|(name, _)| name);
            family.loops.extend(loops.clone().cloned());
            todo.extend(
                node.partitions
                    .iter()
                    .chain(&node.holders)
                    .chain(loops)
                    .cloned(),
            );
        }
        family
    }
}
