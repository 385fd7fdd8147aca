//! The stage of a scenario: the world, the apps on it, the timeline and the notes for the post-mortem.

use crate::app::App;
use crate::observe::Observer;
use crate::replica::{CrashPoint, Replica};
use crate::timeline::{Actor, Line};
use crate::world::{PERSON, World, WorldError};
use jiff::Timestamp;
use reattach_api::{Phase, VolumeRecovery, metadata};
use reattach_cloud_simulator::{InstanceNo, InstanceStatus};
use reattach_core::ids::ObjectName;
use reattach_report::TimelineNote;
use reattach_sim::kubelet::DiskAfter;
use reattach_sim::object::{text, uid};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The time at which most scenarios begin: any time, but a fixed one (2026-03-02T03:00:00Z).
pub const START: Timestamp = Timestamp::constant(1_772_420_400, 0);
/// How often the world is looked at while a scenario waits.
const LOOK: Duration = Duration::from_millis(100);
/// After so long without news it is looked at every second.
const QUIET: Duration = Duration::from_secs(60);

/// Takes the lines as they come.
pub type Sink = Arc<dyn Fn(&Line) + Send + Sync>;

/// The expected state of an app at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Running, with its volume and as many replicas as before.
    Running,
    /// Unchanged: the same pods and the same generation as before.
    Untouched,
    /// As many replicas wanted as before; whether it runs is not ours to say.
    Restored,
}

/// An app of the scenario, and what is expected of it.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The app.
    pub app: App,
    /// The expected state at the end.
    pub expect: Expect,
    /// UID of each pod and generation of the workload at the moment that counts for [`Expect::Untouched`].
    pub before: Option<(Vec<String>, i64)>,
}

/// The stage of one scenario.
pub struct Stage {
    /// The world.
    pub world: World,
    /// The workloads by name of the app.
    pub workloads: BTreeMap<String, Workload>,
    /// Running replicas.
    pub replicas: Vec<Replica>,
    /// Notes for the post-mortem.
    pub notes: Vec<TimelineNote>,
    /// Where the post-mortem begins.
    pub from: Timestamp,
    /// Requests in the log when DryRun ended; everything before must be records only.
    pub dry_until: Option<usize>,
    /// Things that a scenario found wrong by itself.
    pub broken: Vec<String>,
    /// Figures to show at the end: what was timed, with the product, and without it.
    pub figures: Vec<[String; 3]>,
    lines: Vec<Line>,
    observer: Observer,
    sink: Sink,
}

impl Stage {
    /// Sets the world up.
    ///
    /// # Errors
    /// [`WorldError`].
    pub async fn new(
        seed: u64,
        start: Timestamp,
        nodes: &[(&str, u64)],
        sink: Sink,
    ) -> Result<Self, WorldError> {
        Ok(Self::with(World::build(seed, start, nodes).await?, sink))
    }

    /// A stage in this world.
    pub fn with(world: World, sink: Sink) -> Self {
        let from = world.now();
        Self {
            world,
            workloads: BTreeMap::new(),
            replicas: Vec::new(),
            notes: Vec::new(),
            from,
            dry_until: None,
            broken: Vec::new(),
            figures: Vec::new(),
            lines: Vec::new(),
            observer: Observer::default(),
            sink,
        }
    }

