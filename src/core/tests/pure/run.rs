//! The executor's brain, walked through whole runs in the model: as planned, stuck, crashed, aborted, taken over,
//! blinded, and with replies that are lost.

use super::world::{Mark as Stamped, World, at};
use jiff::SignedDuration;
use reattach_core::evidence::{Evidence, Word};
use reattach_core::journal::{End, Entry, Event, Outcome, Shut};
use reattach_core::run::{
    Context, Effect, Left, Next, State, newest_job, next, refused_to_put_back, without_journal,
};
use reattach_core::testkit::Case;

/// What goes wrong with the reply to an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    LostBefore,
    LostAfter,
    Busy,
    Refused,
    /// The gate was shut: nothing was sent.
    Shut,
}

/// What goes wrong in a run.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The executor dies right after this many journal writes.
    pub crash_after: Vec<usize>,
    /// The executor dies between effect and outcome, counted in effects.
    pub crash_between: Vec<usize>,
    /// What becomes of the reply to the n-th effect.
    pub replies: Vec<(usize, Reply)>,
    /// A person aborts after this many journal writes.
    pub abort_after: Option<usize>,
    /// No person says that nothing is under way at the cloud.
    pub nobody_declares: bool,
    /// Something is done to the world after this many journal writes.
    pub meddle: Option<(usize, fn(&mut World))>,
}

/// A run: the world, the journal, and what was seen.
pub struct Run {
    pub world: World,
    pub journal: Vec<Entry>,
    pub term: u64,
    pub effects: usize,
    pub faults: Faults,
    pub meddled: bool,
    pub state: State,
}

pub enum Step {
    Went,
    Waits,
    Crashed,
    Done(End),
}

impl Run {
    pub fn new(world: World, faults: Faults) -> Self {
        let mut run = Self {
            state: State::new(world.plan()),
            world,
            journal: Vec::new(),
            term: 1,
            effects: 0,
            faults,
            meddled: false,
        };
        let _ = run.write(Event::Accepted {
            plan_hash: run.world.plan().hash.to_string(),
            authority: "test".into(),
        });
        run
    }

    /// Appends a line; true: the executor dies right after.
    fn write(&mut self, event: Event) -> bool {
        let seq = u32::try_from(self.journal.len()).unwrap();
        let entry = Entry {
            seq,
            at: at(self.world.now),
            term: self.term,
            by: "test".into(),
            event,
        };
        self.state
            .apply(self.world.plan(), &entry)
            .unwrap_or_else(|e| panic!("{e}\n{}", self.story()));
        self.journal.push(entry);
        let written = self.journal.len();
        if let Some((when, what)) = self.faults.meddle
            && written >= when
            && !self.meddled
        {
            self.meddled = true;
            what(&mut self.world);
        }
        self.faults.crash_after.contains(&written)
    }

    fn aborted(&self) -> bool {
        self.faults
            .abort_after
            .is_some_and(|n| self.journal.len() >= n)
    }

    /// What the machine says of this evidence now.
    pub fn ask(&self, evidence: &Evidence) -> Next {
        let recovery = Case::recovery();
        let now = at(self.world.now);
        let word = Word {
            by: "grace".into(),
            reason: "nothing is under way".into(),
            at: now,
        };
        let silent = self.faults.nobody_declares || self.world.job.is_some();
        let cx = Context {
            recovery: &recovery,
            aborted_by: self.aborted().then_some("ada"),
            confirm_workload: None,
            term: self.term,
            nothing_under_way: (!silent).then_some(word),
            withdrawn: None,
            unattended: SignedDuration::ZERO,
            now,
        };
        next(self.world.plan(), &self.state, evidence, &cx)
    }

