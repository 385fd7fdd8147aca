//! Errors of providers.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A handle or provider ID of this provider that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what} {value:?} cannot be used: {why}")]
pub struct HandleError {
    /// Kind of the value, such as "volume handle".
    pub what: String,
    /// The value, as Kubernetes has it.
    pub value: String,
    /// The defect, and the form that was expected.
    pub why: String,
}

impl HandleError {
    /// Makes an error: the `value` of kind `what` cannot be used. `why` names the defect and the expected form.
    pub fn new(what: &str, value: &str, why: &str) -> Self {
        Self {
            what: what.to_owned(),
            value: value.to_owned(),
            why: why.to_owned(),
        }
    }
}

/// What is known about the effect of a call that ended with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectKnowledge {
    /// The effect did not happen and will not happen.
    NotApplied,
    /// The effect may have happened, or may still happen. It must be observed before the next action.
    Unknown,
}

/// A call to the provider without a usable result, by what is known about its effect.
///
/// A read has no effect, so its failures are never [`ProviderError::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum ProviderError {
    /// The call surely had no effect: it was not sent, or the provider refused it.
    #[error("could not {operation}: {reason}")]
    NotApplied {
        /// The action, as "detach volume 17".
        operation: String,
        /// Text of the provider or the transport.
        reason: String,
    },
    /// The call was sent, and its outcome is not known.
    #[error("tried to {operation}, and the effect is not known: {reason}")]
    Unknown {
        /// The action, as "detach volume 17".
        operation: String,
        /// Text of the provider or the transport.
        reason: String,
    },
    /// The provider refused the call because of its rate limit, or the limiter held it back ([`crate::limiter`]). The call had
    /// no effect.
    #[error("could not {operation}: the provider limits the rate of calls{}", after(.retry_after))]
    Throttled {
        /// The action, as "detach volume 17".
        operation: String,
        /// Time to wait, if the provider names one.
        retry_after: Option<Duration>,
    },
    /// The credential is wrong or lacks a right. The call had no effect.
    #[error("not allowed to {operation}: {reason}{}", lacking(.missing))]
    Denied {
        /// The action, as "detach volume 17".
        operation: String,
        /// Text of the provider.
        reason: String,
        /// Rights that the call needs and the credential lacks, where the provider names them.
        missing: Vec<String>,
    },
    /// The answer is about another object than the call, as from a proxy or a cache that mixes up answers. It proves nothing
    /// about either object, so it is not used. The call had no effect.
    #[error(
        "could not {operation}: the answer is about {answered}, not about {asked}, so it is not used; check the proxies \
        between reattach and the provider"
    )]
    OtherObject {
        /// The action, as "detach volume 17".
        operation: String,
        /// The object of the call, as "volume 17".
        asked: String,
        /// The object of the answer.
        answered: String,
    },
    /// The provider shows no such object to this credential. This alone does not prove that the object is gone.
    #[error("could not {operation}: {reason}")]
    NotFound {
        /// The action, as "detach volume 17".
        operation: String,
        /// Text of the provider.
        reason: String,
    },
}

fn after(retry_after: &Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| {
        format!(", try again in {} s", wait.as_secs())
    })
}

fn lacking(missing: &[String]) -> String {
    if missing.is_empty() {
        String::new()
    } else {
        format!(" (missing: {})", missing.join(", "))
    }
}

impl ProviderError {
    /// Makes the error of a call that surely had no effect. `operation` is the action, as "detach volume 17".
    pub fn not_applied(operation: &str, reason: impl Into<String>) -> Self {
        Self::NotApplied {
            operation: operation.to_owned(),
            reason: reason.into(),
        }
    }

    /// Whether the provider is away: it could not be reached, failed, or asked for patience. Otherwise it has answered, and
    /// waiting alone changes nothing.
    pub fn is_away(&self) -> bool {
        match self {
            Self::NotApplied { .. } | Self::Unknown { .. } | Self::Throttled { .. } => true,
            Self::Denied { .. } | Self::OtherObject { .. } | Self::NotFound { .. } => false,
        }
    }

    /// Returns the time to wait before the next call, if the provider's rate limit ended this one and the time is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            Self::NotApplied { .. }
            | Self::Unknown { .. }
            | Self::Denied { .. }
            | Self::OtherObject { .. }
            | Self::NotFound { .. } => None,
        }
    }

    /// Returns what is known about the effect.
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
