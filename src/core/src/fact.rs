//! A fact with its source and age, and the four ways it can read: present, absent, stale, unknown.
//!
//! Only `Present` and `Absent` are answers. A stale or unknown fact never counts as a negative one.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a fact was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A Kubernetes object or list, such as `VolumeAttachment csi-…`.
    Kubernetes(String),
    /// The agent on this node.
    Agent(String),
    /// A cloud provider's API, by the provider's name.
    Cloud(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes(what) => write!(f, "Kubernetes ({what})"),
            Self::Agent(node) => write!(f, "agent on {node}"),
            Self::Cloud(name) => write!(f, "{name} API"),
        }
    }
}

/// What is known of a thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Known<T> {
    /// It exists and this is it.
    Present(T),
    /// The source was asked and said that it does not exist.
    Absent,
    /// The source could not be asked, or its answer could not be used.
    Unknown {
        /// Why, as one sentence.
        why: String,
    },
}

/// A fact: what is known, who said so, and when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fact<T> {
    /// What is known.
    pub value: Known<T>,
    /// Who said so.
    pub source: Source,
    /// When it was read, on the reader's clock.
    pub at: Timestamp,
}

/// A fact judged at a moment: see [`Fact::read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading<'a, T> {
    /// Present and fresh.
    Present(&'a T),
    /// Absent, by a fresh answer.
    Absent,
    /// Too old to be used.
    Stale {
        /// How old, in seconds.
        age_secs: i64,
    },
    /// Not known.
    Unknown {
        /// Why.
        why: &'a str,
    },
}

impl<T> Fact<T> {
    /// A fact that was read as present.
    pub fn present(value: T, source: Source, at: Timestamp) -> Self {
        Self { value: Known::Present(value), source, at }
    }

    /// A fact that was read as absent.
    pub fn absent(source: Source, at: Timestamp) -> Self {
        Self { value: Known::Absent, source, at }
    }

    /// A fact that could not be read.
    pub fn unknown(why: impl Into<String>, source: Source, at: Timestamp) -> Self {
        Self { value: Known::Unknown { why: why.into() }, source, at }
    }

    /// Judges the fact at `now`: older than `max_age`, or from the future by more than `max_age`, is stale.
    pub fn read(&self, now: Timestamp, max_age: SignedDuration) -> Reading<'_, T> {
        let age = now.duration_since(self.at);
        match &self.value {
            Known::Unknown { why } => Reading::Unknown { why },
            _ if age > max_age || age < -max_age => Reading::Stale { age_secs: age.as_secs() },
            Known::Present(value) => Reading::Present(value),
            Known::Absent => Reading::Absent,
        }
    }

    /// The value if it is present, whatever its age. For display, never for a decision.
    pub fn shown(&self) -> Option<&T> {
        match &self.value {
            Known::Present(value) => Some(value),
            _ => None,
        }
    }
}

impl<'a, T> Reading<'a, T> {
    /// The value of a fresh present fact.
    pub fn present(self) -> Option<&'a T> {
        match self {
            Self::Present(value) => Some(value),
            _ => None,
        }
    }

    /// Why the fact is no answer, if it is none: what a "missing" list prints.
    pub fn gap(&self) -> Option<String> {
        match self {
            Self::Present(_) | Self::Absent => None,
            Self::Stale { age_secs } => Some(format!("{age_secs} s old")),
            Self::Unknown { why } => Some((*why).to_owned()),
        }
    }
}
