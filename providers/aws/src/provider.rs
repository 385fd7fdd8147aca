//! [`Provider`] for AWS.

use crate::{
    classify::Call,
    client::Client,
    config::{AwsConfig, ConfigError},
    handle, power, preflight, read, snapshot,
    socket::http_transport,
    wire,
};
use futures::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use reattach_core::{
    cloud::{CloudInstance, CloudJob, CloudScope, CloudSnapshot, CloudVolume, PowerFacts},
    ids::{DriverName, InstanceId, VolumeHandle, VolumeId},
};
use reattach_provider_api::{
    Capabilities, DetachOutcome, DetachRequest, EffectError, ForceDetachRequest, HandleError,
    HttpTransport, Limiter, Lookup, PowerOffRequest, PowerOutcome, PreflightReport, Provider,
    ProviderError, SnapshotRequest, detach,
};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Length of a scope's fingerprint, in bytes.
const FINGERPRINT: usize = 16;

/// Name of the provider.
pub const NAME: &str = "aws";

/// The provider for EC2 and EBS. Clones share their connections and credentials.
#[derive(Clone, Debug)]
pub struct AwsProvider {
    client: Client,
}

impl AwsProvider {
    /// Makes a provider over this transport.
    pub fn new(transport: HttpTransport, config: AwsConfig) -> Self {
        Self {
            client: Client::new(transport, config),
        }
    }

    /// Makes a provider over HTTP, as in production. Sends nothing. Credentials are read at the first call.
    ///
    /// # Errors
    /// As [`http_transport`].
    pub fn connect(config: AwsConfig) -> Result<Self, ConfigError> {
        Ok(Self::new(http_transport(&config)?, config))
    }
}

