//! Phrases of Kubernetes about its own records and plugins: VolumeAttachments, Multi-Attach, registration, attacher.

use super::{Family, ReportedBy};
use crate::meaning::{Meaning, MultiAttachUsers};
use crate::structure::Structure;

/// VolumeAttachment, PersistentVolume and the attach/detach controller's memory.
pub(super) const RECORDS: &[Family] = &[
    // The attach/detach controller's memory lists another node. "Multi-Attach error" and its successor wording; the
    // operation's name is stripped before, so a phrase can only contain the rest of the sentence.
    Family {
        phrases: &[
            "already exclusively attached",
            "exclusively attached to",
            "already used by * pod",
            "used by * pod|pods * different namespace~",
            "used by pod|pods s",
            "waiting on|for * detach * before",
            "waiting on|for detach",
            "multi attach error|failure|failed",
            "cannot attached to another",
        ],
        unless: &["claim|pvc * already used by"],
        reported_by: ReportedBy::Controller,
        meaning: multi_attach,
    },
    // The CSI controller's own rights. A service account is refused, not a kubelet.
    Family {
        phrases: &[
            "forbidden user system service account",
            "forbidden ** system:serviceaccount~",
            "volume attachment|volumeattachments.storage.k8s.io|volumeattachments.storage.k8s.io/status ** forbidden ** patch|update",
        ],
        unless: &["secret * forbidden", "config map * forbidden"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::AttacherForbidden,
    },
    // The node authorizer refuses a kubelet whose node the VolumeAttachment does not name, or no longer names.
    Family {
        phrases: &[
            "volume attachment|volumeattachments.storage.k8s.io ** forbidden",
            "volume attachment|volumeattachments.storage.k8s.io ** no relationship",
            "forbidden ** volume attachment",
            "cannot get|list|watch resource * volume attachment",
            "not allowed|authorized|permitted * read|get|access volume attachment",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::VolumeAttachmentForbidden,
    },
    // The VolumeAttachment has a deletionTimestamp and its finalizer is still there.
    Family {
        phrases: &[
            "volume attachment * being deleted",
            "volume attachment * marked * delet~",
            "volume attachment * terminating",
            "volume attachment * deletion timestamp",
            "volume attachment * pending deletion",
            "attachment being deleted",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::VolumeAttachmentBeingDeleted,
    },
    // kubelet's live GET finds no VolumeAttachment.
    Family {
        phrases: &[
            "volume attachment|volumeattachments.storage.k8s.io * not found|exist~",
            "get error for volume attachment",
            "no volume attachment",
            "volume attachment * gone|missing|deleted|removed",
            "cannot|failed * find|get * volume attachment",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::VolumeAttachmentMissing,
    },
    // The PersistentVolume is being deleted while an attach is wanted: external-attacher refuses to add its finalizer.
    Family {
        phrases: &[
            "pv * being deleted",
            "pv * deletion timestamp",
            "marked for deletion",
        ],
        unless: &["pvc|claim * marked|being"],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::PersistentVolumeBeingDeleted,
    },
    // A detach reads the PersistentVolume and the publish Secret again; without them it can never succeed.
    Family {
        phrases: &[
            "pv * not found|exist~",
            "secret * not found|exist~",
            "cannot|failed * get|find|load secret|pv",
            "error getting * secret",
        ],
        unless: &[],
        reported_by: ReportedBy::Detach,
        meaning: |_| Meaning::DetachInputsMissing,
    },
];

/// Plugins, their registration and their sidecars.
pub(super) const PLUGINS: &[Family] = &[
    // kubelet or the attacher does not know the driver on this node: plugin pod not up yet, or broken.
    Family {
        phrases: &[
            "list of registered csi? drivers|plugins",
            "driver|drivers|plugin * not? registered",
            "driver name * not found",
            "csi node * not contain|include|list driver",
            "csi node * no driver|drivers",
            "csi node * not found",
            "csi node * not yet? initialized",
            "create|get|make * csi driver? client",
            "no node id",
            "node id annotation",
            "cannot|failed * find|get node id",
            "sock * no such file",
            "csi driver * not installed|running|found",
        ],
        unless: &[
            "cns volume",
            "object # not registered",
            "no volume plugin matched",
        ],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::DriverNotRegistered,
    },
    // The attach/detach controller waited for external-attacher, which never reported: missing, crashed or without
    // rights. The cloud may have attached all the same.
    Family {
        phrases: &[
            "timeout * external attacher",
            "waiting * external attacher",
            "external attacher ** timeout|deadline|respond|responding",
            "external attacher not * respond~|running|answer~",
            "attacher not respond~|answer~",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::AttacherTimeout,
    },
    // In-tree plugin gone (migrated), or FlexVolume not installed.
    Family {
        phrases: &[
            "no volume plugin matched",
            "no plugin * matched",
            "get plugin from volume",
            "unsupported volume type",
        ],
        unless: &[],
        reported_by: ReportedBy::Any,
        meaning: |_| Meaning::PluginMissing,
    },
];

fn multi_attach(structure: &Structure) -> Meaning {
    let pods = pods(&structure.body_text);
    let users = if structure.says(&["waiting on|for * detach"]) {
        MultiAttachUsers::WaitingForDetach
    } else if !pods.is_empty() {
        MultiAttachUsers::Pods { pods }
    } else if structure.says(&["pod|pods ** different|other namespace~"]) {
        MultiAttachUsers::OtherNamespaces
    } else if structure.says(&["used by * pod|pods"]) {
        MultiAttachUsers::Pods { pods }
    } else {
        MultiAttachUsers::Exclusive
    };
    Meaning::MultiAttach { users }
}

/// Returns the names in "used by pod(s) a, b and 2 pod(s) in different namespaces".
fn pods(text: &str) -> Vec<String> {
    let lower = text.to_ascii_lowercase();
    let Some(at) = lower.find("used by pod") else {
        return Vec::new();
    };
    let rest = text[at + "used by pod".len()..]
        .trim_start_matches(['(', 's', ')', ':'])
        .trim_start();
    rest.split([',', ' '])
        .map(|name| name.trim_matches(|c: char| !c.is_alphanumeric()))
        .filter(|name| !name.is_empty())
        .take_while(|name| !matches!(*name, "and" | "on" | "in" | "which" | "that"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pods() {
        assert_eq!(pods("Volume is already used by pod(s) app-0"), ["app-0"]);
        assert_eq!(
            pods("Volume is already used by pod(s) a-0, s-1 and 2 pod(s) in different namespaces"),
            ["a-0", "s-1"]
        );
        assert!(pods("Volume is already used by 2 pod(s) in different namespaces").is_empty());
    }
}
