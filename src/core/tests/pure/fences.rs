//! The proofs about the machine and the boot: what makes each, and what every missing, stale, unknown or contradicting
//! piece of evidence makes of it.

use crate::properties::{cases, runner};
use jiff::SignedDuration;
use proptest::prelude::*;
use reattach_core::cloud::{
    CloudScope, CloudVolume, DeviceIdentity, InstanceObservation, InstanceState, JobStatus,
    PowerChange, PowerFacts, PowerJob,
};
use reattach_core::evidence::{Declaration, NodeFacts};
use reattach_core::fact::{Fact, Known, Source};
use reattach_core::guest::{
    Answer, DeviceUsers, GuestCsiVolume, GuestDevice, GuestInventory, GuestMount, Level, ScanResult,
};
use reattach_core::ids::InstanceId;
use reattach_core::proof::{
    Before, FenceProof, NoProof, ProofKind, declared, gone, of_the_machine, off, rebooted_and_clean,
};
use reattach_core::stamp::Stamp;
use reattach_core::testkit::{Case, INSTANCE, NODE, OTHER_INSTANCE, device, start};
use reattach_core::workload::WorkloadFacts;

/// Everything that a proof of any of the four kinds is made from.
#[derive(Clone, Debug)]
struct Fixture {
    case: Case,
    before: Option<InstanceObservation>,
    boot: Before,
    declaration: Declaration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gone,
    NotFound,
    Off,
    Rebooted,
    Declared,
}

const KINDS: [Kind; 5] = [
    Kind::Gone,
    Kind::NotFound,
    Kind::Off,
    Kind::Rebooted,
    Kind::Declared,
];

fn ago(seconds: i64) -> jiff::Timestamp {
    start() - SignedDuration::from_secs(seconds)
}

fn cloud() -> Source {
    Source::Cloud("linode".to_owned())
}

fn shutdown() -> PowerJob {
    PowerJob {
        id: "j1".into(),
        change: PowerChange::Off,
        status: JobStatus::Finished,
        by: Some("an operator".into()),
        created: ago(60),
        finished: Some(ago(40)),
    }
}

/// The fixture in which this kind of proof can be made.
fn fixture(kind: Kind) -> Fixture {
    let dead = |case: Case| case.pods(Vec::clear).node(|n| n.ready = false);
    let mut case = match kind {
        Kind::Rebooted => Case::deployment().pods(Vec::clear).workload(|w| {
            w.replicas = 0;
            w.stamp = Some(Ok(Stamp {
                replicas: 1,
                workload: w.workload.uid.clone(),
                recovery: Case::recovery(),
                at: ago(30),
            }));
        }),
        _ => dead(Case::deployment()),
    };
    case.evidence.cloud_scope = Some(CloudScope("a".into()));
    let e = &mut case.evidence;
    let fact = e.instances.get_mut(&InstanceId::from(INSTANCE)).unwrap();
    match (kind, &mut fact.value) {
        (Kind::Gone, Known::Present(i)) => i.state = InstanceState::Gone,
        (Kind::Off, Known::Present(i)) => i.state = InstanceState::Off,
        (Kind::NotFound, value) => *value = Known::Absent,
        _ => {}
    }
    let power = PowerFacts {
        jobs: vec![shutdown()],
        off_stays_off: false,
    };
    e.power
        .insert(INSTANCE.into(), Fact::present(power, cloud(), start()));
    let state = Some(if kind == Kind::Off {
        InstanceState::Off
    } else {
        InstanceState::Running
    });
    let before = InstanceObservation {
        instance: INSTANCE.into(),
        scope: CloudScope("a".into()),
        state,
        kept_off: None,
        at: ago(20),
    };
    Fixture {
        case,
        before: Some(before),
        boot: Before {
            boot: Some("an earlier boot".into()),
            asked_at: Some(ago(5)),
        },
        declaration: Declaration {
            holder: INSTANCE.into(),
            by: "oncall@example.com".into(),
            reason: "the machine is unplugged".into(),
            at: ago(30),
            of_this_cluster: false,
            cluster_wide: true,
        },
    }
}

