//! What the cloud's tags say of the owner against this cluster, PersistentVolume and claim: a contradiction is refused by
//! name, vetoed by the checker, and turns a run back; what is not tagged is not refused, and a person may accept a name.

use super::walk::{QUIET, Walk};
use reattach_core::check::{Rule, check};
use reattach_core::cloud::OwnerTags;
use reattach_core::evidence::{Declaration, OwnClusters};
use reattach_core::identity::IdentityProblem;
use reattach_core::plan::Refusal;
use reattach_core::run::{Effect, Next};
use reattach_core::testkit::{Case, INSTANCE, OTHER_NODE};

fn good() -> Case {
    Case::statefulset().holdable()
}

fn tagged(change: impl FnOnce(&mut OwnerTags)) -> Case {
    good().cloud(|c| change(&mut c.owner))
}

fn known(names: &[&str]) -> OwnClusters {
    OwnClusters::Known {
        names: names.iter().map(|n| (*n).into()).collect(),
    }
}

/// A volume of these clusters, in a cluster whose machines are of those.
fn of_clusters(volume: &[&str], own: OwnClusters) -> Case {
    tagged(|t| volume.iter().for_each(|name| t.add_cluster(name)))
        .identity(|i| i.own_clusters = own)
}

fn made_for(volumes: &[&str], claim: Option<(&str, &str)>) -> Case {
    tagged(|t| {
        volumes.iter().for_each(|name| t.add_volume(name));
        if let Some((namespace, name)) = claim {
            t.set_claim(namespace, name);
        }
    })
}

fn accepting(case: Case, name: &str) -> Case {
    case.volume(|v| v.tagged_as = ["something else".to_owned(), name.to_owned()].into())
}

fn refusals(case: &Case) -> Vec<Refusal> {
    case.plan_by("lightest-first", None, false)
        .err()
        .unwrap_or_default()
}

/// The checker's verdict on the plan that was made before the tags said so.
fn vetoed(case: &Case) -> bool {
    let made = good().plan_by("lightest-first", None, false).unwrap();
    check(&made, case.evidence.at(case.now), None)
        .iter()
        .any(|v| v.rule() == Rule::S10)
}

/// A case, the sentence that refuses it, and the name by which a person accepts it.
type Row = (fn() -> Case, &'static str, &'static str);

const CONTRADICTIONS: [Row; 7] = [
    (
        || of_clusters(&["lke99999"], known(&["lke13311"])),
        "cloud volume 5551 is tagged as cluster lke99999's, and this cluster's machines are tagged as lke13311's; reattach frees no volume that may be another cluster's",
        "lke99999",
    ),
    (
        || of_clusters(&["a", "b", "c", "d", "e"], known(&["f", "g"])),
        "cloud volume 5551 is tagged as cluster a, b, c and 2 more's, and this cluster's machines are tagged as f, g's; ",
        "e",
    ),
    (
        || made_for(&["pvc-other"], None),
        "cloud volume 5551 is tagged as made for PersistentVolume pvc-other, and PersistentVolume pvc-redis uses it; ",
        "pvc-other",
    ),
    // The tags of a volume that was copied name the claim that it was copied for, too.
    (
        || made_for(&["pvc-other"], Some(("default", "redis-data"))),
        "made for PersistentVolume pvc-other,",
        "pvc-other",
    ),
    (
        || made_for(&[], Some(("default", "other"))),
        "cloud volume 5551 is tagged as made for claim default/other, and PersistentVolume pvc-redis, which uses it, is for another claim; ",
        "default/other",
    ),
    (
        || made_for(&[], Some(("evil", "redis-data"))),
        "cloud volume 5551 is tagged as made for a claim of another namespace, and PersistentVolume pvc-redis",
        "evil/redis-data",
    ),
    (
        || made_for(&["pvc-redis-2"], None),
        "accept the name by the annotation reattach.dev/tagged-as on PersistentVolume pvc-redis",
        "pvc-redis-2",
    ),
];

#[test]
fn a_volume_tagged_for_another_owner_is_refused() {
    for (case, sentence, name) in CONTRADICTIONS {
        let case = case();
        let found = refusals(&case);
        let [Refusal::Identity { problem }] = &found[..] else {
            panic!("{sentence}: {found:?}")
        };
        assert!(problem.to_string().contains(sentence), "{problem}");
        assert!(
            !problem.is_about_the_binding() && !found[0].may_pass(),
            "{problem}"
        );
        let text = serde_json::to_string(&found).unwrap();
        assert!(
            !text.contains("evil"),
            "a name of another namespace: {text}"
        );
        assert_eq!(serde_json::from_str::<Vec<Refusal>>(&text).unwrap(), found);
        assert!(vetoed(&case), "{sentence}");

        let another = accepting(case.clone(), "another");
        assert!(
            !refusals(&another).is_empty() && vetoed(&another),
            "accepted: another name than {name}"
        );
        let case = accepting(case, name);
        assert_eq!(refusals(&case), [], "accepted: {name}");
        assert!(!vetoed(&case), "accepted: {name}");
    }
}

