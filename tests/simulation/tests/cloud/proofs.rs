//! Proofs from collected evidence, and what stands against them.

use super::{Fixture, TOKEN, VOLUME, run};
use jiff::SignedDuration;
use reattach_cloud_simulator::{CloudSim, InstanceNo, InstanceStatus};
use reattach_core::cloud::{
    CloudScope, InstanceObservation, InstanceState, PowerChange, PowerFacts,
};
use reattach_core::evidence::{Evidence, NodeFacts};
use reattach_core::fact::{Fact, Known};
use reattach_core::ids::InstanceId;
use reattach_core::proof::{NoProof, ProofKind, gone, off};

fn sighting(e: &Evidence, instance: &InstanceId) -> InstanceObservation {
    let fact = &e.instances[instance];
    InstanceObservation {
        instance: instance.clone(),
        scope: e.cloud_scope.clone().expect("a scope"),
        state: fact.shown().map(|i| i.state.clone()),
        kept_off: None,
        at: fact.at,
    }
}

type Spoil = fn(&mut Evidence, &mut InstanceObservation, &InstanceId);

/// Older than any decision allows.
fn stale<T>(fact: &mut Fact<T>) {
    fact.at = fact
        .at
        .checked_sub(SignedDuration::from_secs(60))
        .expect("a time");
}

fn unknown<T>(fact: &mut Fact<T>) {
    fact.value = Known::Unknown {
        why: "no answer".to_owned(),
    };
}

fn node(e: &mut Evidence, change: impl Fn(&mut NodeFacts)) {
    for fact in e.nodes.values_mut() {
        if let Known::Present(node) = &mut fact.value {
            change(node);
        }
    }
}

fn history(e: &mut Evidence, instance: &InstanceId, change: impl FnOnce(&mut PowerFacts)) {
    if let Some(Fact {
        value: Known::Present(facts),
        ..
    }) = e.power.get_mut(instance)
    {
        change(facts);
    }
}

fn another_scope() -> CloudScope {
    CloudScope("another".to_owned())
}

/// Changes that spoil one item which both proofs need; the text is part of the refusal.
const BOTH: &[(&str, Spoil, &str)] = &[
    (
        "volume stale",
        |e, _, _| stale(&mut e.cloud_volume),
        "cloud volume",
    ),
    (
        "volume unknown",
        |e, _, _| unknown(&mut e.cloud_volume),
        "cloud volume",
    ),
    (
        "another holder",
        |e, _, _| {
            if let Known::Present(v) = &mut e.cloud_volume.value {
                v.holders = vec!["5".into()];
            }
        },
        "names 5",
    ),
    (
        "instance stale",
        |e, _, _| e.instances.values_mut().for_each(stale),
        "cloud says of instance",
    ),
    (
        "instance unknown",
        |e, _, _| e.instances.values_mut().for_each(unknown),
        "cloud says of instance",
    ),
    (
        "instance not asked",
        |e, _, _| e.instances.clear(),
        "cloud says of instance",
    ),
    (
        "nodes stale",
        |e, _, _| e.nodes.values_mut().for_each(stale),
        "Node",
    ),
    ("scope not known", |e, _, _| e.cloud_scope = None, "seen"),
    (
        "another scope",
        |e, _, _| e.cloud_scope = Some(another_scope()),
        "seen",
    ),
    (
        "seen by another scope",
        |_, s, _| s.scope = another_scope(),
        "seen",
    ),
    (
        "another instance seen",
        |_, s, _| s.instance = "5".into(),
        "seen",
    ),
    ("seen only now", |e, s, i| s.at = e.instances[i].at, "seen"),
];

