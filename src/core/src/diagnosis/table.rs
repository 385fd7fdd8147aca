//! The truth table itself.

use super::{
    Class, Diagnosis, GuestView, NotOurs, StuckCause, StuckPod, Trouble, Verdict, WaitReason,
    guest_view,
};
use crate::cloud::{CloudJob, CloudVolume, JobStatus, VolumeState};
use crate::evidence::{AttachmentFacts, ClaimPhase, EvidenceAt, NodeFacts, PodFacts};
use crate::fact::{MissingFact, known};
use crate::identity::{self, binding};
use crate::ids::{NodeName, PvName};
use jiff::SignedDuration;
use reattach_messages::{Message, meaning};

/// A device that its guest does not have yet is no phantom: from the beginning of an attach, whose job takes seconds
/// (Linode), the device has this long to appear.
const SETTLING: SignedDuration = SignedDuration::from_secs(15);

/// Diagnoses one claim from its evidence at `now`.
pub fn diagnose(evidence: EvidenceAt<'_>) -> Diagnosis {
    let mut facts = Vec::new();
    let verdict = match judge(evidence, &mut facts) {
        Ok(verdict) => verdict,
        Err(missing) => Verdict::Unclassified {
            missing: vec![missing],
        },
    };
    Diagnosis { verdict, facts }
}

fn judge(evidence: EvidenceAt<'_>, facts: &mut Vec<String>) -> Result<Verdict, MissingFact> {
    let not_ours = |reason| Ok(Verdict::NotOurs { reason });
    let Some(claim) = known(evidence.claim(), "the claim")? else {
        return not_ours(NotOurs::NoClaim);
    };
    let Some(pv_name) = &claim.volume_name else {
        return not_ours(NotOurs::Unbound);
    };
    let Some(volume) = known(evidence.volume(), "the PersistentVolume")? else {
        // A claim that was bound is Lost then. Any other one only names what is not there.
        if claim.phase == ClaimPhase::Pending {
            return not_ours(NotOurs::Unbound);
        }
        return Ok(
            volume_missing(evidence, pv_name)?.unwrap_or(Verdict::NotOurs {
                reason: NotOurs::VolumeMissing {
                    pv: pv_name.to_string(),
                },
            }),
        );
    };
    if let Err(problem) = binding(&evidence.claim_name, claim, volume) {
        return not_ours(NotOurs::Identity { problem });
    }
    let Some(csi) = &volume.csi else {
        return not_ours(NotOurs::NotCsi {
            pv: pv_name.to_string(),
        });
    };
    if volume.attach_required == Some(false) {
        return not_ours(NotOurs::AttachNotRequired {
            driver: csi.driver.to_string(),
        });
    }
    let Some(cloud_id) = &evidence.cloud_id else {
        if let Some(why) = evidence.unreadable_handle.clone() {
            return not_ours(NotOurs::UnreadableHandle {
                driver: csi.driver.to_string(),
                why,
            });
        }
        return not_ours(NotOurs::UnknownProvider {
            driver: csi.driver.to_string(),
            handle: csi.handle.to_string(),
        });
    };
    let pods = known(evidence.pods(), "the list of pods")?.map_or(&[][..], Vec::as_slice);
    let attachments = known(evidence.attachments(), "the list of VolumeAttachments")?
        .map_or(&[][..], Vec::as_slice);
    for a in attachments {
        facts.push(attachment_sentence(a));
    }
    let Some(cloud) = known(evidence.cloud_volume(), "the cloud volume")? else {
        facts.push(format!("the cloud does not know volume {cloud_id}"));
        return not_ours(NotOurs::CloudVolumeGone {
            volume: cloud_id.to_string(),
        });
    };
    facts.push(cloud_sentence(cloud));
    let table = Table {
        evidence,
        attachments,
        cloud,
    };
    let verdict = table.behind_the_cloud(table.judge_pods(pods, facts)?);
    if verdict.is_of_a_class()
        && let Some(problem) = identity::not_ours(evidence)
    {
        facts.push(verdict.to_string());
        return not_ours(NotOurs::Identity { problem });
    }
    Ok(verdict)
}

/// The inputs of the table once each is known.
pub(super) struct Table<'a> {
    pub(super) evidence: EvidenceAt<'a>,
    pub(super) attachments: &'a [AttachmentFacts],
    pub(super) cloud: &'a CloudVolume,
}

