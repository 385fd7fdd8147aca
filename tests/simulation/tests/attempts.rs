//! Time in which nobody could act costs no failure, and what failed is tried again by itself, with pauses that grow.

use reattach_api::{Phase, VolumeRecovery};
use reattach_cloud_simulator::{Fault, FaultRule, When};
use reattach_core::journal::Event;
use reattach_core::runbook::{DEFAULT_RUNBOOK, SCALE_TO_ZERO};
use reattach_drill::stage::Stage;
use reattach_drill::world::{PERSON, World};
use reattach_sim::apiserver::{
    ApiStatus, Fault as ServerFault, FaultRule as ServerRule, RequestMatch,
};
use reattach_tests_simulation::fixture::{recovery_path, recycle_redis, redis_under};
use reattach_tests_simulation::{broken_rules, play, secs, story};
use serde_json::json;
use std::time::Duration;

/// Longer than the deadline of any step.
const LONG: Duration = Duration::from_mins(20);

/// Each request to the cloud is answered with this status.
fn cloud_answers(s: &Stage, status: u16) {
    let fault = Fault::Error {
        status,
        reason: "not now".into(),
        when: When::BeforeEffect,
        body: Default::default(),
    };
    s.world.cloud.add_fault(FaultRule::new([], fault));
}

fn lines(w: &World) -> usize {
    let journals = w.recoveries().into_iter().filter_map(|r| r.status);
    journals.map(|s| s.journal.len()).max().unwrap_or(0)
}

/// Recoveries of redis, oldest first.
fn recoveries(w: &World) -> Vec<VolumeRecovery> {
    let mut all = w.recoveries();
    all.sort_by_key(|r| (r.metadata.creation_timestamp.clone(), r.spec.attempt));
    all
}

fn phases(w: &World) -> Vec<Phase> {
    let status = |r: VolumeRecovery| r.status.unwrap_or_default().phase;
    recoveries(w).into_iter().map(status).collect()
}

/// A phantom attachment of redis whose newest recovery has so many lines.
async fn at_line(runbook: &str, line: usize, unpublish_fails: bool) -> Option<Stage> {
    let mut s = redis_under(1, runbook).await.expect("a stage");
    if unpublish_fails {
        s.world.csi.set_unpublish_fails(true);
    }
    recycle_redis(&mut s).await.expect("a recycle");
    // Slow enough for each line to be seen.
    s.world.server().add_fault(ServerRule {
        requests: RequestMatch {
            client: Some("reattach-controller".into()),
            mutations_only: true,
            ..RequestMatch::default()
        },
        fault: ServerFault::Latency(Duration::from_millis(300)),
        probability: 1.0,
        times: None,
    });
    let reached = |w: &World| lines(w) >= line || phases(w).contains(&Phase::Recovered);
    s.until("the line", secs(600), reached)
        .await
        .expect("the line");
    s.world.server().clear_faults();
    (lines(&s.world) == line).then_some(s)
}

async fn heals_at_the_first_attempt(s: &mut Stage, what: &str) {
    s.running(&["redis"], secs(900))
        .await
        .unwrap_or_else(|e| panic!("{what}: {e}\n{}", story(s)));
    s.pass(secs(60)).await;
    let phases = phases(&s.world);
    assert!(
        !phases
            .iter()
            .any(|p| matches!(p, Phase::Failed | Phase::Withdrawn | Phase::Aborted)),
        "{what}: {phases:?}\n{}",
        story(s)
    );
    let broken = broken_rules(s);
    assert!(broken.is_empty(), "{what}: {broken:#?}\n{}", story(s));
}

/// Does this at each line of an undisturbed run's journal. Returns how many lines were met.
fn at_each_line(disturb: fn(&mut Stage) -> futures::future::BoxFuture<'_, ()>) {
    for (runbook, unpublish_fails) in [(SCALE_TO_ZERO, true), (DEFAULT_RUNBOOK, false)] {
        let mut met = 0;
        for line in 1..40 {
            let (sent, done) = std::sync::mpsc::channel();
            play(move || async move {
                let found = at_line(runbook, line, unpublish_fails).await;
                sent.send(found.is_some()).expect("heard");
                let Some(mut s) = found else { return };
                disturb(&mut s).await;
                heals_at_the_first_attempt(&mut s, &format!("{runbook}, line {line}")).await;
            });
            met += usize::from(done.recv().expect("told"));
        }
        assert!(met >= 6, "{runbook}: only {met} lines were met");
        println!("{runbook}: {met} lines");
    }
}

#[test]
fn a_cloud_that_is_away_costs_no_failure() {
    at_each_line(|s| {
        Box::pin(async move {
            cloud_answers(s, 503);
            s.pass(LONG).await;
            s.world.cloud.clear_faults();
        })
    });
}

/// Whether the last line began an order to the cloud. What became of it without its leader is for a person to say (S3).
fn began_an_order(s: &Stage) -> bool {
    let status = s
        .recovery_of("redis")
        .and_then(|r| r.status)
        .expect("a status");
    let plan = status
        .plan
        .as_ref()
        .expect("a plan")
        .get()
        .expect("readable");
    match &status
        .journal
        .last()
        .expect("a line")
        .get()
        .expect("readable")
        .event
    {
        Event::Started { step, .. } => plan.steps[step.index()].kind.spec().is_order(),
        _ => false,
    }
}

