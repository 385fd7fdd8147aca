//! One virtual machine and its disks.

use crate::qmp::Qmp;
use crate::shell::Shell;
use crate::tools::Tools;
use crate::wait::wait_for;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long QEMU may take to open its sockets.
const START: Duration = Duration::from_secs(30);
/// Slots for NVMe disks, which are PCI devices each.
const SLOTS: u32 = 4;

/// A cloud's block storage volume.
#[derive(Clone, Debug)]
pub struct Volume {
    serial: String,
    file: PathBuf,
}

impl Volume {
    /// The identity that its device reports.
    pub fn serial(&self) -> &str {
        &self.serial
    }
}

/// How a disk is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// As Linode does: a SCSI disk behind a virtio adapter, with the volume's name in page 0x83.
    Scsi,
    /// As AWS does: an NVMe controller of its own, with the volume's name as its serial number.
    Nvme,
    /// A virtio disk, with the volume's name as its serial number.
    Virtio,
}

/// A volume that a guest has: what QEMU calls the two halves of it.
#[derive(Debug)]
pub struct Plugged {
    device: String,
    node: String,
}

/// A virtual machine, on or off.
#[derive(Debug)]
pub struct Guest {
    tools: Tools,
    folder: PathBuf,
    running: Option<Running>,
    plugs: u32,
}

#[derive(Debug)]
struct Running {
    qemu: Child,
    qmp: Qmp,
    shell: Shell,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.running = None;
        // It is large, and the same for every guest.
        let _ = fs::remove_file(self.folder.join("initramfs"));
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

impl Guest {
    /// A guest that is off, with these programs of this machine in its /sbin. What it needs is kept in a new folder below the
    /// one for temporary files.
    ///
    /// # Errors
    /// A program that cannot be read, or a folder that cannot be made.
    pub fn new(tools: &Tools, programs: &[PathBuf]) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("reattach-guest-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        fs::write(folder.join("initramfs"), tools.initramfs_with(programs)?)?;
        Ok(Self {
            tools: tools.clone(),
            folder,
            running: None,
            plugs: 0,
        })
    }

    /// Switches it on, without any volume, and waits until it is up.
    ///
    /// # Errors
    /// QEMU or the guest does not come up; then the last words of both.
    pub fn power_on(&mut self) -> Result<()> {
        self.power_off();
        match self.start() {
            Ok(running) => {
                self.running = Some(running);
                Ok(())
            }
            Err(e) => Err(e.context(format!("{}\n{}", self.words("qemu"), self.words("console")))),
        }
    }

    fn start(&self) -> Result<Running> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        for socket in ["qmp", "shell"] {
            let _ = fs::remove_file(path(socket));
        }
        let log = File::create(path("qemu.log"))?;
        // QEMU ends with this thread, also when that has no chance to say so.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(self.tools.qemu());
        command.args([
            "-machine",
            "q35,accel=tcg",
            "-m",
            "256",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ]);
        command
            .args(["-display", "none"])
            .arg("-kernel")
            .arg(self.tools.kernel());
        command.args([
            "-initrd",
            &path("initramfs"),
            "-append",
            "console=ttyS0 quiet panic=-1",
        ]);
        command.args(["-serial", &format!("file:{}", path("console.log"))]);
        let shell = format!("socket,id=shell,path={},server=on,wait=off", path("shell"));
        command.args(["-chardev", &shell, "-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=shell"]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp"))]);
        command.args([
            "-netdev",
            "user,id=net",
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
        ]);
        command.args(["-device", "virtio-scsi-pci,id=scsi"]);
        for slot in 0..SLOTS {
            let port = format!(
                "pcie-root-port,id=slot{slot},chassis={},slot={}",
                slot + 1,
                slot + 1
            );
            command.args(["-device", &port]);
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut qemu = command.spawn().context("setpriv (of util-linux)")?;
        let connected = (|| {
            let mut connect = |name: &str| {
                wait_for(&format!("QEMU's socket {name}"), START, || {
                    if let Some(status) = qemu.try_wait()? {
                        bail!("QEMU has ended: {status}");
                    }
                    Ok(UnixStream::connect(path(name)).ok())
                })
            };
            let (qmp, shell) = (connect("qmp")?, connect("shell")?);
            Ok((Qmp::new(qmp)?, Shell::new(shell)?))
        })();
        match connected {
            Ok((qmp, shell)) => Ok(Running { qemu, qmp, shell }),
            Err(e) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                Err(e)
            }
        }
    }

    /// Switches it off as a power cut does. What it had in memory is lost, volumes keep what was written to them.
    pub fn power_off(&mut self) {
        self.running = None;
    }

    /// Makes a volume that is plugged in nowhere.
    ///
    /// # Errors
    /// Its file cannot be made.
    pub fn volume(&self, serial: &str, bytes: u64) -> Result<Volume> {
        let file = self.folder.join(format!("{serial}.volume"));
        File::create(&file)?.set_len(bytes)?;
        Ok(Volume {
            serial: serial.to_owned(),
            file,
        })
    }

    /// Gives the guest a volume: its kernel sees a new disk.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn plug(&mut self, volume: &Volume, bus: Bus) -> Result<Plugged> {
        self.plugs += 1;
        let plugged = Plugged {
            device: format!("disk{}", self.plugs),
            node: format!("file{}", self.plugs),
        };
        let slot = format!("slot{}", self.plugs % SLOTS);
        let qmp = &mut self.on()?.qmp;
        let file = json!({ "driver": "file", "filename": volume.file });
        qmp.execute(
            "blockdev-add",
            json!({ "node-name": plugged.node, "driver": "raw", "file": file }),
        )?;
        let (driver, place) = match bus {
            Bus::Scsi => ("scsi-hd", "scsi.0"),
            Bus::Nvme => ("nvme", &*slot),
            Bus::Virtio => ("virtio-blk-pci", &*slot),
        };
        let device = json!({
            "driver": driver, "id": plugged.device, "drive": plugged.node, "serial": volume.serial, "bus": place,
        });
        qmp.execute("device_add", device)?;
        Ok(plugged)
    }

    /// Unplugs a volume, whatever uses it, and waits until QEMU has released it too.
    ///
    /// # Errors
    /// QEMU refuses, or the guest's kernel keeps the device.
    pub fn pull(&mut self, plugged: Plugged) -> Result<()> {
        let qmp = &mut self.on()?.qmp;
        qmp.execute("device_del", json!({ "id": plugged.device }))?;
        qmp.await_deleted(&plugged.device)?;
        qmp.execute("blockdev-del", json!({ "node-name": plugged.node }))?;
        Ok(())
    }

    /// Runs a shell script as root and gives what it printed.
    ///
    /// # Errors
    /// An exit code other than 0, or no end within two minutes.
    pub fn run(&mut self, script: &str) -> Result<String> {
        let ran = self.on()?.shell.run(script)?;
        if ran.code != 0 {
            bail!(
                "{script}\nended with exit code {}:\n{}",
                ran.code,
                ran.output
            );
        }
        Ok(ran.output.trim_end().to_owned())
    }

    /// The last output of QEMU (`qemu`) or the guest's kernel (`console`).
    pub fn words(&self, of: &str) -> String {
        let log = fs::read(self.folder.join(of).with_extension("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "--- {of}\n{}",
            lines[lines.len().saturating_sub(25)..].join("\n")
        )
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn on(&mut self) -> Result<&mut Running> {
        self.running.as_mut().context("the guest is off")
    }
}
