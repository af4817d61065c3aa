//! An address and port as the programs see it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The second half of the prefix of an IPv4-mapped address (`::ffff:0:0/96`), in network byte order.
const MAPPED: u32 = 0xffff_u32.to_be();

/// A TCP address. One form for one destination: IPv4 always stands as IPv4-mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Address {
    /// In network byte order, as the kernel keeps it.
    pub ip: [u32; 4],
    /// In host byte order.
    pub port: u16,
    /// Always 0: keys are compared byte by byte.
    pub reserved: u16,
}

impl Address {
    /// From an IPv4 address in network byte order.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the programs must not get subprograms from it")]
    pub fn v4(ip: u32, port: u16) -> Self {
        Self::v6([0, 0, MAPPED, ip], port)
    }

    /// From an IPv6 address in network byte order, which may be IPv4-mapped.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the programs must not get subprograms from it")]
    pub fn v6(ip: [u32; 4], port: u16) -> Self {
        Self { ip, port, reserved: 0 }
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the programs must not get subprograms from it")]
    pub fn is_v4(&self) -> bool {
        self.ip[0] == 0 && self.ip[1] == 0 && self.ip[2] == MAPPED
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        match address.ip() {
            IpAddr::V4(ip) => Self::v4(u32::from_ne_bytes(ip.octets()), address.port()),
            IpAddr::V6(ip) => Self::v6(words(ip), address.port()),
        }
    }
}

impl From<Address> for SocketAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        for (to, word) in octets.chunks_exact_mut(4).zip(address.ip) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        let ip = if address.is_v4() {
            IpAddr::V4(Ipv4Addr::from(address.ip[3].to_ne_bytes()))
        } else {
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        Self::new(ip, address.port)
    }
}

/// An IPv6 address as the kernel keeps it.
pub fn words(ip: Ipv6Addr) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, octets) in words.iter_mut().zip(ip.octets().chunks_exact(4)) {
        *word = u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_and_mapped_is_ipv4() {
        for text in ["10.96.7.3:8080", "[fd00::7]:443", "0.0.0.0:0", "[::1]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddr::from(Address::from(address)), address);
        }
        let plain: SocketAddr = "10.96.7.3:80".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:10.96.7.3]:80".parse().unwrap();
        assert_eq!(Address::from(mapped), Address::from(plain));
        assert_eq!(SocketAddr::from(Address::from(mapped)), plain);
    }

    #[test]
    fn ip_is_in_network_byte_order() {
        let address = Address::from("1.2.3.4:5".parse::<SocketAddr>().unwrap());
        assert_eq!(address.ip[3].to_ne_bytes(), [1, 2, 3, 4]);
        assert_eq!(address.ip[2].to_ne_bytes(), [0, 0, 0xff, 0xff]);
        assert_eq!(address.port, 5);
    }
}
