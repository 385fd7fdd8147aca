//! Names that an object gives to another one, before they become a part of a request.
//!
//! The API server checks the name of an object, and not every name that an object gives to another one: the claim in a pod, the
//! volume in a claim and the owner in `ownerReferences` may be any text. In a path such a text would be a query (`?watch=true`
//! answers without an end), another object (`a/b`), or no path at all, so that whatever reads it fails for ever.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// Whether an object can have this name: a DNS subdomain (RFC 1123) of at most 253 characters, as Kubernetes demands of claims,
/// volumes and workloads. What has another name does not exist.
pub fn is_object_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    let all_fit = label
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    !label.is_empty() && all_fit && !label.starts_with('-') && !label.ends_with('-')
}

/// The owner that controls an object.
pub(crate) fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    let mut owners = metadata.owner_references.iter().flatten();
    owners.find(|o| o.controller == Some(true))
}

/// Group and version of an `apiVersion`. The core group is empty.
pub(crate) fn group_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Whether this can be a group, a version or a kind of the API.
pub(crate) fn is_api_word(word: &str) -> bool {
    !word.is_empty()
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

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
