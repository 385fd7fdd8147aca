//! Machines for tests: real kubelets over real containerds, each on a machine of its own that can lose its power.
//!
//! A [`Machine`] is a PID namespace and a mount namespace with one init process. What runs on it (containerd, kubelet, a CSI
//! node plugin, pods, an agent) is below that process and dies with it, at once and with all its mounts, as in a power
//! cut. [`Hypervisor`] gives a machine the block devices that the simulated cloud says its guest has.
//!
//! # What is real, and what is not
//! Real: kubelet, containerd, runc, the processes and mount tables of every namespace, ext4, block devices and their I/O
//! errors, holders, open files. Not real:
//! - A volume is a loop device over a sparse file, and the kernel keeps an unbound loop device in /sys. So the agent sees, in the
//!   place of /sys/block and /sys/dev/block, a folder in which a device appears when the cloud gives it to the guest and
//!   disappears when it is taken; its entries are links into the real /sys. Page 0x83, the device's identity, is the one file
//!   that is made up: loop devices have no identity.
//! - Taking a device away under a mounted filesystem makes it 0 bytes small: the kernel then refuses all I/O to it.
//! - The boot ID is a file of ours over the kernel's; the boot time and the kernel itself are shared.
//! - The network is shared: a partition is a kubelet that does not run, and pods have `hostNetwork`.
//!
//! # What stays behind
//! Nothing, also when a test panics: namespaces die with their init, init dies with the test's process, and what outlives
//! a test that was killed (loop devices, cgroups) goes when the next one starts ([`sweep`]). An empty /dev/disk and an empty cgroup
//! `k8s.io` stay until the computer restarts.

mod canary;
mod files;
mod hypervisor;
mod machine;
mod program;
mod sweep;
mod tools;

pub use canary::{Stamp, Stamps};
pub use hypervisor::Hypervisor;
pub use machine::{Disk, Machine};
pub use program::{MachineConfig, Program};
pub use sweep::sweep;
pub use tools::{IMAGE, Tools};
