//! The trait that a cloud implements.

use crate::{
    effects::{
        EffectError, ForceDetachRequest, Optional, PowerOffRequest, PowerOutcome, SnapshotRequest,
        Unsupported,
    },
    error::{HandleError, ProviderError},
};
use futures::future::{BoxFuture, FutureExt, ready};
use jiff::Timestamp;
use reattach_core::{
    cloud::{CloudInstance, CloudJob, CloudScope, CloudSnapshot, CloudVolume, PowerFacts},
    ids::{DriverName, InstanceId, VolumeHandle, VolumeId},
    proof::FenceProof,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// What a provider's API can do. All false is the poorest provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// A detach names the expected holder and is refused for another one. Without it a detach races with others, so
    /// the holder is read right before it.
    pub detach_compares_holder: bool,
    /// A detach can be forced.
    pub can_force: bool,
    /// Instances can be powered off through this trait.
    pub can_fence: bool,
    /// Volumes can be snapshotted through this trait.
    pub can_snapshot: bool,
    /// Effects can be asked for as a dry-run.
    pub has_dry_run: bool,
}

/// What came of looking one object up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lookup<T> {
    /// It is there.
    Found(T),
    /// The provider answered that this credential sees no such object. A bare answer of this kind proves nothing:
    /// a wrong account answers the same.
    NotFound,
    /// The provider could not be asked, or its answer could not be used.
    Failed(ProviderError),
}

impl<T> Lookup<T> {
    /// The object, where there is one.
    pub fn found(self) -> Option<T> {
        match self {
            Self::Found(item) => Some(item),
            Self::NotFound | Self::Failed(_) => None,
        }
    }
}

/// An order to detach one volume from one holder. It can be made from a proof that this holder cannot write, and from
/// nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachRequest {
    proof: FenceProof,
    timeout: Duration,
}

impl DetachRequest {
    /// A plain (not forced) detach of the proof's volume from the proof's holder. `timeout` bounds the whole call,
    /// the reading before it included, so that a leader can end it before its lease ends.
    pub fn plain(proof: FenceProof, timeout: Duration) -> Self {
        Self { proof, timeout }
    }

    /// The volume to free.
    pub fn volume(&self) -> &VolumeId {
        self.proof.volume()
    }

    /// The instance that it may be freed from, and no other.
    pub fn holder(&self) -> &InstanceId {
        self.proof.holder()
    }

    /// What the order rests on.
    pub fn proof(&self) -> &FenceProof {
        &self.proof
    }

    /// How long the whole call may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// A definite answer to an order to detach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DetachOutcome {
    /// Accepted; it takes effect later. Read the volume until it has no holder.
    Accepted,
    /// Nobody holds the volume; nothing was done.
    AlreadyDetached,
    /// Another instance holds the volume; nothing was done.
    AttachedElsewhere(InstanceId),
    /// Another job of the cloud's own is in the way; nothing was done. It ends by itself.
    Busy {
        /// The provider's words.
        detail: String,
    },
    /// The provider refuses changes to the volume until its staff lift a lock; nothing was done.
    Locked {
        /// The provider's words.
        reason: String,
    },
    /// An earlier detach is under way; nothing was done.
    Detaching,
}

/// What a right is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RightUse {
    /// Reading volumes.
    ReadVolumes,
    /// Reading instances.
    ReadInstances,
    /// Reading the job history.
    ReadJobs,
    /// Detaching volumes.
    Detach,
    /// Powering instances off and on; only policies that allow it need this.
    Power,
    /// Making snapshots; only policies that ask for one need this.
    Snapshot,
}

impl RightUse {
    /// Whether reattach works in full, apart from what a policy must ask for, without it.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Power | Self::Snapshot)
    }
}

/// Whether the credential has a right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Grant {
    /// The provider says that it has.
    Present,
    /// The provider says that it has not.
    Missing,
    /// The provider could not be asked, or does not say.
    Unknown {
        /// Why.
        why: String,
    },
}

/// One right that reattach needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Right {
    /// The provider's name of it, such as `volumes:read_write`.
    pub name: String,
    /// What it is needed for.
    pub needed_for: Vec<RightUse>,
    /// Whether the credential has it.
    pub grant: Grant,
}

