//! The connection of a command to the cluster and to the clouds. Each error is one sentence.

use crate::fail::{Fail, one_line};
use crate::output::note;
use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use reattach_cluster::client::{load, whoami};
use reattach_cluster::rights::RecordedUser;
use reattach_cluster::{Clients, Clock};
use reattach_controller::Providers;
use reattach_controller::providers::{SetupError, from_env};
use reattach_core::diagnosis::{NotOurs, Verdict};
use reattach_core::ids::ObjectName;
use reattach_core::product::Product;
use reattach_provider_api::ProviderError;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

/// Maximum time until the API server accepts a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The custom resources of the group, by plural name.
const RESOURCES: [&str; 3] = ["volumerecoveries", "recoverypolicies", "nodevolumereports"];

/// Options that every verb takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cluster and cloud")]
pub struct Global {
    /// Kubeconfig file. Without it: KUBECONFIG, ~/.kube/config, or the service account of the pod.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace. Without it: the namespace of the context.
    #[arg(long, short, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Cloud that has the volumes. linode reads LINODE_TOKEN and, if set, LINODE_URL. aws (in a build with that
    /// feature) reads AWS_REGION and the usual settings of AWS tools.
    #[arg(long, global = true, value_name = "NAME", default_value = "linode")]
    provider: String,
}

/// Connection of one command to the cluster.
pub struct Session {
    pub clients: Clients,
    pub clock: Clock,
    /// Namespace of `--namespace`, or of the context.
    pub namespace: String,
    /// Address of the API server, for error texts.
    pub server: String,
}

impl Session {
    /// Connects, and makes sure that the custom resources are installed.
    pub async fn open(global: &Global) -> Result<Self> {
        let config = load(global.kubeconfig.as_deref(), global.context.as_deref()).await;
        let mut config = config.map_err(|e| Fail::Other(one_line(&e.to_string())))?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let namespace = global
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let server = config.cluster_url.to_string();
        let clients = Clients::from_config(&config, Product::Cli)
            .map_err(|e| Fail::Other(one_line(&e.to_string())))?;
        let session = Self {
            clients,
            clock: Clock::system(),
            namespace,
            server,
        };
        session.require_resources().await?;
        Ok(session)
    }

    /// Makes one request within [`REQUEST_TIMEOUT`]; `doing` completes "to …" in the error.
    pub async fn ask<T>(
        &self,
        doing: &str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Fail> {
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Fail::kubernetes(&error, &self.server, doing)),
            Err(_) => Err(Fail::Unreachable {
                server: self.server.clone(),
                why: format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
            }),
        }
    }

    async fn require_resources(&self) -> Result<(), Fail> {
        let group = async {
            let read = &self.clients.read;
            match read.list_api_group_resources("reattach.dev/v1alpha1").await {
                // A real API server answers an unknown group with a bare 404 and no Status.
                Err(kube::Error::Api(s)) if s.code == 404 => Ok(None),
                other => other.map(Some),
            }
        };
        let group = self.ask("read the API group reattach.dev", group).await?;
        let missing = match &group {
            None => "the API group reattach.dev/v1alpha1".to_owned(),
            Some(group) => {
                let is_there = |plural: &str| group.resources.iter().any(|r| r.name == plural);
                match RESOURCES.into_iter().find(|plural| !is_there(plural)) {
                    None => return Ok(()),
                    Some(plural) => format!("the custom resource {plural}.reattach.dev"),
                }
            }
        };
        Err(Fail::Other(format!(
            "{missing} is not installed in the cluster at {}; apply deploy/crds first",
            self.server
        )))
    }

    /// Returns user name and groups by which the API server knows this command. The controller asks with both later whether
    /// the user still has the right.
    pub async fn me(&self) -> Result<RecordedUser, Fail> {
        self.ask("find out who you are", whoami(&self.clients.records))
            .await
    }

    /// Returns the time by the API server's clock, which is closer to the controller's than this machine's. Where the answer
    /// has no time, this machine's.
    pub async fn server_time(&self) -> Result<Timestamp, Fail> {
        let request = http::Request::get("/version").body(kube::client::Body::empty());
        let request = request.map_err(|e| Fail::Other(format!("cannot ask for the time: {e}")))?;
        let answer = self
            .ask("ask for the time", self.clients.read.send(request))
            .await?;
        let date = answer
            .headers()
            .get(http::header::DATE)
            .and_then(|date| jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok());
        Ok(date.map_or_else(|| self.clock.now(), |date| date.timestamp()))
    }

    /// Parses a claim of the session's namespace: `NAME` or `pvc/NAME`.
    pub fn claim(&self, name: &str) -> Result<ObjectName, Fail> {
        Ok(ObjectName::new(self.namespace.as_str(), claim_name(name)?))
    }

    /// Makes sure that a claim exists.
    pub async fn require_claim(&self, claim: &ObjectName) -> Result<(), Fail> {
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(self.clients.read.clone(), &claim.namespace);
        match self.ask("read the claim", api.get_opt(&claim.name)).await? {
            Some(_) => Ok(()),
            None => Err(Fail::NoClaim {
                namespace: claim.namespace.clone(),
                name: claim.name.clone(),
            }),
        }
    }
}

