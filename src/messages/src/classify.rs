//! Finds the meaning of a message from its structure.

use crate::Message;
use crate::driver::StorageKind;
use crate::families;
use crate::meaning::Meaning;
use crate::phrase::occurs;
use crate::structure::{GrpcCode, Operation, Structure};

/// Returns the meaning of a message. It is decided in this order: subject of the message, phrases, kind of storage, gRPC
/// status, operation.
pub(crate) fn meaning(message: &Message, s: &Structure) -> Meaning {
    if is_success(message, s) {
        return Meaning::Succeeded;
    }
    if let Some(umbrella) = umbrella(s) {
        return umbrella;
    }
    if is_about_other_things(message, s) {
        return Meaning::NotAboutVolumes;
    }
    match s.operation {
        Some(Operation::Scheduling) => return scheduling(s),
        Some(Operation::Delete) => return Meaning::DeletionPath,
        Some(Operation::Provision) => return Meaning::ProvisioningPath,
        Some(Operation::Resize) => return Meaning::ResizePath,
        _ => {}
    }
    if is_bare_deletion(message, s) {
        return Meaning::DeletionPath;
    }
    let found = families::find(s);
    if s.storage.never_attached() && !s.operation.is_some_and(Operation::is_controller_side) {
        return never_attached(s.storage, found.or_else(|| by_code(s)));
    }
    // A message of the raw block path that ends before the driver's answer comes from a driver without raw block support:
    // every other answer is printed after the label.
    if s.operation == Some(Operation::Map)
        && matches!(found, None | Some(Meaning::Unknown))
        && says_nothing_more(s)
    {
        return Meaning::CapabilityUnsupported;
    }
    let meaning = found
        .or_else(|| by_code(s))
        .unwrap_or_else(|| by_operation(s));
    // "connection refused" and the like also occur in messages about probes and networks.
    if meaning.is_ours() && s.operation.is_none() && !is_about_volumes(s) {
        return Meaning::NotAboutVolumes;
    }
    meaning
}

/// Is the message about containers, images, probes or pod networks, by its reason or its words?
fn is_about_other_things(message: &Message, s: &Structure) -> bool {
    let reason = message.lower_reason();
    let other_reason = ["unhealthy", "backoff", "sandbox", "probe", "pull", "oom"]
        .iter()
        .any(|r| reason.contains(r));
    let other_words = [
        "probe failed|errored",
        "create|setup|set * sandbox",
        "pod sandbox",
        "restarting failed container",
    ];
    s.operation.is_none()
        && (other_reason || other_words.iter().any(|phrase| occurs(phrase, &s.all)))
}

fn is_success(message: &Message, s: &Structure) -> bool {
    let reason = message.lower_reason();
    let good = [
        "successful",
        "provisioningsucceeded",
        "pulled",
        "created",
        "started",
        "externalprovisioning",
    ];
    good.iter().any(|part| reason.starts_with(part))
        || reason == "scheduled"
        || occurs("successfully assigned|attached|mounted|detached", &s.all)
        || occurs(
            "attach|detach|mount|setup|up|device succeeded for volume",
            &s.all,
        )
}

/// Reads kubelet's summary: "Unable to attach or mount volumes: unmounted volumes=[…], unattached volumes=[…]: …", also
/// "timeout expired waiting for volumes to attach or mount for pod …. list of unmounted volumes=[…]".
fn umbrella(s: &Structure) -> Option<Meaning> {
    if !s.is_umbrella || s.operation.is_some_and(Operation::is_controller_side) {
        return None;
    }
    let volumes = list_after(&s.body_text, "unmounted volumes").unwrap_or_default();
    // A named cause after the lists outranks the lists. A time-out and what only follows from one is no cause.
    let cause = families::find(s).filter(|m| {
        !matches!(
            m,
            Meaning::DeadlineExceeded
                | Meaning::DetachNotFinished
                | Meaning::Unknown
                | Meaning::NotAttachedToNode
                | Meaning::AttachInProgress
                | Meaning::ProjectedToken
                | Meaning::SecretMissing { name: None }
        )
    });
    if let Some(cause) = cause {
        return Some(cause);
    }
    let token_only = !volumes.is_empty() && volumes.iter().all(|name| is_token_volume(name));
    Some(if token_only {
        Meaning::ProjectedToken
    } else {
        Meaning::Umbrella { volumes }
    })
}

