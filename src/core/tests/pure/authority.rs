//! Whose word reaches how far, and what stands against touching a whole node.

use crate::walk::{ALL, dead_node, plan};
use jiff::SignedDuration;
use reattach_core::authority::{Approved, Asker, Denial, Mandate, NodeWord, Person, Reach};
use reattach_core::fact::{Fact, Known};
use reattach_core::ids::{NodeName, PlanHash};
use reattach_core::journal::{Entry, Event, UnwindReason};
use reattach_core::outage::DownNode;
use reattach_core::plan::Refusal;
use reattach_core::plan::{Plan, may_touch_node};
use reattach_core::policy::Mode;
use reattach_core::run::{Action, Context, Effect, Next, State, next};
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_core::testkit::{Case, NODE, OTHER_NODE, mandate};

const PLAN: &str = "0123456789abcdef";

fn hash() -> PlanHash {
    PlanHash::from(PLAN)
}

fn person(reach: Reach) -> Person {
    Person {
        name: "adam".into(),
        reach,
    }
}

fn unknown() -> Reach {
    Reach::Unknown {
        why: "no answer".into(),
    }
}

/// A recovery that a person asked for in this mode, under a policy of that mode.
fn asked(mode: Mode, policy: Mode, reach: Reach) -> Mandate {
    let mut m = mandate();
    m.mode = mode;
    m.asker = Asker::Person(person(reach.clone()));
    m.approved = (mode == Mode::Approve).then(|| Approved {
        plan: hash(),
        by: person(reach),
    });
    m.ceiling.iter_mut().for_each(|c| c.mode = policy);
    m
}

#[test]
fn a_policy_is_a_ceiling_for_a_right_in_a_namespace() {
    let modes = [Mode::Observe, Mode::DryRun, Mode::Approve, Mode::Auto];
    for asks in [Mode::Approve, Mode::Auto] {
        for policy in modes {
            let answer = asked(asks, policy, Reach::Namespace).may_act(&hash());
            assert_eq!(
                answer.is_ok(),
                policy >= asks,
                "{asks} under {policy}: {answer:?}"
            );
            let answer = asked(asks, policy, Reach::Cluster).may_act(&hash());
            assert_eq!(answer, Ok(()), "{asks} under {policy}");
            let answer = asked(asks, policy, Reach::Nowhere).may_act(&hash());
            assert!(matches!(answer, Err(Denial::NoRight { .. })), "{answer:?}");
            let answer = asked(asks, policy, unknown()).may_act(&hash());
            assert!(
                matches!(&answer, Err(d @ Denial::RightUnknown { .. }) if d.may_pass()),
                "{answer:?}"
            );
        }
    }
    for asks in [Mode::Observe, Mode::DryRun] {
        let answer = asked(asks, Mode::Auto, Reach::Cluster).may_act(&hash());
        assert_eq!(answer, Err(Denial::OnlyLooks { mode: asks }));
    }
    let mut m = asked(Mode::Auto, Mode::Auto, Reach::Namespace);
    m.runbook = "scale-to-zero".into();
    assert!(matches!(m.may_act(&hash()), Err(Denial::Runbook { .. })));
    m.ceiling = None;
    assert!(matches!(m.may_act(&hash()), Err(Denial::NoPolicy { .. })));
    let mut m = asked(Mode::Approve, Mode::Auto, Reach::Cluster);
    assert!(matches!(
        m.may_act(&PlanHash::from("another")),
        Err(Denial::NotApproved { .. })
    ));
    m.approved = None;
    assert!(matches!(
        m.may_act(&hash()),
        Err(Denial::NotApproved { .. })
    ));
}

#[test]
fn a_policy_is_the_ceiling_of_the_controller() {
    let mut m = mandate();
    assert_eq!(m.may_act(&hash()), Ok(()));
    m.ceiling.iter_mut().for_each(|c| c.mode = Mode::Approve);
    assert!(matches!(m.may_act(&hash()), Err(Denial::Mode { .. })));
    m.ceiling = None;
    assert!(matches!(m.may_act(&hash()), Err(Denial::NoPolicy { .. })));
}

