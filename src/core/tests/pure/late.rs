//! Late effects (safety rule S3): an order to the cloud whose reply was lost may land at any later time. No timer says that
//! it cannot.

use super::run::{Faults, Reply, run};
use super::walk::{ALL, QUIET, Walk, World, change, dead_node, sighting};
use jiff::{SignedDuration, Timestamp};
use reattach_core::cloud::{
    CloudJob, CloudScope, InstanceObservation, JobKind, JobStatus, PowerChange, PowerJob,
};
use reattach_core::evidence::Word;
use reattach_core::fact::{Fact, Source};
use reattach_core::ids::InstanceId;
use reattach_core::journal::{End, Entry, Event, NewestJob, Outcome};
use reattach_core::run::{Context, Effect, History, Next, Sent, accounted_for, next};
use reattach_core::steps::StepKind;
use reattach_core::testkit::{Case, INSTANCE, OTHER_INSTANCE, OTHER_NODE, start};

/// An effect whose reply was lost.
pub fn unheard() -> Outcome {
    Outcome::Unknown {
        why: "no answer".into(),
    }
}

/// A dead node's run whose power-off got no reply.
pub fn power_off_unheard() -> Walk {
    let powers_off = |e: &Effect| matches!(e, Effect::PowerOff { .. });
    Walk::answered(dead_node(), powers_off, unheard())
}

/// What the machine says to a person's abort, and to a word that nothing is under way.
pub fn asked(walk: &Walk, aborted_by: Option<&str>, word: Option<&Word>) -> Next {
    let recovery = Case::recovery();
    let cx = Context {
        aborted_by,
        nothing_under_way: word.cloned(),
        ..walk.context(&recovery)
    };
    next(&walk.plan, &walk.state(), &walk.case.evidence, &cx)
}

/// Records what the machine has to record, as long as it does; what it says then.
pub fn settled(walk: &mut Walk, aborted_by: Option<&str>, word: Option<&Word>) -> Next {
    for _ in 0..50 {
        match asked(walk, aborted_by, word) {
            Next::Record(event) => walk.record(event),
            other => return other,
        }
    }
    panic!("it records for ever\n{}", walk.story())
}

pub fn shutdown(walk: &mut Walk, status: JobStatus) {
    let now = walk.case.now;
    let finished = matches!(status, JobStatus::Finished).then_some(now);
    let job = PowerJob {
        id: "78".into(),
        change: PowerChange::Off,
        status,
        by: Some("reattach".into()),
        created: now,
        finished,
    };
    let power = walk
        .case
        .evidence
        .power
        .get_mut(&InstanceId::from(INSTANCE))
        .unwrap();
    change(power, |p| p.jobs.push(job));
}

#[test]
fn a_lost_power_off_is_unknown_until_it_is_read() {
    let mut walk = power_off_unheard();
    for seconds in [0, 61, 3_600] {
        walk.pass(seconds);
        let said = walk.ask();
        assert!(
            matches!(&said, Next::Wait { .. }),
            "{seconds} s after the lost reply: {said:?}"
        );
    }
}

#[test]
fn an_abort_after_a_lost_power_off_waits_for_the_order() {
    let mut walk = power_off_unheard();
    for seconds in [0, 61, 3_600] {
        walk.pass(seconds);
        let said = settled(&mut walk, Some("jane"), None);
        assert!(
            matches!(&said, Next::Wait { .. }),
            "{seconds} s after the lost reply: {said:?}"
        );
    }
    // It arrives after all.
    shutdown(&mut walk, JobStatus::Started);
    assert!(matches!(
        settled(&mut walk, Some("jane"), None),
        Next::Wait { .. }
    ));
    let power = walk
        .case
        .evidence
        .power
        .get_mut(&InstanceId::from(INSTANCE))
        .unwrap();
    change(power, |p| p.jobs.clear());
    shutdown(&mut walk, JobStatus::Finished);
    settled(&mut walk, Some("jane"), None);
    let seen = |e: &&Entry| {
        matches!(
            &e.event,
            Event::Outcome {
                outcome: Outcome::ObservedApplied { .. },
                ..
            }
        )
    };
    assert!(walk.journal.iter().any(|e| seen(&e)), "{}", walk.story());
}

#[test]
fn a_person_ends_the_wait_for_a_lost_order() {
    let mut walk = power_off_unheard();
    let word = |at| Word {
        by: "grace".into(),
        reason: "support looked".into(),
        at,
    };
    let early = word(walk.case.now - SignedDuration::from_secs(1));
    walk.pass(4_000);
    assert!(
        matches!(settled(&mut walk, None, Some(&early)), Next::Wait { .. }),
        "said before the order"
    );
    let late = word(walk.case.now + SignedDuration::from_secs(60));
    assert!(
        matches!(settled(&mut walk, None, Some(&late)), Next::Wait { .. }),
        "its time is still to come"
    );
    let good = word(walk.case.now);
    assert!(
        matches!(settled(&mut walk, None, Some(&good)), Next::Act(_)),
        "{}",
        walk.story()
    );
    let said = walk.journal.iter().any(
        |e| matches!(&e.event, Event::Outcome { outcome: Outcome::ObservedNotApplied { seen }, .. } if seen.contains("grace")),
    );
    assert!(said, "{}", walk.story());
}

