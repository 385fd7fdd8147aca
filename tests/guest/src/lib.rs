//! Guests for tests: virtual machines under QEMU with a kernel of their own, whose disks come and go as a cloud gives and
//! takes them.
//!
//! A [`Guest`] is one QEMU process: power off is its death. [`Guest::plug`] and [`Guest::pull`] are what a cloud's attach and
//! forced detach are to the guest's kernel: the disk is there at once, or gone at once, whatever uses it. [`Guest::run`] runs shell
//! scripts as root inside.
//!
//! # What is real, and what is not
//! Real: the kernel with its /proc and /sys, its boot ID and its boot time; SCSI and NVMe disks that report their identity
//! themselves (QEMU puts a SCSI disk's serial into page 0x83 as Linode does); ext4, dm-crypt, loop devices, swap; what is left of a
//! mount when its disk is gone. Not real:
//! - No kubelet and no CSI driver: the tests make their folders and mounts.
//! - No udev, so no link below /dev/disk: an agent that needs one would fail every test here.
//! - The whole file system is in memory and as new after a power cycle.
//! - The CPU is emulated, so everything that computes is slow.
//!
//! # What stays behind
//! No process: QEMU dies with the thread that started it, also when that one is killed. A guest's folder, with its logs and
//! volumes, stays only if the test failed or was killed.

mod cpio;
mod guest;
mod qmp;
mod shell;
mod tools;
mod wait;

pub use guest::{Bus, Guest, Plugged, Volume};
pub use tools::Tools;
pub use wait::wait_for;
