//! Reads processes: the mount tables of all mount namespaces, and which processes have a block device open or mapped.

use super::block::Blocks;
use super::mountinfo::{Dev, Mount, parse, parse_maps};
use super::root::{Reader, filesystem_dev, is_gone, names, node_dev, stat, without_deleted_mark};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

/// The mounts of one mount namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// A process of the namespace, as `pid comm`. `None`: the host's own namespace, that of process 1.
    pub(crate) process: Option<String>,
    pub(crate) mounts: Vec<Mount>,
}

/// Processes with open devices and files, as `pid comm`.
#[derive(Debug, Default)]
pub(crate) struct Openers {
    /// Processes with the device node itself open, by device.
    pub(crate) raw: BTreeMap<Dev, BTreeSet<String>>,
    /// Processes with a file, working directory, root or executable on a filesystem of the device, by device. Only they show a
    /// lazily unmounted filesystem.
    pub(crate) files: BTreeMap<Dev, BTreeSet<String>>,
}

/// Returns all process IDs, ascending.
pub(crate) fn pids(reader: &mut Reader<'_>) -> Vec<u32> {
    let mut pids: Vec<u32> = reader
        .list("/proc")
        .unwrap_or_default()
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    pids.sort_unstable();
    if !pids.contains(&1) {
        reader.unreadable(
            "/proc/1",
            "not there: is the host's /proc below the host root, and visible?",
        );
    }
    pids
}

/// Reads the mount tables of all mount namespaces with a process or thread, the host's first. A namespace that only a file or
/// a bind mount keeps has no process and is not found.
pub(crate) fn namespaces(reader: &mut Reader<'_>, pids: &[u32]) -> Vec<Namespace> {
    let mut seen_links = BTreeSet::new();
    let mut seen_tables: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut found = Vec::new();
    for pid in pids {
        let threads = names(&reader.root.join(&format!("/proc/{pid}/task"))).unwrap_or_default();
        let own = std::iter::once(format!("/proc/{pid}"));
        let others = threads.iter().filter(|tid| **tid != pid.to_string());
        for dir in own.chain(others.map(|tid| format!("/proc/{pid}/task/{tid}"))) {
            // Not readable without CAP_SYS_PTRACE, and missing in a test's tree. The table itself is readable for all, and
            // distinguishes namespaces too: mount IDs are unique on a host.
            // A process in a chroot shows only the mounts below its root, so the root is part of the key.
            let link = |what| std::fs::read_link(reader.root.join(&format!("{dir}/{what}"))).ok();
            let link = link("ns/mnt").map(|namespace| (namespace, link("root")));
            if link.as_ref().is_some_and(|link| seen_links.contains(link)) {
                continue;
            }
            let table = match std::fs::read(reader.root.join(&format!("{dir}/mountinfo"))) {
                Ok(table) => table,
                Err(e) if is_gone(&e) => continue,
                // A zombie has left its namespaces.
                Err(e) if e.kind() == ErrorKind::InvalidInput && is_dead(reader, &dir) => continue,
                Err(e) => {
                    reader.unreadable_process(*pid, "mountinfo", e);
                    continue;
                }
            };
            seen_links.extend(link);
            if !seen_tables.insert(table.clone()) {
                continue;
            }
            let (mounts, all_good) = parse(&table);
            if let Err(e) = all_good {
                reader.unreadable_process(*pid, "mountinfo", e);
            }
            let process = (*pid != 1).then(|| name(reader, *pid));
            found.push(Namespace { process, mounts });
        }
    }
    if !found.iter().any(|namespace| namespace.process.is_none()) {
        reader.unreadable(
            "/proc/1/mountinfo",
            "not there: the host's own mounts are not known",
        );
    }
    found
}

/// Finds processes with one of the `watched` devices open, or a file on it. The descriptors of a process are those of its
/// first living thread.
pub(crate) fn openers(
    reader: &mut Reader<'_>,
    pids: &[u32],
    watched: &BTreeSet<Dev>,
    blocks: &Blocks,
) -> Openers {
    let mut openers = Openers::default();
    for pid in pids {
        let mut dir = format!("/proc/{pid}");
        let mut fds = names(&reader.root.join(&format!("{dir}/fd")));
        if fds.as_ref().map_or_else(is_gone, Vec::is_empty) && is_dead(reader, &dir) {
            // The first thread may have ended while others still run.
            let threads = names(&reader.root.join(&format!("{dir}/task"))).unwrap_or_default();
            let live = threads
                .iter()
                .map(|tid| format!("/proc/{pid}/task/{tid}"))
                .find(|dir| !is_dead(reader, dir));
            let Some(live) = live else { continue };
            fds = names(&reader.root.join(&format!("{live}/fd")));
            dir = live;
        }
        open_files(reader, *pid, &dir, fds, watched, blocks, &mut openers);
    }
    openers
}

