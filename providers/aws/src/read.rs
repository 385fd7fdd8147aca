//! Reads of volumes, instances and snapshots, in batches.
//!
//! Requests have a filter and no list of identifiers: EC2 refuses a whole list because of one unknown identifier, and a
//! filter leaves unknown identifiers out.

use crate::{
    classify::{Call, quote},
    client::{Client, MAX_PAGES},
    handle, wire,
};
use aws_sdk_ec2::types::{Filter, Instance, Volume};
use reattach_core::{
    cloud::{CloudInstance, CloudSnapshot, CloudVolume},
    ids::{InstanceId, VolumeId},
};
use reattach_provider_api::{Lookup, ProviderError};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

/// Maximum number of values in one filter of EC2.
const BATCH: usize = 200;

/// Size of a page. A batch fits on one page.
const PAGE: i32 = 500;

/// Makes a filter of one name.
fn filter<V: Into<String>>(name: &str, values: impl IntoIterator<Item = V>) -> Filter {
    let values = values.into_iter().map(Into::into).collect();
    Filter::builder()
        .name(name)
        .set_values(Some(values))
        .build()
}

/// Reads all pages. `$rows` takes the rows of an answer, or `None` when it has no list.
macro_rules! pages {
    ($client:expr, $call:expr, $request:ident, $filters:expr, |$build:ident| $more:expr, $rows:expr) => {{
        let (client, call, filters): (&Client, Call<'_>, Vec<Filter>) = ($client, $call, $filters);
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        let mut pages = 0;
        loop {
            pages += 1;
            if pages > MAX_PAGES {
                break Err(call.not_applied(format!("the list has more than {MAX_PAGES} pages")));
            }
            let answer = client
                .read(call, |ec2| {
                    let $build = ec2
                        .$request()
                        .set_filters(Some(filters.clone()))
                        .set_next_token(token.clone())
                        .max_results(PAGE);
                    $more.send()
                })
                .await;
            let mut answer = match answer {
                Ok(answer) => answer,
                Err(error) => break Err(error),
            };
            match $rows(&mut answer) {
                Some(rows) => found.extend(rows),
                // An answer without a list does not show that there are no objects.
                None => break Err(call.not_applied("the answer has no list")),
            }
            token = answer.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                break Ok(found);
            }
        }
    }};
}

async fn raw_volumes(
    client: &Client,
    operation: &str,
    filters: Vec<Filter>,
) -> Result<Vec<Volume>, ProviderError> {
    let call = Call {
        operation,
        action: "DescribeVolumes",
    };
    pages!(
        client,
        call,
        describe_volumes,
        filters,
        |request| request.include_managed_resources(true),
        |answer: &mut aws_sdk_ec2::operation::describe_volumes::DescribeVolumesOutput| answer
            .volumes
            .take()
    )
}

async fn raw_instances(
    client: &Client,
    operation: &str,
    filters: Vec<Filter>,
) -> Result<Vec<Instance>, ProviderError> {
    let call = Call {
        operation,
        action: "DescribeInstances",
    };
    let reservations = pages!(
        client,
        call,
        describe_instances,
        filters,
        |request| request.include_managed_resources(true),
        |answer: &mut aws_sdk_ec2::operation::describe_instances::DescribeInstancesOutput| {
            answer.reservations.take()
        }
    )?;
    Ok(reservations
        .into_iter()
        .flat_map(|r| r.instances.unwrap_or_default())
        .collect())
}

/// Refuses an answer with a row that does not match the filter. Such an answer belongs to another request, so an object that
/// it leaves out is not "not found".
fn asked_for<R>(
    operation: &str,
    rows: Vec<R>,
    id_of: impl Fn(&R) -> Option<&str>,
    ids: &[impl Display],
) -> Result<Vec<R>, ProviderError> {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let other = |row: &&R| !id_of(row).is_some_and(|found| ids.iter().any(|id| id == found));
    match rows.iter().find(other) {
        None => Ok(rows),
        Some(row) => Err(ProviderError::OtherObject {
            operation: operation.to_owned(),
            asked: match &ids[..] {
                [one] => one.clone(),
                many => format!("any of {} objects", many.len()),
            },
            answered: id_of(row)
                .map_or_else(|| "an object without an identifier".to_owned(), quote),
        }),
    }
}

/// Reads one volume in EC2's form. `None`: this account has no such volume.
pub(crate) async fn one_volume(
    client: &Client,
    operation: &str,
    id: &VolumeId,
) -> Result<Option<Volume>, ProviderError> {
    let rows = raw_volumes(client, operation, vec![filter("volume-id", [id.as_str()])]).await?;
    let rows = asked_for(operation, rows, Volume::volume_id, std::slice::from_ref(id))?;
    Ok(rows
        .into_iter()
        .find(|v| v.volume_id() == Some(id.as_str())))
}

