//! A real block device for one test, in its own process and mount namespaces. They contain no other processes and mounts,
//! and end with the test.

use super::{LABEL, Tree, answer, challenge, device, page83, scan};
use reattach_agent::guest::Counters;
use reattach_agent::{HostRoot, Scan};
use reattach_core::guest::{DeviceUsers, Level, ScanResult};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Lock file of the tests with a disk.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
/// Variable that marks the process in the namespaces.
const INSIDE: &str = "REATTACH_TEST_INSIDE";

/// Runs the body of the test with that name on its own disk. Prints that it is skipped if rights are missing.
pub fn on_a_disk(test: &str, body: impl FnOnce(&mut Disk)) {
    if std::env::var_os(INSIDE).is_some() {
        body(&mut Disk::new().expect("a loop device"));
        return;
    }
    let namespaces = [
        "-m",
        "-p",
        "-f",
        "--kill-child",
        "--mount-proc",
        "--propagation",
        "private",
    ];
    let probe = "mkdir -p /run && d=$(losetup -f) && test -b $d";
    let can = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-c", probe])
        .stderr(Stdio::null())
        .status();
    if !can.is_ok_and(|status| status.success()) {
        return skip(
            test,
            "no loop device or no namespaces (needs root and losetup)",
        );
    }
    // Process numbers of the namespace are not unique outside, so the name of the folder is made here.
    let folder = Tree::empty();
    // One at a time: swap areas and loop devices are shared by all namespaces of the machine.
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let inside = Command::new("unshare")
        .args(namespaces)
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            test,
            "--include-ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(INSIDE, "1")
        .env("TMPDIR", &folder.0)
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&inside.stdout),
        String::from_utf8_lossy(&inside.stderr)
    );
    assert!(
        inside.status.success() && said.contains("1 passed"),
        "{said}"
    );
    if let Some(line) = said.lines().find(|line| line.starts_with("SKIPPED")) {
        let _ = fs::write("/dev/stderr", format!("{line}\n"));
    }
}

/// Prints that a test tested nothing.
pub fn skip(test: &str, why: &str) {
    // Directly to the file descriptor: the test harness hides the output of a passing test.
    let _ = fs::write(
        "/dev/stderr",
        format!("SKIPPED {test}: {why}; nothing was tested\n"),
    );
    assert!(
        std::env::var("CI").is_err(),
        "skipping is a failure when CI is set: {test}: {why}"
    );
}

/// A loop device over a file, torn down with everything on it when the test ends.
pub struct Disk {
    pub loops: Vec<String>,
    children: Vec<Child>,
    folder: Tree,
}

impl Drop for Disk {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for device in self.loops.iter().rev() {
            let _ = Command::new("swapoff")
                .arg(device)
                .stderr(Stdio::null())
                .status();
            // Of any mount that is left the kernel detaches it at the end of the namespace.
            let _ = Command::new("losetup").args(["-d", device]).status();
        }
    }
}

impl Disk {
    fn new() -> Option<Self> {
        let mut disk = Self {
            loops: vec![],
            children: vec![],
            folder: Tree::empty(),
        };
        let image = disk.path("image");
        fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        disk.attach(&image).then_some(disk)
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.0.join(name).display().to_string()
    }

    /// `/dev/loopN`.
    pub fn device(&self) -> String {
        self.loops[0].clone()
    }

    /// `loopN` of that device.
    pub fn name(device: &str) -> String {
        device.trim_start_matches("/dev/").to_owned()
    }

    pub fn attach(&mut self, file: &str) -> bool {
        let made = Command::new("losetup")
            .args(["-f", "--show", file])
            .output();
        let Some(made) = made.ok().filter(|made| made.status.success()) else {
            return false;
        };
        self.loops
            .push(String::from_utf8(made.stdout).unwrap().trim().to_owned());
        true
    }

