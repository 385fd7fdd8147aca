//! `reattach-controller`: the process that runs in the cluster.

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use prometheus_client::registry::Registry;
use reattach_cluster::{Clients, Clock};
use reattach_controller::http::{Endpoints, router};
use reattach_controller::metrics::Metrics;
use reattach_controller::providers::from_env;
use reattach_controller::{Controller, Providers, Settings};
use reattach_provider_api::{ProviderError, RightUse};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Finds volumes that are stuck after an unclean node death, and brings their pods back under the cluster's policies.
#[derive(Parser)]
#[command(name = "reattach-controller", version)]
struct Args {
    /// Cloud providers to use.
    #[arg(long = "provider", required = true, value_name = "NAME")]
    providers: Vec<String>,
    /// The namespace of the leader Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "reattach-system")]
    namespace: String,
    /// The leader Lease's name; it must begin with `reattach-`.
    #[arg(long, default_value = "reattach-controller")]
    lease: String,
    /// Where /livez, /readyz and /metrics listen.
    #[arg(long, default_value = "0.0.0.0:8080")]
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
    /// Log lines as JSON or as text.
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Json,
    Text,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Json => logs.json().init(),
        LogFormat::Text => logs.init(),
    }
    match run(args).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    if !args.lease.starts_with("reattach-") {
        bail!(
            "--lease {:?} must begin with \"reattach-\": the writing client refuses any other Lease",
            args.lease
        );
    }
    let mut providers = Providers::default();
    for name in &args.providers {
        providers.register(from_env(name)?);
    }
    let config = reattach_cluster::client::load(args.kubeconfig.as_deref(), None).await?;
    let clients = Clients::from_config(&config)?;
    let version = clients.read.apiserver_version().await;
    let version =
        version.with_context(|| format!("the API server at {} does not answer", config.cluster_url))?;
    tracing::info!(server = %config.cluster_url, version = version.git_version, "connected");
    reattach_cluster::client::require_crds(&clients.read).await?;
    for provider in providers.all() {
        let report = provider.preflight().await;
        for right in &report.rights {
            tracing::info!(provider = provider.name(), right = right.name, grant = ?right.grant, "preflight");
        }
        let names = |uses: &[RightUse]| {
            report.missing(uses).into_iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        let unreadable = names(&[RightUse::ReadVolumes, RightUse::ReadInstances, RightUse::ReadJobs]);
        if !unreadable.is_empty() {
            bail!("provider {}: the token lacks {unreadable}; give it these scopes", provider.name());
        }
        // Enough for Observe and DryRun; a detach would be refused by the cloud, and the journal would say so.
        let unwritable = names(&[RightUse::Detach]);
        if !unwritable.is_empty() {
            tracing::warn!(
                provider = provider.name(),
                missing = unwritable,
                "the token cannot detach volumes"
            );
        }
        match &report.failure {
            Some(failure @ ProviderError::Denied { .. }) => bail!("provider {}: {failure}", provider.name()),
            // A cloud that is away now must not keep the watches from starting: nothing is done without its answers.
            Some(failure) => {
                tracing::warn!(provider = provider.name(), %failure, "the cloud does not answer")
            }
            None => {}
        }
    }
    let username =
        reattach_cluster::client::whoami(&clients.records).await.context("cannot ask who this process is")?;
    // The process is part of the identity: a container that restarts in its pod is a new contender.
    let identity = format!("{}/{}/{}", args.pod_name, args.pod_uid, std::process::id());
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let (ready_tx, ready) = watch::channel(false);
    let (stop_tx, stop) = watch::channel(false);
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("--listen {} cannot be used", args.listen))?;
    let mut serving = stop.clone();
    let server = tokio::spawn(async move {
        let app = router(Endpoints { registry: Arc::new(registry), ready });
        let stopped = async move {
            let _ = serving.wait_for(|s| *s).await;
        };
        axum::serve(listener, app).with_graceful_shutdown(stopped).await
    });
    tokio::spawn(async move {
        reattach_cluster::client::terminated().await;
        tracing::info!("stopping: effects under way end first");
        stop_tx.send_replace(true);
    });
    let settings = Settings { namespace: args.namespace, lease: args.lease, identity, username };
    Controller::new(clients, providers, Clock::system(), settings, metrics).run(ready_tx, stop).await;
    server.await.context("the HTTP server ended badly")??;
    Ok(())
}
