//! Phrases about objects and the pod itself. No attachment is at fault.

use super::{Family, ReportedBy};
use crate::meaning::Meaning;
use crate::structure::name_after;

/// Secrets, ConfigMaps and tokens that a volume is made from.
pub(super) const REFERENCES: &[Family] = &[
    // The API server issues the token of a projected volume; nothing is attached.
    Family {
        phrases: &[
            "fetch|request|get|create|obtain|refresh * token",
            "token request",
            "service account * not found|exist~",
            "failed|cannot|error * token ** service account",
            "service account token",
            "kube root ca|crt",
            "projected|projection * volume|source|token",
        ],
        unless: &[
            "cloud|access|api|iam|oauth|session|bearer|security token",
            "volume attachment",
        ],
        reported_by: ReportedBy::Node,
        meaning: |_| Meaning::ProjectedToken,
    },
    // ConfigMap: missing, a key missing, not readable by this kubelet, or not yet in its cache.
    Family {
        phrases: &[
            "config map * not found|exist~",
            "config map|config ** forbidden",
            "non existent config",
            "nonexistent config",
            "missing|no|absent config map|key",
            "config map ** no|missing|not|without ** key",
            "sync|load|fetch|get|find config map",
            "config map cache",
        ],
        unless: &[],
        reported_by: ReportedBy::Node,
        meaning: |s| Meaning::ConfigMapMissing {
            name: name_after("configmap|configmaps|config map", &s.body_text),
        },
    },
    // Secret: missing, a key missing, not readable, or not yet in kubelet's cache; also the ones a CSI call names.
    Family {
        phrases: &[
            "secret * not found|exist~|available|registered",
            "secret * forbidden",
            "secret ** no relationship",
            "secret * missing",
            "no|missing|absent secret",
            "non existent secret",
            "nonexistent secret",
            "secret ** no|missing|not|without ** key",
            "sync|load|fetch|fetching|get|getting|find|read|retrieve|retrieving * secret",
            "secret cache",
            "stage|publish|expand secret ref",
            "secret name ** not|cannot|failed|error",
            "secret reference",
        ],
        unless: &["secret provider class"],
        reported_by: ReportedBy::Any,
        meaning: |s| Meaning::SecretMissing {
            name: name_after("secret|secrets", &s.body_text),
        },
    },
    // kubelet's cache does not hold the named Secret or ConfigMap yet, or a key of one is missing.
    Family {
        phrases: &[
            "object ** not registered",
            "not find key",
            "cannot find key",
            "references non existent",
            "references missing|unknown",
        ],
        unless: &["cns volume"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::SecretMissing { name: None },
    },
    // Fields of the pod as files.
    Family {
        phrases: &[
            "downward api",
            "field path",
            "metadata annotations|labels * not",
            "field|label|annotation * not supported",
        ],
        unless: &[],
        reported_by: ReportedBy::Node,
        meaning: |_| Meaning::NodeLocal,
    },
];

/// The pod, its claim, and requests that the driver cannot serve.
pub(super) const POD: &[Family] = &[
    // Block and Filesystem confused between pod and claim.
    Family {
        phrases: &[
            "volume mode * specified|used|but",
            "specified in volume devices|mounts",
            "volume devices|mounts ** volume mode",
            "volume mode mismatch",
            "volume mode * not match|equal|agree",
            "cannot|not * use|mount|map * block volume * fs",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::VolumeModeMismatch,
    },
    // A directory of the node that the pod names itself.
    Family {
        phrases: &[
            "host path",
            "type check failed",
            "not directory",
            "not socket",
            "not file|regular",
            "not block|character|char device",
            "local volume * not|missing|path",
            "mnt|local ** path * not exist",
            "mkdir * read only fs",
        ],
        unless: &[],
        reported_by: ReportedBy::Node,
        meaning: |_| Meaning::HostPath,
    },
    // Made by kubelet below the pod's directory.
    Family {
        phrases: &[
            "sub path",
            "empty dir",
            "image volume",
            "pull * image|artifact",
            "git repo",
            "wrapped volume|emptydir~",
        ],
        unless: &["volume|disk * attach~"],
        reported_by: ReportedBy::Node,
        meaning: |_| Meaning::NodeLocal,
    },
    Family {
        phrases: &[
            "selinux",
            "se linux",
            "context mount * conflict~",
            "lsetxattr",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::SelinuxConflict,
    },
    // The claim does not exist, is not bound, is going away, or an ephemeral volume's claim is another pod's.
    Family {
        phrases: &[
            "pvc|claim * not found|bound|exist|owned",
            "pvc|claim * being deleted",
            "pvc|claim * forbidden",
            "pvc|claim * marked for deletion",
            "unbound * pvc|claim~",
            "fetch|find|get|process|processing pvc",
            "ephemeral volume",
            "pvc|claim * lost",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::ClaimProblem,
    },
    // The driver cannot serve what the claim asks for.
    Family {
        phrases: &[
            "no mount|block capability",
            "capability|capabilities * not * support~",
            "not support~ * capability|capabilities",
            "unsupported * capability|capabilities|access|mode",
            "access mode|type * not * support~|allowed|valid",
            "access mode|type * unsupported|invalid",
            "not support~ * block|raw|access|multi",
            "block * not support~|implemented",
            "raw * not support~|implemented",
            "not support~ ** volume mode",
            "no support * block|raw",
            "without * block support",
            "block|raw * unsupported|unimplemented",
            "invalid|unsupported|unknown * volume? mount|volume option~|parameter~|attribute~",
            "mount option~ * not allowed|supported|valid",
            "operation|method not supported|implemented",
            "unknown|unimplemented method|service",
            "licence|license|licensed|licensing",
        ],
        unless: &["fs type", "fs not support~"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::CapabilityUnsupported,
    },
    // The volume's topology and this node exclude each other.
    Family {
        phrases: &[
            "node affinity",
            "no matching node selector",
            "zone mismatch",
            "region mismatch",
            "not in|from|within * same zone|region|az|datacenter|location|availability",
            "different|another|other|wrong * availability? zone|region|az|datacenter|location",
            "same * availability? zone|region|location * required|as",
            "must * in|within * same",
            "topology * mismatch|conflict|constraint~",
            "zone * not match|equal",
            "region * not match|equal",
            "same zone|region required|only",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::NodeAffinityConflict,
    },
    // Growth fails on the way to a mount.
    Family {
        phrases: &[
            "expand~ volume|fs|pvc",
            "resize fs|volume",
            "failed|cannot * resize|expand|grow",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::ResizePath,
    },
];
