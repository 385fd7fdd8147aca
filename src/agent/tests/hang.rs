//! A process that hangs in the kernel so that its memory map cannot be read. The only test in this binary: while the process
//! hangs, no other scan of processes starts.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Tree, answer, challenge};
use reattach_core::guest::ScanResult;
use std::fs;
use std::process::Command;

fn seen(tree: &Tree) -> ScanResult {
    answer(
        &tree.root(),
        &challenge("r1", 7),
        jiff::Timestamp::UNIX_EPOCH,
    )
    .unwrap()
    .seen
}

#[test]
fn a_hung_process_does_not_block_the_answer_no_device() {
    let (gone, there) = (Tree::host(), Tree::with_volume());
    for tree in [&gone, &there] {
        tree.process(99, "db", &[]);
        // Opening a FIFO for reading waits until it is opened for writing, as reading a locked map waits for its process.
        let fifo = tree.0.join("proc/99/maps");
        assert!(
            Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
    }
    assert_eq!(seen(&gone), ScanResult::NoDevice);
    let items = |tree| match seen(tree) {
        ScanResult::Unreadable { items } => items,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        items(&there),
        ["/proc: scanning all processes: did not end within 10 s"]
    );
    let again = "/proc: scanning all processes: not tried, because an earlier scan still hangs in the kernel";
    assert_eq!(items(&there), [again]);
    assert_eq!(seen(&gone), ScanResult::NoDevice);
    // The process continues: the first scan ends, and the next one reads the map.
    let fifo = there.0.join("proc/99/maps");
    drop(fs::OpenOptions::new().write(true).open(&fifo).unwrap());
    fs::remove_file(&fifo).unwrap();
    there.file("proc/99/maps", "");
    while seen(&there) != ScanResult::Idle {
        std::thread::yield_now();
    }
}
