//! Scans of host trees with one situation each.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use reattach_core::guest::{DeviceUsers, GuestInventory, GuestMount, ScanResult};
use std::fs;

fn seen(tree: &Tree) -> ScanResult {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let answer = answer(&tree.root(), &challenge("r1", 7), now).unwrap();
    assert_eq!(
        (
            answer.recovery.as_str(),
            answer.epoch,
            answer.identity.serial.as_str()
        ),
        ("r1", 7, LABEL)
    );
    assert_eq!((answer.boot_id.as_str(), answer.scanned_at), (BOOT, now));
    answer.seen
}

fn users(tree: &Tree) -> DeviceUsers {
    let inventory = tree.scan();
    assert_eq!(inventory.unreadable, Vec::<String>::new());
    device(&inventory, "sda").users.clone()
}

fn in_use(tree: &Tree) -> DeviceUsers {
    match seen(tree) {
        ScanResult::InUse { users } => users,
        other => panic!("{other:?}"),
    }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|entry| (*entry).to_owned()).collect()
}

#[test]
fn clean_node() {
    let tree = Tree::with_volume();
    let inventory = tree.scan();
    assert_eq!(inventory.boot_id.as_str(), BOOT);
    assert_eq!(inventory.booted_at.as_second(), 1_752_192_000);
    assert_eq!(inventory.unreadable, Vec::<String>::new());
    // The root disk has no identity and is left out.
    assert_eq!(inventory.devices.len(), 1);
    let sda = device(&inventory, "sda");
    assert_eq!(
        (
            sda.dev.as_str(),
            sda.identity.serial.as_str(),
            sda.size_bytes
        ),
        ("8:0", LABEL, 1 << 20)
    );
    assert!(sda.users.is_empty());
    assert_eq!(inventory.csi_volumes, []);
    assert_eq!(seen(&tree), ScanResult::Idle);
    assert_eq!(tree.scan(), inventory);
}

#[test]
fn staged_and_published_volume() {
    let tree = Tree::with_volume();
    tree.csi_folders();
    tree.csi_mounts("8:0", "/dev/sda");
    let inventory = tree.scan();
    let mounts = [
        format!("{}/globalmount", staging()),
        format!("{}/mount", publish()),
    ];
    let mut sorted = mounts.to_vec();
    sorted.sort();
    assert_eq!(
        device(&inventory, "sda").users,
        DeviceUsers {
            mounts: sorted.clone(),
            ..DeviceUsers::default()
        }
    );
    assert_eq!(inventory.csi_volumes.len(), 1);
    let volume = &inventory.csi_volumes[0];
    assert_eq!(
        (volume.driver.as_str(), volume.handle.as_str()),
        (DRIVER, HANDLE)
    );
    assert_eq!(volume.pv.as_ref().map(|pv| pv.as_str()), Some(PV));
    assert_eq!(
        volume
            .pods
            .iter()
            .map(|pod| pod.as_str())
            .collect::<Vec<_>>(),
        [POD]
    );
    let mount = |path: &String| GuestMount {
        path: path.clone(),
        dev: "8:0".to_owned(),
        dead: false,
        read_only: false,
    };
    assert_eq!(volume.mounts, sorted.iter().map(mount).collect::<Vec<_>>());
    assert_eq!(in_use(&tree).mounts, sorted);
}

#[test]
fn mounted_in_another_mount_namespace_only() {
    let tree = Tree::with_volume();
    tree.process(
        77,
        "redis-server",
        &["5 4 8:0 / /data rw - ext4 /dev/sda rw"],
    );
    // A second process of the same namespace adds nothing, whether the link can be read or not.
    for pid in [77, 78] {
        tree.process(
            pid,
            "redis-server",
            &["5 4 8:0 / /data rw - ext4 /dev/sda rw"],
        );
        tree.link(&format!("proc/{pid}/ns/mnt"), "mnt:[4026532001]");
    }
    tree.process(79, "sh", &["5 4 8:0 / /data rw - ext4 /dev/sda rw"]);
    let expected = strings(&["/data (mount namespace of 77 redis-server)"]);
    assert_eq!(users(&tree).mounts, expected);
    assert_eq!(in_use(&tree).mounts, expected);
}

