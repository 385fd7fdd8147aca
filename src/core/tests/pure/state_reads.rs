//! What a journal says of a run: what has to be read for its next step, whether it has its node's lock, and when a step began.

use super::walk::{self, ALL, dead_node, orphan};
use super::world;
use jiff::Timestamp;
use reattach_core::ids::StepIx;
use reattach_core::journal::{End, Entry, Event, Outcome, UnwindReason};
use reattach_core::plan::{Allowed, Snapshots, SoundPlan};
use reattach_core::proof::UnusedSince;
use reattach_core::run::{State, StepState};
use reattach_core::steps::StepKind;

/// A journal that is written by hand; each line is a second later.
#[derive(Clone)]
struct Run {
    plan: SoundPlan,
    journal: Vec<Entry>,
}

impl Run {
    /// A run that has come to this step, all before it skipped (`skipped`) or finished.
    fn at(plan: &SoundPlan, kind: StepKind, skipped: bool) -> Self {
        let run = Self {
            plan: plan.clone(),
            journal: Vec::new(),
        };
        let (plan_hash, authority) = (plan.hash.to_string(), "test".to_owned());
        let mut run = run.then(Event::Accepted {
            plan_hash,
            authority,
        });
        while run.state().current() != Some(run.ix(kind)) {
            let step = run.state().current().unwrap();
            run = if skipped {
                run.skip(step)
            } else {
                run.complete(step)
            };
        }
        run
    }

    fn ix(&self, kind: StepKind) -> StepIx {
        self.plan
            .find(kind)
            .unwrap_or_else(|| panic!("the plan has no {kind:?}"))
    }

    fn then(mut self, event: Event) -> Self {
        let seq = u32::try_from(self.journal.len()).unwrap();
        self.journal.push(Entry {
            seq,
            at: world::at(seq.into()),
            term: 1,
            by: "test".into(),
            event,
        });
        self
    }

    fn now(&self) -> Timestamp {
        self.journal.last().unwrap().at
    }

    fn skip(self, step: StepIx) -> Self {
        self.then(Event::Skipped {
            step,
            why: "test".into(),
        })
    }

    fn complete(self, step: StepIx) -> Self {
        self.then(Event::Completed {
            step,
            seen: "test".into(),
        })
    }

    fn start(self, kind: StepKind) -> Self {
        let step = self.ix(kind);
        self.then(Event::Started {
            step,
            intent: "test".into(),
            proof: None,
            newest_job: None,
        })
    }

    fn told(self, kind: StepKind, outcome: Outcome) -> Self {
        let step = self.ix(kind);
        self.then(Event::Outcome { step, outcome })
    }

    fn applied(self, kind: StepKind) -> Self {
        self.start(kind).told(
            kind,
            Outcome::Applied {
                detail: "200".into(),
            },
        )
    }

    fn refused(self, kind: StepKind) -> Self {
        self.start(kind).told(
            kind,
            Outcome::NotApplied {
                why: "409".into(),
                retry: true,
            },
        )
    }

    fn back(self) -> Self {
        self.then(Event::UnwindStarted {
            why: UnwindReason::Aborted { by: "jane".into() },
        })
    }

    fn no_user(self, lease: bool) -> Self {
        let at = self.now();
        self.then(Event::UnusedSince {
            seen: UnusedSince {
                at,
                lease: lease.then_some(at),
            },
        })
    }

    fn state(&self) -> State {
        State::replay(&self.plan, &self.journal).unwrap()
    }
}

fn of(case: &reattach_core::testkit::Case, allowed: Allowed) -> SoundPlan {
    walk::plan(case, allowed).unwrap().sound().unwrap()
}

/// The lock is renewed as long as this says that the run may have it.
#[test]
fn a_run_holds_the_node_lock_from_its_first_node_effect() {
    let plan = of(&dead_node(), ALL);
    let mut tried = 0;
    for kind in [
        StepKind::PowerOff,
        StepKind::TaintOutOfService,
        StepKind::PowerOn,
    ] {
        if plan.find(kind).is_none() {
            continue;
        }
        tried += 1;
        let due = Run::at(&plan, kind, true);
        assert!(!due.state().locks_the_node(&plan), "{kind:?} is due");
        let begun = due.start(kind);
        assert!(begun.state().locks_the_node(&plan), "{kind:?} was begun");
        let over = begun
            .told(
                kind,
                Outcome::Applied {
                    detail: "200".into(),
                },
            )
            .back();
        assert!(
            over.state().locks_the_node(&plan),
            "{kind:?} is to be put back"
        );
        assert!(
            !over
                .then(Event::Ended { end: End::Aborted })
                .state()
                .locks_the_node(&plan),
            "{kind:?}: over"
        );
    }
    assert!(tried > 1);
}

