//! external-attacher, driving a CSI controller.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Context;
use crate::clock::rfc3339;
use crate::cloud::{CsiCode, CsiError, LinodeCsi};
use crate::kapi::{Informer, Kapi, MERGE, Tasks};
use crate::object::{items, name, terminating, text, uid};
use crate::rng::Rng;

/// `--retry-interval-start` and `--retry-interval-max`.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// `--reconcile-sync`.
const RECONCILE: Duration = Duration::from_secs(60);
/// `--timeout`: how long one call of the CSI controller may take.
const CSI_TIMEOUT: Duration = Duration::from_secs(60);
const NODE_ID: &str = "csi.alpha.kubernetes.io/node-id";

/// The attacher's state of one VolumeAttachment (by UID).
#[derive(Debug, Clone, Default)]
struct Memory {
    busy: bool,
    wait: Duration,
    retry_at: Option<Instant>,
    /// The object at the last failure, without its errors: any other change retries at once.
    print: Value,
    forced: bool,
}

struct Done {
    uid: String,
    name: String,
    ok: bool,
}

struct Attacher {
    ctx: Context,
    kapi: Kapi,
    csi: LinodeCsi,
    driver: &'static str,
    attachments: Informer,
    memory: BTreeMap<String, Memory>,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    next_reconcile: Instant,
}

/// Runs the attacher of this CSI driver until the task is aborted.
pub(super) async fn run(ctx: Context, csi: LinodeCsi) {
    let client = ctx.client("system:serviceaccount:kube-system:csi-attacher");
    let (tasks, wake) = (Tasks::default(), Arc::new(Notify::new()));
    let path = "/apis/storage.k8s.io/v1/volumeattachments";
    let mut attacher = Attacher {
        attachments: Informer::spawn(&tasks, client.clone(), path, wake.clone()),
        kapi: Kapi::new(client.clone()),
        next_reconcile: Instant::now()
            + Rng::new(ctx.seed, "attacher").between(Duration::ZERO, RECONCILE),
        ctx,
        driver: csi.cloud().ground().driver(),
        csi,
        memory: BTreeMap::new(),
        running: FuturesUnordered::new(),
    };
    loop {
        let now = Instant::now();
        if now >= attacher.next_reconcile {
            attacher.next_reconcile = now + RECONCILE;
            attacher.reconcile().await;
        }
        attacher.look();
        let until = attacher.deadline();
        tokio::select! {
            biased;
            Some(done) = attacher.running.next(), if !attacher.running.is_empty() => attacher.finish(&done).await,
            () = wake.notified() => {}
            () = sleep_until(until) => {}
        }
    }
}

/// A VolumeAttachment without what the attacher itself writes on a failure.
fn print_of(va: &Value) -> Value {
    let mut print = va.clone();
    for (parent, key) in [
        ("status", "attachError"),
        ("status", "detachError"),
        ("metadata", "resourceVersion"),
        ("metadata", "managedFields"),
    ] {
        if let Some(map) = print[parent].as_object_mut() {
            map.remove(key);
        }
    }
    print
}

/// `external-attacher/DRIVER`, with the dots of the driver's name replaced.
fn finalizer(driver: &str) -> String {
    format!("external-attacher/{}", driver.replace('.', "-"))
}

