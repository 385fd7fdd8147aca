//! Making a plan from evidence, a diagnosis and a runbook; or every reason why not.

use super::{
    Downtime, NodeWide, PLAN_VERSION, PinnedAttachment, Pins, Plan, PlannedStep, Releases, Target,
    before_fencing, before_holding, before_scaling, general,
};
use crate::budget::{BudgetFacts, StuckPods};
use crate::cloud::InstanceState;
use crate::diagnosis::{Diagnosis, StuckCause, Trouble, Verdict};
use crate::evidence::{CsiSource, EvidenceAt, PodFacts};
use crate::fact::Missing;
use crate::ids::{InstanceId, PlanHash};
use crate::loss::EmptyDirs;
use crate::plain;
use crate::plan::{Accepting, Refusal, accepted_losses, losses};
use crate::proof::is_off_for_good;
use crate::runbook::{Holding, Runbook, RunbookStep};
use crate::steps::StepKind;
use crate::steps::{Available, Describe};

/// What a plan is asked for.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The runbook.
    pub runbook: &'a Runbook,
    /// The workload that a person named, as `Kind/name`, accepting that all its replicas stop.
    pub confirm_workload: Option<&'a str>,
    /// What a person would type at the cloud, from the provider.
    pub commands: Commands<'a>,
    /// Whether the agent's unasked report will do instead of an answer to a challenge: for showing only.
    pub for_show: bool,
    /// What the cloud can do and people allow, besides a plain detach.
    pub allowed: Allowed,
}

/// What a person would type at the cloud.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commands<'a> {
    /// To detach the volume.
    pub detach: &'a str,
    /// To power the holder off.
    pub power_off: &'a str,
    /// To power it on.
    pub power_on: &'a str,
    /// Switches the holder's automatic restart off.
    pub keep_off: &'a str,
    /// Switches the holder's automatic restart on.
    pub let_boot: &'a str,
    /// To make a snapshot of the volume.
    pub snapshot: &'a str,
}

/// What the cloud can do and a policy or a person allows. Steps that need more are left out of the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Powering the holder off.
    pub power_off: bool,
    /// Powering it on again afterwards.
    pub power_on: bool,
    /// The cloud's automatic restart of an instance can be switched.
    pub keep_off: bool,
    /// Detaching by force.
    pub force: bool,
    /// A snapshot of the volume before that.
    pub snapshot: Snapshots,
    /// What becomes of emptyDirs.
    pub empty_dirs: EmptyDirs,
    /// What becomes of a stuck pod whose eviction a PodDisruptionBudget refuses.
    pub stuck_pods: StuckPods,
}

/// Whether a volume is snapshotted before it is detached by force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Snapshots {
    /// No.
    #[default]
    Never,
    /// Tried; the run goes on where it fails.
    BestEffort,
    /// Nothing is detached by force without it.
    Required,
}

/// Makes the plan for a diagnosis of one of the five classes. No caller outside of tests takes it unchecked:
/// [`super::make_vetted`].
///
/// # Errors
/// Every refusal that applies, not only the first. A diagnosis without a class has nothing to plan and gives one
/// refusal with the verdict's sentence.
pub(crate) fn make(
    evidence: EvidenceAt<'_>,
    diagnosis: &Diagnosis,
    request: &Request<'_>,
) -> Result<Plan, Vec<Refusal>> {
    let Verdict::Ours { trouble } = &diagnosis.verdict else {
        return Err(vec![Refusal::Missing {
            what: "one of the five classes".into(),
            why: diagnosis.verdict.to_string(),
        }]);
    };
    let no_remedy = |advice: String| {
        let runbook = request.runbook.name.clone();
        vec![Refusal::NoRemedy {
            class: trouble.class(),
            runbook,
            advice,
        }]
    };
    let Some(order) = request.runbook.order(trouble.class()) else {
        return Err(no_remedy(advice(trouble)));
    };
    if let Some(advice) = for_people(trouble, evidence) {
        return Err(vec![Refusal::NeedsPeople {
            trouble: trouble.to_string(),
            advice,
        }]);
    }
    let target = Target::of(evidence, trouble).map_err(|r| vec![r])?;
    let closes_node = closes_node(order, evidence, trouble);
    let off = off_without_proof(evidence, &target.holder);
    let steps = possible(order, evidence, request.allowed, closes_node, off);
    let mut refusals = general(evidence, &target.scope());
    let has = |kind| steps.iter().any(|s| s.step == kind);
    refusals.extend(match (Holding::by(closes_node, has), trouble.releases()) {
        (Holding::AtZero, _) => before_scaling(evidence, request.confirm_workload),
        (holding, Releases::Everyone) => before_holding(evidence, &target.node, holding),
        (holding, Releases::OldHolder) => before_fencing(evidence, holding),
    });
    let accepting = Accepting::Rule(request.allowed.empty_dirs);
    refusals.extend(
        steps
            .iter()
            .flat_map(|s| losses(evidence, &target.node, s.step.spec().pods_go, accepting)),
    );
    if let Trouble::Phantom {
        at,
        confirmed: false,
        ..
    } = trouble
        && !request.for_show
    {
        refusals.push(Refusal::Unchallenged {
            node: at.node.to_string(),
        });
    }
    if !refusals.is_empty() {
        refusals.sort();
        refusals.dedup();
        return Err(refusals);
    }
    let pins = pins(evidence, &target, has(StepKind::TaintOutOfService)).map_err(|r| vec![r])?;
    let mut lost: Vec<_> = steps
        .iter()
        .flat_map(|s| accepted_losses(evidence, s.step.spec().pods_go))
        .collect();
    lost.sort();
    lost.dedup();
    let (stuck_pods, budgets) = if has(StepKind::Release) {
        (request.allowed.stuck_pods, in_the_way(evidence, &target))
    } else {
        Default::default()
    };
    let describe = Describe {
        claim: &evidence.claim_name,
        pod: target.pod.as_ref(),
        pins: &pins,
        commands: request.commands,
        snapshots: request.allowed.snapshot,
        stuck_pods,
        closes_node,
    };
    let steps: Vec<PlannedStep> = steps.iter().map(|s| describe.planned(s)).collect();
    // Names and messages of others are in the words of a plan; they are made plain before the hash is taken.
    let steps = plain::made_plain(&steps, plain::TEXT_CHARS);
    let mut plan = Plan {
        version: PLAN_VERSION,
        claim: evidence.claim_name.clone(),
        trouble: plain::made_plain(trouble, plain::TEXT_CHARS),
        runbook: request.runbook.name.clone(),
        runbook_hash: request.runbook.hash(),
        downtime: downtime(order),
        pins,
        steps,
        losses: lost,
        stuck_pods,
        budgets: plain::made_plain(&budgets, plain::TEXT_CHARS),
        closes_node,
        hash: PlanHash::from(""),
    };
    plan.hash = plan.computed_hash();
    Ok(plan)
}

