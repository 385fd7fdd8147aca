//! Records for the tests, with journals that the executor could have written.

use jiff::{SignedDuration, Timestamp};
use reattach_core::budget::StuckPods;
use reattach_core::cloud::{CloudVolume, DeviceIdentity, VolumeState};
use reattach_core::diagnosis::{Class, Diagnosis, NotOurs, StuckPod, Trouble, Verdict, WaitReason};
use reattach_core::fact::MissingFact;
use reattach_core::ids::{ObjectName, PlanHash, StepIx};
use reattach_core::journal::{End, Entry, Event, Outcome, Shut, UnwindReason};
use reattach_core::loss::{Acceptance, AcceptedLoss};
use reattach_core::phase::Phase;
use reattach_core::plan::{Downtime, PLAN_VERSION, PinnedAttachment, Pins, Plan, PlannedStep};
use reattach_core::policy::Mode;
use reattach_core::proof::{ProofKind, UnusedSince};
use reattach_core::run::State;
use reattach_core::runbook::{Runbook, SCALE_TO_ZERO};
use reattach_core::steps::{EffectClass, StepKind};
use reattach_core::workload::WorkloadRef;
use reattach_report::{Incident, Record, TimelineNote};

/// Start of all times: the return of the node.
pub fn start() -> Timestamp {
    "2021-07-11T01:13:00Z".parse().unwrap()
}

/// Returns the time so many milliseconds after the start.
pub fn at(millis: i64) -> Timestamp {
    start() + SignedDuration::from_millis(millis)
}

fn stuck_pod(name: &str) -> StuckPod {
    StuckPod {
        pod: ObjectName::new("default", format!("{name}-0")),
        uid: format!("pod-uid-{name}").into(),
        node: "lke13311-16405-5fafd1b46dcf".into(),
        instance: "28871423".into(),
    }
}

fn phantom(name: &str) -> Trouble {
    Trouble::Phantom {
        at: stuck_pod(name),
        attachment: format!("va-uid-{name}").into(),
        dead_mount: false,
        confirmed: true,
    }
}

/// Makes the diagnosis of class B (phantom attachment).
pub fn diagnosis(name: &str) -> Diagnosis {
    Diagnosis {
        verdict: Verdict::Ours {
            trouble: phantom(name),
        },
        facts: vec![
            format!("VolumeAttachment csi-{name} on lke13311-16405-5fafd1b46dcf: attached true"),
            format!(
                "the cloud says volume 1042 (pvc{name}) is held by instance 28871423, state Active"
            ),
            format!("pod default/{name}-0 on lke13311-16405-5fafd1b46dcf: Pending, not Ready"),
            "Node lke13311-16405-5fafd1b46dcf is Ready (instance 28871423)".into(),
            "the agent on lke13311-16405-5fafd1b46dcf answered: no device".into(),
        ],
    }
}