    pub fn look(&mut self) -> Step {
        let replayed = State::replay(self.world.plan(), &self.journal)
            .unwrap_or_else(|e| panic!("{e}\n{}", self.story()));
        assert_eq!(replayed, self.state, "replay and incremental state differ");
        let now = at(self.world.now);
        match self.ask(&self.world.evidence()) {
            Next::Record(event) => {
                if self.write(event) {
                    Step::Crashed
                } else {
                    Step::Went
                }
            }
            Next::Wait { why, until } => {
                assert!(until >= now, "a wait that ended already: {why}");
                assert!(
                    until <= now + SignedDuration::from_secs(600),
                    "a wait without a soon end: {why}"
                );
                Step::Waits
            }
            Next::Done(end) => Step::Done(end),
            Next::Act(action) => self.act(&action),
        }
    }

    fn act(&mut self, action: &reattach_core::run::Action) -> Step {
        assert_eq!(
            self.state.outstanding(),
            None,
            "an effect beside another\n{}",
            self.story()
        );
        let turned = self.state.unwinding().is_some();
        assert!(
            !turned || matches!(action.effect, Effect::Restore { .. } | Effect::Lift { .. }),
            "only restoring after turning back"
        );
        let proof = match &action.effect {
            Effect::CloudDetach { proof } => Some(proof.kind().clone()),
            _ => None,
        };
        self.effects += 1;
        let fault = self
            .faults
            .replies
            .iter()
            .find(|(n, _)| *n == self.effects)
            .map(|(_, r)| *r);
        if self.write(Event::Started {
            step: action.step,
            intent: action.intent.clone(),
            proof,
            newest_job: newest_job(&action.effect, &self.world.evidence()),
        }) {
            return Step::Crashed;
        }
        let lost = Outcome::Unknown {
            why: "the reply was lost".into(),
        };
        let outcome = match fault {
            Some(Reply::LostBefore) => lost,
            Some(Reply::Busy) => Outcome::NotApplied {
                why: "busy".into(),
                retry: true,
            },
            Some(Reply::Refused) => Outcome::NotApplied {
                why: "forbidden".into(),
                retry: false,
            },
            Some(Reply::Shut) => Outcome::Withheld {
                shut: Shut::NotLeader,
            },
            _ => {
                let told = self
                    .world
                    .issue(&action.effect, turned)
                    .unwrap_or_else(|e| panic!("{e}\n{}", self.story()));
                if fault == Some(Reply::LostAfter) {
                    lost
                } else {
                    told
                }
            }
        };
        if self.faults.crash_between.contains(&self.effects) {
            return Step::Crashed;
        }
        if self.write(Event::Outcome {
            step: action.step,
            outcome,
        }) {
            Step::Crashed
        } else {
            Step::Went
        }
    }

    /// Runs to the end, or for so many seconds.
    pub fn drive(&mut self, seconds: i64) -> Option<End> {
        let until = self.world.now + seconds;
        while self.world.now < until {
            for looks in 0.. {
                assert!(looks < 50, "a loop without a wait\n{}", self.story());
                match self.look() {
                    Step::Went => {}
                    Step::Waits => break,
                    Step::Done(end) => return Some(end),
                    Step::Crashed => {
                        self.term += 1;
                        for _ in 0..15 {
                            self.world.second();
                        }
                    }
                }
            }
            self.world.second();
        }
        None
    }

    /// What is left to put back if no line can be written from now on.
    pub fn left(&self) -> Left {
        let recovery = Case::recovery();
        let now = at(self.world.now);
        let cx = Context {
            recovery: &recovery,
            aborted_by: None,
            confirm_workload: None,
            term: self.term,
            nothing_under_way: None,
            withdrawn: None,
            unattended: SignedDuration::ZERO,
            now,
        };
        let since = at(self.world.now - 1);
        without_journal(
            self.world.plan(),
            &self.state,
            &self.world.evidence(),
            &cx,
            since,
            false,
        )
    }

    pub fn story(&self) -> String {
        let mut text = format!("{:?}\n", self.world);
        for e in &self.journal {
            text += &format!(
                "  {:>3} {:>5} s  t{} {:?}\n",
                e.seq,
                e.at.duration_since(at(0)).as_secs(),
                e.term,
                e.event
            );
        }
        text
    }

