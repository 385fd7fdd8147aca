//! Encodes objects as Linode's API does. Timestamps have no zone and mean UTC.

use crate::model::{Instance, Job, JobStatus, View, Volume};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Formats a time as Linode does: `2018-01-02T03:04:05`.
pub(super) fn stamp(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H:%M:%S")
        .to_string()
}

/// Linode's tags are words: `key:value`, or the key alone.
fn tags(all: &BTreeMap<String, String>) -> Vec<String> {
    let word = |(key, value): (&String, &String)| match value.as_str() {
        "" => key.clone(),
        value => format!("{key}:{value}"),
    };
    all.iter().map(word).collect()
}

pub(super) fn volume(view: &View, volume: &Volume) -> Value {
    let holder = volume.holder.and_then(|id| view.instances.get(&id));
    json!({
        "id": volume.id,
        "label": volume.label,
        "status": volume.status,
        "size": volume.size_gib,
        "region": volume.region,
        "linode_id": volume.holder,
        "linode_label": holder.map(|i| i.label.as_str()),
        "filesystem_path": format!("/dev/disk/by-id/scsi-0Linode_Volume_{}", volume.label),
        "hardware_type": "nvme",
        "encryption": "disabled",
        "tags": tags(&volume.tags),
        "created": stamp(volume.created),
        "updated": stamp(volume.updated),
        "io_ready": volume.io_ready,
        "locks": volume.locks,
    })
}

pub(super) fn instance(instance: &Instance) -> Value {
    json!({
        "id": instance.id,
        "label": instance.label,
        "region": instance.region,
        "status": instance.status.word(),
        "watchdog_enabled": instance.watchdog_enabled,
        "type": "g6-standard-2",
        "image": "linode/debian12",
        "hypervisor": "kvm",
        "group": "",
        "tags": tags(&instance.tags),
        "ipv4": ["192.0.2.1"],
        "ipv6": null,
        "host_uuid": "3a3ddd59d9a78bb8de041391075df44de62bfec8",
        "has_user_data": false,
        "lke_cluster_id": instance.lke_cluster_id,
        "placement_group": null,
        "capabilities": [],
        "alerts": {"cpu": 180, "io": 10000, "network_in": 10, "network_out": 10, "transfer_quota": 80},
        "backups": {
            "available": false,
            "enabled": false,
            "last_successful": null,
            "schedule": {"day": null, "window": null},
        },
        "specs": {"disk": 81920, "gpus": 0, "memory": 4096, "transfer": 4000, "vcpus": 2},
        "created": stamp(instance.created),
        "updated": stamp(instance.updated),
    })
}

pub(super) fn event(view: &View, job: &Job) -> Value {
    let linode = job.instance.map(|id| {
        let label = view.instances.get(&id).map_or_else(|| format!("linode{id}"), |i| i.label.clone());
        json!({"id": id, "label": label, "type": "linode", "url": format!("/v4/linode/instances/{id}")})
    });
    let volume = job.volume.map(|id| {
        let label = view
            .volumes
            .get(&id)
            .map_or_else(|| format!("volume{id}"), |v| v.label.clone());
        json!({"id": id, "label": label, "type": "volume", "url": format!("/v4/volumes/{id}")})
    });
    let (entity, secondary) = match volume {
        Some(volume) => (Some(volume), linode),
        None => (linode, None),
    };
    let duration = job
        .finished
        .map_or(0, |end| end.as_second() - job.created.as_second());
    let percent = if job.status == JobStatus::Started {
        0
    } else {
        100
    };
    let mut event = json!({
        "id": job.id,
        "action": job.action.word(),
        "status": job.status.word(),
        "entity": entity,
        "created": stamp(job.created),
        "duration": duration,
        "percent_complete": percent,
        "time_remaining": null,
        "message": null,
        "read": false,
        "seen": false,
        "username": job.by,
    });
    // The API description allows no null here.
    if let Some(secondary) = secondary {
        event["secondary_entity"] = secondary;
    }
    event
}
