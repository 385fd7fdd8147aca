//! S1 over random evidence: no effect that frees a volume is proposed unless what was read supports it, by rules that are
//! written down here once more and share nothing with the proofs.

use super::properties::{cases, runner};
use super::walk::{
    QUIET, Walk, World, dead_node, dead_node_off, detach_error, lost, node_missing, orphan,
    phantom_without_policy, sighting,
};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use reattach_core::cloud::{CloudScope, InstanceState, JobStatus, PowerChange, PowerJob};
use reattach_core::evidence::{
    ClaimPhase, ClaimRef, Declaration, Evidence, NodeFacts, OtherUse, PodFacts,
};
use reattach_core::fact::{Fact, Known};
use reattach_core::guest::{Level, ScanResult};
use reattach_core::ids::{InstanceId, NodeName};
use reattach_core::proof::UnusedSince;
use reattach_core::run::{Effect, Next};
use reattach_core::testkit::{
    Case, INSTANCE, NODE, OTHER_INSTANCE, OTHER_NODE, RECOVERY, volume_name,
};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Every moment of every class's run at which a freeing effect is proposed.
fn moments() -> &'static [Walk] {
    static MOMENTS: OnceLock<Vec<Walk>> = OnceLock::new();
    MOMENTS.get_or_init(|| {
        let phantom = || {
            Case::statefulset()
                .holdable()
                .with_node(OTHER_NODE, OTHER_INSTANCE)
        };
        let stuck = World {
            stuck: true,
            ..QUIET
        };
        let lingers = World {
            lingers: true,
            ..QUIET
        };
        let runs: [(Case, World); 10] = [
            (dead_node(), QUIET),
            (dead_node_off(), stuck),
            (phantom(), stuck),
            (phantom(), lingers),
            (phantom_without_policy(), lingers),
            (lost(), QUIET),
            (detach_error(), stuck),
            (node_missing(), QUIET),
            (node_missing(), stuck),
            (orphan(), QUIET),
        ];
        let mut found = Vec::new();
        for (case, world) in runs {
            Walk::new(case, world).run(|walk, action| {
                if freed(&action.effect).is_some() {
                    found.push(walk.clone());
                }
            });
        }
        assert!(found.len() >= 8, "{}", found.len());
        found
    })
}

/// What an effect frees: the whole node, or the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frees {
    Node,
    /// The VolumeAttachment: kubelet reads it before every mount, so that it is enough to keep pods from the node.
    Record,
    Volume {
        force: bool,
    },
}

fn freed(effect: &Effect) -> Option<Frees> {
    match effect {
        Effect::TaintOutOfService { .. } => Some(Frees::Node),
        Effect::CloudForce { .. } => Some(Frees::Volume { force: true }),
        Effect::CloudDetach { .. } => Some(Frees::Volume { force: false }),
        Effect::DeleteAttachment { .. } => Some(Frees::Record),
        _ => None,
    }
}

/// One way in which evidence can be worse than it was, or say something else.
type Spoil = fn(&mut Case);

fn old<T>(fact: &mut Fact<T>) {
    fact.at -= SignedDuration::from_secs(31);
}

fn unknown<T>(fact: &mut Fact<T>) {
    fact.value = Known::Unknown { why: "503".into() };
}

fn gone<T>(fact: &mut Fact<T>) {
    fact.value = Known::Absent;
}

fn edit<T>(fact: &mut Fact<T>, with: impl FnOnce(&mut T)) {
    if let Known::Present(value) = &mut fact.value {
        with(value);
    }
}

fn node(c: &mut Case, with: impl FnOnce(&mut NodeFacts)) {
    edit(
        c.evidence.nodes.get_mut(&NodeName::from(NODE)).unwrap(),
        with,
    );
}

fn the_node(c: &mut Case) -> &mut Fact<NodeFacts> {
    c.evidence.nodes.get_mut(&NodeName::from(NODE)).unwrap()
}

