//! What a node's agent sees of block devices and mounts: the guest's side of the story.

use crate::cloud::DeviceIdentity;
use crate::ids::{BootId, DriverName, PvName, Uid, VolumeHandle};
use crate::plain;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How much the agent is allowed to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    /// Reads /proc and /sys: can say "no device" or "dirty", never "clean" of a device that is there.
    #[default]
    Basic,
    /// May also open devices, read-only: can say "clean".
    Full,
}

/// Everything an agent reports without being asked, about one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestInventory {
    /// The running kernel's boot ID.
    pub boot_id: BootId,
    /// When that kernel booted (`btime` of /proc/stat).
    pub booted_at: Timestamp,
    /// What the agent was allowed to look at.
    pub level: Level,
    /// Block devices that carry an identity, sorted by kernel name. Partitions and virtual devices are left out.
    pub devices: Vec<GuestDevice>,
    /// CSI volumes that kubelet's folders or a mount table know of, sorted.
    pub csi_volumes: Vec<GuestCsiVolume>,
    /// Items that could not be read. Not empty means: nothing may be concluded from what is missing above.
    pub unreadable: Vec<String>,
}

/// One block device by kernel data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestDevice {
    /// Kernel name, such as `sda`.
    pub kernel_name: String,
    /// `major:minor`.
    pub dev: String,
    /// The identity the device itself reports.
    pub identity: DeviceIdentity,
    /// Size in bytes.
    pub size_bytes: u64,
    /// What uses it, as far as the agent may see.
    pub users: DeviceUsers,
}

/// What uses a device. All lists are sorted and short (at most 16 entries each).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceUsers {
    /// Mount points of it in any mount namespace.
    pub mounts: Vec<String>,
    /// Devices stacked on it (dm-crypt, LVM, md, multipath), recursively.
    pub holders: Vec<String>,
    /// Loop and network block devices that stand for it or for a file on it.
    pub loops: Vec<String>,
    /// Processes with the device open, mapped or named in a running `mount` or the like, as `pid comm`; in an answer also
    /// what is left of a pod that had the volume.
    pub openers: Vec<String>,
    /// Whether it is a swap device.
    pub swap: bool,
    /// The kernel refuses an exclusive open: a filesystem or driver has it that may show nowhere else (full level only).
    #[serde(default, skip_serializing_if = "is_false")]
    pub claimed: bool,
    /// A request was in flight, or a write was counted between two readings.
    #[serde(default, skip_serializing_if = "is_false")]
    pub active: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl DeviceUsers {
    /// Whether nothing at all was seen to use the device.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn make_plain(&mut self) {
        let Self {
            mounts,
            holders,
            loops,
            openers,
            swap: _,
            claimed: _,
            active: _,
        } = self;
        for texts in [mounts, holders, loops, openers] {
            make_plain(texts);
        }
    }
}

/// Maximum length of a path or process name in a report, in characters: the kernel's own bound of a path.
const TEXT_CHARS: usize = 4_096;

/// Tenants choose the names of processes and of mount points. Identifiers are left as they are: what a text like that is
/// compared with must not change.
fn make_plain(texts: &mut [String]) {
    for text in texts {
        if text.contains(plain::is_hidden) || text.len() > TEXT_CHARS {
            *text = plain::cut(&plain::clean(text), TEXT_CHARS);
        }
    }
}

impl GuestInventory {
    /// Makes the names plain that tenants choose, before the report is written.
    pub fn make_plain(&mut self) {
        for device in &mut self.devices {
            device.users.make_plain();
        }
        for mount in self
            .csi_volumes
            .iter_mut()
            .flat_map(|volume| &mut volume.mounts)
        {
            make_plain(std::slice::from_mut(&mut mount.path));
        }
        make_plain(&mut self.unreadable);
    }
}

impl ScanResult {
    /// Makes the names plain that tenants choose, before the answer is written.
    pub fn make_plain(&mut self) {
        match self {
            Self::DeadMount { paths } => make_plain(paths),
            Self::InUse { users } => users.make_plain(),
            Self::Unreadable { items } => make_plain(items),
            Self::NoDevice | Self::Idle | Self::Clean => {}
        }
    }
}

