//! A scan of the machine that runs the test.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use reattach_agent::{HostRoot, Scan};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

#[test]
fn this_machines_report_is_complete() {
    let root = HostRoot::new("/");
    let started = Instant::now();
    let inventory = Scan::new(&root).unwrap().inventory();
    println!(
        "scan of this machine: {:.1} ms",
        started.elapsed().as_secs_f64() * 1e3
    );
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(inventory.boot_id.as_str(), boot_id.trim());
    // The kernel computes btime from the wall clock: an adjustment between the reads may move it by a second.
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let btime: i64 = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime "))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(
        (inventory.booted_at.as_second() - btime).abs() <= 2,
        "{} {btime}",
        inventory.booted_at
    );
    for device in &inventory.devices {
        let number = fs::read_to_string(format!("/sys/block/{}/dev", device.kernel_name)).unwrap();
        assert_eq!(device.dev, number.trim());
    }
    assert_eq!(missing(&root), None);
}

/// A mount table or part of /sys that a scan could not read. Both are open to everybody: with or without rights, and
/// whatever comes and goes meanwhile, none may be missing.
fn missing(root: &HostRoot) -> Option<String> {
    let inventory = Scan::new(root).unwrap().inventory();
    inventory
        .unreadable
        .into_iter()
        .find(|item| item.contains("mountinfo") || item.contains("/sys/"))
}

#[test]
fn processes_that_end_meanwhile_are_no_gaps() {
    let root = HostRoot::new("/");
    let mut zombie = Command::new("true").spawn().unwrap();
    let stat = format!("/proc/{}/stat", zombie.id());
    while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
        std::thread::yield_now();
    }
    assert_eq!(missing(&root), None);
    zombie.wait().unwrap();

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                Command::new("true").status().unwrap();
            }
        });
        let found = (0..40).find_map(|_| missing(&root));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(found, None);
    });
}
