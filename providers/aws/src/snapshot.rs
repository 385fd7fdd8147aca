//! Makes and lists snapshots. The label of the request becomes the description: EC2 has no token that makes the request
//! idempotent, so a snapshot with an unknown outcome is looked up by its description.

use crate::{classify::Call, client::Client, read, wire};
use aws_sdk_ec2::types::Snapshot;
use reattach_core::{cloud::CloudSnapshot, ids::VolumeId};
use reattach_provider_api::{Deadline, EffectError, ProviderError, SnapshotRequest};

/// Maximum length of a label, in characters. EC2 allows descriptions of 255 characters.
const LABEL: usize = 200;

/// Begins a snapshot.
pub(crate) async fn create(
    client: &Client,
    request: &SnapshotRequest,
) -> Result<CloudSnapshot, EffectError> {
    let volume = &request.volume;
    let operation = format!("make a snapshot of volume {volume}");
    let call = Call {
        operation: &operation,
        action: "CreateSnapshot",
    };
    check(call, &request.label)?;
    let answer = client
        .mutate(call, Deadline::after(request.timeout), |ec2, once| {
            let order = ec2
                .create_snapshot()
                .volume_id(volume.as_str())
                .description(&request.label);
            let order = order.customize().config_override(once);
            async move { order.send().await }
        })
        .await
        .map_err(|failure| failure.error)?;
    let shown = Snapshot::builder()
        .set_snapshot_id(answer.snapshot_id)
        .set_volume_id(answer.volume_id)
        .set_description(answer.description)
        .set_state(answer.state)
        .set_state_message(answer.state_message)
        .set_start_time(answer.start_time)
        .build();
    let unknown = |reason: String| ProviderError::Unknown {
        operation: operation.clone(),
        reason,
    };
    match wire::snapshot(&shown) {
        Ok(begun) if begun.volume == *volume && begun.label == request.label => Ok(begun),
        Ok(_) => Err(unknown(
            "the answer is a success that names another volume or label".to_owned(),
        )
        .into()),
        Err(why) => Err(unknown(format!("the answer cannot be used: {why}")).into()),
    }
}

/// Reads the snapshots of a volume with this label.
pub(crate) async fn list(
    client: &Client,
    volume: &VolumeId,
    label: &str,
) -> Result<Vec<CloudSnapshot>, EffectError> {
    let operation = format!("read the snapshots of volume {volume}");
    check(
        Call {
            operation: &operation,
            action: "DescribeSnapshots",
        },
        label,
    )?;
    Ok(read::snapshots(client, volume, label).await?)
}

/// Checks the characters of a label. Others would be wildcards in the filter that looks the snapshot up, or would be
/// encoded.
fn check(call: Call<'_>, label: &str) -> Result<(), ProviderError> {
    let good = |c: char| c.is_ascii_alphanumeric() || " -_.:/".contains(c);
    if label.is_empty() || label.len() > LABEL || !label.chars().all(good) {
        let why = format!("the label must have 1 to {LABEL} letters, digits, spaces and -_.:/");
        return Err(call.not_applied(why));
    }
    Ok(())
}
