//! Phrases of clouds, hypervisors and storage systems.

use super::{Family, ReportedBy};
use crate::meaning::Meaning;
use crate::structure::{Operation, Structure, name_after};

/// Refusals that no detach would end: rates, rights, limits, keys.
pub(super) const REFUSALS: &[Family] = &[
    // Too many requests for now.
    Family {
        phrases: &[
            "request limit exceeded|reached",
            "rate limit~",
            "rate * exceeded|too|quota",
            "throttl~",
            "too many requests",
            "status|code|http|error 429",
            "429 too|error",
            "requests per second|minute|hour",
            "queries per minute",
            "quota exceeded ** per minute|second",
            "slow down",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::Throttled,
    },
    // Keys of encrypted volumes.
    Family {
        phrases: &[
            "kms",
            "no key available",
            "passphrase",
            "encryption key",
            "customer managed? key",
            "key vault",
            "disk encryption set",
            "decrypt~ ** failed|denied|cannot",
            "cannot|failed * decrypt~",
            "luks * key|passphrase",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::EncryptionKey,
    },
    // The driver's own credentials at the cloud, in words that only an API says.
    Family {
        phrases: &[
            "unauthorized operation",
            "not authorized",
            "authorization failed|failure",
            "not * authorization|permission to",
            "status|code|http|error 401|403",
            "401|403 unauthorized|forbidden",
            "auth failure",
            "unauthenticated",
        ],
        unless: &["volume attachment"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::PermissionDenied,
    },
    // Missing rights at the cloud, in words that an error of a mount may have as well.
    Family {
        phrases: &[
            "unauthorized~",
            "not authorized",
            "authorization failed|failure",
            "not * permission~|authorization|access|rights|privilege",
            "missing|insufficient|lack~|no * permission~|privilege~|scope~|rights",
            "required ** permission~|privilege|scope",
            "status|code|http|error 401|403",
            "401|403 unauthorized|forbidden",
            "but got 401|403",
            "invalid|expired|bad|revoked|missing * token|credential~|credentials",
            "token|credential~ * invalid|expired|revoked",
            "no * credential~",
            "auth failure|failed",
            "authentication failed|failure|required|error",
            "cannot authenticate",
            "unauthenticated",
            "access denied",
            "denied * access|permission|policy",
            "iam|sts|oauth|oauth2",
            "not permitted to",
            "policy * denies|denied|forbids|disallowed",
            "request disallowed",
            "permission ** denied",
            "signature not match",
        ],
        unless: &["mount * failed|error", "mkdir|lstat|open|stat #"],
        reported_by: ReportedBy::Controller,
        meaning: |_| Meaning::PermissionDenied,
    },
    // No room: slots of an instance, limits of a node, quota of an account.
    Family {
        phrases: &[
            "max|maximum * number|count|limit * volume~|disk~|attach~|device~|storage|data",
            "max|maximum volume~|disk~|attach~ * count|limit|number|exceeded|reached",
            "max|maximum * attached|attachment|attachable * volume~|disk~|reached|exceeded",
            "max|maximum * reached|exceeded",
            "exceed~ * max|maximum|limit|quota|allowed",
            "limit exceeded|reached|hit",
            "limit * reached|exceeded",
            "reached|hit|over|at * limit",
            "more|other than # volume~|disk~",
            "too many * volume~|disk~|attach~|device~",
            "cannot * attach * more|additional|another",
            "no * free|available|more|unused|remaining * slot~|device|lun|port~|controller~|letters",
            "no device~ available",
            "quota",
            "resource exhausted",
            "insufficient capacity|resources|instance",
            "capacity exceeded",
            "attachment|attach|attached|volume|disk ** limit",
            "pcie? slot~|ports",
        ],
        unless: &["attempt~ limit", "time limit", "retry limit", "deadline"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::AttachLimit,
    },
    // The call itself is refused as malformed.
    Family {
        phrases: &[
            "malformed",
            "missing required|mandatory",
            "required * missing",
            "volume|node|target|staging id|path missing|empty|required",
            "not valid volume? id|handle",
            "invalid volume id|handle",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::InvalidRequest,
    },
];

/// Work that is under way, at the driver or at the cloud.
pub(super) const JOBS: &[Family] = &[
    // The driver's own guard against two calls for one volume.
    Family {
        phrases: &[
            "operation|request|call|task|action|job|attach|detach|mount|publish|stage ** already exist~|exists|running|pending|started|inflight",
            "operation|request|call|task|action|job|attach|detach|mount|publish|stage|resize|snapshot * in progress|flight",
            "operation|request|task|action|job * ongoing|underway|pending|running|executing",
            "pending|ongoing|concurrent|another|other|previous * operation|request|action|task|job|event",
            "already|still|currently in progress|flight",
            "already|still being processed|executed|staged|published|handled",
            "already processing|executing|attempting",
            "in flight",
            "pending * lock|operation",
        ],
        unless: &["external attacher", "operation * fulfilled"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::OperationInProgress,
    },
    // The device name that the driver picked is taken on the target; it picks another.
    Family {
        phrases: &[
            "attachment point",
            "device name * in|already|conflict~|taken|used|unavailable",
            "unix device",
            "device letter",
            "lun * already|in used|use|assigned|occupied",
            "target|bus|unit|slot number * use|used|taken",
            "mount point /dev~ * use|used|taken",
            "device /dev~ * in use",
        ],
        unless: &[],
        reported_by: ReportedBy::Controller,
        meaning: |_| Meaning::DeviceNameTaken,
    },
    // Locks of the provider, jobs of a server, and lost races on an object.
    Family {
        phrases: &[
            "locked",
            "task state",
            "linode|server|instance|droplet|vm|machine|api|host|service busy",
            "busy * linode|server|instance|droplet|vm|machine",
            "conflicting request",
            "conflict",
            "resource not ready",
            "object modified",
            "modified * latest|try|apply",
            "concurrent modification|update~|operation~",
            "preempted",
            "pending event",
            "in transition",
            "under maintenance",
            "migrat~|rebooting|resizing|reimaging|rebuilding|provisioning|booting * instance|server|vm|linode|try|state|wait",
            "instance|server|vm|linode|droplet|machine|node ** migrat~|rebooting|resizing|reimaging|rebuilding|booting",
            "incorrect state ** pending|creating|modifying",
            "being modified|resized|snapshotted|migrated|updated|created|restored|backed|cloned",
        ],
        unless: &[
            "failed|cannot * lock * file",
            "attached to another|different|other",
            "status must available",
        ],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::Locked,
    },
    // The previous detach is still running.
    Family {
        phrases: &[
            "being|currently|still|already|but|actual|state|status detaching|detached",
            "detaching state|status",
            "state|status * detaching",
            "while * detach~",
            "until * detached|detach",
            "detach operation",
            "last detach",
            "detach * in progress|running|pending",
            "not detached|released yet",
            "not yet detached|released",
            "not * finished|completed detach~",
            "wait~ * detach~",
        ],
        unless: &[
            "actual busy",
            "attached to another|different|other",
            "already|currently attached to",
        ],
        reported_by: ReportedBy::Controller,
        meaning: |s| match s.operation {
            Some(Operation::Detach) => Meaning::DetachNotFinished,
            _ => Meaning::DetachInProgress,
        },
    },
    // The attach is still running.
    Family {
        phrases: &[
            "currently|still|but|actual|state|status|already|being attaching",
            "attaching state|status",
            "state|status * attaching|reserved|maintenance|downloading|creating",
            "stuck * attaching",
            "attach * pending|started|running",
            "expected * attached * but|got|found",
            "desired attached",
            "not attached * yet|in|within",
        ],
        unless: &["status must available", "currently in in use"],
        reported_by: ReportedBy::Controller,
        meaning: |_| Meaning::AttachInProgress,
    },
];

/// The holder of the volume, as the storage system reports it.
pub(super) const HOLDERS: &[Family] = &[
    // The guest still uses the volume, so the cloud does not detach it.
    Family {
        phrases: &[
            "busy",
            "in use",
            "still mounted|used|attached|open",
            "being used",
            "mounted",
            "cannot|failed|not * unmount~",
            "not * release~",
        ],
        unless: &["not attached", "not found"],
        reported_by: ReportedBy::Detach,
        meaning: |_| Meaning::DetachBusy,
    },
    // Kubernetes has the volume as attached; the driver, the node or the cloud says that it is not. This stands before the
    // next family, because "not attached" also contains "attached".
    Family {
        phrases: &[
            "not attached to|on|for|according|by|with",
            "volume|disk|device|lun|# not * attached",
            "not yet attached",
            "not attached yet",
            "no longer attached",
            "attachment not found|exist~",
            "attachment ** not found",
            "no attachment",
            "invalid attachment",
            "not * currently attached",
            "available state",
            "unattached",
            "attached to * node|instance|server|vm|linode but * not|no",
            "not published",
            "not * engine|frontend",
        ],
        unless: &[
            "could|cannot * attached",
            "attached to another|different|other",
            "already attached",
            "unattached volumes",
        ],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::NotAttachedToNode,
    },
    // Another machine has the volume. CSI's code for this is FailedPrecondition; the words differ by cloud.
    Family {
        phrases: &[
            "attached|published|mounted|assigned|connected|exposed|mapped to|on|at|by * another|different|other|wrong",
            "another|different|other|wrong * node|instance|server|vm|host|linode|droplet|machine * attached|using|holds|owns",
            "already|currently|still|presently|exclusively attached",
            "already|currently|still in use",
            "already|currently|still|being used|using|consumed",
            "already attach~ to",
            "attached to|on node|instance|server|vm|host|linode|droplet|machine|compute|#",
            "in use by|on|elsewhere|at",
            "in * use by",
            "volume|disk|resource|storage|image|lun|# in use",
            "volume|disk # attached",
            "state|status * in use",
            "used|held|owned|locked|claimed|reserved|leased by * vm|instance|node|server|machine|host|linode|droplet|another|other|different|#",
            "status must available",
            "not available",
            "expected * available",
            "incorrect state",
            "failed|cannot * lock * file",
            "lock file",
            "not shareable|sharable|multi",
            "detach * first|before",
            "must * detached",
            "need~ * detached",
            "attached elsewhere",
            "multi attach * not|disabled|allowed",
            "held by",
            "read write mode",
        ],
        unless: &[
            "device name",
            "attachment point",
            "instance|server|vm|linode|droplet|node # not running|ready",
        ],
        reported_by: ReportedBy::Any,
        meaning: |s| Meaning::AttachedElsewhere {
            volume: volume(s),
            holder: holder(s),
        },
    },
];

/// Instances and volumes that do not exist, do not run or do not work.
pub(super) const EXISTENCE: &[Family] = &[
    // The target's instance is gone, or the node names an instance that this account does not have.
    Family {
        phrases: &[
            "instance|linode|server|droplet|vm|vms|node|compute|machine|host|hypervisor|virtualmachine id|for|with|named? * not found|exist~|registered|known",
            "instance|linode|server|droplet|vm|machine|node|host|instances|servers * not found|exist~",
            "instance|linode|server|droplet|vm|machine|node * no longer exist~",
            "no such instance|server|linode|droplet|vm|node|machine",
            "no * instance|server|linode|droplet|vm|machine * found|with|for|matching",
            "unknown instance|server|linode|droplet|vm|node|machine",
            "cannot|failed|error * find|get|getting|resolve|lookup|locate|finding|discover|retrieve|describe * instance|linode|server|droplet|vm|node|machine|virtual|host|compute",
            "instance * terminated|deleted|gone|removed",
            "node * deleted|gone|removed",
            "invalid * instance id",
        ],
        unless: &["volume|disk * not found on", "no such host"],
        reported_by: ReportedBy::Any,
        meaning: |s| Meaning::InstanceNotFound {
            instance: name_after(
                "instance|linode|server|droplet|vm|machine|node",
                &s.body_text,
            )
            .or_else(|| {
                s.name_after_phrase("instance|linode|server|droplet|vm|machine|node|nodes")
            }),
        },
    },
    // The provider has no such volume: deleted, renamed, or never made.
    Family {
        phrases: &[
            "volume|disk|image|vdisk|vmdk|lun|blockvolume|backing|fcd|storage|pv|resource|snapshot ** not found|exist~",
            "volumes|disks|volumes.longhorn.io|images * not found|exist~",
            "volume|disk|image|storage|resource * not registered",
            "volume|disk|image * no longer exist~",
            "volume|disk|image * deleted|gone|removed|vanished",
            "no such volume|disk|image|lun",
            "no * volume|disk|image * found|with|matching",
            "unknown volume|disk",
            "cannot|failed|error * find|get|locate|lookup * volume|disk|image|vmdk",
            "not registered as",
            "not found",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::VolumeNotFound,
    },
    // The storage system reports the volume as failed.
    Family {
        phrases: &[
            "volume|disk|engine|replica ** faulted|faulty|error state|failed state",
            "state|status * error|faulted|failed|unknown|degraded|offline|unrecoverable",
            "error deleting|attaching|managing state|status",
            "in error|failed|faulted state|status",
            "contact support",
            "data loss",
            "impaired",
            "no healthy|available replica~",
        ],
        unless: &["http|exit|response status"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::VolumeFaulted,
    },
    // The instance exists and does not run.
    Family {
        phrases: &[
            "instance|linode|server|droplet|vm|machine|node|host ** not running|active|started|powered",
            "instance|linode|server|droplet|vm|machine|node|host ** stopped|stopping|shutoff|offline|suspended|deallocated|hibernated",
            "incorrect instance state",
            "invalid power state",
            "powered off",
            "shut down|off",
            "shutting down",
            "node * not ready|unreachable|down",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::InstanceNotRunning,
    },
    // The storage system is still preparing the volume.
    Family {
        phrases: &[
            "not * ready",
            "not * healthy|initialized|scheduled",
            "still * starting|creating|initializing|rebuilding|restoring|syncing|provisioning",
            "being created|initialized|restored",
            "initializing|warming",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::NotReady,
    },
];

/// Returns the volume as the message names it.
fn volume(structure: &Structure) -> Option<String> {
    structure
        .volume
        .clone()
        .or_else(|| structure.name_after_phrase("volume|disk"))
}

/// Returns the holder as the message names it: the name after "attached to", "used by", "in use by" and the like.
fn holder(structure: &Structure) -> Option<String> {
    const KINDS: &str = "node|instance|server|vm|linode|droplet|host|machine";
    let lower = structure.body_text.to_ascii_lowercase();
    let verb = [
        "attached to",
        "used by",
        "in use by",
        "owned by",
        "held by",
        "published to",
        "attached on",
        "locked by",
    ]
    .iter()
    .filter_map(|verb| lower.find(verb).map(|at| at + verb.len()))
    .min();
    let tail = verb.and_then(|at| structure.body_text.get(at..))?;
    name_after(KINDS, tail).or_else(|| {
        let word = tail.split_whitespace().next()?;
        let word = word
            .trim_matches(|c: char| matches!(c, '"' | '\'' | '`' | ',' | '.' | ';' | ')' | '('));
        let named = word.contains(|c: char| c.is_ascii_digit() || c == '/' || c == '-');
        named.then(|| word.to_owned())
    })
}
