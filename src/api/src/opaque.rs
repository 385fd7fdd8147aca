//! A typed value that the schema shows as an object with preserved fields.
//!
//! The API server checks nothing inside such an object, so what is stored there may be of another version's shape, or
//! of no shape at all. One value that cannot be read must not make the object around it unreadable, nor the list or
//! watch that it is in: it is kept as it was found, with the reason.

use crate::metadata::MissingField;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::borrow::Cow;

/// Longer reasons are cut: an error of the decoder may quote what it could not read.
const MAX_WHY: usize = 300;

/// Wraps a core type for use in a custom resource. It serialises exactly as the inner value; what could not be read is
/// written back as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opaque<T>(Result<T, Unreadable>);

/// A value that this version cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unreadable {
    raw: Value,
    why: String,
}

impl Unreadable {
    /// The value as it was found.
    pub fn raw(&self) -> &Value {
        &self.raw
    }

    /// What the decoder says, without a full stop.
    pub fn why(&self) -> &str {
        &self.why
    }
}

/// A field of a custom resource that this version cannot read: another version wrote it, or a person did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} cannot be read ({why})")]
pub struct UnreadableField {
    /// Its path, such as `status.journal[3]`.
    pub field: String,
    /// What the decoder says.
    pub why: String,
}

impl From<MissingField> for UnreadableField {
    fn from(missing: MissingField) -> Self {
        Self {
            field: missing.field.to_string(),
            why: "the object has none".to_owned(),
        }
    }
}

impl UnreadableField {
    fn new(field: impl Into<String>, value: &Unreadable) -> Self {
        Self {
            field: field.into(),
            why: value.why.clone(),
        }
    }

    /// Every value of a list.
    pub(crate) fn none_of<'a, T>(values: &'a [Opaque<T>], field: &str) -> Result<Vec<&'a T>, Self> {
        let read = |(n, value): (usize, &'a Opaque<T>)| {
            value
                .get()
                .map_err(|unreadable| Self::new(format!("{field}[{n}]"), unreadable))
        };
        values.iter().enumerate().map(read).collect()
    }

    /// The value of an optional field.
    pub(crate) fn none_in<'a, T>(
        value: &'a Option<Opaque<T>>,
        field: &str,
    ) -> Result<Option<&'a T>, Self> {
        value
            .as_ref()
            .map(Opaque::get)
            .transpose()
            .map_err(|unreadable| Self::new(field, unreadable))
    }
}

impl<T> Opaque<T> {
    /// The value.
    ///
    /// # Errors
    /// [`Unreadable`], if what is stored is not of the shape that this version knows.
    pub fn get(&self) -> Result<&T, &Unreadable> {
        self.0.as_ref()
    }
}

impl<T> From<T> for Opaque<T> {
    fn from(value: T) -> Self {
        Self(Ok(value))
    }
}

impl<T: Serialize> Serialize for Opaque<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Ok(value) => value.serialize(serializer),
            Err(unreadable) => unreadable.raw.serialize(serializer),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Opaque<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Value::deserialize(deserializer)?;
        let read = T::deserialize(&raw).map_err(|e| e.to_string());
        Ok(Self(read.map_err(|why| Unreadable { raw, why: cut(why) })))
    }
}

fn cut(mut why: String) -> String {
    if let Some((at, _)) = why.char_indices().nth(MAX_WHY) {
        why.truncate(at);
        why.push('…');
    }
    why
}

impl<T> JsonSchema for Opaque<T> {
    fn schema_name() -> Cow<'static, str> {
        "Opaque".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
    }
}