#[test]
fn a_leader_that_is_away_costs_no_failure() {
    at_each_line(|s| {
        Box::pin(async move {
            if began_an_order(s) {
                return;
            }
            s.replicas[0].kill();
            s.pass(LONG).await;
            s.start_replica("reattach-controller-1", None);
        })
    });
}

/// The API server refuses each eviction for good, as after a right was taken away.
fn refuse_evictions(s: &Stage) {
    s.world.server().add_fault(ServerRule {
        requests: RequestMatch {
            client: Some("reattach-controller".into()),
            subresource: Some("eviction".into()),
            ..RequestMatch::default()
        },
        fault: ServerFault::Status {
            status: ApiStatus::new(403, "forbidden"),
            after_effect: false,
            retry_after: None,
        },
        probability: 1.0,
        times: None,
    });
}

/// A world that refuses for a while: each attempt fails, the pauses grow, and the volume heals once it gives way.
#[test]
fn what_failed_is_tried_again_by_itself() {
    play(|| async {
        let mut s = redis_under(1, DEFAULT_RUNBOOK).await.expect("a stage");
        refuse_evictions(&s);
        recycle_redis(&mut s).await.expect("a recycle");
        let failed = |n: usize| {
            move |w: &World| phases(w).iter().filter(|p| **p == Phase::Failed).count() >= n
        };
        s.until_stored("three failures", secs(3_600), failed(3))
            .await
            .unwrap_or_else(|e| panic!("{e}\n{}", story(&s)));
        let all = recoveries(&s.world);
        let attempts: Vec<u32> = all.iter().map(|r| r.spec.attempt).collect();
        assert_eq!(attempts, [1, 2, 3], "{}", story(&s));
        let pauses: Vec<i64> = all
            .iter()
            .map(|r| {
                let status = r.status.as_ref().unwrap();
                let ended = status.journal.last().unwrap().get().unwrap().at;
                let next = status.next_attempt.as_ref().expect("a next attempt").0;
                assert!(
                    status.message.contains("is made at 2026-"),
                    "{}",
                    status.message
                );
                next.duration_since(ended).as_secs()
            })
            .collect();
        // A status has whole seconds.
        assert!(
            pauses
                .iter()
                .zip([60, 120, 240])
                .all(|(p, whole)| (whole - 1..=whole).contains(p)),
            "{pauses:?}"
        );
        s.world.server().clear_faults();
        s.running(&["redis"], secs(600))
            .await
            .unwrap_or_else(|e| panic!("{e}\n{}", story(&s)));
        assert_eq!(recoveries(&s.world).last().unwrap().spec.attempt, 4);
        s.pass(secs(60)).await;
        assert!(broken_rules(&s).is_empty(), "{}", story(&s));
    });
}

async fn allow_attempts(s: &Stage, attempts: u32) {
    let path = "/apis/reattach.dev/v1alpha1/recoverypolicies/everything";
    let retries = json!({"spec": {"retries": {"attempts": attempts}}});
    s.world
        .merge(PERSON, path, &retries)
        .await
        .expect("a policy");
}

/// A person, or the policy, ends the attempts.
#[test]
fn attempts_end_where_a_person_or_the_policy_says_so() {
    play(|| async {
        let mut s = redis_under(1, DEFAULT_RUNBOOK).await.expect("a stage");
        allow_attempts(&s, 2).await;
        refuse_evictions(&s);
        recycle_redis(&mut s).await.expect("a recycle");
        s.pass(secs(3_600)).await;
        assert_eq!(
            phases(&s.world),
            [Phase::Failed, Phase::Failed],
            "{}",
            story(&s)
        );
        let last = recoveries(&s.world).pop().unwrap().status.unwrap();
        assert!(last.next_attempt.is_none());
        assert!(
            last.message
                .ends_with("no other attempt is made, because the policy allows 2"),
            "{}",
            last.message
        );
        allow_attempts(&s, 4).await;
        s.until_stored("a third", secs(600), |w| {
            phases(w).len() == 3 && phases(w)[2] == Phase::Failed
        })
        .await
        .unwrap_or_else(|e| panic!("{e}\n{}", story(&s)));
        let abort = json!({"spec": {"abort": {"by": PERSON, "reason": "not tonight"}}});
        let path = recovery_path(&s);
        s.world
            .merge(PERSON, &path, &abort)
            .await
            .expect("an abort");
        s.pass(secs(3_600)).await;
        assert_eq!(phases(&s.world), [Phase::Failed; 3], "{}", story(&s));
    });
}

/// A credential that has ended is no outage: the run ends without an effect, and begins anew once the credential is good.
#[test]
fn a_run_without_an_effect_is_withdrawn_and_begins_anew() {
    play(|| async {
        let mut s = at_line(SCALE_TO_ZERO, 1, true)
            .await
            .expect("an accepted plan");
        cloud_answers(&s, 401);
        s.until_stored("withdrawn", secs(600), |w| phases(w) == [Phase::Withdrawn])
            .await
            .unwrap_or_else(|e| panic!("{e}\n{}", story(&s)));
        s.pass(secs(300)).await;
        s.world.cloud.clear_faults();
        s.running(&["redis"], secs(600))
            .await
            .unwrap_or_else(|e| panic!("{e}\n{}", story(&s)));
        s.pass(secs(60)).await;
        assert_eq!(
            phases(&s.world),
            [Phase::Withdrawn, Phase::Recovered],
            "{}",
            story(&s)
        );
        assert_eq!(recoveries(&s.world)[1].spec.attempt, 2);
    });
}
