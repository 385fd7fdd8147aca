//! Stamps are text: what an editor of a namespace writes into one scales nothing up, and an honest one still brings a workload
//! back.

use reattach_api::Phase;
use reattach_core::runbook::SCALE_TO_ZERO;
use reattach_core::stamp::STAMP_ANNOTATION;
use reattach_drill::stage::Stage;
use reattach_drill::world::{APPS, PERSON, World};
use reattach_tests_simulation::fixture::{recovery_path, redis_to_zero, redis_under, replicas};
use reattach_tests_simulation::{play, redis, secs, story};
use serde_json::{Value, json};

const WORKLOAD: &str = "/apis/apps/v1/namespaces/default/deployments/redis";
/// Has `edit` in the namespace.
const EDITOR: &str = "editor@example.org";
/// The name that the controller gives itself as a writer; everybody can.
const OUR_NAME: &str = "?fieldManager=reattach-controller/0.1.0";

fn workload(w: &World) -> Value {
    redis()
        .read(w.server())
        .map(|o| Value::clone(&o))
        .expect("the workload")
}

fn is_stamped(w: &World) -> bool {
    !workload(w)["metadata"]["annotations"][STAMP_ANNOTATION].is_null()
}

/// Redis under a policy that scales to zero, and a controller.
async fn set() -> Stage {
    redis_under(1, SCALE_TO_ZERO).await.expect("redis runs")
}

/// As [`set`], up to the moment at which a run has scaled redis to zero.
async fn at_zero() -> Stage {
    let mut s = set().await;
    redis_to_zero(&mut s).await.expect("at zero");
    s
}

/// Its owner has scaled redis to zero.
async fn at_zero_by_its_owner() -> Stage {
    let mut s = set().await;
    s.world
        .merge(PERSON, WORKLOAD, &json!({"spec": {"replicas": 0}}))
        .await
        .expect("scaled");
    s.pass(secs(30)).await;
    s
}

/// The editor writes a stamp for 5,000 replicas that names this recovery; `query` goes with the request.
async fn forge(s: &Stage, recovery: &str, query: &str) {
    let uid = workload(&s.world)["metadata"]["uid"].clone();
    let stamp =
        json!({"replicas": 5_000, "workload": uid, "recovery": recovery, "at": s.world.now()});
    annotate(s, &stamp.to_string(), query).await;
}

async fn annotate(s: &Stage, stamp: &str, query: &str) {
    let body = json!({"metadata": {"annotations": {STAMP_ANNOTATION: stamp}}});
    s.world
        .merge(EDITOR, &format!("{WORKLOAD}{query}"), &body)
        .await
        .expect("accepted");
}

/// The editor changes the count in the stamp of a run.
async fn edit_count(s: &Stage, count: i64) {
    let text = workload(&s.world)["metadata"]["annotations"][STAMP_ANNOTATION].clone();
    let mut stamp: Value = serde_json::from_str(text.as_str().expect("a stamp")).expect("JSON");
    stamp["replicas"] = json!(count);
    annotate(s, &stamp.to_string(), "").await;
}

/// Deletes the record and removes its finalizer.
async fn delete_the_record(s: &Stage) {
    let path = recovery_path(s);
    s.world
        .request(PERSON, "DELETE", &path, "application/json", &json!({}))
        .await
        .expect("accepted");
    s.world
        .merge(PERSON, &path, &json!({"metadata": {"finalizers": null}}))
        .await
        .expect("accepted");
}

/// The controller that saw the journal dies, and the record goes before another one leads.
async fn delete_the_record_unseen(s: &mut Stage) {
    s.replicas.remove(0).kill();
    delete_the_record(s).await;
    s.start_replica("reattach-controller-1", None);
}

/// The notes of the Events of this reason about redis.
fn notes(w: &World, reason: &str) -> Vec<String> {
    let text = |e: &Value, field: &str| e[field].as_str().unwrap_or_default().to_owned();
    let all = ["", "events.k8s.io"]
        .into_iter()
        .flat_map(|group| w.server().list(group, "events", Some(APPS)));
    all.filter(|e| e["reason"] == reason)
        .map(|e| text(&e, "note") + &text(&e, "message"))
        .collect()
}

/// The most replicas that any request has set for redis.
fn most_ever(w: &World) -> i64 {
    let audit = w.server().audit();
    let counts = audit
        .iter()
        .filter(|e| e.resource == "deployments" && e.verb.mutates());
    let counts = counts.filter_map(|e| e.body.as_ref()?.pointer("/spec/replicas")?.as_i64());
    counts.max().unwrap_or_default()
}

