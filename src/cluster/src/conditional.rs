//! Requests with a condition: they hit the object that was read and no other, or nothing.

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use reattach_api::metadata;
use reattach_core::ids::{ResourceVersion, Uid};
use reattach_core::journal::Outcome;

/// The API server takes a precondition with an empty UID for none at all: the effect would hit whatever has the name now.
pub(crate) fn require_uid(uid: &Uid) -> Result<(), Outcome> {
    if uid.as_str().is_empty() {
        let why = "the object's UID is not known, so nothing was sent".to_owned();
        return Err(Outcome::NotApplied { why, retry: false });
    }
    Ok(())
}

/// Deletes an object by its UID.
pub(crate) fn delete_uid(uid: &Uid) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_string()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}

/// Deletes an object by its UID, unless it has changed since this version.
pub(crate) fn delete_version(uid: &Uid, version: &ResourceVersion) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_string()),
            resource_version: Some(version.to_string()),
        }),
        ..DeleteParams::default()
    }
}

/// Writes a Lease: `old`, which was read, is replaced on condition of its resourceVersion; without it, the Lease is created.
///
/// # Errors
/// The API server's error: a conflict, or that it exists already, where another writer was faster.
pub(crate) async fn write_lease(
    api: &Api<Lease>,
    name: &str,
    old: Option<Lease>,
    change: impl FnOnce(&mut Lease),
) -> Result<Lease, kube::Error> {
    let params = PostParams::default();
    match old {
        Some(mut lease) => {
            metadata::of(&lease).version()?;
            change(&mut lease);
            api.replace(name, &params, &lease).await
        }
        None => {
            let mut lease = Lease::default();
            lease.metadata.name = Some(name.to_owned());
            change(&mut lease);
            api.create(&params, &lease).await
        }
    }
}