fn machines(c: &mut Case, with: impl Fn(&mut Fact<reattach_core::cloud::CloudInstance>)) {
    c.evidence.instances.values_mut().for_each(with);
}

fn state(c: &mut Case, state: &InstanceState) {
    machines(c, |f| edit(f, |i| i.state = state.clone()));
}

fn job(c: &mut Case, with: impl Fn(&mut Vec<PowerJob>)) {
    c.evidence
        .power
        .values_mut()
        .for_each(|f| edit(f, |p| with(&mut p.jobs)));
}

fn pod(c: &mut Case, on: Option<&str>, held: bool) {
    let now = c.now;
    edit(&mut c.evidence.pods, |pods| {
        let mut new = pods.first().cloned().unwrap_or_else(|| PodFacts {
            name: reattach_core::ids::ObjectName::new("default", "late"),
            uid: "late".into(),
            node: None,
            phase: "Pending".into(),
            ready: false,
            ready_since: None,
            containers_running: false,
            deleting_since: None,
            created: now,
            waiting_reason: None,
            held: false,
        });
        (new.uid, new.node, new.held, new.ready) =
            ("late".into(), on.map(NodeName::from), held, false);
        pods.push(new);
    });
}

fn word(c: &mut Case, holder: &str, by: &str, reason: &str, ago: i64) {
    c.evidence.declaration = Some(Declaration {
        holder: holder.into(),
        by: by.into(),
        reason: reason.into(),
        at: c.now - SignedDuration::from_secs(ago),
        of_this_cluster: false,
        cluster_wide: true,
    });
}

