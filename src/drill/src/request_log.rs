//! Every changing request of every replica, to the API server and to the cloud, in one order.
//!
//! Two logs with equal times (virtual time stands still while a program works) could not tell whether the journal came
//! before the effect; this one can.

use jiff::Timestamp;
use reattach_core::hold::HOLD_LABEL;
use reattach_sim::kapi::lock;
use serde_json::Value;
use std::sync::{Arc, Mutex};

/// Where a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The API server.
    Kubernetes,
    /// The cloud.
    Cloud,
}

/// One changing request.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its place in the order of sending.
    pub sent: u64,
    /// The place of its answer in the same order, and the HTTP status; `None`: no answer was read.
    pub answered: Option<(u64, u16)>,
    /// When it was sent.
    pub at: Timestamp,
    /// The replica.
    pub by: String,
    /// Where to.
    pub target: Target,
    /// The HTTP method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The query.
    pub query: String,
    /// The body, if it was JSON.
    pub body: Value,
}

impl Entry {
    /// Whether it is a dry run: the API server changes nothing.
    pub fn dry_run(&self) -> bool {
        self.target == Target::Kubernetes && self.query.split('&').any(|p| p == "dryRun=All")
    }

    /// Whether the target said yes.
    pub fn accepted(&self) -> bool {
        self.answered
            .is_some_and(|(_, code)| (200..300).contains(&code))
    }

    /// Group, resource and name of a Kubernetes path (`("", "pods", "x")`), whatever the namespace.
    pub fn resource(&self) -> (&str, &str, &str) {
        let parts: Vec<&str> = self.path.trim_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", _, rest @ ..] => ("", rest),
            ["apis", group, _, rest @ ..] => (*group, rest),
            _ => return ("?", "?", ""),
        };
        match rest {
            ["namespaces", _, resource, name, ..] => (group, resource, name),
            ["namespaces", _, resource] => (group, resource, ""),
            [resource, name, ..] => (group, resource, name),
            [resource] => (group, resource, ""),
            [] => (group, "", ""),
        }
    }

    /// Whether safety rule S6 lets it pass in every mode: our own records, Leases of ours, Events, access
    /// reviews, dry runs. Written down here a second time, on purpose: the product's own list is under test.
    pub fn is_a_record(&self) -> bool {
        if self.target == Target::Cloud {
            return false;
        }
        let (group, resource, name) = self.resource();
        self.dry_run()
            || match (group, resource) {
                // The label of a hold makes admission change other people's pods.
                ("reattach.dev", "volumerecoveries") => {
                    self.path.ends_with("/status")
                        || self.body["metadata"]["labels"].get(HOLD_LABEL).is_none()
                }
                ("reattach.dev", "nodevolumereports") => true,
                ("coordination.k8s.io", "leases") => {
                    let named = if name.is_empty() {
                        self.body["metadata"]["name"].as_str().unwrap_or_default()
                    } else {
                        name
                    };
                    named.starts_with("reattach-")
                }
                ("" | "events.k8s.io", "events") => self.method != "DELETE",
                ("authorization.k8s.io", "selfsubjectaccessreviews" | "subjectaccessreviews") => {
                    true
                }
                ("authentication.k8s.io", "selfsubjectreviews") => true,
                _ => false,
            }
    }

    /// In one line, for people.
    pub fn line(&self) -> String {
        let code = self
            .answered
            .map_or_else(|| "no answer read".to_owned(), |(_, code)| code.to_string());
        format!(
            "{} {} {} ({code}, by {})",
            self.at.strftime("%H:%M:%S%.3f"),
            self.method,
            self.path,
            self.by
        )
    }
}

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    order: u64,
}

/// The requests so far. Clones share one list.
#[derive(Clone, Default)]
pub struct RequestLog(Arc<Mutex<Inner>>);

impl RequestLog {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut lock(&self.0))
    }

    /// Writes a request down before it is sent; its place in the order is its number.
    pub(crate) fn send(&self, entry: Entry) -> u64 {
        self.with(|inner| {
            inner.order += 1;
            let sent = inner.order;
            inner.entries.push(Entry { sent, ..entry });
            sent
        })
    }

    /// Writes its answer down.
    pub(crate) fn answer(&self, sent: u64, code: u16) {
        self.with(|inner| {
            inner.order += 1;
            let at = inner.order;
            if let Some(entry) = inner.entries.iter_mut().rev().find(|e| e.sent == sent) {
                entry.answered = Some((at, code));
            }
        });
    }

    /// All requests so far, in the order of sending.
    pub fn entries(&self) -> Vec<Entry> {
        self.with(|inner| inner.entries.clone())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.with(|inner| inner.entries.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Requests that changed, or could have changed, something that is not ours.
    pub fn effects(&self) -> Vec<Entry> {
        self.with(|inner| {
            inner
                .entries
                .iter()
                .filter(|e| !e.is_a_record())
                .cloned()
                .collect()
        })
    }
}
