//! One replica of the controller, which can be cut off or killed at an exact point.

use crate::cloud_profile::CloudProfile;
pub use crate::names::TOKEN;
use crate::request_log::{Entry, RequestLog, Target};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use prometheus_client::registry::Registry;
use reattach_cloud_simulator::{CloudSim, in_memory};
use reattach_cluster::{Clients, Clock};
use reattach_controller::metrics::Metrics;
use reattach_controller::{Controller, Providers, Settings};
use reattach_provider_api::{HttpTransport, TransportError};
use reattach_sim::ApiServer;
use reattach_sim::kapi::lock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tower::ServiceExt;

/// The user that every replica is, as `deploy/` sets it up.
pub const CONTROLLER_USER: &str = "system:serviceaccount:reattach-system:reattach-controller";
/// The namespace of the leader Lease.
pub const NAMESPACE: &str = "reattach-system";
/// The name of the leader Lease.
pub const LEASE: &str = "reattach-controller";

/// Kubernetes' default grace period.
const GRACE: Duration = Duration::from_secs(30);

/// On which side of a changing request the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The request never leaves.
    Before,
    /// The request has its effect; the reply is never read.
    After,
}

/// Where a replica dies: at its `number`th changing request to the API server or the cloud, counted from 1. Leases,
/// Events and dry runs do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashPoint {
    /// Which request.
    pub number: u64,
    /// On which side of it.
    pub side: Side,
}

/// An action of another program or a person right before a request is sent.
pub type Hook = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Counts a replica's changing requests, stops the replica at its crash point, and delays a detach.
#[derive(Default)]
struct FaultInjector {
    count: AtomicU64,
    crash: Mutex<Option<CrashPoint>>,
    /// Called right before the request of this number is sent.
    meanwhile: Mutex<Option<(u64, Hook)>>,
    /// The last changing request, in words.
    last: Mutex<String>,
    /// Delay of the next detach request to the cloud. Its sender gets no answer.
    late_detach: Mutex<Option<Duration>>,
    dead: Notify,
    died: AtomicBool,
}

impl FaultInjector {
    /// Counts one changing request; returns whether the process dies at it, and on which side.
    async fn pass(&self, what: impl FnOnce() -> String) -> Option<Side> {
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let hook = lock(&self.meanwhile).take_if(|(n, _)| *n == number);
        if let Some((_, hook)) = hook {
            hook().await;
        }
        let point = *lock(&self.crash);
        let side = point.filter(|p| p.number == number).map(|p| p.side);
        if side.is_some() {
            *lock(&self.last) = what();
        }
        side
    }

    /// Ends the process. The future never resolves.
    async fn die<T>(&self) -> T {
        self.died.store(true, Ordering::Relaxed);
        self.dead.notify_one();
        std::future::pending().await
    }
}

/// A replica of the controller.
pub struct Replica {
    name: String,
    injector: Arc<FaultInjector>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    metrics: Metrics,
}

