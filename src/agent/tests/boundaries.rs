//! Things that the agent must not contain.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// The agent runs on every node: it links no provider, no HTTP client for one, and no credential chain.
#[test]
fn the_agent_links_no_provider() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let tree = Command::new(cargo)
        .args([
            "tree",
            "--package",
            "reattach-agent",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .args([
            "--offline",
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .output()
        .unwrap();
    assert!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let tree = String::from_utf8(tree.stdout).unwrap();
    let crates: Vec<&str> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(
        crates.contains(&"kube") && crates.contains(&"reattach-core"),
        "{crates:?}"
    );
    // The last three are functions of values, without input or output.
    let ours = [
        "reattach-agent",
        "reattach-api",
        "reattach-core",
        "reattach-messages",
        "reattach-report",
    ];
    for name in crates {
        assert!(
            !name.starts_with("reattach-") || ours.contains(&name),
            "{name} is linked"
        );
        assert!(
            name != "reqwest" && !name.starts_with("aws-sdk") && name != "aws-config",
            "{name} is linked"
        );
    }
}

/// The base opens no device: it has neither the rights nor the setting. The component adds exactly these two.
#[test]
fn only_the_component_lets_it_open_devices() {
    let read = |file: &str| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy").to_owned() + file;
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let lines = |text: &str| -> Vec<String> {
        let code = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        code.map(|line| line.trim_start_matches("- ").to_owned())
            .collect()
    };
    let (base, full) = (
        lines(&read("/base/agent.yaml")),
        lines(&read("/components/agent-full/agent.yaml")),
    );
    for line in ["privileged: true", "--level=full"] {
        assert!(!base.contains(&line.to_owned()), "{line}");
        assert!(full.contains(&line.to_owned()), "{line}");
    }
    for line in base
        .iter()
        .filter(|line| line.starts_with("--") && !line.starts_with("--level"))
    {
        assert!(
            full.contains(line),
            "the component replaces the list of arguments and loses {line}"
        );
    }
    assert!(
        !lines(&read("/base/kustomization.yaml"))
            .iter()
            .any(|line| line.contains("agent-full"))
    );
}
