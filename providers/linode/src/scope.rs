//! Who answers: the credential and its account, as a fingerprint.

use crate::{client::Client, provider::NAME};
use reattach_core::cloud::CloudScope;
use reattach_provider_api::ProviderError;
use sha2::{Digest, Sha256};

/// The header of every answer that names "the account owning the personal access token that was used for the request"
/// (Linode's API reference, response headers).
const ACCOUNT: &str = "x-customer-uuid";

/// Bytes of a scope's fingerprint.
const FINGERPRINT: usize = 16;

/// A fingerprint of API, token and account. A token is of one user of one account for as long as it lives, so it tells
/// the account even where an answer does not name it. The read shows that the API takes the token now. Instance and
/// volume numbers are one sequence for all regions, so no region is part of it.
pub(crate) async fn read(client: &Client) -> Result<CloudScope, ProviderError> {
    let answer = client.probe("tell which account answers", "/volumes?page=1&page_size=25").await?;
    let account = answer.headers().get(ACCOUNT).map_or(&b""[..], |value| value.as_bytes());
    let config = client.config();
    let mut digest = Sha256::new();
    for part in [NAME.as_bytes(), config.base().as_bytes(), config.token.header().as_bytes(), account] {
        digest.update(Sha256::digest(part));
    }
    Ok(CloudScope(digest.finalize().iter().take(FINGERPRINT).map(|byte| format!("{byte:02x}")).collect()))
}
