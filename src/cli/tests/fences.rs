//! Trouble that needs a proof about a machine: what the plans of these classes show, and what people may say about it.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::golden::golden;
use common::world::Running;
use common::{CLAIM, NODE, NS, Ran, Stage, ended, until};
use reattach_cloud_simulator::{InstanceNo, NewInstance, VolumeNo};
use reattach_sim::apiserver::ApiStatus;
use serde_json::{Value, json};
use std::sync::Arc;

const RUNBOOK: [&str; 2] = ["--runbook", "lightest-first"];

fn change(stage: &Stage, group: &str, plural: &str, name: &str, change: impl FnOnce(&mut Value)) {
    let mut object = (*stage.server.read(group, plural, "", name).unwrap()).clone();
    change(&mut object);
    stage.server.insert(&object);
}

/// Class A: the node's kubelet has gone silent; cloud and Kubernetes say that it holds the volume.
fn dead_node(stage: &Stage) {
    change(stage, "", "nodes", NODE, |node| {
        node["status"]["conditions"][0]["status"] = json!("Unknown");
    });
}

async fn plan(stage: &Stage, more: &[&str]) -> Ran {
    let args: Vec<&str> = ["plan", CLAIM]
        .into_iter()
        .chain(RUNBOOK)
        .chain(more.iter().copied())
        .collect();
    stage.run(&args).await
}

fn policy(stage: &Stage, power_off: &str) {
    stage.server.insert(
        &json!({"apiVersion": "reattach.dev/v1alpha1", "kind": "RecoveryPolicy",
        "metadata": {"name": "p"}, "spec": {"mode": "Approve", "powerOff": power_off}}),
    );
}

