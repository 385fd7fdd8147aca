//! The loop that keeps one node's `NodeVolumeReport` up to date and answers its challenges.

mod backoff;
mod error;
mod object;
mod pace;

use crate::guest::HostRoot;
use backoff::{ErrorBackoff, LONGEST_PAUSE};
use error::{CONFLICTS, RoundError, is_conflict, is_not_found, watch_sentence, within};
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, utils::Backoff, watcher};
use kube::{Client, ResourceExt};
use object::{ScanTask, Scanned, answer_to, challenges_of, status, status_of};
use pace::Pace;
use reattach_api::{NodeVolumeReport, NodeVolumeReportStatus, metadata};
use reattach_core::guest::{Challenge, Level};
use reattach_core::ids::NodeName;
use reattach_core::product::Product;
use rustix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Time after which a scan that has not ended is logged, and interval of further lines.
const SLOW_SCAN: Duration = Duration::from_secs(30);
/// Number of own writes whose late watch events are recognised.
const REMEMBERED_VERSIONS: usize = 16;
/// Time between the two reads of the write counters at the full level.
const COUNTER_INTERVAL: Duration = Duration::from_secs(1);

/// The thread that scans the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanOn {
    /// The task that runs the loop. For a single-threaded runtime under virtual time.
    CallingTask,
    /// A thread of tokio's blocking pool, so that a slow /proc does not stop the loop.
    BlockingPool,
}

/// The settings of one agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Node of the agent. Also the name of its report.
    pub node: NodeName,
    /// File tree of the node.
    pub root: HostRoot,
    /// Maximum time between scans without an event. After a change the next scan comes sooner.
    pub rescan: Duration,
    /// Thread that scans.
    pub scan_on: ScanOn,
}

/// What is known about the node's report object.
enum ReportState {
    /// The watch has not returned anything yet.
    Unknown,
    /// There is no report.
    Absent,
    /// The report as last read or written.
    Object(Box<DynamicObject>),
}

struct Agent<C> {
    reports: Api<DynamicObject>,
    resource: ApiResource,
    config: AgentConfig,
    clock: C,
    report: ReportState,
    /// Resource versions that own writes have replaced. Their watch events may come late.
    superseded: VecDeque<String>,
    /// Processor time of the last scan.
    scan_cost: Duration,
}

/// Runs the agent of one node until `shutdown` ends.
///
/// # Expected flow
/// 1. Watches the report with the node's name, and creates it if it is missing.
/// 2. Scans the host: when the report is known, at once for a new challenge, soon after an item of `events` (something
///    may have changed), and at the latest after [`AgentConfig::rescan`].
/// 3. Writes the report's status if the scan changes it.
///
/// # Guarantees
/// - Reads and writes only the one report.
/// - Every answer comes from a scan that began after its challenge was read.
/// - Each write contains the resource version that it was computed from.
/// - Writes nothing while nothing changes.
/// - Events cost at most a hundredth of one core: between an event and its scan, `events` is not polled.
///
/// # Assumptions
/// `client` does not retry by itself (`Config::default_retry = false`). `clock` is the node's wall clock.
///
/// # Errors
/// None are returned. A failure, also of a write whose reply was lost, is logged as one sentence and retried after a growing
/// pause of at most 30 s and a jitter.
pub async fn run<C>(
    client: Client,
    config: AgentConfig,
    clock: C,
    events: impl Stream<Item = ()>,
    shutdown: impl Future<Output = ()>,
) where
    C: Fn() -> Timestamp,
{
    let resource = ApiResource::erase::<NodeVolumeReport>(&());
    // Untyped, so that a report of another version of the agent can be read and replaced.
    let reports: Api<DynamicObject> = Api::all_with(client, &resource);
    let node = config.node.clone();
    let mut backoff = ErrorBackoff::new(&node);
    let mut watch = pin!(
        watcher::watch_object(reports.clone(), node.as_str()).backoff(ErrorBackoff::new(&node))
    );
    let mut shutdown = pin!(shutdown);
    // A stream that has ended must not end the loop.
    let mut events = pin!(events.chain(stream::pending()));
    let mut pace = Pace::new(config.rescan, Instant::now());
    let mut agent = Agent {
        reports,
        resource,
        config,
        clock,
        report: ReportState::Unknown,
        superseded: VecDeque::new(),
        scan_cost: Duration::ZERO,
    };
    let mut not_before = Instant::now();
    // The report may be from before a restart of this process or of the machine.
    let mut has_scanned = false;
    loop {
        let ticked = tokio::select! {
            biased;
            () = &mut shutdown => break,
            event = watch.next() => {
                match event {
                    Some(Ok(object)) => agent.on_watch_event(object),
                    Some(Err(e)) => tracing::warn!(%node, error = %watch_sentence(&e), "this node's report cannot be watched; the agent retries"),
                    None => break,
                }
                false
            }
            () = sleep_until(pace.next_scan()) => true,
            _ = events.next(), if !pace.has_event() => {
                pace.event(Instant::now());
                false
            }
        };
        let now = Instant::now();
        let due = ticked || !has_scanned || agent.needs_scan();
        if matches!(agent.report, ReportState::Unknown) || now < not_before || !due {
            if ticked && now < not_before {
                pace.retry(not_before);
            } else if ticked {
                pace.postpone(now);
            }
            continue;
        }
        let round = tokio::select! {
            biased;
            () = &mut shutdown => break,
            round = agent.round() => round,
        };
        match round {
            Ok(changed) => {
                has_scanned = true;
                backoff.reset();
                let (millis, event) = (agent.scan_cost.as_millis(), pace.has_event());
                tracing::debug!(%node, millis, event, changed, "scanned");
                pace.scanned(Instant::now(), agent.scan_cost, changed);
            }
            Err(e) => {
                tracing::warn!(%node, error = %e, "this node's report could not be updated; the agent retries");
                not_before = Instant::now() + backoff.next().unwrap_or(LONGEST_PAUSE);
                pace.retry(not_before);
            }
        }
    }
    tracing::info!(%node, "agent stopped");
}