fn prove(kind: Kind, s: &Fixture) -> Result<FenceProof, NoProof> {
    let (e, holder, now) = (&s.case.evidence, &INSTANCE.into(), s.case.now);
    match kind {
        Kind::Gone | Kind::NotFound => gone(e.at(now), holder, s.before.as_ref()),
        Kind::Off => off(e.at(now), holder, s.before.as_ref()),
        Kind::Rebooted => {
            rebooted_and_clean(e.at(now), &NODE.into(), holder, &s.boot, &Case::recovery())
        }
        Kind::Declared => declared(e.at(now), holder, &s.declaration),
    }
}

#[test]
fn each_proof_is_made_from_its_own_evidence_only() {
    for of in KINDS {
        for at in KINDS {
            let made = prove(of, &fixture(at));
            // A human may declare what the cloud could prove too; "gone" and "not found" are two ways to one proof.
            let fits = of == at
                || of == Kind::Declared && at != Kind::Rebooted
                || matches!(
                    (of, at),
                    (Kind::Gone, Kind::NotFound) | (Kind::NotFound, Kind::Gone)
                );
            assert_eq!(
                made.is_ok(),
                fits,
                "{of:?} in the fixture of {at:?}: {made:?}"
            );
        }
        let proof = prove(of, &fixture(of)).unwrap();
        assert_eq!(
            (proof.volume().as_str(), proof.holder()),
            ("5551", &INSTANCE.into())
        );
        assert!(
            !proof.rests_on().is_empty() && proof.age(start()) <= SignedDuration::from_secs(30)
        );
        assert_eq!(
            proof.shows_off_or_gone(),
            matches!(of, Kind::Gone | Kind::NotFound | Kind::Off)
        );
        assert_eq!(proof.fences_the_node(), of != Kind::Rebooted, "{of:?}");
    }
}

/// Grants are per entity: who may see the volume need not find the instance, and its Node may be cut off and write.
#[test]
fn not_found_needs_an_earlier_read_of_the_instance() {
    let mut fixture = fixture(Kind::NotFound);
    before(&mut fixture, |s| s.state = None);
    let never = NoProof::NeverSeen {
        holder: INSTANCE.into(),
    };
    assert_eq!(prove(Kind::NotFound, &fixture), Err(never));
    fixture.case.evidence.nodes.clear();
    assert!(
        prove(Kind::NotFound, &fixture).is_ok(),
        "no Node stands for it"
    );
}

#[test]
fn a_declaration_with_a_namespace_right_fences_no_node() {
    let mut fixture = fixture(Kind::Declared);
    fixture.declaration.cluster_wide = false;
    let proof = prove(Kind::Declared, &fixture).unwrap();
    assert!(!proof.fences_the_node() && !proof.shows_off_or_gone());
}

#[test]
fn proofs_expire_except_gone() {
    for kind in KINDS {
        let proof = prove(kind, &fixture(kind)).unwrap();
        assert!(!proof.holds_at(ago(1)), "{kind:?}: not before it was made");
        assert!(proof.holds_at(start()), "{kind:?}");
        let later = start() + SignedDuration::from_hours(1);
        let for_good = matches!(proof.kind(), ProofKind::Gone { .. });
        assert_eq!(proof.holds_at(later), for_good, "{kind:?}: an hour later");
    }
}

/// A declaration counts for an hour, and an answer is compared with the machine's last sign of life, to the second.
#[test]
fn facts_at_the_age_limit_count() {
    let mut word = fixture(Kind::Declared);
    word.declaration.at = ago(3600);
    assert!(prove(Kind::Declared, &word).is_ok());
    word.declaration.at = ago(3601);
    assert!(prove(Kind::Declared, &word).is_err());
    let mut looked = fixture(Kind::Rebooted);
    for (seconds, counts) in [(120, true), (121, false)] {
        node(&mut looked, |n| n.lease_renewed = Some(ago(4)));
        answer(&mut looked, |a| a.scanned_at = ago(4 + seconds));
        assert_eq!(
            prove(Kind::Rebooted, &looked).is_ok(),
            counts,
            "{seconds} s"
        );
    }
}