/// Makes the plan of the built-in runbook for one workload.
pub fn plan(name: &str) -> Plan {
    let runbook = Runbook::built_in(SCALE_TO_ZERO).unwrap();
    let say = |kind| -> (String, &str, String, &str, &str, EffectClass) {
        match kind {
            StepKind::ScaleToZero => (format!("scale StatefulSet default/{name} from 1 to 0 and stamp it with the count to restore, in one write"), "every refusal of scaling to zero is absent, read again; the write is refused if the workload changed meanwhile", format!("kubectl -n default scale statefulset/{name} --replicas=0"), "the workload stays down until it is restored; the stamp on it suffices for that", "no pod of the workload is left", EffectClass::Conditional),
            StepKind::AwaitDetached => ("wait until nobody holds volume 1042 any more".into(), "no pod of the claim", format!("kubectl get volumeattachment csi-{name} --watch"), "the CSI driver may be unable to detach; then the next step takes over, or the run unwinds", "volumesInUse, volumesAttached, the cloud and the VolumeAttachment, all four", EffectClass::Repeatable),
            StepKind::CloudDetach => ("if Kubernetes' own detach is stuck: detach volume 1042 from instance 28871423 at the cloud".into(), "the kubelet's own word that it does not use the volume, newer than the last pod", "curl --fail --request POST --header \"Authorization: Bearer $LINODE_TOKEN\" https://api.linode.com/v4/volumes/1042/detach".into(), "a cloud that is busy or has locked the volume refuses; the workload is then restored and a person paged", "no holder, and no job pending on the volume", EffectClass::Once),
            StepKind::Requeue => (format!("if VolumeAttachment csi-{name} is still there: touch it, so that external-attacher tries again now"), "the cloud names no holder", format!("kubectl annotate volumeattachment csi-{name} reattach.dev/requeued=$(date +%s) --overwrite"), "none: the attacher would try by itself within 5 minutes", "the write is accepted", EffectClass::Conditional),
            StepKind::Restore => (format!("scale StatefulSet default/{name} back to 1 and remove the stamp, in one write"), "the VolumeAttachment is gone, the stamp is intact and the count is still 0", format!("kubectl -n default scale statefulset/{name} --replicas=1"), "if someone changed the count meanwhile, their count stands", "the count", EffectClass::Conditional),
            StepKind::Verify => ("wait until the pod is Ready with the volume".into(), "none", "kubectl -n default get pods --watch".into(), "a pod that stays unready for another reason ends the run as failed, with the workload restored", "pod Ready for 3 s, one holder, the pinned identity and size", EffectClass::Repeatable),
            _ => unreachable!("not in this runbook"),
        }
    };
    let steps = runbook.order(Class::B).unwrap().iter().map(|s| {
        let (what, precondition, command, risk, observed_by, effect_class) = say(s.step);
        PlannedStep {
            kind: s.step,
            what,
            precondition: precondition.into(),
            command,
            risk: risk.into(),
            observed_by: observed_by.into(),
            effect_class,
            deadline_seconds: s.deadline_seconds,
            patience_seconds: s.patience_seconds,
            best_effort: false,
        }
    });
    let mut plan = Plan {
        version: PLAN_VERSION,
        closes_node: false,
        claim: ObjectName::new("default", format!("{name}-data")),
        trouble: phantom(name),
        runbook: runbook.name.clone(),
        // Not the real hash: golden files need not change with the runbook's text.
        runbook_hash: "0123456789abcdef".into(),
        pins: Pins {
            claim: format!("claim-uid-{name}").into(),
            pv: format!("pv-uid-{name}").into(),
            volume: "1042".into(),
            identity: DeviceIdentity {
                serial: format!("pvc{name}"),
            },
            size_gib: 10,
            holder: "28871423".into(),
            node: "lke13311-16405-5fafd1b46dcf".into(),
            boot_id: Some("6f1d2c3b-0000-4000-8000-00000000b007".into()),
            attachment: Some(PinnedAttachment {
                name: format!("csi-{name}"),
                uid: format!("va-uid-{name}").into(),
            }),
            node_wide: None,
            workload: WorkloadRef {
                api_version: "apps/v1".into(),
                kind: "StatefulSet".into(),
                plural: "statefulsets".into(),
                name: ObjectName::new("default", name),
                uid: format!("sts-uid-{name}").into(),
            },
            replicas: 1,
            pods: vec![(
                ObjectName::new("default", format!("{name}-0")),
                format!("pod-uid-{name}").into(),
            )],
        },
        steps: steps.collect(),
        stuck_pods: StuckPods::Evict,
        budgets: Vec::new(),
        losses: match name {
            "postgres" => ["dshm", "tmp"].map(lost_by_policy).into(),
            "metrics" => vec![AcceptedLoss::EmptyDir {
                volume: "wal".into(),
                accepted: Acceptance::Owner,
            }],
            _ => Vec::new(),
        },
        downtime: Downtime {
            typical_seconds: 20,
            with_cloud_detach_seconds: 95,
        },
        hash: PlanHash::from(""),
    };
    plan.hash = plan.computed_hash();
    plan
}

fn lost_by_policy(volume: &str) -> AcceptedLoss {
    AcceptedLoss::EmptyDir {
        volume: volume.into(),
        accepted: Acceptance::Policy,
    }
}

