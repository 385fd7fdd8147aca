//! Shares work out over namespaces: the namespaces take turns, so that a crowd in one of them does not delay the others.
//!
//! # Expected flow
//! [`Turns::offer`] says what there is to do, [`Turns::next`] hands out one piece of it, and [`Turns::ended`] takes it back.
//!
//! # Guarantees
//! The namespace that was served last comes last. Inside a namespace the lower rank comes first, then the piece of work that
//! was not served for the longest time; each fourth turn goes to the latter, whatever its rank. Never more than [`Bounds`]
//! allows is handed out.
//!
//! # Assumptions
//! What is handed out is taken back, whatever came of it.

use reattach_core::ids::ObjectName;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;
use tokio::time::Instant;

/// Of so many turns of a namespace one goes by the time of waiting alone, so that no rank waits for ever.
const ONE_BY_WAITING: u64 = 4;
/// The shortest pause of a piece of work that led to nothing.
const SHORTEST_REST: Duration = Duration::from_secs(1);
/// The pause is this part of the time for which the work has led to nothing: what changed a minute ago is looked at every
/// 7 s.
const PART_OF_THE_TIME: u32 = 8;

/// How much of the work is handed out at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// In all namespaces together.
    pub at_once: usize,
    /// In one namespace.
    pub per_namespace: usize,
}

/// One piece of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Changes with whatever makes the work worth doing again before its rest is over.
    pub version: u64,
    /// The lower rank goes first in its namespace.
    pub rank: u8,
}

/// What becomes of a piece of work that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It waits for its next turn.
    InLine,
    /// It led to nothing, and rests: the longer it has led to nothing, the longer, up to this pause.
    Rest(Duration),
}

/// The work, by namespace.
#[derive(Debug)]
pub(crate) struct Turns {
    bounds: Bounds,
    lines: BTreeMap<String, Line>,
    served_last: String,
    under_way: usize,
    ticket: u64,
}

#[derive(Debug, Default)]
struct Line {
    places: BTreeMap<String, Place>,
    under_way: usize,
    /// Pieces of work that were handed out.
    turns: u64,
}

#[derive(Debug)]
struct Place {
    offer: Offer,
    ticket: u64,
    state: State,
    /// Since when it has led to nothing.
    idle_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Resting { until: Instant },
    UnderWay { changed: bool, offered: bool },
}

impl Place {
    fn is_due(&self, now: Instant) -> bool {
        match self.state {
            State::Waiting => true,
            State::Resting { until } => until <= now,
            State::UnderWay { .. } => false,
        }
    }
}

impl Turns {
    /// Returns a queue without work.
    pub fn new(bounds: Bounds) -> Self {
        let (lines, served_last) = (BTreeMap::new(), String::new());
        Self {
            bounds,
            lines,
            served_last,
            under_way: 0,
            ticket: 0,
        }
    }

