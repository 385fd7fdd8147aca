//! Linode's rate limits: the published ones, and what an answer announces.

use crate::classify;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use jiff::{Timestamp, fmt::rfc2822};
use reattach_provider_api::{
    RequestKind,
    limiter::{Allowance, Announced, Published, Reading},
};
use std::time::Duration;

/// The window of the published limits.
const WINDOW: Duration = Duration::from_secs(60);

/// Linode's published limits per user and minute: 800 requests of any kind, and 100 reads of a collection (the section on rate
/// limits of Linode's API description since October 2022, linode/linode-api-docs#683). Recorded answers to volume and instance
/// calls announce between 400 and 1840.
pub(crate) const PUBLISHED: Published = Published {
    all: Allowance {
        requests: 800,
        window: WINDOW,
    },
    lists: Allowance {
        requests: 100,
        window: WINDOW,
    },
};

pub(crate) const READING: Reading = Reading { kind, announced };

/// Paths of the collections that this crate reads, after the version.
const COLLECTIONS: [&str; 3] = ["/volumes", "/linode/instances", "/account/events"];

fn kind(request: &Request<Bytes>) -> RequestKind {
    let path = request.uri().path();
    if *request.method() != Method::GET {
        RequestKind::Change
    } else if COLLECTIONS.iter().any(|list| path.ends_with(list)) {
        RequestKind::List
    } else {
        RequestKind::Read
    }
}

/// Reads the headers that every answer of Linode's API has. The end of the window is a moment of Linode's clock, so it is
/// compared with the answer's own date and with no other clock.
fn announced(answer: &Response<Bytes>) -> Announced {
    let headers = answer.headers();
    let throttled = answer.status() == StatusCode::TOO_MANY_REQUESTS;
    Announced {
        limit: number(headers, "x-ratelimit-limit").and_then(|n| u32::try_from(n).ok()),
        remaining: number(headers, "x-ratelimit-remaining").and_then(|n| u32::try_from(n).ok()),
        resets_in: resets_in(headers),
        refused: throttled.then(|| classify::retry_after(headers)),
    }
}

fn resets_in(headers: &HeaderMap) -> Option<Duration> {
    let reset = Timestamp::from_second(number(headers, "x-ratelimit-reset")?).ok()?;
    let date = headers.get(header::DATE)?.to_str().ok()?;
    let date = rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    Duration::try_from(reset.duration_since(date)).ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<i64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)]) -> Response<Bytes> {
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        answer.body(Bytes::new()).expect("a good answer")
    }

    #[test]
    fn the_headers_of_an_answer_are_read() {
        let headers = [
            ("date", "Mon, 02 Mar 2026 03:00:10 GMT"),
            ("x-ratelimit-limit", "1840"),
            ("x-ratelimit-remaining", "1833"),
            ("x-ratelimit-reset", "1772420460"),
        ];
        let expected = Announced {
            limit: Some(1840),
            remaining: Some(1833),
            resets_in: Some(Duration::from_secs(50)),
            refused: None,
        };
        assert_eq!(announced(&answer(200, &headers)), expected);
        // Without its date, the end of the window means nothing.
        let undated = announced(&answer(200, &headers[1..]));
        assert_eq!(undated.resets_in, None);
        let past = [headers[0], ("x-ratelimit-reset", "1772420400")];
        assert_eq!(announced(&answer(200, &past)).resets_in, None);
        assert_eq!(announced(&answer(200, &[])), Announced::default());
    }

    #[test]
    fn a_429_is_a_refusal_with_or_without_a_time() {
        let refused = |headers: &[_]| announced(&answer(429, headers)).refused;
        assert_eq!(refused(&[]), Some(None));
        let named = refused(&[("retry-after", "17")]);
        assert_eq!(named, Some(Some(Duration::from_secs(17))));
        assert_eq!(announced(&answer(503, &[])).refused, None);
    }

    #[test]
    fn collections_and_changes_have_kinds_of_their_own() {
        let kind_of = |method: Method, path: &str| {
            let url = format!("https://api.linode.com/v4{path}");
            let request = Request::builder().method(method).uri(url);
            kind(&request.body(Bytes::new()).expect("a good request"))
        };
        for path in [
            "/volumes?page=1",
            "/linode/instances",
            "/account/events?page=2",
        ] {
            assert_eq!(kind_of(Method::GET, path), RequestKind::List, "{path}");
        }
        for path in ["/volumes/7", "/linode/instances/7", "/account"] {
            assert_eq!(kind_of(Method::GET, path), RequestKind::Read, "{path}");
        }
        let detach = kind_of(Method::POST, "/volumes/7/detach");
        assert_eq!(detach, RequestKind::Change);
    }
}
