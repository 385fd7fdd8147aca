//! Vetoes: an agent that sees a user of the volume contradicts each proof that its machine does not write.

use super::NoProof;
use crate::evidence::EvidenceAt;
use crate::guest::ScanResult;
use crate::ids::NodeName;

/// An agent whose answer to the open question shows a user of the device vetoes: its machine lived when it was asked.
pub(super) fn veto_by_answer(evidence: EvidenceAt<'_>, node: &NodeName) -> Result<(), NoProof> {
    if let Some(answer) = evidence.answers.get(node)
        && evidence
            .asked
            .as_ref()
            .is_some_and(|(r, e)| *r == answer.recovery && *e == answer.epoch)
        && evidence
            .node(node)
            .is_ok_and(|n| n.boot_id == answer.boot_id)
        && let ScanResult::InUse { users } = &answer.seen
    {
        return Err(NoProof::Veto {
            node: node.clone(),
            what: format!("{users:?}"),
        });
    }
    Ok(())
}

/// An agent that sees a user of the device, or a live mount of the volume, vetoes.
pub(super) fn veto(evidence: EvidenceAt<'_>, node: &NodeName) -> Result<(), NoProof> {
    veto_by_answer(evidence, node)?;
    let (Ok(guest), Some(csi)) = (evidence.guest(node), evidence.csi()) else {
        // No agent is no veto: the handshake itself is the proof (DESIGN 6, P5).
        return Ok(());
    };
    let identity = evidence.cloud_volume.shown().map(|v| &v.identity);
    if let Some(device) = guest
        .devices
        .iter()
        .find(|d| Some(&d.identity) == identity && !d.users.is_empty())
    {
        return Err(NoProof::Veto {
            node: node.clone(),
            what: format!("{:?}", device.users),
        });
    }
    let live = guest
        .csi_volumes
        .iter()
        .filter(|v| evidence.is_volume(&v.driver, &v.handle, csi))
        .flat_map(|v| &v.mounts)
        .find(|m| !m.dead);
    match live {
        Some(mount) => Err(NoProof::Veto {
            node: node.clone(),
            what: format!("mounted at {}", mount.path),
        }),
        None => Ok(()),
    }
}