    /// Replaces the work by `all`. A piece that stays keeps its place; a rest ends when the piece's version changes.
    pub fn offer(&mut self, all: impl IntoIterator<Item = (ObjectName, Offer)>) {
        let mut gone = std::mem::take(&mut self.lines);
        for (ObjectName { namespace, name }, offer) in all {
            let old = gone
                .get_mut(&namespace)
                .and_then(|line| line.places.remove(&name));
            let place = match old {
                Some(place) if place.offer.version == offer.version => {
                    let state = match place.state {
                        State::UnderWay { changed, .. } => State::UnderWay {
                            changed,
                            offered: true,
                        },
                        other => other,
                    };
                    Place {
                        offer,
                        state,
                        ..place
                    }
                }
                Some(Place {
                    ticket,
                    state: State::UnderWay { .. },
                    ..
                }) => {
                    let state = State::UnderWay {
                        changed: true,
                        offered: true,
                    };
                    Place {
                        offer,
                        ticket,
                        state,
                        idle_since: None,
                    }
                }
                Some(Place {
                    ticket,
                    state: State::Waiting,
                    ..
                }) => Place {
                    offer,
                    ticket,
                    state: State::Waiting,
                    idle_since: None,
                },
                Some(Place {
                    state: State::Resting { .. },
                    ..
                })
                | None => {
                    let ticket = self.next_ticket();
                    Place {
                        offer,
                        ticket,
                        state: State::Waiting,
                        idle_since: None,
                    }
                }
            };
            self.lines
                .entry(namespace)
                .or_default()
                .places
                .insert(name, place);
        }
        // What is under way is taken back later, whether it is still work or not.
        for (namespace, line) in gone {
            for (name, mut place) in line.places {
                if let State::UnderWay { changed, .. } = place.state {
                    place.state = State::UnderWay {
                        changed,
                        offered: false,
                    };
                    self.lines
                        .entry(namespace.clone())
                        .or_default()
                        .places
                        .insert(name, place);
                }
            }
            if let Some(new) = self.lines.get_mut(&namespace) {
                new.under_way = line.under_way;
                new.turns = line.turns;
            }
        }
    }

    /// Hands out the piece of work whose turn it is.
    pub fn next(&mut self, now: Instant) -> Option<ObjectName> {
        if self.under_way >= self.bounds.at_once {
            return None;
        }
        let last = std::mem::take(&mut self.served_last);
        let later = (Bound::Excluded(last.as_str()), Bound::Unbounded);
        let earlier = (Bound::Unbounded, Bound::Included(last.as_str()));
        let found = self
            .lines
            .range::<str, _>(later)
            .chain(self.lines.range::<str, _>(earlier))
            .find_map(|(namespace, line)| {
                let full = line.under_way >= self.bounds.per_namespace;
                let due = line
                    .places
                    .iter()
                    .filter(|(_, place)| !full && place.is_due(now));
                let by_rank = (line.turns + 1) % ONE_BY_WAITING != 0;
                let rank = |place: &Place| if by_rank { place.offer.rank } else { 0 };
                let (name, _) = due.min_by_key(|(_, place)| (rank(place), place.ticket))?;
                Some(ObjectName::new(namespace.as_str(), name.as_str()))
            });
        let Some(found) = found else {
            self.served_last = last;
            return None;
        };
        if let Some(line) = self.lines.get_mut(&found.namespace)
            && let Some(place) = line.places.get_mut(&found.name)
        {
            place.state = State::UnderWay {
                changed: false,
                offered: true,
            };
            line.under_way += 1;
            line.turns += 1;
            self.under_way += 1;
        }
        self.served_last.clone_from(&found.namespace);
        Some(found)
    }

    /// Takes back a piece of work that was handed out.
    pub fn ended(&mut self, done: &ObjectName, after: After, now: Instant) {
        let ticket = self.next_ticket();
        let Some(line) = self.lines.get_mut(&done.namespace) else {
            return;
        };
        let Some(place) = line.places.get_mut(&done.name) else {
            return;
        };
        let State::UnderWay { changed, offered } = place.state else {
            return;
        };
        line.under_way -= 1;
        self.under_way -= 1;
        place.ticket = ticket;
        place.state = match after {
            After::Rest(longest) if !changed => {
                let idle_since = *place.idle_since.get_or_insert(now);
                let pause = now.duration_since(idle_since) / PART_OF_THE_TIME;
                State::Resting {
                    until: now + pause.max(SHORTEST_REST).min(longest),
                }
            }
            After::Rest(_) | After::InLine => State::Waiting,
        };
        if !offered {
            self.remove(done);
        }
    }

    /// Drops a piece of work, also one that is under way: it needs no turn any more.
    pub fn leave(&mut self, gone: &ObjectName) {
        let Some(line) = self.lines.get_mut(&gone.namespace) else {
            return;
        };
        if let Some(State::UnderWay { .. }) = line.places.get(&gone.name).map(|place| place.state) {
            line.under_way -= 1;
            self.under_way -= 1;
        }
        self.remove(gone);
    }