#[test]
fn a_power_off_needs_a_policy_or_a_cluster_wide_right() {
    let may = |policy: bool, controller: bool, word: Option<Reach>| {
        let mut m = if controller {
            mandate()
        } else {
            asked(Mode::Approve, Mode::Auto, Reach::Cluster)
        };
        m.ceiling.iter_mut().for_each(|c| c.power_off = policy);
        m.power_off = word.map(person);
        m.may_power_off()
    };
    assert_eq!(may(true, true, None), Ok(()));
    assert_eq!(may(false, true, None), Err(Denial::NoPowerOff));
    assert_eq!(
        may(true, false, None),
        Err(Denial::NoPowerOff),
        "nobody said so"
    );
    for controller in [true, false] {
        assert_eq!(may(false, controller, Some(Reach::Cluster)), Ok(()));
        assert_eq!(may(true, controller, Some(Reach::Namespace)), Ok(()));
        assert!(matches!(
            may(false, controller, Some(Reach::Namespace)),
            Err(Denial::PowerOff { .. })
        ));
    }
    assert!(matches!(
        may(true, false, Some(Reach::Nowhere)),
        Err(Denial::NoRight { .. })
    ));
    assert!(matches!(
        may(false, true, Some(unknown())),
        Err(Denial::RightUnknown { .. })
    ));
}

#[test]
fn a_node_effect_needs_rules_or_a_cluster_wide_right() {
    let node = NodeName::from(NODE);
    let over = |m: &Mandate| m.over_node(&node, &hash());
    let mut m = asked(Mode::Approve, Mode::Auto, Reach::Namespace);
    assert!(matches!(over(&m), Ok(NodeWord::Rules { .. })));
    m.ceiling.iter_mut().for_each(|c| c.nodes = None);
    assert!(matches!(over(&m), Ok(NodeWord::Rules { rules, .. }) if rules.patience_seconds == 180));
    m.ceiling.iter_mut().for_each(|c| c.power_off = false);
    assert!(matches!(over(&m), Err(Denial::Nodes { .. })));
    m.ceiling = None;
    assert!(matches!(over(&m), Err(Denial::Nodes { .. })));
    for (word, saw) in [("approved", true), ("declared", false), ("powerOff", false)] {
        let mut m = m.clone();
        let wide = Some(person(Reach::Cluster));
        match word {
            "approved" => m.approved = wide.map(|by| Approved { plan: hash(), by }),
            "declared" => m.declared = wide,
            _ => m.power_off = wide,
        }
        let who = NodeWord::Person {
            name: "adam".into(),
            saw_the_plan: saw,
        };
        assert_eq!(over(&m), Ok(who), "{word}");
    }
    let mut other = m.clone();
    other.approved = Some(Approved {
        plan: PlanHash::from("another"),
        by: person(Reach::Cluster),
    });
    assert!(over(&other).is_err(), "that was another plan");
    // Who asked for the recovery with a wide right did not approve this plan; who did has a narrow one.
    let mut asked_wide = m.clone();
    asked_wide.asker = Asker::Person(person(Reach::Cluster));
    assert!(
        matches!(over(&asked_wide), Err(Denial::Nodes { .. })),
        "{:?}",
        over(&asked_wide)
    );
    let auto = Mandate {
        ceiling: None,
        ..asked(Mode::Auto, Mode::Auto, Reach::Cluster)
    };
    assert!(matches!(
        over(&auto),
        Ok(NodeWord::Person {
            saw_the_plan: false,
            ..
        })
    ));
}

fn dead() -> (Case, Plan) {
    let case = dead_node().mandate(|m| {
        m.ceiling
            .iter_mut()
            .for_each(|c| c.nodes.iter_mut().for_each(|n| n.patience_seconds = 180));
    });
    let made = plan(&case, ALL).expect("a plan");
    (case, made)
}

