//! The binary as a person or a Deployment starts it.

use std::process::{Command, Output};

fn controller(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reattach-controller"));
    command.args(args).env_clear().output().expect("it starts")
}

#[test]
fn a_bad_value_is_named_with_its_remedy_and_exit_code_2() {
    for (args, says) in [
        (
            &[][..],
            "the following required arguments were not provided: --provider <NAME>",
        ),
        (
            &["--provider", "gce"],
            "there is no provider \"gce\" in this build, which has: linode",
        ),
        (
            &["--provider", "linode", "--lease", "other"],
            "invalid value 'other' for '--lease <LEASE>': it must begin with reattach-",
        ),
        (
            &["--provider", "linode", "--namespace", "Reattach System"],
            "invalid value 'Reattach System' for '--namespace <NAMESPACE>': give 1 to 63 lower case letters",
        ),
        (
            &["--provider", "linode", "--listen", "8080"],
            "invalid value '8080' for '--listen <LISTEN>': give an address and a port, such as 0.0.0.0:8080",
        ),
        (
            &["--provider", "linode", "--log-format", "xml"],
            "invalid value 'xml' for '--log-format <LOG_FORMAT>'",
        ),
    ] {
        let output = controller(args);
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        let flat = text
            .replace("\\\"", "\"")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        assert!(flat.contains(says), "{args:?}: {text}");
    }
}

#[test]
fn a_missing_token_ends_with_exit_code_1() {
    let output = controller(&["--provider", "linode"]);
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("LINODE_TOKEN is not set"), "{text}");
}

#[test]
fn the_help_names_every_flag_variable_and_exit_code() {
    let output = controller(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for part in [
        "--provider",
        "--namespace",
        "--lease",
        "--listen",
        "--kubeconfig",
        "--pod-name",
        "--pod-uid",
        "--unbounded",
        "--log-format",
        "POD_NAMESPACE",
        "KUBECONFIG",
        "POD_NAME",
        "POD_UID",
        "LINODE_TOKEN",
        "LINODE_URL",
        "RUST_LOG",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(text.contains("Exit codes: 0 after SIGTERM"), "{text}");
}

/// Messages in a log were written by others. None of them makes a line of its own, or steers the reader's terminal.
#[test]
fn a_log_line_cannot_be_forged_by_a_line_break() {
    let file = "/nowhere/x\u{1b}[2J\n2026-03-02T03:00:00Z  INFO reattach_controller: recovery phase=Recovered";
    for form in ["text", "json"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reattach-controller"));
        command.args([
            "--provider",
            "linode",
            "--log-format",
            form,
            "--kubeconfig",
            file,
        ]);
        let output = command
            .env_clear()
            .env("LINODE_TOKEN", "a-token")
            .output()
            .expect("it starts");
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{form}: {text}");
        assert!(text.contains("nowhere"), "{form}: {text}");
        assert_eq!(text.lines().count(), 1, "{form}: {text}");
        let shown = text.trim_end_matches('\n');
        assert!(
            !shown.contains(|c: char| c.is_control()),
            "{form}: {shown:?}"
        );
    }
}