/// The PodDisruptionBudgets that would refuse an eviction by this plan now. One that could not be read is seen when it refuses.
fn in_the_way(evidence: EvidenceAt<'_>, target: &Target) -> Vec<BudgetFacts> {
    let pods = evidence.pods().map_or(&[][..], Vec::as_slice);
    let here = |p: &&PodFacts| p.node.as_ref() == Some(&target.node) && p.deleting_since.is_none();
    let refuses = |b: &&BudgetFacts| pods.iter().filter(here).any(|p| p.is_kept_by(b));
    let known = evidence.budgets().map_or(&[][..], Vec::as_slice);
    known.iter().filter(refuses).cloned().collect()
}

/// Whether the hold is to be a taint on the node: the cluster is known to have no policy, and the holder's node is there and
/// lives. What a dead node has is freed without a hold; a record or an orphan whose node may be gone cannot be.
fn closes_node(order: &[RunbookStep], evidence: EvidenceAt<'_>, trouble: &Trouble) -> bool {
    let policy = evidence.hold_policy();
    order.iter().any(|s| s.step == StepKind::Hold)
        && trouble.releases() == Releases::Everyone
        && matches!(policy, Err(Missing::Absent))
}

/// The steps that the cloud can do and people allow. Where the cluster cannot hold pods away, a dead node is fenced all
/// the same, and only the cloud's own detach, which needs the hold, is left out; so it is where only the node is closed.
fn possible(
    order: &[RunbookStep],
    evidence: EvidenceAt<'_>,
    allowed: Allowed,
    closes_node: bool,
    off_without_proof: bool,
) -> Vec<RunbookStep> {
    let fences = order.iter().any(|s| s.step == StepKind::TaintOutOfService);
    let policy = evidence.hold_policy();
    let gates = !fences || policy.is_ok();
    let available = Available {
        allowed,
        gates,
        detaches: gates && !closes_node,
        off_without_proof,
    };
    order
        .iter()
        .filter(|s| (s.step.spec().available_if)(&available))
        .copied()
        .collect()
}

/// Whether the cloud reads the holder as off, and might boot it by itself: no shutdown job keeps it off.
fn off_without_proof(evidence: EvidenceAt<'_>, holder: &InstanceId) -> bool {
    evidence
        .instance(holder)
        .is_ok_and(|i| i.state == InstanceState::Off)
        && evidence.power(holder).is_ok_and(|f| !is_off_for_good(f))
}

/// What a person can do about a class that the runbook does not heal.
pub(super) fn advice(trouble: &Trouble) -> String {
    match trouble {
        Trouble::DeadNode { node, instance } => format!(
            "power instance {instance} off at the cloud, make sure that it stays off, then: kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
        ),
        Trouble::Phantom { .. } => "none needed".to_owned(),
        Trouble::Lost { at, .. } => format!(
            "external-attacher attaches again within about a minute where the driver reports published nodes; otherwise: kubectl -n {} delete pod {}",
            at.pod.namespace, at.pod.name
        ),
        Trouble::StuckRecord { node, .. } => format!(
            "look at the CSI controller's log and at kubectl describe volumeattachment for node {node}; the record finishes when the cause is gone"
        ),
        Trouble::Orphan { holder, .. } => format!(
            "make sure that instance {holder} cannot write (gone, or off by a finished shutdown), then detach the volume from it at the cloud"
        ),
    }
}

