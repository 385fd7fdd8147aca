//! reattach's requests, from the audit log and the cloud's log.

use super::Stage;
use super::cluster::SYSTEM;
use reattach_cloud_simulator::{RequestRecord, VolumeNo};
use reattach_core::hold::HOLD_LABEL;
use reattach_core::product::Product;
use reattach_tests_controlplane::{AuditEvent, say};
use serde_json::Value;
use std::collections::BTreeSet;

/// The controller's user name.
pub const CONTROLLER: &str = "system:serviceaccount:reattach-system:reattach-controller";
/// The agents' user name.
pub const AGENT: &str = "system:serviceaccount:reattach-system:reattach-agent";

/// Safety rule S6, written here a second time: what a process that only watches may write. The namespace of Leases and
/// their names are ours alone.
pub fn is_record(event: &AuditEvent) -> bool {
    let own_lease = || {
        event.namespace.as_deref() == Some("reattach-system")
            && event
                .name
                .as_deref()
                .is_none_or(|n| n.starts_with("reattach-"))
    };
    event.dry_run
        || match (event.group.as_str(), event.resource.as_str()) {
            // The label of a hold makes admission change other people's pods.
            ("reattach.dev", "volumerecoveries") => hold_label(event).is_none(),
            ("reattach.dev", "nodevolumereports") => true,
            ("coordination.k8s.io", "leases") => own_lease(),
            ("" | "events.k8s.io", "events") => event.verb == "create" || event.verb == "patch",
            (
                "authorization.k8s.io",
                "selfsubjectaccessreviews" | "selfsubjectrulesreviews" | "subjectaccessreviews",
            ) => true,
            ("authentication.k8s.io", "selfsubjectreviews") => true,
            _ => false,
        }
}

/// The value that a write gives the label of a hold: `true`, or null where it is removed.
pub fn hold_label(event: &AuditEvent) -> Option<&Value> {
    let labels = event
        .body
        .as_ref()
        .and_then(|b| b.pointer("/metadata/labels"));
    labels
        .filter(|_| event.resource == "volumerecoveries" && event.subresource.is_none())?
        .get(HOLD_LABEL)
}

/// One line about a request.
pub fn line(event: &AuditEvent) -> String {
    let sub = event
        .subresource
        .as_deref()
        .map(|s| format!("/{s}"))
        .unwrap_or_default();
    let (ns, name) = (
        event.namespace.as_deref().unwrap_or("-"),
        event.name.as_deref().unwrap_or("-"),
    );
    format!(
        "{} {} {} {}{sub} {ns}/{name} {:?}",
        event.received, event.user, event.verb, event.resource, event.code
    )
}

/// The journal that a write of a recovery's status carries.
pub fn journal(event: &AuditEvent) -> &[Value] {
    let journal = event
        .body
        .as_ref()
        .and_then(|b| b.pointer("/status/journal"));
    journal.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The count that a write sets.
pub fn replicas(event: &AuditEvent) -> Option<i64> {
    event.body.as_ref()?.pointer("/spec/replicas")?.as_i64()
}

/// Whether it is a write of a workload.
pub fn is_workload(event: &AuditEvent) -> bool {
    matches!(
        event.resource.as_str(),
        "deployments" | "statefulsets" | "replicasets"
    )
}

/// Whether a program of ours sent this request to the cloud.
fn is_ours(request: &RequestRecord) -> bool {
    let agents = [Product::Controller, Product::Cli].map(Product::user_agent);
    request
        .user_agent
        .as_deref()
        .is_some_and(|agent| agents.contains(&agent))
}

impl Stage {
    /// The audit log without the requests about another stage's objects. A request about no stage belongs to every stage: a stray
    /// write fails each scenario that asserts what was written.
    pub fn audit(&self) -> Vec<AuditEvent> {
        // The names of VolumeAttachments are hashes; what they are about stands in the request that created them.
        let mut foreign_attachments = BTreeSet::new();
        let own = |event: &&AuditEvent| {
            let body = |path: &str| event.body.as_ref().and_then(|b| b.pointer(path)?.as_str());
            let name = event.name.as_deref().or(body("/metadata/name"));
            if let (Some(name), Some(volume)) = (name, body("/spec/source/persistentVolumeName"))
                && event.resource == "volumeattachments"
                && self.is_name_of_another(volume)
            {
                foreign_attachments.insert(name.to_owned());
            }
            let of_another = |name: &str| self.is_name_of_another(name);
            match event.namespace.as_deref() {
                Some(SYSTEM) | None => {
                    !name.is_some_and(|name| of_another(name) || foreign_attachments.contains(name))
                }
                Some(namespace) => !of_another(namespace),
            }
        };
        self.plane.audit_events_of(own).expect("the audit log")
    }

    /// Every request by reattach's processes, or by one of these people, to change what is not reattach's own record,
    /// whatever came of it.
    pub fn foreign_writes(&self, people: &[&str]) -> Vec<AuditEvent> {
        let ours = |e: &AuditEvent| {
            e.user == CONTROLLER || e.user == AGENT || people.contains(&e.user.as_str())
        };
        self.audit()
            .into_iter()
            .filter(|e| ours(e) && e.is_write() && !is_record(e))
            .collect()
    }

    /// Every request to change something that reattach sent to the cloud.
    pub fn cloud_mutations(&self) -> Vec<RequestRecord> {
        let all = self.cloud.requests().into_iter();
        all.filter(|r| is_ours(r) && r.is_mutation() && !self.is_request_of_another(r))
            .collect()
    }

    /// Asserts that nothing but records was written and nothing was asked of the cloud; prints how many requests were
    /// looked through.
    pub fn assert_only_records(&self, people: &[&str]) {
        let foreign: Vec<String> = self.foreign_writes(people).iter().map(line).collect();
        assert!(
            foreign.is_empty(),
            "outside the list of S6:\n{}",
            foreign.join("\n")
        );
        let cloud = self.cloud_mutations();
        assert!(cloud.is_empty(), "asked of the cloud: {cloud:#?}");
        let ours = |e: &AuditEvent| {
            e.user == CONTROLLER || e.user == AGENT || people.contains(&e.user.as_str())
        };
        let requests: Vec<AuditEvent> = self.audit().into_iter().filter(ours).collect();
        let writes = requests.iter().filter(|e| e.is_write()).count();
        let reads = self.cloud.requests().iter().filter(|r| is_ours(r)).count();
        assert!(
            writes > 0 && reads > 0,
            "nothing was watched: {writes} writes, {reads} reads of the cloud"
        );
        say!(
            "{} requests ({writes} writes) and {reads} reads of the cloud, none outside S6",
            requests.len()
        );
    }

    /// Asserts that no two instances held one of these volumes at any moment, and that none was taken from a guest that
    /// used it.
    pub fn assert_one_holder(&self, volumes: &[VolumeNo]) {
        for volume in volumes {
            assert!(
                self.cloud.max_guest_holders(*volume) <= 1,
                "guests: {:#?}",
                self.cloud.holder_intervals(*volume)
            );
            assert!(
                self.cloud.max_holders(*volume) <= 1,
                "{:#?}",
                self.cloud.api_holder_intervals(*volume)
            );
        }
        let mut pulled = self.cloud.pulled();
        pulled.retain(|p| !self.is_volume_of_another(p.volume));
        assert_eq!(pulled, [], "devices were taken from guests that used them");
    }
}