impl<C: Fn() -> Timestamp> Agent<C> {
    /// Stores the object of a watch event, unless a reply has already returned a newer one.
    fn on_watch_event(&mut self, object: Option<DynamicObject>) {
        match object {
            None => self.report = ReportState::Absent,
            Some(object) if object.name_any() != self.config.node.as_str() => {}
            Some(object) => {
                let superseded = object
                    .resource_version()
                    .is_some_and(|version| self.superseded.contains(&version));
                if !superseded {
                    self.report = ReportState::Object(Box::new(object));
                }
            }
        }
    }

    /// Returns whether there is a reason to scan before the next regular scan.
    fn needs_scan(&self) -> bool {
        match &self.report {
            ReportState::Unknown => false,
            ReportState::Absent => true,
            ReportState::Object(object) => {
                let status = status_of(object).unwrap_or_default();
                status.observed_generation != object.metadata.generation
                    || challenges_of(object)
                        .iter()
                        .any(|challenge| answer_to(&status, challenge, None).is_none())
            }
        }
    }

    /// Scans once, and writes if the status changed. Starts again when another writer was faster. Returns whether it wrote.
    async fn round(&mut self) -> Result<bool, RoundError> {
        for _ in 0..CONFLICTS {
            let object = match &self.report {
                ReportState::Unknown => return Ok(false),
                ReportState::Object(object) => object.clone(),
                ReportState::Absent => {
                    let Some(object) = self.create().await? else {
                        continue;
                    };
                    Box::new(object)
                }
            };
            let challenges = challenges_of(&object);
            // The time of the scan must be after the read of the challenges.
            let scanned_at = (self.clock)();
            let old = status_of(&object);
            let scanned = self
                .scan(old.clone(), challenges.clone(), scanned_at)
                .await?;
            let new = status(
                old.as_ref(),
                scanned,
                &challenges,
                object.metadata.generation,
            );
            if old.as_ref() == Some(&new) {
                return Ok(false);
            }
            if self.write(&object, &new).await? {
                return Ok(true);
            }
        }
        Err(RoundError::Conflict)
    }

