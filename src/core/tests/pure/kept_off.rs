//! A machine that lost its power without a shutdown job: the proof *kept off*, and the run that switches its automatic restart off
//! and on again.

use crate::walk::{ALL, QUIET, Walk, dead_node, plan};
use jiff::SignedDuration;
use reattach_core::cloud::{
    CloudScope, InstanceObservation, InstanceState, JobStatus, KeptOff, PowerChange, PowerJob,
};
use reattach_core::fact::Known;
use reattach_core::ids::InstanceId;
use reattach_core::journal::{End, Outcome};
use reattach_core::plan::Allowed;
use reattach_core::proof::{FenceProof, NoProof, ProofKind, kept_off};
use reattach_core::run::{Effect, Next};
use reattach_core::steps::StepKind;
use reattach_core::testkit::{Case, INSTANCE};

/// A node whose machine reads off, with an empty history.
fn powerless() -> Case {
    let mut case = dead_node();
    instance(&mut case, |state, _| *state = InstanceState::Off);
    case
}

fn instance(case: &mut Case, change: impl FnOnce(&mut InstanceState, &mut bool)) {
    let id = InstanceId::from(INSTANCE);
    let fact = case.evidence.instances.get_mut(&id).expect("an instance");
    let Known::Present(found) = &mut fact.value else {
        panic!("the instance is not shown")
    };
    change(&mut found.state, &mut found.auto_restart);
}

fn job(case: &mut Case, id: &str, change: PowerChange, status: JobStatus) {
    let created = case.now - SignedDuration::from_secs(1);
    let fact = case.evidence.power.get_mut(&InstanceId::from(INSTANCE));
    let Some(Known::Present(facts)) = fact.map(|f| &mut f.value) else {
        panic!("the history is not shown")
    };
    facts.jobs.push(PowerJob {
        id: id.to_owned(),
        change,
        finished: (status == JobStatus::Finished).then_some(created),
        status,
        by: None,
        created,
    });
}

/// A case in which the proof can be made, with its first reading in term 1.
fn provable() -> (Case, InstanceObservation) {
    let mut case = powerless();
    instance(&mut case, |_, restart| *restart = false);
    job(&mut case, "j1", PowerChange::On, JobStatus::Finished);
    let before = InstanceObservation {
        instance: INSTANCE.into(),
        scope: CloudScope("account".into()),
        state: Some(InstanceState::Off),
        kept_off: Some(KeptOff {
            term: 1,
            newest_job: Some("j1".to_owned()),
        }),
        at: case.now - SignedDuration::from_secs(15),
    };
    (case, before)
}

fn prove((case, before): &(Case, InstanceObservation)) -> Result<FenceProof, NoProof> {
    let evidence = case.evidence.at(case.now);
    kept_off(evidence, &INSTANCE.into(), before, 1)
}

type Spoil = fn(&mut Case, &mut InstanceObservation);

const SPOILS: &[(&str, Spoil, &str)] = &[
    (
        "the restart is on",
        |c, _| instance(c, |_, restart| *restart = true),
        "automatic restart is on",
    ),
    (
        "it runs",
        |c, _| instance(c, |state, _| *state = InstanceState::Running),
        "is not off",
    ),
    ("one reading", |_, b| b.kept_off = None, "only once"),
    (
        "a reading of another leader",
        |_, b| b.kept_off.as_mut().expect("a reading").term = 2,
        "only once",
    ),
    (
        "readings too close",
        |c, b| b.at = c.now - SignedDuration::from_secs(9),
        "only once",
    ),
    (
        "another account",
        |_, b| b.scope = CloudScope("b".into()),
        "only once",
    ),
    (
        "it was running",
        |_, b| b.state = Some(InstanceState::Running),
        "only once",
    ),
    (
        "a boot after the first reading",
        |c, _| job(c, "j2", PowerChange::On, JobStatus::Finished),
        "job j2",
    ),
    (
        "a failed boot after the first reading",
        |c, _| job(c, "j2", PowerChange::On, JobStatus::Failed),
        "job j2",
    ),
    (
        "a boot under way",
        |c, _| job(c, "j2", PowerChange::On, JobStatus::Started),
        "job j2",
    ),
    (
        "a history without the job of the first reading",
        |_, b| b.kept_off.as_mut().expect("a reading").newest_job = Some("j0".to_owned()),
        "job j1",
    ),
    (
        "an empty history at the first reading",
        |_, b| b.kept_off.as_mut().expect("a reading").newest_job = None,
        "job j1",
    ),
];

#[test]
fn two_readings_with_the_restart_off_make_a_proof() {
    let fixture = provable();
    let proof = prove(&fixture).expect("a proof");
    let kind = ProofKind::KeptOff {
        first_seen: fixture.1.at,
        newest_job: Some("j1".to_owned()),
    };
    assert_eq!(proof.kind(), &kind);
    assert!(proof.fences_the_node() && proof.shows_off_or_gone());
    assert!(!proof.holds_at(fixture.0.now + SignedDuration::from_secs(11)));
}

#[test]
fn every_spoiled_item_voids_the_proof_by_name() {
    for (name, spoil, word) in SPOILS {
        let (mut case, mut before) = provable();
        spoil(&mut case, &mut before);
        match prove(&(case, before)) {
            Ok(proof) => panic!("{name}: a proof all the same: {proof:?}"),
            Err(why) => assert!(why.to_string().contains(word), "{name}: {why}"),
        }
    }
}

