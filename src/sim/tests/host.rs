//! The host tree of a simulated node, and the cloud simulator as its cloud.
#![allow(
    clippy::unwrap_used,
    reason = "a test whose stage cannot be set must fail"
)]

mod support;

use std::path::{Path, PathBuf};

use reattach_sim::kubelet::DiskAfter;
use reattach_sim::{SimCluster, manifests, names};
use serde_json::Value;
use support::{DRIVER, HANDLE, NS, Setup, Stage, VOLUME, secs};

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("reattach-sim-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // The system's temporary folder is cleaned by others if this fails.
        let _ignored = std::fs::remove_dir_all(&self.0);
    }
}

fn read(root: &Path, path: &str) -> String {
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A stage of one node with its host tree in this directory.
async fn on_disk(seed: u64, dir: &Dir) -> Stage {
    let mut setup = Setup::new(seed, 1);
    setup.host = Some(dir.0.clone());
    setup.build().await
}

#[tokio::test(start_paused = true)]
async fn the_tree_follows_the_node() {
    let dir = Dir::new("tree");
    let s = on_disk(1, &dir).await;
    s.ready().await;
    tokio::time::sleep(secs(2)).await;
    let root = dir.0.join("n0");
    let uid = s.pod().unwrap()["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    let boot = read(&root, "proc/sys/kernel/random/boot_id");
    assert_eq!(boot.trim(), s.kubelet().boot_id());
    let booted: i64 = read(&root, "proc/stat")
        .lines()
        .find_map(|l| l.strip_prefix("btime "))
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        booted
            >= "2021-07-11T00:00:00Z"
                .parse::<jiff::Timestamp>()
                .unwrap()
                .as_second()
    );

    assert_eq!(read(&root, "sys/block/sdb/dev"), "8:16\n");
    assert_eq!(
        read(&root, "sys/block/sdb/size"),
        format!("{}\n", (10u64 << 30) / 512)
    );
    assert_eq!(read(&root, "sys/block/sdb/device/vendor"), "Linode  \n");
    let page = std::fs::read(root.join("sys/block/sdb/device/vpd_pg83")).unwrap();
    assert_eq!(&page[8..], b"pvc1");
    let link = std::fs::read_link(root.join("dev/disk/by-id/scsi-0Linode_Volume_pvc1")).unwrap();
    assert_eq!(link, Path::new("../../sdb"));

    let staging = format!(
        "var/lib/kubelet/plugins/kubernetes.io/csi/{DRIVER}/{}",
        names::staging_hash(HANDLE)
    );
    let data: Value =
        serde_json::from_str(&read(&root, &format!("{staging}/vol_data.json"))).unwrap();
    assert_eq!(data["volumeHandle"], HANDLE);
    let pod_dir = format!("var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/pvc-1");
    let data: Value =
        serde_json::from_str(&read(&root, &format!("{pod_dir}/vol_data.json"))).unwrap();
    assert_eq!(
        data["attachmentID"],
        names::attachment_name(HANDLE, DRIVER, "n0")
    );
    let mounts = read(&root, "proc/1/mountinfo");
    assert_eq!(
        mounts
            .lines()
            .filter(|l| l.contains(" 8:16 / ") && l.contains(" - ext4 /dev/sdb "))
            .count(),
        2,
        "{mounts}"
    );
    assert!(mounts.contains(&format!("/{pod_dir}/mount ")));
    assert!(read(&root, "proc/2000/mountinfo").contains("/data/pvc-1"));

    // A dead mount: the mount stays, the device is gone.
    s.cloud.make_phantom(VOLUME).unwrap();
    tokio::time::sleep(secs(2)).await;
    assert!(
        !root.join("sys/block/sdb").exists()
            && read(&root, "proc/1/mountinfo").contains("/dev/sdb")
    );

    // A recycle with the state kept: directories without mounts, until the first final error removes the staging one.
    s.kubelet().recycle(DiskAfter::Kept, secs(5)).await;
    tokio::time::sleep(secs(30)).await;
    assert_ne!(read(&root, "proc/sys/kernel/random/boot_id"), boot);
    assert!(
        !read(&root, "proc/1/mountinfo").contains("csi") && !root.join("sys/block/sdb").exists()
    );
    assert!(root.join(&pod_dir).join("mount").exists() && !root.join(&staging).exists());
    assert!(!root.join("proc/2000").exists());

    s.kubelet().power_off();
    assert!(!root.join("proc").exists());
}

#[tokio::test(start_paused = true)]
async fn a_reimaged_disk_has_no_folders() {
    let dir = Dir::new("reimaged");
    let s = on_disk(2, &dir).await;
    s.ready().await;
    s.class_b(DiskAfter::ReImaged).await;
    let root = dir.0.join("n0/var/lib/kubelet");
    assert_eq!(std::fs::read_dir(root.join("pods")).unwrap().count(), 0);
    assert_eq!(
        std::fs::read_dir(root.join("plugins/kubernetes.io/csi"))
            .unwrap()
            .count(),
        0
    );
}

/// The founding incident's class under a Deployment: one holder at any time, nothing pulled from a guest.
#[tokio::test(start_paused = true)]
async fn class_b_on_the_cloud_simulator() {
    let volumes = [manifests::claim_volume("data", "data-redis-0")];
    let s = Setup::new(3, 2)
        .workload(manifests::deployment(NS, "web", 1, &volumes))
        .build()
        .await;
    let (cluster, cloud) = (&s.cluster, &s.cloud);
    let pod = |c: &SimCluster| {
        c.server()
            .list("", "pods", Some(NS))
            .first()
            .map(|p| p["metadata"]["name"].as_str().unwrap().to_owned())
    };
    let up = |c: &SimCluster| pod(c).is_some_and(|p| c.pod_ready(NS, &p));
    cluster.until(secs(60), up).await.expect("up");
    let holder = s.holder().unwrap();
    let name = cluster
        .nodes()
        .values()
        .find(|k| k.instance() == holder.0.to_string())
        .unwrap()
        .node()
        .to_owned();
    cluster
        .node(&name)
        .unwrap()
        .recycle(DiskAfter::Kept, secs(5))
        .await;
    tokio::time::sleep(secs(60)).await;
    assert!(!up(cluster), "stuck");
    assert_eq!(s.holder(), Some(holder));
    assert!(!cloud.guest_has_device(holder, VOLUME));

    let client = cluster.server().client_as("human");
    let scale = async |n: i64| {
        let body = format!("{{\"spec\":{{\"replicas\":{n}}}}}").into_bytes();
        let path = format!("/apis/apps/v1/namespaces/{NS}/deployments/web/scale");
        let request = http::Request::patch(path)
            .header("content-type", "application/merge-patch+json")
            .body(body)
            .unwrap();
        client.request::<Value>(request).await.unwrap();
    };
    scale(0).await;
    let gone = cluster
        .until(secs(60), |c| {
            c.server()
                .list("storage.k8s.io", "volumeattachments", None)
                .is_empty()
        })
        .await;
    scale(1).await;
    let back = cluster.until(secs(60), |c| up(c)).await;
    println!(
        "on the cloud simulator: VA gone {:.1} s, Ready {:.1} s after scaling back",
        gone.unwrap().as_secs_f64(),
        back.unwrap().as_secs_f64()
    );
    assert!(cloud.pulled().is_empty() && cloud.max_holders(VOLUME) == 1);
}
