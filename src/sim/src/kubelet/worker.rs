//! The kubelet process: one loop over pods, volumes, the status tick and the lease.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::node::{LEASE_TICK, NodeReporter, STATUS_TICK};
use super::ops::{self, Mounted, ObjectVolume};
use super::pods::{Container, FINISH, PodWorker, START, STOP, Stage};
use super::volumes::{Device, Operation, Volume};
use super::{Shared, host};
use crate::events::Recorder;
use crate::kapi::{Informer, Kapi, MERGE, Tasks, code_of, lock};
use crate::object::{condition, has_ended, items, namespace, pod_path, terminating, text, uid};

/// Pause after a request to the API server failed.
const RETRY: Duration = Duration::from_secs(1);
/// How often the host's device files are brought up to date (udev).
const UDEV: Duration = Duration::from_secs(1);
/// The first pid of a container.
const FIRST_PID: u32 = 2000;

/// The end of an operation.
struct Done {
    handle: String,
    operation: Operation,
    outcome: Outcome,
}

enum Outcome {
    Device(Mounted),
    Simple(bool),
}

pub(super) struct Worker {
    pub shared: Arc<Shared>,
    kapi: Kapi,
    informer: Informer,
    pub pods: BTreeMap<String, PodWorker>,
    pub volumes: BTreeMap<String, Volume>,
    /// volumesInUse as the API server has it from us.
    reported: BTreeSet<String>,
    node: NodeReporter,
    events: Recorder,
    operations: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Kernel names of the volumes' devices in this boot.
    pub letters: Arc<Mutex<BTreeMap<String, String>>>,
    next_tick: Instant,
    next_lease: Instant,
    next_retry: Option<Instant>,
    next_pid: u32,
    pub booted: jiff::Timestamp,
}

/// One boot, from the start of kubelet until the task is aborted.
pub(super) async fn run(shared: Arc<Shared>, first: bool) {
    let booted = shared.clock.now();
    let (starting, phase) = {
        let mut rng = lock(&shared.rng);
        (
            rng.between(Duration::from_millis(1500), Duration::from_millis(2500)),
            rng.between(Duration::ZERO, STATUS_TICK),
        )
    };
    tokio::time::sleep(starting).await;
    let kapi = Kapi::new(shared.client.clone());
    let mut node = NodeReporter::new(kapi.clone(), &shared);
    let disk = lock(&shared.disk).clone();
    let mut volumes: BTreeMap<String, Volume> = BTreeMap::new();
    for (handle, spec) in &disk.staged {
        volumes
            .entry(handle.clone())
            .or_insert_with(|| Volume::new(spec.clone()))
            .device = Device::Uncertain;
    }
    for ((pod, handle), spec) in &disk.pod_dirs {
        volumes
            .entry(handle.clone())
            .or_insert_with(|| Volume::new(spec.clone()))
            .pod_dirs
            .insert(pod.clone());
    }
    // The first status goes out before any pod is looked at: it names only what was found on the disk.
    let reported = volumes.values().map(|v| v.spec.unique_name()).collect();
    while let Err(e) = async {
        node.register(&shared).await?;
        node.renew(&shared).await?;
        node.report(&shared, &reported).await
    }
    .await
    {
        tracing::debug!(node = shared.config.node, error = %e, "not registered yet");
        tokio::time::sleep(RETRY).await;
    }
    let tasks = Tasks::default();
    let wake = Arc::new(Notify::new());
    let path = format!(
        "/api/v1/pods?fieldSelector=spec.nodeName%3D{}",
        shared.config.node
    );
    let informer = Informer::spawn(&tasks, shared.client.clone(), &path, wake.clone());
    let now = Instant::now();
    let mut worker = Worker {
        events: Recorder::new(kapi.clone(), shared.clock, "kubelet", &shared.config.node),
        shared,
        kapi,
        informer,
        pods: BTreeMap::new(),
        volumes,
        reported,
        node,
        operations: FuturesUnordered::new(),
        letters: Arc::default(),
        next_tick: now + if first { phase } else { STATUS_TICK },
        next_lease: now + LEASE_TICK,
        next_retry: None,
        next_pid: FIRST_PID,
        booted,
    };
    loop {
        if let Err(e) = worker.step().await {
            tracing::debug!(node = worker.shared.config.node, error = %e, "a step failed");
            worker.next_retry = Some(Instant::now() + RETRY);
        }
        let until = worker.deadline();
        loop {
            let udev = Instant::now() + UDEV;
            tokio::select! {
                biased;
                Some(done) = worker.operations.next(), if !worker.operations.is_empty() => worker.finish(done).await,
                () = wake.notified() => {}
                () = sleep_until(until) => {}
                // A device that comes or goes is the host's affair: kubelet looks at its own times.
                () = sleep_until(udev), if worker.shared.config.host_root.is_some() => {
                    worker.show_host();
                    continue;
                }
            }
            break;
        }
    }
}

