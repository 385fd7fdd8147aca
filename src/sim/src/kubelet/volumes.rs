//! kubelet's state of each volume, and the operation that it starts next.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::names::{attachment_name, label_of, unique_volume_name};

/// A CSI volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeSpec {
    pub pv: String,
    pub handle: String,
    pub driver: String,
    pub fs_type: String,
    pub attach_required: bool,
}

impl VolumeSpec {
    /// As in `volumesInUse`.
    pub fn unique_name(&self) -> String {
        unique_volume_name(&self.handle, &self.driver)
    }

    pub fn attachment(&self, node: &str) -> String {
        attachment_name(&self.handle, &self.driver, node)
    }

    pub fn label(&self) -> &str {
        label_of(&self.handle)
    }
}

/// Whether the volume is mounted at its staging path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Device {
    No,
    /// Mounted from this kernel device.
    Mounted(String),
    /// Perhaps: after an error that decides nothing, or found on the disk after a restart.
    Uncertain,
}

/// Operations on a volume. Another kind than the last resets the back-off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    Verify,
    MountDevice,
    SetUp(String),
    TearDown(String),
    UnmountDevice,
}

impl Operation {
    fn kind(&self) -> u8 {
        match self {
            Self::Verify => 0,
            Self::MountDevice | Self::SetUp(_) => 1,
            Self::TearDown(_) => 2,
            Self::UnmountDevice => 3,
        }
    }
}

/// kubelet's exponential back-off per volume: 0.5 s doubling to 2 min 2 s (goroutinemap/exponentialbackoff).
#[derive(Debug, Clone, Default)]
pub(super) struct Backoff {
    kind: Option<u8>,
    wait: Duration,
    until: Option<Instant>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(122);
    /// kubelet's reconciler looks every 100 ms.
    const LOOP: Duration = Duration::from_millis(100);

    fn failed(&mut self, kind: u8, now: Instant) {
        self.wait = if self.kind == Some(kind) && !self.wait.is_zero() {
            (self.wait * 2).min(Self::LONGEST)
        } else {
            Self::FIRST
        };
        self.kind = Some(kind);
        self.until = Some(now + self.wait + Self::LOOP);
    }

    pub fn failed_again(&mut self, now: Instant) {
        self.failed(0, now);
    }

    fn until(&self, kind: u8) -> Option<Instant> {
        self.until.filter(|_| self.kind == Some(kind))
    }

    /// When the next attempt may start; `None`: now.
    pub fn waits(&self) -> Option<Instant> {
        self.until
    }
}

/// One volume in kubelet's volume manager.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub spec: VolumeSpec,
    /// The controller's attach was verified; the volume is in the actual state of the world.
    pub verified: bool,
    pub device: Device,
    /// Pods whose mount is alive.
    pub mounted: BTreeSet<String>,
    /// Pods with a volume directory.
    pub pod_dirs: BTreeSet<String>,
    pub busy: bool,
    pub backoff: Backoff,
}

impl Volume {
    pub fn new(spec: VolumeSpec) -> Self {
        Self {
            spec,
            verified: false,
            device: Device::No,
            mounted: BTreeSet::new(),
            pod_dirs: BTreeSet::new(),
            busy: false,
            backoff: Backoff::default(),
        }
    }

    /// Whether it would be reported in use even if no pod wanted it.
    pub fn held(&self) -> bool {
        self.verified || self.device != Device::No || !self.pod_dirs.is_empty()
    }

    /// The next operation, given the pods that want the volume; `None`: nothing to do.
    pub fn next(&self, wanted_by: &BTreeSet<String>) -> Option<Operation> {
        if let Some(pod) = self.pod_dirs.iter().find(|p| !wanted_by.contains(*p)) {
            return Some(Operation::TearDown(pod.clone()));
        }
        if let Some(pod) = wanted_by.iter().find(|p| !self.mounted.contains(*p)) {
            if !self.verified {
                return Some(Operation::Verify);
            }
            if !matches!(self.device, Device::Mounted(_)) {
                return Some(Operation::MountDevice);
            }
            return Some(Operation::SetUp(pod.clone()));
        }
        if wanted_by.is_empty() && self.device != Device::No {
            return Some(Operation::UnmountDevice);
        }
        None
    }

    /// When the operation may start; `None`: now.
    pub fn waits(&self, operation: &Operation, now: Instant) -> Option<Instant> {
        self.backoff.until(operation.kind()).filter(|at| *at > now)
    }

    pub fn failed(&mut self, operation: &Operation, now: Instant) {
        self.backoff.failed(operation.kind(), now);
    }

    pub fn succeeded(&mut self) {
        self.backoff = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Volume {
        Volume::new(VolumeSpec {
            pv: "pv".into(),
            handle: "1-a".into(),
            driver: "d".into(),
            fs_type: "ext4".into(),
            attach_required: true,
        })
    }

    /// Attempts at 0, 0.6, 1.7, 3.8, 8, 16, 32, 64, 128, 250 s, then every 122 s.
    #[tokio::test(start_paused = true)]
    async fn mount_attempts_as_measured() {
        let start = Instant::now();
        let (mut v, mut now) = (volume(), start);
        let mut at = vec![];
        for _ in 0..12 {
            at.push(now.duration_since(start).as_secs_f64());
            v.failed(&Operation::MountDevice, now);
            now = v.waits(&Operation::MountDevice, now).unwrap();
        }
        let measured = [
            0.0, 0.6, 1.7, 3.8, 8.0, 16.0, 32.0, 64.0, 128.0, 250.0, 372.0, 494.0,
        ];
        for (have, want) in at.iter().zip(measured) {
            assert!((have - want).abs() <= 1.2, "{at:?}");
        }
        assert!(v.waits(&Operation::TearDown("p".into()), now).is_none());
        v.failed(&Operation::TearDown("p".into()), now);
        assert!(
            v.waits(&Operation::MountDevice, now).is_none(),
            "another kind of operation resets"
        );
    }

    #[test]
    fn order_of_operations() {
        let (pod, other) = ("a".to_owned(), BTreeSet::new());
        let wanted = BTreeSet::from([pod.clone()]);
        let mut v = volume();
        assert_eq!(v.next(&wanted), Some(Operation::Verify));
        v.verified = true;
        assert_eq!(v.next(&wanted), Some(Operation::MountDevice));
        v.device = Device::Mounted("sdb".into());
        assert_eq!(v.next(&wanted), Some(Operation::SetUp(pod.clone())));
        v.mounted.insert(pod.clone());
        v.pod_dirs.insert(pod.clone());
        assert_eq!(v.next(&wanted), None);
        assert_eq!(v.next(&other), Some(Operation::TearDown(pod)));
        v.mounted.clear();
        v.pod_dirs.clear();
        assert_eq!(v.next(&other), Some(Operation::UnmountDevice));
        v.device = Device::No;
        assert_eq!(v.next(&other), None);
    }
}