#[test]
fn an_unaccounted_detach_is_waited_for() {
    for reply in [Reply::LostBefore] {
        for aborted in [false, true] {
            let faults = Faults {
                replies: vec![(2, reply)],
                nobody_declares: true,
                ..Faults::default()
            };
            let mut run = run(true, faults);
            while !run.has(|m| {
                matches!(
                    m,
                    Event::Outcome {
                        outcome: Outcome::Unknown { .. },
                        ..
                    }
                )
            }) {
                assert_eq!(run.drive(1), None);
            }
            run.faults.abort_after = aborted.then_some(0);
            assert_eq!(run.drive(20_000), None, "{}", run.story());
            assert_eq!(run.world.replicas, 0, "{}", run.story());
            run.faults.nobody_declares = false;
            assert!(run.drive(3_600).is_some(), "{}", run.story());
            assert_eq!(run.world.replicas, 1, "{}", run.story());
        }
    }
}

#[test]
fn a_detach_with_a_job_needs_no_person() {
    let faults = Faults {
        replies: vec![(2, Reply::LostAfter)],
        nobody_declares: true,
        ..Faults::default()
    };
    let mut run = run(true, faults);
    assert_eq!(run.drive(3_600), Some(End::Recovered), "{}", run.story());
    let detach = run.world.plan().find(StepKind::CloudDetach).unwrap();
    let newest = run.journal.iter().find_map(|e| match &e.event {
        Event::Started {
            step, newest_job, ..
        } if *step == detach => Some(newest_job.clone()),
        _ => None,
    });
    assert_eq!(newest, Some(Some(NewestJob::Nothing)), "{}", run.story());
}

/// A machine that the run powered off is powered on again on every end, where the policy wants it on.
#[test]
fn an_unwinding_run_powers_the_machine_on() {
    for refused in [false, true] {
        let mut walk = Walk::with(dead_node(), QUIET, ALL);
        walk.answer(
            |e| {
                matches!(e, Effect::PowerOff { .. }).then(|| Outcome::Applied {
                    detail: "200".into(),
                })
            },
            |_| {},
        );
        assert!(walk.state().powered_off(&walk.plan));
        // Accepted, and not begun: nothing is powered on before the shutdown has ended.
        shutdown(&mut walk, JobStatus::Started);
        assert!(
            matches!(settled(&mut walk, Some("jane"), None), Next::Wait { .. }),
            "{}",
            walk.story()
        );
        let id = InstanceId::from(INSTANCE);
        change(walk.case.evidence.power.get_mut(&id).unwrap(), |p| {
            p.jobs.clear()
        });
        shutdown(&mut walk, JobStatus::Finished);
        change(walk.case.evidence.instances.get_mut(&id).unwrap(), |i| {
            i.state = reattach_core::cloud::InstanceState::Off;
        });
        walk.pass(1);
        let said = settled(&mut walk, Some("jane"), None);
        let Next::Act(action) = said else {
            panic!("{said:?}\n{}", walk.story())
        };
        assert!(
            matches!(action.effect, Effect::PowerOn { .. }),
            "{action:?}"
        );
        walk.record(Event::Started {
            step: action.step,
            intent: action.intent,
            proof: None,
            newest_job: Some(NewestJob::Job { id: "78".into() }),
        });
        let outcome = if refused {
            Outcome::NotApplied {
                why: "forbidden".into(),
                retry: false,
            }
        } else {
            Outcome::Applied {
                detail: "200".into(),
            }
        };
        walk.record(Event::Outcome {
            step: action.step,
            outcome,
        });
        assert_eq!(
            settled(&mut walk, Some("jane"), None),
            Next::Done(End::Aborted),
            "{}",
            walk.story()
        );
        assert_eq!(walk.state().left_off(&walk.plan), refused);
    }
}

/// A run whose cloud detach got no reply, ten seconds ago.
pub fn detach_unheard() -> Walk {
    let case = Case::statefulset()
        .holdable()
        .with_node(OTHER_NODE, OTHER_INSTANCE);
    let mut walk = Walk::new(
        case,
        World {
            stuck: true,
            ..QUIET
        },
    );
    walk.answer(
        |e| matches!(e, Effect::CloudDetach { .. }).then(unheard),
        |_| {},
    );
    walk.pass(10);
    walk
}

