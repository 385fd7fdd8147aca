//! EC2's rate limits: the published ones, and how EC2 refuses a request because of them. EC2 announces no limits in its answers.

use crate::{classify::THROTTLED, connector::Mutation};
use bytes::Bytes;
use http::{Request, Response, header};
use reattach_provider_api::{
    RequestKind,
    limiter::{Allowance, Announced, Published, Reading},
};
use std::time::Duration;

/// The bucket of a `Describe` action: 100 tokens, with 20 more each second (EC2's developer guide, "Request throttling", its
/// example for non-mutating actions). Each action has a bucket of its own; one limit for all of them is on the safe side.
const DESCRIBE: Allowance = Allowance {
    requests: 100,
    window: Duration::from_secs(5),
};

/// EC2's published limits per account and region. Lists have no limit of their own.
pub(crate) const PUBLISHED: Published = Published {
    all: DESCRIBE,
    lists: DESCRIBE,
};

pub(crate) const READING: Reading = Reading { kind, announced };

fn kind(request: &Request<Bytes>) -> RequestKind {
    match request.extensions().get::<Mutation>() {
        Some(Mutation) => RequestKind::Change,
        None => RequestKind::Read,
    }
}

fn announced(answer: &Response<Bytes>) -> Announced {
    let retry_after = || {
        let named = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
        Some(Duration::from_secs(named.trim().parse().ok()?))
    };
    Announced {
        refused: is_throttled(answer).then(retry_after),
        ..Announced::default()
    }
}

/// EC2 refuses with `RequestLimitExceeded` in a 503, and a proxy with 429.
fn is_throttled(answer: &Response<Bytes>) -> bool {
    let status = answer.status();
    if status.is_success() {
        return false;
    }
    let body = String::from_utf8_lossy(answer.body());
    let has = |code: &&str| body.contains(&format!("<Code>{code}</Code>"));
    status.as_u16() == 429 || THROTTLED.iter().any(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttled_request_is_a_refusal() {
        let refused = |status: u16, code: &str| {
            let body =
                format!("<Response><Errors><Error><Code>{code}</Code></Error></Errors></Response>");
            let answer = Response::builder().status(status).body(Bytes::from(body));
            announced(&answer.expect("a good answer")).refused
        };
        assert_eq!(refused(503, "RequestLimitExceeded"), Some(None));
        assert_eq!(refused(400, "Throttling"), Some(None));
        assert_eq!(refused(429, ""), Some(None));
        assert_eq!(refused(503, "Unavailable"), None);
        assert_eq!(refused(200, "RequestLimitExceeded"), None);
    }
}
