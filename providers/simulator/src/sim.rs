//! The handle to a simulated cloud: what a test, a drill or the control API does with it while all is well, and what it
//! tells of itself. What can go wrong is in `trouble.rs`.

use crate::{
    clock::Clock,
    history::{HolderInterval, Pulled, Side},
    log::RequestRecord,
    model::{
        DetachBehaviour, Instance, InstanceNo, InstanceStatus, Job, JobAction, OpError, Snapshot, Timings,
        Volume, VolumeNo,
    },
    state::State,
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// A simulated cloud. Clones share one state.
#[derive(Clone)]
pub struct CloudSim {
    state: Arc<Mutex<State>>,
    clock: Clock,
}

impl fmt::Debug for CloudSim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudSim").finish_non_exhaustive()
    }
}

/// What to create an instance from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewInstance {
    /// Its number; `None` takes the next free one.
    #[serde(default)]
    pub id: Option<InstanceNo>,
    /// Its name.
    pub label: String,
    /// Its region.
    #[serde(default = "default_region")]
    pub region: String,
    /// Whether the cloud boots it again after an unclean stop.
    #[serde(default = "yes")]
    pub watchdog_enabled: bool,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The LKE cluster that it is a node of.
    #[serde(default)]
    pub lke_cluster_id: Option<u64>,
}

/// What to create a volume from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVolume {
    /// Its number; `None` takes the next free one.
    #[serde(default)]
    pub id: Option<VolumeNo>,
    /// Its name, at most 32 characters as at Linode.
    pub label: String,
    /// Its region.
    #[serde(default = "default_region")]
    pub region: String,
    /// Size in GiB.
    #[serde(default = "ten")]
    pub size_gib: u64,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

fn default_region() -> String {
    "eu-central".to_owned()
}

fn yes() -> bool {
    true
}

fn ten() -> u64 {
    10
}

impl NewInstance {
    /// A running instance with a watchdog, in the default region `eu-central`.
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            id: None,
            label: label.into(),
            region: default_region(),
            watchdog_enabled: true,
            tags: BTreeMap::new(),
            lke_cluster_id: None,
        }
    }

    /// The same with this number.
    pub fn with_id(mut self, id: u64) -> Self {
        self.id = Some(InstanceNo(id));
        self
    }

    /// The same with these tags besides.
    pub fn with_tags<K: Into<String>, V: Into<String>>(
        mut self,
        tags: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.tags.extend(tags.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }
}

impl NewVolume {
    /// An unattached volume of 10 GiB in the default region `eu-central`.
    pub fn new(label: impl Into<String>) -> Self {
        Self { id: None, label: label.into(), region: default_region(), size_gib: 10, tags: BTreeMap::new() }
    }

    /// The same with this number.
    pub fn with_id(mut self, id: u64) -> Self {
        self.id = Some(VolumeNo(id));
        self
    }

    /// The same with these tags besides.
    pub fn with_tags<K: Into<String>, V: Into<String>>(
        mut self,
        tags: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.tags.extend(tags.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }
}

impl CloudSim {
    /// An empty cloud on this clock.
    pub fn new(clock: Clock) -> Self {
        Self { state: Arc::new(Mutex::new(State::default())), clock }
    }

    /// The same with the seed from which chance faults are drawn.
    pub fn with_seed(self, seed: u64) -> Self {
        self.with(|state, _| state.random = seed);
        self
    }

    /// Runs `work` on the state as it is now.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State, Timestamp) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = state.advance((self.clock)());
        work(&mut state, now)
    }

    /// The simulator's present moment.
    pub fn now(&self) -> Timestamp {
        self.with(|_, now| now)
    }

    /// Sets how long the cloud's work takes from now on; jobs under way keep their end.
    pub fn set_timings(&self, timings: Timings) {
        self.with(|state, _| state.timings = timings);
    }

    /// As [`CloudSim::set_timings`], for the boots, shutdowns and other power jobs of one instance.
    pub fn set_power_timings(&self, instance: InstanceNo, timings: Timings) {
        self.with(|state, _| {
            state.power_timings.insert(instance, timings);
        });
    }

    /// Creates a running instance. Errors with [`OpError::Taken`] when the number is in use.
    pub fn create_instance(&self, new: NewInstance) -> Result<InstanceNo, OpError> {
        self.with(|state, now| {
            let id = new.id.unwrap_or_else(|| InstanceNo(state.next_number()));
            if state.view.instances.contains_key(&id) {
                return Err(OpError::Taken(format!("instance number {id}")));
            }
            state.reserve_number(id.0);
            let instance = Instance {
                id,
                label: new.label,
                region: new.region,
                status: InstanceStatus::Running,
                watchdog_enabled: new.watchdog_enabled,
                boots: 1,
                tags: new.tags,
                lke_cluster_id: new.lke_cluster_id,
                created: now,
                updated: now,
            };
            state.history.powered(id, Some(InstanceStatus::Running), now);
            state.view.instances.insert(id, instance);
            Ok(id)
        })
    }

