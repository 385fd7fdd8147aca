//! Proofs about the machine itself, from the cloud: *gone* and *off*.

use super::{
    FenceProof, Ground, Holds, NoProof, ProofKind, for_a_while, fresh, ground, held_by, missing,
    nothing_lives, the_volume,
};
use crate::cloud::{
    CloudInstance, CloudVolume, InstanceObservation, InstanceState, JobStatus, PowerChange,
    PowerFacts,
};
use crate::evidence::EvidenceAt;
use crate::fact::{Fact, Missing};
use crate::ids::InstanceId;
use jiff::{SignedDuration, Timestamp};

/// Minimum time between the two readings of an instance that is kept off. Linode's API shows a new job within seconds (recorded
/// answers of its events show `created` in the second of the request), and the run reads the cloud every 5 s.
const READINGS_APART: SignedDuration = SignedDuration::from_secs(10);

/// Makes the *gone* proof: the cloud reports the instance deleted or terminated, or does not find it with the very
/// credential that described it (or its volume) earlier in this recovery. Where a Node stands for the instance, that its volume
/// was described is not enough: a restricted Linode user has grants for single entities, so that one who may see the volume
/// need not find the instance (<https://techdocs.akamai.com/linode-api/reference/get-profile-grants>).
///
/// # Errors
/// One [`NoProof`]: the first missing piece, in the order volume, living nodes, instance, sighting.
pub fn gone(
    evidence: EvidenceAt<'_>,
    holder: &InstanceId,
    before: Option<&InstanceObservation>,
) -> Result<FenceProof, NoProof> {
    let Basis {
        volume,
        mut grounds,
        fact,
        instance,
    } = basis(evidence, holder)?;
    let last_seen = match instance {
        Some(instance) if instance.state == InstanceState::Gone => None,
        Some(instance) => return Err(running(holder, "gone", &instance.state)),
        None => {
            let has_a_node = evidence.nodes().any(|(_, read)| match read {
                Ok(node) => node.instance.as_ref() == Some(holder),
                Err(Missing::Absent) => false,
                Err(_) => true,
            });
            let seen = before.filter(|s| {
                s.instance == *holder
                    && (s.state.is_some() || !has_a_node)
                    && s.at < fact.at
                    && Some(&s.scope) == evidence.cloud_scope.as_ref()
            });
            Some(
                seen.ok_or_else(|| NoProof::NeverSeen {
                    holder: holder.clone(),
                })?
                .at,
            )
        }
    };
    grounds.push(ground(
        fact,
        format!("instance {holder} does not exist any more"),
    ));
    Ok(FenceProof::new(
        volume,
        holder,
        ProofKind::Gone { last_seen },
        grounds,
        Holds::ForGood,
        evidence.now,
    ))
}

/// Makes the *off* proof: the instance reads off, read off before in this recovery, and stays so: by a shutdown job that
/// finished before both readings with nothing after it that boots, or because this cloud never boots one by itself.
///
/// # Errors
/// One [`NoProof`]: the first missing piece, in the order volume, living nodes, state, history, first reading.
pub fn off(
    evidence: EvidenceAt<'_>,
    holder: &InstanceId,
    before: Option<&InstanceObservation>,
) -> Result<FenceProof, NoProof> {
    let Basis {
        volume,
        mut grounds,
        fact,
        instance,
    } = basis(evidence, holder)?;
    match instance {
        Some(instance) if instance.state == InstanceState::Off => {}
        Some(instance) => return Err(running(holder, "off", &instance.state)),
        None => return Err(missing(said_of(holder), "the cloud does not find it")),
    }
    let history = format!("the history of instance {holder}'s power");
    let power = evidence
        .power
        .get(holder)
        .ok_or_else(|| missing(history.clone(), "it was not read"))?;
    let facts = fresh(evidence.power(holder), &history)?;
    let facts = facts.ok_or_else(|| missing(history, "the cloud has none"))?;
    let job = stays_off(facts).map_err(|why| NoProof::NoShutdown {
        holder: holder.clone(),
        why,
    })?;
    let since = job.as_ref().map(|(_, finished)| *finished);
    let first = before.filter(|s| {
        s.instance == *holder
            && s.state == Some(InstanceState::Off)
            && s.at < fact.at
            && since.is_none_or(|finished| s.at >= finished)
            && Some(&s.scope) == evidence.cloud_scope.as_ref()
    });
    let first = first.ok_or_else(|| NoProof::SeenOnce {
        holder: holder.clone(),
    })?;
    grounds.push(ground(fact, format!("instance {holder} is off")));
    grounds.push(ground(power, "a shutdown finished and nothing boots it"));
    let kind = ProofKind::Off {
        job: job.map(|(id, _)| id),
        first_seen: first.at,
    };
    Ok(FenceProof::new(
        volume,
        holder,
        kind,
        grounds,
        for_a_while(evidence.now),
        evidence.now,
    ))
}

