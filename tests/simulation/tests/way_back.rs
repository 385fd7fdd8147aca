//! The way back, and its pace: what a run changed is put back however often the API server refuses a write, a person is
//! called at the first refusal, and nothing is driven in a loop meanwhile.

use jiff::Timestamp;
use reattach_api::{Phase, condition};
use reattach_core::runbook::{DEFAULT_RUNBOOK, SCALE_TO_ZERO};
use reattach_drill::replica::CONTROLLER_USER;
use reattach_drill::stage::{Expect, Stage, recovery_of};
use reattach_drill::world::{APPS, PERSON, World};
use reattach_sim::apiserver::{ApiStatus, Fault, FaultRule, RequestMatch, Verb};
use reattach_tests_simulation::fixture::{
    new_stage, recovery_path, recycle_redis, redis_to_zero, redis_under, replicas,
};
use reattach_tests_simulation::{NODES, broken_rules, play, redis, secs};
use serde_json::{Value, json};

/// Path of the workload that is restored.
const WORKLOAD: &str = "/apis/apps/v1/namespaces/default/deployments/redis";
/// Requests that end a hold.
const HOLD: [&str; 2] = [
    "/apis/reattach.dev/v1alpha1/namespaces/default/volumerecoveries/",
    "/api/v1/namespaces/default/pods/",
];
/// The most requests of a controller in a minute in which it can do nothing. Its Lease alone takes 40.
const QUIET_MINUTE: usize = 300;

/// An app under a policy of mode Auto, and a controller.
async fn set(runbook: &str) -> Stage {
    redis_under(1, runbook).await.expect("redis runs")
}

async fn recycle(s: &mut Stage) {
    recycle_redis(s).await.expect("a recycle");
}

/// As [`set`], up to the moment at which the workload is at zero.
async fn at_zero(runbook: &str) -> Stage {
    let mut s = set(runbook).await;
    redis_to_zero(&mut s).await.expect("at zero");
    s
}

fn refuse(w: &World, code: u16, message: &str, requests: RequestMatch, times: Option<u32>) {
    let fault = Fault::Status {
        status: ApiStatus::new(code, message),
        after_effect: false,
        retry_after: None,
    };
    let requests = RequestMatch {
        client: Some("reattach-controller".into()),
        ..requests
    };
    w.server().add_fault(FaultRule {
        requests,
        fault,
        probability: 1.0,
        times,
    });
}

fn patches(resource: &str) -> RequestMatch {
    RequestMatch {
        verb: Some(Verb::Patch),
        resource: Some(resource.into()),
        ..RequestMatch::default()
    }
}

fn statuses() -> RequestMatch {
    RequestMatch {
        mutations_only: true,
        resource: Some("volumerecoveries".into()),
        subresource: Some("status".into()),
        ..RequestMatch::default()
    }
}

fn requests_since(w: &World, at: Timestamp) -> usize {
    w.server()
        .audit()
        .iter()
        .filter(|e| e.user == CONTROLLER_USER && e.at >= at)
        .count()
}

/// The controller's requests in one minute, to the API server and to the cloud.
async fn one_minute(s: &mut Stage) -> (usize, usize) {
    let (at, cloud) = (s.world.now(), s.world.cloud.requests().len());
    s.pass(secs(60)).await;
    (
        requests_since(&s.world, at),
        s.world.cloud.requests().len() - cloud,
    )
}

async fn quiet_minute(s: &mut Stage) {
    let (kubernetes, cloud) = one_minute(s).await;
    println!("one minute: {kubernetes} requests to the API server, {cloud} to the cloud");
    assert!(
        kubernetes < QUIET_MINUTE && cloud < 60,
        "{kubernetes} and {cloud} requests in a minute"
    );
}

fn is_called(s: &Stage) -> bool {
    let status = s.recovery_of("redis").and_then(|r| r.status);
    let conditions = status.map(|s| s.conditions).unwrap_or_default();
    conditions
        .iter()
        .any(|c| c.type_ == condition::STALLED && c.status == "True")
}

fn events(w: &World, reason: &str) -> usize {
    let all = ["", "events.k8s.io"]
        .into_iter()
        .flat_map(|group| w.server().list(group, "events", Some(APPS)));
    all.filter(|e| e["reason"] == reason).count()
}

