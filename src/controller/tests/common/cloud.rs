//! A cloud whose answers a test sets, and which notes what it is ordered to do.

use futures::future::{BoxFuture, FutureExt, ready};
use jiff::Timestamp;
use reattach_core::cloud::{
    CloudInstance, CloudJob, CloudScope, CloudSnapshot, CloudVolume, DeviceIdentity, InstanceState,
    PowerFacts, SnapshotState, VolumeState,
};
use reattach_core::ids::{DriverName, InstanceId, VolumeHandle, VolumeId};
use reattach_provider_api::{
    Capabilities, DetachOutcome, DetachRequest, EffectError, ForceDetachRequest, HandleError,
    Lookup, PowerOffRequest, PowerOutcome, PreflightReport, Provider, ProviderError,
    SnapshotRequest,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What it answers.
pub struct Answers {
    /// Who has the volume.
    pub holders: Vec<InstanceId>,
    /// The volume's state.
    pub volume: VolumeState,
    /// The state of every instance.
    pub instance: InstanceState,
    /// The answer to an order about power.
    pub power: Result<PowerOutcome, EffectError>,
    /// Why it makes no snapshot. None: it begins one.
    pub snapshot: Option<EffectError>,
    /// What it can do.
    pub capabilities: Capabilities,
    /// What it was ordered to do.
    pub orders: Vec<String>,
}

/// The cloud. Clones are the same cloud.
#[derive(Clone)]
pub struct TestCloud(pub Arc<Mutex<Answers>>);

impl TestCloud {
    /// One volume, held by this instance, which runs.
    pub fn held_by(instance: &str) -> Self {
        Self(Arc::new(Mutex::new(Answers {
            holders: vec![InstanceId::from(instance)],
            volume: VolumeState::Active,
            instance: InstanceState::Running,
            power: Ok(PowerOutcome::Accepted),
            snapshot: None,
            capabilities: Capabilities {
                can_fence: true,
                ..Capabilities::default()
            },
            orders: Vec::new(),
        })))
    }

    pub fn set(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.0.lock().unwrap());
    }

    pub fn orders(&self) -> Vec<String> {
        self.0.lock().unwrap().orders.clone()
    }

    fn order(&self, what: String) -> Result<PowerOutcome, EffectError> {
        let mut answers = self.0.lock().unwrap();
        answers.orders.push(what);
        answers.power.clone()
    }
}

impl Provider for TestCloud {
    fn name(&self) -> &'static str {
        "test"
    }

    fn capabilities(&self) -> Capabilities {
        self.0.lock().unwrap().capabilities
    }

    fn resolve_volume(
        &self,
        _driver: &DriverName,
        handle: &VolumeHandle,
    ) -> Option<Result<VolumeId, HandleError>> {
        Some(Ok(VolumeId::from(handle.as_str())))
    }

    fn canonical_handle(&self, volume: &CloudVolume) -> VolumeHandle {
        VolumeHandle::from(volume.id.as_str())
    }

    fn resolve_instance(&self, provider_id: &str) -> Option<Result<InstanceId, HandleError>> {
        provider_id
            .strip_prefix("linode://")
            .map(|id| Ok(InstanceId::from(id)))
    }

    fn describe_volumes<'a>(
        &'a self,
        ids: &'a [VolumeId],
    ) -> BoxFuture<'a, BTreeMap<VolumeId, Lookup<CloudVolume>>> {
        let answers = self.0.lock().unwrap();
        let volume = |id: &VolumeId| CloudVolume {
            id: id.clone(),
            label: "pvc1".to_owned(),
            region: "us-east".to_owned(),
            size_gib: 10,
            holders: answers.holders.clone(),
            state: answers.volume.clone(),
            identity: DeviceIdentity {
                serial: "pvc1".to_owned(),
            },
            owner: Default::default(),
        };
        ready(
            ids.iter()
                .map(|id| (id.clone(), Lookup::Found(volume(id))))
                .collect(),
        )
        .boxed()
    }

    fn describe_instances<'a>(
        &'a self,
        ids: &'a [InstanceId],
    ) -> BoxFuture<'a, BTreeMap<InstanceId, Lookup<CloudInstance>>> {
        let answers = self.0.lock().unwrap();
        let instance = |id: &InstanceId| CloudInstance {
            id: id.clone(),
            label: "n".to_owned(),
            state: answers.instance.clone(),
            auto_restart: true,
            owner: Default::default(),
        };
        ready(
            ids.iter()
                .map(|id| (id.clone(), Lookup::Found(instance(id))))
                .collect(),
        )
        .boxed()
    }

    fn jobs<'a>(
        &'a self,
        _volume: &'a VolumeId,
        _since: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<CloudJob>, ProviderError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn detach(
        &self,
        request: DetachRequest,
    ) -> BoxFuture<'_, Result<DetachOutcome, ProviderError>> {
        self.0.lock().unwrap().orders.push(format!(
            "detach {} from {}",
            request.volume(),
            request.holder()
        ));
        ready(Ok(DetachOutcome::Accepted)).boxed()
    }

    fn detach_command(&self, volume: &VolumeId, _holder: &InstanceId) -> String {
        format!("cloud detach {volume}")
    }

    fn preflight(&self) -> BoxFuture<'_, PreflightReport> {
        ready(PreflightReport {
            rights: Vec::new(),
            failure: None,
        })
        .boxed()
    }

    fn force_detach(
        &self,
        request: ForceDetachRequest,
    ) -> BoxFuture<'_, Result<DetachOutcome, EffectError>> {
        self.0
            .lock()
            .unwrap()
            .orders
            .push(format!("force {}", request.order().volume()));
        ready(Ok(DetachOutcome::Accepted)).boxed()
    }

    fn power_off(
        &self,
        request: PowerOffRequest,
    ) -> BoxFuture<'_, Result<PowerOutcome, EffectError>> {
        ready(self.order(format!("{:?} off {}", request.manner, request.instance))).boxed()
    }

    fn power_on<'a>(
        &'a self,
        instance: &'a InstanceId,
        _timeout: Duration,
    ) -> BoxFuture<'a, Result<PowerOutcome, EffectError>> {
        ready(self.order(format!("on {instance}"))).boxed()
    }

    fn snapshot(
        &self,
        request: SnapshotRequest,
    ) -> BoxFuture<'_, Result<CloudSnapshot, EffectError>> {
        let SnapshotRequest { volume, label, .. } = request;
        self.0
            .lock()
            .unwrap()
            .orders
            .push(format!("snapshot {volume} as {label}"));
        let answers = self.0.lock().unwrap();
        let begun = CloudSnapshot {
            id: "snap-1".to_owned(),
            volume,
            label,
            state: SnapshotState::Pending,
            started: Timestamp::UNIX_EPOCH,
        };
        ready(answers.snapshot.clone().map_or(Ok(begun), Err)).boxed()
    }

    fn scope(&self) -> BoxFuture<'_, Result<CloudScope, EffectError>> {
        ready(Ok(CloudScope("account".to_owned()))).boxed()
    }

    fn power_facts<'a>(
        &'a self,
        _instance: &'a InstanceId,
        _since: Timestamp,
    ) -> BoxFuture<'a, Result<PowerFacts, EffectError>> {
        ready(Ok(PowerFacts {
            jobs: Vec::new(),
            off_stays_off: false,
        }))
        .boxed()
    }
}
