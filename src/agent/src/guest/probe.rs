//! The exclusive, read-only open of the full level. The kernel refuses it while a filesystem or a driver has claimed the
//! device, in any mount namespace, and also after a lazy unmount. It does not detect raw opens and loop devices.

use super::mountinfo::Dev;
use super::root::{HostRoot, node_dev, stat};
use super::with_timeout;
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::io::Errno;
use std::path::Path;

/// The result of an exclusive open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// None of the devices is claimed.
    Free,
    /// One of the devices is claimed.
    Taken,
    /// The open could not be tried.
    Unknown(String),
}

/// Opens each device for a moment. An open can hang in the kernel permanently, or for minutes while a driver recovers from
/// errors.
pub(crate) fn claim(root: &HostRoot, devices: Vec<(String, Dev)>) -> Claim {
    let root = root.clone();
    let tried = with_timeout::run("opening the device", move || {
        let claims = devices
            .iter()
            .map(|(name, dev)| try_open(&root, name, *dev));
        claims
            .reduce(|a, b| if a == Claim::Free { b } else { a })
            .unwrap_or(Claim::Free)
    });
    tried.unwrap_or_else(Claim::Unknown)
}

/// Opens the device node if it is a block device with exactly this number. The device nodes in the host's /dev are the
/// kernel's own (devtmpfs). A link in the place of one is not followed.
fn try_open(root: &HostRoot, name: &str, dev: Dev) -> Claim {
    let path = format!("/dev/{name}");
    let place = root.join(&path);
    let unknown = |why: &dyn std::fmt::Display| Claim::Unknown(format!("{path}: {why}"));
    match stat(&place, false) {
        Ok(stat) if node_dev(&stat) == Some(dev) => {}
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

/// Opens and closes a device. `NONBLOCK` prevents that the drive checks its medium. A mount during the open would be refused,
/// but a challenge comes only while no pod may mount the volume.
fn open_exclusively(place: &Path) -> Result<Dev, Errno> {
    let flags =
        OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let number = fstat(open(place, flags, Mode::empty())?)?.st_rdev;
    Ok(Dev {
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
    })
}
