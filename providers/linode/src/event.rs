//! Entries of the job history (`/account/events`).

use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};
use reattach_core::{
    cloud::{CloudJob, JobKind, JobStatus, PowerChange, PowerJob},
    ids::{InstanceId, VolumeId},
};
use serde::Deserialize;
use serde_json::Value;

/// An entry of the job history.
#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    id: u64,
    action: String,
    status: String,
    created: String,
    #[serde(default)]
    duration: Option<f64>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    entity: Option<Entity>,
    #[serde(default)]
    secondary_entity: Option<Entity>,
}

/// An object of an event. Its ID is a number or, for some kinds, a text.
#[derive(Debug, Deserialize)]
struct Entity {
    #[serde(default)]
    id: Value,
    #[serde(default, rename = "type")]
    kind: Option<String>,
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
        [&self.entity, &self.secondary_entity]
            .into_iter()
            .flatten()
            .find_map(|entity| entity.number(kind))
    }

    /// Returns whether the event is about this object. `kind` is the API's word, such as `volume`.
    pub(crate) fn concerns(&self, kind: &str, number: u64) -> bool {
        self.about(kind)
            .is_some_and(|found| found == number.to_string())
    }

    /// Returns the first object of the event, as "volume 17".
    pub(crate) fn entity(&self) -> String {
        let named = |entity: &Entity| {
            let kind = entity.kind.as_deref()?;
            Some(crate::classify::quote(&format!(
                "{kind} {}",
                entity.number(kind)?
            )))
        };
        self.entity
            .as_ref()
            .and_then(named)
            .unwrap_or_else(|| "an event without an object".to_owned())
    }

    /// Returns the event's number, by which events of one second are sorted.
    pub(crate) fn number(&self) -> u64 {
        self.id
    }

    fn job_status(&self) -> JobStatus {
        match self.status.as_str() {
            "scheduled" => JobStatus::Scheduled,
            "started" => JobStatus::Started,
            "finished" => JobStatus::Finished,
            "failed" => JobStatus::Failed,
            other => JobStatus::Other(other.to_owned()),
        }
    }

    /// Returns whether the job may still have an effect.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.job_status(), JobStatus::Scheduled | JobStatus::Started)
    }

    /// Returns the time of creation.
    pub(crate) fn created(&self) -> Result<Timestamp, String> {
        timestamp(&self.created)
    }

    /// Converts the event into the common form. The error is a sentence: a time cannot be parsed.
    pub(crate) fn into_cloud(self) -> Result<CloudJob, String> {
        Ok(CloudJob {
            id: self.id.to_string(),
            kind: job_kind(&self.action),
            status: self.job_status(),
            volume: self.about("volume").map(VolumeId::new),
            instance: self.about("linode").map(InstanceId::new),
            created: self.created()?,
            action: self.action,
        })
    }

    /// Converts the event into an entry of an instance's power history. `None`: the event surely does not change the power.
    /// The error is a sentence: a time cannot be parsed.
    pub(crate) fn into_power(self) -> Result<Option<PowerJob>, String> {
        let Some(change) = change(&self.action) else {
            return Ok(None);
        };
        let (status, created) = (self.job_status(), self.created()?);
        let over = matches!(status, JobStatus::Finished | JobStatus::Failed);
        let finished = if over {
            self.duration.and_then(|d| end(created, d))
        } else {
            None
        };
        // The API names no user for jobs that the cloud starts by itself.
        let by = self.username.filter(|name| !name.is_empty());
        Ok(Some(PowerJob {
            id: self.id.to_string(),
            change,
            status,
            by,
            created,
            finished,
        }))
    }
}

/// Kind of a volume's job, by the API's word for the event's action.
fn job_kind(action: &str) -> JobKind {
    match action {
        "volume_attach" => JobKind::Attach,
        "volume_detach" => JobKind::Detach,
        _ => JobKind::Other,
    }
}

/// Actions on an instance that do not change its power, from the API description's list of actions. The deletion of an
/// instance shows when the instance is read.
const HARMLESS: [&str; 19] = [
    "backups_cancel",
    "backups_enable",
    "firewall_device_add",
    "firewall_device_remove",
    "ipaddress_update",
    "linode_addip",
    "linode_config_create",
    "linode_config_delete",
    "linode_config_update",
    "linode_delete",
    "linode_deleteip",
    "linode_migrate_datacenter_create",
    "linode_mutate_create",
    "linode_resize_create",
    "linode_snapshot",
    "linode_update",
    "placement_group_assign",
    "placement_group_unassign",
    "tag_create",
];

