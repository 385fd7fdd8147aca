//! The kubelet handshake: the one way to a proof, and every missing piece of it.

use jiff::SignedDuration;
use reattach_core::diagnosis::{Verdict, guest_view};
use reattach_core::fact::Known;
use reattach_core::guest::{DeviceUsers, ScanResult};
use reattach_core::ids::{InstanceId, NodeName};
use reattach_core::proof::{FenceProof, NoProof, ProofKind, UnusedSince, kubelet_handshake};
use reattach_core::stamp::Stamp;
use reattach_core::testkit::{Case, INSTANCE, NODE, device, start, volume_name};

/// The workload is at zero, the pods are gone, the kubelet has let go and renewed its Lease; the cloud has not let go.
fn settled() -> Case {
    Case::deployment()
        .pods(Vec::clear)
        .workload(|w| {
            w.replicas = 0;
            w.stamp = Some(Ok(Stamp {
                replicas: 1,
                workload: w.workload.uid.clone(),
                recovery: Case::recovery(),
                at: start(),
            }));
        })
        .node(|n| {
            n.volumes_in_use.clear();
            n.lease_renewed = Some(start() - SignedDuration::from_secs(4));
        })
}

fn no_user() -> UnusedSince {
    UnusedSince {
        at: start() - SignedDuration::from_secs(10),
        lease: Some(start() - SignedDuration::from_secs(14)),
    }
}

fn proof(case: &Case) -> Result<FenceProof, NoProof> {
    handshake(case, &no_user())
}

fn handshake(case: &Case, no_user: &UnusedSince) -> Result<FenceProof, NoProof> {
    kubelet_handshake(
        case.evidence.at(case.now),
        &NODE.into(),
        &INSTANCE.into(),
        no_user,
        &Case::recovery(),
    )
}

#[test]
fn complete_evidence_proves_volume_and_holder() {
    let proof = proof(&settled()).unwrap();
    assert_eq!(proof.volume().as_str(), "5551");
    assert_eq!(proof.holder(), &InstanceId::from(INSTANCE));
    assert_eq!(proof.made_at(), start());
    let ProofKind::KubeletHandshake {
        node,
        no_user_since,
        lease_renewed,
    } = proof.kind()
    else {
        panic!("{:?}", proof.kind())
    };
    assert_eq!(
        (node, *no_user_since),
        (&NodeName::from(NODE), no_user().at)
    );
    assert!(*lease_renewed > no_user().lease.unwrap());
}