    pub fn has(&self, is: impl Fn(&Event) -> bool) -> bool {
        self.journal.iter().any(|e| is(&e.event))
    }

    pub fn assert_recovered(&mut self, what: &str, most_detaches: u32) {
        let end = self.drive(3_600);
        assert_eq!(end, Some(End::Recovered), "{what}\n{}", self.story());
        assert!(self.world.healed(), "{what}\n{}", self.story());
        assert!(
            self.world.detaches <= most_detaches,
            "{what}: {} detaches\n{}",
            self.world.detaches,
            self.story()
        );
    }
}

pub fn run(unpublish_fails: bool, faults: Faults) -> Run {
    Run::new(World::new(unpublish_fails), faults)
}

/// Journal lines of an undisturbed run.
pub fn length(unpublish_fails: bool) -> usize {
    let mut run = run(unpublish_fails, Faults::default());
    run.drive(3_600);
    run.journal.len()
}

#[test]
fn a_planned_run_needs_no_cloud_call() {
    let mut run = run(false, Faults::default());
    run.assert_recovered("as planned", 0);
    assert_eq!(run.effects, 2, "scale and restore\n{}", run.story());
    assert!(run.world.now < 60, "{} s", run.world.now);
    assert!(run.journal.len() < 20, "{} lines", run.journal.len());
}

#[test]
fn a_cloud_detach_heals_where_the_driver_fails() {
    let mut run = run(true, Faults::default());
    run.assert_recovered("stuck unpublish", 1);
    assert_eq!(run.world.detaches, 1);
    assert!(
        run.has(|m| matches!(m, Event::Started { proof: Some(_), .. })),
        "the proof is journaled"
    );
    assert!(run.world.now < 180, "{} s", run.world.now);
}

#[test]
fn a_slow_cloud_is_waited_for() {
    for (stuck, lag) in [(false, 40), (false, 90), (true, 40), (true, 200)] {
        let mut world = World::new(stuck);
        world.cloud_lag = lag;
        let mut run = Run::new(world, Faults::default());
        run.assert_recovered(&format!("lag {lag}, stuck {stuck}"), u32::from(stuck));
    }
}

#[test]
fn a_crash_after_any_journal_write_is_survived() {
    for stuck in [false, true] {
        for n in 1..=length(stuck) {
            run(
                stuck,
                Faults {
                    crash_after: vec![n],
                    ..Faults::default()
                },
            )
            .assert_recovered(&format!("crash after line {n}, stuck {stuck}"), 1);
        }
    }
}

#[test]
fn a_crash_between_any_effect_and_its_outcome_is_survived() {
    for stuck in [false, true] {
        for n in 1..=4 {
            run(
                stuck,
                Faults {
                    crash_between: vec![n],
                    ..Faults::default()
                },
            )
            .assert_recovered(&format!("crash after effect {n}, stuck {stuck}"), 1);
        }
    }
}

#[test]
fn two_crashes_anywhere_are_survived() {
    for stuck in [false, true] {
        let lines = length(stuck);
        for one in 1..=lines {
            for two in one..=lines {
                let faults = Faults {
                    crash_after: vec![one, two + 1],
                    crash_between: vec![2],
                    ..Faults::default()
                };
                run(stuck, faults).assert_recovered(
                    &format!("crashes after lines {one} and {two}, stuck {stuck}"),
                    1,
                );
            }
        }
    }
}

#[test]
fn an_abort_anywhere_restores_everything() {
    for stuck in [false, true] {
        for n in 1..=length(stuck) {
            let mut run = run(
                stuck,
                Faults {
                    abort_after: Some(n),
                    crash_after: vec![n + 1],
                    ..Faults::default()
                },
            );
            let end = run.drive(3_600);
            let late = n >= length(stuck) - 1;
            assert!(
                end == Some(End::Aborted) || late && end == Some(End::Recovered),
                "{end:?}, abort after line {n}\n{}",
                run.story()
            );
            assert_eq!(
                (run.world.replicas, &run.world.stamp),
                (1, &Stamped::None),
                "abort after line {n}\n{}",
                run.story()
            );
        }
    }
}

