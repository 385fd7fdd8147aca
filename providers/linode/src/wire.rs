//! Linode's objects as far as they matter here. Unknown fields and words are tolerated; a missing field that a
//! decision rests on is not.

use reattach_core::{
    cloud::{CloudInstance, CloudVolume, DeviceIdentity, InstanceState, OwnerTags, VolumeState},
    ids::{InstanceId, VolumeId},
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An object that the API shows with its number.
pub(crate) trait Numbered {
    /// The kind, as in "volume 17".
    const KIND: &'static str;

    /// The number.
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

/// A volume. `linode_id` must be there, be it null: an answer without it does not say "detached".
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

/// An instance. Without `watchdog_enabled` the watchdog counts as on.
#[derive(Debug, Deserialize)]
pub(crate) struct Instance {
    pub(crate) id: u64,
    label: String,
    status: String,
    #[serde(default)]
    watchdog_enabled: Option<bool>,
    #[serde(default)]
    tags: Option<Vec<Value>>,
    /// The number of the LKE cluster that the instance is a node of (`lke_cluster_id` in Linode's API description).
    #[serde(default)]
    lke_cluster_id: Option<Value>,
}

/// How the name of an LKE cluster begins: `lke<number>`. LKE names its nodes so (`lke13311-16405-5fafd1b46dcf`), and
/// people their volumes, by the StorageClass parameter `linodebs.csi.linode.com/volumeTags`
/// (linode-blockstorage-csi-driver `docs/volume-tags.md`). LKE's own StorageClasses set no tag, and Linode's CSI driver
/// none but those of that parameter (`internal/driver/controllerserver_helper.go`, `createLinodeVolume`).
const LKE: &str = "lke";

/// The clusters that tags of an object name. Every other tag is somebody's own and says nothing of a cluster.
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

/// Reads an optional value whose field must be there.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    Option::deserialize(from)
}

/// Locks that protect against deletion only, set by the account's own administrators (documented with the resource
/// locks that Linode introduced in 2025). A detach is not refused because of them here; should the API refuse it, its
/// answer is believed.
const DELETION_LOCKS: [&str; 2] = ["cannot_delete", "cannot_delete_with_subresources"];

impl Volume {
    /// In the common vocabulary. `io_ready` is not looked at: while a volume is attached it may be false for an attach
    /// under way as well as for the very phantom that is to be healed.
    pub(crate) fn into_cloud(self) -> CloudVolume {
        let state = self.state();
        CloudVolume {
            owner: clusters(self.tags.as_deref()),
            id: VolumeId::new(self.id.to_string()),
            identity: DeviceIdentity { serial: self.label.clone() },
            label: self.label,
            region: self.region,
            size_gib: self.size,
            holders: self.linode_id.map(|id| InstanceId::new(id.to_string())).into_iter().collect(),
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
            return VolumeState::Locked { reason: crate::classify::quote(&locks.join(", ")) };
        }
        match self.status.as_str() {
            "active" => VolumeState::Active,
            doing @ ("creating" | "resizing" | "key_rotating") => {
                VolumeState::Busy { doing: doing.to_owned() }
            }
            // Known to linodego: "a support ticket must be opened to resolve the issue".
            reason @ "contact_support" => VolumeState::Locked { reason: reason.to_owned() },
            other => VolumeState::Other(other.to_owned()),
        }
    }
}

/// A lock's word: the API shows texts, and may come to show objects.
fn word(lock: &Value) -> String {
    match lock.as_str().or_else(|| lock.get("lock_type").and_then(Value::as_str)) {
        Some(word) => word.to_owned(),
        None => lock.to_string(),
    }
}

impl Instance {
    /// In the common vocabulary. `stopped` is not *off*: it also stands for maintenance, which ends by itself.
    pub(crate) fn into_cloud(self) -> CloudInstance {
        let state = match self.status.as_str() {
            "running" => InstanceState::Running,
            "offline" => InstanceState::Off,
            "shutting_down" | "deleting" => InstanceState::Stopping,
            "booting" | "busy" | "rebooting" | "provisioning" | "migrating" | "rebuilding" | "cloning"
            | "restoring" | "resizing" | "stopped" | "billing_suspension" => {
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
        assert_eq!((found.size_gib, found.identity.serial.as_str()), (20, "pvc1"));
        assert!(volume(json!({"linode_id": null})).expect("a volume").holders.is_empty());
        let locked = |reason: &str| VolumeState::Locked { reason: reason.to_owned() };
        let table = [
            (json!({}), VolumeState::Active),
            (json!({"io_ready": false}), VolumeState::Active),
            (json!({"status": "resizing"}), VolumeState::Busy { doing: "resizing".into() }),
            (json!({"status": "contact_support"}), locked("contact_support")),
            (json!({"status": "shiny"}), VolumeState::Other("shiny".into())),
            (json!({"locks": []}), VolumeState::Active),
            (json!({"locks": null}), VolumeState::Active),
            (json!({"locks": ["cannot_delete"]}), VolumeState::Active),
            (json!({"locks": ["migration"]}), locked("migration")),
            (json!({"locks": [{"id": 1, "lock_type": "cannot_delete"}]}), VolumeState::Active),
            (json!({"locks": [7]}), locked("7")),
        ];
        for (change, state) in table {
            assert_eq!(volume(change.clone()).expect("a volume").state, state, "{change}");
        }
    }

    #[test]
    fn tags_name_lke_clusters_and_nothing_else() {
        let names = |owner: &OwnerTags| owner.clusters.iter().map(ToString::to_string).collect::<Vec<_>>();
        let tags = json!(["prod", "lke13311", "lke", "lke13311-x", "lke 7", "LKE8", 9, null]);
        let found = volume(json!({"tags": tags})).expect("a volume").owner;
        assert_eq!((names(&found), found.volumes.len(), found.claim), (vec!["lke13311".to_owned()], 0, None));
        for none in [json!({}), json!({"tags": null}), json!({"tags": []})] {
            assert!(volume(none.clone()).expect("a volume").owner.is_empty(), "{none}");
        }
        let instance = |more: Value| {
            let mut shown = json!({"id": 1, "label": "n", "status": "running"});
            shown.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            names(&serde_json::from_value::<Instance>(shown).expect("an instance").into_cloud().owner)
        };
        assert_eq!(instance(json!({"lke_cluster_id": 13311, "tags": ["lke5"]})), ["lke13311", "lke5"]);
        assert_eq!(instance(json!({"lke_cluster_id": null, "tags": ["web"]})), [""; 0]);
        assert_eq!(instance(json!({})), [""; 0]);
        // As many and as long as anybody likes: cut, and never an error.
        let many: Vec<_> = (0..500).map(|n| format!("lke{n}{}", "1".repeat(999))).collect();
        let found = volume(json!({"tags": many})).expect("a volume").owner.clusters;
        assert_eq!(found.len(), OwnerTags::NAMES);
        assert!(found.iter().all(|c| c.as_str().chars().count() <= OwnerTags::NAME_CHARS));
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
            serde_json::from_value::<Instance>(shown).expect("an instance").into_cloud()
        };
        assert_eq!(state("running").state, InstanceState::Running);
        assert_eq!(state("offline").state, InstanceState::Off);
        assert_eq!(state("shutting_down").state, InstanceState::Stopping);
        assert_eq!(state("stopped").state, InstanceState::Transitional("stopped".into()));
        assert_eq!(state("levitating").state, InstanceState::Unknown("levitating".into()));
        assert!(state("offline").auto_restart, "an unknown watchdog counts as on");
    }
}
