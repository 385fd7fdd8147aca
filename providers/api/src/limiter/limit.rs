//! The vocabulary of rate limits: what a request is, and what a provider allows.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a request does. Providers limit lists more than reads of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RequestKind {
    /// Reads one object.
    Read,
    /// Reads a list or a history.
    List,
    /// Changes something.
    Change,
}

impl RequestKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Read, Self::List, Self::Change];
}

/// The purpose of a request. A request carries it among its extensions; without one it is a look, unless it changes something.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum Purpose {
    /// Shows what is the case. It waits for its turn.
    #[default]
    Look,
    /// Is an effect, or a read right before one. It never waits.
    Effect,
}

/// Number of requests that a provider allows within a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Number of requests.
    pub requests: u32,
    /// The window.
    pub window: Duration,
}

/// The limits that a provider publishes for one credential. They count until an answer announces others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Limit of all requests together.
    pub all: Allowance,
    /// Limit of lists. They count as requests, too.
    pub lists: Allowance,
}

/// A request was held back: it was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Time after which the request would be sent.
    pub retry_after: Duration,
}

/// What one answer says about the provider's limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Number of requests in a window.
    pub limit: Option<u32>,
    /// Number of requests that are left in the present window, for all clients together.
    pub remaining: Option<u32>,
    /// Time until the present window ends, on the provider's clock alone.
    pub resets_in: Option<Duration>,
    /// The provider refused the request because of its limit, with the time to wait if it names one.
    pub refused: Option<Option<Duration>>,
}