#[test]
fn the_step_is_planned_for_a_machine_without_a_job_only() {
    let has = |case: &Case, allowed: Allowed| {
        let plan = plan(case, allowed).expect("a plan");
        (
            plan.find(StepKind::KeepOff).is_some(),
            plan.find(StepKind::LetBoot).is_some(),
        )
    };
    let forbidden = Allowed {
        power_off: false,
        ..ALL
    };
    let unable = Allowed {
        keep_off: false,
        ..ALL
    };
    assert_eq!(has(&powerless(), ALL), (true, true));
    assert_eq!(has(&powerless(), forbidden), (false, false));
    assert_eq!(has(&powerless(), unable), (false, false));
    assert_eq!(has(&dead_node(), ALL), (false, false), "it runs");
    assert_eq!(has(&crate::walk::dead_node_off(), ALL), (false, false));
}

/// The cloud reads the machine anew, as the controller notes it.
fn sees(walk: &mut Walk) {
    let shown = walk.instance().shown().expect("an instance").clone();
    let kept_off = (!shown.auto_restart).then_some(KeptOff {
        term: walk.term,
        newest_job: None,
    });
    let seen = InstanceObservation {
        instance: INSTANCE.into(),
        scope: CloudScope("account".into()),
        state: Some(shown.state),
        kept_off,
        at: walk.case.now,
    };
    let all = &mut walk.case.evidence.sightings;
    let news = all
        .last()
        .is_none_or(|last| (&last.state, &last.kept_off) != (&seen.state, &seen.kept_off));
    if news {
        all.push(seen);
    }
}

#[test]
fn a_run_switches_the_restart_off_and_on_again() {
    let mut walk = Walk::new(powerless(), QUIET);
    let end = loop {
        sees(&mut walk);
        if let Some(end) = walk.once() {
            break end;
        }
        assert!(walk.journal.len() < 300, "{}", walk.story());
    };
    assert_eq!(end, End::Recovered, "{}", walk.story());
    let kinds = walk.kinds();
    let at = |kind: &str| kinds.iter().position(|k| k == kind);
    assert!(
        at("KeepOff") < at("TaintOutOfService") && at("Untaint") < at("LetBoot"),
        "{kinds:?}"
    );
    assert_eq!(at("PowerOff"), None, "{kinds:?}");
    assert!(walk.instance().shown().expect("an instance").auto_restart);
}

#[test]
fn each_abort_after_the_switch_ends_with_the_restart_on() {
    let lines = {
        let mut walk = Walk::new(powerless(), QUIET);
        while walk.once().is_none() {
            sees(&mut walk);
        }
        walk.journal.len()
    };
    let mut switched = 0;
    for abort_at in 1..lines {
        let world = crate::walk::World {
            abort_at: Some(abort_at),
            ..QUIET
        };
        let mut walk = Walk::new(powerless(), world);
        while walk.once().is_none() {
            sees(&mut walk);
        }
        switched += usize::from(walk.kinds().contains(&"KeepOff".to_owned()));
        let on = walk.instance().shown().expect("an instance").auto_restart;
        assert!(on, "abort at line {abort_at}\n{}", walk.story());
    }
    assert!(
        switched > 5,
        "{switched} aborts of {lines} came after the switch"
    );
}

/// The setting of somebody else stays as it was found.
#[test]
fn a_restart_that_was_off_before_stays_off() {
    let mut case = powerless();
    instance(&mut case, |_, restart| *restart = false);
    let mut walk = Walk::new(case, QUIET);
    walk.answer(
        |e| {
            matches!(e, Effect::KeepOff { .. }).then(|| Outcome::NotApplied {
                why: "off already".to_owned(),
                retry: false,
            })
        },
        |_| {},
    );
    let end = loop {
        sees(&mut walk);
        if let Some(end) = walk.once() {
            break end;
        }
    };
    assert_eq!(end, End::Recovered, "{}", walk.story());
    assert!(!walk.kinds().contains(&"LetBoot".to_owned()));
}

/// A request whose reply was lost may have arrived: the restart is switched on again, once it cannot arrive any more.
#[test]
fn a_lost_switch_is_undone_after_it_may_arrive() {
    let mut walk = Walk::answered(
        powerless(),
        |e| matches!(e, Effect::KeepOff { .. }),
        Outcome::Unknown {
            why: "no answer".to_owned(),
        },
    );
    let sent = walk.case.now;
    instance(&mut walk.case, |_, restart| *restart = false);
    walk.pass(1);
    let recovery = Case::recovery();
    let on = loop {
        let cx = reattach_core::run::Context {
            aborted_by: Some("jane"),
            ..walk.context(&recovery)
        };
        match reattach_core::run::next(&walk.plan, &walk.state(), &walk.case.evidence, &cx) {
            Next::Record(event) => walk.record(event),
            Next::Wait { .. } => walk.pass(1),
            Next::Act(action) => break action.effect,
            Next::Done(end) => panic!("{end:?}\n{}", walk.story()),
        }
    };
    assert!(matches!(on, Effect::LetBoot { .. }), "{on:?}");
    assert!(walk.case.now.duration_since(sent) > SignedDuration::from_secs(10));
}
