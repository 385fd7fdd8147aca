//! Files that guests are made of, and the programs that run in them.

use crate::cpio::Archive;
use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// QEMU, a kernel and its first file system.
#[derive(Clone, Debug)]
pub struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// Takes the folder that `REATTACH_GUEST_TOOLS` names, which is the one that `tests/guest/setup` prints; runs that script where
    /// the variable is not set.
    ///
    /// # Errors
    /// A folder without what it must hold; a script that fails, or that cannot set this machine up.
    pub fn find() -> Result<Self> {
        let folder = match env::var_os("REATTACH_GUEST_TOOLS").filter(|v| !v.is_empty()) {
            Some(named) => PathBuf::from(named),
            None => set_up(&Path::new(env!("CARGO_MANIFEST_DIR")).join("setup"))?,
        };
        let tools = Self { folder };
        for needed in [tools.qemu(), tools.kernel(), tools.initramfs()] {
            if !needed.is_file() {
                bail!("{} is missing", needed.display());
            }
        }
        Ok(tools)
    }

    pub(crate) fn qemu(&self) -> PathBuf {
        self.folder.join("qemu")
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs.cpio")
    }

    /// A guest's first file system with these programs of this machine in /sbin, and the libraries that they need.
    pub(crate) fn initramfs_with(&self, programs: &[PathBuf]) -> Result<Vec<u8>> {
        let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
        let mut archive = Archive::default();
        for program in programs {
            let name = program
                .file_name()
                .with_context(|| format!("{} has no name", program.display()))?;
            archive.program(&Path::new("/sbin").join(name), &read(program)?);
            for library in libraries(program)? {
                archive.program(&library, &read(&library)?);
            }
        }
        // The kernel unpacks one archive after the other.
        let mut all = read(&self.initramfs())?;
        all.extend(archive.finish());
        Ok(all)
    }
}

fn set_up(script: &Path) -> Result<PathBuf> {
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

/// The shared libraries of a program and its loader, by absolute path; none of a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .stdin(Stdio::null())
        .output()
        .context("ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        bail!("{}: {}", program.display(), missing.trim());
    }
    // `NAME => PATH (ADDRESS)`, for the loader `PATH (ADDRESS)`.
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}