impl Table<'_> {
    fn judge_pods(
        &self,
        pods: &[PodFacts],
        facts: &mut Vec<String>,
    ) -> Result<Verdict, MissingFact> {
        let live: Vec<&PodFacts> = pods
            .iter()
            .filter(|p| !p.is_finished() || p.deleting_since.is_some())
            .collect();
        // A pod that is Ready may still sit on a dead mount: look at the guest before calling it healthy.
        for pod in &live {
            let Some(node) = &pod.node else { continue };
            facts.push(pod_sentence(pod));
            if let Some(verdict) = self.judge_bound(pod, node, facts)? {
                return Ok(verdict);
            }
        }
        if let Some(pod) = live.iter().find(|p| p.node.is_none()) {
            return self.judge_unbound(pod);
        }
        if let Some(verdict) = self.stuck_records()? {
            return Ok(verdict);
        }
        let why = if live.is_empty() {
            "no pod wants the volume"
        } else {
            "every pod that wants the volume is Ready"
        };
        Ok(Verdict::Healthy {
            why: why.to_owned(),
        })
    }

    /// A pod bound to a node. `None`: nothing is wrong with it.
    fn judge_bound(
        &self,
        pod: &PodFacts,
        node: &NodeName,
        facts: &mut Vec<String>,
    ) -> Result<Option<Verdict>, MissingFact> {
        let Some(node_facts) = known(self.evidence.node(node), &format!("Node {node}"))? else {
            let unknown = || still_runs(pod, format!("its node {node} does not exist"));
            return self.missing_node(node).ok_or_else(unknown).map(Some);
        };
        facts.push(node_sentence(node_facts));
        let Some(instance) = node_facts.instance.clone() else {
            return Err(MissingFact {
                what: format!("the instance behind Node {node}"),
                why: "its providerID names none that a provider knows".to_owned(),
            });
        };
        let here = self.attachments.iter().find(|a| a.node == *node);
        let held_here = self.cloud.holders.contains(&instance);
        if !node_facts.ready {
            if held_here && here.is_some() {
                return Ok(Some(ours(Trouble::DeadNode {
                    node: node.clone(),
                    instance,
                })));
            }
            if let Some(verdict) = self.stuck_records()? {
                return Ok(Some(verdict));
            }
            let why = format!(
                "its node {node} is not Ready, and the volume is not held there by Kubernetes and the cloud alike"
            );
            return Err(still_runs(pod, why));
        }
        let at = StuckPod {
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
            node: node.clone(),
            instance: instance.clone(),
        };
        let seen = guest_view(self.evidence, node);
        facts.push(view_sentence(node, &seen));
        let Some(va) = here else {
            return Ok(if pod.ready {
                None
            } else {
                Some(self.no_attachment_here(node)?)
            });
        };
        if pod.ready && !matches!(seen, GuestView::DeadMount { .. }) {
            return Ok(None);
        }
        if pod.deleting_since.is_some() && !matches!(seen, GuestView::DeadMount { .. }) {
            return Ok(Some(wait(WaitReason::PodTerminating {
                pod: pod.name.clone(),
                node: node.clone(),
            })));
        }
        // An attach that fails because another instance has the volume is about that instance, not about this record.
        let elsewhere = !held_here && !self.cloud.holders.is_empty();
        if !va.attached && va.deleting_since.is_none() && elsewhere {
            return Ok(Some(self.held_elsewhere(node)?));
        }
        if let Some(verdict) = self.record_in_motion(va) {
            return Ok(Some(verdict));
        }
        if !held_here {
            return Ok(Some(match self.cloud.holders.first() {
                None => ours(Trouble::Lost {
                    at,
                    attachment: va.uid.clone(),
                }),
                Some(_) => self.held_elsewhere(node)?,
            }));
        }
        let csi_registered = self
            .evidence
            .csi()
            .is_none_or(|c| node_facts.csi_drivers.contains(&c.driver));
        match seen {
            GuestView::NoDevice { .. } | GuestView::DeadMount { .. } if !csi_registered => {
                let driver = self
                    .evidence
                    .csi()
                    .map(|c| c.driver.to_string())
                    .unwrap_or_default();
                Ok(Some(wait(WaitReason::DriverNotRegistered {
                    driver,
                    node: node.clone(),
                })))
            }
            GuestView::NoDevice { confirmed } => Ok(Some(ours(Trouble::Phantom {
                at,
                attachment: va.uid.clone(),
                dead_mount: false,
                confirmed,
            }))),
            GuestView::DeadMount { confirmed } => Ok(Some(ours(Trouble::Phantom {
                at,
                attachment: va.uid.clone(),
                dead_mount: true,
                confirmed,
            }))),
            GuestView::Device => Ok(Some(Verdict::NotOurs {
                reason: NotOurs::Other {
                    what: self.newest_message(pod),
                },
            })),
            GuestView::Unknown { why } => match self.not_ours_event(pod) {
                Some(what) => Ok(Some(Verdict::NotOurs {
                    reason: NotOurs::Other { what },
                })),
                None => Err(MissingFact {
                    what: format!("what the machine behind {node} sees of the volume"),
                    why,
                }),
            },
        }
    }

    /// A pod without a node: something may hold the volume where the scheduler cannot or will not go.
    fn judge_unbound(&self, pod: &PodFacts) -> Result<Verdict, MissingFact> {
        if let Some(verdict) = self.stuck_records()? {
            return Ok(verdict);
        }
        Ok(wait(WaitReason::Unscheduled {
            pod: pod.name.clone(),
        }))
    }

    /// The pod's node has no VolumeAttachment: who has the volume?
    fn no_attachment_here(&self, node: &NodeName) -> Result<Verdict, MissingFact> {
        if !self.attachments.is_empty() || !self.cloud.holders.is_empty() {
            return self.held_elsewhere(node);
        }
        let stuck = self.stuck_records()?;
        Ok(stuck.unwrap_or_else(|| wait(WaitReason::Attaching { node: node.clone() })))
    }

    /// The volume is with another instance than the one behind `node`, or a VolumeAttachment names another node.
    fn held_elsewhere(&self, node: &NodeName) -> Result<Verdict, MissingFact> {
        if let Some(verdict) = self.stuck_records()? {
            return Ok(verdict);
        }
        if let Some(va) = self.attachments.iter().find(|a| a.node != *node) {
            if let Some(pod) = self.live_pod_on(&va.node) {
                return Ok(match pod.deleting_since {
                    None => Verdict::NotOurs {
                        reason: NotOurs::HeldByLivePod {
                            pod: pod.name.clone(),
                            node: va.node.clone(),
                        },
                    },
                    Some(_) => wait(WaitReason::PodTerminating {
                        pod: pod.name.clone(),
                        node: va.node.clone(),
                    }),
                });
            }
            return Ok(wait(WaitReason::Detaching {
                node: va.node.clone(),
            }));
        }
        let spoken_for = |holder| {
            self.attachments.iter().any(|a| {
                self.evidence
                    .node(&a.node)
                    .is_ok_and(|n| n.instance.as_ref() == Some(holder))
            })
        };
        match self.cloud.holders.iter().find(|h| !spoken_for(h)) {
            Some(holder) => Ok(ours(Trouble::Orphan {
                holder: holder.clone(),
                wanted_by: node.clone(),
            })),
            None => Ok(wait(WaitReason::Attaching { node: node.clone() })),
        }
    }

    fn live_pod_on(&self, node: &NodeName) -> Option<&PodFacts> {
        let pods = self.evidence.pods().ok()?;
        pods.iter()
            .find(|p| p.node.as_ref() == Some(node) && !p.is_finished())
    }

    /// A lock or a job at the cloud turns what we could heal into a wait.
    fn behind_the_cloud(&self, verdict: Verdict) -> Verdict {
        let class = match &verdict {
            Verdict::Ours { trouble } => Some(trouble.class()),
            Verdict::Wait {
                reason: WaitReason::Detaching { .. },
            } => Some(Class::D),
            _ => return verdict,
        };
        match &self.cloud.state {
            VolumeState::Locked { reason } => wait(WaitReason::ProviderLock {
                reason: reason.clone(),
                class,
            }),
            VolumeState::Busy { doing } => wait(WaitReason::CloudBusy {
                doing: doing.clone(),
            }),
            VolumeState::Detaching => wait(WaitReason::CloudBusy {
                doing: "detaching".to_owned(),
            }),
            VolumeState::Other(word) => wait(WaitReason::CloudBusy {
                doing: word.clone(),
            }),
            // An attach or detach that has not finished explains a missing device by itself.
            VolumeState::Active => match self.pending_job() {
                Some(action) => wait(WaitReason::CloudBusy { doing: action }),
                None => verdict,
            },
        }
    }

    /// The provider's word for a job of the volume that can still change something, or that ended a moment ago: the
    /// guest's kernel finds a new device a little later than the cloud says that it is attached.
    fn pending_job(&self) -> Option<String> {
        let jobs = self.evidence.jobs().ok()?;
        let fresh = |j: &CloudJob| {
            j.status != JobStatus::Failed && self.evidence.now.duration_since(j.created) < SETTLING
        };
        let mut of_the_volume = jobs
            .iter()
            .filter(|j| j.volume.as_ref() == Some(&self.cloud.id));
        of_the_volume
            .find(|j| j.is_pending() || fresh(j))
            .map(|j| j.action.clone())
    }

    fn newest_message(&self, pod: &PodFacts) -> String {
        let event = self
            .evidence
            .events
            .iter()
            .rev()
            .find(|e| e.pod == pod.name && e.reason.starts_with("Failed"));
        match (event, &pod.waiting_reason) {
            (Some(event), _) => event.message.clone(),
            (None, Some(reason)) => format!("a container is {reason}"),
            (None, None) => "no event says what".to_owned(),
        }
    }

    /// An event whose text alone shows trouble that no detach heals.
    fn not_ours_event(&self, pod: &PodFacts) -> Option<String> {
        let event = self
            .evidence
            .events
            .iter()
            .rev()
            .find(|e| e.pod == pod.name && e.reason.starts_with("Failed"))?;
        let message = Message {
            reason: Some(event.reason.clone()),
            source_component: Some(event.component.clone()),
            message: event.message.clone(),
            driver: self.evidence.csi().map(|c| c.driver.to_string()),
        };
        (!meaning(&message).is_ours()).then(|| event.message.clone())
    }
}

