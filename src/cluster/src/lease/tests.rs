//! The election against the API server in memory: slow requests, a Lease that is deleted or restored, and the terms.

use super::*;
use http::{Method, Request};
use jiff::Timestamp;
use kube::client::Body;
use reattach_sim::ApiServer;
use reattach_sim::apiserver::{ApiStatus, Fault, FaultRule, RequestMatch, Verb};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tower::ServiceExt;

const NAMESPACE: &str = "sys";
const NAME: &str = "reattach-controller";

fn start() -> Timestamp {
    "2026-03-01T00:00:00Z".parse().unwrap()
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn server() -> ApiServer {
    let server = ApiServer::new(reattach_sim::Clock::starting_at(start()), 1);
    for crd in reattach_api::all_crds() {
        assert!(server.register_crd(&serde_json::to_value(crd).unwrap()));
    }
    for namespace in [NAMESPACE, "shop"] {
        server.insert(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        );
    }
    server
}

fn elector_over(client: Client, me: &str) -> Elector {
    Elector::new(
        client,
        NAMESPACE,
        NAME,
        me,
        crate::Clock::starting_at(start()),
    )
}

fn elector(server: &ApiServer, me: &str) -> Elector {
    elector_over(server.client(), me)
}

/// A client whose every read reaches the API server that much later.
fn slow_reader(server: &ApiServer, slow: Arc<Mutex<Duration>>) -> Client {
    let service = server.service_as("contender");
    let service = tower::service_fn(move |request: Request<Body>| {
        let (service, slow) = (service.clone(), slow.clone());
        async move {
            let wait = *slow.lock().unwrap();
            if request.method() == Method::GET && !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            service.oneshot(request).await
        }
    });
    Client::new(service, "default")
}

/// Tries until it leads; answers the leadership and how long that took.
async fn lead(elector: &mut Elector) -> (Leadership, Duration) {
    let began = Instant::now();
    loop {
        let (mine, wake) = elector.round().await.unwrap();
        if let Some(mine) = mine {
            return (mine, began.elapsed());
        }
        tokio::time::sleep_until(wake).await;
    }
}

/// The Lease as a holder that gave it up leaves it.
fn insert_released(server: &ApiServer, term: u64) {
    insert(server, "", term);
}

fn insert(server: &ApiServer, holder: &str, term: u64) {
    server.insert(&json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": term},
    }));
}

fn lease(server: &ApiServer) -> Arc<Value> {
    server
        .read("coordination.k8s.io", "leases", NAMESPACE, NAME)
        .unwrap()
}

async fn delete(server: &ApiServer) {
    let api: Api<Lease> = Api::namespaced(server.client(), NAMESPACE);
    api.delete(NAME, &kube::api::DeleteParams::default())
        .await
        .unwrap();
}

/// A recovery with a journal whose lines have these terms.
fn insert_journal(server: &ApiServer, name: &str, terms: &[u64]) {
    let line = |(seq, term): (usize, &u64)| {
        json!({"seq": seq, "at": "2026-03-01T00:00:00Z", "term": term, "by": "x",
            "mark": {"mark": "accepted", "planHash": "0123456789abcdef", "authority": "mode Auto"}})
    };
    let journal: Vec<Value> = terms.iter().enumerate().map(line).collect();
    server.insert(&json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"claimName": name, "mode": "Auto", "runbook": "lightest-first", "requester": "x"},
        "status": {"phase": "Running", "message": "", "epoch": 0, "journal": journal},
    }));
}

/// The contender's read takes 4.5 s, and the holder renews just before the API server answers it. Then the holder is cut off.
#[tokio::test(start_paused = true)]
async fn a_slow_read_of_the_lease_brings_no_second_leader() {
    let server = server();
    insert_released(&server, 0);
    let mut holder = elector(&server, "a");
    let slow = Arc::new(Mutex::new(Duration::from_millis(4_500)));
    let mut contender = elector_over(slow_reader(&server, slow.clone()), "b");
    lead(&mut holder).await;
    tokio::time::sleep(secs(3)).await;
    let reading = contender.round();
    let renewing = async {
        tokio::time::sleep(Duration::from_millis(4_400)).await;
        holder.round().await
    };
    let (read, renewed) = tokio::join!(reading, renewing);
    assert_eq!(read.unwrap().0, None);
    let until = renewed.unwrap().0.unwrap().until;
    *slow.lock().unwrap() = Duration::ZERO;
    let (second, _) = lead(&mut contender).await;
    assert!(
        Instant::now() >= until,
        "b leads while a relies on its lease for {:?}",
        until - Instant::now()
    );
    assert_eq!(second.term, 2);
}

