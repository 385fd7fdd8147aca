//! A simulated kubelet: what a kubelet does for attachable volumes, over any `kube::Client`.
//!
//! It registers its Node, CSINode and Lease, publishes `volumesInUse` at its 10 s status tick, keeps kubelet's side of
//! the attach/detach handshake, mounts with kubelet's back-off, unmounts before a pod's object goes, and shows on disk
//! what an agent on that host would see. Containers are a state and a pid, no more.
//!
//! Under a paused tokio clock it runs in virtual time; against a real API server it runs in real time.

mod gate;
mod host;
mod node;
mod ops;
mod pods;
mod show;
mod volumes;
mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Client;
use reattach_cloud_simulator::InstanceNo;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::cloud::{Ground, Power, SimulatedCloud};
use crate::kapi::{Tasks, lock};
use crate::rng::Rng;
use volumes::VolumeSpec;

/// Settings of a simulated node.
#[derive(Debug, Clone)]
pub struct KubeletConfig {
    /// Name of the Node.
    pub node: String,
    /// Instance ID at the cloud; also the CSI node ID.
    pub instance: String,
    /// `spec.providerID`.
    pub provider_id: String,
    /// CSI driver whose node plugin runs here.
    pub driver: String,
    /// Labels of the Node, besides the host name.
    pub labels: BTreeMap<String, String>,
    /// Attachable volumes, as CSINode reports it.
    pub max_volumes: u32,
    /// Where the host's files are shown; `None`: nowhere.
    pub host_root: Option<PathBuf>,
    /// Seed of boot IDs, durations and the phase of the status tick.
    pub seed: u64,
}

impl KubeletConfig {
    /// A Linode instance with Linode's driver.
    #[must_use]
    pub fn linode(node: &str, instance: u64, seed: u64) -> Self {
        Self::on(Ground::Linode, node, instance, seed)
    }

    /// An instance of this cloud with its driver.
    #[must_use]
    pub fn on(ground: Ground, node: &str, instance: u64, seed: u64) -> Self {
        Self {
            node: node.into(),
            instance: ground.instance(InstanceNo(instance)),
            provider_id: ground.provider_id(InstanceNo(instance)),
            driver: ground.driver().into(),
            labels: BTreeMap::new(),
            max_volumes: 8,
            host_root: None,
            seed,
        }
    }
}

/// The content of the disk after a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskAfter {
    /// Kubelet's state directory is kept.
    Kept,
    /// The disk was re-imaged.
    ReImaged,
}

/// A fault of `NodeStageVolume`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageFault {
    /// It answers `DeadlineExceeded`: kubelet counts the device as perhaps mounted.
    DeadlineExceeded,
    /// It never answers; kubelet's CSI time-out of 2 min ends it.
    Hang,
    /// A final error with this text.
    Internal(String),
}

/// Faults of the CSI node plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePluginFaults {
    /// Fault of `NodeStageVolume`.
    pub stage: Option<StageFault>,
    /// `NodeUnstageVolume` fails.
    pub unstage_fails: bool,
    /// The plugin is not registered with kubelet. Set on a running node, its driver leaves CSINode at the next status
    /// tick; set while the node is off, CSINode goes on naming it.
    pub unregistered: bool,
}

/// State that survives a reboot unless the disk is re-imaged.
#[derive(Debug, Clone, Default)]
struct Disk {
    /// Staging directories by volume handle.
    staged: BTreeMap<String, VolumeSpec>,
    /// Volume directories of pods: pod UID and volume handle.
    pod_dirs: BTreeMap<(String, String), VolumeSpec>,
    /// Pods that had a container: restart counts by UID.
    containers: BTreeMap<String, i64>,
}

struct Shared {
    config: KubeletConfig,
    client: Client,
    cloud: SimulatedCloud,
    clock: Clock,
    disk: Mutex<Disk>,
    faults: Mutex<NodePluginFaults>,
    cut: watch::Sender<bool>,
    is_cut: watch::Receiver<bool>,
    rng: Mutex<Rng>,
    boot: Mutex<String>,
    host: Mutex<Option<host::HostTree>>,
    /// A recycle is under way.
    recycled: AtomicBool,
}

