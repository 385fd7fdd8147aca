//! Converts EC2's objects into the common form. An object without a field that a decision needs cannot be used.

use crate::handle;
use aws_sdk_ec2::{
    primitives::DateTime,
    types::{
        Instance, InstanceLifecycleType, InstanceStateName, Snapshot, SnapshotState as State, Tag,
        Volume, VolumeAttachment, VolumeAttachmentState, VolumeState as VolumeWord,
    },
};
use jiff::Timestamp;
use reattach_core::{
    cloud::{
        CloudInstance, CloudJob, CloudSnapshot, CloudVolume, DeviceIdentity, InstanceState,
        JobKind, JobStatus, OwnerTags, PowerChange, PowerFacts, PowerJob, SnapshotState,
        VolumeState,
    },
    ids::{InstanceId, VolumeId},
};

/// Value of [`CloudJob::action`] for a detach.
pub(crate) const DETACH: &str = "detach_volume";

/// Value of [`CloudJob::action`] for a detach that waits until the guest stops using the device (EC2: `busy`). The wait has
/// no limit.
pub(crate) const DETACH_BUSY: &str = "detach_volume_busy";

/// Value of [`CloudJob::action`] for an attach.
pub(crate) const ATTACH: &str = "attach_volume";

/// Holder of an attachment without instance and resource.
const MANAGED: &str = "a-resource-managed-by-aws";

/// Converts a volume. The error is a sentence.
pub(crate) fn volume(found: &Volume) -> Result<CloudVolume, String> {
    let id = found.volume_id().ok_or("it has no volumeId")?;
    if !handle::is_volume(id) {
        return Err(format!("its volumeId is {:?}", crate::classify::quote(id)));
    }
    // An answer without the list does not show that the volume is detached.
    let attachments = found
        .attachments
        .as_deref()
        .ok_or("it has no attachmentSet")?;
    let word = found.state().ok_or("it has no status")?;
    let size = found
        .size()
        .and_then(|s| u64::try_from(s).ok())
        .ok_or("it has no size")?;
    let zone = found
        .availability_zone()
        .ok_or("it has no availabilityZone")?;
    let mut holders: Vec<_> = attachments
        .iter()
        .filter(|a| holds(a))
        .map(holder)
        .collect();
    holders.sort();
    holders.dedup();
    Ok(CloudVolume {
        state: volume_state(word, attachments, !holders.is_empty()),
        id: VolumeId::new(id),
        label: name(found.tags()).unwrap_or(id).to_owned(),
        region: zone.to_owned(),
        size_gib: size,
        holders,
        // Serial number of an EBS volume's NVMe controller.
        identity: DeviceIdentity {
            serial: id.replacen('-', "", 1),
        },
        owner: owner(found.tags()),
    })
}

/// Returns whether an attachment exists. Only the state `detached` shows that it does not.
fn holds(attachment: &VolumeAttachment) -> bool {
    attachment.state() != Some(&VolumeAttachmentState::Detached)
}

/// Returns the holder of the attachment. A resource that AWS manages is named by its ARN, and counts as a holder.
fn holder(attachment: &VolumeAttachment) -> InstanceId {
    let by = [
        attachment.instance_id(),
        attachment.associated_resource(),
        attachment.instance_owning_service(),
    ];
    InstanceId::new(by.into_iter().flatten().next().unwrap_or(MANAGED))
}

fn volume_state(word: &VolumeWord, attachments: &[VolumeAttachment], held: bool) -> VolumeState {
    let states = || {
        attachments
            .iter()
            .filter(|a| holds(a))
            .map(VolumeAttachment::state)
    };
    let going = |s: Option<&VolumeAttachmentState>| {
        matches!(
            s,
            Some(VolumeAttachmentState::Detaching | VolumeAttachmentState::Busy)
        )
    };
    if states().any(going) {
        return VolumeState::Detaching;
    }
    for state in states() {
        match state {
            Some(VolumeAttachmentState::Attached) => {}
            Some(VolumeAttachmentState::Attaching) => {
                return VolumeState::Busy {
                    doing: "attaching".to_owned(),
                };
            }
            Some(other) => return VolumeState::Other(other.as_str().to_owned()),
            None => return VolumeState::Other("an attachment without a status".to_owned()),
        }
    }
    match word {
        VolumeWord::Available if !held => VolumeState::Active,
        VolumeWord::InUse if held => VolumeState::Active,
        // The two parts of one answer contradict each other.
        VolumeWord::Available => VolumeState::Other("available, with an attachment".to_owned()),
        VolumeWord::InUse => VolumeState::Other("in-use, without an attachment".to_owned()),
        VolumeWord::Creating | VolumeWord::Deleting => VolumeState::Busy {
            doing: word.as_str().to_owned(),
        },
        other => VolumeState::Other(other.as_str().to_owned()),
    }
}

