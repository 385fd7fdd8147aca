//! The agent's cost on a node: memory, wake-ups while nothing happens, and processor time while many events happen. Prints
//! the figures; the bounds are those of a busy machine. `REATTACH_COST_BIN` names the binary to measure, built with the profile
//! `agent` (without it, the debug build), `REATTACH_COST_SECONDS` how long (10 each without it), `REATTACH_COST_SETTLE`
//! how many seconds after the first report the idle time begins (0 without it: then the looks after 10 and 30 s may fall in).

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use common::Tree;
use common::api::Api;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Timeout of all waits, for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(240);
/// Minimum number of events of a storm, also on a slow machine.
const CHANGES: u64 = 200;

/// Resident memory at most, in kB, as it is shipped and of a debug build. The goal is 8 MiB; how many pages around one that is
/// used the kernel maps is its own choice.
const SHIPPED: u64 = 9 << 10;
const DEBUG: u64 = 64 << 10;

/// Runs one measurement at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn seconds(variable: &str) -> Option<Duration> {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .map(Duration::from_secs)
}

fn window() -> Duration {
    seconds("REATTACH_COST_SECONDS").unwrap_or(Duration::from_secs(10))
}

/// An agent of this machine, in process and mount namespaces of its own.
struct Agent {
    wrapper: Child,
    pid: u32,
    api: Api,
    folder: Tree,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The kernel ends all of the namespace with its first process.
        let _ = self.wrapper.kill();
        let _ = self.wrapper.wait();
        // It may have ended between attaching a loop device and detaching it.
        let image = self.folder.0.join("image");
        let left = Command::new("losetup")
            .args(["-n", "-O", "NAME", "-j"])
            .arg(image)
            .output();
        let left = left
            .map(|left| String::from_utf8_lossy(&left.stdout).into_owned())
            .unwrap_or_default();
        for device in left.split_whitespace() {
            let _ = Command::new("losetup").args(["-d", device]).status();
        }
    }
}

impl Agent {
    /// Starts it; `beside` is a shell script that runs in its namespaces. `None` where there are no namespaces to be had.
    fn start(beside: &str) -> Option<Self> {
        let api = Api::start();
        let folder = Tree::empty();
        folder.file("kubeconfig", api.kubeconfig());
        let dir = folder.0.display();
        let agent = std::env::var("REATTACH_COST_BIN")
            .unwrap_or(env!("CARGO_BIN_EXE_reattach-agent").to_owned());
        let script = format!(
            "cd {dir}; RUST_LOG=info,kube=warn,reattach_agent=debug KUBECONFIG={dir}/kubeconfig \
            {agent} --host-root / --node-name n1 2>log & {beside}\nwait"
        );
        let can = Command::new("unshare")
            .args(["-m", "-p", "-f", "true"])
            .stderr(Stdio::null())
            .status();
        if !can.is_ok_and(|status| status.success()) {
            return None;
        }
        let namespaces = [
            "-m",
            "-p",
            "-f",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
        ];
        let wrapper = Command::new("unshare")
            .args(namespaces)
            .args(["sh", "-c", &script])
            .spawn()
            .unwrap();
        let mut agent = Self {
            wrapper,
            pid: 0,
            api,
            folder,
        };
        agent.pid = eventually("the agent runs", || {
            descendant(agent.wrapper.id(), "reattach-agent")
        });
        eventually("the first report", || {
            (agent.api.writes() > 0).then_some(())
        });
        Some(agent)
    }

    fn status(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .unwrap();
        line.trim_start_matches(':')
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap()
    }

    /// Voluntary context switches of each thread.
    fn switches(&self) -> BTreeMap<OsString, u64> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        let threads = threads.filter_map(|thread| {
            let thread = thread.unwrap();
            // It may have ended since.
            let status = fs::read_to_string(thread.path().join("status")).ok()?;
            let count = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            Some((thread.file_name(), count.trim().parse().unwrap()))
        });
        threads.collect()
    }

    /// Wake-ups since then. A thread that came and went in between is not counted, nor what one did that ended.
    fn wakeups_since(&self, before: &BTreeMap<OsString, u64>) -> u64 {
        let count = |(thread, now)| now - before.get(&thread).copied().unwrap_or_default();
        self.switches().into_iter().map(count).sum()
    }

    /// Processor time so far, of threads that ended too.
    fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        // utime and stime, in the ticks of 10 ms that the kernel shows to programs.
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// A file that the script beside it writes.
    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.folder.0.join(file)).unwrap_or_default()
    }

    /// Lines in such a file.
    fn count(&self, file: &str) -> u64 {
        self.text(file).lines().count() as u64
    }
}

fn descendant(parent: u32, comm: &str) -> Option<u32> {
    let children =
        fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .find_map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == comm {
                Some(pid)
            } else {
                descendant(pid, comm)
            }
        })
}

fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            started.elapsed() < TIMEOUT,
            "not within {TIMEOUT:?}: {what}"
        );
        sleep(Duration::from_millis(20));
    }
}

/// Straight to the file descriptor: the test harness hides what a passing test prints.
fn say(text: &str) {
    let _ = fs::write("/dev/stderr", format!("{text}\n"));
}

fn skip(what: &str) {
    say(&format!(
        "SKIPPED {what}: no process and mount namespaces of its own (needs root); nothing was measured"
    ));
    assert!(
        std::env::var("CI").is_err(),
        "skipping is a failure when CI is set: {what}"
    );
}

#[test]
fn an_idle_agent_stays_within_its_cpu_and_memory_bounds() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(agent) = Agent::start("") else {
        return skip("idle");
    };
    sleep(seconds("REATTACH_COST_SETTLE").unwrap_or_default());
    let span = window();
    let (before, cpu) = (agent.switches(), agent.cpu());
    sleep(span);
    let wakeups = agent.wakeups_since(&before);
    let cpu = agent.cpu() - cpu;
    let (now, peak) = (agent.status("VmRSS"), agent.status("VmHWM"));
    let own = agent.status("RssAnon");
    say(&format!(
        "cost of the agent, idle: {now} kB resident ({own} kB of it its own, at most {peak} kB), {wakeups} wake-ups and {} ms of \
        processor time in {} s",
        cpu.as_millis(),
        span.as_secs()
    ));
    let limit = if std::env::var_os("REATTACH_COST_BIN").is_some() {
        SHIPPED
    } else {
        DEBUG
    };
    assert!(now <= limit, "{now} kB resident, more than {limit}");
    assert!(
        wakeups as f64 / span.as_secs_f64() < 5.0,
        "{wakeups} wake-ups in {span:?}"
    );
    // What others do to this machine's disks meanwhile may be worth a line; a report per look is not.
    assert!(agent.api.writes() <= 3, "{} writes", agent.api.writes());
}

/// The kernel's event about a mount causes a scan. tests/pace.rs and tests/rest.rs check how soon.
#[test]
fn a_kernel_mount_event_causes_a_report() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let point = "pods/u1/volumes/kubernetes.io~csi/pv1/mount";
    let script = format!(
        "mkdir -p {point}; while ! test -e go; do sleep 0.02; done; mount -n -i -t tmpfs none {point}"
    );
    let Some(agent) = Agent::start(&script) else {
        return skip("kernel events");
    };
    assert!(!agent.api.says(point));
    let because_of_an_event = || {
        agent
            .text("log")
            .matches(r#""event":true,"changed":true"#)
            .count()
    };
    let before = because_of_an_event();
    agent.folder.file("go", "");
    let asked = Instant::now();
    eventually("the mount is reported", || {
        agent.api.says(point).then_some(())
    });
    let took = asked.elapsed();
    say(&format!(
        "a mount was reported after {} ms",
        took.as_millis()
    ));
    // The line follows the report.
    eventually("the log names the cause of the scan", || {
        (because_of_an_event() > before).then_some(())
    });
}

/// Runs the agent beside a script that writes one line per change, and tells the share of one core that it takes.
fn storm(what: &str, script: &str) {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(agent) = Agent::start(script) else {
        return skip(what);
    };
    eventually("the storm begins", || {
        (agent.count("changes") > 20).then_some(())
    });
    let (began, changes, cpu, wakeups) = (
        Instant::now(),
        agent.count("changes"),
        agent.cpu(),
        agent.switches(),
    );
    sleep(window());
    eventually("the storm goes on", || {
        (agent.count("changes") > changes + CHANGES).then_some(())
    });
    let span = began.elapsed().as_secs_f64();
    let share = (agent.cpu() - cpu).as_secs_f64() / span * 100.0;
    let rate = (agent.count("changes") - changes) as f64 / span;
    let wakeups = agent.wakeups_since(&wakeups) as f64 / span;
    say(&format!(
        "cost of the agent, {what}: {share:.2} % of a core and {wakeups:.1} wake-ups/s at {rate:.0} changes/s, {} kB resident",
        agent.status("VmRSS")
    ));
    assert!(share < 5.0, "{share:.2} % of a core");
}

#[test]
fn changing_mounts_cost_bounded_cpu() {
    // Two changes each: mounted, unmounted.
    storm(
        "mounts",
        "mkdir m; while :; do mount -n -i -t tmpfs none m; echo; umount -n -i m; echo; done >>changes",
    );
}

#[test]
fn changing_loop_devices_cost_bounded_cpu() {
    if !fs::exists("/dev/loop-control").unwrap_or_default() {
        return skip("loop devices");
    }
    storm(
        "loop devices",
        "truncate -s 1M image; while :; do d=$(losetup -f --show image) && echo && losetup -d $d && echo; done >>changes",
    );
}
