//! Linode's objects as far as they matter here. Unknown fields and words are tolerated; a missing field that a
//! decision rests on is not.

use jiff::{Timestamp, civil, tz::TimeZone};
use reattach_core::{
    cloud::{CloudInstance, CloudJob, CloudVolume, DeviceIdentity, InstanceState, JobStatus, VolumeState},
    ids::{InstanceId, VolumeId},
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

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
}

/// An instance. Without `watchdog_enabled` the watchdog counts as on.
#[derive(Debug, Deserialize)]
pub(crate) struct Instance {
    pub(crate) id: u64,
    label: String,
    status: String,
    #[serde(default)]
    watchdog_enabled: Option<bool>,
}

/// An entry of the job history.
#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    id: u64,
    action: String,
    status: String,
    created: String,
    #[serde(default)]
    entity: Option<Entity>,
    #[serde(default)]
    secondary_entity: Option<Entity>,
}

/// What an event concerns. Its ID is a number or, for some kinds, a text.
#[derive(Debug, Deserialize)]
struct Entity {
    #[serde(default)]
    id: Value,
    #[serde(default, rename = "type")]
    kind: Option<String>,
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
        CloudInstance {
            id: InstanceId::new(self.id.to_string()),
            label: self.label,
            state,
            auto_restart: self.watchdog_enabled.unwrap_or(true),
        }
    }
}

impl Entity {
    fn number(&self, kind: &str) -> Option<String> {
        let text = match &self.id {
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.clone(),
            _ => return None,
        };
        (self.kind.as_deref() == Some(kind)).then_some(text)
    }
}

impl Event {
    fn about(&self, kind: &str) -> Option<String> {
        [&self.entity, &self.secondary_entity].into_iter().flatten().find_map(|entity| entity.number(kind))
    }

    /// Whether the event concerns this volume.
    pub(crate) fn concerns(&self, volume: &VolumeId) -> bool {
        self.about("volume").as_deref() == Some(volume.as_str())
    }

    /// When it was created.
    pub(crate) fn created(&self) -> Result<Timestamp, String> {
        timestamp(&self.created)
    }

    /// In the common vocabulary. Errors with a sentence when its time cannot be read.
    pub(crate) fn into_cloud(self) -> Result<CloudJob, String> {
        let status = match self.status.as_str() {
            "scheduled" => JobStatus::Scheduled,
            "started" => JobStatus::Started,
            "finished" => JobStatus::Finished,
            "failed" => JobStatus::Failed,
            other => JobStatus::Other(other.to_owned()),
        };
        Ok(CloudJob {
            id: self.id.to_string(),
            status,
            volume: self.about("volume").map(VolumeId::new),
            instance: self.about("linode").map(InstanceId::new),
            created: self.created()?,
            action: self.action,
        })
    }
}

/// Linode's timestamps have no zone and mean UTC. One with a zone is taken at its word.
fn timestamp(text: &str) -> Result<Timestamp, String> {
    let zoned = text.parse::<Timestamp>().ok();
    let naive = || {
        let moment: civil::DateTime = text.parse().ok()?;
        moment.to_zoned(TimeZone::UTC).ok().map(|at| at.timestamp())
    };
    zoned.or_else(naive).ok_or_else(|| format!("{:?} is not a time", crate::classify::quote(text)))
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

    #[test]
    fn times_without_a_zone_are_utc() {
        let at: Timestamp = "2018-01-02T03:04:05Z".parse().expect("a time");
        assert_eq!(timestamp("2018-01-02T03:04:05"), Ok(at));
        assert_eq!(timestamp("2018-01-02T03:04:05Z"), Ok(at));
        assert_eq!(timestamp("2018-01-02T04:04:05+01:00"), Ok(at));
        assert!(timestamp("yesterday").is_err());
    }

    #[test]
    fn events_name_volume_and_instance() {
        let shown = json!({
            "id": 9, "action": "volume_detach", "status": "started", "created": "2026-01-01T00:00:00",
            "entity": {"id": 17, "type": "volume"}, "secondary_entity": {"id": "42", "type": "linode"},
        });
        let event: Event = serde_json::from_value(shown).expect("an event");
        assert!(event.concerns(&"17".into()) && !event.concerns(&"42".into()));
        let job = event.into_cloud().expect("a job");
        assert_eq!(job.instance, Some("42".into()));
        assert!(job.is_pending());
        let odd =
            json!({"id": 1, "action": "a", "status": "s", "created": "2026-01-01T00:00:00", "entity": null});
        let job = serde_json::from_value::<Event>(odd).expect("an event").into_cloud().expect("a job");
        assert_eq!((job.volume, job.instance, job.status), (None, None, JobStatus::Other("s".into())));
    }
}
