//! The processes of one control plane: started, awaited, stopped.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    Component, CsiFaults, HarnessError, Options,
    command_line::{Context, command_line},
    csi::Control,
    ports::Ports,
    process::{Reaper, Running},
    work_dir::WorkDir,
};

/// How long a component may take to become ready: some seconds on an idle machine, more on a loaded one.
const READY: Duration = Duration::from_secs(120);
/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(25);
/// How many lines of a log an error shows.
const TAIL: usize = 15;

/// Waits until `look` returns something, and gives up after `limit`.
///
/// # Errors
/// [`HarnessError::Timeout`], which names `what`.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> Result<T, HarnessError> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if Instant::now() >= end {
            return Err(HarnessError::Timeout {
                what: what.to_owned(),
                seconds: limit.as_secs(),
            });
        }
        sleep(LOOK).await;
    }
}

/// Fields in the order in which they must go: the processes, their last resort, then ports and folder.
pub(crate) struct Processes {
    running: Mutex<BTreeMap<Component, Running>>,
    reaper: Reaper,
    pub ports: Ports,
    pub dir: WorkDir,
    pub options: Options,
    binaries: PathBuf,
    faults: Mutex<CsiFaults>,
    /// Locked while the switches change, so that two concurrent changes do not interleave.
    moving: tokio::sync::Mutex<()>,
    http: reqwest::Client,
    /// Whether external-attacher was stopped with the CSI controller and is to start with it.
    attacher_follows: AtomicBool,
}

