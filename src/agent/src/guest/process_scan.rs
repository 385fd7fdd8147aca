//! The scan of processes for a challenge: programs that work on a device, mapped files, and remaining processes of pods.

use super::block::Blocks;
use super::mountinfo::Dev;
use super::process::{Openers, has_ended, hidden_openers, name};
use super::root::{HostRoot, Reader};
use super::{process, with_timeout};
use reattach_core::guest::Level;
use reattach_core::ids::Uid;
use std::collections::{BTreeMap, BTreeSet};

/// The users of devices that only this scan finds.
#[derive(Debug, Default)]
pub(crate) struct ProcessScan {
    pub(crate) openers: Openers,
    pub(crate) programs: Vec<Program>,
    /// Processes in the control groups of pods.
    pub(crate) pods: BTreeMap<Uid, BTreeSet<String>>,
    /// Files that could not be read.
    pub(crate) unreadable: Vec<String>,
}

/// Finds the users of the `watched` devices and the processes of `pods`. Always ends: if a process hangs so that it cannot be
/// read, the result is only this failure.
pub(crate) fn run(
    root: &HostRoot,
    blocks: &Blocks,
    watched: &BTreeSet<Dev>,
    pods: BTreeSet<Uid>,
) -> ProcessScan {
    let (root, blocks, watched) = (root.clone(), blocks.clone(), watched.clone());
    let found = with_timeout::run("/proc: scanning all processes", move || {
        let mut reader = Reader::new(&root);
        let reader = &mut reader;
        let pids = process::pids(reader);
        let threads = root.level() == Level::Full;
        ProcessScan {
            openers: hidden_openers(reader, &pids, &watched, &blocks, threads),
            programs: programs(reader, &pids, &blocks),
            pods: in_pods(reader, &pids, &pods),
            unreadable: reader.items(),
        }
    });
    found.unwrap_or_else(|why| ProcessScan {
        unreadable: vec![why],
        ..ProcessScan::default()
    })
}

/// Names of programs that use a device without a constantly open descriptor, or inside one long system call. The kernel cuts
/// the names of processes to 15 bytes.
const PROGRAMS: [&str; 20] = [
    "mount",
    "umount",
    "mkfs",
    "mke2fs",
    "fsck",
    "e2fsck",
    "resize2fs",
    "tune2fs",
    "e2image",
    "debugfs",
    "xfs_repair",
    "xfs_growfs",
    "xfs_admin",
    "xfs_db",
    "btrfs",
    "cryptsetup",
    "veritysetup",
    "blkid",
    "wipefs",
    "mkswap",
];

/// Prefixes of an argument that names a device.
const DEVICE_WORDS: [&str; 6] = ["/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "ID="];

/// A running program of [`PROGRAMS`].
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Process ID and name, as `pid comm`.
    pub(crate) name: String,
    /// Devices that its arguments name.
    pub(crate) devs: BTreeSet<Dev>,
    /// Arguments of its command line.
    pub(crate) arguments: Vec<String>,
    /// Whether it may work on a device that its arguments do not identify.
    pub(crate) is_ambiguous: bool,
}

/// Returns the running programs that work on block devices.
fn programs(reader: &mut Reader<'_>, pids: &[u32], blocks: &Blocks) -> Vec<Program> {
    let mut found = Vec::new();
    for pid in pids {
        let comm = std::fs::read_to_string(reader.root.join(&format!("/proc/{pid}/comm")))
            .unwrap_or_default();
        let comm = comm.trim_end();
        // Also `mkfs.ext4`, `fsck.xfs`, `mount.nfs` and others with a suffix.
        if !PROGRAMS.contains(&comm.split('.').next().unwrap_or_default())
            || has_ended(reader, *pid)
        {
            continue;
        }
        let Some(line) = reader.read_process(*pid, "cmdline") else {
            continue;
        };
        let words = line
            .split(|byte| *byte == 0)
            .skip(1)
            .map(|word| String::from_utf8_lossy(word).into_owned());
        let arguments: Vec<String> = words.filter(|word| !word.is_empty()).collect();
        let mut devs = BTreeSet::new();
        let mut unresolved = false;
        for word in arguments
            .iter()
            .filter(|word| DEVICE_WORDS.iter().any(|start| word.starts_with(start)))
        {
            match blocks.by_path(reader, word) {
                Some(dev) => {
                    devs.insert(dev);
                }
                None => unresolved = true,
            }
        }
        // `fsck -A` names no device and works on all of them.
        let all = comm.starts_with("fsck") && devs.is_empty();
        found.push(Program {
            name: name(reader, *pid),
            devs,
            arguments,
            is_ambiguous: unresolved || all,
        });
    }
    found
}

/// Returns the processes in the control groups of these pods. `/proc/PID/cgroup` contains the pod's UID with both of
/// kubelet's cgroup drivers; one of them writes `_` for `-`.
fn in_pods(
    reader: &mut Reader<'_>,
    pids: &[u32],
    pods: &BTreeSet<Uid>,
) -> BTreeMap<Uid, BTreeSet<String>> {
    let mut found: BTreeMap<Uid, BTreeSet<String>> = BTreeMap::new();
    if pods.is_empty() {
        return found;
    }
    for pid in pids {
        let Some(groups) = reader.read_process(*pid, "cgroup") else {
            continue;
        };
        let groups = String::from_utf8_lossy(&groups);
        let is_in = |pod: &&Uid| {
            let uid = pod.as_str();
            groups.contains(&format!("pod{uid}"))
                || groups.contains(&format!("pod{}", uid.replace('-', "_")))
        };
        for pod in pods.iter().filter(is_in) {
            if !has_ended(reader, *pid) {
                found
                    .entry(pod.clone())
                    .or_default()
                    .insert(name(reader, *pid));
            }
        }
    }
    found
}
