//! The simulated cluster's view of a cloud ([`CloudApi`], [`Hardware`]), and the cloud simulator behind it
//! ([`SimulatedCloud`]). There is no other simulated cloud.

mod csi;
mod ground;
mod simulator;

use futures::future::BoxFuture;

pub use csi::LinodeCsi;
pub use ground::{Ground, instance_no, volume_no};
pub use simulator::SimulatedCloud;

/// gRPC codes that CSI controllers answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CsiCode {
    /// The volume or the node does not exist.
    NotFound,
    /// The volume is attached elsewhere.
    FailedPrecondition,
    /// No room on the node.
    ResourceExhausted,
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
pub struct CsiError {
    /// The gRPC code.
    pub code: CsiCode,
    /// The description.
    pub message: String,
}

impl CsiError {
    /// An error.
    #[must_use]
    pub fn new(code: CsiCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// Published volumes: (volume handle, node id).
pub type Published = Vec<(String, String)>;

/// A CSI controller plugin: what external-attacher calls.
pub trait CloudVolumes: Send + Sync + 'static {
    /// `ControllerPublishVolume`: returns when the volume is attached.
    fn publish<'a>(
        &'a self,
        handle: &'a str,
        node_id: &'a str,
    ) -> BoxFuture<'a, Result<(), CsiError>>;
    /// `ControllerUnpublishVolume`: returns when the volume is detached from this node.
    fn unpublish<'a>(
        &'a self,
        handle: &'a str,
        node_id: &'a str,
    ) -> BoxFuture<'a, Result<(), CsiError>>;
    /// `ListVolumes` with published nodes. `None` if the driver has no such capability.
    fn list_published(&self) -> BoxFuture<'_, Result<Option<Published>, CsiError>>;
}

/// An error of the cloud's API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudApiError {
    /// 404.
    #[error("[404] Not found")]
    NotFound,
    /// Any other refusal: status and reason.
    #[error("[{status}] {reason}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The reason that the cloud gives.
        reason: String,
    },
    /// No answer.
    #[error("the cloud's API did not answer: {0}")]
    Unreachable(String),
}

/// A volume as the cloud's API describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudVolume {
    /// The handle.
    pub handle: String,
    /// Instance that the API names as holder.
    pub holder: Option<String>,
    /// Whether the attachment is complete (Linode: `io_ready`).
    pub ready: bool,
}

/// The cloud's API as a CSI driver uses it: calls that start jobs, and reads.
pub trait CloudApi: Send + Sync + 'static {
    /// Describes a volume.
    fn volume<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<CloudVolume, CloudApiError>>;
    /// Describes all volumes.
    fn volumes(&self) -> BoxFuture<'_, Result<Vec<CloudVolume>, CloudApiError>>;
    /// Whether an instance exists.
    fn instance_exists<'a>(
        &'a self,
        instance: &'a str,
    ) -> BoxFuture<'a, Result<bool, CloudApiError>>;
    /// Begins to attach.
    fn attach<'a>(
        &'a self,
        handle: &'a str,
        instance: &'a str,
    ) -> BoxFuture<'a, Result<(), CloudApiError>>;
    /// Begins to detach from whichever instance holds it.
    fn detach<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<(), CloudApiError>>;
}

/// A block device that a guest's kernel has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDevice {
    /// Handle of the volume.
    pub handle: String,
    /// The identity that the device reports (Linode: the volume's label, in SCSI page 0x83).
    pub label: String,
    /// Size in bytes.
    pub size: u64,
}

/// A change of the power of the machine under a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It loses power; its memory and devices are gone, the cloud's attachments stay.
    Off,
    /// The cloud recycles it uncleanly: as `Off`, and it comes back without its devices.
    Recycle,
    /// It boots.
    On,
}

/// The machines: what guests see, apart from what the cloud's API says.
pub trait Hardware: Send + Sync + 'static {
    /// The volumes that the guest of `instance` has a device for.
    fn guest_devices<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Vec<GuestDevice>>;
    /// Notes that a guest mounted or unmounted a device.
    fn in_use<'a>(
        &'a self,
        _instance: &'a str,
        _handle: &'a str,
        _in_use: bool,
    ) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Notes that a simulated node lost or got power.
    fn power<'a>(&'a self, _instance: &'a str, _power: Power) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}
