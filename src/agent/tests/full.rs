//! The checks of the full level, on host trees with one situation each, and the answer when an item is missing.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use reattach_core::guest::{Level, ScanResult};
use std::fs;

fn seen(tree: &Tree, level: Level) -> ScanResult {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let answer = answer(&tree.root().with_level(level), &challenge("r1", 7), now).unwrap();
    assert_eq!(answer.level, level);
    answer.seen
}

fn openers(tree: &Tree, level: Level) -> Vec<String> {
    match seen(tree, level) {
        ScanResult::InUse { users } => users.openers,
        other => panic!("{other:?}"),
    }
}

/// Returns the reasons for which the full level does not answer "clean".
fn doubts(tree: &Tree) -> Vec<String> {
    match seen(tree, Level::Full) {
        ScanResult::Unreadable { items } => items,
        other => panic!("{other:?}"),
    }
}

/// A volume with working counters. Its device node is an ordinary file here, so the last step, the open, must fail.
fn counted() -> Tree {
    let tree = Tree::with_volume();
    tree.file("sys/block/sda/stat", "1 0 8 0 2 0 16 0 0 0 0 0 0 0 0 0 0\n");
    tree.file("sys/block/sda/inflight", "       0        0\n");
    tree.file("sys/block/sda/device/state", "running\n");
    tree.file("dev/sda", "");
    tree
}

#[test]
fn an_absent_volume_is_no_device_at_both_levels() {
    for level in [Level::Basic, Level::Full] {
        assert_eq!(seen(&Tree::host(), level), ScanResult::NoDevice);
    }
    let inventory = scan(&Tree::host().root().with_level(Level::Full)).unwrap();
    assert_eq!(inventory.level, Level::Full);
}

#[test]
fn a_file_that_is_no_block_device_is_not_opened() {
    let tree = counted();
    assert_eq!(seen(&tree, Level::Basic), ScanResult::Idle);
    assert_eq!(doubts(&tree), ["/dev/sda: is not the device 8:0"]);
    fs::remove_file(tree.0.join("dev/sda")).unwrap();
    // A link to a real device with another number, which must not be followed.
    tree.link("dev/sda", "/dev/loop0");
    assert_eq!(doubts(&tree), ["/dev/sda: is not the device 8:0"]);
    fs::remove_file(tree.0.join("dev/sda")).unwrap();
    assert!(
        doubts(&tree)[0].starts_with("/dev/sda: No such file"),
        "{:?}",
        doubts(&tree)
    );
}

#[test]
fn counters_that_cannot_be_read_are_no_answer() {
    for file in ["stat", "inflight"] {
        let tree = counted();
        fs::remove_file(tree.0.join("sys/block/sda").join(file)).unwrap();
        assert!(
            doubts(&tree)[0].starts_with(&format!("/sys/block/sda/{file}: cannot be read")),
            "{file}"
        );
        tree.file(&format!("sys/block/sda/{file}"), "many\n");
        assert!(
            doubts(&tree)[0].contains("not what the kernel's manual says"),
            "{file}"
        );
        assert_eq!(seen(&tree, Level::Basic), ScanResult::Idle);
    }
}

#[test]
fn a_request_in_flight_is_a_user() {
    let tree = counted();
    tree.file("sys/block/sda/inflight", "       0        1\n");
    for level in [Level::Basic, Level::Full] {
        assert!(
            matches!(seen(&tree, level), ScanResult::InUse { users } if users.active),
            "{level:?}"
        );
    }
}

#[test]
fn a_device_whose_removal_is_not_finished_is_never_clean() {
    for state in ["offline", "cancel", "deleted", "transport-offline"] {
        let tree = counted();
        tree.file("sys/block/sda/device/state", format!("{state}\n"));
        assert_eq!(
            doubts(&tree),
            [format!(
                "/sys/block/sda/device/state: {state}, its removal is not finished"
            )]
        );
    }
}

#[test]
fn a_mapping_outlives_its_descriptor() {
    let tree = counted();
    tree.process(99, "db", &[]);
    let map = |dev: &str, path: &str| {
        format!("7f00-7f01 rw-s 00000000 {dev} 12                 {path}\n")
    };
    tree.file(
        "proc/99/maps",
        "7f00-7f01 rw-p 00000000 00:00 0 \n7f00-7f01 rw-p 00000000 00:00 0      [heap]\n",
    );
    assert_eq!(seen(&tree, Level::Basic), ScanResult::Idle);
    for (dev, path) in [("08:00", "/srv/data (deleted)"), ("00:05", "/dev/sda")] {
        tree.file("proc/99/maps", map(dev, path));
        assert_eq!(openers(&tree, Level::Basic), ["99 db"], "{path}");
    }
    tree.file("proc/99/maps", map("00:05", "/dev/zero"));
    assert_eq!(seen(&tree, Level::Basic), ScanResult::Idle);
    // A malformed file gives no answer.
    tree.file("proc/99/maps", "garbage\n");
    assert!(matches!(
        seen(&tree, Level::Basic),
        ScanResult::Unreadable { .. }
    ));
    // The inventory does not contain it: it would change with every process.
    assert_eq!(tree.scan().unreadable, Vec::<String>::new());
}