/// Without a proof about the machine, the refusal is about what the cloud says: it does not know the instance, or its power.
#[test]
fn a_machine_without_a_proof_is_refused_for_what_the_cloud_says() {
    let refused = |kind, change: fn(&mut Fixture)| {
        let mut s = fixture(kind);
        s.case.evidence.sightings.clear();
        change(&mut s);
        of_the_machine(s.case.evidence.at(s.case.now), &INSTANCE.into()).unwrap_err()
    };
    assert!(matches!(
        refused(Kind::NotFound, |_| {}),
        NoProof::NeverSeen { .. }
    ));
    assert!(matches!(
        refused(Kind::Off, |_| {}),
        NoProof::SeenOnce { .. }
    ));
    let runs = refused(Kind::Off, |s| power(s, InstanceState::Running));
    assert!(
        matches!(&runs, NoProof::Power { needed, .. } if needed == "off"),
        "{runs:?}"
    );
}

/// The journal says what the agent answered: that there is no such device, or that nothing uses it.
#[test]
fn the_proofs_text_quotes_the_agents_answer() {
    for (seen, says) in [
        (ScanResult::NoDevice, "no such device"),
        (ScanResult::Clean, "nothing uses the device"),
    ] {
        let mut s = fixture(Kind::Rebooted);
        answer(&mut s, |a| (a.seen, a.level) = (seen.clone(), Level::Full));
        let proof = prove(Kind::Rebooted, &s).unwrap();
        assert!(
            proof.rests_on().iter().any(|g| g.says.ends_with(says)),
            "{:?}",
            proof.rests_on()
        );
    }
}

type Change = (
    &'static str,
    &'static [Kind],
    fn(&mut Fixture),
    &'static str,
);

/// Changes a fact where it is there: another spoil may have taken it away.
fn each<T>(fact: Option<&mut Fact<T>>, change: impl FnOnce(&mut T)) {
    if let Some(Known::Present(value)) = fact.map(|f| &mut f.value) {
        change(value);
    }
}

fn jobs(s: &mut Fixture, change: impl FnOnce(&mut PowerFacts)) {
    each(
        s.case.evidence.power.get_mut(&InstanceId::from(INSTANCE)),
        change,
    );
}

fn job(s: &mut Fixture, change: impl FnOnce(&mut PowerJob)) {
    jobs(s, |p| p.jobs.first_mut().map(change).unwrap_or_default());
}

fn volume(s: &mut Fixture, change: impl FnOnce(&mut CloudVolume)) {
    each(Some(&mut s.case.evidence.cloud_volume), change);
}

fn node(s: &mut Fixture, change: impl FnOnce(&mut NodeFacts)) {
    each(s.case.evidence.nodes.get_mut(&NODE.into()), change);
}

fn workload(s: &mut Fixture, change: impl FnOnce(&mut WorkloadFacts)) {
    each(Some(&mut s.case.evidence.workload), change);
}

fn before(s: &mut Fixture, change: impl FnOnce(&mut InstanceObservation)) {
    s.before.as_mut().map(change).unwrap_or_default();
}

fn answer(s: &mut Fixture, change: impl FnOnce(&mut Answer)) {
    s.case
        .evidence
        .answers
        .get_mut(&NODE.into())
        .map(change)
        .unwrap_or_default();
}

fn guest(s: &mut Fixture, change: impl FnOnce(&mut GuestInventory)) {
    each(s.case.evidence.guests.get_mut(&NODE.into()), change);
}

fn in_use() -> GuestDevice {
    let users = DeviceUsers {
        openers: vec!["771 cryptsetup".into()],
        ..DeviceUsers::default()
    };
    GuestDevice { users, ..device() }
}

/// A device of the volume's size with a name that nothing on the node explains.
fn stranger() -> GuestDevice {
    GuestDevice {
        identity: DeviceIdentity {
            serial: "an-earlier-name".into(),
        },
        ..device()
    }
}