#[test]
fn each_missing_fact_is_named() {
    type Row = (&'static str, fn(Case) -> Case, fn(&NoProof) -> bool);
    let table: [Row; 34] = [
        (
            "count not zero",
            |c| c.workload(|w| w.replicas = 1),
            |n| matches!(n, NoProof::NoHold { .. }),
        ),
        (
            "no stamp",
            |c| c.workload(|w| w.stamp = None),
            |n| matches!(n, NoProof::NoHold { .. }),
        ),
        (
            "another's stamp",
            |c| {
                c.workload(|w| {
                    if let Some(Ok(s)) = &mut w.stamp {
                        s.recovery = "x".into()
                    }
                })
            },
            |n| matches!(n, NoProof::NoHold { .. }),
        ),
        (
            "a stamp of another object",
            |c| {
                c.workload(|w| {
                    if let Some(Ok(s)) = &mut w.stamp {
                        s.workload = "x".into()
                    }
                })
            },
            |n| matches!(n, NoProof::NoHold { .. }),
        ),
        (
            "edited stamp",
            |c| c.workload(|w| w.stamp = Some(Err("edited".into()))),
            |n| matches!(n, NoProof::NoHold { why } if why == "edited"),
        ),
        (
            "workload gone",
            |mut c| {
                c.evidence.workload.value = Known::Absent;
                c
            },
            |n| matches!(n, NoProof::NoHold { .. }),
        ),
        (
            "workload unknown",
            |mut c| {
                c.evidence.workload.value = Known::Unknown { why: "x".into() };
                c
            },
            |n| matches!(n, NoProof::Missing { what, .. } if what.contains("workload")),
        ),
        (
            "workload stale",
            |mut c| {
                c.evidence.workload.at -= SignedDuration::from_secs(31);
                c
            },
            |n| matches!(n, NoProof::Missing { what, .. } if what.contains("workload")),
        ),
        (
            "a pod bound here",
            |c| c.with_pod("x", Some(NODE), false),
            |n| matches!(n, NoProof::PodPresent { .. }),
        ),
        (
            "a pod not bound",
            |c| c.with_pod("x", None, false),
            |n| matches!(n, NoProof::PodPresent { .. }),
        ),
        (
            "a failed pod that terminates",
            |c| {
                c.with_pod("x", Some(NODE), false).pods(|p| {
                    for p in p {
                        p.phase = "Failed".into();
                        p.deleting_since = Some(start())
                    }
                })
            },
            |n| matches!(n, NoProof::PodPresent { .. }),
        ),
        (
            "pods unknown",
            |mut c| {
                c.evidence.pods.value = Known::Unknown { why: "x".into() };
                c
            },
            |n| matches!(n, NoProof::Missing { what, .. } if what.contains("pods")),
        ),
        (
            "pods stale",
            |mut c| {
                c.evidence.pods.at -= SignedDuration::from_secs(31);
                c
            },
            |n| matches!(n, NoProof::Missing { what, .. } if what.contains("pods")),
        ),
        (
            "volume unknown",
            |mut c| {
                c.evidence.volume.value = Known::Unknown { why: "x".into() };
                c
            },
            |n| matches!(n, NoProof::Missing { what, .. } if what.contains("PersistentVolume")),
        ),
        (
            "not a CSI volume",
            |c| c.volume(|v| v.csi = None),
            |n| matches!(n, NoProof::Missing { .. }),
        ),
        (
            "Node not read",
            |mut c| {
                c.evidence.nodes.clear();
                c
            },
            |n| matches!(n, NoProof::Missing { what, .. } if what.contains(NODE)),
        ),
        (
            "Node gone",
            |mut c| {
                c.evidence.nodes.get_mut(&NODE.into()).unwrap().value = Known::Absent;
                c
            },
            |n| matches!(n, NoProof::Missing { what, .. } if what.contains(NODE)),
        ),
        (
            "Node stale",
            |mut c| {
                c.evidence.nodes.get_mut(&NODE.into()).unwrap().at -= SignedDuration::from_secs(31);
                c
            },
            |n| matches!(n, NoProof::Missing { what, .. } if what.contains(NODE)),
        ),
        (
            "Node read before the pods were gone",
            |mut c| {
                c.evidence.nodes.get_mut(&NODE.into()).unwrap().at -= SignedDuration::from_secs(11);
                c
            },
            |n| matches!(n, NoProof::LeaseNotRenewed { .. }),
        ),
        (
            "Node not Ready",
            |c| c.node(|n| n.ready = false),
            |n| matches!(n, NoProof::NodeNotReady { .. }),
        ),
        (
            "another machine",
            |c| c.node(|n| n.instance = Some("7".into())),
            |n| matches!(n, NoProof::Holder { found, .. } if found.contains('7')),
        ),
        (
            "no machine",
            |c| c.node(|n| n.instance = None),
            |n| matches!(n, NoProof::Holder { .. }),
        ),
        (
            "in use",
            |c| c.node(|n| n.volumes_in_use = vec![volume_name()]),
            |n| matches!(n, NoProof::InUse { .. }),
        ),
        (
            "Lease gone",
            |c| c.node(|n| n.lease_renewed = None),
            |n| matches!(n, NoProof::LeaseNotRenewed { .. }),
        ),
        (
            "Lease as it was",
            |c| c.node(|n| n.lease_renewed = no_user().lease),
            |n| matches!(n, NoProof::LeaseNotRenewed { .. }),
        ),
        (
            "Lease older",
            |c| c.node(|n| n.lease_renewed = Some(start() - SignedDuration::from_secs(50))),
            |n| matches!(n, NoProof::LeaseNotRenewed { .. }),
        ),
        (
            "collected before",
            |mut c| {
                c.evidence.collected_at -= SignedDuration::from_secs(11);
                c
            },
            |n| matches!(n, NoProof::LeaseNotRenewed { .. }),
        ),
        (
            "collected at the moment at which the pods were seen gone",
            |mut c| {
                c.evidence.collected_at = no_user().at;
                c
            },
            |n| matches!(n, NoProof::LeaseNotRenewed { .. }),
        ),
        (
            "an opener",
            |c| {
                c.guest(|g| {
                    g.devices = vec![reattach_core::guest::GuestDevice {
                        users: DeviceUsers {
                            openers: vec!["7 dd".into()],
                            ..DeviceUsers::default()
                        },
                        ..device()
                    }]
                })
            },
            |n| matches!(n, NoProof::Veto { .. }),
        ),
        (
            "a live mount",
            |c| c.with_mount(false),
            |n| matches!(n, NoProof::Veto { what, .. } if what.contains("globalmount")),
        ),
        (
            "an answer that sees a user",
            |c| {
                c.answer(ScanResult::InUse {
                    users: DeviceUsers {
                        swap: true,
                        ..DeviceUsers::default()
                    },
                })
            },
            |n| matches!(n, NoProof::Veto { .. }),
        ),
        (
            "no holder",
            |c| c.cloud(|c| c.holders.clear()),
            |n| matches!(n, NoProof::Holder { found, .. } if found == "no instance"),
        ),
        (
            "two holders",
            |c| c.cloud(|c| c.holders.push("7".into())),
            |n| matches!(n, NoProof::Holder { found, .. } if found.contains('7')),
        ),
        (
            "another holder",
            |c| c.cloud(|c| c.holders = vec!["7".into()]),
            |n| matches!(n, NoProof::Holder { .. }),
        ),
    ];
    for (name, spoil, is) in table {
        let missing = proof(&spoil(settled())).unwrap_err();
        assert!(is(&missing), "{name}: {missing:?}");
        let text = missing.to_string();
        assert!(!text.is_empty() && !text.contains('\n'), "{name}: {text}");
    }
    for gap in [Known::Absent, Known::Unknown { why: "503".into() }] {
        let mut case = settled();
        case.evidence.cloud_volume.value = gap;
        assert!(
            matches!(proof(&case), Err(NoProof::Missing { what, .. }) if what.contains("cloud"))
        );
    }
}

/// Under a hold the probe stands for the stamp, and only a pod that is gated and bound to no node is no user.
#[test]
fn a_probed_hold_counts_like_a_stamp() {
    let held = |probe: Option<bool>| {
        settled().workload(|w| {
            (w.stamp, w.replicas, w.dry_run_held) = (None, 1, probe);
        })
    };
    let with_pod = |node: Option<&str>, gated: bool| {
        let case = held(Some(true)).with_pod("redis-new", node, true);
        proof(&case.pod(|p| p.held = gated))
    };
    assert!(proof(&held(Some(true))).is_ok());
    for probe in [None, Some(false)] {
        assert!(
            matches!(proof(&held(probe)), Err(NoProof::NoHold { .. })),
            "{probe:?}"
        );
    }
    assert!(with_pod(None, true).is_ok(), "it waits for the lift");
    for gated in [true, false] {
        assert!(
            with_pod(Some("node-b"), gated).is_ok(),
            "it is bound to another node for good"
        );
    }
    for (node, gated) in [(None, false), (Some(NODE), false), (Some(NODE), true)] {
        let refused = with_pod(node, gated);
        assert!(
            matches!(refused, Err(NoProof::PodPresent { .. })),
            "{node:?}, gated {gated}: {refused:?}"
        );
    }
}

#[test]
fn a_handshake_that_began_without_a_lease_never_ends() {
    let no_lease = UnusedSince {
        lease: None,
        ..no_user()
    };
    assert!(matches!(
        handshake(&settled(), &no_lease),
        Err(NoProof::LeaseNotRenewed { .. })
    ));
}

#[test]
fn a_dead_mount_and_a_silent_agent_are_no_veto() {
    assert!(proof(&settled().with_mount(true)).is_ok());
    let mut silent = settled();
    silent.evidence.guests.clear();
    silent.evidence.answers.clear();
    assert!(proof(&silent).is_ok());
}

/// What an agent saw when it was asked something else may be over.
#[test]
fn an_answer_to_another_question_is_no_veto() {
    let saw = || {
        settled().answer(ScanResult::InUse {
            users: DeviceUsers {
                swap: true,
                ..DeviceUsers::default()
            },
        })
    };
    assert!(matches!(proof(&saw()), Err(NoProof::Veto { .. })));
    let (mut later, mut of_another) = (saw(), saw());
    later.evidence.asked = Some((Case::recovery(), 2));
    of_another.evidence.asked = Some(("another recovery".into(), 1));
    for case in [later, of_another] {
        assert!(proof(&case).is_ok(), "{:?}", proof(&case));
    }
}

/// A device that is there and idle is no veto: the handshake itself is the proof.
#[test]
fn an_idle_device_is_no_veto() {
    assert!(proof(&settled().device_idle()).is_ok());
}

/// [`FenceProof`] has no public field, constructor or `Deserialize`: only the functions of its module make one. The compiler keeps
/// this; here the source is read so that a later `impl` or a public field does not go unnoticed.
#[test]
fn only_complete_evidence_makes_a_proof() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut literals = Vec::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for (n, line) in text.lines().enumerate() {
                if line.contains("FenceProof {") && !line.contains("impl ") && !line.contains("-> ")
                {
                    literals.push(format!(
                        "{}:{}: {}",
                        path.file_name().unwrap().to_string_lossy(),
                        n + 1,
                        line.trim()
                    ));
                }
            }
        }
    }
    assert_eq!(literals.len(), 1, "the definition alone: {literals:?}");
    let text = std::fs::read_to_string(
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/proof/mod.rs"),
    )
    .unwrap();
    let (before, body) = text.split_once("pub struct FenceProof {").unwrap();
    let derive = before.lines().rev().find(|l| l.contains("derive")).unwrap();
    assert!(
        !derive.contains("Deserialize") && !derive.contains("Default"),
        "{derive}"
    );
    assert!(!body.split('}').next().unwrap().contains("pub"), "{body}");
    let (_, methods) = text.split_once("impl FenceProof {").unwrap();
    let (methods, _) = methods.split_once("\n}\n").unwrap();
    let makers: Vec<&str> = methods.lines().filter(|l| l.contains("-> Self")).collect();
    assert_eq!(makers, ["    ) -> Self {"], "one maker");
    assert!(
        methods.contains("\n    fn new(") && !methods.contains("pub fn new("),
        "and it is private"
    );
}

/// The unasked report of a guest whose volume was renamed in the cloud must not read as a phantom.
#[test]
fn a_live_mount_is_never_seen_as_dead() {
    let case = Case::deployment().unasked().with_mount(false);
    assert!(!matches!(
        guest_view(case.evidence.at(case.now), &NODE.into()),
        reattach_core::diagnosis::GuestView::DeadMount { .. }
    ));
    assert!(!matches!(case.diagnosis().verdict, Verdict::Ours { .. }));
}