    pub fn detach_last(&mut self) {
        let device = self.loops.pop().unwrap();
        self.run(&["losetup", "-d", &device]);
    }

    pub fn run(&self, command: &[&str]) {
        let output = Command::new(command[0])
            .args(&command[1..])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// A filesystem on the device, mounted in this namespace at the returned place.
    pub fn mounted(&self) -> String {
        self.format();
        let point = self.path("point");
        self.run(&["mount", &self.device(), &point]);
        point
    }

    /// A filesystem on the device, and a folder to mount it at.
    pub fn format(&self) {
        self.run(&["mkfs.ext2", "-q", &self.device()]);
        fs::create_dir(self.path("point")).unwrap();
    }

    /// Starts a program and waits until it reports that it is ready.
    pub fn start(&mut self, command: &[&str]) -> u32 {
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        assert_eq!(&said, b"ready\n");
        self.children.push(child);
        self.children.last().unwrap().id()
    }

    /// Ends the first of the started programs that has not ended.
    pub fn end(&mut self) {
        let mut child = self.children.remove(0);
        let _ = child.stdin.take().unwrap().write_all(b"\n");
        let _ = child.wait();
    }

    /// A root whose /proc and /dev are this namespace's and whose only identified disk is the loop device.
    pub fn root(&self) -> HostRoot {
        let name = Self::name(&self.loops[0]);
        let tree = &self.folder;
        if !tree.0.join("proc").exists() {
            tree.link("proc", "/proc");
            tree.link("dev", "/dev");
            tree.link("sys/dev", "/sys/dev");
            for file in ["dev", "size"] {
                let path = format!("sys/block/{name}/{file}");
                tree.file(&path, fs::read(Path::new("/").join(&path)).unwrap());
            }
            for file in ["holders", "stat", "inflight"] {
                let path = format!("sys/block/{name}/{file}");
                tree.link(&path, Path::new("/").join(&path));
            }
            tree.file(
                &format!("sys/block/{name}/device/vpd_pg83"),
                page83(&[(2, 0, LABEL.as_bytes())]),
            );
        }
        // Loops of other tests come and go, and have nothing to do with this one.
        for entry in fs::read_dir("/sys/block").unwrap() {
            let other = entry.unwrap().file_name().into_string().unwrap();
            let is_ours = self.loops[1..].contains(&format!("/dev/{other}"));
            let place = tree.0.join("sys/block").join(&other);
            if other != name
                && (is_ours || !other.starts_with("loop"))
                && fs::symlink_metadata(&place).is_err()
            {
                tree.link(
                    &format!("sys/block/{other}"),
                    Path::new("/sys/block").join(&other),
                );
            }
        }
        HostRoot::new(&tree.0)
    }

    /// Returns the device's users in the inventory.
    pub fn users(&self) -> DeviceUsers {
        device(&scan(&self.root()).unwrap(), &Self::name(&self.loops[0]))
            .users
            .clone()
    }

    /// Returns the answer at this level.
    pub fn seen(&self, level: Level) -> ScanResult {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let answer = answer(&self.root().with_level(level), &challenge("r", 1), now).unwrap();
        assert_eq!(answer.level, level);
        answer.seen
    }

    /// Returns the users in the answer at this level.
    pub fn in_use(&self, level: Level) -> DeviceUsers {
        match self.seen(level) {
            ScanResult::InUse { users } => users,
            other => panic!("{level:?}: {other:?}"),
        }
    }

    /// Returns the answer when something happens between the two reads of the counters.
    pub fn seen_after(&self, happening: impl FnOnce(&Self)) -> ScanResult {
        let root = self.root().with_level(Level::Full);
        let before = Counters::read(&root);
        happening(self);
        let question = challenge("r", 1);
        let scan = Scan::for_challenges(&root, before, std::slice::from_ref(&question)).unwrap();
        scan.answer(&question, jiff::Timestamp::UNIX_EPOCH).seen
    }
}
