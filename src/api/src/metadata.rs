//! Name, namespace, UID and resourceVersion of a stored object.
//!
//! The API server sets these on every object that it stores. A field that is missing or empty is a [`MissingField`] and never an
//! empty text: an empty UID or resourceVersion is no precondition at all, and an empty text equals the next empty text.

use kube::Resource;
use kube::api::ObjectMeta;
use reattach_core::ids::{ObjectName, ResourceVersion, Uid};
use reattach_core::journal::Outcome;
use std::borrow::Cow;
use std::fmt;

/// A field that the API server sets on every stored object, and that an object lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {object} has no {field}")]
pub struct MissingField {
    /// Kind of the object.
    pub kind: String,
    /// Namespace and name of the object, as far as it has them.
    pub object: String,
    /// The missing field.
    pub field: Field,
}

/// A field that identifies an object.
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
    /// `spec.claimRef.name` of a PersistentVolume with a `claimRef`.
    ClaimRefName,
    /// `spec.claimRef.namespace` of a PersistentVolume with a `claimRef`.
    ClaimRefNamespace,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Namespace => "namespace",
            Self::Uid => "UID",
            Self::ResourceVersion => "resourceVersion",
            Self::ClaimRefName => "claimRef.name",
            Self::ClaimRefNamespace => "claimRef.namespace",
        })
    }
}

/// An effect whose request would have no condition. It was not sent.
impl From<MissingField> for Outcome {
    fn from(missing: MissingField) -> Self {
        Self::NotApplied {
            why: format!("{missing}, so nothing was sent"),
            retry: false,
        }
    }
}

/// A read whose answer cannot be used.
impl From<MissingField> for kube::Error {
    fn from(missing: MissingField) -> Self {
        Self::Service(Box::new(missing))
    }
}

/// The metadata of an object, with its kind for errors.
#[derive(Clone, Debug)]
pub struct Metadata<'a> {
    kind: Cow<'a, str>,
    meta: &'a ObjectMeta,
}

/// Returns the metadata of an object.
pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Metadata<'_> {
    Metadata {
        kind: K::kind(&()),
        meta: object.meta(),
    }
}

/// Returns the metadata of an object whose kind is known at run time only.
pub fn of_kind<'a>(kind: &'a str, meta: &'a ObjectMeta) -> Metadata<'a> {
    Metadata {
        kind: Cow::Borrowed(kind),
        meta,
    }
}

impl<'a> Metadata<'a> {
    /// Returns the name of an object.
    ///
    /// # Errors
    /// The object has none.
    pub fn name(&self) -> Result<&'a str, MissingField> {
        self.require(Field::Name, self.meta.name.as_deref())
    }

    /// Returns the namespace of an object of a namespaced kind.
    ///
    /// # Errors
    /// The object has none.
    pub fn namespace(&self) -> Result<&'a str, MissingField> {
        self.require(Field::Namespace, self.meta.namespace.as_deref())
    }

    /// Returns namespace and name of an object of a namespaced kind.
    ///
    /// # Errors
    /// The object lacks one of the two.
    pub fn object_name(&self) -> Result<ObjectName, MissingField> {
        Ok(ObjectName::new(self.namespace()?, self.name()?))
    }

    /// Returns the UID of an object.
    ///
    /// # Errors
    /// The object has none.
    pub fn uid(&self) -> Result<Uid, MissingField> {
        self.require(Field::Uid, self.meta.uid.as_deref())
            .map(Uid::from)
    }

    /// Returns the resourceVersion of an object.
    ///
    /// # Errors
    /// The object has none.
    pub fn version(&self) -> Result<ResourceVersion, MissingField> {
        self.require(
            Field::ResourceVersion,
            self.meta.resource_version.as_deref(),
        )
        .map(ResourceVersion::from)
    }

    /// Returns the UID and the resourceVersion that a conditional write names.
    ///
    /// # Errors
    /// The object lacks one of the two.
    pub fn condition(&self) -> Result<(Uid, ResourceVersion), MissingField> {
        Ok((self.uid()?, self.version()?))
    }

    /// Returns `value`, which the object has in `field`.
    ///
    /// # Errors
    /// The value is missing or empty.
    pub fn require(&self, field: Field, value: Option<&'a str>) -> Result<&'a str, MissingField> {
        value
            .filter(|text| !text.is_empty())
            .ok_or_else(|| self.lacks(field))
    }

    fn lacks(&self, field: Field) -> MissingField {
        let name = self.meta.name.as_deref().unwrap_or("without a name");
        let object = match self.meta.namespace.as_deref() {
            Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}"),
            // For a message the name alone is enough.
            Some(_) | None => name.to_owned(),
        };
        MissingField {
            kind: self.kind.to_string(),
            object,
            field,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn a_missing_or_empty_field_is_an_error() {
        let empty = Pod {
            metadata: ObjectMeta {
                name: Some("data".to_owned()),
                namespace: Some(String::new()),
                uid: Some(String::new()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        };
        let missing = |field| MissingField {
            kind: "Pod".to_owned(),
            object: "data".to_owned(),
            field,
        };
        assert_eq!(of(&empty).uid(), Err(missing(Field::Uid)));
        assert_eq!(of(&empty).version(), Err(missing(Field::ResourceVersion)));
        assert_eq!(of(&empty).condition(), Err(missing(Field::Uid)));
        assert_eq!(of(&empty).object_name(), Err(missing(Field::Namespace)));
        assert_eq!(of(&empty).name(), Ok("data"));
    }

    #[test]
    fn a_stored_object_has_every_field() {
        let whole = ObjectMeta {
            name: Some("data".to_owned()),
            namespace: Some("shop".to_owned()),
            uid: Some("u-1".to_owned()),
            resource_version: Some("7".to_owned()),
            ..ObjectMeta::default()
        };
        let whole = of_kind("Lease", &whole);
        assert_eq!(whole.uid(), Ok(Uid::from("u-1")));
        assert_eq!(whole.version(), Ok(ResourceVersion::from("7")));
        assert_eq!(whole.object_name(), Ok(ObjectName::new("shop", "data")));
    }

    #[test]
    fn the_error_names_kind_object_and_field() {
        let meta = ObjectMeta {
            name: Some("db-0".to_owned()),
            namespace: Some("shop".to_owned()),
            ..ObjectMeta::default()
        };
        let said = |meta| of_kind("Pod", meta).uid().unwrap_err().to_string();
        assert_eq!(said(&meta), "Pod shop/db-0 has no UID");
        assert_eq!(
            said(&ObjectMeta::default()),
            "Pod without a name has no UID"
        );
    }
}
