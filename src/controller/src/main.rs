//! `reattach-controller`: the process that runs in the cluster.

use anyhow::{Context, Result, anyhow, bail};
use clap::{Parser, ValueEnum};
use prometheus_client::registry::Registry;
use reattach_cluster::{Clients, Clock, bounds};
use reattach_controller::http::{Endpoints, router};
use reattach_controller::listener::{BoundedListener, Limits};
use reattach_controller::metrics::{Metrics, cloud};
use reattach_controller::providers::{SetupError, from_env};
use reattach_controller::setup::{Preflight, preflight};
use reattach_controller::{Controller, Providers, Settings};
use reattach_core::plain::{LogForm, LogLines};
use reattach_core::product::Product;
use reattach_provider_api::ProviderError;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Finds volumes that are stuck after an unclean node death, and brings their pods back under the cluster's policies.
#[derive(Parser)]
#[command(
    name = "reattach-controller",
    version,
    after_help = "Environment: LINODE_TOKEN and LINODE_URL for --provider linode; AWS_REGION and the other variables of AWS tools for\n\
    --provider aws (a build with the feature aws); RUST_LOG for the log's level.\n\
    Exit codes: 0 after SIGTERM or SIGINT, 1 if it cannot run, 2 for a flag with a bad value."
)]
struct Args {
    /// A cloud provider to use: linode, or aws in a build with that feature. May be given several times.
    #[arg(long = "provider", required = true, value_name = "NAME")]
    providers: Vec<String>,
    /// The namespace of the leader Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "reattach-system", value_parser = named)]
    namespace: String,
    /// The namespace of the locks of nodes; by default the leader Lease's. In medik8s-leases they exclude the medik8s
    /// operators and are excluded by them.
    #[arg(long, env = "NODE_LOCK_NAMESPACE", value_name = "NAMESPACE", value_parser = named)]
    node_lock_namespace: Option<String>,
    /// The leader Lease's name; it must begin with `reattach-`.
    #[arg(long, default_value = "reattach-controller", value_parser = lease)]
    lease: String,
    /// Where /livez, /readyz and /metrics listen.
    #[arg(long, default_value = "0.0.0.0:8080", value_parser = address)]
    listen: SocketAddr,
    /// Kubeconfig file; inside a cluster the service account is used.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<std::path::PathBuf>,
    /// The pod's name, for the Lease and the journal.
    #[arg(long, env = "POD_NAME", default_value = "reattach-controller")]
    pod_name: String,
    /// The pod's UID: a restarted container must not be taken for its predecessor.
    #[arg(long, env = "POD_UID", default_value = "")]
    pod_uid: String,
    /// Run although the admission policies do not bound this process's account: nothing but RBAC keeps it from creating pods
    /// or changing Nodes then.
    #[arg(long)]
    unbounded: bool,
    /// Log lines as JSON or as text.
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Json,
    Text,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    // Names and messages in a log line were written by others: none of them makes a line of its own.
    let form = match args.log_format {
        LogFormat::Json => LogForm::Json,
        LogFormat::Text => LogForm::Text,
    };
    let to = move || LogLines::new(std::io::stderr(), form);
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(to)
        .with_ansi(false);
    match args.log_format {
        LogFormat::Json => logs.json().init(),
        LogFormat::Text => logs.init(),
    }
    // It ends after the last line of the log: its end waits for calls that block.
    let runtime = reattach_controller::runtime();
    let ended = match &runtime {
        Ok(runtime) => runtime.block_on(run(args)),
        Err(error) => Err(anyhow!("the worker threads cannot be started: {error}")),
    };
    match ended {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            if matches!(error.downcast_ref(), Some(SetupError::Unknown { .. })) {
                return std::process::ExitCode::from(2);
            }
            std::process::ExitCode::FAILURE
        }
    }
}

/// A lower case name, as the API server demands of a namespace or a Lease (RFC 1123 label).
fn named(text: &str) -> Result<String, String> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = text.len() <= 63
        && text.bytes().all(|c| plain(c) || c == b'-')
        && text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain);
    if good {
        Ok(text.to_owned())
    } else {
        Err("give 1 to 63 lower case letters, digits and dashes".to_owned())
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "give an address and a port, such as 0.0.0.0:8080".to_owned())
}

