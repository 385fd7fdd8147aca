//! Users of a block device, on the kernel of this machine: each kind of user is found. Without a user the device is idle at
//! the basic level and clean at the full level.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use common::disk::{Disk, on_a_disk, skip};
use reattach_core::guest::{DeviceUsers, Level, ScanResult};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

const LEVELS: [Level; 2] = [Level::Basic, Level::Full];
/// Timeout for a disk to become free. On an idle machine this takes some milliseconds.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Checks that the inventory and the answers of both levels name exactly these users.
fn is_seen(disk: &mut Disk, expected: &DeviceUsers) {
    assert_eq!(disk.users(), *expected);
    for level in LEVELS {
        assert_eq!(disk.in_use(level), *expected);
    }
}

/// Checks that nothing uses the disk. The kernel unmounts a short time after the last process of a namespace has ended.
fn is_free(disk: &Disk) {
    let began = Instant::now();
    while disk.seen(Level::Full) != ScanResult::Clean && began.elapsed() < TIMEOUT {
        std::thread::yield_now();
    }
    assert_eq!(disk.users(), DeviceUsers::default());
    assert_eq!(disk.seen(Level::Basic), ScanResult::Idle);
    assert_eq!(disk.seen(Level::Full), ScanResult::Clean);
}

#[test]
fn an_unused_device_is_idle() {
    on_a_disk("an_unused_device_is_idle", |disk| is_free(disk));
}

#[test]
fn mounted_in_a_private_namespace_only() {
    on_a_disk("mounted_in_a_private_namespace_only", |disk| {
        disk.format();
        let (device, point) = (disk.device(), disk.path("point"));
        let script = format!("mount {device} {point} && echo ready; read x; umount {point}");
        let pid = disk.start(&["unshare", "-m", "sh", "-c", &script]);
        let expected = [format!("{point} (mount namespace of {pid} sh)")];
        assert_eq!(disk.users().mounts, expected);
        for level in LEVELS {
            assert_eq!(disk.in_use(level).mounts, expected);
        }
        disk.end();
        is_free(disk);
    });
}

#[test]
fn lazily_unmounted_with_an_open_file() {
    on_a_disk("lazily_unmounted_with_an_open_file", |disk| {
        let point = disk.mounted();
        assert_eq!(disk.users().mounts, std::slice::from_ref(&point));
        let pid = disk.start(&[
            "sh",
            "-c",
            &format!("exec 9>{point}/file; echo ready; read x"),
        ]);
        disk.run(&["umount", "-l", &point]);
        let expected = DeviceUsers {
            openers: vec![format!("{pid} sh")],
            ..DeviceUsers::default()
        };
        is_seen(disk, &expected);
        disk.end();
        is_free(disk);
    });
}

#[test]
fn lazily_unmounted_with_a_file_in_memory_only() {
    on_a_disk("lazily_unmounted_with_a_file_in_memory_only", |disk| {
        let loader = "/lib64/ld-linux-x86-64.so.2";
        if !std::fs::exists(loader).unwrap() {
            return skip(
                "lazily_unmounted_with_a_file_in_memory_only",
                "no loader of glibc for x86-64",
            );
        }
        let point = disk.mounted();
        // The loader maps the program: neither a descriptor nor the executable's link leads to it.
        disk.run(&["cp", "/bin/sh", &format!("{point}/sh")]);
        let pid = disk.start(&[loader, &format!("{point}/sh"), "-c", "echo ready; read x"]);
        disk.run(&["umount", "-l", &point]);
        for level in LEVELS {
            let users = disk.in_use(level);
            assert_eq!(users.openers.len(), 1, "{users:?}");
            assert!(
                users.openers[0].starts_with(&format!("{pid} ")),
                "{users:?}"
            );
        }
        disk.end();
        is_free(disk);
    });
}

/// An exclusive open does not detect this user.
#[test]
fn a_raw_opener_is_a_user() {
    on_a_disk("a_raw_opener_is_a_user", |disk| {
        let pid = disk.start(&[
            "sh",
            "-c",
            &format!("exec 9<{}; echo ready; read x", disk.device()),
        ]);
        let expected = DeviceUsers {
            openers: vec![format!("{pid} sh")],
            ..DeviceUsers::default()
        };
        is_seen(disk, &expected);
        disk.end();
        is_free(disk);
    });
}