/// Makes a record without plan and journal.
pub fn record(name: &str, verdict: Option<Diagnosis>) -> Record {
    Record {
        recovery: ObjectName::new("default", format!("{name}-data-x7k2p")),
        claim: ObjectName::new("default", format!("{name}-data")),
        mode: Mode::Auto,
        requester: "system:serviceaccount:reattach:controller".into(),
        reason: None,
        next_attempt: None,
        phase: Phase::Diagnosing,
        message: String::new(),
        diagnosis: verdict,
        refusals: Vec::new(),
        plan: None,
        journal: Vec::new(),
        created: at(30_000),
        cloud_volume: None,
        escalation: None,
    }
}

/// Makes a record with a plan and these journal lines. The executor could have written every prefix of them.
pub fn run(name: &str, created: i64, lines: Vec<(i64, Event)>) -> Record {
    let plan = plan(name);
    let accepted = Event::Accepted {
        plan_hash: plan.hash.to_string(),
        authority: "policy databases (Auto)".into(),
    };
    let first = created + 1_500;
    let events =
        std::iter::once((first, accepted)).chain(lines.into_iter().map(|(t, m)| (first + t, m)));
    let journal: Vec<Entry> = (0..)
        .zip(events)
        .map(|(seq, (t, event))| Entry {
            seq,
            at: at(t),
            term: 3,
            by: "reattach-controller-7d9f-abcde (pod 4c1f)".into(),
            event,
        })
        .collect();
    State::replay(&plan.clone().sound().unwrap(), &journal).expect("a legal journal");
    Record {
        phase: Phase::Running,
        plan: Some(plan),
        journal,
        created: at(created),
        ..record(name, Some(diagnosis(name)))
    }
}

/// Makes the line of a step that begins.
pub fn started(step: u32, intent: &str) -> Event {
    let proof = (step == 2).then(|| ProofKind::KubeletHandshake {
        node: "lke13311-16405-5fafd1b46dcf".into(),
        no_user_since: at(50_000),
        lease_renewed: at(58_000),
    });
    Event::Started {
        step: StepIx(step),
        intent: intent.into(),
        proof,
        newest_job: None,
    }
}

/// Makes the line of an effect that was accepted.
pub fn applied(step: u32, detail: &str) -> Event {
    Event::Outcome {
        step: StepIx(step),
        outcome: Outcome::Applied {
            detail: detail.into(),
        },
    }
}

/// Makes the line of an effect that was not accepted.
pub fn refused(step: u32, why: &str, retry: bool) -> Event {
    Event::Outcome {
        step: StepIx(step),
        outcome: Outcome::NotApplied {
            why: why.into(),
            retry,
        },
    }
}

/// Makes the line of an effect that the gate withheld.
pub fn withheld(step: u32) -> Event {
    Event::Outcome {
        step: StepIx(step),
        outcome: Outcome::Withheld {
            shut: Shut::NotLeader,
        },
    }
}

/// Makes the line of a step that is completed.
pub fn done(step: u32, seen: &str) -> Event {
    Event::Completed {
        step: StepIx(step),
        seen: seen.into(),
    }
}

/// Makes the line of a step that was skipped.
pub fn skipped(step: u32, why: &str) -> Event {
    Event::Skipped {
        step: StepIx(step),
        why: why.into(),
    }
}

fn ended(end: End) -> Event {
    Event::Ended { end }
}

fn down(name: &str) -> Vec<(i64, Event)> {
    vec![
        (
            40,
            started(
                0,
                &format!("scale StatefulSet default/{name} from 1 to 0, stamped with that count"),
            ),
        ),
        (65, applied(0, "200, replicas 0")),
        (
            2_100,
            Event::UnusedSince {
                seen: UnusedSince {
                    at: at(50_000),
                    lease: Some(at(48_000)),
                },
            },
        ),
        (
            2_110,
            done(
                0,
                "no pod of the workload and no pod with the claim is left",
            ),
        ),
    ]
}

fn up(name: &str, from: i64, end: End) -> Vec<(i64, Event)> {
    vec![
        (
            from + 20,
            started(
                5,
                &format!("scale StatefulSet default/{name} back to 1 and remove the stamp"),
            ),
        ),
        (from + 45, applied(5, "200, replicas 1")),
        (
            from + 50,
            done(5, "the count is restored and the stamp is off"),
        ),
        (
            from + 5_300,
            done(
                6,
                &format!(
                    "pod default/{name}-0 is Ready on lke13311-16405-5fafd1b46dcf with the volume"
                ),
            ),
        ),
        (from + 5_310, ended(end)),
    ]
}

