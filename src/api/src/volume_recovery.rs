//! `VolumeRecovery`: one run for one volume, with its plan and its journal.

use crate::metadata;
use crate::opaque::{Opaque, UnreadableField};
use crate::recovery_policy::{ModeSchema, mode_or_observe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema, ResourceExt};
use reattach_core::cloud::{CloudVolume, InstanceObservation};
use reattach_core::diagnosis::{Class, Diagnosis};
use reattach_core::ids::ObjectName;
use reattach_core::journal::Entry;
use reattach_core::phase::Phase;
use reattach_core::plan::{Plan, SoundPlan};
use reattach_core::policy::Mode;
use reattach_report::Record;
use serde::{Deserialize, Deserializer, Serialize};

/// Request for the recovery of one claim's volume. The controller creates it under a RecoveryPolicy, or a person does
/// with kubectl reattach recover.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "reattach.dev",
    version = "v1alpha1",
    kind = "VolumeRecovery",
    plural = "volumerecoveries",
    shortname = "vrec",
    category = "reattach",
    namespaced,
    status = "VolumeRecoveryStatus",
    derive = "PartialEq",
    doc = "VolumeRecovery is one recovery of one claim's volume: the request in spec, the diagnosis, plan and journal in status. To abort it, use kubectl reattach abort.",
    printcolumn(name = "Claim", type_ = "string", json_path = ".spec.claimName"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Class", type_ = "string", json_path = ".status.class"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.claimName == oldSelf.claimName").message("claimName is fixed once created: make a new VolumeRecovery for another claim"))]