/// Neither an exclusive open nor `holders/` shows a loop device, or one over it.
#[test]
fn loop_devices_are_users() {
    on_a_disk("loop_devices_are_users", |disk| {
        let device = disk.device();
        assert!(disk.attach(&device));
        let second = disk.loops[1].clone();
        assert!(disk.attach(&second));
        let mut names: Vec<String> = disk.loops[1..]
            .iter()
            .map(|device| Disk::name(device))
            .collect();
        names.sort();
        let expected = DeviceUsers {
            loops: names,
            ..DeviceUsers::default()
        };
        is_seen(disk, &expected);
        disk.detach_last();
        disk.detach_last();
        is_free(disk);
    });
}

#[test]
fn a_swap_area_is_a_user() {
    on_a_disk("a_swap_area_is_a_user", |disk| {
        let device = disk.device();
        disk.run(&["mkswap", &device]);
        disk.run(&["swapon", &device]);
        assert_eq!(
            disk.users(),
            DeviceUsers {
                swap: true,
                ..DeviceUsers::default()
            }
        );
        for level in LEVELS {
            assert!(disk.in_use(level).swap);
        }
        disk.run(&["swapoff", &device]);
        is_free(disk);
    });
}

/// Only an exclusive open detects the mount, because no process is in its namespace.
#[test]
fn mounted_in_a_namespace_without_a_process() {
    on_a_disk("mounted_in_a_namespace_without_a_process", |disk| {
        disk.format();
        let (device, point) = (disk.device(), disk.path("point"));
        let pid = disk.start(&[
            "unshare",
            "-m",
            "sh",
            "-c",
            &format!("mount {device} {point} && echo ready; read x"),
        ]);
        // A descriptor keeps the namespace when its last process ends.
        disk.start(&[
            "sh",
            "-c",
            &format!("exec 9</proc/{pid}/ns/mnt; echo ready; read x"),
        ]);
        disk.end();
        assert_eq!(disk.users(), DeviceUsers::default());
        assert_eq!(
            disk.seen(Level::Basic),
            ScanResult::Idle,
            "the basic level opens no device and cannot know"
        );
        assert_eq!(
            disk.in_use(Level::Full),
            DeviceUsers {
                claimed: true,
                ..DeviceUsers::default()
            }
        );
        disk.end();
        is_free(disk);
    });
}

#[test]
fn a_device_written_during_the_scan_is_in_use() {
    on_a_disk("a_device_written_during_the_scan_is_in_use", |disk| {
        let write = |disk: &Disk| {
            let to = format!("of={}", disk.device());
            disk.run(&[
                "dd",
                "if=/dev/zero",
                &to,
                "bs=4096",
                "count=1",
                "oflag=direct",
            ]);
        };
        let active = DeviceUsers {
            active: true,
            ..DeviceUsers::default()
        };
        assert_eq!(disk.seen_after(write), ScanResult::InUse { users: active });
        assert_eq!(disk.seen_after(|_| ()), ScanResult::Clean);
    });
}

#[test]
fn a_running_program_on_the_volume_is_a_user() {
    on_a_disk("a_running_program_on_the_volume_is_a_user", |disk| {
        let program = disk.path("fsck.ext4");
        std::fs::write(&program, "#!/bin/sh\necho ready; read x\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let pid = disk.start(&[&program, "-y", &disk.device()]);
        for level in LEVELS {
            assert_eq!(disk.in_use(level).openers, [format!("{pid} fsck.ext4")]);
        }
        disk.end();
        // Its device is not known: there is no answer, and never "clean".
        disk.start(&[&program, "UUID=0a"]);
        assert_eq!(disk.seen(Level::Basic), ScanResult::Idle);
        let seen = disk.seen(Level::Full);
        assert!(
            matches!(&seen, ScanResult::Unreadable { items } if items[0].contains("fsck.ext4")),
            "{seen:?}"
        );
        disk.end();
        is_free(disk);
    });
}

#[test]
#[ignore = "needs a kernel with device mapper; run it with --ignored"]
fn a_device_mapper_target_is_a_user() {
    on_a_disk("a_device_mapper_target_is_a_user", |disk| {
        let name = format!("reattach-test-{}", Disk::name(&disk.device()));
        let table = format!("0 2048 linear {} 0", disk.device());
        let made = std::process::Command::new("dmsetup")
            .args(["create", &name, "--table", &table])
            .output();
        if !made.is_ok_and(|made| made.status.success()) {
            return skip(
                "a_device_mapper_target_is_a_user",
                "this kernel has no device mapper",
            );
        }
        let (users, seen) = (disk.users(), disk.seen(Level::Full));
        disk.run(&["dmsetup", "remove", &name]);
        assert!(
            users.holders.len() == 1 && users.holders[0].starts_with("dm-"),
            "{users:?}"
        );
        assert!(
            matches!(&seen, ScanResult::InUse { users } if users.holders.len() == 1),
            "{seen:?}"
        );
        is_free(disk);
    });
}
