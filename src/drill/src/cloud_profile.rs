//! The kind of cloud that a world simulates: its names, the provider of the controllers, and which of the cloud's requests
//! change something.

use crate::names::TOKEN;
use bytes::Bytes;
use http::Request;
use reattach_linode::{LinodeConfig, LinodeProvider, Token};
use reattach_provider_api::{HttpTransport, Provider};
use reattach_sim::cloud::Ground;
use serde_json::{Map, Value};
use std::fmt;
use std::sync::Arc;

/// Makes the shipped provider over a transport to the simulated cloud, or says why it cannot.
pub type MakeProvider =
    Arc<dyn Fn(HttpTransport) -> Result<Arc<dyn Provider>, String> + Send + Sync>;

/// A kind of cloud for a [`crate::world::World`].
#[derive(Clone)]
pub struct CloudProfile {
    /// Format of the cloud's names.
    pub ground: Ground,
    /// Makes the provider. The drill links only Linode's; the caller brings any other.
    pub provider: MakeProvider,
}

impl fmt::Debug for CloudProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudProfile")
            .field("ground", &self.ground)
            .finish_non_exhaustive()
    }
}

impl Default for CloudProfile {
    /// Linode.
    fn default() -> Self {
        let make = |transport| {
            let config = linode_config().map_err(|e| e.to_string())?;
            Ok(Arc::new(LinodeProvider::new(transport, config)) as Arc<dyn Provider>)
        };
        Self {
            ground: Ground::Linode,
            provider: Arc::new(make),
        }
    }
}

impl CloudProfile {
    /// Path and body of a request that changes something at the cloud, as the request log has them. Linode's as they are; EC2's
    /// actions as the same paths (`/volumes/vol-…/detach`), with the form's parameters. `None`: it only reads, or is a dry run.
    pub(crate) fn change(&self, request: &Request<Bytes>) -> Option<(String, Value)> {
        match self.ground {
            Ground::Linode => (request.method() != http::Method::GET).then(|| {
                let body = serde_json::from_slice(request.body()).unwrap_or_default();
                (request.uri().path().to_owned(), body)
            }),
            Ground::Ebs => action(request.body()),
        }
    }
}

/// A changing action of EC2's Query form. Identifiers, numbers and words have no character that the form would escape.
fn action(form: &[u8]) -> Option<(String, Value)> {
    let form = String::from_utf8_lossy(form);
    let form: Map<String, Value> = form
        .split('&')
        .filter_map(|p| p.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.into()))
        .collect();
    let of = |key: &str| form.get(key).and_then(Value::as_str).unwrap_or_default();
    if of("DryRun") == "true" {
        return None;
    }
    let path = match of("Action") {
        reads if reads.starts_with("Describe") || reads.starts_with("Get") => return None,
        "DetachVolume" => format!("/volumes/{}/detach", of("VolumeId")),
        "CreateSnapshot" => format!("/volumes/{}/snapshots", of("VolumeId")),
        "StopInstances" => format!("/instances/{}/shutdown", of("InstanceId.1")),
        "StartInstances" => format!("/instances/{}/boot", of("InstanceId.1")),
        other => format!("/{other}"),
    };
    Some((path, Value::Object(form)))
}

/// The provider's settings: the token that the simulated cloud knows.
fn linode_config() -> Result<LinodeConfig, reattach_linode::ConfigError> {
    LinodeConfig::new(Token::new(TOKEN)?, Some("https://linode.invalid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_dry_runs_are_no_change() {
        let path = |form: &str| action(form.as_bytes()).map(|(path, _)| path);
        assert_eq!(path("Action=DescribeVolumes&Version=2016-11-15"), None);
        assert_eq!(path("Action=GetCallerIdentity"), None);
        assert_eq!(path("Action=DetachVolume&DryRun=true&VolumeId=vol-1"), None);
        assert_eq!(
            path("Action=DetachVolume&VolumeId=vol-1").as_deref(),
            Some("/volumes/vol-1/detach")
        );
        assert_eq!(
            path("Action=StopInstances&InstanceId.1=i-1").as_deref(),
            Some("/instances/i-1/shutdown")
        );
        // An unknown action is shown rather than hidden.
        assert_eq!(
            path("Action=DeleteVolume&VolumeId=vol-1").as_deref(),
            Some("/DeleteVolume")
        );
    }
}
