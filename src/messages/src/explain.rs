//! Explains a message: the row of its meaning, filled with the names that the message gave.

use crate::advice::Remedy::{self, DeleteVolumeattachment, Escalate, ForceDetach};
use crate::driver::StorageKind;
use crate::meaning::{Meaning, MultiAttachUsers};
use crate::structure::Operation;
use crate::{Explanation, Message, Symptom, read};

/// Explains a message to a person: its meaning, the facts that decide, and the remedies.
pub fn explain(message: &Message) -> Explanation {
    let symptom = read(message);
    let row = symptom.meaning.row(symptom.operation);
    Explanation {
        sentence: sentence(row.sentence, &symptom),
        deciding_facts: row.facts.to_vec(),
        remedies: without_cloud(symptom.storage, row.remedies),
        meaning: symptom.meaning,
    }
}

/// Fills the placeholders of a row's sentence in one pass, so that a brace inside a name is never read as a placeholder.
fn sentence(row: &str, symptom: &Symptom) -> String {
    let mut out = String::new();
    let mut rest = row;
    while let Some((before, after)) = rest.split_once('{') {
        let (placeholder, after) = after.split_once('}').unwrap_or((after, ""));
        out.push_str(before);
        out.push_str(&value(placeholder, symptom).unwrap_or_else(|| format!("{{{placeholder}}}")));
        rest = after;
    }
    out.push_str(rest);
    // Names (kubelet, external-attacher, drivers) keep their case.
    let begins_with_common_noun = ["volume ", "the volume ", "its driver "]
        .iter()
        .any(|words| out.starts_with(words));
    if begins_with_common_noun {
        format!("{}{}", out[..1].to_uppercase(), &out[1..])
    } else {
        out
    }
}

/// Returns the text for a placeholder; `None` if no such placeholder exists.
fn value(placeholder: &str, symptom: &Symptom) -> Option<String> {
    let named =
        |kind: &str, name: &Option<String>| name.as_ref().map(|name| format!("{kind} {name}"));
    Some(match (placeholder, &symptom.meaning) {
        ("volume", _) => volume(symptom),
        ("node", _) => named("node", &symptom.node).unwrap_or_else(|| "the node".to_owned()),
        ("driver", _) => symptom
            .driver
            .clone()
            .unwrap_or_else(|| "its driver".to_owned()),
        ("doing", _) => doing(symptom.operation).to_owned(),
        ("at paths", Meaning::DevicePathMissing { paths }) if paths.is_empty() => String::new(),
        ("at paths", Meaning::DevicePathMissing { paths }) => format!(" at {}", paths.join(", ")),
        ("holder", Meaning::AttachedElsewhere { holder, .. }) => holder.as_ref().map_or_else(
            || "another machine".to_owned(),
            |holder| format!("\"{holder}\""),
        ),
        ("instance", Meaning::InstanceNotFound { instance }) => {
            named("instance", instance).unwrap_or_else(|| "the instance".to_owned())
        }
        (
            "pods",
            Meaning::MultiAttach {
                users: MultiAttachUsers::Pods { pods },
            },
        ) if pods.is_empty() => "a pod".to_owned(),
        (
            "pods",
            Meaning::MultiAttach {
                users: MultiAttachUsers::Pods { pods },
            },
        ) => {
            format!("pod {}", pods.join(", "))
        }
        ("volumes of the pod", Meaning::Umbrella { volumes }) if volumes.is_empty() => {
            "volumes of the pod".to_owned()
        }
        ("volumes of the pod", Meaning::Umbrella { volumes }) => volumes.join(", "),
        ("name", Meaning::SecretMissing { name } | Meaning::ConfigMapMissing { name }) => {
            name.clone()?
        }
        _ => return None,
    })
}

/// Names the volume with its driver: "volume pvc-1 (linodebs.csi.linode.com)".
fn volume(symptom: &Symptom) -> String {
    let name = symptom
        .volume
        .as_ref()
        .map_or_else(|| "the volume".to_owned(), |v| format!("volume {v}"));
    match &symptom.driver {
        Some(driver) => format!("{name} ({driver})"),
        None => name,
    }
}

fn doing(operation: Option<Operation>) -> &'static str {
    match operation {
        Some(Operation::Attach) => "Attaching",
        Some(Operation::Detach) => "Detaching",
        Some(Operation::WaitForAttach) => "Waiting for the attach of",
        Some(Operation::MountDevice) => "Staging",
        Some(Operation::SetUp | Operation::Mount) => "Mounting",
        Some(Operation::Map) => "Mapping",
        Some(Operation::Unmount) => "Unmounting",
        _ => "Work on",
    }
}

/// Replaces [`ForceDetach`] for storage that no cloud API detaches. There Kubernetes' record or the storage's operator
/// is the remedy.
fn without_cloud(storage: StorageKind, listed: &[Remedy]) -> Vec<Remedy> {
    if storage != StorageKind::ClusterBlock || !listed.contains(&ForceDetach) {
        return listed.to_vec();
    }
    let mut out: Vec<Remedy> = listed
        .iter()
        .copied()
        .filter(|r| *r != ForceDetach)
        .collect();
    for substitute in [DeleteVolumeattachment, Escalate] {
        if out.len() < 3 && !out.contains(&substitute) {
            out.push(substitute);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Returns every meaning, by the kinds that serde lists in its error for an unknown one.
    fn meanings() -> Vec<Meaning> {
        let error = serde_json::from_value::<Meaning>(json!({ "kind": "?" }))
            .unwrap_err()
            .to_string();
        let kinds: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        assert_eq!(kinds.len(), 61, "{error}");
        let with = |name: &str, users: serde_json::Value| {
            let fields = json!({ "paths": [], "volumes": [], "name": name, "users": users });
            kinds.iter().map(move |kind| {
                let mut fields = fields.clone();
                fields["kind"] = json!(kind);
                serde_json::from_value(fields).unwrap()
            })
        };
        with("x", json!({ "by": "exclusive" }))
            .chain(with("y", json!({ "by": "pods", "pods": [] })))
            .collect()
    }

    fn symptom(meaning: Meaning) -> Symptom {
        Symptom {
            operation: None,
            volume: Some("{node}".to_owned()),
            node: None,
            driver: None,
            storage: StorageKind::Unknown,
            meaning,
        }
    }

    #[test]
    fn every_placeholder_is_filled_once() {
        for meaning in meanings() {
            let symptom = symptom(meaning);
            let row = symptom.meaning.row(None);
            let text = sentence(row.sentence, &symptom);
            assert!(!text.replace("olume {node}", "").contains('{'), "{text}");
        }
    }

    #[test]
    fn every_meaning_has_one_to_three_remedies() {
        for meaning in meanings() {
            let remedies = meaning.row(None).remedies;
            assert!((1..=3).contains(&remedies.len()), "{meaning:?}");
            assert!(
                remedies == [Remedy::NotOurs] || !remedies.contains(&Remedy::NotOurs),
                "{meaning:?}"
            );
        }
    }
}