    /// Creates an active, unattached volume. Errors with [`OpError::Taken`] when number or label is in use.
    pub fn create_volume(&self, new: NewVolume) -> Result<VolumeNo, OpError> {
        self.with(|state, now| {
            let id = new.id.unwrap_or_else(|| VolumeNo(state.next_number()));
            if state.view.volumes.contains_key(&id) {
                return Err(OpError::Taken(format!("volume number {id}")));
            }
            if state.view.volumes.values().any(|v| v.label == new.label) {
                return Err(OpError::Taken(format!("volume label {}", new.label)));
            }
            state.reserve_number(id.0);
            let volume = Volume {
                id,
                label: new.label,
                size_gib: new.size_gib,
                region: new.region,
                holder: None,
                status: "active".to_owned(),
                locks: Vec::new(),
                locked: None,
                busy_until: None,
                io_ready: false,
                persist_across_boots: false,
                detach: DetachBehaviour::Normal,
                tags: new.tags,
                attached_at: None,
                also_attached: BTreeSet::new(),
                created: now,
                updated: now,
            };
            state.view.volumes.insert(id, volume);
            Ok(id)
        })
    }

    /// Replaces the tags of a volume.
    pub fn set_volume_tags(&self, volume: VolumeNo, tags: BTreeMap<String, String>) -> Result<(), OpError> {
        self.with(|state, now| {
            let found = state.volume_mut(volume)?;
            (found.tags, found.updated) = (tags, now);
            Ok(())
        })
    }

    /// Replaces the tags of an instance; the LKE cluster that it is a node of stays.
    pub fn set_instance_tags(
        &self,
        instance: InstanceNo,
        tags: BTreeMap<String, String>,
    ) -> Result<(), OpError> {
        self.with(|state, now| {
            let found = state.instance_mut(instance)?;
            (found.tags, found.updated) = (tags, now);
            Ok(())
        })
    }

    /// Makes an instance a node of this LKE cluster, or of none.
    pub fn set_lke_cluster(&self, instance: InstanceNo, number: Option<u64>) -> Result<(), OpError> {
        self.with(|state, now| {
            let found = state.instance_mut(instance)?;
            (found.lke_cluster_id, found.updated) = (number, now);
            Ok(())
        })
    }

    /// Deletes a volume that nobody holds.
    pub fn delete_volume(&self, volume: VolumeNo) -> Result<(), OpError> {
        self.with(|state, _| match state.volume(volume)?.holder {
            Some(holder) => Err(OpError::AlreadyAttached { volume, holder }),
            None => {
                state.view.volumes.remove(&volume);
                Ok(())
            }
        })
    }

    /// Attaches as Linode's CSI driver does: not across boots.
    pub fn attach(&self, volume: VolumeNo, instance: InstanceNo) -> Result<Job, OpError> {
        self.with(|state, now| state.attach(volume, instance, false, now))
    }

    /// Attaches, saying whether the attachment survives a reboot.
    pub fn attach_with(&self, volume: VolumeNo, instance: InstanceNo, persist: bool) -> Result<Job, OpError> {
        self.with(|state, now| state.attach(volume, instance, persist, now))
    }

    /// Attaches and finishes at once, for setting a scene.
    pub fn attach_now(&self, volume: VolumeNo, instance: InstanceNo) -> Result<(), OpError> {
        self.attach_now_with(volume, instance, false)
    }

    /// Attaches and finishes at once, saying whether the attachment survives a reboot. EBS attachments do.
    pub fn attach_now_with(
        &self,
        volume: VolumeNo,
        instance: InstanceNo,
        persist: bool,
    ) -> Result<(), OpError> {
        self.with(|state, now| {
            let attach_ms = std::mem::take(&mut state.timings.attach_ms);
            let accepted = state.attach(volume, instance, persist, now);
            state.timings.attach_ms = attach_ms;
            accepted?;
            state.advance(now);
            Ok(())
        })
    }

    /// Detaches from whoever holds the volume. `Ok(None)`: nobody did, and that counts as success.
    pub fn detach(&self, volume: VolumeNo) -> Result<Option<Job>, OpError> {
        self.with(|state, now| state.detach(volume, now))
    }

    /// Detaches from this instance, or from the only holder, as EBS does: it waits for a running guest that uses the device,
    /// unless it is forced.
    ///
    /// # Errors
    /// Nobody, or another instance, has the volume; or it is refused.
    pub fn detach_from(
        &self,
        volume: VolumeNo,
        instance: Option<InstanceNo>,
        force: bool,
    ) -> Result<Job, OpError> {
        self.with(|state, now| state.detach_from(volume, instance, force, now))
    }

    /// Boots an instance that is off.
    pub fn boot(&self, instance: InstanceNo) -> Result<Job, OpError> {
        self.with(|state, now| state.power(instance, JobAction::Boot, now))
    }

    /// Shuts a running instance down in order.
    pub fn shutdown(&self, instance: InstanceNo) -> Result<Job, OpError> {
        self.with(|state, now| state.power(instance, JobAction::Shutdown, now))
    }