fn claim_name(name: &str) -> Result<&str, Fail> {
    let bare = match name.split_once('/') {
        None => name,
        Some(("pvc" | "persistentvolumeclaim" | "persistentvolumeclaims", bare)) => bare,
        Some((kind, _)) => {
            return Err(Fail::Usage(format!(
                "{name:?} is of kind {kind:?}, but a PersistentVolumeClaim is needed; give NAME or pvc/NAME"
            )));
        }
    };
    if bare.is_empty() || bare.contains('/') {
        return Err(Fail::Usage(format!(
            "{name:?} names no PersistentVolumeClaim; give NAME or pvc/NAME"
        )));
    }
    Ok(bare)
}

/// Sets the providers up from the environment. Makes no request.
pub fn providers(global: &Global) -> Result<Providers, Fail> {
    let mut providers = Providers::default();
    for name in global.provider.split(',').map(str::trim) {
        match from_env(name, Product::Cli) {
            Ok(provider) => providers.register(provider),
            Err(error @ SetupError::Unknown { .. }) => {
                return Err(Fail::Usage(format!("--provider: {error}")));
            }
            Err(error) => return Err(Fail::Other(one_line(&error.to_string()))),
        }
    }
    Ok(providers)
}

/// Returns a note that names the provider to add, if the volume's driver belongs to a cloud that was not asked.
pub fn unknown_driver_note(providers: &Providers, verdict: &Verdict) -> Option<String> {
    let Verdict::NotOurs {
        reason: NotOurs::UnknownProvider { driver, .. },
    } = verdict
    else {
        return None;
    };
    providers
        .unknown_driver(driver)
        .map(|why| format!("note: {why}"))
}

/// Makes sure that each provider's credential may read and, with `detach`, also detach.
pub async fn preflight(providers: &Providers, detach: bool) -> Result<(), Fail> {
    for found in reattach_controller::setup::preflight(providers).await {
        let name = &found.provider;
        if let Some(failure) = &found.report.failure {
            return Err(Fail::Other(format!(
                "provider {name}: {}{}",
                one_line(&failure.to_string()),
                advice(name, failure)
            )));
        }
        if !found.missing_to_read.is_empty() {
            let reading = found.missing_to_read.join(", ");
            return Err(Fail::Other(format!(
                "provider {name}: the credential lacks {reading}. Without these rights reattach cannot read the volume. Grant them to the credential"
            )));
        }
        if found.missing_to_detach.is_empty() {
            continue;
        }
        let detaching = found.missing_to_detach.join(", ");
        if detach {
            return Err(Fail::Other(format!(
                "provider {name}: the credential lacks {detaching}, which a detach needs. Grant these rights to the credential"
            )));
        }
        note(&format!(
            "note: provider {name}: the credential lacks {detaching}. It suffices to look, and not to detach"
        ));
    }
    Ok(())
}

/// Says what to check when a provider cannot be used.
fn advice(provider: &str, failure: &ProviderError) -> String {
    match (provider, failure) {
        ("linode", ProviderError::Denied { .. }) => "; check LINODE_TOKEN".to_owned(),
        ("linode", ProviderError::NotApplied { .. } | ProviderError::Unknown { .. }) => {
            match std::env::var("LINODE_URL")
                .ok()
                .filter(|u| !u.trim().is_empty())
            {
                Some(url) => format!("; check the network, and LINODE_URL, which is {url}"),
                None => "; check the network".to_owned(),
            }
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_named_as_kubectl_names_them() {
        assert_eq!(claim_name("data-redis-0").unwrap(), "data-redis-0");
        assert_eq!(claim_name("pvc/data-redis-0").unwrap(), "data-redis-0");
        for bad in ["", "pvc/", "pod/redis-0", "a/b/c", "pvc/a/b"] {
            let fail = claim_name(bad).unwrap_err();
            assert!(matches!(fail, Fail::Usage(_)), "{bad}: {fail}");
        }
    }
}