/// The holder's own write is slow: what counts for it is when it was sent.
#[tokio::test(start_paused = true)]
async fn a_slow_renewal_does_not_lengthen_the_lease() {
    let server = server();
    insert_released(&server, 0);
    let service = server.service_as("a");
    let service = tower::service_fn(move |request: Request<Body>| {
        let service = service.clone();
        async move {
            let writes = request.method() == Method::PUT;
            let reply = service.oneshot(request).await;
            if writes {
                tokio::time::sleep(secs(4)).await;
            }
            reply
        }
    });
    let mut holder = elector_over(Client::new(service, "default"), "a");
    let began = Instant::now();
    let (mine, took) = lead(&mut holder).await;
    assert_eq!(took, LEASE_DURATION + secs(4));
    assert_eq!(mine.until, began + LEASE_DURATION + LEASE_DURATION - MARGIN);
}

#[tokio::test(start_paused = true)]
async fn a_missing_lease_is_taken_after_one_whole_lease() {
    let server = server();
    let mut first = elector(&server, "a");
    let (mine, took) = lead(&mut first).await;
    assert_eq!(mine.term, 1);
    assert!(took >= LEASE_DURATION, "{took:?}");
}

/// The Lease is deleted while its holder is cut off, and the holder goes on relying on it.
#[tokio::test(start_paused = true)]
async fn a_deleted_lease_brings_no_second_leader() {
    let server = server();
    insert_released(&server, 4);
    let mut holder = elector(&server, "a");
    let (mine, _) = lead(&mut holder).await;
    delete(&server).await;
    let mut contender = elector(&server, "b");
    lead(&mut contender).await;
    assert!(
        Instant::now() >= mine.until,
        "b leads while a relies on its lease"
    );
}

#[tokio::test(start_paused = true)]
async fn a_living_holder_writes_a_deleted_lease_again() {
    let server = server();
    insert_released(&server, 4);
    let (mut holder, mut contender) = (elector(&server, "a"), elector(&server, "b"));
    let (mine, _) = lead(&mut holder).await;
    // The contender never sees the Lease, however often it looks.
    for _ in 0..10 {
        delete(&server).await;
        assert_eq!(contender.round().await.unwrap().0, None);
        assert_eq!(lease(&server)["spec"]["holderIdentity"], VACANT);
        tokio::time::sleep(RENEW_EVERY).await;
        let (still, _) = holder.round().await.unwrap();
        assert_eq!(still.map(|l| l.term), Some(mine.term));
    }
    assert_eq!(lease(&server)["spec"]["holderIdentity"], "a");
    assert_eq!(contender.round().await.unwrap().0, None);
}

/// A backup of a minute without any leader comes back while a leader of a later term works that has journaled nothing yet.
#[tokio::test(start_paused = true)]
async fn a_restored_vacant_lease_makes_no_leader_at_once() {
    let server = server();
    insert_released(&server, 5);
    let (mut leader, mut standby) = (elector(&server, "a"), elector(&server, "b"));
    let (first, _) = lead(&mut leader).await;
    assert_eq!(first.term, 6);
    assert_eq!(standby.round().await.unwrap().0, None);
    // Neither a process that saw the leader's term nor one that has just started takes it.
    for contender in [&mut standby, &mut elector(&server, "c")] {
        insert_released(&server, 5);
        assert_eq!(contender.round().await.unwrap().0, None);
    }
    // The leader's next renewal replaces it.
    let renewed = leader.round().await.unwrap().0.expect("it still leads");
    assert_eq!(
        (
            renewed.term,
            lease(&server)["spec"]["holderIdentity"].as_str()
        ),
        (6, Some("a"))
    );
    // Where no renewal comes, the next term is above the one that was seen.
    insert_released(&server, 5);
    let (second, _) = lead(&mut standby).await;
    assert!(
        Instant::now() >= renewed.until && second.term == 7,
        "{second:?} after {renewed:?}"
    );
}

