//! Who listens in a pod: the kernel's tables, for sockets that listened before the programs looked.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
};

use super::bypass;

/// `TCP_LISTEN` in the kernel's `tcp_states.h`.
const LISTEN: &str = "0A";

/// Where sockets of the calling thread's network namespace listen, one entry a socket. The kernel tells of them before all
/// others, so that it costs nothing how many connections there are.
pub(crate) fn sockets() -> Vec<SocketAddr> {
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    // Without IPv6 there is no tcp6.
    let tables = tables.into_iter().filter_map(|table| File::open(table).ok());
    tables
        .flat_map(|table| {
            let lines = BufReader::new(table).lines().skip(1).map_while(Result::ok);
            lines.map_while(|line| parse(&line)).collect::<Vec<_>>()
        })
        .collect()
}

/// `None` for a socket that does not listen.
fn parse(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
    if state == LISTEN { bypass::address(local) } else { None }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn listeners_are_found_while_they_listen() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let any = TcpListener::bind("0.0.0.0:0").unwrap();
        let (here, everywhere) = (one.local_addr().unwrap(), any.local_addr().unwrap());
        let found = sockets();
        assert!(found.contains(&here) && found.contains(&everywhere), "{found:?}");
        drop(one);
        assert!(!sockets().contains(&here));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernels_tables() {
        let rest = "00:00000000 00000000     0        0 1 1 0 100 0 0 10 0";
        let line = |local: &str, state: &str| {
            format!("   0: {local} 00000000:0000 {state} 00000000:00000000 {rest}")
        };
        assert_eq!(parse(&line("00000000:1F90", "0A")), "0.0.0.0:8080".parse().ok());
        let any = "00000000000000000000000000000000:1F90";
        assert_eq!(parse(&line(any, "0A")), "[::]:8080".parse().ok());
        assert_eq!(parse(&line("0100007F:1F90", "01")), None, "a connection");
        assert_eq!(parse("x"), None);
    }
}