/// A VolumeAttachment of a claim whose PersistentVolume is gone: external-attacher needs it to detach.
fn volume_missing(evidence: EvidenceAt<'_>, pv: &PvName) -> Result<Option<Verdict>, MissingFact> {
    let attachments = known(evidence.attachments(), "the list of VolumeAttachments")?;
    let going = attachments.and_then(|all| all.iter().find(|a| a.deleting_since.is_some()));
    Ok(going.map(|va| {
        stuck(
            va,
            StuckCause::VolumeMissing {
                node: va.node.clone(),
                pv: pv.to_string(),
            },
        )
    }))
}

pub(super) fn stuck(va: &AttachmentFacts, cause: StuckCause) -> Verdict {
    ours(Trouble::StuckRecord {
        attachment: Some(va.uid.clone()),
        node: va.node.clone(),
        cause,
    })
}

pub(super) fn ours(trouble: Trouble) -> Verdict {
    Verdict::Ours { trouble }
}

pub(super) fn wait(reason: WaitReason) -> Verdict {
    Verdict::Wait { reason }
}

fn still_runs(pod: &PodFacts, why: String) -> MissingFact {
    MissingFact {
        what: format!("whether pod {} still runs", pod.name),
        why,
    }
}

fn attachment_sentence(a: &AttachmentFacts) -> String {
    let mut text = format!(
        "VolumeAttachment {} on {}: attached {}",
        a.name, a.node, a.attached
    );
    if a.deleting_since.is_some() {
        text.push_str(", being deleted");
    }
    for error in a.attach_error.iter().chain(&a.detach_error) {
        text.push_str(&format!(", error: {error}"));
    }
    text
}

