//! Loopback ports that the kernel chose and that stay ours.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

use crate::HarnessError;

/// A port that is bound but not listened on, with `SO_REUSEPORT`: the server, which shares it by the same option, can
/// bind it at any time and again after a restart, while neither a server with a port of the kernel's choice nor an
/// outgoing connection can get it.
struct Reserved {
    port: u16,
    _socket: TcpSocket,
}

impl Reserved {
    fn new() -> Result<Self, HarnessError> {
        let reserve = || {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseport(true)?;
            socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            Ok(Self {
                port: socket.local_addr()?.port(),
                _socket: socket,
            })
        };
        reserve().map_err(HarnessError::io("cannot reserve a port on 127.0.0.1"))
    }
}

/// The ports of one control plane, held until it is dropped.
pub(crate) struct Ports {
    etcd: Reserved,
    etcd_peer: Reserved,
    api_server: Reserved,
    controller_manager: Reserved,
    scheduler: Reserved,
}

impl Ports {
    pub fn reserve() -> Result<Self, HarnessError> {
        Ok(Self {
            etcd: Reserved::new()?,
            etcd_peer: Reserved::new()?,
            api_server: Reserved::new()?,
            controller_manager: Reserved::new()?,
            scheduler: Reserved::new()?,
        })
    }

    pub fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd.port)
    }

    pub fn etcd_peer(&self) -> u16 {
        self.etcd_peer.port
    }

    pub fn api_server(&self) -> u16 {
        self.api_server.port
    }

    pub fn api_server_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_server.port)
    }

    pub fn controller_manager(&self) -> u16 {
        self.controller_manager.port
    }

    pub fn scheduler(&self) -> u16 {
        self.scheduler.port
    }
}
