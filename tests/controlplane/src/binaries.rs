//! Where the binaries are.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Component, HarnessError};

/// Names a folder that holds every binary.
const FOLDER: &str = "REATTACH_CONTROLPLANE_BIN";

/// The folder with all binaries: the one named by the environment, or what `build` finds or makes. Blocks for minutes
/// when it has to make them.
pub(crate) fn find() -> Result<PathBuf, HarnessError> {
    let folder = match env::var_os(FOLDER).filter(|v| !v.is_empty()) {
        Some(named) => PathBuf::from(named),
        None => build(&Path::new(env!("CARGO_MANIFEST_DIR")).join("build"))?,
    };
    for component in Component::ALL {
        let binary = folder.join(component.name());
        if !binary.is_file() {
            let reason = format!(
                "{} is missing (run tests/controlplane/build)",
                binary.display()
            );
            return Err(HarnessError::Binaries { reason });
        }
    }
    Ok(folder)
}

/// Runs the script; its last line of output is the folder. Its messages go to our stderr.
fn build(script: &Path) -> Result<PathBuf, HarnessError> {
    let output = Command::new(script)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(HarnessError::io(format!("cannot run {}", script.display())))?;
    if !output.status.success() {
        let reason = format!("{} failed ({})", script.display(), output.status);
        return Err(HarnessError::Binaries { reason });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().last().filter(|line| !line.is_empty()) {
        Some(line) => Ok(PathBuf::from(line)),
        None => Err(HarnessError::Binaries {
            reason: format!("{} named no folder", script.display()),
        }),
    }
}
