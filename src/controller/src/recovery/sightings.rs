//! What a recovery saw of instances: "not found" and "off" mean something only after it was seen there before.

use reattach_api::VolumeRecovery;
use reattach_core::cloud::{InstanceObservation, InstanceState, JobStatus, KeptOff, PowerChange};
use reattach_core::evidence::Evidence;
use reattach_core::ids::InstanceId;
use reattach_core::plain;
use std::collections::BTreeSet;

/// How many are kept: what the schema of `status.sightings` allows.
const KEPT: usize = 32;

/// Writes down what the evidence shows of instances and was not seen so before. Returns whether it wrote anything.
///
/// A sighting is as old as the request that brought it, so that the same answer never counts twice.
pub(super) fn note(recovery: &mut VolumeRecovery, evidence: &Evidence, term: u64) -> bool {
    let Some(scope) = &evidence.cloud_scope else {
        return false;
    };
    let holders = evidence
        .cloud_volume
        .shown()
        .map(|v| v.holders.as_slice())
        .unwrap_or_default();
    let known: BTreeSet<&InstanceId> = evidence.instances.keys().chain(holders).collect();
    let seen = known.into_iter().filter_map(|instance| {
        let fact = evidence.instances.get(instance);
        let described = fact.and_then(|f| Some((Some(f.shown()?.state.clone()), f.at)));
        // Not described itself; then at least as the holder of its volume.
        let as_holder = || {
            holders
                .contains(instance)
                .then_some((None, evidence.cloud_volume.at))
        };
        let (state, at) = described.or_else(as_holder)?;
        let seen = InstanceObservation {
            instance: instance.clone(),
            scope: scope.clone(),
            state,
            kept_off: kept_off(evidence, instance, term),
            at,
        };
        // As it is stored: a word of the cloud that would be stored otherwise must not be news each time.
        Some(plain::made_plain(&seen, plain::TEXT_CHARS))
    });
    let status = recovery.status.get_or_insert_default();
    let mut wrote = false;
    for new in seen {
        let last = status
            .sightings
            .iter()
            .rev()
            .filter_map(|s| s.get().ok())
            .find(|s| s.instance == new.instance);
        let news = last.is_none_or(|last| {
            last.at < new.at
                && (last.state != new.state
                    || last.scope != new.scope
                    || last.kept_off != new.kept_off
                    || is_of_before(last, &new, evidence))
        });
        if news {
            status.sightings.push(new.into());
            wrote = true;
        }
    }
    let too_many = status.sightings.len().saturating_sub(KEPT);
    status.sightings.drain(..too_many);
    wrote
}

/// What a reading of an instance that is off with its automatic restart off was made with. None: it was not off, the cloud might
/// have booted it, or off is final at this cloud.
fn kept_off(evidence: &Evidence, instance: &InstanceId, term: u64) -> Option<KeptOff> {
    let shown = evidence.instances.get(instance)?.shown()?;
    let facts = evidence.power.get(instance)?.shown()?;
    let off = shown.state == InstanceState::Off && !shown.auto_restart && !facts.off_stays_off;
    off.then(|| KeptOff {
        term,
        newest_job: facts.jobs.last().map(|j| j.id.clone()),
    })
}

