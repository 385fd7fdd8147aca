//! The machine over random schedules of crashes, lost replies, blind moments, aborts and meddling.

use super::properties::{cases, runner};
use super::run::{Faults, Reply, Run};
use super::world::{Blind, Mark as Stamped, World};
use proptest::prelude::*;
use reattach_core::journal::End;

#[derive(Clone, Debug)]
struct Schedule {
    stuck: bool,
    lag: i64,
    crash_after: Vec<usize>,
    crash_between: Vec<usize>,
    replies: Vec<(usize, Reply)>,
    abort_after: Option<usize>,
    blind: Vec<(u8, i64, i64)>,
}

fn schedule() -> impl Strategy<Value = Schedule> {
    let reply = prop::sample::select(vec![
        Reply::LostBefore,
        Reply::LostAfter,
        Reply::Busy,
        Reply::Shut,
    ]);
    (
        any::<bool>(),
        1..50_i64,
        prop::collection::vec(1..40_usize, 0..4),
        prop::collection::vec(1..6_usize, 0..2),
        prop::collection::vec((1..8_usize, reply), 0..3),
        prop::option::weighted(0.3, 1..30_usize),
        prop::collection::vec((0..6_u8, 0..150_i64, 1..60_i64), 0..3),
    )
        .prop_map(
            |(stuck, lag, crash_after, crash_between, replies, abort_after, blind)| Schedule {
                stuck,
                lag,
                crash_after,
                crash_between,
                replies,
                abort_after,
                blind,
            },
        )
}

fn see(run: &mut Run, schedule: &Schedule) {
    let now = run.world.now;
    let on = |what: u8| {
        schedule
            .blind
            .iter()
            .any(|(w, from, long)| *w == what && (*from..from + long).contains(&now))
    };
    run.world.blind = Blind {
        workload: on(0),
        volume: on(1),
        node: on(2),
        attachments: on(3),
        pods: on(4),
    };
    run.world.outage = on(5);
}

#[test]
fn every_schedule_ends_well() {
    let ends = std::cell::RefCell::new(std::collections::BTreeMap::<String, u32>::new());
    runner("machine over schedules", cases(1_000))
        .run(&schedule(), |s| {
            let mut world = World::new(s.stuck);
            world.cloud_lag = s.lag;
            let faults = Faults {
                crash_after: s.crash_after.clone(),
                crash_between: s.crash_between.clone(),
                replies: s.replies.clone(),
                abort_after: s.abort_after,
                meddle: None,
                nobody_declares: false,
            };
            let mut run = Run::new(world, faults);
            let mut end = None;
            while run.world.now < 5_000 && end.is_none() {
                see(&mut run, &s);
                end = run.drive(1);
            }
            let story = run.story();
            let Some(end) = end else {
                return Err(TestCaseError::fail(format!("it never ends\n{story}")));
            };
            let name = format!("{end:?}");
            *ends
                .borrow_mut()
                .entry(name.split([' ', '{']).next().unwrap_or("").to_owned())
                .or_default() += 1;
            prop_assert_eq!(
                (run.world.replicas, run.world.stamp.clone()),
                (1, Stamped::None),
                "{}",
                &story
            );
            prop_assert!(!matches!(end, End::Stuck { .. }), "{}", &story);
            prop_assert!(end != End::Recovered || run.world.healed(), "{}", &story);
            let lost = u32::try_from(
                s.replies
                    .iter()
                    .filter(|(_, r)| *r == Reply::LostBefore)
                    .count(),
            )
            .unwrap_or(0);
            prop_assert!(run.world.detaches <= 1 + lost, "{}", &story);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
    println!("{:?}", ends.borrow());
    assert!(
        ends.borrow().len() >= 2,
        "schedules must reach different ends"
    );
}
