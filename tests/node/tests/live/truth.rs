//! The shipped agent's answers about a device on a real kernel: while anything uses it, the answer is neither "idle" nor "clean".

use crate::common::LIMIT;
use crate::fixture::Fixture;
use kube::Api;
use kube::api::{Patch, PatchParams};
use reattach_api::NodeVolumeReport;
use reattach_core::guest::{DeviceUsers, ScanResult};
use reattach_tests_controlplane::eventually;
use reattach_tests_node::Program;
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering};

const NODE: &str = "node-1";
const INSTANCE: u64 = 1001;
const LABEL: &str = "truth";

struct Bench {
    fixture: Fixture,
    handle: String,
    /// The device's node, `/dev/loopN`.
    device: String,
    /// The agent's answer without a user.
    free: ScanResult,
    asked: AtomicU64,
}

impl Bench {
    async fn set(level: &'static str, free: ScanResult) -> Self {
        let fixture = Fixture::without_controller(1, level).await;
        let (volume, handle) = fixture.stage.volume(LABEL);
        let instance = fixture.machine(NODE).instance();
        fixture
            .stage
            .cloud
            .attach_now(volume, reattach_cloud_simulator::InstanceNo(instance))
            .expect("attached");
        let plugged = async || fixture.hypervisor.device(INSTANCE, volume);
        let device = format!(
            "/dev/{}",
            eventually("the device", LIMIT, plugged)
                .await
                .expect("it comes")
        );
        let bench = Self {
            fixture,
            handle,
            device,
            free,
            asked: AtomicU64::new(0),
        };
        bench.script(
            "format",
            &format!(
                "mkfs.ext4 -q -F {}; touch /run/formatted; exec sleep 1000",
                bench.device
            ),
        );
        bench
            .fixture
            .machine(NODE)
            .await_file("/run/formatted")
            .expect("formatted");
        bench
    }

    /// Starts a script on the machine.
    fn script(&self, name: &str, script: &str) {
        let program = Program::Other {
            name: name.to_owned(),
            script: script.to_owned(),
        };
        self.fixture
            .machine(NODE)
            .start(&program)
            .expect("it starts");
    }

    /// Starts a script and waits until it has made `/run/NAME`.
    fn script_done(&self, name: &str, script: &str) {
        self.script(name, script);
        self.fixture
            .machine(NODE)
            .await_file(&format!("/run/{name}"))
            .expect("done");
    }

    /// Asks the agent as the controller does, and waits for the answer to this very question.
    async fn ask(&self) -> ScanResult {
        let epoch = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let reports: Api<NodeVolumeReport> = Api::all(self.fixture.stage.admin.clone());
        let challenge = json!({
            "recovery": "a-recovery", "epoch": epoch, "identity": {"serial": LABEL},
            "driver": "linodebs.csi.linode.com", "handle": self.handle,
        });
        let body = json!({"spec": {"challenges": [challenge]}});
        let there = eventually("the agent's report", LIMIT, async || {
            reports.get_opt(NODE).await.ok().flatten()
        });
        there.await.expect("the agent writes it");
        reports
            .patch(NODE, &PatchParams::default(), &Patch::Merge(&body))
            .await
            .expect("asked");
        let answered = eventually("an answer", LIMIT, async || {
            let status = reports.get_opt(NODE).await.ok()??.status?;
            let answers = status.answers.iter().filter_map(|a| a.get().ok());
            answers
                .into_iter()
                .find(|a| a.epoch == epoch)
                .map(|a| a.seen.clone())
        });
        answered
            .await
            .unwrap_or_else(|e| panic!("{e}\n{}", self.fixture.logs(NODE)))
    }

    /// Asks until the device has no user: the kernel takes a moment to clear the leftovers of a process.
    async fn free(&self, when: &str) {
        let free = async || (self.ask().await == self.free).then_some(());
        if eventually("a free device", LIMIT, free).await.is_err() {
            panic!("{when}: {:?}", self.ask().await);
        }
        self.fixture.say(&format!("{when}: {:?}", self.free));
    }

