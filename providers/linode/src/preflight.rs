//! Reads the rights of the token from the `X-OAuth-Scopes` header, which every answer has.

use crate::{classify, client::Client};
use bytes::Bytes;
use http::Response;
use reattach_provider_api::{Grant, PreflightReport, ProviderError, Right, RightUse};

/// Scopes and their uses, from Linode's API description. A detach needs both `read_write` scopes, so powering off and on
/// needs no further one.
const NEEDED: [(&str, &[RightUse]); 5] = [
    ("events:read_only", &[RightUse::ReadJobs]),
    ("linodes:read_only", &[RightUse::ReadInstances]),
    ("linodes:read_write", &[RightUse::Detach, RightUse::Power]),
    ("volumes:read_only", &[RightUse::ReadVolumes]),
    ("volumes:read_write", &[RightUse::Detach]),
];

/// Reads the token's scopes. Also an answer that refuses the read because of a missing scope names them. The grants of a
/// restricted user for single objects are not shown: a detach by such a user is answered 403.
pub(crate) async fn run(client: &Client) -> PreflightReport {
    match client
        .probe("read the token's scopes", "/volumes?page=1&page_size=25")
        .await
    {
        Ok(answer) => report(&answer),
        Err(error) => unknown(error),
    }
}

fn report(answer: &Response<Bytes>) -> PreflightReport {
    let granted = classify::scopes(answer.headers(), "x-oauth-scopes");
    let grant = |scope: &str| match &granted {
        Some(granted) if classify::grants(granted, scope) => Grant::Present,
        Some(_) => Grant::Missing,
        None => Grant::Unknown {
            why: "the API's answer did not name the token's scopes".to_owned(),
        },
    };
    PreflightReport {
        rights: rights(grant),
        failure: None,
    }
}

fn unknown(error: ProviderError) -> PreflightReport {
    let why = error.to_string();
    PreflightReport {
        rights: rights(|_| Grant::Unknown { why: why.clone() }),
        failure: Some(error),
    }
}

fn rights(grant: impl Fn(&str) -> Grant) -> Vec<Right> {
    let right = |(name, uses): &(&str, &[RightUse])| Right {
        name: (*name).to_owned(),
        needed_for: uses.to_vec(),
        grant: grant(name),
    };
    NEEDED.iter().map(right).collect()
}
