//! Three views of one API server: reading, writing our own records, and effects.

use crate::rights::RecordedUser;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, header};
use kube::client::Body;
use kube::{Client, Config};
use reattach_core::product::Product;

/// The clients. Library retries are on for reading only: a repeated DELETE or PATCH is never ours to risk.
#[derive(Clone)]
pub struct Clients {
    /// For GET, LIST and WATCH.
    pub read: Client,
    /// For our own records: refuses whatever is not on the allow-list of safety rule S6, before it leaves the process.
    pub records: Client,
    /// For effects. Private: only [`crate::gate`] hands it out.
    effects: Client,
}

/// Why there is no connection to a cluster, as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No usable configuration.
    #[error("no cluster to talk to: {0}; set KUBECONFIG or --context, or run inside a cluster")]
    Config(String),
    /// The API server does not have or say what is needed.
    #[error("{0}")]
    Missing(String),
    /// The client could not be made from it.
    #[error("cannot make a client for {server}: {why}")]
    Client {
        /// The API server.
        server: String,
        /// Why.
        why: String,
    },
}

impl Clients {
    /// From a loaded configuration, for the requests of `product`.
    ///
    /// # Errors
    /// [`ConnectError::Client`] when certificates or credentials in it cannot be used.
    pub fn from_config(config: &Config, product: Product) -> Result<Self, ConnectError> {
        let make = |retry: bool| {
            let mut config = config.clone();
            config.default_retry = retry;
            let server = config.cluster_url.to_string();
            Client::try_from(config).map_err(|e| ConnectError::Client {
                server,
                why: e.to_string(),
            })
        };
        Ok(Self::named(product, make(true)?, make(false)?))
    }

    /// From two clients, for the controller's requests; `writing` must not retry. The simulation passes the same one twice.
    pub fn over(read: Client, writing: Client) -> Self {
        Self::named(Product::Controller, read, writing)
    }

    /// From two clients, for the requests of `product`; `writing` must not retry.
    pub fn named(product: Product, read: Client, writing: Client) -> Self {
        let (read, writing) = (signed(read, product), signed(writing, product));
        Self {
            read,
            records: restricted(writing.clone()),
            effects: writing,
        }
    }

    /// The unrestricted client, for effects that passed the gate.
    pub(crate) fn effects(&self) -> &Client {
        &self.effects
    }
}

/// Wraps a client so that each request carries name and version of the program: in `User-Agent`, and as the field manager
/// where it creates or changes an object.
fn signed(client: Client, product: Product) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let client = client.clone();
        async move {
            let agent = HeaderValue::from_static(product.user_agent());
            request.headers_mut().insert(header::USER_AGENT, agent);
            if let Some(target) = with_field_manager(&request, product) {
                let mut uri = std::mem::take(request.uri_mut()).into_parts();
                uri.path_and_query = Some(target.map_err(|e| kube::Error::Service(e.into()))?);
                *request.uri_mut() =
                    http::Uri::from_parts(uri).map_err(|e| kube::Error::Service(e.into()))?;
            }
            client.send(request).await
        }
    });
    Client::new(service, namespace)
}

/// Returns path and query with the field manager, for a request that takes one and has none. A DELETE takes none.
fn with_field_manager(
    request: &Request<Body>,
    product: Product,
) -> Option<Result<PathAndQuery, http::uri::InvalidUri>> {
    let query = request.uri().query().unwrap_or("");
    let writes = matches!(
        *request.method(),
        Method::POST | Method::PUT | Method::PATCH
    );
    if !writes
        || query
            .split('&')
            .any(|parameter| parameter.starts_with("fieldManager="))
    {
        return None;
    }
    let (path, manager) = (request.uri().path(), product.user_agent());
    // kube begins its queries with an ampersand.
    let query = query.trim_matches('&');
    let and = if query.is_empty() { "" } else { "&" };
    Some(format!("{path}?{query}{and}fieldManager={manager}").parse())
}

/// Wraps a client so that only requests on the S6 list pass.
fn restricted(client: Client) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: Request<Body>| {
        let client = client.clone();
        async move {
            if !changes_only_records(
                request.method(),
                request.uri().path(),
                request.uri().query().unwrap_or(""),
            ) {
                return Err(kube::Error::Service(
                    format!(
                        "{} {} is not one of reattach's own records",
                        request.method(),
                        request.uri().path()
                    )
                    .into(),
                ));
            }
            client.send(request).await
        }
    });
    Client::new(service, namespace)
}

