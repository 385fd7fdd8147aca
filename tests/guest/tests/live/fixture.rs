//! A guest with an agent of each level, and the questions that the controller would ask.

use crate::api::Cluster;
use reattach_core::cloud::DeviceIdentity;
use reattach_core::guest::{
    Answer, Challenge, DeviceUsers, GuestInventory, GuestMount, Level, ScanResult,
};
use reattach_core::ids::{BootId, DriverName, NodeName, Uid, VolumeHandle};
use reattach_tests_guest::{Bus, Guest, Plugged, Tools, Volume, wait_for};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Both levels, in the order in which they are asked.
pub const LEVELS: [Level; 2] = [Level::Basic, Level::Full];
/// How long anything may take. A busy machine emulates slowly.
const LIMIT: Duration = Duration::from_secs(120);
/// The size of a volume.
const SIZE: u64 = 32 << 20;
const DRIVER: &str = "linodebs.csi.linode.com";
/// The pod that has the volumes.
pub const POD: &str = "0aa0-pod";

/// A guest and its cluster.
pub struct Fixture {
    guest: Guest,
    cluster: Cluster,
    epoch: u64,
    begun: Instant,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self
                .guest
                .run("tail -n 20 /run/*.log; cat /proc/mounts; ls -d /sys/block/[!l]*; true");
            let logs = logs.unwrap_or_else(|e| format!("{e:#}"));
            println!(
                "{logs}\n{}\n{}",
                self.guest.words("console"),
                self.guest.words("qemu")
            );
        }
    }
}

impl Fixture {
    /// A guest that is up, without volumes, and whose agents have reported.
    pub fn set() -> Self {
        let begun = Instant::now();
        let tools = Tools::find().expect("what guests are made of");
        let guest = Guest::new(&tools, &[agent()]).expect("a guest");
        let cluster = Cluster::start(&LEVELS.map(node));
        let mut fixture = Self {
            guest,
            cluster,
            epoch: 0,
            begun,
        };
        fixture.boot();
        fixture
    }

    /// Switches the guest on and starts its agents, with these things in place before.
    fn boot_with(&mut self, script: &str) {
        self.guest.power_on().expect("it boots");
        self.say("the guest is up");
        self.run(script);
        let config = self.cluster.kubeconfig();
        self.run(&format!("cat >/run/kubeconfig <<'END'\n{config}END"));
        for level in LEVELS {
            let name = node(level);
            self.run(&format!(
                "KUBECONFIG=/run/kubeconfig setsid reattach-agent --host-root / \
                --node-name {name} --level {name} >/run/agent-{name}.log 2>&1 &"
            ));
        }
        let boot = self.boot_id();
        for level in LEVELS {
            self.await_inventory(level, "a report of this boot", |seen| seen.boot_id == boot);
        }
        self.say("both agents have reported");
    }

    fn boot(&mut self) {
        self.boot_with("");
    }

    /// The cloud recycles the guest: the power goes, and it comes up again without any disk. What kubelet has written down
    /// about these volumes is still there.
    pub fn recycle(&mut self, volumes: &[&Volume]) {
        self.guest.power_off();
        self.say("the power is off");
        let folders: Vec<String> = volumes.iter().map(|volume| folders(volume)).collect();
        self.boot_with(&folders.concat());
    }

