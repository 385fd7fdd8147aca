//! A VolumeRecovery that was read from an API server.

use crate::metadata::{self, MissingField};
use crate::volume_recovery::VolumeRecovery;
use reattach_core::ids::{ObjectName, Uid};
use serde::{Serialize, Serializer};
use std::ops::{Deref, DerefMut};

/// A VolumeRecovery with the name, namespace and UID that every stored object has.
///
/// They are read once, where the object comes in, so that code that works on a recovery has them without a question. Only spec and
/// status of the object are changed afterwards.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRecovery {
    object: VolumeRecovery,
    name: ObjectName,
    uid: Uid,
}

impl StoredRecovery {
    /// Returns namespace and name of the recovery.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Returns the claim that the recovery is for. It is in the recovery's own namespace.
    pub fn claim(&self) -> ObjectName {
        ObjectName::new(
            self.name.namespace.as_str(),
            self.object.spec.claim_name.as_str(),
        )
    }

    /// Returns the UID of the recovery.
    pub fn uid(&self) -> &Uid {
        &self.uid
    }
}

impl TryFrom<VolumeRecovery> for StoredRecovery {
    type Error = MissingField;

    fn try_from(object: VolumeRecovery) -> Result<Self, MissingField> {
        let meta = metadata::of(&object);
        let (name, uid) = (meta.object_name()?, meta.uid()?);
        Ok(Self { object, name, uid })
    }
}

impl Deref for StoredRecovery {
    type Target = VolumeRecovery;

    fn deref(&self) -> &VolumeRecovery {
        &self.object
    }
}

impl DerefMut for StoredRecovery {
    fn deref_mut(&mut self) -> &mut VolumeRecovery {
        &mut self.object
    }
}

impl Serialize for StoredRecovery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Field;
    use serde_json::json;

    fn recovery(metadata: serde_json::Value) -> Result<StoredRecovery, MissingField> {
        let object: VolumeRecovery = serde_json::from_value(json!({
            "metadata": metadata,
            "spec": {"claimName": "data", "mode": "DryRun", "runbook": "lightest-first", "requester": "jane"},
        }))
        .unwrap();
        object.try_into()
    }

    #[test]
    fn a_recovery_without_a_namespace_is_refused() {
        let refused = recovery(json!({"name": "r", "uid": "u"})).unwrap_err();
        assert_eq!(refused.field, Field::Namespace);
        assert_eq!(refused.to_string(), "VolumeRecovery r has no namespace");
    }

    #[test]
    fn a_recovery_without_a_uid_is_refused() {
        let refused = recovery(json!({"name": "r", "namespace": "shop", "uid": ""})).unwrap_err();
        assert_eq!(refused.to_string(), "VolumeRecovery shop/r has no UID");
    }

    #[test]
    fn a_stored_recovery_knows_its_claim() {
        let stored = recovery(json!({"name": "r", "namespace": "shop", "uid": "u"})).unwrap();
        assert_eq!(stored.claim(), ObjectName::new("shop", "data"));
        assert_eq!(stored.name(), &ObjectName::new("shop", "r"));
        assert_eq!(stored.uid(), &Uid::from("u"));
    }
}