#[test]
fn a_thread_may_have_a_namespace_of_its_own() {
    let tree = Tree::with_volume();
    tree.process(77, "runner", &["5 4 254:0 / / rw - ext4 /dev/vda rw"]);
    tree.link("proc/77/ns/mnt", "mnt:[1]");
    tree.link("proc/77/task/77/ns/mnt", "mnt:[1]");
    tree.link("proc/77/task/80/ns/mnt", "mnt:[2]");
    tree.file(
        "proc/77/task/80/mountinfo",
        "6 5 8:0 / /private rw - ext4 /dev/sda rw\n",
    );
    assert_eq!(
        users(&tree).mounts,
        strings(&["/private (mount namespace of 77 runner)"])
    );
}

#[test]
fn containers_do_not_change_the_unasked_report() {
    let tree = Tree::with_volume();
    tree.csi_folders();
    tree.csi_mounts("8:0", "/dev/sda");
    let before = tree.scan();
    tree.process(
        77,
        "redis-server",
        &["5 4 8:0 / /data rw - ext4 /dev/sda rw"],
    );
    // A DaemonSet's pod that sees the host's / below /host.
    let below = format!(
        "6 4 8:0 / /host{}/globalmount rw - ext4 /dev/sda rw",
        staging()
    );
    tree.process(78, "reattach-agent", &[&below]);
    assert_eq!(tree.scan(), before);
    let asked = in_use(&tree).mounts;
    assert!(
        asked.contains(&"/data (mount namespace of 77 redis-server)".to_owned()),
        "{asked:?}"
    );
}

#[test]
fn phantom_with_kubelets_folders_kept() {
    let tree = Tree::host();
    tree.csi_folders();
    let inventory = tree.scan();
    assert_eq!(inventory.devices, []);
    assert_eq!(inventory.csi_volumes.len(), 1);
    assert_eq!(inventory.csi_volumes[0].mounts, []);
    assert_eq!(inventory.unreadable, Vec::<String>::new());
    assert_eq!(seen(&tree), ScanResult::NoDevice);
}

#[test]
fn phantom_on_a_reimaged_disk() {
    let tree = Tree::host();
    fs::remove_dir_all(tree.0.join("var")).unwrap();
    let inventory = tree.scan();
    let GuestInventory {
        devices,
        csi_volumes,
        unreadable,
        ..
    } = inventory;
    assert_eq!(
        (devices.len(), csi_volumes.len(), unreadable.len()),
        (0, 0, 0)
    );
    assert_eq!(seen(&tree), ScanResult::NoDevice);
}

#[test]
fn dead_mount() {
    let tree = Tree::host();
    tree.csi_folders();
    tree.csi_mounts("8:0", "/dev/sda");
    // A container's mount of the vanished device.
    tree.process(
        77,
        "redis-server",
        &["5 4 8:0 / /data rw - ext4 /dev/sda rw"],
    );
    let inventory = tree.scan();
    assert_eq!(inventory.devices, []);
    assert_eq!(inventory.csi_volumes[0].mounts.len(), 2);
    assert!(
        inventory.csi_volumes[0]
            .mounts
            .iter()
            .all(|mount| mount.dead && mount.dev == "8:0")
    );
    let mut paths = vec![
        "/data (mount namespace of 77 redis-server)".to_owned(),
        format!("{}/globalmount", staging()),
        format!("{}/mount", publish()),
    ];
    paths.sort();
    assert_eq!(seen(&tree), ScanResult::DeadMount { paths });
    // Known to the kernel although not in /sys/block (removal not finished): not dead.
    tree.dir("sys/dev/block/8:0");
    assert!(
        tree.scan().csi_volumes[0]
            .mounts
            .iter()
            .all(|mount| !mount.dead)
    );
    assert_eq!(in_use(&tree).mounts.len(), 2);
}

