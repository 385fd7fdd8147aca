//! Code that the workload controllers share.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Context;
use crate::kapi::{Informer, Kapi, MERGE, Tasks, code_of};
use crate::object::{
    has_ended, is_ready, items, name, namespace, pod_path, terminating, text, uid,
};

/// How long a controller takes to act on a change (its queue and its requests).
const REACTION: Duration = Duration::from_millis(150);
/// How often a controller looks without a reason.
const RESYNC: Duration = Duration::from_secs(30);
/// Pause after a failed look.
const RETRY: Duration = Duration::from_secs(1);

/// A controller: its client, the caches it decides from, and what wakes it.
pub(super) struct Controller {
    pub kapi: Kapi,
    pub ctx: Context,
    wake: Arc<Notify>,
    tasks: Tasks,
    caches: Vec<Informer>,
}

impl Controller {
    pub fn new(ctx: Context, user: &str) -> Self {
        let kapi = Kapi::new(ctx.client(user));
        Self {
            kapi,
            ctx,
            wake: Arc::default(),
            tasks: Tasks::default(),
            caches: Vec::new(),
        }
    }

    /// A cache of a collection.
    pub fn follow(&mut self, path: &str) -> Informer {
        let informer = Informer::spawn(
            &self.tasks,
            self.kapi.client.clone(),
            path,
            self.wake.clone(),
        );
        self.caches.push(informer.clone());
        informer
    }

    /// Waits for a reason to look; `at` is a time that the controller itself named.
    pub async fn next(&self, at: Option<Instant>) {
        loop {
            let resync = Instant::now() + RESYNC;
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                () = sleep_until(at.unwrap_or(resync).min(resync)) => {}
            }
            if self.caches.iter().all(Informer::synced) {
                tokio::time::sleep(REACTION).await;
                return;
            }
        }
    }

    /// When the controller reconciles again.
    pub fn after(&self, look: Result<Option<Instant>, kube::Error>) -> Option<Instant> {
        match look {
            Ok(at) => at,
            Err(e) => {
                tracing::debug!(error = %e, "a controller's look failed");
                Some(Instant::now() + RETRY)
            }
        }
    }
}

/// The controlling owner's UID.
pub(super) fn controller_of(object: &Value) -> &str {
    items(object, "/metadata/ownerReferences")
        .find(|r| r["controller"] == true)
        .map_or("", |r| text(r, "/uid"))
}

/// An owner reference that controls.
pub(super) fn owner(kind: &str, object: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind, "name": name(object), "uid": uid(object), "controller": true, "blockOwnerDeletion": true})
}

/// Whether a pod counts: not finished and not being deleted.
pub(super) fn active(pod: &Value) -> bool {
    !terminating(pod) && !has_ended(pod)
}

/// Whether a pod is Ready and not being deleted.
pub(super) fn pod_ready(pod: &Value) -> bool {
    !terminating(pod) && is_ready(pod)
}

/// A pod from a template.
pub(super) fn pod_of(template: &Value, kind: &str, parent: &Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
    if !pod["metadata"].is_object() {
        pod["metadata"] = json!({});
    }
    pod["metadata"]["namespace"] = json!(namespace(parent));
    pod["metadata"]["ownerReferences"] = json!([owner(kind, parent)]);
    pod
}

/// Deletes a pod by its UID, with these options besides. It is no error if another pod has the name by now.
pub(super) async fn delete_pod(
    kapi: &Kapi,
    pod: &Value,
    mut options: Value,
) -> Result<(), kube::Error> {
    options["preconditions"] = json!({"uid": uid(pod)});
    match kapi.delete(&pod_path(pod), &options).await {
        Err(e) if code_of(&e) == 409 => Ok(()),
        result => result,
    }
}

/// The path of an object of the apps group.
pub(super) fn app_path(plural: &str, object: &Value) -> String {
    format!(
        "/apis/apps/v1/namespaces/{}/{plural}/{}",
        namespace(object),
        name(object)
    )
}

/// Writes `status` if it differs in a field that is named.
pub(super) async fn write_status(
    kapi: &Kapi,
    plural: &str,
    object: &Value,
    status: &Value,
) -> Result<(), kube::Error> {
    let same = status
        .as_object()
        .is_none_or(|m| m.iter().all(|(k, v)| object["status"][k.as_str()] == *v));
    if same {
        return Ok(());
    }
    let body = json!({"metadata": {"uid": uid(object)}, "status": status});
    kapi.patch(
        &format!("{}/status", app_path(plural, object)),
        MERGE,
        &body,
    )
    .await
    .map(|_| ())
}
