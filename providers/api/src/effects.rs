//! Requests for effects and their outcomes. Not every provider has forced detach, power and snapshots: one without
//! returns [`Unsupported`].

use crate::error::{EffectKnowledge, ProviderError};
use reattach_core::{
    ids::{InstanceId, VolumeId},
    proof::{FenceProof, ProofKind},
};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// A request to detach one volume from one holder. It can only be made from a proof that this holder cannot write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachRequest {
    proof: FenceProof,
    timeout: Duration,
}

impl DetachRequest {
    /// Makes a request for a plain (not forced) detach of the proof's volume from the proof's holder. `timeout` bounds the
    /// whole call, including its reads, so that a leader can end it before its lease ends.
    pub fn plain(proof: FenceProof, timeout: Duration) -> Self {
        Self { proof, timeout }
    }

    /// Returns the volume to detach.
    pub fn volume(&self) -> &VolumeId {
        self.proof.volume()
    }

    /// Returns the instance to detach from.
    pub fn holder(&self) -> &InstanceId {
        self.proof.holder()
    }

    /// Returns the proof that the holder cannot write.
    pub fn proof(&self) -> &FenceProof {
        &self.proof
    }

    /// Returns the maximum duration of the whole call.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// A definite outcome of a request to detach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DetachOutcome {
    /// The provider accepted the detach, which takes effect later. Read the volume until it has no holder.
    Accepted,
    /// The volume has no holder. Nothing was done.
    AlreadyDetached,
    /// Another instance has the volume. Nothing was done.
    AttachedElsewhere(InstanceId),
    /// Another job of the cloud's own prevents the detach. The job ends by itself. Nothing was done.
    Busy {
        /// Text of the provider.
        detail: String,
    },
    /// The provider refuses changes to the volume until its staff lifts a lock. Nothing was done.
    Locked {
        /// Text of the provider.
        reason: String,
    },
    /// An earlier detach is under way. Nothing was done.
    Detaching,
}

/// An operation that not every provider supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Optional {
    /// Detaching without waiting for the guest.
    ForceDetach,
    /// Powering instances off and on.
    Power,
    /// Switching the automatic restart of instances off and on.
    KeepOff,
    /// Making and listing snapshots of volumes.
    Snapshot,
    /// Identifying the account that answers.
    Scope,
    /// Reading the history of an instance's power.
    PowerHistory,
}

impl fmt::Display for Optional {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ForceDetach => "force a detach",
            Self::Power => "power instances off or on",
            Self::KeepOff => "switch the automatic restart of instances",
            Self::Snapshot => "make snapshots of volumes",
            Self::Scope => "tell which account answers",
            Self::PowerHistory => "tell the history of an instance's power",
        })
    }
}

/// The provider does not support an operation. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("provider {provider} cannot {what}")]
pub struct Unsupported {
    /// Name of the provider.
    pub provider: String,
    /// Operation that is not supported.
    pub what: Optional,
}

impl Unsupported {
    /// Makes the error of this provider and operation.
    pub fn new(provider: &str, what: Optional) -> Self {
        Self {
            provider: provider.to_owned(),
            what,
        }
    }
}

/// The failure of an optional effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum EffectError {
    /// The provider does not support the operation.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The call had no usable result.
    #[error(transparent)]
    Failed(#[from] ProviderError),
}

impl EffectError {
    /// Whether the provider is away ([`ProviderError::is_away`]).
    pub fn is_away(&self) -> bool {
        match self {
            Self::Unsupported(_) => false,
            Self::Failed(error) => error.is_away(),
        }
    }

    /// Returns what is known about the effect.
    pub fn effect(&self) -> EffectKnowledge {
        match self {
            Self::Unsupported(_) => EffectKnowledge::NotApplied,
            Self::Failed(error) => error.effect(),
        }
    }
}

/// The proof does not show that the instance is off or gone. Its guest could have writes under way, which a forced detach
/// would cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error(
    "a forced detach needs a proof that instance {holder} is off or gone, and this proof does not show that"
)]
pub struct ForceRefused {
    /// Instance of the proof.
    pub holder: InstanceId,
    /// Kind of the proof.
    pub kind: ProofKind,
}

/// A request to detach one volume from one holder by force. It can only be made from a proof that the holder is off or
/// gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForceDetachRequest(DetachRequest);

impl ForceDetachRequest {
    /// Makes a request for a forced detach of the proof's volume from the proof's holder. `timeout` bounds the whole call,
    /// including its reads.
    ///
    /// # Errors
    /// [`ForceRefused`] for every kind of proof that leaves the instance running. A kubelet handshake is one.
    pub fn new(proof: FenceProof, timeout: Duration) -> Result<Self, ForceRefused> {
        if proof.shows_off_or_gone() {
            Ok(Self(DetachRequest::plain(proof, timeout)))
        } else {
            Err(ForceRefused {
                holder: proof.holder().clone(),
                kind: proof.kind().clone(),
            })
        }
    }

    /// Returns volume, holder, proof and timeout.
    pub fn order(&self) -> &DetachRequest {
        &self.0
    }
}

/// The manner of powering an instance off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PowerOffManner {
    /// The guest is asked to shut down. The provider decides how long it waits.
    Orderly,
    /// The guest is asked to shut down. The provider cuts the power when the guest does not do so in time.
    Forced,
}

/// A request to power one instance off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerOffRequest {
    /// Instance to power off.
    pub instance: InstanceId,
    /// Manner of powering off.
    pub manner: PowerOffManner,
    /// Maximum duration of the call. The shutdown itself takes longer.
    pub timeout: Duration,
}

/// A definite answer to a request to power an instance off or on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PowerOutcome {
    /// The request was accepted. Read the instance until it is in the wanted state.
    Accepted,
    /// The instance is in the wanted state. Nothing was done.
    AlreadyThere,
    /// The state of the instance does not allow it now. Nothing was done.
    Busy {
        /// Text of the provider.
        detail: String,
    },
}

/// A request to make a snapshot of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// Volume of which a snapshot is made.
    pub volume: VolumeId,
    /// Text that distinguishes this snapshot from all others of the volume, such as the recovery's UID. A call with an
    /// unknown outcome is looked up by it. At most 200 letters, digits, spaces and `-_.:/`.
    pub label: String,
    /// Maximum duration of the call. The snapshot itself takes longer.
    pub timeout: Duration,
}
