//! The shipped binaries as child processes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A child process whose output goes to a file; it is killed when dropped.
pub struct Process {
    child: Child,
    ended: bool,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Process {
    /// Starts `binary` of this build.
    pub fn start(
        binary: &str,
        log: &Path,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> Self {
        let file = File::create(log).expect("a log file");
        let child = Command::new(binary_path(binary))
            .args(arguments)
            .env_remove("KUBECONFIG")
            .envs(environment.iter().map(|(k, v)| (*k, v.as_str())))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("{binary} does not start: {e}"));
        Self {
            child,
            ended: false,
            log: log.to_owned(),
        }
    }

    /// Ends it as the kubelet does first: SIGTERM. Returns whether it ended well.
    pub fn terminate(&mut self) -> bool {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).expect("a pid"),
            rustix::process::Signal::TERM,
        )
        .expect("it is ours");
        self.ended = true;
        self.child.wait().is_ok_and(|s| s.success())
    }

    /// Ends it as a power cut does.
    pub fn kill(&mut self) {
        self.ended = true;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether this test has not ended it.
    pub fn runs(&self) -> bool {
        !self.ended
    }

    /// Its output.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A binary of this build: beside the test binaries' folder, or in `REATTACH_BIN_DIR`.
pub fn binary_path(name: &str) -> PathBuf {
    let folder = match std::env::var_os("REATTACH_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let test = std::env::current_exe().expect("this test's own path");
            test.parent()
                .and_then(Path::parent)
                .expect("target/debug")
                .to_owned()
        }
    };
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built; run: cargo build --workspace --bins",
        path.display()
    );
    path
}
