//! The interface to a cloud: the [`Provider`] trait, its results and errors, the one algorithm that detaches a volume
//! ([`detach`](mod@detach)), the limiter that every request of a credential passes ([`limiter`]), and the HTTP transport that
//! production and the simulation share.
//!
//! Errors are sorted by *what is known about the effect*, because that decides the next action: an effect that surely did
//! not happen may be tried again; an effect that may have happened must be observed first.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod deadline;
pub mod detach;
mod effects;
mod error;
pub mod limiter;
mod masked;
mod provider;
pub mod socket;
pub mod transport;

pub use deadline::Deadline;
pub use effects::{
    DetachOutcome, DetachRequest, EffectError, ForceDetachRequest, ForceRefused, Optional,
    PowerOffManner, PowerOffRequest, PowerOutcome, SnapshotRequest, Unsupported,
};
pub use error::{EffectKnowledge, HandleError, ProviderError};
pub use limiter::{Limiter, Purpose, RequestKind};
pub use masked::masking;
pub use provider::{Capabilities, Grant, Lookup, PreflightReport, Provider, Right, RightUse};
pub use transport::{HttpTransport, TransportError, TransportErrorKind};
