//! Classifies HTTP answers and transport errors by what is known about the effect.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use reattach_provider_api::socket::{QUOTED, one_line};
use reattach_provider_api::{ProviderError, TransportError, TransportErrorKind};
use serde::Deserialize;
use std::time::Duration;

/// Whether a call can have an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Mutation,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    reason: String,
    #[serde(default)]
    field: Option<String>,
}

/// Classifies a call without an answer.
pub(crate) fn transport(operation: &str, kind: Kind, error: &TransportError) -> ProviderError {
    let (operation, reason) = (operation.to_owned(), error.to_string());
    match (error.kind, kind) {
        (TransportErrorKind::HeldBack { retry_after }, _) => ProviderError::Throttled {
            operation,
            retry_after: Some(retry_after),
        },
        (TransportErrorKind::BeforeSend, _)
        | (TransportErrorKind::AfterSend | TransportErrorKind::Timeout, Kind::Read) => {
            ProviderError::NotApplied { operation, reason }
        }
        (TransportErrorKind::AfterSend | TransportErrorKind::Timeout, Kind::Mutation) => {
            ProviderError::Unknown { operation, reason }
        }
    }
}

/// Classifies an answer that is not a success.
pub(crate) fn refusal(operation: &str, kind: Kind, answer: &Response<Bytes>) -> ProviderError {
    let status = answer.status();
    let (operation, reason) = (operation.to_owned(), describe(answer));
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ProviderError::Denied {
            operation,
            reason,
            missing: missing_scopes(answer.headers()),
        },
        // A 404 of another server (a proxy's page, a wrong URL) shows nothing about the object.
        StatusCode::NOT_FOUND if own_reasons(answer).is_some() => {
            ProviderError::NotFound { operation, reason }
        }
        StatusCode::TOO_MANY_REQUESTS => ProviderError::Throttled {
            operation,
            retry_after: retry_after(answer.headers()),
        },
        // A 408 comes from the server that waited for the end of the request. Whether the API got the request is open.
        _ if kind == Kind::Mutation
            && (status == StatusCode::REQUEST_TIMEOUT || status.is_server_error()) =>
        {
            ProviderError::Unknown { operation, reason }
        }
        _ => ProviderError::NotApplied { operation, reason },
    }
}

/// Classifies a success whose body is not the documented one. After a mutation, another server may have answered.
pub(crate) fn unusable(
    operation: &str,
    kind: Kind,
    answer: &Response<Bytes>,
    why: &str,
) -> ProviderError {
    let operation = operation.to_owned();
    let reason = format!(
        "the answer (HTTP {}) cannot be used: {why}",
        answer.status().as_u16()
    );
    match kind {
        Kind::Read => ProviderError::NotApplied { operation, reason },
        Kind::Mutation => ProviderError::Unknown { operation, reason },
    }
}

/// Returns the reasons in Linode's own form of an error. `None`: the body has another form.
pub(crate) fn own_reasons(answer: &Response<Bytes>) -> Option<String> {
    if !is_json(answer.headers()) {
        return None;
    }
    let errors = serde_json::from_slice::<Errors>(answer.body()).ok()?.errors;
    let reasons: Vec<_> = errors
        .into_iter()
        .map(|error| match error.field {
            Some(field) => format!("{} ({field})", error.reason),
            None => error.reason,
        })
        .collect();
    (!reasons.is_empty()).then(|| quote(&reasons.join("; ")))
}

pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    kind.split(';')
        .next()
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Returns whether the API is down for maintenance. A retry is pointless then.
pub(crate) fn in_maintenance(headers: &HeaderMap) -> bool {
    headers.contains_key("x-maintenance-mode")
}

/// Parses `Retry-After` in seconds. Linode documents no form with a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

fn describe(answer: &Response<Bytes>) -> String {
    let status = answer.status();
    let name = status
        .canonical_reason()
        .map(|n| format!(" {n}"))
        .unwrap_or_default();
    let maintenance = if in_maintenance(answer.headers()) {
        ", maintenance mode"
    } else {
        ""
    };
    match own_reasons(answer) {
        Some(reasons) => format!("{reasons} (HTTP {}{maintenance})", status.as_u16()),
        None => {
            let kind = answer
                .headers()
                .get(header::CONTENT_TYPE)
                .and_then(|v| v.to_str().ok());
            let body = match kind {
                Some(kind) => format!("a body of type {}", quote(kind)),
                None => "no typed body".to_owned(),
            };
            format!(
                "HTTP {}{name} with {body}, not in the API's own form{maintenance}",
                status.as_u16()
            )
        }
    }
}

/// Returns a text from outside on one line of limited length.
pub(crate) fn quote(text: &str) -> String {
    one_line(text, QUOTED)
}

/// Returns whether a text contains this word. "blocked" does not contain the word "locked".
pub(crate) fn says(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric())
        .any(|part| part.eq_ignore_ascii_case(word))
}

/// Returns the scopes in a header. `None`: the answer has no such header.
pub(crate) fn scopes(headers: &HeaderMap, name: &str) -> Option<Vec<String>> {
    let value = headers.get(name)?.to_str().ok()?;
    let words = value
        .split([',', ' '])
        .map(str::trim)
        .filter(|w| !w.is_empty());
    Some(words.map(str::to_owned).collect())
}

/// Returns whether the granted scopes contain this one. `*` contains all, and `read_write` contains `read_only`.
pub(crate) fn grants(granted: &[String], scope: &str) -> bool {
    let write = scope
        .strip_suffix(":read_only")
        .map(|resource| format!("{resource}:read_write"));
    granted
        .iter()
        .any(|g| g == "*" || g == scope || Some(g) == write.as_ref())
}

