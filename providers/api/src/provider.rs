//! The trait that a cloud implements.

use crate::{
    effects::{
        DetachOutcome, DetachRequest, EffectError, ForceDetachRequest, Optional, PowerOffRequest,
        PowerOutcome, SnapshotRequest, Unsupported,
    },
    error::{HandleError, ProviderError},
    limiter::Limiter,
};
use futures::future::{BoxFuture, FutureExt, ready};
use jiff::Timestamp;
use reattach_core::{
    cloud::{CloudInstance, CloudJob, CloudScope, CloudSnapshot, CloudVolume, PowerFacts},
    ids::{DriverName, InstanceId, VolumeHandle, VolumeId},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// The capabilities of a provider's API. The default has none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// A detach names the expected holder, and the provider refuses it when another instance is the holder. Without this
    /// capability, only the read right before the detach shows the holder.
    pub detach_compares_holder: bool,
    /// A detach can be forced ([`Provider::force_detach`]).
    pub can_force: bool,
    /// Instances can be powered off and on ([`Provider::power_off`], [`Provider::power_on`]).
    pub can_fence: bool,
    /// The automatic restart of an instance can be switched off and on ([`Provider::set_restart`]). `false` also where the
    /// cloud never boots an instance by itself.
    pub can_keep_off: bool,
    /// Snapshots of volumes can be made ([`Provider::snapshot`]).
    pub can_snapshot: bool,
    /// The API has dry-runs of its effects.
    pub has_dry_run: bool,
}

/// The result of reading one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lookup<T> {
    /// The provider shows the object.
    Found(T),
    /// The provider shows no such object to this credential. This alone proves nothing: a wrong account gets the answer
    /// too.
    NotFound,
    /// The read failed, or its answer could not be used.
    Failed(ProviderError),
}

impl<T> Lookup<T> {
    /// Returns the object, if it was found.
    pub fn found(self) -> Option<T> {
        match self {
            Self::Found(item) => Some(item),
            Self::NotFound | Self::Failed(_) => None,
        }
    }
}

/// The use of a right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RightUse {
    /// Reading the state of volumes.
    ReadVolumes,
    /// Reading the state of instances.
    ReadInstances,
    /// Reading the job history.
    ReadJobs,
    /// Detaching volumes from instances.
    Detach,
    /// Powering instances off and on. Only policies that allow it need this.
    Power,
    /// Making snapshots. Only policies that ask for one need this.
    Snapshot,
}

impl RightUse {
    /// Returns whether only a policy that asks for the use needs it.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Power | Self::Snapshot)
    }
}

/// Whether the credential has a right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Grant {
    /// The credential has the right, says the provider.
    Present,
    /// The credential lacks the right, says the provider.
    Missing,
    /// The provider could not be read, or does not show the right.
    Unknown {
        /// Cause, in a sentence.
        why: String,
    },
}

/// One right that reattach needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Right {
    /// Name of the right at the provider, such as `volumes:read_write`.
    pub name: String,
    /// Uses that need the right.
    pub needed_for: Vec<RightUse>,
    /// Whether the credential has the right.
    pub grant: Grant,
}

/// The rights of the credential. They are read without changing anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreflightReport {
    /// All rights that are needed, sorted by name.
    pub rights: Vec<Right>,
    /// Failure to read the rights, such as a provider that cannot be reached or a wrong credential.
    pub failure: Option<ProviderError>,
}

impl PreflightReport {
    /// Returns the rights that are known to be missing for any of these uses.
    pub fn missing(&self, uses: &[RightUse]) -> Vec<&Right> {
        self.rights
            .iter()
            .filter(|r| r.grant == Grant::Missing && r.needed_for.iter().any(|u| uses.contains(u)))
            .collect()
    }

    /// Returns whether the credential is known to have all rights that an obligatory use needs.
    pub fn is_complete(&self) -> bool {
        let needed = |right: &&Right| right.needed_for.iter().any(|u| !u.is_optional());
        self.failure.is_none()
            && self
                .rights
                .iter()
                .filter(needed)
                .all(|r| r.grant == Grant::Present)
    }
}

