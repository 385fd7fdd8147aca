//! `reattach-agent`, the binary of the DaemonSet. `--once` needs no cluster.

use anyhow::{Context, anyhow};
use clap::{Parser, ValueEnum};
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use reattach_agent::rights::Rights;
use reattach_agent::{AgentConfig, HostRoot, KernelEvents, Scan, ScanOn};
use reattach_core::guest::Level;
use reattach_core::ids::NodeName;
use reattach_core::plain::{self, LogForm, LogLines};
use reattach_core::product::Product;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Maximum time between scans when the kernel's events cannot be received.
const RESCAN_WITHOUT_EVENTS: Duration = Duration::from_secs(10);
/// Size of the stack of the thread that scans, in bytes.
const SCAN_STACK: usize = 512 << 10;

/// Reports the block devices, mounts and CSI volumes of this node, and answers the controller's questions about them. It
/// reads /proc and /sys and changes nothing on the node. Only at the level full it opens a device, read-only.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
    reattach-agent --host-root / --once               print the state of this machine's volumes, without a cluster\n  \
    NODE_NAME=n1 reattach-agent                       run as on a node, with the in-cluster credentials or KUBECONFIG\n\n\
    It must see the host's process IDs, and reading other processes needs CAP_SYS_PTRACE.\n\n\
    Environment: NODE_NAME as --node-name; REATTACH_AGENT_LEVEL as --level; KUBECONFIG outside of a cluster; RUST_LOG for the log's level.\n\
    Exit codes: 0 after SIGTERM, SIGINT or --once, 1 if it cannot run, 2 for a flag with a bad value."
)]
struct Args {
    /// Where the host's / is mounted
    #[arg(long, value_name = "DIR", default_value = "/host")]
    host_root: PathBuf,
    /// kubelet's --root-dir, as the host spells it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet", value_parser = absolute)]
    kubelet_root: String,
    /// The name of this node's Node object
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// What the agent may do: at the level full it may open a device that it is asked about, read-only and exclusively, for a
    /// moment; needs the rights of deploy/components/agent-full
    #[arg(
        long,
        value_enum,
        env = "REATTACH_AGENT_LEVEL",
        default_value = "basic"
    )]
    level: ScanLevel,
    /// Maximum time between scans without events of the kernel and without questions, such as 30s or 5m; at least 1s
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = interval)]
    rescan: Duration,
    /// Scan once, print the result, and exit; needs no cluster
    #[arg(long)]
    once: bool,
    /// The format of --once
    #[arg(short, long, value_enum, default_value = "json", requires = "once")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScanLevel {
    /// Reads /proc and /sys: can answer "no device" or "in use"
    Basic,
    /// May also open devices: can answer "clean" as well
    Full,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// The inventory of a NodeVolumeReport as JSON
    Json,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!(
                "reattach-agent: {}",
                plain::line(&format!("{e:#}"), plain::TEXT_CHARS)
            );
            if e.is::<BadValue>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// A flag or variable with a bad value. The exit code is that of a flag that cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BadValue(String);