/// The cloud calls the volume otherwise now, and the agent was asked for that name.
fn renamed(s: &mut Fixture) {
    volume(s, |v| v.identity.serial = "pvc-renamed".into());
    answer(s, |a| a.identity.serial = "pvc-renamed".into());
    guest(s, |g| {
        g.devices = vec![GuestDevice {
            size_bytes: 1,
            ..device()
        }]
    });
}

fn a_pod(s: &mut Fixture) {
    let pod = Case::deployment().evidence.pods.shown().unwrap()[0].clone();
    each(Some(&mut s.case.evidence.pods), |pods| pods.push(pod));
}

fn stale<T>(fact: &mut Fact<T>) {
    fact.at = ago(31);
}

fn unknown<T>(fact: &mut Fact<T>) {
    fact.value = Known::Unknown {
        why: "the line is cut".into(),
    };
}

const ALL: &[Kind] = &KINDS;
const DEAD: &[Kind] = &[Kind::Gone, Kind::NotFound, Kind::Off, Kind::Declared];
const CLOUD: &[Kind] = &[Kind::Gone, Kind::NotFound, Kind::Off];
const OFF: &[Kind] = &[Kind::Off];
const BOOT: &[Kind] = &[Kind::Rebooted];
const WORD: &[Kind] = &[Kind::Declared];