/// A run in which Kubernetes detached by itself, in 17 s.
pub fn recovered(name: &str, created: i64) -> Record {
    let mut lines = down(name);
    lines.push((
        11_900,
        done(1, "kubelet, the attach/detach controller, the cloud and the VolumeAttachment all show the volume as detached"),
    ));
    lines.push((11_905, skipped(2, "the cloud names no holder already")));
    lines.push((11_910, skipped(3, "no VolumeAttachment is left")));
    lines.push((
        11_915,
        done(4, "kubelet, the attach/detach controller, the cloud and the VolumeAttachment all show the volume as detached"),
    ));
    lines.extend(up(name, 11_915, End::Recovered));
    Record {
        phase: Phase::Recovered,
        ..run(name, created, lines)
    }
}

/// A run in which the cloud detached, and was busy at first.
pub fn recovered_by_cloud(name: &str, created: i64) -> Record {
    let mut lines = down(name);
    lines.push((62_200, skipped(1, "Kubernetes' own detach is stuck after 60 s: VolumeAttachment csi-postgres is still there (rpc error: code = Internal)")));
    lines.push((
        63_000,
        started(2, "detach volume 1042 from instance 28871423 at the cloud"),
    ));
    lines.push((
        63_300,
        refused(2, "could not detach volume 1042: the volume is busy", true),
    ));
    lines.push((
        68_400,
        started(2, "detach volume 1042 from instance 28871423 at the cloud"),
    ));
    lines.push((68_900, applied(2, "200, job 991")));
    lines.push((
        75_000,
        done(2, "the cloud names no holder and no job is pending"),
    ));
    lines.push((
        75_020,
        started(3, &format!("touch VolumeAttachment csi-{name}")),
    ));
    lines.push((75_040, applied(3, "200")));
    lines.push((75_045, done(3, "external-attacher was told to try again")));
    lines.push((
        77_000,
        done(4, "kubelet, the attach/detach controller, the cloud and the VolumeAttachment all show the volume as detached"),
    ));
    lines.extend(up(name, 77_000, End::Recovered));
    Record {
        phase: Phase::Recovered,
        ..run(name, created, lines)
    }
}

/// A run that a person aborted during the wait for the detach.
pub fn aborted(name: &str) -> Record {
    let mut lines = down(name);
    lines.push((
        8_000,
        Event::UnwindStarted {
            why: UnwindReason::Aborted {
                by: "joe@example.org".into(),
            },
        },
    ));
    lines.push((
        8_030,
        started(
            5,
            &format!("scale StatefulSet default/{name} back to 1 and remove the stamp"),
        ),
    ));
    lines.push((8_060, applied(5, "200, replicas 1")));
    lines.push((8_070, ended(End::Aborted)));
    Record {
        phase: Phase::Aborted,
        requester: "joe@example.org".into(),
        reason: Some("redis is down, site is slow".into()),
        ..run(name, 40_000, lines)
    }
}

/// A run that failed because the cloud refused the detach.
pub fn failed(name: &str) -> Record {
    let mut lines = down(name);
    lines.push((
        62_200,
        skipped(
            1,
            "Kubernetes' own detach is stuck after 60 s: VolumeAttachment csi-shop is still there",
        ),
    ));
    lines.push((
        63_000,
        started(2, "detach volume 1042 from instance 28871423 at the cloud"),
    ));
    lines.push((63_300, refused(2, "could not detach volume 1042: Volume is locked by an administrator (Authorization: Bearer abcdef0123)", true)));
    lines.push((
        362_300,
        Event::UnwindStarted {
            why: UnwindReason::Deadline {
                step: StepIx(2),
                seconds: 300,
                waiting_for: "the cloud did not accept the detach; it is asked again".into(),
            },
        },
    ));
    lines.push((
        362_320,
        started(
            5,
            &format!("scale StatefulSet default/{name} back to 1 and remove the stamp"),
        ),
    ));
    lines.push((362_350, applied(5, "200, replicas 1")));
    lines.push((
        362_360,
        ended(End::Failed {
            why: "step 3 did not finish within 300 s: the cloud did not accept the detach; it is asked again"
                .into(),
        }),
    ));
    Record {
        phase: Phase::Failed,
        ..run(name, 40_000, lines)
    }
}

