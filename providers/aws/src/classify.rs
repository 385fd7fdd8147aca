//! Classifies the SDK's errors by what is known about the effect.

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use reattach_provider_api::socket::{QUOTED, one_line, with_causes};
use reattach_provider_api::{ProviderError, TransportError, TransportErrorKind};
use std::{error::Error, time::Duration};

/// Code of EC2's answer to a dry-run of an allowed action.
pub(crate) const DRY_RUN: &str = "DryRunOperation";

/// Codes of throttling: those of EC2, and those that the SDK treats as throttling for any service.
pub(crate) const THROTTLED: [&str; 9] = [
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequestsException",
    "EC2ThrottledException",
    "SlowDown",
];

/// Codes of a missing right. Their texts name the caller and the right.
const LACKS_RIGHT: [&str; 3] = [
    "UnauthorizedOperation",
    "AccessDenied",
    "AccessDeniedException",
];

/// Codes of a credential that is not accepted. Their texts are not quoted, because some repeat the signed text.
const BAD_CREDENTIAL: [&str; 13] = [
    "AuthFailure",
    "Blocked",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "OptInRequired",
    "PendingVerification",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
];

/// Codes of an object that does not exist in the caller's account.
const NOT_FOUND: [&str; 3] = [
    "InvalidVolume.NotFound",
    "InvalidInstanceID.NotFound",
    "InvalidSnapshot.NotFound",
];

/// Codes of a failure of the server, after which the effect of a mutation is open.
const SERVER: [&str; 6] = [
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "ServiceUnavailable",
    "Unavailable",
    "RequestTimeout",
];

/// Whether a call can have an effect, and whether it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A read or a dry-run, which has no effect.
    Read,
    /// A call that can have an effect.
    Mutation {
        /// Whether the request was handed to the transport.
        sent: bool,
    },
}

/// The name of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// The action in words, as "detach volume vol-1".
    pub(crate) operation: &'a str,
    /// The API's name of the action, which is also the name of the right.
    pub(crate) action: &'a str,
}

/// A call without a usable result.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The error, by what is known about the effect.
    pub(crate) error: ProviderError,
    /// EC2's error code, if there is one.
    pub(crate) code: Option<String>,
    /// EC2's text, if there is one.
    pub(crate) message: Option<String>,
    /// Whether a read may be retried.
    pub(crate) transient: bool,
}

impl Failure {
    fn new(error: ProviderError, transient: bool) -> Self {
        Self {
            error,
            code: None,
            message: None,
            transient,
        }
    }
}

