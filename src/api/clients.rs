//! Clients by their address: how much each may have at the same moment, and how often.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{config::Rate, lifecycle::locks::locked};

/// What counts as one client: an IPv4 address, or the /64 that a host with IPv6 has all to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Client(IpAddr);

impl Client {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => Client(IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64))),
            v4 => Client(v4),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, if self.0.is_ipv6() { "/64" } else { "" })
    }
}

/// A stock of which no client may have more than its share. It remembers those who have something, and nobody else.
#[derive(Debug)]
pub(super) struct Shares {
    most: usize,
    held: Mutex<HashMap<Client, usize>>,
}

/// What one client has of a stock; it goes back when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    client: Client,
    units: usize,
}

impl Shares {
    /// A stock of which each client may have `most`.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Shares { most, held: Mutex::default() })
    }

    /// `units` for `client`, if it may have them.
    pub(super) fn take(self: &Arc<Self>, client: Client, units: usize) -> Option<Share> {
        let mut share = Share { shares: self.clone(), client, units: 0 };
        share.more(units).then_some(share)
    }
}

impl Share {
    /// Takes `units` more; `false` when that is more than the client may have.
    pub(super) fn more(&mut self, units: usize) -> bool {
        let mut held = locked(&self.shares.held);
        let has = held.get(&self.client).copied().unwrap_or(0);
        if units > self.shares.most.saturating_sub(has) {
            return false;
        }
        held.insert(self.client, has + units);
        self.units += units;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = locked(&self.shares.held);
        if let Some(has) = held.get_mut(&self.client) {
            *has = has.saturating_sub(self.units);
            if *has == 0 {
                held.remove(&self.client);
            }
        }
    }
}

/// Clients whose rates are remembered; beyond them those who have not come for the longest time are forgotten.
const REMEMBERED: usize = 16_384;

/// How often each client may do something: a bucket for each, full at first, which fills again in one period.
#[derive(Debug)]
pub(super) struct Rates {
    rate: Rate,
    half: usize,
    table: Mutex<Table>,
}

/// Two generations: when the young one is full, the old one is forgotten and the young one is old.
#[derive(Debug, Default)]
struct Table {
    young: HashMap<Client, u64>,
    old: HashMap<Client, u64>,
}

impl Rates {
    pub(super) fn new(rate: Rate) -> Self {
        Rates { rate, half: REMEMBERED / 2, table: Mutex::default() }
    }

    /// Counts one for `client`, or says how long it has to wait. What has to wait is not counted. `now` is of a clock that never goes back.
    pub(super) fn take(&self, client: Client, now: Duration) -> Result<(), Duration> {
        let Some((count, period)) = self.rate.limit() else { return Ok(()) };
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX / 4);
        let (now, period) = (micros(now), micros(period));
        let each = (period / u64::from(count)).max(1);
        let mut table = locked(&self.table);
        // The moment at which the bucket is full again (the generic cell rate algorithm, ITU-T I.371).
        let full_at = table.young.get(&client).or_else(|| table.old.get(&client)).copied().unwrap_or(0).max(now);
        let then = full_at + each;
        let (full_at, answer) = match then.saturating_sub(now + period) {
            0 => (then, Ok(())),
            wait => (full_at, Err(Duration::from_micros(wait))),
        };
        table.old.remove(&client);
        if table.young.len() >= self.half && !table.young.contains_key(&client) {
            table.old = std::mem::take(&mut table.young);
        }
        table.young.insert(client, full_at);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Client {
        Client::of(text.parse().unwrap())
    }

    #[test]
    fn a_client_is_an_address_or_a_network_of_its_own() {
        assert_eq!(client("192.0.2.7"), client("::ffff:192.0.2.7"));
        assert_ne!(client("192.0.2.7"), client("192.0.2.8"));
        assert_eq!(client("2001:db8:0:1::5"), client("2001:db8:0:1:9::6"));
        assert_ne!(client("2001:db8:0:1::5"), client("2001:db8:0:2::5"));
        assert_eq!(client("2001:db8:0:1::5").to_string(), "2001:db8:0:1::/64");
    }

    #[test]
    fn nobody_has_more_than_a_share_and_nobody_is_remembered_for_nothing() {
        let shares = Shares::new(3);
        let mut first = shares.take(client("192.0.2.1"), 2).unwrap();
        assert!(shares.take(client("192.0.2.1"), 2).is_none());
        assert!(first.more(1) && !first.more(1));
        let other = shares.take(client("192.0.2.2"), 3).unwrap();
        drop(first);
        assert_eq!(locked(&shares.held).len(), 1);
        assert!(shares.take(client("192.0.2.1"), 3).is_some());
        drop(other);
        assert!(locked(&shares.held).is_empty());
        assert!(shares.take(client("192.0.2.1"), usize::MAX).is_none());
    }

    #[test]
    fn a_bucket_holds_one_period_and_fills_in_one() {
        let rates = Rates::new("10/s".parse().unwrap());
        let (one, two) = (client("192.0.2.1"), client("192.0.2.2"));
        let at = Duration::from_millis;
        for n in 0..10 {
            assert_eq!(rates.take(one, at(5_000)), Ok(()), "{n}");
        }
        assert_eq!(rates.take(one, at(5_000)), Err(at(100)));
        assert_eq!(rates.take(one, at(5_040)), Err(at(60)), "what waits is not counted");
        assert_eq!(rates.take(two, at(5_040)), Ok(()), "another client's bucket is full");
        assert_eq!(rates.take(one, at(5_100)), Ok(()));
        assert_eq!(rates.take(one, at(5_100)), Err(at(100)));
        let after = (0..20).filter(|_| rates.take(one, at(60_000)).is_ok()).count();
        assert_eq!(after, 10, "never more than one period's");
        let free = Rates::new(Rate::NONE);
        assert!((0..1000).all(|_| free.take(one, at(0)).is_ok()));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_those_who_stayed_away_longest() {
        let rates = Rates::new("1/h".parse().unwrap());
        let busy = client("192.0.2.1");
        let now = Duration::from_secs(10_000);
        rates.take(busy, now).unwrap();
        for n in 0..100_000u32 {
            assert_eq!(rates.take(Client(IpAddr::V4((0x0a00_0000 + n).into())), now), Ok(()));
            if n % 4_000 == 0 {
                assert!(rates.take(busy, now).is_err(), "one who comes again and again is remembered");
            }
        }
        let table = locked(&rates.table);
        assert!(table.young.len() + table.old.len() <= REMEMBERED, "{} {}", table.young.len(), table.old.len());
    }
}
