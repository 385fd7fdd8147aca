//! The kernel's own word that something changed, so that nobody has to look for it: mounts of the host's namespace and
//! swap areas (poll(2) on files in /proc, see proc_pid_mounts(5) and `swaps_poll` in the kernel), and block devices that
//! come, go or change (uevents, netlink(7)).
//!
//! # Guarantees
//! No timer. Between two items nothing is registered with the runtime: news that nobody waits for wake nobody, and
//! none is lost, since the next call asks the kernel what changed since the last.

use crate::guest::HostRoot;
use futures::{Stream, stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Files whose change poll(2) tells, as priority data.
const FILES: [&str; 2] = ["/proc/1/mountinfo", "/proc/swaps"];
/// The multicast group of the kernel's own uevents; udev's are in group 2.
const KERNEL: u32 = 1;
/// Longest uevent: `UEVENT_BUFFER_SIZE` of the kernel and its header.
const UEVENT: usize = 4096;

/// Where the news come from.
#[derive(Debug)]
pub struct News {
    files: Vec<Watched>,
    uevents: OwnedFd,
}

/// A file that is open twice, because asking consumes the news of the descriptor that is asked: one waits in the runtime,
/// one tells what happened before it did.
#[derive(Debug)]
struct Watched {
    waits: File,
    tells: File,
}

impl News {
    /// Opens the sources on a host.
    ///
    /// # Errors
    /// The first one that cannot be opened, or that is no file of the kernel's; then the caller has to look often.
    pub fn open(root: &HostRoot) -> io::Result<Self> {
        let named = |path: &str, e: io::Error| io::Error::new(e.kind(), format!("{path}: {e}"));
        let open = |path: &str| {
            let watched = || -> io::Result<Watched> {
                let place = root.join(path);
                let watched = Watched { waits: File::open(&place)?, tells: File::open(&place)? };
                // Regular files cannot be waited for.
                drop(registered(watched.waits.as_fd(), Interest::PRIORITY)?);
                Ok(watched)
            };
            watched().map_err(|e| named(path, e))
        };
        let files = FILES.into_iter().map(open).collect::<io::Result<Vec<_>>>()?;
        let uevents = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
            bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
            Ok(socket)
        };
        Ok(Self { files, uevents: uevents().map_err(|e| named("uevents", e))? })
    }

    /// One item for each time that something changed since the item before. Ends when a source fails, which
    /// is logged.
    pub fn stream(self) -> impl Stream<Item = ()> {
        stream::unfold(self, async |mut news| match news.next().await {
            Ok(()) => Some(((), news)),
            Err(e) => {
                tracing::warn!(error = %e, "the kernel's news are lost; changes show at the next regular look only");
                None
            }
        })
    }

    async fn next(&mut self) -> io::Result<()> {
        let uevents = registered(self.uevents.as_fd(), Interest::READABLE)?;
        let mut files = Vec::new();
        for file in &self.files {
            files.push(registered(file.waits.as_fd(), Interest::PRIORITY)?);
        }
        // Only now, when whatever comes later wakes this task.
        let told = self.files.iter().map(|file| has_changed(file.tells.as_fd()));
        let changed = told.collect::<io::Result<Vec<bool>>>()?;
        if drain(self.uevents.as_fd())? || changed.contains(&true) {
            return Ok(());
        }
        let mut waiting: Vec<_> = files.iter().map(|file| Box::pin(file.ready(Interest::PRIORITY))).collect();
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
        // What this wait has heard of need not be told again.
        for file in &self.files {
            has_changed(file.tells.as_fd())?;
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

/// Whether the file changed since this descriptor was last asked.
fn has_changed(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut asked = [PollFd::from_borrowed_fd(file, PollFlags::PRI)];
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(asked[0].revents().intersects(PollFlags::PRI | PollFlags::ERR))
}

/// Takes all uevents out; whether one was about a block device, or some were lost.
fn drain(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut buffer = [0; UEVENT];
    let mut block = false;
    loop {
        match recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok((_, len)) => block |= is_block(buffer.get(..len).unwrap_or(&buffer)),
            Err(Errno::AGAIN) => return Ok(block),
            Err(Errno::INTR) => {}
            // The kernel had more to say than the socket holds.
            Err(Errno::NOBUFS) => block = true,
            Err(e) => return Err(e.into()),
        }
    }
}

/// Whether a uevent (`ACTION@PATH`, then `KEY=VALUE` each, all ended by NUL) is about a block device.
fn is_block(uevent: &[u8]) -> bool {
    uevent.split(|byte| *byte == 0).any(|field| field == b"SUBSYSTEM=block")
}
