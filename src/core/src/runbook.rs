//! Runbooks: ordered typed steps as data. No conditions, loops or templates; a runbook may add caution and never remove
//! a safety rule.

mod order;

use crate::diagnosis::Class;
use crate::steps::StepKind;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The runbook that policies name by default: it touches no replica and mostly leaves the detach to Kubernetes.
pub const DEFAULT_RUNBOOK: &str = "lightest-first";

/// The founding procedure, for clusters without a hold by admission and for people who want it.
pub const SCALE_TO_ZERO: &str = "scale-to-zero";

/// The runbooks that are compiled in, as name and YAML.
pub const BUILT_IN: [(&str, &str); 2] = [
    (
        DEFAULT_RUNBOOK,
        include_str!("../../../runbooks/lightest-first.yaml"),
    ),
    (
        SCALE_TO_ZERO,
        include_str!("../../../runbooks/scale-to-zero.yaml"),
    ),
];

/// How a runbook keeps new pods of the claim away while its volume is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// The workload is at zero, by our stamp.
    AtZero,
    /// Its new pods carry our scheduling gate; replicas are not touched.
    ByGate,
    /// The node that has to let go takes no new pods, by our taint: for clusters that cannot gate pods by admission. New
    /// pods may start on other nodes, so the cloud is not asked to detach.
    ByTaint,
    /// Not at all: the node that held it is fenced as a whole.
    Nothing,
}

impl Holding {
    /// By the kinds of steps that an order has, and whether its hold closes the node.
    pub fn by(closes_node: bool, has: impl Fn(StepKind) -> bool) -> Self {
        match (has(StepKind::ScaleToZero), has(StepKind::Hold)) {
            (true, _) => Self::AtZero,
            (_, true) if closes_node => Self::ByTaint,
            (_, true) => Self::ByGate,
            _ => Self::Nothing,
        }
    }
}

/// An ordered list of typed steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Runbook {
    /// Its name, as a policy or a person gives it.
    pub name: String,
    /// One sentence on what it does.
    pub summary: String,
    /// The steps in order, for each class that it heals.
    pub orders: BTreeMap<Class, Vec<RunbookStep>>,
}

/// One step of a runbook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
        self.patience_seconds
            .map(|s| SignedDuration::from_secs(s.into()))
    }
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
        let runbook: Self = serde_saphyr::from_str(yaml).map_err(|e| RunbookError::Malformed {
            name: name.to_owned(),
            why: place(&e, yaml),
        })?;
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

    /// The steps for a class; none if it does not heal that.
    pub fn order(&self, class: Class) -> Option<&[RunbookStep]> {
        self.orders.get(&class).map(Vec::as_slice)
    }

    /// `name` is the file or name that people know it by.
    fn check(&self, name: &str) -> Result<(), RunbookError> {
        let unsafe_ = |why: String| {
            Err(RunbookError::Unsafe {
                name: name.to_owned(),
                why,
            })
        };
        if self.orders.is_empty() {
            return unsafe_(
                "orders names no class: add the steps for one of A, B, C, D, E".to_owned(),
            );
        }
        for (class, steps) in &self.orders {
            if let Err(why) = order::check(*class, steps) {
                return unsafe_(format!("class {}: {why}", class.named()));
            }
        }
        Ok(())
    }
}

/// The parser's words, and the line that they are about: the parser does not always name the field.
fn place(error: &serde_saphyr::Error, yaml: &str) -> String {
    let said = error.to_string();
    let said = said.lines().next().unwrap_or("not valid YAML");
    let line = error
        .location()
        .and_then(|l| usize::try_from(l.line()).ok())
        .unwrap_or(0);
    match yaml
        .lines()
        .nth(line.saturating_sub(1))
        .map(str::trim)
        .filter(|l| line > 0 && !l.is_empty())
    {
        Some(line) => format!("{said}, in {:?}", line.chars().take(60).collect::<String>()),
        None => said.to_owned(),
    }
}

/// The first 16 hexadecimal digits of the SHA-256 of a value's canonical JSON.
pub(crate) fn hash16(value: &impl Serialize) -> String {
    // serde_json writes struct fields in declaration order and BTreeMaps sorted: the same value, the same bytes.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    Sha256::digest(&bytes)
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect()
}
