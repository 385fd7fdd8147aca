//! What tenants, drivers and clouds write is data: no status, Event, log or report of ours repeats a control character, a
//! line break or a credential of it, nothing of it is unbounded, and no record tells the people of a namespace about
//! another one.

use reattach_api::{Phase, SMALL_STATUS_BYTES, VolumeRecovery, VolumeRecoveryStatus};
use reattach_cloud_simulator::{Fault as CloudFault, FaultRule as CloudFaultRule, Operation, When};
use reattach_cluster::cache::Cache;
use reattach_cluster::store::{self, SaveError};
use reattach_controller::nominees;
use reattach_core::diagnosis::{Diagnosis, Verdict};
use reattach_core::plain::{TEXT_CHARS, every_text, is_hidden};
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_drill::app::App;
use reattach_drill::replica::TOKEN;
use reattach_drill::stage::{Expect, Stage, recovery_of};
use reattach_drill::world::{APPS, PERSON, World};
use reattach_report::{Incident, Record, TICKET_CHARS, html, json as report_json, markdown};
use reattach_sim::apiserver::{ApiStatus, Fault, FaultRule, RequestMatch};
use reattach_sim::kubelet::DiskAfter;
use reattach_sim::{ApiServer, Clock, manifests};
use reattach_tests_simulation::fixture::on_first_node;
use reattach_tests_simulation::{NODES, play, postgres, secs};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Words of a tenant: terminal escapes, a forged line, reordered and hidden characters, a C1 control, markup.
const EVIL: &str = "seen\u{1b}[2J\u{1b}]0;owned\u{7}\nFORGED: recovered\r\u{202e}txt\u{200b}\u{9b}31m\u{2066}|end|\u{7f} <script>alert(1)</script>";

fn redis() -> App {
    reattach_tests_simulation::redis().with(|w| {
        w["metadata"]["annotations"] = json!({ "note": EVIL });
        w["spec"]["template"]["metadata"]["annotations"] = json!({ "note": EVIL });
    })
}

async fn stage(seed: u64, policy: &Value) -> Stage {
    let apps = [redis(), postgres()].map(|a| (a, Expect::Running));
    let s = on_first_node(seed, apps).await.expect("the apps run");
    s.world
        .policy_of("everything", policy)
        .await
        .expect("a policy");
    s
}

/// Fills Events with text that could break a terminal, a log or a report, as anyone with the right to write Events can.
fn evil_events(w: &World) {
    for app in ["redis", "postgres"] {
        for pod in w.pods(app) {
            let (name, at) = (
                pod["metadata"]["name"].as_str().unwrap_or_default(),
                w.now().to_string(),
            );
            w.server().insert(&json!({
                "apiVersion": "v1", "kind": "Event", "metadata": { "name": format!("{name}.evil"), "namespace": APPS },
                "type": "Warning", "reason": "FailedMount", "count": 1, "firstTimestamp": at, "lastTimestamp": at,
                "involvedObject": { "apiVersion": "v1", "kind": "Pod", "namespace": APPS, "name": name,
                    "uid": pod["metadata"]["uid"] },
                "source": { "component": EVIL, "host": NODES[0].0 },
                "message": format!("{EVIL} token={TOKEN} {}", "long ".repeat(4_000)),
            }));
        }
    }
}

/// The faults of a text that reattach wrote.
fn wrong(text: &str, most: usize, lines: bool) -> Option<String> {
    let shown: String = text.chars().take(300).collect();
    if text.contains(|c| is_hidden(c) && !(lines && c == '\n')) {
        return Some(format!("a hidden character: {shown:?}"));
    }
    if text.to_lowercase().contains(TOKEN) {
        return Some(format!("the credential: {shown:?}"));
    }
    (text.chars().count() > most).then(|| format!("{} characters: {shown:?}", text.chars().count()))
}

