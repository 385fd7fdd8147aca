//! The request log: every request to the simulated cloud, with its effect.

use crate::{
    faults::Operation,
    model::{InstanceNo, JobAction, VolumeNo},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The effect of a request on the cloud.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// No effect: a read, a refusal, or a success that changed nothing.
    None,
    /// A snapshot was begun.
    Snapshot {
        /// The volume.
        volume: VolumeNo,
    },
    /// The watchdog of an instance was switched.
    Watchdog {
        /// The instance.
        instance: InstanceNo,
        /// Whether the watchdog is on now.
        on: bool,
    },
    /// A job was accepted.
    Accepted {
        /// The kind of the job.
        action: JobAction,
        /// The volume that it concerns.
        volume: Option<VolumeNo>,
        /// The instance that it concerns.
        instance: Option<InstanceNo>,
    },
}

/// One request and its answer. Credentials are never recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Sequence number, from 1.
    pub number: u64,
    /// Time of arrival, on the simulator's clock.
    pub at: Timestamp,
    /// HTTP method.
    pub method: String,
    /// Path of the URL.
    pub path: String,
    /// Query string of the URL.
    pub query: String,
    /// Value of the `X-Filter` header.
    pub filter: Option<String>,
    /// Value of the `User-Agent` header.
    pub user_agent: Option<String>,
    /// The request's body, as text.
    pub body: String,
    /// The operation. `None`: a path or method that the API does not have.
    pub operation: Option<Operation>,
    /// Whether the request was a dry-run (EC2's `DryRun`).
    #[serde(default)]
    pub dry_run: bool,
    /// HTTP status of the answer. `None`: the connection was cut, or no answer was given yet.
    pub status: Option<u16>,
    /// The effect of the request.
    pub effect: Effect,
    /// Faults that applied to the request.
    pub faults: Vec<String>,
}

impl RequestRecord {
    /// Returns whether the request was a mutation, also when it was refused. A dry-run is no mutation.
    pub fn is_mutation(&self) -> bool {
        !self.dry_run
            && self
                .operation
                .map_or(self.method != "GET", Operation::is_mutation)
    }
}
