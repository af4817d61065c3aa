//! Addresses of endpoints, as users write them.

use std::net::{IpAddr, SocketAddr};

use super::field::{At, quoted};

/// Of an address and a port. (It lets more in than there are.)
pub(super) const PATTERN: &str = r"^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$";
/// In words.
pub(super) const ALLOWED: &str = "an address and a port, as in 192.168.1.20:8080 or [fd00::20]:8080";

/// Whether this can be no endpoint's address: unspecified, loopback, link-local, multicast, broadcast, IPv4-mapped.
pub fn is_special(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.to_ipv4_mapped().is_some()
        }
    }
}

/// Where an endpoint is.
pub(super) fn check(text: &str, at: &At<'_>) -> Option<SocketAddr> {
    let address = at.parse(text, &format!("address: {ALLOWED}"), |text| {
        text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0)
    })?;
    if is_special(address.ip()) {
        at.refuse(format!(
            "{} cannot be an endpoint's address: not allowed are unspecified, loopback, link-local, multicast, broadcast and \
             IPv4-mapped ones",
            quoted(text)
        ));
        return None;
    }
    Some(address)
}