    /// Every line so far.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    fn tell_line(&mut self, line: Line) {
        (self.sink)(&line);
        self.lines.push(line);
    }

    /// A heading.
    pub fn heading(&mut self, text: &str, block: &[&str]) {
        self.look();
        let block = block.iter().map(|l| (*l).to_owned()).collect();
        self.tell_line(Line {
            at: self.world.now(),
            actor: Actor::Drill,
            about: String::new(),
            text: text.to_owned(),
            block,
        });
    }

    /// A line about something that is done to the world; also a note for the post-mortem.
    pub fn tell(&mut self, actor: Actor, about: &str, text: impl Into<String>) {
        self.look();
        let (at, text) = (self.world.now(), text.into());
        let whom = match (actor, about) {
            (Actor::Provider, "") => "The provider: ".to_owned(),
            (Actor::Provider, about) => format!("The provider, {about}: "),
            (Actor::Person, "") => "A person: ".to_owned(),
            (Actor::Person, about) => format!("A person, {about}: "),
            _ => String::new(),
        };
        self.notes.push(TimelineNote {
            at,
            text: format!("{whom}{}.", text.trim_end_matches('.')),
        });
        self.tell_line(Line {
            at,
            actor,
            about: about.to_owned(),
            text,
            block: Vec::new(),
        });
    }

    /// A text under a line, as it is.
    pub fn show(&mut self, actor: Actor, about: &str, text: &str, block: &str) {
        self.look();
        let block = block.lines().map(str::to_owned).collect();
        let (at, about, text) = (self.world.now(), about.to_owned(), text.to_owned());
        self.tell_line(Line {
            at,
            actor,
            about,
            text,
            block,
        });
    }

    /// Adds a line for each change since the last look.
    pub fn look(&mut self) {
        for line in self.observer.look(&self.world) {
            self.tell_line(line);
        }
    }

    /// Passes virtual time, with a line for each change.
    pub async fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut news = Instant::now();
        while Instant::now() < end {
            // Hours in which nothing happens are looked at less closely.
            let pause = if news.elapsed() > QUIET {
                LOOK * 10
            } else {
                LOOK
            };
            tokio::time::sleep(pause.min(end - Instant::now())).await;
            let told = self.lines.len();
            self.look();
            if self.lines.len() > told {
                news = Instant::now();
            }
        }
    }

    /// Waits until `condition` holds, telling what happens.
    ///
    /// # Errors
    /// [`WorldError::TooLate`].
    pub async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        condition: impl Fn(&World) -> bool,
    ) -> Result<Duration, WorldError> {
        let start = Instant::now();
        loop {
            self.look();
            if condition(&self.world) {
                return Ok(start.elapsed());
            }
            if start.elapsed() >= limit {
                return Err(WorldError::TooLate {
                    what: what.to_owned(),
                    seconds: limit.as_secs(),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// As `until`, for a condition on stored objects alone: it is evaluated again only when an object has changed.
    ///
    /// # Errors
    /// [`WorldError::TooLate`].
    pub async fn until_stored(
        &mut self,
        what: &str,
        limit: Duration,
        condition: impl Fn(&World) -> bool,
    ) -> Result<Duration, WorldError> {
        let asked_at = AtomicU64::new(0);
        let changed = move |w: &World| {
            let version = w.server().resource_version();
            asked_at.swap(version, Ordering::Relaxed) != version
        };
        self.until(what, limit, move |w| changed(w) && condition(w))
            .await
    }

    /// Adds an app and follows it; waits for nothing.
    ///
    /// # Errors
    /// [`WorldError`].
    pub async fn add(&mut self, app: App, expect: Expect) -> Result<(), WorldError> {
        self.world.add(&app).await?;
        self.observer.follow(&app);
        self.workloads.insert(
            app.name.clone(),
            Workload {
                app,
                expect,
                before: None,
            },
        );
        Ok(())
    }

    /// Waits until these apps run.
    ///
    /// # Errors
    /// [`WorldError::TooLate`].
    pub async fn running(
        &mut self,
        apps: &[&str],
        limit: Duration,
    ) -> Result<Duration, WorldError> {
        let want: Vec<(String, usize)> = apps
            .iter()
            .filter_map(|name| self.workloads.get(*name))
            .map(|c| (c.app.name.clone(), c.app.replicas))
            .collect();
        let what = format!("{} running", apps.join(", "));
        self.until_stored(&what, limit, move |w| {
            want.iter().all(|(name, n)| w.app_ready(name, *n))
        })
        .await
    }

    /// A person boots a node's machine if it is off, and waits until its quarantine has ended by itself.
    ///
    /// # Errors
    /// The cloud refuses, or it does not come back.
    pub async fn boot_again(&mut self, node: &str) -> Result<(), WorldError> {
        let instance = self.world.instance(node)?;
        if self
            .world
            .cloud
            .instance(instance)
            .is_some_and(|i| i.status == InstanceStatus::Offline)
        {
            self.world.cloud.boot(instance)?;
        }
        let clean = |w: &World| w.cluster.node_ready(node) && !w.is_quarantined(node);
        self.until(
            "the machine back and out of quarantine",
            Duration::from_secs(600),
            clean,
        )
        .await?;
        self.pass(Duration::from_secs(60)).await;
        Ok(())
    }

    /// A node's machine is shut down at the cloud and off; its instance.
    ///
    /// # Errors
    /// The cloud refuses, or it does not go off within a minute.
    pub async fn shut_down(&mut self, node: &str) -> Result<InstanceNo, WorldError> {
        let instance = self.world.instance(node)?;
        self.world.cloud.shutdown(instance)?;
        let off = |w: &World| {
            w.cloud
                .instance(instance)
                .is_some_and(|i| i.status == InstanceStatus::Offline)
        };
        self.until("the machine off", Duration::from_secs(60), off)
            .await?;
        Ok(instance)
    }

    /// A node pool replaces a node's machine and keeps the name. The old instance is off, or `gone` while the cloud still
    /// records volumes on it.
    ///
    /// # Errors
    /// The cloud or the API server refuses, or the new machine does not come up.
    pub async fn replace(
        &mut self,
        node: &str,
        instance: u64,
        gone: bool,
    ) -> Result<(), WorldError> {
        let old = self.shut_down(node).await?;
        if gone {
            self.world.cloud.vanish(old)?;
        }
        let what = if gone {
            "deleted, and its volumes are still recorded on it"
        } else {
            "off"
        };
        let text =
            format!("replaces {node}: instance {old} is {what}; a new instance has the name");
        self.tell(Actor::Provider, "", text);
        let path = format!("/api/v1/nodes/{node}");
        self.world.delete(PERSON, &path, json!({})).await?;
        self.world.replace_node(node, instance).await?;
        let ready = |w: &World| w.cluster.node_ready(node);
        self.until(&format!("{node} Ready"), Duration::from_secs(60), ready)
            .await?;
        Ok(())
    }

    /// Remembers how an app is now, for [`Expect::Untouched`].
    pub fn remember(&mut self, app: &str) {
        if let Some(workload) = self.workloads.get_mut(app) {
            workload.before = Some(state_of(&self.world, &workload.app));
        }
    }

    /// Starts a replica of the controller.
    pub fn start_replica(&mut self, name: &str, crash: Option<CrashPoint>) {
        let replica = self.world.replica(name, crash);
        self.replicas.push(replica);
    }

    /// The node of an app's first pod.
    pub fn node_of(&self, app: &str) -> String {
        let pods = self.world.pods(app);
        let pod = pods.first().map_or(&Value::Null, |p| &**p);
        text(pod, "/spec/nodeName").to_owned()
    }

    /// Recycles a node, telling so.
    ///
    /// # Errors
    /// [`WorldError`].
    pub async fn recycle(
        &mut self,
        node: &str,
        disk: DiskAfter,
        off_for: Duration,
    ) -> Result<(), WorldError> {
        self.tell(
            Actor::Provider,
            "",
            format!("recycles {node}: it loses power without a shutdown"),
        );
        let recycled = self.world.begin_recycle(node, disk, off_for)?;
        self.pass(off_for).await;
        recycled.await;
        self.world.end_recycle(node);
        self.tell(
            Actor::Provider,
            "",
            format!("{node} is back after {} s: same name, same instance, still attached at the cloud's API, and no disks in the machine", off_for.as_secs()),
        );
        Ok(())
    }

    /// Hangs a node's kernel, telling so.
    ///
    /// # Errors
    /// No such node.
    pub fn hang(&mut self, node: &str) -> Result<(), WorldError> {
        self.world.hang(node)?;
        self.tell(
            Actor::Provider,
            "",
            format!("{node}'s kernel hangs: the machine no longer answers, and the cloud still shows it as running"),
        );
        Ok(())
    }

    /// Cuts a node off, or connects it again, telling so.
    ///
    /// # Errors
    /// No such node.
    pub fn partition(&mut self, node: &str, cut: bool) -> Result<(), WorldError> {
        self.world.node(node)?.partition(cut);
        let text = match cut {
            true => format!(
                "{node} is cut off from the control plane; its pods keep running and writing"
            ),
            false => format!("{node} is reachable again"),
        };
        self.tell(Actor::Provider, "", text);
        Ok(())
    }

    /// The newest recovery of an app's claims.
    pub fn recovery_of(&self, app: &str) -> Option<VolumeRecovery> {
        recovery_of(&self.world, &self.workloads.get(app)?.app)
    }

    /// Waits until the newest recovery of every one of these apps is in one of the phases.
    ///
    /// # Errors
    /// [`WorldError::TooLate`].
    pub async fn phases(
        &mut self,
        apps: &[&str],
        phases: &[Phase],
        limit: Duration,
    ) -> Result<Duration, WorldError> {
        let apps: Vec<App> = apps
            .iter()
            .filter_map(|a| self.workloads.get(*a))
            .map(|c| c.app.clone())
            .collect();
        let names: Vec<&str> = apps.iter().map(|a| a.name.as_str()).collect();
        let what = format!("recoveries of {} in phase {phases:?}", names.join(", "));
        let is = |r: VolumeRecovery| r.status.is_some_and(|s| phases.contains(&s.phase));
        self.until_stored(&what, limit, |w| {
            apps.iter().all(|a| recovery_of(w, a).is_some_and(is))
        })
        .await
    }
}

/// The newest recovery of an app's claims: the last created, by time and name.
pub fn recovery_of(world: &World, app: &App) -> Option<VolumeRecovery> {
    let last = |r: &VolumeRecovery| r.status.as_ref().is_none_or(|s| !s.phase.is_final());
    let born = |r: &VolumeRecovery| r.metadata.creation_timestamp.as_ref().map(|t| t.0);
    // Long journals are read for their own app only: this is asked ten times a second.
    let named = |r: &Value| {
        app.volumes
            .iter()
            .any(|v| r["spec"]["claimName"] == v.claim.as_str())
    };
    let all = world
        .server()
        .list("reattach.dev", "volumerecoveries", None);
    let mine = all
        .iter()
        .filter(|r| named(r))
        .filter_map(|r| VolumeRecovery::deserialize(&**r).ok());
    mine.max_by_key(|r| (born(r), last(r), r.metadata.name.clone()))
}

/// The API path of a recovery.
///
/// # Errors
/// The recovery has no namespace or no name.
pub fn recovery_path(recovery: &VolumeRecovery) -> Result<String, WorldError> {
    let ObjectName { namespace, name } = metadata::of(recovery)
        .object_name()
        .map_err(|e| WorldError::Product(e.to_string()))?;
    Ok(format!(
        "/apis/reattach.dev/v1alpha1/namespaces/{namespace}/volumerecoveries/{name}"
    ))
}

/// The phase of every recovery.
pub fn phases_of(world: &World) -> Vec<Phase> {
    let all = world
        .server()
        .list("reattach.dev", "volumerecoveries", None);
    all.iter()
        .map(|r| Phase::deserialize(&r["status"]["phase"]).unwrap_or_default())
        .collect()
}

/// UIDs of the pods and generation of the workload.
pub fn state_of(world: &World, app: &App) -> (Vec<String>, i64) {
    let pods = world.pods(&app.name);
    let pods = pods.iter().map(|p| uid(p).to_owned()).collect();
    let generation = app
        .read(world.server())
        .and_then(|w| w["metadata"]["generation"].as_i64())
        .unwrap_or(0);
    (pods, generation)
}
