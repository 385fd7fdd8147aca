//! Reads of many objects: their number of requests, and the result of one defective object.

mod support;

use reattach_cloud_simulator::{NewInstance, NewVolume, Operation, VolumeNo};
use reattach_core::cloud::JobKind;
use reattach_core::ids::{InstanceId, VolumeId};
use reattach_provider_api::{Lookup, Provider, ProviderError};
use support::{HOLDER, Linode, VOLUME};

fn volume_ids(numbers: impl IntoIterator<Item = u64>) -> Vec<VolumeId> {
    numbers
        .into_iter()
        .map(|n| VolumeId::new(n.to_string()))
        .collect()
}

fn calls(linode: &Linode, operation: Operation) -> usize {
    linode
        .sim
        .requests()
        .iter()
        .filter(|r| r.operation == Some(operation))
        .count()
}

fn with_volumes(count: u64) -> Linode {
    let linode = Linode::new();
    for number in 0..count {
        let new = NewVolume::new(format!("vol{number}")).with_id(1000 + number);
        linode.sim.create_volume(new).expect("a volume");
    }
    linode
}

#[tokio::test(start_paused = true)]
async fn many_volumes_are_read_from_pages() {
    let linode = with_volumes(1200);
    let ids = volume_ids((1000..2200).chain([VOLUME.0, 999]));
    let found = linode.provider.describe_volumes(&ids).await;
    assert_eq!(found.len(), 1202);
    assert_eq!(
        found
            .values()
            .filter(|l| matches!(l, Lookup::Found(_)))
            .count(),
        1201
    );
    assert_eq!(found[&VolumeId::from("999")], Lookup::NotFound);
    let held = found[&VolumeId::new(VOLUME.to_string())]
        .clone()
        .found()
        .expect("a volume");
    assert_eq!(held.holders, [InstanceId::new(HOLDER.to_string())]);
    assert_eq!(calls(&linode, Operation::ListVolumes), 3);
    assert_eq!(
        calls(&linode, Operation::DescribeVolume),
        1,
        "only the missing one is asked for again"
    );
    linode.contract.assert_kept();
}

#[tokio::test(start_paused = true)]
async fn few_volumes_of_many_take_few_calls() {
    let linode = with_volumes(3000);
    let found = linode
        .provider
        .describe_volumes(&volume_ids([1000, 3990, 3991, 3992]))
        .await;
    assert!(
        found.values().all(|l| matches!(l, Lookup::Found(_))),
        "{found:?}"
    );
    assert_eq!(
        linode.sim.requests().len(),
        4,
        "one page, then the three that it did not show"
    );
    let found = linode
        .provider
        .describe_volumes(&volume_ids([1000, 3999]))
        .await;
    assert_eq!(found.len(), 2);
    assert_eq!(linode.sim.requests().len(), 6);
    linode.contract.assert_kept();
}

#[tokio::test(start_paused = true)]
async fn instances_are_filtered_by_number() {
    let linode = Linode::new();
    for number in 0..250 {
        let new = NewInstance::new(format!("worker-{number}")).with_id(2000 + number);
        linode.sim.create_instance(new).expect("an instance");
    }
    let ids: Vec<_> = (2000..2230)
        .chain([1])
        .map(|n: u64| InstanceId::new(n.to_string()))
        .collect();
    let found = linode.provider.describe_instances(&ids).await;
    assert_eq!(
        found
            .values()
            .filter(|l| matches!(l, Lookup::Found(_)))
            .count(),
        230
    );
    assert_eq!(found[&InstanceId::from("1")], Lookup::NotFound);
    assert_eq!(calls(&linode, Operation::ListInstances), 3);
    assert_eq!(calls(&linode, Operation::DescribeInstance), 1);
    linode.contract.assert_kept();
}

#[tokio::test(start_paused = true)]
async fn an_identifier_that_is_no_number_is_not_sent() {
    let linode = Linode::new();
    let ids = [
        VolumeId::new(VOLUME.to_string()),
        "vol-1".into(),
        "../account".into(),
        "".into(),
    ];
    let found = linode.provider.describe_volumes(&ids).await;
    assert_eq!(found.len(), 4);
    assert!(matches!(found[&ids[0]], Lookup::Found(_)));
    for id in &ids[1..] {
        assert!(
            matches!(&found[id], Lookup::Failed(ProviderError::NotApplied { .. })),
            "{id}"
        );
    }
    assert_eq!(linode.sim.requests().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn reading_no_objects_sends_nothing() {
    let linode = Linode::new();
    assert!(linode.provider.describe_volumes(&[]).await.is_empty());
    assert!(linode.provider.describe_instances(&[]).await.is_empty());
    assert!(linode.sim.requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_job_history_is_of_one_volume_from_since_on() {
    let linode = Linode::new();
    let id = VolumeId::new(VOLUME.to_string());
    let other = linode
        .sim
        .create_volume(NewVolume::new("other"))
        .expect("a volume");
    linode.sim.attach(other, HOLDER).expect("attached");
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    let since = linode.sim.now();
    linode.sim.detach(VOLUME).expect("accepted");
    let recent = linode.provider.jobs(&id, since).await.expect("a history");
    assert_eq!(
        recent.iter().map(|j| j.action.as_str()).collect::<Vec<_>>(),
        ["volume_detach"]
    );
    assert_eq!(recent[0].created.as_second(), since.as_second());
    let whole = linode
        .provider
        .jobs(&id, support::start())
        .await
        .expect("a history");
    let actions: Vec<_> = whole.iter().map(|j| j.action.as_str()).collect();
    assert_eq!(actions, ["volume_attach", "volume_detach"], "oldest first");
    assert_eq!(
        whole.iter().map(|j| j.kind).collect::<Vec<_>>(),
        [JobKind::Attach, JobKind::Detach]
    );
    assert!(
        whole
            .iter()
            .all(|j| j.volume == Some(id.clone()) && j.instance == Some("42".into()))
    );
    let none = linode
        .provider
        .jobs(&VolumeId::new(VolumeNo(9).to_string()), since)
        .await;
    assert_eq!(none, Ok(Vec::new()));
    linode.contract.assert_kept();
}