/// Finds what [`openers`] does not: mapped files and devices and, if `threads`, descriptors of threads with their own
/// descriptor table. Can hang, because a memory map is locked while its process waits for a page.
pub(crate) fn hidden_openers(
    reader: &mut Reader<'_>,
    pids: &[u32],
    watched: &BTreeSet<Dev>,
    blocks: &Blocks,
    threads: bool,
) -> Openers {
    let mut openers = Openers::default();
    for pid in pids {
        for (dev, raw) in mapped(reader, *pid, watched, blocks) {
            openers.add(dev, raw, || name(reader, *pid));
        }
        let tids = names(&reader.root.join(&format!("/proc/{pid}/task"))).unwrap_or_default();
        for tid in tids
            .iter()
            .filter(|tid| threads && **tid != pid.to_string())
        {
            let dir = format!("/proc/{pid}/task/{tid}");
            let fds = names(&reader.root.join(&format!("{dir}/fd")));
            open_files(reader, *pid, &dir, fds, watched, blocks, &mut openers);
        }
    }
    openers
}

/// Returns the devices of a process's descriptors. Used for the server process of a network block device.
pub(crate) fn opened_by(reader: &mut Reader<'_>, pid: u32, blocks: &Blocks) -> BTreeSet<Dev> {
    let fds = names(&reader.root.join(&format!("/proc/{pid}/fd"))).unwrap_or_default();
    let link = |fd| opened(reader, pid, "fd", &format!("/proc/{pid}/fd/{fd}"), blocks);
    fds.into_iter()
        .filter_map(link)
        .map(|(dev, _)| dev)
        .filter(|dev| blocks.has(*dev))
        .collect()
}

/// Adds the open files and devices of one task to `openers`.
fn open_files(
    reader: &mut Reader<'_>,
    pid: u32,
    dir: &str,
    fds: std::io::Result<Vec<String>>,
    watched: &BTreeSet<Dev>,
    blocks: &Blocks,
    openers: &mut Openers,
) {
    let fds = match fds {
        Ok(fds) => fds,
        Err(e) if is_gone(&e) => Vec::new(),
        Err(e) => {
            reader.unreadable_process(pid, "fd", e);
            Vec::new()
        }
    };
    let links = fds.into_iter().map(|fd| ("fd", format!("{dir}/fd/{fd}")));
    for (what, link) in
        links.chain(["cwd", "root", "exe"].map(|what| (what, format!("{dir}/{what}"))))
    {
        let Some((dev, raw)) = opened(reader, pid, what, &link, blocks) else {
            continue;
        };
        if watched.contains(&dev) {
            openers.add(dev, raw, || name(reader, pid));
        }
    }
}

impl Openers {
    fn add(&mut self, dev: Dev, raw: bool, who: impl FnOnce() -> String) {
        let map = if raw { &mut self.raw } else { &mut self.files };
        map.entry(dev).or_default().insert(who());
    }
}

/// Returns the watched devices of a process's mappings: `false` for a mapped file on the device, `true` for the device itself.
/// A mapping remains after its descriptor was closed, and allows writes.
fn mapped(
    reader: &mut Reader<'_>,
    pid: u32,
    watched: &BTreeSet<Dev>,
    blocks: &Blocks,
) -> BTreeSet<(Dev, bool)> {
    let Some(table) = reader.read_process(pid, "maps") else {
        return BTreeSet::new();
    };
    let (mappings, all_good) = parse_maps(&table);
    if let Err(e) = all_good {
        reader.unreadable_process(pid, "maps", e);
    }
    let mut found = BTreeSet::new();
    for mapping in mappings {
        if watched.contains(&mapping.dev) {
            found.insert((mapping.dev, false));
        } else if mapping.path.starts_with("/dev/") {
            // The number of the mapping is that of the filesystem of device nodes. Other paths are not looked up, because they
            // may be on a remote filesystem whose server is dead.
            let place = reader
                .root
                .join(&format!("/proc/{pid}/root{}", mapping.path));
            let dev = stat(&place, true).ok().and_then(|stat| node_dev(&stat));
            let dev = dev.or_else(|| blocks.by_name(&mapping.path["/dev/".len()..]));
            found.extend(
                dev.filter(|dev| watched.contains(dev))
                    .map(|dev| (dev, true)),
            );
        }
    }
    found
}

