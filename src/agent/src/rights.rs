//! The agent's rights: after its start it is an ordinary user with two capabilities that let it read.
//!
//! User 0 owns most of a host's files: whatever a mount says, it could write `/proc/sys/kernel/core_pattern` or, through
//! `/proc/1/root`, any file of the host, without a single capability. A container that is not user 0 from the start gets no
//! capabilities from Kubernetes. So the agent starts as user 0 and gives everything up that it does not need.

use rustix::io::Errno;
use rustix::process::geteuid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, set_capabilities, set_keep_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use std::io;

/// The user and group that the agent runs as. Nobody's: above what distributions, systemd and container runtimes hand out
/// (systemd.io/UIDS-GIDS: up to 1879048191, and from 2147352576), so that it owns no file on any node.
pub const USER: u32 = 1_919_250_804;

/// What the agent keeps.
const KEPT: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// What became of the rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// The thread is user [`USER`] and has these two capabilities at most.
    Reduced,
    /// The thread was not user 0, and has what it had.
    Unchanged,
}

/// Gives up user 0 and all but two capabilities, for good. To be called while the process has one thread: the kernel has users
/// and capabilities by thread, and new threads inherit them.
///
/// # Errors
/// `CAP_SETUID` or `CAP_SETGID` is missing, so that the rights cannot be reduced; or they were not, whatever the kernel said.
pub fn reduce() -> io::Result<Rights> {
    if !geteuid().is_root() {
        return Ok(Rights::Unchanged);
    }
    let kept = capabilities(None)?.permitted & KEPT;
    // No program that it may start gives it more, such as one of the host with the set-user-ID bit.
    set_no_new_privs(true)?;
    set_keep_capabilities(true)?;
    let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    if geteuid() != user || capabilities(None)? != sets {
        return Err(io::Error::other("the kernel did not take the rights away"));
    }
    // There is no way back.
    match set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT) {
        Err(Errno::PERM) => Ok(Rights::Reduced),
        _ => Err(io::Error::other("user 0 can be had again")),
    }
}