/// The block storage and the instances of a cloud.
///
/// # Expected flow
/// 1. `preflight` reads the rights of the credential at the start.
/// 2. `resolve_*` convert Kubernetes' handles into the cloud's identifiers.
/// 3. `describe_*` and `jobs` read the state of volumes and instances.
/// 4. `detach` sends the one effect that every provider has. Its result is read back by `describe_volumes` (no holder)
///    and `jobs` (nothing pending).
///
/// # Guarantees
/// - `detach` and `force_detach` read the volume right before their request, and send nothing when its holder is not
///   exactly the holder of the request's proof.
/// - Every effect sends at most one mutating request, and never repeats it. [`detach`](mod@crate::detach) ensures this for
///   `detach` and `force_detach`.
/// - An optional effect that the provider does not support returns [`Unsupported`] and sends nothing.
/// - The map that `describe_*` returns contains every identifier of the call. Reads may be retried a bounded number of
///   times, and never return [`ProviderError::Unknown`].
/// - No error, log line or `Debug` output contains the credential.
/// - Every request of the credential passes one [`Limiter`]. The requests of an effect, its reads included, never wait behind
///   other reads. A read that is held back returns [`ProviderError::Throttled`] and sends nothing.
///
/// # Assumptions
/// The caller keeps new users away from the volume until the detach is read back: a provider without
/// [`Capabilities::detach_compares_holder`] detaches from the instance that has the volume when the request arrives.
/// Each call ends by its own timeout; how often a call is made is up to the caller.
///
/// # Caveats
/// - [`Lookup::NotFound`] does not prove that an object is gone.
/// - Reads may be stale for a while: more than one is needed to conclude that something changed.
/// - [`DetachOutcome::Accepted`] is a promise and not yet a fact.
///
/// # Errors
/// See [`ProviderError`]: only after `Unknown` it is open whether an effect happened.
pub trait Provider: Send + Sync {
    /// Returns the name of the provider, such as `linode`.
    fn name(&self) -> &'static str;

    /// Returns the limiter that every request of the credential passes. `None`: the provider has no limiter.
    fn limiter(&self) -> Option<&Limiter> {
        None
    }

    /// Returns the same provider, with the same credential and limiter, for the reads right before an effect: they do not wait
    /// behind other reads. `None`: the provider has no limiter, so that no read waits.
    fn before_effects(&self) -> Option<Arc<dyn Provider>> {
        None
    }

    /// Returns the capabilities of the provider's API.
    fn capabilities(&self) -> Capabilities;

    /// Returns the cloud's volume of a CSI handle. `None`: the handle belongs to another provider's driver. `Some(Err(_))`:
    /// it belongs to this provider's driver and cannot be used.
    fn resolve_volume(
        &self,
        driver: &DriverName,
        handle: &VolumeHandle,
    ) -> Option<Result<VolumeId, HandleError>>;

    /// Returns the handle that the CSI driver gives to this volume. A PersistentVolume with another spelling of the handle
    /// was made by a person, and no volume is detached because of it.
    fn canonical_handle(&self, volume: &CloudVolume) -> VolumeHandle;

    /// Returns the volume that the CSI driver would use for a handle, in any spelling that the driver accepts. Wider than
    /// `resolve_volume`: it finds all PersistentVolumes of a volume. `None`: the handle belongs to another provider's
    /// driver, or its driver does not accept it.
    fn volume_as_driver_reads(
        &self,
        driver: &DriverName,
        handle: &VolumeHandle,
    ) -> Option<VolumeId> {
        self.resolve_volume(driver, handle)?.ok()
    }

