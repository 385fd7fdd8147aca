//! Faults of the API itself, as data: which requests they meet, how often, and what goes wrong.
//!
//! Faults of volumes and instances (locks, phantom attachments, stuck detaches) are state, not faults: see
//! [`crate::CloudSim`].

use crate::model::{InstanceNo, VolumeNo};
use serde::{Deserialize, Serialize};

/// What a request asks for, in words that fit every provider.
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
    /// Read the job history.
    ListJobs,
    /// Begin a snapshot.
    CreateSnapshot,
    /// List snapshots.
    ListSnapshots,
}

impl Operation {
    /// Whether it changes anything.
    pub fn is_mutation(self) -> bool {
        matches!(
            self,
            Self::AttachVolume
                | Self::DetachVolume
                | Self::BootInstance
                | Self::ShutdownInstance
                | Self::RebootInstance
                | Self::CreateSnapshot
        )
    }
}

/// On which side of the effect something goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// The request changed nothing.
    BeforeEffect,
    /// The request did its work; only the answer is wrong or missing.
    AfterEffect,
}

/// How an error's body looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorBody {
    /// The API's own JSON.
    #[default]
    Json,
    /// A proxy's HTML page.
    Html,
    /// Nothing at all.
    Empty,
    /// `application/json` that breaks off.
    Truncated,
}

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// 429, with or without `Retry-After`.
    Throttle {
        /// The header's value in seconds; `None` leaves the header out, as one recorded answer of Linode's did.
        retry_after_seconds: Option<u32>,
    },
    /// An error answer.
    Error {
        /// The HTTP status.
        status: u16,
        /// The text; ignored by bodies that have none.
        reason: String,
        /// Before or after the effect.
        when: When,
        /// The body's form.
        #[serde(default)]
        body: ErrorBody,
    },
    /// 503 with Linode's `X-Maintenance-Mode` header: nothing happens, and a retry is pointless.
    Maintenance,
    /// A success whose body is not what its content type says.
    BadSuccess {
        /// The body's form ([`ErrorBody::Json`] serves an empty object).
        body: ErrorBody,
    },
    /// A read of a volume or of an instance, or of its history, is answered about this other one: a proxy or a cache mixes
    /// up answers. Reads of whole lists and requests to change something are answered as they should be.
    OtherObject {
        /// The volume of the answer.
        volume: VolumeNo,
        /// The instance of the answer.
        instance: InstanceNo,
    },
    /// The connection ends without an answer.
    Cut {
        /// Before or after the effect.
        when: When,
    },
    /// The request waits.
    Latency {
        /// Milliseconds before the effect.
        #[serde(default)]
        before_ms: u64,
        /// Milliseconds between the effect and the answer.
        #[serde(default)]
        after_ms: u64,
    },
}

/// A fault and the requests that it meets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// Operations that it meets; empty means all.
    #[serde(default)]
    pub operations: Vec<Operation>,
    /// Only requests about this volume.
    #[serde(default)]
    pub volume: Option<VolumeNo>,
    /// Only requests about this instance.
    #[serde(default)]
    pub instance: Option<InstanceNo>,
    /// How many matching requests pass first.
    #[serde(default)]
    pub skip: u32,
    /// How many matching requests are hit; `None` means all until the rule is removed.
    #[serde(default)]
    pub times: Option<u32>,
    /// Chance of a hit per thousand matching requests, drawn from the simulator's seed; `None` means always.
    #[serde(default)]
    pub permille: Option<u16>,
    /// What goes wrong.
    pub fault: Fault,
}

impl FaultRule {
    /// A rule that hits every request of these operations (all when empty).
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

    /// The same rule for the next `times` matching requests only.
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// The same rule after `skip` matching requests have passed.
    pub fn after(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    /// The same rule for one volume only.
    pub fn on_volume(mut self, volume: VolumeNo) -> Self {
        self.volume = Some(volume);
        self
    }

    fn matches(&self, operation: Operation, volume: Option<VolumeNo>, instance: Option<InstanceNo>) -> bool {
        (self.operations.is_empty() || self.operations.contains(&operation))
            && (self.volume.is_none() || self.volume == volume)
            && (self.instance.is_none() || self.instance == instance)
    }
}

/// The number of a rule, for removing it.
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

    /// The faults that hit this request. `draw` gives a number below 1000.
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