/// The allow-list of safety rule S6: our custom resources, our Leases, Events, access reviews, and dry runs.
fn changes_only_records(method: &Method, path: &str, query: &str) -> bool {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return true;
    }
    if query.split('&').any(|p| p == "dryRun=All") {
        return true;
    }
    let mut parts = path.trim_matches('/').split('/');
    let (group, resource, name) = match (parts.next(), parts.next()) {
        (Some("api"), Some(_)) => ("", parts.next(), parts.next()),
        (Some("apis"), Some(group)) => {
            let _version = parts.next();
            (group, parts.next(), parts.next())
        }
        _ => return false,
    };
    // A namespaced path: namespaces/<ns>/<resource>/<name>.
    let (resource, name) = if resource == Some("namespaces") {
        (parts.next(), parts.next())
    } else {
        (resource, name)
    };
    match (group, resource) {
        ("reattach.dev", Some("volumerecoveries" | "nodevolumereports")) => true,
        // Creating a Lease names it in the body; the name is checked where it can be seen.
        ("coordination.k8s.io", Some("leases")) => name.is_none_or(|n| n.starts_with("reattach-")),
        ("" | "events.k8s.io", Some("events")) => *method != Method::DELETE,
        (
            "authorization.k8s.io",
            Some("selfsubjectaccessreviews" | "selfsubjectrulesreviews" | "subjectaccessreviews"),
        ) => true,
        ("authentication.k8s.io", Some("selfsubjectreviews")) => true,
        _ => false,
    }
}

/// Loads the configuration: the given kubeconfig file and context, or what the environment offers.
///
/// # Errors
/// [`ConnectError::Config`] in one sentence.
pub async fn load(
    kubeconfig: Option<&std::path::Path>,
    context: Option<&str>,
) -> Result<Config, ConnectError> {
    use kube::config::{KubeConfigOptions, Kubeconfig};
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .map_err(|e| ConnectError::Config(format!("{}: {e}", path.display())))?;
            Config::from_custom_kubeconfig(file, &options).await
        }
        None if context.is_some() => Config::from_kubeconfig(&options).await,
        None => {
            let inferred = Config::infer().await;
            return inferred.map_err(|e| ConnectError::Config(e.to_string()));
        }
    };
    config.map_err(|e| ConnectError::Config(e.to_string()))
}

/// Makes sure that the custom resources are installed.
///
/// # Errors
/// One sentence that names the missing one and the fix.
pub async fn require_crds(client: &Client) -> Result<(), ConnectError> {
    let group = client
        .list_api_group_resources("reattach.dev/v1alpha1")
        .await;
    let missing = |what: &str| {
        Err(ConnectError::Missing(format!(
            "{what} is not installed in this cluster; apply deploy/crds first"
        )))
    };
    match group {
        Ok(list) => {
            for plural in ["volumerecoveries", "recoverypolicies", "nodevolumereports"] {
                if !list.resources.iter().any(|r| r.name == plural) {
                    return missing(&format!("custom resource {plural}.reattach.dev"));
                }
            }
            Ok(())
        }
        // An unknown group is answered in plain text, which has a code and no reason.
        Err(kube::Error::Api(s)) if s.code == 404 => missing("API group reattach.dev/v1alpha1"),
        Err(error) => Err(ConnectError::Missing(format!(
            "the API server does not answer ({error})"
        ))),
    }
}

/// The answer to a SelfSubjectReview names no user. Every request for a recovery and every approval carries that name.
#[derive(Debug, thiserror::Error)]
#[error("the API server does not tell your user name, which a request must carry")]
pub struct NoUserName;

/// The user that the API server knows this client by, as a record keeps it.
///
/// # Errors
/// The API server's error, or an answer without a user name.
pub async fn whoami(records: &Client) -> Result<RecordedUser, kube::Error> {
    use k8s_openapi::api::authentication::v1::SelfSubjectReview;
    let api: kube::Api<SelfSubjectReview> = kube::Api::all(records.clone());
    let review = api
        .create(
            &kube::api::PostParams::default(),
            &SelfSubjectReview::default(),
        )
        .await?;
    let user = review.status.and_then(|s| s.user_info).unwrap_or_default();
    let name = user.username.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| kube::Error::Service(Box::new(NoUserName)))?;
    Ok(RecordedUser::new(name, user.groups.unwrap_or_default()))
}