fn against(case: &Case, plan: &Plan) -> Vec<Refusal> {
    may_touch_node(plan, case.evidence.at(case.now))
}

fn down(case: &mut Case, change: impl FnOnce(&mut Vec<DownNode>)) {
    match &mut case.evidence.down {
        Some(Fact {
            value: Known::Present(list),
            ..
        }) => change(list),
        _ => panic!("the list is there"),
    }
}

#[test]
fn a_node_is_spared_during_boot_and_wider_outages() {
    let (case, plan) = dead();
    assert_eq!(against(&case, &plan), []);
    let mut young = case.clone();
    down(&mut young, |list| {
        list[0].since = case.now - SignedDuration::from_secs(179)
    });
    let said = against(&young, &plan);
    assert!(
        matches!(
            said[..],
            [Refusal::MayBeBooting {
                seconds: 179,
                patience: 180,
                ..
            }]
        ),
        "{said:?}"
    );
    let mut ready = case.clone();
    down(&mut ready, Vec::clear);
    assert!(matches!(
        against(&ready, &plan)[..],
        [Refusal::MayBeBooting { seconds: 0, .. }]
    ));
    let mut storm = case.clone();
    down(&mut storm, |list| {
        list.push(DownNode {
            name: OTHER_NODE.into(),
            ..list[0].clone()
        })
    });
    let said = against(&storm, &plan);
    assert!(
        matches!(&said[..], [Refusal::DownTogether { others, .. }] if others == &[OTHER_NODE]),
        "{said:?}"
    );
    let wide = storm.clone().mandate(|m| {
        m.ceiling
            .iter_mut()
            .for_each(|c| c.nodes.iter_mut().for_each(|n| n.most_together = 2));
    });
    assert_eq!(against(&wide, &plan), []);
    // Who approved this very plan has seen which nodes are down.
    let judged = storm.clone().mandate(|m| {
        m.mode = Mode::Approve;
        m.approved = Some(Approved {
            plan: plan.hash.clone(),
            by: person(Reach::Cluster),
        });
    });
    assert_eq!(against(&judged, &plan), []);
    let mut unread = storm.clone();
    unread.evidence.down = None;
    assert!(matches!(
        against(&unread, &plan)[..],
        [Refusal::Missing { .. }]
    ));
    // A bad rollout: every kubelet lives and posts that its node is not Ready.
    let mut rollout = storm.clone();
    down(&mut rollout, |list| {
        list.iter_mut().for_each(|d| d.silent = false)
    });
    let said = against(&rollout, &plan);
    assert!(
        matches!(&said[..], [Refusal::KubeletPosts { node }, Refusal::DownTogether { .. }] if node == NODE),
        "{said:?}"
    );
    for refusal in [against(&young, &plan), said].concat() {
        assert!(refusal.may_pass(), "{refusal}");
    }
}

