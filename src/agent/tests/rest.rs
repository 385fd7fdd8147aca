//! A look that waits for others costs nothing, and the rest after it is short. Alone in this binary: what a look costs is the
//! processor time of the whole process.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use common::Tree;
use common::world::World;
use futures::{StreamExt, stream};
use reattach_core::guest::Level;
use std::fs::OpenOptions;
use std::process::Command;
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

/// What each look waits for. Two hundred times that is a minute.
const SLOW: Duration = Duration::from_millis(300);
/// Below the 10 s after which it looks again unasked, and well above the second that it rests at least.
const SOON: Duration = Duration::from_secs(8);

#[tokio::test]
async fn news_are_reported_soon_after_a_look_that_only_waited() {
    let tree = Tree::with_volume();
    let swaps = tree.0.join("proc/swaps");
    assert!(Command::new("mkfifo").arg(&swaps).status().unwrap().success());
    // Opening a FIFO waits for the other side: one turn for each look, which waits until this side is closed.
    thread::spawn(move || {
        while let Ok(held) = OpenOptions::new().write(true).open(&swaps) {
            thread::sleep(SLOW);
            drop(held);
            // So that this look finds the end before the FIFO is opened for the next.
            thread::sleep(SLOW / 3);
        }
    });
    let (send, news) = mpsc::unbounded_channel();
    let news = stream::unfold(news, async |mut news| news.recv().await.map(|()| ((), news)));
    let mut world = World::new(tree);
    world.start_with(Duration::from_secs(3600), Level::Basic, news.boxed());
    let mounts = |world: &World| {
        let report = world.server.read("reattach.dev", "nodevolumereports", "", "n1")?;
        report["status"]["inventory"].is_object().then(|| world.inventory().devices[0].users.mounts.clone())
    };
    while mounts(&world).is_none() {
        sleep(Duration::from_millis(10)).await;
    }
    world.tree.mount("95 22 8:0 / /srv rw - ext4 /dev/sda rw");
    let told = Instant::now();
    send.send(()).unwrap();
    while mounts(&world).is_none_or(|mounts| mounts.is_empty()) {
        assert!(told.elapsed() < SOON, "not within {SOON:?}");
        sleep(Duration::from_millis(10)).await;
    }
}