#[test]
fn a_dead_mount_in_another_namespace_only_is_seen() {
    let tree = Tree::host();
    tree.csi_folders();
    let below = format!(
        "6 4 8:0 / /host{}/globalmount rw - ext4 /dev/sda rw",
        staging()
    );
    tree.process(78, "exporter", &[&below]);
    let path = format!(
        "/host{}/globalmount (mount namespace of 78 exporter)",
        staging()
    );
    let mount = GuestMount {
        path: path.clone(),
        dev: "8:0".to_owned(),
        dead: true,
        read_only: false,
    };
    assert_eq!(tree.scan().csi_volumes[0].mounts, [mount]);
    assert_eq!(seen(&tree), ScanResult::DeadMount { paths: vec![path] });
}

#[test]
fn dead_mount_whose_folders_were_removed() {
    let tree = Tree::host();
    tree.mount(&format!(
        "90 22 8:0 / {}/globalmount rw - ext4 /dev/sda rw",
        staging()
    ));
    // The hash in the path still identifies the volume.
    assert_eq!(
        seen(&tree),
        ScanResult::DeadMount {
            paths: vec![format!("{}/globalmount", staging())]
        }
    );
    assert_eq!(tree.scan().unreadable.len(), 1);
}

#[test]
fn an_old_dead_mount_is_seen_beside_the_devices_new_number() {
    let tree = Tree::host();
    tree.disk("sdb", "8:16", LABEL);
    tree.csi_folders();
    tree.csi_mounts("8:0", "/dev/sda");
    let expected = [
        format!("{}/globalmount (dead)", staging()),
        format!("{}/mount (dead)", publish()),
    ];
    let mut mounts = in_use(&tree).mounts;
    mounts.sort_by_key(|mount| mount.contains("/pods/"));
    assert_eq!(mounts, expected);
}

#[test]
fn a_kubelet_mount_of_another_device_is_in_use() {
    let tree = Tree::host();
    tree.csi_folders();
    tree.disk("sdb", "8:16", "another");
    tree.csi_mounts("8:16", "/dev/sdb");
    assert_eq!(in_use(&tree).mounts.len(), 2);
}

#[test]
fn a_tenants_own_mounts_are_no_user_of_a_volume() {
    let tree = Tree::with_volume();
    tree.csi_folders();
    let before = tree.scan();
    let staged = format!(
        "6 4 0:70 / {}/globalmount rw - tmpfs /dev/sda rw",
        staging()
    );
    tree.process(
        77,
        "tenant",
        &["5 4 0:70 / /x rw - tmpfs /dev/sda rw", &staged],
    );
    assert_eq!(tree.scan(), before);
    assert_eq!(seen(&tree), ScanResult::Idle);
}

#[test]
fn an_unexplained_csi_mount_is_no_answer() {
    let tree = Tree::host();
    tree.mount(&format!(
        "91 22 0:99 / {}/mount rw - fuse.some some rw",
        publish()
    ));
    assert!(
        matches!(seen(&tree), ScanResult::Unreadable { items } if items[0].contains(&publish()))
    );
    // The mount of an existing device with another identity is not ours.
    let tree = Tree::host();
    tree.disk("sdb", "8:16", "another");
    tree.mount(&format!(
        "91 22 8:16 / {}/mount rw - ext4 /dev/sdb rw",
        publish()
    ));
    assert_eq!(seen(&tree), ScanResult::NoDevice);
}

#[test]
fn loops_over_the_device_recursively() {
    let tree = Tree::with_volume();
    for (name, dev, backing) in [("loop0", "7:0", "/dev/sda"), ("loop1", "7:1", "/dev/loop0")] {
        tree.virtual_device(name, dev);
        tree.file(
            &format!("sys/block/{name}/loop/backing_file"),
            format!("{backing}\n"),
        );
    }
    tree.virtual_device("loop2", "7:2");
    assert_eq!(
        users(&tree),
        DeviceUsers {
            loops: strings(&["loop0", "loop1"]),
            ..DeviceUsers::default()
        }
    );
    tree.mount("95 22 7:1 / /srv ro - ext4 /dev/loop1 ro");
    assert_eq!(users(&tree).mounts, strings(&["/srv"]));
    assert_eq!(in_use(&tree).loops, strings(&["loop0", "loop1"]));
}