#[test]
fn a_node_is_spared_for_maintenance_opt_outs_and_selectors() {
    let (case, plan) = dead();
    let kept = case
        .clone()
        .node(|n| n.maintenance = Some("reattach.dev/maintenance".into()));
    let said = against(&kept, &plan);
    assert!(
        matches!(&said[..], [r @ Refusal::Maintenance { .. }] if r.may_pass()),
        "{said:?}"
    );
    let selected = |labels: &[(&str, &str)]| {
        let pair = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        let labels: std::collections::BTreeMap<_, _> = labels.iter().map(pair).collect();
        let wanted = case.clone().mandate(|m| {
            let wants = |n: &mut reattach_core::authority::NodeRules| {
                n.match_labels.insert("pool".into(), "db".into());
            };
            m.ceiling
                .iter_mut()
                .for_each(|c| c.nodes.iter_mut().for_each(wants));
        });
        against(&wanted.node(|n| n.labels.clone_from(&labels)), &plan)
    };
    assert_eq!(selected(&[("pool", "db"), ("zone", "a")]), []);
    for labels in [&[][..], &[("pool", "web")], &[("zone", "db")]] {
        let said = selected(labels);
        let not = |r: &Refusal| {
            matches!(
                r,
                Refusal::Denied {
                    denial: Denial::NodeNotSelected { .. }
                }
            )
        };
        assert!(
            matches!(&said[..], [r] if not(r) && !r.may_pass()),
            "{said:?}"
        );
    }
    let mut out = case.clone();
    match out
        .evidence
        .node_claims
        .get_mut(&NodeName::from(NODE))
        .map(|f| &mut f.value)
    {
        // The plan's own claim is judged elsewhere; a neighbour's opt-out counts here.
        Some(Known::Present(claims)) => {
            claims[0].opted_out = Some("RecoveryPolicy everything".into());
            let mut neighbour = claims[0].clone();
            neighbour.claim = reattach_core::ids::ObjectName::new("shop", "other-data");
            claims.push(neighbour);
        }
        _ => panic!("the claims are there"),
    }
    let said = against(&out, &plan);
    assert!(
        matches!(&said[..], [r @ Refusal::OptedOutOnNode { .. }] if !r.may_pass()),
        "{said:?}"
    );
    let anyway = out.clone().mandate(|m| {
        m.ceiling
            .iter_mut()
            .for_each(|c| c.nodes.iter_mut().for_each(|n| n.override_opt_outs = true));
    });
    assert_eq!(against(&anyway, &plan), []);
    out.evidence.node_claims.clear();
    assert!(matches!(
        against(&out, &plan)[..],
        [Refusal::Missing { .. }]
    ));
    let mut nobody = case.clone();
    nobody.evidence.mandate = None;
    assert!(matches!(
        against(&nobody, &plan)[..],
        [Refusal::Missing { .. }]
    ));
}

/// Without a fresh mandate nothing is done, and with one that denies it the run turns back.
#[test]
fn no_effect_goes_out_without_a_fresh_mandate() {
    let case = Case::statefulset().holdable();
    let plan = case
        .plan_by(DEFAULT_RUNBOOK, None, false)
        .expect("a plan")
        .sound()
        .expect("its hash");
    let event = Event::Accepted {
        plan_hash: plan.hash.to_string(),
        authority: "test".into(),
    };
    let accepted = Entry {
        seq: 0,
        at: case.now,
        term: 1,
        by: "test".into(),
        event,
    };
    let state = State::replay(&plan, &[accepted]).expect("legal");
    let uid = Case::recovery();
    let cx = Context {
        recovery: &uid,
        aborted_by: None,
        withdrawn: None,
        unattended: SignedDuration::ZERO,
        nothing_under_way: None,
        confirm_workload: None,
        term: 1,
        now: case.now,
    };
    let ask = |case: &Case| next(&plan, &state, &case.evidence, &cx);
    assert!(
        matches!(
            ask(&case),
            Next::Act(Action {
                effect: Effect::Hold,
                ..
            })
        ),
        "{:?}",
        ask(&case)
    );
    let mut none = case.clone();
    none.evidence.mandate = None;
    let mut stale = case.clone();
    stale
        .evidence
        .mandate
        .iter_mut()
        .for_each(|f| f.at -= SignedDuration::from_secs(31));
    let pending = case
        .clone()
        .mandate(|m| m.asker = Asker::Person(person(unknown())));
    for unclear in [none, stale, pending] {
        assert!(
            matches!(ask(&unclear), Next::Wait { .. }),
            "{:?}",
            ask(&unclear)
        );
    }
    let denied = case.mandate(|m| m.ceiling.iter_mut().for_each(|c| c.mode = Mode::Observe));
    let back = ask(&denied);
    let turned = |n: &Next| {
        matches!(
            n,
            Next::Record(Event::UnwindStarted {
                why: UnwindReason::Denied {
                    denial: Denial::Mode { .. }
                }
            })
        )
    };
    assert!(turned(&back), "{back:?}");
}