fn phase(s: &Stage) -> (Phase, String) {
    s.recovery_of("redis")
        .and_then(|r| r.status)
        .map(|s| (s.phase, s.message))
        .expect("a recovery")
}

fn unbroken(s: &mut Stage) {
    unbroken_but(s, &[]);
}

/// As [`unbroken`], after a restore without a journal: no line announced the writes to these paths.
fn unbroken_but(s: &mut Stage, put_back: &[&str]) {
    s.look();
    let expected = |b: &String| {
        b.starts_with("S3: not announced: ")
            && put_back
                .iter()
                .any(|path| b.contains(&format!(" PATCH {path}")))
    };
    let broken: Vec<String> = broken_rules(s)
        .into_iter()
        .filter(|b| !expected(b))
        .collect();
    let timeline: String = s.lines().iter().map(|l| l.render()).collect();
    assert!(broken.is_empty(), "{broken:#?}\n{timeline}");
}

/// A token that is being renewed, or an authenticator that fails once.
#[test]
fn one_refused_restore_ends_no_run() {
    for code in [401, 403, 404, 422] {
        play(move || async move {
            let mut s = at_zero(SCALE_TO_ZERO).await;
            refuse(&s.world, code, "refused", patches("deployments"), Some(1));
            s.phases(&["redis"], &[Phase::Recovered], secs(600))
                .await
                .expect("healed");
            assert_eq!(replicas(&s.world), 1);
            s.pass(secs(30)).await;
            unbroken(&mut s);
        });
    }
}

/// The component `scaler` is taken away while a workload is at zero, and given again after half an hour.
#[test]
fn a_refused_restore_escalates_and_is_retried() {
    play(|| async {
        let mut s = at_zero(SCALE_TO_ZERO).await;
        refuse(
            &s.world,
            403,
            "cannot patch deployments",
            patches("deployments"),
            None,
        );
        let mut waited = 0;
        while !is_called(&s) {
            s.pass(secs(1)).await;
            waited += 1;
            assert!(waited < 120, "nobody was called: {:?}", phase(&s));
        }
        let (_, said) = phase(&s);
        assert!(
            said.contains("cannot patch deployments") && said.contains("tried again"),
            "{said}"
        );
        quiet_minute(&mut s).await;
        s.pass(secs(1_500)).await;
        quiet_minute(&mut s).await;
        // Once for the step that restores, and once for the way back after its deadline.
        let calls = events(&s.world, "Escalated");
        assert!(
            replicas(&s.world) == 0 && (1..=2).contains(&calls),
            "{calls} calls, {:?}",
            phase(&s)
        );
        s.world.server().clear_faults();
        s.until("restored", secs(120), |w| replicas(w) == 1)
            .await
            .expect("restored");
        s.running(&["redis"], secs(600)).await.expect("it runs");
        s.pass(secs(60)).await;
        assert!(phase(&s).0.is_final(), "{:?}", phase(&s));
        unbroken(&mut s);
    });
}

/// The message names the reason for unwinding first and the current wait after it, whatever text the reason has.
#[test]
fn any_text_of_a_reason_is_kept_while_the_run_waits() {
    play(|| async {
        let mut s = at_zero(SCALE_TO_ZERO).await;
        refuse(
            &s.world,
            403,
            "cannot patch deployments",
            patches("deployments"),
            None,
        );
        let path = recovery_path(&s);
        let abort = json!({"spec": {"abort": {"by": "jane; waiting: for nobody"}}});
        s.world
            .merge(PERSON, &path, &abort)
            .await
            .expect("accepted");
        s.until("a restore that is refused", secs(300), |w| {
            let waits = |r: reattach_api::VolumeRecovery| {
                r.status
                    .is_some_and(|st| st.message.contains("tried again"))
            };
            recovery_of(w, &redis()).is_some_and(waits)
        })
        .await
        .expect("a wait");
        let (_, said) = phase(&s);
        let expected = "unwinding: aborted by jane; waiting: for nobody; waiting: the restoring write is tried again";
        assert!(said.starts_with(expected), "{said}");
    });
}

