//! The host's file tree. All paths and all failures to read one pass through here.

use super::mountinfo::Dev;
use reattach_core::guest::Level;
use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::path::{Component, Path, PathBuf};

/// Maximum number of symbolic links in one path, as in the kernel (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Default path of kubelet's state.
const KUBELET_ROOT: &str = "/var/lib/kubelet";

/// A host: the path at which its `/` is mounted, the path of kubelet's state, and the level of scans.
#[derive(Clone, Debug)]
pub struct HostRoot {
    root: PathBuf,
    kubelet: String,
    level: Level,
}

impl HostRoot {
    /// A host whose `/` is mounted at `root`, with kubelet's state at its default path and the basic level.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            kubelet: KUBELET_ROOT.to_owned(),
            level: Level::Basic,
        }
    }

    /// Sets the level. [`Level::Full`] opens the device of a challenge, read-only and exclusively, for a moment, and only if
    /// nothing else shows a user of it.
    #[must_use]
    pub fn with_level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// Returns the level of scans.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Sets the path of kubelet's state, an absolute path on the host (`--root-dir` of kubelet).
    #[must_use]
    pub fn with_kubelet_root(mut self, dir: impl Into<String>) -> Self {
        self.kubelet = dir.into();
        self
    }

    /// Returns the path of kubelet's state on the host.
    pub fn kubelet_root(&self) -> &str {
        &self.kubelet
    }

    /// Returns the path below this root for a host path. Reads nothing and follows no symbolic links.
    pub fn join(&self, host_path: &str) -> PathBuf {
        self.root.join(host_path.trim_start_matches('/'))
    }

    /// Returns the path below this root for a host path, with all symbolic links followed *inside* the root: `/var/run ->
    /// /run` of the host must not lead to our own `/run`.
    ///
    /// # Errors
    /// An I/O error, except a missing last part, or a loop of links.
    pub fn resolve(&self, host_path: &str) -> std::io::Result<PathBuf> {
        let mut todo: Vec<PathBuf> = vec![PathBuf::from(host_path)];
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(path) = todo.pop() {
            let mut parts = path.components();
            let Some(part) = parts.next() else { continue };
            todo.push(parts.as_path().to_path_buf());
            match part {
                Component::RootDir | Component::Prefix(_) => done.clear(),
                Component::CurDir => {}
                Component::ParentDir => {
                    done.pop();
                }
                Component::Normal(name) => {
                    done.push(name);
                    match std::fs::read_link(self.root.join(&done)) {
                        Ok(target) => {
                            links += 1;
                            if links > MAX_LINKS {
                                return Err(Error::new(
                                    ErrorKind::InvalidInput,
                                    "too many symbolic links",
                                ));
                            }
                            done.pop();
                            todo.push(target);
                        }
                        // EINVAL: not a link. ENOENT: does not exist, so there is nothing to follow.
                        Err(e)
                            if matches!(
                                e.kind(),
                                ErrorKind::InvalidInput | ErrorKind::NotFound
                            ) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        Ok(self.root.join(done))
    }
}

/// Returns whether an error means that an object does not exist, or no longer, as opposed to "could not be read".
///
/// sysfs returns ENODEV and ENXIO for a device that is removed while its file is open; /proc returns ESRCH for a process that
/// is gone.
pub(crate) fn is_gone(e: &Error) -> bool {
    const ESRCH: i32 = 3;
    const ENXIO: i32 = 6;
    const ENODEV: i32 = 19;
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        || matches!(e.raw_os_error(), Some(ESRCH | ENXIO | ENODEV))
}

/// Reads files below a [`HostRoot`] and records those that could not be read.
pub(crate) struct Reader<'a> {
    pub(crate) root: &'a HostRoot,
    items: BTreeMap<String, String>,
    processes: BTreeMap<(&'static str, String), u32>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(root: &'a HostRoot) -> Self {
        Self {
            root,
            items: BTreeMap::new(),
            processes: BTreeMap::new(),
        }
    }

    /// Records that `item` (a host path) could not be read or parsed.
    pub(crate) fn unreadable(&mut self, item: &str, why: impl ToString) {
        self.items
            .entry(item.to_owned())
            .or_insert_with(|| why.to_string());
    }

    /// Records that a file of a process could not be read. One item per kind of file, so that the list does not change with
    /// every process that starts or ends.
    pub(crate) fn unreadable_process(&mut self, pid: u32, what: &'static str, why: impl ToString) {
        let first = self.processes.entry((what, why.to_string())).or_insert(pid);
        *first = pid.min(*first);
    }

    /// Reads a file of a process. `None`: it does not exist, or could not be read, which is recorded.
    pub(crate) fn read_process(&mut self, pid: u32, what: &'static str) -> Option<Vec<u8>> {
        match std::fs::read(self.root.join(&format!("/proc/{pid}/{what}"))) {
            Ok(bytes) => Some(bytes),
            Err(e) if is_gone(&e) => None,
            Err(e) => {
                self.unreadable_process(pid, what, e);
                None
            }
        }
    }

    /// Reads a file. `None`: it does not exist, or could not be read, which is recorded.
    pub(crate) fn read(&mut self, path: &str) -> Option<Vec<u8>> {
        match std::fs::read(self.root.join(path)) {
            Ok(bytes) => Some(bytes),
            Err(e) if is_gone(&e) => None,
            Err(e) => {
                self.unreadable(path, e);
                None
            }
        }
    }

    /// Reads a short text file, without surrounding white space.
    pub(crate) fn text(&mut self, path: &str) -> Option<String> {
        self.read(path).map(|bytes| {
            String::from_utf8_lossy(&bytes)
                .trim_matches(['\0', ' ', '\n', '\t'])
                .to_owned()
        })
    }

    /// Returns the sorted names in a folder. `None`: it does not exist, or could not be read, which is recorded.
    pub(crate) fn list(&mut self, path: &str) -> Option<Vec<String>> {
        match names(&self.root.join(path)) {
            Ok(names) => Some(names),
            Err(e) if is_gone(&e) => None,
            Err(e) => {
                self.unreadable(path, e);
                None
            }
        }
    }

    /// Returns one sentence for each item that could not be read, sorted.
    pub(crate) fn items(&self) -> Vec<String> {
        let processes = self
            .processes
            .iter()
            .map(|((what, why), pid)| format!("/proc/{pid}/{what}: {why}"));
        let mut all: Vec<String> = self
            .items
            .iter()
            .map(|(i, why)| format!("{i}: {why}"))
            .chain(processes)
            .collect();
        all.sort();
        all
    }
}

/// Returns the sorted names in a folder.
pub(crate) fn names(path: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Reads a file's kind and device numbers, without a request to a remote filesystem's server, which may be dead and block.
pub(crate) fn stat(path: &Path, follow: bool) -> std::io::Result<Statx> {
    let mut flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    if !follow {
        flags |= AtFlags::SYMLINK_NOFOLLOW;
    }
    statx(CWD, path, flags, StatxFlags::TYPE).map_err(Error::from)
}

/// Returns the kind of a file.
pub(crate) fn file_type(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

/// Returns the number of a block device by its node. `None`: it is no block device node.
pub(crate) fn node_dev(stat: &Statx) -> Option<Dev> {
    (file_type(stat) == FileType::BlockDevice).then_some(Dev {
        major: stat.stx_rdev_major,
        minor: stat.stx_rdev_minor,
    })
}

/// Returns the number of the device of a file's filesystem.
pub(crate) fn filesystem_dev(stat: &Statx) -> Dev {
    Dev {
        major: stat.stx_dev_major,
        minor: stat.stx_dev_minor,
    }
}

/// Returns a path of the kernel without its mark of a deleted file.
pub(crate) fn without_deleted_mark(path: &str) -> &str {
    path.strip_suffix(" (deleted)").unwrap_or(path)
}