/// Off both times, and a shutdown job ended in between: only a reading from after it counts as the first of two.
fn is_of_before(
    last: &InstanceObservation,
    new: &InstanceObservation,
    evidence: &Evidence,
) -> bool {
    if new.state != Some(InstanceState::Off) {
        return false;
    }
    let facts = evidence.power.get(&new.instance).and_then(|f| f.shown());
    let off = facts
        .into_iter()
        .flat_map(|f| &f.jobs)
        .filter(|j| j.change == PowerChange::Off);
    let finished = off
        .filter(|j| j.status == JobStatus::Finished)
        .filter_map(|j| j.finished)
        .max();
    finished.is_some_and(|finished| last.at < finished && finished <= new.at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::{SignedDuration, Timestamp};
    use reattach_api::VolumeRecoverySpec;
    use reattach_core::cloud::{CloudInstance, CloudScope, PowerFacts, PowerJob};
    use reattach_core::fact::{Fact, Source};
    use reattach_core::testkit::{Case, INSTANCE, start};

    fn recovery() -> VolumeRecovery {
        let spec = serde_json::json!({"claimName": "data", "runbook": "lightest-first", "requester": "jane"});
        VolumeRecovery::new(
            "r",
            serde_json::from_value::<VolumeRecoverySpec>(spec).unwrap(),
        )
    }

    fn at(seconds: i64) -> Timestamp {
        start() + SignedDuration::from_secs(seconds)
    }

    /// The cloud's words, read at this second.
    fn evidence(seconds: i64, state: Option<InstanceState>) -> Evidence {
        let mut evidence = Case::deployment().evidence;
        let source = || Source::Cloud("test".to_owned());
        evidence.cloud_scope = Some(CloudScope("account".to_owned()));
        evidence.cloud_volume.at = at(seconds);
        evidence.instances.clear();
        let fact = match state {
            Some(state) => {
                let id = InstanceId::from(INSTANCE);
                let instance = CloudInstance {
                    id,
                    label: "n".to_owned(),
                    state,
                    auto_restart: true,
                    owner: Default::default(),
                };
                Fact::present(instance, source(), at(seconds))
            }
            None => Fact::absent(source(), at(seconds)),
        };
        evidence.instances.insert(InstanceId::from(INSTANCE), fact);
        evidence
    }

    fn shut_down(evidence: &mut Evidence, finished: i64) {
        let job = PowerJob {
            id: "1".to_owned(),
            change: PowerChange::Off,
            status: JobStatus::Finished,
            by: Some("jane".to_owned()),
            created: at(finished - 10),
            finished: Some(at(finished)),
        };
        let facts = PowerFacts {
            jobs: vec![job],
            off_stays_off: false,
        };
        let fact = Fact::present(facts, Source::Cloud("test".to_owned()), at(finished));
        evidence.power.insert(InstanceId::from(INSTANCE), fact);
    }

    fn seen(recovery: &VolumeRecovery) -> Vec<(Option<InstanceState>, i64)> {
        let all = &recovery.status.as_ref().unwrap().sightings;
        let one =
            |s: &InstanceObservation| (s.state.clone(), s.at.duration_since(start()).as_secs());
        all.iter().map(|s| one(s.get().unwrap())).collect()
    }

    #[test]
    fn a_changed_sighting_is_written_once() {
        let mut r = recovery();
        assert!(note(&mut r, &evidence(0, Some(InstanceState::Running)), 1));
        assert!(!note(&mut r, &evidence(5, Some(InstanceState::Running)), 1));
        assert!(note(&mut r, &evidence(10, Some(InstanceState::Off)), 1));
        assert!(
            !note(&mut r, &evidence(10, Some(InstanceState::Running)), 1),
            "an answer of the same age"
        );
        assert_eq!(
            seen(&r),
            [
                (Some(InstanceState::Running), 0),
                (Some(InstanceState::Off), 10)
            ]
        );
    }

    #[test]
    fn an_instance_that_is_not_found_was_seen_as_the_holder() {
        let mut r = recovery();
        assert!(note(&mut r, &evidence(0, None), 1));
        assert!(!note(&mut r, &evidence(5, None), 1));
        assert_eq!(seen(&r), [(None, 0)]);
        let mut unheld = evidence(10, None);
        unheld.cloud_volume = Case::deployment()
            .cloud(|c| c.holders.clear())
            .evidence
            .cloud_volume;
        let mut r = recovery();
        assert!(!note(&mut r, &unheld, 1), "nobody has shown it");
    }

    #[test]
    fn without_a_scope_nothing_was_seen() {
        let mut nobody = evidence(0, Some(InstanceState::Off));
        nobody.cloud_scope = None;
        assert!(!note(&mut recovery(), &nobody, 1));
        let mut r = recovery();
        assert!(note(&mut r, &evidence(0, Some(InstanceState::Off)), 1));
        let mut other = evidence(5, Some(InstanceState::Off));
        other.cloud_scope = Some(CloudScope("another".to_owned()));
        assert!(
            note(&mut r, &other, 1),
            "another account's word is another sighting"
        );
    }

    #[test]
    fn off_is_observed_again_after_the_shutdown_ended() {
        let mut r = recovery();
        assert!(note(&mut r, &evidence(0, Some(InstanceState::Off)), 1));
        let mut later = evidence(19, Some(InstanceState::Off));
        shut_down(&mut later, 20);
        assert!(
            !note(&mut r, &later, 1),
            "this reading is from before the end, too"
        );
        let mut later = evidence(25, Some(InstanceState::Off));
        shut_down(&mut later, 20);
        assert!(note(&mut r, &later, 1));
        let mut later = evidence(30, Some(InstanceState::Off));
        shut_down(&mut later, 20);
        assert!(!note(&mut r, &later, 1));
        assert_eq!(
            seen(&r),
            [
                (Some(InstanceState::Off), 0),
                (Some(InstanceState::Off), 25)
            ]
        );
    }

    #[test]
    fn a_reading_with_the_restart_off_is_news_in_each_term() {
        let mut r = recovery();
        let kept = |seconds| {
            let mut evidence = evidence(seconds, Some(InstanceState::Off));
            let id = InstanceId::from(INSTANCE);
            let source = || Source::Cloud("test".to_owned());
            let facts = PowerFacts {
                jobs: Vec::new(),
                off_stays_off: false,
            };
            let fact = Fact::present(facts, source(), at(seconds));
            evidence.power.insert(id.clone(), fact);
            let mut instance = evidence.instances[&id].shown().unwrap().clone();
            instance.auto_restart = false;
            evidence
                .instances
                .insert(id, Fact::present(instance, source(), at(seconds)));
            evidence
        };
        assert!(note(&mut r, &evidence(0, Some(InstanceState::Off)), 1));
        assert!(note(&mut r, &kept(5), 1), "the restart is off now");
        assert!(!note(&mut r, &kept(10), 1));
        assert!(note(&mut r, &kept(15), 2), "another leader's clock");
        let all = &r.status.as_ref().unwrap().sightings;
        let terms: Vec<_> = all
            .iter()
            .map(|s| s.get().unwrap().kept_off.as_ref().map(|k| k.term))
            .collect();
        assert_eq!(terms, [None, Some(1), Some(2)]);
    }

    #[test]
    fn the_oldest_sighting_is_dropped() {
        let mut r = recovery();
        let states = [InstanceState::Running, InstanceState::Stopping];
        for i in 0..40 {
            assert!(note(
                &mut r,
                &evidence(i, Some(states[usize::try_from(i % 2).unwrap()].clone())),
                1
            ));
        }
        assert_eq!(seen(&r).len(), KEPT);
        assert_eq!(seen(&r)[0].1, 8);
    }
}