/// Returns the change of power by an action. An unknown action counts as a boot: the API description says that new actions
/// may be added, and most of the long ones end with a boot.
fn change(action: &str) -> Option<PowerChange> {
    match action {
        "linode_shutdown" => Some(PowerChange::Off),
        harmless if HARMLESS.contains(&harmless) => None,
        _ => Some(PowerChange::On),
    }
}

/// Returns the latest time at which a job of this duration may have ended. Both times are cut to whole seconds.
fn end(created: Timestamp, seconds: f64) -> Option<Timestamp> {
    let lasted = SignedDuration::try_from_secs_f64(seconds.floor())
        .ok()
        .filter(|d| !d.is_negative())?;
    created
        .checked_add(lasted)
        .ok()?
        .checked_add(SignedDuration::from_secs(2))
        .ok()
}

/// Parses a timestamp. Linode's timestamps have no zone and mean UTC. The zone of any other timestamp counts.
fn timestamp(text: &str) -> Result<Timestamp, String> {
    let zoned = text.parse::<Timestamp>().ok();
    let naive = || {
        let moment: civil::DateTime = text.parse().ok()?;
        moment.to_zoned(TimeZone::UTC).ok().map(|at| at.timestamp())
    };
    zoned
        .or_else(naive)
        .ok_or_else(|| format!("{:?} is not a time", crate::classify::quote(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        assert!(
            event.concerns("volume", 17)
                && event.concerns("linode", 42)
                && !event.concerns("volume", 42)
        );
        let job = event.into_cloud().expect("a job");
        assert_eq!(job.instance, Some("42".into()));
        assert!(job.is_pending());
        let odd = json!({"id": 1, "action": "a", "status": "s", "created": "2026-01-01T00:00:00", "entity": null});
        let job = serde_json::from_value::<Event>(odd)
            .expect("an event")
            .into_cloud()
            .expect("a job");
        assert_eq!(
            (job.volume, job.instance, job.status),
            (None, None, JobStatus::Other("s".into()))
        );
    }

    fn power(change: Value) -> Option<PowerJob> {
        let mut shown = json!({
            "id": 5, "action": "linode_shutdown", "status": "finished", "created": "2026-01-01T00:00:00",
            "duration": 28.4, "username": "joe", "entity": {"id": 42, "type": "linode"},
        });
        for (name, value) in change.as_object().expect("an object") {
            shown[name] = value.clone();
        }
        serde_json::from_value::<Event>(shown)
            .expect("an event")
            .into_power()
            .expect("a time")
    }

    #[test]
    fn a_shutdown_names_its_user_and_its_latest_end() {
        let job = power(json!({})).expect("a power job");
        assert_eq!(
            (job.change, job.by.as_deref()),
            (PowerChange::Off, Some("joe"))
        );
        assert_eq!(
            job.finished,
            Some("2026-01-01T00:00:30Z".parse().expect("a time"))
        );
        for anonymous in [json!({"username": null}), json!({"username": ""})] {
            assert_eq!(power(anonymous).expect("a power job").by, None);
        }
        for open in [
            json!({"status": "started"}),
            json!({"duration": null}),
            json!({"duration": -1}),
        ] {
            assert_eq!(
                power(open.clone()).expect("a power job").finished,
                None,
                "{open}"
            );
        }
    }

    #[test]
    fn an_unknown_action_counts_as_a_boot() {
        let change = |action: &str| power(json!({ "action": action })).map(|job| job.change);
        let boots = [
            "linode_boot",
            "linode_reboot",
            "lassie_reboot",
            "host_reboot",
            "lish_boot",
            "linode_migrate",
        ];
        for on in boots.into_iter().chain([
            "linode_rebuild",
            "linode_resize",
            "backups_restore",
            "shiny",
        ]) {
            assert_eq!(change(on), Some(PowerChange::On), "{on}");
        }
        for harmless in HARMLESS {
            assert_eq!(change(harmless), None, "{harmless}");
        }
    }
}
