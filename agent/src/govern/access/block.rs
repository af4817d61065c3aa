//! A block of addresses, as in `10.0.0.0/8`.

use std::{fmt, net::IpAddr, str::FromStr};

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    network: IpAddr,
    length: u32,
}

/// Why a text is no block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    #[error("an address, a slash and a length are needed, as in 10.0.0.0/8 or fd00::/8")]
    Form,
    #[error("the length is 0 to {0}")]
    Length(u32),
    #[error("bits beyond the length are set: write {0}")]
    Bits(Block),
    #[error("an IPv4-mapped address is written as IPv4")]
    Mapped,
}

impl Block {
    /// Whether an address lies in it. One that is IPv4-mapped counts as IPv4.
    pub fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.network.is_ipv4() && (bits(address) ^ bits(self.network)) & self.mask() == 0
    }

    /// Over the bits as [`bits`] has them.
    fn mask(&self) -> u128 {
        u128::MAX.checked_shl(128 - self.length).unwrap_or(0)
    }
}

/// From the highest bit on.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl FromStr for Block {
    type Err = BlockError;

    fn from_str(text: &str) -> Result<Self, BlockError> {
        let (network, length) = text.split_once('/').ok_or(BlockError::Form)?;
        let network: IpAddr = network.parse().map_err(|_| BlockError::Form)?;
        // Digits alone: `+8` is no length.
        if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(BlockError::Form);
        }
        let longest = if network.is_ipv4() { 32 } else { 128 };
        let length =
            length.parse().ok().filter(|length| *length <= longest).ok_or(BlockError::Length(longest))?;
        if network != network.to_canonical() {
            return Err(BlockError::Mapped);
        }
        let block = Self { network, length };
        let masked = bits(network) & block.mask();
        if masked == bits(network) {
            return Ok(block);
        }
        let network = match network {
            IpAddr::V4(_) => IpAddr::V4(((masked >> 96) as u32).into()),
            IpAddr::V6(_) => IpAddr::V6(masked.into()),
        };
        Err(BlockError::Bits(Self { network, length }))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_have_what_begins_like_them() {
        for (block, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "203.0.113.9", "fd00::1"),
            ("::/0", "fd00::1", "10.0.0.1"),
            ("fd00:10::/32", "fd00:10:1::1", "fd00:11::1"),
            ("fd00::7/128", "fd00::7", "fd00::8"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "::ffff:11.0.0.1"),
        ] {
            let parsed: Block = block.parse().unwrap();
            assert_eq!(parsed.to_string(), block);
            assert!(parsed.has(inside.parse().unwrap()), "{block} {inside}");
            assert!(!parsed.has(outside.parse().unwrap()), "{block} {outside}");
        }
    }

    #[test]
    fn what_is_no_block_is_told_why() {
        for text in ["", "10.0.0.0", "10.0.0.0/", "10.0.0/8", "a/8", "10.0.0.0/+8", "10.0.0.0/-1", "/8"] {
            assert_eq!(text.parse::<Block>(), Err(BlockError::Form), "{text}");
        }
        assert_eq!("10.0.0.0/33".parse::<Block>(), Err(BlockError::Length(32)));
        assert_eq!("fd00::/129".parse::<Block>(), Err(BlockError::Length(128)));
        assert_eq!("::ffff:10.0.0.0/104".parse::<Block>(), Err(BlockError::Mapped));
        let error = "10.1.2.3/8".parse::<Block>().unwrap_err();
        assert_eq!(error.to_string(), "bits beyond the length are set: write 10.0.0.0/8");
    }

    proptest! {
        #[test]
        fn a_block_has_its_addresses_and_no_others(network: u32, length in 0_u32..=32, address: u32) {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            let network = network & mask;
            let block: Block = format!("{}/{length}", std::net::Ipv4Addr::from(network)).parse().unwrap();
            prop_assert_eq!(block.has(IpAddr::V4(address.into())), address & mask == network);
            prop_assert!(block.has(IpAddr::V4((network | (address & !mask)).into())));
        }
    }
}