#[x_kube(validation = Rule::new("self.requester == oldSelf.requester").message("requester is fixed once created"))]
#[x_kube(validation = Rule::new("has(oldSelf.requesterGroups) == has(self.requesterGroups) && (!has(self.requesterGroups) || self.requesterGroups == oldSelf.requesterGroups)").message("requesterGroups is fixed once created"))]
#[x_kube(validation = Rule::new("self.mode == oldSelf.mode").message("mode is fixed once created: approve the plan, abort, or make a new VolumeRecovery"))]
#[x_kube(validation = Rule::new("self.runbook == oldSelf.runbook").message("runbook is fixed once created"))]
#[x_kube(validation = Rule::new("has(oldSelf.reason) == has(self.reason) && (!has(self.reason) || self.reason == oldSelf.reason)").message("reason is fixed once created: it is what the requester said"))]
#[x_kube(validation = Rule::new("has(oldSelf.attempt) == has(self.attempt) && (!has(self.attempt) || self.attempt == oldSelf.attempt)").message("attempt is fixed once created"))]
#[x_kube(validation = Rule::new("has(oldSelf.confirmWorkload) == has(self.confirmWorkload) && (!has(self.confirmWorkload) || self.confirmWorkload == oldSelf.confirmWorkload)").message("confirmWorkload is fixed once created"))]
#[x_kube(validation = Rule::new("!has(oldSelf.abort) || (has(self.abort) && self.abort == oldSelf.abort)").message("an abort cannot be taken back or changed"))]
#[x_kube(validation = Rule::new("!has(oldSelf.approval) || (has(self.approval) && self.approval == oldSelf.approval)").message("an approval cannot be taken back or changed: abort instead"))]
#[x_kube(validation = Rule::new("!has(oldSelf.powerOff) || (has(self.powerOff) && self.powerOff == oldSelf.powerOff)").message("a permission to power off cannot be taken back or changed: abort instead"))]
#[x_kube(validation = Rule::new("!has(oldSelf.nothingUnderWay) || has(self.nothingUnderWay)").message("a declaration that nothing is under way cannot be taken back"))]
#[x_kube(validation = Rule::new("!has(oldSelf.declaration) || has(self.declaration)").message("a declaration cannot be taken back: abort instead, or let its hour pass"))]
pub struct VolumeRecoverySpec {
    /// Name of the PersistentVolumeClaim in this namespace, such as `data-redis-0`. It cannot be changed.
    #[x_kube(validation = Rule::new("self.size() <= 253 && self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message("claimName must be the name of a PersistentVolumeClaim in this namespace"))]
    #[schemars(length(max = 253))]
    pub claim_name: String,
    /// How far reattach may go. `Observe` diagnoses, `DryRun` also plans, `Approve` acts after an approval, `Auto` acts by
    /// itself. It cannot be changed.
    #[serde(default, deserialize_with = "mode_or_observe")]
    #[schemars(with = "ModeSchema")]
    pub mode: Mode,
    /// Name of the runbook to follow, such as `lightest-first` or `scale-to-zero`. It cannot be changed.
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("runbook must be the name of a runbook, such as scale-to-zero"))]
    #[schemars(length(max = 63))]
    pub runbook: String,
    /// Why the recovery was asked for, in the requester's words. reattach shows it in reports and decides nothing by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// User name of the person or service account that asks, as the API server authenticated it. Admission checks it.
    #[x_kube(validation = Rule::new("self.size() > 0").message("requester must be your own user name (kubectl auth whoami)"))]
    #[schemars(length(max = 1024))]
    pub requester: String,
    /// Groups of the requester, as the API server authenticated them. reattach asks with them again later whether the
    /// requester still has a right. Admission checks them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 256)))]
    pub requester_groups: Vec<String>,
    /// Number of this attempt to heal the problem, from 1. reattach counts the attempts that it makes by itself after one
    /// that did not heal the volume, and pauses longer before each. It cannot be changed.
    #[serde(default = "first_attempt", skip_serializing_if = "is_first_attempt")]
    #[schemars(range(min = 1))]
    pub attempt: u32,
    /// Workload with several replicas whose stop the requester accepts, as `Kind/name`, such as `Deployment/web`. Without
    /// it a plan that stops several replicas is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub confirm_workload: Option<String>,
    /// Ends the recovery and undoes what it did in the cluster. It cannot be withdrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Lets exactly one plan run, named by its hash. It cannot be withdrawn; abort instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// A person's word that an instance cannot write, on which its volume may be freed. It counts for one hour and needs
    /// the RBAC verb `declare`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declaration: Option<Declaration>,
    /// A person's permission to power the holder's instance off, with everything that runs on it. It needs the RBAC verb
    /// `poweroff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_off: Option<PowerOff>,
    /// A person's word that no order of this recovery is under way at the cloud any more, such as a detach whose request
    /// was lost. It needs the RBAC verb `declare`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nothing_under_way: Option<NothingUnderWay>,
}

impl VolumeRecoverySpec {
    /// What is asked for, with no word of any person yet.
    pub fn new(claim_name: &str, mode: Mode, runbook: &str, requester: &str) -> Self {
        Self {
            claim_name: claim_name.to_owned(),
            mode,
            runbook: runbook.to_owned(),
            reason: None,
            requester: requester.to_owned(),
            requester_groups: Vec::new(),
            attempt: first_attempt(),
            confirm_workload: None,
            abort: None,
            approval: None,
            declaration: None,
            power_off: None,
            nothing_under_way: None,
        }
    }
}

fn first_attempt() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde asks for.
fn is_first_attempt(attempt: &u32) -> bool {
    *attempt == first_attempt()
}

/// A person's word that nothing which this recovery ordered is under way at the cloud any more (safety rule S3).
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NothingUnderWay {
    /// User name of the person who says so, as the API server authenticated it. Admission checks it.
    #[x_kube(validation = Rule::new("self.size() > 0").message("declaredBy must be your own user name (kubectl auth whoami)"))]
    #[schemars(length(max = 1024))]
    pub declared_by: String,
    /// Why that person is sure, such as `no detach in the account events of the last hour`. It is kept for the record.
    #[x_kube(validation = Rule::new("self.size() > 0 && self.size() <= 1024").message("reason must say why nothing is under way"))]
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// Time of the statement, in RFC 3339. It counts for orders that were sent before this time.
    pub at: Time,
    /// Groups of that user, as the API server authenticated them. reattach asks with them again later whether the
    /// right still exists. Admission checks them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 256)))]
    pub groups: Vec<String>,
}

