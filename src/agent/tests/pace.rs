//! The times of scans, and lost writes, under virtual time.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use common::world::{LONG, World, on, refusal};
use common::{Tree, challenge};
use futures::stream;
use reattach_core::guest::{Level, ScanResult};
use reattach_sim::apiserver::{Fault, FaultRule, Verb};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

const MOUNT: &str = "95 22 8:0 / /srv rw - ext4 /dev/sda rw";
/// Longer than any test, so that only events and changes cause scans.
const NEVER: Duration = Duration::from_secs(1_000_000);

/// The events that a test sends, and the number of times that the stream was polled.
fn news() -> (
    mpsc::UnboundedSender<()>,
    impl futures::Stream<Item = ()>,
    Arc<AtomicUsize>,
) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let stream = stream::poll_fn(move |context| {
        let next = receiver.poll_recv(context);
        if next.is_ready() {
            count.fetch_add(1, Ordering::SeqCst);
        }
        next
    });
    (sender, stream, taken)
}

async fn settled(
    rescan: Duration,
    news: impl futures::Stream<Item = ()> + Send + 'static,
) -> World {
    let mut world = World::new(Tree::with_volume());
    world.start_with(rescan, Level::Basic, news);
    // After the scans that follow a change.
    sleep(Duration::from_secs(100_000)).await;
    world.writes();
    world
}

#[tokio::test(start_paused = true)]
async fn an_event_causes_a_scan_soon() {
    let (send, news, _) = news();
    let world = settled(NEVER, news).await;
    world.tree.mount(MOUNT);
    sleep(LONG).await;
    assert_eq!(world.writes().len(), 0, "nobody told");
    send.send(()).unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.writes().len(), 1);
    assert_eq!(world.inventory().devices[0].users.mounts, ["/srv"]);
}

#[tokio::test(start_paused = true)]
async fn many_events_cause_few_scans() {
    let (send, news, taken) = news();
    let world = settled(NEVER, news).await;
    taken.store(0, Ordering::SeqCst);
    for _ in 0..10_000 {
        send.send(()).unwrap();
        sleep(Duration::from_millis(5)).await;
    }
    // 50 s: at most one scan per second, and one event per scan.
    let taken = taken.load(Ordering::SeqCst);
    assert!((30..=51).contains(&taken), "{taken}");
    world.tree.mount(MOUNT);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.inventory().devices[0].users.mounts, ["/srv"]);
}

/// A change without an event (a process that opens and closes a device) does not stay in the report for long.
#[tokio::test(start_paused = true)]
async fn scans_after_a_change_become_rarer() {
    let (send, news, _) = news();
    let world = settled(NEVER, news).await;
    world.tree.process(99, "blkid", &[]);
    world.tree.link("proc/99/fd/3", "/dev/sda");
    send.send(()).unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.inventory().devices[0].users.openers, ["99 blkid"]);
    std::fs::remove_dir_all(world.tree.0.join("proc/99")).unwrap();
    sleep(Duration::from_secs(11)).await;
    assert!(world.inventory().devices[0].users.is_empty(), "within 10 s");
    // The scans 10, 20 and 40 s later find no change; then 80 s pass.
    sleep(Duration::from_secs(100)).await;
    world.tree.mount(MOUNT);
    sleep(Duration::from_secs(30)).await;
    assert!(world.inventory().devices[0].users.is_empty());
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.inventory().devices[0].users.mounts, ["/srv"]);
}

#[tokio::test(start_paused = true)]
async fn regular_scans_continue_when_the_events_end() {
    let world = settled(Duration::from_secs(300), stream::iter([(), ()])).await;
    world.tree.mount(MOUNT);
    sleep(Duration::from_secs(301)).await;
    assert_eq!(world.inventory().devices[0].users.mounts, ["/srv"]);
}

/// For ten minutes another writer wins every race for the report, or every reply is lost.
#[tokio::test(start_paused = true)]
async fn lost_writes_slow_the_agent_down_and_do_not_end_it() {
    for fault in [
        refusal(409),
        Fault::Disconnect { after_effect: true },
        refusal(404),
    ] {
        let (send, news, _) = news();
        let world = settled(NEVER, news).await;
        let id = world
            .server
            .add_fault(FaultRule::always(on(Verb::Patch), fault.clone()));
        world.ask("n1", &[challenge("recovery-1", 1)]).await;
        let asked = Instant::now();
        // Events must not shorten the pauses.
        while asked.elapsed() < LONG {
            send.send(()).unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        let tries = world.writes().len();
        assert!(tries <= 120, "{fault:?}: {tries} in {LONG:?}");
        assert!(
            tries > 3 || matches!(fault, Fault::Disconnect { .. }),
            "{fault:?}: {tries}"
        );
        world.server.remove_fault(id);
        world.ask("n1", &[challenge("recovery-1", 2)]).await;
        sleep(Duration::from_secs(120)).await;
        assert_eq!(
            world
                .answers()
                .iter()
                .map(|answer| answer.epoch)
                .collect::<Vec<_>>(),
            [2],
            "{fault:?}"
        );
        world.writes();
        sleep(LONG).await;
        assert_eq!(world.writes().len(), 0, "{fault:?}: all is written");
    }
}

#[tokio::test(start_paused = true)]
async fn the_full_level_compares_counters_over_a_second() {
    let tree = Tree::with_volume();
    let stat = |written: u32| format!("1 0 8 0 {written} 0 16 0 0 0 0 0 0 0 0 0 0\n");
    tree.file("sys/block/sda/stat", stat(2));
    tree.file("sys/block/sda/inflight", "0 0\n");
    let mut world = World::new(tree);
    world.start_with(NEVER, Level::Full, stream::pending());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.inventory().level, Level::Full);
    world.ask("n1", &[challenge("recovery-1", 1)]).await;
    sleep(Duration::from_millis(900)).await;
    assert_eq!(world.answers().len(), 0);
    world.tree.file("sys/block/sda/stat", stat(3));
    sleep(Duration::from_millis(200)).await;
    let answer = &world.answers()[0];
    assert_eq!(answer.level, Level::Full);
    assert!(
        matches!(&answer.seen, ScanResult::InUse { users } if users.active),
        "{answer:?}"
    );
}
