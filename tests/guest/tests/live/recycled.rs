//! The cloud recycles a guest: it comes back without its disks, while the cloud still says that they are attached.

use crate::fixture::{Fixture, LEVELS, mounts};
use reattach_core::guest::ScanResult;
use reattach_tests_guest::Bus;

#[test]
fn dead_mounts_end_with_their_boot() {
    let mut fixture = Fixture::set();
    let volume = fixture.volume("pvc0003");
    let (plugged, disk) = fixture.plug(&volume, Bus::Scsi);
    fixture.publish(&volume, &format!("/dev/{disk}"));
    fixture.pull(plugged, &disk);
    for level in LEVELS {
        assert!(matches!(
            fixture.ask(level, &volume),
            ScanResult::DeadMount { .. }
        ));
    }
    let before = LEVELS.map(|level| fixture.await_answer(level, "an answer", |_| true));
    let booted = LEVELS.map(|level| {
        fixture
            .await_inventory(level, "a report", |_| true)
            .booted_at
    });

    fixture.recycle(&[&volume]);
    let boot = fixture.boot_id();
    for (level, (before, booted)) in LEVELS.into_iter().zip(before.into_iter().zip(booted)) {
        assert_ne!(boot, before.boot_id);
        // The challenge is still there: an answer of the boot before is none any more.
        let answer = fixture.await_answer(level, "an answer of the new boot", |answer| {
            answer.boot_id == boot
        });
        assert_eq!(
            (answer.recovery, answer.epoch),
            (before.recovery, before.epoch)
        );
        assert!(answer.scanned_at > before.scanned_at);
        assert_eq!(answer.seen, ScanResult::NoDevice);
        let seen = fixture.await_inventory(level, "a report of the new boot", |seen| {
            seen.boot_id == boot
        });
        assert!(seen.booted_at > booted, "{seen:#?}");
        assert!(seen.devices.is_empty(), "{seen:#?}");
        // kubelet's folders are still there, and its mounts are not.
        assert_eq!(seen.csi_volumes.len(), 1);
        assert!(mounts(&seen, &volume).is_empty());
        assert_eq!(fixture.ask(level, &volume), ScanResult::NoDevice);
    }
}

#[test]
fn a_power_cut_under_a_live_mount_ends_it() {
    let mut fixture = Fixture::set();
    let volume = fixture.volume("pvc0004");
    let (_, disk) = fixture.plug(&volume, Bus::Scsi);
    fixture.publish(&volume, &format!("/dev/{disk}"));
    let boot = fixture.boot_id();
    for level in LEVELS {
        assert!(matches!(
            fixture.ask(level, &volume),
            ScanResult::InUse { .. }
        ));
    }
    fixture.recycle(&[&volume]);
    assert_ne!(fixture.boot_id(), boot);
    for level in LEVELS {
        assert_eq!(fixture.ask(level, &volume), ScanResult::NoDevice);
    }
    // The other kind of reboot: the disk is there again, and nothing has it.
    fixture.plug(&volume, Bus::Scsi);
    fixture.assert_unused(&volume);
}