fn steps(ran: &Ran) -> Vec<String> {
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    let kind = |step: &Value| step["kind"].as_str().unwrap_or_default().to_owned();
    value["plan"]["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(kind)
        .collect()
}

/// Without the hashes, which change with every word of a plan or runbook.
fn unhashed(text: &str) -> String {
    let hash = |w: &str| w.len() == 16 && w.bytes().all(|b| b.is_ascii_hexdigit());
    let word = |w: &str| {
        if hash(w.trim_matches(['(', ')', '.'])) {
            "HASH".to_owned()
        } else {
            w.to_owned()
        }
    };
    let line = |l: &str| l.split(' ').map(word).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_of_the_other_classes() {
    let a = Stage::new("class-a").await;
    dead_node(&a);
    let c = Stage::new("class-c").await;
    c.cloud.make_lost(VolumeNo(7001)).unwrap();
    let d = Stage::new("class-d").await;
    change(
        &d,
        "storage.k8s.io",
        "volumeattachments",
        &Stage::attachment_name(),
        |va| {
            va["metadata"]["deletionTimestamp"] = json!("2021-07-11T00:00:00Z");
            va["metadata"]["finalizers"] = json!(["external-attacher/linodebs-csi-linode-com"]);
            va["status"]["detachError"] =
                json!({"time": "2021-07-11T00:01:00Z", "message": "volume is busy"});
        },
    );
    let e = Stage::new("class-e").await;
    e.cloud
        .create_instance(NewInstance::new("old").with_id(200))
        .unwrap();
    e.cloud
        .make_orphan(VolumeNo(7001), InstanceNo(200))
        .unwrap();
    change(
        &e,
        "storage.k8s.io",
        "volumeattachments",
        &Stage::attachment_name(),
        |va| {
            va["status"] = json!({"attached": false,
            "attachError": {"time": "2021-07-11T00:01:00Z", "message": "volume is attached to another instance"}});
        },
    );
    let mut all = String::new();
    for (class, stage) in [("A", &a), ("C", &c), ("D", &d)] {
        let ran = plan(stage, &[]).await;
        ended(
            &ran,
            0,
            &[
                &format!("class {class}"),
                "To run it: kubectl reattach recover -n cache data-redis-0",
            ],
        );
        all.push_str(&format!(
            "$ kubectl reattach plan {CLAIM}   # class {class}\n{}\n",
            unhashed(&ran.out)
        ));
    }
    golden("plans.txt", &all);
    // Nobody saw the orphan's machine behind a Node of this cluster.
    ended(
        &plan(&e, &[]).await,
        4,
        &[
            "class E",
            "instance 200, which has the volume, is behind no Node of this cluster",
        ],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_powers_off_only_with_a_permission() {
    let stage = Stage::new("power").await;
    dead_node(&stage);
    let off = |ran: &Ran| steps(ran).iter().any(|s| s == "PowerOff");
    let on = |ran: &Ran| steps(ran).iter().any(|s| s == "PowerOn");
    let json = ["-o", "json"];
    let ran = plan(&stage, &json).await;
    assert_eq!((off(&ran), on(&ran)), (false, false));
    for (word, expected) in [
        ("Never", (false, false)),
        ("Allowed", (true, false)),
        ("AllowedAndOn", (true, true)),
    ] {
        policy(&stage, word);
        let ran = plan(&stage, &json).await;
        assert_eq!((off(&ran), on(&ran)), expected, "{word}");
    }
    policy(&stage, "Never");
    let ran = plan(&stage, &["--allow-power-off", "-o", "json"]).await;
    assert_eq!((off(&ran), on(&ran)), (true, false));
    let ran = plan(&stage, &["--allow-power-off"]).await;
    ended(
        &ran,
        0,
        &[
            "Power instance 100 (node n0) off",
            "recover -n cache data-redis-0 --allow-power-off",
        ],
    );
    let ran = plan(&stage, &[]).await;
    ended(
        &ran,
        0,
        &[
            "The plan would wait before its first step",
            "or declare it: kubectl reattach declare",
        ],
    );
    // Whoever may not see the policies gets the cautious plan, and is told so.
    stage.forbid(
        reattach_sim::apiserver::Verb::List,
        "recoverypolicies",
        r#"recoverypolicies.reattach.dev is forbidden: User "jane" cannot list resource "recoverypolicies" in API group "reattach.dev" at the cluster scope"#,
    );
    ended(
        &plan(&stage, &[]).await,
        0,
        &["you may not list recoverypolicies"],
    );
    assert!(
        !stage.writes().iter().any(|w| !w.ends_with("(dry run)")),
        "{:?}",
        stage.writes()
    );
}

/// What a person allows goes on the record in their name, and the controller's plan has the step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_allows_power_off_for_one_recovery() {
    let stage = Stage::new("allow").await;
    dead_node(&stage);
    let controller = Running::start(&stage).await;
    let asked = stage
        .run(&[
            "recover",
            CLAIM,
            RUNBOOK[0],
            RUNBOOK[1],
            "--allow-power-off",
            "--no-wait",
        ])
        .await;
    ended(&asked, 0, &["was created"]);
    assert_eq!(
        stage.recovery().unwrap()["spec"]["powerOff"],
        json!({"allowedBy": "jane"})
    );
    let planned = || !stage.recovery().unwrap()["status"]["plan"].is_null();
    until("a plan", planned).await;
    let shown = stage.recovery().unwrap()["status"]["plan"]["steps"].clone();
    assert!(
        shown
            .as_array()
            .unwrap()
            .iter()
            .any(|s| s["kind"] == "PowerOff"),
        "{shown}"
    );
    ended(
        &stage.run(&["status", CLAIM]).await,
        6,
        &["power-off allowed by jane"],
    );
    controller.stop().await;
}

#[track_caller]
fn one_sentence(ran: &Ran, code: i32, parts: &[&str]) {
    ended(ran, code, parts);
    assert_eq!(
        (ran.out.as_str(), ran.err.lines().count()),
        ("", 1),
        "{ran:?}"
    );
    assert!(ran.err.starts_with("error: "), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declaration() {
    let stage = Arc::new(Stage::new("declare").await);
    dead_node(&stage);
    let say = async |more: &[&str]| {
        let args: Vec<&str> = ["declare", CLAIM]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        stage.run(&args).await
    };
    one_sentence(
        &say(&["--holder", "100"]).await,
        2,
        &["--reason is missing; say why you are sure"],
    );
    one_sentence(
        &say(&["--holder", "100", "--reason", " "]).await,
        2,
        &["--reason is missing"],
    );
    let long = "r".repeat(1025);
    one_sentence(
        &say(&["--holder", "100", "--reason", &long]).await,
        2,
        &["--reason may have at most 1024"],
    );
    let why = ["--reason", "unplugged"];
    one_sentence(
        &say(&why).await,
        1,
        &["there is no VolumeRecovery", "status -A"],
    );

    let controller = Running::start(&stage).await;
    let asked = stage
        .run(&["recover", CLAIM, RUNBOOK[0], RUNBOOK[1], "--no-wait"])
        .await;
    ended(&asked, 0, &["was created"]);
    until("a plan", || {
        !stage.recovery().unwrap()["status"]["plan"].is_null()
    })
    .await;
    one_sentence(
        &say(&why).await,
        2,
        &["--holder is missing", "is about 100"],
    );
    let other = say(&["--holder", "200", "--reason", "unplugged"]).await;
    one_sentence(
        &other,
        2,
        &[
            "--holder \"200\"",
            "the plan is about 100",
            "nothing was declared",
        ],
    );
    assert!(stage.recovery().unwrap()["spec"]["declaration"].is_null());

    let before = stage.server.clock().now();
    let said = say(&["--holder", "100", "--reason", " unplugged "]).await;
    let after = stage.server.clock().now();
    ended(
        &said,
        0,
        &[
            "Declared by jane: instance 100 cannot write (unplugged).",
            "volume 7001 is freed from it on this word alone, unless a fact contradicts it",
            "Node n0 is fenced as a whole: it has 1 pod and 1 attached volume.",
            "kubectl reattach approve -n cache",
            "If you were wrong, abort at once: kubectl reattach abort -n cache",
        ],
    );
    let declaration = stage.recovery().unwrap()["spec"]["declaration"].clone();
    let at: jiff::Timestamp = declaration["at"].as_str().unwrap().parse().unwrap();
    // Kubernetes writes whole seconds.
    let whole = |at: jiff::Timestamp| at.as_second();
    assert!(
        (whole(before)..=whole(after)).contains(&whole(at)),
        "{before} {at} {after}"
    );
    assert_eq!(
        (
            &declaration["holder"],
            &declaration["declaredBy"],
            &declaration["reason"]
        ),
        (&json!("100"), &json!("jane"), &json!("unplugged"))
    );
    // Given anew it counts from now.
    ended(
        &say(&["--holder", "100", "--reason", "still unplugged"]).await,
        0,
        &["(still unplugged)"],
    );
    assert_eq!(
        stage.recovery().unwrap()["spec"]["declaration"]["reason"],
        "still unplugged"
    );

    ended(
        &stage.run(&["status", CLAIM]).await,
        6,
        &[
            "declared instance 100 cannot write, by jane at",
            ": still unplugged",
            "Node n0 is fenced as a whole. On it are pod cache/redis-0 volume",
        ],
    );
    // The API server's words, when it is somebody who may not.
    stage.server.add_admission(Arc::new(|request| {
        let declares = request
            .object
            .is_some_and(|o| o["spec"]["declaration"]["reason"] == "not mine to say");
        match declares && request.user == "jane" {
            true => Err(ApiStatus::new(
                403,
                "denied request: declaring needs the verb declare",
            )),
            false => Ok(Default::default()),
        }
    }));
    let refused = say(&["--holder", "100", "--reason", "not mine to say"]).await;
    one_sentence(
        &refused,
        1,
        &["refused to declare that: denied request: declaring needs the verb declare"],
    );

    ended(
        &stage.run(&["abort", CLAIM, "--wait"]).await,
        0,
        &["aborted by jane"],
    );
    let over = say(&["--holder", "100", "--reason", "unplugged"]).await;
    one_sentence(
        &over,
        1,
        &["is over already: Aborted", "would change nothing"],
    );
    let dry = stage
        .run(&[
            "recover",
            CLAIM,
            RUNBOOK[0],
            RUNBOOK[1],
            "--dry-run",
            "--no-wait",
        ])
        .await;
    ended(&dry, 0, &["was created"]);
    let name = dry
        .out
        .split_whitespace()
        .find_map(|w| w.strip_prefix(&format!("{NS}/")))
        .unwrap()
        .to_owned();
    let dry = stage
        .run(&["declare", &name, "--holder", "100", "--reason", "unplugged"])
        .await;
    one_sentence(&dry, 1, &["is in mode DryRun and never frees a volume"]);
    controller.stop().await;

    // The other declaration: about what a run has ordered.
    let nothing = [
        "declare",
        &name,
        "--nothing-under-way",
        "--reason",
        "no job",
    ];
    one_sentence(
        &stage.run(&nothing).await,
        1,
        &["has no run under way", "no order of it can be under way"],
    );
    let both = stage
        .run(&["declare", &name, "--nothing-under-way", "--holder", "100"])
        .await;
    assert_eq!(both.code, 2, "{both:?}");
    let mut run = (*stage
        .server
        .read("reattach.dev", "volumerecoveries", NS, &name)
        .unwrap())
    .clone();
    run["status"]["phase"] = json!("Stuck");
    run["status"]["journal"] = json!([{"of": "a run"}]);
    stage.server.insert(&run);
    let said = stage.run(&nothing).await;
    ended(
        &said,
        0,
        &[
            "Declared by jane: nothing that",
            "is under way at the cloud (no job)",
        ],
    );
    let stored = stage
        .server
        .read("reattach.dev", "volumerecoveries", NS, &name)
        .unwrap();
    let word = &stored["spec"]["nothingUnderWay"];
    assert_eq!(
        (&word["declaredBy"], &word["reason"]),
        (&json!("jane"), &json!("no job")),
        "{word}"
    );
}

/// A volume of a cloud that this build does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_of_another_cloud() {
    let stage = Stage::new("ebs").await;
    let driver = |name: &'static str| {
        change(&stage, "", "persistentvolumes", "pvc-1", |pv| {
            pv["spec"]["csi"]["driver"] = json!(name);
            pv["spec"]["csi"]["volumeHandle"] = json!("vol-0123456789abcdef0");
        });
    };
    driver("ebs.csi.aws.com");
    let built = if cfg!(feature = "aws") {
        "add --provider linode,aws"
    } else {
        "build with --features aws"
    };
    for verb in ["diagnose", "plan"] {
        let ran = stage.run(&[verb, CLAIM]).await;
        ended(
            &ran,
            5,
            &[
                "no cloud provider of this installation knows volume vol-0123456789abcdef0 of driver ebs.csi.aws.com",
                "no provider of this installation knows driver ebs.csi.aws.com; asked: linode; built with: linode",
                built,
            ],
        );
        assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
    }
    driver("csi.example.com");
    let ran = stage.run(&["diagnose", CLAIM]).await;
    ended(
        &ran,
        5,
        &[
            "knows driver csi.example.com",
            "docs/providers.md has how to add one",
        ],
    );
}