/// One Event with these words, however often the stamp is seen.
#[track_caller]
fn reported_once(s: &Stage, reason: &str, words: &str) {
    let notes = notes(&s.world, reason);
    assert!(
        notes.len() == 1 && notes[0].contains(words),
        "{reason}: {notes:#?}\n{}",
        story(s)
    );
}

#[test]
fn a_forged_stamp_scales_nothing_and_is_reported_once() {
    play(|| async {
        let mut s = at_zero_by_its_owner().await;
        forge(&s, "a-recovery-that-never-was", "").await;
        s.pass(secs(600)).await;
        assert_eq!(
            (replicas(&s.world), is_stamped(&s.world)),
            (0, true),
            "{}",
            story(&s)
        );
        reported_once(
            &s,
            "StampIgnored",
            "does not name reattach as the last writer",
        );
    });
}

/// A run of the controller has healed redis long ago, and the forged stamp names that run.
#[test]
fn a_stamp_of_a_run_on_another_workload_scales_nothing() {
    play(|| async {
        let mut s = at_zero().await;
        s.phases(&["redis"], &[Phase::Recovered], secs(600))
            .await
            .expect("healed");
        let run = s
            .recovery_of("redis")
            .and_then(|r| r.metadata.uid)
            .expect("a UID");
        let mut other = reattach_sim::manifests::deployment(APPS, "other", 0, &[]);
        let made = s.world.create(EDITOR, &other).await.expect("created");
        let stamp = json!({"replicas": 5_000, "workload": made["metadata"]["uid"], "recovery": run,
            "at": s.world.now()});
        other["metadata"]["annotations"] = json!({STAMP_ANNOTATION: stamp.to_string()});
        let path = format!("/apis/apps/v1/namespaces/{APPS}/deployments/other");
        let body = json!({"metadata": {"annotations": other["metadata"]["annotations"]}});
        s.world
            .merge(EDITOR, &format!("{path}{OUR_NAME}"), &body)
            .await
            .expect("accepted");
        s.pass(secs(300)).await;
        let now = s
            .world
            .server()
            .read("apps", "deployments", APPS, "other")
            .expect("it is there");
        assert_eq!(now["spec"]["replicas"], 0, "{}", story(&s));
        reported_once(&s, "StampIgnored", "did not scale this workload");
    });
}

/// The editor writes under reattach's name, which the API server takes from everybody: that alone gives one replica.
#[test]
fn a_forged_stamp_is_bounded_by_the_workloads_past() {
    play(|| async {
        let mut s = at_zero_by_its_owner().await;
        forge(&s, "a-recovery-that-never-was", OUR_NAME).await;
        s.until("looked at", secs(130), |w| !is_stamped(w))
            .await
            .expect("the stamp is dealt with");
        s.pass(secs(130)).await;
        assert!(
            replicas(&s.world) == 1 && most_ever(&s.world) <= 1,
            "{}",
            story(&s)
        );
        reported_once(
            &s,
            "StampNotBelieved",
            "nothing in the workload's own past shows more than one",
        );
    });
}

#[test]
fn a_stamp_edited_in_a_run_restores_the_journals_count() {
    play(|| async {
        let mut s = at_zero().await;
        edit_count(&s, 5_000).await;
        s.phases(&["redis"], &[Phase::Recovered], secs(600))
            .await
            .expect("healed");
        s.pass(secs(130)).await;
        assert!(
            replicas(&s.world) == 1 && most_ever(&s.world) <= 1,
            "{}",
            story(&s)
        );
        reported_once(&s, "StampNotBelieved", "the recovery's journal says 1");
        let journal = s
            .recovery_of("redis")
            .and_then(|r| r.status)
            .map(|st| st.journal)
            .unwrap_or_default();
        let journal = serde_json::to_string(&journal).expect("JSON");
        assert!(
            journal.contains("says 5000 replicas"),
            "the journal says so, too: {journal}"
        );
    });
}

/// As above, while the run unwinds.
#[test]
fn a_stamp_edited_before_an_abort_restores_the_journals_count() {
    play(|| async {
        let mut s = at_zero().await;
        edit_count(&s, 40).await;
        let path = recovery_path(&s);
        let abort = json!({"spec": {"abort": {"by": PERSON, "reason": "enough"}}});
        s.world
            .merge(PERSON, &path, &abort)
            .await
            .expect("accepted");
        s.until("restored", secs(300), |w| replicas(w) > 0)
            .await
            .expect("restored");
        s.pass(secs(130)).await;
        assert!(
            replicas(&s.world) == 1 && most_ever(&s.world) <= 1,
            "{}",
            story(&s)
        );
        reported_once(&s, "StampNotBelieved", "the recovery's journal says 1");
    });
}

