//! A disk is known by what it says of itself, not by its names below /dev.

use crate::fixture::{Fixture, LEVELS};
use reattach_core::guest::{Level, ScanResult};
use reattach_tests_guest::Bus;

#[test]
fn a_disk_without_links_is_found_on_every_bus() {
    let mut fixture = Fixture::set();
    assert_eq!(fixture.run("ls /dev/disk 2>/dev/null || echo none"), "none");
    for (bus, serial) in [
        (Bus::Scsi, "pvc0011"),
        (Bus::Nvme, "vol0011"),
        (Bus::Virtio, "vd0011"),
    ] {
        let volume = fixture.volume(serial);
        let (plugged, disk) = fixture.plug(&volume, bus);
        fixture.assert_unused(&volume);
        for level in LEVELS {
            let seen = fixture.await_inventory(level, "the disk", |seen| !seen.devices.is_empty());
            assert_eq!(seen.devices.len(), 1);
            assert_eq!(
                (
                    &*seen.devices[0].kernel_name,
                    &*seen.devices[0].identity.serial
                ),
                (&*disk, serial)
            );
            assert_eq!(seen.devices[0].size_bytes, 32 << 20);
        }
        // Not even the kernel's own node: then it cannot be opened, and it is still no disk that is not there.
        fixture.run(&format!("rm /dev/{disk}"));
        assert_eq!(fixture.ask(Level::Basic, &volume), ScanResult::Idle);
        let ScanResult::Unreadable { items } = fixture.ask(Level::Full, &volume) else {
            panic!("it was not opened")
        };
        assert!(
            items
                .iter()
                .all(|item| item.starts_with(&format!("/dev/{disk}: "))),
            "{items:?}"
        );
        fixture.pull(plugged, &disk);
        for level in LEVELS {
            assert_eq!(fixture.ask(level, &volume), ScanResult::NoDevice);
            fixture.await_inventory(level, "no disk", |seen| seen.devices.is_empty());
        }
    }
}
