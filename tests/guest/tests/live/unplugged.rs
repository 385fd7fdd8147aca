//! A disk is pulled out under its users: what a cloud's forced detach leaves in the guest.

use crate::fixture::{Fixture, LEVELS, mounts, places};
use reattach_core::guest::{Level, ScanResult};
use reattach_tests_guest::Bus;

/// A writer that never ends, until a write fails: then it leaves the reason in /run/failed.
const WRITER: &str = r"
cat >/run/writer <<'END'
while dd if=/dev/zero of=$1/data bs=64k count=4 conv=fsync 2>/run/said; do :; done
cp /run/said /run/failed
exec sleep 1000
END
";

fn a_disk_pulled_out_under_a_busy_filesystem(bus: Bus) {
    let mut fixture = Fixture::set();
    let volume = fixture.volume("pvc0001");
    let (plugged, disk) = fixture.plug(&volume, bus);
    fixture.publish(&volume, &format!("/dev/{disk}"));
    let (staged, published) = places(&volume);
    let mut places = vec![staged, published.clone()];
    places.sort();
    // Its working directory is on the volume: so it is a user as long as it lives.
    fixture.run(&format!(
        "{WRITER}cd {published}; setsid sh /run/writer {published} >/dev/null 2>&1 &"
    ));
    fixture.await_success("the writer writes", &format!("[ -s {published}/data ]"));
    for level in LEVELS {
        let users = fixture.users(level, &volume);
        assert_eq!(users.mounts, places);
        assert!(
            users.openers.iter().any(|opener| opener.ends_with(" sh")),
            "{users:?}"
        );
        let seen = fixture.await_inventory(level, "live mounts", |seen| {
            mounts(seen, &volume).len() == 2
        });
        assert!(
            mounts(&seen, &volume)
                .iter()
                .all(|mount| !mount.dead && places.contains(&mount.path)),
            "{seen:#?}"
        );
    }

    fixture.pull(plugged, &disk);
    fixture.await_success(
        "writes fail",
        "grep -q 'error\\|No such device\\|Read-only' /run/failed",
    );
    for level in LEVELS {
        // Unasked.
        let seen = fixture.await_inventory(level, "no disk", |seen| seen.devices.is_empty());
        let left = mounts(&seen, &volume);
        assert_eq!(
            left.iter()
                .map(|mount| mount.path.clone())
                .collect::<Vec<_>>(),
            places
        );
        assert!(left.iter().all(|mount| mount.dead), "{seen:#?}");
        assert_eq!(seen.unreadable, Vec::<String>::new());
        assert_eq!(
            fixture.ask(level, &volume),
            ScanResult::DeadMount {
                paths: places.clone()
            }
        );
    }

    // The same volume comes back as another disk, and the mounts are still those of the one that went.
    let (_, again) = fixture.plug(&volume, bus);
    assert_ne!(again, disk, "the kernel gave a name away that is in use");
    for level in LEVELS {
        let users = fixture.users(level, &volume);
        assert_eq!(
            users.mounts,
            places
                .iter()
                .map(|place| format!("{place} (dead)"))
                .collect::<Vec<_>>()
        );
    }

    // The pod's process ends and kubelet cleans up.
    fixture.run("kill -9 $(pidof sleep)");
    fixture.unpublish(&volume);
    fixture.assert_unused(&volume);
}

#[test]
fn a_scsi_disk_unplugged_under_use_leaves_dead_mounts() {
    a_disk_pulled_out_under_a_busy_filesystem(Bus::Scsi);
}

#[test]
fn an_nvme_disk_unplugged_under_use_leaves_dead_mounts() {
    a_disk_pulled_out_under_a_busy_filesystem(Bus::Nvme);
}

/// kubelet has unmounted its own, and a container that is left still has the mount in its namespace.
#[test]
fn a_dead_mount_in_a_containers_namespace_is_seen() {
    let mut fixture = Fixture::set();
    let volume = fixture.volume("pvc0002");
    let (plugged, disk) = fixture.plug(&volume, Bus::Scsi);
    fixture.publish(&volume, &format!("/dev/{disk}"));
    let (_, published) = places(&volume);
    fixture.run("setsid unshare -m sleep 1000 >/dev/null 2>&1 &");
    fixture.await_success(
        "the namespace is there",
        "p=$(pidof sleep) && [ $(readlink /proc/$p/ns/mnt) != $(readlink /proc/1/ns/mnt) ]",
    );
    fixture.unpublish(&volume);
    for level in LEVELS {
        let users = fixture.users(level, &volume);
        assert!(
            users
                .mounts
                .iter()
                .any(|mount| mount.starts_with(&published)),
            "{users:?}"
        );
    }
    fixture.pull(plugged, &disk);
    for level in [Level::Basic, Level::Full] {
        let ScanResult::DeadMount { paths } = fixture.ask(level, &volume) else {
            panic!("{level:?}: no dead mount")
        };
        assert_eq!(paths.len(), 2);
        assert!(
            paths.iter().all(|path| path.ends_with(" sleep)")),
            "{paths:?}"
        );
    }
    fixture.run("kill -9 $(pidof sleep)");
    fixture.await_success("the container ends", "! pidof sleep");
    for level in LEVELS {
        assert_eq!(fixture.ask(level, &volume), ScanResult::NoDevice);
    }
}