impl Replica {
    /// Starts the shipped controller as the pod `name`, over the simulated API server and cloud.
    pub fn start(
        name: &str,
        server: &ApiServer,
        cloud: &CloudSim,
        profile: &CloudProfile,
        request_log: &RequestLog,
        crash: Option<CrashPoint>,
    ) -> Self {
        let injector = Arc::new(FaultInjector {
            crash: Mutex::new(crash),
            ..FaultInjector::default()
        });
        let client = recorded_client(server, name, request_log.clone(), injector.clone());
        let mut providers = Providers::default();
        let transport = recorded_cloud(
            cloud,
            name,
            profile.clone(),
            request_log.clone(),
            injector.clone(),
        );
        match (profile.provider)(transport) {
            Ok(provider) => providers.register(provider),
            Err(error) => tracing::error!(%error, "the drill's own settings are wrong"),
        }
        let settings = Settings {
            namespace: NAMESPACE.to_owned(),
            lease: LEASE.to_owned(),
            identity: name.to_owned(),
            username: CONTROLLER_USER.to_owned(),
        };
        let metrics = Metrics::register(&mut Registry::default());
        let clock = Clock::starting_at(server.clock().now());
        let controller = Controller::new(
            Clients::over(client.clone(), client),
            providers,
            clock,
            settings,
            metrics.clone(),
        );
        let (ready, _) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let killed = injector.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = killed.dead.notified() => {}
                () = controller.run(ready, stopped) => {}
            }
        });
        Self {
            name: name.to_owned(),
            injector,
            stop,
            task,
            metrics,
        }
    }

    /// The pod's name: the holder of the Lease and the writer of journal lines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The replica's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How many changing requests it has made.
    pub fn requests(&self) -> u64 {
        self.injector.count.load(Ordering::Relaxed)
    }

    /// Whether it died at its crash point, and the request at which it did.
    pub fn died_at(&self) -> Option<String> {
        self.injector
            .died
            .load(Ordering::Relaxed)
            .then(|| lock(&self.injector.last).clone())
    }

    /// Kills it now: nothing is released or finished.
    pub fn kill(&self) {
        self.task.abort();
    }

    /// Sets where it dies; the count goes on.
    pub fn crash_at(&self, point: CrashPoint) {
        *lock(&self.injector.crash) = Some(point);
    }

    /// Calls `hook` right before the replica's `number`th changing request is sent.
    pub fn meanwhile(&self, number: u64, hook: Hook) {
        *lock(&self.injector.meanwhile) = Some((number, hook));
    }

    /// Its next order of a detach reaches the cloud so much later than it is sent, and no answer comes: a frozen network, a
    /// proxy that holds it back.
    pub fn detach_late(&self, by: Duration) {
        *lock(&self.injector.late_detach) = Some(by);
    }

    /// Stops it as SIGTERM does, and waits until it has stopped; kills it after the grace period of a pod.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        match tokio::time::timeout(GRACE, &mut self.task).await {
            Ok(Err(error)) if error.is_panic() => {
                tracing::error!(replica = self.name, "the controller panicked")
            }
            Ok(_) => {}
            Err(_) => self.task.abort(),
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client that names the replica in its user agent, writes its changing requests down, and injects the faults of the replica.
fn recorded_client(
    server: &ApiServer,
    name: &str,
    request_log: RequestLog,
    injector: Arc<FaultInjector>,
) -> Client {
    let service = server.service_as(CONTROLLER_USER);
    let clock = server.clock();
    let agent =
        HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("reattach-controller"));
    let name = name.to_owned();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (service, request_log, injector, agent, name) = (
            service.clone(),
            request_log.clone(),
            injector.clone(),
            agent.clone(),
            name.clone(),
        );
        async move {
            let (mut head, body) = request.into_parts();
            head.headers.insert(http::header::USER_AGENT, agent);
            let bytes = body
                .collect()
                .await
                .map_err(tower::BoxError::from)?
                .to_bytes();
            if matches!(head.method, http::Method::GET | http::Method::HEAD) {
                return service
                    .oneshot(Request::from_parts(head, Body::from(bytes)))
                    .await;
            }
            let entry = Entry {
                sent: 0,
                answered: None,
                at: clock.now(),
                by: name,
                target: Target::Kubernetes,
                method: head.method.to_string(),
                path: head.uri.path().to_owned(),
                query: head.uri.query().unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&bytes).unwrap_or_default(),
            };
            // Leases and Events are written all the time and a crash there is like one anywhere else in between.
            let (_, resource, _) = entry.resource();
            let counts = !entry.dry_run() && !matches!(resource, "leases" | "events");
            let side = if counts {
                injector.pass(|| entry.line()).await
            } else {
                None
            };
            if side == Some(Side::Before) {
                return injector.die().await;
            }
            let sent = request_log.send(entry);
            let reply = service
                .oneshot(Request::from_parts(head, Body::from(bytes)))
                .await;
            if side == Some(Side::After) {
                return injector.die().await;
            }
            if let Ok(reply) = &reply {
                request_log.answer(sent, reply.status().as_u16());
            }
            reply
        }
    });
    Client::new(service, "default")
}

/// The simulated cloud's HTTP face, in memory; changing requests are recorded, and the faults of the replica are injected.
fn recorded_cloud(
    cloud: &CloudSim,
    name: &str,
    profile: CloudProfile,
    request_log: RequestLog,
    injector: Arc<FaultInjector>,
) -> HttpTransport {
    let inner = in_memory(cloud.clone());
    let (cloud, name) = (cloud.clone(), name.to_owned());
    let service = tower::service_fn(move |request: Request<Bytes>| {
        let (inner, request_log, injector, cloud, name) = (
            inner.clone(),
            request_log.clone(),
            injector.clone(),
            cloud.clone(),
            name.clone(),
        );
        let change = profile.change(&request);
        async move {
            let Some((path, body)) = change else {
                return inner.oneshot(request).await;
            };
            let entry = Entry {
                sent: 0,
                answered: None,
                at: cloud.now(),
                by: name,
                target: Target::Cloud,
                method: request.method().to_string(),
                path,
                query: String::new(),
                body,
            };
            let side = injector.pass(|| format!("cloud: {}", entry.line())).await;
            if side == Some(Side::Before) {
                return injector.die().await;
            }
            let is_detach = entry.path.ends_with("/detach");
            let sent = request_log.send(entry);
            if let Some(by) = is_detach
                .then(|| lock(&injector.late_detach).take())
                .flatten()
            {
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    let arrived: Result<Response<Bytes>, TransportError> =
                        inner.oneshot(request).await;
                    drop(arrived);
                });
                return std::future::pending().await;
            }
            let reply: Result<Response<Bytes>, TransportError> = inner.oneshot(request).await;
            if side == Some(Side::After) {
                return injector.die().await;
            }
            if let Ok(reply) = &reply {
                request_log.answer(sent, reply.status().as_u16());
            }
            reply
        }
    });
    HttpTransport::new(service)
}