    /// Asks until the reasons are these, and asserts that every answer on the way says *in use*: a container that starts at that
    /// moment holds a copy of the machine's mounts until it has a root of its own.
    async fn in_use(&self, what: &str, why: impl Fn(&DeviceUsers) -> bool) {
        let asked = async || {
            let seen = self.ask().await;
            let ScanResult::InUse { users } = &seen else {
                panic!("{what}: {seen:?}")
            };
            why(users).then_some(seen)
        };
        match eventually("these reasons", LIMIT, asked).await {
            Ok(seen) => self.fixture.say(&format!("{what}: {seen:?}")),
            Err(_) => panic!("{what}: {:?}", self.ask().await),
        }
    }
}

pub async fn every_device_user_is_seen() {
    all_users_are_seen("basic", ScanResult::Idle).await;
}

pub async fn every_device_user_is_seen_at_the_full_level() {
    all_users_are_seen("full", ScanResult::Clean).await;
}

async fn all_users_are_seen(level: &'static str, free: ScanResult) {
    let bench = Bench::set(level, free).await;
    let device = bench.device.clone();
    let said = |list: &[String], part: &str| list.iter().any(|entry| entry.contains(part));
    bench.free("nobody uses it").await;

    let script = format!(
        "mkdir -p /run/m; mount {device} /run/m; unshare --mount --propagation private sleep 1001 & until grep -q sleep /proc/$!/comm; do :; done; umount /run/m; touch /run/forgotten; wait"
    );
    bench.script_done("forgotten", &script);
    assert!(
        !bench.fixture.machine(NODE).mount_table().contains(&device),
        "the machine itself has it not mounted"
    );
    bench
        .in_use("mounted in a forgotten namespace", |u| {
            said(&u.mounts, "/run/m (mount namespace of ")
        })
        .await;
    bench.script_done(
        "after-forgotten",
        "kill $(pgrep -f '^sleep 1001'); touch /run/after-forgotten",
    );
    bench.free("that process ended").await;

    let script = format!(
        "mkdir -p /run/l; mount {device} /run/l; sleep 1002 </run/l/lost+found & until [ /proc/$!/fd/0 -ef /run/l/lost+found ]; do :; done; umount --lazy /run/l; touch /run/lazy; wait"
    );
    bench.script_done("lazy", &script);
    bench
        .in_use("unmounted lazily, a file open", |u| {
            u.mounts.is_empty() && said(&u.openers, "sleep")
        })
        .await;
    bench.script_done(
        "after-lazy",
        "kill $(pgrep -f '^sleep 1002'); touch /run/after-lazy",
    );
    bench.free("that process ended").await;

    let script = format!(
        "sleep 1003 <{device} & until [ /proc/$!/fd/0 -ef {device} ]; do :; done; touch /run/raw; wait"
    );
    bench.script_done("raw", &script);
    bench
        .in_use("opened raw", |u| {
            u.mounts.is_empty() && said(&u.openers, "sleep")
        })
        .await;
    bench.script_done(
        "after-raw",
        "kill $(pgrep -f '^sleep 1003'); touch /run/after-raw",
    );
    bench.free("that process ended").await;

    bench.script_done(
        "loop",
        &format!("losetup --find --show {device} >/run/loop.new; mv /run/loop.new /run/loop"),
    );
    let upper =
        std::fs::read_to_string(bench.fixture.machine(NODE).inside("/run/loop").expect("on"))
            .expect("a name");
    let upper = upper.trim().trim_start_matches("/dev/").to_owned();
    let link = bench.fixture.machine(NODE).path("sys/block").join(&upper);
    let shown = async || link.is_symlink().then_some(());
    eventually("that loop in the agent's /sys", LIMIT, shown)
        .await
        .expect("the hypervisor shows it");
    bench
        .in_use("a loop device over it", |u| said(&u.loops, &upper))
        .await;
    bench.script_done(
        "after-loop",
        &format!("losetup --detach /dev/{upper}; touch /run/after-loop"),
    );
    bench.free("that loop is gone").await;
}
