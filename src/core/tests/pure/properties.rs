//! Properties over random evidence. `REATTACH_CASES` raises the number of cases; `REATTACH_SEED` repeats a run.

use jiff::SignedDuration;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use reattach_core::check::check;
use reattach_core::cloud::VolumeState;
use reattach_core::diagnosis::{Trouble, Verdict};
use reattach_core::evidence::{AccessMode, Evidence};
use reattach_core::fact::{Fact, Known};
use reattach_core::guest::{DeviceUsers, ScanResult};
use reattach_core::stamp::Stamp;
use reattach_core::testkit::{
    Case, INSTANCE, NODE, OTHER_INSTANCE, OTHER_NODE, attachment, start, volume_name,
};
use reattach_core::workload::{AutoscalerFacts, ManagerFacts, ManagerKind, ScalePath};

/// The number of cases of a property: at least what it normally has.
pub fn cases(normally: u32) -> u32 {
    let wanted = std::env::var("REATTACH_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    wanted.map_or(normally, |wanted: u32| wanted.max(normally))
}

/// A runner with the seed `REATTACH_SEED`, otherwise a new one. Prints the seed.
pub fn runner(name: &str, cases: u32) -> TestRunner {
    let given = std::env::var("REATTACH_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        since.as_secs() ^ u64::from(since.subsec_nanos())
    });
    println!("{name}: {cases} cases; replay: REATTACH_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases,
        failure_persistence: None,
        max_global_rejects: 10,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// One random change of the evidence.
type Change = fn(Case) -> Case;

fn gap<T>(fact: &mut Fact<T>) {
    fact.at -= SignedDuration::from_secs(31);
}

fn facts(mut case: Case, change: impl FnOnce(&mut Evidence)) -> Case {
    change(&mut case.evidence);
    case
}

fn present<T>(fact: &Fact<T>) -> bool {
    matches!(fact.value, Known::Present(_))
}

const CHANGES: [Change; 62] = [
    |c| c.pod_ready(),
    |c| c.with_mount(true),
    |c| c.with_mount(false),
    |c| c.device_in_use(),
    |c| c.device_idle(),
    |c| c.unasked(),
    |c| c.answer(ScanResult::NoDevice),
    |c| {
        c.answer(ScanResult::Unreadable {
            items: vec!["x".into()],
        })
    },
    |c| {
        c.answer(ScanResult::InUse {
            users: DeviceUsers {
                swap: true,
                ..DeviceUsers::default()
            },
        })
    },
    |c| c.guest(|g| g.unreadable.push("x".into())),
    |c| c.guest(|g| g.boot_id = "x".into()),
    |c| c.claim(|c| c.deleting = true),
    |c| c.claim(|c| c.access_modes = vec![AccessMode::ReadWriteMany]),
    |c| c.claim(|c| c.access_modes = vec![AccessMode::ReadWriteOncePod]),
    |c| c.claim(|c| c.access_modes.clear()),
    |c| c.claim(|c| c.opted_out = Some("claim".into())),
    |c| c.claim(|c| c.owners = vec![Case::owner("StatefulSet", "workload-1")]),
    |c| c.claim(|c| c.owners = vec![Case::owner("Backup", "workload-1")]),
    |c| c.claim(|c| c.volume_name = None),
    |c| c.volume(|v| v.csi = None),
    |c| c.volume(|v| v.attach_required = None),
    |c| c.volume(|v| v.deleting = true),
    |c| c.attachments(|a| a.push(attachment("csi-other", OTHER_NODE))),
    |c| c.attachments(|a| a.insert(0, attachment("csi-same", NODE))),
    |c| c.attachments(Vec::clear),
    |c| c.attachments(|a| a.iter_mut().for_each(|a| a.deleting_since = Some(start()))),
    |c| c.attachments(|a| a.iter_mut().for_each(|a| a.attached = false)),
    |c| c.attachments(|a| a.iter_mut().for_each(|a| a.detach_error = Some("x".into()))),
    |c| c.attachments(|a| a.reverse()),
    |c| c.with_node(OTHER_NODE, OTHER_INSTANCE),
    |c| c.with_pod("redis-8", Some(OTHER_NODE), true),
    |c| c.with_pod("redis-9", Some(NODE), true),
    |c| c.with_pod("aaa", Some(NODE), false),
    |c| c.with_pod("zzz", None, false),
    |c| c.pods(|p| p.reverse()),
    |c| c.pods(|p| p.iter_mut().for_each(|p| p.phase = "Failed".into())),
    |c| c.pods(|p| p.iter_mut().for_each(|p| p.deleting_since = Some(start()))),
    |c| c.pods(Vec::clear),
    |c| {
        facts(c, |e| {
            if let Known::Present(pods) = &mut e.pods.value {
                pods.truncate(1)
            }
        })
    },
    |c| c.workload(|w| w.replicas = 0),
    |c| c.workload(|w| w.replicas = 3),
    |c| c.workload(|w| w.scaling = ScalePath::None),
    |c| c.workload(|w| w.scaling = ScalePath::ScaleSubresource),
    |c| {
        c.workload(|w| {
            w.stamp = Some(Ok(Stamp {
                replicas: 1,
                workload: "workload-1".into(),
                recovery: "r".into(),
                at: start(),
            }))
        })
    },
    |c| c.workload(|w| w.stamp = Some(Err("x".into()))),
    |c| c.workload(|w| w.rollout = Some("x".into())),
    |c| {
        c.workload(|w| {
            w.deletes_claims_when_scaled = true;
            w.deleting = true
        })
    },
    |c| {
        c.workload(|w| {
            w.autoscalers.push(AutoscalerFacts {
                name: "x".into(),
                min_replicas: i32::from(w.ordered),
            })
        })
    },
    |c| {
        c.workload(|w| {
            w.managers.push(ManagerFacts {
                kind: ManagerKind::ArgoCd,
                evidence: "x".into(),
                paused: true,
            })
        })
    },
    |c| {
        c.workload(|w| {
            w.managers.push(ManagerFacts {
                kind: ManagerKind::Keda,
                evidence: "x".into(),
                paused: w.ordered,
            })
        })
    },
    |c| c.workload(|w| w.template.pre_stop.push("x".into())),
    |c| {
        c.workload(|w| {
            w.template.empty_dirs.push("x".into());
            w.emptydirs_expendable = w.ordered
        })
    },
    |c| c.workload(|w| w.template.ephemeral_volumes.push("x".into())),
    |c| c.workload(|w| w.claims.push(("x".into(), None))),
    |c| c.workload(|w| w.pod_dry_run = None),
    |c| c.cloud(|c| c.holders.push(OTHER_INSTANCE.into())),
    |c| c.cloud(|c| c.holders = vec![OTHER_INSTANCE.into(), INSTANCE.into()]),
    |c| c.cloud(|c| c.holders.retain(|h| h.as_str() != INSTANCE)),
    |c| c.cloud(|c| c.state = VolumeState::Detaching),
    |c| {
        c.node(|n| {
            n.taints.push("karpenter.sh/disrupted".into());
            n.volumes_in_use = vec![volume_name()]
        })
    },
    |c| c.node(|n| n.ready = false),
    |c| c.node(|n| n.instance = Some(OTHER_INSTANCE.into())),
];

fn spoil(case: &mut Case, which: usize) {
    let e = &mut case.evidence;
    match which {
        0 => gap(&mut e.claim),
        1 => gap(&mut e.volume),
        2 => gap(&mut e.attachments),
        3 => gap(&mut e.pods),
        4 => gap(&mut e.workload),
        5 => gap(&mut e.cloud_volume),
        6 => e.nodes.values_mut().for_each(gap),
        7 => e.jobs.value = Known::Unknown { why: "x".into() },
        8 => e.nodes.clear(),
        9 => e.cloud_id = None,
        _ => {}
    }
}

fn arbitrary() -> impl Strategy<Value = (Case, Option<&'static str>, bool)> {
    let changes = prop::collection::vec(0..CHANGES.len(), 0..5);
    let named = prop::sample::select(vec![
        None,
        Some("StatefulSet/redis"),
        Some("Deployment/redis"),
        Some("x"),
    ]);
    (any::<bool>(), changes, 0..60_usize, named, any::<bool>()).prop_map(
        |(set, changes, spoiled, named, for_show)| {
            let base = if set {
                Case::statefulset()
            } else {
                Case::deployment()
            };
            let safe = |case: Case, change: usize| {
                // Changes presuppose what others may have taken away.
                let usable = present(&case.evidence.attachments) && present(&case.evidence.pods);
                let has_pod = case.evidence.pods.shown().is_some_and(|p| !p.is_empty())
                    && case
                        .evidence
                        .workload
                        .shown()
                        .is_none_or(|w| !w.pods.is_empty());
                if usable && (has_pod || change != 0) {
                    CHANGES[change](case)
                } else {
                    case
                }
            };
            let mut case = changes.into_iter().fold(base, safe);
            spoil(&mut case, spoiled);
            (case, named, for_show)
        },
    )
}

/// The planner never makes a plan to which the independent checker objects, and none without its facts.
#[test]
fn the_checker_agrees_with_the_planner() {
    let (mut plans, mut refused) = (0_u32, 0_u32);
    let counts = std::cell::RefCell::new((&mut plans, &mut refused));
    runner("checker agrees with planner", cases(20_000))
        .run(&arbitrary(), |(case, named, for_show)| {
            let Ok(plan) = case.plan_as(named, for_show) else {
                *counts.borrow_mut().1 += 1;
                return Ok(());
            };
            *counts.borrow_mut().0 += 1;
            let objections = check(&plan, case.evidence.at(case.now), named);
            prop_assert!(
                objections.is_empty(),
                "{objections:?}\n{:#?}",
                case.evidence
            );
            let Verdict::Ours {
                trouble: Trouble::Phantom { confirmed, .. },
            } = case.diagnosis().verdict
            else {
                return Err(TestCaseError::fail("a plan without a phantom"));
            };
            prop_assert!(confirmed || for_show, "a plan to execute without an answer");
            prop_assert_eq!(plan.computed_hash(), plan.hash.clone());
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
    println!("{plans} plans, {refused} refusals");
    assert!(
        plans > refused / 20,
        "too few plans to mean anything: {plans} of {}",
        plans + refused
    );
}

/// A diagnosis is total, says one sentence, and is the same for the same evidence.
#[test]
fn equal_evidence_gives_equal_diagnoses() {
    runner("diagnosis is a function", cases(5_000))
        .run(&arbitrary(), |(case, _, _)| {
            let found = case.diagnosis();
            prop_assert_eq!(&found, &case.diagnosis());
            let text = found.verdict.to_string();
            prop_assert!(!text.is_empty() && !text.contains('\n'), "{}", text);
            let json =
                serde_json::to_string(&found).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let read = serde_json::from_str::<reattach_core::diagnosis::Diagnosis>(&json)
                .map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(read, found);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}
