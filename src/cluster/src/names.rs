//! Names, UIDs and resourceVersions before they become a part of a request.
//!
//! [`uid`], [`version`] and [`object_name`] read what the API server sets on every stored object. A field that is missing or
//! empty is a [`MissingField`], because an empty UID or resourceVersion is no precondition at all, and an empty text equals
//! the next empty text.
//!
//! The API server checks the name of an object, and not every name that an object gives to another one: the claim in a pod, the
//! volume in a claim and the owner in `ownerReferences` may be any text. In a path such a text would be a query (`?watch=true`
//! answers without an end), another object (`a/b`), or no path at all, so that whatever reads it fails for ever.

use kube::api::ObjectMeta;
use reattach_core::ids::{ObjectName, ResourceVersion, Uid};
use reattach_core::journal::Outcome;
use std::fmt;

/// A field that the API server sets on every stored object, and that an object lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object} has no {field}, so nothing is sent about it")]
pub struct MissingField {
    /// The object's name, as far as it has one.
    pub object: String,
    /// The field.
    pub field: Field,
}

/// A field of an object's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `metadata.name`.
    Name,
    /// `metadata.namespace`.
    Namespace,
    /// `metadata.uid`.
    Uid,
    /// `metadata.resourceVersion`.
    ResourceVersion,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Namespace => "namespace",
            Self::Uid => "UID",
            Self::ResourceVersion => "resourceVersion",
        })
    }
}

impl From<MissingField> for Outcome {
    fn from(missing: MissingField) -> Self {
        Self::NotApplied {
            why: missing.to_string(),
            retry: false,
        }
    }
}

/// Returns the UID of an object.
///
/// # Errors
/// The object has none.
pub fn uid(meta: &ObjectMeta) -> Result<Uid, MissingField> {
    read(meta, Field::Uid, meta.uid.as_deref()).map(Uid::from)
}

/// Returns the resourceVersion of an object.
///
/// # Errors
/// The object has none.
pub fn version(meta: &ObjectMeta) -> Result<ResourceVersion, MissingField> {
    read(
        meta,
        Field::ResourceVersion,
        meta.resource_version.as_deref(),
    )
    .map(ResourceVersion::from)
}

/// Returns the UID and the resourceVersion that a conditional write names.
///
/// # Errors
/// The object lacks one of the two.
pub fn condition(meta: &ObjectMeta) -> Result<(Uid, ResourceVersion), MissingField> {
    Ok((uid(meta)?, version(meta)?))
}

/// Returns namespace and name of a namespaced object.
///
/// # Errors
/// The object lacks one of the two.
pub fn object_name(meta: &ObjectMeta) -> Result<ObjectName, MissingField> {
    let namespace = read(meta, Field::Namespace, meta.namespace.as_deref())?;
    Ok(ObjectName::new(
        namespace,
        read(meta, Field::Name, meta.name.as_deref())?,
    ))
}

fn read<'a>(
    meta: &ObjectMeta,
    field: Field,
    value: Option<&'a str>,
) -> Result<&'a str, MissingField> {
    value
        .filter(|text| !text.is_empty())
        .ok_or_else(|| MissingField {
            object: meta
                .name
                .clone()
                .unwrap_or_else(|| "an object without a name".to_owned()),
            field,
        })
}

/// Whether an object can have this name: a DNS subdomain (RFC 1123) of at most 253 characters, as Kubernetes demands of claims,
/// volumes and workloads. What has another name does not exist.
pub fn is_object_name(name: &str) -> bool {
    let within = |label: &str| {
        label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let part = |label: &str| {
        !label.is_empty() && within(label) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

/// Whether this can be a group, a version or a kind of the API.
pub fn is_api_word(word: &str) -> bool {
    !word.is_empty()
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_empty_field_is_an_error() {
        let empty = ObjectMeta {
            name: Some("data".to_owned()),
            namespace: Some(String::new()),
            uid: Some(String::new()),
            ..ObjectMeta::default()
        };
        let missing = |field| MissingField {
            object: "data".to_owned(),
            field,
        };
        assert_eq!(uid(&empty), Err(missing(Field::Uid)));
        assert_eq!(version(&empty), Err(missing(Field::ResourceVersion)));
        assert_eq!(object_name(&empty), Err(missing(Field::Namespace)));
        let whole = ObjectMeta {
            name: Some("data".to_owned()),
            namespace: Some("shop".to_owned()),
            uid: Some("u-1".to_owned()),
            resource_version: Some("7".to_owned()),
            ..ObjectMeta::default()
        };
        assert_eq!(uid(&whole), Ok(Uid::from("u-1")));
        assert_eq!(version(&whole), Ok(ResourceVersion::from("7")));
        assert_eq!(object_name(&whole), Ok(ObjectName::new("shop", "data")));
    }

    #[test]
    fn an_invalid_object_name_is_refused() {
        for name in ["data", "data-0.db", "0", "a.b-c.d", &"a".repeat(253)] {
            assert!(is_object_name(name), "{name}");
        }
        for text in [
            "",
            ".",
            "..",
            "a.",
            ".a",
            "-a",
            "a-",
            "a/b",
            "../../b/persistentvolumeclaims/c",
            "?watch=true",
            "a?b",
            "a#b",
            "%2e%2e",
            "a b",
            "a\n",
            "A",
            "\u{e4}",
            "a_b",
            "a\u{200b}",
            &"a".repeat(254),
        ] {
            assert!(!is_object_name(text), "{text:?}");
        }
        for word in ["apps", "v1", "keda.sh", "StatefulSet", "x-y.example.org"] {
            assert!(is_api_word(word), "{word}");
        }
        for text in ["", "v1?watch=true", "v1/namespaces", "a b", "\u{e4}"] {
            assert!(!is_api_word(text), "{text:?}");
        }
    }
}
