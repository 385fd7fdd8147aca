//! Which devices a loop or network block device stands for.

use super::View;
use super::block::{Backing, Blocks};
use super::mountinfo::Dev;
use super::process::opened_by;
use super::root::{Reader, is_block, stat};
use rustix::fs::FileType;
use std::collections::{BTreeMap, BTreeSet};

/// By kernel name what each loop and nbd device in use stands for, and one sentence for each of which that cannot be
/// told for sure. (The kernel shows a loop's backing file by its path alone, in whichever mount namespace it was set up.)
pub(super) fn resolve(
    reader: &mut Reader<'_>,
    blocks: &Blocks,
    views: &[View],
) -> (BTreeMap<String, BTreeSet<Dev>>, Vec<String>) {
    let mut found = BTreeMap::new();
    let mut riddles = Vec::new();
    for (name, backing) in blocks.backed() {
        let devs = match backing {
            Backing::Process(pid) => opened_by(reader, pid, blocks),
            Backing::File(path) => {
                let (devs, is_sure) = behind(reader, blocks, views, &path);
                if !is_sure {
                    riddles
                        .push(format!("/sys/block/{name}/loop/backing_file: nothing on the host is {path}"));
                }
                devs
            }
        };
        found.insert(name, devs);
    }
    (found, riddles)
}

/// The device that a path is, or that it lies on; and whether there is such a file or device at all.
fn behind(reader: &mut Reader<'_>, blocks: &Blocks, views: &[View], path: &str) -> (BTreeSet<Dev>, bool) {
    let file = path.strip_suffix(" (deleted)").unwrap_or(path);
    let host = || views.iter().filter(|view| view.process.is_none());
    let node = host().find(|view| view.mount.point == file).and_then(|view| view.devs.first().copied());
    if let Some(dev) = node.or_else(|| blocks.by_path(reader, file)) {
        return (BTreeSet::from([dev]), true);
    }
    let on = |point: &str| file.strip_prefix(point).is_some_and(|rest| point == "/" || rest.starts_with('/'));
    let around = host().filter(|view| on(&view.mount.point)).max_by_key(|view| view.mount.point.len());
    let mut devs: BTreeSet<Dev> = around.and_then(|view| view.devs.first().copied()).into_iter().collect();
    let found = reader.root.resolve(file).and_then(|place| stat(&place, false)).ok();
    let number = found.as_ref().map(|stat| Dev { major: stat.stx_dev_major, minor: stat.stx_dev_minor });
    devs.extend(number.filter(|dev| blocks.has(*dev)));
    let is_file = |stat: &rustix::fs::Statx| {
        FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile || is_block(stat)
    };
    (devs, file == path && found.as_ref().is_some_and(is_file))
}