const SPOILS: [Spoil; 82] = [
    |c| old(&mut c.evidence.cloud_volume),
    |c| unknown(&mut c.evidence.cloud_volume),
    |c| gone(&mut c.evidence.cloud_volume),
    |c| edit(&mut c.evidence.cloud_volume, |v| v.holders.clear()),
    |c| {
        edit(&mut c.evidence.cloud_volume, |v| {
            v.holders = vec![OTHER_INSTANCE.into()]
        })
    },
    |c| {
        edit(&mut c.evidence.cloud_volume, |v| {
            v.holders.push(OTHER_INSTANCE.into())
        })
    },
    |c| edit(&mut c.evidence.cloud_volume, |v| v.id = "7".into()),
    |c| {
        edit(&mut c.evidence.cloud_volume, |v| {
            v.identity.serial = "another".into()
        })
    },
    |c| old(the_node(c)),
    |c| unknown(the_node(c)),
    |c| gone(the_node(c)),
    |c| node(c, |n| n.ready = true),
    |c| node(c, |n| n.ready = false),
    |c| node(c, |n| n.instance = Some(OTHER_INSTANCE.into())),
    |c| node(c, |n| n.instance = None),
    |c| node(c, |n| n.boot_id = "another boot".into()),
    |c| node(c, |n| n.volumes_in_use = vec![volume_name()]),
    |c| {
        node(c, |n| {
            n.volumes_attached
                .push("kubernetes.io/csi/x^another".into())
        })
    },
    |c| node(c, |n| n.lease_renewed = None),
    |c| node(c, |n| n.lease_renewed = Some(Timestamp::UNIX_EPOCH)),
    |c| node(c, |n| n.taints.push("medik8s.io/remediation".into())),
    |c| node(c, |n| n.out_of_service_by_us = !n.out_of_service_by_us),
    |c| old(&mut c.evidence.pods),
    |c| unknown(&mut c.evidence.pods),
    |c| gone(&mut c.evidence.pods),
    |c| pod(c, Some(NODE), false),
    |c| pod(c, Some(NODE), true),
    |c| pod(c, Some(OTHER_NODE), false),
    |c| pod(c, None, false),
    |c| pod(c, None, true),
    |c| edit(&mut c.evidence.pods, Vec::clear),
    |c| old(&mut c.evidence.workload),
    |c| unknown(&mut c.evidence.workload),
    |c| edit(&mut c.evidence.workload, |w| w.dry_run_held = None),
    |c| edit(&mut c.evidence.workload, |w| w.dry_run_held = Some(false)),
    |c| old(&mut c.evidence.attachments),
    |c| edit(&mut c.evidence.attachments, Vec::clear),
    |c| {
        edit(&mut c.evidence.attachments, |a| {
            a.iter_mut().for_each(|a| a.uid = "another".into())
        })
    },
    |c| {
        edit(&mut c.evidence.attachments, |a| {
            a.iter_mut().for_each(|a| a.deleting_since = None)
        })
    },
    |c| {
        edit(&mut c.evidence.attachments, |a| {
            a.iter_mut().for_each(|a| a.attached = true)
        })
    },
    |c| machines(c, old),
    |c| machines(c, unknown),
    |c| machines(c, gone),
    |c| c.evidence.instances.clear(),
    |c| state(c, &InstanceState::Running),
    |c| state(c, &InstanceState::Stopping),
    |c| state(c, &InstanceState::Off),
    |c| state(c, &InstanceState::Gone),
    |c| state(c, &InstanceState::Transitional("booting".into())),
    |c| job(c, Vec::clear),
    |c| {
        job(c, |jobs| {
            jobs.iter_mut().for_each(|j| j.status = JobStatus::Started)
        })
    },
    |c| job(c, |jobs| jobs.iter_mut().for_each(|j| j.by = None)),
    |c| {
        let now = c.now;
        job(c, |jobs| {
            jobs.push(PowerJob {
                id: "78".into(),
                change: PowerChange::On,
                status: JobStatus::Started,
                by: None,
                created: now,
                finished: None,
            });
        });
    },
    |c| c.evidence.power.clear(),
    |c| c.evidence.sightings.clear(),
    |c| {
        c.evidence
            .sightings
            .iter_mut()
            .for_each(|s| s.scope = CloudScope("another account".into()))
    },
    |c| c.evidence.sightings = vec![sighting(Some(InstanceState::Off), c.now)],
    |c| c.evidence.cloud_scope = None,
    |c| word(c, INSTANCE, "jane", "unplugged", 60),
    |c| word(c, OTHER_INSTANCE, "jane", "unplugged", 60),
    |c| word(c, INSTANCE, " ", "unplugged", 60),
    |c| word(c, INSTANCE, "jane", "unplugged", 7_200),
    |c| node(c, |n| n.taints.clear()),
    |c| {
        node(c, |n| {
            n.taints = vec!["hold.reattach.dev/another-recovery".into()]
        })
    },
    |c| {
        edit(&mut c.evidence.workload, |w| {
            w.template.ignores_taints = Some("it tolerates all".into())
        })
    },
    |c| old(&mut c.evidence.claim),
    |c| edit(&mut c.evidence.claim, |c| c.phase = ClaimPhase::Pending),
    |c| {
        edit(&mut c.evidence.claim, |c| {
            c.volume_name = Some("another".into())
        })
    },
    |c| old(&mut c.evidence.volume),
    |c| edit(&mut c.evidence.volume, |v| v.claim_ref = None),
    |c| claim_ref(c, |of| of.claim.namespace = "another".into()),
    |c| claim_ref(c, |of| of.uid = None),
    |c| claim_ref(c, |of| of.uid = Some("of an earlier claim".into())),
    |c| old(&mut c.evidence.identity),
    |c| unknown(&mut c.evidence.identity),
    |c| edit(&mut c.evidence.identity, |i| i.canonical = None),
    |c| {
        edit(&mut c.evidence.identity, |i| {
            i.canonical = Some("5551-another".into())
        })
    },
    |c| {
        edit(&mut c.evidence.identity, |i| {
            i.others.push(OtherUse::InlineAttachment {
                name: "csi-9".into(),
                node: OTHER_NODE.into(),
            });
        });
    },
    |c| {
        let double = the_node(c).clone();
        c.evidence.nodes.insert("double".into(), double);
    },
    |c| unknown(&mut c.evidence.machines),
    |c| edit(&mut c.evidence.machines, Vec::clear),
    |c| {
        edit(&mut c.evidence.machines, |all| {
            all.iter_mut().for_each(|m| m.scope = None)
        })
    },
];

