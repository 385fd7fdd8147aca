//! Phrases of kubelet and node plugins about devices, filesystems and mounts, and general time-outs.

use super::{Family, ReportedBy};
use crate::meaning::Meaning;
use crate::structure::{Operation, Structure};

/// Devices, and the filesystems on them.
pub(super) const DEVICES: &[Family] = &[
    // The driver read the device's identity and got another volume's name.
    Family {
        phrases: &[
            "refusing to mount",
            "claims to * but should",
            "serial ** not match|mismatch",
            "device * belongs to * different|another|other",
            "expected serial|device id * got|found",
            "wrong device|disk",
        ],
        unless: &[],
        reported_by: ReportedBy::Node,
        meaning: |_| Meaning::DeviceMismatch,
    },
    // The kernel could not read or write: the device went away under its user, or the backend is down.
    Family {
        phrases: &[
            "i o error|errors",
            "input output error",
            "eio",
            "io error|failure",
            "i o failure",
            "medium error",
            "no such device or address",
            "device offline|lost|gone|vanished|disappeared",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::IoError,
    },
    // The filesystem cannot be read or repaired automatically. "bad superblock" inside mount(8)'s list of guesses
    // ("wrong fs type, bad option, bad superblock") says nothing; a superblock that could not be read does.
    Family {
        phrases: &[
            "read superblock",
            "superblock * corrupt~|invalid|damaged|unreadable",
            "invalid|corrupt|corrupted|damaged superblock",
            "corrupt~ * superblock|fs|journal|metadata",
            "structure needs cleaning",
            "fsck|e2fsck|repair * found|error|errors|failed|could|cannot",
            "unexpected inconsistency",
            "bad magic number",
            "fs ** corrupt~|damaged|inconsistent",
            "journal|log * recovery|replay|mount failed",
            "metadata corrupt~|error",
            "run fsck|repair|e2fsck manually",
            "read only fs",
            "cannot correct them",
        ],
        unless: &["nfs|cifs|smb|efs|ceph"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::FilesystemDamaged,
    },
    // A data filesystem of another kind than asked for, or one the node cannot make or mount.
    Family {
        phrases: &[
            "wrong fs type",
            "unknown fs type",
            "unrecognized fs type",
            "fs not support~",
            "fs type * not support~|valid|allowed|match|recognized",
            "fs type * mismatch|unsupported|unknown|invalid",
            "invalid|unsupported fs type",
            "already contain~ * fs|data|mount|ext4|xfs|btrfs|unknown",
            "but already? contain~",
            "mkfs * not found",
            "executable file not found",
            "mount * helper program",
            "different fs than|from",
            "expected fs * found|got",
        ],
        unless: &[],
        reported_by: ReportedBy::Node,
        meaning: |_| Meaning::WrongFsType,
    },
    // A superblock complaint outside of that list of guesses.
    Family {
        phrases: &["bad superblock"],
        unless: &["nfs|cifs|smb|efs|ceph"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::FilesystemDamaged,
    },
    // A client of network block storage still has the image open; freeing it means fencing that client.
    Family {
        phrases: &[
            "image * still|being|currently|in use|used",
            "image ** watcher|watchers",
            "watcher|watchers ** image|rbd",
            "exclusive lock * held|owned|owner",
            "image * locked",
            "rbd * still|being|in used|use",
        ],
        unless: &["pull|container"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::ClientStillOpen,
    },
    // Something on this node has the device or the mount point.
    Family {
        phrases: &[
            "resource|device|target|mountpoint busy",
            "mount point * busy",
            "busy * device|mount|target",
            "apparently in use",
            "device|disk * still? in use",
            "still mounted|referenced by",
            "mounted at multiple",
            "already mapped|mounted",
            "ebusy",
            "luks * already exist~|active",
            "mount references",
        ],
        unless: &["linode busy", "server|instance|api busy"],
        reported_by: ReportedBy::Node,
        meaning: |_| Meaning::DeviceBusy,
    },
    // Kubernetes has the volume as attached; the guest shows no such device.
    Family {
        phrases: &[
            "device path",
            "device|devices|dev * not found|exist~|appear~|available|visible|present|show~|ready",
            "no device~ * found|path|for|present|with|matching",
            "cannot|failed|error|not * find|locate|discover|detect|identify|resolve * device|devicepath|dev|block",
            "cannot|failed|not * find|locate|discover|detect * disk|lun|nvme|path|link|symlink",
            "not find|found|locate * device|disk|lun",
            "disk|lun|nvme * not found|exist~|appear~|visible|present",
            "no disk|lun|nvme",
            "find disk by lun",
            "re link disk",
            "relink disk|device",
            "udevadm",
            "special device",
            "attempted paths",
            "by id ** no such file",
            "no such device",
            "no such block device",
            "waiting|wait for device|disk",
            "device|disk * missing",
            "missing * device",
            "device * never|failed * appear~|show~",
            "nvme|lun path",
            "iscsi ** no session~|record~",
            "scsi|iscsi ** failed",
            "verifying * attached",
            "find attached * disk|pd|volume|device",
        ],
        unless: &[
            "device name",
            "attachment point",
            "not attached to",
            "not registered",
        ],
        reported_by: ReportedBy::Node,
        meaning: |s| Meaning::DevicePathMissing {
            paths: device_paths(s),
        },
    },
    // A missing device by its path alone: a file below /dev that is not there.
    Family {
        phrases: &["no such file or directory", "# not exist~|found", "stat #"],
        unless: &[],
        reported_by: ReportedBy::Node,
        meaning: path_not_there,
    },
];

/// General phrases that any component prints. They are searched last, because every other table tells more.
pub(super) const GENERAL: &[Family] = &[
    // kubelet waits for its own status to list the volume.
    Family {
        phrases: &[
            "list of volumes in use",
            "volumes in use ** not",
            "not ** volumes in use",
            "not added to * volumes",
        ],
        unless: &[],
        reported_by: ReportedBy::Node,
        meaning: |_| Meaning::WaitingForNodeStatus,
    },
    Family {
        phrases: &[
            "no space left",
            "disk quota exceeded",
            "not enough|insufficient * space",
        ],
        unless: &[],
        reported_by: ReportedBy::Node,
        meaning: |_| Meaning::NodeDiskFull,
    },
    // An API server, a cloud endpoint, a webhook or a plugin's socket did not answer.
    Family {
        phrases: &[
            "connection refused|reset|closed|aborted|lost",
            "no such host",
            "i o timeout",
            "tls handshake",
            "handshake timeout",
            "server|api|endpoint|service * unavailable|unreachable",
            "internal server error",
            "bad gateway",
            "gateway timeout",
            "eof",
            "transport * closing",
            "error while dialing",
            "dial tcp|unix",
            "no route to host",
            "network unreachable",
            "leader changed",
            "calling webhook",
            "awaiting headers",
            "server misbehaving",
            "request canceled",
            "soap|vcenter|datastore ** fault|unreachable|inaccessible",
            "maintenance",
            "try again later",
        ],
        unless: &["nfs"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::ApiUnavailable,
    },
    // A detach that takes its time, or does not finish.
    Family {
        phrases: &[
            "timeout",
            "deadline exceeded",
            "context canceled|cancelled",
            "wait~ for ** detach~",
            "desired detached",
            "still attached|attaching|detaching",
        ],
        unless: &[],
        reported_by: ReportedBy::Detach,
        meaning: |_| Meaning::DetachNotFinished,
    },
    Family {
        phrases: &[
            "timeout",
            "deadline",
            "context canceled|cancelled",
            "took too long",
            "taking longer|too",
            "not complete~ in|within * time",
            "wait~ ** attach~",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::DeadlineExceeded,
    },
    // Rights on files and mounts of the node.
    Family {
        phrases: &[
            "permission denied",
            "operation not permitted",
            "access denied",
            "apply fs group",
            "chown|chmod|lchown",
            "read only * path|directory",
        ],
        unless: &[],
        reported_by: ReportedBy::Node,
        meaning: |_| Meaning::MountDenied,
    },
];

/// Returns the paths below /dev in a message.
fn device_paths(structure: &Structure) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    for word in structure.body_text.split(|c: char| {
        c.is_whitespace() || matches!(c, '[' | ']' | '(' | ')' | ',' | ';' | '"' | '\'')
    }) {
        let path = word.trim_end_matches([':', '.']);
        if path.starts_with("/dev/") && !paths.iter().any(|p| p == path) {
            paths.push(path.to_owned());
        }
    }
    paths
}

/// Returns the meaning of a missing file: a device below /dev, a socket of a plugin, or a directory that the pod names.
fn path_not_there(structure: &Structure) -> Meaning {
    let paths = device_paths(structure);
    let csi = structure.is_rpc
        || structure.says(&["kubernetes.io/csi"])
        || structure.operation == Some(Operation::MountDevice);
    if !paths.is_empty() {
        Meaning::DevicePathMissing { paths }
    } else if csi
        || !matches!(
            structure.operation,
            Some(Operation::SetUp | Operation::Mount)
        )
    {
        Meaning::Unknown
    } else {
        Meaning::HostPath
    }
}
