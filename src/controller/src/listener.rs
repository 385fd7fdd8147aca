//! The bounded listener of the port for metrics and health.
//!
//! Anything that reaches the port may open connections and send nothing, or send without end. So the number of open
//! connections is bounded, and each one gets a bounded time and a bounded number of bytes for its one request.

use axum::serve::Listener;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Sleep, timeout, timeout_at};

/// Time that the task of a connection gets to drop it: a scheduling delay, which is milliseconds even under load.
const CLOSING: Duration = Duration::from_secs(1);

/// What one connection, and all of them together, may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of open connections.
    pub connections: usize,
    /// Time from accepting a connection to closing it, whatever it is doing then: header, request and reply together.
    pub lifetime: Duration,
    /// Time that a connection has at least before newer ones take its place when all places are taken.
    pub displaced_after: Duration,
    /// Maximum number of bytes that are read from one connection.
    pub request_bytes: usize,
}

impl Default for Limits {
    /// The slowest peer that counts is Prometheus, whose scrape timeout is 10 s by default. A request of kubelet or
    /// Prometheus has less than 1 KiB. 256 connections of 16 KiB are 4 MiB, and at 100 ms each a flood of new
    /// connections is accepted at 2,560 a second, so that kubelet's probe waits in the backlog of 1,024 for half a second.
    fn default() -> Self {
        Self {
            connections: 256,
            lifetime: Duration::from_secs(10),
            displaced_after: Duration::from_millis(100),
            request_bytes: 16 << 10,
        }
    }
}

/// A TCP listener with [`Limits`]. When all places are taken, the oldest connection is closed for a new one.
pub struct BoundedListener {
    tcp: TcpListener,
    limits: Limits,
    places: Arc<Semaphore>,
    /// Open connections, the oldest first.
    open: VecDeque<Open>,
}

/// The listener's side of an open connection: dropping it closes the connection.
struct Open {
    since: Instant,
    close: oneshot::Sender<()>,
}

impl BoundedListener {
    /// Bounds a listener.
    pub fn new(tcp: TcpListener, limits: Limits) -> Self {
        Self {
            tcp,
            limits,
            places: Arc::new(Semaphore::new(limits.connections)),
            open: VecDeque::new(),
        }
    }

    /// Waits for a place. Closes the oldest connection if there is none and the oldest has had its time.
    async fn place(&mut self) -> OwnedSemaphorePermit {
        loop {
            self.open.retain(|open| !open.close.is_closed());
            let oldest = self.open.front().map_or(Instant::now(), |open| open.since);
            let place = self.places.clone().acquire_owned();
            if let Ok(Ok(place)) = timeout_at(oldest + self.limits.displaced_after, place).await {
                return place;
            }
            self.open.pop_front();
            // The closed connection's task gives its place back as soon as it runs. Without this wait the next turn
            // would close a second connection.
            if let Ok(Ok(place)) = timeout(CLOSING, self.places.clone().acquire_owned()).await {
                return place;
            }
        }
    }
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        let (tcp, peer) = Listener::accept(&mut self.tcp).await;
        let place = self.place().await;
        let since = Instant::now();
        let (close, closed) = oneshot::channel();
        self.open.push_back(Open { since, close });
        let stream = BoundedStream {
            tcp,
            closed,
            ends: Box::pin(tokio::time::sleep_until(since + self.limits.lifetime)),
            bytes_left: self.limits.request_bytes,
            _place: place,
        };
        (stream, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// One connection. Reads and writes fail once its time or its bytes are used up, or a newer connection took its place.
pub struct BoundedStream {
    tcp: TcpStream,
    closed: oneshot::Receiver<()>,
    ends: Pin<Box<Sleep>>,
    bytes_left: usize,
    _place: OwnedSemaphorePermit,
}

impl BoundedStream {
    /// Fails if the connection must end; otherwise the task is woken when it must.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if Pin::new(&mut self.closed).poll(cx).is_ready() {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "too many connections",
            ));
        }
        if self.ends.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        if self.bytes_left == 0 {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the request is too long",
            )));
        }
        // One read may go beyond the limit, by no more than the HTTP library's buffer.
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf);
        self.bytes_left = self.bytes_left.saturating_sub(buf.filled().len() - before);
        read
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
