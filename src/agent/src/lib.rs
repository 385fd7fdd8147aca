//! The node agent: scans its node's block devices and mounts and reports what it finds. It changes nothing on the node.
//!
//! - [`guest`] scans a host's file tree, by plain functions.
//! - [`kernel_events`] receives the kernel's events about mounts, swap areas and block devices.
//! - [`report`] is the loop that writes the node's own `NodeVolumeReport` and answers the controller's challenges.
//! - [`rights`] gives up all rights that the agent does not need.
//!
//! This crate links no provider and has no cloud credential.

pub mod guest;
pub mod kernel_events;
pub mod report;
pub mod rights;

pub use guest::{HostRoot, Scan, ScanError};
pub use kernel_events::KernelEvents;
pub use report::{AgentConfig, ScanOn, run};