/// What people must do about a cause that no step mends.
fn for_people(trouble: &Trouble, evidence: EvidenceAt<'_>) -> Option<String> {
    let Trouble::StuckRecord {
        attachment, cause, ..
    } = trouble
    else {
        return None;
    };
    let known = evidence.attachments.shown().map_or(&[][..], Vec::as_slice);
    let name = known
        .iter()
        .find(|a| Some(&a.uid) == attachment.as_ref())
        .map_or("NAME", |a| a.name.as_str());
    let finalizer = format!(
        "kubectl patch volumeattachment {name} --type=merge -p '{{\"metadata\":{{\"finalizers\":null}}}}'"
    );
    Some(match cause {
        StuckCause::DetachError { .. } | StuckCause::NodeMissing { .. } => return None,
        StuckCause::VolumeMissing { pv, .. } => format!(
            "restore PersistentVolume {pv} from a backup, or detach the volume at the cloud once its holder cannot write, and then take the finalizer off: {finalizer}"
        ),
        StuckCause::SecretMissing { .. } => {
            "create the Secret again that the StorageClass names for controller-publish".to_owned()
        }
        StuckCause::DriverMissing { driver, .. } => format!(
            "install driver {driver} again; or detach the volume at the cloud once its holder cannot write, and then take the finalizer off: {finalizer}"
        ),
        StuckCause::Unrecorded { node } => format!(
            "make sure that {node} cannot write (gone, or off by a finished shutdown), then: kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
        ),
        StuckCause::AttachError { .. } => format!(
            "read what the driver says and repair the cause; external-attacher tries again within 5 minutes, or at once after: kubectl annotate volumeattachment {name} reattach.dev/requeued=$(date +%s) --overwrite"
        ),
    })
}

fn pins(evidence: EvidenceAt<'_>, target: &Target, tainting: bool) -> Result<Pins, Refusal> {
    let missing = |what: &str| Refusal::Missing {
        what: what.to_owned(),
        why: "it could not be pinned".to_owned(),
    };
    let claim = evidence.claim().map_err(|_| missing("the claim"))?;
    let pv = evidence
        .volume()
        .map_err(|_| missing("the PersistentVolume"))?;
    let cloud = evidence
        .cloud_volume()
        .map_err(|_| missing("the cloud volume"))?;
    let attachments = evidence
        .attachments()
        .map_err(|_| missing("the VolumeAttachments"))?;
    let attachment = match &target.attachment {
        Some(uid) => {
            let va = attachments.iter().find(|a| a.uid == *uid);
            let va = va.ok_or_else(|| missing("the VolumeAttachment"))?;
            Some(PinnedAttachment {
                name: va.name.clone(),
                uid: va.uid.clone(),
            })
        }
        None => None,
    };
    let workload = evidence.workload().map_err(|_| missing("the workload"))?;
    let mut pods: Vec<_> = workload
        .pods
        .iter()
        .map(|p| (p.name.clone(), p.uid.clone()))
        .collect();
    // The order in which an API lists them must not change the plan's hash.
    pods.sort();
    let node = evidence.node(&target.node).ok();
    let node_wide = match node.filter(|_| tainting) {
        Some(node) => {
            let Ok(on_it) = evidence.node_pods(&target.node) else {
                return Err(missing(&format!("the pods on {}", target.node)));
            };
            let Ok(used) = evidence.node_claims(&target.node) else {
                return Err(missing(&format!(
                    "the claims of the pods on {}",
                    target.node
                )));
            };
            let claims: Vec<_> = used.iter().map(|c| c.claim.clone()).collect();
            let namespace = evidence.claim_name.namespace.as_str();
            let own = pv.csi.as_ref().map(CsiSource::unique_name);
            Some(NodeWide::of(
                namespace,
                own.as_deref(),
                on_it,
                &node.volumes_attached,
                &claims,
            ))
        }
        None => None,
    };
    Ok(Pins {
        claim: claim.uid.clone(),
        pv: pv.uid.clone(),
        volume: cloud.id.clone(),
        identity: cloud.identity.clone(),
        size_gib: cloud.size_gib,
        holder: target.holder.clone(),
        node: target.node.clone(),
        boot_id: node.map(|n| n.boot_id.clone()),
        attachment,
        workload: workload.workload.clone(),
        replicas: workload.replicas,
        pods,
        node_wide,
    })
}

/// Seconds measured with real kubelets (median 17 s, up to 26 s), and what a stuck detach adds: the runbook's patience, the
/// cloud's job, external-attacher's next try.
fn downtime(order: &[RunbookStep]) -> Downtime {
    let patience: u32 = order.iter().filter_map(|s| s.patience_seconds).sum();
    Downtime {
        typical_seconds: 20,
        with_cloud_detach_seconds: 35 + patience,
    }
}
