//! Proofs for providers' tests, made by the checking functions that production uses, from invented evidence.

use jiff::{SignedDuration, Timestamp};
use reattach_core::{
    cloud::{
        CloudInstance, CloudScope, CloudVolume, DeviceIdentity, InstanceObservation, InstanceState,
        OwnerTags, PowerFacts, VolumeState,
    },
    evidence::{CsiSource, Evidence, NodeFacts, VolumeFacts, VolumeIdentity},
    fact::{Fact, Known, Source},
    ids::{InstanceId, NodeName, ObjectName, Uid, VolumeId},
    proof::{self, FenceProof, UnusedSince, kubelet_handshake},
    stamp::Stamp,
    workload::{ScalePath, TemplateFacts, WorkloadFacts, WorkloadRef},
};
use std::collections::{BTreeMap, BTreeSet};

/// Makes the kubelet handshake proof: the holder's kubelet stopped using the volume after the last pod was gone.
///
/// # Panics
/// Never, unless core demands more of a proof than this evidence has.
#[must_use]
pub fn handshake(volume: &VolumeId, holder: &InstanceId, now: Timestamp) -> FenceProof {
    let node = NodeName::from("node-1");
    let before = now - SignedDuration::from_secs(20);
    let no_user = UnusedSince {
        at: before,
        lease: Some(before),
    };
    kubelet_handshake(
        evidence(volume, holder, &node, now).at(now),
        &node,
        holder,
        &no_user,
        &"recovery".into(),
    )
    .unwrap_or_else(|why| panic!("evidence of a holder that no longer uses the volume: {why}"))
}

/// Makes the off proof: the holder was off in two readings under one account, at a cloud that boots no instance by
/// itself.
///
/// # Panics
/// Never, unless core demands more of a proof than this evidence has.
#[must_use]
pub fn off(volume: &VolumeId, holder: &InstanceId, now: Timestamp) -> FenceProof {
    let node = NodeName::from("node-1");
    let source = || Source::Cloud("test".to_owned());
    let mut evidence = evidence(volume, holder, &node, now);
    for fact in evidence.nodes.values_mut() {
        if let Known::Present(facts) = &mut fact.value {
            facts.ready = false;
        }
    }
    let instance = CloudInstance {
        id: holder.clone(),
        label: "node-1".into(),
        state: InstanceState::Off,
        auto_restart: false,
        owner: OwnerTags::default(),
    };
    evidence
        .instances
        .insert(holder.clone(), Fact::present(instance, source(), now));
    let power = PowerFacts {
        jobs: Vec::new(),
        off_stays_off: true,
    };
    evidence
        .power
        .insert(holder.clone(), Fact::present(power, source(), now));
    let scope = CloudScope("an account".to_owned());
    evidence.cloud_scope = Some(scope.clone());
    let first = InstanceObservation {
        instance: holder.clone(),
        scope,
        state: Some(InstanceState::Off),
        kept_off: None,
        at: now - SignedDuration::from_secs(20),
    };
    proof::off(evidence.at(now), holder, Some(&first))
        .unwrap_or_else(|why| panic!("evidence of a holder that is off: {why}"))
}

/// Returns evidence of a holder whose kubelet no longer uses the volume.
#[must_use]
pub fn evidence(
    volume: &VolumeId,
    holder: &InstanceId,
    node: &NodeName,
    now: Timestamp,
) -> Evidence {
    let source = || Source::Kubernetes("test".to_owned());
    let csi = CsiSource {
        driver: "csi.test".into(),
        handle: volume.to_string().into(),
    };
    let pv = VolumeFacts {
        name: "pvc-1".into(),
        uid: "pv".into(),
        claim_ref: None,
        csi: Some(csi),
        topology: BTreeMap::new(),
        deleting: false,
        attach_required: Some(true),
        tagged_as: BTreeSet::new(),
    };
    let node_facts = NodeFacts {
        name: node.clone(),
        uid: "node".into(),
        instance: Some(holder.clone()),
        ready: true,
        boot_id: "boot".into(),
        volumes_in_use: Vec::new(),
        volumes_attached: Vec::new(),
        taints: Vec::new(),
        lease_renewed: Some(now),
        csi_drivers: Vec::new(),
        out_of_service_by_us: false,
        quarantined: false,
        labels: BTreeMap::new(),
        maintenance: None,
    };
    let cloud = CloudVolume {
        id: volume.clone(),
        label: "pvc1".into(),
        region: "a region".into(),
        size_gib: 10,
        holders: vec![holder.clone()],
        state: VolumeState::Active,
        identity: DeviceIdentity {
            serial: "pvc1".into(),
        },
        owner: OwnerTags::default(),
    };
    Evidence {
        collected_at: now,
        claim_name: ObjectName::new("default", "data"),
        claim: Fact::unknown("not needed", source(), now),
        volume: Fact::present(pv, source(), now),
        attachments: Fact::present(Vec::new(), source(), now),
        pods: Fact::present(Vec::new(), source(), now),
        workload: Fact::present(workload(now), source(), now),
        nodes: BTreeMap::from([(node.clone(), Fact::present(node_facts, source(), now))]),
        guests: BTreeMap::new(),
        asked: None,
        answers: BTreeMap::new(),
        cloud_id: Some(volume.clone()),
        unreadable_handle: None,
        identity: Fact::present(
            VolumeIdentity {
                canonical: Some(volume.to_string().into()),
                ..VolumeIdentity::default()
            },
            source(),
            now,
        ),
        machines: Fact::present(Vec::new(), source(), now),
        cloud_volume: Fact::present(cloud, source(), now),
        instances: BTreeMap::new(),
        snapshots: None,
        jobs: Fact::present(Vec::new(), source(), now),
        events: Vec::new(),
        cloud_scope: None,
        power: BTreeMap::new(),
        orders_expire_after_seconds: None,
        hold_policy: None,
        budgets: None,
        node_pods: BTreeMap::new(),
        node_losses: BTreeMap::new(),
        sightings: Vec::new(),
        declaration: None,
        nothing_under_way: None,
        node_claims: BTreeMap::new(),
        down: None,
        mandate: None,
    }
}

/// Returns a workload at zero replicas with the recovery's stamp.
fn workload(now: Timestamp) -> WorkloadFacts {
    let uid = Uid::from("workload");
    WorkloadFacts {
        workload: WorkloadRef {
            api_version: "apps/v1".into(),
            kind: "StatefulSet".into(),
            plural: "statefulsets".into(),
            name: ObjectName::new("default", "db"),
            uid: uid.clone(),
        },
        resource_version: "1".into(),
        generation: 2,
        deleting: false,
        replicas: 0,
        scaling: ScalePath::Replicas,
        stamp: Some(Ok(Stamp {
            replicas: 1,
            workload: uid,
            recovery: "recovery".into(),
            at: now,
        })),
        rollout: None,
        deletes_claims_when_scaled: false,
        ordered: true,
        autoscalers: Vec::new(),
        managers: Vec::new(),
        pods: Vec::new(),
        claims: Vec::new(),
        template: TemplateFacts::default(),
        pod_dry_run: None,
        dry_run_held: None,
        emptydirs_expendable: false,
        not_remade: None,
    }
}
