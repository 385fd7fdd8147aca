//! The host's files as an agent on the node sees them below its host root.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use jiff::Timestamp;
use serde_json::json;

use super::volumes::VolumeSpec;
use crate::cloud::GuestDevice;
use crate::kapi::lock;
use crate::names::staging_hash;

/// The kernel name of a volume's device in this boot: `sdb` upwards, in order of appearance (`sda` is the boot disk).
pub(super) fn device_name(letters: &Mutex<BTreeMap<String, String>>, handle: &str) -> String {
    let mut letters = lock(letters);
    let next = letters.len();
    letters
        .entry(handle.to_owned())
        .or_insert_with(|| nth_name(next + 1))
        .clone()
}

fn nth_name(n: usize) -> String {
    let letter = |i: usize| char::from(b'a' + (i % 26) as u8);
    if n < 26 {
        format!("sd{}", letter(n))
    } else {
        format!("sd{}{}", letter(n / 26 - 1), letter(n))
    }
}

/// `MAJ:MIN` of a SCSI disk (major 8, 16 minors per disk).
fn number(name: &str) -> String {
    let index = name
        .bytes()
        .skip(2)
        .fold(0usize, |n, b| n * 26 + usize::from(b - b'a') + 1)
        .saturating_sub(1);
    let major = [8, 65, 66, 67][(index / 16).min(3)];
    format!("{major}:{}", (index % 16) * 16)
}

/// A staging or pod directory, mounted from `device` or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountView {
    pub spec: VolumeSpec,
    pub pod: String,
    pub device: Option<String>,
}

/// A container's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProcessView {
    pub pid: u32,
    pub pod: String,
    pub volumes: Vec<String>,
}

/// The state that the host tree shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostView {
    pub boot_id: String,
    pub booted: Timestamp,
    pub node: String,
    /// Each device with its kernel name.
    pub devices: Vec<(String, GuestDevice)>,
    pub staged: Vec<MountView>,
    pub pod_dirs: Vec<MountView>,
    pub processes: Vec<ProcessView>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Dir,
    File(Vec<u8>),
    Link(String),
}

type Entries = BTreeMap<PathBuf, Entry>;

/// Files below a root, kept equal to a [`HostView`].
#[derive(Debug)]
pub(super) struct HostTree {
    root: PathBuf,
    /// The state behind `shown`. It is compared every second and is mostly unchanged.
    view: Option<HostView>,
    shown: Entries,
}

impl HostTree {
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            view: None,
            shown: Entries::new(),
        }
    }

    /// The machine is off: nothing to see.
    pub fn clear(&mut self) {
        self.view = None;
        self.apply(Entries::new());
    }

    pub fn show(&mut self, view: &HostView) {
        if self.view.as_ref() != Some(view) {
            self.apply(entries(view));
            self.view = Some(view.clone());
        }
    }

    fn apply(&mut self, wanted: Entries) {
        if wanted == self.shown {
            return;
        }
        let gone: Vec<_> = self
            .shown
            .iter()
            .filter(|(p, e)| wanted.get(*p) != Some(*e))
            .collect();
        for (path, entry) in gone.into_iter().rev() {
            let replaced_in_place = matches!(
                (entry, wanted.get(path)),
                (Entry::File(_), Some(Entry::File(_)))
            );
            let full = self.root.join(path);
            let result = match entry {
                Entry::Dir => std::fs::remove_dir(&full),
                Entry::File(_) if replaced_in_place => Ok(()),
                Entry::File(_) | Entry::Link(_) => std::fs::remove_file(&full),
            };
            log_failure(&full, result);
        }
        for (path, entry) in wanted
            .iter()
            .filter(|(p, e)| self.shown.get(*p) != Some(*e))
        {
            let full = self.root.join(path);
            let result = match entry {
                Entry::Dir => std::fs::create_dir_all(&full),
                Entry::File(bytes) => write_whole(&full, bytes),
                Entry::Link(to) => std::os::unix::fs::symlink(to, &full),
            };
            log_failure(&full, result);
        }
        self.shown = wanted;
    }
}

/// Readers see the old file or the new one, never half of it.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}

fn log_failure(path: &Path, result: std::io::Result<()>) {
    if let Err(e) = result {
        tracing::warn!(path = %path.display(), error = %e, "the host tree could not be brought up to date");
    }
}

/// Collects entries; parents come by themselves.
#[derive(Default)]
struct Builder(Entries);

impl Builder {
    fn parents(&mut self, path: &Path) {
        for parent in path
            .ancestors()
            .skip(1)
            .filter(|p| !p.as_os_str().is_empty())
        {
            self.0.entry(parent.to_owned()).or_insert(Entry::Dir);
        }
    }

    fn dir(&mut self, path: impl Into<PathBuf>) {
        let path = path.into();
        self.parents(&path);
        self.0.entry(path).or_insert(Entry::Dir);
    }

    fn file(&mut self, path: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>) {
        let path = path.into();
        self.parents(&path);
        self.0.insert(path, Entry::File(bytes.into()));
    }

