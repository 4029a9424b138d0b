//! For whom a reverse proxy asks.
//!
//! A header that anybody can send is believed from proxies that the configuration names, and of what it says only what they wrote: read
//! from the right, up to the first address that is no such proxy.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;

use crate::config::{ClientHeader, Network};

/// The proxies that are believed.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// Where they ask from.
    pub trusted: Vec<Network>,
    /// Where they write for whom.
    pub header: ClientHeader,
}

/// Proxies behind each other; more there are nowhere.
const MOST_HOPS: usize = 32;

impl Proxies {
    /// Whether `address` is one of them.
    pub(super) fn trust(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// Who asks, when the connection comes from `peer`: an address that a trusted proxy vouches for, or `peer` itself.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trust(client) {
            return client;
        }
        // Several headers are one list, in their order (RFC 9110 §5.3).
        let lines: Vec<&[u8]> = headers.get_all(self.header.name()).iter().map(|v| v.as_bytes()).collect();
        let elements = lines.iter().rev().flat_map(|line| FromRight(Some(line)));
        for element in elements.take(MOST_HOPS) {
            // What nobody can read was still written by somebody we know: that one stands for its clients.
            let Some(address) = self.address(element) else { break };
            client = address.to_canonical();
            if !self.trust(client) {
                break;
            }
        }
        client
    }

    fn address(&self, element: &[u8]) -> Option<IpAddr> {
        let element = std::str::from_utf8(element).ok()?.trim();
        match self.header {
            ClientHeader::XForwardedFor => node(element),
            ClientHeader::Forwarded => {
                let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
                let (_, value) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
                match value.strip_prefix('"') {
                    Some(quoted) => node(quoted.strip_suffix('"')?),
                    None => node(value),
                }
            }
        }
    }
}

/// `192.0.2.7`, `192.0.2.7:4711`, `2001:db8::7`, `[2001:db8::7]` or `[2001:db8::7]:4711`.
fn node(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    if let Some(bare) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return bare.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::V6);
    }
    text.parse::<SocketAddr>().ok().map(|address| address.ip())
}

/// The elements of a list, the last first. Commas within quotes are none; quotes are counted from the right as well, so that an open one
/// of a client cannot swallow what a proxy wrote after it.
struct FromRight<'a>(Option<&'a [u8]>);

impl<'a> Iterator for FromRight<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.0?;
        let mut quoted = false;
        let comma = rest.iter().rposition(|byte| {
            quoted ^= *byte == b'"';
            *byte == b',' && !quoted
        });
        let (before, element) = match comma {
            Some(at) => (rest.get(..at), rest.get(at + 1..).unwrap_or_default()),
            None => (None, rest),
        };
        self.0 = before;
        Some(element)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(header: ClientHeader) -> Proxies {
        let trusted = ["127.0.0.1/32", "10.0.0.0/8", "fd00::/8"].iter().map(|n| n.parse().unwrap()).collect();
        Proxies { trusted, header }
    }

    fn client(header: ClientHeader, peer: &str, lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header.name(), line.parse().unwrap());
        }
        proxies(header).client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_right_most_address_that_is_no_proxy_is_the_client() {
        for (peer, lines, is) in [
            // Nobody else is believed.
            ("203.0.113.9", &["198.51.100.1"][..], "203.0.113.9"),
            ("127.0.0.2", &["198.51.100.1"], "127.0.0.2"),
            // One proxy; what the client wrote itself stands to the left of it.
            ("127.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("::ffff:127.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("127.0.0.1", &["10.0.0.1, 192.0.2.66, 198.51.100.1"], "198.51.100.1"),
            ("127.0.0.1", &["192.0.2.66", "198.51.100.1"], "198.51.100.1"),
            // Several.
            ("127.0.0.1", &["198.51.100.1, 10.0.0.7"], "198.51.100.1"),
            ("127.0.0.1", &["192.0.2.66,198.51.100.1", "10.0.0.7 , fd00::1"], "198.51.100.1"),
            // All of them are proxies: the one farthest away.
            ("127.0.0.1", &["10.1.1.1, 10.0.0.7"], "10.1.1.1"),
            // Forms.
            ("127.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("127.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("127.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("127.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("127.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1"),
            // What cannot be read is not skipped: it hides whoever stands to its left.
            ("127.0.0.1", &["198.51.100.1, unknown"], "127.0.0.1"),
            ("127.0.0.1", &["198.51.100.1, "], "127.0.0.1"),
            ("127.0.0.1", &["198.51.100.1, 10.0.0.300, 10.0.0.7"], "10.0.0.7"),
            ("127.0.0.1", &["[127.0.0.1]"], "127.0.0.1"),
            ("127.0.0.1", &[""], "127.0.0.1"),
            ("127.0.0.1", &[], "127.0.0.1"),
        ] {
            assert_eq!(client(ClientHeader::XForwardedFor, peer, lines), is, "{peer} {lines:?}");
        }
        let many = vec!["10.0.0.1"; 5000].join(",");
        assert_eq!(client(ClientHeader::XForwardedFor, "127.0.0.1", &["198.51.100.1", &many]), "10.0.0.1");
    }

    #[test]
    fn rfc_7239_is_read_from_the_right_too() {
        for (lines, is) in [
            (&["for=198.51.100.1"][..], "198.51.100.1"),
            (&["For=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17"),
            (&["for=192.0.2.66, for=198.51.100.1;proto=https;by=10.0.0.1"], "198.51.100.1"),
            (&["proto=https; FOR=\"198.51.100.1:80\" , for=10.0.0.7"], "198.51.100.1"),
            (&["for=\"evil, for=192.0.2.66", "for=198.51.100.1"], "198.51.100.1"),
            (&["for=\"evil, for=198.51.100.1"], "198.51.100.1"),
            (&["for=198.51.100.1;x=\"a,b\", for=10.0.0.7"], "198.51.100.1"),
            (&["for=unknown"], "127.0.0.1"),
            (&["for=_hidden, for=10.0.0.7"], "10.0.0.7"),
            (&["for=\"198.51.100.1"], "127.0.0.1"),
            (&["198.51.100.1"], "127.0.0.1"),
        ] {
            assert_eq!(client(ClientHeader::Forwarded, "127.0.0.1", lines), is, "{lines:?}");
        }
    }

    #[test]
    fn only_the_header_that_is_configured_counts() {
        let mut headers = HeaderMap::new();
        headers.insert("forwarded", "for=192.0.2.66".parse().unwrap());
        headers.insert("x-real-ip", "192.0.2.66".parse().unwrap());
        let peer = "127.0.0.1".parse().unwrap();
        assert_eq!(proxies(ClientHeader::XForwardedFor).client(peer, &headers), peer);
    }
}
