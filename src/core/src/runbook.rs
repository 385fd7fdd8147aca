//! Runbooks: ordered typed steps as data. No conditions, loops or templates; a runbook may add caution and never remove
//! a safety rule.

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The runbook that policies name by default: it touches no replica and mostly leaves the detach to Kubernetes.
pub const DEFAULT_RUNBOOK: &str = "lightest-first";

/// The founding procedure, for clusters without a hold by admission and for people who want it.
pub const SCALE_TO_ZERO: &str = "scale-to-zero";

/// The runbooks that are compiled in, as name and YAML.
pub const BUILT_IN: [(&str, &str); 2] = [
    (DEFAULT_RUNBOOK, include_str!("../../../runbooks/lightest-first.yaml")),
    (SCALE_TO_ZERO, include_str!("../../../runbooks/scale-to-zero.yaml")),
];

/// How a runbook keeps new pods of the claim away while its volume is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// The workload is at zero, by our stamp.
    AtZero,
    /// Its new pods carry our scheduling gate; replicas are not touched.
    ByGate,
}

/// An ordered list of typed steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Runbook {
    /// Its name, as a policy or a person gives it.
    pub name: String,
    /// One sentence on what it does.
    pub summary: String,
    /// The steps in order.
    pub steps: Vec<RunbookStep>,
}

/// One step of a runbook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunbookStep {
    /// What to do.
    pub step: StepKind,
    /// The step fails when it has not finished by then, in seconds from its start.
    pub deadline_seconds: u32,
    /// For waits: after so many seconds the next step takes over instead of failing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience_seconds: Option<u32>,
}

impl RunbookStep {
    /// The deadline as a duration.
    pub fn deadline(&self) -> SignedDuration {
        SignedDuration::from_secs(self.deadline_seconds.into())
    }

    /// The patience as a duration.
    pub fn patience(&self) -> Option<SignedDuration> {
        self.patience_seconds.map(|s| SignedDuration::from_secs(s.into()))
    }
}

/// The steps that this build can perform. DESIGN 7 names more; a runbook that uses one of them is refused with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StepKind {
    /// Stamp the workload and set its replicas to zero, in one write; then wait until no pod of it is left.
    ScaleToZero,
    /// Keep new pods of the claim away by a scheduling gate; proven by a dry-run create.
    Hold,
    /// Evict the stuck pod; its owner makes a new one, which the hold keeps away.
    Release,
    /// Wait until kubelet, the attach/detach controller, the cloud and the VolumeAttachment have let go.
    AwaitDetached,
    /// Detach at the cloud, with a proof, when Kubernetes' own detach is stuck.
    CloudDetach,
    /// Touch a VolumeAttachment whose detach failed, so that external-attacher retries at once.
    Requeue,
    /// Set the stamped replicas again and remove the stamp, in one write.
    Restore,
    /// End the hold: its label off, the gates off the pods that wait.
    Lift,
    /// Wait for Kubernetes or the machine to heal it; the next step takes over when the patience is over.
    Await,
    /// Power the holder off at the cloud. Planned only where a policy or a person allows it.
    PowerOff,
    /// Wait for a proof that the holder cannot write: off, gone, declared, rebooted and clean, or its kubelet's word.
    Prove,
    /// Put the out-of-service taint on the dead holder's Node, so that Kubernetes lets go of its pods and volumes.
    TaintOutOfService,
    /// Take the out-of-service taint off again.
    Untaint,
    /// Power the holder on again. Planned only where a policy asks for it.
    PowerOn,
    /// Keep new pods off the fenced node until its agent answers clean.
    Quarantine,
    /// Ask the holder's agent to look at the machine anew.
    Challenge,
    /// Delete the VolumeAttachment by its UID, with a proof.
    DeleteAttachment,
    /// Detach at the cloud by force, with a proof that the instance is off or gone.
    CloudForce,
    /// Wait until the pod is Ready with its volume and exactly one holder.
    Verify,
}

/// Why a runbook was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunbookError {
    /// The YAML does not fit the shape.
    #[error("runbook {name}: {why}")]
    Malformed {
        /// The runbook's file or name.
        name: String,
        /// The parser's words, with line and column.
        why: String,
    },
    /// No such runbook.
    #[error("runbook {name:?} is not known; this build has: {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The order of steps breaks a safety rule.
    #[error("runbook {name}: {why}")]
    Unsafe {
        /// The runbook's file or name.
        name: String,
        /// Which rule, and the fix.
        why: String,
    },
}

impl Runbook {
    /// Parses and checks a runbook.
    ///
    /// # Errors
    /// [`RunbookError::Malformed`] with line and column, or [`RunbookError::Unsafe`] naming the rule.
    pub fn parse(name: &str, yaml: &str) -> Result<Self, RunbookError> {
        let runbook: Self = serde_saphyr::from_str(yaml)
            .map_err(|e| RunbookError::Malformed { name: name.to_owned(), why: place(&e, yaml) })?;
        runbook.check(name)?;
        Ok(runbook)
    }

    /// One of the compiled-in runbooks.
    ///
    /// # Errors
    /// [`RunbookError::Unknown`] when there is none of that name.
    pub fn built_in(name: &str) -> Result<Self, RunbookError> {
        match BUILT_IN.iter().find(|(n, _)| *n == name) {
            Some((n, yaml)) => Self::parse(n, yaml),
            None => Err(RunbookError::Unknown {
                name: name.to_owned(),
                known: BUILT_IN.map(|(n, _)| n).join(", "),
            }),
        }
    }

