//! Answers that many looks share.

use super::{linode, run, start};
use futures::future::join_all;
use jiff::SignedDuration;
use reattach_cloud_simulator::{
    CloudSim, Fault, FaultRule, NewVolume, Operation, clock::tokio_from,
};
use reattach_controller::providers::{Located, Providers};
use reattach_core::evidence::CsiSource;
use reattach_core::fact::Known;
use std::time::Duration;

/// Volumes of the cloud, each as one recovery knows it.
fn located(providers: &Providers, numbers: std::ops::Range<u64>) -> Vec<Located> {
    let one = |n: u64| {
        let csi = CsiSource {
            driver: "linodebs.csi.linode.com".into(),
            handle: format!("{n}-v{n}").as_str().into(),
        };
        providers
            .locate(&csi)
            .expect("a good handle")
            .expect("Linode's")
    };
    numbers.map(one).collect()
}

fn cloud_of(numbers: std::ops::Range<u64>) -> CloudSim {
    let cloud = CloudSim::new(tokio_from(start())).with_seed(1);
    for n in numbers {
        cloud
            .create_volume(NewVolume::new(format!("v{n}")).with_id(n))
            .expect("a volume");
    }
    cloud
}

#[test]
fn concurrent_reads_share_one_request_and_its_time() {
    run(|| async {
        let cloud = cloud_of(1..41);
        let slow = Fault::Latency {
            before_ms: 1_500,
            after_ms: 700,
        };
        cloud.add_fault(FaultRule::new([Operation::ListVolumes], slow));
        let volumes = located(&linode(&cloud), 1..41);
        let now = || cloud.now();
        let before = now();
        let facts = join_all(volumes.iter().map(|v| v.describe(before, now))).await;
        assert_eq!(cloud.requests().len(), 1, "{:?}", cloud.requests());
        assert!(facts.iter().all(|f| f.shown().is_some()));
        assert!(
            facts.iter().all(|f| f.at == before),
            "the answer took 2.2 s and is of the moment before it"
        );
        assert_eq!(
            now().duration_since(before),
            SignedDuration::from_millis(2_200)
        );

        // A batch's answer serves only readers that accept its age.
        let again = volumes[7].describe(before, now).await;
        assert_eq!((cloud.requests().len(), again), (1, facts[7].clone()));
        let later = now();
        let newer = join_all(volumes.iter().map(|v| v.describe(later, now))).await;
        assert_eq!(cloud.requests().len(), 2);
        assert!(newer.iter().all(|f| f.at == later));
    });
}

#[test]
fn one_read_fetches_all_recently_wanted_volumes() {
    run(|| async {
        let cloud = cloud_of(1..6);
        let volumes = located(&linode(&cloud), 1..6);
        let now = || cloud.now();
        for volume in &volumes {
            volume.describe(now(), now).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The next look of one is for all that were wanted a moment ago.
        let before = cloud.requests().len();
        let since = now();
        volumes[0].describe(since, now).await;
        let asked = cloud.requests().len() - before;
        let others = join_all(volumes[1..].iter().map(|v| v.describe(since, now))).await;
        assert_eq!(cloud.requests().len() - before, asked);
        assert!(others.iter().all(|f| f.at == since && f.shown().is_some()));

        // A volume that no reader wants any more is not read.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let before = cloud.requests().len();
        volumes[0].describe(now(), now).await;
        let paths: Vec<_> = cloud.requests()[before..]
            .iter()
            .map(|r| r.path.clone())
            .collect();
        assert_eq!(paths, ["/v4/volumes/1"]);
    });
}

#[test]
fn failed_and_missing_volumes_carry_their_time() {
    run(|| async {
        let cloud = cloud_of(1..2);
        let volumes = located(&linode(&cloud), 1..3);
        let now = || cloud.now();
        let at = now();
        assert_eq!(volumes[1].describe(at, now).await.value, Known::Absent);
        cloud.add_fault(FaultRule::new([], Fault::Maintenance));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let at = now();
        let failed = volumes[0].describe(at, now).await;
        assert!(failed.is_away() && failed.at == at, "{failed:?}");
    });
}
