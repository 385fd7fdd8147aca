//! The journal's store: a VolumeRecovery's status, written by compare-and-swap.
//!
//! # Expected flow
//! [`save`] replaces the status of exactly the version that was read. On [`SaveError::Conflict`] the caller reads and
//! decides again; it never merges.
//!
//! # Guarantees
//! Every text of a stored status is plain and bounded. A status that is too large is cut and says so; one that the API
//! server refuses all the same is written once more, shorter, and then fails with [`SaveError::Refused`].
//!
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
use reattach_api::metadata::{self, MissingField};
use reattach_api::{SMALL_STATUS_BYTES, STATUS_BYTES, StoredRecovery, VolumeRecovery};

/// Why the status was not stored, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Another writer was first: read again.
    #[error("the VolumeRecovery changed meanwhile")]
    Conflict,
    /// It is gone.
    #[error("the VolumeRecovery is gone")]
    Gone,
    /// The API server refuses this status, and a smaller one, too: nothing was written, and the same write is refused
    /// again.
    #[error("the API server refuses the status of the VolumeRecovery, and a shorter one too: {0}")]
    Refused(#[source] Box<kube::Error>),
    /// The object names no namespace or no resourceVersion, so that its write would have no condition: nothing was sent.
    #[error("the VolumeRecovery could not be written: {0}")]
    Incomplete(#[from] MissingField),
    /// Anything else; the write may have been applied.
    #[error("the VolumeRecovery could not be written: {0}")]
    Other(#[source] Box<kube::Error>),
}

impl SaveError {
    /// Whether the API server refused this status for good. It was not stored then.
    pub fn is_refused(&self) -> bool {
        match self {
            Self::Conflict | Self::Gone => false,
            Self::Refused(_) | Self::Incomplete(_) => true,
            Self::Other(error) => crate::reply::is_refused(error),
        }
    }
}

/// Stores the status of `recovery` on condition that its resourceVersion is still the newest.
///
/// # Errors
/// See [`SaveError`].
pub async fn save(
    records: &Client,
    recovery: &VolumeRecovery,
) -> Result<StoredRecovery, SaveError> {
    let whole = fitted(recovery, STATUS_BYTES);
    match replace(records, &whole).await {
        // A refusal has no effect. The limits of this API server, or of the schema that it has, are not known here.
        Err(SaveError::Refused(error)) => {
            let small = fitted(recovery, SMALL_STATUS_BYTES);
            if small.status == whole.status {
                return Err(SaveError::Refused(error));
            }
            tracing::warn!(recovery = whole.name_any(), %error, "the API server refused a status; a shorter one is written");
            replace(records, &small).await
        }
        other => other,
    }
}

fn fitted(recovery: &VolumeRecovery, bytes: usize) -> VolumeRecovery {
    let mut recovery = recovery.clone();
    if let Some(status) = &mut recovery.status {
        status.fit(bytes);
    }
    recovery
}

async fn replace(records: &Client, recovery: &VolumeRecovery) -> Result<StoredRecovery, SaveError> {
    let meta = metadata::of(recovery);
    let name = meta.object_name()?;
    meta.version()?;
    let api: Api<VolumeRecovery> = Api::namespaced(records.clone(), &name.namespace);
    match api
        .replace_status(&name.name, &PostParams::default(), recovery)
        .await
    {
        // The write was applied, so an answer that lacks a field is no refusal.
        Ok(stored) => StoredRecovery::try_from(stored)
            .map_err(|missing| SaveError::Other(Box::new(missing.into()))),
        Err(kube::Error::Api(status)) if status.is_conflict() => Err(SaveError::Conflict),
        Err(kube::Error::Api(status)) if status.is_not_found() => Err(SaveError::Gone),
        // The API server takes no such object: too large (413), or against the schema or an admission policy (422).
        Err(kube::Error::Api(status)) if matches!(status.code, 413 | 422) => {
            Err(SaveError::Refused(Box::new(kube::Error::Api(status))))
        }
        Err(error) => Err(SaveError::Other(Box::new(error))),
    }
}
