//! Events as kubelet writes them: one object per pod, reason and message, with a growing count.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::kapi::{Kapi, MERGE, name, namespace, uid};
use crate::names::short_hash;

#[derive(Debug)]
struct Seen {
    path: String,
    count: i64,
}

/// Writes events of one component.
#[derive(Debug)]
pub(crate) struct Recorder {
    component: String,
    host: String,
    seen: BTreeMap<(String, String, String), Seen>,
}

impl Recorder {
    pub fn new(component: &str, host: &str) -> Self {
        Self {
            component: component.into(),
            host: host.into(),
            seen: BTreeMap::new(),
        }
    }

    /// Writes or counts up one event about a pod. A lost event is not repeated.
    pub async fn record(
        &mut self,
        kapi: &Kapi,
        object: &Value,
        warning: bool,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        let key = (
            uid(object).to_owned(),
            reason.to_owned(),
            message.to_owned(),
        );
        let at = rfc3339(now);
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.count += 1;
            let body = json!({"count": seen.count, "lastTimestamp": at});
            match kapi.patch(&seen.path, MERGE, &body).await {
                Ok(_) => return,
                Err(e) if crate::kapi::code_of(&e) == 404 => {}
                Err(e) => {
                    tracing::debug!(error = %e, "an event was not counted");
                    return;
                }
            }
        }
        let ns = Some(namespace(object))
            .filter(|n| !n.is_empty())
            .unwrap_or("default");
        let suffix = short_hash(
            &format!("{}{reason}{message}{}", uid(object), now.as_nanosecond()),
            16,
        );
        let event = format!("{}.{suffix}", name(object));
        let body = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": event, "namespace": ns},
            "involvedObject": {"kind": "Pod", "apiVersion": "v1", "name": name(object), "namespace": object["metadata"]["namespace"],
                "uid": uid(object), "resourceVersion": object["metadata"]["resourceVersion"]},
            "reason": reason, "message": message, "type": if warning { "Warning" } else { "Normal" },
            "source": {"component": self.component, "host": self.host},
            "reportingComponent": self.component, "reportingInstance": self.host,
            "firstTimestamp": at, "lastTimestamp": at, "count": 1,
        });
        let collection = format!("/api/v1/namespaces/{ns}/events");
        match kapi.create(&collection, &body).await {
            Ok(_) => {
                self.seen.insert(
                    key,
                    Seen {
                        path: format!("{collection}/{event}"),
                        count: 1,
                    },
                );
            }
            Err(e) => tracing::debug!(error = %e, reason, "an event was not written"),
        }
    }
}
