//! The fields of Linode's objects that are used here. Unknown fields and words are accepted. A field that a decision needs
//! must not be missing.

use reattach_core::{
    cloud::{CloudInstance, CloudVolume, DeviceIdentity, InstanceState, OwnerTags, VolumeState},
    ids::{InstanceId, VolumeId},
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An object with a number.
pub(crate) trait Numbered {
    /// Kind of the object, as in "volume 17".
    const KIND: &'static str;

    /// Returns the number of the object.
    fn number(&self) -> u64;
}

impl Numbered for Volume {
    const KIND: &'static str = "volume";

    fn number(&self) -> u64 {
        self.id
    }
}

impl Numbered for Instance {
    const KIND: &'static str = "instance";

    fn number(&self) -> u64 {
        self.id
    }
}

/// A volume. `linode_id` must be present, also when it is null: an answer without it does not show "detached".
#[derive(Debug, Deserialize)]
pub(crate) struct Volume {
    pub(crate) id: u64,
    label: String,
    status: String,
    size: u64,
    region: String,
    #[serde(deserialize_with = "present")]
    linode_id: Option<u64>,
    #[serde(default)]
    locks: Option<Vec<Value>>,
    #[serde(default)]
    tags: Option<Vec<Value>>,
}

/// An instance. If `watchdog_enabled` is missing, the watchdog counts as enabled.
#[derive(Debug, Deserialize)]
pub(crate) struct Instance {
    pub(crate) id: u64,
    label: String,
    status: String,
    #[serde(default)]
    watchdog_enabled: Option<bool>,
    #[serde(default)]
    tags: Option<Vec<Value>>,
    /// Number of the LKE cluster that the instance is a node of (`lke_cluster_id` in Linode's API description).
    #[serde(default)]
    lke_cluster_id: Option<Value>,
}

/// Prefix of the name of an LKE cluster, `lke<number>`. LKE's node names begin with it (`lke13311-16405-5fafd1b46dcf`).
/// People tag volumes with it by the StorageClass parameter `linodebs.csi.linode.com/volumeTags`
/// (linode-blockstorage-csi-driver `docs/volume-tags.md`). LKE's own StorageClasses set no tag, and Linode's CSI driver
/// sets only those of that parameter (`internal/driver/controllerserver_helper.go`, `createLinodeVolume`).
const LKE: &str = "lke";

/// Returns the clusters that the tags of an object name. All other tags name no cluster.
fn clusters(tags: Option<&[Value]>) -> OwnerTags {
    let mut owner = OwnerTags::default();
    for tag in tags.into_iter().flatten().filter_map(Value::as_str) {
        let number = tag.strip_prefix(LKE).unwrap_or_default();
        if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) {
            owner.add_cluster(tag);
        }
    }
    owner
}

/// Deserializes an optional value whose field must be present.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    Option::deserialize(from)
}

/// Locks that only prevent deletion. The account's own administrators set them (documented with the resource locks that
/// Linode introduced in 2025). They do not prevent a detach here. If the API refuses the detach, that refusal counts.
const DELETION_LOCKS: [&str; 2] = ["cannot_delete", "cannot_delete_with_subresources"];

impl Volume {
    /// Converts the volume into the common form. `io_ready` is not used: it may be false for an attach under way as well as
    /// for the phantom attachment that has to be repaired.
    pub(crate) fn into_cloud(self) -> CloudVolume {
        let state = self.state();
        CloudVolume {
            owner: clusters(self.tags.as_deref()),
            id: VolumeId::new(self.id.to_string()),
            identity: DeviceIdentity {
                serial: self.label.clone(),
            },
            label: self.label,
            region: self.region,
            size_gib: self.size,
            holders: self
                .linode_id
                .map(|id| InstanceId::new(id.to_string()))
                .into_iter()
                .collect(),
            state,
        }
    }

    fn state(&self) -> VolumeState {
        let locks: Vec<_> = self
            .locks
            .iter()
            .flatten()
            .map(word)
            .filter(|lock| !DELETION_LOCKS.contains(&lock.as_str()))
            .collect();
        if !locks.is_empty() {
            return VolumeState::Locked {
                reason: crate::classify::quote(&locks.join(", ")),
            };
        }
        match self.status.as_str() {
            "active" => VolumeState::Active,
            doing @ ("creating" | "resizing" | "key_rotating") => VolumeState::Busy {
                doing: doing.to_owned(),
            },
            // Known to linodego: "a support ticket must be opened to resolve the issue".
            reason @ "contact_support" => VolumeState::Locked {
                reason: reason.to_owned(),
            },
            other => VolumeState::Other(other.to_owned()),
        }
    }
}

/// Returns the name of a lock. The API shows texts, and may show objects in the future.
fn word(lock: &Value) -> String {
    match lock
        .as_str()
        .or_else(|| lock.get("lock_type").and_then(Value::as_str))
    {
        Some(word) => word.to_owned(),
        None => lock.to_string(),
    }
}