/// What is done to the fixture, to whose proof it matters, and a word of the refusal that must name it.
const SPOILS: &[Change] = &[
    (
        "volume stale",
        ALL,
        |s| stale(&mut s.case.evidence.cloud_volume),
        "the cloud volume",
    ),
    (
        "volume unknown",
        ALL,
        |s| unknown(&mut s.case.evidence.cloud_volume),
        "the cloud volume",
    ),
    (
        "volume absent",
        ALL,
        |s| s.case.evidence.cloud_volume.value = Known::Absent,
        "the cloud volume",
    ),
    (
        "two holders",
        ALL,
        |s| volume(s, |v| v.holders.push(OTHER_INSTANCE.into())),
        "holder",
    ),
    (
        "other holder",
        ALL,
        |s| volume(s, |v| v.holders = vec![OTHER_INSTANCE.into()]),
        "holder",
    ),
    (
        "no holder",
        ALL,
        |s| volume(s, |v| v.holders.clear()),
        "no instance",
    ),
    (
        "node stale",
        ALL,
        |s| s.case.evidence.nodes.values_mut().for_each(stale),
        "Node",
    ),
    (
        "node unknown",
        ALL,
        |s| s.case.evidence.nodes.values_mut().for_each(unknown),
        "Node",
    ),
    (
        "node Ready",
        DEAD,
        |s| node(s, |n| n.ready = true),
        "is Ready",
    ),
    (
        "instance stale",
        CLOUD,
        |s| s.case.evidence.instances.values_mut().for_each(stale),
        "instance",
    ),
    (
        "instance unknown",
        CLOUD,
        |s| s.case.evidence.instances.values_mut().for_each(unknown),
        "instance",
    ),
    (
        "instance not read",
        CLOUD,
        |s| s.case.evidence.instances.clear(),
        "not read",
    ),
    (
        "instance runs",
        CLOUD,
        |s| power(s, InstanceState::Running),
        "Running",
    ),
    (
        "instance stops",
        CLOUD,
        |s| power(s, InstanceState::Stopping),
        "Stopping",
    ),
    (
        "instance boots",
        CLOUD,
        |s| power(s, InstanceState::Transitional("booting".into())),
        "booting",
    ),
    (
        "a new word",
        CLOUD,
        |s| power(s, InstanceState::Unknown("x".into())),
        "Unknown",
    ),
    (
        "never seen",
        &[Kind::NotFound],
        |s| s.before = None,
        "was seen there before",
    ),
    (
        "seen with another credential",
        &[Kind::NotFound, Kind::Off],
        |s| s.case.evidence.cloud_scope = Some(CloudScope("b".into())),
        "seen",
    ),
    (
        "credential not known",
        &[Kind::NotFound, Kind::Off],
        |s| s.case.evidence.cloud_scope = None,
        "seen",
    ),
    (
        "another was seen",
        &[Kind::NotFound, Kind::Off],
        |s| before(s, |b| b.instance = OTHER_INSTANCE.into()),
        "seen",
    ),
    (
        "seen only now",
        &[Kind::NotFound, Kind::Off],
        |s| before(s, |b| b.at = start()),
        "seen",
    ),
    ("off seen once", OFF, |s| s.before = None, "only once"),
    (
        "seen running before",
        OFF,
        |s| before(s, |b| b.state = Some(InstanceState::Running)),
        "only once",
    ),
    (
        "seen off before its shutdown",
        OFF,
        |s| before(s, |b| b.at = ago(50)),
        "only once",
    ),
    (
        "no history",
        OFF,
        |s| s.case.evidence.power.clear(),
        "history",
    ),
    (
        "history stale",
        OFF,
        |s| s.case.evidence.power.values_mut().for_each(stale),
        "history",
    ),
    (
        "history unknown",
        OFF,
        |s| s.case.evidence.power.values_mut().for_each(unknown),
        "history",
    ),
    (
        "history absent",
        OFF,
        |s| {
            s.case
                .evidence
                .power
                .values_mut()
                .for_each(|f| f.value = Known::Absent)
        },
        "history",
    ),
    (
        "no shutdown job",
        OFF,
        |s| jobs(s, |p| p.jobs.clear()),
        "no shutdown job",
    ),
    (
        "shutdown failed",
        OFF,
        |s| job(s, |j| j.status = JobStatus::Failed),
        "has not finished",
    ),
    (
        "shutdown runs",
        OFF,
        |s| job(s, |j| j.status = JobStatus::Started),
        "has not finished",
    ),
    (
        "shutdown by nobody",
        OFF,
        |s| job(s, |j| j.by = None),
        "names no user",
    ),
    (
        "booted after it",
        OFF,
        |s| booted(s, JobStatus::Finished),
        "booted it after",
    ),
    (
        "being booted",
        OFF,
        |s| booted(s, JobStatus::Scheduled),
        "boots it",
    ),
    (
        "being booted by a job from before the shutdown",
        OFF,
        |s| booted_at(s, JobStatus::Started, ago(90)),
        "boots it",
    ),
    (
        "booted in the second of the shutdown",
        OFF,
        |s| booted_at(s, JobStatus::Finished, ago(60)),
        "booted it after",
    ),
    (
        "pods stale",
        BOOT,
        |s| stale(&mut s.case.evidence.pods),
        "list of pods",
    ),
    (
        "pods unknown",
        BOOT,
        |s| unknown(&mut s.case.evidence.pods),
        "list of pods",
    ),
    ("a pod", BOOT, a_pod, "pod"),
    (
        "not at zero",
        BOOT,
        |s| workload(s, |w| w.replicas = 1),
        "not held away",
    ),
    (
        "no stamp",
        BOOT,
        |s| workload(s, |w| w.stamp = None),
        "not held away",
    ),
    (
        "workload stale",
        BOOT,
        |s| stale(&mut s.case.evidence.workload),
        "the workload",
    ),
    (
        "workload unknown",
        BOOT,
        |s| unknown(&mut s.case.evidence.workload),
        "the workload",
    ),
    ("no node", BOOT, |s| s.case.evidence.nodes.clear(), "Node"),
    (
        "another machine",
        BOOT,
        |s| node(s, |n| n.instance = Some(OTHER_INSTANCE.into())),
        "holder",
    ),
    (
        "no report",
        BOOT,
        |s| s.case.evidence.guests.clear(),
        "report of the agent",
    ),
    (
        "report of another boot",
        BOOT,
        |s| node(s, |n| n.boot_id = "newer".into()),
        "from boot",
    ),
    (
        "same boot",
        BOOT,
        |s| {
            s.boot.boot = s
                .case
                .evidence
                .at(start())
                .node(&NODE.into())
                .ok()
                .map(|n| n.boot_id.clone())
        },
        "has not rebooted",
    ),
    (
        "not asked by this leader",
        BOOT,
        |s| s.boot.asked_at = None,
        "not challenged the agent yet",
    ),
    (
        "asked long ago",
        BOOT,
        |s| s.boot.asked_at = Some(ago(121)),
        "it was asked 121 s ago",
    ),
    (
        "asked in the future",
        BOOT,
        |s| s.boot.asked_at = Some(ago(-1)),
        "too long",
    ),
    (
        "looked long ago by its own clock",
        BOOT,
        |s| answer(s, |a| a.scanned_at = ago(125)),
        "before its kubelet's",
    ),
    (
        "a mount that came after the answer",
        BOOT,
        |s| guest(s, |g| g.devices = vec![in_use()]),
        "sees the volume in use",
    ),
    (
        "the device under the handle's name",
        BOOT,
        renamed,
        "under an earlier name",
    ),
    (
        "a device of its size that nothing explains",
        BOOT,
        |s| guest(s, |g| g.devices = vec![stranger()]),
        "under an earlier name",
    ),
    (
        "an agent that sees writes",
        WORD,
        |s| {
            s.case = s.case.clone().answer(ScanResult::InUse {
                users: in_use().users,
            })
        },
        "sees the volume in use",
    ),
    (
        "nothing to compare",
        BOOT,
        |s| s.boot = Before::default(),
        "has not rebooted",
    ),
    (
        "not asked",
        BOOT,
        |s| s.case.evidence.asked = None,
        "no challenge",
    ),
    (
        "asked by another",
        BOOT,
        |s| s.case.evidence.asked = Some(("x".into(), 1)),
        "no challenge",
    ),
    (
        "asked again",
        BOOT,
        |s| s.case.evidence.asked = Some((Case::recovery(), 99)),
        "another question",
    ),
    (
        "no answer",
        BOOT,
        |s| s.case.evidence.answers.clear(),
        "no answer",
    ),
    (
        "about another device",
        BOOT,
        |s| answer(s, |a| a.identity.serial = "x".into()),
        "another device",
    ),
    (
        "answer of another boot",
        BOOT,
        |s| answer(s, |a| a.boot_id = "x".into()),
        "from boot x",
    ),
    (
        "a dead mount",
        BOOT,
        |s| {
            answer(s, |a| {
                a.seen = ScanResult::DeadMount {
                    paths: vec!["/x".into()],
                }
            })
        },
        "dead mounts",
    ),
    (
        "in use",
        BOOT,
        |s| {
            answer(s, |a| {
                a.seen = ScanResult::InUse {
                    users: DeviceUsers::default(),
                }
            })
        },
        "in use",
    ),
    (
        "idle",
        BOOT,
        |s| answer(s, |a| a.seen = ScanResult::Idle),
        "the device is there",
    ),
    (
        "clean by a basic agent",
        BOOT,
        |s| answer(s, |a| a.seen = ScanResult::Clean),
        "a Basic agent cannot say",
    ),
    (
        "unreadable",
        BOOT,
        |s| {
            answer(s, |a| {
                a.seen = ScanResult::Unreadable {
                    items: vec!["/proc".into()],
                }
            })
        },
        "could not read",
    ),
    (
        "of another instance",
        WORD,
        |s| s.declaration.holder = OTHER_INSTANCE.into(),
        "another instance",
    ),
    (
        "by nobody",
        WORD,
        |s| s.declaration.by = " ".into(),
        "lacks a person's name",
    ),
    (
        "without a reason",
        WORD,
        |s| s.declaration.reason.clear(),
        "or a reason",
    ),
    (
        "of yesterday",
        WORD,
        |s| s.declaration.at = ago(3601),
        "last hour",
    ),
    (
        "of tomorrow",
        WORD,
        |s| s.declaration.at = ago(-1),
        "last hour",
    ),
];

