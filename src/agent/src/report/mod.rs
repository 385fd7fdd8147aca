//! The loop that keeps one node's `NodeVolumeReport` true and answers the challenges in it.

mod error;
mod object;
mod pace;
mod pauses;

use crate::guest::HostRoot;
use error::{CONFLICTS, RoundError, is_conflict, is_not_found, watch_sentence, within};
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, utils::Backoff, watcher};
use kube::{Client, ResourceExt};
use object::{Looked, Task, challenges_of, given, status, status_of};
use pace::Pace;
use pauses::{BACKOFF, Pauses};
use reattach_api::{NodeVolumeReport, NodeVolumeReportSpec, NodeVolumeReportStatus};
use reattach_core::guest::{Challenge, Level};
use reattach_core::ids::NodeName;
use reattach_core::product::Product;
use rustix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// After how long a scan that does not end is complained about.
const SLOW_SCAN: Duration = Duration::from_secs(30);
/// Own writes whose late watch events are recognised.
const REMEMBERED_VERSIONS: usize = 16;
/// How long the full level watches the write counters before it looks.
const QUIET: Duration = Duration::from_secs(1);

/// Where the loop looks at the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanOn {
    /// In the task that runs the loop. For a single-threaded runtime under virtual time.
    CallingTask,
    /// On tokio's pool of blocking threads, so that a slow /proc does not stop the loop.
    BlockingPool,
}

/// What one agent needs to know.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The node it runs on; also the name of its report.
    pub node: NodeName,
    /// The node's file tree.
    pub root: HostRoot,
    /// How long it may go without a look when nothing tells of a change. After a change it looks again sooner.
    pub rescan: Duration,
    /// Where it looks.
    pub scan_on: ScanOn,
}

/// What is known of the node's report object.
enum Known {
    /// The watch has not said anything yet.
    Nothing,
    /// There is none.
    Absent,
    /// This is it.
    Object(Box<DynamicObject>),
}

struct Agent<C> {
    reports: Api<DynamicObject>,
    resource: ApiResource,
    config: AgentConfig,
    clock: C,
    known: Known,
    /// Resource versions that a write of ours replaced. Their watch events may come late.
    superseded: VecDeque<String>,
    /// Processor time of the last look at the host.
    look_cost: Duration,
}

/// [`run_with_news`] without any news: it looks when it is asked and every [`AgentConfig::rescan`].
pub async fn run<C>(client: Client, config: AgentConfig, clock: C, shutdown: impl Future<Output = ()>)
where
    C: Fn() -> Timestamp,
{
    run_with_news(client, config, clock, stream::pending(), shutdown).await;
}

/// Runs the agent of one node until `shutdown` ends.
///
/// # Flow
/// Watches the report named as the node, creates it if it is missing, looks at the host as soon as it knows the report,
/// at once for a new challenge, soon after the host has `news` (an item says no more than that something may have
/// changed), and after [`AgentConfig::rescan`] at the latest, and writes the report's status if that changes it.
///
/// # Guarantees
/// Reads and writes only the one report. Every answer comes from a scan
/// that began after its challenge was read. Each write carries the resource version it was computed from. No writes
/// while nothing changes. News cost at most a hundredth of one core, however many come: they are not even
/// polled between a piece of news and the look that it causes.
///
/// # Assumptions
/// `client` repeats nothing by itself (`Config::default_retry = false`). `clock` is the node's wall clock.
///
/// # Errors
/// None are returned: whatever fails, lost writes included, is logged as one sentence and tried again, with growing pauses
/// of at most 30 s and a jitter.
pub async fn run_with_news<C>(
    client: Client,
    config: AgentConfig,
    clock: C,
    news: impl Stream<Item = ()>,
    shutdown: impl Future<Output = ()>,
) where
    C: Fn() -> Timestamp,
{
    let resource = ApiResource::erase::<NodeVolumeReport>(&());
    // Untyped: a report that another version of the agent wrote must not stop this one from replacing it.
    let reports: Api<DynamicObject> = Api::all_with(client, &resource);
    let node = config.node.clone();
    let mut pauses = Pauses::new(&node);
    let mut watch = pin!(watcher::watch_object(reports.clone(), node.as_str()).backoff(Pauses::new(&node)));
    let mut shutdown = pin!(shutdown);
    // A source that ends says nothing any more.
    let mut news = pin!(news.chain(stream::pending()));
    let mut pace = Pace::new(config.rescan, Instant::now());
    let mut agent = Agent {
        reports,
        resource,
        config,
        clock,
        known: Known::Nothing,
        superseded: VecDeque::new(),
        look_cost: Duration::ZERO,
    };
    let mut not_before = Instant::now();
    // What the report says may be from before a restart, of this process or of the machine.
    let mut has_looked = false;
    loop {
        let ticked = tokio::select! {
            biased;
            () = &mut shutdown => break,
            event = watch.next() => {
                match event {
                    Some(Ok(object)) => agent.take_in(object),
                    Some(Err(e)) => tracing::warn!(%node, error = %watch_sentence(&e), "cannot watch this node's report"),
                    None => break,
                }
                false
            }
            () = sleep_until(pace.next_look()) => true,
            _ = news.next(), if !pace.is_hurried() => {
                pace.hurry(Instant::now());
                false
            }
        };
        let now = Instant::now();
        let due = ticked || !has_looked || agent.is_asked();
        if matches!(agent.known, Known::Nothing) || now < not_before || !due {
            if ticked && now < not_before {
                pace.retry(not_before);
            } else if ticked {
                pace.put_off(now);
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
                has_looked = true;
                pauses.reset();
                let (millis, news) = (agent.look_cost.as_millis(), pace.is_hurried());
                tracing::debug!(%node, millis, news, changed, "looked");
                pace.looked(Instant::now(), agent.look_cost, changed);
            }
            Err(e) => {
                tracing::warn!(%node, error = %e, "this node's report could not be brought up to date");
                not_before = Instant::now() + pauses.next().unwrap_or(BACKOFF.1);
                pace.retry(not_before);
            }
        }
    }
    tracing::info!(%node, "agent stopped");
}

