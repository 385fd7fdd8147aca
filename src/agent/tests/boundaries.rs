//! What the agent must not contain.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// The agent runs on every node: it links no provider, no HTTP client for one, and no credential chain.
#[test]
fn links_no_provider() {
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
        .args(["--offline", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains(&"kube") && crates.contains(&"reattach-core"), "{crates:?}");
    let ours = ["reattach-agent", "reattach-api", "reattach-core"];
    for name in crates {
        assert!(!name.starts_with("reattach-") || ours.contains(&name), "{name} is linked");
        assert!(
            name != "reqwest" && !name.starts_with("aws-sdk") && name != "aws-config",
            "{name} is linked"
        );
    }
}