/// The controller that led has seen the journal, which counts also when the record is gone.
#[test]
fn a_force_deleted_record_still_shows_the_count() {
    play(|| async {
        let mut s = at_zero().await;
        s.pass(secs(6)).await;
        edit_count(&s, 40).await;
        delete_the_record(&s).await;
        s.until("restored", secs(200), |w| replicas(w) > 0)
            .await
            .expect("restored");
        s.pass(secs(130)).await;
        assert!(
            replicas(&s.world) == 1 && most_ever(&s.world) <= 1,
            "{}",
            story(&s)
        );
        reported_once(&s, "StampNotBelieved", "the recovery's journal says 1");
    });
}

/// No controller that runs has seen the journal: the honest stamp suffices.
#[test]
fn an_honest_stamp_restores_without_any_record() {
    play(|| async {
        let mut s = at_zero().await;
        delete_the_record_unseen(&mut s).await;
        s.until("restored", secs(300), |w| replicas(w) == 1)
            .await
            .expect("restored");
        s.running(&["redis"], secs(600)).await.expect("it runs");
        assert!(!is_stamped(&s.world), "{}", story(&s));
        for reason in ["StampIgnored", "StampNotBelieved"] {
            assert_eq!(
                notes(&s.world, reason),
                Vec::<String>::new(),
                "{}",
                story(&s)
            );
        }
    });
}

/// The zero is ours and the count is the editor's: the workload does not stay at zero, and gets no more than its past shows.
#[test]
fn a_count_beyond_the_past_is_cut_and_a_person_is_called() {
    play(|| async {
        let mut s = at_zero().await;
        edit_count(&s, 40).await;
        delete_the_record_unseen(&mut s).await;
        s.until("restored", secs(300), |w| replicas(w) > 0)
            .await
            .expect("restored");
        s.pass(secs(130)).await;
        assert!(
            replicas(&s.world) == 1 && most_ever(&s.world) <= 1,
            "{}",
            story(&s)
        );
        reported_once(
            &s,
            "StampNotBelieved",
            "says 40 replicas, no journal of its recovery can be read",
        );
    });
}

/// The text of the stamp is spoilt, and nothing else says the count: a person is called, once.
#[test]
fn a_malformed_stamp_without_a_record_calls_a_person() {
    play(|| async {
        let mut s = at_zero().await;
        annotate(&s, "five thousand", "").await;
        delete_the_record_unseen(&mut s).await;
        s.pass(secs(600)).await;
        assert_eq!(replicas(&s.world), 0, "{}", story(&s));
        reported_once(&s, "StampUnreadable", "Scale the workload by hand");
    });
}

/// A namespace full of forged stamps costs twenty Events in a sweep, and delays the honest stamp of another one by nothing.
#[test]
fn forged_stamps_of_one_namespace_are_dealt_with_in_turn() {
    play(|| async {
        let mut s = at_zero().await;
        let full =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a-first"}});
        s.world.server().insert(&full);
        for n in 0..100 {
            let forged = reattach_sim::manifests::deployment("a-first", &format!("w{n}"), 0, &[]);
            let made = s.world.create(EDITOR, &forged).await.expect("created");
            let stamp = json!({"replicas": 5_000, "workload": made["metadata"]["uid"],
                "recovery": format!("r{n}"), "at": s.world.now()});
            let body = json!({"metadata": {"annotations": {STAMP_ANNOTATION: stamp.to_string()}}});
            let path = format!("/apis/apps/v1/namespaces/a-first/deployments/w{n}");
            s.world.merge(EDITOR, &path, &body).await.expect("accepted");
        }
        let reported = |w: &World| {
            let events = w.server().list("", "events", Some("a-first"));
            events
                .iter()
                .filter(|e| e["reason"] == "StampIgnored")
                .count()
        };
        delete_the_record_unseen(&mut s).await;
        s.until("restored", secs(150), |w| replicas(w) == 1)
            .await
            .expect("restored at the first sweep");
        let first = reported(&s.world);
        assert!(
            (1..=20).contains(&first),
            "{first} Events at the first sweep"
        );
        s.pass(secs(600)).await;
        assert_eq!(reported(&s.world), 100);
    });
}