/// Reads one instance. `None`: this account has no such instance.
pub(crate) async fn one_instance(
    client: &Client,
    operation: &str,
    id: &InstanceId,
) -> Result<Option<CloudInstance>, ProviderError> {
    match instances(client, std::slice::from_ref(id)).await.remove(id) {
        Some(Lookup::Found(instance)) => Ok(Some(instance)),
        Some(Lookup::Failed(error)) => Err(error),
        Some(Lookup::NotFound) => Ok(None),
        None => Err(ProviderError::not_applied(
            operation,
            "the identifier is not in the answer",
        )),
    }
}

/// Reads one instance in EC2's form. `None`: this account has no such instance.
pub(crate) async fn raw_instance(
    client: &Client,
    operation: &str,
    id: &InstanceId,
) -> Result<Option<Instance>, ProviderError> {
    let rows = raw_instances(
        client,
        operation,
        vec![filter("instance-id", [id.as_str()])],
    )
    .await?;
    let rows = asked_for(
        operation,
        rows,
        Instance::instance_id,
        std::slice::from_ref(id),
    )?;
    Ok(rows
        .into_iter()
        .find(|i| i.instance_id() == Some(id.as_str())))
}

/// Reads the account that answers, from the owner of any of its instances. A cluster on EC2 has instances.
pub(crate) async fn account(client: &Client, operation: &str) -> Result<String, ProviderError> {
    let call = Call {
        operation,
        action: "DescribeInstances",
    };
    let answer = client
        .read(call, |ec2| {
            ec2.describe_instances().max_results(SMALL_PAGE).send()
        })
        .await?;
    let owner = answer
        .reservations()
        .iter()
        .find_map(|r| r.owner_id())
        .filter(|id| !id.is_empty());
    owner
        .map(str::to_owned)
        .ok_or_else(|| call.not_applied("EC2 shows no instance with an owner"))
}

/// Reads an attached volume of the EBS CSI driver and its holder, for a dry-run.
pub(crate) async fn sample(
    client: &Client,
    operation: &str,
) -> Result<Option<(VolumeId, InstanceId)>, ProviderError> {
    let filters = vec![
        filter("tag-key", [DRIVER_TAG]),
        filter("attachment.status", ["attached"]),
    ];
    let call = Call {
        operation,
        action: "DescribeVolumes",
    };
    let answer = client
        .read(call, |ec2| {
            ec2.describe_volumes()
                .set_filters(Some(filters.clone()))
                .max_results(SAMPLE_PAGE)
                .send()
        })
        .await?;
    let volumes = answer.volumes().iter().filter_map(|v| wire::volume(v).ok());
    let held = volumes.filter_map(|v| match &v.holders[..] {
        [one] if handle::is_instance(one.as_str()) => Some((v.id.clone(), one.clone())),
        _ => None,
    });
    Ok(held.min())
}

/// Tag that the EBS CSI driver sets on all its volumes.
const DRIVER_TAG: &str = "ebs.csi.aws.com/cluster";

/// Size of a page from which one object is read.
const SMALL_PAGE: i32 = 5;

/// Size of a page from which a sample is taken.
const SAMPLE_PAGE: i32 = 50;

/// Splits identifiers into well-formed ones and errors for all others. A text with a wildcard would be a pattern in a
/// filter.
fn well_formed<I: Ord + Clone + Display, T>(
    ids: &[I],
    what: &str,
    good: impl Fn(&str) -> bool,
) -> (BTreeSet<I>, BTreeMap<I, Lookup<T>>) {
    let mut wanted = BTreeSet::new();
    let mut failed = BTreeMap::new();
    for id in ids {
        let text = id.to_string();
        if good(&text) {
            wanted.insert(id.clone());
        } else {
            let text = quote(&text);
            let operation = format!("read {what} {text}");
            let error = ProviderError::not_applied(
                &operation,
                format!("{text:?} is not the identifier of an EC2 {what}"),
            );
            failed.insert(id.clone(), Lookup::Failed(error));
        }
    }
    (wanted, failed)
}

/// Maps the identifiers of a request to the rows of its answer. An identifier without a row is not found. A row that cannot
/// be parsed is a failure.
fn sort<I: Ord + Clone + Display, R, T>(
    part: &[I],
    rows: Result<Vec<R>, ProviderError>,
    id_of: impl Fn(&R) -> Option<&str>,
    what: &str,
    convert: impl Fn(&R) -> Result<T, String>,
) -> Vec<(I, Lookup<T>)> {
    let rows = match rows {
        Ok(rows) => rows,
        Err(error) => {
            return part
                .iter()
                .map(|id| (id.clone(), Lookup::Failed(error.clone())))
                .collect();
        }
    };
    let look = |id: &I| match rows
        .iter()
        .find(|row| id_of(row).is_some_and(|found| found == id.to_string()))
    {
        None => Lookup::NotFound,
        Some(row) => match convert(row) {
            Ok(item) => Lookup::Found(item),
            Err(why) => {
                let operation = format!("read {what} {id}");
                let reason = format!("the answer cannot be used: {why}");
                Lookup::Failed(ProviderError::not_applied(&operation, reason))
            }
        },
    };
    part.iter().map(|id| (id.clone(), look(id))).collect()
}

