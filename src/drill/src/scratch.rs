//! A folder for the simulated hosts' files, removed at the end.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Linux' file system in memory. A host is some hundred small files that come and go; on a disk's file system they cost half of
/// a drill's processor time.
const IN_MEMORY: &str = "/dev/shm";

/// A folder of this process; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> std::io::Result<Self> {
        let name = format!(
            "reattach-drill-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        // It may be missing or read-only; the folder for temporary files is slower and always there.
        Self::at(Path::new(IN_MEMORY).join(&name))
            .or_else(|_| Self::at(std::env::temp_dir().join(&name)))
    }

    fn at(path: PathBuf) -> std::io::Result<Self> {
        // A leftover of a process that had the same number and was killed.
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "the simulated hosts' files could not be removed");
        }
    }
}
