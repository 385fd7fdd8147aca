//! The attach/detach controller of kube-controller-manager, as far as VolumeAttachments, `volumesAttached` and the
//! handshake with kubelet go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Context;
use crate::events::Recorder;
use crate::kapi::{Informer, Kapi, MERGE, Tasks, code_of};
use crate::names::{attachment_name, unique_volume_name};
use crate::object::{
    claims_of, has_ended, is_bound, is_ready, items, name, namespace, terminating, text,
};
use crate::rng::Rng;

/// `maxWaitForUnmountDuration`: the 6-minute rule.
const FORCE_AFTER: Duration = Duration::from_secs(360);
/// `--attach-detach-reconcile-sync-period`.
const SYNC: Duration = Duration::from_secs(60);
/// How long one attach or detach waits for external-attacher.
const WAIT: Duration = Duration::from_secs(120);
/// Back-off of operations: 0.5 s doubling to 2 min 2 s.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));
/// The taint that declares a node dead; the effect does not matter.
pub(super) const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

#[derive(Debug, Clone, PartialEq, Eq)]
struct Spec {
    pv: String,
    driver: String,
    handle: String,
    shared: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// An attach is under way for the first time.
    Pending,
    Attached,
    Uncertain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    None,
    Attaching { until: Instant },
    Detaching { until: Instant },
}

/// One volume on one node in the actual state of the world.
#[derive(Debug, Clone)]
struct Entry {
    /// `None` after a restart of the controller, until a pod there uses the volume.
    spec: Option<Spec>,
    known: Known,
    operation: Operation,
    /// Whether `volumesAttached` shows it.
    reported: bool,
    detach_since: Option<Instant>,
    wait: Duration,
    retry_at: Option<Instant>,
}

impl Entry {
    fn new(spec: Option<Spec>, known: Known) -> Self {
        Self {
            spec,
            known,
            operation: Operation::None,
            reported: known == Known::Attached,
            detach_since: None,
            wait: Duration::ZERO,
            retry_at: None,
        }
    }

    fn failed(&mut self, now: Instant) {
        self.operation = Operation::None;
        self.known = Known::Uncertain;
        self.wait = if self.wait.is_zero() {
            BACKOFF.0
        } else {
            (self.wait * 2).min(BACKOFF.1)
        };
        self.retry_at = Some(now + self.wait);
    }
}

/// Volume and node.
type Key = (String, String);

struct Wanted {
    spec: Spec,
    pods: Vec<Arc<Value>>,
}

struct AttachDetach {
    kapi: Kapi,
    pods: Informer,
    nodes: Informer,
    attachments: Informer,
    volumes: Informer,
    claims: Informer,
    world: BTreeMap<Key, Entry>,
    /// The last `volumesInUse` of each node, kept when the Node object is gone.
    in_use: BTreeMap<String, BTreeSet<String>>,
    multi_attach_told: BTreeSet<Key>,
    events: Recorder,
    next_sync: Instant,
}

/// Runs the controller until the task is aborted.
pub(super) async fn run(ctx: Context) {
    let client = ctx.client("system:serviceaccount:kube-system:attachdetach-controller");
    let (tasks, wake) = (Tasks::default(), Arc::new(Notify::new()));
    let follow = |path: &str| Informer::spawn(&tasks, client.clone(), path, wake.clone());
    let kapi = Kapi::new(client.clone());
    let mut controller = AttachDetach {
        pods: follow("/api/v1/pods"),
        nodes: follow("/api/v1/nodes"),
        attachments: follow("/apis/storage.k8s.io/v1/volumeattachments"),
        volumes: follow("/api/v1/persistentvolumes"),
        claims: follow("/api/v1/persistentvolumeclaims"),
        world: BTreeMap::new(),
        in_use: BTreeMap::new(),
        multi_attach_told: BTreeSet::new(),
        events: Recorder::new(
            kapi.clone(),
            ctx.server.clock(),
            "attachdetach-controller",
            "",
        ),
        kapi,
        next_sync: Instant::now()
            + Rng::new(ctx.seed, "attach-detach").between(Duration::ZERO, SYNC),
    };
    let all = [
        &controller.pods,
        &controller.nodes,
        &controller.attachments,
        &controller.volumes,
        &controller.claims,
    ];
    let all: Vec<Informer> = all.into_iter().cloned().collect();
    while !all.iter().all(Informer::synced) {
        wake.notified().await;
    }
    controller.populate();
    loop {
        let now = Instant::now();
        if now >= controller.next_sync {
            controller.next_sync = now + SYNC;
            controller.verify_attached();
        }
        controller.reconcile().await;
        let until = controller.deadline();
        tokio::select! {
            biased;
            () = wake.notified() => {}
            () = sleep_until(until) => {}
        }
    }
}

