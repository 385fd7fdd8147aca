//! Nothing is lost for good on the way (S2): one list of refusals, whatever makes a pod go away.

use super::clocks::until;
use super::walk::{ALL, QUIET, Walk, change, dead_node, dead_node_off, plan};
use reattach_core::check::{Rule, check};
use reattach_core::fact::{Fact, Source};
use reattach_core::journal::{End, Event, UnwindReason};
use reattach_core::loss::{Acceptance, AcceptedLoss, EmptyDirs, Loss, PodLoss, PodsGo};
use reattach_core::plan::{Allowed, Commands, Plan, Refusal, Request};
use reattach_core::run::{Effect, Next};
use reattach_core::runbook::{DEFAULT_RUNBOOK, Runbook, SCALE_TO_ZERO};
use reattach_core::steps::StepKind;
use reattach_core::testkit::{Case, NODE, OTHER_INSTANCE, OTHER_NODE};
use reattach_core::workload::WorkloadFacts;

/// What makes pods go away, and a case whose plan has such a step.
fn makers() -> [(&'static str, Case, fn(&Case) -> Result<Plan, Vec<Refusal>>); 3] {
    let held = Case::statefulset()
        .holdable()
        .with_node(OTHER_NODE, OTHER_INSTANCE);
    [
        ("the count", Case::statefulset(), |c| c.plan()),
        ("an eviction", held, |c| plan(c, ALL)),
        ("the taint", dead_node(), |c| plan(c, ALL)),
    ]
}

type Row = (&'static str, fn(&mut WorkloadFacts), fn(&Refusal) -> bool);

const LOSSES: [Row; 5] = [
    (
        "another claim that was deleted",
        another_claim,
        |r| matches!(r, Refusal::ClaimDeleting { claim } if claim == "wal"),
    ),
    ("a claim of a foreign owner", foreign_owner, |r| {
        matches!(r, Refusal::ClaimForeignOwner { .. })
    }),
    (
        "a generic ephemeral volume",
        |w| w.template.ephemeral_volumes.push("scratch".into()),
        |r| matches!(r, Refusal::EphemeralVolume { .. }),
    ),
    (
        "claims that go with a pod beyond the count",
        |w| {
            w.deletes_claims_when_scaled = true;
            w.pods[0].name.name = "redis-1".into();
        },
        |r| matches!(r, Refusal::ScaleDeletesClaims { .. }),
    ),
    (
        "a Job at its limit",
        |w| w.not_remade = Some("Job redis has backoffLimit 0".into()),
        |r| matches!(r, Refusal::NotRemade { .. }),
    ),
];

fn another_claim(w: &mut WorkloadFacts) {
    let mut wal = w.claims[0].1.clone().unwrap();
    (wal.uid, wal.deleting) = ("claim-wal".into(), true);
    w.claims.push(("wal".into(), Some(wal)));
}

fn foreign_owner(w: &mut WorkloadFacts) {
    w.claims[0]
        .1
        .as_mut()
        .unwrap()
        .owners
        .push(Case::owner("Job", "x"));
}

#[test]
fn each_loss_is_refused_for_each_way_to_end_a_pod() {
    for (by, case, made) in makers() {
        let good = made(&case).unwrap_or_else(|r| panic!("{by}: {r:?}"));
        for (name, spoil, is) in LOSSES {
            let case = case.clone().workload(spoil);
            let refusals = made(&case).expect_err(name);
            assert!(refusals.iter().any(is), "{name} by {by}: {refusals:?}");
            let found = check(&good, case.evidence.at(case.now), None);
            assert!(
                found.iter().any(|v| v.rule() == Rule::S2),
                "the checker lets {name} by {by} pass: {found:?}"
            );
        }
        let scales_away = case.workload(|w| w.deletes_claims_when_scaled = true);
        assert_eq!(
            made(&scales_away).is_ok(),
            by != "the count",
            "{by}: no pod beyond the count goes"
        );
    }
}

/// What comes up after the plan was made is seen right before the effect.
#[test]
fn each_loss_stops_a_run_before_its_first_pod_ends() {
    let goes = |e: &Effect| {
        matches!(
            e,
            Effect::Release { .. } | Effect::PowerOff { .. } | Effect::TaintOutOfService { .. }
        )
    };
    for (by, case, _) in makers().into_iter().skip(1) {
        for (name, spoil, _) in LOSSES {
            let mut walk = Walk::new(case.clone(), QUIET);
            walk.case = walk.case.clone().workload(spoil);
            let end = walk.run(|_, _| {});
            assert!(
                matches!(end, End::Failed { .. } | End::Withdrawn { .. }),
                "{name} by {by}: {end:?}"
            );
            assert!(
                !walk.effects.iter().any(goes),
                "{name} by {by}: {:?}",
                walk.kinds()
            );
            assert!(walk.is_clean(), "{name} by {by}");
        }
    }
}

fn caches(case: &Case) -> Case {
    case.clone()
        .workload(|w| w.template.empty_dirs = vec!["cache".into(), "run".into()])
}

fn running(case: &Case) -> Case {
    let mut case = caches(case).workload(|w| w.pods[0].containers_running = true);
    change(&mut case.evidence.pods, |all| {
        all[0].containers_running = true
    });
    case
}

/// The plan of a case under this rule for emptyDirs, by the runbook that `by` stands for.
fn plan_under(case: &Case, by: &str, empty_dirs: EmptyDirs) -> Result<Plan, Vec<Refusal>> {
    let name = match by {
        "the count" => SCALE_TO_ZERO,
        _ => DEFAULT_RUNBOOK,
    };
    let runbook = Runbook::built_in(name).unwrap();
    case.plan_for(&Request {
        runbook: &runbook,
        confirm_workload: None,
        commands: Commands::default(),
        for_show: false,
        allowed: Allowed { empty_dirs, ..ALL },
    })
}

#[test]
fn a_down_pods_emptydirs_may_go_and_the_plan_names_them() {
    for (by, case, _) in makers() {
        let without = plan_under(&case, by, EmptyDirs::Lose).unwrap();
        assert_eq!(without.losses, [], "{by}");
        let case = caches(&case);
        let plan = plan_under(&case, by, EmptyDirs::Lose).unwrap_or_else(|r| panic!("{by}: {r:?}"));
        let named = ["cache", "run"].map(|volume| AcceptedLoss::EmptyDir {
            volume: volume.into(),
            accepted: Acceptance::Policy,
        });
        assert_eq!(plan.losses, named, "{by}");
        assert_ne!(plan.hash, without.hash, "{by}: an approval covers the loss");
        assert_eq!(check(&plan, case.evidence.at(case.now), None), [], "{by}");
    }
}

#[test]
fn keep_refuses_each_emptydir_that_is_not_expendable() {
    for (by, case, _) in makers() {
        let case = caches(&case);
        let refusals = plan_under(&case, by, EmptyDirs::Keep).unwrap_err();
        let named = ["cache", "run"].map(|volume| Refusal::EmptyDir {
            workload: "StatefulSet default/redis".into(),
            volume: volume.into(),
        });
        assert_eq!(refusals, named, "{by}");
        let case = case.workload(|w| w.emptydirs_expendable = true);
        let plan = plan_under(&case, by, EmptyDirs::Keep).unwrap();
        assert!(
            plan.losses.contains(&AcceptedLoss::EmptyDir {
                volume: "cache".into(),
                accepted: Acceptance::Owner,
            }),
            "{by}: {:?}",
            plan.losses
        );
        assert_eq!(check(&plan, case.evidence.at(case.now), None), [], "{by}");
    }
}

#[test]
fn a_running_containers_emptydir_is_not_lost() {
    for (by, case, _) in makers() {
        let plan = plan_under(&caches(&case), by, EmptyDirs::Lose).unwrap();
        let case = running(&case);
        let found = check(&plan, case.evidence.at(case.now), None);
        let Err(refusals) = plan_under(&case, by, EmptyDirs::Lose) else {
            // The kubelet of a dead node cannot say that its containers ended. The proof that the machine cannot write does.
            assert_eq!(by, "the taint");
            assert_eq!(found, [], "{by}");
            continue;
        };
        assert_ne!(by, "the taint", "{refusals:?}");
        assert!(
            matches!(&refusals[..], [Refusal::EmptyDirInUse { pod, volume, .. }, _]
                if pod == "default/redis-0" && volume == "cache"),
            "{by}: {refusals:?}"
        );
        assert!(
            refusals[0].may_pass(),
            "{by}: kubelet may only be late to say so"
        );
        assert!(
            found.iter().any(|v| v.rule() == Rule::S2),
            "the checker lets {by} pass: {found:?}"
        );
        let declared = case.workload(|w| w.emptydirs_expendable = true);
        assert!(
            plan_under(&declared, by, EmptyDirs::Lose).is_ok(),
            "{by}: its owner accepts the loss"
        );
    }
}

#[test]
fn a_run_loses_only_the_emptydirs_that_its_plan_names() {
    let goes = |e: &Effect| matches!(e, Effect::Release { .. } | Effect::TaintOutOfService { .. });
    for (by, case, _) in makers().into_iter().skip(1) {
        let end = Walk::new(caches(&case), QUIET).run(|_, _| {});
        assert_eq!(end, End::Recovered, "{by}");
        let mut walk = Walk::new(caches(&case), QUIET);
        walk.case = walk
            .case
            .clone()
            .workload(|w| w.template.empty_dirs.push("new".into()));
        let end = walk.run(|_, _| {});
        assert!(
            matches!(&end, End::Failed { why } | End::Withdrawn { why } if why.contains("emptyDir new")),
            "{by}: {end:?}"
        );
        assert!(!walk.effects.iter().any(goes), "{by}: {:?}", walk.kinds());
    }
    // Where its owner alone accepted it, the loss is accepted for as long as the annotation is there.
    let mut owner = caches(&makers()[1].1).workload(|w| w.emptydirs_expendable = true);
    owner = owner.holdable();
    let mut walk = Walk::new(owner, QUIET);
    walk.case = walk
        .case
        .clone()
        .workload(|w| w.emptydirs_expendable = false);
    let end = walk.run(|_, _| {});
    assert!(
        matches!(&end, End::Failed { why } if why.contains("emptyDir cache")),
        "{end:?}"
    );
}

fn lost(mut case: Case, loss: Loss) -> Case {
    let losses = vec![PodLoss {
        pod: reattach_core::ids::ObjectName::new("default", "neighbour"),
        loss,
    }];
    let source = Source::Kubernetes("Pods on the node".into());
    case.evidence
        .node_losses
        .insert(NODE.into(), Fact::present(losses, source, case.now));
    case
}

/// The refusal stands in the claim's namespace, whose people need not see the pods of another one.
#[test]
fn a_neighbour_in_another_namespace_counts_unnamed() {
    for (loss, may_pass) in [
        (
            Loss::ClaimDeleting {
                claim: "salaries".into(),
            },
            false,
        ),
        (
            Loss::ClaimOfPod {
                claim: "salaries".into(),
            },
            false,
        ),
        (
            Loss::NotRemade {
                why: "Job salaries is at its backoffLimit".into(),
            },
            true,
        ),
    ] {
        let mut case = lost(dead_node(), loss.clone());
        for fact in case.evidence.node_losses.values_mut() {
            change(fact, |all| {
                all[0].pod = reattach_core::ids::ObjectName::new("payroll", "salaries-0")
            });
        }
        let refusals = plan(&case, ALL).unwrap_err();
        let [refusal @ Refusal::LostElsewhereOnNode { pods: 1, .. }] = &refusals[..] else {
            panic!("{refusals:?}")
        };
        assert_eq!(refusal.may_pass(), may_pass);
        let text = format!("{refusal} {}", serde_json::to_string(refusal).unwrap());
        assert!(
            !text.contains("payroll") && !text.contains("salaries"),
            "{text}"
        );
        let mut walk = Walk::new(dead_node_off(), QUIET);
        walk.case.evidence.node_losses = case.evidence.node_losses.clone();
        let end = walk.run(|_, _| {});
        assert!(
            matches!(&end, End::Failed { why } if !why.contains("payroll")),
            "{end:?}"
        );
        let effects = walk
            .effects
            .iter()
            .filter(|e| !matches!(e, Effect::Quarantine { .. }))
            .count();
        assert_eq!(effects, 0, "{:?}", walk.kinds());
    }
}

#[test]
fn a_neighbours_loss_keeps_the_node_unfenced() {
    let losses = [
        Loss::ClaimDeleting {
            claim: "data".into(),
        },
        Loss::ClaimOfPod {
            claim: "data".into(),
        },
        Loss::EphemeralVolume {
            volume: "scratch".into(),
        },
        Loss::NotRemade {
            why: "no controller owns it".into(),
        },
    ];
    for loss in losses {
        let refusals = plan(&lost(dead_node(), loss.clone()), ALL).unwrap_err();
        assert!(
            matches!(&refusals[..], [Refusal::LostOnNode { pod, .. }] if pod == "default/neighbour"),
            "{refusals:?}"
        );
        let found = check(
            &plan(&dead_node(), ALL).unwrap(),
            lost(dead_node(), loss.clone()).evidence.at(dead_node().now),
            None,
        );
        assert!(
            found
                .iter()
                .any(|v| v.to_string().contains("another pod on the node")),
            "{found:?}"
        );
        for case in [dead_node(), dead_node_off()] {
            let mut walk = Walk::new(case, QUIET);
            walk.case = lost(walk.case.clone(), loss.clone());
            let end = walk.run(|_, _| {});
            assert!(
                matches!(&end, End::Failed { why } | End::Withdrawn { why } if why.contains("default/neighbour")),
                "{loss}: {end:?}"
            );
            assert!(
                walk.effects
                    .iter()
                    .all(|e| matches!(e, Effect::Quarantine { .. })),
                "{:?}",
                walk.kinds()
            );
        }
    }
    // The claim's own pods are judged by their workload, which knows the claims that they use.
    for (loss, judged) in [
        (Loss::NotRemade { why: "x".into() }, true),
        (
            Loss::ClaimOfPod {
                claim: "redis-data".into(),
            },
            true,
        ),
        (
            Loss::ClaimOfPod {
                claim: "backups".into(),
            },
            false,
        ),
    ] {
        let mut own = lost(dead_node(), loss.clone());
        if let Some(Fact {
            value: reattach_core::fact::Known::Present(all),
            ..
        }) = own.evidence.node_losses.get_mut(&NODE.into())
        {
            all[0].pod = own.evidence.workload.shown().unwrap().pods[0].name.clone();
        }
        assert_eq!(plan(&own, ALL).is_ok(), judged, "{loss}");
    }
}

/// A loss that may pass is waited for; one that may not turns the run back at once, whatever else would be lost.
#[test]
fn a_loss_that_cannot_pass_is_not_waited_for() {
    let passes = || Loss::NotRemade {
        why: "Job salaries is at its backoffLimit".into(),
    };
    let stays = || Loss::ClaimDeleting {
        claim: "data".into(),
    };
    let mut walk = Walk::new(dead_node(), QUIET);
    until(
        &mut walk,
        |_, said| matches!(said, Next::Act(a) if matches!(a.effect, Effect::PowerOff { .. })),
    );
    for (losses, waits) in [
        (vec![passes()], true),
        (vec![stays()], false),
        (vec![passes(), stays()], false),
    ] {
        let mut walk = walk.clone();
        let fact = walk
            .case
            .evidence
            .node_losses
            .get_mut(&NODE.into())
            .unwrap();
        let pod = |loss| PodLoss {
            pod: reattach_core::ids::ObjectName::new("default", "neighbour"),
            loss,
        };
        change(fact, |all| *all = losses.iter().cloned().map(pod).collect());
        let said = walk.ask();
        let refused = matches!(
            &said,
            Next::Record(Event::UnwindStarted {
                why: UnwindReason::Refused { .. }
            })
        );
        assert_eq!(
            (matches!(said, Next::Wait { .. }), refused),
            (waits, !waits),
            "{losses:?}: {said:?}"
        );
    }
}

#[test]
fn unknown_losses_of_neighbours_refuse_the_plan() {
    let mut case = dead_node();
    case.evidence.node_losses.clear();
    let refusals = plan(&case, ALL).unwrap_err();
    assert!(
        matches!(&refusals[..], [Refusal::Missing { what, .. }] if what.contains("would lose")),
        "{refusals:?}"
    );
    assert!(refusals[0].may_pass());
}

#[test]
fn every_step_declares_the_pods_it_ends() {
    let going: Vec<_> = [
        StepKind::ScaleToZero,
        StepKind::Release,
        StepKind::PowerOff,
        StepKind::TaintOutOfService,
    ]
    .map(|kind| kind.spec().pods_go)
    .to_vec();
    assert_eq!(
        going,
        [
            PodsGo::WithTheCount,
            PodsGo::OfTheClaim,
            PodsGo::OfTheNode,
            PodsGo::OfTheNode
        ]
    );
    assert_eq!(
        StepKind::DeleteAttachment.spec().pods_go,
        PodsGo::None,
        "a record goes, and no pod"
    );
}
