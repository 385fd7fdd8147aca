//! The simulated cloud for tests of one controller: the cloud simulator behind Linode's provider, over its HTTP API in memory.
//!
//! The simulator alone decides what the cloud shows and does. [`Cloud`] only notes the orders that reach the provider, and
//! replaces the answers that Linode's API cannot give ([`Script`]).

use futures::future::{BoxFuture, FutureExt, ready};
use jiff::Timestamp;
use reattach_cloud_simulator::{
    CloudSim, InstanceNo, NewInstance, NewVolume, VolumeNo, clock::tokio_from, in_memory,
};
use reattach_core::cloud::{
    CloudInstance, CloudJob, CloudScope, CloudSnapshot, CloudVolume, PowerFacts,
};
use reattach_core::ids::{DriverName, InstanceId, VolumeHandle, VolumeId};
use reattach_linode::{LinodeConfig, LinodeProvider, Token};
use reattach_provider_api::{
    Capabilities, DetachOutcome, DetachRequest, EffectError, ForceDetachRequest, HandleError,
    Lookup, PowerOffRequest, PowerOutcome, PreflightReport, Provider, ProviderError,
    SnapshotRequest,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const TOKEN: &str = "test-token";

/// Answers that replace the provider's own. `None`: the provider answers.
#[derive(Default)]
pub struct Script {
    pub capabilities: Option<Capabilities>,
    /// For a provider without power.
    pub power: Option<EffectError>,
    /// Linode has no snapshots.
    pub snapshot: Option<Result<CloudSnapshot, EffectError>>,
}

/// A provider over a simulated cloud. Clones share everything.
#[derive(Clone)]
pub struct Cloud {
    pub sim: CloudSim,
    provider: LinodeProvider,
    script: Arc<Mutex<Script>>,
    orders: Arc<Mutex<Vec<String>>>,
}

impl Cloud {
    /// A cloud with the volume of this handle (`NUMBER-LABEL`), attached to a running instance of this number.
    pub fn attached(handle: &str, instance: &str, start: Timestamp) -> Self {
        let sim = CloudSim::new(tokio_from(start));
        sim.add_token(TOKEN, &["*"]);
        let (volume, label) = handle.split_once('-').unwrap();
        let (volume, instance): (VolumeNo, InstanceNo) =
            (volume.parse().unwrap(), instance.parse().unwrap());
        sim.create_volume(NewVolume::new(label).with_id(volume.0))
            .unwrap();
        sim.create_instance(NewInstance::new("n").with_id(instance.0))
            .unwrap();
        sim.attach_now(volume, instance).unwrap();
        let config =
            LinodeConfig::new(Token::new(TOKEN).unwrap(), Some("https://linode.invalid")).unwrap();
        Self {
            provider: LinodeProvider::new(in_memory(sim.clone()), config),
            sim,
            script: Arc::default(),
            orders: Arc::default(),
        }
    }

    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    /// The orders that reached the provider.
    pub fn orders(&self) -> Vec<String> {
        self.orders.lock().unwrap().clone()
    }

    fn order(&self, order: String) {
        self.orders.lock().unwrap().push(order);
    }
}

impl Provider for Cloud {
    fn name(&self) -> &'static str {
        self.provider.name()
    }

    fn capabilities(&self) -> Capabilities {
        let scripted = self.script.lock().unwrap().capabilities;
        scripted.unwrap_or_else(|| self.provider.capabilities())
    }

    fn resolve_volume(
        &self,
        driver: &DriverName,
        handle: &VolumeHandle,
    ) -> Option<Result<VolumeId, HandleError>> {
        self.provider.resolve_volume(driver, handle)
    }

    fn canonical_handle(&self, volume: &CloudVolume) -> VolumeHandle {
        self.provider.canonical_handle(volume)
    }

    fn volume_as_driver_reads(
        &self,
        driver: &DriverName,
        handle: &VolumeHandle,
    ) -> Option<VolumeId> {
        self.provider.volume_as_driver_reads(driver, handle)
    }

    fn topology_key(&self) -> Option<&'static str> {
        self.provider.topology_key()
    }

    fn resolve_instance(&self, provider_id: &str) -> Option<Result<InstanceId, HandleError>> {
        self.provider.resolve_instance(provider_id)
    }

    fn describe_volumes<'a>(
        &'a self,
        ids: &'a [VolumeId],
    ) -> BoxFuture<'a, BTreeMap<VolumeId, Lookup<CloudVolume>>> {
        self.provider.describe_volumes(ids)
    }

    fn describe_instances<'a>(
        &'a self,
        ids: &'a [InstanceId],
    ) -> BoxFuture<'a, BTreeMap<InstanceId, Lookup<CloudInstance>>> {
        self.provider.describe_instances(ids)
    }

    fn jobs<'a>(
        &'a self,
        volume: &'a VolumeId,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<CloudJob>, ProviderError>> {
        self.provider.jobs(volume, since)
    }

    fn detach(
        &self,
        request: DetachRequest,
    ) -> BoxFuture<'_, Result<DetachOutcome, ProviderError>> {
        self.order(format!(
            "detach {} from {}",
            request.volume(),
            request.holder()
        ));
        self.provider.detach(request)
    }

    fn detach_command(&self, volume: &VolumeId, holder: &InstanceId) -> String {
        self.provider.detach_command(volume, holder)
    }

    fn power_command(&self, instance: &InstanceId, on: bool) -> String {
        self.provider.power_command(instance, on)
    }

    fn preflight(&self) -> BoxFuture<'_, PreflightReport> {
        self.provider.preflight()
    }

    fn force_detach(
        &self,
        request: ForceDetachRequest,
    ) -> BoxFuture<'_, Result<DetachOutcome, EffectError>> {
        self.order(format!("force {}", request.order().volume()));
        self.provider.force_detach(request)
    }

    fn power_off(
        &self,
        request: PowerOffRequest,
    ) -> BoxFuture<'_, Result<PowerOutcome, EffectError>> {
        self.order(format!("{:?} off {}", request.manner, request.instance));
        match self.script.lock().unwrap().power.clone() {
            Some(error) => ready(Err(error)).boxed(),
            None => self.provider.power_off(request),
        }
    }

    fn power_on<'a>(
        &'a self,
        instance: &'a InstanceId,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<PowerOutcome, EffectError>> {
        self.order(format!("on {instance}"));
        self.provider.power_on(instance, timeout)
    }

    fn scope(&self) -> BoxFuture<'_, Result<CloudScope, EffectError>> {
        self.provider.scope()
    }

    fn power_facts<'a>(
        &'a self,
        instance: &'a InstanceId,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<PowerFacts, EffectError>> {
        self.provider.power_facts(instance, since)
    }

    fn snapshot(
        &self,
        request: SnapshotRequest,
    ) -> BoxFuture<'_, Result<CloudSnapshot, EffectError>> {
        let SnapshotRequest { volume, label, .. } = &request;
        self.order(format!("snapshot {volume} as {label}"));
        match self.script.lock().unwrap().snapshot.clone() {
            Some(answer) => ready(answer).boxed(),
            None => self.provider.snapshot(request),
        }
    }
}
