//! Where the binaries are, and running them.

use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The container image that every machine has: `/pause` and `/canary`.
pub const IMAGE: &str = "reattach.test/node:1";

/// Files that machines are made of.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The folder with csi-node, unplug and image.tar.
    pub folder: PathBuf,
    /// The kubelet.
    pub kubelet: PathBuf,
}

impl Tools {
    /// Takes what `REATTACH_NODE_TOOLS` (the folder that `tests/node/setup` prints) and `REATTACH_CONTROLPLANE_BIN` (that of
    /// `tests/controlplane/build`) name; runs those scripts where a variable is not set.
    ///
    /// # Errors
    /// A folder without what it must hold; a script that fails, or that cannot set this machine up.
    pub fn find() -> Result<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = folder("REATTACH_NODE_TOOLS", &here.join("setup"))?;
        let kubelet = folder_of_kubelet(here)?.join("kubelet");
        for needed in [
            folder.join("csi-node"),
            folder.join("unplug"),
            folder.join("image.tar"),
            kubelet.clone(),
        ] {
            if !needed.is_file() {
                bail!("{} is missing", needed.display());
            }
        }
        Ok(Self { folder, kubelet })
    }

    /// One of the folder's files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn folder_of_kubelet(here: &Path) -> Result<PathBuf> {
    folder(
        "REATTACH_CONTROLPLANE_BIN",
        &here.join("../controlplane/build"),
    )
}

fn folder(variable: &str, script: &Path) -> Result<PathBuf> {
    if let Some(named) = env::var_os(variable).filter(|v| !v.is_empty()) {
        return Ok(named.into());
    }
    let name = script.display().to_string();
    let output = Command::new(script)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context(name.clone())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    if !output.status.success() {
        bail!("{name} failed ({}): {last}", output.status);
    }
    Ok(PathBuf::from(last))
}

/// Runs a program to its end and gives what it printed, without white space around it.
pub(crate) fn run(program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
    let program = program.as_ref();
    let shown = format!("{} {}", program.display(), arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context(shown.clone())?;
    if !output.status.success() {
        bail!(
            "{shown}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