fn power(s: &mut Fixture, state: InstanceState) {
    let e = &mut s.case.evidence;
    let there = reattach_core::cloud::CloudInstance {
        id: INSTANCE.into(),
        label: NODE.into(),
        state,
        auto_restart: true,
        owner: Default::default(),
    };
    e.instances
        .insert(INSTANCE.into(), Fact::present(there, cloud(), start()));
}

fn booted(s: &mut Fixture, status: JobStatus) {
    booted_at(s, status, ago(30));
}

fn booted_at(s: &mut Fixture, status: JobStatus, created: jiff::Timestamp) {
    let on = PowerJob {
        id: "j2".into(),
        change: PowerChange::On,
        status,
        created,
        ..shutdown()
    };
    jobs(s, |p| p.jobs.push(on));
}

/// Devices that the node's other volumes account for are not the volume under another name, whatever their size.
#[test]
fn a_neighbours_device_is_not_taken_for_the_volume() {
    let named = |serial: &str| GuestDevice {
        identity: DeviceIdentity {
            serial: serial.into(),
        },
        ..device()
    };
    let mut s = fixture(Kind::Rebooted);
    guest(&mut s, |g| g.devices = vec![named("pvc-neighbour")]);
    assert!(
        prove(Kind::Rebooted, &s).is_err(),
        "nothing says whose it is"
    );
    let mut attached = s.clone();
    let listed = "kubernetes.io/csi/linodebs.csi.linode.com^6001-pvc-neighbour";
    node(&mut attached, |n| n.volumes_attached.push(listed.into()));
    assert!(
        prove(Kind::Rebooted, &attached).is_ok(),
        "Kubernetes attached it for another volume"
    );
    let mounted = |dev: &str, dead: bool| {
        let mut mounted = s.clone();
        let mount = GuestMount {
            path: "/x".into(),
            dev: dev.to_owned(),
            dead,
            read_only: false,
        };
        guest(&mut mounted, |g| {
            g.csi_volumes = vec![GuestCsiVolume {
                pv: None,
                driver: "linodebs.csi.linode.com".into(),
                handle: "6001-another".into(),
                pods: Vec::new(),
                mounts: vec![mount],
            }];
        });
        prove(Kind::Rebooted, &mounted)
    };
    let dev = device().dev;
    assert!(
        mounted(&dev, false).is_ok(),
        "kubelet mounted it for another volume"
    );
    assert!(
        mounted(&dev, true).is_err(),
        "a dead mount is over a device that is gone"
    );
    assert!(
        mounted("8:99", false).is_err(),
        "the mount is of another device"
    );
    let mut root = s;
    guest(&mut root, |g| g.devices[0].users.mounts = vec!["/".into()]);
    assert!(
        prove(Kind::Rebooted, &root).is_ok(),
        "the machine booted from it"
    );
}