impl<C: Fn() -> Timestamp> Agent<C> {
    /// Takes in what the watch says, unless it is older than what a reply has already said.
    fn take_in(&mut self, object: Option<DynamicObject>) {
        match object {
            None => self.known = Known::Absent,
            Some(object) if object.name_any() != self.config.node.as_str() => {}
            Some(object) => {
                let version = object.resource_version().unwrap_or_default();
                if !self.superseded.contains(&version) {
                    self.known = Known::Object(Box::new(object));
                }
            }
        }
    }

    /// Whether there is something to do before the next unasked look.
    fn is_asked(&self) -> bool {
        match &self.known {
            Known::Nothing => false,
            Known::Absent => true,
            Known::Object(object) => {
                let status = status_of(object).unwrap_or_default();
                status.observed_generation != object.metadata.generation
                    || challenges_of(object).iter().any(|challenge| given(&status, challenge, None).is_none())
            }
        }
    }

    /// Looks once and writes if that changed anything; starts over where someone else wrote meanwhile. Tells whether it
    /// wrote.
    async fn round(&mut self) -> Result<bool, RoundError> {
        for _ in 0..CONFLICTS {
            let object = match &self.known {
                Known::Nothing => return Ok(false),
                Known::Object(object) => object.clone(),
                Known::Absent => {
                    let Some(object) = self.create().await? else { continue };
                    Box::new(object)
                }
            };
            let challenges = challenges_of(&object);
            // Only now, after the challenges were read.
            let scanned_at = (self.clock)();
            let old = status_of(&object);
            let looked = self.look(old.clone(), challenges.clone(), scanned_at).await?;
            let new = status(old.as_ref(), looked, &challenges, object.metadata.generation);
            if old.as_ref() == Some(&new) {
                return Ok(false);
            }
            if self.write(&object, &new).await? {
                return Ok(true);
            }
        }
        Err(RoundError::Conflict)
    }

    async fn look(
        &mut self,
        old: Option<NodeVolumeReportStatus>,
        challenges: Vec<Challenge>,
        scanned_at: Timestamp,
    ) -> Result<Looked, RoundError> {
        let root = self.config.root.clone();
        let task = self.blocking(move || Task::new(&root, old.as_ref(), &challenges)).await??;
        if task.is_asked() && self.config.root.level() == Level::Full {
            sleep(QUIET).await;
        }
        let (started, cpu) = (Instant::now(), processor_time());
        let root = self.config.root.clone();
        let looked = self.blocking(move || task.look(&root, scanned_at)).await??;
        // Where others want the processor a look takes long and costs nothing more. Not above the time that passed:
        // under virtual time the processor's is nobody's.
        self.look_cost = processor_time().saturating_sub(cpu).min(started.elapsed());
        Ok(looked)
    }

    /// Runs what may block, where the configuration says.
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
                    "the scan does not end; this node's report may be out of date"
                ),
            }
        }
    }

    /// Creates the report. `None` if it was there already; then it is known now.
    async fn create(&mut self) -> Result<Option<DynamicObject>, RoundError> {
        let name = self.config.node.to_string();
        let spec = NodeVolumeReportSpec::default();
        let object = DynamicObject::new(&name, &self.resource)
            .data(serde_json::json!({ "spec": { "challenges": spec.challenges } }));
        let params = PostParams { field_manager: Some(manager()), ..PostParams::default() };
        match within(self.reports.create(&params, &object)).await {
            Ok(created) => {
                tracing::info!(node = %self.config.node, "report created");
                self.known = Known::Object(Box::new(created.clone()));
                Ok(Some(created))
            }
            Err(RoundError::Api(e)) if is_conflict(&e) => {
                self.read_again().await?;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Writes the status if the report is still the one that it was computed from; otherwise reads that again.
    async fn write(
        &mut self,
        object: &DynamicObject,
        status: &NodeVolumeReportStatus,
    ) -> Result<bool, RoundError> {
        let version = object.resource_version().unwrap_or_default();
        let patch = serde_json::json!({ "metadata": { "resourceVersion": version }, "status": status });
        let name = self.config.node.as_str();
        let params = PatchParams { field_manager: Some(manager()), ..PatchParams::default() };
        match within(self.reports.patch_status(name, &params, &Patch::Merge(patch))).await {
            Ok(written) => {
                let inventory = status.inventory.as_ref().and_then(|inventory| inventory.get().ok());
                tracing::info!(
                    node = %self.config.node,
                    devices = inventory.map_or(0, |inventory| inventory.devices.len()),
                    unreadable = inventory.map_or(0, |inventory| inventory.unreadable.len()),
                    answers = status.answers.len(),
                    "report written"
                );
                if written.resource_version().as_ref() != Some(&version) {
                    self.superseded.push_back(version);
                    if self.superseded.len() > REMEMBERED_VERSIONS {
                        self.superseded.pop_front();
                    }
                }
                self.known = Known::Object(Box::new(written));
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
        self.known = match within(self.reports.get_opt(self.config.node.as_str())).await? {
            Some(object) => Known::Object(Box::new(object)),
            None => Known::Absent,
        };
        Ok(())
    }
}

/// The field manager of what the agent writes.
fn manager() -> String {
    Product::Agent.user_agent().to_owned()
}

/// Processor time that this process has used, all of its threads together (`clock_gettime(2)`).
fn processor_time() -> Duration {
    // Never negative.
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
}