/// A node that can be switched off, recycled and partitioned. Dropping the last clone ends it.
#[derive(Clone)]
pub struct SimKubelet {
    shared: Arc<Shared>,
    /// Not in `Shared`, which the tasks themselves hold.
    tasks: Arc<Tasks>,
}

impl SimKubelet {
    /// A node that is off.
    #[must_use]
    pub fn new(config: KubeletConfig, client: Client, cloud: SimulatedCloud, clock: Clock) -> Self {
        let (cut, is_cut) = watch::channel(false);
        let rng = Rng::new(config.seed, &config.node);
        let host = config.host_root.clone().map(host::HostTree::new);
        let shared = Shared {
            client: gate::gated(client, is_cut.clone()),
            is_cut,
            config,
            cloud,
            clock,
            disk: Mutex::default(),
            faults: Mutex::default(),
            cut,
            rng: Mutex::new(rng),
            boot: Mutex::default(),
            host: Mutex::new(host),
            recycled: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
            tasks: Arc::default(),
        }
    }

    /// Name of the Node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.shared.config.node
    }

    /// Instance ID at the cloud.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.shared.config.instance
    }

    /// The present boot ID; empty before the first boot.
    #[must_use]
    pub fn boot_id(&self) -> String {
        lock(&self.shared.boot).clone()
    }

    /// Boots the machine: a new boot ID, then kubelet. Does nothing while it runs.
    pub fn power_on(&self) {
        self.power_on_with(DiskAfter::Kept);
    }

    fn power_on_with(&self, disk: DiskAfter) {
        if !self.boot_id().is_empty() && self.is_on() {
            return;
        }
        if disk == DiskAfter::ReImaged {
            *lock(&self.shared.disk) = Disk::default();
        }
        let first = self.boot_id().is_empty();
        let boot = lock(&self.shared.rng).uuid();
        *lock(&self.shared.boot) = boot;
        self.shared.cloud.set_power(self.instance(), Power::On);
        self.tasks.spawn(worker::run(self.shared.clone(), first));
    }

    /// Whether the machine is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Cuts the power: everything in memory is gone, the disk stays.
    pub fn power_off(&self) {
        self.power_lost();
        self.shared.cloud.set_power(self.instance(), Power::Off);
    }

    /// As [`SimKubelet::power_off`], by the cloud's own doing: the cloud is not told.
    pub(crate) fn power_lost(&self) {
        self.tasks.abort_all();
        if let Some(host) = lock(&self.shared.host).as_mut() {
            host.clear();
        }
    }

    /// The cloud recycles the machine uncleanly; it is back `off_for` later, with the disk kept or re-imaged.
    pub async fn recycle(&self, disk: DiskAfter, off_for: Duration) {
        self.shared.recycled.store(true, Ordering::Relaxed);
        self.power_lost();
        self.shared.cloud.set_power(self.instance(), Power::Recycle);
        tokio::time::sleep(off_for).await;
        self.power_on_with(disk);
        self.shared.recycled.store(false, Ordering::Relaxed);
    }

    /// Whether a recycle of its own is under way.
    pub(crate) fn is_being_recycled(&self) -> bool {
        self.shared.recycled.load(Ordering::Relaxed)
    }

    /// Cuts (true) or restores the connection to the API server; pods run on.
    pub fn partition(&self, cut: bool) {
        self.shared.cut.send_replace(cut);
    }

    /// `client` as a program on this node has it: over the node's own connection, which [`SimKubelet::partition`] cuts.
    #[must_use]
    pub fn over_its_network(&self, client: Client) -> Client {
        gate::gated(client, self.shared.is_cut.clone())
    }

    /// The kernel hangs: nothing of the node answers any more, and the cloud sees nothing of it. Its machine keeps its
    /// power and its devices until the cloud shuts it down.
    pub fn hang(&self) {
        self.tasks.abort_all();
    }

    /// Sets the faults of the CSI node plugin.
    pub fn set_plugin_faults(&self, faults: NodePluginFaults) {
        *lock(&self.shared.faults) = faults;
    }
}
