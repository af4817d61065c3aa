//! The pages over TCP, for scrapers: reads only.
//!
//! The socket has `SO_REUSEPORT`, so that a new agent can be started beside an old one. It is bound at once, so that an
//! address that is some other program's is an error; but it listens only when nobody else answers there. Two that
//! listened at once would get the scrapes in turns, and counters of two processes under one name look like resets.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{MAX_CONNECTIONS, Pages, Rights, accept_failed, serve_connection};

/// How often it is looked whether the other agent has ended, and how long that may take.
const LOOK: Duration = Duration::from_millis(250);

/// The admin address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("--admin {address}: cannot listen there: {source}{hint}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
    hint: &'static str,
}

/// The admin server, bound but not yet listening.
#[derive(Debug)]
pub struct Admin {
    socket: Socket,
    address: SocketAddr,
    pages: Arc<Pages>,
}

impl Admin {
    pub fn bind(address: SocketAddr, pages: Arc<Pages>) -> Result<Self, BindError> {
        match bind(address) {
            Ok((socket, address)) => Ok(Self { socket, address, pages }),
            Err(source) => Err(BindError { address, hint: hint(&source), source }),
        }
    }

    /// Where it is bound: with `:0` the kernel has chosen the port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped, as soon as nobody else does.
    pub async fn serve(self) -> Infallible {
        wait_for_turn(self.address).await;
        let listener = loop {
            match listen(&self.socket) {
                Ok(listener) => break listener,
                Err(error) => accept_failed(error).await,
            }
        };
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // The semaphore is never closed: without a place, without accepting, the kernel's queue waits.
            let place = Arc::clone(&places).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let pages = Arc::clone(&self.pages);
                    tokio::spawn(async move {
                        serve_connection(stream, pages, Rights::Read).await;
                        drop(place);
                    });
                }
                Err(error) => accept_failed(error).await,
            }
        }
    }
}

async fn wait_for_turn(address: SocketAddr) {
    let mut told = false;
    // Who hangs while its queue is full is there, too.
    while !matches!(timeout(LOOK, TcpStream::connect(reachable(address))).await, Ok(Err(_))) {
        if !told {
            tracing::info!(%address, "another agent answers at the admin address; this one will when that one has ended");
            told = true;
        }
        sleep(LOOK).await;
    }
    if told {
        tracing::info!(%address, "the other agent has ended: answering at the admin address");
    }
}

/// An address at which a listener on `address` can be reached.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn bind(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket, bound))
}

fn listen(socket: &Socket) -> io::Result<TcpListener> {
    socket.listen(128)?;
    TcpListener::from_std(socket.try_clone()?.into())
}

/// What to do about it, where that can be known.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program listens there: choose another address",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one"
        }
        _ => "",
    }
}
