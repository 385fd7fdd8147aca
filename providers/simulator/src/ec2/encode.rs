//! Encodes volumes, instances and snapshots as EC2 does, and matches them with filters.

use super::{call::Filters, id, reply::Xml};
use crate::{
    model::{Instance, InstanceNo, InstanceStatus, JobAction, Snapshot, View, Volume, VolumeNo},
    state::State,
};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// The tag that the EBS CSI driver sets on its volumes. Every simulated volume has it.
const DRIVER_TAG: (&str, &str) = ("ebs.csi.aws.com/cluster", "true");

/// The account of the simulated cloud.
const OWNER: &str = "123456789012";

/// Returns EC2's number and name of an instance's state.
pub(super) fn state_of(status: &InstanceStatus) -> (u16, &str) {
    match status {
        InstanceStatus::Booting => (0, "pending"),
        // EC2 does not show a reboot.
        InstanceStatus::Running | InstanceStatus::Rebooting => (16, "running"),
        InstanceStatus::ShuttingDown => (64, "stopping"),
        InstanceStatus::Offline => (80, "stopped"),
        InstanceStatus::Other(word) if word == "shutting-down" => (32, word),
        InstanceStatus::Other(word) if word == "terminated" => (48, word),
        InstanceStatus::Other(word) => (255, word),
    }
}

pub(super) fn state(xml: &mut Xml, status: &InstanceStatus) {
    let (code, name) = state_of(status);
    xml.text("code", code).text("name", name);
}

/// Returns the state of an attachment, which follows from the job that runs on it.
fn attachment_state(view: &View, volume: VolumeNo, instance: InstanceNo) -> &'static str {
    match view.running_job(volume, instance) {
        Some(job) if job.action == JobAction::VolumeAttach => "attaching",
        Some(job) if job.waits_for_guest && job.due.is_none() => "busy",
        Some(_) => "detaching",
        None => "attached",
    }
}

fn holders(volume: &Volume) -> impl Iterator<Item = InstanceNo> {
    volume
        .holder
        .into_iter()
        .chain(volume.also_attached.iter().copied())
}

fn attachment(xml: &mut Xml, view: &View, volume: &Volume, instance: InstanceNo) {
    xml.text("volumeId", id::volume(volume.id))
        .text("instanceId", id::instance(instance))
        .text("device", "/dev/xvdba")
        .text("status", attachment_state(view, volume.id, instance));
    if let Some(at) = volume.attached_at {
        xml.text("attachTime", time(at));
    }
    xml.text("deleteOnTermination", false);
}

/// Encodes the answer to an attach or detach: the present state of the attachment.
pub(super) fn attachment_reply(
    xml: &mut Xml,
    state: &State,
    volume: VolumeNo,
    instance: InstanceNo,
) {
    if let Some(found) = state.view.volumes.get(&volume) {
        attachment(xml, &state.view, found, instance);
    }
}

fn volume_state(volume: &Volume) -> &str {
    match volume.status.as_str() {
        "active" if volume.holder.is_some() => "in-use",
        "active" => "available",
        other => other,
    }
}

pub(super) fn volume(xml: &mut Xml, view: &View, v: &Volume) {
    xml.text("volumeId", id::volume(v.id))
        .text("size", v.size_gib)
        .text("availabilityZone", &v.region)
        .text("status", volume_state(v))
        .text("createTime", time(v.created))
        .text("volumeType", "gp3")
        .text("encrypted", false)
        .text("multiAttachEnabled", !v.also_attached.is_empty());
    xml.items("attachmentSet", holders(v), |item, instance| {
        attachment(item, view, v, instance)
    });
    tag_set(xml, &volume_tags(v));
}

/// Returns the volume's own tags and those that every simulated volume has.
fn volume_tags(v: &Volume) -> Vec<(&str, &str)> {
    own_and(&v.tags, &[DRIVER_TAG, ("Name", v.label.as_str())])
}

fn instance_tags(i: &Instance) -> Vec<(&str, &str)> {
    own_and(&i.tags, &[("Name", i.label.as_str())])
}