/// Unknown replies: the run recovers, and nothing is restored while a cloud mutation is unknown (the model objects).
#[test]
fn lost_replies_are_observed_and_survived() {
    for stuck in [false, true] {
        for n in 1..=4 {
            for reply in [
                Reply::LostBefore,
                Reply::LostAfter,
                Reply::Busy,
                Reply::Shut,
            ] {
                let most = 1;
                run(
                    stuck,
                    Faults {
                        replies: vec![(n, reply)],
                        ..Faults::default()
                    },
                )
                .assert_recovered(&format!("{reply:?} at effect {n}, stuck {stuck}"), most);
            }
        }
    }
}

#[test]
fn a_refused_effect_unwinds_and_restores() {
    for (stuck, n) in [(false, 1), (true, 1), (true, 2)] {
        let mut run = run(
            stuck,
            Faults {
                replies: vec![(n, Reply::Refused)],
                ..Faults::default()
            },
        );
        let end = run.drive(3_600);
        assert!(
            matches!(end, Some(End::Failed { .. })),
            "{end:?}\n{}",
            run.story()
        );
        assert_eq!(
            (run.world.replicas, &run.world.stamp),
            (1, &Stamped::None),
            "effect {n}\n{}",
            run.story()
        );
    }
}

/// A right that is missing for a moment leaves no workload at zero.
#[test]
fn a_restore_refused_once_is_retried() {
    let mut run = run(
        false,
        Faults {
            replies: vec![(2, Reply::Refused)],
            ..Faults::default()
        },
    );
    run.assert_recovered("refused once", 0);
}

#[test]
fn a_restore_refused_for_a_while_unwinds_and_restores() {
    let faults = Faults {
        replies: (2..22).map(|n| (n, Reply::Refused)).collect(),
        ..Faults::default()
    };
    let mut run = run(false, faults);
    while !run.has(|m| matches!(m, Event::UnwindStarted { .. })) {
        assert_eq!(run.drive(1), None);
    }
    let refused = refused_to_put_back(run.world.plan(), &run.state);
    assert_eq!(refused, Some("forbidden"), "{}", run.story());
    let end = run.drive(7_200);
    assert!(
        matches!(end, Some(End::Failed { .. })),
        "{end:?}\n{}",
        run.story()
    );
    assert_eq!((run.world.replicas, run.world.stamp), (1, Stamped::None));
}

/// A restore that is refused for ever ends, the journal stays small, and the stamp says what is left to do.
#[test]
fn a_restore_that_never_succeeds_calls_a_person() {
    for reply in [Reply::Busy, Reply::Refused] {
        let faults = Faults {
            replies: (2..2_000).map(|n| (n, reply)).collect(),
            ..Faults::default()
        };
        let mut run = run(false, faults);
        let end = run.drive(40_000);
        assert!(
            matches!(end, Some(End::Stuck { .. })),
            "{end:?}, {} lines",
            run.journal.len()
        );
        let size = serde_json::to_vec(&run.journal).unwrap().len();
        assert!(size < 100_000, "{} lines, {size} bytes", run.journal.len());
        assert_eq!(
            run.world.stamp,
            Stamped::Ours,
            "the stamp suffices to restore"
        );
        let Left::Act(action) = run.left() else {
            panic!("{:?}", run.left())
        };
        assert!(
            matches!(
                action.effect,
                Effect::Restore {
                    replicas: Some(1),
                    ..
                }
            ),
            "{action:?}"
        );
        (run.world.replicas, run.world.stamp) = (1, Stamped::None);
        assert_eq!(run.left(), Left::Nothing);
        (run.world.replicas, run.world.stamp) = (0, Stamped::Edited);
        assert!(
            matches!(run.left(), Left::Person { .. }),
            "{:?}",
            run.left()
        );
    }
}