/// Makes the *kept off* proof: the instance lost its power without a shutdown job, its automatic restart was switched off, and
/// after that it reads off twice with nothing in its history that boots. The first reading names the newest job of the history,
/// so that a boot after it is known by its place and by no clock.
///
/// The caller makes sure that this run settled the automatic restart under the node's lock, so that nobody of ours switches it
/// on meanwhile.
///
/// # Errors
/// One [`NoProof`]: the first missing piece, in the order volume, living nodes, state, restart, first reading, history.
pub fn kept_off(
    evidence: EvidenceAt<'_>,
    holder: &InstanceId,
    before: &InstanceObservation,
    term: u64,
) -> Result<FenceProof, NoProof> {
    let Basis {
        volume,
        mut grounds,
        fact,
        instance,
    } = basis(evidence, holder)?;
    let instance =
        instance.ok_or_else(|| missing(said_of(holder), "the cloud does not find it"))?;
    if instance.state != InstanceState::Off {
        return Err(running(holder, "off", &instance.state));
    }
    let may_boot = |why: String| NoProof::MayBoot {
        holder: holder.clone(),
        why,
    };
    if instance.auto_restart {
        return Err(may_boot("its automatic restart is on".to_owned()));
    }
    let seen_once = || NoProof::SeenOnce {
        holder: holder.clone(),
    };
    let first = before.kept_off.as_ref().filter(|k| {
        before.instance == *holder
            && before.state == Some(InstanceState::Off)
            && k.term == term
            && Some(&before.scope) == evidence.cloud_scope.as_ref()
            && fact.at.duration_since(before.at) >= READINGS_APART
    });
    let first = first.ok_or_else(seen_once)?;
    let history = format!("the history of instance {holder}'s power");
    let power = evidence
        .power
        .get(holder)
        .ok_or_else(|| missing(history.clone(), "it was not read"))?;
    let facts = fresh(evidence.power(holder), &history)?
        .ok_or_else(|| missing(history, "the cloud has none"))?;
    if power.at <= before.at {
        return Err(seen_once());
    }
    let later = match &first.newest_job {
        None => &facts.jobs[..],
        // A history that shows the job no more may have lost later ones, too: all that it shows counts as later.
        Some(id) => match facts.jobs.iter().position(|j| j.id == *id) {
            Some(at) => facts.jobs.get(at + 1..).unwrap_or_default(),
            None => &facts.jobs[..],
        },
    };
    let boots = |j: &&crate::cloud::PowerJob| j.change == PowerChange::On;
    let pending = facts.jobs.iter().filter(|j| j.is_pending()).find(boots);
    if let Some(job) = pending.or_else(|| later.iter().find(boots)) {
        return Err(may_boot(format!("job {} boots or booted it", job.id)));
    }
    grounds.push(ground(
        fact,
        format!("instance {holder} is off, and so is its automatic restart"),
    ));
    grounds.push(ground(power, "no job boots it"));
    Ok(FenceProof::new(
        volume,
        holder,
        ProofKind::KeptOff {
            first_seen: before.at,
            newest_job: first.newest_job.clone(),
        },
        grounds,
        for_a_while(evidence.now),
        evidence.now,
    ))
}

/// What all rest on: the volume with this holder alone, no living node of it, and the cloud's word on the instance.
struct Basis<'a> {
    volume: &'a CloudVolume,
    grounds: Vec<Ground>,
    fact: &'a Fact<CloudInstance>,
    instance: Option<&'a CloudInstance>,
}

fn basis<'a>(evidence: EvidenceAt<'a>, holder: &InstanceId) -> Result<Basis<'a>, NoProof> {
    let volume = the_volume(evidence, holder)?;
    let mut grounds = nothing_lives(evidence, holder)?;
    grounds.push(held_by(evidence, holder));
    let fact = evidence
        .all()
        .instances
        .get(holder)
        .ok_or_else(|| missing(said_of(holder), "it was not read"))?;
    let instance = fresh(evidence.instance(holder), &said_of(holder))?;
    Ok(Basis {
        volume,
        grounds,
        fact,
        instance,
    })
}

/// Whether the cloud does not boot an instance that is off: a shutdown job keeps it off, or this cloud never boots one by itself.
pub(crate) fn is_off_for_good(facts: &PowerFacts) -> bool {
    stays_off(facts).is_ok()
}

/// The shutdown job that keeps the instance off, with the time of its end; `None` where none is needed.
fn stays_off(facts: &PowerFacts) -> Result<Option<(String, Timestamp)>, String> {
    if let Some(on) = facts
        .jobs
        .iter()
        .find(|j| j.change == PowerChange::On && j.is_pending())
    {
        return Err(format!("job {} boots it", on.id));
    }
    if facts.off_stays_off {
        return Ok(None);
    }
    let shutdown = facts
        .jobs
        .iter()
        .filter(|j| j.change == PowerChange::Off)
        .max_by_key(|j| j.created);
    let Some(shutdown) = shutdown else {
        return Err("no shutdown job is in the history".to_owned());
    };
    let (JobStatus::Finished, Some(finished)) = (&shutdown.status, shutdown.finished) else {
        return Err(format!("shutdown job {} has not finished", shutdown.id));
    };
    if shutdown.by.is_none() {
        return Err(format!(
            "the provider names no user for shutdown job {}",
            shutdown.id
        ));
    }
    let later =
        |j: &&crate::cloud::PowerJob| j.change == PowerChange::On && j.created >= shutdown.created;
    match facts.jobs.iter().find(later) {
        Some(on) => Err(format!(
            "job {} booted it after shutdown job {}",
            on.id, shutdown.id
        )),
        None => Ok(Some((shutdown.id.clone(), finished))),
    }
}

fn said_of(holder: &InstanceId) -> String {
    format!("what the cloud says of instance {holder}")
}

fn running(holder: &InstanceId, needed: &str, state: &InstanceState) -> NoProof {
    NoProof::Power {
        holder: holder.clone(),
        needed: needed.to_owned(),
        found: format!("{state:?}"),
    }
}