impl Worker {
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let mut at = self.next_tick.min(self.next_lease);
        let pods = self.pods.values().filter_map(PodWorker::deadline);
        let volumes = self
            .volumes
            .values()
            .filter(|v| !v.busy)
            .filter_map(|v| v.backoff.waits());
        for deadline in pods
            .chain(volumes)
            .chain(self.next_retry)
            .filter(|d| *d > now)
        {
            at = at.min(deadline);
        }
        at
    }

    async fn step(&mut self) -> Result<(), kube::Error> {
        self.next_retry = None;
        let result = self.advance().await;
        let now = Instant::now();
        // Both ticks go on whatever else fails.
        if now >= self.next_lease {
            self.next_lease = now + LEASE_TICK;
            self.node.renew(&self.shared).await?;
        }
        if now >= self.next_tick {
            self.next_tick = now + STATUS_TICK;
            let in_use = self.in_use();
            self.node.register(&self.shared).await?;
            self.node.report(&self.shared, &in_use).await?;
            self.reported = in_use;
        }
        self.show_host();
        result
    }

    fn users(&self, handle: &str) -> BTreeSet<String> {
        let users = self
            .pods
            .iter()
            .filter(|(_, p)| p.uses_volumes() && p.volumes.iter().any(|h| h == handle));
        users.map(|(uid, _)| uid.clone()).collect()
    }

    fn in_use(&self) -> BTreeSet<String> {
        let used = self
            .volumes
            .values()
            .filter(|v| v.held() || !self.users(&v.spec.handle).is_empty());
        used.filter(|v| v.spec.attach_required)
            .map(|v| v.spec.unique_name())
            .collect()
    }

    async fn advance(&mut self) -> Result<(), kube::Error> {
        if self.informer.synced() {
            self.sync_pods();
        }
        for key in self.pods.keys().cloned().collect::<Vec<_>>() {
            self.advance_pod(&key).await?;
        }
        self.start_operations();
        for key in self.pods.keys().cloned().collect::<Vec<_>>() {
            self.report_pod(&key).await?;
        }
        Ok(())
    }

    fn sync_pods(&mut self) {
        let bound: BTreeMap<String, Arc<Value>> = self
            .informer
            .all()
            .into_iter()
            .map(|p| (uid(&p).to_owned(), p))
            .collect();
        for (key, pod) in &bound {
            match self.pods.get_mut(key) {
                Some(worker) => worker.pod = pod.clone(),
                None if has_ended(pod) && !terminating(pod) => {}
                None => {
                    let restarts = lock(&self.shared.disk).containers.get(key).copied();
                    self.pods
                        .insert(key.clone(), PodWorker::new(pod.clone(), restarts));
                }
            }
        }
        self.pods.retain(|key, worker| {
            worker.vanished |= !bound.contains_key(key);
            !(worker.vanished && worker.stage == Stage::Done)
        });
        // Directories of pods that went while this node was away.
        for volume in self.volumes.values_mut() {
            volume.mounted.retain(|p| self.pods.contains_key(p));
        }
    }

    async fn advance_pod(&mut self, key: &str) -> Result<(), kube::Error> {
        let now = Instant::now();
        let Some(worker) = self.pods.get_mut(key) else {
            return Ok(());
        };
        if worker.stage == Stage::New && !worker.vanished {
            let (objects, specs) = ops::resolve(&self.kapi, &worker.pod).await?;
            worker.objects = objects.into_iter().map(|o| (o, false)).collect();
            worker.volumes = specs.iter().map(|s| s.handle.clone()).collect();
            for spec in specs {
                self.volumes
                    .entry(spec.handle.clone())
                    .or_insert_with(|| Volume::new(spec));
            }
            worker.stage = Stage::Volumes;
        }
        if worker.must_stop() {
            worker.stage = Stage::Stopping(now + STOP);
        }
        match worker.stage.clone() {
            Stage::Volumes => {
                self.set_up_objects(key).await;
                let Some(worker) = self.pods.get_mut(key) else {
                    return Ok(());
                };
                let bound_now =
                    |(object, ok): &_| *ok && matches!(object, ObjectVolume::Claim { .. });
                if worker.objects.iter().any(bound_now) {
                    worker.stage = Stage::New;
                    return Box::pin(self.advance_pod(key)).await;
                }
                let mounted = worker
                    .volumes
                    .iter()
                    .all(|h| self.volumes.get(h).is_some_and(|v| v.mounted.contains(key)));
                if mounted && worker.objects.iter().all(|(_, ok)| *ok) {
                    worker.stage = Stage::Starting(now + START);
                }
            }
            Stage::Starting(at) if now >= at => {
                if worker.container == Container::Lost {
                    worker.restarts += 1;
                }
                worker.container = Container::Running {
                    since: self.shared.clock.now(),
                    pid: self.next_pid,
                };
                self.next_pid += 1;
                worker.was_running = true;
                worker.stage = Stage::Running;
                lock(&self.shared.disk)
                    .containers
                    .insert(key.to_owned(), worker.restarts);
            }
            Stage::Stopping(at) if now >= at => {
                if matches!(worker.container, Container::Running { .. }) {
                    worker.container = Container::Killed;
                }
                worker.stage = Stage::Unmounting;
                lock(&self.shared.disk).containers.remove(key);
            }
            Stage::Unmounting => {
                let held = self.volumes.values().any(|v| {
                    v.pod_dirs.contains(key) || (v.busy && worker.volumes.contains(&v.spec.handle))
                });
                if !held {
                    worker.stage = Stage::Deleting(now + FINISH);
                }
            }
            Stage::Deleting(at) if now >= at => {
                if !worker.vanished {
                    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
                        "preconditions": {"uid": key}});
                    match self.kapi.delete(&pod_path(&worker.pod), &options).await {
                        Err(e) if code_of(&e) != 409 => return Err(e),
                        _ => {}
                    }
                }
                worker.stage = Stage::Done;
            }
            _ => {}
        }
        Ok(())
    }

    /// Tries the Secrets and ConfigMaps of a pod that are still missing.
    async fn set_up_objects(&mut self, key: &str) {
        let now = Instant::now();
        let Some(worker) = self.pods.get_mut(key) else {
            return;
        };
        if worker.backoff.waits().is_some_and(|at| at > now) {
            return;
        }
        let mut failed = Vec::new();
        for (object, ok) in worker.objects.iter_mut().filter(|(_, ok)| !ok) {
            let ns = namespace(&worker.pod);
            match ops::set_up_object(&self.kapi, ns, object).await {
                Ok(()) => *ok = true,
                Err(text) => failed.push(text),
            }
        }
        if !failed.is_empty() {
            worker.backoff.failed_again(now);
        }
        let pod = worker.pod.clone();
        for text in failed {
            self.events.warning(&pod, "FailedMount", &text).await;
        }
    }

    fn start_operations(&mut self) {
        let now = Instant::now();
        let mut drop_now = Vec::new();
        // Nothing is known to be unused before all pods and their claims are known.
        let complete = self.informer.synced() && self.pods.values().all(|p| p.stage != Stage::New);
        for handle in self.volumes.keys().cloned().collect::<Vec<_>>() {
            let users = self.users(&handle);
            let mounting = self
                .pods
                .values()
                .any(|p| p.wants_mounts() && p.volumes.contains(&handle));
            let Some(volume) = self.volumes.get_mut(&handle) else {
                continue;
            };
            if volume.busy {
                continue;
            }
            let Some(operation) = volume.next(&users) else {
                if users.is_empty() && complete {
                    drop_now.push(handle);
                }
                continue;
            };
            let mounts = matches!(
                operation,
                Operation::Verify | Operation::MountDevice | Operation::SetUp(_)
            );
            if (mounts && !mounting)
                || (!mounts && !complete)
                || volume.waits(&operation, now).is_some()
            {
                continue;
            }
            volume.busy = true;
            let reported = self.reported.contains(&volume.spec.unique_name());
            let spec = volume.spec.clone();
            let (shared, kapi, letters) =
                (self.shared.clone(), self.kapi.clone(), self.letters.clone());
            self.operations.push(Box::pin(async move {
                let unregistered = || lock(&shared.faults).unregistered;
                let outcome = match &operation {
                    Operation::Verify => Outcome::Simple(
                        ops::verify(&kapi, &shared.config.node, &spec, reported).await,
                    ),
                    Operation::MountDevice => {
                        let letter = |h: &str| host::device_name(&letters, h);
                        Outcome::Device(ops::mount_device(&shared, &kapi, &spec, letter).await)
                    }
                    Operation::SetUp(_) => Outcome::Simple(true),
                    Operation::TearDown(_) => {
                        tokio::time::sleep(ops::UNPUBLISH).await;
                        Outcome::Simple(!unregistered())
                    }
                    Operation::UnmountDevice => {
                        tokio::time::sleep(ops::UNSTAGE).await;
                        let fails = lock(&shared.faults).unstage_fails;
                        Outcome::Simple(!unregistered() && !fails)
                    }
                };
                Done {
                    handle,
                    operation,
                    outcome,
                }
            }));
        }
        for handle in drop_now {
            self.volumes.remove(&handle);
        }
    }

    async fn finish(&mut self, done: Done) {
        let now = Instant::now();
        let Some(volume) = self.volumes.get_mut(&done.handle) else {
            return;
        };
        volume.busy = false;
        let mut event = None;
        let in_use = match (&done.operation, &done.outcome) {
            (Operation::MountDevice, Outcome::Device(Mounted::Yes(_))) => Some(true),
            (Operation::UnmountDevice, Outcome::Simple(true)) => Some(false),
            _ => None,
        };
        {
            let mut disk = lock(&self.shared.disk);
            match (&done.operation, done.outcome) {
                (Operation::MountDevice, Outcome::Device(Mounted::Yes(device))) => {
                    volume.device = Device::Mounted(device);
                    disk.staged.insert(done.handle.clone(), volume.spec.clone());
                    volume.succeeded();
                }
                (operation, Outcome::Device(failure)) => {
                    let text = match failure {
                        Mounted::Final(text) => {
                            volume.device = Device::No;
                            disk.staged.remove(&done.handle);
                            text
                        }
                        Mounted::Uncertain(text) => {
                            volume.device = Device::Uncertain;
                            disk.staged.insert(done.handle.clone(), volume.spec.clone());
                            text
                        }
                        Mounted::NotYet(text) | Mounted::Yes(text) => text,
                    };
                    volume.failed(operation, now);
                    event = Some(text);
                }
                (operation, Outcome::Simple(false)) => volume.failed(operation, now),
                (operation, Outcome::Simple(true)) => {
                    match operation {
                        Operation::Verify => volume.verified = true,
                        Operation::SetUp(pod) => {
                            volume.mounted.insert(pod.clone());
                            volume.pod_dirs.insert(pod.clone());
                            disk.pod_dirs
                                .insert((pod.clone(), done.handle.clone()), volume.spec.clone());
                        }
                        Operation::TearDown(pod) => {
                            volume.mounted.remove(pod);
                            volume.pod_dirs.remove(pod);
                            disk.pod_dirs.remove(&(pod.clone(), done.handle.clone()));
                        }
                        Operation::UnmountDevice => {
                            volume.device = Device::No;
                            disk.staged.remove(&done.handle);
                        }
                        Operation::MountDevice => {}
                    }
                    volume.succeeded();
                }
            }
        }
        if let Some(in_use) = in_use {
            let (cloud, instance) = (&self.shared.cloud, &self.shared.config.instance);
            cloud.set_in_use(instance, &done.handle, in_use);
        }
        let Some(text) = event else { return };
        let waiting = self
            .pods
            .values()
            .find(|p| p.wants_mounts() && p.volumes.contains(&done.handle));
        if let Some(pod) = waiting.map(|p| p.pod.clone()) {
            self.events.warning(&pod, "FailedMount", &text).await;
        }
    }

    async fn report_pod(&mut self, key: &str) -> Result<(), kube::Error> {
        let Some(worker) = self.pods.get_mut(key) else {
            return Ok(());
        };
        if worker.vanished || matches!(worker.stage, Stage::New | Stage::Done) {
            return Ok(());
        }
        let status = worker.status(self.shared.clock.now());
        // Node lifecycle may have marked the pod unready while we were away.
        let told = items(&worker.sent, "/conditions")
            .find(|c| c["type"] == "Ready")
            .map_or("", |c| text(c, "/status"));
        if status == worker.sent && condition(&worker.pod, "Ready") == told {
            return Ok(());
        }
        let path = format!("{}/status", pod_path(&worker.pod));
        let body = json!({"metadata": {"uid": key}, "status": status});
        match self.kapi.patch(&path, MERGE, &body).await {
            Ok(_) => worker.sent = status,
            // Gone or replaced under us: the watch tells.
            Err(e) if matches!(code_of(&e), 404 | 409 | 422) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}
