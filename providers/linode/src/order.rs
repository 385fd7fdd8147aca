//! Orders: one reading, and then at most one request that changes something, within one time limit.

use crate::{
    classify::{self, Kind},
    client::Client,
    wire::Numbered,
};
use bytes::Bytes;
use http::Response;
use reattach_provider_api::ProviderError;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::Instant;

/// With less time than this left after the reading, nothing is sent: an answer would hardly arrive in time, and would
/// leave the outcome open for no gain.
const LEAST_TIME_TO_SEND: Duration = Duration::from_millis(500);

/// An order under way.
#[derive(Clone, Copy)]
pub(crate) struct Order<'a> {
    pub(crate) client: &'a Client,
    /// What is tried, as "detach volume 17 from instance 42".
    pub(crate) operation: &'a str,
    /// When the whole order must be over.
    pub(crate) deadline: Instant,
}

/// What the one request came to, if it was answered.
pub(crate) enum Sent {
    /// Accepted.
    Accepted,
    /// Refused.
    Refused(Box<Refusal>),
}

/// A refusal of the one request.
pub(crate) struct Refusal {
    /// What it means.
    pub(crate) error: ProviderError,
    /// The answer itself.
    pub(crate) answer: Response<Bytes>,
}

impl<'a> Order<'a> {
    pub(crate) fn new(client: &'a Client, operation: &'a str, timeout: Duration) -> Self {
        Self { client, operation, deadline: Instant::now() + timeout }
    }

    /// Reads the object that the order is about, which `what` names.
    pub(crate) async fn read<T: DeserializeOwned + Numbered>(
        &self,
        what: &str,
        path: &str,
        number: u64,
    ) -> Result<T, ProviderError> {
        let reading = self.client.get_object(self.operation, path, number);
        match tokio::time::timeout_at(self.deadline, reading).await {
            Ok(found) => found,
            Err(_) => Err(self.not_applied(&format!("reading {what} first took all the time allowed"))),
        }
    }

    /// Sends the one request, without a body and once, whatever comes back. Every change that this crate makes goes
    /// through here.
    pub(crate) async fn send(&self, what: &str, path: &str) -> Result<Sent, ProviderError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left < LEAST_TIME_TO_SEND {
            return Err(self.not_applied(&format!("reading {what} first left too little time")));
        }
        let sent = self.client.post_once(path, left).await;
        let answer = sent.map_err(|error| classify::transport(self.operation, Kind::Mutation, &error))?;
        if !answer.status().is_success() {
            let error = classify::refusal(self.operation, Kind::Mutation, &answer);
            return Ok(Sent::Refused(Box::new(Refusal { error, answer })));
        }
        // The documented answer is an empty JSON object. Another success, such as a proxy's page, proves nothing.
        match serde_json::from_slice::<serde_json::Map<_, serde_json::Value>>(answer.body()) {
            Ok(_) if classify::is_json(answer.headers()) => Ok(Sent::Accepted),
            _ => Err(classify::unusable(self.operation, Kind::Mutation, &answer, "it is not a JSON object")),
        }
    }

    /// The order surely had no effect.
    pub(crate) fn not_applied(&self, reason: &str) -> ProviderError {
        ProviderError::NotApplied { operation: self.operation.to_owned(), reason: reason.to_owned() }
    }
}