/// The journal has room for an hour of tries. After that the stamp alone says what to restore.
#[test]
fn a_failed_run_restores_by_its_stamp() {
    play(|| async {
        let mut s = at_zero(SCALE_TO_ZERO).await;
        refuse(
            &s.world,
            403,
            "cannot patch deployments",
            patches("deployments"),
            None,
        );
        s.phases(&["redis"], &[Phase::Stuck], secs(7_200))
            .await
            .expect("the journal is full");
        let lines = |s: &Stage| {
            s.recovery_of("redis")
                .and_then(|r| r.status)
                .map_or(0, |s| s.journal.len())
        };
        let full = lines(&s);
        assert!(full < 200, "{full} lines");
        quiet_minute(&mut s).await;
        s.pass(secs(3_600)).await;
        quiet_minute(&mut s).await;
        assert_eq!(
            (replicas(&s.world), lines(&s), phase(&s).0),
            (0, full, Phase::Stuck)
        );
        let kept = s
            .recovery_of("redis")
            .and_then(|r| r.metadata.finalizers)
            .unwrap_or_default();
        assert_eq!(
            kept,
            ["reattach.dev/restore"],
            "something of it is in force"
        );
        s.world.server().clear_faults();
        s.until("restored", secs(330), |w| replicas(w) == 1)
            .await
            .expect("restored");
        s.phases(&["redis"], &[Phase::Failed], secs(60))
            .await
            .expect("over");
        let (_, said) = phase(&s);
        assert!(
            said.contains("everything has been restored since"),
            "{said}"
        );
        s.running(&["redis"], secs(600)).await.expect("it runs");
        s.pass(secs(30)).await;
        unbroken_but(&mut s, &[WORKLOAD]);
    });
}

/// Another version's CRD is applied, or the right to the status is taken away: no line of a journal can be written.
#[test]
fn a_refused_status_leaves_nothing_at_zero() {
    for (code, message) in [
        (422, "status.journal: Too many: must have at most 512 items"),
        (403, "forbidden"),
    ] {
        play(move || async move {
            let mut s = at_zero(SCALE_TO_ZERO).await;
            refuse(&s.world, code, message, statuses(), None);
            let at = s.world.now();
            quiet_minute(&mut s).await;
            s.until("restored", secs(600), |w| replicas(w) == 1)
                .await
                .expect("restored without a journal");
            println!(
                "restored {} s after the refusals began",
                s.world.now().duration_since(at).as_secs()
            );
            assert_eq!(
                events(&s.world, "StatusRefused"),
                1,
                "a person is called once"
            );
            quiet_minute(&mut s).await;
            s.world.server().clear_faults();
            s.phases(&["redis"], &[Phase::Failed, Phase::Recovered], secs(300))
                .await
                .expect("over");
            s.running(&["redis"], secs(600)).await.expect("it runs");
            s.pass(secs(60)).await;
            unbroken_but(&mut s, &[WORKLOAD]);
        });
    }
}

/// A short refusal costs a short delay: the run continues and undoes nothing.
#[test]
fn a_status_accepted_again_resumes_the_run() {
    play(|| async {
        let mut s = at_zero(SCALE_TO_ZERO).await;
        refuse(&s.world, 403, "forbidden", statuses(), None);
        s.pass(secs(40)).await;
        assert_eq!(replicas(&s.world), 0);
        s.world.server().clear_faults();
        s.phases(&["redis"], &[Phase::Recovered], secs(300))
            .await
            .expect("healed");
        s.pass(secs(30)).await;
        unbroken(&mut s);
    });
}

/// S3 without a journal: the cloud was asked to detach, and the job is not over.
#[test]
fn a_refused_status_restores_nothing_during_a_detach() {
    use reattach_cloud_simulator::{DetachBehaviour, JobAction, JobStatus, VolumeNo};
    play(|| async {
        let mut s = set(SCALE_TO_ZERO).await;
        s.world.csi.set_unpublish_fails(true);
        s.world
            .cloud
            .set_detach(VolumeNo(7001), DetachBehaviour::Stuck)
            .expect("a volume");
        recycle(&mut s).await;
        let pending = |w: &World| {
            let open = |s: &JobStatus| matches!(s, JobStatus::Scheduled | JobStatus::Started);
            w.cloud
                .jobs()
                .iter()
                .any(|j| j.action == JobAction::VolumeDetach && open(&j.status))
        };
        s.until("our detach", secs(900), pending)
            .await
            .expect("a detach");
        refuse(&s.world, 422, "refused", statuses(), None);
        s.pass(secs(480)).await;
        assert!(pending(&s.world));
        assert_eq!(
            replicas(&s.world),
            0,
            "the disk would be pulled from under the next pod"
        );
    });
}