/// A person's word that an instance cannot write, on which a volume may be freed (safety rule S1).
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Declaration {
    /// Identifier of the instance that cannot write, as the cloud calls it, such as `28871423` or `i-0abc`.
    #[x_kube(validation = Rule::new("self.size() > 0 && self.size() <= 253").message("holder must be the instance that cannot write, as the cloud calls it"))]
    #[schemars(length(max = 253))]
    pub holder: String,
    /// User name of the person who says so, as the API server authenticated it. Admission checks it.
    #[x_kube(validation = Rule::new("self.size() > 0").message("declaredBy must be your own user name (kubectl auth whoami)"))]
    #[schemars(length(max = 1024))]
    pub declared_by: String,
    /// Why that person is sure, such as `ticket 991: no power`. It is kept for the record.
    #[x_kube(validation = Rule::new("self.size() > 0 && self.size() <= 1024").message("reason must say why the instance cannot write"))]
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// Time of the statement, in RFC 3339. The declaration counts for one hour from then.
    pub at: Time,
    /// Says as well that the instance is a machine of this cluster, though no Node shows it and reattach never saw it as
    /// one. It needs the RBAC verb `declare` in the whole cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_this_cluster: bool,
    /// Groups of that user, as the API server authenticated them. reattach asks with them again later whether the
    /// right still exists. Admission checks them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 256)))]
    pub groups: Vec<String>,
}

/// A person's permission to power the holder off.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PowerOff {
    /// User name of the person who allows it, as the API server authenticated it. Admission checks it.
    #[x_kube(validation = Rule::new("self.size() > 0").message("allowedBy must be your own user name (kubectl auth whoami)"))]
    #[schemars(length(max = 1024))]
    pub allowed_by: String,
    /// Groups of that user, as the API server authenticated them. reattach asks with them again later whether the
    /// right still exists. Admission checks them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 256)))]
    pub groups: Vec<String>,
}

impl VolumeRecovery {
    /// When it was created; the epoch for an object that never reached an API server.
    pub fn created(&self) -> jiff::Timestamp {
        self.creation_timestamp()
            .map_or(jiff::Timestamp::UNIX_EPOCH, |t| t.0)
    }

    /// Phase of the recovery; `Diagnosing` while it has no status.
    pub fn phase(&self) -> Phase {
        self.status
            .as_ref()
            .map_or_else(Phase::default, |status| status.phase)
    }

    /// The plan and the journal: what a run goes by.
    ///
    /// # Errors
    /// The first field that cannot be read. What the run has done is not known then: a journal with such a line is
    /// never to be taken for a shorter one.
    pub fn history(&self) -> Result<(Option<&Plan>, Vec<&Entry>), UnreadableField> {
        let Some(status) = &self.status else {
            return Ok((None, Vec::new()));
        };
        let plan = UnreadableField::none_in(&status.plan, "status.plan")?;
        let journal = UnreadableField::none_of(&status.journal, "status.journal")?;
        Ok((plan, journal))
    }

    /// The plan, if a run may go by it. `None`: there is none, it cannot be read, or its version or hash is wrong.
    pub fn sound_plan(&self) -> Option<SoundPlan> {
        self.status
            .as_ref()?
            .plan
            .as_ref()?
            .get()
            .ok()?
            .clone()
            .sound()
            .ok()
    }