fn cloud_sentence(c: &CloudVolume) -> String {
    let holders = c
        .holders
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let holders = if holders.is_empty() {
        "no instance".to_owned()
    } else {
        format!("instance {holders}")
    };
    format!(
        "the cloud says volume {} ({}) is held by {holders}, state {}",
        c.id, c.label, c.state
    )
}

fn pod_sentence(p: &PodFacts) -> String {
    let node = p.node.as_ref().map_or("no node", NodeName::as_str);
    let ending = if p.deleting_since.is_some() {
        ", terminating"
    } else {
        ""
    };
    format!(
        "pod {} on {node}: {}, {}{ending}",
        p.name,
        p.phase,
        if p.ready { "Ready" } else { "not Ready" }
    )
}

fn node_sentence(n: &NodeFacts) -> String {
    let instance = n
        .instance
        .as_ref()
        .map_or("unknown".to_owned(), ToString::to_string);
    format!(
        "Node {} is {} (instance {instance})",
        n.name,
        if n.ready { "Ready" } else { "not Ready" }
    )
}

fn view_sentence(node: &NodeName, seen: &GuestView) -> String {
    let by = |confirmed: &bool| {
        if *confirmed {
            "answered"
        } else {
            "last reported"
        }
    };
    match seen {
        GuestView::NoDevice { confirmed } => {
            format!("the agent on {node} {}: no device", by(confirmed))
        }
        GuestView::DeadMount { confirmed } => {
            format!(
                "the agent on {node} {}: no device, a dead mount remains",
                by(confirmed)
            )
        }
        GuestView::Device => format!("the agent on {node} sees the device"),
        GuestView::Unknown { why } => format!("what {node} sees is not known: {why}"),
    }
}
