//! The binary, started as by a person or a DaemonSet.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use common::{BOOT, LABEL, Tree};
use reattach_core::guest::{GuestInventory, Level};
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

fn agent(tree: &Tree, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reattach-agent"))
        .args(["--host-root", tree.0.to_str().unwrap()])
        .args(args)
        .env_clear()
        .env("HOME", &tree.0)
        .output()
        .unwrap()
}

/// Returns the sentence that ends a failed start.
fn complaint(output: &Output) -> String {
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let last = text.trim_end().lines().last().unwrap().to_owned();
    assert!(last.starts_with("reattach-agent: "), "{text}");
    last
}

#[test]
fn once_prints_the_inventory_without_a_cluster() {
    let output = agent(&Tree::with_volume(), &["--once", "-o", "json"]);
    assert!(output.status.success(), "{output:?}");
    let inventory: GuestInventory = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            inventory.boot_id.as_str(),
            inventory.devices[0].identity.serial.as_str()
        ),
        (BOOT, LABEL)
    );
}

#[test]
fn the_level_is_basic_unless_set_to_full() {
    let once = |args: &[&str], environment: &[(&str, &str)]| {
        let tree = Tree::with_volume();
        let output = Command::new(env!("CARGO_BIN_EXE_reattach-agent"))
            .args(["--host-root", tree.0.to_str().unwrap(), "--once"])
            .args(args)
            .env_clear()
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        serde_json::from_slice::<GuestInventory>(&output.stdout)
            .unwrap()
            .level
    };
    assert_eq!(once(&[], &[]), Level::Basic);
    assert_eq!(once(&["--level", "full"], &[]), Level::Full);
    assert_eq!(once(&[], &[("REATTACH_AGENT_LEVEL", "full")]), Level::Full);
    assert_eq!(
        once(&["--level", "basic"], &[("REATTACH_AGENT_LEVEL", "full")]),
        Level::Basic
    );
}

#[test]
fn each_bad_start_ends_with_one_sentence() {
    let text = complaint(&agent(&Tree::empty(), &["--once"]));
    assert!(
        text.contains("no proc folder") && text.contains("--host-root"),
        "{text}"
    );
    let text = complaint(&agent(&Tree::host(), &[]));
    assert!(text.contains("no node name; set NODE_NAME"), "{text}");
    let text = complaint(&agent(&Tree::host(), &["--node-name", ""]));
    assert!(text.contains("no node name; set NODE_NAME"), "{text}");
    let text = complaint(&agent(&Tree::host(), &["--node-name", "n1"]));
    assert!(text.contains("no credentials for a cluster"), "{text}");
    let tree = Tree::host();
    std::fs::remove_file(tree.0.join("proc/sys/kernel/random/boot_id")).unwrap();
    let text = complaint(&agent(&tree, &["--once"]));
    assert!(text.contains("boot ID cannot be read"), "{text}");
}

#[test]
fn a_bad_value_is_named_with_its_remedy_and_exit_code_2() {
    let host = Tree::host();
    for (args, says) in [
        (
            &["--rescan", "10ms"][..],
            "invalid value '10ms' for '--rescan <TIME>': it must be at least 1s",
        ),
        (
            &["--rescan", "often"],
            "invalid value 'often' for '--rescan <TIME>': give a duration such as 10s or 1m",
        ),
        (
            &["--kubelet-root", "kubelet"],
            "invalid value 'kubelet' for '--kubelet-root <DIR>': it must be an absolute path",
        ),
        (
            &["--level", "root"],
            "invalid value 'root' for '--level <LEVEL>'",
        ),
        (
            &["--once", "-o", "yaml"],
            "invalid value 'yaml' for '--output <OUTPUT>'",
        ),
        (&["--node-name", ""], "no node name; set NODE_NAME"),
        (
            &["--node-name", "Node_1"],
            "\"Node_1\" cannot be the name of a Node; set --node-name or NODE_NAME to a name",
        ),
        (&["--colour"], "unexpected argument '--colour' found"),
    ] {
        let output = agent(&host, args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(says), "{args:?}: {text}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    let output = agent(&Tree::empty(), &["--once"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn the_help_names_every_flag_variable_and_exit_code() {
    let output = agent(&Tree::host(), &["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "--host-root",
        "--kubelet-root",
        "--node-name",
        "NODE_NAME",
        "--level",
        "REATTACH_AGENT_LEVEL",
        "--rescan",
        "--once",
        "KUBECONFIG",
        "RUST_LOG",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(text.contains("Exit codes: 0 after SIGTERM"), "{text}");
}

#[test]
fn an_unreachable_cluster_is_logged_and_sigterm_exits_cleanly() {
    let tree = Tree::with_volume();
    // A free port without a listener.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    tree.file(
        "kubeconfig",
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
            clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
            users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        ),
    );
    let mut child = Command::new(env!("CARGO_BIN_EXE_reattach-agent"))
        .args(["--host-root", tree.0.to_str().unwrap()])
        .env_clear()
        .env("NODE_NAME", "n1")
        .env("KUBECONFIG", tree.0.join("kubeconfig"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut failures = 0;
    let mut messages = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line: serde_json::Value =
            serde_json::from_str(&line.unwrap()).expect("every line is JSON");
        let message = line["fields"]["message"].as_str().unwrap().to_owned();
        if message.contains("cannot be watched") {
            let error = line["fields"]["error"].as_str().unwrap();
            assert!(
                error.starts_with("the API server cannot be reached"),
                "{error}"
            );
            failures += 1;
            if failures == 2 {
                let status = Command::new("kill")
                    .args(["-TERM", &child.id().to_string()])
                    .status()
                    .unwrap();
                assert!(status.success());
            }
        }
        messages.push(message);
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(
        messages.last().map(String::as_str),
        Some("agent stopped"),
        "{messages:?}"
    );
}

#[test]
fn an_error_message_is_one_line_whatever_it_quotes() {
    let output = Command::new(env!("CARGO_BIN_EXE_reattach-agent"))
        .args([
            "--host-root",
            "/nowhere\u{1b}[2J\nforged: all is well",
            "--once",
        ])
        .env_clear()
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.contains("has no proc folder") && !text.contains('\u{1b}'),
        "{text:?}"
    );
}
