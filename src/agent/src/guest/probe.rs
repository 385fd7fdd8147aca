//! The full level's own look: an exclusive, read-only open. The kernel refuses it while a filesystem or a driver has
//! claimed the device, in whichever mount namespace, and also after a lazy unmount. It does not see raw opens and loops.

use super::limited;
use super::mountinfo::Dev;
use super::root::{HostRoot, is_block, stat};
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::io::Errno;
use std::path::Path;

/// What an exclusive open says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nobody has any of the devices claimed.
    Free,
    /// Somebody has one of them.
    Taken,
    /// It could not be tried.
    Unknown(String),
}

/// Opens each device for a moment. An open can hang in the kernel for good, or for the minutes that a driver takes to
/// recover from errors.
pub(crate) fn claim(root: &HostRoot, devices: Vec<(String, Dev)>) -> Claim {
    let root = root.clone();
    let tried = limited::run("opening the device", move || {
        let claims = devices.iter().map(|(name, dev)| try_open(&root, name, *dev));
        claims.reduce(|a, b| if a == Claim::Free { b } else { a }).unwrap_or(Claim::Free)
    });
    tried.unwrap_or_else(Claim::Unknown)
}

/// The node is looked at before it is opened: only a block device with exactly this number is. The device node below the
/// host's /dev is the kernel's own (devtmpfs); a link in its place is not followed.
fn try_open(root: &HostRoot, name: &str, dev: Dev) -> Claim {
    let path = format!("/dev/{name}");
    let place = root.join(&path);
    let unknown = |why: &dyn std::fmt::Display| Claim::Unknown(format!("{path}: {why}"));
    match stat(&place, false) {
        Ok(stat)
            if is_block(&stat) && (stat.stx_rdev_major, stat.stx_rdev_minor) == (dev.major, dev.minor) => {}
        Ok(_) => return unknown(&format!("is not the device {dev}")),
        Err(e) => return unknown(&e),
    }
    match open_exclusively(&place) {
        Ok(found) if found == dev => Claim::Free,
        Ok(found) => unknown(&format!("became the device {found} meanwhile")),
        Err(Errno::BUSY) => Claim::Taken,
        Err(e) => unknown(&e),
    }
}

/// Non-blocking spares the drive a check of its medium. Closed on return: a mount in that moment would be refused, but a
/// challenge is only asked where no pod may mount.
fn open_exclusively(place: &Path) -> Result<Dev, Errno> {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let number = fstat(open(place, flags, Mode::empty())?)?.st_rdev;
    Ok(Dev { major: rustix::fs::major(number), minor: rustix::fs::minor(number) })
}