/// What the credential may do, found out without changing anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreflightReport {
    /// Every right that is needed, sorted by name.
    pub rights: Vec<Right>,
    /// Why nothing could be found out, if so: unreachable, wrong credential.
    pub failure: Option<ProviderError>,
}

impl PreflightReport {
    /// The rights known to be missing for any of these uses.
    pub fn missing(&self, uses: &[RightUse]) -> Vec<&Right> {
        self.rights
            .iter()
            .filter(|r| r.grant == Grant::Missing && r.needed_for.iter().any(|u| uses.contains(u)))
            .collect()
    }

    /// Whether every right that is needed for more than optional uses is known to be there.
    pub fn is_complete(&self) -> bool {
        let needed = |right: &&Right| right.needed_for.iter().any(|u| !u.is_optional());
        self.failure.is_none() && self.rights.iter().filter(needed).all(|r| r.grant == Grant::Present)
    }
}

/// A cloud's block storage and machines.
///
/// # Expected flow
/// `resolve_*` turn Kubernetes' handles into the cloud's identifiers; `describe_*` and `jobs` read; `preflight` finds
/// out at the start what the credential may do. `detach` is the one effect: its outcome is read back by
/// `describe_volumes` (no holder) and `jobs` (nothing pending).
///
/// # Guarantees
/// - An optional effect that the provider does not have answers [`Unsupported`] and sends nothing; the others keep to
///   the rules of `detach`: at most one mutating request, never repeated.
/// - `detach` sends at most one mutating request, and never repeats it, whatever comes back.
/// - `detach` reads the volume right before that request and sends nothing when the holder is not exactly the one of
///   the request's proof.
/// - Every identifier asked for is in the map that `describe_*` answers. Reads may be retried a bounded number of
///   times, and never report [`ProviderError::Unknown`].
/// - No error, log line or `Debug` output contains the credential.
///
/// # Assumptions
/// The caller holds new users of the volume away until the detach is read back, since providers without
/// [`Capabilities::detach_compares_holder`] detach from whoever holds the volume when the request arrives. The caller
/// bounds its own waiting; each call bounds itself.
///
/// # Caveats
/// [`Lookup::NotFound`] does not prove that an object is gone. Reads may be stale for a while: judge a change from
/// more than one. [`DetachOutcome::Accepted`] is a promise and not yet a fact.
///
/// # Errors
/// See [`ProviderError`]: only `Unknown` leaves it open whether an effect happened.
pub trait Provider: Send + Sync {
    /// The provider's name, for people: `linode`.
    fn name(&self) -> &'static str;

    /// What its API can do.
    fn capabilities(&self) -> Capabilities;

    /// The cloud's volume behind a CSI handle. `None`: another driver's. `Some(Err(_))`: this provider's, but not
    /// usable.
    fn resolve_volume(
        &self,
        driver: &DriverName,
        handle: &VolumeHandle,
    ) -> Option<Result<VolumeId, HandleError>>;

    /// The handle that the CSI driver gives to a volume which the cloud describes so. A PersistentVolume with another
    /// spelling was made by a person, and nothing is freed through it.
    fn canonical_handle(&self, volume: &CloudVolume) -> VolumeHandle;

    /// The volume for which the CSI driver takes a handle, however that is spelled. Wider than `resolve_volume`: it finds
    /// what else leads to a volume. `None`: another driver's, or the driver takes it for none.
    fn volume_as_driver_reads(&self, driver: &DriverName, handle: &VolumeHandle) -> Option<VolumeId> {
        self.resolve_volume(driver, handle)?.ok()
    }

