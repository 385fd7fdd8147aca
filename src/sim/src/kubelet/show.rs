//! From the state of a kubelet to what its host shows.

use super::host::{self, HostView, MountView, ProcessView};
use super::pods::Container;
use super::volumes::Device;
use super::worker::Worker;
use crate::kapi::lock;

impl Worker {
    /// Brings the host's files up to date.
    pub fn show_host(&mut self) {
        if self.shared.config.host_root.is_none() {
            return;
        }
        let mut view = HostView {
            boot_id: lock(&self.shared.boot).clone(),
            booted: self.booted,
            node: self.shared.config.node.clone(),
            devices: Vec::new(),
            staged: Vec::new(),
            pod_dirs: Vec::new(),
            processes: Vec::new(),
        };
        let devices = self
            .shared
            .cloud
            .guest_devices(&self.shared.config.instance);
        for device in devices {
            let name = host::device_name(&self.letters, &device.handle);
            view.devices.push((name, device));
        }
        let disk = lock(&self.shared.disk).clone();
        let mounted_from = |handle: &str| match self.volumes.get(handle).map(|v| &v.device) {
            Some(Device::Mounted(name)) => Some(name.clone()),
            _ => None,
        };
        for (handle, spec) in &disk.staged {
            view.staged.push(MountView {
                spec: spec.clone(),
                pod: String::new(),
                device: mounted_from(handle),
            });
        }
        for ((pod, handle), spec) in &disk.pod_dirs {
            let alive = self
                .volumes
                .get(handle)
                .is_some_and(|v| v.mounted.contains(pod));
            let device = mounted_from(handle).filter(|_| alive);
            view.pod_dirs.push(MountView {
                spec: spec.clone(),
                pod: pod.clone(),
                device,
            });
        }
        for (key, worker) in &self.pods {
            if let Container::Running { pid, .. } = worker.container {
                view.processes.push(ProcessView {
                    pid,
                    pod: key.clone(),
                    volumes: worker.volumes.clone(),
                });
            }
        }
        if let Some(tree) = lock(&self.shared.host).as_mut() {
            tree.show(&view);
        }
    }
}
