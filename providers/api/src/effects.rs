//! Effects beyond a plain detach: forced detach, power, snapshots. A provider that lacks one says so by its type.

use crate::error::{EffectKnowledge, ProviderError};
use crate::provider::DetachRequest;
use reattach_core::{
    ids::{InstanceId, VolumeId},
    proof::{FenceProof, ProofKind},
};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// An operation that not every provider has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Optional {
    /// A detach that does not wait for the guest.
    ForceDetach,
    /// Powering instances off and on.
    Power,
    /// Snapshots of volumes.
    Snapshot,
    /// Telling which account answers.
    Scope,
    /// Telling what happened to an instance's power.
    PowerHistory,
}

impl fmt::Display for Optional {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ForceDetach => "force a detach",
            Self::Power => "power instances off or on",
            Self::Snapshot => "make snapshots of volumes",
            Self::Scope => "tell which account answers",
            Self::PowerHistory => "tell the history of an instance's power",
        })
    }
}

/// The provider has no such operation. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("provider {provider} cannot {what}")]
pub struct Unsupported {
    /// The provider's name.
    pub provider: String,
    /// What was asked for.
    pub what: Optional,
}

impl Unsupported {
    /// This provider cannot do this.
    pub fn new(provider: &str, what: Optional) -> Self {
        Self { provider: provider.to_owned(), what }
    }
}

/// Why an optional effect gave no outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum EffectError {
    /// The provider has no such operation.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The call gave no usable result.
    #[error(transparent)]
    Failed(#[from] ProviderError),
}

impl EffectError {
    /// What the error tells about the effect.
    pub fn effect(&self) -> EffectKnowledge {
        match self {
            Self::Unsupported(_) => EffectKnowledge::NotApplied,
            Self::Failed(error) => error.effect(),
        }
    }
}

/// The proof does not show that the instance is off or gone, so its guest could still have writes under way that a
/// forced detach would cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error(
    "a forced detach needs a proof that instance {holder} is off or gone, and this proof does not show that"
)]
pub struct ForceRefused {
    /// The instance that the proof is about.
    pub holder: InstanceId,
    /// What the proof rests on.
    pub kind: ProofKind,
}

/// An order to detach by force one volume from one holder. A plain order cannot become one: it takes a proof that the
/// holder is off or gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForceDetachRequest(DetachRequest);

impl ForceDetachRequest {
    /// A forced detach of the proof's volume from the proof's holder. `timeout` bounds the whole call, the reading
    /// before it included.
    ///
    /// # Errors
    /// [`ForceRefused`] for every kind of proof that leaves the instance running. A kubelet handshake is one.
    pub fn new(proof: FenceProof, timeout: Duration) -> Result<Self, ForceRefused> {
        if proof.shows_off_or_gone() {
            Ok(Self(DetachRequest::plain(proof, timeout)))
        } else {
            Err(ForceRefused { holder: proof.holder().clone(), kind: proof.kind().clone() })
        }
    }

    /// Volume, holder, proof and time, as of every order to detach.
    pub fn order(&self) -> &DetachRequest {
        &self.0
    }
}

/// How an instance is powered off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PowerOffManner {
    /// The guest is asked to shut down, and waited for as long as the provider does.
    Orderly,
    /// The guest is asked, and its power cut when it does not follow in the provider's own time.
    Forced,
}

/// An order to power one instance off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerOffRequest {
    /// The instance.
    pub instance: InstanceId,
    /// How.
    pub manner: PowerOffManner,
    /// How long the call may take; the shutdown itself takes longer.
    pub timeout: Duration,
}

/// A definite answer to an order to power an instance off or on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PowerOutcome {
    /// Accepted; read the instance until its state is the wanted one.
    Accepted,
    /// It is in the wanted state; nothing was done.
    AlreadyThere,
    /// It is in a state from which this cannot be done now; nothing was done.
    Busy {
        /// The provider's words.
        detail: String,
    },
}

/// An order to make a snapshot of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// The volume.
    pub volume: VolumeId,
    /// A text that tells this snapshot from all others of the volume, such as the recovery's UID: a call of unknown
    /// outcome is looked up by it. At most 200 characters of letters, digits, spaces and `-_.:/`.
    pub label: String,
    /// How long the call may take; the snapshot itself takes longer.
    pub timeout: Duration,
}