    /// Returns the key of a PersistentVolume's node affinity whose value is [`CloudVolume::region`].
    fn topology_key(&self) -> Option<&'static str> {
        None
    }

    /// Returns the cloud's instance of a Node's `spec.providerID`. `None`: the ID belongs to another provider.
    fn resolve_instance(&self, provider_id: &str) -> Option<Result<InstanceId, HandleError>>;

    /// Reads volumes with as few requests as the API allows.
    fn describe_volumes<'a>(
        &'a self,
        ids: &'a [VolumeId],
    ) -> BoxFuture<'a, BTreeMap<VolumeId, Lookup<CloudVolume>>>;

    /// Reads instances with as few requests as the API allows.
    fn describe_instances<'a>(
        &'a self,
        ids: &'a [InstanceId],
    ) -> BoxFuture<'a, BTreeMap<InstanceId, Lookup<CloudInstance>>>;

    /// Reads the provider's own history of the volume's jobs that were created at or after `since`, oldest first. The
    /// history has no gap: when it cannot be read back to `since`, that is an error.
    fn jobs<'a>(
        &'a self,
        volume: &'a VolumeId,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<CloudJob>, ProviderError>>;

    /// Returns the age at which the provider refuses a request that arrives late, by the time in the request itself. `None`:
    /// a request may have its effect whenever it arrives. A timeout of the client is no such age.
    fn orders_expire_after(&self) -> Option<Duration> {
        None
    }

    /// Detaches a volume from the holder that was proven unable to write. See [`detach`](mod@crate::detach).
    fn detach(&self, request: DetachRequest)
    -> BoxFuture<'_, Result<DetachOutcome, ProviderError>>;

    /// Returns the command that a person would type to detach `volume` from `holder`. It is shown in plans and reports, and
    /// never executed.
    fn detach_command(&self, volume: &VolumeId, holder: &InstanceId) -> String;

    /// Returns the command that a person would type to power an instance off or on, as `detach_command`.
    fn power_command(&self, instance: &InstanceId, on: bool) -> String {
        let way = if on { "on" } else { "off" };
        format!("(power instance {instance} {way} in the cloud's console)")
    }

    /// Returns the command that a person would type to switch an instance's automatic restart on or off, as `detach_command`.
    fn restart_command(&self, instance: &InstanceId, on: bool) -> String {
        let way = if on { "on" } else { "off" };
        format!(
            "(switch the automatic restart of instance {instance} {way} in the cloud's console)"
        )
    }

    /// Returns the command that a person would type to make a snapshot of `volume`, as `detach_command`.
    fn snapshot_command(&self, volume: &VolumeId) -> String {
        format!("(make a snapshot of volume {volume} in the cloud's console)")
    }

    /// Reads the rights of the credential, without changing anything.
    fn preflight(&self) -> BoxFuture<'_, PreflightReport>;

    /// Detaches a volume by force from a holder that was proven off or gone ([`Capabilities::can_force`]). The result is
    /// read back as that of `detach`.
    fn force_detach(
        &self,
        _request: ForceDetachRequest,
    ) -> BoxFuture<'_, Result<DetachOutcome, EffectError>> {
        unsupported(self.name(), Optional::ForceDetach)
    }

    /// Powers an instance off ([`Capabilities::can_fence`]). An accepted request proves nothing: read the instance until it
    /// is off.
    fn power_off(
        &self,
        _request: PowerOffRequest,
    ) -> BoxFuture<'_, Result<PowerOutcome, EffectError>> {
        unsupported(self.name(), Optional::Power)
    }

    /// Powers an instance on ([`Capabilities::can_fence`]). `timeout` bounds the call, not the boot.
    fn power_on<'a>(
        &'a self,
        _instance: &'a InstanceId,
        _timeout: Duration,
    ) -> BoxFuture<'a, Result<PowerOutcome, EffectError>> {
        unsupported(self.name(), Optional::Power)
    }

    /// Sets whether the cloud boots an instance by itself after it stopped without a shutdown job
    /// ([`Capabilities::can_keep_off`]). Nothing is sent when the setting is as wanted already
    /// ([`PowerOutcome::AlreadyThere`]). An accepted request is read back by `describe_instances`.
    fn set_restart<'a>(
        &'a self,
        _instance: &'a InstanceId,
        _on: bool,
        _timeout: Duration,
    ) -> BoxFuture<'a, Result<PowerOutcome, EffectError>> {
        unsupported(self.name(), Optional::KeepOff)
    }

    /// Reads an identifier of the account and region whose objects this provider reads. It is constant for one account and
    /// differs between accounts. Without it, "not found" never proves that an object is gone.
    fn scope(&self) -> BoxFuture<'_, Result<CloudScope, EffectError>> {
        unsupported(self.name(), Optional::Scope)
    }

    /// Reads the history of an instance's power: jobs created at or after `since` and jobs under way, oldest first, and
    /// whether the cloud may boot the instance by itself.
    fn power_facts<'a>(
        &'a self,
        _instance: &'a InstanceId,
        _since: Timestamp,
    ) -> BoxFuture<'a, Result<PowerFacts, EffectError>> {
        unsupported(self.name(), Optional::PowerHistory)
    }

    /// Begins a snapshot of a volume ([`Capabilities::can_snapshot`]).
    fn snapshot(
        &self,
        _request: SnapshotRequest,
    ) -> BoxFuture<'_, Result<CloudSnapshot, EffectError>> {
        unsupported(self.name(), Optional::Snapshot)
    }

    /// Reads the snapshots of a volume that were requested with this label, oldest first. They show the result of a request
    /// with an unknown outcome.
    fn snapshots<'a>(
        &'a self,
        _volume: &'a VolumeId,
        _label: &'a str,
    ) -> BoxFuture<'a, Result<Vec<CloudSnapshot>, EffectError>> {
        unsupported(self.name(), Optional::Snapshot)
    }
}

fn unsupported<'a, T: Send + 'a>(
    provider: &str,
    what: Optional,
) -> BoxFuture<'a, Result<T, EffectError>> {
    ready(Err(Unsupported::new(provider, what).into())).boxed()
}