impl AttachDetach {
    /// The state of the world after a start: what Nodes report as attached, and what VolumeAttachments exist.
    fn populate(&mut self) {
        let wanted = self.wanted();
        for node in self.nodes.all() {
            for volume in items(&node, "/status/volumesAttached") {
                let key = (text(volume, "/name").to_owned(), name(&node).to_owned());
                let spec = wanted.get(&key).map(|w| w.spec.clone());
                self.world.insert(key, Entry::new(spec, Known::Attached));
            }
        }
        for va in self.attachments.all() {
            let Some(spec) = self.spec_of(text(&va, "/spec/source/persistentVolumeName")) else {
                continue;
            };
            let key = (
                unique_volume_name(&spec.handle, &spec.driver),
                text(&va, "/spec/nodeName").to_owned(),
            );
            self.world
                .entry(key)
                .or_insert_with(|| Entry::new(Some(spec), Known::Uncertain));
        }
    }

    fn spec_of(&self, pv: &str) -> Option<Spec> {
        let volume = self.volumes.get("", pv)?;
        let csi = &volume["spec"]["csi"];
        Some(Spec {
            pv: pv.into(),
            driver: csi["driver"].as_str()?.into(),
            handle: csi["volumeHandle"].as_str()?.into(),
            shared: items(&volume, "/spec/accessModes")
                .any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany"),
        })
    }

    /// The desired state of the world: volumes of pods that are bound to an existing node and not finished.
    fn wanted(&self) -> BTreeMap<Key, Wanted> {
        let mut wanted: BTreeMap<Key, Wanted> = BTreeMap::new();
        for pod in self.pods.all() {
            let node = text(&pod, "/spec/nodeName");
            if node.is_empty() || is_terminated(&pod) || self.nodes.get("", node).is_none() {
                continue;
            }
            for (_, claim) in claims_of(&pod) {
                let Some(claim) = self.claims.get(namespace(&pod), &claim) else {
                    continue;
                };
                let pv = self.volumes.get("", text(&claim, "/spec/volumeName"));
                if pv.is_some_and(|pv| !is_bound(&claim, &pv)) {
                    continue;
                }
                let Some(spec) = self.spec_of(text(&claim, "/spec/volumeName")) else {
                    continue;
                };
                let key = (
                    unique_volume_name(&spec.handle, &spec.driver),
                    node.to_owned(),
                );
                wanted
                    .entry(key)
                    .or_insert_with(|| Wanted {
                        spec,
                        pods: Vec::new(),
                    })
                    .pods
                    .push(pod.clone());
            }
        }
        wanted
    }

    /// The once-a-minute check against VolumeAttachments; entries without a spec cannot be checked.
    fn verify_attached(&mut self) {
        let attachments = self.attachments.clone();
        self.world.retain(|(_, node), entry| {
            let Some(spec) = entry
                .spec
                .as_ref()
                .filter(|_| entry.known == Known::Attached)
            else {
                return true;
            };
            if entry.operation != Operation::None {
                return true;
            }
            let va = attachments.get("", &attachment_name(&spec.handle, &spec.driver, node));
            va.is_some_and(|va| va["status"]["attached"] == true)
        });
    }

    async fn reconcile(&mut self) {
        for node in self.nodes.all() {
            let used = items(&node, "/status/volumesInUse")
                .filter_map(|v| v.as_str().map(Into::into))
                .collect();
            self.in_use.insert(name(&node).to_owned(), used);
        }
        let wanted = self.wanted();
        for (key, want) in &wanted {
            if let Some(entry) = self.world.get_mut(key) {
                entry.spec.get_or_insert_with(|| want.spec.clone());
            }
        }
        for key in self.world.keys().cloned().collect::<Vec<_>>() {
            self.follow_operation(&key, wanted.get(&key)).await;
            if !wanted.contains_key(&key) {
                self.detach(&key).await;
            }
        }
        for (key, want) in &wanted {
            self.attach(key, want).await;
        }
        self.report().await;
    }