    /// Reboots a running instance in order. Attachments that do not persist vanish.
    pub fn reboot(&self, instance: InstanceNo) -> Result<Job, OpError> {
        self.with(|state, now| state.power(instance, JobAction::Reboot, now))
    }

    /// Power-cycles an instance uncleanly: its guest loses every device, the API still names it as the holder.
    pub fn recycle(&self, instance: InstanceNo) -> Result<Job, OpError> {
        self.with(|state, now| state.recycle(instance, now))
    }

    /// Cuts an instance's power. With a watchdog, the cloud boots it again after a while, unless it was off already.
    pub fn kill(&self, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| state.kill(instance, now))
    }

    /// Deletes an instance and detaches its volumes.
    pub fn delete_instance(&self, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| state.delete_instance(instance, now))
    }

    /// Tells that a guest has the device mounted or open, or no longer. A device taken from a running guest in use
    /// is recorded in [`CloudSim::pulled`]. Does nothing when the guest does not have the device.
    pub fn set_in_use(&self, instance: InstanceNo, volume: VolumeNo, in_use: bool) {
        self.with(|state, now| {
            let has = state.devices.get(&instance).is_some_and(|d| d.contains(&volume));
            if in_use && has {
                state.in_use.insert((instance, volume));
                state.history.gained(volume, instance, Side::Writer, now);
            } else {
                state.in_use.remove(&(instance, volume));
                state.history.lost(volume, instance, Side::Writer, now);
                state.guest_released(volume, instance, now);
            }
        });
    }

    /// Whether the guest has the device now.
    pub fn guest_has_device(&self, instance: InstanceNo, volume: VolumeNo) -> bool {
        self.with(|state, _| state.devices.get(&instance).is_some_and(|d| d.contains(&volume)))
    }

    /// The volumes whose devices the guest has now.
    pub fn guest_devices(&self, instance: InstanceNo) -> Vec<VolumeNo> {
        self.with(|state, _| state.devices.get(&instance).into_iter().flatten().copied().collect())
    }

    /// An instance as it really is, whatever reads of the API answer.
    pub fn instance(&self, instance: InstanceNo) -> Option<Instance> {
        self.with(|state, _| state.view.instances.get(&instance).cloned())
    }

    /// A volume as it really is, whatever reads of the API answer.
    pub fn volume(&self, volume: VolumeNo) -> Option<Volume> {
        self.with(|state, _| state.view.volumes.get(&volume).cloned())
    }

    /// All instances, by number.
    pub fn instances(&self) -> Vec<Instance> {
        self.with(|state, _| state.view.instances.values().cloned().collect())
    }

    /// All volumes, by number.
    pub fn volumes(&self) -> Vec<Volume> {
        self.with(|state, _| state.view.volumes.values().cloned().collect())
    }

    /// The whole job history, oldest first.
    pub fn jobs(&self) -> Vec<Job> {
        self.with(|state, _| state.view.jobs.values().cloned().collect())
    }

    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.with(|state, _| state.view.snapshots.values().cloned().collect())
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.with(|state, _| state.log.clone())
    }

    /// When which guests had the volume's device: the canary for "never two holders".
    pub fn holder_intervals(&self, volume: VolumeNo) -> Vec<HolderInterval> {
        self.with(|state, _| state.history.of(volume, Side::Guest))
    }

    /// When which guests had the volume mounted or open.
    pub fn writer_intervals(&self, volume: VolumeNo) -> Vec<HolderInterval> {
        self.with(|state, _| state.history.of(volume, Side::Writer))
    }

    /// The power of an instance as it really was at a moment, whatever reads of the API answered; none while it did not
    /// exist.
    pub fn power_at(&self, instance: InstanceNo, at: Timestamp) -> Option<InstanceStatus> {
        self.with(|state, _| state.history.power_at(instance, at))
    }

    /// When the API named which holder of the volume.
    pub fn api_holder_intervals(&self, volume: VolumeNo) -> Vec<HolderInterval> {
        self.with(|state, _| state.history.of(volume, Side::Api))
    }

    /// The greatest number of guests that had the device at one moment.
    pub fn max_guest_holders(&self, volume: VolumeNo) -> usize {
        self.with(|state, _| state.history.max_holders(volume, &[Side::Guest]))
    }

    /// The greatest number of different instances that held the volume at one moment, by the API's or a guest's word.
    pub fn max_holders(&self, volume: VolumeNo) -> usize {
        self.with(|state, _| state.history.max_holders(volume, &[Side::Api, Side::Guest]))
    }

    /// The greatest number of guests that had the volume mounted or open at one moment.
    pub fn max_writers(&self, volume: VolumeNo) -> usize {
        self.with(|state, _| state.history.max_holders(volume, &[Side::Writer]))
    }

    /// Devices that were taken from running guests that used them. Empty in a good run.
    pub fn pulled(&self) -> Vec<Pulled> {
        self.with(|state, _| state.history.pulled.clone())
    }
}