fn claim_ref(c: &mut Case, with: impl FnOnce(&mut ClaimRef)) {
    edit(&mut c.evidence.volume, |v| {
        v.claim_ref.as_mut().map(with).unwrap_or_default()
    });
}

/// Whether claim, volume and holder are those that are meant. Written down a second time, from DESIGN's S10.
fn is_ours(e: &Evidence, holder: &InstanceId, now: Timestamp) -> bool {
    let (Some(Some(claim)), Some(Some(volume)), Some(Some(identity))) = (
        fresh(Some(&e.claim), now),
        fresh(Some(&e.volume), now),
        fresh(Some(&e.identity), now),
    ) else {
        return false;
    };
    let bound = volume.claim_ref.as_ref().is_some_and(|of| {
        of.claim == e.claim_name
            && of.uid.as_ref() == Some(&claim.uid)
            && claim.phase == ClaimPhase::Bound
    });
    let handle = volume.csi.as_ref().map(|c| &c.handle);
    let the_only_one =
        identity.canonical.as_ref() == handle && handle.is_some() && identity.others.is_empty();
    let nodes = e
        .nodes
        .values()
        .filter_map(|f| fresh(Some(f), now).flatten());
    let nodes = nodes
        .filter(|n| n.instance.as_ref() == Some(holder))
        .count();
    let seen = fresh(Some(&e.machines), now).flatten().is_some_and(|all| {
        all.iter()
            .any(|m| m.instance == *holder && m.scope.is_some() && m.scope == e.cloud_scope)
    });
    bound
        && claim.volume_name.as_ref() == Some(&volume.name)
        && the_only_one
        && (nodes == 1 || nodes == 0 && seen)
}

/// Changes of what the agent says; they need an answer to change.
const ANSWERS: [fn(Case) -> Case; 5] = [
    |c| c.device_in_use(),
    |c| c.device_idle(),
    |c| c.answer(ScanResult::Clean),
    |c| c.with_mount(true),
    |c| c.unasked(),
];

fn fresh<T>(fact: Option<&Fact<T>>, now: Timestamp) -> Option<Option<&T>> {
    let fact = fact.filter(|f| now.duration_since(f.at).abs() <= SignedDuration::from_secs(30))?;
    match &fact.value {
        Known::Present(value) => Some(Some(value)),
        Known::Absent => Some(None),
        Known::Unknown { .. } | Known::Away { .. } | Known::Throttled { .. } => None,
    }
}

/// Whether what was read shows that the machine cannot write. Written down a second time, from DESIGN's S1.
fn machine_is_down(e: &Evidence, holder: &InstanceId, now: Timestamp) -> Option<bool> {
    for fact in e.nodes.values() {
        let node = fresh(Some(fact), now)?;
        if node.is_some_and(|n| n.instance.as_ref() == Some(holder) && n.ready) {
            return None;
        }
    }
    let said = e.declaration.as_ref().is_some_and(|d| {
        let age = now.duration_since(d.at).as_secs();
        d.holder == *holder
            && !d.by.trim().is_empty()
            && !d.reason.trim().is_empty()
            && (0..=3_600).contains(&age)
    });
    let read = fresh(e.instances.get(holder), now);
    let earlier = |state: Option<&InstanceState>, after: Timestamp| {
        e.sightings.iter().any(|s| {
            s.instance == *holder
                && Some(&s.scope) == e.cloud_scope.as_ref()
                && s.at < e.instances[holder].at
                && s.at >= after
                && (state.is_none() || s.state.as_ref() == state)
        })
    };
    let down = match read {
        Some(Some(i)) if i.state == InstanceState::Gone => true,
        Some(None) => earlier(None, Timestamp::MIN),
        Some(Some(i)) if i.state == InstanceState::Off => {
            let jobs = fresh(e.power.get(holder), now)
                .flatten()
                .map_or(&[][..], |p| p.jobs.as_slice());
            let off = jobs
                .iter()
                .filter(|j| j.change == PowerChange::Off)
                .max_by_key(|j| j.created);
            off.is_some_and(|off| {
                let on = jobs.iter().any(|j| {
                    j.change == PowerChange::On
                        && (j.created >= off.created
                            || matches!(j.status, JobStatus::Started | JobStatus::Scheduled))
                });
                let end = off
                    .finished
                    .filter(|_| off.status == JobStatus::Finished && off.by.is_some());
                !on && end.is_some_and(|end| earlier(Some(&InstanceState::Off), end))
            })
        }
        _ => false,
    };
    if down {
        Some(true)
    } else {
        said.then_some(false)
    }
}

