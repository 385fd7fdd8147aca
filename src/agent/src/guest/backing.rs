//! Finds the devices behind loop and network block devices.

use super::MountView;
use super::block::{Backing, Blocks};
use super::mountinfo::Dev;
use super::process::opened_by;
use super::root::{Reader, file_type, filesystem_dev, stat, without_deleted_mark};
use rustix::fs::FileType;
use std::collections::{BTreeMap, BTreeSet};

/// Returns the devices behind each loop and nbd device in use, by kernel name, and one sentence for each device for which they
/// are uncertain. (The kernel shows only the path of a loop's backing file, in the mount namespace of its setup.)
pub(super) fn resolve(
    reader: &mut Reader<'_>,
    blocks: &Blocks,
    views: &[MountView],
) -> (BTreeMap<String, BTreeSet<Dev>>, Vec<String>) {
    let mut found = BTreeMap::new();
    let mut unresolved = Vec::new();
    for (name, backing) in blocks.backed() {
        let devs = match backing {
            Backing::Process(pid) => opened_by(reader, pid, blocks),
            Backing::File(path) => {
                let (devs, is_sure) = behind(reader, blocks, views, &path);
                if !is_sure {
                    unresolved.push(format!(
                        "/sys/block/{name}/loop/backing_file: nothing on the host is {path}"
                    ));
                }
                devs
            }
        };
        found.insert(name, devs);
    }
    (found, unresolved)
}

/// Returns the device of a path: the device node itself, or the device of its filesystem. And whether such a file or device
/// exists.
fn behind(
    reader: &mut Reader<'_>,
    blocks: &Blocks,
    views: &[MountView],
    path: &str,
) -> (BTreeSet<Dev>, bool) {
    let file = without_deleted_mark(path);
    let host = || views.iter().filter(|view| view.process.is_none());
    let node = host()
        .find(|view| view.mount.point == file)
        .and_then(|view| view.devs.first().copied());
    if let Some(dev) = node.or_else(|| blocks.by_path(reader, file)) {
        return (BTreeSet::from([dev]), true);
    }
    let on = |point: &str| {
        file.strip_prefix(point)
            .is_some_and(|rest| point == "/" || rest.starts_with('/'))
    };
    let around = host()
        .filter(|view| on(&view.mount.point))
        .max_by_key(|view| view.mount.point.len());
    let mut devs: BTreeSet<Dev> = around
        .and_then(|view| view.devs.first().copied())
        .into_iter()
        .collect();
    let found = reader
        .root
        .resolve(file)
        .and_then(|place| stat(&place, false))
        .ok();
    let number = found.as_ref().map(filesystem_dev);
    devs.extend(number.filter(|dev| blocks.has(*dev)));
    let exists = found.as_ref().is_some_and(|stat| {
        matches!(
            file_type(stat),
            FileType::RegularFile | FileType::BlockDevice
        )
    });
    (devs, file == path && exists)
}
