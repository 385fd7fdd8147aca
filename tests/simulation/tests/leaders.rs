//! The leader dies at every point of a recovery; two leaders under a partition; a Lease that is deleted or restored.

use reattach_api::Phase;
use reattach_core::runbook::{DEFAULT_RUNBOOK, SCALE_TO_ZERO};
use reattach_drill::in_virtual_time;
use reattach_drill::replica::{CONTROLLER_USER, CrashPoint, LEASE, NAMESPACE, Side};
use reattach_drill::stage::Stage;
use reattach_drill::world::{APPS, PERSON, World};
use reattach_tests_simulation::fixture::{redis_to_zero, redis_under, replicas};
use reattach_tests_simulation::{
    Part, Setup, all_good, cut_off_the_leader, parts, run_phantom, secs, seeds,
};
use serde_json::{Value, json};
use std::time::Duration;

/// Every changing request of an undisturbed run is a crash point, on both sides; each `stride`th is tried.
fn crash_everywhere(runbook: &'static str, unpublish_fails: bool, stride: usize, part: Part) {
    for seed in seeds(1) {
        let calm = Setup {
            runbook,
            unpublish_fails,
            ..Setup::default()
        };
        let requests = run_phantom(seed, calm).requests;
        assert!(
            requests > 20,
            "an undisturbed run makes {requests} changing requests"
        );
        let mut died = 0;
        for number in part.of((1..=requests).step_by(stride)) {
            for side in [Side::Before, Side::After] {
                let result = run_phantom(
                    seed,
                    Setup {
                        crash: Some(CrashPoint { number, side }),
                        ..calm
                    },
                );
                died += usize::from(result.died.is_some());
                assert!(
                    result.broken.is_empty(),
                    "{runbook}, Unpublish fails {unpublish_fails}, seed {seed}: dead {side:?} request {number} ({:?})\n\
                    replay: REATTACH_SEED={seed} and the name of this test\nbroken: {:#?}\n{}",
                    result.died,
                    result.broken,
                    result.timeline
                );
            }
        }
        assert!(
            died * part.count > 10,
            "only {died} crash points were reached in {part:?}"
        );
    }
}

parts!(
    the_leader_dies_at_every_request {
        part_1,
        part_2,
        part_3,
        part_4
    } | part
        | { crash_everywhere(SCALE_TO_ZERO, false, 1, part) }
);

parts!(
    the_leader_dies_at_every_request_of_a_cloud_detach { part_1, part_2 } | part | {
        crash_everywhere(SCALE_TO_ZERO, true, 2, part)
    }
);

parts!(
    the_leader_dies_at_every_request_of_a_hold {
        part_1,
        part_2,
        part_3,
        part_4
    } | part
        | { crash_everywhere(DEFAULT_RUNBOOK, false, 1, part) }
);

parts!(
    the_leader_dies_at_every_request_of_a_held_cloud_detach { part_1, part_2 } | part | {
        crash_everywhere(DEFAULT_RUNBOOK, true, 2, part)
    }
);

fn partition(s: &Stage, seed: u64) {
    cut_off_the_leader(s, seed, Duration::from_millis(200 + seed * 1_300 % 9_000));
}

#[test]
fn two_leaders_under_a_partition() {
    all_good("two_leaders_under_a_partition", 12, |seed| Setup {
        then: partition,
        unpublish_fails: seed % 3 == 0,
        runbook: if seed % 4 < 2 {
            SCALE_TO_ZERO
        } else {
            DEFAULT_RUNBOOK
        },
        ..Setup::default()
    });
}

fn lease_path() -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{LEASE}")
}

fn lease(w: &World) -> Value {
    let lease = w
        .server()
        .read("coordination.k8s.io", "leases", NAMESPACE, LEASE);
    lease.map(|l| (*l).clone()).expect("a Lease")
}

fn term(w: &World) -> u64 {
    lease(w)["spec"]["leaseTransitions"]
        .as_u64()
        .expect("a term")
}

/// The term of each line of the app's journal.
fn terms(s: &Stage) -> Vec<u64> {
    let journal = s
        .recovery_of("redis")
        .and_then(|r| r.status)
        .map(|s| s.journal)
        .unwrap_or_default();
    journal
        .iter()
        .filter_map(|e| e.get().ok())
        .map(|e| e.term)
        .collect()
}