/// Returns when the process is told to end (SIGTERM or SIGINT).
pub async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        }
        // Without handlers the default action ends the process.
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn only_our_own_records_pass() {
        let yes = [
            (Method::GET, "/api/v1/secrets", ""),
            (
                Method::POST,
                "/apis/reattach.dev/v1alpha1/namespaces/a/volumerecoveries",
                "",
            ),
            (
                Method::PATCH,
                "/apis/reattach.dev/v1alpha1/namespaces/a/volumerecoveries/x/status",
                "",
            ),
            (
                Method::PATCH,
                "/apis/reattach.dev/v1alpha1/nodevolumereports/n1",
                "",
            ),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/reattach-system/leases/reattach-controller",
                "",
            ),
            (
                Method::POST,
                "/apis/coordination.k8s.io/v1/namespaces/reattach-system/leases",
                "",
            ),
            (Method::POST, "/api/v1/namespaces/a/events", ""),
            (
                Method::POST,
                "/apis/events.k8s.io/v1/namespaces/a/events",
                "",
            ),
            (
                Method::POST,
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                "",
            ),
            (
                Method::POST,
                "/apis/authorization.k8s.io/v1/subjectaccessreviews",
                "",
            ),
            (Method::POST, "/api/v1/namespaces/a/pods", "dryRun=All"),
        ];
        let no = [
            (Method::POST, "/api/v1/namespaces/a/pods", ""),
            (Method::POST, "/api/v1/namespaces/a/pods", "dryRun=None"),
            (Method::POST, "/api/v1/namespaces/a/pods/x/eviction", ""),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/web",
                "",
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/web/scale",
                "",
            ),
            (
                Method::DELETE,
                "/apis/storage.k8s.io/v1/volumeattachments/csi-1",
                "",
            ),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-a",
                "",
            ),
            (
                Method::PATCH,
                "/apis/reattach.dev/v1alpha1/recoverypolicies/default",
                "",
            ),
            (Method::PATCH, "/api/v1/nodes/n1", ""),
            (Method::PATCH, "/api/v1/namespaces/a", ""),
            (Method::DELETE, "/api/v1/namespaces/a/events/e", ""),
        ];
        for (method, path, query) in yes {
            assert!(
                changes_only_records(&method, path, query),
                "{method} {path}?{query} should pass"
            );
        }
        for (method, path, query) in no {
            assert!(
                !changes_only_records(&method, path, query),
                "{method} {path}?{query} should be refused"
            );
        }
    }

    type Sent = (Option<String>, String, String);

    /// A client that writes down user agent, method and target of each request, and answers "not found".
    fn listening(seen: Arc<Mutex<Vec<Sent>>>) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let agent = request
                .headers()
                .get(header::USER_AGENT)
                .and_then(|v| v.to_str().ok());
            let target = request.uri().to_string();
            seen.lock().unwrap().push((
                agent.map(str::to_owned),
                request.method().to_string(),
                target,
            ));
            let reply = http::Response::builder()
                .status(404)
                .body(Body::empty())
                .unwrap();
            std::future::ready(Ok::<_, std::convert::Infallible>(reply))
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn each_request_names_the_program_and_its_version() {
        for product in [Product::Controller, Product::Cli] {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let raw = listening(seen.clone());
            let clients = Clients::named(product, raw.clone(), raw);
            let leases = |client: &Client| -> kube::Api<k8s_openapi::api::coordination::v1::Lease> {
                kube::Api::namespaced(client.clone(), "ns")
            };
            let empty = kube::api::Patch::Merge(serde_json::json!({}));
            let _ = leases(&clients.read).get("reattach-a").await;
            let _ = leases(&clients.records)
                .patch("reattach-a", &Default::default(), &empty)
                .await;
            let _ = leases(&clients.records)
                .create(&Default::default(), &Default::default())
                .await;
            let _ = leases(clients.effects())
                .delete("reattach-a", &Default::default())
                .await;
            let dry = kube::api::PatchParams {
                dry_run: true,
                ..Default::default()
            };
            let _ = leases(clients.effects())
                .patch("reattach-a", &dry, &empty)
                .await;
            let (me, path) = (
                product.user_agent(),
                "/apis/coordination.k8s.io/v1/namespaces/ns/leases/reattach-a",
            );
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), 5);
            for (agent, method, target) in seen.iter() {
                assert_eq!(agent.as_deref(), Some(me), "{method} {target}");
                let managed = target.ends_with(&format!("fieldManager={me}"));
                assert_eq!(
                    managed,
                    matches!(method.as_str(), "POST" | "PATCH"),
                    "{method} {target}"
                );
            }
            // kube 5.0 writes the separator of two parameters that are given one by one in front of the first, too.
            assert_eq!(
                seen[4].2.replace("?&", "?"),
                format!("{path}?dryRun=All&fieldManager={me}")
            );
        }
    }
}