/// Is this the volume of a service account token, by the name that Kubernetes gives it, or a name that only Secrets have?
fn is_token_volume(name: &str) -> bool {
    let name = name.to_lowercase();
    let made_by_kubernetes = name.starts_with("kube-api-access")
        || name.starts_with("default-token")
        || name.contains("-token-")
        || name.ends_with("-token")
        || name == "token";
    let data = ["data", "storage", "pvc", "db"]
        .iter()
        .any(|part| name.contains(part));
    let secret = [
        "secret",
        "certs",
        "tls",
        "configmap",
        "credentials",
        "ca-bundle",
        "downward",
        "podinfo",
    ]
    .iter()
    .any(|part| name.contains(part));
    made_by_kubernetes || (secret && !data)
}

/// Returns the items of `KEY=[a b c]` or `KEY=[a, b]`.
fn list_after(text: &str, key: &str) -> Option<Vec<String>> {
    let at = text.to_ascii_lowercase().find(key)? + key.len();
    let rest = text[at..].trim_start_matches([' ', '=', ':']);
    let inner = rest.strip_prefix('[')?;
    let end = inner.find(']').unwrap_or(inner.len());
    let trim = |name: &str| {
        name.trim_matches(|c: char| matches!(c, '"' | '\'' | '`'))
            .to_owned()
    };
    Some(
        inner[..end]
            .split([' ', ','])
            .map(trim)
            .filter(|name| !name.is_empty())
            .collect(),
    )
}

fn scheduling(s: &Structure) -> Meaning {
    let says = |phrases: &[&str]| phrases.iter().any(|p| occurs(p, &s.all));
    if says(&[
        "read write once pod",
        "pvc * same name",
        "claim * used by another pod",
    ]) {
        Meaning::ClaimUsedByAnotherPod
    } else if says(&[
        "max|maximum * volume",
        "volume * limit|count",
        "too many volume~",
        "attach~ limit",
    ]) {
        Meaning::AttachLimit
    } else if says(&[
        "node affinity",
        "topology",
        "available pv to bind",
        "not find available pv",
        "pv * zone",
    ]) {
        Meaning::NodeAffinityConflict
    } else if says(&["pvc|claim", "unbound", "non existent pv"]) {
        Meaning::ClaimProblem
    } else {
        Meaning::Scheduling
    }
}

/// Is this CSI's answer to DeleteVolume of an attached volume, FailedPrecondition "in use"?
///
/// ControllerPublishVolume answers with the same code, but names the other node, and its text always comes with an
/// operation or a field name. So a bare text without a holder can only come from the deletion.
fn is_bare_deletion(message: &Message, s: &Structure) -> bool {
    let anonymous =
        message.reason.is_none() && message.source_component.is_none() && s.operation.is_none();
    anonymous
        && s.code == Some(GrpcCode::FailedPrecondition)
        && s.says(&[
            "volume|disk * in use",
            "volume|disk * being? used",
            "volume|disk * still attached",
        ])
        && !s.says(&[
            "in use|used by|on",
            "attached to",
            "node|instance|server|vm|linode|droplet",
        ])
}

/// Returns the meaning for storage that is never attached. No attachment can be at fault there, but waiting helps against
/// a slow earlier call and against a node plugin that is not up yet.
fn never_attached(storage: StorageKind, found: Option<Meaning>) -> Meaning {
    let fallback = match storage {
        StorageKind::KubeletLocal => Meaning::NodeLocal,
        StorageKind::HostPath | StorageKind::LocalDisk => Meaning::HostPath,
        _ => Meaning::NonAttachable,
    };
    match found {
        Some(Meaning::OperationInProgress) => Meaning::OperationInProgress,
        Some(Meaning::DriverNotRegistered) if storage == StorageKind::FileShare => {
            Meaning::DriverNotRegistered
        }
        Some(found) if !found.is_ours() => match found {
            // For a share, "access denied by server" and "wrong fs type" are faults of its server or options.
            Meaning::PermissionDenied | Meaning::MountDenied | Meaning::WrongFsType => fallback,
            other => other,
        },
        _ => fallback,
    }
}