    /// Everything in it that reports need, free of Kubernetes types. `cloud_volume` is the cloud's view of the volume,
    /// where the caller has it.
    ///
    /// # Errors
    /// The first field that cannot be read: a report without it would say that less was done than was. A recovery without a
    /// namespace or a name is no stored one.
    pub fn record(&self, cloud_volume: Option<CloudVolume>) -> Result<Record, UnreadableField> {
        let (plan, journal) = self.history()?;
        let (plan, journal) = (plan.cloned(), journal.into_iter().cloned().collect());
        let status = self.status.clone().unwrap_or_default();
        let diagnosis = UnreadableField::none_in(&status.diagnosis, "status.diagnosis")?.cloned();
        let recovery = metadata::of(self).object_name()?;
        Ok(Record {
            claim: ObjectName::new(recovery.namespace.as_str(), self.spec.claim_name.as_str()),
            recovery,
            mode: self.spec.mode,
            requester: self.spec.requester.clone(),
            reason: self.spec.reason.clone(),
            phase: status.phase,
            message: status.message,
            next_attempt: status.next_attempt.map(|at| at.0),
            diagnosis,
            refusals: status.refusals,
            plan,
            journal,
            created: self.created(),
            cloud_volume,
            escalation: status.escalation.map(Into::into),
        })
    }
}

/// The end of a recovery by a person's will.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// User name of the person who aborts, as the API server authenticated it. Admission checks it.
    #[schemars(length(max = 1024))]
    pub by: String,
    /// Why the recovery is aborted, in that person's words. It is kept for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

/// A person's approval of one exact plan.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// Hash of the approved plan: the 16 hexadecimal digits of `status.planHash`. A plan with another hash does not run.
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{16}$')").message("planHash must be the 16 hexadecimal digits of status.planHash"))]
    #[schemars(length(max = 16))]
    pub plan_hash: String,
    /// User name of the person who approves, as the API server authenticated it. Admission checks it.
    #[schemars(length(max = 1024))]
    pub approver: String,
    /// Groups of that user, as the API server authenticated them. reattach asks with them again later whether the
    /// right still exists. Admission checks them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 256)))]
    pub groups: Vec<String>,
}

/// The schema of [`Phase`], which lives in the core crate without schema code.
#[derive(schemars::JsonSchema)]
#[allow(dead_code)]
enum PhaseSchema {
    /// reattach gathers evidence.
    Diagnosing,
    /// The problem is real, and no detach heals it; the message names it.
    NotOurs,
    /// A condition is not met yet; the message names it, such as a provider's lock.
    Waiting,
    /// A safety rule forbids to act; `status.refusals` says why.
    Refused,
    /// Mode Observe or DryRun: the diagnosis or the plan is shown, and nothing is done.
    Planned,
    /// The plan waits for a person's approval.
    AwaitingApproval,
    /// The run performs its steps.
    Running,
    /// The run stopped early and undoes what it did.
    Restoring,
    /// The pod runs with its volume.
    Recovered,
    /// The problem went away without reattach.
    Resolved,
    /// The recovery was aborted, and everything was restored.
    Aborted,
    /// The run ended before it had any effect; another attempt begins anew.
    Withdrawn,
    /// The run ended without success, and everything was restored.
    Failed,
    /// Only a person can go on; the message says what is known.
    Stuck,
}

fn phase_or_stuck<'de, D: Deserializer<'de>>(from: D) -> Result<Phase, D::Error> {
    Ok(Phase::deserialize(&serde_json::Value::deserialize(from)?).unwrap_or(Phase::Stuck))
}

/// How long a phase took.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseTiming {
    /// Name of the step, such as `AwaitDetached`, or `PutBack` for the time after the run turned back.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Time at which the step could begin, in RFC 3339.
    pub started: Time,
    /// Duration of the step in milliseconds.
    pub millis: i64,
}

/// Call for a person, after a recovery has waited too long.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Escalation {
    /// Time since which the recovery waits, in RFC 3339.
    pub since: Time,
    /// What a person has to do, as one sentence.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub summary: String,
    /// Ticket for the cloud provider's support, ready to be sent. It is there only when the provider holds the volume up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub ticket: Option<String>,
}