/// A run that is stuck because the outcome of the detach is unknown.
pub fn stuck(name: &str) -> Record {
    let mut lines = down(name);
    lines.push((
        62_200,
        skipped(1, "Kubernetes' own detach is stuck after 60 s"),
    ));
    lines.push((
        63_000,
        started(2, "detach volume 1042 from instance 28871423 at the cloud"),
    ));
    lines.push((
        93_000,
        Event::Outcome {
            step: StepIx(2),
            outcome: Outcome::Unknown {
                why: "the connection was closed before an answer came".into(),
            },
        },
    ));
    let message = "whether the detach of volume 1042 happened is not known, and the provider's job history cannot be read";
    Record {
        phase: Phase::Stuck,
        message: message.into(),
        ..run(name, 40_000, lines)
    }
}

/// A recovery that waits without a plan, because the provider has locked the volume.
pub fn locked(name: &str) -> Record {
    let reason = WaitReason::ProviderLock {
        reason: "maintenance hold".into(),
        class: Some(Class::B),
    };
    let mut facts = diagnosis(name).facts;
    facts[1] = format!(
        "the cloud says volume 77001 (pvc{name}) is held by instance 28871423, state Locked {{ reason: \"maintenance hold\" }}"
    );
    let volume = CloudVolume {
        id: "77001".into(),
        label: format!("pvc{name}"),
        region: "eu-central".into(),
        size_gib: 20,
        holders: vec!["28871423".into()],
        state: VolumeState::Locked {
            reason: "maintenance hold".into(),
        },
        identity: DeviceIdentity {
            serial: format!("pvc{name}"),
        },
        owner: Default::default(),
    };
    Record {
        phase: Phase::Waiting,
        cloud_volume: Some(volume),
        ..record(
            name,
            Some(Diagnosis {
                verdict: Verdict::Wait { reason },
                facts,
            }),
        )
    }
}

/// A recovery that is not ours, because a Secret is missing.
pub fn not_ours(name: &str) -> Record {
    let reason = NotOurs::Other {
        what: "MountVolume.SetUp failed for volume \"config\" : secret \"site-config\" not found"
            .into(),
    };
    let facts = vec!["the agent on lke13311-16405-5fafd1b46dcf sees the device".into()];
    Record {
        phase: Phase::NotOurs,
        ..record(
            name,
            Some(Diagnosis {
                verdict: Verdict::NotOurs { reason },
                facts,
            }),
        )
    }
}

/// A recovery with a refusal.
pub fn refused_record(name: &str) -> Record {
    let refusals = vec![format!(
        "StatefulSet default/{name} deletes its claims when scaled down (persistentVolumeClaimRetentionPolicy.whenScaled is Delete); set it to Retain first"
    )];
    Record {
        phase: Phase::Refused,
        refusals,
        ..record(name, Some(diagnosis(name)))
    }
}

/// A recovery in mode DryRun with a plan.
pub fn dry_run(name: &str) -> Record {
    Record {
        phase: Phase::Planned,
        mode: Mode::DryRun,
        plan: Some(plan(name)),
        ..record(name, Some(diagnosis(name)))
    }
}

/// A recovery without an answer of the agent.
pub fn unclassified(name: &str) -> Record {
    let missing = vec![MissingFact {
        what: "what the machine behind lke13311-16405-5fafd1b46dcf sees of the volume".into(),
        why: "no agent has reported".into(),
    }];
    Record {
        phase: Phase::Waiting,
        ..record(
            name,
            Some(Diagnosis {
                verdict: Verdict::Unclassified { missing },
                facts: Vec::new(),
            }),
        )
    }
}

/// Makes an incident of these records.
pub fn incident(
    title: &str,
    minutes: i64,
    records: Vec<Record>,
    notes: Vec<(i64, &str)>,
) -> Incident {
    Incident {
        title: title.into(),
        from: start(),
        to: at(minutes * 60_000),
        records,
        notes: notes
            .into_iter()
            .map(|(t, text)| TimelineNote {
                at: at(t),
                text: text.into(),
            })
            .collect(),
    }
}
