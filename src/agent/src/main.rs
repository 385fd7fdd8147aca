//! `reattach-agent`: the DaemonSet's binary. `--once` needs no cluster.

use anyhow::{Context, anyhow};
use clap::{Parser, ValueEnum};
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use reattach_agent::rights::Rights;
use reattach_agent::{AgentConfig, HostRoot, News, Scan, ScanOn};
use reattach_core::guest::Level;
use reattach_core::ids::NodeName;
use reattach_core::plain::{self, LogForm, LogLines};
use reattach_core::product::Product;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// The longest time without a look where the kernel's news cannot be had.
const BLIND_RESCAN: Duration = Duration::from_secs(10);
/// The stack of the thread that looks.
const SCAN_STACK: usize = 512 << 10;

/// Reports what this node's kernel and kubelet know of block devices, mounts and CSI volumes, and answers the
/// controller's questions about them. It reads /proc and /sys and changes nothing on the node; it opens a device, read-only,
/// at the level full only.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
    reattach-agent --host-root / --once               show what this machine's volumes look like, without a cluster\n  \
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
    /// How far to look: at the level full it may open a device that it is asked about, read-only and exclusively, for a
    /// moment; needs the rights of deploy/components/agent-full
    #[arg(long, value_enum, env = "REATTACH_AGENT_LEVEL", default_value = "basic")]
    level: LookLevel,
    /// How long it may go without a look when the kernel tells of no change and nobody asks, such as 30s or 5m; at least 1s
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = interval)]
    rescan: Duration,
    /// Look once, print what was seen, and exit; needs no cluster
    #[arg(long)]
    once: bool,
    /// The format of --once
    #[arg(short, long, value_enum, default_value = "json", requires = "once")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum LookLevel {
    /// Reads /proc and /sys: says "no device" or "in use"
    Basic,
    /// May also open devices: says "clean", too
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
            eprintln!("reattach-agent: {}", plain::line(&format!("{e:#}"), plain::TEXT_CHARS));
            if e.is::<BadValue>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// A flag or variable that cannot be used as it is: the same exit code as for one that cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BadValue(String);

#[allow(clippy::disallowed_methods)] // A binary's shell: the one place of this crate where clocks are read.
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
        LookLevel::Basic => Level::Basic,
        LookLevel::Full => Level::Full,
    };
    let root = HostRoot::new(&args.host_root).with_kubelet_root(&*args.kubelet_root).with_level(level);
    if args.once {
        let started = Instant::now();
        let inventory = Scan::new(&root)?.inventory();
        let took = started.elapsed();
        let Output::Json = args.output;
        let text = serde_json::to_string_pretty(&inventory).context("cannot print the inventory")?;
        println!("{}", plain::json(&text));
        eprintln!("scanned in {:.1} ms", took.as_secs_f64() * 1e3);
        return Ok(());
    }
    let Some(node) = args.node_name.as_deref().filter(|name| !name.is_empty()) else {
        let why = "no node name; set NODE_NAME (in a DaemonSet from spec.nodeName) or pass --node-name";
        return Err(BadValue(why.to_owned()).into());
    };
    if !is_object_name(node) {
        let why = format!(
            "{node:?} is no name of a Node; --node-name or NODE_NAME must be as kubectl get nodes prints it"
        );
        return Err(BadValue(why).into());
    }
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info,kube=warn".into()),
        )
        .with_writer(|| LogLines::new(std::io::stderr(), LogForm::Json))
        .init();
    match reduced {
        Ok(Rights::Reduced) => tracing::info!("gave up user 0 and all capabilities but two"),
        Ok(Rights::Unchanged) => {}
        Err(e) => tracing::warn!(
            error = %e,
            "running with all the rights of its container: they could not be reduced; it needs CAP_SETUID and CAP_SETGID at its start"
        ),
    }
    // Once before anything else, so that a wrong host root ends the start instead of filling a log.
    Scan::new(&root)?;
    if !is_host_proc(&root) {
        tracing::warn!(
            host_root = %args.host_root.display(),
            "no kernel threads there: this /proc seems to be a container's; processes of the host are not seen"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // The thread of a look ends with it, and with its stack and its share of the allocator's memory.
        .thread_keep_alive(Duration::from_millis(10))
        .thread_stack_size(SCAN_STACK)
        .build()
        .context("cannot start")?;
    let ended = runtime.block_on(serve(node, args.rescan, root));
    // A scan that hangs in the kernel must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

#[allow(clippy::disallowed_methods)] // As above.
async fn serve(node: &str, mut rescan: Duration, root: HostRoot) -> anyhow::Result<()> {
    let inferred = kube::Config::infer().await;
    // Its text has its causes in it already.
    let mut config = inferred.map_err(|e| anyhow!("no credentials for a cluster: {e}"))?;
    // The library would repeat writes on 429, 503 and 504 by itself.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.headers.push(named()?);
    let client = kube::Client::try_from(config).context("cannot use the cluster's configuration")?;
    let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let shutdown = async move {
        tokio::select! {
            biased;
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    let news = match News::open(&root) {
        Ok(news) => news.stream().boxed(),
        Err(e) => {
            tracing::warn!(error = %e, "the kernel tells no news; looking often instead");
            rescan = rescan.min(BLIND_RESCAN);
            stream::pending().boxed()
        }
    };
    let config = AgentConfig { node: NodeName::new(node), root, rescan, scan_on: ScanOn::BlockingPool };
    let (level, rescan_seconds) = (config.root.level(), config.rescan.as_secs());
    tracing::info!(node = %config.node, ?level, rescan_seconds, "agent started");
    reattach_agent::run_with_news(client, config, Timestamp::now, news, shutdown).await;
    Ok(())
}

/// The header that names the agent and its version.
fn named<N, V>() -> anyhow::Result<(N, V)>
where
    N: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    V: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    Ok(("user-agent".parse()?, Product::Agent.user_agent().parse()?))
}

/// Only the host's own process ID namespace shows kernel threads; process 2 is their parent.
fn is_host_proc(root: &HostRoot) -> bool {
    std::fs::read_to_string(root.join("/proc/2/comm")).is_ok_and(|comm| comm.trim() == "kthreadd")
}

/// Lower case letters, digits, `-` and `.`, as the API server demands of a Node's name (RFC 1123 subdomain).
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
    let span: SignedDuration = text.parse().map_err(|_| "give a duration such as 10s or 1m".to_owned())?;
    match Duration::try_from(span) {
        Ok(time) if time >= Duration::from_secs(1) => Ok(time),
        _ => Err("it must be at least 1s".to_owned()),
    }
}
