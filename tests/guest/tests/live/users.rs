//! Users of a disk that no mount of it shows.

use crate::fixture::{Fixture, LEVELS};
use reattach_core::guest::{DeviceUsers, Level, ScanResult};
use reattach_tests_guest::Bus;

#[test]
fn users_outside_the_mount_table_are_seen() {
    let mut fixture = Fixture::set();
    let volume = fixture.volume("pvc0012");
    let (_, disk) = fixture.plug(&volume, Bus::Scsi);
    let device = format!("/dev/{disk}");
    fixture.assert_unused(&volume);

    fixture.run(&format!("setsid sleep 1000 <{device} >/dev/null 2>&1 &"));
    fixture.await_success(
        "it is open",
        &format!("ls -l /proc/$(pidof sleep)/fd | grep -q {device}"),
    );
    for level in LEVELS {
        let users = fixture.users(level, &volume);
        assert!(
            matches!(&users.openers[..], [one] if one.ends_with(" sleep")),
            "{users:?}"
        );
    }
    fixture.run("kill $(pidof sleep)");
    fixture.await_success("it is closed", "! pidof sleep");
    fixture.assert_unused(&volume);

    // kubelet makes such a loop for a raw block volume; an exclusive open does not see it.
    fixture.run(&format!("losetup /dev/loop3 {device}"));
    for level in LEVELS {
        let users = fixture.users(level, &volume);
        assert_eq!(
            users,
            DeviceUsers {
                loops: vec!["loop3".to_owned()],
                ..DeviceUsers::default()
            }
        );
    }
    fixture.run("mkfs.ext4 -q /dev/loop3; mount -t ext4 /dev/loop3 /mnt");
    for level in LEVELS {
        let users = fixture.users(level, &volume);
        assert_eq!(
            (users.loops, users.mounts),
            (vec!["loop3".to_owned()], vec!["/mnt".to_owned()])
        );
    }
    fixture.run("umount /mnt; losetup -d /dev/loop3");
    fixture.assert_unused(&volume);

    fixture.run(&format!("mkswap {device} && swapon {device}"));
    for level in LEVELS {
        assert!(fixture.users(level, &volume).swap);
    }
    fixture.run(&format!("swapoff {device}"));
    fixture.assert_unused(&volume);
}

/// Two users that leave no mount anywhere: one has a file open, of the other only the kernel knows.
#[test]
fn a_filesystem_that_no_table_shows_is_never_clean() {
    let mut fixture = Fixture::set();
    let volume = fixture.volume("pvc0013");
    let (_, disk) = fixture.plug(&volume, Bus::Scsi);
    fixture.run(&format!("mkfs.ext4 -q /dev/{disk}; mount -t ext4 /dev/{disk} /mnt; cd /mnt; setsid sleep 1000 >/dev/null 2>&1 &"));
    fixture.await_success(
        "it is there",
        "[ $(readlink /proc/$(pidof sleep)/cwd) = /mnt ]",
    );
    fixture.run("umount -l /mnt");
    for level in LEVELS {
        let users = fixture.users(level, &volume);
        assert!(users.mounts.is_empty(), "{users:?}");
        assert!(
            matches!(&users.openers[..], [one] if one.ends_with(" sleep")),
            "{users:?}"
        );
    }
    fixture.run("kill $(pidof sleep)");
    fixture.await_success("it ends", "! pidof sleep");
    fixture.assert_unused(&volume);

    // A mount namespace without any process, kept by a file.
    fixture.run(&format!(
        "mkdir /run/names; mount -t tmpfs tmpfs /run/names; mount --make-private /run/names; touch /run/names/one
        unshare --mount=/run/names/one mount -t ext4 /dev/{disk} /mnt"
    ));
    assert_eq!(fixture.run("grep -c /mnt /proc/mounts || true"), "0");
    // The basic level cannot know, and does not say more than that.
    assert_eq!(fixture.ask_at_rest(Level::Basic, &volume), ScanResult::Idle);
    let users = DeviceUsers {
        claimed: true,
        ..DeviceUsers::default()
    };
    assert_eq!(
        fixture.ask_at_rest(Level::Full, &volume),
        ScanResult::InUse { users }
    );
    fixture.run("umount /run/names/one");
    fixture.assert_unused(&volume);
}
