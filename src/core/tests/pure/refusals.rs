//! Every refusal: the object that causes it, and exactly that refusal found.

use jiff::SignedDuration;
use reattach_core::cloud::VolumeState;
use reattach_core::diagnosis::Class;
use reattach_core::evidence::AccessMode;
use reattach_core::fact::{Fact, Known, Source};
use reattach_core::plan::Refusal;
use reattach_core::plan::{Releases, Scope, before_scaling, general};
use reattach_core::stamp::Stamp;
use reattach_core::testkit::{Case, INSTANCE, NODE, OTHER_INSTANCE, OTHER_NODE, attachment, start};
use reattach_core::workload::{AutoscalerFacts, ManagerFacts, ManagerKind, PodRefusal, ScalePath};

const SET: &str = "StatefulSet default/redis";

fn stamp() -> Stamp {
    Stamp {
        replicas: 1,
        workload: "workload-1".into(),
        recovery: "recovery-2".into(),
        at: start(),
    }
}

fn manager(kind: ManagerKind, paused: bool) -> ManagerFacts {
    ManagerFacts {
        kind,
        evidence: "label x".into(),
        paused,
    }
}

fn managed(by: &str) -> Refusal {
    Refusal::CountManaged {
        workload: SET.into(),
        manager: by.into(),
        evidence: "label x".into(),
    }
}

fn s() -> Case {
    Case::statefulset()
}

