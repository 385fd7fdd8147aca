//! Making a plan from evidence, a diagnosis and a runbook; or every reason why not.

use super::{
    Downtime, EffectClass, PLAN_VERSION, PinnedAttachment, Pins, Plan, PlannedStep, before_holding,
    before_scaling, general,
};
use crate::diagnosis::{Diagnosis, StuckPod, Trouble, Verdict};
use crate::evidence::{Evidence, MAX_AGE};
use crate::ids::{ObjectName, PlanHash, Uid};
use crate::runbook::{Holding, Runbook, RunbookStep, StepKind};
use crate::safety::Refusal;
use jiff::Timestamp;

/// What a plan is asked for.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The runbook.
    pub runbook: &'a Runbook,
    /// The workload that a person named, as `Kind/name`, accepting that all its replicas stop.
    pub confirm_workload: Option<&'a str>,
    /// What a person would type to detach at the cloud, from the provider.
    pub detach_command: &'a str,
    /// Whether the agent's unasked report will do instead of an answer to a challenge: for showing only.
    pub for_show: bool,
    /// What the cloud can do and people allow, besides a plain detach.
    pub allowed: Allowed,
}

/// What the cloud can do and a policy or a person allows. Steps that need more are left out of the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Powering the holder off.
    pub power_off: bool,
    /// Powering it on again afterwards.
    pub power_on: bool,
    /// Detaching by force.
    pub force: bool,
}

/// Makes the plan for a diagnosis of one of the five classes.
///
/// # Errors
/// Every refusal that applies, not only the first. A diagnosis without a class has nothing to plan and gives one
/// refusal with the verdict's sentence.
pub fn make(
    evidence: &Evidence,
    diagnosis: &Diagnosis,
    request: &Request<'_>,
    now: Timestamp,
) -> Result<Plan, Vec<Refusal>> {
    let Verdict::Ours { trouble } = &diagnosis.verdict else {
        return Err(vec![Refusal::Missing {
            what: "one of the five classes".into(),
            why: diagnosis.verdict.to_string(),
        }]);
    };
    let Trouble::Phantom { at, attachment, confirmed, .. } = trouble else {
        return Err(vec![Refusal::NoRemedy {
            class: trouble.class(),
            runbook: request.runbook.name.clone(),
            advice: advice(trouble),
        }]);
    };
    let mut refusals = general(evidence, &at.node, now);
    refusals.extend(match request.runbook.holding() {
        Holding::AtZero => before_scaling(evidence, request.confirm_workload, now),
        Holding::ByGate => before_holding(evidence, &at.node, now),
    });
    if !confirmed && !request.for_show {
        refusals.push(Refusal::Unchallenged { node: at.node.to_string() });
    }
    if !refusals.is_empty() {
        refusals.sort();
        refusals.dedup();
        return Err(refusals);
    }
    let pins = pins(evidence, at, attachment, now).map_err(|r| vec![r])?;
    let steps: Vec<PlannedStep> = {
        let target = Target { claim: &evidence.claim_name, stuck: at, pins: &pins };
        request.runbook.steps.iter().map(|s| planned(s, &target, request)).collect()
    };
    let mut plan = Plan {
        version: PLAN_VERSION,
        claim: evidence.claim_name.clone(),
        trouble: trouble.clone(),
        runbook: request.runbook.name.clone(),
        runbook_hash: request.runbook.hash(),
        downtime: downtime(request.runbook),
        pins,
        steps,
        hash: PlanHash::from(""),
    };
    plan.hash = plan.computed_hash();
    Ok(plan)
}

/// What a person can do about a class that no runbook of this build heals.
fn advice(trouble: &Trouble) -> String {
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

fn pins(evidence: &Evidence, at: &StuckPod, attachment: &Uid, now: Timestamp) -> Result<Pins, Refusal> {
    let missing =
        |what: &str| Refusal::Missing { what: what.to_owned(), why: "it could not be pinned".to_owned() };
    let claim = evidence.claim.read(now, MAX_AGE).present().ok_or_else(|| missing("the claim"))?;
    let pv = evidence.volume.read(now, MAX_AGE).present().ok_or_else(|| missing("the PersistentVolume"))?;
    let cloud =
        evidence.cloud_volume.read(now, MAX_AGE).present().ok_or_else(|| missing("the cloud volume"))?;
    let node = evidence.node(&at.node, now).ok_or_else(|| missing("the Node"))?;
    let attachments =
        evidence.attachments.read(now, MAX_AGE).present().ok_or_else(|| missing("the VolumeAttachments"))?;
    let va =
        attachments.iter().find(|a| a.uid == *attachment).ok_or_else(|| missing("the VolumeAttachment"))?;
    let workload = evidence.workload.read(now, MAX_AGE).present().ok_or_else(|| missing("the workload"))?;
    let mut pods: Vec<_> = workload.pods.iter().map(|p| (p.name.clone(), p.uid.clone())).collect();
    // The order in which an API lists them must not change the plan's hash.
    pods.sort();
    Ok(Pins {
        claim: claim.uid.clone(),
        pv: pv.uid.clone(),
        volume: cloud.id.clone(),
        identity: cloud.identity.clone(),
        size_gib: cloud.size_gib,
        holder: at.instance.clone(),
        node: at.node.clone(),
        boot_id: Some(node.boot_id.clone()),
        attachment: Some(PinnedAttachment { name: va.name.clone(), uid: va.uid.clone() }),
        workload: workload.workload.clone(),
        replicas: workload.replicas,
        pods,
        node_wide: None,
    })
}

/// Seconds measured with real kubelets for scale to zero, detach, back (median 17 s, up to 26 s), and what a stuck
/// detach adds: the runbook's patience, the cloud's job, external-attacher's next try.
fn downtime(runbook: &Runbook) -> Downtime {
    let patience: u32 = runbook.steps.iter().filter_map(|s| s.patience_seconds).sum();
    Downtime { typical_seconds: 20, with_cloud_detach_seconds: 35 + patience }
}

/// What the steps are about.
struct Target<'a> {
    claim: &'a ObjectName,
    stuck: &'a StuckPod,
    pins: &'a Pins,
}

