//! Explains a message: the row of its meaning, filled with the names that the message gave.

use crate::advice::Remedy::{self, DeleteVolumeattachment, Escalate, ForceDetach};
use crate::driver::StorageKind;
use crate::meaning::{Meaning, MultiAttachUsers};
use crate::structure::{Operation, Structure, structure};
use crate::{Explanation, Message, classify};

/// Explains a message to a person: its meaning, the facts that decide, and the remedies.
pub fn explain(message: &Message) -> Explanation {
    let structure = structure(message);
    let meaning = classify::meaning(message, &structure);
    let row = meaning.row(structure.operation);
    Explanation {
        sentence: fill(row.sentence, &meaning, &structure),
        deciding_facts: row.facts,
        remedies: without_cloud(structure.storage, row.remedies),
        meaning,
    }
}

/// Fills the placeholders of a row's sentence in one pass, so that a brace inside a name is never read as a placeholder.
fn fill(sentence: &str, meaning: &Meaning, structure: &Structure) -> String {
    let mut out = String::new();
    let mut rest = sentence;
    while let Some((before, after)) = rest.split_once('{') {
        let (placeholder, after) = after.split_once('}').unwrap_or((after, ""));
        out.push_str(before);
        let text = placeholder_text(placeholder, meaning, structure);
        out.push_str(&text.unwrap_or_else(|| format!("{{{placeholder}}}")));
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
fn placeholder_text(placeholder: &str, meaning: &Meaning, structure: &Structure) -> Option<String> {
    Some(match (placeholder, meaning) {
        ("volume", _) => volume(structure),
        ("node", _) => named("node", structure.node.as_deref()),
        ("driver", _) => structure
            .driver
            .clone()
            .unwrap_or_else(|| "its driver".to_owned()),
        ("doing", _) => doing(structure.operation).to_owned(),
        ("at paths", Meaning::DevicePathMissing { paths }) if paths.is_empty() => String::new(),
        ("at paths", Meaning::DevicePathMissing { paths }) => format!(" at {}", paths.join(", ")),
        ("holder", Meaning::AttachedElsewhere { holder, .. }) => holder.as_ref().map_or_else(
            || "another machine".to_owned(),
            |holder| format!("\"{holder}\""),
        ),
        ("instance", Meaning::InstanceNotFound { instance }) => {
            named("instance", instance.as_deref())
        }
        (
            "pods",
            Meaning::MultiAttach {
                users: MultiAttachUsers::Pods { pods },
            },
        ) => match pods.as_slice() {
            [] => "a pod".to_owned(),
            pods => format!("pod {}", pods.join(", ")),
        },
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

/// "node n1", or "the node" without a name.
fn named(kind: &str, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("{kind} {name}"),
        None => format!("the {kind}"),
    }
}

/// Names the volume with its driver: "volume pvc-1 (linodebs.csi.linode.com)".
fn volume(structure: &Structure) -> String {
    let name = named("volume", structure.volume.as_deref());
    match &structure.driver {
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

    #[test]
    fn every_placeholder_is_filled_once() {
        let mut structure = structure(&Message::default());
        structure.volume = Some("{node}".to_owned());
        for meaning in meanings() {
            let text = fill(meaning.row(None).sentence, &meaning, &structure);
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
