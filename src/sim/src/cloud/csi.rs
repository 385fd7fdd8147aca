//! A CSI controller that behaves as Linode's: same checks, same texts, same patience.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{CloudApi, CloudApiError, CloudVolumes, CsiCode, CsiError, Published};
use crate::names::id_of;

/// Poll interval while an attach or detach is under way (linodego).
const POLL: Duration = Duration::from_secs(3);
/// The longest pause between two calls that are answered "Linode busy.".
const BUSY_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long the driver waits for an attach or detach.
const PATIENCE: Duration = Duration::from_secs(300);

/// The controller part of Linode's CSI driver over any [`CloudApi`]. Clones share their switches.
#[derive(Clone)]
pub struct LinodeCsi {
    cloud: Arc<dyn CloudApi>,
    down: Arc<AtomicBool>,
    unpublish_fails: Arc<AtomicBool>,
    publishes_nodes: Arc<AtomicBool>,
}

impl LinodeCsi {
    /// A controller for `cloud`.
    #[must_use]
    pub fn new(cloud: Arc<dyn CloudApi>) -> Self {
        Self {
            cloud,
            down: Arc::default(),
            unpublish_fails: Arc::default(),
            publishes_nodes: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Whether it has the capability LIST_VOLUMES_PUBLISHED_NODES (Linode's has it): external-attacher compares
    /// VolumeAttachments with the cloud only where it does.
    pub fn set_publishes_nodes(&self, publishes: bool) {
        self.publishes_nodes.store(publishes, Ordering::Relaxed);
    }

    /// While down, every call ends in `Unavailable`.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    /// While set, Unpublish of a volume that the cloud still shows as attached to the node fails and detaches nothing.
    pub fn set_unpublish_fails(&self, fails: bool) {
        self.unpublish_fails.store(fails, Ordering::Relaxed);
    }

    fn check_up(&self) -> Result<(), CsiError> {
        if self.down.load(Ordering::Relaxed) {
            let why = "connection error: desc = \"transport: Error while dialing: connect: connection refused\"";
            return Err(CsiError::new(CsiCode::Unavailable, why));
        }
        Ok(())
    }

    async fn publish_now(&self, handle: &str, node_id: &str) -> Result<(), CsiError> {
        self.check_up()?;
        let id = id_of(handle);
        let internal = |what: &str| {
            let what = what.to_owned();
            move |e: CloudApiError| CsiError::new(CsiCode::Internal, format!("{what}: {e}"))
        };
        if !self
            .cloud
            .instance_exists(node_id)
            .await
            .map_err(internal("get linode instance"))?
        {
            return Err(CsiError::new(
                CsiCode::NotFound,
                format!("linode instance {node_id} not found"),
            ));
        }
        let volume = match self.cloud.volume(handle).await {
            Ok(v) => v,
            Err(CloudApiError::NotFound) => {
                return Err(CsiError::new(
                    CsiCode::NotFound,
                    format!("volume not found: {id}"),
                ));
            }
            Err(e) => return Err(internal("get volume")(e)),
        };
        match volume.holder.as_deref() {
            Some(holder) if holder != node_id => {
                let why = format!("volume {id} is already attached to linode {holder}");
                return Err(CsiError::new(CsiCode::FailedPrecondition, why));
            }
            Some(_) => {}
            None => patient(|| self.cloud.attach(handle, node_id))
                .await
                .map_err(|e| {
                    let code = if e.to_string().contains("is already attached") {
                        CsiCode::Unavailable
                    } else {
                        CsiCode::Internal
                    };
                    CsiError::new(code, format!("attach volume: {e}"))
                })?,
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let v = self
                .cloud
                .volume(handle)
                .await
                .map_err(internal("wait for volume to attach"))?;
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

    async fn unpublish_now(&self, handle: &str, node_id: &str) -> Result<(), CsiError> {
        self.check_up()?;
        let id = id_of(handle);
        let volume = match self.cloud.volume(handle).await {
            Ok(v) => v,
            Err(CloudApiError::NotFound) => return Ok(()),
            Err(e) => return Err(CsiError::new(CsiCode::Internal, format!("get volume: {e}"))),
        };
        if volume.holder.as_deref().is_some_and(|h| h != node_id) {
            return Ok(());
        }
        if volume.holder.is_some() && self.unpublish_fails.load(Ordering::Relaxed) {
            return Err(CsiError::new(
                CsiCode::Internal,
                format!("detach volume {id}: [500] Internal Server Error"),
            ));
        }
        match patient(|| self.cloud.detach(handle)).await {
            Ok(()) | Err(CloudApiError::NotFound) => {}
            Err(e) => {
                return Err(CsiError::new(
                    CsiCode::Internal,
                    format!("detach volume {id}: {e}"),
                ));
            }
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.cloud.volume(handle).await {
                Ok(v) if v.holder.is_none() => return Ok(()),
                Err(CloudApiError::NotFound) => return Ok(()),
                Ok(_) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
                Ok(_) => {
                    return Err(CsiError::new(
                        CsiCode::Internal,
                        format!("wait for volume {id} to detach: timed out"),
                    ));
                }
                Err(e) => {
                    return Err(CsiError::new(
                        CsiCode::Internal,
                        format!("wait for volume {id} to detach: {e}"),
                    ));
                }
            }
        }
    }
}

/// linodego repeats a call that is answered "Linode busy." until the caller's patience ends.
async fn patient<'a, F>(mut call: F) -> Result<(), CloudApiError>
where
    F: FnMut() -> BoxFuture<'a, Result<(), CloudApiError>>,
{
    let mut wait = POLL;
    loop {
        match call().await {
            Err(CloudApiError::Refused {
                status: 400,
                reason,
            }) if reason == "Linode busy." => {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(BUSY_WAIT_MAX);
            }
            other => return other,
        }
    }
}

impl CloudVolumes for LinodeCsi {
    fn publish<'a>(
        &'a self,
        handle: &'a str,
        node_id: &'a str,
    ) -> BoxFuture<'a, Result<(), CsiError>> {
        Box::pin(self.publish_now(handle, node_id))
    }

    fn unpublish<'a>(
        &'a self,
        handle: &'a str,
        node_id: &'a str,
    ) -> BoxFuture<'a, Result<(), CsiError>> {
        Box::pin(self.unpublish_now(handle, node_id))
    }

    fn list_published(&self) -> BoxFuture<'_, Result<Option<Published>, CsiError>> {
        Box::pin(async {
            if !self.publishes_nodes.load(Ordering::Relaxed) {
                return Ok(None);
            }
            self.check_up()?;
            let all = self.cloud.volumes().await;
            let all =
                all.map_err(|e| CsiError::new(CsiCode::Internal, format!("list volumes: {e}")))?;
            Ok(Some(
                all.into_iter()
                    .filter_map(|v| Some((v.handle, v.holder?)))
                    .collect(),
            ))
        })
    }
}