fn planned(step: &RunbookStep, target: &Target<'_>, request: &Request<'_>) -> PlannedStep {
    let Target { claim, stuck, pins } = target;
    let w = &pins.workload;
    let (ns, name, kind) = (&w.name.namespace, &w.name.name, w.kind.to_lowercase());
    let text = |what: String, precondition: &str, command: String, risk: &str, observed_by: &str, class| {
        PlannedStep {
            kind: step.step,
            what,
            precondition: precondition.to_owned(),
            command,
            risk: risk.to_owned(),
            observed_by: observed_by.to_owned(),
            effect_class: class,
            deadline_seconds: step.deadline_seconds,
            patience_seconds: step.patience_seconds,
        }
    };
    match step.step {
        StepKind::ScaleToZero => text(
            format!(
                "scale {w} from {} to 0 and stamp it with the count to restore, in one write",
                pins.replicas
            ),
            "every refusal of scaling to zero is absent, read again; the write is refused if the workload changed meanwhile",
            format!("kubectl -n {ns} scale {kind}/{name} --replicas=0"),
            "the workload stays down until it is restored; the stamp on it suffices for that",
            "no pod of the workload is left",
            EffectClass::Conditional,
        ),
        StepKind::Hold => text(
            format!("keep new pods of claim {claim} away by a scheduling gate"),
            "the cluster has the policy reattach-hold; a new pod of the workload would be accepted now",
            format!("kubectl -n {ns} label volumerecovery RECOVERY reattach.dev/hold=true"),
            "none: only pods that are made while it lasts wait, and they are let go at its end",
            "a dry-run create of a pod with the claim comes back with the gate",
            EffectClass::Conditional,
        ),
        StepKind::Release => text(
            format!("evict the stuck pod of {w}, so that its node lets the volume go"),
            "the hold is in force; the pod is not Ready or its mount is dead; its node is Ready and runs the CSI driver; its owner makes a new one",
            format!("kubectl -n {ns} delete pod {}", stuck.pod.name),
            "a PodDisruptionBudget may refuse it; the run then turns back",
            "the pod object is gone",
            EffectClass::Conditional,
        ),
        StepKind::Lift => text(
            "end the hold: its label off, the gates off the pods that wait".to_owned(),
            "nobody holds the volume any more, and no job of it is pending",
            format!("kubectl -n {ns} label volumerecovery RECOVERY reattach.dev/hold-"),
            "none",
            "no pod carries the gate, and a dry-run create comes back without it",
            EffectClass::Conditional,
        ),
        StepKind::AwaitDetached => text(
            format!("wait until nobody holds volume {} any more", pins.volume),
            "no pod of the claim can be on a node",
            format!("kubectl get volumeattachment {} --watch", pins.attachment_name()),
            "the CSI driver may be unable to detach; then the next step takes over, or the run turns back",
            "volumesInUse, volumesAttached, the cloud and the VolumeAttachment, all four",
            EffectClass::Repeatable,
        ),
        StepKind::CloudDetach => text(
            format!(
                "if Kubernetes' own detach is stuck: detach volume {} from instance {} at the cloud",
                pins.volume, pins.holder
            ),
            "the kubelet's own word that it does not use the volume, newer than the last pod; the VolumeAttachment is going; the cloud still names this instance, read again",
            request.detach_command.to_owned(),
            "a cloud that is busy or has locked the volume refuses; the workload is then put back as it was and a person paged",
            "no holder, and no job pending on the volume",
            EffectClass::Once,
        ),
        StepKind::Requeue => text(
            format!(
                "if VolumeAttachment {} is still there: touch it, so that external-attacher tries again now",
                pins.attachment_name()
            ),
            "the cloud names no holder",
            format!(
                "kubectl annotate volumeattachment {} reattach.dev/requeued=$(date +%s) --overwrite",
                pins.attachment_name()
            ),
            "none: the attacher would try by itself within 5 minutes",
            "the write is accepted",
            EffectClass::Conditional,
        ),
        StepKind::Restore => text(
            format!("scale {w} back to {} and remove the stamp, in one write", pins.replicas),
            "the VolumeAttachment is gone, the stamp is intact and the count is still 0",
            format!("kubectl -n {ns} scale {kind}/{name} --replicas={}", pins.replicas),
            "someone who changed the count meanwhile wins: theirs stands",
            "the count",
            EffectClass::Conditional,
        ),
        StepKind::Await
        | StepKind::PowerOff
        | StepKind::Prove
        | StepKind::TaintOutOfService
        | StepKind::Untaint
        | StepKind::PowerOn
        | StepKind::Quarantine
        | StepKind::Challenge
        | StepKind::DeleteAttachment
        | StepKind::CloudForce => {
            text(format!("{:?}", step.step), "none", String::new(), "none", "none", EffectClass::Repeatable)
        }
        StepKind::Verify => text(
            "wait until the pod is Ready with the volume".to_owned(),
            "none",
            format!("kubectl -n {ns} get pods --watch"),
            "a pod that stays unready for another reason ends the run as failed, with the workload restored",
            "pod Ready for 3 s, one holder, the pinned identity and size",
            EffectClass::Repeatable,
        ),
    }
}