    fn link(&mut self, path: impl Into<PathBuf>, to: impl Into<String>) {
        let path = path.into();
        self.parents(&path);
        self.0.insert(path, Entry::Link(to.into()));
    }
}

const KUBELET: &str = "var/lib/kubelet";

fn staging_dir(spec: &VolumeSpec) -> String {
    format!(
        "{KUBELET}/plugins/kubernetes.io/csi/{}/{}",
        spec.driver,
        staging_hash(&spec.handle)
    )
}

fn pod_dir(mount: &MountView) -> String {
    format!(
        "{KUBELET}/pods/{}/volumes/kubernetes.io~csi/{}",
        mount.pod, mount.spec.pv
    )
}

fn file_system(spec: &VolumeSpec) -> &str {
    if spec.fs_type.is_empty() {
        "ext4"
    } else {
        &spec.fs_type
    }
}

fn entries(view: &HostView) -> Entries {
    let mut b = Builder::default();
    b.file(
        "proc/sys/kernel/random/boot_id",
        format!("{}\n", view.boot_id),
    );
    b.file(
        "proc/stat",
        format!(
            "cpu  0 0 0 0 0 0 0 0 0 0\nbtime {}\nprocesses 1\n",
            view.booted.as_second()
        ),
    );
    b.file(
        "proc/swaps",
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
    );
    b.link("proc/mounts", "1/mounts");
    for (pid, name) in [(1, "systemd"), (600, "kubelet")] {
        process(&mut b, pid, name, "0::/\n", &host_mounts(view));
    }
    for p in &view.processes {
        let cgroup = format!("0::/kubepods/besteffort/pod{}/{}\n", p.pod, p.pid);
        process(
            &mut b,
            p.pid,
            "workload",
            &cgroup,
            &container_mounts(view, p),
        );
    }
    let boot_disk = GuestDevice {
        handle: String::new(),
        label: "boot".into(),
        size: 20 << 30,
    };
    device(&mut b, "sda", &boot_disk, "QEMU    ", "QEMU HARDDISK   ");
    b.dir("dev/disk/by-id");
    for (name, d) in &view.devices {
        device(&mut b, name, d, "Linode  ", "Volume          ");
        b.link(
            format!("dev/disk/by-id/scsi-0Linode_Volume_{}", d.label),
            format!("../../{name}"),
        );
    }
    b.dir(format!("{KUBELET}/plugins/kubernetes.io/csi"));
    b.dir(format!("{KUBELET}/pods"));
    for m in &view.staged {
        let dir = staging_dir(&m.spec);
        let data = json!({"driverName": m.spec.driver, "volumeHandle": m.spec.handle});
        b.file(format!("{dir}/vol_data.json"), format!("{data}\n"));
        b.dir(format!("{dir}/globalmount"));
    }
    for m in &view.pod_dirs {
        let dir = pod_dir(m);
        let data = json!({
            "attachmentID": m.spec.attachment(&view.node), "driverName": m.spec.driver, "nodeName": view.node,
            "specVolID": m.spec.pv, "volumeHandle": m.spec.handle, "volumeLifecycleMode": "Persistent",
        });
        b.file(format!("{dir}/vol_data.json"), format!("{data}\n"));
        b.dir(format!("{dir}/mount"));
    }
    b.0
}

const ROOT_MOUNT: &str = "22 1 8:0 / / rw,relatime shared:1 - ext4 /dev/sda rw,errors=remount-ro\n\
     23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw\n\
     24 22 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw\n";

fn host_mounts(view: &HostView) -> String {
    let mut out = ROOT_MOUNT.to_owned();
    let mut id = 100;
    let staged = view
        .staged
        .iter()
        .map(|m| (m, format!("/{}/globalmount", staging_dir(&m.spec))));
    let pods = view
        .pod_dirs
        .iter()
        .map(|m| (m, format!("/{}/mount", pod_dir(m))));
    for (m, at) in staged.chain(pods) {
        if let Some(device) = &m.device {
            let (dev, fs) = (number(device), file_system(&m.spec));
            // Writing to a String cannot fail.
            let _ok = writeln!(
                out,
                "{id} 22 {dev} / {at} rw,relatime shared:{id} - {fs} /dev/{device} rw"
            );
            id += 1;
        }
    }
    out
}

fn container_mounts(view: &HostView, process: &ProcessView) -> String {
    let mut out = "400 399 0:60 / / rw,relatime - overlay overlay rw\n401 400 0:61 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw\n".to_owned();
    let mut id = 402;
    let ours = view
        .pod_dirs
        .iter()
        .filter(|m| m.pod == process.pod && process.volumes.contains(&m.spec.handle));
    for m in ours {
        if let Some(device) = &m.device {
            let (dev, fs, pv) = (number(device), file_system(&m.spec), &m.spec.pv);
            let _ok = writeln!(
                out,
                "{id} 400 {dev} / /data/{pv} rw,relatime - {fs} /dev/{device} rw"
            );
            id += 1;
        }
    }
    out
}