#[test]
fn loop_over_a_file_on_the_device_and_over_kubelets_bind_of_it() {
    let tree = Tree::with_volume();
    tree.mount("95 22 8:0 / /srv rw - ext4 /dev/sda rw");
    tree.virtual_device("loop0", "7:0");
    tree.file(
        "sys/block/loop0/loop/backing_file",
        "/srv/disk.img (deleted)\n",
    );
    assert_eq!(users(&tree).loops, strings(&["loop0"]));

    let tree = Tree::with_volume();
    let bind =
        format!("/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/{PV}/{POD}");
    tree.mount(&format!("95 22 0:6 /sda {bind} rw - devtmpfs udev rw"));
    tree.file(
        &format!("var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/{PV}/data/vol_data.json"),
        format!(r#"{{"driverName":"{DRIVER}","volumeHandle":"{HANDLE}","specVolID":"{PV}"}}"#),
    );
    tree.dir(&bind[1..]);
    tree.virtual_device("loop0", "7:0");
    tree.file("sys/block/loop0/loop/backing_file", format!("{bind}\n"));
    let users = users(&tree);
    assert_eq!(
        (users.loops, users.mounts),
        (strings(&["loop0"]), vec![bind])
    );
    let volume = &tree.scan().csi_volumes[0];
    assert_eq!(volume.pods[0].as_str(), POD);
    assert!(!volume.mounts[0].dead);
}

#[test]
fn holders_recursively_and_on_partitions() {
    let tree = Tree::with_volume();
    tree.file("sys/block/sda/sda1/dev", "8:1\n");
    tree.file("sys/block/sda/sda1/size", "8\n");
    tree.dir("sys/block/sda/sda1/holders/dm-0");
    tree.virtual_device("dm-0", "252:0");
    tree.file("sys/block/dm-0/dm/name", "luks-data\n");
    tree.dir("sys/block/dm-0/holders/dm-1");
    tree.virtual_device("dm-1", "252:1");
    assert_eq!(users(&tree).holders, strings(&["dm-0", "dm-1"]));
    tree.mount("95 22 252:1 / /srv rw - xfs /dev/mapper/vg-lv rw");
    tree.mount("96 22 0:50 / /btrfs rw - btrfs /dev/mapper/luks-data rw,subvol=/");
    assert_eq!(users(&tree).mounts, strings(&["/btrfs", "/srv"]));
    tree.file("sys/fs/btrfs/0b-1c/devices/dm-1", "");
    assert_eq!(
        in_use(&tree).holders,
        strings(&["btrfs:0b-1c", "dm-0", "dm-1"])
    );
}

#[test]
fn raw_opener_by_its_link_in_proc() {
    let tree = Tree::with_volume();
    tree.process(99, "dd", &[]);
    tree.link("proc/99/fd/0", "pipe:[123]");
    tree.link("proc/99/fd/3", "/dev/sda");
    tree.process(98, "blkid", &[]);
    tree.link("proc/98/fd/4", "/dev/sda (deleted)");
    tree.process(97, "cat", &[]);
    tree.link("proc/97/fd/3", "/dev/sdab");
    assert_eq!(users(&tree).openers, strings(&["98 blkid", "99 dd"]));
    assert_eq!(in_use(&tree).openers, strings(&["98 blkid", "99 dd"]));
}

#[test]
fn swap_on_the_device() {
    let tree = Tree::with_volume();
    tree.file("sys/block/sda/sda2/dev", "8:2\n");
    let head = "Filename\t\tType\t\tSize\tUsed\tPriority\n";
    tree.file("proc/swaps", head);
    assert!(!users(&tree).swap);
    tree.file(
        "proc/swaps",
        format!("{head}/dev/sda2    partition\t4\t0\t-2\n/swapfile   file\t4\t0\t-3\n"),
    );
    assert!(users(&tree).swap);
    assert!(in_use(&tree).swap);
    // An unknown swap device could be the device of the challenge.
    tree.file(
        "proc/swaps",
        format!("{head}/dev/zz    partition\t4\t0\t-2\n"),
    );
    assert!(matches!(seen(&tree), ScanResult::Unreadable { .. }));
}

#[test]
fn octal_escapes_in_mount_points() {
    let tree = Tree::with_volume();
    tree.mount(r"95 22 8:0 / /my\040data\134x rw - ext4 /dev/sda rw");
    assert_eq!(users(&tree).mounts, strings(&[r"/my data\x"]));
}

#[test]
fn identity_without_page_83() {
    let tree = Tree::host();
    tree.virtual_device("nvme0n1", "259:0");
    tree.file("sys/block/nvme0n1/device/serial", "vol0123456789abcdef0\n");
    tree.virtual_device("vdb", "254:16");
    tree.file("sys/block/vdb/serial", "virtio-serial");
    tree.virtual_device("sdc", "8:32");
    tree.file("sys/block/sdc/device/vpd_pg80", b"\0\x80\0\x06PG80-C");
    // A single path of a multipath namespace has no device number.
    tree.file("sys/block/nvme0c0n1/hidden", "1\n");
    let inventory = tree.scan();
    let seen: Vec<_> = inventory
        .devices
        .iter()
        .map(|d| (d.kernel_name.as_str(), d.identity.serial.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            ("nvme0n1", "vol0123456789abcdef0"),
            ("sdc", "PG80-C"),
            ("vdb", "virtio-serial")
        ]
    );
    assert_eq!(inventory.unreadable, Vec::<String>::new());
}

#[test]
fn a_challenge_finds_a_device_by_any_of_its_names() {
    let tree = Tree::host();
    tree.disk("sda", "8:0", "some-other-name");
    tree.file("sys/block/sda/device/serial", LABEL);
    assert_eq!(seen(&tree), ScanResult::Idle);
}

#[test]
fn a_malformed_page_is_unreadable_never_no_device() {
    let tree = Tree::with_volume();
    tree.file("sys/block/sda/device/vpd_pg83", b"\0\x83\0\xffshort");
    let inventory = tree.scan();
    assert_eq!(inventory.devices, []);
    assert_eq!(inventory.unreadable.len(), 1);
    assert!(
        inventory.unreadable[0].starts_with("/sys/block/sda/device/vpd_pg83: malformed"),
        "{inventory:?}"
    );
    assert!(matches!(seen(&tree), ScanResult::Unreadable { .. }));
}

#[test]
fn unreadable_items_are_no_answer_but_hide_no_user() {
    // A folder where a file should be: reading it fails for root too (EISDIR).
    let broken: [(&str, &str); 5] = [
        ("sys/block/sdz/dev", "/sys/block/sdz/dev"),
        ("proc/50/mountinfo", "/proc/50/mountinfo"),
        ("proc/swaps", "/proc/swaps"),
        (
            "sys/block/sda/device/vpd_pg80",
            "/sys/block/sda/device/vpd_pg80",
        ),
        (
            "var/lib/kubelet/pods/p/volumes/kubernetes.io~csi/v/vol_data.json",
            "/var/lib/kubelet/pods/p/volumes",
        ),
    ];
    for (folder, item) in broken {
        let tree = Tree::with_volume();
        tree.dir(folder);
        let ScanResult::Unreadable { items } = seen(&tree) else {
            panic!("{folder}: {:?}", seen(&tree))
        };
        assert!(items.len() == 1 && items[0].starts_with(item), "{items:?}");
        assert_eq!(tree.scan().unreadable, items);
        tree.mount("95 22 8:0 / /srv rw - ext4 /dev/sda rw");
        assert_eq!(in_use(&tree).mounts, strings(&["/srv"]), "{folder}");
    }
}

#[test]
fn malformed_files_are_unreadable() {
    let nonsense = [
        ("sys/block/sda/dev", "eight\n"),
        ("sys/block/sda/size", "-\n"),
        ("proc/1/mountinfo", "not a table\n"),
        ("proc/swaps", "Filename\nhalf\n"),
        (
            "var/lib/kubelet/pods/p/volumes/kubernetes.io~csi/v/vol_data.json",
            "{",
        ),
        (
            "var/lib/kubelet/pods/p/volumes/kubernetes.io~csi/v/vol_data.json",
            "{}",
        ),
    ];
    for (file, content) in nonsense {
        let tree = Tree::with_volume();
        tree.file(file, content);
        assert!(
            matches!(seen(&tree), ScanResult::Unreadable { .. }),
            "{file}: {:?}",
            seen(&tree)
        );
    }
}

/// kubelet rewrites the file in place, several times a second for a raw block volume that it cannot map.
#[test]
fn a_file_that_kubelet_rewrites_is_read_again() {
    let tree = Tree::with_volume();
    let file = "var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/pv-1/data/vol_data.json";
    let whole = format!(r#"{{"driverName":"{DRIVER}","volumeHandle":"{HANDLE}"}}"#);
    tree.file(file, &whole);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // The file is empty for a third of the time, as was measured.
                tree.file(file, "");
                std::thread::sleep(std::time::Duration::from_millis(3));
                tree.file(file, &whole);
                std::thread::sleep(std::time::Duration::from_millis(6));
            }
        });
        let found: Vec<_> = (0..100).map(|_| tree.scan().unreadable).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let broken: Vec<_> = found.iter().flatten().collect();
        assert!(broken.is_empty(), "{broken:?}");
    });
}

