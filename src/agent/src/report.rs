//! The loop that keeps one node's `NodeVolumeReport` true and answers the challenges in it.

use crate::guest::{HostRoot, Scan, ScanError};
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, utils::Backoff, watcher};
use kube::{Client, ResourceExt};
use reattach_api::{NodeVolumeReport, NodeVolumeReportSpec, NodeVolumeReportStatus};
use reattach_core::guest::{Answer, Challenge, GuestInventory};
use reattach_core::ids::{BootId, NodeName};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// First and longest pause after an error.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(30));
/// How often a write is tried again at once when someone else wrote first.
const CONFLICTS: usize = 3;
/// After how long a scan that does not end is complained about.
const SLOW_SCAN: Duration = Duration::from_secs(30);
/// Own writes whose late watch events are recognised.
const REMEMBERED_VERSIONS: usize = 16;
/// The kernel derives `btime` from the wall clock at each read: a clock that is being adjusted moves it by seconds.
const BOOT_TIME_NOISE: jiff::SignedDuration = jiff::SignedDuration::from_secs(5);

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
    /// How often it looks unasked.
    pub rescan: Duration,
    /// Where it looks.
    pub scan_on: ScanOn,
}

/// Why one round did not end in a true report.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error("the scan was aborted: {0}")]
    Aborted(#[from] tokio::task::JoinError),
    #[error("{}", sentence(.0))]
    Api(#[from] kube::Error),
    #[error("the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut,
    #[error("someone else wrote this node's report {CONFLICTS} times in a row")]
    Conflict,
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
    nodes: Api<Node>,
    resource: ApiResource,
    config: AgentConfig,
    clock: C,
    known: Known,
    /// Resource versions that a write of ours replaced. Their watch events may come late.
    superseded: VecDeque<String>,
}

/// Runs the agent of one node until `shutdown` ends.
///
/// # Flow
/// Watches the report named as the node, creates it if it is missing, looks at the host as soon as it knows the report,
/// at once for a new challenge and every [`AgentConfig::rescan`] otherwise, and writes the report's status if that changes it.
///
/// # Guarantees
/// Reads and writes only the one report (and reads its Node once, for the owner reference). Every answer comes from a scan
/// that began after its challenge was read. Each write carries the resource version it was computed from. No writes
/// while nothing changes.
///
/// # Assumptions
/// `client` repeats nothing by itself (`Config::default_retry = false`). `clock` is the node's wall clock.
///
/// # Errors
/// None are returned: whatever fails is logged as one sentence and tried again, with growing pauses of at most 30 s.
pub async fn run<C>(client: Client, config: AgentConfig, clock: C, shutdown: impl Future<Output = ()>)
where
    C: Fn() -> Timestamp,
{
    let resource = ApiResource::erase::<NodeVolumeReport>(&());
    // Untyped: a report that another version of the agent wrote must not stop this one from replacing it.
    let reports: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let node = config.node.clone();
    let mut pauses = Pauses::new(&node);
    let mut watch = pin!(watcher::watch_object(reports.clone(), node.as_str()).backoff(Pauses::new(&node)));
    let mut shutdown = pin!(shutdown);
    let mut agent = Agent {
        reports,
        nodes: Api::all(client),
        resource,
        config,
        clock,
        known: Known::Nothing,
        superseded: VecDeque::new(),
    };
    let mut next_look = Instant::now();
    let mut not_before = next_look;
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
            () = sleep_until(next_look) => true,
        };
        let now = Instant::now();
        let due = ticked || !has_looked || agent.is_asked();
        if matches!(agent.known, Known::Nothing) || now < not_before || !due {
            if ticked {
                next_look = now + agent.config.rescan;
            }
            continue;
        }
        let round = tokio::select! {
            biased;
            () = &mut shutdown => break,
            round = agent.round() => round,
        };
        match round {
            Ok(()) => {
                has_looked = true;
                pauses.reset();
                next_look = Instant::now() + agent.config.rescan;
            }
            Err(e) => {
                tracing::warn!(%node, error = %e, "this node's report could not be brought up to date");
                not_before = Instant::now() + pauses.next().unwrap_or(BACKOFF.1);
                next_look = not_before;
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

    /// Looks once and writes if that changed anything; starts over where someone else wrote meanwhile.
    async fn round(&mut self) -> Result<(), RoundError> {
        for _ in 0..CONFLICTS {
            let object = match &self.known {
                Known::Nothing => return Ok(()),
                Known::Object(object) => object.clone(),
                Known::Absent => {
                    let Some(object) = self.create().await? else { continue };
                    Box::new(object)
                }
            };
            let challenges = challenges_of(&object);
            // Only now, after the challenges were read.
            let scanned_at = (self.clock)();
            let scan = self.look().await?;
            let old = status_of(&object);
            let new = status(old.as_ref(), &scan, &challenges, scanned_at, object.metadata.generation);
            if old.as_ref() == Some(&new) {
                return Ok(());
            }
            if self.write(&object, &new).await? {
                return Ok(());
            }
        }
        Err(RoundError::Conflict)
    }

    async fn look(&self) -> Result<Scan, RoundError> {
        let started = Instant::now();
        let scan = match self.config.scan_on {
            ScanOn::CallingTask => Scan::new(&self.config.root)?,
            ScanOn::BlockingPool => {
                let root = self.config.root.clone();
                let mut scan = tokio::task::spawn_blocking(move || Scan::new(&root));
                loop {
                    match timeout(SLOW_SCAN, &mut scan).await {
                        Ok(scan) => break scan??,
                        Err(_) => tracing::warn!(
                            node = %self.config.node,
                            seconds = started.elapsed().as_secs(),
                            "the scan does not end; this node's report may be out of date"
                        ),
                    }
                }
            }
        };
        tracing::debug!(node = %self.config.node, millis = started.elapsed().as_millis(), "scanned");
        Ok(scan)
    }

    /// Creates the report. `None` if it was there already; then it is known now.
    async fn create(&mut self) -> Result<Option<DynamicObject>, RoundError> {
        let name = self.config.node.to_string();
        let spec = NodeVolumeReportSpec::default();
        let mut object = DynamicObject::new(&name, &self.resource)
            .data(serde_json::json!({ "spec": { "challenges": spec.challenges } }));
        object.metadata.owner_references = self.owner().await.map(|owner| vec![owner]);
        match within(self.reports.create(&PostParams::default(), &object)).await {
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

    /// The Node as owner, so that the report goes when the node goes. Nice to have: without it the report just stays.
    async fn owner(&self) -> Option<OwnerReference> {
        match within(self.nodes.get_opt(self.config.node.as_str())).await {
            Ok(node) => Some(OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: self.config.node.to_string(),
                uid: node?.uid()?,
                ..OwnerReference::default()
            }),
            Err(e) => {
                tracing::warn!(node = %self.config.node, error = %e, "cannot read the Node; its report gets no owner");
                None
            }
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
        match within(self.reports.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))).await {
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

/// The status after a look: the inventory (the old one while nothing changed), and one answer for each challenge that is
/// still asked, given in this boot.
fn status(
    old: Option<&NodeVolumeReportStatus>,
    scan: &Scan,
    challenges: &[Challenge],
    scanned_at: Timestamp,
    generation: Option<i64>,
) -> NodeVolumeReportStatus {
    let mut inventory = scan.inventory();
    if let Some(old) = old.and_then(|status| status.inventory.as_ref()?.get().ok())
        && is_same_boot(old, &inventory)
    {
        inventory.booted_at = old.booted_at;
    }
    let answer = |challenge: &Challenge| {
        let old = old.and_then(|status| given(status, challenge, Some(&inventory.boot_id)));
        old.cloned().unwrap_or_else(|| scan.answer(challenge, scanned_at))
    };
    let mut answers: Vec<Answer> = challenges.iter().map(answer).collect();
    answers.sort();
    answers.dedup();
    NodeVolumeReportStatus {
        answers: answers.into_iter().map(Into::into).collect(),
        inventory: Some(inventory.into()),
        observed_generation: generation,
    }
}

/// Whether two boot times differ by no more than what a clock under adjustment explains.
fn is_same_boot(old: &GuestInventory, new: &GuestInventory) -> bool {
    old.boot_id == new.boot_id && old.booted_at.duration_since(new.booted_at).abs() <= BOOT_TIME_NOISE
}

/// The answer to exactly this challenge, given in that boot if one is named.
fn given<'a>(
    status: &'a NodeVolumeReportStatus,
    challenge: &Challenge,
    boot: Option<&BootId>,
) -> Option<&'a Answer> {
    status.answers.iter().filter_map(|answer| answer.get().ok()).find(|answer| {
        answer.recovery == challenge.recovery
            && answer.epoch == challenge.epoch
            && answer.identity == challenge.identity
            && boot.is_none_or(|boot| answer.boot_id == *boot)
    })
}

/// The challenges of a report. One that this version cannot read is left unanswered, which is never "clean".
fn challenges_of(object: &DynamicObject) -> Vec<Challenge> {
    let listed = object.data.pointer("/spec/challenges").and_then(|list| list.as_array());
    let parse = |value: &serde_json::Value| match serde_json::from_value(value.clone()) {
        Ok(challenge) => Some(challenge),
        Err(e) => {
            tracing::warn!(error = %e, "a challenge is not understood and stays unanswered");
            None
        }
    };
    listed.into_iter().flatten().filter_map(parse).collect()
}

/// The status of a report, if there is one that this version can read.
fn status_of(object: &DynamicObject) -> Option<NodeVolumeReportStatus> {
    serde_json::from_value(object.data.get("status")?.clone()).ok()
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, RoundError> {
    timeout(REQUEST_TIMEOUT, request).await.map_err(|_| RoundError::TimedOut)?.map_err(RoundError::Api)
}

fn is_conflict(e: &kube::Error) -> bool {
    matches!(e, kube::Error::Api(status) if status.code == 409)
}

fn is_not_found(e: &kube::Error) -> bool {
    matches!(e, kube::Error::Api(status) if status.code == 404)
}

/// An API error as one sentence that says what to do.
fn sentence(e: &kube::Error) -> String {
    match e {
        kube::Error::Api(status) if status.code == 404 => {
            "the cluster has no resource NodeVolumeReport; install reattach's CRDs".to_owned()
        }
        kube::Error::Api(status) if status.code == 403 => {
            format!("the agent lacks a right; check its ClusterRole: {}", status.message)
        }
        kube::Error::Api(status) => format!("the API server refused: {}", status.message),
        other => format!("the API server cannot be reached: {other}"),
    }
}

fn watch_sentence(e: &watcher::Error) -> String {
    match e {
        watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) => sentence(e),
        other => other.to_string(),
    }
}

/// Growing pauses with a jitter that is seeded by the node's name: agents spread out, and each repeats itself.
struct Pauses {
    builder: ExponentialBuilder,
    pauses: ExponentialBackoff,
}

impl Pauses {
    fn new(node: &NodeName) -> Self {
        let mut seed = [0; 8];
        seed.iter_mut().zip(Sha256::digest(node.as_str())).for_each(|(to, from)| *to = from);
        let builder = ExponentialBuilder::new()
            .with_min_delay(BACKOFF.0)
            .with_max_delay(BACKOFF.1)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(u64::from_be_bytes(seed));
        Self { builder, pauses: builder.build() }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.pauses.next()
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.pauses = self.builder.build();
    }
}