/// Derives jobs from the attachments of a volume, because EC2 keeps no history of them. An attach or detach under way is
/// pending, with the time of the attachment. A present attachment is a finished attach.
pub(crate) fn jobs(found: &Volume) -> Result<Vec<CloudJob>, String> {
    let id = found.volume_id().ok_or("it has no volumeId")?;
    let attachments = found
        .attachments
        .as_deref()
        .ok_or("it has no attachmentSet")?;
    let mut jobs = Vec::new();
    for attachment in attachments.iter().filter(|a| holds(a)) {
        let (kind, action, status) = match attachment.state() {
            Some(VolumeAttachmentState::Attaching) => (JobKind::Attach, ATTACH, JobStatus::Started),
            Some(VolumeAttachmentState::Attached) => (JobKind::Attach, ATTACH, JobStatus::Finished),
            Some(VolumeAttachmentState::Detaching) => (JobKind::Detach, DETACH, JobStatus::Started),
            Some(VolumeAttachmentState::Busy) => (JobKind::Detach, DETACH_BUSY, JobStatus::Started),
            Some(other) => (
                JobKind::Other,
                other.as_str(),
                JobStatus::Other(other.as_str().to_owned()),
            ),
            None => return Err("an attachment has no status".to_owned()),
        };
        let holder = holder(attachment);
        jobs.push(CloudJob {
            id: format!("{id}/{holder}/{action}"),
            kind,
            action: action.to_owned(),
            status,
            volume: Some(VolumeId::new(id)),
            instance: Some(holder),
            created: attachment
                .attach_time()
                .map_or(Ok(Timestamp::UNIX_EPOCH), time)?,
        });
    }
    jobs.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    Ok(jobs)
}

/// Converts an instance. The error is a sentence.
pub(crate) fn instance(found: &Instance) -> Result<CloudInstance, String> {
    let id = found.instance_id().ok_or("it has no instanceId")?;
    let word = found
        .state()
        .and_then(|s| s.name())
        .ok_or("it has no state")?;
    let state = match word {
        InstanceStateName::Running => InstanceState::Running,
        InstanceStateName::Stopped if hibernated(found) => {
            // The next start restores its memory, with writes that were under way.
            InstanceState::Transitional("stopped (hibernated)".to_owned())
        }
        InstanceStateName::Stopped => InstanceState::Off,
        InstanceStateName::Stopping | InstanceStateName::ShuttingDown => InstanceState::Stopping,
        InstanceStateName::Terminated => InstanceState::Gone,
        InstanceStateName::Pending => InstanceState::Transitional(word.as_str().to_owned()),
        other => InstanceState::Unknown(other.as_str().to_owned()),
    };
    Ok(CloudInstance {
        id: InstanceId::new(id),
        label: name(found.tags()).unwrap_or(id).to_owned(),
        state,
        auto_restart: starts_by_itself(found),
        owner: OwnerTags {
            clusters: owner(found.tags()).clusters,
            ..OwnerTags::default()
        },
    })
}

/// Derives power jobs from an instance's state, because EC2 keeps no history of them. A start or stop under way is pending,
/// with the time of the last launch. A finished one does not show.
pub(crate) fn power(found: &Instance) -> Result<PowerFacts, String> {
    let id = found.instance_id().ok_or("it has no instanceId")?;
    let word = found
        .state()
        .and_then(|s| s.name())
        .ok_or("it has no state")?;
    let change = match word {
        InstanceStateName::Pending => Some(PowerChange::On),
        InstanceStateName::Stopping | InstanceStateName::ShuttingDown => Some(PowerChange::Off),
        _ => None,
    };
    let created = found
        .launch_time()
        .map_or(Ok(Timestamp::UNIX_EPOCH), time)?;
    let job = change.map(|change| PowerJob {
        id: format!("{id}/{}", word.as_str()),
        change,
        status: JobStatus::Started,
        by: None,
        created,
        finished: None,
    });
    Ok(PowerFacts {
        jobs: job.into_iter().collect(),
        off_stays_off: !starts_by_itself(found),
    })
}