const OFF: &[(&str, Spoil, &str)] = &[
    (
        "node Ready",
        |e, _, i| {
            node(e, |n| n.ready |= n.instance.as_ref() == Some(i));
        },
        "Ready",
    ),
    (
        "running before",
        |_, s, _| s.state = Some(InstanceState::Running),
        "once",
    ),
    (
        "history stale",
        |e, _, _| e.power.values_mut().for_each(stale),
        "history",
    ),
    (
        "history unknown",
        |e, _, _| e.power.values_mut().for_each(unknown),
        "history",
    ),
    ("history not asked", |e, _, _| e.power.clear(), "history"),
    (
        "history empty",
        |e, _, i| history(e, i, |f| f.jobs.clear()),
        "no shutdown job",
    ),
    (
        "nobody asked for it",
        |e, _, i| history(e, i, |f| f.jobs.iter_mut().for_each(|j| j.by = None)),
        "no user",
    ),
    (
        "a boot after it",
        |e, _, i| {
            history(e, i, |f| {
                let mut on = f.jobs.last().expect("a job").clone();
                on.change = PowerChange::On;
                f.jobs.push(on);
            });
        },
        "booted it",
    ),
];

fn refused_when_spoiled(
    prove: impl Fn(&Evidence, Option<&InstanceObservation>) -> Result<ProofKind, NoProof>,
    e: &Evidence,
    seen: &InstanceObservation,
    instance: &InstanceId,
    spoils: &[&[(&str, Spoil, &str)]],
) {
    for (name, spoil, expected) in spoils.iter().copied().flatten() {
        let (mut e, mut seen) = (e.clone(), seen.clone());
        spoil(&mut e, &mut seen, instance);
        let refusal = prove(&e, Some(&seen)).expect_err(name).to_string();
        assert!(
            refusal.contains(expected),
            "{name}: {refusal:?} does not say {expected:?}"
        );
    }
    assert!(prove(e, None).is_err(), "without an earlier sighting");
}

#[test]
fn off_is_proven_only_from_complete_evidence() {
    run(|| async {
        let mut s = Fixture::set().await;
        s.cloud()
            .shutdown(s.holder)
            .expect("an operator's shutdown");
        s.die().await;
        let instance = s.instance();
        let seen = sighting(&s.collect().await, &instance);
        assert_eq!(seen.state, Some(InstanceState::Off));
        s.pass(5).await;
        let e = s.collect().await;
        let now = s.now();
        let prove = |e: &Evidence, seen: Option<&InstanceObservation>| {
            off(e.at(now), &instance, seen).map(|p| p.kind().clone())
        };
        let proof = off(e.at(now), &instance, Some(&seen)).expect("a proof");
        assert!(
            matches!(proof.kind(), ProofKind::Off { job: Some(_), first_seen } if *first_seen == seen.at)
        );
        assert!(
            proof.age(now) < SignedDuration::from_secs(2),
            "as old as its oldest ground: {proof:?}"
        );
        refused_when_spoiled(prove, &e, &seen, &instance, &[BOTH, OFF]);

        // Half a minute later the same facts prove nothing.
        s.pass(31).await;
        assert!(off(e.at(s.now()), &instance, Some(&seen)).is_err());
        // Another account that answers now is another scope.
        s.cloud().add_foreign_token(TOKEN);
        let e = s.collect().await;
        assert!(off(e.at(s.now()), &instance, Some(&seen)).is_err(), "{e:?}");
    });
}