fn missing_scopes(headers: &HeaderMap) -> Vec<String> {
    let (Some(granted), Some(needed)) = (
        scopes(headers, "x-oauth-scopes"),
        scopes(headers, "x-accepted-oauth-scopes"),
    ) else {
        return Vec::new();
    };
    needed
        .into_iter()
        .filter(|scope| !grants(&granted, scope))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Response<Bytes> {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response
            .body(Bytes::from(body.to_owned()))
            .expect("a good answer")
    }

    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");
    const HTML: (&str, &str) = ("content-type", "text/html");

    #[test]
    fn every_answer_says_what_is_known_about_the_effect() {
        let own = |reason: &str| format!(r#"{{"errors":[{{"reason":"{reason}"}}]}}"#);
        let table = [
            (301, HTML, String::new(), "NotApplied", "NotApplied"),
            (400, JSON, own("Linode busy."), "NotApplied", "NotApplied"),
            (400, HTML, "<html>".to_owned(), "NotApplied", "NotApplied"),
            (401, JSON, own("Invalid Token"), "Denied", "Denied"),
            (403, JSON, own("Unauthorized"), "Denied", "Denied"),
            (403, HTML, "<html>".to_owned(), "Denied", "Denied"),
            (404, JSON, own("Not found"), "NotFound", "NotFound"),
            (404, HTML, "<html>".to_owned(), "NotApplied", "NotApplied"),
            (404, JSON, "{".to_owned(), "NotApplied", "NotApplied"),
            (
                404,
                JSON,
                r#"{"errors":[]}"#.to_owned(),
                "NotApplied",
                "NotApplied",
            ),
            (408, JSON, own("Request timeout"), "NotApplied", "Unknown"),
            (418, JSON, own("?"), "NotApplied", "NotApplied"),
            (
                429,
                JSON,
                own("Too many requests"),
                "Throttled",
                "Throttled",
            ),
            (500, JSON, own("Internal"), "NotApplied", "Unknown"),
            (502, HTML, "<html>".to_owned(), "NotApplied", "Unknown"),
            (503, JSON, own("Maintenance"), "NotApplied", "Unknown"),
            (599, HTML, String::new(), "NotApplied", "Unknown"),
        ];
        for (status, kind, body, read, mutation) in table {
            let answer = answer(status, &[kind], &body);
            for (kind, expected) in [(Kind::Read, read), (Kind::Mutation, mutation)] {
                let error = format!("{:?}", refusal("do it", kind, &answer));
                assert!(
                    error.starts_with(expected),
                    "{status} {kind:?} {body}: {error}"
                );
            }
        }
    }

    #[test]
    fn a_transport_error_counts_by_how_far_the_request_got() {
        let table = [
            (TransportErrorKind::BeforeSend, "NotApplied", "NotApplied"),
            (
                TransportErrorKind::HeldBack {
                    retry_after: Duration::from_secs(3),
                },
                "Throttled",
                "Throttled",
            ),
            (TransportErrorKind::AfterSend, "NotApplied", "Unknown"),
            (TransportErrorKind::Timeout, "NotApplied", "Unknown"),
        ];
        for (how_far, read, mutation) in table {
            let error = TransportError::new(how_far, "gone");
            for (kind, expected) in [(Kind::Read, read), (Kind::Mutation, mutation)] {
                assert!(format!("{:?}", transport("do it", kind, &error)).starts_with(expected));
            }
        }
    }

    #[test]
    fn errors_are_one_sentence_without_line_breaks() {
        let body =
            r#"{"errors":[{"reason":"Bad\nthing","field":"x"},{"reason":"Other","field":null}]}"#;
        let error = refusal(
            "detach volume 1",
            Kind::Mutation,
            &answer(400, &[JSON], body),
        );
        assert_eq!(
            error.to_string(),
            "could not detach volume 1: Bad thing (x); Other (HTTP 400)"
        );
        let error = refusal(
            "detach volume 1",
            Kind::Mutation,
            &answer(502, &[HTML], "<html>\r\n…"),
        );
        assert_eq!(
            error.to_string(),
            "tried to detach volume 1, and the effect is not known: HTTP 502 Bad Gateway with a body of \
             type text/html, not in the API's own form"
        );
    }

    #[test]
    fn throttling_with_and_without_a_time() {
        let error =
            |headers: &[_]| refusal("read", Kind::Read, &answer(429, headers, "")).to_string();
        assert_eq!(
            error(&[("retry-after", "17")]),
            "could not read: the provider limits the rate of calls, try again in 17 s"
        );
        assert_eq!(
            error(&[]),
            "could not read: the provider limits the rate of calls"
        );
        assert_eq!(
            error(&[("retry-after", "soon")]),
            "could not read: the provider limits the rate of calls"
        );
    }

    #[test]
    fn a_missing_scope_is_named() {
        let headers = [
            ("x-oauth-scopes", "volumes:read_only linodes:read_write"),
            (
                "x-accepted-oauth-scopes",
                "volumes:read_write,linodes:read_write",
            ),
        ];
        let ProviderError::Denied { missing, .. } =
            refusal("detach", Kind::Mutation, &answer(401, &headers, ""))
        else {
            panic!("not denied")
        };
        assert_eq!(missing, ["volumes:read_write"]);
    }

    #[test]
    fn scopes_include_each_other() {
        let granted = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert!(grants(&granted(&["*"]), "volumes:read_write"));
        assert!(grants(
            &granted(&["volumes:read_write"]),
            "volumes:read_only"
        ));
        assert!(!grants(
            &granted(&["volumes:read_only"]),
            "volumes:read_write"
        ));
        assert!(!grants(
            &granted(&["linodes:read_write"]),
            "volumes:read_only"
        ));
        assert!(!grants(&[], "volumes:read_only"));
    }
}