impl From<reattach_report::Escalation> for Escalation {
    fn from(told: reattach_report::Escalation) -> Self {
        Self {
            since: Time(told.since),
            summary: told.summary,
            ticket: told.ticket,
        }
    }
}

impl From<Escalation> for reattach_report::Escalation {
    fn from(told: Escalation) -> Self {
        Self {
            since: told.since.0,
            summary: told.summary,
            ticket: told.ticket,
        }
    }
}

/// What reattach found, planned and did. reattach writes it; people read it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRecoveryStatus {
    /// Where the recovery stands. `Recovered`, `Resolved`, `Aborted`, `Withdrawn` and `Failed` are final; `Stuck` needs a person. A word
    /// that this version does not know reads as `Stuck`.
    #[serde(default, deserialize_with = "phase_or_stuck")]
    #[schemars(with = "PhaseSchema")]
    pub phase: Phase,
    /// Class of the problem, once known: A (held by a dead node), B (phantom attachment), C (lost attachment), D (stuck record) or
    /// E (orphan attachment).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub class: Option<String>,
    /// One sentence for people about the phase: what is the case, and what the recovery waits for.
    #[serde(default)]
    #[schemars(length(max = 2048))]
    pub message: String,
    /// The whole diagnosis: the verdict and the facts that it rests on. kubectl reattach status shows it as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Opaque<Diagnosis>>,
    /// Reasons against acting, one sentence each. Empty when nothing forbids the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 2048)))]
    pub refusals: Vec<String>,
    /// The plan: every step, and the identity of every object that it touches. kubectl reattach status shows it as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Opaque<Plan>>,
    /// Hash of the plan, as 16 hexadecimal digits. An approval names it: kubectl reattach approve NAME --plan HASH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub plan_hash: Option<String>,
    /// Journal of the run: every effect before it is issued, and its outcome after it. reattach continues from it after
    /// a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub journal: Vec<Opaque<Entry>>,
    /// Conditions `Recovered`, `Progressing` and `Stalled`, for kubectl wait --for=condition=Recovered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Duration of each step that was begun, in the plan's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub timings: Vec<PhaseTiming>,
    /// What reattach saw of instances that may hold the volume, oldest first. "Not found" and "off" count as proof only
    /// after an earlier sighting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub sightings: Vec<Opaque<InstanceObservation>>,
    /// Time since which the recovery waits for something that reattach cannot do, in RFC 3339. Unset while it does not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<Time>,
    /// Time of the next attempt that reattach makes by itself, in RFC 3339, where this one did not heal the volume. An abort
    /// of this VolumeRecovery forbids it. Unset: no policy lets reattach try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<Time>,
    /// What a person was told because the recovery has waited longer than the policy's `escalateAfterSeconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalation: Option<Escalation>,
    /// Content that was cut from this status because the API server stores no larger object. The controller's log has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub left_out: Option<String>,
    /// Number of the last challenge that was sent to agents. An answer to an older challenge does not count.
    #[serde(default)]
    pub epoch: i64,
    /// Generation of the spec that this status belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl VolumeRecoveryStatus {
    /// The class with its title, as people see it. A class that this version does not know is shown as it is stored.
    pub fn class_name(&self) -> Option<String> {
        let stored = self.class.as_ref()?;
        let class = serde_json::from_value::<Class>(stored.as_str().into());
        Some(class.map_or_else(|_| stored.clone(), Class::named))
    }
}

/// Condition types of a VolumeRecovery, for `kubectl wait --for=condition=…`.
pub mod condition {
    /// The pod runs with its volume.
    pub const RECOVERED: &str = "Recovered";
    /// Work is under way.
    pub const PROGRESSING: &str = "Progressing";
    /// A person is needed.
    pub const STALLED: &str = "Stalled";
}
