//! What came too early: connections to governed services that a pod made before it was enrolled. They stay as they are;
//! only new connects are captured. A pooled one may live for ever, so it is looked after which of them are still open.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// `ESTABLISHED` and `SYN_SENT` in the kernel's `tcp_states.h`.
const OPEN: [&str; 2] = ["01", "02"];

/// An open connection, by its two ends. One that is redirected has another peer, so nothing else is ever the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Connection {
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// By which a process's descriptor names its socket.
    pub(crate) inode: u64,
}

/// The open connections of the calling thread's network namespace that go to addresses which are wanted.
pub(crate) fn open(wanted: impl Fn(&Connection) -> bool) -> Vec<Connection> {
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .into_iter()
        // Without IPv6 there is no tcp6.
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().skip(1).filter_map(parse).collect::<Vec<_>>())
        .filter(wanted)
        .collect()
}

/// `  0: 0100007F:1F90 0307600A:1F91 01 0:0 00:0 0 0 0 4711 ...`: slot, local, remote, state, and the inode of the socket.
fn parse(line: &str) -> Option<Connection> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, peer, state) = (fields.next()?, fields.next()?, fields.next()?);
    if !OPEN.contains(&state) {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Connection { local: address(local)?, peer: address(peer)?, inode })
}

/// An address of the kernel's tables.
pub(crate) fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    // Addresses are words in network byte order, printed as numbers of this machine.
    let word = |index: usize| u32::from_str_radix(ip.get(index * 8..index * 8 + 8)?, 16).ok();
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?.to_ne_bytes()).into(),
        32 => {
            let mut octets = [0; 16];
            for (index, to) in octets.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&word(index)?.to_ne_bytes());
            }
            Ipv6Addr::from(octets).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernels_tables() {
        let peer = |line: &str| parse(line).map(|open| open.peer.to_string());
        let rest = "00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        assert_eq!(
            peer(&format!("   0: 0B00000A:9C40 0307600A:1F90 01 {rest}")).as_deref(),
            Some("10.96.7.3:8080")
        );
        assert_eq!(
            peer(&format!(
                "   0: 00000000000000000000000001000000:9C40 000000FD000000000000000007000000:01BB 02 {rest}"
            ))
            .as_deref(),
            Some("[fd00::7]:443")
        );
        assert_eq!(parse(&format!("0: 0B00000A:9C40 0307600A:1F90 01 {rest}")).unwrap().inode, 4711);
        let mapped = format!(
            "   0: 0000000000000000FFFF00000B00000A:9C40 0000000000000000FFFF00000307600A:1F90 01 {rest}"
        );
        assert_eq!(peer(&mapped).as_deref(), Some("10.96.7.3:8080"), "IPv4-mapped is IPv4");
        assert_eq!(peer(&format!("   0: 0100007F:1F90 00000000:0000 0A {rest}")), None, "a listener");
        for broken in
            ["", "sl local rem st", "0: 0100007F:1F90 0307600A 01", "0: x 03:1 01", "0: x é00007F1:1 01"]
        {
            assert_eq!(peer(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn open_connections_are_found_while_they_are_open() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let there = || open(|connection| connection.peer == address);
        assert_eq!(there(), []);
        let connections = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
        let _accepted = [listener.accept().unwrap(), listener.accept().unwrap()];
        let found = there();
        let mut locals = connections.each_ref().map(|stream| stream.local_addr().unwrap());
        locals.sort();
        let mut seen: Vec<_> = found.iter().map(|connection| connection.local).collect();
        seen.sort();
        assert_eq!(seen, locals);
        let [first, second] = connections;
        // With a reset, so that nothing is left of it.
        socket2::SockRef::from(&first).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(first);
        let still = open(|connection| found.contains(connection));
        let [still] = &still[..] else { panic!("{still:?}") };
        assert_eq!(still.local, second.local_addr().unwrap());
    }
}
