//! One machine: its namespaces, its disk, its programs.

use crate::files;
use crate::program::{MachineConfig, Program};
use crate::tools::{Tools, run};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::time::Instant;

/// Anything that a machine does by itself takes less than this.
const LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// The content of a machine's disk at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// The old content.
    Kept,
    /// Nothing: the machine was re-imaged.
    ReImaged,
}

struct Power {
    /// `unshare`, whose one child is process 1 of the machine.
    outer: Child,
    /// Process 1, by its number outside.
    init: u32,
    orders: ChildStdin,
}

/// A machine. Its power goes when it is dropped.
pub struct Machine {
    config: MachineConfig,
    tools: Arc<Tools>,
    folder: PathBuf,
    power: Option<Power>,
}

impl Machine {
    /// A machine that is off, with an empty disk; everything of it is in `folder`.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn new(config: MachineConfig, tools: Arc<Tools>, folder: PathBuf) -> Result<Self> {
        let machine = Self {
            config,
            tools,
            folder,
            power: None,
        };
        for name in [
            "by-id",
            "cni",
            "log",
            "pid",
            "start",
            "host",
            "sys/block",
            "sys/dev-block",
            "console",
        ] {
            let path = machine.path(name);
            fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        }
        machine.wipe()?;
        machine.write("init", files::INIT)?;
        machine.write("containerd.toml", &files::containerd(&machine.folder))?;
        machine.write("cni/10-loopback.conflist", files::CNI)?;
        machine.write("kubelet.yaml", &files::kubelet(&machine.config))?;
        machine.write("switches.json", "{}")?;
        // Devices that are no volumes are shown as they are. Loop devices are shown when the cloud gives them.
        for entry in fs::read_dir("/sys/block")? {
            let name = entry?.file_name();
            if !name.to_string_lossy().starts_with("loop") {
                std::os::unix::fs::symlink(
                    Path::new("/sys/block").join(&name),
                    machine.path("sys/block").join(&name),
                )?;
            }
        }
        Ok(machine)
    }

    /// The name of its Node.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The cloud's number of it.
    pub fn instance(&self) -> u64 {
        self.config.instance
    }

    /// A place in its folder, as seen from outside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A place on the machine as it sees it, seen from outside.
    ///
    /// # Errors
    /// A machine that is off.
    pub fn inside(&self, path: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!(
            "/proc/{}/root/{}",
            self.init()?,
            path.trim_start_matches('/')
        )))
    }

    /// Its first process, by its number outside.
    ///
    /// # Errors
    /// A machine that is off.
    pub fn init(&self) -> Result<u32> {
        Ok(self
            .power
            .as_ref()
            .with_context(|| format!("{} is off", self.config.name))?
            .init)
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, content).with_context(|| path.display().to_string())
    }

    fn wipe(&self) -> Result<()> {
        let disk = self.path("disk");
        if disk.exists() {
            fs::remove_dir_all(&disk).with_context(|| disk.display().to_string())?;
        }
        for part in ["lib/kubelet", "lib/containerd", "log/pods"] {
            fs::create_dir_all(disk.join(part))?;
        }
        Ok(())
    }

    /// Boots: a new boot ID, empty memory, and nothing runs yet. Returns when the machine takes orders.
    ///
    /// # Errors
    /// A machine that is on, or that does not come up, with what its init said.
    pub fn power_on(&mut self, disk: Disk) -> Result<()> {
        if self.power.is_some() {
            bail!("{} is on", self.config.name);
        }
        if disk == Disk::ReImaged {
            self.wipe()?;
        }
        self.write(
            "boot_id",
            &format!("{}\n", run("cat", &["/proc/sys/kernel/random/uuid"])?),
        )?;
        for entry in fs::read_dir(self.path("pid"))? {
            fs::remove_file(entry?.path())?;
        }
        let errors = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log/init.log"))?;
        let mut outer = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
                "sh",
            ])
            .arg(self.path("init"))
            .arg(&self.folder)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("unshare")?;
        let (orders, said) = (
            outer.stdin.take().context("a pipe")?,
            outer.stdout.take().context("a pipe")?,
        );
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        if line.trim() != "ready" {
            let _ = outer.kill();
            let _ = outer.wait();
            bail!("{} does not boot: {}", self.config.name, self.log("init"));
        }
        let outside = outer.id();
        let init = fs::read_to_string(format!("/proc/{outside}/task/{outside}/children"))?;
        let init = init
            .trim()
            .parse()
            .with_context(|| format!("the children of unshare: {init:?}"))?;
        self.power = Some(Power {
            outer,
            init,
            orders,
        });
        Ok(())
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.power.is_some()
    }

    /// Cuts the power: every process and every mount is gone when this returns. Nothing is synced.
    ///
    /// # Errors
    /// Processes that do not die.
    pub fn power_off(&mut self) -> Result<()> {
        let Some(mut power) = self.power.take() else {
            return Ok(());
        };
        let init = i32::try_from(power.init)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .context("a PID")?;
        // An error says that it is dead. The kernel kills everything in its namespace before it lets it go.
        let _ = rustix::process::kill_process(init, rustix::process::Signal::KILL);
        power.outer.wait()?;
        crate::sweep::remove_cgroups(&self.path("disk/lib/containerd"));
        Ok(())
    }

    /// Starts a program; returns when its process is there.
    ///
    /// # Errors
    /// A machine that is off.
    pub fn start(&mut self, program: &Program) -> Result<()> {
        let name = program.name();
        self.write(
            &format!("start/{name}"),
            &files::start(program, &self.config, &self.tools, &self.folder),
        )?;
        self.order("start", name)?;
        self.until(&format!("pid/{name}"), true)
    }

    /// Kills a program that was started (a shell and what it became, not what that has started); returns when it is gone.
    ///
    /// # Errors
    /// A machine that is off.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        self.order("kill", name)?;
        self.until(&format!("pid/{name}"), false)
    }

    fn order(&mut self, verb: &str, name: &str) -> Result<()> {
        let power = self
            .power
            .as_mut()
            .with_context(|| format!("{} is off", self.config.name))?;
        power
            .orders
            .write_all(format!("{verb} {name}\n").as_bytes())?;
        Ok(power.orders.flush()?)
    }

    fn until(&self, name: &str, there: bool) -> Result<()> {
        let (path, end) = (self.path(name), Instant::now() + LIMIT);
        while path.exists() != there {
            if Instant::now() > end {
                bail!(
                    "{}: {name} after {LIMIT:?}: {}",
                    self.config.name,
                    self.log("init")
                );
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until a file is there on the machine, as it sees it.
    ///
    /// # Errors
    /// A machine that is off, and a file that does not come within a minute.
    pub fn await_file(&self, path: &str) -> Result<()> {
        let (place, end) = (self.inside(path)?, Instant::now() + LIMIT);
        while !place.exists() {
            if Instant::now() > end {
                bail!("{}: no {path} after {LIMIT:?}", self.config.name);
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Moves the switches of its CSI node plugin: JSON as in `csi-node/switches.go`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn switches(&self, json: &str) -> Result<()> {
        // Renamed into place: the plugin never reads half of it.
        self.write("switches.new", json)?;
        Ok(fs::rename(
            self.path("switches.new"),
            self.path("switches.json"),
        )?)
    }

    /// Output of a program.
    pub fn log(&self, program: &str) -> String {
        fs::read_to_string(self.path(&format!("log/{program}.log"))).unwrap_or_default()
    }

    /// Every mount that its first process sees; empty when it is off.
    pub fn mount_table(&self) -> String {
        let table = self
            .init()
            .map(|init| fs::read_to_string(format!("/proc/{init}/mountinfo")));
        table.ok().and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(e) = self.power_off() {
            eprintln!("{}: {e:#}", self.config.name);
        }
        // Containers' files, which would make a kept folder large.
        let _ = fs::remove_dir_all(self.path("disk/lib/containerd"));
    }
}
