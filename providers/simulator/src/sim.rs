//! The handle to a simulated cloud, for tests, the drill and the control API: creates, changes and reads objects, and reads
//! the history. Faults are in `inject.rs`.

use crate::{
    clock::Clock,
    history::{HoldSource, HolderInterval, Pulled},
    log::RequestRecord,
    model::{
        DetachBehaviour, Instance, InstanceNo, InstanceStatus, Job, JobAction, OpError, Snapshot,
        Timings, Volume, VolumeNo,
    },
    state::{DeadHost, State},
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

/// The settings of a new instance.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewInstance {
    /// Number. `None`: the next free one.
    #[serde(default)]
    pub id: Option<InstanceNo>,
    /// Label of the instance.
    pub label: String,
    /// Region or zone.
    #[serde(default = "default_region")]
    pub region: String,
    /// Whether the cloud boots the instance again after an unclean stop.
    #[serde(default = "yes")]
    pub watchdog_enabled: bool,
    /// Tags, as key and value.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// LKE cluster that the instance is a node of.
    #[serde(default)]
    pub lke_cluster_id: Option<u64>,
}

/// The settings of a new volume.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVolume {
    /// Number. `None`: the next free one.
    #[serde(default)]
    pub id: Option<VolumeNo>,
    /// Label of the volume, at most 32 characters as at Linode.
    pub label: String,
    /// Region or zone.
    #[serde(default = "default_region")]
    pub region: String,
    /// Size in GiB.
    #[serde(default = "ten")]
    pub size_gib: u64,
    /// Tags, as key and value.
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

    /// Sets the number.
    pub fn with_id(mut self, id: u64) -> Self {
        self.id = Some(InstanceNo(id));
        self
    }

    /// Adds these tags.
    pub fn with_tags<K: Into<String>, V: Into<String>>(
        mut self,
        tags: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.tags.extend(
            tags.into_iter()
                .map(|(key, value)| (key.into(), value.into())),
        );
        self
    }
}

impl NewVolume {
    /// An unattached volume of 10 GiB in the default region `eu-central`.
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            id: None,
            label: label.into(),
            region: default_region(),
            size_gib: 10,
            tags: BTreeMap::new(),
        }
    }

    /// Sets the number.
    pub fn with_id(mut self, id: u64) -> Self {
        self.id = Some(VolumeNo(id));
        self
    }

    /// Adds these tags.
    pub fn with_tags<K: Into<String>, V: Into<String>>(
        mut self,
        tags: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.tags.extend(
            tags.into_iter()
                .map(|(key, value)| (key.into(), value.into())),
        );
        self
    }
}

