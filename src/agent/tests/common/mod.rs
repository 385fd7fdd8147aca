//! Host trees in temporary folders, with files as in /proc, /sys and kubelet's folder.
#![allow(dead_code)]

pub mod api;
pub mod disk;
pub mod world;

use jiff::Timestamp;
use reattach_agent::guest::Counters;
use reattach_agent::{HostRoot, Scan, ScanError};
use reattach_core::cloud::DeviceIdentity;
use reattach_core::guest::{Answer, Challenge, GuestDevice, GuestInventory};
use reattach_core::ids::{DriverName, Uid, VolumeHandle};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub const BOOT: &str = "11111111-2222-4333-8444-555555555555";
pub const DRIVER: &str = "linodebs.csi.linode.com";
pub const HANDLE: &str = "42-pvc0123";
pub const LABEL: &str = "pvc0123";
pub const PV: &str = "pvc-0123";
pub const POD: &str = "0aa0-pod";
/// SHA-256 of [`HANDLE`], computed with coreutils.
pub const HASH: &str = "274612167a21f29ec6d32883f630397bbf2b82273f394d25077fe8287dc0d52a";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Scans a host and returns the inventory.
pub fn scan(root: &HostRoot) -> Result<GuestInventory, ScanError> {
    Ok(Scan::new(root)?.inventory())
}

/// Scans a host for one challenge and returns the answer. `scanned_at` is the node's time at the call.
pub fn answer(
    root: &HostRoot,
    challenge: &Challenge,
    scanned_at: Timestamp,
) -> Result<Answer, ScanError> {
    let challenges = std::slice::from_ref(challenge);
    let scan = Scan::for_challenges(root, Counters::read(root), challenges)?;
    Ok(scan.answer(challenge, scanned_at))
}

/// A folder that is removed when the test ends.
pub struct Tree(pub PathBuf);

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Tree {
    /// An empty folder.
    pub fn empty() -> Self {
        let name = format!(
            "reattach-agent-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// A booted host with one root disk `vda` (no identity), no volume.
    pub fn host() -> Self {
        let tree = Self::empty();
        tree.file("proc/sys/kernel/random/boot_id", format!("{BOOT}\n"));
        tree.file(
            "proc/stat",
            "cpu  1 2 3\nintr 5\nbtime 1752192000\nprocesses 9\n",
        );
        tree.process(
            1,
            "systemd",
            &["22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw"],
        );
        tree.file("sys/block/vda/dev", "254:0\n");
        tree.file("sys/block/vda/size", "2048\n");
        tree.dir("var/lib/kubelet");
        tree
    }

    /// The host with Linode's volume [`LABEL`] attached as `sda` (8:0), 1 MiB.
    pub fn with_volume() -> Self {
        let tree = Self::host();
        tree.disk("sda", "8:0", LABEL);
        tree
    }

    pub fn root(&self) -> HostRoot {
        HostRoot::new(&self.0)
    }

    pub fn scan(&self) -> GuestInventory {
        scan(&self.root()).unwrap()
    }

    pub fn dir(&self, path: &str) {
        fs::create_dir_all(self.0.join(path)).unwrap();
    }

    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn link(&self, path: &str, target: impl AsRef<Path>) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    /// A SCSI disk like Linode's volumes: designator type 0 in ASCII is the label.
    pub fn disk(&self, name: &str, dev: &str, label: &str) {
        self.file(&format!("sys/block/{name}/dev"), format!("{dev}\n"));
        self.file(&format!("sys/block/{name}/size"), "2048\n");
        self.dir(&format!("sys/block/{name}/holders"));
        self.file(&format!("sys/block/{name}/device/vendor"), "Linode  \n");
        self.file(
            &format!("sys/block/{name}/device/model"),
            "Volume          \n",
        );
        self.file(
            &format!("sys/block/{name}/device/vpd_pg83"),
            page83(&[(2, 0, label.as_bytes())]),
        );
    }

    /// A virtual device without an identity.
    pub fn virtual_device(&self, name: &str, dev: &str) {
        self.file(&format!("sys/block/{name}/dev"), format!("{dev}\n"));
        self.file(&format!("sys/block/{name}/size"), "2048\n");
        self.dir(&format!("sys/block/{name}/holders"));
    }

    pub fn process(&self, pid: u32, comm: &str, mounts: &[&str]) {
        self.file(&format!("proc/{pid}/comm"), format!("{comm}\n"));
        self.file(&format!("proc/{pid}/stat"), format!("{pid} ({comm}) S 1"));
        self.file(&format!("proc/{pid}/mountinfo"), mounts.join("\n") + "\n");
        self.dir(&format!("proc/{pid}/fd"));
    }

    /// Adds lines to the host's own mount table.
    pub fn mount(&self, line: &str) {
        let path = self.0.join("proc/1/mountinfo");
        let table = fs::read_to_string(&path).unwrap();
        fs::write(path, format!("{table}{line}\n")).unwrap();
    }

    /// kubelet's folders for the staged and published volume.
    pub fn csi_folders(&self) {
        let data =
            |more: &str| format!(r#"{{"driverName":"{DRIVER}","volumeHandle":"{HANDLE}"{more}}}"#);
        self.file(&format!("{}/vol_data.json", &staging()[1..]), data(""));
        self.dir(&format!("{}/globalmount", &staging()[1..]));
        let more = format!(
            r#","specVolID":"{PV}","nodeName":"n1","attachmentID":"csi-1","volumeLifecycleMode":"Persistent""#
        );
        self.file(&format!("{}/vol_data.json", &publish()[1..]), data(&more));
        self.dir(&format!("{}/mount", &publish()[1..]));
    }

    /// Mounts `dev` at kubelet's staging and publishing paths of the volume.
    pub fn csi_mounts(&self, dev: &str, device: &str) {
        self.mount(&format!(
            "90 22 {dev} / {}/globalmount rw - ext4 {device} rw",
            staging()
        ));
        self.mount(&format!(
            "91 22 {dev} / {}/mount rw - ext4 {device} rw",
            publish()
        ));
    }
}

pub fn staging() -> String {
    format!("/var/lib/kubelet/plugins/kubernetes.io/csi/{DRIVER}/{HASH}")
}

pub fn publish() -> String {
    format!("/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~csi/{PV}")
}

/// A Device Identification page of (code set, association and type, designator).
pub fn page83(designators: &[(u8, u8, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (code_set, flags, value) in designators {
        body.extend([*code_set, *flags, 0, u8::try_from(value.len()).unwrap()]);
        body.extend(*value);
    }
    let mut page = vec![0, 0x83];
    page.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    page.extend(body);
    page
}

pub fn challenge(recovery: &str, epoch: u64) -> Challenge {
    Challenge {
        recovery: Uid::new(recovery),
        epoch,
        identity: DeviceIdentity {
            serial: LABEL.to_owned(),
        },
        driver: DriverName::new(DRIVER),
        handle: VolumeHandle::new(HANDLE),
    }
}

pub fn device<'a>(inventory: &'a GuestInventory, name: &str) -> &'a GuestDevice {
    inventory
        .devices
        .iter()
        .find(|device| device.kernel_name == name)
        .unwrap()
}
