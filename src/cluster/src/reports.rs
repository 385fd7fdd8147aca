//! Questions to agents: the challenges in `NodeVolumeReport.spec`.

use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use reattach_api::{NodeVolumeReport, NodeVolumeReportSpec, Opaque};
use reattach_core::guest::Challenge;
use reattach_core::ids::{NodeName, Uid};

/// How often a lost compare-and-swap is tried again before the caller looks anew.
const TRIES: u32 = 5;

/// Puts `challenge` into the node's report, in place of an older one of the same recovery. Returns whether it is there.
///
/// # Errors
/// The API server's error.
pub async fn ask(records: &Client, node: &NodeName, challenge: &Challenge) -> Result<(), kube::Error> {
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
pub async fn withdraw(records: &Client, node: &NodeName, recovery: &Uid) -> Result<(), kube::Error> {
    change(records, node, |spec| {
        let before = spec.challenges.len();
        spec.challenges.retain(|c| !is_of(c, recovery));
        spec.challenges.len() != before
    })
    .await
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
    let api: Api<NodeVolumeReport> = Api::all(records.clone());
    let mut tries = 0;
    loop {
        tries += 1;
        let result = match api.get_opt(node.as_str()).await? {
            Some(mut report) => {
                if !edit(&mut report.spec) {
                    return Ok(());
                }
                api.replace(node.as_str(), &PostParams::default(), &report).await
            }
            None => {
                let mut spec = NodeVolumeReportSpec::default();
                if !edit(&mut spec) {
                    return Ok(());
                }
                let metadata = ObjectMeta { name: Some(node.to_string()), ..ObjectMeta::default() };
                api.create(&PostParams::default(), &NodeVolumeReport { metadata, spec, status: None }).await
            }
        };
        match result {
            Ok(_) => return Ok(()),
            // The agent writes too: its status, and the object itself when it starts first.
            Err(kube::Error::Api(s)) if (s.is_conflict() || s.is_already_exists()) && tries < TRIES => {}
            Err(error) => return Err(error),
        }
    }
}