#[test]
fn a_thread_may_have_descriptors_of_its_own() {
    let tree = counted();
    tree.process(77, "runner", &[]);
    tree.link("proc/77/fd/0", "pipe:[1]");
    tree.link("proc/77/task/80/fd/3", "/dev/sda");
    assert_eq!(openers(&tree, Level::Full), ["77 runner"]);
}

#[test]
fn processes_left_by_the_volumes_pod_are_users() {
    for group in [
        "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0aa0_pod.slice/cri-1.scope\n",
        "3:pids:/kubepods/burstable/pod0aa0-pod/abc\n",
    ] {
        let tree = counted();
        tree.csi_folders();
        tree.process(55, "redis-server", &[]);
        tree.file(
            "proc/55/cgroup",
            "0::/kubepods.slice/kubepods-podffff.slice\n",
        );
        assert_eq!(seen(&tree, Level::Basic), ScanResult::Idle, "another pod's");
        tree.file("proc/55/cgroup", group);
        assert_eq!(
            openers(&tree, Level::Basic),
            [format!("55 redis-server (of pod {POD})")]
        );
        // An exiting process that waits for its last writes still counts; a zombie does not.
        tree.file("proc/55/stat", "55 (redis-server) D 1 1 1 0 -1 4");
        assert_eq!(openers(&tree, Level::Basic).len(), 1);
        tree.file("proc/55/stat", "55 (redis-server) Z 1 1 1 0 -1 4");
        assert_eq!(seen(&tree, Level::Basic), ScanResult::Idle);
        // Without a device there is nothing to write to.
        let gone = Tree::host();
        gone.csi_folders();
        gone.process(55, "redis-server", &[]);
        gone.file("proc/55/cgroup", group);
        assert_eq!(seen(&gone, Level::Full), ScanResult::NoDevice);
    }
}

#[test]
fn programs_at_work_by_device_and_by_place() {
    let tree = counted();
    tree.csi_folders();
    tree.process(60, "mount", &[]);
    tree.file(
        "proc/60/cmdline",
        format!("mount\0-t\0ext4\0/dev/vda\0{}/globalmount\0", staging()),
    );
    tree.process(61, "umount", &[]);
    tree.file("proc/61/cmdline", format!("umount\0{}/mount\0", publish()));
    tree.process(62, "mkfs.ext4", &[]);
    tree.file("proc/62/cmdline", "mkfs.ext4\0-F\0/dev/sda\0");
    tree.process(63, "mount", &[]);
    tree.file("proc/63/cmdline", "mount\0/dev/vda\0/mnt\0");
    tree.process(64, "tail", &[]);
    tree.file("proc/64/cmdline", "tail\0/dev/sda\0");
    assert_eq!(
        openers(&tree, Level::Basic),
        ["60 mount", "61 umount", "62 mkfs.ext4"]
    );
    for pid in [60, 61, 62] {
        fs::remove_dir_all(tree.0.join(format!("proc/{pid}"))).unwrap();
    }
    assert_eq!(seen(&tree, Level::Basic), ScanResult::Idle);
    tree.process(65, "fsck", &[]);
    tree.file("proc/65/cmdline", "fsck\0-A\0");
    assert_eq!(
        doubts(&tree),
        ["65 fsck: on which device it works is not known"]
    );
}

#[test]
fn a_loop_over_nothing_that_the_host_knows_is_never_clean() {
    let tree = counted();
    tree.virtual_device("loop0", "7:0");
    // A path in a container.
    tree.file("sys/block/loop0/loop/backing_file", "/dev/xvdz\n");
    assert_eq!(seen(&tree, Level::Basic), ScanResult::Idle);
    assert_eq!(
        doubts(&tree),
        ["/sys/block/loop0/loop/backing_file: nothing on the host is /dev/xvdz"]
    );
    tree.file("dev/xvdz", "a file after all");
    assert_eq!(
        doubts(&tree),
        ["/dev/sda: is not the device 8:0"],
        "only the open is left"
    );
}

#[test]
fn a_network_block_device_stands_for_what_its_process_has_open() {
    let tree = counted();
    tree.virtual_device("nbd0", "43:0");
    assert_eq!(seen(&tree, Level::Basic), ScanResult::Idle);
    tree.process(70, "qemu-nbd", &[]);
    tree.link("proc/70/fd/5", "/dev/sda");
    tree.file("sys/block/nbd0/pid", "70\n");
    tree.virtual_device("loop1", "7:1");
    tree.file("sys/block/loop1/loop/backing_file", "/dev/nbd0\n");
    tree.mount("95 22 7:1 / /srv ro - ext4 /dev/loop1 ro");
    let ScanResult::InUse { users } = seen(&tree, Level::Basic) else {
        panic!("{:?}", seen(&tree, Level::Basic))
    };
    assert_eq!(
        (users.loops, users.mounts),
        (
            vec!["loop1".to_owned(), "nbd0".to_owned()],
            vec!["/srv".to_owned()]
        )
    );
    tree.file("sys/block/nbd0/pid", "nobody\n");
    tree.process(70, "qemu-nbd", &[]);
    fs::remove_dir_all(tree.0.join("proc/70")).unwrap();
    fs::remove_dir_all(tree.0.join("sys/block/loop1")).unwrap();
    assert!(
        doubts(&tree)[0].starts_with("/sys/block/nbd0/pid: "),
        "{:?}",
        doubts(&tree)
    );
}