#[test]
fn offline_without_a_shutdown_job_is_not_off() {
    run(|| async {
        // What is done to the cloud before the machine is dead, and what stands against the proof.
        type Hook = fn(&CloudSim, InstanceNo);
        let hooks: [(&str, Hook, &str); 2] = [
            (
                "power lost: the watchdog is about to boot it",
                |_, _| {},
                "boots it",
            ),
            (
                "the cloud's own shutdown",
                |cloud, i| {
                    cloud.shutdown_by_cloud(i).expect("a shutdown");
                },
                "no user",
            ),
        ];
        for (name, hook, expected) in hooks {
            let mut s = Fixture::set().await;
            hook(s.cloud(), s.holder);
            s.die().await;
            let instance = s.instance();
            let seen = sighting(&s.collect().await, &instance);
            assert_eq!(seen.state, Some(InstanceState::Off), "{name}");
            s.pass(5).await;
            let refusal =
                off(s.collect().await.at(s.now()), &instance, Some(&seen)).expect_err(name);
            assert!(refusal.to_string().contains(expected), "{name}: {refusal}");
        }
        // The machine is booted after all: it is not off any more, and the old job never proves it off again.
        let mut s = Fixture::set().await;
        s.cloud().shutdown(s.holder).expect("a shutdown");
        s.die().await;
        let instance = s.instance();
        let seen = sighting(&s.collect().await, &instance);
        s.cloud().boot(s.holder).expect("a boot");
        s.pass(5).await;
        let refusal =
            off(s.collect().await.at(s.now()), &instance, Some(&seen)).expect_err("booting");
        assert!(refusal.to_string().contains("not off"), "{refusal}");
        s.pass(100).await;
        // The attachment ended with the boot, and was made again.
        s.cloud().make_orphan(VOLUME, s.holder).expect("attached");
        s.cloud()
            .set_instance_status(s.holder, InstanceStatus::Offline)
            .expect("a status");
        let refusal =
            off(s.collect().await.at(s.now()), &instance, Some(&seen)).expect_err("booted since");
        assert!(refusal.to_string().contains("booted it after"), "{refusal}");
    });
}

#[test]
fn gone_is_proven_only_from_complete_evidence() {
    run(|| async {
        let mut s = Fixture::set().await;
        s.die().await;
        let instance = s.instance();
        let seen = sighting(&s.collect().await, &instance);
        // The machine is deleted, and the cloud goes on naming it.
        s.cloud().vanish(s.holder).expect("gone");
        s.pass(5).await;
        let e = s.collect().await;
        assert_eq!(e.instances[&instance].value, Known::Absent);
        let now = s.now();
        let prove = |e: &Evidence, seen: Option<&InstanceObservation>| {
            gone(e.at(now), &instance, seen).map(|p| p.kind().clone())
        };
        assert_eq!(
            prove(&e, Some(&seen)),
            Ok(ProofKind::Gone {
                last_seen: Some(seen.at)
            })
        );
        refused_when_spoiled(prove, &e, &seen, &instance, &[BOTH]);
        assert!(
            off(e.at(now), &instance, Some(&seen)).is_err(),
            "gone is not off"
        );

        // To another account everything is "not found": that proves nothing.
        s.cloud().add_foreign_token(TOKEN);
        s.pass(5).await;
        let e = s.collect().await;
        assert_eq!(
            (e.cloud_volume.value.clone(), e.instances.len()),
            (Known::Absent, 0)
        );
        assert!(gone(e.at(s.now()), &instance, Some(&seen)).is_err());
    });
}

#[test]
fn an_existing_machine_is_never_gone() {
    run(|| async {
        let mut s = Fixture::set().await;
        s.die().await;
        let instance = s.instance();
        let seen = sighting(&s.collect().await, &instance);
        s.pass(5).await;
        let e = s.collect().await;
        let refusal = gone(e.at(s.now()), &instance, Some(&seen)).expect_err("it is there");
        assert!(matches!(refusal, NoProof::Power { .. }), "{refusal}");
        // Deleting the instance frees its volumes at the cloud: there is no holder left.
        s.cloud().delete_instance(s.holder).expect("deleted");
        s.pass(5).await;
        let e = s.collect().await;
        assert_eq!(e.cloud_volume.shown().map(|v| v.holders.len()), Some(0));
        assert_eq!(
            e.instances[&instance].value,
            Known::Absent,
            "Kubernetes' holder is still asked for"
        );
        assert!(matches!(
            gone(e.at(s.now()), &instance, Some(&seen)),
            Err(NoProof::Holder { .. })
        ));
    });
}