/// Is nothing left after kubelet's own labels and the announcement of a gRPC error?
fn says_nothing_more(s: &Structure) -> bool {
    const LABELS: &[&str] = &[
        "block", "mapper", "stage", "publish", "map", "setup", "device", "csi", "volume", "for",
        "failed", "error",
    ];
    let cut_off = s.is_rpc && s.code.is_none();
    let silent = s.code.is_none()
        && s.body
            .iter()
            .filter(|w| !w.name && !LABELS.contains(&w.text.as_str()))
            .count()
            <= 6;
    cut_off
        || silent
        || matches!(
            s.code,
            Some(GrpcCode::Unimplemented | GrpcCode::InvalidArgument)
        )
}

/// Returns the meaning that the CSI specification gives to the gRPC code of this call.
fn by_code(s: &Structure) -> Option<Meaning> {
    let attach = s.operation == Some(Operation::Attach);
    Some(match s.code? {
        GrpcCode::DeadlineExceeded | GrpcCode::Canceled
            if s.operation == Some(Operation::Detach) =>
        {
            Meaning::DetachNotFinished
        }
        GrpcCode::DeadlineExceeded | GrpcCode::Canceled => Meaning::DeadlineExceeded,
        GrpcCode::Aborted => Meaning::OperationInProgress,
        GrpcCode::Unavailable => Meaning::ApiUnavailable,
        GrpcCode::PermissionDenied | GrpcCode::Unauthenticated => Meaning::PermissionDenied,
        GrpcCode::ResourceExhausted if attach => Meaning::AttachLimit,
        GrpcCode::ResourceExhausted => Meaning::Throttled,
        GrpcCode::FailedPrecondition if attach => Meaning::AttachedElsewhere {
            volume: s.volume.clone(),
            holder: None,
        },
        GrpcCode::NotFound => Meaning::VolumeNotFound,
        GrpcCode::InvalidArgument | GrpcCode::OutOfRange => Meaning::InvalidRequest,
        GrpcCode::Unimplemented => Meaning::CapabilityUnsupported,
        GrpcCode::DataLoss => Meaning::IoError,
        _ => return None,
    })
}

/// Returns the meaning by the operation alone, where neither phrases nor code tell more.
fn by_operation(s: &Structure) -> Meaning {
    match s.operation {
        Some(Operation::Detach) => Meaning::DetachNotFinished,
        // SetUp without a CSI call concerns kubelet's own volumes, unless the name is that of a PersistentVolume.
        Some(Operation::SetUp)
            if !s.is_rpc && !occurs("kubernetes.io/csi", &s.all) && is_pod_local_name(s) =>
        {
            Meaning::NodeLocal
        }
        Some(_) => Meaning::Unknown,
        None if is_about_volumes(s) => Meaning::Unknown,
        None => Meaning::NotAboutVolumes,
    }
}

fn is_pod_local_name(s: &Structure) -> bool {
    let attachable = matches!(
        s.storage,
        StorageKind::CloudBlock | StorageKind::ClusterBlock
    );
    let pv = s.volume.as_deref().is_some_and(|v| {
        let v = v.to_lowercase();
        v.starts_with("pvc") || v.starts_with("pv") || v.contains("data")
    });
    !attachable && !pv && s.driver.is_none()
}

fn is_about_volumes(s: &Structure) -> bool {
    // A VolumeAttachment's error field holds a gRPC status without an operation.
    s.is_rpc
        || occurs(
            "volume~|disk~|mount~|attach~|detach~|unmount~|pv|pvc|device|fs|storage|publish|unpublish",
            &s.all,
        )
        || occurs("instance|linode|droplet|vm|csi", &s.all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let text = "unmounted volumes=[a b], unattached volumes=[c]";
        assert_eq!(
            list_after(text, "unmounted volumes"),
            Some(vec!["a".to_owned(), "b".to_owned()])
        );
        assert_eq!(
            list_after("unmounted volumes=[", "unmounted volumes"),
            Some(vec![])
        );
        assert_eq!(list_after("nothing", "unmounted volumes"), None);
    }

    #[test]
    fn token_volumes() {
        for name in [
            "kube-api-access-abcde",
            "default-token-xxxxx",
            "app-token-12345",
            "webhook-certs",
        ] {
            assert!(is_token_volume(name), "{name}");
        }
        for name in ["data", "redis-data-volume", "config", "token-data"] {
            assert!(!is_token_volume(name), "{name}");
        }
    }
}
