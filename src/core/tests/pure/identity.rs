//! Whose the claim, the volume and the machine are: what does not fit together is named, planned by nobody and vetoed by the
//! checker; and a living machine's silence about an orphan is no answer.

use super::walk::{ALL, QUIET, Walk, World, orphan, plan};
use reattach_core::check::{Rule, check};
use reattach_core::diagnosis::{NotOurs, Verdict};
use reattach_core::evidence::{
    ClaimPhase, CsiSource, Declaration, Evidence, OtherRegion, OtherUse, OwnClusters,
};
use reattach_core::fact::{Fact, Known};
use reattach_core::guest::ScanResult;
use reattach_core::identity::{IdentityProblem, binding_in};
use reattach_core::ids::ObjectName;
use reattach_core::plan::{Refusal, identity_refusals as refusals};
use reattach_core::run::{Effect, Next};
use reattach_core::testkit::{Case, FORMER_INSTANCE, NODE, OTHER_NODE, machine};

/// A case, and the beginning of the sentence that says what is wrong.
type Row = (fn() -> Case, &'static str);

fn d() -> Case {
    Case::statefulset().holdable()
}

fn claim_ref(change: fn(&mut reattach_core::evidence::ClaimRef)) -> Case {
    d().volume(|v| v.claim_ref.as_mut().map(change).unwrap())
}

/// What is wrong with the volume itself: not ours.
const VOLUMES: [Row; 10] = [
    (
        || claim_ref(|of| of.claim.namespace = "shop".into()),
        "claim default/redis-data names PersistentVolume pvc-redis, which is bound to a claim of another namespace; reattach",
    ),
    (
        || claim_ref(|of| of.claim.name = "other".into()),
        "claim default/redis-data names PersistentVolume pvc-redis, which is bound to claim default/other",
    ),
    (
        || claim_ref(|of| of.uid = Some("claim-0".into())),
        "claim default/redis-data names PersistentVolume pvc-redis, which is bound to an earlier claim of that name",
    ),
    (
        || claim_ref(|of| of.uid = None),
        "claim default/redis-data names PersistentVolume pvc-redis, and Kubernetes has not bound",
    ),
    (
        || d().volume(|v| v.claim_ref = None),
        "claim default/redis-data names PersistentVolume pvc-redis, and Kubernetes has not",
    ),
    (
        || d().claim(|c| c.phase = ClaimPhase::Pending),
        "claim default/redis-data names PersistentVolume pvc-redis, and Kubernetes",
    ),
    (
        || d().identity(|i| i.canonical = Some("5551-renamed".into())),
        "volume handle 5551-pvc-redis is not the one that driver linodebs.csi.linode.com gives to cloud volume 5551 (5551-renamed)",
    ),
    (
        || d().identity(|i| i.others = vec![other()]),
        "cloud volume 5551 is also used through PersistentVolume pvc-alias (a claim of another namespace, VolumeAttachment csi-2 on lke-2, pods of another namespace: 1)",
    ),
    (
        || {
            d().identity(|i| {
                i.region = Some(OtherRegion {
                    asked: "us-east".into(),
                    is: "eu-central".into(),
                })
            })
        },
        "PersistentVolume pvc-redis asks for us-east, and the cloud has its volume in eu-central",
    ),
    (
        || d().identity(|i| i.others = vec![other_of("default")]),
        "cloud volume 5551 is also used through PersistentVolume pvc-alias (claim default/alias, VolumeAttachment csi-2 on lke-2, pod default/thief); with",
    ),
];

/// How many of [`VOLUMES`], from the first on, are about the binding of claim and PersistentVolume.
const OF_THE_BINDING: usize = 6;

fn other() -> OtherUse {
    other_of("evil")
}

fn other_of(namespace: &str) -> OtherUse {
    OtherUse::PersistentVolume {
        name: "pvc-alias".into(),
        claim: Some(ObjectName::new(namespace, "alias")),
        attachments: vec!["csi-2 on lke-2".into()],
        pods: vec![ObjectName::new(namespace, "thief")],
    }
}

fn problem(refusal: &Refusal) -> Option<&IdentityProblem> {
    match refusal {
        Refusal::Identity { problem } => Some(problem),
        _ => None,
    }
}

#[test]
fn a_volume_of_another_claim_is_refused() {
    let good = d();
    let made = good.plan_by("lightest-first", None, false).unwrap();
    for (case, sentence) in VOLUMES {
        let case = case();
        let said = case.diagnosis().verdict;
        assert!(
            matches!(said, Verdict::NotOurs { .. }) && said.to_string().contains(sentence),
            "{said}"
        );
        let found = check(&made, case.evidence.at(case.now), None);
        assert!(
            found.iter().any(|v| v.rule() == Rule::S10),
            "{sentence}: {found:?}"
        );
        let text = serde_json::to_string(&case.diagnosis()).unwrap();
        assert!(
            !text.contains("evil") && !text.contains("shop"),
            "a name of another namespace: {text}"
        );
    }
}

/// A claim that is not bound has no right to the volume that it names: the collector reads nothing of that
/// volume then, and whoever looks at claims counts it among those that are not asked about.
#[test]
fn an_unbound_claim_has_its_own_refusal() {
    for (n, (case, sentence)) in VOLUMES.iter().enumerate() {
        let case = case();
        let about_it = n < OF_THE_BINDING;
        assert_eq!(
            binding_in(case.evidence.at(case.now)).is_err(),
            about_it,
            "{sentence}"
        );
        let verdict = case.diagnosis().verdict;
        let Verdict::NotOurs {
            reason: NotOurs::Identity { problem },
        } = verdict
        else {
            panic!("{verdict}")
        };
        assert_eq!(problem.is_about_the_binding(), about_it, "{problem}");
        if about_it {
            let (mut no_claim, mut no_volume) = (case.clone(), case);
            no_claim.evidence.claim.value = Known::Unknown { why: "503".into() };
            no_volume.evidence.volume.value = Known::Unknown { why: "503".into() };
            for unread in [no_claim, no_volume] {
                assert_eq!(
                    binding_in(unread.evidence.at(unread.now)),
                    Ok(()),
                    "said by who reads it"
                );
            }
        }
    }
}

/// A provider that does not answer cannot say what its handle for the volume is. What else leads to the
/// volume is told all the same, and the missing handle is no trouble of its own.
#[test]
fn other_users_are_named_without_the_cloud() {
    let mut case = d().identity(|i| (i.canonical, i.others) = (None, vec![other()]));
    let told = |case: &Case| refusals(case.evidence.at(case.now), None);
    assert!(
        matches!(&told(&case)[..], [Refusal::Missing { why, .. }] if why.contains("makes no handle"))
    );
    case.evidence.cloud_volume.value = Known::Unknown { why: "503".into() };
    let found = told(&case);
    assert!(
        matches!(
            found.iter().find_map(problem),
            Some(IdentityProblem::ManyVolumes { .. })
        ),
        "{found:?}"
    );
    assert!(
        !found.iter().any(|r| matches!(r, Refusal::Missing { .. })),
        "{found:?}"
    );
}

/// Evidence that was saved says the same of the owner when it is read again.
#[test]
fn tag_verdicts_survive_serialisation() {
    let known = OwnClusters::Known {
        names: ["lke13311".into()].into(),
    };
    let unread = OwnClusters::Unread { why: "502".into() };
    for own in [known, unread, OwnClusters::NotAsked] {
        let case = d().identity(|i| i.own_clusters = own);
        let text = serde_json::to_string(&case.evidence).unwrap();
        assert_eq!(
            serde_json::from_str::<Evidence>(&text).unwrap(),
            case.evidence
        );
    }
}

/// A healthy claim stays healthy, whatever its volume is called.
#[test]
fn a_renamed_volume_of_a_healthy_pod_is_no_trouble() {
    let case = d()
        .pod_ready()
        .device_in_use()
        .identity(|i| i.canonical = Some("5551-renamed".into()));
    assert!(
        matches!(case.diagnosis().verdict, Verdict::Healthy { .. }),
        "{}",
        case.diagnosis().verdict
    );
}

#[test]
fn an_unread_fact_gives_no_plan() {
    let mut case = d();
    let (source, at) = (case.evidence.identity.source.clone(), case.now);
    case.evidence.identity = Fact::unknown("403", source, at);
    let refusals = case.plan_by("lightest-first", None, false).unwrap_err();
    assert!(
        matches!(&refusals[..], [Refusal::Missing { why, .. }] if why == "403"),
        "{refusals:?}"
    );
}

#[test]
fn a_machine_of_two_nodes_is_refused_and_both_are_named() {
    let mut case = d();
    let double = case.evidence.nodes[&NODE.into()].clone();
    case.evidence.nodes.insert("a-double".into(), double);
    let refusals = case.plan_by("lightest-first", None, false).unwrap_err();
    let said: Vec<_> = refusals
        .iter()
        .filter_map(problem)
        .map(ToString::to_string)
        .collect();
    assert!(
        said[0].starts_with("Nodes a-double, lke-1 all have the providerID"),
        "{refusals:?}"
    );
    assert_eq!(
        case.evidence
            .node_of_instance(&reattach_core::testkit::INSTANCE.into()),
        None
    );
}

fn refused(case: &Case) -> Vec<IdentityProblem> {
    match plan(case, ALL) {
        Ok(_) => Vec::new(),
        Err(refusals) => refusals.iter().filter_map(problem).cloned().collect(),
    }
}

/// The machine is gone, which would be a proof: it may still be somebody else's.
#[test]
fn a_gone_machine_that_was_never_a_node_is_refused() {
    let foreign = [IdentityProblem::ForeignHolder {
        holder: FORMER_INSTANCE.into(),
    }];
    assert_eq!(refused(&orphan()), []);
    assert_eq!(refused(&orphan().machines(Vec::clear)), foreign);
    let elsewhere =
        orphan().machines(|all| all[2].scope.as_mut().unwrap().0 = "another account".into());
    assert_eq!(refused(&elsewhere), foreign);
    let unscoped = orphan().machines(|all| all[2].scope = None);
    assert_eq!(refused(&unscoped), foreign);

    let made = plan(&orphan(), ALL).unwrap();
    let vouched = |holder: &str, of_this_cluster, ago| {
        let mut case = orphan().machines(Vec::clear);
        case.evidence.declaration = Some(Declaration {
            holder: holder.into(),
            by: "jane".into(),
            reason: "ours".into(),
            at: case.now - jiff::SignedDuration::from_secs(ago),
            of_this_cluster,
            cluster_wide: true,
        });
        let found = check(&made, case.evidence.at(case.now), None);
        let refused = refused(&case);
        assert_eq!(
            found.iter().any(|v| v.rule() == Rule::S10),
            !refused.is_empty(),
            "the checker: {found:?}"
        );
        refused
    };
    assert_eq!(vouched(FORMER_INSTANCE, true, 60), []);
    assert_eq!(
        vouched(FORMER_INSTANCE, false, 60),
        foreign,
        "that it cannot write says nothing about whose it is"
    );
    assert_eq!(vouched("another", true, 60), foreign);
    assert_eq!(vouched(FORMER_INSTANCE, true, 3_601), foreign);

    let mut unscoped = unscoped;
    unscoped.evidence.cloud_scope = None;
    for foreign in [orphan().machines(Vec::clear), elsewhere, unscoped] {
        let found = check(&made, foreign.evidence.at(foreign.now), None);
        assert!(found.iter().any(|v| v.rule() == Rule::S10), "{found:?}");
    }
}

/// Any spelling of a name in Node status that comes to the volume counts as the volume.
#[test]
fn another_spelling_in_volumes_in_use_counts() {
    let alias = CsiSource {
        driver: "linodebs.csi.linode.com".into(),
        handle: "5551-x".into(),
    };
    let case = d().identity(|i| i.aliases = [alias.unique_name()].into());
    let csi = case.evidence.at(case.now).csi().unwrap();
    assert!(case.evidence.lists_volume(&[alias.unique_name()], csi));
    assert!(case.evidence.is_volume(&alias.driver, &alias.handle, csi));
    assert!(!case.evidence.lists_volume(
        &["kubernetes.io/csi/linodebs.csi.linode.com^5552-x".into()],
        csi
    ));
    assert_eq!(
        CsiSource::of_unique_name(&csi.unique_name()).as_ref(),
        Some(csi)
    );
}

/// An orphan on a machine that lives: its Node lists nothing, and only its agent can see what kubelet does not report.
pub fn living_orphan() -> Case {
    orphan().with_node("lke-9", FORMER_INSTANCE)
}

#[test]
fn a_running_machine_is_asked_before_an_orphan_is_freed() {
    let mut walk = Walk::new(living_orphan(), QUIET);
    walk.run(|_, _| {});
    assert_eq!(
        walk.kinds()[..3],
        ["Hold", "Challenge", "CloudDetach"],
        "{}",
        walk.story()
    );

    let others: [fn() -> Option<ScanResult>; 4] = [
        || None,
        || Some(ScanResult::Idle),
        || {
            Some(ScanResult::DeadMount {
                paths: vec!["/m".into()],
            })
        },
        || {
            Some(ScanResult::Unreadable {
                items: vec!["/proc".into()],
            })
        },
    ];
    for says in others {
        let mut walk = Walk::new(
            living_orphan(),
            World {
                holder_says: Some(says),
                ..QUIET
            },
        );
        walk.run(|_, _| {});
        assert!(
            !walk.kinds().contains(&"CloudDetach".to_owned()),
            "{:?}\n{}",
            says(),
            walk.story()
        );
    }
}

/// What the agent of a machine that has booted again answered before the last mount attempt was over is no proof, while kubelet
/// reports the volume in use.
#[test]
fn an_answer_during_a_mount_attempt_is_no_proof_of_a_reboot() {
    let detaches = |said: &Next| matches!(said, Next::Act(a) if matches!(a.effect, Effect::CloudDetach { .. }));
    let mut walk = Walk::new(living_orphan(), QUIET);
    super::clocks::until(&mut walk, |_, said| detaches(said));
    let booted = |walk: &Walk, in_use: &[String]| {
        let mut walk = walk.clone();
        walk.case = walk.case.node_named("lke-9", |n| {
            (n.boot_id, n.volumes_in_use) = ("later".into(), in_use.to_vec());
        });
        let e = &mut walk.case.evidence;
        e.answers.get_mut(&"lke-9".into()).unwrap().boot_id = "later".into();
        super::walk::change(e.guests.get_mut(&"lke-9".into()).unwrap(), |g| {
            g.boot_id = "later".into()
        });
        walk.ask()
    };
    assert!(
        detaches(&booted(&walk, &[])),
        "kubelet does not use it: {:?}",
        booted(&walk, &[])
    );
    let said = booted(&walk, &[reattach_core::testkit::volume_name()]);
    assert!(!detaches(&said), "{said:?}");
}

/// A run turns back at once where the claim is no longer bound; what was done is put back.
#[test]
fn a_lost_binding_unwinds_the_run() {
    let mut walk = Walk::new(d().with_node(OTHER_NODE, "26000002"), QUIET);
    walk.run(|walk, action| {
        if matches!(action.effect, Effect::Release { .. }) {
            let mut lost = walk.clone();
            lost.case = lost
                .case
                .volume(|v| v.claim_ref.as_mut().unwrap().uid = Some("another".into()));
            let next = lost.ask();
            let said = format!("{next:?}");
            assert!(
                matches!(next, Next::Record(_)) && said.contains("UnwindStarted"),
                "{said}"
            );
            assert!(said.contains("bound to an earlier claim"), "{said}");
        }
    });
}

#[test]
fn another_nodes_machine_is_refused_for_a_stuck_attachment() {
    let case = super::walk::node_missing();
    assert_eq!(refused(&case), []);
    let other =
        case.machines(|all| *all = vec![machine(("lke-7", reattach_core::testkit::INSTANCE))]);
    let found = refused(&other);
    assert!(
        matches!(&found[..], [IdentityProblem::OtherNode { .. }]),
        "{found:?}"
    );
    // A machine may have been several Nodes, one after the other.
    let seen_as = |nodes: &[&str]| {
        let seen = nodes
            .iter()
            .map(|n| machine((n, reattach_core::testkit::INSTANCE)))
            .collect();
        refused(&super::walk::node_missing().machines(|all| *all = seen))
    };
    for nodes in [["lke-7", NODE], [NODE, "lke-7"]] {
        assert_eq!(seen_as(&nodes), [], "{nodes:?}");
    }
    let found = seen_as(&["lke-7", "lke-8"]);
    assert!(
        matches!(&found[..], [IdentityProblem::OtherNode { .. }]),
        "{found:?}"
    );
}