    async fn scan(
        &mut self,
        old: Option<NodeVolumeReportStatus>,
        challenges: Vec<Challenge>,
        scanned_at: Timestamp,
    ) -> Result<Scanned, RoundError> {
        let root = self.config.root.clone();
        let task = self
            .blocking(move || ScanTask::new(&root, old.as_ref(), &challenges))
            .await??;
        if task.has_open_challenge() && self.config.root.level() == Level::Full {
            sleep(COUNTER_INTERVAL).await;
        }
        let (started, cpu) = (Instant::now(), processor_time());
        let root = self.config.root.clone();
        let scanned = self
            .blocking(move || task.scan(&root, scanned_at))
            .await??;
        // The processor time and not the duration: a scan takes longer on a busy machine and costs no more. At most the
        // duration, since under virtual time the processor time is that of all simulated processes.
        self.scan_cost = processor_time().saturating_sub(cpu).min(started.elapsed());
        Ok(scanned)
    }

    /// Runs work that may block, on the configured thread.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RoundError> {
        if self.config.scan_on == ScanOn::CallingTask {
            return Ok(work());
        }
        let started = Instant::now();
        let mut running = tokio::task::spawn_blocking(work);
        loop {
            match timeout(SLOW_SCAN, &mut running).await {
                Ok(done) => return Ok(done?),
                Err(_) => tracing::warn!(
                    node = %self.config.node,
                    seconds = started.elapsed().as_secs(),
                    "the scan has not ended, so this node's report may be out of date; the agent waits for it"
                ),
            }
        }
    }

    /// Creates the report. `None`: it exists already, and has been read.
    async fn create(&mut self) -> Result<Option<DynamicObject>, RoundError> {
        let name = self.config.node.to_string();
        let object = DynamicObject::new(&name, &self.resource)
            .data(serde_json::json!({ "spec": { "challenges": [] } }));
        let params = PostParams {
            field_manager: Some(field_manager()),
            ..PostParams::default()
        };
        match within(self.reports.create(&params, &object)).await {
            Ok(created) => {
                tracing::info!(node = %self.config.node, "report created");
                self.report = ReportState::Object(Box::new(created.clone()));
                Ok(Some(created))
            }
            Err(RoundError::Api(e)) if is_conflict(&e) => {
                self.read_again().await?;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Writes the status if the report has not changed since the status was computed. Otherwise reads the report again.
    async fn write(
        &mut self,
        object: &DynamicObject,
        status: &NodeVolumeReportStatus,
    ) -> Result<bool, RoundError> {
        let version = metadata::of_kind("NodeVolumeReport", &object.metadata).version()?;
        let patch =
            serde_json::json!({ "metadata": { "resourceVersion": version }, "status": status });
        let name = self.config.node.as_str();
        let params = PatchParams {
            field_manager: Some(field_manager()),
            ..PatchParams::default()
        };
        match within(
            self.reports
                .patch_status(name, &params, &Patch::Merge(patch)),
        )
        .await
        {
            Ok(written) => {
                let inventory = status
                    .inventory
                    .as_ref()
                    .and_then(|inventory| inventory.get().ok());
                tracing::info!(
                    node = %self.config.node,
                    devices = inventory.map_or(0, |inventory| inventory.devices.len()),
                    unreadable = inventory.map_or(0, |inventory| inventory.unreadable.len()),
                    answers = status.answers.len(),
                    "report written"
                );
                if written.resource_version().as_deref() != Some(version.as_str()) {
                    self.superseded.push_back(version.to_string());
                    if self.superseded.len() > REMEMBERED_VERSIONS {
                        self.superseded.pop_front();
                    }
                }
                self.report = ReportState::Object(Box::new(written));
                Ok(true)
            }
            Err(RoundError::Api(e)) if is_conflict(&e) || is_not_found(&e) => {
                self.read_again().await?;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    async fn read_again(&mut self) -> Result<(), RoundError> {
        self.report = match within(self.reports.get_opt(self.config.node.as_str())).await? {
            Some(object) => ReportState::Object(Box::new(object)),
            None => ReportState::Absent,
        };
        Ok(())
    }
}

/// Returns the field manager of the agent's writes.
fn field_manager() -> String {
    Product::Agent.user_agent().to_owned()
}

/// Returns the processor time of all threads of this process (`clock_gettime(2)`).
fn processor_time() -> Duration {
    // The time is never negative.
    clock_gettime(ClockId::ProcessCPUTime)
        .try_into()
        .unwrap_or_default()
}