fn lease(text: &str) -> Result<String, String> {
    // The writing client refuses any other Lease.
    if !text.starts_with("reattach-") {
        return Err("it must begin with reattach-".to_owned());
    }
    named(text)
}

/// Makes sure that the admission policies bound this process's account, or that a person said that they need not.
async fn check_bounds(clients: &Clients, username: &str, unbounded: bool) -> Result<()> {
    let gaps = match bounds::unbound(&clients.records, username).await {
        Ok(gaps) if gaps.is_empty() => return Ok(()),
        Ok(gaps) => gaps
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
        Err(error) => format!("they cannot be read: {error}"),
    };
    if unbounded {
        tracing::warn!(
            username,
            gaps,
            "admission policies do not bound this account; --unbounded allows it"
        );
        return Ok(());
    }
    bail!(
        "the admission policies that bound the controller do not bound {username} ({gaps}); reattach does not start. \
         Install all of deploy/ for this account (docs/install.md has how to rename it), or pass --unbounded"
    )
}

async fn run(args: Args) -> Result<()> {
    let mut providers = Providers::default();
    for name in &args.providers {
        providers.register(from_env(name, Product::Controller)?);
    }
    let config = reattach_cluster::client::load(args.kubeconfig.as_deref(), None).await?;
    let clients = Clients::from_config(&config, Product::Controller)?;
    let version = clients.read.apiserver_version().await;
    let version = version
        .with_context(|| format!("the API server at {} does not answer", config.cluster_url))?;
    tracing::info!(server = %config.cluster_url, version = version.git_version, "connected");
    reattach_cluster::client::require_crds(&clients.read).await?;
    for Preflight {
        provider,
        missing_to_read,
        missing_to_detach,
        report,
    } in preflight(&providers).await
    {
        for right in &report.rights {
            tracing::info!(provider, right = right.name, grant = ?right.grant, "preflight");
        }
        if !missing_to_read.is_empty() {
            let missing = missing_to_read.join(", ");
            bail!("provider {provider}: the credential lacks {missing}; give it these rights");
        }
        // Enough for Observe and DryRun; a detach would be refused by the cloud, and the journal would say so.
        if !missing_to_detach.is_empty() {
            let missing = missing_to_detach.join(", ");
            tracing::warn!(provider, missing, "the credential cannot detach volumes");
        }
        match &report.failure {
            Some(failure @ ProviderError::Denied { .. }) => bail!("provider {provider}: {failure}"),
            // A cloud that is away now must not keep the watches from starting: nothing is done without its answers.
            Some(failure) => tracing::warn!(provider, %failure, "the cloud does not answer"),
            None => {}
        }
    }
    let username = reattach_cluster::client::whoami(&clients.records)
        .await
        .context("cannot read the user name of this process")?;
    check_bounds(&clients, &username, args.unbounded).await?;
    // The process is part of the identity: a container that restarts in its pod is a new contender.
    let identity = format!("{}/{}/{}", args.pod_name, args.pod_uid, std::process::id());
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    cloud::register(&mut registry, &providers);
    let (ready_tx, ready) = watch::channel(false);
    let (stop_tx, stop) = watch::channel(false);
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("--listen {} cannot be used", args.listen))?;
    let mut serving = stop.clone();
    let server = tokio::spawn(async move {
        let app = router(Endpoints {
            registry: Arc::new(registry),
            ready,
        });
        let stopped = async move {
            let _ = serving.wait_for(|s| *s).await;
        };
        let listener = BoundedListener::new(listener, Limits::default());
        axum::serve(listener, app)
            .with_graceful_shutdown(stopped)
            .await
    });
    tokio::spawn(async move {
        reattach_cluster::client::terminated().await;
        tracing::info!("stopping: effects under way end first");
        stop_tx.send_replace(true);
    });
    let settings = Settings {
        namespace: args.namespace,
        lease: args.lease,
        identity,
        username,
    };
    let locks = args
        .node_lock_namespace
        .unwrap_or_else(|| settings.namespace.clone());
    let controller = Controller::new(clients, providers, Clock::system(), settings, metrics);
    controller
        .locking_nodes_in(&locks)
        .run(ready_tx, stop)
        .await;
    server.await.context("the HTTP server ended badly")??;
    Ok(())
}
