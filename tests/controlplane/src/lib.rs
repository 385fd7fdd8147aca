//! A real Kubernetes control plane on loopback, for tests.
//!
//! [`ControlPlane::start`] runs etcd, kube-apiserver, kube-controller-manager and kube-scheduler, and on request
//! external-attacher over a CSI controller that behaves as Linode's ([`CsiOptions`]). Nodes are not part of it: there
//! is no kubelet, so a test plays its kubelets as clients of the API server.
//!
//! # Guarantees
//! - Everything lives in one temporary folder, listens on 127.0.0.1 only, and dies with the handle: also when the test
//!   panics, and when the test process itself is killed.
//! - Several control planes run side by side: ports are held from before the servers start until the handle drops.
//! - Nothing waits by the clock; readiness is what the components themselves say.
//!
//! # Where the binaries come from
//! `REATTACH_CONTROLPLANE_BIN` names a folder with all of them, otherwise `tests/controlplane/build` finds or builds it
//! (about 13 CPU-minutes when cold; it honours `KUBEBUILDER_ASSETS`).
//!
//! # When a test fails
//! The folder with all logs and the audit log is kept and its path printed on stderr. `REATTACH_CONTROLPLANE_KEEP=1`
//! keeps it in any case.

mod audit;
mod binaries;
mod command_line;
mod component;
mod control_plane;
mod credentials;
mod csi;
mod error;
mod options;
mod ports;
mod process;
mod processes;
pub mod scenarios;
mod work_dir;

pub use audit::AuditEvent;
pub use component::Component;
pub use control_plane::ControlPlane;
pub use csi::{CsiCall, CsiFaults, Unpublish};
pub use error::HarnessError;
pub use options::{CsiOptions, DEFAULT_DRIVER, Options, User};
pub use processes::eventually;