    /// Runs a script in the guest.
    pub fn run(&mut self, script: &str) -> String {
        self.guest.run(script).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Runs a script again and again until it ends with exit code 0.
    pub fn await_success(&mut self, what: &str, script: &str) {
        let ended = wait_for(what, LIMIT, || {
            let answer = self.guest.run(&format!(
                "if {{ {script}; }} >/dev/null 2>&1; then echo yes; fi"
            ))?;
            Ok((answer == "yes").then_some(()))
        });
        ended.unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// The kernel's own word.
    pub fn boot_id(&mut self) -> BootId {
        BootId::new(self.run("cat /proc/sys/kernel/random/boot_id"))
    }

    /// A new, empty volume.
    pub fn volume(&self, serial: &str) -> Volume {
        self.guest.volume(serial, SIZE).expect("a volume")
    }

    /// Plugs a volume in and waits until the kernel has its disk. Gives the disk's kernel name as well.
    pub fn plug(&mut self, volume: &Volume, bus: Bus) -> (Plugged, String) {
        let before = self.run("ls /sys/block");
        let plugged = self.guest.plug(volume, bus).expect("it is plugged in");
        let disk = wait_for("a new disk", LIMIT, || {
            let now = self.guest.run("ls /sys/block")?;
            let is_new = |name: &&str| before.lines().all(|old| old != *name);
            Ok(now.lines().find(is_new).map(str::to_owned))
        });
        let disk = disk.unwrap_or_else(|e| panic!("{e:#}"));
        // The size is read from the disk after its name is there.
        self.await_success(
            "the disk has a size",
            &format!("[ $(cat /sys/block/{disk}/size) -gt 0 -a -b /dev/{disk} ]"),
        );
        self.say(&format!("{} is {disk}", volume.serial()));
        (plugged, disk)
    }

    /// Takes a volume away and waits until the kernel shows no such disk any more.
    pub fn pull(&mut self, plugged: Plugged, disk: &str) {
        self.guest.pull(plugged).expect("it is pulled out");
        self.await_success("the disk is gone", &format!("[ ! -e /sys/block/{disk} ]"));
        self.say(&format!("{disk} is pulled out"));
    }

    /// Makes a file system on a device and mounts it as kubelet and a CSI driver do: staged, and published to the pod.
    pub fn publish(&mut self, volume: &Volume, device: &str) {
        let (staging, publish) = places(volume);
        self.run(&format!(
            "set -e\n{}mkfs.ext4 -q {device}\nmount -t ext4 {device} {staging}\nmount -o bind {staging} {publish}",
            folders(volume)
        ));
    }

    /// Undoes the mounts of [`Fixture::publish`], as soon as they have no user.
    pub fn unpublish(&mut self, volume: &Volume) {
        let (staging, publish) = places(volume);
        for place in [publish, staging] {
            self.await_success("nobody has the mount", &format!("umount {place}"));
        }
    }

    /// Asks the agent of a level about a volume, as the controller does, and gives what it saw.
    pub fn ask(&mut self, level: Level, volume: &Volume) -> ScanResult {
        self.epoch += 1;
        let challenge = Challenge {
            recovery: Uid::new("r1"),
            epoch: self.epoch,
            identity: DeviceIdentity {
                serial: volume.serial().to_owned(),
            },
            driver: DriverName::new(DRIVER),
            handle: handle(volume),
        };
        self.cluster.ask(&node(level), &challenge);
        let epoch = self.epoch;
        let answer = self.await_answer(level, "an answer", |answer| answer.epoch == epoch);
        assert_eq!(answer.recovery, challenge.recovery);
        assert_eq!(answer.identity, challenge.identity);
        assert_eq!(answer.level, level);
        assert_eq!(answer.boot_id, self.boot_id());
        self.say(&format!(
            "{level:?} about {}: {:?}",
            volume.serial(),
            answer.seen
        ));
        // What the controller concludes.
        assert_eq!(
            answer.is_clean(),
            matches!(answer.seen, ScanResult::NoDevice | ScanResult::Clean),
            "{answer:?}"
        );
        answer.seen
    }

    /// Asks the agent of a level and expects users.
    pub fn users(&mut self, level: Level, volume: &Volume) -> DeviceUsers {
        match self.ask(level, volume) {
            ScanResult::InUse { users } => users,
            other => panic!("{level:?}: {other:?}"),
        }
    }

    /// Expects that nothing uses a volume that is there: only the level full may say that it is clean.
    pub fn assert_unused(&mut self, volume: &Volume) {
        assert_eq!(self.ask_at_rest(Level::Basic, volume), ScanResult::Idle);
        assert_eq!(self.ask_at_rest(Level::Full, volume), ScanResult::Clean);
    }

    /// Asks again while writes are all that is seen: the last ones of a user that went, or those of a filesystem that
    /// has just been made.
    pub fn ask_at_rest(&mut self, level: Level, volume: &Volume) -> ScanResult {
        let writes = DeviceUsers {
            active: true,
            ..DeviceUsers::default()
        };
        let answer = wait_for("a volume at rest", LIMIT, || {
            let seen = self.ask(level, volume);
            Ok(Some(seen)
                .filter(|seen| !matches!(seen, ScanResult::InUse { users } if *users == writes)))
        });
        answer.unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// The answer that a report has now, or soon, that is as wanted.
    pub fn await_answer(
        &self,
        level: Level,
        what: &str,
        is_wanted: impl Fn(&Answer) -> bool,
    ) -> Answer {
        let found = wait_for(&format!("{what} of {level:?}"), LIMIT, || {
            let answers = self.cluster.said(&node(level)).unwrap_or_default().answers;
            Ok(answers
                .iter()
                .map(|a| a.get().expect("an answer"))
                .find(|a| is_wanted(a))
                .cloned())
        });
        found.unwrap_or_else(|e| panic!("{e}; it says {:#?}", self.cluster.said(&node(level))))
    }

    /// Waits until an agent reports, unasked, what is wanted.
    pub fn await_inventory(
        &self,
        level: Level,
        what: &str,
        is_wanted: impl Fn(&GuestInventory) -> bool,
    ) -> GuestInventory {
        let found = wait_for(&format!("{what} from {level:?}"), LIMIT, || {
            let Some(inventory) = self
                .cluster
                .said(&node(level))
                .and_then(|said| said.inventory)
            else {
                return Ok(None);
            };
            Ok(Some(inventory.get().expect("an inventory").clone()).filter(&is_wanted))
        });
        found.unwrap_or_else(|e| panic!("{e}; it says {:#?}", self.cluster.said(&node(level))))
    }

    /// Prints one line with the time since the test began.
    pub fn say(&self, what: &str) {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or_default();
        println!(
            "{:6.1} s  {test}: {what}",
            self.begun.elapsed().as_secs_f64()
        );
    }
}

/// The mounts of one volume in an inventory.
pub fn mounts<'a>(inventory: &'a GuestInventory, volume: &Volume) -> &'a [GuestMount] {
    let handle = handle(volume);
    inventory
        .csi_volumes
        .iter()
        .find(|v| v.handle == handle)
        .map_or(&[], |v| &v.mounts)
}

/// Where a volume is staged and published.
pub fn places(volume: &Volume) -> (String, String) {
    let publish = format!(
        "/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~csi/pv-{}/mount",
        volume.serial()
    );
    (format!("{}/globalmount", staging(volume)), publish)
}

/// kubelet's folder for what it stages.
fn staging(volume: &Volume) -> String {
    let hash = Sha256::digest(handle(volume).as_str());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("/var/lib/kubelet/plugins/kubernetes.io/csi/{DRIVER}/{hash}")
}

/// A script that makes kubelet's folders for a volume.
fn folders(volume: &Volume) -> String {
    let handle = handle(volume);
    let (staged, published) = places(volume);
    let data = format!(r#"{{"driverName":"{DRIVER}","volumeHandle":"{handle}""#);
    let more = format!(
        r#""specVolID":"pv-{}","volumeLifecycleMode":"Persistent""#,
        volume.serial()
    );
    format!(
        "mkdir -p {staged} {published}\n\
        echo '{data}}}' >{}/vol_data.json\necho '{data},{more}}}' >{}/../vol_data.json\n",
        staging(volume),
        published
    )
}

fn handle(volume: &Volume) -> VolumeHandle {
    VolumeHandle::new(format!("42-{}", volume.serial()))
}

/// The node of an agent is named as its level.
fn node(level: Level) -> NodeName {
    NodeName::new(match level {
        Level::Basic => "basic",
        Level::Full => "full",
    })
}

/// The shipped agent: in the folder that `REATTACH_BIN_DIR` names, or beside this test.
fn agent() -> PathBuf {
    let folder = match std::env::var_os("REATTACH_BIN_DIR").filter(|v| !v.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => {
            let test = std::env::current_exe().expect("this test's own path");
            test.parent()
                .and_then(Path::parent)
                .expect("target/debug")
                .to_owned()
        }
    };
    let path = folder.join("reattach-agent");
    assert!(
        path.exists(),
        "{} is not built; run: cargo build -p reattach-agent",
        path.display()
    );
    path
}