/// The faults of the records, Events and reports that exist now.
fn look(w: &World) -> BTreeSet<String> {
    let found = std::cell::RefCell::new(BTreeSet::new());
    let check = |value: &Value, place: &str, most: usize| {
        let mut value = value.clone();
        every_text(&mut value, &|text| {
            found
                .borrow_mut()
                .extend(wrong(text, most, false).map(|why| format!("{place}: {why}")));
            text.to_owned()
        });
    };
    for recovery in w.server().list("reattach.dev", "volumerecoveries", None) {
        let mut status = recovery["status"].clone();
        if let Some(ticket) = status["escalation"]
            .as_object_mut()
            .and_then(|e| e.remove("ticket"))
        {
            let why = wrong(ticket.as_str().unwrap_or_default(), TICKET_CHARS, true);
            found
                .borrow_mut()
                .extend(why.map(|why| format!("ticket: {why}")));
        }
        check(&status, "status", TEXT_CHARS);
        if recovery["spec"]["requester"] != PERSON {
            check(&recovery["spec"], "spec", 1_024);
        }
    }
    for (group, about) in [("", "involvedObject"), ("events.k8s.io", "regarding")] {
        for event in w.server().list(group, "events", None) {
            if event[about]["kind"]
                .as_str()
                .is_some_and(|k| k == "VolumeRecovery" || k == "RecoveryPolicy")
            {
                check(&event["note"], "Event", 1_024);
                check(&event["message"], "Event", 1_024);
            }
        }
    }
    let records: Vec<Record> = w
        .recoveries()
        .iter()
        .filter_map(|r| r.record(None).ok())
        .collect();
    let (from, to) = (w.now(), w.now());
    let incident = Incident {
        title: EVIL.to_owned(),
        from,
        to,
        records,
        notes: Vec::new(),
    };
    for (form, text) in [
        ("Markdown", markdown(&incident)),
        ("HTML", html(&incident)),
        ("JSON", report_json(&incident)),
    ] {
        found
            .borrow_mut()
            .extend(wrong(&text, usize::MAX, true).map(|why| format!("{form}: {why}")));
        if form != "JSON" && text.contains("<script") {
            found.borrow_mut().insert(format!("{form}: a tag"));
        }
    }
    found.into_inner()
}

/// Passes virtual time until `over`, and checks everything that is written meanwhile.
async fn watch_until(s: &mut Stage, limit: u64, over: impl Fn(&World) -> bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for _ in 0..limit {
        if over(&s.world) {
            break;
        }
        s.pass(secs(1)).await;
        found.extend(look(&s.world));
    }
    found.extend(look(&s.world));
    found
}

fn is_over(w: &World) -> bool {
    let all = w.recoveries();
    !all.is_empty()
        && all
            .iter()
            .all(|r| r.status.as_ref().is_some_and(|s| s.phase.is_final()))
}

#[test]
fn texts_of_tenants_and_clouds_are_stored_plain() {
    play(|| async {
        let mut s = stage(
            1,
            &json!({ "mode": "Auto", "precedence": 0, "runbook": DEFAULT_RUNBOOK }),
        )
        .await;
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(5)).await;
        // The cloud answers some reads with the credential that it was sent, and with escapes around it.
        let echo = format!(
            "{EVIL} no access for {TOKEN}; Authorization: Bearer {}",
            TOKEN.to_uppercase()
        );
        for operation in [
            Operation::DescribeVolume,
            Operation::ListVolumes,
            Operation::ListJobs,
        ] {
            let fault = CloudFault::Error {
                status: 403,
                reason: echo.clone(),
                when: When::BeforeEffect,
                body: Default::default(),
            };
            s.world
                .cloud
                .add_fault(CloudFaultRule::new([operation], fault).times(12));
        }
        s.recycle(NODES[0].0, DiskAfter::Kept, secs(6))
            .await
            .expect("a recycle");
        evil_events(&s.world);
        let mut found = BTreeSet::new();
        for _ in 0..30 {
            evil_events(&s.world);
            s.pass(secs(1)).await;
            found.extend(look(&s.world));
        }
        found.extend(watch_until(&mut s, 900, is_over).await);
        s.running(&["redis", "postgres"], secs(300))
            .await
            .expect("both heal");
        assert!(
            !s.world.recoveries().is_empty(),
            "there are records to look at"
        );
        assert_eq!(found, BTreeSet::new());
    });
}

