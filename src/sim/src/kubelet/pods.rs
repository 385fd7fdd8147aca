//! One pod on this node: its stages and the status that kubelet writes.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::ops::ObjectVolume;
use super::volumes::Backoff;
use crate::clock::rfc3339;
use crate::object::{items, terminating, text};

/// From all volumes mounted to Ready: sandbox, image, start, first probe.
pub(super) const START: Duration = Duration::from_millis(900);
/// From the deletion to the report that no container runs.
pub(super) const STOP: Duration = Duration::from_millis(400);
/// From the last unmount to the deletion of the object. Together with the unmount this makes the measured 1.6 s.
pub(super) const FINISH: Duration = Duration::from_millis(700);

/// Where a pod is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its claims are not looked up yet.
    New,
    /// Waits for its volumes.
    Volumes,
    /// All is mounted; containers start.
    Starting(Instant),
    Running,
    /// Containers are being stopped.
    Stopping(Instant),
    /// No container runs; volumes are being unmounted.
    Unmounting,
    /// All is unmounted; the object goes next.
    Deleting(Instant),
    /// Kubelet is done with it.
    Done,
}

/// The container that stands for all containers of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Container {
    Waiting,
    Running {
        since: Timestamp,
        pid: u32,
    },
    /// Lost in a reboot: exit code 255, reason Unknown.
    Lost,
    /// Stopped by kubelet.
    Killed,
}

/// A pod.
#[derive(Debug)]
pub(super) struct PodWorker {
    pub pod: Arc<Value>,
    pub stage: Stage,
    pub objects: Vec<(ObjectVolume, bool)>,
    pub backoff: Backoff,
    /// Handles of its CSI volumes.
    pub volumes: Vec<String>,
    pub container: Container,
    pub restarts: i64,
    /// The object vanished without us: a force deletion.
    pub vanished: bool,
    /// Phase Running was reached once; a reboot does not take it back.
    pub was_running: bool,
    pub sent: Value,
}

impl PodWorker {
    /// A pod that is seen for the first time since boot; `known_restarts` when the disk remembers a container.
    pub fn new(pod: Arc<Value>, known_restarts: Option<i64>) -> Self {
        let was_running = pod["status"]["phase"] == "Running";
        let reported = pod
            .pointer("/status/containerStatuses/0/restartCount")
            .and_then(Value::as_i64)
            .unwrap_or(0);
        let (container, restarts) = match (known_restarts, was_running) {
            (Some(n), _) => (Container::Lost, n),
            // The disk was re-imaged: kubelet knows of no container, and counts a restart.
            (None, true) => (Container::Waiting, reported + 1),
            (None, false) => (Container::Waiting, 0),
        };
        Self {
            pod,
            stage: Stage::New,
            objects: Vec::new(),
            backoff: Backoff::default(),
            volumes: Vec::new(),
            container,
            restarts,
            vanished: false,
            was_running,
            sent: Value::Null,
        }
    }

    /// Whether its volumes count as desired on this node.
    pub fn uses_volumes(&self) -> bool {
        matches!(
            self.stage,
            Stage::Volumes | Stage::Starting(_) | Stage::Running | Stage::Stopping(_)
        )
    }

    /// Whether new mounts are made for it.
    pub fn wants_mounts(&self) -> bool {
        matches!(
            self.stage,
            Stage::Volumes | Stage::Starting(_) | Stage::Running
        )
    }

    /// Whether it must be stopped and is not being stopped yet.
    pub fn must_stop(&self) -> bool {
        let going = self.vanished || terminating(&self.pod);
        going
            && matches!(
                self.stage,
                Stage::New | Stage::Volumes | Stage::Starting(_) | Stage::Running
            )
    }

    /// When this stage ends by itself.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Starting(at) | Stage::Stopping(at) | Stage::Deleting(at) => Some(at),
            Stage::Volumes => self.backoff.waits(),
            _ => None,
        }
    }

    /// The status to report.
    pub fn status(&self, now: Timestamp) -> Value {
        let running = matches!(self.container, Container::Running { .. });
        let stopped = matches!(
            self.stage,
            Stage::Unmounting | Stage::Deleting(_) | Stage::Done
        );
        let phase = match (stopped, running || self.was_running) {
            (true, _) => "Failed",
            (false, true) => "Running",
            (false, false) => "Pending",
        };
        let ready = running && !matches!(self.stage, Stage::Stopping(_));
        let state = match &self.container {
            Container::Waiting if stopped => {
                json!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": "The container could not be located when the pod was terminated"}})
            }
            Container::Waiting => json!({"waiting": {"reason": "ContainerCreating"}}),
            Container::Running { since, .. } => json!({"running": {"startedAt": rfc3339(*since)}}),
            Container::Lost => json!({"terminated": {"exitCode": 255, "reason": "Unknown"}}),
            Container::Killed => json!({"terminated": {"exitCode": 137, "reason": "Error"}}),
        };
        let containers: Vec<Value> = items(&self.pod, "/spec/containers")
            .map(|c| {
                json!({"name": c["name"], "image": c["image"], "imageID": "", "ready": ready, "started": running,
                    "restartCount": self.restarts, "state": state, "lastState": {}})
            })
            .collect();
        let mut status = json!({
            "phase": phase,
            "containerStatuses": containers,
            "startTime": self.pod["status"]["startTime"].as_str().map_or_else(|| rfc3339(now), Into::into),
        });
        if self.sent["startTime"].is_string() {
            status["startTime"] = self.sent["startTime"].clone();
        }
        let not_ready = if stopped {
            "PodFailed"
        } else {
            "ContainersNotReady"
        };
        let mounted = !matches!(self.stage, Stage::New | Stage::Volumes);
        let list = [
            ("PodReadyToStartContainers", mounted && !stopped, ""),
            ("Initialized", true, ""),
            ("Ready", ready, not_ready),
            ("ContainersReady", ready, not_ready),
            ("PodScheduled", true, ""),
        ];
        let before = if self.sent.is_null() {
            &self.pod["status"]
        } else {
            &self.sent
        };
        // Conditions of others stay: why the pod is disrupted.
        let others = items(&self.pod, "/status/conditions")
            .filter(|c| list.iter().all(|(kind, ..)| c["type"] != *kind))
            .cloned();
        status["conditions"] = Value::Array(
            list.iter()
                .map(|(kind, on, reason)| {
                    let value = if *on { "True" } else { "False" };
                    let old = items(before, "/conditions").find(|c| c["type"] == *kind);
                    let since = old
                        .filter(|c| c["status"] == value)
                        .map_or("", |c| text(c, "/lastTransitionTime"));
                    let since = if since.is_empty() {
                        rfc3339(now)
                    } else {
                        since.to_owned()
                    };
                    let mut c = json!({"type": kind, "status": value, "lastTransitionTime": since});
                    if !on && !reason.is_empty() {
                        c["reason"] = json!(reason);
                    }
                    c
                })
                .chain(others)
                .collect(),
        );
        status
    }
}
