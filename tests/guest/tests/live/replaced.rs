//! Another volume takes the place of ours: the kernel gives names, numbers and addresses to whoever comes next.

use crate::scene::{LEVELS, Scene, places};
use reattach_core::guest::ScanResult;
use reattach_tests_guest::Bus;

#[test]
fn another_volume_under_the_same_kernel_name_is_not_ours() {
    let mut scene = Scene::set();
    let (ours, other) = (scene.volume("pvc0007"), scene.volume("pvc0008"));
    let (plugged, disk) = scene.plug(&ours, Bus::Scsi);
    let number = scene.run(&format!("cat /sys/block/{disk}/dev"));
    scene.assert_unused(&ours);
    scene.pull(plugged, &disk);
    let (_, next) = scene.plug(&other, Bus::Scsi);
    assert_eq!(next, disk, "the kernel takes the name again");
    assert_eq!(scene.run(&format!("cat /sys/block/{next}/dev")), number);
    // As udev would leave it if it came too late.
    scene.run(&format!(
        "mkdir -p /dev/disk/by-id; ln -s ../../{next} /dev/disk/by-id/scsi-0Linode_Volume_{}",
        ours.serial()
    ));
    scene.run(&format!("mkfs.ext4 -q /dev/{next}; mount -t ext4 /dev/{next} /mnt"));
    for level in LEVELS {
        assert_eq!(scene.ask(level, &ours), ScanResult::NoDevice);
        assert_eq!(scene.users(level, &other).mounts, ["/mnt"]);
        let seen = scene.await_inventory(level, "the other volume", |seen| {
            seen.devices.iter().any(|device| device.kernel_name == next && device.users.mounts == ["/mnt"])
        });
        assert_eq!(seen.devices.len(), 1);
        assert_eq!(seen.devices[0].identity.serial, other.serial());
    }
}

#[test]
fn dead_mounts_of_ours_are_not_the_other_volumes() {
    let mut scene = Scene::set();
    let (ours, other) = (scene.volume("pvc0009"), scene.volume("pvc0010"));
    let (plugged, disk) = scene.plug(&ours, Bus::Scsi);
    scene.publish(&ours, &format!("/dev/{disk}"));
    let (staged, published) = places(&ours);
    let mut paths = vec![staged, published];
    paths.sort();
    scene.pull(plugged, &disk);
    scene.plug(&other, Bus::Scsi);
    for level in LEVELS {
        assert_eq!(scene.ask(level, &ours), ScanResult::DeadMount { paths: paths.clone() });
    }
    scene.assert_unused(&other);
}
