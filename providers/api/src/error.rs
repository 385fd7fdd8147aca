//! Errors of providers.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Why a handle or provider ID that belongs to this provider cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what} {value:?} cannot be used: {why}")]
pub struct HandleError {
    /// What it is, such as "volume handle".
    pub what: String,
    /// The value as it was found.
    pub value: String,
    /// What is wrong with it, and what was expected.
    pub why: String,
}

impl HandleError {
    /// `what` with this `value` cannot be used, for the reason `why`, which says what was expected.
    pub fn new(what: &str, value: &str, why: &str) -> Self {
        Self { what: what.to_owned(), value: value.to_owned(), why: why.to_owned() }
    }
}

/// What an error tells about the effect of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectKnowledge {
    /// It did not happen and will not happen.
    NotApplied,
    /// It may have happened, or may still happen. Observe before anything else.
    Unknown,
}

/// A call to the provider that gave no usable result, by what is known about its effect.
///
/// A read never has an effect: its failures are never [`ProviderError::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum ProviderError {
    /// The call surely had no effect: it never left, or the provider refused it.
    #[error("could not {operation}: {reason}")]
    NotApplied {
        /// What was tried, as "detach volume 17".
        operation: String,
        /// The provider's or the transport's words.
        reason: String,
    },
    /// The call left and its outcome was not learned.
    #[error("tried to {operation}, and whether that happened is not known: {reason}")]
    Unknown {
        /// What was tried.
        operation: String,
        /// The provider's or the transport's words.
        reason: String,
    },
    /// The provider limits the rate of calls; this one had no effect.
    #[error("could not {operation}: the provider limits the rate of calls{}", after(.retry_after))]
    Throttled {
        /// What was tried.
        operation: String,
        /// How long the provider asks to wait; not every answer says.
        retry_after: Option<Duration>,
    },
    /// The credential is wrong or lacks a right; this call had no effect.
    #[error("not allowed to {operation}: {reason}{}", lacking(.missing))]
    Denied {
        /// What was tried.
        operation: String,
        /// The provider's words.
        reason: String,
        /// Rights that the call needs and the credential lacks, where the provider names them.
        missing: Vec<String>,
    },
    /// The answer is about another object than the one asked for, as from a proxy or a cache that mixes up answers. It says
    /// nothing about either, so nothing in it is used; this call had no effect.
    #[error(
        "could not {operation}: the answer is about {answered}, not about {asked}, and is not used; see what lies \
        between reattach and the provider, such as a proxy"
    )]
    OtherObject {
        /// What was tried.
        operation: String,
        /// What was asked for, as "volume 17".
        asked: String,
        /// What the answer is about.
        answered: String,
    },
    /// The provider knows no such object under this credential. By itself no proof that it is gone.
    #[error("could not {operation}: {reason}")]
    NotFound {
        /// What was tried.
        operation: String,
        /// The provider's words.
        reason: String,
    },
}

fn after(retry_after: &Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| format!(", try again in {} s", wait.as_secs()))
}

fn lacking(missing: &[String]) -> String {
    if missing.is_empty() { String::new() } else { format!(" (missing: {})", missing.join(", ")) }
}

impl ProviderError {
    /// A call that surely had no effect. `operation` is what was tried, as "detach volume 17".
    pub fn not_applied(operation: &str, reason: impl Into<String>) -> Self {
        Self::NotApplied { operation: operation.to_owned(), reason: reason.into() }
    }

    /// What the error tells about the effect.
    pub fn effect(&self) -> EffectKnowledge {
        match self {
            Self::Unknown { .. } => EffectKnowledge::Unknown,
            Self::NotApplied { .. }
            | Self::Throttled { .. }
            | Self::Denied { .. }
            | Self::OtherObject { .. }
            | Self::NotFound { .. } => EffectKnowledge::NotApplied,
        }
    }
}