#[test]
fn an_incomplete_host_root_gives_no_answer() {
    for missing in ["sys/block", "proc/1/mountinfo"] {
        let tree = Tree::host();
        let path = tree.0.join(missing);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        assert!(
            matches!(seen(&tree), ScanResult::Unreadable { .. }),
            "{missing}"
        );
    }
    let tree = Tree::host();
    fs::remove_file(tree.0.join("proc/sys/kernel/random/boot_id")).unwrap();
    let error = scan(&tree.root()).unwrap_err().to_string();
    assert!(
        error.contains("boot ID") && error.contains("boot_id"),
        "{error}"
    );
    let tree = Tree::host();
    tree.file("proc/stat", "cpu 1\n");
    let error = scan(&tree.root()).unwrap_err().to_string();
    assert!(error.contains("btime"), "{error}");
}

#[test]
fn long_lists_are_cut_with_a_mark() {
    let tree = Tree::with_volume();
    for n in 10..40 {
        tree.mount(&format!("{n} 22 8:0 / /srv/{n} rw - ext4 /dev/sda rw"));
        tree.dir(&format!("sys/block/sd{n}/dev"));
    }
    let inventory = tree.scan();
    assert_eq!(device(&inventory, "sda").users.mounts.len(), 16);
    assert_eq!(inventory.unreadable.len(), 16);
    assert_eq!(inventory.unreadable[15], "and more");
}

#[test]
fn kubelets_folder_behind_an_absolute_link_of_the_host() {
    let tree = Tree::with_volume();
    tree.csi_folders();
    fs::rename(tree.0.join("var/lib/kubelet"), tree.0.join("kubelet-data")).unwrap();
    tree.link("var/lib/kubelet", "/kubelet-data");
    let inventory = tree.scan();
    assert_eq!(inventory.csi_volumes.len(), 1);
    let tree = Tree::with_volume();
    tree.link("a", "/b");
    tree.link("b", "/a");
    let inventory = scan(&tree.root().with_kubelet_root("/a")).unwrap();
    assert!(
        inventory.unreadable[0].contains("too many symbolic links"),
        "{inventory:?}"
    );
}
