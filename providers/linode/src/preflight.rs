//! What the token may do, from the `X-OAuth-Scopes` header that every answer carries.

use crate::{classify, client::Client};
use bytes::Bytes;
use http::Response;
use reattach_provider_api::{Grant, PreflightReport, ProviderError, Right, RightUse};

/// Scopes by what they are needed for, as Linode's API description lists them. A detach needs both `read_write`, so
/// powering off and on needs none of its own.
const NEEDED: [(&str, &[RightUse]); 5] = [
    ("events:read_only", &[RightUse::ReadJobs]),
    ("linodes:read_only", &[RightUse::ReadInstances]),
    ("linodes:read_write", &[RightUse::Detach, RightUse::Power]),
    ("volumes:read_only", &[RightUse::ReadVolumes]),
    ("volumes:read_write", &[RightUse::Detach]),
];

/// One read, whose answer names the token's scopes even when it is refused for want of one. A restricted user's
/// grants per object do not show there: such a user's detach is answered 403.
pub(crate) async fn run(client: &Client) -> PreflightReport {
    match client.probe("read the token's scopes", "/volumes?page=1&page_size=25").await {
        Ok(answer) => report(&answer),
        Err(error) => unknown(error),
    }
}

fn report(answer: &Response<Bytes>) -> PreflightReport {
    let granted = classify::scopes(answer.headers(), "x-oauth-scopes");
    let grant = |scope: &str| match &granted {
        Some(granted) if classify::grants(granted, scope) => Grant::Present,
        Some(_) => Grant::Missing,
        None => Grant::Unknown { why: "the API's answer did not name the token's scopes".to_owned() },
    };
    PreflightReport { rights: rights(grant), failure: None }
}

fn unknown(error: ProviderError) -> PreflightReport {
    let why = error.to_string();
    PreflightReport { rights: rights(|_| Grant::Unknown { why: why.clone() }), failure: Some(error) }
}

fn rights(grant: impl Fn(&str) -> Grant) -> Vec<Right> {
    let right = |(name, uses): &(&str, &[RightUse])| Right {
        name: (*name).to_owned(),
        needed_for: uses.to_vec(),
        grant: grant(name),
    };
    NEEDED.iter().map(right).collect()
}