    /// Looks how a running attach or detach is doing.
    async fn follow_operation(&mut self, key: &Key, wanted: Option<&Wanted>) {
        let now = Instant::now();
        let Some(entry) = self.world.get(key) else {
            return;
        };
        let operation = entry.operation;
        if operation == Operation::None {
            return;
        }
        let va = self.attachments.get("", &attachment_of(key));
        let error = |field: &str| {
            let message = va
                .as_ref()
                .map(|va| text(va, &format!("/status/{field}/message")).to_owned());
            message.filter(|m| !m.is_empty())
        };
        match operation {
            Operation::Detaching { until } => {
                if va.is_none() {
                    self.world.remove(key);
                } else if let Some(entry) = self.world.get_mut(key)
                    && (now >= until || error("detachError").is_some())
                {
                    entry.failed(now);
                    entry.reported = true;
                }
            }
            Operation::Attaching { until } => {
                let attached = va
                    .as_ref()
                    .is_some_and(|va| va["status"]["attached"] == true && !terminating(va));
                let failure = error("attachError").or_else(|| {
                    let deleting = va.as_ref().is_some_and(|va| terminating(va));
                    deleting.then(|| "volume attachment is being deleted".to_owned())
                });
                let spec = self.world.get(key).and_then(|e| e.spec.clone());
                let handle = spec.as_ref().map_or("", |s| s.handle.as_str());
                let failure = failure.or_else(|| {
                    let driver = spec.as_ref().map_or("", |s| s.driver.as_str());
                    (now >= until).then(|| {
                        format!("timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}")
                    })
                });
                let Some(entry) = self.world.get_mut(key) else {
                    return;
                };
                if attached {
                    *entry = Entry::new(entry.spec.clone(), Known::Attached);
                } else if let Some(why) = failure {
                    entry.failed(now);
                    let pv = spec.map_or_else(String::new, |s| s.pv);
                    let message = format!("AttachVolume.Attach failed for volume \"{pv}\" : {why}");
                    for pod in wanted.into_iter().flat_map(|w| &w.pods) {
                        self.events
                            .warning(pod, "FailedAttachVolume", &message)
                            .await;
                    }
                }
            }
            Operation::None => {}
        }
    }

    /// Detaches a volume that nothing on the node wants, if that is safe.
    async fn detach(&mut self, key: &Key) {
        let now = Instant::now();
        let (volume, node_name) = key;
        let node = self.nodes.get("", node_name);
        let Some(entry) = self.world.get_mut(key) else {
            return;
        };
        if entry.operation != Operation::None {
            return;
        }
        let since = *entry.detach_since.get_or_insert(now);
        if entry.retry_at.is_some_and(|at| at > now) {
            return;
        }
        let timed_out = now.duration_since(since) >= FORCE_AFTER;
        let healthy = node.as_ref().is_some_and(|n| is_ready(n));
        let out_of_service = node
            .as_ref()
            .is_some_and(|n| items(n, "/spec/taints").any(|t| t["key"] == OUT_OF_SERVICE));
        let force = timed_out && !healthy;
        let mounted = self
            .in_use
            .get(node_name)
            .is_some_and(|set| set.contains(volume));
        if mounted && !force && !out_of_service {
            return;
        }
        entry.reported = false;
        if !self.report_node(node_name).await {
            return;
        }
        if !timed_out && !out_of_service {
            // verifyVolumeIsSafeToDetach: the live Node has the last word.
            let live = self.kapi.get(&format!("/api/v1/nodes/{node_name}")).await;
            let busy = match &live {
                Ok(Some(n)) => items(n, "/status/volumesInUse").any(|v| v == volume.as_str()),
                Ok(None) => false,
                Err(_) => true,
            };
            if busy {
                if let Some(entry) = self.world.get_mut(key) {
                    let known = entry.known;
                    entry.failed(now);
                    (entry.known, entry.reported) = (known, true);
                }
                return;
            }
        }
        let path = format!(
            "/apis/storage.k8s.io/v1/volumeattachments/{}",
            attachment_of(key)
        );
        let deleted = self.kapi.delete(&path, &json!({})).await;
        if let Some(entry) = self.world.get_mut(key) {
            match deleted {
                Ok(()) => entry.operation = Operation::Detaching { until: now + WAIT },
                Err(_) => entry.failed(now),
            }
        }
        // It may be gone, or have failed, already.
        self.follow_operation(key, None).await;
    }