#[test]
fn reasons_given_by_people_are_stored_plain() {
    play(|| async {
        let mut s = stage(
            2,
            &json!({ "mode": "Observe", "precedence": 0, "runbook": DEFAULT_RUNBOOK }),
        )
        .await;
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(5)).await;
        s.hang(NODES[0].0).expect("it hangs");
        s.pass(secs(60)).await;
        let said = json!({ "holder": NODES[0].1.to_string(), "declaredBy": PERSON, "reason": EVIL,
            "at": s.world.now().to_string() });
        let object = json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
            "metadata": { "name": "of-a-person", "namespace": APPS },
            "spec": { "claimName": "redis-data", "mode": "DryRun", "runbook": DEFAULT_RUNBOOK, "reason": EVIL,
                "requester": PERSON, "declaration": said },
        });
        s.world.server().insert(&object);
        let mut found = BTreeSet::new();
        for _ in 0..120 {
            s.pass(secs(1)).await;
            found.extend(look(&s.world));
        }
        let path =
            format!("/apis/reattach.dev/v1alpha1/namespaces/{APPS}/volumerecoveries/of-a-person");
        let abort = json!({ "spec": { "abort": { "by": PERSON, "reason": EVIL } } });
        s.world
            .merge(PERSON, &path, &abort)
            .await
            .expect("accepted");
        s.pass(secs(30)).await;
        found.extend(look(&s.world));
        let own = s
            .world
            .recoveries()
            .into_iter()
            .find(|r| r.metadata.name.as_deref() == Some("of-a-person"));
        let phase = own.and_then(|r| r.status).map(|s| s.phase);
        let story: String = s.lines().iter().map(|l| l.render()).collect();
        assert_eq!(phase, Some(Phase::Aborted), "{story}");
        assert_eq!(found, BTreeSet::new());
    });
}

/// The people of a namespace may read its records, and need not have the right to read anything of another one.
#[test]
fn a_plan_that_fences_a_node_names_nothing_of_other_namespaces() {
    play(|| async {
        let policy = json!({ "mode": "Auto", "precedence": 0, "runbook": DEFAULT_RUNBOOK, "powerOff": "Allowed",
            "nodes": { "patienceSeconds": 60 } });
        let mut s = stage(3, &policy).await;
        let dead = NODES[0].0;
        let server = s.world.server().clone();
        server.insert(
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "payroll" } }),
        );
        let mut others = manifests::deployment("payroll", "salaries", 3, &[]);
        others["spec"]["template"]["spec"]["nodeSelector"] =
            json!({ "kubernetes.io/hostname": dead });
        s.world
            .create(PERSON, &others)
            .await
            .expect("a Deployment of others");
        let run = |w: &World| {
            let pods = w.server().list("", "pods", Some("payroll"));
            pods.iter()
                .filter(|p| p["status"]["phase"] == "Running")
                .count()
                == 3
        };
        s.until("the pods of others run", secs(120), run)
            .await
            .expect("they run");
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(10)).await;
        s.hang(dead).expect("it hangs");
        let mut seen = Vec::new();
        let mut fenced = 0;
        for _ in 0..1_200 {
            s.pass(secs(1)).await;
            for recovery in server.list("reattach.dev", "volumerecoveries", Some(APPS)) {
                let text = recovery["status"].to_string();
                let own = recovery["spec"]["claimName"].as_str().unwrap_or_default();
                let others = if own == "redis-data" {
                    "7002-"
                } else {
                    "7001-"
                };
                for secret in ["salaries", "payroll", others] {
                    if text.contains(secret) && seen.len() < 3 {
                        seen.push(format!("{own}: {secret} in {text}"));
                    }
                }
                let wide = &recovery["status"]["plan"]["pins"]["nodeWide"];
                fenced = fenced.max(wide["otherPods"].as_array().map_or(0, Vec::len));
            }
            if is_over(&s.world) {
                break;
            }
        }
        assert_eq!(seen, Vec::<String>::new());
        let story: String = s.lines().iter().map(|l| l.render()).collect();
        assert!(
            fenced >= 3,
            "the plan pins {fenced} pods of other namespaces\n{story}"
        );
        s.running(&["redis", "postgres"], secs(600))
            .await
            .expect("both heal on the other node");
        let recovery = recovery_of(&s.world, &redis()).expect("a recovery");
        assert_eq!(recovery.status.map(|s| s.phase), Some(Phase::Recovered));
    });
}