/// A replica that watches the leader give the Lease up does not wait; after a gap in what it saw it does.
#[tokio::test(start_paused = true)]
async fn a_release_counts_for_a_process_that_watched_it() {
    for (gap, waits) in [(secs(3), false), (secs(60), true)] {
        let server = server();
        let (mut old, mut new) = (elector(&server, "a"), elector(&server, "b"));
        lead(&mut old).await;
        assert_eq!(new.round().await.unwrap().0, None);
        tokio::time::sleep(gap).await;
        old.release().await.unwrap();
        let (mine, took) = lead(&mut new).await;
        assert_eq!(
            (mine.term, took >= LEASE_DURATION),
            (2, waits),
            "after {gap:?}: {took:?}"
        );
    }
}

/// A backup brings back what the Lease was when this very process held it; another one holds it since.
#[tokio::test(start_paused = true)]
async fn a_restored_lease_makes_no_leader_at_once() {
    let server = server();
    insert_released(&server, 0);
    let (mut a, mut b) = (elector(&server, "a"), elector(&server, "b"));
    lead(&mut a).await;
    a.release().await.unwrap();
    let (second, _) = lead(&mut b).await;
    assert_eq!(second.term, 2);
    for (restored, term) in [("a", 1), ("a", 2), ("gone", 1)] {
        insert(&server, restored, term);
        assert_eq!(
            a.round().await.unwrap().0,
            None,
            "holder {restored}, term {term}"
        );
    }
    // Restored as given up, and a journal shows that this is not the newest state.
    insert_journal(&server, "data", &[1, 2]);
    insert_released(&server, 1);
    assert_eq!(a.round().await.unwrap().0, None);
    let (third, _) = lead(&mut a).await;
    assert!(
        Instant::now() >= second.until && third.term > second.term,
        "{third:?} after {second:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_term_is_higher_than_any_in_a_journal() {
    let server = server();
    insert_released(&server, 0);
    for me in ["a", "b", "c"] {
        let mut e = elector(&server, me);
        let (mine, _) = lead(&mut e).await;
        insert_journal(&server, &format!("of-{me}"), &[mine.term]);
        e.release().await.unwrap();
    }
    delete(&server).await;
    let (mine, _) = lead(&mut elector(&server, "d")).await;
    assert_eq!(mine.term, 4, "after the Lease was deleted");

    insert_released(&server, 2);
    let (mine, took) = lead(&mut elector(&server, "e")).await;
    assert_eq!(mine.term, 4, "after the Lease was restored from a backup");
    assert!(took >= LEASE_DURATION, "{took:?}");

    // The last of many journals counts as the first does.
    for n in 0..120 {
        insert_journal(&server, &format!("other-{n}"), &[1, 1, 2]);
    }
    insert_journal(&server, "zz", &[1, 9, 11]);
    insert_released(&server, 20);
    assert_eq!(lead(&mut elector(&server, "f")).await.0.term, 21);
    insert_released(&server, 5);
    assert_eq!(lead(&mut elector(&server, "g")).await.0.term, 12);
}

/// Nobody but a person with a right to the status can have written such a line. It must not end all elections.
#[tokio::test(start_paused = true)]
async fn an_impossible_term_is_ignored() {
    let server = server();
    insert_released(&server, 3);
    insert_journal(&server, "data", &[2, u64::from(u32::MAX), u64::MAX]);
    assert_eq!(lead(&mut elector(&server, "a")).await.0.term, 4);
}

#[tokio::test(start_paused = true)]
async fn journals_that_cannot_be_listed_make_no_leader() {
    let server = server();
    insert_released(&server, 3);
    let requests = RequestMatch {
        verb: Some(Verb::List),
        resource: Some("volumerecoveries".into()),
        ..RequestMatch::default()
    };
    let status = ApiStatus::new(403, "forbidden");
    let id = server.add_fault(FaultRule::always(
        requests,
        Fault::Status {
            status,
            after_effect: false,
            retry_after: None,
        },
    ));
    let mut e = elector(&server, "a");
    let said = refused(&mut e).await;
    assert!(said.contains("forbidden"), "{said}");
    assert_eq!(lease(&server)["spec"]["holderIdentity"], "");
    server.remove_fault(id);
    assert_eq!(lead(&mut e).await.0.term, 4);
}

/// Runs rounds of a contender until it must count, and answers the error of the count.
async fn refused(elector: &mut Elector) -> String {
    loop {
        match elector.round().await {
            Ok((leads, wake)) => {
                assert_eq!(leads, None);
                tokio::time::sleep_until(wake).await;
            }
            Err(error) => return error.to_string(),
        }
    }
}

/// A renewal is one read and one write; only a new term costs a list.
#[tokio::test(start_paused = true)]
async fn a_renewal_lists_no_journals() {
    let server = server();
    insert_released(&server, 0);
    let mut e = elector(&server, "a");
    lead(&mut e).await;
    let lists = || {
        let all = server.audit();
        all.iter()
            .filter(|a| a.resource == "volumerecoveries")
            .count()
    };
    let before = lists();
    for _ in 0..20 {
        tokio::time::sleep(RENEW_EVERY).await;
        assert!(e.round().await.unwrap().0.is_some());
    }
    assert_eq!(lists(), before);
}

/// The reply to the write that takes the Lease is lost: the record shows that it was applied.
#[tokio::test(start_paused = true)]
async fn a_lost_reply_costs_no_whole_lease() {
    let server = server();
    insert_released(&server, 3);
    server.add_fault(FaultRule {
        requests: RequestMatch {
            verb: Some(Verb::Update),
            resource: Some("leases".into()),
            ..RequestMatch::default()
        },
        fault: Fault::Disconnect { after_effect: true },
        probability: 1.0,
        times: Some(1),
    });
    let mut e = elector(&server, "a");
    refused(&mut e).await;
    let (mine, took) = lead(&mut e).await;
    assert_eq!((mine.term, took), (4, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn decisions() {
    let now = Instant::now();
    let found = |holder: &str, term, age| Record::Found {
        holder: holder.into(),
        term,
        version: "1".into(),
        duration: LEASE_DURATION,
        since: now - secs(age),
        seen_released: false,
    };
    let given_up = |term| Record::Found {
        holder: String::new(),
        term,
        version: "1".into(),
        duration: LEASE_DURATION,
        since: now,
        seen_released: true,
    };
    let held = |term| Hold::Held {
        term,
        until: now + secs(1),
    };
    let wait = |age| Decision::Wait {
        until: now - secs(age) + LEASE_DURATION,
    };
    let acquire = |term| Decision::Acquire { term };
    tokio::time::sleep(secs(1)).await;
    let table = [
        (found("me", 5, 1), held(5), 0, Decision::Renew { term: 5 }),
        (
            found("me", 5, 1),
            Hold::Tried { term: 5 },
            0,
            Decision::Renew { term: 5 },
        ),
        (found("me", 4, 1), held(5), 0, wait(1)),
        (found("me", 5, 1), Hold::None, 0, wait(1)),
        (found("me", 5, 15), Hold::None, 0, acquire(6)),
        (found("other", 5, 1), held(5), 0, wait(1)),
        (found("other", 5, 14), Hold::None, 0, wait(14)),
        (found("other", 5, 15), Hold::None, 0, acquire(6)),
        (found("other", 5, 15), Hold::None, 9, acquire(10)),
        (given_up(5), Hold::None, 0, acquire(6)),
        (given_up(5), Hold::None, 5, acquire(6)),
        (given_up(5), Hold::None, 6, wait(0)),
        (found("", 5, 0), Hold::None, 0, wait(0)),
        (found("", 5, 0), Hold::None, 5, wait(0)),
        (found("", 5, 14), Hold::None, 5, wait(14)),
        (found("", 5, 15), Hold::None, 5, acquire(6)),
        (found("", 5, 0), Hold::None, 6, wait(0)),
        (found("", 5, 15), Hold::None, 6, acquire(7)),
        (found(VACANT, 3, 0), held(5), 0, Decision::Renew { term: 5 }),
        (found("", 3, 0), held(5), 0, Decision::Renew { term: 5 }),
        (
            found(VACANT, 3, 0),
            Hold::Held {
                term: 5,
                until: now,
            },
            0,
            wait(0),
        ),
        (found(VACANT, 3, 14), Hold::None, 0, wait(14)),
        (found(VACANT, 3, 15), Hold::None, 0, acquire(4)),
        (found(VACANT, 3, 15), Hold::None, 7, acquire(8)),
        (Record::Missing, held(5), 0, Decision::Renew { term: 5 }),
        (
            Record::Missing,
            Hold::Tried { term: 5 },
            0,
            Decision::Reserve,
        ),
        (
            Record::Missing,
            Hold::Held {
                term: 5,
                until: now,
            },
            7,
            Decision::Reserve,
        ),
        (Record::Missing, Hold::None, 7, Decision::Reserve),
    ];
    for (record, hold, highest, expected) in table {
        let said = decide(&record, "me", hold, highest, now);
        assert_eq!(said, expected, "{record:?}, {hold:?}, highest {highest}");
    }
}