    async fn attach(&mut self, key: &Key, want: &Wanted) {
        let now = Instant::now();
        let (volume, node) = key;
        if let Some(entry) = self.world.get_mut(key) {
            entry.detach_since = None;
            if entry.operation != Operation::None
                || entry.known == Known::Attached
                || entry.retry_at.is_some_and(|at| at > now)
            {
                return;
            }
        }
        let elsewhere = self
            .world
            .iter()
            .any(|((v, n), e)| v == volume && n != node && e.known == Known::Attached);
        if elsewhere && !want.spec.shared {
            if self.multi_attach_told.insert(key.clone()) {
                self.tell_multi_attach(key, want).await;
            }
            return;
        }
        self.multi_attach_told.remove(key);
        let va = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
            "metadata": {"name": attachment_of(key)},
            "spec": {"attacher": want.spec.driver, "nodeName": node, "source": {"persistentVolumeName": want.spec.pv}},
        });
        let created = self
            .kapi
            .create("/apis/storage.k8s.io/v1/volumeattachments", &va)
            .await;
        let entry = self
            .world
            .entry(key.clone())
            .or_insert_with(|| Entry::new(Some(want.spec.clone()), Known::Pending));
        match created {
            Ok(made) => {
                entry.operation = Operation::Attaching { until: now + WAIT };
                self.attachments.saw(&made).await;
            }
            Err(e) if code_of(&e) == 409 => {
                entry.operation = Operation::Attaching { until: now + WAIT }
            }
            Err(_) => entry.failed(now),
        }
        // One that existed may be attached, or have failed, already.
        self.follow_operation(key, Some(want)).await;
    }

    async fn tell_multi_attach(&mut self, key: &Key, want: &Wanted) {
        let (volume, node) = key;
        let users: Vec<String> = self
            .pods
            .all()
            .iter()
            .filter(|p| text(p, "/spec/nodeName") != node && !is_terminated(p))
            .filter(|p| {
                claims_of(p).any(|(_, claim)| {
                    let claim = self.claims.get(namespace(p), &claim);
                    let spec = claim.and_then(|c| self.spec_of(text(&c, "/spec/volumeName")));
                    spec.is_some_and(|s| unique_volume_name(&s.handle, &s.driver) == *volume)
                })
            })
            .map(|p| name(p).to_owned())
            .collect();
        let pv = &want.spec.pv;
        let message = if users.is_empty() {
            format!(
                "Multi-Attach error for volume \"{pv}\" Volume is already exclusively attached to one node and can't be attached to another"
            )
        } else {
            format!(
                "Multi-Attach error for volume \"{pv}\" Volume is already used by pod(s) {}",
                users.join(", ")
            )
        };
        for pod in &want.pods {
            self.events
                .warning(pod, "FailedAttachVolume", &message)
                .await;
        }
    }

    async fn report(&mut self) {
        for node in self.nodes.all() {
            self.report_node(name(&node)).await;
        }
    }

    /// Writes `volumesAttached` where it differs; false if that failed.
    async fn report_node(&self, node: &str) -> bool {
        let Some(object) = self.nodes.get("", node) else {
            return true;
        };
        let have: BTreeSet<&str> = items(&object, "/status/volumesAttached")
            .map(|v| text(v, "/name"))
            .collect();
        let ours = self
            .world
            .iter()
            .filter(|((_, n), e)| n == node && e.reported);
        let want: BTreeSet<&str> = ours.map(|((v, _), _)| v.as_str()).collect();
        if have == want {
            return true;
        }
        let list: Vec<Value> = want
            .iter()
            .map(|v| json!({"name": v, "devicePath": ""}))
            .collect();
        let body = json!({"status": {"volumesAttached": list}});
        match self
            .kapi
            .patch(&format!("/api/v1/nodes/{node}/status"), MERGE, &body)
            .await
        {
            Ok(written) => {
                self.nodes.saw(&written).await;
                true
            }
            Err(e) => code_of(&e) == 404,
        }
    }

    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let mut at = self.next_sync;
        for entry in self.world.values() {
            let operation = match entry.operation {
                Operation::Attaching { until } | Operation::Detaching { until } => Some(until),
                Operation::None => None,
            };
            let forced = entry.detach_since.map(|s| s + FORCE_AFTER);
            for deadline in [operation, forced, entry.retry_at]
                .into_iter()
                .flatten()
                .filter(|d| *d > now)
            {
                at = at.min(deadline);
            }
        }
        at
    }
}

/// Name of the VolumeAttachment of a volume on a node.
fn attachment_of((volume, node): &Key) -> String {
    let (driver, handle) = volume
        .strip_prefix("kubernetes.io/csi/")
        .and_then(|v| v.split_once('^'))
        .unwrap_or_default();
    attachment_name(handle, driver, node)
}

/// `util.IsPodTerminated`: finished, or being deleted with no container running.
fn is_terminated(pod: &Value) -> bool {
    has_ended(pod)
        || terminating(pod)
            && items(pod, "/status/containerStatuses").all(|c| c["state"]["running"].is_null())
}