impl Processes {
    /// Prepares folder, ports and reaper; starts nothing yet.
    pub fn prepare(options: Options, binaries: PathBuf) -> Result<Self, HarnessError> {
        // The components' certificates are self-signed, and all this client reads of them is their health.
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_danger_accept_invalid_certs(true)
            .timeout(Duration::from_secs(10))
            .build()
            .map_err(|e| HarnessError::Control {
                reason: e.to_string(),
            })?;
        let faults = options
            .csi
            .as_ref()
            .map(|csi| csi.faults.clone())
            .unwrap_or_default();
        Ok(Self {
            running: Mutex::default(),
            reaper: Reaper::start()?,
            ports: Ports::reserve()?,
            dir: WorkDir::create()?,
            options,
            binaries,
            faults: Mutex::new(faults),
            moving: tokio::sync::Mutex::default(),
            http,
            attacher_follows: AtomicBool::new(false),
        })
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Component, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, CsiFaults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a component's process; see [`Processes::ready`] for the rest.
    pub fn spawn(&self, component: Component) -> Result<(), HarnessError> {
        if !self.options.want(component) {
            return Err(HarnessError::WrongState {
                component,
                state: "not part of these options",
            });
        }
        let mut running = self.running();
        // One that ended by itself may be started again.
        if running
            .get_mut(&component)
            .is_some_and(|process| process.ended().is_none())
        {
            return Err(HarnessError::WrongState {
                component,
                state: "running already",
            });
        }
        if component == Component::CsiController {
            // The old process' address must not be taken for the new one's.
            let file = self.dir.csi_control_address();
            if file.exists() {
                fs::remove_file(&file).map_err(HarnessError::io(format!(
                    "cannot remove {}",
                    file.display()
                )))?;
            }
        }
        let faults = self.faults().clone();
        let context = Context {
            options: &self.options,
            dir: &self.dir,
            ports: &self.ports,
            faults,
        };
        let (arguments, environment) = command_line(component, &context);
        let process = Running::spawn(
            &self.binaries.join(component.name()),
            &arguments,
            &environment,
            self.dir.path(),
            &self.dir.log(component),
            &self.reaper,
        )?;
        let ended = running.insert(component, process).map(|old| old.id());
        ended.map_or(Ok(()), |group| self.reaper.forget(group))
    }

    /// Waits until the component says itself that it is ready.
    pub async fn ready(&self, component: Component) -> Result<(), HarnessError> {
        let end = Instant::now() + READY;
        loop {
            let last = match self.health(component).await {
                Ok(()) => return Ok(()),
                Err(last) => last,
            };
            let log = self.dir.log(component);
            let ended = match self.running().get_mut(&component) {
                Some(process) => process.ended(),
                None => {
                    return Err(HarnessError::WrongState {
                        component,
                        state: "stopped",
                    });
                }
            };
            if let Some(status) = ended {
                let tail = self.dir.log_tail(component, TAIL);
                return Err(HarnessError::Died {
                    component,
                    status,
                    log,
                    tail,
                });
            }
            if Instant::now() >= end {
                let (seconds, tail) = (READY.as_secs(), self.dir.log_tail(component, TAIL));
                return Err(HarnessError::NotReady {
                    component,
                    seconds,
                    last,
                    log,
                    tail,
                });
            }
            sleep(LOOK).await;
        }
    }

    /// One look; the error is what to show when no better answer comes.
    async fn health(&self, component: Component) -> Result<(), String> {
        let url = match component {
            Component::Etcd => format!("{}/health", self.ports.etcd_url()),
            Component::ApiServer => format!("{}/readyz", self.ports.api_server_url()),
            Component::ControllerManager => {
                format!(
                    "https://127.0.0.1:{}/healthz",
                    self.ports.controller_manager()
                )
            }
            Component::Scheduler => format!("https://127.0.0.1:{}/healthz", self.ports.scheduler()),
            Component::CsiController => {
                return self.control()?.healthy().await.map_err(|e| e.to_string());
            }
            // It has no endpoint of its own by default, and works as soon as it reaches the CSI controller.
            Component::CsiAttacher => return Ok(()),
        };
        match self.http.get(url).send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("it answers {}", answer.status())),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Starts a component and waits for it; see [`Processes::stop`] for external-attacher.
    pub async fn start(&self, component: Component) -> Result<(), HarnessError> {
        self.spawn(component)?;
        self.ready(component).await?;
        let follower = Component::CsiAttacher;
        let bereft = component == Component::CsiController
            && self.attacher_follows.swap(false, Ordering::Relaxed);
        if bereft && !self.running().contains_key(&follower) {
            self.spawn(follower)
        } else {
            Ok(())
        }
    }

    /// Kills the component as a power cut would and waits until it is gone. external-attacher ends itself within a
    /// second of losing the CSI controller, and in a cluster its kubelet starts it again with it; here it goes at once
    /// and comes back with the CSI controller, so that no test depends on that second.
    pub fn stop(&self, component: Component) -> Result<(), HarnessError> {
        self.kill(component)?;
        let follower = Component::CsiAttacher;
        if component == Component::CsiController && self.running().contains_key(&follower) {
            self.kill(follower)?;
            self.attacher_follows.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn kill(&self, component: Component) -> Result<(), HarnessError> {
        let Some(process) = self.running().remove(&component) else {
            return Err(HarnessError::WrongState {
                component,
                state: "not running",
            });
        };
        let group = process.id();
        drop(process);
        self.reaper.forget(group)
    }

    fn control(&self) -> Result<Control, String> {
        Control::find(&self.dir.csi_control_address(), self.http.clone())
            .ok_or_else(|| "the CSI controller does not serve yet".to_owned())
    }

    /// The control endpoint of a CSI controller that runs.
    pub fn csi(&self) -> Result<Control, HarnessError> {
        let component = Component::CsiController;
        if !self.running().contains_key(&component) {
            return Err(HarnessError::WrongState {
                component,
                state: "not running",
            });
        }
        self.control()
            .map_err(|reason| HarnessError::Control { reason })
    }

    /// Moves the switches, and remembers them for the next start.
    pub async fn set_csi_faults(
        &self,
        change: impl FnOnce(&mut CsiFaults),
    ) -> Result<(), HarnessError> {
        let _turn = self.moving.lock().await;
        let faults = {
            let mut faults = self.faults();
            change(&mut faults);
            faults.clone()
        };
        if self.running().contains_key(&Component::CsiController) {
            self.csi()?.set_faults(&faults).await?;
        }
        Ok(())
    }
}