/// Every single item that a proof rests on, spoiled alone: no proof, and the refusal names the item.
#[test]
fn every_spoiled_item_is_refused_by_name() {
    let mut tried = 0;
    for (name, matters_to, spoil, word) in SPOILS {
        for kind in KINDS {
            let mut fixture = fixture(kind);
            if !matters_to.contains(&kind) {
                continue;
            }
            spoil(&mut fixture);
            tried += 1;
            match prove(kind, &fixture) {
                Ok(proof) => panic!("{name}: a proof all the same: {proof:?}"),
                Err(why) => {
                    assert!(
                        why.to_string().contains(word),
                        "{name} of {kind:?}: {why:?} does not name {word:?}"
                    )
                }
            }
        }
    }
    println!("{tried} spoiled scenes");
}

/// On EC2 the state alone tells; a boot that is under way still does not go unnoticed.
#[test]
fn a_cloud_without_restarts_needs_no_shutdown_job() {
    let mut s = fixture(Kind::Off);
    jobs(&mut s, |p| {
        *p = PowerFacts {
            jobs: Vec::new(),
            off_stays_off: true,
        }
    });
    let proof = prove(Kind::Off, &s).unwrap();
    assert!(matches!(proof.kind(), ProofKind::Off { job: None, .. }));
    booted(&mut s, JobStatus::Started);
    assert!(matches!(
        prove(Kind::Off, &s),
        Err(NoProof::NoShutdown { .. })
    ));
}

/// A device that is there is no obstacle where an agent that may open it found it clean; the word of a basic one is none.
#[test]
fn clean_counts_at_the_full_level_only() {
    for (level, proves) in [(Level::Full, true), (Level::Basic, false)] {
        let mut s = fixture(Kind::Rebooted);
        answer(&mut s, |a| (a.seen, a.level) = (ScanResult::Clean, level));
        assert_eq!(prove(Kind::Rebooted, &s).is_ok(), proves, "{level:?}");
    }
}

