use super::*;
use crate::http::{Endpoints, router};
use prometheus_client::registry::Registry;
use std::io::{Read, Write};
use std::net::TcpStream as Socket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Starts the shipped router behind a bounded listener on loopback.
async fn start(limits: Limits) -> (SocketAddr, JoinHandle<io::Result<()>>) {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let (_, ready) = watch::channel(true);
    let app = router(Endpoints {
        registry: Arc::new(Registry::default()),
        ready,
    });
    let listener = BoundedListener::new(tcp, limits);
    (
        address,
        tokio::spawn(async move { axum::serve(listener, app).await }),
    )
}

/// What a probe of kubelet gets: it opens a connection, asks, and reads to the end.
fn probe(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut socket = Socket::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut reply = String::new();
    socket.read_to_string(&mut reply)?;
    Ok(reply)
}

/// A connection that sends the beginning of a request and `padding` bytes of a header without an end.
fn half_open(address: SocketAddr, padding: usize) -> Socket {
    let mut socket = Socket::connect(address).expect("the kernel accepts");
    socket.set_nonblocking(true).expect("a socket");
    let begin = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(padding));
    // What the kernel's buffers do not take is not sent.
    let _ = socket.write(begin.as_bytes());
    socket
}

/// The resident memory of this process, in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The probe answers within `within`, tried as kubelet does.
fn answers(address: SocketAddr) -> bool {
    probe(address, "/livez")
        .is_ok_and(|reply| reply.starts_with("HTTP/1.1 200") && reply.ends_with("ok"))
}

/// Returns whether the peer closes this connection within `within`.
fn closes(socket: &mut Socket, within: Duration) -> bool {
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(within)).unwrap();
    match socket.read(&mut [0; 4096]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_cost_bounded_memory() {
    let (address, _server) = start(Limits::default()).await;
    let flood = move |count: usize| {
        (0..count)
            .map(|_| half_open(address, 200 << 10))
            .collect::<Vec<_>>()
    };
    tokio::task::spawn_blocking(move || {
        assert!(answers(address));
        let before = resident();
        let few = flood(500);
        assert!(
            answers(address),
            "the probe is answered beside 500 connections"
        );
        let with_few = resident() - before;
        let many = flood(4000);
        assert!(
            answers(address),
            "the probe is answered beside 4,500 connections"
        );
        let with_many = resident() - before;
        // The test's own sockets live in the kernel. Unbounded, nine times the connections take nine times the memory.
        assert!(
            with_many < 2 * with_few + (8 << 10),
            "500 connections take {with_few} KiB, 4,500 take {with_many} KiB"
        );
        assert!(
            with_many < 64 << 10,
            "4,500 connections take {with_many} KiB"
        );
        drop((few, many));
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_is_closed_after_its_lifetime() {
    let limits = Limits {
        lifetime: Duration::from_millis(300),
        ..Limits::default()
    };
    let (address, _server) = start(limits).await;
    tokio::task::spawn_blocking(move || {
        let mut silent = Socket::connect(address).unwrap();
        assert!(!closes(&mut silent, Duration::from_millis(50)));
        assert!(closes(&mut silent, Duration::from_secs(5)));
        let mut slow = half_open(address, 10);
        assert!(closes(&mut slow, Duration::from_secs(5)));
        assert!(answers(address));
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_connection_gives_way_when_all_places_are_taken() {
    let limits = Limits {
        connections: 4,
        lifetime: Duration::from_secs(60),
        displaced_after: Duration::from_millis(200),
        ..Limits::default()
    };
    let (address, _server) = start(limits).await;
    tokio::task::spawn_blocking(move || {
        let mut open: Vec<Socket> = (0..4).map(|_| half_open(address, 10)).collect();
        assert!(answers(address), "the probe gets the oldest one's place");
        assert!(closes(&mut open[0], Duration::from_secs(5)));
        for socket in &mut open[1..] {
            assert!(
                !closes(socket, Duration::from_millis(20)),
                "one place was needed, one is given up"
            );
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_without_end_is_cut_off() {
    let limits = Limits {
        lifetime: Duration::from_secs(60),
        ..Limits::default()
    };
    let (address, _server) = start(limits).await;
    tokio::task::spawn_blocking(move || {
        let mut endless = half_open(address, 200 << 10);
        let mut rest = String::new();
        endless.set_nonblocking(false).unwrap();
        endless
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let end = endless.read_to_string(&mut rest);
        let open = end
            .as_ref()
            .is_err_and(|e| matches!(e.kind(), io::ErrorKind::WouldBlock));
        assert!(!open, "still open after 5 s: {end:?} {rest:?}");
        assert!(!rest.starts_with("HTTP/1.1 200"), "{rest}");
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_connection_serves_one_request() {
    let (address, _server) = start(Limits::default()).await;
    tokio::task::spawn_blocking(move || {
        for path in ["/livez", "/readyz", "/metrics", "/nothing"] {
            let reply = probe(address, path).expect("a reply, and then the end");
            assert!(
                reply.to_ascii_lowercase().contains("connection: close"),
                "{path}: {reply}"
            );
        }
    })
    .await
    .unwrap();
}
