//! `reattach-cloud-simulator`: the simulated cloud as a process of its own, for game days and for tests of binaries.

use anyhow::{Context, ensure};
use clap::Parser;
use reattach_cloud_simulator::{CloudSim, clock, router};
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Serves a simulated cloud: Linode's API v4 under /v4, EC2's Query API at /, a control API under /control.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Examples:\n  \
    reattach-cloud-simulator --listen 127.0.0.1:8070\n  \
    curl -s -X POST localhost:8070/control/instances -H 'content-type: application/json' -d '{\"label\": \"node-1\"}'\n  \
    LINODE_URL=http://127.0.0.1:8070 LINODE_TOKEN=any reattach-controller …\n  \
    AWS_ENDPOINT_URL=http://127.0.0.1:8070 AWS_REGION=eu-central-1 AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any \
    reattach-controller …"
)]
struct Args {
    /// Address to listen on; port 0 takes a free one. The URL is printed on the first line.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Allow an address that other machines can reach. The control API has no authentication.
    #[arg(long)]
    allow_non_loopback: bool,
    /// Seed for faults with a chance (`permille`).
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    ensure!(
        args.listen.ip().is_loopback() || args.allow_non_loopback,
        "other machines can reach {}, and the control API has no authentication; nothing was started. To listen there \
         all the same, pass --allow-non-loopback",
        args.listen
    );
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    println!(
        "http://{}",
        listener
            .local_addr()
            .context("the listener has no address")?
    );
    let sim = CloudSim::new(clock::system()).with_seed(args.seed);
    axum::serve(listener, router(sim))
        .with_graceful_shutdown(stop())
        .await
        .context("the server stopped")
}

/// Resolves on SIGINT or SIGTERM.
async fn stop() {
    let interrupt = tokio::signal::ctrl_c();
    let Ok(mut terminate) =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
    else {
        let _ = interrupt.await;
        return;
    };
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt => {}
    }
}
