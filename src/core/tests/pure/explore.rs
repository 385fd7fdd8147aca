//! Bounded exploration, depth first, of state spaces over the real `run::next`: two executors that share one
//! compare-and-swap journal, crashes and lost or delayed requests at any moment, the world moving in any order.
//!
//! Time moves in strides of 61 s, and only while every executor waits. A cloud detach may be in flight for longer: no limit
//! of the machine rests on its time. A write to Kubernetes that is still in flight after 60 s is the janitor's (it is
//! conditional), so here it arrives before.
//! `REATTACH_CASES` set: larger budgets, every interleaving of the world, no practical bound.

use super::world::{Issuer, Mark as Stamped, World, at};
use jiff::SignedDuration;
use reattach_core::evidence::Word;
use reattach_core::journal::{End, Entry, Event, Outcome};
use reattach_core::run::{Action, Context, Effect, Next, State, newest_job, next};
use reattach_core::testkit::Case;
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

const STRIDE: i64 = 61;

/// Where an executor is. Each remembers the length of the journal that it acted on.
#[derive(Debug)]
enum Executor {
    Idle,
    Decided {
        length: usize,
        next: Next,
    },
    Issuing {
        length: usize,
        action: Action,
        turned: bool,
    },
    Replying {
        length: usize,
        action: Action,
        outcome: Outcome,
    },
}

/// A value with its `Debug` text and the text's digest. Every state that contains the value is compared by them, so they are
/// made once.
struct Printed<T> {
    value: T,
    text: String,
    digest: u64,
}

impl<T: std::fmt::Debug> Printed<T> {
    fn new(value: T) -> Rc<Self> {
        let text = format!("{value:?}");
        Rc::new(Self {
            digest: digest(&text),
            value,
            text,
        })
    }
}

/// The last line of a journal. Longer journals share the lines before it.
struct Line {
    event: Event,
    before: Option<Rc<Line>>,
}

#[derive(Clone)]
struct Global {
    world: World,
    journal: Option<Rc<Line>>,
    length: usize,
    digest: u64,
    state: Rc<State>,
    executors: [Rc<Printed<Executor>>; 2],
    /// A request that left a crashed or impatient executor and has not arrived.
    delayed: Option<Rc<Printed<(Effect, bool, usize)>>>,
    aborted: bool,
    crashes: u32,
    losses: u32,
    aborts: u32,
    meddles: u32,
    strides: i64,
}