/// Whether the holder's living kubelet, or its agent, shows that nothing there uses the volume or can begin to.
fn volume_is_unused(walk: &Walk, no_user: Option<&UnusedSince>, now: Timestamp) -> bool {
    let (e, pins) = (&walk.case.evidence, &walk.plan.pins);
    let Some(Some(node)) = fresh(e.nodes.get(&pins.node), now) else {
        return false;
    };
    let Some(no_user) = no_user else { return false };
    let (held, closed) = (is_held(walk), is_closed(walk));
    let pods = match fresh(Some(&e.pods), now) {
        Some(pods) => pods.map_or(&[][..], Vec::as_slice),
        None => return false,
    };
    let away = |p: &PodFacts| match &p.node {
        None => p.held || closed,
        Some(node) => *node != pins.node,
    };
    let answer = e.answers.get(&pins.node).filter(|a| {
        e.asked
            .as_ref()
            .is_some_and(|(r, n)| r.as_str() == RECOVERY && *r == a.recovery && *n == a.epoch)
            && a.boot_id == node.boot_id
    });
    if answer.is_some_and(|a| matches!(a.seen, ScanResult::InUse { .. })) {
        return false;
    }
    let clean = answer.is_some_and(|a| match a.seen {
        ScanResult::NoDevice => true,
        ScanResult::Clean => a.level == Level::Full,
        _ => false,
    });
    let renewed = node
        .lease_renewed
        .zip(no_user.lease)
        .is_some_and(|(new, old)| new > old);
    let handshake = !node.volumes_in_use.contains(&volume_name()) && renewed;
    let asked = walk.state().challenged_at(&walk.plan);
    let recent = |at: Timestamp| (0..=120).contains(&now.duration_since(at).as_secs());
    let later =
        asked.is_some_and(|at| at.duration_since(no_user.at).as_secs() >= 120 && recent(at));
    let rebooted = pins.boot_id.as_ref() != Some(&node.boot_id);
    node.instance.as_ref() == Some(&pins.holder)
        && (held || closed)
        && pods.iter().all(away)
        && ((node.ready && (handshake || (clean && later))) || (rebooted && clean && later))
}

/// Whether a pod made now would be held away from every node.
fn is_held(walk: &Walk) -> bool {
    let workload = fresh(Some(&walk.case.evidence.workload), walk.case.now).flatten();
    workload.is_some_and(|w| w.dry_run_held == Some(true))
}

/// Whether the scheduler keeps the workload's pods from the holder's node.
fn is_closed(walk: &Walk) -> bool {
    let (e, now) = (&walk.case.evidence, walk.case.now);
    let taint = format!("hold.reattach.dev/{RECOVERY}");
    fresh(e.nodes.get(&walk.plan.pins.node), now)
        .flatten()
        .is_some_and(|n| n.taints.contains(&taint))
        && fresh(Some(&e.workload), now)
            .flatten()
            .is_some_and(|w| w.template.ignores_taints.is_none())
}

