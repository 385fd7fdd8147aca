//! When the cloud is asked about holders.

use super::{Fixture, VOLUME, run};
use futures::future::join_all;
use jiff::Timestamp;
use reattach_cloud_simulator::{Fault, FaultRule, InstanceNo};
use reattach_controller::collect::Needs;
use reattach_core::evidence::{Evidence, OwnClusters};
use reattach_core::ids::{CloudCluster, InstanceId};
use reattach_tests_simulation::NODES;
use serde_json::json;
use std::collections::BTreeSet;

#[test]
fn a_holder_with_a_live_kubelet_costs_no_instance_read() {
    run(|| async {
        let mut s = Fixture::set().await;
        s.read_tags_of_machines().await;
        let before = s.cloud().requests().len();
        let e = s.collect().await;
        assert_eq!(
            e.cloud_volume.shown().map(|v| v.holders.clone()),
            Some(vec![s.instance()])
        );
        assert!(e.instances.is_empty() && e.power.is_empty() && e.cloud_scope.is_none());
        let paths: Vec<_> = s.asked(before).into_iter().map(|r| r.path).collect();
        assert_eq!(paths, ["/v4/volumes/7002"]);

        // No VolumeAttachment stands for the holder: whatever its kubelet says, Kubernetes will not free the volume.
        for attachment in s
            .stage
            .world
            .server()
            .list("storage.k8s.io", "volumeattachments", None)
        {
            let name = attachment["metadata"]["name"].as_str().expect("a name");
            let path = format!("/apis/storage.k8s.io/v1/volumeattachments/{name}");
            let nobodys = json!({"metadata": {"finalizers": null}});
            s.stage
                .world
                .merge("system:admin", &path, &nobodys)
                .await
                .expect("a patch");
            let plain = "application/json";
            s.stage
                .world
                .request("system:admin", "DELETE", &path, plain, &json!({}))
                .await
                .expect("deleted");
        }
        let e = s.collect().await;
        assert_eq!(e.attachments.shown().map(Vec::len), Some(0));
        assert!(e.instances.contains_key(&s.instance()), "{e:?}");

        // The cloud names an instance that nothing here is known of.
        let other = NODES
            .map(|(_, n)| InstanceNo(n))
            .into_iter()
            .find(|n| *n != s.holder)
            .expect("another");
        s.cloud().make_orphan(VOLUME, other).expect("moved");
        s.pass(4).await;
        let e = s.collect().await;
        let asked: Vec<_> = e.instances.keys().cloned().collect();
        assert_eq!(asked, [InstanceId::new(other.to_string())]);

        // While the cloud does not answer for the volume, nothing more is asked of it.
        s.die().await;
        s.cloud().add_fault(FaultRule::new([], Fault::Maintenance));
        let before = s.cloud().requests().len();
        let e = s.collect().await;
        assert!(e.instances.is_empty() && e.cloud_scope.is_none());
        assert_eq!(s.asked(before).len(), 1);
    });
}

/// Before a run. The fact keeps the time of its request, so that rules about ages hold.
#[test]
fn looks_within_three_seconds_share_an_answer_and_its_time() {
    run(|| async {
        let mut s = Fixture::set().await;
        s.read_tags_of_machines().await;
        let (before, first) = (s.cloud().requests().len(), s.collect().await);
        assert_eq!(s.asked(before).len(), 1);
        s.pass(2).await;
        let second = s.collect().await;
        assert_eq!(s.asked(before).len(), 1, "it is shared");
        assert_eq!(second.cloud_volume, first.cloud_volume);
        s.pass(2).await;
        let third = s.collect().await;
        assert_eq!(s.asked(before).len(), 2, "it is too old to be shared");
        assert!(third.cloud_volume.at > first.cloud_volume.at);
    });
}

#[test]
fn facts_about_a_silent_holder_have_source_and_age() {
    run(|| async {
        let mut s = Fixture::set().await;
        s.read_tags_of_machines().await;
        s.die().await;
        let slow = Fault::Latency {
            before_ms: 400,
            after_ms: 300,
        };
        s.cloud().add_fault(FaultRule::new([], slow));
        let (before, requests) = (s.now(), s.cloud().requests().len());
        let collectors: Vec<_> = (0..10).map(|_| s.collector.clone()).collect();
        let looks = collectors
            .iter()
            .map(|c| c.collect(&s.claim, None, Needs::Diagnose));
        let all: Vec<Evidence> = join_all(looks)
            .await
            .into_iter()
            .map(|e| e.expect("evidence"))
            .collect();
        assert_eq!(
            s.asked(requests).len(),
            4,
            "volume, instance, history, account: ten looks, one request each"
        );
        for e in &all {
            let (instance, power) = (&e.instances[&s.instance()], &e.power[&s.instance()]);
            assert_eq!(
                (instance.source.to_string().as_str(), &power.source),
                ("linode API", &instance.source)
            );
            let since = |at: Timestamp| at.duration_since(before).as_millis();
            assert_eq!(
                (
                    since(e.cloud_volume.at),
                    since(instance.at),
                    since(power.at)
                ),
                (0, 700, 700)
            );
            assert_eq!(since(e.collected_at), 1_400);
            assert!(e.cloud_scope.is_some());
        }
    });
}

/// The holder's tags, and those of another machine to compare them with, are read once in ten minutes.
#[test]
fn the_tags_of_machines_are_read_once_in_ten_minutes() {
    run(|| async {
        let mut s = Fixture::set().await;
        let other = NODES
            .map(|(_, n)| InstanceNo(n))
            .into_iter()
            .find(|n| *n != s.holder)
            .expect("another");
        let volume = "/v4/volumes/7002".to_owned();
        let machine = |n: InstanceNo| format!("/v4/linode/instances/{n}");
        let all = [volume.clone(), machine(s.holder), machine(other)];
        assert_eq!(s.read_tags_of_machines().await, all);
        let before = s.cloud().requests().len();
        for _ in 0..9 {
            let e = s.collect().await;
            let identity = e.identity.shown().expect("read");
            let names: BTreeSet<CloudCluster> = ["lke13311".into()].into();
            assert_eq!(identity.holder_clusters, names);
            assert_eq!(identity.own_clusters, OwnClusters::Known { names });
            s.pass(60).await;
        }
        assert!(s.asked(before).iter().all(|r| r.path == volume));
        s.pass(60).await;
        assert_eq!(s.read_tags_of_machines().await, all);
    });
}