#[test]
fn only_a_machine_that_the_run_powered_off_is_powered_on() {
    let plan = of(&dead_node(), ALL);
    let off = StepKind::PowerOff;
    let due = Run::at(&plan, off, true);
    let step = due.ix(off);
    let (done, refused) = (due.clone().applied(off), due.clone().refused(off));
    assert_eq!(due.state().attempts_of(&plan, off), 0);
    assert_eq!(done.state().attempts_of(&plan, off), 1);
    for (run, ours) in [
        (due.clone(), false),
        (due.complete(step), false),
        (done.clone(), true),
        (done.clone().complete(step), true),
        (done.skip(step), false),
        (refused, false),
    ] {
        assert_eq!(
            run.state().powered_off(&plan),
            ours,
            "{:?}",
            run.journal.last()
        );
    }
}

/// Without the probe a hold is taken for what it is not, and nothing goes on.
#[test]
fn the_hold_is_probed_while_a_step_depends_on_it() {
    use StepKind::{AwaitDetached, CloudDetach, Hold, Lift, Release, Verify};
    let plan = world::hold_plan();
    let at = |kind, skipped| Run::at(plan, kind, skipped);
    for (run, probed) in [
        (at(Hold, true), true),
        (at(Release, true), true),
        (at(CloudDetach, true), false),
        (at(CloudDetach, false), true),
        (at(AwaitDetached, false), false),
        (at(Verify, false), false),
        (at(Lift, false), false),
        (at(Lift, false).start(Lift), true),
        (at(Hold, true).back(), false),
        (at(CloudDetach, false).back(), false),
        (at(CloudDetach, false).back().start(Lift), true),
    ] {
        assert_eq!(
            run.state().needs_probe(plan),
            probed,
            "{:?}",
            run.journal.last()
        );
    }
    let plan = world::plan();
    for step in &plan.steps {
        assert!(
            !Run::at(plan, step.kind, false).state().needs_probe(plan),
            "{:?}",
            step.kind
        );
    }
}

/// What stands against a change is read while the change is weighed, and no longer.
#[test]
fn pins_are_compared_until_the_effect_is_in_force() {
    use StepKind::{AwaitDetached, Hold, Release, ScaleToZero};
    let (scales, holds) = (world::plan(), world::hold_plan());
    let scale = Run::at(scales, ScaleToZero, true);
    for (run, weighed) in [
        (scale.clone(), true),
        (scale.clone().back(), false),
        (scale.clone().refused(ScaleToZero), true),
        (scale.applied(ScaleToZero), false),
        (Run::at(scales, AwaitDetached, true), false),
        (Run::at(holds, Hold, true), true),
        (Run::at(holds, Release, true), true),
        (Run::at(holds, Release, true).back(), false),
    ] {
        assert_eq!(
            run.state().weighs_a_change(&run.plan),
            weighed,
            "{:?}",
            run.journal.last()
        );
    }
}

/// S3: a detach that may be under way is looked for, also after the run has turned back.
#[test]
fn the_clouds_jobs_are_read_while_a_detach_may_be_under_way() {
    use StepKind::CloudDetach;
    let plan = &of(&orphan(), ALL);
    let first = plan.steps.first().unwrap().kind;
    let due = Run::at(plan, CloudDetach, true);
    let step = due.ix(CloudDetach);
    let sent = due.clone().applied(CloudDetach);
    let force = StepKind::CloudForce;
    // The one by force is due itself where it comes next.
    let later = |run: Run| {
        let mut run = run;
        while run.state().current().is_some_and(|ix| ix <= run.ix(force)) {
            let ix = run.state().current().unwrap();
            run = run.skip(ix);
        }
        run
    };
    for (run, read) in [
        (Run::at(plan, first, true), first == CloudDetach),
        (due.clone(), true),
        (due.clone().back(), false),
        (due.clone().start(CloudDetach), true),
        (sent.clone(), true),
        (sent.clone().back(), true),
        (later(due.clone().skip(step)), false),
        (later(due.skip(step)).back(), false),
        (later(sent.clone().skip(step)), false),
        (later(sent.clone().skip(step)).back(), true),
        (later(sent.complete(step)).back(), false),
    ] {
        assert_eq!(
            run.state().needs_jobs(plan),
            read,
            "{:?}",
            run.journal.last()
        );
    }
}

