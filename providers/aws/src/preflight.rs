//! Reads the rights of the credential by dry-runs, which change nothing.

use crate::{
    classify::{Call, DRY_RUN, Failure},
    client::{Answer, Client},
    read,
};
use aws_sdk_ec2::{Client as Ec2, config::Builder, error::ProvideErrorMetadata};
use reattach_core::ids::{InstanceId, VolumeId};
use reattach_provider_api::{Grant, PreflightReport, ProviderError, Right, RightUse};
use std::{error::Error, future::Future};

/// Rights and their uses, sorted by name.
const RIGHTS: [(&str, &[RightUse]); 7] = [
    ("CreateSnapshot", &[RightUse::Snapshot]),
    ("DescribeInstances", &[RightUse::ReadInstances]),
    ("DescribeSnapshots", &[RightUse::Snapshot]),
    (
        "DescribeVolumes",
        &[RightUse::ReadJobs, RightUse::ReadVolumes],
    ),
    ("DetachVolume", &[RightUse::Detach]),
    ("StartInstances", &[RightUse::Power]),
    ("StopInstances", &[RightUse::Power]),
];

/// Minimum size of a page at EC2.
const PAGE: i32 = 5;

/// Reads each right. A policy may allow an effect for some volumes and instances only, so the dry-run of an effect is about
/// a volume of the EBS CSI driver and its holder.
pub(crate) async fn run(client: &Client) -> PreflightReport {
    let volumes = match dry_run(client, "DescribeVolumes", describe_volumes).await {
        Ok(grant) => grant,
        // A failure here would also fail all further requests.
        Err(failure) => return unknown(failure),
    };
    let sample = match &volumes {
        Grant::Present => read::sample(client, "look for a volume for the dry-runs").await,
        _ => Ok(None),
    };
    let mut rights = Vec::new();
    for (action, uses) in RIGHTS {
        let grant = match (action, &sample) {
            ("DescribeVolumes", _) => Ok(volumes.clone()),
            ("DescribeInstances", _) => dry_run(client, action, describe_instances).await,
            ("DescribeSnapshots", _) => dry_run(client, action, describe_snapshots).await,
            (_, Ok(Some((volume, holder)))) => effect(client, action, volume, holder).await,
            (_, Ok(None)) => {
                let why =
                    "no attached volume of the EBS CSI driver was found for the dry-run".to_owned();
                Ok(Grant::Unknown { why })
            }
            (_, Err(error)) => Ok(Grant::Unknown {
                why: error.to_string(),
            }),
        };
        let grant = grant.unwrap_or_else(|error| Grant::Unknown {
            why: error.to_string(),
        });
        rights.push(Right {
            name: format!("ec2:{action}"),
            needed_for: uses.to_vec(),
            grant,
        });
    }
    PreflightReport {
        rights,
        failure: None,
    }
}

fn unknown(failure: ProviderError) -> PreflightReport {
    let why = failure.to_string();
    let right = |(action, uses): &(&str, &[RightUse])| Right {
        name: format!("ec2:{action}"),
        needed_for: uses.to_vec(),
        grant: Grant::Unknown { why: why.clone() },
    };
    PreflightReport {
        rights: RIGHTS.iter().map(right).collect(),
        failure: Some(failure),
    }
}

async fn effect(
    client: &Client,
    action: &str,
    volume: &VolumeId,
    holder: &InstanceId,
) -> Result<Grant, ProviderError> {
    let (volume, holder) = (volume.as_str(), holder.as_str());
    match action {
        "DetachVolume" => {
            dry_run(client, action, |ec2, once| {
                let request = ec2
                    .detach_volume()
                    .volume_id(volume)
                    .instance_id(holder)
                    .dry_run(true);
                let request = request.customize().config_override(once);
                async move { request.send().await }
            })
            .await
        }
        "StopInstances" => {
            dry_run(client, action, |ec2, once| {
                let request = ec2.stop_instances().instance_ids(holder).dry_run(true);
                let request = request.customize().config_override(once);
                async move { request.send().await }
            })
            .await
        }
        "StartInstances" => {
            dry_run(client, action, |ec2, once| {
                let request = ec2.start_instances().instance_ids(holder).dry_run(true);
                let request = request.customize().config_override(once);
                async move { request.send().await }
            })
            .await
        }
        _ => {
            dry_run(client, action, |ec2, once| {
                let request = ec2.create_snapshot().volume_id(volume).dry_run(true);
                let request = request.customize().config_override(once);
                async move { request.send().await }
            })
            .await
        }
    }
}

async fn describe_volumes(
    ec2: Ec2,
    once: Builder,
) -> Answer<
    aws_sdk_ec2::operation::describe_volumes::DescribeVolumesOutput,
    aws_sdk_ec2::operation::describe_volumes::DescribeVolumesError,
> {
    ec2.describe_volumes()
        .max_results(PAGE)
        .dry_run(true)
        .customize()
        .config_override(once)
        .send()
        .await
}

async fn describe_instances(
    ec2: Ec2,
    once: Builder,
) -> Answer<
    aws_sdk_ec2::operation::describe_instances::DescribeInstancesOutput,
    aws_sdk_ec2::operation::describe_instances::DescribeInstancesError,
> {
    ec2.describe_instances()
        .max_results(PAGE)
        .dry_run(true)
        .customize()
        .config_override(once)
        .send()
        .await
}

async fn describe_snapshots(
    ec2: Ec2,
    once: Builder,
) -> Answer<
    aws_sdk_ec2::operation::describe_snapshots::DescribeSnapshotsOutput,
    aws_sdk_ec2::operation::describe_snapshots::DescribeSnapshotsError,
> {
    ec2.describe_snapshots()
        .owner_ids("self")
        .max_results(PAGE)
        .dry_run(true)
        .customize()
        .config_override(once)
        .send()
        .await
}

/// Sends a dry-run and returns the grant that it shows. The error is a refused credential, or an answer that shows nothing.
async fn dry_run<T, E, F>(
    client: &Client,
    action: &str,
    send: impl FnOnce(Ec2, Builder) -> F,
) -> Result<Grant, ProviderError>
where
    F: Future<Output = Answer<T, E>>,
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let operation = format!("check whether ec2:{action} is allowed");
    let call = Call {
        operation: &operation,
        action,
    };
    match client.dry_run(call, send).await {
        // EC2 never answers a dry-run with success. A server like EC2 may; its answer to a read shows the right too.
        Ok(_) if action.starts_with("Describe") => Ok(Grant::Present),
        Ok(_) => Err(call.not_applied("the dry-run was answered like a request without dry-run")),
        Err(Failure {
            code: Some(code), ..
        }) if code == DRY_RUN => Ok(Grant::Present),
        Err(Failure {
            error: ProviderError::Denied { missing, .. },
            ..
        }) if !missing.is_empty() => Ok(Grant::Missing),
        Err(failure) => Err(failure.error),
    }
}