impl Provider for AwsProvider {
    fn name(&self) -> &'static str {
        NAME
    }

    fn limiter(&self) -> Option<&Limiter> {
        Some(self.client.limiter())
    }

    fn before_effects(&self) -> Option<Arc<dyn Provider>> {
        Some(Arc::new(Self {
            client: self.client.for_effects(),
        }))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            detach_compares_holder: true,
            can_force: true,
            can_fence: true,
            // EC2 boots no instance that is stopped, so there is nothing to switch off.
            can_keep_off: false,
            can_snapshot: true,
            has_dry_run: true,
        }
    }

    fn resolve_volume(
        &self,
        driver: &DriverName,
        handle: &VolumeHandle,
    ) -> Option<Result<VolumeId, HandleError>> {
        handle::volume(driver, handle)
    }

    fn canonical_handle(&self, volume: &CloudVolume) -> VolumeHandle {
        VolumeHandle::new(volume.id.as_str())
    }

    fn topology_key(&self) -> Option<&'static str> {
        Some(handle::TOPOLOGY_KEY)
    }

    fn resolve_instance(&self, provider_id: &str) -> Option<Result<InstanceId, HandleError>> {
        handle::instance(provider_id)
    }

    fn describe_volumes<'a>(
        &'a self,
        ids: &'a [VolumeId],
    ) -> BoxFuture<'a, BTreeMap<VolumeId, Lookup<CloudVolume>>> {
        read::volumes(&self.client, ids).boxed()
    }

    fn describe_instances<'a>(
        &'a self,
        ids: &'a [InstanceId],
    ) -> BoxFuture<'a, BTreeMap<InstanceId, Lookup<CloudInstance>>> {
        read::instances(&self.client, ids).boxed()
    }

    /// EC2 keeps no history of jobs, so the jobs follow from the present attachments of the volume. An attach or detach under
    /// way is pending, with the time at which the *attachment* began. Jobs that have failed or ended do not show, except
    /// the attach of the present attachment.
    fn jobs<'a>(
        &'a self,
        volume: &'a VolumeId,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<CloudJob>, ProviderError>> {
        async move {
            let operation = format!("read the attachments of volume {volume}");
            let call = Call {
                operation: &operation,
                action: "DescribeVolumes",
            };
            if !handle::is_volume(volume.as_str()) {
                return Err(call.not_applied("it is not the identifier of an EC2 volume"));
            }
            // The volume does not exist or belongs to another account: it has no known jobs.
            let Some(found) = read::one_volume(&self.client, &operation, volume).await? else {
                return Ok(Vec::new());
            };
            let jobs = wire::jobs(&found)
                .map_err(|why| call.not_applied(format!("the answer cannot be used: {why}")))?;
            // A pending job is returned even when its attachment began before `since`.
            Ok(jobs
                .into_iter()
                .filter(|job| job.is_pending() || job.created >= since)
                .collect())
        }
        .boxed()
    }

    /// EC2 refuses a request that arrives more than 15 min after its date, and accepts a date of at most 15 min ahead
    /// (`RequestExpired` in its list of error codes). The other 10 min are for the difference between two of our clocks.
    fn orders_expire_after(&self) -> Option<Duration> {
        Some(Duration::from_mins(40))
    }

    fn detach(
        &self,
        request: DetachRequest,
    ) -> BoxFuture<'_, Result<DetachOutcome, ProviderError>> {
        async move { detach::detach(&self.client.for_effects(), request).await }.boxed()
    }

    fn detach_command(&self, volume: &VolumeId, holder: &InstanceId) -> String {
        let region = self.client.config().region();
        format!(
            "aws ec2 detach-volume --region {region} --volume-id {volume} --instance-id {holder}"
        )
    }

    fn power_command(&self, instance: &InstanceId, on: bool) -> String {
        let region = self.client.config().region();
        let what = if on {
            "start-instances"
        } else {
            "stop-instances --force"
        };
        format!("aws ec2 {what} --region {region} --instance-ids {instance}")
    }

    fn snapshot_command(&self, volume: &VolumeId) -> String {
        let region = self.client.config().region();
        format!("aws ec2 create-snapshot --region {region} --volume-id {volume}")
    }

    fn preflight(&self) -> BoxFuture<'_, PreflightReport> {
        preflight::run(&self.client).boxed()
    }

    fn force_detach(
        &self,
        request: ForceDetachRequest,
    ) -> BoxFuture<'_, Result<DetachOutcome, EffectError>> {
        async move { Ok(detach::force_detach(&self.client.for_effects(), request).await?) }.boxed()
    }

    fn power_off(
        &self,
        request: PowerOffRequest,
    ) -> BoxFuture<'_, Result<PowerOutcome, EffectError>> {
        async move { power::off(&self.client.for_effects(), &request).await }.boxed()
    }

    fn power_on<'a>(
        &'a self,
        instance: &'a InstanceId,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<PowerOutcome, EffectError>> {
        async move { power::on(&self.client.for_effects(), instance, timeout).await }.boxed()
    }

    /// A fingerprint of account and region. The access key is not part of it, because the keys of a role change every hour.
    fn scope(&self) -> BoxFuture<'_, Result<CloudScope, EffectError>> {
        async move {
            let account = read::account(&self.client, "tell which account answers").await?;
            let text = format!("{NAME}\n{account}\n{}", self.client.config().region());
            let digest = Sha256::digest(text.as_bytes());
            Ok(CloudScope(
                digest
                    .iter()
                    .take(FINGERPRINT)
                    .map(|byte| format!("{byte:02x}"))
                    .collect(),
            ))
        }
        .boxed()
    }

    /// EC2 keeps no history of an instance's power, so only jobs under way show, and `since` is not used.
    fn power_facts<'a>(
        &'a self,
        instance: &'a InstanceId,
        _since: Timestamp,
    ) -> BoxFuture<'a, Result<PowerFacts, EffectError>> {
        async move {
            let operation = format!("read the power of instance {instance}");
            let call = Call {
                operation: &operation,
                action: "DescribeInstances",
            };
            if !handle::is_instance(instance.as_str()) {
                return Err(call
                    .not_applied("it is not the identifier of an EC2 instance")
                    .into());
            }
            match read::raw_instance(&self.client, &operation, instance).await? {
                Some(found) => Ok(wire::power(&found).map_err(|why| {
                    call.not_applied(format!("the answer cannot be used: {why}"))
                })?),
                None => {
                    let reason = "EC2 shows no such instance to this credential".to_owned();
                    Err(ProviderError::NotFound { operation, reason }.into())
                }
            }
        }
        .boxed()
    }

    fn snapshot(
        &self,
        request: SnapshotRequest,
    ) -> BoxFuture<'_, Result<CloudSnapshot, EffectError>> {
        async move { snapshot::create(&self.client.for_effects(), &request).await }.boxed()
    }

    fn snapshots<'a>(
        &'a self,
        volume: &'a VolumeId,
        label: &'a str,
    ) -> BoxFuture<'a, Result<Vec<CloudSnapshot>, EffectError>> {
        snapshot::list(&self.client, volume, label).boxed()
    }
}
