//! Networks, and which header a proxy names its clients in.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Deserializer};

use super::values;

/// `"10.0.0.0/8"`, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether `address` lies in it; an IPv4 address that is written as IPv6 is that IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
                masked(address.to_canonical(), self.bits) == self.address
            }
            _ => false,
        }
    }
}

/// `address` with all but its first `bits` bits cleared.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is no network: write \"10.0.0.0/8\", \"2001:db8::/32\", or one address as \"127.0.0.1\"")
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => all,
            Some(bits) if bits.bytes().all(|b| b.is_ascii_digit()) => bits.parse().map_err(|_| wrong())?,
            Some(_) => return Err(wrong()),
        };
        if bits > all {
            return Err(format!("{text:?} is no network: there are only {all} bits in such an address"));
        }
        let network = Network { address: masked(address, bits), bits };
        if network.address != address {
            return Err(format!(
                "{text:?} has bits beyond the first {bits}: is it {network}, or the one address {address}?"
            ));
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        values::text(deserializer, "a network in quotes, such as \"10.0.0.0/8\"")
    }
}

/// Where a trusted proxy says for whom it asks. One and no other: a proxy that writes one of them hands the other on as its client
/// sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientHeader {
    /// What nginx, Caddy, HAProxy and Apache write.
    #[default]
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

impl ClientHeader {
    /// The header's name, in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ClientHeader::XForwardedFor => "x-forwarded-for",
            ClientHeader::Forwarded => "forwarded",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_slips_explained() {
        for (text, inside, outside) in [
            ("127.0.0.1/32", "127.0.0.1", "127.0.0.2"),
            ("127.0.0.1", "::ffff:127.0.0.1", "::1"),
            ("10.0.0.0/8", "10.255.1.2", "11.0.0.1"),
            ("192.168.4.0/22", "192.168.7.255", "192.168.8.0"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:1::9", "2001:db9::1"),
            ("::1", "::1", "127.0.0.1"),
        ] {
            let network: Network = text.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{text} {outside}");
        }
        for (text, says) in [
            ("", "is no network"),
            ("localhost", "is no network"),
            ("10.0.0.0/", "is no network"),
            ("10.0.0.0/-1", "is no network"),
            ("10.0.0.0/33", "only 32 bits"),
            ("::/129", "only 128 bits"),
            ("10.0.0.5/8", "is it 10.0.0.0/8, or the one address 10.0.0.5?"),
        ] {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