impl Call<'_> {
    /// Makes the error of a call without a usable answer. The effect of a mutation that was sent is unknown.
    pub(crate) fn open(&self, kind: Kind, reason: String) -> ProviderError {
        let operation = self.operation.to_owned();
        match kind {
            Kind::Mutation { sent: true } => ProviderError::Unknown { operation, reason },
            Kind::Read | Kind::Mutation { sent: false } => {
                ProviderError::NotApplied { operation, reason }
            }
        }
    }

    /// Makes the error of a call that had no effect.
    pub(crate) fn not_applied(&self, reason: impl Into<String>) -> ProviderError {
        ProviderError::not_applied(self.operation, reason)
    }

    fn denied(&self, reason: String, missing: Vec<String>) -> ProviderError {
        ProviderError::Denied {
            operation: self.operation.to_owned(),
            reason,
            missing,
        }
    }

    /// Makes the failure of a call without an answer in the time allowed.
    pub(crate) fn timed_out(&self, kind: Kind) -> Failure {
        Failure::new(
            self.open(kind, "no answer in the time allowed".to_owned()),
            true,
        )
    }

    /// Classifies an error of the SDK.
    pub(crate) fn failed<E>(&self, kind: Kind, error: SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        if let Some(answer) = error.raw_response() {
            let (status, headers) = (answer.status(), answer.headers());
            let known = error.as_service_error().map(ProvideErrorMetadata::meta);
            let code = known.and_then(|meta| meta.code()).map(str::to_owned);
            let message = known.and_then(|meta| meta.message()).map(quote);
            if status.is_success() {
                let reason = format!(
                    "the answer (HTTP {}) is not in the API's own form",
                    status.as_u16()
                );
                return Failure::new(self.open(kind, reason), true);
            }
            let retry_after = headers
                .get("retry-after")
                .and_then(|v| v.trim().parse().ok());
            let kind_of_body = headers.get("content-type").map(quote);
            return self.refused(
                kind,
                status.as_u16(),
                code,
                message,
                kind_of_body,
                retry_after.map(Duration::from_secs),
            );
        }
        let reason = quote(&with_causes(&error));
        if let Some(found) = cause::<TransportError>(&error) {
            if let TransportErrorKind::HeldBack { retry_after } = found.kind {
                let throttled = ProviderError::Throttled {
                    operation: self.operation.to_owned(),
                    retry_after: Some(retry_after),
                };
                return Failure::new(throttled, false);
            }
            let left = found.kind != TransportErrorKind::BeforeSend;
            let kind = match kind {
                Kind::Mutation { sent } => Kind::Mutation { sent: sent && left },
                Kind::Read => Kind::Read,
            };
            return Failure::new(self.open(kind, found.to_string()), true);
        }
        if cause::<aws_credential_types::provider::error::CredentialsError>(&error).is_some_and(
            |e| {
                !matches!(
                    e,
                    aws_credential_types::provider::error::CredentialsError::ProviderTimedOut(_)
                )
            },
        ) {
            return Failure::new(self.denied(reason, Vec::new()), false);
        }
        Failure::new(
            self.open(kind, reason),
            matches!(error, SdkError::TimeoutError(_)),
        )
    }

    /// Classifies an answer that is not a success.
    fn refused(
        &self,
        kind: Kind,
        status: u16,
        code: Option<String>,
        message: Option<String>,
        kind_of_body: Option<String>,
        retry_after: Option<Duration>,
    ) -> Failure {
        let operation = self.operation.to_owned();
        let is = |codes: &[&str]| code.as_deref().is_some_and(|code| codes.contains(&code));
        let reason = match (&code, &message) {
            (Some(code), Some(message)) => format!("{} ({code}, HTTP {status})", plain(message)),
            (Some(code), None) => format!("{code} (HTTP {status})"),
            (None, _) => {
                let body = kind_of_body.map_or("no typed body".to_owned(), |kind| {
                    format!("a body of type {kind}")
                });
                format!("HTTP {status} with {body}, not in the API's own form")
            }
        };
        let on_their_side = is(&SERVER) || status == 408 || status >= 500;
        let error = if is(&THROTTLED) || (code.is_none() && status == 429) {
            ProviderError::Throttled {
                operation,
                retry_after,
            }
        } else if is(&LACKS_RIGHT) {
            self.denied(reason, vec![format!("ec2:{}", self.action)])
        } else if is(&BAD_CREDENTIAL) {
            let code = code.as_deref().unwrap_or_default();
            self.denied(
                format!("AWS does not accept the credential: {code} (HTTP {status})"),
                Vec::new(),
            )
        } else if is(&NOT_FOUND) {
            ProviderError::NotFound { operation, reason }
        } else if on_their_side {
            self.open(kind, reason)
        } else if code.is_none() && matches!(status, 401 | 403) {
            self.denied(reason, Vec::new())
        } else {
            self.not_applied(reason)
        };
        let transient = on_their_side && !matches!(error, ProviderError::Throttled { .. });
        Failure {
            error,
            code,
            message,
            transient,
        }
    }
}

/// Returns a message without its long part that only AWS can decode.
fn plain(message: &str) -> &str {
    let end = message
        .find("Encoded authorization failure message")
        .unwrap_or(message.len());
    message[..end].trim_end()
}