/// A hold: its label and the gates of waiting pods are removed without a journal.
#[test]
fn a_refused_status_leaves_no_pod_gated() {
    play(|| async {
        let mut s = set(DEFAULT_RUNBOOK).await;
        recycle(&mut s).await;
        let held = |w: &World| {
            let gated = |p: &Value| {
                p["spec"]["schedulingGates"]
                    .as_array()
                    .is_some_and(|g| !g.is_empty())
            };
            w.pods("redis").iter().any(|p| gated(p))
        };
        s.until("a held pod", secs(300), held).await.expect("held");
        refuse(&s.world, 422, "refused", statuses(), None);
        s.until("let go", secs(600), move |w| !held(w))
            .await
            .expect("let go without a journal");
        quiet_minute(&mut s).await;
        s.world.server().clear_faults();
        s.running(&["redis"], secs(900)).await.expect("it runs");
        let over = [Phase::Recovered, Phase::Failed, Phase::Resolved];
        s.phases(&["redis"], &over, secs(900)).await.expect("over");
        s.pass(secs(30)).await;
        unbroken_but(&mut s, &HOLD);
    });
}

/// The record is deleted by force, and the janitor's first writes are refused.
#[test]
fn the_janitor_retries_a_refused_restore() {
    play(|| async {
        let mut s = at_zero(SCALE_TO_ZERO).await;
        refuse(
            &s.world,
            403,
            "cannot patch deployments",
            patches("deployments"),
            None,
        );
        let path = recovery_path(&s);
        s.world
            .request(PERSON, "DELETE", &path, "application/json", &json!({}))
            .await
            .expect("accepted");
        let none = json!({"metadata": {"finalizers": null}});
        s.world.merge(PERSON, &path, &none).await.expect("accepted");
        s.pass(secs(300)).await;
        assert_eq!(replicas(&s.world), 0);
        quiet_minute(&mut s).await;
        s.world.server().clear_faults();
        s.until("restored", secs(130), |w| replicas(w) == 1)
            .await
            .expect("restored");
    });
}

/// Ten runs that need a person, and no person acts.
#[test]
fn stuck_recoveries_take_no_places_of_others() {
    play(|| async {
        let mut s = new_stage(1, &NODES).await.expect("a stage");
        s.add(redis(), Expect::Running).await.expect("an app");
        s.running(&["redis"], secs(180)).await.expect("it runs");
        let policy = json!({"mode": "Auto", "precedence": 0, "runbook": DEFAULT_RUNBOOK});
        s.world
            .policy_of("everything", &policy)
            .await
            .expect("a policy");
        for i in 0..10 {
            let made = s
                .world
                .create(
                    PERSON,
                    &json!({"apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
                        "metadata": {"name": format!("old-{i}"), "namespace": APPS},
                        "spec": {"claimName": format!("old-claim-{i}"), "mode": "Auto", "runbook": DEFAULT_RUNBOOK,
                            "requester": PERSON}}),
                )
                .await
                .expect("created");
            let mut stuck = made.clone();
            stuck["status"] = json!({"phase": "Stuck", "message": "a human is needed", "epoch": 0, "journal": [
                {"seq": 0, "at": "2026-03-01T00:00:00Z", "term": 1, "by": "x",
                    "mark": {"mark": "ended", "end": {"end": "stuck", "why": "x"}}}]});
            let path = format!(
                "/apis/reattach.dev/v1alpha1/namespaces/{APPS}/volumerecoveries/old-{i}/status"
            );
            s.world
                .request(PERSON, "PUT", &path, "application/json", &stuck)
                .await
                .expect("stored");
        }
        s.start_replica("reattach-controller-0", None);
        // Their terms are above the Lease's, so that the first leader waits for one lease duration.
        s.pass(secs(20)).await;
        quiet_minute(&mut s).await;
        recycle(&mut s).await;
        s.running(&["redis"], secs(300))
            .await
            .expect("healed beside them");
        s.phases(&["redis"], &[Phase::Recovered], secs(60))
            .await
            .expect("healed");
        s.pass(secs(1_800)).await;
        quiet_minute(&mut s).await;
    });
}
