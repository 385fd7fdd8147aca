//! The truth table of diagnosis, one file per row under `tests/fixtures/evidence`.
//!
//! The files are generated from the builder and checked current; `REATTACH_BLESS=1` rewrites them. The expected
//! sentence of each row stands here by hand.

use jiff::Timestamp;
use reattach_core::cloud::{CloudJob, JobKind, JobStatus, VolumeState};
use reattach_core::diagnosis::{Class, diagnose};
use reattach_core::evidence::{AccessMode, Evidence};
use reattach_core::fact::{Fact, Source};
use reattach_core::guest::ScanResult;
use reattach_core::testkit::{
    ATTACHMENT, Case, INSTANCE, NODE, OTHER_INSTANCE, OTHER_NODE, attachment, device, start,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fixture {
    says: String,
    class: Option<Class>,
    now: Timestamp,
    evidence: Evidence,
}

struct Row {
    name: &'static str,
    case: Case,
    says: &'static str,
    class: Option<Class>,
}

fn row(name: &'static str, case: Case, class: impl Into<Option<Class>>, says: &'static str) -> Row {
    Row {
        name,
        case,
        says,
        class: class.into(),
    }
}

/// The pod has been moved to the other node, which wants the volume.
fn wanted_elsewhere(case: Case) -> Case {
    case.with_node(OTHER_NODE, OTHER_INSTANCE)
        .pod(|p| p.node = Some(OTHER_NODE.into()))
}

/// A new pod waits on the other node while the old one runs on the first.
fn rollout(case: Case) -> Case {
    case.with_node(OTHER_NODE, OTHER_INSTANCE)
        .with_pod("redis-new", Some(OTHER_NODE), true)
}

fn dead_node(case: Case) -> Case {
    case.node(|n| n.ready = false)
}

const B: &str = "class B (phantom attachment): Kubernetes and the cloud say the volume is attached to lke-1 (instance 26000001), and that machine has no such device";
const B_DEAD: &str = "class B (phantom attachment): Kubernetes and the cloud say the volume is attached to lke-1 (instance 26000001), and that machine has only a dead mount of it";

fn absent<T>(what: &str) -> Fact<T> {
    Fact::absent(Source::Kubernetes(what.to_owned()), start())
}

fn job(status: JobStatus) -> CloudJob {
    CloudJob {
        id: "901".into(),
        kind: JobKind::Attach,
        action: "volume_attach".into(),
        status,
        volume: Some("5551".into()),
        instance: Some(INSTANCE.into()),
        created: start(),
    }
}

fn rows() -> Vec<Row> {
    let mut rows = ours();
    rows.extend(waits());
    rows.extend(not_ours());
    rows.extend(unclassified());
    rows
}

fn ours() -> Vec<Row> {
    let d = Case::deployment;
    vec![
        row(
            "a-dead-node",
            dead_node(d()),
            Class::A,
            "class A (held by a dead node): node lke-1 (instance 26000001) is not Ready and still holds the volume, so no other node can have it",
        ),
        row(
            "a-dead-node-pod-elsewhere",
            dead_node(wanted_elsewhere(d())),
            Class::A,
            "class A (held by a dead node): node lke-1 (instance 26000001) is not Ready and still holds the volume, so no other node can have it",
        ),
        row(
            "a-dead-node-pod-unscheduled",
            dead_node(d()).pod(|p| p.node = None),
            Class::A,
            "class A (held by a dead node): node lke-1 (instance 26000001) is not Ready and still holds the volume, so no other node can have it",
        ),
        row("b-no-device", d(), Class::B, B),
        row("b-no-device-statefulset", Case::statefulset(), Class::B, B),
        row(
            "b-no-device-by-last-report-only",
            d().unasked(),
            Class::B,
            B,
        ),
        row(
            "b-dead-mount-under-a-ready-pod",
            d().pod_ready().with_mount(true),
            Class::B,
            B_DEAD,
        ),
        row(
            "b-dead-mount-under-a-terminating-pod",
            d().with_mount(true)
                .pod(|p| p.deleting_since = Some(start())),
            Class::B,
            B_DEAD,
        ),
        row(
            "c-lost",
            d().cloud(|c| c.holders.clear()),
            Class::C,
            "class C (lost attachment): Kubernetes says the volume is attached to lke-1, and the cloud says it is attached nowhere",
        ),
        row(
            "d-detach-error",
            d().attachment(|a| {
                a.deleting_since = Some(start());
                a.detach_error = Some("Linode busy.".into());
            }),
            Class::D,
            "class D (stuck record): the detach from lke-1 keeps failing: Linode busy.",
        ),
        row(
            "d-detach-error-pod-elsewhere",
            wanted_elsewhere(d()).attachment(|a| {
                a.deleting_since = Some(start());
                a.detach_error = Some("Linode busy.".into());
            }),
            Class::D,
            "class D (stuck record): the detach from lke-1 keeps failing: Linode busy.",
        ),
        row(
            "d-detach-error-of-a-dead-node-that-holds-nothing",
            dead_node(wanted_elsewhere(d()))
                .cloud(|c| c.holders.clear())
                .attachment(|a| {
                    a.deleting_since = Some(start());
                    a.detach_error = Some("timeout".into());
                }),
            Class::D,
            "class D (stuck record): the detach from lke-1 keeps failing: timeout",
        ),
        row(
            "d-attach-error",
            d().attachment(|a| {
                a.attached = false;
                a.attach_error = Some("limit reached".into());
            }),
            Class::D,
            "class D (stuck record): the attach to lke-1 keeps failing: limit reached",
        ),
        row(
            "d-node-missing",
            {
                let mut case = wanted_elsewhere(d());
                case.evidence
                    .nodes
                    .insert(NODE.into(), absent("Node lke-1"));
                case
            },
            Class::D,
            "class D (stuck record): a VolumeAttachment names node lke-1, which does not exist",
        ),
        row(
            "d-node-of-the-pod-missing",
            {
                let mut case = d();
                case.evidence
                    .nodes
                    .insert(NODE.into(), absent("Node lke-1"));
                case
            },
            Class::D,
            "class D (stuck record): a VolumeAttachment names node lke-1, which does not exist",
        ),
        row(
            "e-orphan",
            d().attachments(Vec::clear)
                .cloud(|c| c.holders = vec![OTHER_INSTANCE.into()]),
            Class::E,
            "class E (orphan attachment): the cloud says instance 26000002 has the volume, and no VolumeAttachment names that instance's node",
        ),
        row(
            "e-orphan-node-recreated-under-its-name",
            d().node(|n| n.instance = Some("26000009".into())),
            Class::E,
            "class E (orphan attachment): the cloud says instance 26000001 has the volume, and no VolumeAttachment names that instance's node",
        ),
        row(
            "e-orphan-attach-fails",
            d().attachment(|a| {
                a.attached = false;
                a.attach_error = Some("already attached to linode 7".into());
            })
            .cloud(|c| c.holders = vec!["7".into()]),
            Class::E,
            "class E (orphan attachment): the cloud says instance 7 has the volume, and no VolumeAttachment names that instance's node",
        ),
    ]
}

fn waits() -> Vec<Row> {
    let d = Case::deployment;
    vec![
        row(
            "wait-provider-lock",
            d().cloud(|c| {
                c.state = VolumeState::Locked {
                    reason: "imaging".into(),
                }
            }),
            Class::B,
            "the provider has locked the volume (imaging); nothing can be detached until it lifts the lock (class B, phantom attachment, until then)",
        ),
        row(
            "wait-provider-lock-during-detach",
            d().attachment(|a| a.deleting_since = Some(start()))
                .cloud(|c| {
                    c.state = VolumeState::Locked {
                        reason: "imaging".into(),
                    }
                }),
            Class::D,
            "the provider has locked the volume (imaging); nothing can be detached until it lifts the lock (class D, stuck record, until then)",
        ),
        row(
            "wait-cloud-busy",
            d().cloud(|c| {
                c.state = VolumeState::Busy {
                    doing: "resizing".into(),
                }
            }),
            None,
            "the cloud is busy with the volume (resizing)",
        ),
        row(
            "wait-cloud-detaching",
            d().cloud(|c| c.state = VolumeState::Detaching),
            None,
            "the cloud is busy with the volume (detaching)",
        ),
        row(
            "wait-cloud-unknown-state",
            d().cloud(|c| c.state = VolumeState::Other("contact_support".into())),
            None,
            "the cloud is busy with the volume (contact_support)",
        ),
        row(
            "wait-cloud-job-pending",
            {
                let mut case = d();
                case.evidence.jobs = Fact::present(
                    vec![job(JobStatus::Started)],
                    Source::Cloud("linode".into()),
                    start(),
                );
                case
            },
            None,
            "the cloud is busy with the volume (volume_attach)",
        ),
        row(
            "wait-cloud-job-just-ended",
            {
                let mut case = d();
                case.evidence.jobs = Fact::present(
                    vec![job(JobStatus::Finished)],
                    Source::Cloud("linode".into()),
                    start(),
                );
                case
            },
            None,
            "the cloud is busy with the volume (volume_attach)",
        ),
        row(
            "wait-detaching",
            d().attachment(|a| a.deleting_since = Some(start())),
            None,
            "a detach from lke-1 is under way",
        ),
        row(
            "wait-attaching",
            d().attachment(|a| a.attached = false)
                .cloud(|c| c.holders.clear()),
            None,
            "an attach to lke-1 is under way",
        ),
        row(
            "wait-attaching-no-record-yet",
            d().attachments(Vec::clear).cloud(|c| c.holders.clear()),
            None,
            "an attach to lke-1 is under way",
        ),
        row(
            "wait-pod-terminating",
            d().pod(|p| p.deleting_since = Some(start())),
            None,
            "pod default/redis-6f7d9c5b8-x2x4p on Ready node lke-1 is still terminating",
        ),
        row(
            "wait-unscheduled",
            d().pod(|p| p.node = None),
            None,
            "pod default/redis-6f7d9c5b8-x2x4p has not been bound to a node",
        ),
        row(
            "wait-driver-not-registered",
            d().node(|n| n.csi_drivers.clear()),
            None,
            "driver linodebs.csi.linode.com has not registered with kubelet on lke-1 yet",
        ),
    ]
}

fn not_ours() -> Vec<Row> {
    let d = Case::deployment;
    vec![
        row("not-ours-no-claim", { let mut c = d(); c.evidence.claim = absent("claim"); c }, None, "not ours: the claim does not exist"),
        row("not-ours-unbound", d().claim(|c| c.volume_name = None), None, "not ours: the claim is not bound to a PersistentVolume"),
        row("not-ours-volume-missing", { let mut c = d(); c.evidence.volume = absent("PersistentVolume"); c }, None,
            "not ours: the claim's PersistentVolume pvc-redis does not exist"),
        row("not-ours-in-tree", d().volume(|v| v.csi = None), None, "not ours: PersistentVolume pvc-redis is not a CSI volume"),
        row("not-ours-attach-not-required", d().volume(|v| v.attach_required = Some(false)), None,
            "not ours: driver linodebs.csi.linode.com needs no attachment (attachRequired is false)"),
        row("not-ours-unknown-provider", { let mut c = d(); c.evidence.cloud_id = None; c }, None,
            "not ours: no cloud provider of this installation knows volume 5551-pvc-redis of driver linodebs.csi.linode.com"),
        row("not-ours-unreadable-handle", { let mut c = d(); c.evidence.cloud_id = None; c.evidence.unreadable_handle = Some("volume handle \"+5551-pvc-redis\" cannot be used: it does not begin with a volume number".to_owned()); c }, None,
            "not ours: volume handle \"+5551-pvc-redis\" cannot be used: it does not begin with a volume number; driver linodebs.csi.linode.com gives no volume such a handle, so reattach touches nothing through it"),
        row("not-ours-cloud-volume-gone", { let mut c = d(); c.evidence.cloud_volume = Fact::absent(Source::Cloud("linode".into()), start()); c }, None,
            "not ours: the cloud does not know volume 5551 any more"),
        row("not-ours-missing-secret", d().device_in_use().event("FailedMount", "MountVolume.SetUp failed for volume \"tls\" : secret \"redis-tls\" not found"), None,
            "not ours: the volume is attached and the machine has the device; the pod waits for something else: MountVolume.SetUp failed for volume \"tls\" : secret \"redis-tls\" not found"),
        row("not-ours-wrong-fstype", d().device_idle().event("FailedMount", "MountVolume.MountDevice failed for volume \"pvc-redis\" : mount failed: wrong fs type, bad option, bad superblock on /dev/sdc"), None,
            "not ours: the volume is attached and the machine has the device; the pod waits for something else: MountVolume.MountDevice failed for volume \"pvc-redis\" : mount failed: wrong fs type, bad option, bad superblock on /dev/sdc"),
        row("not-ours-image-pull", { let mut c = d().device_in_use().pod(|p| p.waiting_reason = Some("ImagePullBackOff".into())); c.evidence.events.clear(); c }, None,
            "not ours: the volume is attached and the machine has the device; the pod waits for something else: a container is ImagePullBackOff"),
        row("not-ours-held-by-live-pod", rollout(d().pod_ready().device_in_use()), None,
            "not ours: pod default/redis-6f7d9c5b8-x2x4p runs healthily on lke-1 and holds the volume; a second node must wait for it"),
        row("healthy", d().pod_ready().device_in_use(), None, "nothing is wrong: every pod that wants the volume is Ready"),
        row("healthy-no-pod", d().pods(Vec::clear), None, "nothing is wrong: no pod wants the volume"),
        row("healthy-finished-pod", d().pod(|p| p.phase = "Succeeded".into()), None, "nothing is wrong: no pod wants the volume"),
        // A volume that was renamed in the cloud keeps its old name in the guest until it is attached again.
        row("healthy-volume-renamed-while-mounted", d().pod_ready().device_in_use().unasked().cloud(|c| { c.label = "renamed".into(); c.identity.serial = "renamed".into(); }), None,
            "nothing is wrong: every pod that wants the volume is Ready"),
    ]
}

fn unclassified() -> Vec<Row> {
    let d = Case::deployment;
    vec![
        row(
            "unclassified-no-agent",
            {
                let mut c = d().unasked();
                c.evidence.guests.clear();
                c
            },
            None,
            "not classified, because what the machine behind lke-1 sees of the volume: no agent report was collected for this node",
        ),
        row(
            "unclassified-report-of-another-boot",
            d().unasked().guest(|g| g.boot_id = "old".into()),
            None,
            "not classified, because what the machine behind lke-1 sees of the volume: the agent's report is from another boot than the Node's",
        ),
        row(
            "unclassified-unreadable",
            d().answer(ScanResult::Unreadable {
                items: vec!["/sys/block".into()],
            }),
            None,
            "not classified, because what the machine behind lke-1 sees of the volume: unreadable: /sys/block",
        ),
        row(
            "unclassified-no-instance",
            d().node(|n| n.instance = None),
            None,
            "not classified, because the instance behind Node lke-1: its providerID names none that a provider knows",
        ),
        row(
            "unclassified-volume-renamed",
            d().guest(|g| g.devices = vec![device()]).cloud(|c| {
                c.label = "renamed".into();
                c.identity.serial = "renamed".into();
            }),
            None,
            "not classified, because what the machine behind lke-1 sees of the volume: it has device pvc-redis, which volume handle 5551-pvc-redis names, and the cloud calls the volume renamed; it seems to have been renamed",
        ),
        row(
            "unclassified-pod-on-a-dead-node-that-holds-nothing",
            dead_node(d()).cloud(|c| c.holders.clear()),
            None,
            "not classified, because whether pod default/redis-6f7d9c5b8-x2x4p still runs: its node lke-1 is not Ready, and the volume is not held there by Kubernetes and the cloud alike",
        ),
        row(
            "unclassified-pod-on-a-missing-node",
            {
                let mut case = d().attachments(Vec::clear);
                case.evidence
                    .nodes
                    .insert(NODE.into(), absent("Node lke-1"));
                case
            },
            None,
            "not classified, because whether pod default/redis-6f7d9c5b8-x2x4p still runs: its node lke-1 does not exist",
        ),
        row(
            "unclassified-node-of-a-record-unknown",
            {
                let mut case = wanted_elsewhere(d());
                case.evidence.nodes.remove(&NODE.into());
                case
            },
            None,
            "not classified, because Node lke-1: it was not read",
        ),
    ]
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/evidence")
        .join(format!("{name}.json"))
}

#[test]
fn every_row_of_the_truth_table() {
    let bless = std::env::var_os("REATTACH_BLESS").is_some();
    let mut wrong = Vec::new();
    for row in rows() {
        let fixture = Fixture {
            says: row.says.to_owned(),
            class: row.class,
            now: row.case.now,
            evidence: row.case.evidence,
        };
        let text = serde_json::to_string_pretty(&fixture).unwrap() + "\n";
        if bless {
            std::fs::write(file(row.name), &text).unwrap();
        }
        let stored = std::fs::read_to_string(file(row.name)).unwrap_or_default();
        if stored != text {
            wrong.push(format!(
                "{}: the file is not current; run with REATTACH_BLESS=1",
                row.name
            ));
            continue;
        }
        let read: Fixture = serde_json::from_str(&stored).unwrap();
        assert_eq!(
            read.evidence, fixture.evidence,
            "{} does not survive serialisation",
            row.name
        );
        let found = diagnose(read.evidence.at(read.now));
        let (said, class) = (found.verdict.to_string(), found.class());
        if said != read.says || class != read.class {
            wrong.push(format!(
                "{}:\n  expected {:?} {}\n  found    {class:?} {said}",
                row.name, read.class, read.says
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} rows are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn the_folder_holds_the_table_and_nothing_else() {
    let mut files: Vec<String> = std::fs::read_dir(file("x").parent().unwrap())
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let mut names: Vec<String> = rows().iter().map(|r| format!("{}.json", r.name)).collect();
    names.sort();
    assert_eq!(files, names);
}

/// Shared access is a refusal, not a diagnosis: the class is named, and no plan is made.
#[test]
fn a_phantom_of_a_shared_volume_is_named_and_refused() {
    let case = Case::deployment().claim(|c| c.access_modes = vec![AccessMode::ReadWriteMany]);
    assert_eq!(case.diagnosis().class(), Some(Class::B));
    assert!(case.plan().is_err());
}

/// No agent, and the event's own text is about something else.
#[test]
fn without_an_agent_the_event_may_say_that_it_is_not_ours() {
    let mut case = Case::deployment().unasked().event(
        "FailedMount",
        "MountVolume.SetUp failed for volume \"tls\" : secret \"redis-tls\" not found",
    );
    case.evidence.guests.clear();
    assert!(
        case.diagnosis().verdict.to_string().starts_with("not ours"),
        "{}",
        case.diagnosis().verdict
    );
}

/// The order in which pods, attachments and events are listed does not matter.
#[test]
fn the_order_of_lists_does_not_matter() {
    let mut case = rollout(Case::deployment().pod_ready().device_in_use())
        .attachments(|a| a.push(attachment("csi-0", OTHER_NODE)));
    let before = case.diagnosis().verdict;
    for order in 0..2 {
        case = case.pods(|p| p.reverse());
        if order == 1 {
            case = case.attachments(|a| a.reverse());
        }
        assert_eq!(case.diagnosis().verdict, before);
    }
    assert!(
        case.evidence
            .attachments
            .shown()
            .unwrap()
            .iter()
            .any(|a| a.name == ATTACHMENT)
    );
}