/// One CSI volume as kubelet's folders and the mount tables know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestCsiVolume {
    /// The PersistentVolume, where a `vol_data.json` names it.
    pub pv: Option<PvName>,
    /// The CSI driver.
    pub driver: DriverName,
    /// The CSI volume handle.
    pub handle: VolumeHandle,
    /// Pods (by UID) with a publish folder for it.
    pub pods: Vec<Uid>,
    /// Mount points of it that a mount table shows, staging or publish.
    pub mounts: Vec<GuestMount>,
}

/// A mount of a CSI volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestMount {
    /// Where it is mounted, below the host's root.
    pub path: String,
    /// `major:minor` of the mounted device.
    pub dev: String,
    /// The mounted device is no longer in /sys: a dead mount, every I/O on it fails.
    pub dead: bool,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// A question to one agent about one volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Challenge {
    /// The VolumeRecovery that asks.
    pub recovery: Uid,
    /// Grows with every question of that recovery.
    pub epoch: u64,
    /// What to look for.
    pub identity: DeviceIdentity,
    /// The CSI volume, so that mounts of a vanished device are found too.
    pub driver: DriverName,
    /// The CSI volume handle.
    pub handle: VolumeHandle,
}

/// What a scan made for one challenge saw.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ScanResult {
    /// No device with that identity in /sys/block, and no mount of the volume.
    NoDevice,
    /// The device is gone, yet mounts of the volume remain.
    DeadMount {
        /// Their mount points.
        paths: Vec<String>,
    },
    /// The device is there and this uses it.
    InUse {
        /// Who and what.
        users: DeviceUsers,
    },
    /// The device is there and no user was seen, as far as the basic level sees: not "clean".
    Idle,
    /// The device is there and nothing has it: every item of the full level was read and shows no user. Counts only in an
    /// answer of that level (see [`Answer::is_clean`]).
    Clean,
    /// Something could not be read: no answer.
    Unreadable {
        /// What could not be read.
        items: Vec<String>,
    },
}

/// An agent's answer to one [`Challenge`]. Valid for that recovery, epoch and identity only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The VolumeRecovery that asked.
    pub recovery: Uid,
    /// The question's number.
    pub epoch: u64,
    /// What was looked for.
    pub identity: DeviceIdentity,
    /// The boot in which the scan ran.
    pub boot_id: BootId,
    /// When the scan began, on the node's clock. The scan began after the challenge was read.
    pub scanned_at: Timestamp,
    /// What the agent was allowed to look at. An answer that does not say so is of the basic level.
    #[serde(default)]
    pub level: Level,
    /// What was seen.
    pub seen: ScanResult,
}

impl Answer {
    /// Whether the answer shows that nothing on the node can write to the device: it is not there, or it is there and an
    /// agent that may open devices found it clean. A basic agent cannot say the latter, whatever it wrote.
    pub fn is_clean(&self) -> bool {
        match self.seen {
            ScanResult::NoDevice => true,
            ScanResult::Clean => self.level == Level::Full,
            ScanResult::DeadMount { .. }
            | ScanResult::InUse { .. }
            | ScanResult::Idle
            | ScanResult::Unreadable { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_chosen_by_tenants_are_made_plain() {
        let evil = || vec!["/a\u{1b}[2J\nforged".to_owned(), "x".repeat(9_000)];
        let users = || DeviceUsers {
            mounts: evil(),
            openers: evil(),
            ..DeviceUsers::default()
        };
        let all = [
            ScanResult::DeadMount { paths: evil() },
            ScanResult::InUse { users: users() },
            ScanResult::Unreadable { items: evil() },
        ];
        for mut seen in all {
            seen.make_plain();
            let text = serde_json::to_string(&seen).unwrap();
            assert!(
                text.contains("/a [2J forged") && text.contains("9000 characters in all"),
                "{text}"
            );
        }
    }
}
