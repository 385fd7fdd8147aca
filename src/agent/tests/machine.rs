//! The real kernel under this test: what needs rights that are not there says so loudly and is not counted as seen.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use common::{LABEL, Tree, challenge, device, page83};
use reattach_agent::{HostRoot, answer, scan};
use reattach_core::guest::{DeviceUsers, Seen};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

#[test]
fn this_machine() {
    let root = HostRoot::new("/");
    let started = Instant::now();
    let inventory = scan(&root).unwrap();
    println!("scan of this machine: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(inventory.boot_id.as_str(), boot_id.trim());
    // The kernel computes btime from the wall clock: an adjustment in between may move it by a second.
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let btime: i64 =
        stat.lines().find_map(|line| line.strip_prefix("btime ")).unwrap().trim().parse().unwrap();
    assert!((inventory.booted_at.as_second() - btime).abs() <= 2, "{} {btime}", inventory.booted_at);
    for device in &inventory.devices {
        let number = fs::read_to_string(format!("/sys/block/{}/dev", device.kernel_name)).unwrap();
        assert_eq!(device.dev, number.trim());
    }
    assert_eq!(missing(&root), None);
}

/// A mount table or part of /sys that a scan could not read. Both are open to everybody: with or without rights, and
/// whatever comes and goes meanwhile, none may be missing.
fn missing(root: &HostRoot) -> Option<String> {
    let inventory = scan(root).unwrap();
    inventory.unreadable.into_iter().find(|item| item.contains("mountinfo") || item.contains("/sys/"))
}

#[test]
fn processes_that_end_meanwhile_are_no_gaps() {
    let root = HostRoot::new("/");
    let mut zombie = Command::new("true").spawn().unwrap();
    let stat = format!("/proc/{}/stat", zombie.id());
    while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
        std::thread::yield_now();
    }
    assert_eq!(missing(&root), None);
    zombie.wait().unwrap();

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                Command::new("true").status().unwrap();
            }
        });
        let found = (0..40).find_map(|_| missing(&root));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(found, None);
    });
}

/// A loop device over a file, torn down with everything on it when the test ends.
struct Disk {
    loops: Vec<String>,
    mounts: Vec<String>,
    children: Vec<Child>,
    folder: Tree,
}

impl Drop for Disk {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for mount in self.mounts.iter().rev() {
            let _ = Command::new("umount").arg(mount).stderr(Stdio::null()).status();
        }
        for device in self.loops.iter().rev() {
            let _ = Command::new("losetup").args(["-d", device]).status();
        }
    }
}

impl Disk {
    /// `None` where this machine gives no loop device.
    fn new() -> Option<Self> {
        let mut disk = Self { loops: vec![], mounts: vec![], children: vec![], folder: Tree::empty() };
        let image = disk.path("image");
        fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        disk.attach(&image).then_some(disk)
    }

    fn path(&self, name: &str) -> String {
        self.folder.0.join(name).display().to_string()
    }

    fn attach(&mut self, file: &str) -> bool {
        let made = Command::new("losetup").args(["-f", "--show", file]).output();
        let Some(made) = made.ok().filter(|made| made.status.success()) else { return false };
        self.loops.push(String::from_utf8(made.stdout).unwrap().trim().to_owned());
        true
    }