/// A workload at zero by a leader of term 2, as in any cluster that is older than one upgrade.
async fn at_zero_in_term_2() -> Stage {
    let mut s = redis_under(1, SCALE_TO_ZERO).await.expect("redis runs");
    s.start_replica("reattach-controller-1", None);
    s.pass(secs(5)).await;
    s.replicas.remove(0).stop().await;
    s.pass(secs(5)).await;
    assert_eq!(term(&s.world), 2);
    redis_to_zero(&mut s).await.expect("at zero");
    s
}

/// Uninstalled and installed again: the namespace went, and the Lease with it.
#[test]
fn a_deleted_lease_leaves_nothing_at_zero() {
    in_virtual_time(|| async {
        let mut s = at_zero_in_term_2().await;
        s.replicas.remove(0).kill();
        let gone = s
            .world
            .request(
                PERSON,
                "DELETE",
                &lease_path(),
                "application/json",
                &json!({}),
            )
            .await;
        gone.expect("deleted");
        s.start_replica("reattach-controller-2", None);
        s.until("restored", secs(300), |w| replicas(w) == 1)
            .await
            .expect("restored");
        s.phases(&["redis"], &[Phase::Recovered], secs(300))
            .await
            .expect("healed");
        let terms = terms(&s);
        assert!(
            terms.is_sorted() && terms.first() == Some(&2) && terms.last() == Some(&3),
            "{terms:?}"
        );
    })
    .expect("virtual time");
}

/// The Lease of weeks ago comes back from a backup, as the holder of then had it, while the leader works.
#[test]
fn a_restored_lease_brings_no_old_term_back() {
    in_virtual_time(|| async {
        let mut s = at_zero_in_term_2().await;
        let mut old = lease(&s.world);
        old["spec"]["holderIdentity"] = json!("reattach-controller-0");
        old["spec"]["leaseTransitions"] = json!(1);
        s.world.server().insert(&old);
        s.phases(&["redis"], &[Phase::Recovered], secs(300))
            .await
            .expect("healed");
        let terms = terms(&s);
        assert!(terms.is_sorted() && terms.last() == Some(&3), "{terms:?}");
    })
    .expect("virtual time");
}

/// A journal with lines of a leader that this cluster's Lease knows nothing of: another controller works by another Lease, and
/// wrote them after this one became leader.
#[test]
fn a_newer_leaders_run_is_frozen_and_escalated() {
    in_virtual_time(|| async {
        let mut s = at_zero_in_term_2().await;
        let recovery = s
            .recovery_of("redis")
            .and_then(|r| r.metadata.name)
            .expect("a recovery");
        let read = |s: &Stage| {
            s.world
                .server()
                .read("reattach.dev", "volumerecoveries", APPS, &recovery)
        };
        let mut theirs = (*read(&s).expect("it is there")).clone();
        let journal = theirs["status"]["journal"]
            .as_array_mut()
            .expect("a journal");
        let last = journal.last_mut().expect("a line");
        last["term"] = json!(50);
        let lines = journal.len();
        s.world.server().insert(&theirs);
        let at = s.world.now();
        s.pass(secs(180)).await;
        let all = s.world.server().audit();
        let asked = all
            .iter()
            .filter(|e| e.user == CONTROLLER_USER && e.at >= at)
            .count();
        assert!(asked < 3 * 300, "{asked} requests in three minutes");
        let frozen = s
            .recovery_of("redis")
            .and_then(|r| r.status)
            .expect("a status");
        assert_eq!(
            (frozen.phase, frozen.journal.len()),
            (Phase::Stuck, lines),
            "{}",
            frozen.message
        );
        assert!(
            frozen.message.contains("term 50") && frozen.message.contains("term 2"),
            "{}",
            frozen.message
        );
        assert_eq!(replicas(&s.world), 0, "it is the other leader's");
        // As the message says.
        s.replicas.remove(0).stop().await;
        s.start_replica("reattach-controller-2", None);
        s.until("restored", secs(300), |w| replicas(w) == 1)
            .await
            .expect("restored");
        assert_eq!(term(&s.world), 51);
    })
    .expect("virtual time");
}