impl Attacher {
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let retries = self
            .memory
            .values()
            .filter_map(|m| m.retry_at)
            .filter(|at| *at > now);
        retries.fold(self.next_reconcile, Instant::min)
    }

    /// Starts what is due.
    fn look(&mut self) {
        let now = Instant::now();
        let all = self.attachments.all();
        self.memory
            .retain(|u, m| m.busy || all.iter().any(|va| uid(va) == u));
        for va in all
            .iter()
            .filter(|va| text(va, "/spec/attacher") == self.driver)
        {
            let memory = self.memory.entry(uid(va).to_owned()).or_default();
            if memory.busy {
                continue;
            }
            let ours = items(va, "/metadata/finalizers").any(|f| *f == finalizer(self.driver));
            let attached = va["status"]["attached"] == true;
            let due = if terminating(va) {
                ours
            } else {
                !attached || memory.forced
            };
            if !due {
                continue;
            }
            let changed = !memory.print.is_null() && memory.print != print_of(va);
            if changed {
                (memory.wait, memory.retry_at) = (Duration::ZERO, None);
            }
            if !memory.forced && memory.retry_at.is_some_and(|at| at > now) {
                continue;
            }
            (memory.busy, memory.forced) = (true, false);
            let attempt = Attempt {
                kapi: self.kapi.clone(),
                csi: self.csi.clone(),
                driver: self.driver,
                ctx: self.ctx.clone(),
            };
            let va = va.clone();
            self.running.push(Box::pin(async move {
                let ok = attempt.run(&va).await;
                Done {
                    uid: uid(&va).to_owned(),
                    name: name(&va).to_owned(),
                    ok,
                }
            }));
        }
    }

    async fn finish(&mut self, done: &Done) {
        // Remember the object as it is now, so that the attacher's own write does not count as a change.
        let live = self
            .kapi
            .get(&format!(
                "/apis/storage.k8s.io/v1/volumeattachments/{}",
                done.name
            ))
            .await
            .ok()
            .flatten();
        if let Some(live) = &live {
            self.attachments.saw(live).await;
        }
        let Some(memory) = self.memory.get_mut(&done.uid) else {
            return;
        };
        memory.busy = false;
        if done.ok {
            *memory = Memory::default();
            return;
        }
        memory.wait = if memory.wait.is_zero() {
            BACKOFF.0
        } else {
            (memory.wait * 2).min(BACKOFF.1)
        };
        memory.retry_at = Some(Instant::now() + memory.wait);
        // A deletion that came while the call ran counts as a change.
        memory.print = live
            .filter(|l| uid(l) == done.uid)
            .map_or(Value::Null, |l| print_of(&l));
    }

    /// Compares every VolumeAttachment with what the driver publishes and forces a look at each mismatch.
    async fn reconcile(&mut self) {
        let published = match self.csi.list_published() {
            Ok(Some(list)) => list,
            Ok(None) => return,
            Err(e) => {
                tracing::debug!(error = %e, "volumes were not listed");
                return;
            }
        };
        for va in self
            .attachments
            .all()
            .iter()
            .filter(|va| text(va, "/spec/attacher") == self.driver)
        {
            let Ok(Some(pv)) = self
                .kapi
                .get(&format!(
                    "/api/v1/persistentvolumes/{}",
                    text(va, "/spec/source/persistentVolumeName")
                ))
                .await
            else {
                continue;
            };
            let Some(node_id) = node_id(&self.kapi, va, self.driver).await else {
                continue;
            };
            let handle = text(&pv, "/spec/csi/volumeHandle");
            let is = published.iter().any(|(h, n)| h == handle && *n == node_id);
            if is != (va["status"]["attached"] == true) {
                let memory = self.memory.entry(uid(va).to_owned()).or_default();
                memory.forced = true;
            }
        }
    }
}

/// The node's ID: from CSINode first, then from the VolumeAttachment's annotation.
async fn node_id(kapi: &Kapi, va: &Value, driver: &str) -> Option<String> {
    let node = text(va, "/spec/nodeName");
    let csi_node = kapi
        .get(&format!("/apis/storage.k8s.io/v1/csinodes/{node}"))
        .await
        .ok()
        .flatten();
    let from_node = csi_node.and_then(|n| {
        let driver = items(&n, "/spec/drivers").find(|d| d["name"] == driver)?;
        Some(text(driver, "/nodeID").to_owned())
    });
    from_node.or_else(|| {
        va["metadata"]["annotations"][NODE_ID]
            .as_str()
            .map(Into::into)
    })
}

struct Attempt {
    kapi: Kapi,
    csi: LinodeCsi,
    driver: &'static str,
    ctx: Context,
}