/// Merges tags. Where both have a key, `own` wins.
fn own_and<'a>(
    own: &'a BTreeMap<String, String>,
    all: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let mut tags: BTreeMap<&str, &str> = all.iter().copied().collect();
    tags.extend(
        own.iter()
            .map(|(key, value)| (key.as_str(), value.as_str())),
    );
    tags.into_iter().collect()
}

fn tag_set(xml: &mut Xml, tags: &[(&str, &str)]) {
    xml.items("tagSet", tags, |item, (key, value)| {
        item.text("key", *key).text("value", *value);
    });
}

pub(super) fn reservation(xml: &mut Xml, view: &View, i: &Instance) {
    xml.text("reservationId", format!("r-{:017x}", i.id.0))
        .text("ownerId", OWNER);
    xml.items("groupSet", std::iter::empty::<()>(), |_, ()| {});
    xml.items("instancesSet", [i], |item, i| instance(item, view, i));
}

fn instance(xml: &mut Xml, view: &View, i: &Instance) {
    xml.text("instanceId", id::instance(i.id));
    xml.with("instanceState", |s| state(s, &i.status));
    xml.text("instanceType", "m5.large")
        .text("launchTime", time(i.created));
    xml.with("placement", |placement| {
        placement.text("availabilityZone", &i.region);
    });
    let held = view
        .volumes
        .values()
        .filter(|v| holders(v).any(|h| h == i.id));
    xml.items("blockDeviceMapping", held, |item, v| {
        item.text("deviceName", "/dev/xvdba");
        item.with("ebs", |ebs| {
            ebs.text("volumeId", id::volume(v.id))
                .text("status", attachment_state(view, v.id, i.id));
        });
    });
    tag_set(xml, &instance_tags(i));
}

pub(super) fn snapshot(xml: &mut Xml, s: &Snapshot, now: Timestamp) {
    let (status, progress) = if s.due <= now {
        ("completed", "100%")
    } else {
        ("pending", "")
    };
    xml.text("snapshotId", id::snapshot(s.id))
        .text("volumeId", id::volume(s.volume))
        .text("status", status)
        .text("startTime", time(s.started))
        .text("progress", progress)
        .text("ownerId", OWNER)
        .text("volumeSize", s.size_gib)
        .text("description", &s.description);
}

/// Encodes the start of the next page, if there is one.
pub(super) fn next_token(xml: &mut Xml, next: Option<usize>) {
    if let Some(next) = next {
        xml.text("nextToken", next);
    }
}

/// EC2's times have milliseconds.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

fn passes(filters: &Filters, has: impl Fn(&str, &str) -> bool) -> bool {
    filters
        .iter()
        .all(|(name, values)| values.iter().any(|value| has(name, value)))
}

fn has_tag(tags: &[(&str, &str)], filter: &str, value: &str) -> bool {
    match filter.strip_prefix("tag:") {
        Some(key) => tags.iter().any(|(k, v)| *k == key && *v == value),
        None => filter == "tag-key" && tags.iter().any(|(k, _)| *k == value),
    }
}

pub(super) fn volume_passes(view: &View, v: &Volume, filters: &Filters) -> bool {
    passes(filters, |name, value| match name {
        "volume-id" => id::volume(v.id) == value,
        "attachment.instance-id" => holders(v).any(|i| id::instance(i) == value),
        "attachment.status" => holders(v).any(|i| attachment_state(view, v.id, i) == value),
        "status" => volume_state(v) == value,
        "availability-zone" => v.region == value,
        _ => has_tag(&volume_tags(v), name, value),
    })
}

pub(super) fn instance_passes(i: &Instance, filters: &Filters) -> bool {
    passes(filters, |name, value| match name {
        "instance-id" => id::instance(i.id) == value,
        "instance-state-name" => state_of(&i.status).1 == value,
        "availability-zone" => i.region == value,
        _ => has_tag(&instance_tags(i), name, value),
    })
}

pub(super) fn snapshot_passes(s: &Snapshot, now: Timestamp, filters: &Filters) -> bool {
    passes(filters, |name, value| match name {
        "snapshot-id" => id::snapshot(s.id) == value,
        "volume-id" => id::volume(s.volume) == value,
        "description" => s.description == value,
        "status" => value == if s.due <= now { "completed" } else { "pending" },
        _ => false,
    })
}