/// Returns the device of a link in /proc: `true` for the device node itself, `false` for a file on a filesystem of the device.
fn opened(
    reader: &mut Reader<'_>,
    pid: u32,
    what: &'static str,
    link: &str,
    blocks: &Blocks,
) -> Option<(Dev, bool)> {
    let place = reader.root.join(link);
    let target = match std::fs::read_link(&place) {
        Ok(target) => target.to_string_lossy().into_owned(),
        Err(e) if is_gone(&e) => return None,
        Err(e) => {
            reader.unreadable_process(pid, what, e);
            return None;
        }
    };
    // `socket:[…]`, `pipe:[…]`, `anon_inode:…`, `mnt:[…]`: most descriptors, and never a device.
    if target.contains(":[") && !target.contains('/') || target.starts_with("anon_inode:") {
        return None;
    }
    match stat(&place, true) {
        Ok(stat) => Some(match node_dev(&stat) {
            Some(dev) => (dev, true),
            None => (filesystem_dev(&stat), false),
        }),
        // Closed meanwhile, or a link that the kernel cannot follow: only the path remains.
        Err(e) if is_gone(&e) => {
            let name = without_deleted_mark(&target).strip_prefix("/dev/")?;
            Some((blocks.by_name(name)?, true))
        }
        Err(e) => {
            reader.unreadable_process(pid, what, e);
            None
        }
    }
}

/// Returns process ID and name, as `pid comm`.
pub(crate) fn name(reader: &Reader<'_>, pid: u32) -> String {
    let comm = std::fs::read(reader.root.join(&format!("/proc/{pid}/comm"))).unwrap_or_default();
    format!("{pid} {}", String::from_utf8_lossy(&comm).trim_end())
        .trim_end()
        .to_owned()
}

/// The state of a process or thread.
#[derive(PartialEq, Eq)]
enum TaskState {
    /// It runs, or its state cannot be read.
    Alive,
    /// It gives up its namespaces, and may still wait for its last writes.
    Exiting,
    /// It is a zombie, or does not exist.
    Ended,
}

/// Reads the state of a process or thread. The name in parentheses may contain any text, so the fields after its end are
/// parsed.
fn task_state(reader: &Reader<'_>, dir: &str) -> TaskState {
    /// `PF_EXITING`: set before the state shows the exit.
    const EXITING: u64 = 0x4;
    let stat = match std::fs::read(reader.root.join(&format!("{dir}/stat"))) {
        Ok(stat) => String::from_utf8_lossy(&stat).into_owned(),
        Err(e) if is_gone(&e) => return TaskState::Ended,
        Err(_) => return TaskState::Alive,
    };
    let Some((_, after)) = stat.rsplit_once(") ") else {
        return TaskState::Alive;
    };
    // proc_pid_stat(5): state, ppid, pgrp, session, tty_nr, tpgid, flags.
    let mut fields = after.split(' ');
    if matches!(fields.next(), Some("Z" | "X" | "x")) {
        return TaskState::Ended;
    }
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    match flags {
        Some(flags) if flags & EXITING != 0 => TaskState::Exiting,
        _ => TaskState::Alive,
    }
}

/// Returns whether a process or thread has ended or has begun to exit.
fn is_dead(reader: &Reader<'_>, dir: &str) -> bool {
    task_state(reader, dir) != TaskState::Alive
}

/// Returns whether all threads of a process have ended.
pub(crate) fn has_ended(reader: &Reader<'_>, pid: u32) -> bool {
    let ended = |dir: String| task_state(reader, &dir) == TaskState::Ended;
    let threads = names(&reader.root.join(&format!("/proc/{pid}/task"))).unwrap_or_default();
    ended(format!("/proc/{pid}"))
        && threads
            .iter()
            .all(|tid| ended(format!("/proc/{pid}/task/{tid}")))
}
