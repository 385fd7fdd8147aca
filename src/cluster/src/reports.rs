//! What the controller writes into `NodeVolumeReport.spec`: questions to agents, and the machines behind the nodes.

use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use reattach_api::{NodeVolumeReport, NodeVolumeReportSpec, Opaque, metadata};
use reattach_core::evidence::SeenMachine;
use reattach_core::guest::Challenge;
use reattach_core::ids::{NodeName, Uid};

/// How often a lost compare-and-swap is tried again before the caller looks anew.
const TRIES: u32 = 5;

/// Puts `challenge` into the node's report, in place of an older one of the same recovery. Returns whether it is there.
///
/// # Errors
/// The API server's error.
pub async fn ask(
    records: &Client,
    node: &NodeName,
    challenge: &Challenge,
) -> Result<(), kube::Error> {
    change(records, node, |spec| {
        if spec.challenges.iter().any(|c| c.get() == Ok(challenge)) {
            return false;
        }
        spec.challenges.retain(|c| !is_of(c, &challenge.recovery));
        spec.challenges.push(challenge.clone().into());
        true
    })
    .await
}

/// Takes a recovery's challenges out of the node's report.
///
/// # Errors
/// The API server's error.
pub async fn withdraw(
    records: &Client,
    node: &NodeName,
    recovery: &Uid,
) -> Result<(), kube::Error> {
    change(records, node, |spec| {
        let before = spec.challenges.len();
        spec.challenges.retain(|c| !is_of(c, recovery));
        spec.challenges.len() != before
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
    change_object(records, node, |report| {
        let owners = report.owner_references().len();
        report.owner_references_mut().retain(|o| o.kind != "Node");
        let news = report.spec.machines != machines || report.owner_references().len() != owners;
        machines.clone_into(&mut report.spec.machines);
        news
    })
    .await
}

/// Deletes the report of a node that is gone and of which no machine is remembered, if it is still the one that was read.
///
/// # Errors
/// The API server's error.
pub async fn forget(records: &Client, report: &NodeVolumeReport) -> Result<(), kube::Error> {
    let api: Api<NodeVolumeReport> = Api::all(records.clone());
    let (uid, version) = metadata::of(report).condition()?;
    let same = Preconditions {
        uid: Some(uid.to_string()),
        resource_version: Some(version.to_string()),
    };
    let params = DeleteParams {
        preconditions: Some(same),
        ..DeleteParams::default()
    };
    match api.delete(&report.name_any(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(s)) if s.is_not_found() || s.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether a challenge is this recovery's. One that cannot be read still names its recovery, if it is any.
pub fn is_of(challenge: &Opaque<Challenge>, recovery: &Uid) -> bool {
    match challenge.get() {
        Ok(challenge) => challenge.recovery == *recovery,
        Err(unreadable) => unreadable.raw()["recovery"] == recovery.as_str(),
    }
}

async fn change(
    records: &Client,
    node: &NodeName,
    edit: impl Fn(&mut NodeVolumeReportSpec) -> bool,
) -> Result<(), kube::Error> {
    change_object(records, node, |report| edit(&mut report.spec)).await
}

async fn change_object(
    records: &Client,
    node: &NodeName,
    edit: impl Fn(&mut NodeVolumeReport) -> bool,
) -> Result<(), kube::Error> {
    let api: Api<NodeVolumeReport> = Api::all(records.clone());
    let mut tries = 0;
    loop {
        tries += 1;
        let result = match api.get_opt(node.as_str()).await? {
            Some(mut report) => {
                if !edit(&mut report) {
                    return Ok(());
                }
                api.replace(node.as_str(), &PostParams::default(), &report)
                    .await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(node.to_string()),
                    ..ObjectMeta::default()
                };
                let spec = NodeVolumeReportSpec::default();
                let mut report = NodeVolumeReport {
                    metadata,
                    spec,
                    status: None,
                };
                if !edit(&mut report) {
                    return Ok(());
                }
                api.create(&PostParams::default(), &report).await
            }
        };
        match result {
            Ok(_) => return Ok(()),
            // The agent writes too: its status, and the object itself when it starts first.
            Err(kube::Error::Api(s))
                if (s.is_conflict() || s.is_already_exists()) && tries < TRIES => {}
            Err(error) => return Err(error),
        }
    }
}