/// Claim and PersistentVolume are gone from the cluster.
pub fn leave_the_cluster(walk: &mut Walk) {
    let (now, e) = (walk.case.now, &mut walk.case.evidence);
    let kubernetes = || Source::Kubernetes("test".to_owned());
    e.claim = Fact::absent(kubernetes(), now);
    e.volume = Fact::absent(kubernetes(), now);
}

/// Claim and PersistentVolume are gone, and with them every way to the provider.
#[test]
fn a_person_ends_the_wait_where_the_cloud_has_no_answer() {
    let mut walk = detach_unheard();
    let word = |at| Word {
        by: "grace".into(),
        reason: "support looked".into(),
        at,
    };
    let early = word(walk.case.now - SignedDuration::from_secs(3_600));
    leave_the_cluster(&mut walk);
    let (now, e) = (walk.case.now, &mut walk.case.evidence);
    let unknown = || Source::Cloud("none".to_owned());
    e.cloud_id = None;
    e.cloud_volume = Fact::unknown("nobody was asked", unknown(), now);
    e.jobs = Fact::unknown("nobody was asked", unknown(), now);
    for word in [None, Some(&early)] {
        let said = settled(&mut walk, Some("jane"), word);
        let Next::Wait { why, .. } = said else {
            panic!("{said:?}\n{}", walk.story())
        };
        assert!(why.contains("--nothing-under-way"), "{why}");
    }
    let said = settled(&mut walk, Some("jane"), Some(&word(now)));
    assert!(
        matches!(&said, Next::Act(a) if a.effect.puts_back()),
        "{said:?}\n{}",
        walk.story()
    );
    let applied = |e: &Entry| {
        matches!(
            &e.event,
            Event::Outcome {
                outcome: Outcome::ObservedApplied { .. },
                ..
            }
        )
    };
    assert!(
        !walk.journal.iter().any(applied),
        "nobody looked\n{}",
        walk.story()
    );
}

/// Neither the cluster nor the cloud has the volume any more: a detach that arrives finds nothing. That the
/// cloud does not find it counts only from the account that showed its holder earlier: another account never
/// finds it.
#[test]
fn a_deleted_volume_ends_its_detach() {
    type Spoil = fn(&mut InstanceObservation);
    let table: [(&str, Option<Spoil>, bool); 5] = [
        ("never seen", None, false),
        ("seen before", Some(|_| {}), true),
        (
            "another instance",
            Some(|s| s.instance = "26000077".into()),
            false,
        ),
        (
            "another account",
            Some(|s| s.scope = CloudScope("another".into())),
            false,
        ),
        (
            "not seen before that look",
            Some(|s| s.at += SignedDuration::from_secs(600)),
            false,
        ),
    ];
    for (name, seen, over) in table {
        let mut walk = detach_unheard();
        leave_the_cluster(&mut walk);
        let (now, e) = (walk.case.now, &mut walk.case.evidence);
        e.cloud_volume = Fact::absent(Source::Cloud("linode".to_owned()), now);
        e.cloud_scope = Some(CloudScope("account".into()));
        e.sightings = seen
            .into_iter()
            .map(|spoil| {
                let mut before = sighting(None, now - SignedDuration::from_secs(600));
                before.instance = walk.plan.pins.holder.clone();
                spoil(&mut before);
                before
            })
            .collect();
        let said = settled(&mut walk, Some("jane"), None);
        let puts_back = matches!(&said, Next::Act(a) if a.effect.puts_back());
        assert_eq!(puts_back, over, "{name}: {said:?}\n{}", walk.story());
    }
}

/// A new PersistentVolume of the old one's name leads to another volume: the history of that one tells
/// nothing of the detach.
#[test]
fn another_volumes_history_ends_no_wait() {
    for (uid, volume, puts_back) in [("pv-1", "5551", true), ("pv-2", "6661", false)] {
        let mut walk = detach_unheard();
        let now = walk.case.now;
        walk.case = walk.case.clone().volume(|v| v.uid = uid.into()).cloud(|c| {
            (c.id, c.holders) = (volume.into(), Vec::new());
        });
        walk.case.evidence.cloud_id = Some(volume.into());
        let finished = vec![job("9", "volume_detach", JobStatus::Finished, now)];
        walk.case.evidence.jobs = Fact::present(finished, Source::Cloud("linode".to_owned()), now);
        let said = settled(&mut walk, Some("jane"), None);
        let lifts = matches!(&said, Next::Act(a) if a.effect.puts_back());
        assert_eq!(lifts, puts_back, "{volume}: {said:?}\n{}", walk.story());
        if !puts_back {
            assert!(
                matches!(&said, Next::Wait { why, .. } if why.contains("--nothing-under-way")),
                "{said:?}"
            );
        }
    }
}

