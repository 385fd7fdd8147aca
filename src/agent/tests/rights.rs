//! The rights of the agent on its node, with the mounts and capabilities of deploy/base/agent.yaml, on the kernel of this
//! machine. Actions that are not prevented are listed here too, and in docs/security.md.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use common::Tree;
use common::api::Api;
use common::disk::{on_a_disk, skip};
use reattach_agent::rights::{Rights, USER, reduce};
use reattach_core::guest::{Level, ScanResult};
use rustix::process::{Pid, test_kill_process};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Timeout of all waits, for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Variable in the environment of another process.
const SECRET: &str = "TOKEN=another-process's-secret";

/// Returns whether the test can run: as user 0 with all of a node's mounts.
fn can(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "needs root");
    }
    root
}

/// Runs in a new thread, whose rights `first` sets. The kernel keeps rights per thread.
fn with_rights<T: Send>(first: fn(), body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            first();
            body()
        });
        thread.join().unwrap()
    })
}

/// The rights at the start of the container: user 0 with two capabilities.
fn as_started() {
    let kept = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
    set_no_new_privs(true).unwrap();
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).unwrap();
}

/// The rights of the running agent.
fn as_running() {
    assert_eq!(reduce().unwrap(), Rights::Reduced);
}

/// Actions that would change the node or another process. Opening a file is enough; nothing is written.
fn changes(folder: &str, victim: u32) -> Vec<(&'static str, bool)> {
    let writes = |path: String| OpenOptions::new().write(true).open(path).is_ok();
    let creates = |path: String| {
        let made = File::create_new(&path).is_ok();
        if made {
            std::fs::remove_file(&path).unwrap();
        }
        made
    };
    let victims = Pid::from_raw(i32::try_from(victim).unwrap()).unwrap();
    let mounts = Command::new("mount")
        .args(["--bind", folder, folder])
        .stderr(Stdio::null())
        .status();
    vec![
        (
            "the program that the kernel starts at a crash",
            writes("/proc/sys/kernel/core_pattern".to_owned()),
        ),
        ("the same through another process's root", {
            writes(format!("/proc/{victim}/root/proc/sys/kernel/core_pattern"))
        }),
        (
            "a file of user 0, through another process's root",
            writes(format!("/proc/{victim}/root{folder}/file")),
        ),
        (
            "a new file beside it",
            creates(format!("/proc/{victim}/root{folder}/new")),
        ),
        (
            "another process's memory",
            writes(format!("/proc/{victim}/mem")),
        ),
        ("a socket of user 0, as a container runtime has", {
            UnixStream::connect(format!("{folder}/socket")).is_ok()
        }),
        (
            "a signal to another process",
            test_kill_process(victims).is_ok(),
        ),
        ("a mount", mounts.is_ok_and(|status| status.success())),
    ]
}

#[test]
fn the_agent_reads_everything_and_changes_nothing() {
    if !can("the_agent_reads_everything_and_changes_nothing") {
        return;
    }
    let tree = Tree::empty();
    let folder = tree.0.display().to_string();
    tree.file("file", "secret");
    for (path, mode) in [(folder.clone(), 0o700), (format!("{folder}/file"), 0o600)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let socket = format!("{folder}/socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (name, value) = SECRET.split_once('=').unwrap();
    let mut victim = Command::new("sleep")
        .arg("1000")
        .env(name, value)
        .spawn()
        .unwrap();
    let pid = victim.id();

    let before = with_rights(as_started, || changes(&folder, pid));
    let after = with_rights(as_running, || changes(&folder, pid));
    let reads = with_rights(as_running, || {
        let environment = std::fs::read(format!("/proc/{pid}/environ"));
        let file = std::fs::read_to_string(format!("/proc/{pid}/root{folder}/file"));
        (
            environment.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            file,
        )
    });
    victim.kill().unwrap();
    victim.wait().unwrap();

    // What user 0 owns it can write without a capability. A mount needs one.
    let could: Vec<&str> = before
        .iter()
        .filter(|(_, worked)| *worked)
        .map(|(what, _)| *what)
        .collect();
    assert_eq!(could.len(), before.len() - 1, "{before:?}");
    let can: Vec<&str> = after
        .iter()
        .filter(|(_, worked)| *worked)
        .map(|(what, _)| *what)
        .collect();
    assert_eq!(can, Vec::<&str>::new());
    // Not prevented: it is as good as root for reading.
    assert!(reads.0.unwrap().contains(SECRET));
    assert_eq!(reads.1.unwrap(), "secret");
}

#[test]
fn the_agent_sees_each_device_user_that_root_sees() {
    on_a_disk("the_agent_sees_each_device_user_that_root_sees", |disk| {
        assert_eq!(disk.seen(Level::Full), ScanResult::Clean);
        assert_eq!(
            with_rights(as_running, || disk.seen(Level::Full)),
            ScanResult::Clean,
            "it opens the device"
        );
        disk.format();
        let (device, point) = (disk.device(), disk.path("point"));
        let script = format!(
            "mount {device} {point} && exec 9>{point}/file; umount -l {point}; echo ready; read x"
        );
        disk.start(&["unshare", "-m", "sh", "-c", &script]);
        let private = format!("mount {device} {point} && echo ready; read x; umount {point}");
        disk.start(&["unshare", "-m", "sh", "-c", &private]);
        // Of a user that is neither root nor the agent's.
        let open = format!(
            "exec 8<{device}; exec setpriv --reuid 1 --regid 1 --clear-groups sh -c 'echo ready; read x'"
        );
        disk.start(&["sh", "-c", &open]);
        let disk = &*disk;
        for level in [Level::Basic, Level::Full] {
            let (by_root, by_agent) = (
                disk.in_use(level),
                with_rights(as_running, || disk.in_use(level)),
            );
            assert_eq!(by_agent, by_root, "{level:?}");
            assert!(
                by_root.openers.len() >= 2 && !by_root.mounts.is_empty(),
                "{by_root:?}"
            );
        }
    });
}

#[test]
fn each_agent_thread_has_two_capabilities_for_good() {
    if !can("each_agent_thread_has_two_capabilities_for_good") {
        return;
    }
    let api = Api::start();
    let tree = Tree::with_volume();
    tree.file("kubeconfig", api.kubeconfig());
    let mut agent = Command::new(env!("CARGO_BIN_EXE_reattach-agent"))
        .args(["--host-root", tree.0.to_str().unwrap(), "--node-name", "n1"])
        .env("KUBECONFIG", tree.0.join("kubeconfig"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while api.writes() == 0 {
        assert!(began.elapsed() < TIMEOUT, "no report");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut statuses = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", agent.id())).unwrap() {
        statuses.extend(std::fs::read_to_string(task.unwrap().path().join("status")));
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(!statuses.is_empty());
    // DAC_READ_SEARCH is capability 2, SYS_PTRACE 19.
    let (user, kept) = (
        format!("{USER}\t{USER}\t{USER}\t{USER}"),
        format!("{:016x}", 1 << 2 | 1 << 19),
    );
    for status in statuses {
        for (field, value) in [
            ("Uid", user.as_str()),
            ("Gid", &user),
            ("Groups", ""),
            ("CapInh", "0000000000000000"),
            ("CapPrm", &kept),
            ("CapEff", &kept),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
        ] {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
                .unwrap();
            assert_eq!(line.trim(), value, "{field}");
        }
    }
}