/// Random combinations of what spoils a fixture: whatever is made satisfies what a second reading
/// of its kind demands.
#[test]
fn no_combination_of_gaps_makes_a_proof() {
    let made = std::cell::Cell::new(0_u32);
    let strategy = (0..KINDS.len(), prop::collection::vec(0..SPOILS.len(), 0..4));
    runner("no combination of gaps makes a proof", cases(100_000))
        .run(&strategy, |(kind, spoils)| {
            let kind = KINDS[kind];
            let mut fixture = fixture(kind);
            for (_, _, spoil, _) in spoils.iter().map(|i| &SPOILS[*i]) {
                spoil(&mut fixture);
            }
            let proof = prove(kind, &fixture);
            if spoils.is_empty() {
                prop_assert!(proof.is_ok(), "{kind:?}, {spoils:?}: {proof:?}");
            }
            if proof.is_ok() {
                made.set(made.get() + 1);
                let again = sound(kind, &fixture);
                prop_assert!(again.is_ok(), "{kind:?}, {spoils:?}: {again:?}");
            }
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
    println!("{} proofs", made.get());
    assert!(made.get() > 1000, "too few proofs to mean anything");
}

/// What every proof of a kind implies, written down a second time.
fn sound(kind: Kind, s: &Fixture) -> Result<(), &'static str> {
    let (e, now) = (&s.case.evidence, s.case.now);
    let fresh = |at: jiff::Timestamp| now.duration_since(at) <= SignedDuration::from_secs(30);
    let need = |ok: bool, what: &'static str| if ok { Ok(()) } else { Err(what) };
    let volume = e.cloud_volume.shown().ok_or("no volume")?;
    need(
        fresh(e.cloud_volume.at) && volume.holders == [INSTANCE.into()],
        "holder",
    )?;
    let ready = e
        .nodes
        .values()
        .filter_map(|n| n.shown())
        .any(|n| n.ready && n.instance == Some(INSTANCE.into()));
    let instance = e.instances.get(&InstanceId::from(INSTANCE));
    let seen = s
        .before
        .as_ref()
        .filter(|b| b.instance == INSTANCE.into() && Some(&b.scope) == e.cloud_scope.as_ref());
    match kind {
        Kind::Gone | Kind::NotFound => {
            let fact = instance.filter(|f| fresh(f.at)).ok_or("instance")?;
            let gone = fact.shown().map(|i| i.state.clone()) == Some(InstanceState::Gone);
            need(
                !ready && (gone || fact.value == Known::Absent && seen.is_some()),
                "gone",
            )
        }
        Kind::Off => {
            let fact = instance.filter(|f| fresh(f.at)).ok_or("instance")?;
            let is_off = fact.shown().map(|i| i.state.clone()) == Some(InstanceState::Off);
            let twice = seen.is_some_and(|b| b.state == Some(InstanceState::Off) && b.at < fact.at);
            let job = e
                .power
                .get(&InstanceId::from(INSTANCE))
                .and_then(|p| p.shown())
                .is_some_and(|p| {
                    p.jobs
                        .iter()
                        .any(|j| j.change == PowerChange::Off && j.finished.is_some())
                        && p.jobs.iter().all(|j| j.change == PowerChange::Off)
                });
            need(!ready && is_off && twice && job, "off")
        }
        Kind::Rebooted => {
            let answer = e.answers.get(&NODE.into()).ok_or("answer")?;
            let asked = e.asked == Some((answer.recovery.clone(), answer.epoch));
            let zero = e.workload.shown().is_some_and(|w| w.replicas == 0);
            let empty = e.pods.shown().is_none_or(Vec::is_empty);
            let clean = answer.seen == ScanResult::Clean && answer.level == Level::Full;
            need(
                asked && zero && empty && (clean || answer.seen == ScanResult::NoDevice),
                "clean",
            )
        }
        Kind::Declared => need(!ready && !s.declaration.reason.is_empty(), "declared"),
    }
}
