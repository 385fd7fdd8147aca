//! A scan that waits has no cost, and the rest after it is short. The only test in this binary: the cost of a scan is the
//! processor time of the whole process.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use common::Tree;
use common::world::World;
use futures::{StreamExt, stream};
use reattach_core::guest::Level;
use std::fs::{OpenOptions, remove_file};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

/// Duration for which each scan waits. If that counted as its cost, the rest would be two hundred times as long: a minute
/// and a half.
const SLOW: Duration = Duration::from_millis(450);
/// Bound of the time between event and report. On an idle machine it is 1.5 s, the shortest rest and a scan. The bound is more
/// than ten times that, and well below the minute and a half.
const SOON: Duration = Duration::from_secs(45);
/// Longer than the test, so that only events cause scans.
const NEVER: Duration = Duration::from_secs(3600);

fn mounts(world: &World) -> Option<Vec<String>> {
    let report = world
        .server
        .read("reattach.dev", "nodevolumereports", "", "n1")?;
    report["status"]["inventory"]
        .is_object()
        .then(|| world.inventory().devices[0].users.mounts.clone())
}

#[tokio::test]
async fn a_delayed_scan_does_not_delay_the_next() {
    let tree = Tree::with_volume();
    tree.file("proc/swaps", "");
    let swaps = tree.0.join("proc/swaps");
    let mut world = World::new(tree);
    // The report of an earlier agent: the first scan of the next agent finds no change, so no scan follows by itself.
    world.start_with(NEVER, Level::Basic, stream::pending());
    while mounts(&world).is_none() {
        sleep(Duration::from_millis(10)).await;
    }
    world.stop.take().unwrap().send(()).unwrap();
    world.agent.take().unwrap().await.unwrap();
    world.writes();

    remove_file(&swaps).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&swaps)
            .status()
            .unwrap()
            .success()
    );
    let looks = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&looks);
    // Opening a FIFO waits for the other side: one turn for each scan, which waits until this side is closed.
    thread::spawn(move || {
        while let Ok(held) = OpenOptions::new().write(true).open(&swaps) {
            thread::sleep(SLOW);
            drop(held);
            counter.fetch_add(1, Ordering::SeqCst);
            // So that this scan finds the end before the FIFO is opened for the next one.
            thread::sleep(SLOW / 3);
        }
    });
    let (send, news) = mpsc::unbounded_channel();
    let news = stream::unfold(news, async |mut news| {
        news.recv().await.map(|()| ((), news))
    });
    world.start_with(NEVER, Level::Basic, news.boxed());
    while looks.load(Ordering::SeqCst) == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.writes().len(), 0, "there was something new");
    world.tree.mount("95 22 8:0 / /srv rw - ext4 /dev/sda rw");
    let told = Instant::now();
    send.send(()).unwrap();
    while mounts(&world).is_none_or(|mounts| mounts.is_empty()) {
        assert!(told.elapsed() < SOON, "not within {SOON:?}");
        sleep(Duration::from_millis(10)).await;
    }
    println!(
        "a mount was reported {:.1} s after the event",
        told.elapsed().as_secs_f32()
    );
}
