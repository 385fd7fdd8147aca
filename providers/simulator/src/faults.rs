//! Faults of the API itself, as data: the requests that they apply to, how often, and their kind.
//!
//! Locks, phantom attachments and stuck detaches are states of volumes and instances, and no faults of the API: see
//! [`crate::CloudSim`].

use crate::model::{InstanceNo, VolumeNo};
use serde::{Deserialize, Serialize};

/// The operation of a request, in terms that all providers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// List volumes.
    ListVolumes,
    /// Read one volume.
    DescribeVolume,
    /// Attach a volume.
    AttachVolume,
    /// Detach a volume.
    DetachVolume,
    /// List instances.
    ListInstances,
    /// Read one instance.
    DescribeInstance,
    /// List the volumes of an instance.
    ListInstanceVolumes,
    /// Boot an instance.
    BootInstance,
    /// Shut an instance down.
    ShutdownInstance,
    /// Reboot an instance.
    RebootInstance,
    /// Change the fields of an instance.
    UpdateInstance,
    /// Read the job history.
    ListJobs,
    /// Begin a snapshot.
    CreateSnapshot,
    /// List snapshots.
    ListSnapshots,
}

impl Operation {
    /// Returns whether the operation can change something.
    pub fn is_mutation(self) -> bool {
        matches!(
            self,
            Self::AttachVolume
                | Self::DetachVolume
                | Self::BootInstance
                | Self::ShutdownInstance
                | Self::RebootInstance
                | Self::UpdateInstance
                | Self::CreateSnapshot
        )
    }
}

/// The moment of a fault: before or after the effect of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// The request changed nothing.
    BeforeEffect,
    /// The request had its effect; only the answer is wrong or missing.
    AfterEffect,
}

/// The body of an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorBody {
    /// The API's own JSON.
    #[default]
    Json,
    /// A proxy's HTML page.
    Html,
    /// No body.
    Empty,
    /// A body of the API's own content type that breaks off.
    Truncated,
}

/// The kind of a fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// 429, with or without `Retry-After`.
    Throttle {
        /// Value of the header in seconds. `None`: no header, as in a recorded answer of Linode's API.
        retry_after_seconds: Option<u32>,
    },
    /// The request is answered with an error.
    Error {
        /// The HTTP status.
        status: u16,
        /// The text of the error. Not used by a body that has no text.
        reason: String,
        /// Whether the request has its effect.
        when: When,
        /// The form of the body.
        #[serde(default)]
        body: ErrorBody,
    },
    /// 503 with Linode's `X-Maintenance-Mode` header: the request has no effect, and a retry is pointless.
    Maintenance,
    /// A success whose body is not the one that the API documents.
    BadSuccess {
        /// The form of the body. [`ErrorBody::Json`] is an empty object.
        body: ErrorBody,
    },
    /// A read of one volume, one instance or its history is answered with another object, as by a proxy or a cache that
    /// mixes up answers. Reads of whole lists and mutations are answered as they should be.
    OtherObject {
        /// The volume in the answer.
        volume: VolumeNo,
        /// The instance in the answer.
        instance: InstanceNo,
    },
    /// The connection ends without an answer.
    Cut {
        /// Whether the request has its effect.
        when: When,
    },
    /// The request is delayed.
    Latency {
        /// Milliseconds before the effect.
        #[serde(default)]
        before_ms: u64,
        /// Milliseconds between the effect and the answer.
        #[serde(default)]
        after_ms: u64,
    },
}

/// A fault and the requests that it applies to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// Operations that the fault applies to. Empty: all.
    #[serde(default)]
    pub operations: Vec<Operation>,
    /// Only requests about this volume.
    #[serde(default)]
    pub volume: Option<VolumeNo>,
    /// Only requests about this instance.
    #[serde(default)]
    pub instance: Option<InstanceNo>,
    /// Number of matching requests that pass first.
    #[serde(default)]
    pub skip: u32,
    /// Number of matching requests that fail. `None`: all, until the rule is removed.
    #[serde(default)]
    pub times: Option<u32>,
    /// Failures per thousand matching requests, drawn from the simulator's seed. `None`: all.
    #[serde(default)]
    pub permille: Option<u16>,
    /// The fault of the request.
    pub fault: Fault,
}

impl FaultRule {
    /// A rule for every request of these operations. Empty: all operations.
    pub fn new(operations: impl Into<Vec<Operation>>, fault: Fault) -> Self {
        Self {
            operations: operations.into(),
            volume: None,
            instance: None,
            skip: 0,
            times: None,
            permille: None,
            fault,
        }
    }

    /// Limits the rule to the next `times` matching requests.
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Passes `skip` matching requests before the first fault.
    pub fn after(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    /// Limits the rule to requests about one volume.
    pub fn on_volume(mut self, volume: VolumeNo) -> Self {
        self.volume = Some(volume);
        self
    }

    fn matches(
        &self,
        operation: Operation,
        volume: Option<VolumeNo>,
        instance: Option<InstanceNo>,
    ) -> bool {
        (self.operations.is_empty() || self.operations.contains(&operation))
            && (self.volume.is_none() || self.volume == volume)
            && (self.instance.is_none() || self.instance == instance)
    }
}

/// The number of a rule, by which it can be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FaultNo(pub u64);

/// The rules in force, in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    rules: Vec<(FaultNo, FaultRule)>,
    next: u64,
}

impl Faults {
    pub(crate) fn add(&mut self, rule: FaultRule) -> FaultNo {
        self.next += 1;
        let number = FaultNo(self.next);
        self.rules.push((number, rule));
        number
    }

    pub(crate) fn remove(&mut self, number: FaultNo) -> bool {
        let before = self.rules.len();
        self.rules.retain(|(n, _)| *n != number);
        self.rules.len() != before
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Returns the faults of this request. `draw` returns a number below 1000.
    pub(crate) fn hit(
        &mut self,
        operation: Operation,
        volume: Option<VolumeNo>,
        instance: Option<InstanceNo>,
        mut draw: impl FnMut() -> u16,
    ) -> Vec<Fault> {
        let mut hits = Vec::new();
        for (_, rule) in &mut self.rules {
            if rule.times == Some(0) || !rule.matches(operation, volume, instance) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            if rule.permille.is_some_and(|chance| draw() >= chance) {
                continue;
            }
            if let Some(left) = &mut rule.times {
                *left -= 1;
            }
            hits.push(rule.fault.clone());
        }
        self.rules.retain(|(_, rule)| rule.times != Some(0));
        hits
    }
}