#[test]
fn tags_that_fit_or_are_missing_refuse_nothing() {
    let fits: [Case; 10] = [
        good(),
        of_clusters(&["lke13311"], known(&["lke13311"])),
        of_clusters(&["lke99999", "lke13311"], known(&["lke13311"])),
        of_clusters(&["lke13311"], known(&["lke13311", "lke1"])),
        // The machines carry no such tag.
        of_clusters(&["lke99999"], known(&[])),
        // The volume carries none.
        of_clusters(&[], known(&["lke13311"])),
        made_for(&["pvc-redis"], Some(("default", "redis-data"))),
        made_for(&[], Some(("default", "redis-data"))),
        // The PersistentVolume was kept and given to another claim.
        made_for(&["pvc-redis"], Some(("old", "redis-data"))),
        // Two tags name PersistentVolumes; one of them is ours.
        made_for(&["pvc-redis", "pvc-other"], None),
    ];
    for case in fits {
        let owner = &case.evidence.cloud_volume.shown().unwrap().owner;
        assert_eq!(refusals(&case), [], "{owner:?}");
        assert!(!vetoed(&case), "{owner:?}");
    }
}

#[test]
fn an_unread_cluster_tag_is_waited_for() {
    let unread = OwnClusters::Unread {
        why: "linode: read instance 26000001: 502".to_owned(),
    };
    for (own, why) in [(unread, "502"), (OwnClusters::NotAsked, "not read")] {
        let case = of_clusters(&["lke99999"], own);
        let found = refusals(&case);
        assert!(
            matches!(&found[..], [r @ Refusal::Missing { .. }] if r.to_string().contains(why)),
            "{found:?}"
        );
        assert!(vetoed(&case), "{why}");
        assert_eq!(refusals(&accepting(case, "lke99999")), [], "{why}");
    }
}

/// A Node's providerID leads to a machine that is tagged as another cluster's: only a person's word frees anything of it.
#[test]
fn a_holder_tagged_for_another_cluster_is_refused() {
    let holder = |tagged: &[&str], own: OwnClusters| {
        good().identity(|i| {
            i.holder_clusters = tagged.iter().map(|n| (*n).into()).collect();
            i.own_clusters = own;
        })
    };
    let case = holder(&["lke99999"], known(&["lke13311"]));
    let found = refusals(&case);
    let [
        Refusal::Identity {
            problem: problem @ IdentityProblem::HolderOfOtherCluster { .. },
        },
    ] = &found[..]
    else {
        panic!("{found:?}")
    };
    let said = problem.to_string();
    let sentence = "instance 26000001, which has the volume, is tagged as cluster lke99999's, and this cluster's other machines are tagged as lke13311's";
    assert!(said.starts_with(sentence), "{said}");
    assert!(vetoed(&case));
    let vouched = |holder: &str, of_this_cluster| {
        let mut case = case.clone();
        case.evidence.declaration = Some(Declaration {
            holder: holder.into(),
            by: "jane".into(),
            reason: "taken over".into(),
            at: case.now,
            of_this_cluster,
            cluster_wide: true,
        });
        assert_eq!(refusals(&case).is_empty(), !vetoed(&case));
        refusals(&case).is_empty()
    };
    assert!(vouched(INSTANCE, true) && !vouched(INSTANCE, false) && !vouched("another", true));

    let unread = OwnClusters::Unread {
        why: "502".to_owned(),
    };
    for case in [
        holder(&["lke13311"], known(&["lke13311"])),
        holder(&["lke13311", "lke99999"], known(&["lke13311", "lke5"])),
        holder(&[], known(&["lke13311"])),
        holder(&["lke99999"], known(&[])),
        holder(&["lke99999"], unread),
        holder(&["lke99999"], OwnClusters::NotAsked),
    ] {
        let identity = case.evidence.identity.shown();
        assert_eq!(refusals(&case), [], "{identity:?}");
        assert!(!vetoed(&case), "{identity:?}");
    }
}

/// Tags are read again before each effect; a run whose volume is another cluster's turns back.
#[test]
fn a_foreign_cluster_tag_unwinds_the_run() {
    let start = good()
        .with_node(OTHER_NODE, "26000002")
        .identity(|i| i.own_clusters = known(&["lke13311"]));
    let mut released = false;
    Walk::new(start, QUIET).run(|walk, action| {
        if matches!(action.effect, Effect::Release { .. }) {
            released = true;
            let mut lost = walk.clone();
            lost.case = lost.case.cloud(|c| c.owner.add_cluster("lke99999"));
            let next = lost.ask();
            let said = format!("{next:?}");
            assert!(
                matches!(next, Next::Record(_)) && said.contains("UnwindStarted"),
                "{said}"
            );
            assert!(said.contains("tagged as cluster lke99999's"), "{said}");
        }
    });
    assert!(released);
}

/// Names in tags are text of others: bounded in number and length, and never cut to a name of Kubernetes'.
#[test]
fn names_in_tags_are_bounded() {
    let mut tags = OwnerTags::default();
    for n in 0..1_000 {
        tags.add_cluster(&format!("{n}-{}", "x".repeat(10_000)));
        tags.add_volume(&format!("{n}-{}", "x".repeat(10_000)));
    }
    tags.set_claim(&"n".repeat(10_000), &"c".repeat(10_000));
    assert_eq!(
        (tags.clusters.len(), tags.volumes.len()),
        (OwnerTags::NAMES, OwnerTags::NAMES)
    );
    let text = serde_json::to_string(&tags).unwrap();
    assert!(
        text.chars().count() < (2 * OwnerTags::NAMES + 2) * (OwnerTags::NAME_CHARS + 4) + 100,
        "{}",
        text.len()
    );
    let mut none = OwnerTags::default();
    none.add_cluster("");
    none.add_volume("");
    assert!(none.is_empty());
    // The longest sentence fits where sentences go.
    let problem = IdentityProblem::OtherCluster {
        volume: "5551".into(),
        name: "pvc-redis".into(),
        tagged: tags.clusters.clone(),
        own: tags.clusters,
    };
    assert!(problem.to_string().chars().count() < 2_048, "{problem}");
}
