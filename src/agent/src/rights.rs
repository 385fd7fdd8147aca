//! Reduces the agent's rights: after its start it runs as an ordinary user with two capabilities for reading.
//!
//! User 0 owns most of a host's files. In spite of read-only mounts, and without any capability, it could write
//! `/proc/sys/kernel/core_pattern` or, through `/proc/1/root`, any file of the host. A container that does not start as
//! user 0 gets no capabilities from Kubernetes. So the agent starts as user 0 and gives up all rights that it does not need.

use rustix::io::Errno;
use rustix::process::geteuid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, set_capabilities, set_keep_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use std::io;

/// User and group that the agent runs as. The number is outside of the ranges that distributions, systemd and container
/// runtimes assign (systemd.io/UIDS-GIDS: up to 1879048191, and from 2147352576), so that it owns no file on any node.
pub const USER: u32 = 1_919_250_804;

/// Capabilities that the agent keeps.
const KEPT: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// The result of [`reduce`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// The thread runs as user [`USER`] and has at most the two capabilities.
    Reduced,
    /// The thread did not run as user 0, and its rights have not changed.
    Unchanged,
}

/// Gives up user 0 and all capabilities except two, permanently. Call it while the process has one thread: the kernel keeps
/// users and capabilities per thread, and new threads inherit them.
///
/// # Errors
/// `CAP_SETUID` or `CAP_SETGID` is missing, so that the rights cannot be reduced. Or a check afterwards showed that they were
/// not reduced.
pub fn reduce() -> io::Result<Rights> {
    if !geteuid().is_root() {
        return Ok(Rights::Unchanged);
    }
    let kept = capabilities(None)?.permitted & KEPT;
    // A started program must not give more rights, such as a program of the host with the set-user-ID bit.
    set_no_new_privs(true)?;
    set_keep_capabilities(true)?;
    let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)?;
    if geteuid() != user || capabilities(None)? != sets {
        return Err(io::Error::other("the kernel did not reduce the rights"));
    }
    // Check that user 0 cannot be regained.
    match set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT) {
        Err(Errno::PERM) => Ok(Rights::Reduced),
        _ => Err(io::Error::other("user 0 can be regained")),
    }
}