type Moves = Vec<(&'static str, Result<Global, String>)>;

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn is_detach(effect: &Effect) -> bool {
    matches!(effect, Effect::CloudDetach { .. })
}

impl Global {
    fn new(world: World, budget: [u32; 4]) -> Self {
        // One for the patience with a stuck driver, one for a request in flight, one for a pod to settle.
        let world_needs_patience = world.unpublish_fails;
        let plan = world.plan();
        let start = Self {
            state: Rc::new(State::new(plan)),
            world,
            journal: None,
            length: 0,
            digest: 0,
            executors: [Printed::new(Executor::Idle), Printed::new(Executor::Idle)],
            delayed: None,
            aborted: false,
            crashes: budget[0],
            losses: budget[1],
            aborts: budget[2],
            meddles: budget[3],
            strides: if world_needs_patience { 3 } else { 2 },
        };
        start
            .append(Event::Accepted {
                plan_hash: plan.hash.to_string(),
                authority: "test".into(),
            })
            .unwrap()
    }

    fn append(&self, event: Event) -> Result<Self, String> {
        let mut after = self.clone();
        let seq = u32::try_from(self.length).unwrap();
        let entry = Entry {
            seq,
            at: at(self.world.now),
            term: 1,
            by: "x".into(),
            event,
        };
        let mut state = (*self.state).clone();
        state
            .apply(self.world.plan(), &entry)
            .map_err(|e| e.to_string())?;
        after.digest = digest(&format!("{} {:?} {:?}", self.digest, entry.at, entry.event));
        after.journal = Some(Rc::new(Line {
            event: entry.event,
            before: self.journal.clone(),
        }));
        (after.length, after.state) = (self.length + 1, Rc::new(state));
        Ok(after)
    }

    /// The journal's lines, oldest first.
    fn events(&self) -> Vec<&Event> {
        let lines = std::iter::successors(self.journal.as_deref(), |line| line.before.as_deref());
        let mut events: Vec<_> = lines.map(|line| &line.event).collect();
        events.reverse();
        events
    }

    /// Decisions and replies on an old journal cannot be stored any more: their executors look again.
    fn normal(mut self) -> Self {
        for executor in &mut self.executors {
            if let Executor::Decided { length, .. } | Executor::Replying { length, .. } =
                &executor.value
                && *length != self.length
            {
                *executor = Printed::new(Executor::Idle);
            }
        }
        if self.executors[0].text > self.executors[1].text {
            self.executors.swap(0, 1);
        }
        self
    }

    fn key(&self) -> (u64, u64) {
        let mut hasher = DefaultHasher::new();
        self.world.hash(&mut hasher);
        (
            self.aborted,
            self.crashes,
            self.losses,
            self.aborts,
            self.meddles,
            self.strides,
        )
            .hash(&mut hasher);
        let world = hasher.finish();
        let delayed = self.delayed.as_ref().map(|request| request.digest);
        let [first, second] = &self.executors;
        let mut hasher = DefaultHasher::new();
        (self.digest, first.digest, second.digest, delayed).hash(&mut hasher);
        (world, hasher.finish())
    }

    fn decide(&self) -> Next {
        let recovery = Case::recovery();
        let now = at(self.world.now);
        let under_way = self.delayed.is_some()
            || self
                .executors
                .iter()
                .any(|e| matches!(e.value, Executor::Issuing { .. }));
        let word = Word {
            by: "grace".into(),
            reason: "nothing is under way".into(),
            at: now,
        };
        let cx = Context {
            recovery: &recovery,
            aborted_by: self.aborted.then_some("ada"),
            confirm_workload: None,
            term: 1,
            // A person who knows says so at once, and never wrongly.
            nothing_under_way: (!under_way).then_some(word),
            withdrawn: None,
            unattended: SignedDuration::ZERO,
            now,
        };
        next(self.world.plan(), &self.state, &self.world.evidence(), &cx)
    }

    /// The request arrives. The model's own objections come first, then those between requests.
    /// `length`: the journal's when it was sent.
    fn arrive(&mut self, effect: &Effect, turned: bool, length: usize) -> Result<Outcome, String> {
        // The label is on the object that carries the journal: each line makes another version of it.
        let labels = matches!(effect, Effect::Hold)
            || matches!(effect, Effect::Lift { .. }) && self.world.hold;
        if labels && length != self.length {
            return Ok(Outcome::NotApplied {
                why: "409".into(),
                retry: true,
            });
        }
        let other_detach = self
            .delayed
            .as_ref()
            .is_some_and(|request| is_detach(&request.value.0));
        if is_detach(effect) && other_detach {
            return Err("two cloud detaches in flight".into());
        }
        let before = (self.world.replicas, self.world.hold);
        let outcome = self.world.issue(effect, turned)?;
        let issuing = self.executors.iter().any(
            |e| matches!(&e.value, Executor::Issuing { action, .. } if is_detach(&action.effect)),
        );
        let lifted = before.1 && !self.world.hold;
        if (self.world.replicas > before.0 || lifted) && (other_detach || issuing) {
            return Err("restored while a cloud detach is outstanding".into());
        }
        Ok(outcome)
    }

    fn with(&self, which: usize, executor: Executor) -> Self {
        let mut after = self.clone();
        after.executors[which] = Printed::new(executor);
        after
    }

    fn executor_moves(&self, which: usize, decision: &mut Option<Next>, moves: &mut Moves) {
        let length = self.length;
        match &self.executors[which].value {
            Executor::Idle => {
                let next = decision.get_or_insert_with(|| self.decide()).clone();
                if matches!(next, Next::Record(_) | Next::Act(_)) {
                    moves.push((
                        "look",
                        Ok(self.with(which, Executor::Decided { length, next })),
                    ));
                }
            }
            Executor::Decided {
                next: Next::Record(event),
                ..
            } => {
                moves.push((
                    "record",
                    self.with(which, Executor::Idle).append(event.clone()),
                ));
            }
            Executor::Decided {
                next: Next::Act(action),
                ..
            } => {
                let started = Event::Started {
                    step: action.step,
                    intent: action.intent.clone(),
                    proof: None,
                    newest_job: newest_job(&action.effect, &self.world.evidence()),
                };
                let turned = self.state.unwinding().is_some();
                let issuing = Executor::Issuing {
                    length: length + 1,
                    action: action.clone(),
                    turned,
                };
                moves.push(("start", self.with(which, issuing).append(started)));
            }
            Executor::Decided { .. } => {}
            Executor::Issuing {
                length,
                action,
                turned,
            } => self.issue_moves(which, *length, action, *turned, moves),
            Executor::Replying {
                action, outcome, ..
            } => {
                let event = Event::Outcome {
                    step: action.step,
                    outcome: outcome.clone(),
                };
                moves.push(("reply", self.with(which, Executor::Idle).append(event)));
                if self.crashes > 0 {
                    let mut after = self.with(which, Executor::Idle);
                    after.crashes -= 1;
                    moves.push(("crash before the reply is stored", Ok(after)));
                }
            }
        }
    }

    fn issue_moves(
        &self,
        which: usize,
        length: usize,
        action: &Action,
        turned: bool,
        moves: &mut Moves,
    ) {
        let unknown = || Outcome::Unknown { why: "lost".into() };
        let replying = |outcome| Executor::Replying {
            length,
            action: action.clone(),
            outcome,
        };
        let mut arrived = self.with(which, Executor::Idle);
        let outcome = arrived.arrive(&action.effect, turned, length);
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(broken) => return moves.push(("issue", Err(broken))),
        };
        let with = |mut global: Self, executor: Executor| {
            global.executors[which] = Printed::new(executor);
            global
        };
        if self.crashes > 0 {
            let mut silent = self.with(which, Executor::Idle);
            silent.crashes -= 1;
            moves.push(("crash before issuing", Ok(silent.clone())));
            if silent.delayed.is_none() {
                silent.delayed = Some(Printed::new((action.effect.clone(), turned, length)));
                moves.push(("crash with the request on its way", Ok(silent)));
            }
        }
        if self.losses > 0 {
            let mut lost = self.with(which, replying(unknown()));
            lost.losses -= 1;
            moves.push(("request lost", Ok(lost.clone())));
            if lost.delayed.is_none() {
                lost.delayed = Some(Printed::new((action.effect.clone(), turned, length)));
                moves.push(("request delayed", Ok(lost)));
            }
            let mut deaf = with(arrived.clone(), replying(unknown()));
            deaf.losses -= 1;
            moves.push(("reply lost", Ok(deaf)));
        }
        moves.push(("issue", Ok(with(arrived, replying(outcome)))));
    }

    fn moves(&self) -> Moves {
        let mut moves = Vec::new();
        let mut decision = None;
        for which in 0..2 {
            self.executor_moves(which, &mut decision, &mut moves);
        }
        if let Some(request) = &self.delayed {
            let (effect, turned, length) = &request.value;
            let mut after = self.clone();
            after.delayed = None;
            let landed = after.arrive(effect, *turned, *length);
            moves.push(("land", landed.map(|_| after)));
        }
        let world: [(&'static str, fn(&mut World)); 7] = [
            // Normally Kubernetes moves as one and only the cloud lags; the larger budgets interleave all of it.
            ("Kubernetes", |w| {
                w.workload_controller();
                w.kubelet_tick();
                w.attach_detach_controller();
                w.attacher();
                w.mount();
            }),
            ("workload controller", World::workload_controller),
            ("kubelet", World::kubelet_tick),
            ("attach/detach controller", World::attach_detach_controller),
            ("attacher", World::attacher),
            ("cloud", |w| {
                // Jobs end whenever they like.
                w.job = w.job.map(|(who, _)| (who, w.now));
                w.attaching = w.attaching.map(|_| w.now);
                w.cloud();
            }),
            ("mount", World::mount),
        ];
        for (name, act) in world
            .into_iter()
            .filter(|(name, _)| larger() || matches!(*name, "Kubernetes" | "cloud"))
        {
            let mut after = self.clone();
            act(&mut after.world);
            if after.world != self.world {
                moves.push((name, Ok(after)));
            }
        }
        let writes = self
            .delayed
            .as_ref()
            .is_some_and(|request| !is_detach(&request.value.0));
        let in_flight = writes
            || self
                .executors
                .iter()
                .any(|e| matches!(e.value, Executor::Issuing { .. }));
        // Executors act at once; only one that waits lets time pass.
        let idle = self
            .executors
            .iter()
            .all(|e| matches!(e.value, Executor::Idle));
        let waits = idle
            && matches!(
                decision.get_or_insert_with(|| self.decide()),
                Next::Wait { .. }
            );
        if self.strides > 0 && !in_flight && waits {
            let mut after = self.clone();
            after.strides -= 1;
            after.world.now += STRIDE;
            moves.push(("61 s pass", Ok(after)));
        }
        if self.aborts > 0 {
            let mut after = self.clone();
            (after.aborts, after.aborted) = (self.aborts - 1, true);
            moves.push(("abort", Ok(after)));
        }
        // Between the last look and the arrival of a cloud detach nothing can see a person: the cloud cannot compare.
        let detaching = self.executors.iter().any(|e| match &e.value {
            Executor::Decided {
                next: Next::Act(action),
                ..
            }
            | Executor::Issuing { action, .. } => is_detach(&action.effect),
            _ => false,
        }) || self
            .delayed
            .as_ref()
            .is_some_and(|request| is_detach(&request.value.0));
        if self.meddles > 0 && self.world.stamp == Stamped::Ours && !detaching {
            let mut after = self.clone();
            after.meddles -= 1;
            (after.world.replicas, after.world.version) = (1, self.world.version + 1);
            moves.push(("a person scales back", Ok(after)));
        }
        moves
    }

    /// What must hold in every state.
    fn objection(&self) -> Option<String> {
        let ours = matches!(self.world.job, Some((Issuer::Us, _)));
        match self.state.ended() {
            Some(End::Stuck { why }) => Some(format!("stuck without a reason to: {why}")),
            Some(_) if self.state.outstanding().is_some() => {
                Some("ended with an outstanding effect".into())
            }
            Some(_) if ours => Some("ended while our cloud detach is in flight".into()),
            Some(_) if self.world.stamp == Stamped::Ours => {
                Some("ended with our stamp on the workload".into())
            }
            Some(_) if self.world.hold || self.world.pod.as_ref().is_some_and(|p| p.gated) => {
                Some("ended with a hold of ours in force".into())
            }
            Some(_) if self.world.replicas == 0 => Some("ended with the workload at zero".into()),
            _ => None,
        }
    }
}

struct Found {
    states: usize,
    ends: BTreeMap<String, usize>,
    most_detaches: u32,
    whole: bool,
}

/// Depth first, with the way to a broken promise.
fn explore(start: Global, limit: usize) -> Found {
    let mut seen = HashSet::new();
    let mut found = Found {
        states: 0,
        ends: BTreeMap::new(),
        most_detaches: 0,
        whole: true,
    };
    let mut way: Vec<&'static str> = Vec::new();
    let mut stack: Vec<(usize, &'static str, Global)> = vec![(0, "start", start.normal())];
    while let Some((depth, name, global)) = stack.pop() {
        way.truncate(depth);
        way.push(name);
        if !seen.insert(global.key()) {
            continue;
        }
        found.states += 1;
        if found.states >= limit {
            found.whole = false;
            break;
        }
        found.most_detaches = found.most_detaches.max(global.world.detaches);
        if let Some(broken) = global.objection() {
            panic!(
                "{broken}\n{way:?}\n{:#?}\n{:?}",
                global.events(),
                global.world
            );
        }
        if let Some(end) = global.state.ended() {
            let text = format!("{end:?}");
            *found
                .ends
                .entry(text.split([' ', '{']).next().unwrap_or("").to_owned())
                .or_default() += 1;
        }
        for (name, after) in global.moves() {
            match after {
                Ok(after) => stack.push((depth + 1, name, after.normal())),
                Err(broken) => {
                    let events = global.events();
                    panic!(
                        "{broken} at {name:?}\n{way:?}\n{events:#?}\n{:?}",
                        global.world
                    )
                }
            }
        }
    }
    found
}

fn check(name: &str, world: World, budget: [u32; 4]) -> Found {
    let begun = std::time::Instant::now();
    let limit = if larger() { 20_000_000 } else { 80_000 };
    let found = explore(Global::new(world, budget), limit);
    println!(
        "{name}: {} states explored ({}), no rule broken; ends {:?}; at most {} cloud detaches; {:.1} s",
        found.states,
        if found.whole {
            "all"
        } else {
            "bounded, depth first"
        },
        found.ends,
        found.most_detaches,
        begun.elapsed().as_secs_f32()
    );
    assert!(!found.ends.is_empty(), "{name}: no way leads to an end");
    found
}

fn larger() -> bool {
    std::env::var_os("REATTACH_CASES").is_some()
}

#[test]
fn two_executors_with_a_healthy_driver() {
    let budget = if larger() { [2, 2, 1, 1] } else { [0, 1, 1, 0] };
    let found = check("two executors, healthy driver", World::new(false), budget);
    assert!(found.ends.contains_key("Aborted") || !found.whole);
}

#[test]
fn two_executors_with_a_stuck_driver_and_crashes() {
    let budget = if larger() { [2, 2, 0, 0] } else { [1, 0, 0, 0] };
    let found = check(
        "two executors, stuck driver, crashes",
        World::new(true),
        budget,
    );
    assert!(found.most_detaches >= 1 || !found.whole);
}

#[test]
fn two_executors_with_a_stuck_driver_and_an_abort() {
    let budget = if larger() { [1, 1, 1, 1] } else { [0, 0, 1, 0] };
    let found = check(
        "two executors, stuck driver, abort",
        World::new(true),
        budget,
    );
    assert!(found.ends.contains_key("Aborted") || !found.whole);
}

#[test]
fn two_executors_and_a_persons_change() {
    let budget = if larger() { [1, 1, 0, 1] } else { [0, 0, 0, 1] };
    check("two executors, a person", World::new(true), budget);
}

#[test]
fn two_executors_that_hold_with_a_healthy_driver() {
    let budget = if larger() { [2, 2, 1, 0] } else { [0, 1, 1, 0] };
    let found = check(
        "two executors, hold, healthy driver",
        World::held_by_gate(false),
        budget,
    );
    assert!(found.ends.contains_key("Aborted") || !found.whole);
}

#[test]
fn two_executors_that_hold_with_a_stuck_driver_and_crashes() {
    let budget = if larger() { [2, 2, 0, 0] } else { [1, 0, 0, 0] };
    let found = check(
        "two executors, hold, stuck driver, crashes",
        World::held_by_gate(true),
        budget,
    );
    assert!(found.most_detaches >= 1 || !found.whole);
}

#[test]
fn two_executors_that_hold_with_a_stuck_driver_and_an_abort() {
    let budget = if larger() { [1, 1, 1, 0] } else { [0, 0, 1, 0] };
    let found = check(
        "two executors, hold, stuck driver, abort",
        World::held_by_gate(true),
        budget,
    );
    assert!(found.ends.contains_key("Aborted") || !found.whole);
}