/// Each case with the one refusal that it must give.
fn table() -> Vec<(Case, Refusal)> {
    let w = || SET.to_owned();
    vec![
        (
            s().workload(|w| w.deletes_claims_when_scaled = true),
            Refusal::ScaleDeletesClaims { workload: w() },
        ),
        (
            s().workload(|w| w.claims[0].1.as_mut().unwrap().deleting = true),
            Refusal::ClaimDeleting {
                claim: "redis-data".into(),
            },
        ),
        (
            s().claim(|c| c.owners = vec![Case::owner("Backup", "b-1")]),
            Refusal::ClaimForeignOwner {
                claim: "redis-data".into(),
                owner: "Backup redis".into(),
            },
        ),
        (
            s().claim(|c| c.owners = vec![Case::owner("StatefulSet", "another")]),
            Refusal::ClaimForeignOwner {
                claim: "redis-data".into(),
                owner: "StatefulSet redis".into(),
            },
        ),
        (
            s().workload(|w| w.claims.push(("extra".into(), None))),
            Refusal::ClaimMissing {
                workload: w(),
                claim: "extra".into(),
            },
        ),
        (
            s().workload(|w| w.template.ephemeral_volumes = vec!["scratch".into()]),
            Refusal::EphemeralVolume {
                workload: w(),
                volume: "scratch".into(),
            },
        ),
        (
            s().workload(|w| {
                w.template.empty_dirs = vec!["cache".into()];
                w.pods[0].containers_running = true;
            }),
            Refusal::EmptyDirInUse {
                pod: "default/redis-0".into(),
                volume: "cache".into(),
            },
        ),
        (
            s().workload(|w| w.replicas = 3),
            Refusal::ManyReplicas {
                workload: w(),
                short: "StatefulSet/redis".into(),
                replicas: 3,
            },
        ),
        (
            s().with_pod("redis-1", Some(NODE), true),
            Refusal::OrderedStuck {
                workload: w(),
                pods: vec!["redis-0".into(), "redis-1".into()],
            },
        ),
        (
            s().with_mount(true)
                .pod(|p| p.deleting_since = Some(start())),
            Refusal::OrderedStuck {
                workload: w(),
                pods: vec!["redis-0".into()],
            },
        ),
        (
            s().workload(|w| w.rollout = Some("partition 1".into())),
            Refusal::RolloutInProgress {
                workload: w(),
                what: "partition 1".into(),
            },
        ),
        (
            s().pod_ready()
                .with_mount(true)
                .workload(|w| w.template.pre_stop = vec!["redis".into()]),
            Refusal::PreStopHook {
                pod: "default/redis-0".into(),
                container: "redis".into(),
            },
        ),
        (
            s().workload(|w| {
                w.autoscalers = vec![AutoscalerFacts {
                    name: "redis".into(),
                    min_replicas: 0,
                }]
            }),
            Refusal::AutoscalerMinZero {
                name: "redis".into(),
            },
        ),
        (
            s().workload(|w| w.managers = vec![manager(ManagerKind::Keda, false)]),
            managed("KEDA"),
        ),
        (
            s().workload(|w| w.managers = vec![manager(ManagerKind::Flux, false)]),
            managed("Flux"),
        ),
        (
            s().workload(|w| w.managers = vec![manager(ManagerKind::ArgoCd, false)]),
            managed("Argo CD"),
        ),
        (
            s().workload(|w| w.managers = vec![manager(ManagerKind::ArgoCd, true)]),
            managed("Argo CD"),
        ),
        (
            s().workload(|w| w.managers = vec![manager(ManagerKind::Operator, false)]),
            managed("an operator"),
        ),
        (
            s().workload(|w| {
                w.pod_dry_run = Some(Err(PodRefusal {
                    why: "exceeded quota".into(),
                    no_right: false,
                }))
            }),
            Refusal::PodWouldBeRefused {
                workload: w(),
                why: "exceeded quota".into(),
                no_right: false,
            },
        ),
        (
            s().workload(|w| w.pod_dry_run = None),
            Refusal::PodDryRunMissing { workload: w() },
        ),
        (
            s().workload(|w| w.replicas = 0),
            Refusal::AtZero { workload: w() },
        ),
        (
            s().workload(|w| w.stamp = Some(Ok(stamp()))),
            Refusal::StampedByOther {
                workload: w(),
                recovery: "recovery-2".into(),
            },
        ),
        (
            s().workload(|w| w.stamp = Some(Err("edited".into()))),
            Refusal::StampUnreadable {
                workload: w(),
                why: "edited".into(),
            },
        ),
        (
            s().workload(|w| w.deleting = true),
            Refusal::WorkloadDeleting { workload: w() },
        ),
        (
            s().workload(|w| w.scaling = ScalePath::None),
            Refusal::NotScalable { workload: w() },
        ),
        (
            s().with_pod("zz-other", Some(NODE), false),
            Refusal::ForeignPod {
                pod: "default/zz-other".into(),
                workload: w(),
            },
        ),
        (
            {
                let mut c = s();
                c.evidence.workload.value = Known::Absent;
                c
            },
            Refusal::BarePod {
                pod: "default/redis-0".into(),
            },
        ),
        (
            {
                let mut c = s();
                c.evidence.workload.at -= SignedDuration::from_secs(60);
                c
            },
            Refusal::Missing {
                what: "the workload".into(),
                why: "60 s old".into(),
            },
        ),
        (
            s().claim(|c| c.access_modes = vec![AccessMode::ReadWriteMany]),
            Refusal::SharedAccess {
                modes: vec![AccessMode::ReadWriteMany],
            },
        ),
        (
            s().claim(|c| c.access_modes = vec![AccessMode::ReadOnlyMany]),
            Refusal::SharedAccess {
                modes: vec![AccessMode::ReadOnlyMany],
            },
        ),
        (
            s().claim(|c| {
                c.access_modes = vec![AccessMode::ReadWriteOnce, AccessMode::ReadOnlyMany]
            }),
            Refusal::SharedAccess {
                modes: vec![AccessMode::ReadOnlyMany],
            },
        ),
        (s().claim(|c| c.access_modes.clear()), Refusal::NoAccessMode),
        (
            s().cloud(|c| c.holders.push("7".into())),
            Refusal::ManyHolders {
                holders: vec!["26000001".into(), "7".into()],
            },
        ),
        (
            s().claim(|c| c.opted_out = Some("namespace default".into())),
            Refusal::OptedOut {
                what: "namespace default".into(),
            },
        ),
        (
            s().node(|n| n.taints = vec!["node.kubernetes.io/out-of-service".into()]),
            Refusal::OthersAtWork {
                node: NODE.into(),
                taint: "node.kubernetes.io/out-of-service".into(),
            },
        ),
        (
            s().node(|n| n.taints = vec!["karpenter.sh/disrupted".into()]),
            Refusal::OthersAtWork {
                node: NODE.into(),
                taint: "karpenter.sh/disrupted".into(),
            },
        ),
        (s().unasked(), Refusal::Unchallenged { node: NODE.into() }),
    ]
}

#[test]
fn each_refusal_is_found_alone() {
    for (case, expected) in table() {
        assert_eq!(case.diagnosis().class(), Some(Class::B), "{expected}");
        assert_eq!(case.plan().unwrap_err(), vec![expected]);
    }
}

#[test]
fn a_second_record_of_the_volume_on_another_node_is_refused() {
    let case = s()
        .with_node(OTHER_NODE, OTHER_INSTANCE)
        .attachments(|a| a.push(attachment("csi-0", OTHER_NODE)));
    let refusals = case.plan().unwrap_err();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert!(
        refusals[0].to_string().contains(OTHER_NODE),
        "{}",
        refusals[0]
    );
}