fn supported(walk: &Walk, frees: Frees) -> Result<(), String> {
    let (e, pins, now) = (&walk.case.evidence, &walk.plan.pins, walk.case.now);
    let Some(Some(cloud)) = fresh(Some(&e.cloud_volume), now) else {
        return Err("the cloud is not known".into());
    };
    if cloud.holders != [pins.holder.clone()] || cloud.id != pins.volume {
        return Err(format!(
            "the cloud says {:?} of {}",
            cloud.holders, cloud.id
        ));
    }
    if !is_ours(e, &pins.holder, now) {
        return Err("it is not certain whose it is".into());
    }
    let down = machine_is_down(e, &pins.holder, now);
    let state = walk.state();
    let ok = match frees {
        Frees::Node => {
            let dead = fresh(e.nodes.get(&pins.node), now)
                .flatten()
                .is_some_and(|n| !n.ready);
            dead && down.is_some()
        }
        Frees::Volume { force: true } => down == Some(true),
        Frees::Record | Frees::Volume { force: false } => {
            let away = is_held(walk) || frees == Frees::Record && is_closed(walk);
            away && (down.is_some() || volume_is_unused(walk, state.unused_since(), now))
        }
    };
    if ok {
        Ok(())
    } else {
        Err(format!("machine down: {down:?}"))
    }
}

fn propose(walk: &Walk) -> Option<Effect> {
    match walk.ask() {
        Next::Act(action) if freed(&action.effect).is_some() => Some(action.effect),
        _ => None,
    }
}

#[test]
fn every_proposed_effect_is_supported() {
    for walk in moments() {
        let effect = propose(walk).unwrap_or_else(|| panic!("{}", walk.story()));
        supported(walk, freed(&effect).unwrap())
            .unwrap_or_else(|e| panic!("{effect:?}: {e}\n{}", walk.story()));
    }
}

/// Each single spoil is refused by at least one moment of a run: none of them is idle.
#[test]
fn each_spoiled_fact_stops_some_effect() {
    let harmless = [
        // A fact that may be so: the pod waits elsewhere or is held, the record is gone, a human or the cloud says more.
        24, 27, 29, 30, 36, 39, 46, 47, 57, 58, 59, 60, 61, 21,
    ];
    for (i, spoil) in SPOILS
        .iter()
        .enumerate()
        .filter(|(i, _)| !harmless.contains(i))
    {
        let stopped = moments().iter().any(|walk| {
            let mut walk = walk.clone();
            spoil(&mut walk.case);
            propose(&walk).is_none()
        });
        assert!(stopped, "spoil {i} stops no run");
    }
}

#[test]
fn nothing_is_freed_without_what_supports_it() {
    let spoils = prop::collection::vec(0..SPOILS.len(), 0..5);
    let answers = prop::option::weighted(0.2, 0..ANSWERS.len());
    let input = (0..moments().len(), spoils, answers);
    let (all, freeing) = (cases(100_000), AtomicU32::new(0));
    runner("nothing_is_freed_without_what_supports_it", all)
        .run(&input, |(moment, spoils, answer)| {
            let mut walk = moments()[moment].clone();
            if let Some(answer) = answer {
                walk.case = ANSWERS[answer](walk.case);
            }
            for spoil in spoils {
                SPOILS[spoil](&mut walk.case);
            }
            if let Some(effect) = propose(&walk) {
                let frees = freed(&effect).unwrap();
                prop_assert!(
                    supported(&walk, frees).is_ok(),
                    "{effect:?}: {:?}\n{}",
                    supported(&walk, frees),
                    walk.story()
                );
                freeing.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
    let freeing = freeing.into_inner();
    println!("{freeing} of {all} proposed a freeing effect, each supported");
    assert!(
        freeing > all / 100,
        "the cases hardly ever get to a freeing effect: {freeing}"
    );
}