    /// How many pieces of work of a namespace wait for their turn.
    pub fn waiting(&self, namespace: &str, now: Instant) -> usize {
        let line = self.lines.get(namespace);
        line.map_or(0, |line| {
            line.places
                .values()
                .filter(|place| place.is_due(now))
                .count()
        })
    }

    /// The next moment after `now` at which a rest is over. What has rested already waits for a place.
    pub fn next_rested(&self, now: Instant) -> Option<Instant> {
        let all = self.lines.values().flat_map(|line| line.places.values());
        let until = |place: &Place| match place.state {
            State::Resting { until } => Some(until).filter(|until| *until > now),
            State::Waiting | State::UnderWay { .. } => None,
        };
        all.filter_map(until).min()
    }

    fn remove(&mut self, gone: &ObjectName) {
        let Some(line) = self.lines.get_mut(&gone.namespace) else {
            return;
        };
        line.places.remove(&gone.name);
        if line.places.is_empty() {
            self.lines.remove(&gone.namespace);
        }
    }

    fn next_ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn turns(at_once: usize, per_namespace: usize) -> Turns {
        Turns::new(Bounds {
            at_once,
            per_namespace,
        })
    }

    fn name(namespace: &str, n: usize) -> ObjectName {
        ObjectName::new(namespace, format!("{n:04}"))
    }

    fn many(namespace: &str, count: usize) -> Vec<(ObjectName, Offer)> {
        (0..count)
            .map(|n| (name(namespace, n), Offer::default()))
            .collect()
    }

