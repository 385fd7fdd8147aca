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

use jiff::Timestamp;
use kube::Client;
use serde_json::Value;

use crate::apiserver::ApiServer;
use crate::cloud::LinodeCsi;
use crate::kapi::Tasks;
use crate::object::text;

/// The context of every controller.
#[derive(Clone)]
struct Context {
    server: ApiServer,
    seed: u64,
}

impl Context {
    fn client(&self, user: &str) -> Client {
        self.server.client_as(user)
    }

    fn now(&self) -> Timestamp {
        self.server.clock().now()
    }
}

/// The controllers of one cluster. Dropping it stops them.
pub struct Controllers {
    ctx: Context,
    csi: LinodeCsi,
    manager: Tasks,
    scheduler: Tasks,
    attacher: Tasks,
}

impl Controllers {
    /// Starts all controllers of a cluster whose volumes this CSI controller attaches.
    pub(crate) fn start(server: ApiServer, csi: LinodeCsi, seed: u64) -> Self {
        let controllers = Self {
            ctx: Context { server, seed },
            csi,
            manager: Tasks::default(),
            scheduler: Tasks::default(),
            attacher: Tasks::default(),
        };
        controllers.start_manager();
        let scheduler = scheduler::run(controllers.ctx.clone());
        controllers.scheduler.spawn(scheduler);
        controllers.start_attacher();
        controllers
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

    /// Stops external-attacher.
    pub fn stop_attacher(&self) {
        self.attacher.abort_all();
    }

    /// Starts (or restarts, with its memory lost) external-attacher.
    pub fn start_attacher(&self) {
        self.attacher.abort_all();
        let attacher = attacher::run(self.ctx.clone(), self.csi.clone());
        self.attacher.spawn(attacher);
    }
}

/// Whether a toleration covers key and value of a taint.
fn covers(toleration: &Value, taint: &Value) -> bool {
    let any = toleration["operator"] == "Exists";
    let key_fits = match text(toleration, "/key") {
        "" => any,
        key => taint["key"] == key,
    };
    key_fits && (any || text(toleration, "/value") == text(taint, "/value"))
}
