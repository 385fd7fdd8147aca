//! Errors of a round of the loop, as sentences.

use crate::guest::ScanError;
use kube::runtime::watcher;
use reattach_api::metadata::MissingField;
use std::future::Future;
use std::time::Duration;
use tokio::time::timeout;

/// Timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Number of attempts of a write that another writer preceded.
pub(super) const CONFLICTS: usize = 3;

/// A round that did not end with an up-to-date report.
#[derive(Debug, thiserror::Error)]
pub(super) enum RoundError {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error("the scan was aborted: {0}")]
    Aborted(#[from] tokio::task::JoinError),
    #[error("{}", sentence(.0))]
    Api(#[from] kube::Error),
    #[error("{0}, so the report is not written")]
    Incomplete(#[from] MissingField),
    #[error("the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut,
    #[error(
        "another writer changed this node's report {CONFLICTS} times in a row; check which other client writes it"
    )]
    Conflict,
}

/// Bounds a request by the timeout.
pub(super) async fn within<T>(
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, RoundError> {
    timeout(REQUEST_TIMEOUT, request)
        .await
        .map_err(|_| RoundError::TimedOut)?
        .map_err(RoundError::Api)
}

pub(super) fn is_conflict(e: &kube::Error) -> bool {
    matches!(e, kube::Error::Api(status) if status.code == 409)
}

pub(super) fn is_not_found(e: &kube::Error) -> bool {
    matches!(e, kube::Error::Api(status) if status.code == 404)
}

/// Returns one sentence for an API error: what is the case and what to do.
fn sentence(e: &kube::Error) -> String {
    match e {
        kube::Error::Api(status) if status.code == 404 => {
            "the cluster has no resource NodeVolumeReport; install reattach's CRDs".to_owned()
        }
        kube::Error::Api(status) if status.code == 403 => {
            format!(
                "the agent lacks a right; check its ClusterRole: {}",
                status.message
            )
        }
        kube::Error::Api(status) => format!("the API server refused: {}", status.message),
        other => format!("the API server cannot be reached: {other}"),
    }
}

pub(super) fn watch_sentence(e: &watcher::Error) -> String {
    match e {
        watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) => sentence(e),
        other => other.to_string(),
    }
}