#[test]
fn refusals_of_the_cloud_and_of_missing_facts() {
    let node = NODE.into();
    let holder = INSTANCE.into();
    let scope = Scope {
        node: &node,
        releases: Releases::Everyone,
        holder: &holder,
    };
    let outage = |case: &Case| general(case.evidence.at(case.now), &scope);
    let mut stale = s();
    stale.evidence.cloud_volume.at -= SignedDuration::from_secs(90);
    assert_eq!(
        outage(&stale),
        [Refusal::ProviderOutage {
            why: "its last answer is 90 s old".into()
        }]
    );
    let mut down = s();
    down.evidence.cloud_volume = Fact::unknown("503", Source::Cloud("linode".into()), start());
    assert_eq!(
        outage(&down),
        [Refusal::ProviderOutage { why: "503".into() }]
    );
    for state in [
        VolumeState::Locked { reason: "x".into() },
        VolumeState::Busy { doing: "x".into() },
        VolumeState::Other("x".into()),
    ] {
        let found = outage(&s().cloud(|c| c.state = state.clone()));
        assert!(
            matches!(&found[..], [Refusal::Missing { what, .. }] if what.contains("state")),
            "{state:?}: {found:?}"
        );
    }
    let mut no_node = s();
    no_node.evidence.cloud_scope = Some(reattach_core::cloud::CloudScope("account".into()));
    no_node.evidence.nodes.clear();
    assert_eq!(
        outage(&no_node),
        [Refusal::Missing {
            what: "Node lke-1".into(),
            why: "no fresh read of it".into()
        }]
    );
}

#[test]
fn harmless_facts_refuse_nothing() {
    let fine = [
        s().workload(|w| w.template.empty_dirs = vec!["cache".into()]),
        s().workload(|w| {
            w.template.empty_dirs = vec!["cache".into()];
            w.pods[0].containers_running = true;
            w.emptydirs_expendable = true;
        }),
        s().workload(|w| w.template.pre_stop = vec!["redis".into()]),
        s().claim(|c| c.owners = vec![Case::owner("StatefulSet", "workload-1")]),
        s().claim(|c| c.access_modes = vec![AccessMode::ReadWriteOncePod]),
        s().workload(|w| {
            w.autoscalers = vec![AutoscalerFacts {
                name: "redis".into(),
                min_replicas: 1,
            }]
        }),
        s().workload(|w| {
            w.managers = vec![
                manager(ManagerKind::Keda, true),
                manager(ManagerKind::Flux, true),
            ]
        }),
        s().workload(|w| w.scaling = ScalePath::ScaleSubresource),
        s().node(|n| n.taints = vec!["node.kubernetes.io/unschedulable".into()]),
        Case::deployment().with_pod("redis-2", Some(NODE), true),
    ];
    for case in fine {
        assert_eq!(case.plan().err(), None);
    }
    let three = s().workload(|w| w.replicas = 3);
    for name in ["StatefulSet/redis", "statefulset/redis"] {
        assert!(three.plan_as(Some(name), false).is_ok(), "{name}");
    }
    for name in ["StatefulSet/other", "Deployment/redis", "redis", ""] {
        assert!(
            three.plan_as(Some(name), false).is_err(),
            "{name:?} names another workload"
        );
    }
}

#[test]
fn classes_without_a_remedy_are_refused_with_advice() {
    let cases = [
        (Class::A, s().node(|n| n.ready = false)),
        (Class::C, s().cloud(|c| c.holders.clear())),
        (
            Class::D,
            s().attachment(|a| {
                a.deleting_since = Some(start());
                a.detach_error = Some("x".into());
            }),
        ),
        (
            Class::E,
            s().attachments(Vec::clear)
                .cloud(|c| c.holders = vec!["7".into()]),
        ),
    ];
    for (class, case) in cases {
        let refusals = case.plan().unwrap_err();
        assert!(
            matches!(&refusals[..], [Refusal::NoRemedy { class: c, advice, .. }] if *c == class && !advice.is_empty()),
            "{refusals:?}"
        );
    }
}

#[test]
fn a_verdict_without_a_class_gives_its_own_sentence() {
    let refusals = s().pod(|p| p.node = None).plan().unwrap_err();
    assert_eq!(refusals.len(), 1);
    assert!(
        refusals[0]
            .to_string()
            .contains("has not been bound to a node"),
        "{}",
        refusals[0]
    );
}

