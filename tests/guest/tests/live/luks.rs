//! An encrypted volume: what is mounted is not the disk.

use crate::scene::{LEVELS, Scene, mounts, places};
use reattach_tests_guest::Bus;

/// Makes the disk an encrypted one, fast and without udev, and opens it as /dev/mapper/crypt.
fn open(scene: &mut Scene, disk: &str) {
    scene.run(&format!(
        "set -e; export DM_DISABLE_UDEV=1; printf secret >/run/key
        cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/{disk} /run/key
        cryptsetup open --key-file /run/key /dev/{disk} crypt"
    ));
    scene.say("the volume is encrypted and open");
}

const CLOSE: &str = "DM_DISABLE_UDEV=1 cryptsetup close crypt";

#[test]
fn an_open_encrypted_volume_is_in_use_until_it_is_closed() {
    let mut scene = Scene::set();
    let volume = scene.volume("pvc0005");
    let (_, disk) = scene.plug(&volume, Bus::Scsi);
    open(&mut scene, &disk);
    // Nothing is mounted and no process has it: the holder alone shows.
    for level in LEVELS {
        let users = scene.users(level, &volume);
        assert_eq!(users.holders, ["dm-0"]);
        assert!(users.mounts.is_empty() && users.openers.is_empty(), "{users:?}");
        scene.await_inventory(level, "the holder", |seen| {
            seen.devices.iter().any(|d| d.users.holders == ["dm-0"])
        });
    }
    scene.publish(&volume, "/dev/mapper/crypt");
    let (staged, published) = places(&volume);
    for level in LEVELS {
        let users = scene.users(level, &volume);
        assert_eq!(users.holders, ["dm-0"]);
        assert!(users.mounts.contains(&staged) && users.mounts.contains(&published), "{users:?}");
    }
    scene.unpublish(&volume);
    for level in LEVELS {
        assert_eq!(scene.users(level, &volume).holders, ["dm-0"]);
    }
    scene.run(CLOSE);
    scene.assert_unused(&volume);
}

/// The device that is mounted is still in /sys, and below it nothing is left.
#[test]
fn a_disk_pulled_out_below_an_encrypted_mount_is_never_clean() {
    let mut scene = Scene::set();
    let volume = scene.volume("pvc0006");
    let (plugged, disk) = scene.plug(&volume, Bus::Scsi);
    open(&mut scene, &disk);
    scene.publish(&volume, "/dev/mapper/crypt");
    let (staged, published) = places(&volume);
    scene.pull(plugged, &disk);
    scene.await_success(
        "writes fail",
        &format!("! dd if=/dev/zero of={published}/data bs=4k count=4 conv=fsync"),
    );
    for level in LEVELS {
        let users = scene.users(level, &volume);
        assert!(users.mounts.contains(&staged) && users.mounts.contains(&published), "{users:?}");
        let seen = scene.await_inventory(level, "no disk", |seen| seen.devices.is_empty());
        assert_eq!(mounts(&seen, &volume).len(), 2, "{seen:#?}");
    }
    // It comes back, and the mapping still leads to the disk that went.
    scene.plug(&volume, Bus::Scsi);
    for level in LEVELS {
        assert!(scene.users(level, &volume).mounts.contains(&staged));
    }
    scene.unpublish(&volume);
    scene.run(CLOSE);
    scene.assert_unused(&volume);
}
