//! Number of requests of one credential.

use super::limit::RequestKind;
use std::collections::BTreeMap;
use std::time::Duration;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestOutcome {
    /// The provider answered, and did not refuse because of its rate limit.
    Answered,
    /// The provider refused because of its rate limit.
    Refused,
    /// No answer came.
    Unanswered,
    /// It was held back and not sent.
    Held,
}

impl RequestOutcome {
    /// All outcomes.
    pub const ALL: [Self; 4] = [Self::Answered, Self::Refused, Self::Unanswered, Self::Held];
}

/// Number of requests of one credential since the start of the process, and what is left of its limits now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of requests by kind and outcome.
    pub requests: BTreeMap<(RequestKind, RequestOutcome), u64>,
    /// Total time that looks waited for their turn.
    pub waited: Duration,
    /// Number of looks that may be sent at once now.
    pub budget: u32,
    /// Number of requests that the provider says all clients together have left in its present window. `None`: unknown.
    pub remaining: Option<u32>,
}

impl Usage {
    /// Returns the number of requests of this kind and outcome.
    pub fn of(&self, kind: RequestKind, outcome: RequestOutcome) -> u64 {
        self.requests.get(&(kind, outcome)).copied().unwrap_or(0)
    }

    pub(super) fn count(&mut self, kind: RequestKind, outcome: RequestOutcome) {
        *self.requests.entry((kind, outcome)).or_default() += 1;
    }
}
