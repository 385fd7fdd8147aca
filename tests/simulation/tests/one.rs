//! One phantom volume, healed end to end.
use reattach_core::policy::Mode;
use reattach_drill::app::App;
use reattach_drill::in_virtual_time;
use reattach_drill::world::World;
use reattach_sim::kubelet::DiskAfter;
use std::time::Duration;

#[test]
fn one_phantom_volume_is_healed() {
    let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_test_writer().try_init();
    in_virtual_time(|| async {
        let start = "2021-07-11T00:55:00Z".parse().unwrap();
        let world = World::build(1, start, &[("node-a", 101), ("node-b", 102)]).await.unwrap();
        let app = App::deployment("redis", 7001, "pvcbb1d06139b334c1f", "cache");
        world.add(&app).await.unwrap();
        world.until("the app is ready", Duration::from_secs(120), |w| w.app_ready("redis", 1)).await.unwrap();
        world.policy("auto", Mode::Auto, 1).await.unwrap();
        let replica = world.replica("reattach-controller-0", None);
        let node = world.pods("redis")[0]["spec"]["nodeName"].as_str().unwrap().to_owned();
        world.recycle(&node, DiskAfter::Kept, Duration::from_secs(5)).await.unwrap();
        let t0 = world.now();
        let r = world.until("the app is ready again", Duration::from_secs(600), |w| w.app_ready("redis", 1) && w.recoveries().iter().any(|r| r.status.as_ref().is_some_and(|s| s.phase.is_final()))).await;
        println!("{r:?} {t0} {}", world.now());
        for r in world.recoveries() {
            println!("{}", serde_json::to_string_pretty(&r).unwrap());
        }
        r.unwrap();
        replica.stop().await;
    }).unwrap();
}
