//! Identifies the credential and its account by a fingerprint.

use crate::{client::Client, handle::NAME};
use reattach_core::cloud::CloudScope;
use reattach_provider_api::ProviderError;
use sha2::{Digest, Sha256};

/// Header of every answer that names "the account owning the personal access token that was used for the request"
/// (Linode's API reference, response headers).
const ACCOUNT: &str = "x-customer-uuid";

/// Length of a scope's fingerprint, in bytes.
const FINGERPRINT: usize = 16;

/// Reads the fingerprint of API, token and account. A token belongs to one user of one account as long as it exists, so it
/// identifies the account also when an answer does not name it. The read shows that the API accepts the token now. The
/// numbers of instances and volumes are unique in all regions, so the region is not part of the fingerprint.
pub(crate) async fn read(client: &Client) -> Result<CloudScope, ProviderError> {
    let answer = client
        .probe("tell which account answers", "/volumes?page=1&page_size=25")
        .await?;
    let account = answer
        .headers()
        .get(ACCOUNT)
        .map_or(&b""[..], |value| value.as_bytes());
    let config = client.config();
    let mut digest = Sha256::new();
    for part in [
        NAME.as_bytes(),
        config.base().as_bytes(),
        config.token.header().as_bytes(),
        account,
    ] {
        digest.update(Sha256::digest(part));
    }
    Ok(CloudScope(
        digest
            .finalize()
            .iter()
            .take(FINGERPRINT)
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    ))
}