    /// The key by which a PersistentVolume's node affinity names the region or zone that [`CloudVolume::region`] is.
    fn topology_key(&self) -> Option<&'static str> {
        None
    }

    /// The cloud's instance behind a Node's `spec.providerID`. `None`: another provider's.
    fn resolve_instance(&self, provider_id: &str) -> Option<Result<InstanceId, HandleError>>;

    /// Reads volumes, in as few calls as the API allows.
    fn describe_volumes<'a>(
        &'a self,
        ids: &'a [VolumeId],
    ) -> BoxFuture<'a, BTreeMap<VolumeId, Lookup<CloudVolume>>>;

    /// Reads instances, in as few calls as the API allows.
    fn describe_instances<'a>(
        &'a self,
        ids: &'a [InstanceId],
    ) -> BoxFuture<'a, BTreeMap<InstanceId, Lookup<CloudInstance>>>;

    /// The provider's own history of jobs that concern the volume and were created at or after `since`, oldest first and
    /// without a gap: a history that could not be read back to `since` is an error.
    fn jobs<'a>(
        &'a self,
        volume: &'a VolumeId,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<CloudJob>, ProviderError>>;

    /// After how long the provider itself refuses a request that has not arrived, by the time that the request carries.
    /// None: a request may be carried out whenever it arrives. No limit of the client's own belongs here.
    fn orders_expire_after(&self) -> Option<Duration> {
        None
    }

    /// Detaches a volume from the one holder that was proven unable to write.
    fn detach(&self, request: DetachRequest) -> BoxFuture<'_, Result<DetachOutcome, ProviderError>>;

    /// What a person would type to detach `volume` from `holder` by hand: for plans and reports, never executed.
    fn detach_command(&self, volume: &VolumeId, holder: &InstanceId) -> String;

    /// What a person would type to power an instance off or on by hand, as `detach_command`.
    fn power_command(&self, instance: &InstanceId, on: bool) -> String {
        let way = if on { "on" } else { "off" };
        format!("(power instance {instance} {way} in the cloud's console)")
    }

    /// What a person would type to make a snapshot of `volume` by hand, as `detach_command`.
    fn snapshot_command(&self, volume: &VolumeId) -> String {
        format!("(make a snapshot of volume {volume} in the cloud's console)")
    }

    /// Finds out what the credential may do, without changing anything.
    fn preflight(&self) -> BoxFuture<'_, PreflightReport>;

    /// Detaches a volume by force from a holder that was proven off or gone ([`Capabilities::can_force`]). The answer
    /// is to be read back as with `detach`.
    fn force_detach(
        &self,
        _request: ForceDetachRequest,
    ) -> BoxFuture<'_, Result<DetachOutcome, EffectError>> {
        cannot(self.name(), Optional::ForceDetach)
    }

    /// Powers an instance off ([`Capabilities::can_fence`]). The order alone proves nothing: read the instance until
    /// it is off.
    fn power_off(&self, _request: PowerOffRequest) -> BoxFuture<'_, Result<PowerOutcome, EffectError>> {
        cannot(self.name(), Optional::Power)
    }

    /// Powers an instance on ([`Capabilities::can_fence`]). `timeout` bounds the call, not the boot.
    fn power_on<'a>(
        &'a self,
        _instance: &'a InstanceId,
        _timeout: Duration,
    ) -> BoxFuture<'a, Result<PowerOutcome, EffectError>> {
        cannot(self.name(), Optional::Power)
    }

    /// Who answers for what this provider reads now: the same value for as long as account and region are the same,
    /// another one for another account. Without it "not found" never proves that something is gone.
    fn scope(&self) -> BoxFuture<'_, Result<CloudScope, EffectError>> {
        cannot(self.name(), Optional::Scope)
    }

    /// What is known of an instance's power besides its state: jobs created at or after `since` and those under way,
    /// oldest first, and whether the cloud may boot it by itself.
    fn power_facts<'a>(
        &'a self,
        _instance: &'a InstanceId,
        _since: Timestamp,
    ) -> BoxFuture<'a, Result<PowerFacts, EffectError>> {
        cannot(self.name(), Optional::PowerHistory)
    }

    /// Begins a snapshot of a volume ([`Capabilities::can_snapshot`]).
    fn snapshot(&self, _request: SnapshotRequest) -> BoxFuture<'_, Result<CloudSnapshot, EffectError>> {
        cannot(self.name(), Optional::Snapshot)
    }

    /// The snapshots of a volume that were ordered with this label, oldest first: what became of an order.
    fn snapshots<'a>(
        &'a self,
        _volume: &'a VolumeId,
        _label: &'a str,
    ) -> BoxFuture<'a, Result<Vec<CloudSnapshot>, EffectError>> {
        cannot(self.name(), Optional::Snapshot)
    }
}

fn cannot<'a, T: Send + 'a>(provider: &str, what: Optional) -> BoxFuture<'a, Result<T, EffectError>> {
    ready(Err(Unsupported::new(provider, what).into())).boxed()
}
