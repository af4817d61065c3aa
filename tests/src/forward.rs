//! A way from this machine into a node: connections to an address on loopback are carried to one in a network namespace,
//! as `kubectl port-forward` does. And one within a namespace whose other end moves, as that of a Service does.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};

use crate::NetNs;

/// Carries connections to `to`, for as long as the program runs; gives the address on loopback that leads there.
pub fn forward(netns: &Arc<NetNs>, to: SocketAddr) -> Result<SocketAddr> {
    // The port that it has there, if it is free here.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, to.port()))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .context("cannot listen on loopback")?;
    let here = listener.local_addr()?;
    let netns = Arc::clone(netns);
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            // A socket stays in the namespace that it was made in.
            if let Ok(Ok(far)) = netns.run(|| TcpStream::connect(to)) {
                thread::spawn(move || carry(&near, &far));
            }
        }
    });
    Ok(here)
}

/// An address on loopback of a network namespace that leads to where it is pointed, for as long as the program runs. Connections stay
/// where they are.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    to: Arc<Mutex<SocketAddr>>,
}

impl Relay {
    pub fn start(netns: &Arc<NetNs>, to: SocketAddr) -> Result<Self> {
        let listener = netns
            .run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?
            .context("cannot listen on loopback")?;
        let (address, to) = (listener.local_addr()?, Arc::new(Mutex::new(to)));
        let (netns, pointed) = (Arc::clone(netns), Arc::clone(&to));
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let to = *pointed.lock().unwrap_or_else(PoisonError::into_inner);
                // Where nobody answers the connection ends, which is what one through a Service would soon do.
                if let Ok(Ok(far)) = netns.run(|| TcpStream::connect(to)) {
                    thread::spawn(move || carry(&near, &far));
                }
            }
        });
        Ok(Self { address, to })
    }

    pub fn point(&self, to: SocketAddr) {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

/// Both ways, until both have ended. Whoever breaks one off ends the other.
fn carry(near: &TcpStream, far: &TcpStream) {
    let one_way = |mut from: &TcpStream, mut to: &TcpStream| {
        // How it ends is the peers' affair, and they see it.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::scope(|scope| {
        scope.spawn(|| one_way(near, far));
        one_way(far, near);
    });
}