/// Reads volumes by identifier.
pub(crate) async fn volumes(
    client: &Client,
    ids: &[VolumeId],
) -> BTreeMap<VolumeId, Lookup<CloudVolume>> {
    let (wanted, mut all) = well_formed(ids, "volume", handle::is_volume);
    for part in wanted.into_iter().collect::<Vec<_>>().chunks(BATCH) {
        let operation = match part {
            [one] => format!("read volume {one}"),
            many => format!("read {} volumes", many.len()),
        };
        let by = filter("volume-id", part.iter().map(VolumeId::as_str));
        let rows = raw_volumes(client, &operation, vec![by]).await;
        let rows = rows.and_then(|rows| asked_for(&operation, rows, Volume::volume_id, part));
        all.extend(sort(part, rows, Volume::volume_id, "volume", wire::volume));
    }
    all
}

/// Reads instances by identifier.
pub(crate) async fn instances(
    client: &Client,
    ids: &[InstanceId],
) -> BTreeMap<InstanceId, Lookup<CloudInstance>> {
    let (wanted, mut all) = well_formed(ids, "instance", handle::is_instance);
    for part in wanted.into_iter().collect::<Vec<_>>().chunks(BATCH) {
        let operation = match part {
            [one] => format!("read instance {one}"),
            many => format!("read {} instances", many.len()),
        };
        let by = filter("instance-id", part.iter().map(InstanceId::as_str));
        let rows = raw_instances(client, &operation, vec![by]).await;
        let rows = rows.and_then(|rows| asked_for(&operation, rows, Instance::instance_id, part));
        all.extend(sort(
            part,
            rows,
            Instance::instance_id,
            "instance",
            wire::instance,
        ));
    }
    all
}

/// Reads the account's own snapshots of a volume with this description, oldest first.
pub(crate) async fn snapshots(
    client: &Client,
    volume: &VolumeId,
    label: &str,
) -> Result<Vec<CloudSnapshot>, ProviderError> {
    let operation = format!("read the snapshots of volume {volume}");
    let call = Call {
        operation: &operation,
        action: "DescribeSnapshots",
    };
    let filters = vec![
        filter("volume-id", [volume.as_str()]),
        filter("description", [label]),
    ];
    let rows = pages!(
        client,
        call,
        describe_snapshots,
        filters,
        |request| request.owner_ids("self"),
        |answer: &mut aws_sdk_ec2::operation::describe_snapshots::DescribeSnapshotsOutput| {
            answer.snapshots.take()
        }
    )?;
    let rows = asked_for(
        &operation,
        rows,
        aws_sdk_ec2::types::Snapshot::volume_id,
        &[volume],
    )?;
    let mut found = Vec::new();
    for row in &rows {
        let snapshot = wire::snapshot(row)
            .map_err(|why| call.not_applied(format!("the answer cannot be used: {why}")))?;
        if snapshot.volume == *volume && snapshot.label == label {
            found.push(snapshot);
        }
    }
    found.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AwsConfig;
    use bytes::Bytes;
    use http::Request;
    use reattach_cloud_simulator::{
        CloudSim, ManualClock, NewVolume, VolumeNo, ec2::volume_id, in_memory,
    };
    use reattach_provider_api::HttpTransport;
    use tower::ServiceExt;

    /// EC2 may return smaller pages than requested, so all pages are read.
    #[tokio::test]
    async fn all_pages_are_read() {
        let sim = CloudSim::new(
            ManualClock::new("2021-07-11T01:13:00Z".parse().expect("a time")).clock(),
        );
        for n in 1..=23 {
            sim.create_volume(NewVolume::new(format!("v{n}")).with_id(n))
                .expect("a volume");
        }
        let cloud = in_memory(sim.clone());
        let small_pages = tower::service_fn(move |request: Request<Bytes>| {
            let request = request.map(|body| {
                let text = String::from_utf8_lossy(&body).replace("MaxResults=500", "MaxResults=5");
                Bytes::from(text)
            });
            cloud.clone().oneshot(request)
        });
        let config = AwsConfig::fixed("eu-central-1", "http://127.0.0.1", "AKIAEXAMPLE", "secret");
        let client = Client::new(HttpTransport::new(small_pages), config.expect("settings"));
        let ids: Vec<VolumeId> = (1..=24)
            .map(|n| VolumeId::new(volume_id(VolumeNo(n))))
            .collect();
        let found = volumes(&client, &ids).await;
        assert_eq!(
            found
                .values()
                .filter(|l| matches!(l, Lookup::Found(_)))
                .count(),
            23
        );
        assert_eq!(found.get(&ids[23]), Some(&Lookup::NotFound));
        assert_eq!(sim.requests().len(), 5);
    }
}
