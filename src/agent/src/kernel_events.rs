//! Events of the kernel about changes, so that the agent need not poll: mounts of the host's namespace and swap areas
//! (poll(2) on files in /proc, see proc_pid_mounts(5) and `swaps_poll` in the kernel), and block devices that are added,
//! removed or changed (uevents, netlink(7)).
//!
//! # Guarantees
//! - There is no timer.
//! - While the stream is not polled, nothing is registered with the runtime, so events do not wake the process.
//! - No event is lost: each poll asks the kernel for changes since the last one.

use crate::guest::HostRoot;
use futures::{Stream, stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Files whose changes poll(2) shows, as priority data.
const FILES: [&str; 2] = ["/proc/1/mountinfo", "/proc/swaps"];
/// Multicast group of the kernel's own uevents. Those of udev are in group 2.
const KERNEL: u32 = 1;
/// Maximum length of a uevent in bytes: the kernel's `UEVENT_BUFFER_SIZE` and a header.
const UEVENT: usize = 4096;

/// The sources of the events.
#[derive(Debug)]
pub struct KernelEvents {
    files: Vec<Watched>,
    uevents: OwnedFd,
}

/// A watched file. It is open twice, because poll(2) consumes the event of its descriptor: `wait` is registered with the
/// runtime, and `check` shows changes from before the registration.
#[derive(Debug)]
struct Watched {
    wait: File,
    check: File,
}

impl Watched {
    fn open(place: &Path) -> io::Result<Self> {
        let watched = Self {
            wait: File::open(place)?,
            check: File::open(place)?,
        };
        // Fails for a regular file, which has no events.
        drop(registered(watched.wait.as_fd(), Interest::PRIORITY)?);
        Ok(watched)
    }
}

fn uevent_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        flags,
        Some(KOBJECT_UEVENT),
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
    Ok(socket)
}

/// Adds the name of its source to an error.
fn of_source(source: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{source}: {e}"))
}

impl KernelEvents {
    /// Opens the sources on a host.
    ///
    /// # Errors
    /// The first source that cannot be opened, or that is no file of the kernel. The caller must scan more often then.
    pub fn open(root: &HostRoot) -> io::Result<Self> {
        let open = |path: &str| Watched::open(&root.join(path)).map_err(|e| of_source(path, e));
        Ok(Self {
            files: FILES.into_iter().map(open).collect::<Result<_, _>>()?,
            uevents: uevent_socket().map_err(|e| of_source("uevents", e))?,
        })
    }

    /// Returns a stream with one item after each change since the last item. It ends when a source fails, which is logged.
    pub fn stream(self) -> impl Stream<Item = ()> {
        stream::unfold(self, async |mut events| match events.next().await {
            Ok(()) => Some(((), events)),
            Err(e) => {
                tracing::warn!(error = %e, "the kernel's events can no longer be received; the agent finds changes only by its regular scans");
                None
            }
        })
    }

    async fn next(&mut self) -> io::Result<()> {
        let uevents = registered(self.uevents.as_fd(), Interest::READABLE)?;
        let mut files = Vec::new();
        for file in &self.files {
            files.push(registered(file.wait.as_fd(), Interest::PRIORITY)?);
        }
        // Check only after the registration: later changes wake this task.
        let checked = self
            .files
            .iter()
            .map(|file| has_changed(file.check.as_fd()));
        let changed = checked.collect::<io::Result<Vec<bool>>>()?;
        if drain(self.uevents.as_fd())? || changed.contains(&true) {
            return Ok(());
        }
        let mut waiting: Vec<_> = files
            .iter()
            .map(|file| Box::pin(file.ready(Interest::PRIORITY)))
            .collect();
        loop {
            tokio::select! {
                biased;
                (ready, _, _) = futures::future::select_all(waiting.iter_mut()) => {
                    drop(ready?);
                    break;
                }
                ready = uevents.readable() => {
                    let mut ready = ready?;
                    let block = drain(self.uevents.as_fd())?;
                    ready.clear_ready();
                    if block {
                        break;
                    }
                }
            }
        }
        // Consume the events that ended the wait, so that the next call does not return them again.
        for file in &self.files {
            has_changed(file.check.as_fd())?;
        }
        Ok(())
    }
}

/// Registers a descriptor with the runtime until the result is dropped.
#[expect(
    deprecated,
    reason = "deprecated for types that may close the descriptor while it is registered; a borrowed one cannot"
)]
fn registered(fd: BorrowedFd<'_>, interest: Interest) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    AsyncFd::with_interest(fd, interest)
}

/// Returns whether the file has changed since the last check of this descriptor.
fn has_changed(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut polled = [PollFd::from_borrowed_fd(file, PollFlags::PRI)];
    poll(
        &mut polled,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )?;
    Ok(polled[0]
        .revents()
        .intersects(PollFlags::PRI | PollFlags::ERR))
}

/// Reads all uevents. Returns whether one was about a block device, or some were lost.
fn drain(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut buffer = [0; UEVENT];
    let mut block = false;
    loop {
        match recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok((_, len)) => block |= is_block(buffer.get(..len).unwrap_or(&buffer)),
            Err(Errno::AGAIN) => return Ok(block),
            Err(Errno::INTR) => {}
            // There were more events than the socket holds.
            Err(Errno::NOBUFS) => block = true,
            Err(e) => return Err(e.into()),
        }
    }
}

/// Returns whether a uevent (`ACTION@PATH`, then `KEY=VALUE`, each ended by NUL) is about a block device.
fn is_block(uevent: &[u8]) -> bool {
    uevent
        .split(|byte| *byte == 0)
        .any(|field| field == b"SUBSYSTEM=block")
}