impl CloudSim {
    /// An empty cloud on this clock.
    pub fn new(clock: Clock) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::default())),
            clock,
        }
    }

    /// Sets the seed from which faults with a chance are drawn.
    pub fn with_seed(self, seed: u64) -> Self {
        self.with(|state, _| state.random = seed);
        self
    }

    /// Runs `work` on the present state.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State, Timestamp) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = state.advance((self.clock)());
        work(&mut state, now)
    }

    /// Returns the simulator's present time.
    pub fn now(&self) -> Timestamp {
        self.with(|_, now| now)
    }

    /// Sets the durations of jobs that start from now on. Jobs that are under way keep their end.
    pub fn set_timings(&self, timings: Timings) {
        self.with(|state, _| state.timings = timings);
    }

    /// Sets the durations of the power jobs of one instance, as [`CloudSim::set_timings`].
    pub fn set_power_timings(&self, instance: InstanceNo, timings: Timings) {
        self.with(|state, _| {
            state.power_timings.insert(instance, timings);
        });
    }

    /// Creates a running instance.
    ///
    /// # Errors
    /// [`OpError::Taken`] when the number is in use.
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
            state
                .history
                .powered(id, Some(InstanceStatus::Running), now);
            state.view.instances.insert(id, instance);
            Ok(id)
        })
    }

    /// Creates an active, unattached volume.
    ///
    /// # Errors
    /// [`OpError::Taken`] when number or label is in use.
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
    pub fn set_volume_tags(
        &self,
        volume: VolumeNo,
        tags: BTreeMap<String, String>,
    ) -> Result<(), OpError> {
        self.with(|state, now| {
            let found = state.volume_mut(volume)?;
            (found.tags, found.updated) = (tags, now);
            Ok(())
        })
    }

    /// Replaces the tags of an instance. Its LKE cluster does not change.
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

    /// Sets the LKE cluster that an instance is a node of.
    pub fn set_lke_cluster(
        &self,
        instance: InstanceNo,
        number: Option<u64>,
    ) -> Result<(), OpError> {
        self.with(|state, now| {
            let found = state.instance_mut(instance)?;
            (found.lke_cluster_id, found.updated) = (number, now);
            Ok(())
        })
    }

    /// Deletes an unattached volume.
    pub fn delete_volume(&self, volume: VolumeNo) -> Result<(), OpError> {
        self.with(|state, _| match state.volume(volume)?.holder {
            Some(holder) => Err(OpError::AlreadyAttached { volume, holder }),
            None => {
                state.view.volumes.remove(&volume);
                Ok(())
            }
        })
    }

    /// Attaches as Linode's CSI driver does: the attachment ends with a reboot.
    pub fn attach(&self, volume: VolumeNo, instance: InstanceNo) -> Result<Job, OpError> {
        self.with(|state, now| state.attach(volume, instance, false, now))
    }

    /// Attaches. `persist`: the attachment survives a reboot.
    pub fn attach_with(
        &self,
        volume: VolumeNo,
        instance: InstanceNo,
        persist: bool,
    ) -> Result<Job, OpError> {
        self.with(|state, now| state.attach(volume, instance, persist, now))
    }

    /// Attaches without delay, for the setup of a test.
    pub fn attach_now(&self, volume: VolumeNo, instance: InstanceNo) -> Result<(), OpError> {
        self.attach_now_with(volume, instance, false)
    }

    /// Attaches without delay. `persist`: the attachment survives a reboot, as those of EBS do.
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

    /// Detaches from the present holder. `Ok(None)`: the volume had no holder, and the detach counts as a success.
    pub fn detach(&self, volume: VolumeNo) -> Result<Option<Job>, OpError> {
        self.with(|state, now| state.detach(volume, now))
    }

    /// Detaches from this instance, or from the only holder, as EBS does: unless it is forced, the detach waits while a
    /// running guest uses the device.
    ///
    /// # Errors
    /// The instance does not have the volume, or the detach is refused.
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

    /// Shuts a running instance down cleanly.
    pub fn shutdown(&self, instance: InstanceNo) -> Result<Job, OpError> {
        self.with(|state, now| state.power(instance, JobAction::Shutdown, now))
    }

    /// Reboots a running instance cleanly. Attachments that do not persist end.
    pub fn reboot(&self, instance: InstanceNo) -> Result<Job, OpError> {
        self.with(|state, now| state.power(instance, JobAction::Reboot, now))
    }

    /// Power-cycles an instance uncleanly: its guest loses every device, and the API still names it as the holder.
    pub fn recycle(&self, instance: InstanceNo) -> Result<Job, OpError> {
        self.with(|state, now| state.recycle(instance, now))
    }

    /// Cuts the power of a running instance. A watchdog boots it again after [`Timings::watchdog_ms`].
    pub fn kill(&self, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| state.kill(instance, now))
    }

    /// Sets what the API shows of instances whose power is cut from now on.
    pub fn set_dead_host(&self, dead_host: DeadHost) {
        self.with(|state, _| state.dead_host = dead_host);
    }

    /// Sets whether the watchdog boots an instance that lost its power earlier, once the watchdog is switched on.
    pub fn set_watchdog_looks_back(&self, looks_back: bool) {
        self.with(|state, _| state.watchdog_looks_back = looks_back);
    }

    /// Brings the host of an instance that lost its power back. The watchdog boots the instance, if it is on.
    pub fn host_is_back(&self, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| state.host_is_back(instance, now))
    }

    /// Switches the watchdog of an instance, as a person would.
    pub fn set_watchdog(&self, instance: InstanceNo, on: bool) -> Result<(), OpError> {
        self.with(|state, now| state.set_watchdog(instance, on, now))
    }

    /// Deletes an instance and detaches its volumes.
    pub fn delete_instance(&self, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| state.delete_instance(instance, now))
    }

    /// Sets whether a guest has the device mounted or open. Taking such a device from a running guest is recorded in
    /// [`CloudSim::pulled`]. Without effect when the guest does not have the device.
    pub fn set_in_use(&self, instance: InstanceNo, volume: VolumeNo, in_use: bool) {
        self.with(|state, now| {
            let has = state
                .devices
                .get(&instance)
                .is_some_and(|d| d.contains(&volume));
            if in_use && has {
                state.in_use.insert((instance, volume));
                state
                    .history
                    .gained(volume, instance, HoldSource::Writer, now);
            } else {
                state.in_use.remove(&(instance, volume));
                state
                    .history
                    .lost(volume, instance, HoldSource::Writer, now);
                state.guest_released(volume, instance, now);
            }
        });
    }

    /// Returns whether the guest has the device now.
    pub fn guest_has_device(&self, instance: InstanceNo, volume: VolumeNo) -> bool {
        self.with(|state, _| {
            state
                .devices
                .get(&instance)
                .is_some_and(|d| d.contains(&volume))
        })
    }

    /// Returns the volumes whose devices the guest has now.
    pub fn guest_devices(&self, instance: InstanceNo) -> Vec<VolumeNo> {
        self.with(|state, _| {
            state
                .devices
                .get(&instance)
                .into_iter()
                .flatten()
                .copied()
                .collect()
        })
    }

    /// Returns the real state of an instance, independent of what reads of the API answer.
    pub fn instance(&self, instance: InstanceNo) -> Option<Instance> {
        self.with(|state, _| state.view.instances.get(&instance).cloned())
    }

    /// Returns the real state of a volume, independent of what reads of the API answer.
    pub fn volume(&self, volume: VolumeNo) -> Option<Volume> {
        self.with(|state, _| state.view.volumes.get(&volume).cloned())
    }

    /// Returns all instances, by number.
    pub fn instances(&self) -> Vec<Instance> {
        self.with(|state, _| state.view.instances.values().cloned().collect())
    }

    /// Returns all volumes, by number.
    pub fn volumes(&self) -> Vec<Volume> {
        self.with(|state, _| state.view.volumes.values().cloned().collect())
    }

    /// Returns the whole job history, oldest first.
    pub fn jobs(&self) -> Vec<Job> {
        self.with(|state, _| state.view.jobs.values().cloned().collect())
    }

    /// Returns all snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.with(|state, _| state.view.snapshots.values().cloned().collect())
    }

    /// Returns all requests so far.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.with(|state, _| state.log.clone())
    }

    /// Returns the intervals in which guests had the volume's device. The check for "never two holders" reads these.
    pub fn holder_intervals(&self, volume: VolumeNo) -> Vec<HolderInterval> {
        self.with(|state, _| state.history.of(volume, HoldSource::Guest))
    }

    /// Returns the intervals in which guests had the volume mounted or open.
    pub fn writer_intervals(&self, volume: VolumeNo) -> Vec<HolderInterval> {
        self.with(|state, _| state.history.of(volume, HoldSource::Writer))
    }

    /// Returns the real power state of an instance at a time, independent of what reads of the API answered. `None`: the
    /// instance did not exist.
    pub fn power_at(&self, instance: InstanceNo, at: Timestamp) -> Option<InstanceStatus> {
        self.with(|state, _| state.history.power_at(instance, at))
    }

    /// Returns the intervals in which the API named a holder of the volume.
    pub fn api_holder_intervals(&self, volume: VolumeNo) -> Vec<HolderInterval> {
        self.with(|state, _| state.history.of(volume, HoldSource::Api))
    }

    /// Returns the greatest number of guests that had the device at one time.
    pub fn max_guest_holders(&self, volume: VolumeNo) -> usize {
        self.with(|state, _| state.history.max_holders(volume, &[HoldSource::Guest]))
    }

    /// Returns the greatest number of instances that held the volume at one time, at the API or in their guests.
    pub fn max_holders(&self, volume: VolumeNo) -> usize {
        self.with(|state, _| {
            state
                .history
                .max_holders(volume, &[HoldSource::Api, HoldSource::Guest])
        })
    }

    /// Returns the greatest number of guests that had the volume mounted or open at one time.
    pub fn max_writers(&self, volume: VolumeNo) -> usize {
        self.with(|state, _| state.history.max_holders(volume, &[HoldSource::Writer]))
    }

    /// Returns the devices that were taken from running guests that used them. Empty unless something went wrong.
    pub fn pulled(&self) -> Vec<Pulled> {
        self.with(|state, _| state.history.pulled.clone())
    }
}