impl Attempt {
    /// One look at a VolumeAttachment; true when it needs no more work for now.
    async fn run(&self, va: &Value) -> bool {
        let path = format!("/apis/storage.k8s.io/v1/volumeattachments/{}", name(va));
        let deleting = terminating(va);
        let (field, result) = if deleting {
            ("detachError", self.detach(va).await)
        } else {
            ("attachError", self.attach(va, &path).await)
        };
        let written = match result {
            Ok(()) if deleting => {
                let keep: Vec<&Value> = items(va, "/metadata/finalizers")
                    .filter(|f| **f != finalizer(self.driver))
                    .collect();
                let body = json!({"metadata": {"uid": uid(va), "finalizers": keep}});
                self.kapi.patch(&path, MERGE, &body).await
            }
            Ok(()) => {
                let body = json!({"metadata": {"uid": uid(va)}, "status": {"attached": true, "attachError": null}});
                self.kapi
                    .patch(&format!("{path}/status"), MERGE, &body)
                    .await
            }
            Err(message) => {
                let error = json!({"message": message, "time": rfc3339(self.ctx.now())});
                let mut body = json!({"metadata": {"uid": uid(va)}, "status": {field: error}});
                if va["status"]["attached"].is_null() {
                    body["status"]["attached"] = json!(false);
                }
                if let Err(e) = self
                    .kapi
                    .patch(&format!("{path}/status"), MERGE, &body)
                    .await
                {
                    tracing::debug!(error = %e, "an attach or detach error was not recorded");
                }
                return false;
            }
        };
        written.is_ok()
    }

    /// The volume's handle, once PersistentVolume and the Secret that it names for the CSI controller are read.
    async fn handle(&self, va: &Value) -> Result<String, String> {
        let name = text(va, "/spec/source/persistentVolumeName");
        let pv = match self
            .kapi
            .get(&format!("/api/v1/persistentvolumes/{name}"))
            .await
        {
            Ok(Some(pv)) => pv,
            Ok(None) => return Err(format!("persistentvolume \"{name}\" not found")),
            Err(e) => return Err(e.to_string()),
        };
        let secret = &pv["spec"]["csi"]["controllerPublishSecretRef"];
        if let (Some(namespace), Some(name)) =
            (secret["namespace"].as_str(), secret["name"].as_str())
        {
            let found = self
                .kapi
                .get(&format!("/api/v1/namespaces/{namespace}/secrets/{name}"))
                .await;
            let missing = match found {
                Ok(Some(_)) => None,
                Ok(None) => Some(format!("secrets \"{name}\" not found")),
                Err(e) => Some(e.to_string()),
            };
            if let Some(why) = missing {
                return Err(format!(
                    "failed to load secret \"{namespace}/{name}\": {why}"
                ));
            }
        }
        Ok(text(&pv, "/spec/csi/volumeHandle").to_owned())
    }

    async fn attach(&self, va: &Value, path: &str) -> Result<(), String> {
        let handle = self.handle(va).await?;
        let node = text(va, "/spec/nodeName");
        let id = node_id(&self.kapi, va, self.driver).await;
        let id =
            id.ok_or_else(|| format!("CSINode {node} does not contain driver {}", self.driver))?;
        if !items(va, "/metadata/finalizers").any(|f| *f == finalizer(self.driver)) {
            let body = json!({"metadata": {"uid": uid(va), "resourceVersion": va["metadata"]["resourceVersion"],
                "finalizers": [finalizer(self.driver)], "annotations": {NODE_ID: id}}});
            self.kapi
                .patch(path, MERGE, &body)
                .await
                .map_err(|e| e.to_string())?;
        }
        bounded(self.csi.publish(&handle, &id)).await
    }

    async fn detach(&self, va: &Value) -> Result<(), String> {
        let handle = self.handle(va).await?;
        let id = node_id(&self.kapi, va, self.driver).await;
        let id =
            id.ok_or_else(|| format!("node ID of {} is not known", text(va, "/spec/nodeName")))?;
        bounded(self.csi.unpublish(&handle, &id)).await
    }
}

/// A call of the CSI controller, with its time limit.
async fn bounded(call: impl Future<Output = Result<(), CsiError>>) -> Result<(), String> {
    let late = CsiError::new(CsiCode::DeadlineExceeded, "context deadline exceeded");
    let result = tokio::time::timeout(CSI_TIMEOUT, call).await;
    result.unwrap_or(Err(late)).map_err(|e| e.to_string())
}