fn start(args: &Args) -> anyhow::Result<()> {
    if !args.host_root.join("proc").is_dir() {
        return Err(BadValue(format!(
            "{} has no proc folder; --host-root must name the place where the host's / is mounted",
            args.host_root.display()
        ))
        .into());
    }
    // Before any other thread exists.
    let reduced = reattach_agent::rights::reduce();
    let level = match args.level {
        ScanLevel::Basic => Level::Basic,
        ScanLevel::Full => Level::Full,
    };
    let root = HostRoot::new(&args.host_root)
        .with_kubelet_root(&*args.kubelet_root)
        .with_level(level);
    if args.once {
        let Output::Json = args.output;
        return print_inventory(&root);
    }
    let node = node_name(args)?;
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info,kube=warn".into()),
        )
        .with_writer(|| LogLines::new(std::io::stderr(), LogForm::Json))
        .init();
    match reduced {
        Ok(Rights::Reduced) => tracing::info!("dropped user 0 and all capabilities except two"),
        Ok(Rights::Unchanged) => {}
        Err(e) => tracing::warn!(
            error = %e,
            "the rights could not be reduced, so the agent runs with all rights of its container; to reduce them it needs CAP_SETUID and CAP_SETGID at its start"
        ),
    }
    // Scan once before anything else, so that a wrong host root fails the start instead of filling the log.
    Scan::new(&root)?;
    if !is_host_proc(&root) {
        tracing::warn!(
            host_root = %args.host_root.display(),
            "this /proc shows no kernel threads, so it seems to be a container's; the agent does not see the host's processes: set hostPID"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // The thread ends after each scan, which frees its stack and its share of the allocator's memory.
        .thread_keep_alive(Duration::from_millis(10))
        .thread_stack_size(SCAN_STACK)
        .build()
        .context("cannot start")?;
    let ended = runtime.block_on(serve(node, args.rescan, root));
    // A scan that hangs in the kernel must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Scans once, and prints the inventory.
#[allow(clippy::disallowed_methods)] // Only the binary reads clocks.
fn print_inventory(root: &HostRoot) -> anyhow::Result<()> {
    let started = Instant::now();
    let inventory = Scan::new(root)?.inventory();
    let took = started.elapsed();
    let text = serde_json::to_string_pretty(&inventory).context("cannot print the inventory")?;
    println!("{}", plain::json(&text));
    eprintln!("scanned in {:.1} ms", took.as_secs_f64() * 1e3);
    Ok(())
}

fn node_name(args: &Args) -> Result<&str, BadValue> {
    let Some(node) = args.node_name.as_deref().filter(|name| !name.is_empty()) else {
        let why =
            "no node name; set NODE_NAME (in a DaemonSet from spec.nodeName) or pass --node-name";
        return Err(BadValue(why.to_owned()));
    };
    if !is_object_name(node) {
        return Err(BadValue(format!(
            "{node:?} cannot be the name of a Node; set --node-name or NODE_NAME to a name that kubectl get nodes prints"
        )));
    }
    Ok(node)
}

#[allow(clippy::disallowed_methods)] // As in `print_inventory`.
async fn serve(node: &str, mut rescan: Duration, root: HostRoot) -> anyhow::Result<()> {
    let inferred = kube::Config::infer().await;
    // The text of the error contains its causes.
    let mut config = inferred.map_err(|e| anyhow!("no credentials for a cluster: {e}"))?;
    // The library would retry writes on 429, 503 and 504 by itself.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.headers.push(user_agent()?);
    let client =
        kube::Client::try_from(config).context("cannot use the cluster's configuration")?;
    let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let shutdown = async move {
        tokio::select! {
            biased;
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    let events = match KernelEvents::open(&root) {
        Ok(events) => events.stream().boxed(),
        Err(e) => {
            tracing::warn!(error = %e, "the kernel's events cannot be received; the agent scans more often instead");
            rescan = rescan.min(RESCAN_WITHOUT_EVENTS);
            stream::pending().boxed()
        }
    };
    let config = AgentConfig {
        node: NodeName::new(node),
        root,
        rescan,
        scan_on: ScanOn::BlockingPool,
    };
    let (level, rescan_seconds) = (config.root.level(), config.rescan.as_secs());
    tracing::info!(node = %config.node, ?level, rescan_seconds, "agent started");
    reattach_agent::run(client, config, Timestamp::now, events, shutdown).await;
    Ok(())
}

/// Returns the `User-Agent` header with the agent's name and version.
fn user_agent<N, V>() -> anyhow::Result<(N, V)>
where
    N: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    V: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    Ok(("user-agent".parse()?, Product::Agent.user_agent().parse()?))
}

/// Returns whether this /proc is the host's. Only the host's process ID namespace shows kernel threads; process 2 is their
/// parent.
fn is_host_proc(root: &HostRoot) -> bool {
    std::fs::read_to_string(root.join("/proc/2/comm")).is_ok_and(|comm| comm.trim() == "kthreadd")
}

/// Returns whether a text can be a Node's name: lower case letters, digits, `-` and `.` (RFC 1123 subdomain).
fn is_object_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |l: &str| {
        l.bytes().all(|c| plain(c) || c == b'-')
            && l.bytes().next().is_some_and(plain)
            && l.bytes().last().is_some_and(plain)
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn absolute(text: &str) -> Result<String, String> {
    match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err("it must be an absolute path, as kubelet's --root-dir on the host".to_owned()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let span: SignedDuration = text
        .parse()
        .map_err(|_| "give a duration such as 10s or 1m".to_owned())?;
    match Duration::try_from(span) {
        Ok(time) if time >= Duration::from_secs(1) => Ok(time),
        _ => Err("it must be at least 1s".to_owned()),
    }
}