fn process(b: &mut Builder, pid: u32, name: &str, cgroup: &str, mountinfo: &str) {
    let dir = format!("proc/{pid}");
    b.file(format!("{dir}/comm"), format!("{name}\n"));
    b.file(format!("{dir}/cmdline"), format!("/usr/bin/{name}\0"));
    let parent = u32::from(pid != 1);
    let counters = "0 ".repeat(48);
    b.file(
        format!("{dir}/stat"),
        format!(
            "{pid} ({name}) S {parent} {pid} {pid} {}\n",
            counters.trim_end()
        ),
    );
    b.file(
        format!("{dir}/status"),
        format!("Name:\t{name}\nState:\tS (sleeping)\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{parent}\nUid:\t0\t0\t0\t0\n"),
    );
    b.file(format!("{dir}/cgroup"), cgroup);
    b.file(format!("{dir}/mountinfo"), mountinfo);
    b.file(format!("{dir}/mounts"), classic(mountinfo));
    b.link(format!("{dir}/cwd"), "/");
    b.link(format!("{dir}/root"), "/");
    b.link(format!("{dir}/exe"), format!("/usr/bin/{name}"));
    b.link(
        format!("{dir}/ns/mnt"),
        format!(
            "mnt:[{}]",
            if pid < 1000 {
                4_026_531_840
            } else {
                4_026_532_000 + u64::from(pid)
            }
        ),
    );
    for fd in 0..3 {
        b.link(format!("{dir}/fd/{fd}"), "/dev/null");
    }
    b.file(format!("{dir}/maps"), "");
    b.dir(format!("{dir}/task/{pid}"));
}

/// `/proc/PID/mounts` of a mountinfo.
fn classic(mountinfo: &str) -> String {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            Some(format!(
                "{} {} {} {} 0 0\n",
                right.get(1)?,
                left.get(4)?,
                right.first()?,
                left.get(5)?
            ))
        })
        .collect()
}

fn device(b: &mut Builder, name: &str, d: &GuestDevice, vendor: &str, model: &str) {
    let dir = format!("sys/block/{name}");
    let dev = number(name);
    b.file(format!("{dir}/dev"), format!("{dev}\n"));
    b.file(format!("{dir}/size"), format!("{}\n", d.size / 512));
    for (file, value) in [
        ("ro", "0"),
        ("removable", "0"),
        ("hidden", "0"),
        ("range", "16"),
        ("ext_range", "256"),
    ] {
        b.file(format!("{dir}/{file}"), format!("{value}\n"));
    }
    b.file(format!("{dir}/inflight"), "       0        0\n");
    let stat = [0u64; 17].map(|n| format!("{n:>8}")).join(" ");
    b.file(format!("{dir}/stat"), format!("{stat}\n"));
    b.file(
        format!("{dir}/uevent"),
        format!(
            "MAJOR={}\nMINOR={}\nDEVNAME={name}\nDEVTYPE=disk\n",
            dev.split(':').next().unwrap_or("8"),
            dev.split(':').nth(1).unwrap_or("0")
        ),
    );
    b.dir(format!("{dir}/holders"));
    b.dir(format!("{dir}/slaves"));
    b.file(format!("{dir}/device/vendor"), format!("{vendor}\n"));
    b.file(format!("{dir}/device/model"), format!("{model}\n"));
    b.file(format!("{dir}/device/rev"), "2.5+\n");
    b.file(format!("{dir}/device/type"), "0\n");
    b.file(format!("{dir}/device/state"), "running\n");
    b.file(format!("{dir}/device/vpd_pg83"), page_83(&d.label));
    b.link(
        format!("sys/class/block/{name}"),
        format!("../../block/{name}"),
    );
    b.link(
        format!("sys/dev/block/{dev}"),
        format!("../../block/{name}"),
    );
    b.file(format!("dev/{name}"), "");
}

/// SCSI VPD page 0x83 with one designator: type 0 (vendor specific), ASCII, the label.
fn page_83(label: &str) -> Vec<u8> {
    let label = label.as_bytes();
    let length = u8::try_from(label.len()).unwrap_or(u8::MAX);
    let label = &label[..usize::from(length)];
    let total = u16::from(length) + 4;
    let mut page = vec![0x00, 0x83];
    page.extend_from_slice(&total.to_be_bytes());
    page.extend_from_slice(&[0x02, 0x00, 0x00, length]);
    page.extend_from_slice(label);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(
            [
                nth_name(0),
                nth_name(1),
                nth_name(25),
                nth_name(26),
                nth_name(27)
            ],
            ["sda", "sdb", "sdz", "sdaa", "sdab"]
        );
        assert_eq!(
            [number("sda"), number("sdb"), number("sdp"), number("sdq")],
            ["8:0", "8:16", "8:240", "65:0"]
        );
    }

    #[test]
    fn page_83_carries_the_label() {
        let page = page_83("pvc1");
        assert_eq!(page, [0, 0x83, 0, 8, 2, 0, 0, 4, b'p', b'v', b'c', b'1']);
    }
}
