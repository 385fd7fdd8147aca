//! How far a recovery may go.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A policy's mode, from the most cautious to the least. The order is the order of caution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Mode {
    /// Diagnose only.
    Observe,
    /// Plan, show and record; change nothing but our own records.
    #[default]
    DryRun,
    /// The plan waits for a person's approval.
    Approve,
    /// Act.
    Auto,
}

impl Mode {
    /// Whether effects on anything that is not ours are ever allowed in this mode.
    pub fn may_act(self) -> bool {
        matches!(self, Self::Approve | Self::Auto)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Observe => "Observe",
            Self::DryRun => "DryRun",
            Self::Approve => "Approve",
            Self::Auto => "Auto",
        })
    }
}