/// What is read after the PersistentVolume was replaced is another volume's, and no outcome is told from it.
#[test]
fn another_volumes_holders_show_no_outcome() {
    let mut walk = detach_unheard();
    let now = walk.case.now;
    walk.case = walk
        .case
        .clone()
        .volume(|v| v.uid = "pv-2".into())
        .cloud(|c| {
            (c.id, c.holders) = ("6661".into(), Vec::new());
        });
    walk.case.evidence.cloud_id = Some("6661".into());
    let word = Word {
        by: "grace".into(),
        reason: "support looked".into(),
        at: now,
    };
    let said = settled(&mut walk, Some("jane"), Some(&word));
    assert!(
        matches!(&said, Next::Act(a) if a.effect.puts_back()),
        "{said:?}\n{}",
        walk.story()
    );
    let told: Vec<_> = walk
        .journal
        .iter()
        .filter_map(|e| match &e.event {
            Event::Outcome {
                outcome: Outcome::ObservedNotApplied { seen },
                ..
            } => Some(seen.as_str()),
            Event::Outcome {
                outcome: Outcome::ObservedApplied { seen },
                ..
            } => panic!("{seen}"),
            _ => None,
        })
        .collect();
    assert!(
        told.len() == 1 && told[0].ends_with("the cloud could not be asked"),
        "{told:?}"
    );
}

fn job(id: &str, action: &str, status: JobStatus, created: Timestamp) -> CloudJob {
    let (volume, instance) = (Some("5551".into()), Some(INSTANCE.into()));
    let kind = if action == "volume_detach" {
        JobKind::Detach
    } else {
        JobKind::Attach
    };
    CloudJob {
        id: id.into(),
        kind,
        action: action.into(),
        status,
        volume,
        instance,
        created,
    }
}

/// An order whose journal is gone is accounted for by a later job of its kind that has ended, and by nothing
/// else.
#[test]
fn only_a_later_job_of_its_kind_accounts_for_an_order() {
    use JobStatus::{Failed, Finished, Scheduled, Started};
    let sent_at = start();
    let (detach, attach) = ("volume_detach", "volume_attach");
    let before = NewestJob::Job { id: "2".into() };
    let notice = || JobStatus::Other("notification".into());
    let known = |seen: &str| Ok(seen.to_owned());
    let unseen =
        || Err("the provider's history does not show it, so it may still arrive".to_owned());
    let table = [
        (
            Some(&before),
            vec![(detach, Finished), (attach, Finished)],
            unseen(),
        ),
        (
            Some(&before),
            vec![(attach, Finished), (detach, Finished)],
            unseen(),
        ),
        (
            Some(&before),
            vec![(attach, Finished), (attach, Finished), (detach, Finished)],
            known("the provider's job 3 has finished"),
        ),
        (
            Some(&before),
            vec![(attach, Finished), (attach, Finished), (detach, Failed)],
            known("the provider's job 3 has failed"),
        ),
        (
            Some(&before),
            vec![(detach, Finished), (attach, Finished), (attach, Finished)],
            unseen(),
        ),
        (
            Some(&before),
            vec![(detach, Finished), (attach, Finished), (detach, notice())],
            unseen(),
        ),
        (
            Some(&before),
            vec![(attach, Finished), (detach, Scheduled)],
            Err("a job is under way at the provider".to_owned()),
        ),
        (
            Some(&before),
            vec![(detach, Started), (attach, Finished)],
            Err("a job is under way at the provider".to_owned()),
        ),
        // The provider has forgotten the job that was the newest one.
        (Some(&before), vec![(detach, Finished)], unseen()),
        (
            Some(&NewestJob::Nothing),
            vec![(detach, Finished)],
            known("the provider's job 1 has finished"),
        ),
        (None, vec![(detach, Finished)], unseen()),
    ];
    for (newest_job, history, expected) in table {
        let sent = Sent {
            at: sent_at,
            newest_job,
            expires_after_seconds: None,
        };
        let jobs: Vec<CloudJob> = history
            .into_iter()
            .zip(1..)
            .map(|((action, status), id)| job(&id.to_string(), action, status, sent_at))
            .collect();
        assert_eq!(
            accounted_for(&sent, History::Detach(&jobs), sent_at),
            expected,
            "{newest_job:?}: {jobs:?}"
        );
    }
}

/// A provider that refuses old requests accounts for one that is older, and not for one that is as old as it
/// still takes.
#[test]
fn an_order_ends_once_the_provider_refuses_its_age() {
    let sent = Sent {
        at: start(),
        newest_job: None,
        expires_after_seconds: Some(300),
    };
    for (seconds, over) in [(0, false), (299, false), (300, false), (301, true)] {
        let read = start() + SignedDuration::from_secs(seconds);
        let said = accounted_for(&sent, History::Power(&[], PowerChange::Off), read);
        assert_eq!(said.is_ok(), over, "after {seconds} s: {said:?}");
    }
}
