//! What cannot work ends with one clear sentence, a non-zero exit code, and nothing half done.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::world::turn;
use common::{CLAIM, NS, Ran, Stage, TOKEN, ended, finish, kubeconfig_text};
use reattach_sim::apiserver::{ApiStatus, Fault, FaultRule, RequestMatch, Verb};
use serde_json::{Value, json};
use std::sync::Arc;

/// One sentence on standard error, nothing on standard output; the sentence is returned.
#[track_caller]
fn one_sentence(ran: &Ran, code: i32) -> String {
    println!("{}", ran.err);
    assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{ran:?}");
    let lines: Vec<&str> = ran
        .err
        .lines()
        .filter(|l| l.starts_with("error: "))
        .collect();
    assert_eq!(lines.len(), 1, "{ran:?}");
    let sentence = lines[0].trim_start_matches("error: ").to_owned();
    assert!(
        !sentence.contains("Error(") && !sentence.contains("Some("),
        "debug formatting: {sentence}"
    );
    sentence
}

#[track_caller]
fn names(sentence: &str, parts: &[&str]) {
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_claim() {
    let stage = Stage::new("claim").await;
    for args in [
        &["diagnose", "nope"][..],
        &["plan", "nope"],
        &["recover", "nope", "--yes"],
        &["recover", "nope", "--yes", "--break-glass"],
    ] {
        let sentence = one_sentence(&stage.run(args).await, 1);
        names(
            &sentence,
            &[
                "PersistentVolumeClaim \"nope\"",
                "namespace \"cache\"",
                "kubectl get pvc",
            ],
        );
    }
    let sentence = one_sentence(&stage.run(&["diagnose", "pod/redis-0"]).await, 2);
    names(&sentence, &["kind \"pod\"", "pvc/NAME"]);
    for verb in ["status", "report"] {
        let sentence = one_sentence(&stage.run(&[verb, "nope"]).await, 1);
        names(&sentence, &["VolumeRecovery", "\"nope\"", "status -A"]);
    }
    let sentence = one_sentence(&stage.run(&["abort", "nope"]).await, 1);
    names(&sentence, &["VolumeRecovery", "\"nope\""]);
    assert_eq!(stage.writes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_custom_resources() {
    let stage = Stage::empty("crds").await;
    for args in [
        &["diagnose", CLAIM][..],
        &["plan", CLAIM],
        &["recover", CLAIM, "--yes"],
        &["status"],
    ] {
        let sentence = one_sentence(&stage.run(args).await, 1);
        names(
            &sentence,
            &[
                "API group reattach.dev/v1alpha1 is not installed",
                "http://127.0.0.1",
                "apply deploy/crds",
            ],
        );
    }
    let crd = reattach_api::all_crds()
        .into_iter()
        .find(|c| c.spec.names.plural == "volumerecoveries")
        .unwrap();
    stage
        .server
        .register_crd(&serde_json::to_value(crd).unwrap());
    let sentence = one_sentence(&stage.run(&["status"]).await, 1);
    names(
        &sentence,
        &["recoverypolicies.reattach.dev is not installed"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_rights() {
    let stage = Stage::new("rights").await;
    stage.forbid(
        Verb::List,
        "volumerecoveries",
        r#"volumerecoveries.reattach.dev is forbidden: User "jane" cannot list resource "volumerecoveries" in API group "reattach.dev" in the namespace "cache""#,
    );
    let sentence = one_sentence(&stage.run(&["status"]).await, 1);
    names(
        &sentence,
        &[
            "user \"jane\" may not list volumerecoveries.reattach.dev in namespace \"cache\"",
            "administrator",
        ],
    );
    stage.server.clear_faults();
    stage.forbid(
        Verb::List,
        "nodes",
        r#"nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the cluster scope"#,
    );
    let sentence = one_sentence(&stage.run(&["diagnose", "-A"]).await, 1);
    names(
        &sentence,
        &[
            "user \"jane\" may not list nodes in the whole cluster",
            "watch the nodes",
        ],
    );
    let sentence = one_sentence(
        &stage
            .run(&["recover", CLAIM, "--break-glass", "--yes"])
            .await,
        1,
    );
    names(&sentence, &["may not list nodes"]);
    stage.server.clear_faults();
    stage.forbid(
        Verb::Create,
        "volumerecoveries",
        r#"volumerecoveries.reattach.dev is forbidden: User "jane" cannot create resource "volumerecoveries" in API group "reattach.dev" in the namespace "cache""#,
    );
    let ran = stage
        .run(&["recover", CLAIM, "--break-glass", "--yes"])
        .await;
    let sentence = one_sentence(&ran, 1);
    names(
        &sentence,
        &[
            "may not create volumerecoveries.reattach.dev",
            "ask for the recovery",
        ],
    );
    assert!(stage.recovery().is_none());
    let lease = stage
        .server
        .read(
            "coordination.k8s.io",
            "leases",
            common::LEASE.0,
            common::LEASE.1,
        )
        .unwrap();
    assert_eq!(
        lease["spec"]["holderIdentity"], "",
        "the Lease is given back"
    );
}

/// The API server's answer to a dry-run create of a pod, from authorization (it names no object) or from admission.
fn refuse_pods(stage: &Stage, message: &str, details: Value) {
    stage.server.clear_faults();
    let requests = RequestMatch {
        verb: Some(Verb::Create),
        resource: Some("pods".to_owned()),
        client: Some("jane".to_owned()),
        ..RequestMatch::default()
    };
    let status = ApiStatus {
        details,
        ..ApiStatus::new(403, message)
    };
    let fault = Fault::Status {
        status,
        after_effect: false,
        retry_after: None,
    };
    stage.server.add_fault(FaultRule::always(requests, fault));
}

/// The controller has rights of its own, but the same admission.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_403_of_another_account_is_not_shown_as_the_users() {
    let stage = Stage::new("pods").await;
    let own = "the dry run of that pod used the rights of jane";
    let of_nobody = json!({"kind": "pods"});
    refuse_pods(
        &stage,
        r#"pods is forbidden: User "jane" cannot create resource "pods" in API group "" in the namespace "cache""#,
        of_nobody.clone(),
    );
    ended(
        &stage.run(&["plan", CLAIM]).await,
        4,
        &["would be refused now", own],
    );
    // Whatever words another authorizer has.
    refuse_pods(
        &stage,
        "pods is forbidden: no rule of the proxy allows it",
        of_nobody,
    );
    ended(
        &stage.run(&["plan", CLAIM]).await,
        4,
        &["would be refused now", own],
    );
    for details in [
        json!({"name": "redis-dry-run-", "kind": "pods"}),
        Value::Null,
    ] {
        let message = r#"admission webhook "quota" denied the request: this team cannot create resource "pods" on Sundays"#;
        refuse_pods(&stage, message, details);
        let ran = stage.run(&["plan", CLAIM]).await;
        ended(&ran, 4, &["on Sundays"]);
        assert!(!ran.err.contains(own), "{}", ran.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_contexts_and_files() {
    let stage = Stage::new("creds").await;
    let sentence = one_sentence(&stage.run(&["status", "--context", "stranger"]).await, 1);
    names(&sentence, &["does not accept the credentials", "--context"]);
    let sentence = one_sentence(&stage.run(&["status", "--context", "moon"]).await, 1);
    names(&sentence, &["moon"]);
    let sentence = one_sentence(
        &stage
            .run(&["status", "--kubeconfig", "/nonexistent/config"])
            .await,
        1,
    );
    names(&sentence, &["/nonexistent/config"]);
    let mut command = stage.command(&["status"]);
    command.env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    let sentence = one_sentence(&finish(command).await, 1);
    names(&sentence, &["no cluster to talk to", "KUBECONFIG"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_api_server() {
    let stage = Stage::new("away").await;
    // A port that was free a moment ago, and nobody listens on.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let file = stage.dir.join("away");
    std::fs::write(&file, kubeconfig_text(&format!("http://127.0.0.1:{port}"))).unwrap();
    let file = file.to_str().unwrap();
    for verb in [
        &["status"][..],
        &["diagnose", CLAIM],
        &["recover", CLAIM, "--yes"],
    ] {
        let args: Vec<&str> = verb.iter().copied().chain(["--kubeconfig", file]).collect();
        let sentence = one_sentence(&stage.run(&args).await, 1);
        names(
            &sentence,
            &[
                &format!("http://127.0.0.1:{port}"),
                "does not answer",
                "refused",
                "--kubeconfig",
            ],
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cloud_and_token_errors_are_told_apart() {
    let stage = Stage::new("cloud").await;
    let verbs = [
        &["diagnose", CLAIM][..],
        &["plan", CLAIM],
        &["recover", CLAIM, "--break-glass", "--yes"],
    ];
    stage.cloud.add_token(
        "readonly",
        &["volumes:read_only", "linodes:read_only", "events:read_only"],
    );
    for args in verbs {
        let with = |key: &'static str, value: Option<&str>| {
            let mut command = stage.command(args);
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
            finish(command)
        };
        let sentence = one_sentence(&with("LINODE_TOKEN", None).await, 1);
        names(
            &sentence,
            &["LINODE_TOKEN is not set", "volumes:read_write"],
        );
        let sentence = one_sentence(&with("LINODE_TOKEN", Some("wrong")).await, 1);
        names(&sentence, &["provider linode", "token"]);
        assert!(!sentence.contains(TOKEN));
        let sentence = one_sentence(&with("LINODE_URL", Some("http://127.0.0.1:1")).await, 1);
        names(&sentence, &["provider linode", "127.0.0.1:1"]);
        let sentence = one_sentence(&with("LINODE_URL", Some("http://api.example.com")).await, 1);
        names(
            &sentence,
            &["LINODE_URL \"http://api.example.com\"", "https"],
        );
    }
    let mut command = stage.command(&["recover", CLAIM, "--break-glass", "--yes"]);
    command.env("LINODE_TOKEN", "readonly");
    let sentence = one_sentence(&finish(command).await, 1);
    names(
        &sentence,
        &[
            "the credential lacks",
            "volumes:read_write",
            "linodes:read_write",
        ],
    );
    let mut command = stage.command(&["diagnose", CLAIM]);
    command.env("LINODE_TOKEN", "readonly");
    let ran = finish(command).await;
    assert_eq!(ran.code, 3, "reading scopes are enough to look: {ran:?}");
    assert_eq!(stage.writes(), Vec::<String>::new());
    assert_eq!(stage.cloud_writes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn providers_and_runbooks() {
    let stage = Stage::new("names").await;
    let sentence = one_sentence(
        &stage.run(&["diagnose", CLAIM, "--provider", "azure"]).await,
        2,
    );
    names(
        &sentence,
        &["no provider \"azure\" in this build", "which has: linode"],
    );
    let ran = stage.run(&["diagnose", CLAIM, "--provider", "aws"]).await;
    if cfg!(feature = "aws") {
        names(
            &one_sentence(&ran, 1),
            &[
                "provider aws",
                "AWS_REGION is not set",
                "such as eu-central-1",
            ],
        );
    } else {
        names(
            &one_sentence(&ran, 2),
            &[
                "no provider \"aws\" in this build",
                "build with --features aws",
            ],
        );
    }
    for verb in ["plan", "recover"] {
        let sentence = one_sentence(&stage.run(&[verb, CLAIM, "--runbook", "pray"]).await, 2);
        names(&sentence, &["runbook \"pray\"", "scale-to-zero"]);
        let sentence = one_sentence(
            &stage.run(&[verb, CLAIM, "--confirm-workload", "web"]).await,
            2,
        );
        names(&sentence, &["--confirm-workload \"web\"", "KIND/NAME"]);
    }
    let file = |name: &str, text: &str| {
        let path = stage.dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let table = [
        (
            file("broken.yaml", "name: [x\nsteps: 3\n"),
            &["broken.yaml", "line"][..],
        ),
        (
            file(
                "field.yaml",
                "name: x\nsummary: y\norders: {}\ncolour: red\n",
            ),
            &["field.yaml", "colour"],
        ),
        (
            file(
                "step.yaml",
                "name: x\nsummary: y\norders:\n  B:\n  - step: Pray\n    deadlineSeconds: 5\n",
            ),
            &["step.yaml", "Pray"],
        ),
        (
            file(
                "unsafe.yaml",
                "name: x\nsummary: y\norders:\n  B:\n  - step: ScaleToZero\n    deadlineSeconds: 5\n  - step: Verify\n    deadlineSeconds: 5\n",
            ),
            &["Restore", "nothing may be left at zero"],
        ),
        (
            "/nonexistent.yaml".to_owned(),
            &["/nonexistent.yaml", "No such file"],
        ),
    ];
    for (path, parts) in table {
        let sentence = one_sentence(
            &stage.run(&["plan", CLAIM, "--runbook-file", &path]).await,
            2,
        );
        names(&sentence, &["--runbook-file"]);
        names(&sentence, parts);
    }
    assert_eq!(stage.writes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_controller() {
    let stage = Stage::new("alone").await;
    stage.remove_lease().await;
    let _ = stage.server.take_audit();
    // A controller that has just been installed needs one lease duration.
    let ran = stage.run(&["recover", CLAIM, "--yes"]).await;
    ended(
        &ran,
        1,
        &[
            "No controller holds Lease reattach-system/reattach-controller (it does not exist). Waiting up to 20 s",
            "error: no controller holds Lease reattach-system/reattach-controller (it does not exist)",
            "--break-glass",
        ],
    );
    stage.insert_lease("", 3);
    let sentence = one_sentence(&stage.run(&["recover", CLAIM, "--yes"]).await, 1);
    names(&sentence, &["its last holder released it"]);
    assert!(stage.recovery().is_none());
    assert_eq!(stage.writes(), Vec::<String>::new());
}

/// A Lease that no controller looks at would exclude none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn break_glass_guesses_no_lease() {
    let stage = Arc::new(Stage::new("guess").await);
    let world = turn(&stage);
    let lease = |namespace: &str, name: &str| {
        stage.server.insert(
            &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": 1, "leaseTransitions": 3}}),
        );
    };
    let run = async |more: &[&str]| {
        let arguments = [&["recover", CLAIM, "--break-glass", "--dry-run"], more].concat();
        stage.run(&arguments).await
    };
    lease("ops", "reattach-main");
    let sentence = one_sentence(&run(&[]).await, 1);
    names(
        &sentence,
        &[
            "ops/reattach-main, reattach-system/reattach-controller",
            "--controller-namespace",
        ],
    );
    let named = ["--controller-namespace", "ops", "--lease", "reattach-main"];
    let ran = run(&named).await;
    let other = "Lease reattach-system/reattach-controller exists too";
    ended(
        &ran,
        0,
        &[other, "Lease ops/reattach-main taken, term 4", "7 steps"],
    );
    // The one that is there is the controller's, wherever it is.
    stage.remove_lease().await;
    ended(
        &run(&[]).await,
        0,
        &["Lease ops/reattach-main taken, term 5", "7 steps"],
    );

    let sentence = one_sentence(&run(&["--lease", "reattach-controller"]).await, 1);
    names(
        &sentence,
        &[
            "no Lease reattach-controller exists in this cluster",
            "--controller-namespace",
        ],
    );
    stage.forbid(
        Verb::List,
        "leases",
        r#"leases.coordination.k8s.io is forbidden: User "jane" cannot list resource "leases" in API group "coordination.k8s.io" at the cluster scope"#,
    );
    let sentence = one_sentence(&run(&[]).await, 1);
    names(
        &sentence,
        &[
            "you may not list the Leases of the whole cluster",
            "--controller-namespace",
        ],
    );
    ended(
        &run(&named).await,
        0,
        &["Lease ops/reattach-main taken, term 6", "7 steps"],
    );
    world.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_errors_name_the_wrong_argument() {
    let stage = Stage::new("usage").await;
    let sentence = one_sentence(&stage.run(&["recover", CLAIM, "--break-glass"]).await, 2);
    names(&sentence, &["consent", "--yes"]);
    let sentence = one_sentence(&stage.run(&["approve", CLAIM, "--plan", "xyz"]).await, 2);
    names(&sentence, &["--plan \"xyz\"", "16 hexadecimal digits"]);
    let sentence = one_sentence(
        &stage
            .run(&["recover", CLAIM, "--yes", "--lease", "mine"])
            .await,
        2,
    );
    names(&sentence, &["--lease \"mine\"", "reattach-"]);
    for args in [
        &["recover", CLAIM, "--timeout", "soon"][..],
        &["recover"],
        &["approve", CLAIM],
        &["frobnicate"],
        &["status", "-o", "xml"],
    ] {
        let ran = stage.run(args).await;
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.err.starts_with("error: "), "{ran:?}");
    }
    assert_eq!(stage.writes(), Vec::<String>::new());
    let _ = NS;
}

/// A recovery that waits for the provider shows the ticket as the controller wrote it, region and all: the CLI itself does
/// not ask the cloud.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_escalated_wait_shows_its_ticket() {
    let stage = Stage::new("escalated").await;
    let ticket = "Subject: Volume 5551 is locked on your side; please release it\n\nRegion:         eu-central\n";
    let told =
        json!({ "since": "2026-01-02T03:04:05Z", "summary": "send the ticket", "ticket": ticket });
    let verdict = json!({ "verdict": "wait", "reason": { "wait": "providerLock", "reason": "staff", "class": "B" } });
    let waits = |name: &str, told: Value| {
        json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
            "metadata": { "name": name, "namespace": NS },
            "spec": { "claimName": format!("{name}-data"), "mode": "Auto", "runbook": "scale-to-zero", "requester": "jane" },
            "status": { "phase": "Waiting", "message": "locked", "escalation": told,
                "diagnosis": { "verdict": verdict, "facts": [] } },
        })
    };
    stage.server.insert(&waits("called", told));
    stage.server.insert(&waits("patient", json!(null)));
    let shown = stage.run(&["status", "called"]).await;
    let said = "it has waited since 2026-01-02T03:04:05Z: send the ticket";
    let at = [said, "For the provider's support:", ticket].map(|part| shown.out.find(part));
    assert!(
        at.iter().all(Option::is_some) && at.is_sorted(),
        "{at:?}\n{}",
        shown.out
    );
    let report = stage.run(&["report", "called"]).await;
    assert!(
        report.out.contains("Region:         eu-central"),
        "{}",
        report.out
    );
    let patient = stage.run(&["status", "patient"]).await;
    assert!(!patient.out.contains("escalated"), "{}", patient.out);
    let ended = patient.code;
    assert_eq!((shown.code, ended), (6, 6), "both wait");
}
