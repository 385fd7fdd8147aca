//! What the controller writes into `NodeVolumeReport.spec`: questions to agents, and the machines behind the nodes.

use crate::conditional::delete_version;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use reattach_api::{NodeVolumeReport, NodeVolumeReportSpec, Opaque, metadata};
use reattach_core::evidence::SeenMachine;
use reattach_core::guest::Challenge;
use reattach_core::ids::{NodeName, Uid};

/// Maximum number of compare-and-swap attempts per change.
const TRIES: u32 = 5;

/// Puts `challenge` into the node's report, in place of an older one of the same recovery.
///
/// # Errors
/// The API server's error.
pub async fn ask(
    records: &Client,
    node: &NodeName,
    challenge: &Challenge,
) -> Result<(), kube::Error> {
    change(records, node, |report| {
        let spec = &mut report.spec;
        if spec.challenges.iter().any(|c| c.get() == Ok(challenge)) {
            return false;
        }
        spec.challenges.retain(|c| !is_of(c, &challenge.recovery));
        spec.challenges.push(challenge.clone().into());
        true
    })
    .await
}

/// Removes a recovery's challenges from the node's report.
///
/// # Errors
/// The API server's error.
pub async fn withdraw(
    records: &Client,
    node: &NodeName,
    recovery: &Uid,
) -> Result<(), kube::Error> {
    change(records, node, |report| {
        let challenges = &mut report.spec.challenges;
        let before = challenges.len();
        challenges.retain(|c| !is_of(c, recovery));
        challenges.len() != before
    })
    .await
}

/// Writes the machines that were seen behind the node of this name, and lets the report outlive the Node.
///
/// # Errors
/// The API server's error.
pub async fn record(
    records: &Client,
    node: &NodeName,
    machines: &[Opaque<SeenMachine>],
) -> Result<(), kube::Error> {
    change(records, node, |report| {
        let owners = report.owner_references().len();
        report.owner_references_mut().retain(|o| o.kind != "Node");
        let changed = report.spec.machines != machines || report.owner_references().len() != owners;
        machines.clone_into(&mut report.spec.machines);
        changed
    })
    .await
}

/// Deletes the report of a node that is long gone, if it is still the one that was read.
///
/// # Errors
/// The API server's error.
pub async fn forget(records: &Client, report: &NodeVolumeReport) -> Result<(), kube::Error> {
    let api: Api<NodeVolumeReport> = Api::all(records.clone());
    let (uid, version) = metadata::of(report).condition()?;
    let params = delete_version(&uid, &version);
    match api.delete(&report.name_any(), &params).await {
        Err(kube::Error::Api(s)) if s.is_not_found() || s.is_conflict() => Ok(()),
        reply => reply.map(drop),
    }
}

/// Whether a challenge is this recovery's. One that cannot be read still names its recovery, if it is any.
pub fn is_of(challenge: &Opaque<Challenge>, recovery: &Uid) -> bool {
    match challenge.get() {
        Ok(challenge) => challenge.recovery == *recovery,
        Err(unreadable) => unreadable.raw()["recovery"] == recovery.as_str(),
    }
}

/// Makes or changes a node's report. `edit` returns whether it changed anything.
async fn change(
    records: &Client,
    node: &NodeName,
    edit: impl Fn(&mut NodeVolumeReport) -> bool,
) -> Result<(), kube::Error> {
    let api: Api<NodeVolumeReport> = Api::all(records.clone());
    let (name, params) = (node.as_str(), PostParams::default());
    let mut tries = 0;
    loop {
        tries += 1;
        let found = api.get_opt(name).await?;
        let exists = found.is_some();
        let mut report =
            found.unwrap_or_else(|| NodeVolumeReport::new(name, NodeVolumeReportSpec::default()));
        if !edit(&mut report) {
            return Ok(());
        }
        let written = match exists {
            true => api.replace(name, &params, &report).await,
            false => api.create(&params, &report).await,
        };
        match written {
            // The agent writes too: its status, and the object itself when it starts first.
            Err(kube::Error::Api(s))
                if (s.is_conflict() || s.is_already_exists()) && tries < TRIES => {}
            reply => return reply.map(drop),
        }
    }
}
