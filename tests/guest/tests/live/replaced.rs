//! Another volume takes the place of ours: the kernel gives names, numbers and addresses to the next device.

use crate::fixture::{Fixture, LEVELS, places};
use reattach_core::guest::ScanResult;
use reattach_tests_guest::Bus;

#[test]
fn another_volume_with_the_same_kernel_name_is_told_apart() {
    let mut fixture = Fixture::set();
    let (ours, other) = (fixture.volume("pvc0007"), fixture.volume("pvc0008"));
    let (plugged, disk) = fixture.plug(&ours, Bus::Scsi);
    let number = fixture.run(&format!("cat /sys/block/{disk}/dev"));
    fixture.assert_unused(&ours);
    fixture.pull(plugged, &disk);
    let (_, next) = fixture.plug(&other, Bus::Scsi);
    assert_eq!(next, disk, "the kernel takes the name again");
    assert_eq!(fixture.run(&format!("cat /sys/block/{next}/dev")), number);
    // As udev would leave it if it came too late.
    fixture.run(&format!(
        "mkdir -p /dev/disk/by-id; ln -s ../../{next} /dev/disk/by-id/scsi-0Linode_Volume_{}",
        ours.serial()
    ));
    fixture.run(&format!(
        "mkfs.ext4 -q /dev/{next}; mount -t ext4 /dev/{next} /mnt"
    ));
    for level in LEVELS {
        assert_eq!(fixture.ask(level, &ours), ScanResult::NoDevice);
        assert_eq!(fixture.users(level, &other).mounts, ["/mnt"]);
        let seen = fixture.await_inventory(level, "the other volume", |seen| {
            seen.devices
                .iter()
                .any(|device| device.kernel_name == next && device.users.mounts == ["/mnt"])
        });
        assert_eq!(seen.devices.len(), 1);
        assert_eq!(seen.devices[0].identity.serial, other.serial());
    }
}

#[test]
fn dead_mounts_are_not_taken_for_the_new_volumes() {
    let mut fixture = Fixture::set();
    let (ours, other) = (fixture.volume("pvc0009"), fixture.volume("pvc0010"));
    let (plugged, disk) = fixture.plug(&ours, Bus::Scsi);
    fixture.publish(&ours, &format!("/dev/{disk}"));
    let (staged, published) = places(&ours);
    let mut paths = vec![staged, published];
    paths.sort();
    fixture.pull(plugged, &disk);
    fixture.plug(&other, Bus::Scsi);
    for level in LEVELS {
        assert_eq!(
            fixture.ask(level, &ours),
            ScanResult::DeadMount {
                paths: paths.clone()
            }
        );
    }
    fixture.assert_unused(&other);
}
