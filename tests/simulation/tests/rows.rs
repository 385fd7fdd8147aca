//! The rows of behaviour on the cluster in memory; the real control plane's tier runs the very same functions.

use reattach_drill::app::App;
use reattach_drill::in_virtual_time;
use reattach_drill::world::{APPS, World};
use reattach_sim::cloud::SimulatedCloud;
use reattach_sim::rows::{ROWS, Rig};
use reattach_tests_simulation::{NODES, seeds};
use std::sync::Arc;
use std::time::Duration;

async fn rig(seed: u64) -> (World, Rig) {
    let start = "2026-03-02T03:00:00Z".parse().expect("a time");
    let world = World::build(seed, start, &NODES).await.expect("a stage");
    let app = App::stateful_set("redis", 7001, "pvcbb1d06139b334c1f", 1, "the cache");
    world.add(&app).await.expect("an app");
    world
        .until("redis running", Duration::from_secs(120), |w| w.app_ready("redis", 1))
        .await
        .expect("it runs");
    let csi = world.csi.clone();
    let rig = Rig {
        client: world.client_as("system:admin"),
        kubelets: world.cluster.nodes().clone(),
        cloud: Arc::new(SimulatedCloud::new(world.cloud.clone())),
        unpublish_fails: Arc::new(move |fails| csi.set_unpublish_fails(fails)),
        driver: "linodebs.csi.linode.com".to_owned(),
        namespace: APPS.to_owned(),
        set: "redis".to_owned(),
        handle: app.volumes[0].handle(),
        look: Duration::from_millis(50),
    };
    (world, rig)
}

#[test]
fn every_row_stays_within_what_was_measured() {
    for seed in seeds(6) {
        let seen = in_virtual_time(move || async move {
            let mut all = Vec::new();
            for row in ROWS {
                let (_world, rig) = rig(seed).await;
                all.push((row, rig.row(row).await));
            }
            all
        });
        for (row, result) in seen.expect("virtual time") {
            let figures = result.unwrap_or_else(|e| panic!("seed {seed}, row {row}: {e}"));
            for seen in figures {
                println!("{row:<18} {:>6.1} {} (allowed {:?})", seen.value, seen.what, seen.bounds);
                assert!(seen.fits(), "seed {seed}, row {row}: {seen:?}");
            }
        }
    }
}
