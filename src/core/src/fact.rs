//! A fact with its source and age, and why it may be no answer.
//!
//! Only a value and [`Missing::Absent`] are answers. A fact that was never read, is too old or could not be read never counts
//! as a negative one.

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
    /// The source is away: it could not be reached, or failed. Nobody can act by it for now, and that
    /// time counts against no step.
    Away {
        /// Why, as one sentence.
        why: String,
    },
    /// The source was not asked, or did not answer, because of its rate limit. It says nothing about the thing.
    Throttled {
        /// Why, as one sentence that does not change from look to look.
        why: String,
        /// When the source may be asked again, on the reader's clock.
        until: Timestamp,
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

/// Why a fact has no value at a moment: see [`Fact::read`]. [`Missing::Absent`] alone says that there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The source was asked, a short while ago, and said that it does not exist.
    #[error("it does not exist")]
    Absent,
    /// It was not read.
    #[error("it was not read")]
    NeverRead,
    /// It was read too long ago to be used.
    #[error("{age_secs} s old")]
    TooOld {
        /// Its age in seconds.
        age_secs: i64,
    },
    /// The source could not be asked, or its answer could not be used.
    #[error("{why}")]
    Failed {
        /// Why, as one sentence.
        why: String,
    },
}

impl Missing {
    /// Turns the answer that something does not exist into `None`, and leaves an error only where there is no answer.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn or_absent<T>(read: Result<T, Self>) -> Result<Option<T>, Self> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(Self::Absent) => Ok(None),
            Err(missing) => Err(missing),
        }
    }
}

impl<T> Fact<T> {
    /// A fact that was read as present.
    pub fn present(value: T, source: Source, at: Timestamp) -> Self {
        Self {
            value: Known::Present(value),
            source,
            at,
        }
    }

    /// A fact that was read as absent.
    pub fn absent(source: Source, at: Timestamp) -> Self {
        Self {
            value: Known::Absent,
            source,
            at,
        }
    }

    /// A fact that could not be read.
    pub fn unknown(why: impl Into<String>, source: Source, at: Timestamp) -> Self {
        Self {
            value: Known::Unknown { why: why.into() },
            source,
            at,
        }
    }

    /// A fact whose source is away.
    pub fn away(why: impl Into<String>, source: Source, at: Timestamp) -> Self {
        Self {
            value: Known::Away { why: why.into() },
            source,
            at,
        }
    }

    /// A fact that was not read because of the source's rate limit. The source may be asked again at `until`.
    pub fn throttled(
        why: impl Into<String>,
        until: Timestamp,
        source: Source,
        at: Timestamp,
    ) -> Self {
        let why = why.into();
        Self {
            value: Known::Throttled { why, until },
            source,
            at,
        }
    }

    /// Whether nobody could act by the source when it was asked: it was away, or its rate limit kept the fact from being read.
    pub fn is_away(&self) -> bool {
        matches!(self.value, Known::Away { .. } | Known::Throttled { .. })
    }

    /// When the source may be asked again, if its rate limit kept the fact from being read.
    pub fn throttled_until(&self) -> Option<Timestamp> {
        match &self.value {
            Known::Throttled { until, .. } => Some(*until),
            Known::Present(_) | Known::Absent | Known::Unknown { .. } | Known::Away { .. } => None,
        }
    }

    /// The value at `now`.
    ///
    /// # Errors
    /// Why there is none. A fact that is older than `max_age`, or from the future by more than that, is too old.
    pub fn read(&self, now: Timestamp, max_age: SignedDuration) -> Result<&T, Missing> {
        let age = now.duration_since(self.at);
        match &self.value {
            Known::Unknown { why } | Known::Away { why } | Known::Throttled { why, .. } => {
                Err(Missing::Failed { why: why.clone() })
            }
            _ if age > max_age || age < -max_age => Err(Missing::TooOld {
                age_secs: age.as_secs(),
            }),
            Known::Present(value) => Ok(value),
            Known::Absent => Err(Missing::Absent),
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

/// A fact that is missing, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{what}: {why}")]
pub struct MissingFact {
    /// Which fact.
    pub what: String,
    /// Why it is no answer.
    pub why: String,
}

/// The value, or none where there is none for certain.
pub(crate) fn known<'a, T>(
    read: Result<&'a T, Missing>,
    what: &str,
) -> Result<Option<&'a T>, MissingFact> {
    Missing::or_absent(read).map_err(|missing| MissingFact {
        what: what.to_owned(),
        why: missing.to_string(),
    })
}