    fn run(&self, command: &[&str]) {
        let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts a shell and waits until it says that it is ready.
    fn shell(&mut self, wrapper: &[&str], script: &str) -> u32 {
        let mut command = wrapper.to_vec();
        command.extend(["sh", "-c", script]);
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

    fn end_shell(&mut self) {
        let mut child = self.children.pop().unwrap();
        let _ = child.stdin.take().unwrap().write_all(b"\n");
        let _ = child.wait();
    }

    /// A root whose /proc and /dev are the machine's and whose only identified disk is the loop device.
    fn root(&self) -> HostRoot {
        let name = self.loops[0].trim_start_matches("/dev/").to_owned();
        let tree = &self.folder;
        if !tree.0.join("proc").exists() {
            tree.link("proc", "/proc");
            tree.link("dev", "/dev");
            for entry in fs::read_dir("/sys/block").unwrap() {
                let other = entry.unwrap().file_name().into_string().unwrap();
                if other != name {
                    tree.link(&format!("sys/block/{other}"), Path::new("/sys/block").join(&other));
                }
            }
            for file in ["dev", "size"] {
                tree.file(
                    &format!("sys/block/{name}/{file}"),
                    fs::read(format!("/sys/block/{name}/{file}")).unwrap(),
                );
            }
            tree.link(&format!("sys/block/{name}/holders"), format!("/sys/block/{name}/holders"));
            tree.file(&format!("sys/block/{name}/device/vpd_pg83"), page83(&[(2, 0, LABEL.as_bytes())]));
            tree.link("sys/dev", "/sys/dev");
        }
        HostRoot::new(&tree.0)
    }

    fn users(&self) -> DeviceUsers {
        let name = self.loops[0].trim_start_matches("/dev/").to_owned();
        device(&scan(&self.root()).unwrap(), &name).users.clone()
    }
}

fn skip(what: &str) {
    // Straight to the file descriptor: the test harness hides what a passing test prints.
    let text = format!("SKIPPED real_block_device: {what}; nothing about a real device was tested\n");
    let _ = fs::write("/dev/stderr", text);
    assert!(std::env::var("CI").is_err(), "skipping is a failure when CI is set: {what}");
}

#[test]
fn real_block_device() {
    let Some(mut disk) = Disk::new() else {
        return skip("no loop device (needs root and losetup)");
    };
    let device = disk.loops[0].clone();
    let namespace = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
    if !namespace.is_ok_and(|status| status.success()) {
        return skip("no mount namespace of its own (needs CAP_SYS_ADMIN)");
    }
    assert_eq!(disk.users(), DeviceUsers::default());

    // Raw open, which open(O_EXCL) does not notice.
    let pid = disk.shell(&[], &format!("exec 9<{device}; echo ready; read x"));
    assert_eq!(disk.users().openers, [format!("{pid} sh")]);
    disk.end_shell();
    assert_eq!(disk.users(), DeviceUsers::default());

    // A loop over it, which neither open(O_EXCL) nor holders/ show; and one over that.
    assert!(disk.attach(&device));
    let second = disk.loops[1].clone();
    assert!(disk.attach(&second));
    let names: Vec<String> =
        disk.loops[1..].iter().map(|path| path.trim_start_matches("/dev/").to_owned()).collect();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(disk.users().loops, sorted);
    for path in [disk.loops.pop().unwrap(), disk.loops.pop().unwrap()] {
        disk.run(&["losetup", "-d", &path]);
    }

    // Mounted in a private mount namespace only.
    disk.run(&["mkfs.ext2", "-q", &device]);
    let point = disk.path("with space");
    fs::create_dir(&point).unwrap();
    let pid = disk.shell(
        &["unshare", "-m"],
        &format!("mount {device} '{point}' && echo ready; read x; umount '{point}'"),
    );
    assert_eq!(disk.users().mounts, [format!("{point} (mount namespace of {pid} sh)")]);
    let now = jiff::Timestamp::UNIX_EPOCH;
    let seen = answer(&disk.root(), &challenge("r", 1), now).unwrap().seen;
    assert!(matches!(&seen, Seen::InUse { users } if users.mounts.len() == 1), "{seen:?}");
    disk.end_shell();
    assert_eq!(disk.users().mounts, Vec::<String>::new());

    // Lazily unmounted with a file open: no mount table shows it.
    disk.run(&["mount", &device, &point]);
    disk.mounts.push(point.clone());
    assert_eq!(disk.users().mounts, std::slice::from_ref(&point));
    let pid = disk.shell(&[], &format!("exec 9>'{point}/file'; echo ready; read x"));
    disk.run(&["umount", "-l", &point]);
    assert_eq!(disk.users(), DeviceUsers { openers: vec![format!("{pid} sh")], ..DeviceUsers::default() });
    disk.end_shell();
    assert_eq!(disk.users(), DeviceUsers::default());
}