/// Whatever the journal's last line is when it cannot be written any more: what is put back without it is put back by the
/// same rules, and never beside an effect whose outcome is not known.
#[test]
fn unwinding_without_a_journal_waits_for_the_cloud() {
    let (mut acted, mut waited) = (0, 0);
    for unpublish_fails in [false, true] {
        for lines in 1..=length(unpublish_fails) {
            let mut run = run(unpublish_fails, Faults::default());
            run.world.cloud_lag = 900;
            while run.journal.len() < lines && run.world.now < 3_000 && run.drive(1).is_none() {}
            if run.has(|m| matches!(m, Event::Ended { .. })) {
                continue;
            }
            let at_zero = (run.world.replicas, &run.world.stamp) == (0, &Stamped::Ours);
            match run.left() {
                Left::Act(action) => {
                    acted += 1;
                    assert!(at_zero, "{action:?} after line {lines}\n{}", run.story());
                    // The model objects to a restore under a pending detach of ours.
                    let issued = run.world.issue(&action.effect, true);
                    issued.unwrap_or_else(|e| panic!("{e} after line {lines}\n{}", run.story()));
                    assert_eq!(run.world.replicas, 1);
                }
                Left::Wait { .. } => waited += 1,
                Left::Nothing => assert!(!at_zero, "after line {lines}\n{}", run.story()),
                Left::Person { why } => panic!("{why} after line {lines}\n{}", run.story()),
            }
        }
    }
    assert!(
        acted > 3 && waited > 0,
        "{acted} times put back, {waited} times waited"
    );
}

/// S3: while the cloud's answer is unknown and cannot be read, nothing is lifted, whatever else happens.
#[test]
fn nothing_is_restored_while_a_cloud_mutation_is_unknown() {
    for reply in [Reply::LostBefore, Reply::LostAfter] {
        for abort in [false, true] {
            let mut run = run(
                true,
                Faults {
                    replies: vec![(2, reply)],
                    ..Faults::default()
                },
            );
            while !run.has(|m| {
                matches!(
                    m,
                    Event::Outcome {
                        outcome: Outcome::Unknown { .. },
                        ..
                    }
                )
            }) {
                assert_eq!(run.drive(1), None);
            }
            run.world.outage = true;
            run.world.job = run.world.job.map(|(who, _)| (who, i64::MAX));
            run.faults.abort_after = abort.then_some(0);
            assert_eq!(run.drive(7_200), None, "{}", run.story());
            assert_eq!(
                (run.world.replicas, &run.world.stamp),
                (0, &Stamped::Ours),
                "{}",
                run.story()
            );
            run.world.outage = false;
            run.world.job = run.world.job.map(|(who, _)| (who, 0));
            let end = run.drive(3_600);
            assert!(end.is_some(), "{}", run.story());
            assert_eq!(
                (run.world.replicas, &run.world.stamp),
                (1, &Stamped::None),
                "{}",
                run.story()
            );
        }
    }
}

/// An accepted detach is no finished one: an abort, a deadline or a person waits for its end.
#[test]
fn nothing_is_restored_while_an_accepted_detach_runs() {
    for abort in [true, false] {
        let mut world = World::new(true);
        world.cloud_lag = 900;
        let mut run = Run::new(world, Faults::default());
        while run.world.detaches == 0 {
            assert_eq!(run.drive(1), None);
        }
        run.faults.abort_after = abort.then_some(0);
        let end = run.drive(3_600);
        assert!(end.is_some(), "{}", run.story());
        assert!(
            run.has(|m| matches!(m, Event::UnwindStarted { .. })),
            "{}",
            run.story()
        );
        assert_eq!(
            (run.world.replicas, &run.world.stamp),
            (1, &Stamped::None),
            "{}",
            run.story()
        );
    }
}