/// Returns the first cause of this type.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Returns a text from outside on one line of limited length, without the part that only AWS can decode.
pub(crate) fn quote(text: &str) -> String {
    one_line(plain(text), QUOTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call<'_> = Call {
        operation: "detach volume vol-1",
        action: "DetachVolume",
    };
    const SENT: Kind = Kind::Mutation { sent: true };

    fn refused(kind: Kind, status: u16, code: Option<&str>) -> Failure {
        let message = code.map(|_| "Words of EC2".to_owned());
        CALL.refused(
            kind,
            status,
            code.map(str::to_owned),
            message,
            Some("text/html".into()),
            None,
        )
    }

    #[test]
    fn every_answer_says_what_is_known_about_the_effect() {
        let table = [
            (400, Some("IncorrectState"), "NotApplied", "NotApplied"),
            (400, Some("VolumeInUse"), "NotApplied", "NotApplied"),
            (
                400,
                Some("InvalidAttachment.NotFound"),
                "NotApplied",
                "NotApplied",
            ),
            (
                400,
                Some("OperationNotPermitted"),
                "NotApplied",
                "NotApplied",
            ),
            (
                400,
                Some("UnsupportedOperationException"),
                "NotApplied",
                "NotApplied",
            ),
            (400, Some("ACodeOfTheFuture"), "NotApplied", "NotApplied"),
            (412, Some("DryRunOperation"), "NotApplied", "NotApplied"),
            (400, Some("InvalidVolume.NotFound"), "NotFound", "NotFound"),
            (
                400,
                Some("InvalidInstanceID.NotFound"),
                "NotFound",
                "NotFound",
            ),
            (401, Some("AuthFailure"), "Denied", "Denied"),
            (403, Some("UnauthorizedOperation"), "Denied", "Denied"),
            (400, Some("RequestExpired"), "Denied", "Denied"),
            (403, None, "Denied", "Denied"),
            (404, None, "NotApplied", "NotApplied"),
            (302, None, "NotApplied", "NotApplied"),
            (429, None, "Throttled", "Throttled"),
            (503, Some("RequestLimitExceeded"), "Throttled", "Throttled"),
            (400, Some("Throttling"), "Throttled", "Throttled"),
            (503, Some("Unavailable"), "NotApplied", "Unknown"),
            (500, Some("InternalError"), "NotApplied", "Unknown"),
            (400, Some("InternalFailure"), "NotApplied", "Unknown"),
            (502, None, "NotApplied", "Unknown"),
            (408, None, "NotApplied", "Unknown"),
        ];
        for (status, code, read, mutation) in table {
            for (kind, expected) in [(Kind::Read, read), (SENT, mutation)] {
                let error = format!("{:?}", refused(kind, status, code).error);
                assert!(
                    error.starts_with(expected),
                    "{status} {code:?} {kind:?}: {error}"
                );
            }
        }
    }

    #[test]
    fn errors_are_one_sentence() {
        let error = |status, code| refused(SENT, status, code).error.to_string();
        assert_eq!(
            error(400, Some("IncorrectState")),
            "could not detach volume vol-1: Words of EC2 (IncorrectState, HTTP 400)"
        );
        assert_eq!(
            error(403, Some("UnauthorizedOperation")),
            "not allowed to detach volume vol-1: Words of EC2 (UnauthorizedOperation, HTTP 403) (missing: ec2:DetachVolume)"
        );
        assert_eq!(
            error(502, None),
            "tried to detach volume vol-1, and the effect is not known: HTTP 502 with a body of type \
             text/html, not in the API's own form"
        );
        let encoded = "Not allowed. Encoded authorization failure message: c2VjcmV0";
        assert_eq!(quote(encoded), "Not allowed.");
    }

    #[test]
    fn the_text_of_a_refused_credential_is_not_repeated() {
        for code in BAD_CREDENTIAL {
            let error = refused(SENT, 403, Some(code)).error.to_string();
            assert!(
                error.contains(code) && !error.contains("Words of EC2"),
                "{error}"
            );
        }
    }
}
