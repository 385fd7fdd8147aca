//! What is known of a request from the API server's reply.

use jiff::Timestamp;
use reattach_core::journal::Outcome;
use reattach_core::proof::FenceProof;

/// What is known of a write from its reply.
pub fn outcome<T>(reply: Result<T, kube::Error>, detail: &str) -> Outcome {
    match reply {
        Ok(_) => applied(detail),
        Err(error) => failure(error),
    }
}

/// What is known of a write that was not accepted.
pub(crate) fn failure(error: kube::Error) -> Outcome {
    match error {
        kube::Error::Api(status) if status.code < 500 => Outcome::NotApplied {
            why: answered(&status),
            // 409: another writer was faster; read again. 429: the API server is busy or a budget is spent.
            retry: matches!(status.code, 409 | 429),
        },
        error => Outcome::Unknown {
            why: format!("no definite answer from the API server: {error}"),
        },
    }
}

pub(crate) fn applied(detail: &str) -> Outcome {
    Outcome::Applied {
        detail: detail.to_owned(),
    }
}

/// Whether the API server refused a request for good: asking again changes nothing unless the object or a right does.
pub fn is_refused(error: &kube::Error) -> bool {
    // 408 and 429: later. 409: another writer was faster.
    matches!(error, kube::Error::Api(s) if (400..500).contains(&s.code) && !matches!(s.code, 408 | 409 | 429))
}

/// Makes sure that a proof still holds right before the effect that needs it.
///
/// # Errors
/// The outcome of that effect: it was not applied, and the run makes a new proof.
pub fn require_proof(proof: &FenceProof, now: Timestamp) -> Result<(), Outcome> {
    if proof.holds_at(now) {
        return Ok(());
    }
    let why =
        "the proof no longer holds, so nothing was sent; the run makes a new proof".to_owned();
    Err(Outcome::NotApplied { why, retry: true })
}

/// What the API server said, or why it said nothing, as one sentence.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => answered(status),
        other => other.to_string(),
    }
}

fn answered(status: &kube::core::Status) -> String {
    format!(
        "the API server answered {} {}: {}",
        status.code, status.reason, status.message
    )
}
