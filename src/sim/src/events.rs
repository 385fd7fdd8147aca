//! Events as kubelet writes them: one object per pod, reason and message, with a growing count.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::clock::{Clock, rfc3339};
use crate::kapi::{Kapi, MERGE, code_of};
use crate::names::short_hash;
use crate::object::{name, namespace, uid};

struct Seen {
    path: String,
    count: i64,
}

/// Writes events of one component about pods.
pub(crate) struct Recorder {
    kapi: Kapi,
    clock: Clock,
    component: &'static str,
    host: String,
    seen: BTreeMap<(String, String, String), Seen>,
}

impl Recorder {
    pub fn new(kapi: Kapi, clock: Clock, component: &'static str, host: &str) -> Self {
        Self {
            kapi,
            clock,
            component,
            host: host.into(),
            seen: BTreeMap::new(),
        }
    }

    /// Writes or counts up a Warning.
    pub async fn warning(&mut self, pod: &Value, reason: &str, message: &str) {
        self.record(pod, "Warning", reason, message).await;
    }

    /// Writes or counts up an event of type Normal.
    pub async fn normal(&mut self, pod: &Value, reason: &str, message: &str) {
        self.record(pod, "Normal", reason, message).await;
    }

    /// A lost event is not repeated.
    async fn record(&mut self, pod: &Value, kind: &str, reason: &str, message: &str) {
        let now = self.clock.now();
        let key = (uid(pod).to_owned(), reason.to_owned(), message.to_owned());
        let at = rfc3339(now);
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.count += 1;
            let body = json!({"count": seen.count, "lastTimestamp": at});
            match self.kapi.patch(&seen.path, MERGE, &body).await {
                Ok(_) => return,
                Err(e) if code_of(&e) == 404 => {}
                Err(e) => {
                    tracing::debug!(error = %e, "an event was not counted");
                    return;
                }
            }
        }
        let ns = namespace(pod);
        let suffix = short_hash(
            &format!("{}{reason}{message}{}", uid(pod), now.as_nanosecond()),
            16,
        );
        let event = format!("{}.{suffix}", name(pod));
        let body = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": event, "namespace": ns},
            "involvedObject": {"kind": "Pod", "apiVersion": "v1", "name": name(pod), "namespace": ns,
                "uid": uid(pod), "resourceVersion": pod["metadata"]["resourceVersion"]},
            "reason": reason, "message": message, "type": kind,
            "source": {"component": self.component, "host": self.host},
            "reportingComponent": self.component, "reportingInstance": self.host,
            "firstTimestamp": at, "lastTimestamp": at, "count": 1,
        });
        let collection = format!("/api/v1/namespaces/{ns}/events");
        match self.kapi.create(&collection, &body).await {
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