#[test]
fn snapshots_are_read_while_an_ordered_one_is_awaited() {
    use StepKind::Snapshot;
    let plan = of(
        &orphan(),
        Allowed {
            snapshot: Snapshots::Required,
            ..ALL
        },
    );
    let due = Run::at(&plan, Snapshot, true);
    for (run, read) in [
        (due.clone(), false),
        (due.clone().back(), false),
        (due.clone().start(Snapshot), true),
        (due.clone().applied(Snapshot), true),
        (due.applied(Snapshot).back(), false),
    ] {
        assert_eq!(
            run.state().needs_snapshots(&plan),
            read,
            "{:?}",
            run.journal.last()
        );
    }
}

#[test]
fn a_run_knows_when_unwinding_began() {
    let run = Run::at(world::plan(), StepKind::ScaleToZero, true);
    assert_eq!(run.state().unwinding_since(), None);
    let run = run.back();
    assert_eq!(run.state().unwinding_since(), Some(run.now()));
}

/// S5: only the time in which nobody knew what became of an order is given back to its step.
#[test]
fn only_an_observed_order_restarts_the_deadline() {
    let seen = || Outcome::ObservedApplied {
        seen: "seen".into(),
    };
    let order = Run::at(world::plan(), StepKind::CloudDetach, true);
    let entered = order.state().entered_at();
    assert_eq!(
        order
            .clone()
            .applied(StepKind::CloudDetach)
            .state()
            .entered_at(),
        entered
    );
    let found = order
        .start(StepKind::CloudDetach)
        .told(StepKind::CloudDetach, seen());
    assert_eq!(found.state().entered_at(), Some(found.now()));
    let scale = Run::at(world::plan(), StepKind::ScaleToZero, true);
    let entered = scale.state().entered_at();
    let found = scale
        .start(StepKind::ScaleToZero)
        .told(StepKind::ScaleToZero, seen());
    assert_eq!(found.state().entered_at(), entered);
}

/// S5: a question has one deadline, however often it is put at its own step; one that a later step puts again has its own.
#[test]
fn only_a_later_step_restarts_the_question() {
    use StepKind::Challenge;
    let plan = world::hold_plan();
    let due = Run::at(plan, Challenge, true);
    let (step, entered) = (due.ix(Challenge), due.state().entered_at());
    let put_twice = due.clone().refused(Challenge).start(Challenge);
    assert_eq!(put_twice.state().entered_at(), entered);
    let again = due.applied(Challenge).complete(step).start(Challenge);
    assert_eq!(again.state().entered_at(), Some(again.now()));
    assert_eq!(again.state().current(), Some(step));
}

/// S3: a question that is on its way stays so, whatever begins anew; one that was answered comes again with the handshake.
#[test]
fn a_restarted_handshake_keeps_open_questions() {
    use StepKind::Challenge;
    let plan = of(&dead_node(), ALL);
    let plan = if plan.find(Challenge).is_some() {
        &plan
    } else {
        world::hold_plan()
    };
    let due = Run::at(plan, Challenge, true);
    let step = due.ix(Challenge);
    let sent = due.clone().start(Challenge).no_user(true);
    assert!(matches!(sent.state().step(step), StepState::Started { .. }));
    assert_eq!(sent.state().outstanding(), Some(step));
    let passed = due.applied(Challenge).complete(step);
    assert!(matches!(
        passed.clone().no_user(false).state().step(step),
        StepState::Closed { .. }
    ));
    assert!(matches!(
        passed.no_user(true).state().step(step),
        StepState::Pending
    ));
}

/// A refused order is under way nowhere. Where an earlier one of the same step was never heard of, "busy" may be that one.
#[test]
fn a_refused_order_is_forgotten_unless_an_earlier_one_is_open() {
    use StepKind::CloudDetach;
    let due = Run::at(world::plan(), CloudDetach, true);
    let step = due.ix(CloudDetach);
    let refused = due.clone().refused(CloudDetach);
    assert_eq!(refused.state().sent_at(step), None);
    let not_seen = Outcome::ObservedNotApplied {
        seen: "seen".into(),
    };
    let unheard = due.start(CloudDetach).told(CloudDetach, not_seen);
    assert!(unheard.state().sent_at(step).is_some());
    assert!(unheard.refused(CloudDetach).state().sent_at(step).is_some());
}
