//! Child processes that cannot outlive the test.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::HarnessError;

/// A component's process, leader of a process group of its own; killed with its group on drop.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts a binary with only these variables in its environment and its output appended to `log`.
    pub fn spawn(
        binary: &Path,
        arguments: &[String],
        environment: &[(String, String)],
        directory: &Path,
        log: &Path,
        reaper: &Reaper,
    ) -> Result<Self, HarnessError> {
        let failed =
            |what: &str, path: &Path| HarnessError::io(format!("cannot {what} {}", path.display()));
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(failed("open", log))?;
        let errors = output.try_clone().map_err(failed("open", log))?;
        let child = Command::new(binary)
            .args(arguments)
            .env_clear()
            .env("HOME", directory)
            .env("TMPDIR", directory)
            // Go's garbage collector runs a quarter as often: memory is there, processors are not.
            .env("GOGC", "400")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(failed("start", binary))?;
        let running = Self { child };
        reaper.watch(running.child.id())?;
        Ok(running)
    }

    /// The exit status, when the process has ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(describe(status)),
            Err(e) => Some(format!("status unknown: {e}")),
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // An error says that the group has ended already.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// A shell that reads process group numbers from a pipe and kills them all when the pipe closes, which the kernel does
/// even if this process is killed: `Drop` alone would leave servers behind then.
pub(crate) struct Reaper {
    child: Child,
    pipe: Mutex<Option<ChildStdin>>,
}

/// `add N` and `forget N`; at the end of input, kill what was added and not forgotten.
const REAPER: &str = r#"
groups=" "
while read -r what group; do
    case $what in
        add) groups="$groups$group " ;;
        forget) groups="${groups%% $group *} ${groups#* $group }" ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
exit 0
"#;

impl Reaper {
    pub fn start() -> Result<Self, HarnessError> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", REAPER])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not in the terminal's group: an interrupt from the keyboard must not end it before its work.
            .process_group(0)
            .spawn()
            .map_err(HarnessError::io("cannot start /bin/sh"))?;
        let pipe = Mutex::new(child.stdin.take());
        Ok(Self { child, pipe })
    }

    fn watch(&self, group: u32) -> Result<(), HarnessError> {
        self.say("add", group)
            .map_err(HarnessError::io("cannot reach the reaper"))
    }

    /// Must be called once a group is gone, before its number can be used again.
    pub fn forget(&self, group: u32) -> Result<(), HarnessError> {
        self.say("forget", group)
            .map_err(HarnessError::io("cannot reach the reaper"))
    }

    fn say(&self, what: &str, group: u32) -> std::io::Result<()> {
        match self
            .pipe
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
        {
            Some(pipe) => pipe.write_all(format!("{what} {group}\n").as_bytes()),
            None => Ok(()),
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        *self.pipe.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, time::Duration};

    use super::*;
    use crate::eventually;

    fn sleeper(reaper: &Reaper, name: &str) -> Running {
        let log = env::temp_dir().join(format!("reattach-process-{}-{name}", std::process::id()));
        let arguments = ["-c".to_owned(), "sleep 600 & wait".to_owned()];
        let running = Running::spawn(
            Path::new("/bin/sh"),
            &arguments,
            &[],
            &env::temp_dir(),
            &log,
            reaper,
        );
        fs::remove_file(log).expect("the log file is there");
        running.expect("a shell")
    }

    /// Whether a member of the process group lives; a zombie does not count.
    fn alive(group: u32) -> bool {
        let stat = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("stat")).ok();
        let all = fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter_map(stat);
        // After the name in parentheses: state, parent, group.
        let fields = |line: String| line.rsplit_once(") ").map(|(_, rest)| rest.to_owned());
        all.filter_map(fields).any(|rest| {
            let mut words = rest.split(' ');
            words.next() != Some("Z") && words.nth(1) == Some(&group.to_string())
        })
    }

    async fn gone(group: u32) {
        let look = async || (!alive(group)).then_some(());
        eventually("end of the process group", Duration::from_secs(10), look)
            .await
            .expect("it ends");
    }

    #[tokio::test]
    async fn a_dropped_process_ends_its_group() {
        let reaper = Reaper::start().expect("reaper");
        let running = sleeper(&reaper, "dropped");
        let group = running.id();
        assert!(alive(group));
        drop(running);
        gone(group).await;
    }

    #[tokio::test]
    async fn the_reaper_kills_only_a_killed_tests_processes() {
        let (reaper, other) = (
            Reaper::start().expect("reaper"),
            Reaper::start().expect("reaper"),
        );
        let (left, forgotten) = (sleeper(&reaper, "left"), sleeper(&reaper, "forgotten"));
        // It stands for a process that has got the number of one that was stopped.
        reaper.forget(forgotten.id()).expect("told");
        let bystander = sleeper(&other, "bystander");
        let group = left.id();
        // As when the test's process is killed: no `Drop` of the child, but the pipe closes.
        std::mem::forget(left);
        drop(reaper);
        gone(group).await;
        assert!(alive(forgotten.id()) && alive(bystander.id()));
    }
}
