//! An encrypted volume: what is mounted is not the disk.

use crate::fixture::{Fixture, LEVELS, mounts, places};
use reattach_tests_guest::Bus;

/// Makes the disk an encrypted one, fast and without udev, and opens it as /dev/mapper/crypt.
fn open(fixture: &mut Fixture, disk: &str) {
    fixture.run(&format!(
        "set -e; export DM_DISABLE_UDEV=1; printf secret >/run/key
        cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/{disk} /run/key
        cryptsetup open --key-file /run/key /dev/{disk} crypt"
    ));
    fixture.say("the volume is encrypted and open");
}

const CLOSE: &str = "DM_DISABLE_UDEV=1 cryptsetup close crypt";

#[test]
fn an_open_encrypted_volume_is_in_use_until_it_is_closed() {
    let mut fixture = Fixture::set();
    let volume = fixture.volume("pvc0005");
    let (_, disk) = fixture.plug(&volume, Bus::Scsi);
    open(&mut fixture, &disk);
    // Nothing is mounted and no process has it: the holder alone shows.
    for level in LEVELS {
        let users = fixture.users(level, &volume);
        assert_eq!(users.holders, ["dm-0"]);
        assert!(
            users.mounts.is_empty() && users.openers.is_empty(),
            "{users:?}"
        );
        fixture.await_inventory(level, "the holder", |seen| {
            seen.devices.iter().any(|d| d.users.holders == ["dm-0"])
        });
    }
    fixture.publish(&volume, "/dev/mapper/crypt");
    let (staged, published) = places(&volume);
    for level in LEVELS {
        let users = fixture.users(level, &volume);
        assert_eq!(users.holders, ["dm-0"]);
        assert!(
            users.mounts.contains(&staged) && users.mounts.contains(&published),
            "{users:?}"
        );
    }
    fixture.unpublish(&volume);
    for level in LEVELS {
        assert_eq!(fixture.users(level, &volume).holders, ["dm-0"]);
    }
    fixture.run(CLOSE);
    fixture.assert_unused(&volume);
}

/// The device that is mounted is still in /sys, and below it nothing is left.
#[test]
fn a_disk_unplugged_below_an_encrypted_mount_is_never_clean() {
    let mut fixture = Fixture::set();
    let volume = fixture.volume("pvc0006");
    let (plugged, disk) = fixture.plug(&volume, Bus::Scsi);
    open(&mut fixture, &disk);
    fixture.publish(&volume, "/dev/mapper/crypt");
    let (staged, published) = places(&volume);
    fixture.pull(plugged, &disk);
    fixture.await_success(
        "writes fail",
        &format!("! dd if=/dev/zero of={published}/data bs=4k count=4 conv=fsync"),
    );
    for level in LEVELS {
        let users = fixture.users(level, &volume);
        assert!(
            users.mounts.contains(&staged) && users.mounts.contains(&published),
            "{users:?}"
        );
        let seen = fixture.await_inventory(level, "no disk", |seen| seen.devices.is_empty());
        assert_eq!(mounts(&seen, &volume).len(), 2, "{seen:#?}");
    }
    // It comes back, and the mapping still leads to the disk that went.
    fixture.plug(&volume, Bus::Scsi);
    for level in LEVELS {
        assert!(fixture.users(level, &volume).mounts.contains(&staged));
    }
    fixture.unpublish(&volume);
    fixture.run(CLOSE);
    fixture.assert_unused(&volume);
}