/// All at once: every refusal of every pair of causes is reported.
#[test]
fn every_applicable_refusal_is_listed() {
    type Change = (&'static str, fn(Case) -> Case, fn(&Refusal) -> bool);
    let causes: [Change; 10] = [
        (
            "whenScaled",
            |c| c.workload(|w| w.deletes_claims_when_scaled = true),
            |r| matches!(r, Refusal::ScaleDeletesClaims { .. }),
        ),
        (
            "ephemeral",
            |c| c.workload(|w| w.template.ephemeral_volumes = vec!["x".into()]),
            |r| matches!(r, Refusal::EphemeralVolume { .. }),
        ),
        (
            "replicas",
            |c| c.workload(|w| w.replicas = 2),
            |r| matches!(r, Refusal::ManyReplicas { .. }),
        ),
        (
            "rollout",
            |c| c.workload(|w| w.rollout = Some("x".into())),
            |r| matches!(r, Refusal::RolloutInProgress { .. }),
        ),
        (
            "opt-out",
            |c| c.claim(|c| c.opted_out = Some("x".into())),
            |r| matches!(r, Refusal::OptedOut { .. }),
        ),
        (
            "taint",
            |c| c.node(|n| n.taints = vec!["medik8s.io/drain".into()]),
            |r| matches!(r, Refusal::OthersAtWork { .. }),
        ),
        (
            "shared",
            |c| c.claim(|c| c.access_modes = vec![AccessMode::ReadWriteMany]),
            |r| matches!(r, Refusal::SharedAccess { .. }),
        ),
        (
            "holders",
            |c| c.cloud(|c| c.holders.push("7".into())),
            |r| matches!(r, Refusal::ManyHolders { .. }),
        ),
        (
            "stamp",
            |c| c.workload(|w| w.stamp = Some(Ok(stamp()))),
            |r| matches!(r, Refusal::StampedByOther { .. }),
        ),
        (
            "unasked",
            |c| c.unasked(),
            |r| matches!(r, Refusal::Unchallenged { .. }),
        ),
    ];
    for (one, change_one, is_one) in causes {
        for (two, change_two, is_two) in causes {
            let found = change_two(change_one(s())).plan().unwrap_err();
            assert!(
                found.iter().any(is_one) && found.iter().any(is_two),
                "{one} and {two}: {found:?}"
            );
        }
    }
    let all = causes
        .iter()
        .fold(s(), |case, (_, change, _)| change(case))
        .plan()
        .unwrap_err();
    for (name, _, is) in causes {
        assert!(all.iter().any(is), "{name} is lost among {all:?}");
    }
    assert!(all.is_sorted(), "refusals are in a stable order");
}

#[test]
fn an_unreadable_claim_hides_no_other_refusal() {
    let mut case = s()
        .cloud(|c| c.holders.push("7".into()))
        .node(|n| n.taints = vec!["medik8s.io/drain".into()]);
    case.evidence.claim = Fact::unknown("timeout", Source::Kubernetes("claim".into()), start());
    let found = general(
        case.evidence.at(case.now),
        &Scope {
            node: &NODE.into(),
            releases: Releases::Everyone,
            holder: &INSTANCE.into(),
        },
    );
    assert!(
        found.iter().any(|r| matches!(r, Refusal::Missing { .. })),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|r| matches!(r, Refusal::ManyHolders { .. })),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|r| matches!(r, Refusal::OthersAtWork { .. })),
        "{found:?}"
    );
}

#[test]
fn every_refusal_prints_one_sentence() {
    for (case, _) in table() {
        for refusal in before_scaling(case.evidence.at(case.now), None) {
            let text = refusal.to_string();
            assert!(
                !text.is_empty() && !text.contains('\n') && !text.contains("Some("),
                "{text}"
            );
        }
    }
}

#[test]
fn refusals_that_pass_by_themselves() {
    for (_, refusal) in table() {
        let expected = matches!(
            refusal,
            Refusal::RolloutInProgress { .. }
                | Refusal::PodWouldBeRefused { .. }
                | Refusal::PodDryRunMissing { .. }
                | Refusal::StampedByOther { .. }
                | Refusal::Missing { .. }
                | Refusal::Unchallenged { .. }
                | Refusal::EmptyDirInUse { .. }
        );
        assert_eq!(refusal.may_pass(), expected, "{refusal}");
    }
    assert!(
        Refusal::Budget {
            scope: "in zone a".into(),
            running: 3,
            limit: 3
        }
        .may_pass()
    );
    assert!(Refusal::ProviderOutage { why: "503".into() }.may_pass());
}
