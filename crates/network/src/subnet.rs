//! Subnets and the addresses in them; pure.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network in prefix notation. The address is the first one, host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnet {
    base: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// `None` when `prefix` is too long for the family. Host bits of `address` are cleared.
    pub(crate) fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let bits = width(address);
        if prefix > bits {
            return None;
        }
        let host_bits = u32::from(bits - prefix);
        let base = to_number(address).checked_shr(host_bits).unwrap_or(0).checked_shl(host_bits).unwrap_or(0);
        Some(Self { base: from_number(base, address), prefix })
    }

    pub(crate) fn base(self) -> IpAddr {
        self.base
    }

    pub(crate) fn prefix(self) -> u8 {
        self.prefix
    }

    pub(crate) fn contains(self, address: IpAddr) -> bool {
        address.is_ipv6() == self.base.is_ipv6() && Self::new(address, self.prefix) == Some(self)
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        let shorter = if self.prefix < other.prefix { self } else { other };
        shorter.contains(self.base) && shorter.contains(other.base)
    }

    /// The mask in network byte order, as long as an address.
    pub(crate) fn mask(self) -> Vec<u8> {
        let ones = u128::MAX.checked_shl(u32::from(128 - self.prefix)).unwrap_or(0).to_be_bytes();
        ones[..usize::from(width(self.base) / 8)].to_vec()
    }

    /// The address that stands `offset` behind the first one; `None` outside of the subnet.
    fn nth(self, offset: u128) -> Option<IpAddr> {
        (offset < self.size()).then(|| from_number(to_number(self.base) + offset, self.base))
    }

    /// The gateway: the first address behind the network's own.
    pub(crate) fn gateway(self) -> IpAddr {
        self.nth(1).unwrap_or(self.base)
    }

    /// How many addresses there are; saturating, since nobody counts a /0 of IPv6.
    fn size(self) -> u128 {
        1u128.checked_shl(u32::from(width(self.base) - self.prefix)).unwrap_or(u128::MAX)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "not an address and a prefix length, like 10.88.0.0/16".to_owned();
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_malformed| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_malformed| wrong())?;
        let subnet = Self::new(address, prefix).ok_or_else(wrong)?;
        if subnet.base == address {
            Ok(subnet)
        } else {
            Err(format!("host bits are set; the network is {subnet}"))
        }
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// An address of the family of `like`.
fn from_number(number: u128, like: IpAddr) -> IpAddr {
    match u32::try_from(number) {
        Ok(short) if like.is_ipv4() => IpAddr::V4(Ipv4Addr::from(short)),
        _ => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// The addresses of a subnet that pods may have, and which are taken.
///
/// An address that was released is handed out again as late as possible, because peers remember whom it belonged to.
#[derive(Debug)]
pub(crate) struct Pool {
    subnet: Subnet,
    taken: HashSet<IpAddr>,
    /// Offset to look at first.
    next: u128,
}

/// The network's own address and the gateway.
const FIRST_OFFSET: u128 = 2;

impl Pool {
    pub(crate) fn new(subnet: Subnet) -> Self {
        Self { subnet, taken: HashSet::new(), next: FIRST_OFFSET }
    }

    /// One past the last offset: the broadcast address of IPv4 is not for pods.
    fn end(&self) -> u128 {
        self.subnet.size() - u128::from(self.subnet.base.is_ipv4())
    }

    /// Takes the next free address; `None` when there is none.
    pub(crate) fn take(&mut self) -> Option<IpAddr> {
        let span = self.end().checked_sub(FIRST_OFFSET).filter(|span| *span > 0)?;
        // With n taken, one of any n + 1 addresses is free.
        let tries = span.min(self.taken.len() as u128 + 1);
        let start = self.next - FIRST_OFFSET;
        let offset = (0..tries)
            .map(|i| FIRST_OFFSET + (start + i) % span)
            .find(|offset| self.subnet.nth(*offset).is_some_and(|address| !self.taken.contains(&address)))?;
        let address = self.subnet.nth(offset)?;
        self.taken.insert(address);
        self.next = FIRST_OFFSET + (offset + 1 - FIRST_OFFSET) % span;
        Some(address)
    }

    /// Marks an address that a record names, and looks behind it first from then on. One of another subnet is none of ours.
    pub(crate) fn mark(&mut self, address: IpAddr) {
        if self.subnet.contains(address) {
            self.taken.insert(address);
            let behind = to_number(address) - to_number(self.subnet.base) + 1;
            if behind < self.end() {
                self.next = self.next.max(behind);
            }
        }
    }

    pub(crate) fn release(&mut self, address: IpAddr) {
        self.taken.remove(&address);
    }

    pub(crate) fn used(&self) -> usize {
        self.taken.len()
    }

    pub(crate) fn subnet(&self) -> Subnet {
        self.subnet
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_parse_and_print() {
        for text in ["10.88.0.0/16", "0.0.0.0/0", "10.1.2.3/32", "fd00::/64", "::/0"] {
            assert_eq!(subnet(text).to_string(), text);
        }
        for text in ["10.88.0.0", "10.88.0.1/16", "10.88.0.0/33", "x/8", "fd00::1/64", "10.88.0.0/-1", ""] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn overlap_is_seen_from_both_sides() {
        let cases = [
            ("10.88.0.0/16", "10.88.4.0/24", true),
            ("10.88.0.0/16", "10.89.0.0/16", false),
            ("10.0.0.0/8", "10.88.0.0/16", true),
            ("10.88.0.0/16", "fd00::/64", false),
            ("fd00::/64", "fd00::/96", true),
            ("0.0.0.0/0", "10.88.0.0/16", true),
        ];
        for (a, b, overlap) in cases {
            assert_eq!(subnet(a).overlaps(subnet(b)), overlap, "{a} {b}");
            assert_eq!(subnet(b).overlaps(subnet(a)), overlap, "{b} {a}");
        }
    }

    #[test]
    fn masks_are_as_long_as_addresses() {
        assert_eq!(subnet("10.88.0.0/13").mask(), [255, 248, 0, 0]);
        assert_eq!(subnet("0.0.0.0/0").mask(), [0; 4]);
        assert_eq!(subnet("fd00::/64").mask(), [[255; 8], [0; 8]].concat());
    }

    #[test]
    fn a_small_pool_hands_out_all_but_network_gateway_and_broadcast() {
        let mut pool = Pool::new(subnet("10.9.0.0/29"));
        let all: Vec<String> = std::iter::from_fn(|| pool.take()).map(|a| a.to_string()).collect();
        assert_eq!(all, ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]);
        pool.release("10.9.0.4".parse().unwrap());
        assert_eq!(pool.take(), Some("10.9.0.4".parse().unwrap()));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn a_released_address_rests_while_others_are_free() {
        let mut pool = Pool::new(subnet("10.9.0.0/24"));
        let first = pool.take().unwrap();
        pool.release(first);
        assert_ne!(pool.take(), Some(first));
        let mut restarted = Pool::new(subnet("10.9.0.0/24"));
        restarted.mark("10.9.0.7".parse().unwrap());
        assert_eq!(restarted.take(), Some("10.9.0.8".parse().unwrap()));
    }

    proptest! {
        /// Against a plain set: never twice, never outside, and only empty when all are taken.
        #[test]
        fn no_address_is_handed_out_twice(steps in proptest::collection::vec(any::<Option<u8>>(), 0..200), v6 in any::<bool>()) {
            let net = subnet(if v6 { "fd00::/124" } else { "10.9.0.0/28" });
            let usable = if v6 { 14 } else { 13 };
            let mut pool = Pool::new(net);
            let mut held: Vec<IpAddr> = Vec::new();
            for step in steps {
                if let Some(n) = step.filter(|_| !held.is_empty()) {
                    pool.release(held.swap_remove(usize::from(n) % held.len()));
                } else if let Some(address) = pool.take() {
                    prop_assert!(net.contains(address) && address != net.gateway() && address != net.base());
                    prop_assert!(!held.contains(&address));
                    held.push(address);
                } else {
                    prop_assert_eq!(held.len(), usable);
                }
            }
        }
    }
}