    /// Serves until nothing is due, one at a time; returns what was served.
    fn served(turns: &mut Turns, now: Instant, after: After) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(next) = turns.next(now) {
            turns.ended(&next, after, now);
            all.push(next.to_string());
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn many_records_in_one_namespace_delay_others_by_one_turn() {
        for crowd in [10, 2_000] {
            let mut turns = turns(1, 1);
            turns.offer([many("crowd", crowd), many("a-victim", 1), many("victim", 2)].concat());
            let all = served(&mut turns, Instant::now(), After::Rest(MINUTE));
            assert_eq!(all.len(), crowd + 3);
            assert_eq!(
                all[..6],
                [
                    "a-victim/0000",
                    "crowd/0000",
                    "victim/0000",
                    "crowd/0001",
                    "victim/0001",
                    "crowd/0002"
                ]
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_namespace_takes_only_its_share_of_places() {
        let mut turns = turns(4, 2);
        turns.offer(many("crowd", 100));
        let now = Instant::now();
        let first = [turns.next(now), turns.next(now), turns.next(now)];
        assert_eq!(
            first,
            [Some(name("crowd", 0)), Some(name("crowd", 1)), None]
        );
        turns.offer([many("crowd", 100), many("victim", 3)].concat());
        let second = [turns.next(now), turns.next(now), turns.next(now)];
        assert_eq!(
            second,
            [Some(name("victim", 0)), Some(name("victim", 1)), None]
        );
        assert_eq!(turns.waiting("crowd", now), 98);
        turns.ended(&name("crowd", 1), After::Rest(MINUTE), now);
        assert_eq!(
            turns.next(now),
            Some(name("crowd", 2)),
            "its place is free again"
        );
        assert_eq!(turns.next(now), None);
        let rested = turns.next_rested(now).unwrap();
        assert_eq!(
            turns.next(rested),
            None,
            "all places of the namespace are taken"
        );
        assert_eq!(turns.next_rested(rested), None, "time frees none of them");
    }

    #[tokio::test(start_paused = true)]
    async fn turns_without_progress_pause_longer_each_time() {
        let mut turns = turns(1, 1);
        let start = Instant::now();
        let mut moments = Vec::new();
        while start.elapsed() < Duration::from_secs(1_200) {
            turns.offer(many("ns", 1));
            let now = Instant::now();
            if let Some(next) = turns.next(now) {
                moments.push(start.elapsed().as_millis());
                turns.ended(&next, After::Rest(MINUTE), now);
            }
            tokio::time::sleep_until(turns.next_rested(now).unwrap()).await;
        }
        assert_eq!(moments[..4], [0, 1_000, 2_000, 3_000]);
        let pauses: Vec<u128> = moments.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&60_000));
        assert!(moments.len() < 60, "{moments:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_ends_the_pause() {
        let mut turns = turns(1, 1);
        let of = |version| [(name("ns", 0), Offer { version, rank: 0 })];
        let now = Instant::now();
        turns.offer(of(1));
        assert_eq!(served(&mut turns, now, After::Rest(MINUTE)).len(), 1);
        turns.offer(of(1));
        assert_eq!(turns.next(now), None);
        turns.offer(of(2));
        assert_eq!(turns.next(now), Some(name("ns", 0)));
        // It changes while it is under way: what was done may be about its earlier state.
        turns.offer(of(3));
        assert_eq!(turns.next(now), None);
        turns.ended(&name("ns", 0), After::Rest(MINUTE), now);
        assert_eq!(turns.next(now), Some(name("ns", 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_no_longer_offered_is_forgotten() {
        let mut turns = turns(2, 2);
        let now = Instant::now();
        turns.offer(many("ns", 3));
        let first = turns.next(now).unwrap();
        turns.offer([]);
        assert_eq!((turns.next(now), turns.waiting("ns", now)), (None, 0));
        turns.ended(&first, After::InLine, now);
        assert_eq!(
            (turns.next(now), turns.lines.len(), turns.under_way),
            (None, 0, 0)
        );
        // What is dropped while it is under way frees its place at once.
        turns.offer(many("ns", 3));
        let both = [turns.next(now).unwrap(), turns.next(now).unwrap()];
        assert_eq!(turns.next(now), None);
        turns.leave(&both[0]);
        assert_eq!(turns.next(now), Some(name("ns", 2)));
        turns.ended(&both[0], After::InLine, now);
        assert_eq!(
            turns.under_way, 2,
            "it was dropped, so it is not taken back a second time"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_lower_rank_goes_first_and_the_rest_in_order() {
        let mut turns = turns(9, 9);
        let now = Instant::now();
        let all =
            [(0, 1), (1, 1), (2, 0)].map(|(n, rank)| (name("ns", n), Offer { version: 0, rank }));
        turns.offer(all);
        let order: Vec<ObjectName> = std::iter::from_fn(|| turns.next(now)).collect();
        assert_eq!(order, [name("ns", 2), name("ns", 0), name("ns", 1)]);
        turns.ended(&name("ns", 1), After::InLine, now);
        turns.ended(&name("ns", 0), After::InLine, now);
        assert_eq!(
            turns.next(now),
            Some(name("ns", 1)),
            "it has waited for longer"
        );
    }

    /// As many pieces of work go first as there are places, and each gets in line again as soon as its turn is over.
    #[tokio::test(start_paused = true)]
    async fn a_higher_rank_waits_for_a_bounded_number_of_turns() {
        let mut turns = turns(9, 2);
        let now = Instant::now();
        let all = (0..5).map(|n| {
            (
                name("ns", n),
                Offer {
                    version: 0,
                    rank: u8::from(n == 4),
                },
            )
        });
        turns.offer(all.collect::<Vec<_>>());
        let (mut running, mut served) = (std::collections::VecDeque::new(), 0);
        while !running.contains(&name("ns", 4)) {
            served += 1;
            assert!(served <= 16, "it waits for ever");
            if running.len() == 2 {
                let done = running.pop_front().expect("two of them");
                turns.ended(&done, After::InLine, now);
            }
            running.extend(turns.next(now));
        }
    }
}
