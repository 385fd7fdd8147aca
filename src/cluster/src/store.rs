//! The journal's store: a VolumeRecovery's status, written by compare-and-swap.
//!
//! # Expected flow
//! [`save`] replaces the status of exactly the version that was read. On [`SaveError::Conflict`] the caller reads again
//! and decides anew; it never merges.
//!
//! # Guarantees
//! A line that `save` reported as stored is in the object, after every line before it.
//!
//! # Assumptions
//! The API server refuses a write with an old resourceVersion.
//!
//! # Caveats
//! After a lost reply the line may or may not be stored: the caller reads the object again before it does anything.
//!
//! # Errors
//! [`SaveError`].

use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use reattach_api::VolumeRecovery;

/// Why the status was not stored, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Someone else wrote first: read again.
    #[error("the VolumeRecovery changed meanwhile")]
    Conflict,
    /// It is gone.
    #[error("the VolumeRecovery is gone")]
    Gone,
    /// Anything else; the write may have been applied.
    #[error("the VolumeRecovery could not be written: {0}")]
    Other(#[source] Box<kube::Error>),
}

impl SaveError {
    /// Whether the API server refused this status for good. It was not stored then.
    pub fn is_refused(&self) -> bool {
        match self {
            Self::Conflict | Self::Gone => false,
            Self::Other(error) => crate::reply::is_refused(error),
        }
    }
}

/// Stores the status of `recovery` on condition that its resourceVersion is still the newest.
///
/// # Errors
/// See [`SaveError`].
pub async fn save(records: &Client, recovery: &VolumeRecovery) -> Result<VolumeRecovery, SaveError> {
    let api: Api<VolumeRecovery> =
        Api::namespaced(records.clone(), &recovery.namespace().unwrap_or_default());
    match api.replace_status(&recovery.name_any(), &PostParams::default(), recovery).await {
        Ok(stored) => Ok(stored),
        Err(kube::Error::Api(status)) if status.is_conflict() => Err(SaveError::Conflict),
        Err(kube::Error::Api(status)) if status.is_not_found() => Err(SaveError::Gone),
        Err(error) => Err(SaveError::Other(Box::new(error))),
    }
}