#[tokio::test(start_paused = true)]
async fn an_event_of_another_namespace_nominates_nothing() {
    let server = ApiServer::new(
        Clock::starting_at("2026-03-02T03:00:00Z".parse().expect("a time")),
        1,
    );
    for crd in reattach_api::all_crds() {
        server.register_crd(&serde_json::to_value(crd).expect("JSON"));
    }
    for namespace in ["victim", "tenant"] {
        server.insert(
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } }),
        );
    }
    let at = "2026-03-02T03:00:00Z";
    server.insert(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n0" },
        "status": { "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": at, "lastTransitionTime": at }] } }));
    server.insert(&manifests::claim("victim", "data", "pv-1"));
    let pod = server.insert(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "victim" },
        "spec": { "nodeName": "n0", "containers": [{ "name": "c", "image": "missing" }],
            "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] },
        "status": { "phase": "Pending" },
    }));
    let event = |namespace: &str, about: &str, name: &str| {
        server.insert(&json!({
            "apiVersion": "v1", "kind": "Event", "metadata": { "name": format!("{name}.{about}"), "namespace": namespace },
            "type": "Warning", "reason": "FailedMount", "firstTimestamp": at, "lastTimestamp": at, "message": format!("no device {EVIL} token={TOKEN} {}", "long ".repeat(2_000)),
            "involvedObject": { "apiVersion": "v1", "kind": "Pod", "namespace": about, "name": name,
                "uid": pod["metadata"]["uid"] },
        }));
    };
    let mut tasks = tokio::task::JoinSet::new();
    let cache = Cache::start(
        &server.client(),
        reattach_cluster::Clock::system(),
        &mut tasks,
    );
    cache.ready().await;
    // An Event of one's own that names the other namespace's pod, and one that has its UID alone.
    event("tenant", "victim", "p");
    event("tenant", "tenant", "p");
    tokio::time::sleep(secs(5)).await;
    assert_eq!(nominees(&cache), Vec::new());
    event("victim", "victim", "p");
    tokio::time::sleep(secs(5)).await;
    let found = nominees(&cache);
    assert_eq!(found.len(), 1, "its own namespace's Event does: {found:?}");
    let why = &found[0].why;
    assert!(
        why.starts_with("FailedMount: no device seen") && why.contains("token=[masked]"),
        "{why}"
    );
    assert_eq!(wrong(why, 700, false), None);
}

/// A record with a status of which a part must go for it to be stored.
fn large(server: &ApiServer) -> VolumeRecovery {
    let stored = server.insert(&json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
        "metadata": { "name": "large", "namespace": APPS },
        "spec": { "claimName": "data", "mode": "DryRun", "runbook": "scale-to-zero", "requester": PERSON },
    }));
    let mut recovery: VolumeRecovery =
        serde_json::from_value((*stored).clone()).expect("a recovery");
    let fact = |n: usize| format!("fact {n} {}", "word ".repeat(400));
    let verdict = Verdict::Healthy { why: "test".into() };
    recovery.status = Some(VolumeRecoveryStatus {
        message: "what stands".into(),
        diagnosis: Some(
            Diagnosis {
                verdict,
                facts: (0..2_000).map(fact).collect(),
            }
            .into(),
        ),
        ..VolumeRecoveryStatus::default()
    });
    recovery
}

