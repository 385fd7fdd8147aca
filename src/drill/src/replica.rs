//! One replica of the controller, which can be cut off or killed at an exact point.

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use kube::Client;
use kube::client::Body;
use prometheus_client::registry::Registry;
use reattach_cloud_simulator::{CloudSim, in_memory};
use reattach_cluster::{Clients, Clock};
use reattach_controller::metrics::Metrics;
use reattach_controller::{Controller, Providers, Settings};
use reattach_linode::{LinodeConfig, LinodeProvider, Token};
use reattach_provider_api::{HttpTransport, TransportError};
use reattach_sim::ApiServer;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tower::ServiceExt;

/// The user that every replica is, as `deploy/` sets it up.
pub const CONTROLLER_USER: &str = "system:serviceaccount:reattach-system:reattach-controller";
/// The namespace of the leader Lease.
pub const NAMESPACE: &str = "reattach-system";

/// On which side of a changing request the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The request never leaves.
    Before,
    /// The request has its effect; the reply is never read.
    After,
}

/// Where a replica dies: at its `number`th changing request to the API server or the cloud, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashPoint {
    /// Which request.
    pub number: u64,
    /// On which side of it.
    pub side: Side,
}

/// Counts a replica's changing requests and stops it at the crash point.
#[derive(Default)]
struct Tap {
    count: AtomicU64,
    crash: Mutex<Option<CrashPoint>>,
    /// The last changing request, in words.
    last: Mutex<String>,
    dead: Notify,
    died: std::sync::atomic::AtomicBool,
}

impl Tap {
    fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        m.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one changing request; returns whether the process dies at it, and on which side.
    fn pass(&self, what: impl FnOnce() -> String) -> Option<Side> {
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let point = *Self::lock(&self.crash);
        let side = point.filter(|p| p.number == number).map(|p| p.side);
        if side.is_some() {
            *Self::lock(&self.last) = what();
        }
        side
    }

    /// The process is gone: whoever waits here waits for ever.
    async fn die<T>(&self) -> T {
        self.died.store(true, Ordering::Relaxed);
        self.dead.notify_one();
        std::future::pending().await
    }
}

/// A replica of the controller.
pub struct Replica {
    name: String,
    tap: Arc<Tap>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Replica {
    /// Starts the shipped controller as the pod `name`, over the simulated API server and cloud.
    pub fn start(name: &str, server: &ApiServer, cloud: &CloudSim, crash: Option<CrashPoint>) -> Self {
        let tap = Arc::new(Tap { crash: Mutex::new(crash), ..Tap::default() });
        let client = tapped_client(server, name, tap.clone());
        let mut providers = Providers::default();
        match linode(cloud, tap.clone()) {
            Ok(provider) => providers.register(Arc::new(provider)),
            Err(error) => tracing::error!(%error, "the drill's own settings are wrong"),
        }
        let settings = Settings {
            namespace: NAMESPACE.to_owned(),
            lease: "reattach-controller".to_owned(),
            identity: name.to_owned(),
            username: CONTROLLER_USER.to_owned(),
        };
        let metrics = Metrics::register(&mut Registry::default());
        let clock = Clock::starting_at(server.clock().now());
        let controller = Controller::new(Clients::over(client.clone(), client), providers, clock, settings, metrics);
        let (ready, _) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let killed = tap.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = killed.dead.notified() => {}
                () = controller.run(ready, stopped) => {}
            }
        });
        Self { name: name.to_owned(), tap, stop, task }
    }

    /// The pod's name: the holder of the Lease and the writer of journal lines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many changing requests it has made.
    pub fn requests(&self) -> u64 {
        self.tap.count.load(Ordering::Relaxed)
    }

    /// Whether it died at its crash point, and the request at which it did.
    pub fn died_at(&self) -> Option<String> {
        self.tap.died.load(Ordering::Relaxed).then(|| Tap::lock(&self.tap.last).clone())
    }

    /// Kills it now: nothing is released or finished.
    pub fn kill(&self) {
        self.task.abort();
    }

    /// Sets where it dies; the count goes on.
    pub fn crash_at(&self, point: CrashPoint) {
        *Tap::lock(&self.tap.crash) = Some(point);
    }

    /// Stops it as SIGTERM does, and waits until it has stopped.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Err(error) = (&mut self.task).await
            && error.is_panic()
        {
            tracing::error!(replica = self.name, "the controller panicked");
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client that names the replica in its user agent and passes the tap.
fn tapped_client(server: &ApiServer, name: &str, tap: Arc<Tap>) -> Client {
    let service = server.service_as(CONTROLLER_USER);
    let agent = HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("reattach-controller"));
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (service, tap, agent) = (service.clone(), tap.clone(), agent.clone());
        async move {
            request.headers_mut().insert(http::header::USER_AGENT, agent);
            let changes = !matches!(*request.method(), http::Method::GET | http::Method::HEAD);
            let what = || format!("{} {}", request.method(), request.uri().path());
            let side = if changes { tap.pass(what) } else { None };
            if side == Some(Side::Before) {
                return tap.die().await;
            }
            let reply = service.oneshot(request).await;
            if side == Some(Side::After) {
                return tap.die().await;
            }
            reply
        }
    });
    Client::new(service, "default")
}

/// The shipped Linode provider over the simulated cloud's HTTP face, in memory.
fn linode(cloud: &CloudSim, tap: Arc<Tap>) -> Result<LinodeProvider, reattach_linode::ConfigError> {
    let config = LinodeConfig::new(Token::new("drill")?, Some("https://linode.invalid"))?;
    let inner = in_memory(cloud.clone());
    let service = tower::service_fn(move |request: Request<Bytes>| {
        let (inner, tap) = (inner.clone(), tap.clone());
        async move {
            let changes = request.method() != http::Method::GET;
            let what = || format!("cloud: {} {}", request.method(), request.uri().path());
            let side = if changes { tap.pass(what) } else { None };
            if side == Some(Side::Before) {
                return tap.die().await;
            }
            let reply: Result<Response<Bytes>, TransportError> = inner.oneshot(request).await;
            if side == Some(Side::After) {
                return tap.die().await;
            }
            reply
        }
    });
    Ok(LinodeProvider::new(HttpTransport::new(service), config))
}
