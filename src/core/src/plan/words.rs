//! The steps of a plan in words: what will happen, what must hold, what a person would type.

use super::{EffectClass, Pins, PlannedStep, Request, Snapshots};
use crate::hold::HOLD_TAINT_PREFIX;
use crate::ids::ObjectName;
use crate::runbook::{RunbookStep, StepKind};

/// What the steps are about.
pub(super) struct Target<'a> {
    pub(super) claim: &'a ObjectName,
    /// The pod that is stuck, where there is one.
    pub(super) pod: Option<&'a ObjectName>,
    pub(super) pins: &'a Pins,
}

/// One step in words.
pub(super) fn planned(
    step: &RunbookStep,
    target: &Target<'_>,
    request: &Request<'_>,
    closes_node: bool,
) -> PlannedStep {
    let Target { claim, pod, pins } = target;
    let (node, instance) = (&pins.node, &pins.holder);
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
            best_effort: step.step == StepKind::Snapshot && request.allowed.snapshot == Snapshots::BestEffort,
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
        StepKind::Hold if closes_node => text(
            format!(
                "keep new pods off {node} by a taint of our own: this cluster cannot hold pods of one claim away"
            ),
            "no pod of the workload tolerates it; a new pod of the workload would be accepted now",
            format!("kubectl taint node {node} {HOLD_TAINT_PREFIX}RECOVERY=:NoSchedule"),
            "for as long as it lasts no new pod of any workload starts on the node; pods that are there stay",
            "the taint is there",
            EffectClass::Conditional,
        ),
        StepKind::Lift if closes_node => text(
            format!("take that taint off {node}"),
            "the node, its VolumeAttachment and the cloud have let go",
            format!("kubectl taint node {node} {HOLD_TAINT_PREFIX}RECOVERY-"),
            "none",
            "the taint is gone",
            EffectClass::Conditional,
        ),
        StepKind::AwaitDetached if closes_node => text(
            format!("wait until {node} does not hold volume {} any more", pins.volume),
            "no pod of the claim is on the node or can come to it",
            format!("kubectl get volumeattachment {} --watch", pins.attachment_name()),
            "the CSI driver may be unable to detach; then the run turns back",
            "the VolumeAttachment and the cloud",
            EffectClass::Repeatable,
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
            format!("kubectl -n {ns} delete pod {}", pod.map_or("POD", |p| p.name.as_str())),
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
            request.commands.detach.to_owned(),
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
        StepKind::Await => text(
            "wait whether it heals by itself".to_owned(),
            "none",
            format!("kubectl -n {ns} get pods --watch"),
            "none; the next step takes over when the patience is over",
            "the diagnosis",
            EffectClass::Repeatable,
        ),
        StepKind::PowerOff => text(
            format!("power instance {instance} (node {node}) off at the cloud"),
            "the policy or a person allows it; the node is not Ready; its lock is ours; only the pods and volumes that this plan lists are there",
            request.commands.power_off.to_owned(),
            "whatever still runs on the machine stops",
            "the cloud accepted it; the proof that it is off comes next",
            EffectClass::Repeatable,
        ),
        StepKind::Prove => text(
            format!("wait for a proof that instance {instance} cannot write"),
            "none",
            format!("kubectl reattach declare RECOVERY --holder {instance} --reason TEXT"),
            "none; without a proof nothing is freed, and the run turns back at the deadline",
            "gone, off by a finished shutdown (read twice), rebooted and clean, the kubelet's own word, or a named human's",
            EffectClass::Repeatable,
        ),
        StepKind::Quarantine => text(
            format!("keep new pods off {node} until the agent of its next boot answers clean"),
            "the node has no such taint yet",
            format!("kubectl taint node {node} reattach.dev/quarantine=RECOVERY:NoSchedule"),
            "none: the node is down",
            "the taint is there",
            EffectClass::Conditional,
        ),
        StepKind::TaintOutOfService => text(
            format!("put the out-of-service taint on {node}"),
            "a proof that the instance is off, gone, or declared so; the Node is not Ready, read again; its lock is ours",
            format!("kubectl taint node {node} node.kubernetes.io/out-of-service=reattach:NoExecute"),
            "every pod of the node is removed and every volume detached: all that the plan lists",
            "the taint is there",
            EffectClass::Conditional,
        ),
        StepKind::Untaint => text(
            format!("take our out-of-service taint off {node} again"),
            "nothing of the node is attached any more; at once if the node is back",
            format!("kubectl taint node {node} node.kubernetes.io/out-of-service-"),
            "none",
            "the taint is gone",
            EffectClass::Conditional,
        ),
        StepKind::PowerOn => text(
            format!("power instance {instance} on again"),
            "this run powered it off",
            request.commands.power_on.to_owned(),
            "none: its node stays in quarantine until its agent answers clean",
            "the cloud accepted it",
            EffectClass::Repeatable,
        ),
        StepKind::Challenge if pins.attachment.is_none() => text(
            format!("if {node} is the holder's node and lives: ask its agent to look at the machine anew"),
            "no pod of the claim is on the node, and none can come to it",
            format!("kubectl get nodevolumereport {node} -o yaml"),
            "none: it only looks",
            "its answer to this very question shows no device, or (full level) a clean one",
            EffectClass::Repeatable,
        ),
        StepKind::Challenge => text(
            format!(
                "if kubelet on {node} keeps the volume in volumesInUse: ask its agent to look at the machine anew"
            ),
            "no pod of the claim has been on the node for 2 min, so that no mount attempt is left",
            format!("kubectl get nodevolumereport {node} -o yaml"),
            "none: it only looks",
            "its answer to this very question shows no device, or (full level) a clean one",
            EffectClass::Repeatable,
        ),
        StepKind::DeleteAttachment => text(
            format!(
                "if VolumeAttachment {} is still there and nobody deletes it: delete it, by its UID",
                pins.attachment_name()
            ),
            "a proof that its holder cannot write; the hold is in force",
            format!("kubectl delete volumeattachment {} --wait=false", pins.attachment_name()),
            "the CSI driver may be unable to detach; then the next step takes over",
            "it has a deletionTimestamp or is gone",
            EffectClass::Conditional,
        ),
        StepKind::Snapshot => text(
            format!(
                "if the plain detach does not end: make a snapshot of volume {} at the cloud",
                pins.volume
            ),
            "all that the detach by force needs, which is the next step",
            request.commands.snapshot.to_owned(),
            match request.allowed.snapshot {
                Snapshots::Required => {
                    "the volume stays where it is until the snapshot is complete; the run turns back if it fails"
                }
                _ => {
                    "the volume stays where it is until the snapshot is complete; the run goes on without it if it fails"
                }
            },
            "a complete snapshot with this recovery's label; it is kept",
            EffectClass::Once,
        ),
        StepKind::CloudForce => text(
            format!(
                "if the plain detach does not end: detach volume {} from instance {instance} by force",
                pins.volume
            ),
            "a proof that the instance is off or gone",
            format!("{} --force", request.commands.detach),
            "none for an instance that does not run",
            "no holder, and no job pending on the volume",
            EffectClass::Once,
        ),
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
