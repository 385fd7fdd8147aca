//! Toy controllers: the parts of kube-controller-manager, kube-scheduler and external-attacher that decide about
//! volumes. Each is a task with its own client that looks at the present state whenever something changed.

mod attach_detach;
mod attacher;
mod binder;
mod deployment;
mod node_lifecycle;
mod replicaset;
mod scheduler;
mod statefulset;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use serde_json::Value;

use crate::clock::NowFn;
use crate::cloud::CloudVolumes;
use crate::kapi::{Tasks, condition, items, name, text};

/// Makes a client for an identity.
pub type ClientFactory = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// The context of every controller.
#[derive(Clone)]
pub(crate) struct Context {
    clients: ClientFactory,
    now: NowFn,
    seed: u64,
}

impl Context {
    fn client(&self, user: &str) -> Client {
        (self.clients)(user)
    }
}

/// The controllers of one cluster. Dropping it stops them.
pub struct Controllers {
    ctx: Context,
    manager: Tasks,
    scheduler: Tasks,
    attacher: Tasks,
    csi: Option<(String, Arc<dyn CloudVolumes>, Duration)>,
}

impl Controllers {
    /// Controllers that are not started yet.
    #[must_use]
    pub fn new(clients: ClientFactory, now: NowFn, seed: u64) -> Self {
        let ctx = Context { clients, now, seed };
        Self {
            ctx,
            manager: Tasks::default(),
            scheduler: Tasks::default(),
            attacher: Tasks::default(),
            csi: None,
        }
    }

    /// Starts (or restarts, with its memory lost) what kube-controller-manager does.
    pub fn start_manager(&self) {
        self.manager.abort_all();
        let ctx = || self.ctx.clone();
        self.manager.spawn(attach_detach::run(ctx()));
        self.manager.spawn(node_lifecycle::run(ctx()));
        self.manager.spawn(deployment::run(ctx()));
        self.manager.spawn(replicaset::run(ctx()));
        self.manager.spawn(statefulset::run(ctx()));
        self.manager.spawn(binder::run(ctx()));
    }

    /// Stops kube-controller-manager.
    pub fn stop_manager(&self) {
        self.manager.abort_all();
    }

    /// Starts the scheduler.
    pub fn start_scheduler(&self) {
        self.scheduler.abort_all();
        self.scheduler.spawn(scheduler::run(self.ctx.clone()));
    }

    /// Starts external-attacher for `driver`; one call of the CSI controller may take `timeout`.
    pub fn start_attacher(&mut self, driver: &str, csi: Arc<dyn CloudVolumes>, timeout: Duration) {
        self.csi = Some((driver.to_owned(), csi, timeout));
        self.resume_attacher();
    }

    /// Stops external-attacher.
    pub fn stop_attacher(&self) {
        self.attacher.abort_all();
    }

    /// Starts external-attacher again, with its memory lost.
    pub fn resume_attacher(&self) {
        self.attacher.abort_all();
        if let Some((driver, csi, timeout)) = &self.csi {
            self.attacher.spawn(attacher::run(
                self.ctx.clone(),
                csi.clone(),
                driver.clone(),
                *timeout,
            ));
        }
    }
}

/// Names of the claims that a pod uses.
fn claims_of(pod: &Value) -> Vec<String> {
    items(pod, "/spec/volumes")
        .filter_map(|v| match v["persistentVolumeClaim"]["claimName"].as_str() {
            Some(claim) => Some(claim.to_owned()),
            None if v["ephemeral"].is_object() => {
                Some(format!("{}-{}", name(pod), text(v, "/name")))
            }
            None => None,
        })
        .collect()
}

/// Whether a Node is Ready.
fn ready(node: &Value) -> bool {
    condition(node, "Ready") == "True"
}
