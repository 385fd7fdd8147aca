//! The request log: what was asked of the simulated cloud and what came of it.

use crate::{
    faults::Operation,
    model::{InstanceNo, JobAction, VolumeNo},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a request did to the cloud.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nothing: a read, a refusal, or a success without an effect.
    None,
    /// A snapshot was begun.
    Snapshot {
        /// The volume.
        volume: VolumeNo,
    },
    /// A job was accepted.
    Accepted {
        /// What the job does.
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
    /// Its number, from 1.
    pub number: u64,
    /// When it arrived, on the simulator's clock.
    pub at: Timestamp,
    /// The HTTP method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The query string.
    pub query: String,
    /// The `X-Filter` header.
    pub filter: Option<String>,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
    /// The request's body, as text.
    pub body: String,
    /// What it asked for; `None` for a path or method that the API does not have.
    pub operation: Option<Operation>,
    /// Whether it asked for a dry-run only (EC2's `DryRun`).
    #[serde(default)]
    pub dry_run: bool,
    /// The HTTP status of the answer; `None` where the connection was cut, or no answer was given yet.
    pub status: Option<u16>,
    /// What it did.
    pub effect: Effect,
    /// Faults that hit it.
    pub faults: Vec<String>,
}

impl RequestRecord {
    /// Whether it was a request to change something, whatever came of it. A dry-run is none.
    pub fn is_mutation(&self) -> bool {
        !self.dry_run && self.operation.map_or(self.method != "GET", Operation::is_mutation)
    }
}