    /// A hash of the content: 16 hexadecimal digits.
    pub fn hash(&self) -> String {
        hash16(self)
    }

    /// How it keeps the claim's pods away: its first step. A checked runbook has one.
    pub fn holding(&self) -> Holding {
        match self.steps.first().map(|s| s.step) {
            Some(StepKind::Hold) => Holding::ByGate,
            _ => Holding::AtZero,
        }
    }

    /// `name` is the file or name that people know it by.
    fn check(&self, name: &str) -> Result<(), RunbookError> {
        let unsafe_ = |why: &str| Err(RunbookError::Unsafe { name: name.to_owned(), why: why.to_owned() });
        let at = |kind| self.steps.iter().position(|s| s.step == kind);
        let (open, close) = match (at(StepKind::ScaleToZero), at(StepKind::Hold)) {
            (Some(_), Some(_)) => {
                return unsafe_(
                    "steps has both ScaleToZero and Hold: one of them keeps the pods away, remove the other",
                );
            }
            (None, None) => {
                return unsafe_(
                    "steps has no ScaleToZero and no Hold; every runbook keeps the claim's pods away by one of them, add it first",
                );
            }
            (Some(at), None) => (at, StepKind::Restore),
            (None, Some(at)) => (at, StepKind::Lift),
        };
        let Some(close) = at(close) else {
            return unsafe_(match close {
                StepKind::Restore => {
                    "steps has ScaleToZero and no Restore: nothing may be left at zero, add Restore"
                }
                _ => "steps has Hold and no Lift: no pod may be left held, add Lift",
            });
        };
        if open != 0 {
            return unsafe_(&format!(
                "{:?} must be the first step: no later step is safe while pods can come",
                self.steps[open].step
            ));
        }
        let holds = self.holding() == Holding::ByGate;
        if holds && at(StepKind::Release) != Some(1) {
            return unsafe_(
                "Release must be the second step: under a hold the stuck pod has to go before anything is freed",
            );
        }
        let (missing, other) = match self.holding() {
            Holding::ByGate => (StepKind::Restore, "Restore belongs to ScaleToZero; under Hold it is Lift"),
            Holding::AtZero => (StepKind::Lift, "Lift belongs to Hold; after ScaleToZero it is Restore"),
        };
        if at(missing).is_some() {
            return unsafe_(other);
        }
        if !holds && at(StepKind::Release).is_some() {
            return unsafe_("Release belongs to Hold: at zero no pod is left to release");
        }
        for kind in [
            StepKind::ScaleToZero,
            StepKind::Restore,
            StepKind::Hold,
            StepKind::Release,
            StepKind::Lift,
            StepKind::CloudDetach,
            StepKind::Verify,
        ] {
            if self.steps.iter().filter(|s| s.step == kind).count() > 1 {
                return unsafe_(&format!("{kind:?} may stand only once"));
            }
        }
        let closing = self.steps[close].step;
        if self.steps[..close].last().map(|s| s.step) != Some(StepKind::AwaitDetached)
            || self.steps[close - 1].patience_seconds.is_some()
        {
            return unsafe_(&format!(
                "the step before {closing:?} must be AwaitDetached without patienceSeconds: a pod that comes before the VolumeAttachment is gone heals nothing"
            ));
        }
        if at(StepKind::CloudDetach).is_some_and(|c| c > close) {
            return unsafe_(&format!(
                "CloudDetach must stand before {closing:?}: later the volume is in use"
            ));
        }
        if self.steps.last().map(|s| s.step) != Some(StepKind::Verify) {
            return unsafe_("the last step must be Verify");
        }
        for step in &self.steps {
            if step.deadline_seconds == 0 || step.deadline_seconds > 86_400 {
                return unsafe_(&format!(
                    "deadlineSeconds of {:?} is {} and must be 1 to 86400",
                    step.step, step.deadline_seconds
                ));
            }
            if step.patience_seconds.is_some() && step.step != StepKind::AwaitDetached {
                return unsafe_(&format!(
                    "patienceSeconds is for AwaitDetached only, not for {:?}",
                    step.step
                ));
            }
            if step.patience_seconds.is_some_and(|p| p == 0 || p > step.deadline_seconds) {
                return unsafe_(&format!(
                    "patienceSeconds of {:?} is {} and must be 1 to its deadlineSeconds, {}",
                    step.step,
                    step.patience_seconds.unwrap_or(0),
                    step.deadline_seconds
                ));
            }
        }
        Ok(())
    }
}

/// The parser's words, and the line that they are about: the parser does not always name the field.
fn place(error: &serde_saphyr::Error, yaml: &str) -> String {
    let said = error.to_string();
    let said = said.lines().next().unwrap_or("not valid YAML");
    let line = error.location().and_then(|l| usize::try_from(l.line()).ok()).unwrap_or(0);
    match yaml.lines().nth(line.saturating_sub(1)).map(str::trim).filter(|l| line > 0 && !l.is_empty()) {
        Some(line) => format!("{said}, in {:?}", line.chars().take(60).collect::<String>()),
        None => said.to_owned(),
    }
}

/// The first 16 hexadecimal digits of the SHA-256 of a value's canonical JSON.
pub(crate) fn hash16(value: &impl Serialize) -> String {
    // serde_json writes struct fields in declaration order and BTreeMaps sorted: the same value, the same bytes.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    Sha256::digest(&bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
}
