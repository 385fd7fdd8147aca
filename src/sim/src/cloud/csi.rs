//! A CSI controller that behaves as Linode's: same checks, same texts, same patience.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::{CloudApiError, SimulatedCloud};
use crate::names::id_of;

/// Poll interval while an attach or detach is under way (linodego).
const POLL: Duration = Duration::from_secs(3);
/// The longest pause between two calls that are answered "Linode busy.".
const BUSY_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long the driver waits for an attach or detach.
const PATIENCE: Duration = Duration::from_secs(300);

/// gRPC codes that CSI controllers answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CsiCode {
    /// The volume or the node does not exist.
    NotFound,
    /// The volume is attached elsewhere.
    FailedPrecondition,
    /// Try again.
    Unavailable,
    /// The deadline of the call has passed.
    DeadlineExceeded,
    /// Anything else.
    Internal,
}

/// An error of a CSI call, printed as gRPC clients print it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rpc error: code = {code:?} desc = {message}")]
pub(crate) struct CsiError {
    code: CsiCode,
    message: String,
}

impl CsiError {
    pub(crate) fn new(code: CsiCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    fn internal(what: &str, error: &CloudApiError) -> Self {
        Self::new(CsiCode::Internal, format!("{what}: {error}"))
    }
}

/// The controller part of Linode's CSI driver, which external-attacher calls. Clones share their switches.
#[derive(Clone)]
pub struct LinodeCsi {
    cloud: SimulatedCloud,
    unpublish_fails: Arc<AtomicBool>,
    publishes_nodes: Arc<AtomicBool>,
}

impl LinodeCsi {
    /// A controller for `cloud`.
    #[must_use]
    pub fn new(cloud: SimulatedCloud) -> Self {
        Self {
            cloud,
            unpublish_fails: Arc::default(),
            publishes_nodes: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Whether it has the capability LIST_VOLUMES_PUBLISHED_NODES (Linode's has it): external-attacher compares
    /// VolumeAttachments with the cloud only where it does.
    pub fn set_publishes_nodes(&self, publishes: bool) {
        self.publishes_nodes.store(publishes, Ordering::Relaxed);
    }

    /// While set, Unpublish of a volume that the cloud still shows as attached to the node fails and detaches nothing.
    pub fn set_unpublish_fails(&self, fails: bool) {
        self.unpublish_fails.store(fails, Ordering::Relaxed);
    }

    /// The cloud behind the driver.
    pub(crate) fn cloud(&self) -> &SimulatedCloud {
        &self.cloud
    }

    /// `ControllerPublishVolume`: returns when the volume is attached.
    pub(crate) async fn publish(&self, handle: &str, node_id: &str) -> Result<(), CsiError> {
        let id = id_of(handle);
        let exists = self.cloud.instance_exists(node_id);
        if !exists.map_err(|e| CsiError::internal("get linode instance", &e))? {
            return Err(CsiError::new(
                CsiCode::NotFound,
                format!("linode instance {node_id} not found"),
            ));
        }
        let volume = self.cloud.volume(handle).map_err(|e| match e {
            CloudApiError::NotFound => {
                CsiError::new(CsiCode::NotFound, format!("volume not found: {id}"))
            }
            e => CsiError::internal("get volume", &e),
        })?;
        match volume.holder.as_deref() {
            Some(holder) if holder != node_id => {
                let why = format!("volume {id} is already attached to linode {holder}");
                return Err(CsiError::new(CsiCode::FailedPrecondition, why));
            }
            Some(_) => {}
            None => patient(|| self.cloud.attach(handle, node_id))
                .await
                .map_err(|e| {
                    let code = match e {
                        CloudApiError::AlreadyAttached(_) => CsiCode::Unavailable,
                        _ => CsiCode::Internal,
                    };
                    CsiError::new(code, format!("attach volume: {e}"))
                })?,
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let v = self.cloud.volume(handle);
            let v = v.map_err(|e| CsiError::internal("wait for volume to attach", &e))?;
            if v.ready && v.holder.as_deref() == Some(node_id) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(CsiError::new(
                    CsiCode::Internal,
                    format!("wait for volume {id} to attach: timed out"),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// `ControllerUnpublishVolume`: returns when the volume is detached from this node.
    pub(crate) async fn unpublish(&self, handle: &str, node_id: &str) -> Result<(), CsiError> {
        let id = id_of(handle);
        let holder = match self.cloud.volume(handle) {
            Ok(v) => v.holder,
            Err(CloudApiError::NotFound) => return Ok(()),
            Err(e) => return Err(CsiError::internal("get volume", &e)),
        };
        if holder.as_deref().is_some_and(|h| h != node_id) {
            return Ok(());
        }
        if holder.is_some() && self.unpublish_fails.load(Ordering::Relaxed) {
            return Err(CsiError::new(
                CsiCode::Internal,
                format!("detach volume {id}: [500] Internal Server Error"),
            ));
        }
        match patient(|| self.cloud.detach(handle)).await {
            Ok(()) | Err(CloudApiError::NotFound) => {}
            Err(e) => return Err(CsiError::internal(&format!("detach volume {id}"), &e)),
        }
        let deadline = Instant::now() + PATIENCE;
        let waiting = format!("wait for volume {id} to detach");
        loop {
            match self.cloud.volume(handle) {
                Ok(v) if v.holder.is_none() => return Ok(()),
                Err(CloudApiError::NotFound) => return Ok(()),
                Ok(_) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
                Ok(_) => {
                    return Err(CsiError::new(
                        CsiCode::Internal,
                        format!("{waiting}: timed out"),
                    ));
                }
                Err(e) => return Err(CsiError::internal(&waiting, &e)),
            }
        }
    }

    /// `ListVolumes`: handle and node ID of each volume that is published. `None` if the driver has no such capability.
    pub(crate) fn list_published(&self) -> Result<Option<Vec<(String, String)>>, CsiError> {
        if !self.publishes_nodes.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let all = self.cloud.volumes();
        let all = all.map_err(|e| CsiError::internal("list volumes", &e))?;
        let published = all.into_iter().filter_map(|v| Some((v.handle, v.holder?)));
        Ok(Some(published.collect()))
    }
}

/// linodego repeats a call that is answered "Linode busy." until the caller's patience ends.
async fn patient(call: impl Fn() -> Result<(), CloudApiError>) -> Result<(), CloudApiError> {
    let mut wait = POLL;
    loop {
        match call() {
            Err(CloudApiError::Busy) => {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(BUSY_WAIT_MAX);
            }
            other => return other,
        }
    }
}