impl Instance {
    /// Converts the instance into the common form. `stopped` is not *off*: it can also be maintenance, which ends by itself.
    pub(crate) fn into_cloud(self) -> CloudInstance {
        let state = match self.status.as_str() {
            "running" => InstanceState::Running,
            "offline" => InstanceState::Off,
            "shutting_down" | "deleting" => InstanceState::Stopping,
            "booting" | "busy" | "rebooting" | "provisioning" | "migrating" | "rebuilding"
            | "cloning" | "restoring" | "resizing" | "stopped" | "billing_suspension" => {
                InstanceState::Transitional(self.status)
            }
            _ => InstanceState::Unknown(self.status),
        };
        let mut owner = clusters(self.tags.as_deref());
        if let Some(number) = self.lke_cluster_id.as_ref().and_then(Value::as_u64) {
            owner.add_cluster(&format!("{LKE}{number}"));
        }
        CloudInstance {
            id: InstanceId::new(self.id.to_string()),
            label: self.label,
            state,
            auto_restart: self.watchdog_enabled.unwrap_or(true),
            owner,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volume(change: Value) -> Result<CloudVolume, serde_json::Error> {
        let mut shown = json!({
            "id": 17, "label": "pvc1", "status": "active", "size": 20, "region": "eu-central", "linode_id": 42,
            "a_field_of_the_future": {"x": 1},
        });
        for (name, value) in change.as_object().expect("an object") {
            shown[name] = value.clone();
        }
        serde_json::from_value::<Volume>(shown).map(Volume::into_cloud)
    }

    #[test]
    fn volumes() {
        let found = volume(json!({})).expect("a volume");
        assert_eq!(found.holders, [InstanceId::from("42")]);
        assert_eq!(
            (found.size_gib, found.identity.serial.as_str()),
            (20, "pvc1")
        );
        assert!(
            volume(json!({"linode_id": null}))
                .expect("a volume")
                .holders
                .is_empty()
        );
        let locked = |reason: &str| VolumeState::Locked {
            reason: reason.to_owned(),
        };
        let table = [
            (json!({}), VolumeState::Active),
            (json!({"io_ready": false}), VolumeState::Active),
            (
                json!({"status": "resizing"}),
                VolumeState::Busy {
                    doing: "resizing".into(),
                },
            ),
            (
                json!({"status": "contact_support"}),
                locked("contact_support"),
            ),
            (
                json!({"status": "shiny"}),
                VolumeState::Other("shiny".into()),
            ),
            (json!({"locks": []}), VolumeState::Active),
            (json!({"locks": null}), VolumeState::Active),
            (json!({"locks": ["cannot_delete"]}), VolumeState::Active),
            (json!({"locks": ["migration"]}), locked("migration")),
            (
                json!({"locks": [{"id": 1, "lock_type": "cannot_delete"}]}),
                VolumeState::Active,
            ),
            (json!({"locks": [7]}), locked("7")),
        ];
        for (change, state) in table {
            assert_eq!(
                volume(change.clone()).expect("a volume").state,
                state,
                "{change}"
            );
        }
    }

    #[test]
    fn tags_name_lke_clusters_and_nothing_else() {
        let names = |owner: &OwnerTags| {
            owner
                .clusters
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        let tags = json!([
            "prod",
            "lke13311",
            "lke",
            "lke13311-x",
            "lke 7",
            "LKE8",
            9,
            null
        ]);
        let found = volume(json!({"tags": tags})).expect("a volume").owner;
        assert_eq!(
            (names(&found), found.volumes.len(), found.claim),
            (vec!["lke13311".to_owned()], 0, None)
        );
        for none in [json!({}), json!({"tags": null}), json!({"tags": []})] {
            assert!(
                volume(none.clone()).expect("a volume").owner.is_empty(),
                "{none}"
            );
        }
        let instance = |more: Value| {
            let mut shown = json!({"id": 1, "label": "n", "status": "running"});
            shown
                .as_object_mut()
                .expect("an object")
                .extend(more.as_object().expect("an object").clone());
            names(
                &serde_json::from_value::<Instance>(shown)
                    .expect("an instance")
                    .into_cloud()
                    .owner,
            )
        };
        assert_eq!(
            instance(json!({"lke_cluster_id": 13311, "tags": ["lke5"]})),
            ["lke13311", "lke5"]
        );
        assert_eq!(
            instance(json!({"lke_cluster_id": null, "tags": ["web"]})),
            [""; 0]
        );
        assert_eq!(instance(json!({})), [""; 0]);
        // There may be any number of tags of any length: they are cut, and are never an error.
        let many: Vec<_> = (0..500)
            .map(|n| format!("lke{n}{}", "1".repeat(999)))
            .collect();
        let found = volume(json!({"tags": many}))
            .expect("a volume")
            .owner
            .clusters;
        assert_eq!(found.len(), OwnerTags::NAMES);
        assert!(
            found
                .iter()
                .all(|c| c.as_str().chars().count() <= OwnerTags::NAME_CHARS)
        );
    }

    #[test]
    fn an_answer_without_a_holder_field_is_no_answer() {
        let bare = json!({"id": 17, "label": "a", "status": "active", "size": 1, "region": "r"});
        assert!(serde_json::from_value::<Volume>(bare).is_err());
        assert!(volume(json!({"linode_id": "42"})).is_err());
    }

    #[test]
    fn instances() {
        let state = |word: &str| {
            let shown = json!({"id": 1, "label": "n", "status": word});
            serde_json::from_value::<Instance>(shown)
                .expect("an instance")
                .into_cloud()
        };
        assert_eq!(state("running").state, InstanceState::Running);
        assert_eq!(state("offline").state, InstanceState::Off);
        assert_eq!(state("shutting_down").state, InstanceState::Stopping);
        assert_eq!(
            state("stopped").state,
            InstanceState::Transitional("stopped".into())
        );
        assert_eq!(
            state("levitating").state,
            InstanceState::Unknown("levitating".into())
        );
        assert!(
            state("offline").auto_restart,
            "an unknown watchdog counts as on"
        );
    }
}