#[tokio::test(start_paused = true)]
async fn a_status_refused_as_too_large_is_stored_cut() {
    let server = ApiServer::new(
        Clock::starting_at("2026-03-02T03:00:00Z".parse().expect("a time")),
        1,
    );
    for crd in reattach_api::all_crds() {
        server.register_crd(&serde_json::to_value(crd).expect("JSON"));
    }
    server
        .insert(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": APPS } }));
    let recovery = large(&server);
    for code in [413, 422] {
        let requests = RequestMatch {
            mutations_only: true,
            ..RequestMatch::default()
        };
        let status = ApiStatus::new(code, "etcdserver: request is too large");
        let fault = Fault::Status {
            status,
            after_effect: false,
            retry_after: None,
        };
        server.add_fault(FaultRule {
            requests,
            fault,
            probability: 1.0,
            times: Some(1),
        });
        let before = server.audit().len();
        let stored = match store::save(&server.client(), &recovery).await {
            Ok(stored) => VolumeRecovery::clone(&stored),
            Err(SaveError::Conflict) => {
                let now = server
                    .read("reattach.dev", "volumerecoveries", APPS, "large")
                    .expect("it is there");
                serde_json::from_value((*now).clone()).expect("a recovery")
            }
            Err(error) => panic!("{error}"),
        };
        let status = stored.status.expect("a status");
        assert_eq!(status.message, "what stands");
        let said = status.left_out.clone().expect("it says so");
        assert!(said.contains("facts of the diagnosis"), "{said}");
        assert!(serde_json::to_vec(&status).expect("JSON").len() <= SMALL_STATUS_BYTES);
        assert!(
            server.audit().len() - before <= 2,
            "two requests at the most"
        );
    }
    // One that stays refused is given up after the second try.
    let requests = RequestMatch {
        mutations_only: true,
        ..RequestMatch::default()
    };
    let status = ApiStatus::new(422, "status.journal: Too many: must have at most 512 items");
    let fault = Fault::Status {
        status,
        after_effect: false,
        retry_after: None,
    };
    server.add_fault(FaultRule::always(requests, fault));
    let before = server.audit().len();
    let refused = store::save(&server.client(), &recovery).await;
    assert!(matches!(refused, Err(SaveError::Refused(_))), "{refused:?}");
    assert!(server.audit().len() - before <= 2);
}

#[test]
fn a_refused_status_is_written_again_after_a_pause() {
    play(|| async {
        let mut s = stage(
            4,
            &json!({ "mode": "Auto", "precedence": 0, "runbook": "scale-to-zero" }),
        )
        .await;
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(5)).await;
        s.recycle(NODES[0].0, DiskAfter::Kept, secs(6))
            .await
            .expect("a recycle");
        let app = redis();
        let at_zero = move |w: &World| {
            app.read(w.server())
                .is_some_and(|o| o["spec"]["replicas"] == 0)
        };
        s.until("at zero", secs(300), at_zero)
            .await
            .expect("it is scaled");
        let requests = RequestMatch {
            mutations_only: true,
            resource: Some("volumerecoveries".into()),
            subresource: Some("status".into()),
            ..RequestMatch::default()
        };
        let status = ApiStatus::new(422, "status.journal: Too many: must have at most 512 items");
        let fault = Fault::Status {
            status,
            after_effect: false,
            retry_after: None,
        };
        let id = s
            .world
            .server()
            .add_fault(FaultRule::always(requests, fault));
        let before = s.world.server().audit().len();
        s.pass(secs(60)).await;
        let written = |e: &reattach_sim::apiserver::AuditEntry| {
            e.verb.mutates() && e.resource == "volumerecoveries"
        };
        let tried = s
            .world
            .server()
            .audit()
            .iter()
            .skip(before)
            .filter(|e| written(e))
            .count();
        assert!(
            tried <= 30,
            "{tried} writes of refused statuses in a minute"
        );
        s.world.server().remove_fault(id);
        s.running(&["redis", "postgres"], secs(1_200))
            .await
            .expect("both heal when it takes them again");
    });
}
