//! An address at which nobody listens.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A port of loopback that refuses connections, as long as this process lives.
///
/// Bound, and given to nobody else therefore: a listener of another test would get what is sent to a port that is free.
pub fn nobody() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there are descriptors left");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("loopback can be bound");
    let address = socket.local_addr().expect("it is bound").as_socket().expect("an IPv4 address");
    std::mem::forget(socket);
    address
}

#[cfg(test)]
mod tests {
    use std::{
        io::ErrorKind,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn it_refuses_and_nobody_else_gets_it() {
        let address = nobody();
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(TcpListener::bind(address).unwrap_err().kind(), ErrorKind::AddrInUse);
    }
}
