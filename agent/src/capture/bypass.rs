//! Counts what came too early: connections to governed services that a pod made before it was enrolled. They stay as
//! they are; only new connects are captured.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// `ESTABLISHED` and `SYN_SENT` in the kernel's `tcp_states.h`.
const OPEN: [&str; 2] = ["01", "02"];

/// How many of the open connections of the calling thread's network namespace go to addresses that are governed.
pub(crate) fn count(governed: impl Fn(SocketAddr) -> bool) -> u64 {
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .into_iter()
        // Without IPv6 there is no tcp6.
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().skip(1).filter_map(open_peer).collect::<Vec<_>>())
        .filter(|peer| governed(*peer))
        .count() as u64
}

/// `  0: 0100007F:1F90 0307600A:1F91 01 ...`: slot, local, remote, state.
fn open_peer(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(2);
    let (peer, state) = (fields.next()?, fields.next()?);
    if !OPEN.contains(&state) {
        return None;
    }
    let (ip, port) = peer.split_once(':')?;
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
        let peer = |line: &str| open_peer(line).map(|peer| peer.to_string());
        let rest = "00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0";
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
    fn open_connections_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(count(|peer| peer == address), 0);
        let _connections = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
        assert_eq!(count(|peer| peer == address), 2);
    }
}
