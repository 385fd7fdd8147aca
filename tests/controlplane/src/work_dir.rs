//! The temporary folder of one control plane: what is where, and whether it is kept.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use crate::{Component, HarnessError};

/// Set to anything but the empty string, it keeps every folder.
const KEEP: &str = "REATTACH_CONTROLPLANE_KEEP";

/// Removed on drop, unless the test failed or the environment says to keep it.
pub(crate) struct WorkDir {
    path: PathBuf,
    kept: AtomicBool,
}

impl WorkDir {
    /// The name is short on purpose: the path of a Unix socket in it may have 107 bytes at most.
    pub fn create() -> Result<Self, HarnessError> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = env::temp_dir().join(format!("reattach-cp-{}-{number}", process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    let dir = Self {
                        path,
                        kept: AtomicBool::new(false),
                    };
                    for sub in [dir.logs(), dir.certificates(), dir.kubeconfigs()] {
                        fs::create_dir(&sub).map_err(HarnessError::io(format!(
                            "cannot create {}",
                            sub.display()
                        )))?;
                    }
                    return Ok(dir);
                }
                // Left by an earlier process of the same number.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    return Err(HarnessError::io(format!(
                        "cannot create {}",
                        path.display()
                    ))(e));
                }
            }
        }
    }

    /// From now on it stays.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    pub fn log(&self, component: Component) -> PathBuf {
        self.logs().join(format!("{component}.log"))
    }

    /// The last `lines` of a component's log.
    pub fn log_tail(&self, component: Component, lines: usize) -> String {
        let whole = fs::read(self.log(component)).unwrap_or_default();
        let whole = String::from_utf8_lossy(&whole);
        let all: Vec<&str> = whole.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    pub fn certificates(&self) -> PathBuf {
        self.path.join("certificates")
    }

    /// Written by kube-apiserver at its first start: the serving certificate and the authority that signed it.
    pub fn api_server_certificate(&self) -> PathBuf {
        self.certificates().join("apiserver.crt")
    }

    pub fn tokens(&self) -> PathBuf {
        self.path.join("tokens.csv")
    }

    pub fn service_account_key(&self) -> PathBuf {
        self.path.join("service-account.key")
    }

    pub fn audit_policy(&self) -> PathBuf {
        self.path.join("audit-policy.json")
    }

    pub fn audit_log(&self) -> PathBuf {
        self.logs().join("audit.jsonl")
    }

    fn kubeconfigs(&self) -> PathBuf {
        self.path.join("kubeconfigs")
    }

    /// A name may hold colons and slashes, as those of system users and ServiceAccounts do.
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.kubeconfigs()
            .join(format!("{}.json", name.replace([':', '/'], "_")))
    }

    pub fn csi_socket(&self) -> PathBuf {
        self.path.join("csi.sock")
    }

    pub fn csi_control_address(&self) -> PathBuf {
        self.path.join("csi-control-address")
    }

    pub fn write(&self, path: &Path, content: &str) -> Result<(), HarnessError> {
        fs::write(path, content)
            .map_err(HarnessError::io(format!("cannot write {}", path.display())))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let asked = env::var_os(KEEP).is_some_and(|v| !v.is_empty());
        if asked || self.kept.load(Ordering::Relaxed) || thread::panicking() {
            eprintln!(
                "control plane: logs and audit log are kept in {}",
                self.path.display()
            );
            return;
        }
        if let Err(e) = fs::remove_dir_all(&self.path) {
            eprintln!("control plane: cannot remove {}: {e}", self.path.display());
        }
    }
}