/// Returns whether EC2 may start the stopped instance by itself. It does so only with a Spot Instance that it stopped.
fn starts_by_itself(found: &Instance) -> bool {
    found.instance_lifecycle() == Some(&InstanceLifecycleType::Spot)
}

/// Returns whether the instance was hibernated, by EC2's reason for the stop (`Client.UserInitiatedHibernate`).
fn hibernated(found: &Instance) -> bool {
    let reason = found.state_reason();
    [
        reason.and_then(|r| r.code()),
        reason.and_then(|r| r.message()),
        found.state_transition_reason(),
    ]
    .into_iter()
    .flatten()
    .any(|text| text.to_ascii_lowercase().contains("hibernat"))
}

/// Converts a snapshot. The error is a sentence.
pub(crate) fn snapshot(found: &Snapshot) -> Result<CloudSnapshot, String> {
    let state = match found.state().ok_or("it has no status")? {
        State::Pending => SnapshotState::Pending,
        State::Completed => SnapshotState::Completed,
        State::Error => {
            let why = found.state_message().unwrap_or("EC2 gives no reason");
            SnapshotState::Failed {
                why: crate::classify::quote(why),
            }
        }
        other => SnapshotState::Other(other.as_str().to_owned()),
    };
    Ok(CloudSnapshot {
        id: found
            .snapshot_id()
            .ok_or("it has no snapshotId")?
            .to_owned(),
        volume: VolumeId::new(found.volume_id().ok_or("it has no volumeId")?),
        label: found.description().unwrap_or_default().to_owned(),
        state,
        started: found
            .start_time()
            .ok_or("it has no startTime")
            .map_err(str::to_owned)
            .and_then(time)?,
    })
}

/// Converts a time of the API.
pub(crate) fn time(at: &DateTime) -> Result<Timestamp, String> {
    let nanoseconds = i32::try_from(at.subsec_nanos()).unwrap_or(0);
    Timestamp::new(at.secs(), nanoseconds).map_err(|_| "it has an invalid time".to_owned())
}

fn name(tags: &[Tag]) -> Option<&str> {
    tags.iter()
        .find(|tag| tag.key() == Some("Name"))
        .and_then(Tag::value)
        .filter(|name| !name.is_empty())
}

/// Prefix of a tag's key that ends with the name of the object's cluster. The value (`owned`, or `shared` for an object of
/// several clusters) is not used. The EBS CSI driver writes the tag if `--k8s-tag-cluster-id` is set; Kubernetes' AWS cloud
/// provider requires it of instances.
/// Sources: aws-ebs-csi-driver `pkg/driver/constants.go`, `ResourceLifecycleTagPrefix`; cloud-provider-aws
/// `pkg/providers/v1/tags.go`, `TagNameKubernetesClusterPrefix`.
const CLUSTER_PREFIX: &str = "kubernetes.io/cluster/";

/// Keys of tags whose value is the name of a cluster. The first is the older form of the prefix above, the second the
/// driver's own for IAM policies (aws-ebs-csi-driver `pkg/driver/constants.go`, `KubernetesClusterTag`,
/// `ClusterNameTagKey`). EKS writes the others on the instances of a managed node group and on its other resources (EKS
/// user guide, "Organize Amazon EKS resources with tags").
const CLUSTER_KEYS: [&str; 4] = [
    "KubernetesCluster",
    "ebs.csi.aws.com/cluster-name",
    "eks:cluster-name",
    "aws:eks:cluster-name",
];

/// Keys of tags whose value is the name of the PersistentVolume that a volume was made for. The driver writes the first
/// on every volume, with the name from external-provisioner, which is that of the PersistentVolume. It writes the second if
/// external-provisioner runs with `--extra-create-metadata`, as in the driver's Helm chart and manifests.
/// Sources: aws-ebs-csi-driver `pkg/cloud/cloud.go`, `VolumeNameTagKey`; `pkg/driver/constants.go`, `PVNameTag`.
const VOLUME_KEYS: [&str; 2] = ["CSIVolumeName", "kubernetes.io/created-for/pv/name"];

/// Keys of the tags with namespace and name of the claim that a volume was made for. They need the option above.
/// Source: aws-ebs-csi-driver `pkg/driver/constants.go`, `PVCNamespaceTag`, `PVCNameTag`.
const CLAIM_KEYS: [&str; 2] = [
    "kubernetes.io/created-for/pvc/namespace",
    "kubernetes.io/created-for/pvc/name",
];

/// Returns the owner that the tags name. A tag that the driver writes on every volume (`ebs.csi.aws.com/cluster` is always
/// `true`) names none.
fn owner(tags: &[Tag]) -> OwnerTags {
    let mut owner = OwnerTags::default();
    for tag in tags {
        let (Some(key), Some(value)) = (tag.key(), tag.value()) else {
            continue;
        };
        if let Some(name) = key.strip_prefix(CLUSTER_PREFIX) {
            owner.add_cluster(name);
        } else if CLUSTER_KEYS.contains(&key) {
            owner.add_cluster(value);
        } else if VOLUME_KEYS.contains(&key) {
            owner.add_volume(value);
        }
    }
    let value = |key| {
        tags.iter()
            .find(|t| t.key() == Some(key))
            .and_then(Tag::value)
            .filter(|v| !v.is_empty())
    };
    if let [Some(namespace), Some(name)] = CLAIM_KEYS.map(value) {
        owner.set_claim(namespace, name);
    }
    owner
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_ec2::types::{InstanceState as Power, StateReason};

    const ID: &str = "vol-0123456789abcdef0";

    fn attachment(instance: Option<&str>, state: Option<&str>) -> VolumeAttachment {
        VolumeAttachment::builder()
            .set_instance_id(instance.map(str::to_owned))
            .set_state(state.map(VolumeAttachmentState::from))
            .attach_time(DateTime::from_secs(1_600_000_000))
            .build()
    }

    fn raw(word: &str, attachments: Vec<VolumeAttachment>) -> Volume {
        Volume::builder()
            .volume_id(ID)
            .state(VolumeWord::from(word))
            .size(20)
            .availability_zone("eu-central-1a")
            .set_attachments(Some(attachments))
            .build()
    }

    #[test]
    fn volumes_by_state_and_attachments() {
        let busy = |doing: &str| VolumeState::Busy {
            doing: doing.to_owned(),
        };
        let other = |word: &str| VolumeState::Other(word.to_owned());
        let table = [
            ("available", vec![], VolumeState::Active, vec![]),
            (
                "available",
                vec![(Some("i-1"), Some("detached"))],
                VolumeState::Active,
                vec![],
            ),
            (
                "in-use",
                vec![(Some("i-1"), Some("attached"))],
                VolumeState::Active,
                vec!["i-1"],
            ),
            (
                "in-use",
                vec![(Some("i-1"), Some("attaching"))],
                busy("attaching"),
                vec!["i-1"],
            ),
            (
                "in-use",
                vec![(Some("i-1"), Some("detaching"))],
                VolumeState::Detaching,
                vec!["i-1"],
            ),
            (
                "in-use",
                vec![(Some("i-1"), Some("busy"))],
                VolumeState::Detaching,
                vec!["i-1"],
            ),
            (
                "in-use",
                vec![
                    (Some("i-2"), Some("attached")),
                    (Some("i-1"), Some("attached")),
                ],
                VolumeState::Active,
                vec!["i-1", "i-2"],
            ),
            (
                "in-use",
                vec![
                    (Some("i-2"), Some("attaching")),
                    (Some("i-1"), Some("detaching")),
                ],
                VolumeState::Detaching,
                vec!["i-1", "i-2"],
            ),
            (
                "in-use",
                vec![(None, Some("attached"))],
                VolumeState::Active,
                vec![MANAGED],
            ),
            (
                "in-use",
                vec![(Some("i-1"), Some("levitating"))],
                other("levitating"),
                vec!["i-1"],
            ),
            (
                "in-use",
                vec![(Some("i-1"), None)],
                other("an attachment without a status"),
                vec!["i-1"],
            ),
            (
                "in-use",
                vec![],
                other("in-use, without an attachment"),
                vec![],
            ),
            (
                "available",
                vec![(Some("i-1"), Some("attached"))],
                other("available, with an attachment"),
                vec!["i-1"],
            ),
            ("creating", vec![], busy("creating"), vec![]),
            ("error", vec![], other("error"), vec![]),
        ];
        for (word, attachments, state, holders) in table {
            let shown = format!("{word} {attachments:?}");
            let found = raw(
                word,
                attachments
                    .into_iter()
                    .map(|(i, s)| attachment(i, s))
                    .collect(),
            );
            let found = volume(&found).expect("a volume");
            assert_eq!(found.state, state, "{shown}");
            assert_eq!(
                found
                    .holders
                    .iter()
                    .map(InstanceId::as_str)
                    .collect::<Vec<_>>(),
                holders,
                "{shown}"
            );
        }
    }

    #[test]
    fn a_resource_that_aws_manages_is_a_holder() {
        let arn = "arn:aws:ec2:eu-central-1:1:something/1";
        let by_arn = VolumeAttachment::builder()
            .associated_resource(arn)
            .state(VolumeAttachmentState::Attached)
            .build();
        let found = volume(&raw("in-use", vec![by_arn])).expect("a volume");
        assert_eq!(found.holders, [InstanceId::new(arn)]);
    }

    #[test]
    fn names_and_serials() {
        let found = volume(&raw("available", vec![])).expect("a volume");
        assert_eq!(
            (found.label.as_str(), found.identity.serial.as_str()),
            (ID, "vol0123456789abcdef0")
        );
        let mut named = raw("available", vec![]);
        named.tags = Some(vec![Tag::builder().key("Name").value("db").build()]);
        assert_eq!(volume(&named).expect("a volume").label, "db");
    }

    #[test]
    fn tags_name_owners() {
        let tags = |all: &[(&str, &str)]| -> Vec<Tag> {
            all.iter()
                .map(|(key, value)| Tag::builder().key(*key).value(*value).build())
                .collect()
        };
        // As the driver writes them with `--k8s-tag-cluster-id prod` and `--extra-create-metadata`.
        let drivers = tags(&[
            ("CSIVolumeName", "pvc-1"),
            ("KubernetesCluster", "prod"),
            ("Name", "prod-dynamic-pvc-1"),
            ("ebs.csi.aws.com/cluster", "true"),
            ("ebs.csi.aws.com/cluster-name", "prod"),
            ("kubernetes.io/cluster/prod", "owned"),
            ("kubernetes.io/created-for/pv/name", "pvc-1"),
            ("kubernetes.io/created-for/pvc/name", "data"),
            ("kubernetes.io/created-for/pvc/namespace", "shop"),
        ]);
        let mut shown = raw("available", vec![]);
        shown.tags = Some(drivers);
        let expected = OwnerTags {
            clusters: ["prod".into()].into(),
            volumes: ["pvc-1".into()].into(),
            claim: Some(reattach_core::ids::ObjectName::new("shop", "data")),
        };
        assert_eq!(volume(&shown).expect("a volume").owner, expected);
        // Each tag by itself.
        let clusters = |all: &[(&str, &str)]| -> Vec<String> {
            owner(&tags(all))
                .clusters
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        for key in CLUSTER_KEYS {
            assert_eq!(clusters(&[(key, "a")]), ["a"], "{key}");
        }
        assert_eq!(
            clusters(&[
                ("kubernetes.io/cluster/a", "shared"),
                ("kubernetes.io/cluster/b", "")
            ]),
            ["a", "b"]
        );
        for key in VOLUME_KEYS {
            assert!(
                owner(&tags(&[(key, "pvc-2")]))
                    .volumes
                    .contains(&"pvc-2".into()),
                "{key}"
            );
        }
        // A claim needs both a namespace and a name.
        for none in [
            &[][..],
            &[(CLAIM_KEYS[0], "shop")],
            &[(CLAIM_KEYS[1], "data"), (CLAIM_KEYS[0], "")],
            &[
                ("Name", "prod"),
                ("ebs.csi.aws.com/cluster", "true"),
                ("kubernetes.io/cluster/", "owned"),
            ],
        ] {
            assert!(owner(&tags(none)).is_empty(), "{none:?}");
        }
        // Tags of an instance name only clusters.
        let state = Power::builder().name(InstanceStateName::Running).build();
        let machine = Instance::builder().instance_id("i-1").state(state);
        let machine = machine.set_tags(shown.tags.clone()).build();
        let expected = OwnerTags {
            clusters: expected.clusters,
            ..OwnerTags::default()
        };
        assert_eq!(instance(&machine).expect("an instance").owner, expected);
    }

    #[test]
    fn an_answer_without_required_fields_is_an_error() {
        let mut bare = raw("available", vec![]);
        bare.attachments = None;
        assert!(volume(&bare).is_err() && jobs(&bare).is_err());
        let mut bare = raw("available", vec![]);
        bare.state = None;
        assert!(volume(&bare).is_err());
        let mut odd = raw("available", vec![]);
        odd.volume_id = Some("vol-*".to_owned());
        assert!(volume(&odd).is_err());
        assert!(jobs(&raw("in-use", vec![attachment(Some("i-1"), None)])).is_err());
    }

    #[test]
    fn attachments_become_jobs() {
        let table = [
            ("attaching", JobKind::Attach, ATTACH, JobStatus::Started),
            ("attached", JobKind::Attach, ATTACH, JobStatus::Finished),
            ("detaching", JobKind::Detach, DETACH, JobStatus::Started),
            ("busy", JobKind::Detach, DETACH_BUSY, JobStatus::Started),
            (
                "levitating",
                JobKind::Other,
                "levitating",
                JobStatus::Other("levitating".to_owned()),
            ),
        ];
        for (state, kind, action, status) in table {
            let found =
                jobs(&raw("in-use", vec![attachment(Some("i-1"), Some(state))])).expect("jobs");
            let [job] = &found[..] else {
                panic!("{found:?}")
            };
            assert_eq!(
                (job.kind, job.action.as_str(), &job.status),
                (kind, action, &status)
            );
            assert_eq!(
                (job.instance.clone(), job.created.as_second()),
                (Some("i-1".into()), 1_600_000_000)
            );
        }
        assert_eq!(
            jobs(&raw(
                "in-use",
                vec![attachment(Some("i-1"), Some("detached"))]
            )),
            Ok(vec![])
        );
    }

    #[test]
    fn instances() {
        let base = |word: &str| {
            let state = Power::builder().name(InstanceStateName::from(word)).build();
            Instance::builder().instance_id("i-1").state(state)
        };
        let state = |word: &str| instance(&base(word).build()).expect("an instance").state;
        assert_eq!(state("running"), InstanceState::Running);
        assert_eq!(state("stopped"), InstanceState::Off);
        assert_eq!(state("stopping"), InstanceState::Stopping);
        assert_eq!(state("shutting-down"), InstanceState::Stopping);
        assert_eq!(state("terminated"), InstanceState::Gone);
        assert_eq!(
            state("pending"),
            InstanceState::Transitional("pending".into())
        );
        assert_eq!(
            state("levitating"),
            InstanceState::Unknown("levitating".into())
        );
        let reason = StateReason::builder()
            .code("Client.UserInitiatedHibernate")
            .build();
        let hibernated =
            instance(&base("stopped").state_reason(reason).build()).expect("an instance");
        assert_eq!(
            hibernated.state,
            InstanceState::Transitional("stopped (hibernated)".into())
        );
        assert!(!hibernated.auto_restart);
        let spot = base("stopped")
            .instance_lifecycle(InstanceLifecycleType::Spot)
            .build();
        assert!(instance(&spot).expect("an instance").auto_restart);
        assert!(!power(&spot).expect("facts").off_stays_off);
        assert!(
            power(&base("stopped").build())
                .expect("facts")
                .off_stays_off
        );
        let jobs = |word: &str| power(&base(word).build()).expect("facts").jobs;
        assert!(
            jobs("running").is_empty()
                && jobs("stopped").is_empty()
                && jobs("terminated").is_empty()
        );
        assert!(
            matches!(&jobs("pending")[..], [job] if job.change == PowerChange::On && job.is_pending())
        );
        assert!(
            matches!(&jobs("stopping")[..], [job] if job.change == PowerChange::Off && job.is_pending())
        );
        assert!(instance(&Instance::builder().instance_id("i-1").build()).is_err());
    }
}
