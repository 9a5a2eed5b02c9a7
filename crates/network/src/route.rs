//! Interfaces, addresses and routes: the rtnetlink requests that the bridge needs.
//!
//! Source: `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h`, rtnetlink(7), veth(4).

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use crate::netlink::{
    self, ACK, Attributes, CREATE, DUMP, EXCL, Message, REPLACE, attribute, attributes, exchange, u32_at,
};
use crate::subnet::Subnet;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_FLUSH: u16 = 24;
const BR_STATE_DISABLED: u8 = 0;
const IFF_UP: u32 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

/// `struct ifinfomsg` and `struct rtmsg`.
const LINK_HEADER_BYTES: usize = 16;
const ROUTE_HEADER_BYTES: usize = 12;

/// Loopback is the first interface of every network namespace.
pub(crate) const LOOPBACK_INDEX: u32 = 1;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// Six octets, as everybody writes them.
pub(crate) fn mac_text(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// What is known of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// `bridge`, `veth`, …; empty for hardware.
    pub(crate) kind: String,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Subnet,
    /// 0: none, as for a blackhole.
    pub(crate) interface: u32,
}

fn link_header(family: u8, index: u32) -> [u8; LINK_HEADER_BYTES] {
    let mut header = [0; LINK_HEADER_BYTES];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

/// As [`link_header`]; the interface is to be up: the flag, and that it is to change.
fn link_header_up(index: u32) -> [u8; LINK_HEADER_BYTES] {
    let mut header = link_header(0, index);
    header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
    header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    header
}

/// Looks an interface up by name.
pub(crate) fn link(socket: BorrowedFd<'_>, name: &str) -> io::Result<Option<Link>> {
    get_link(socket, &link_header(0, 0), &Attributes::new().text(IFLA_IFNAME, name))
}

/// Looks an interface up by index.
pub(crate) fn link_at(socket: BorrowedFd<'_>, index: u32) -> io::Result<Option<Link>> {
    get_link(socket, &link_header(0, index), &Attributes::new())
}

fn get_link(socket: BorrowedFd<'_>, header: &[u8], wanted: &Attributes) -> io::Result<Option<Link>> {
    let mut found = None;
    let request = Message::new(RTM_GETLINK, ACK, header, wanted);
    match exchange(socket, &[request], |_, body| found = parse_link(body)) {
        Ok(()) => Ok(found),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let mut link = Link { index: u32_at(body, 4)?, ..Link::default() };
    for (kind, payload) in attributes(body.get(LINK_HEADER_BYTES..)?) {
        match kind {
            IFLA_IFNAME => link.name = netlink::text(payload),
            IFLA_LINKINFO => {
                link.kind = attribute(payload, IFLA_INFO_KIND).map(netlink::text).unwrap_or_default()
            }
            _ => {}
        }
    }
    Some(link)
}

/// Calls `each` with name and `struct rtnl_link_stats64` of every interface.
pub(crate) fn each_stats(socket: BorrowedFd<'_>, mut each: impl FnMut(String, &[u8])) -> io::Result<()> {
    let request = Message::new(RTM_GETLINK, DUMP, &link_header(0, 0), &Attributes::new());
    exchange(socket, &[request], |_, body| {
        let attributes = body.get(LINK_HEADER_BYTES..).unwrap_or_default();
        if let (Some(name), Some(stats)) =
            (attribute(attributes, IFLA_IFNAME), attribute(attributes, IFLA_STATS64))
        {
            each(netlink::text(name), stats);
        }
    })
}

/// Makes a bridge that is up.
pub(crate) fn add_bridge(socket: BorrowedFd<'_>, name: &str, mac: Mac, mtu: u32) -> io::Result<()> {
    let attributes = Attributes::new()
        .text(IFLA_IFNAME, name)
        .bytes(IFLA_ADDRESS, &mac)
        .u32(IFLA_MTU, mtu)
        .nest(IFLA_LINKINFO, &Attributes::new().text(IFLA_INFO_KIND, "bridge"));
    let request = Message::new(RTM_NEWLINK, ACK | CREATE | EXCL, &link_header_up(0), &attributes);
    exchange(socket, &[request], |_, _| {})
}

/// A veth pair: one end here, a port of a bridge; the other in a pod.
#[derive(Debug)]
pub(crate) struct VethPair<'a> {
    pub(crate) host_name: &'a str,
    /// Index of the bridge.
    pub(crate) bridge: u32,
    pub(crate) mtu: u32,
    pub(crate) pod_name: &'a str,
    pub(crate) pod_mac: Mac,
    /// The pod's network namespace.
    pub(crate) pod_netns: BorrowedFd<'a>,
}

/// Makes the pair in one send, each end where it belongs and ours up. The kernel does not let the pod's end be up before the
/// pair is complete.
///
/// The port may send back where it received: a pod that asks for its own host port is answered through the same port, when
/// the kernel takes bridged packets through its IP hooks (`br_netfilter`).
pub(crate) fn add_veth(socket: BorrowedFd<'_>, pair: &VethPair<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let peer = Attributes::new()
        .text(IFLA_IFNAME, pair.pod_name)
        .bytes(IFLA_ADDRESS, &pair.pod_mac)
        .u32(IFLA_MTU, pair.mtu)
        .bytes(IFLA_NET_NS_FD, &pair.pod_netns.as_raw_fd().to_ne_bytes());
    let data = Attributes::new().nest_after(VETH_INFO_PEER, &link_header(0, 0), &peer);
    let attributes = Attributes::new()
        .text(IFLA_IFNAME, pair.host_name)
        .u32(IFLA_MTU, pair.mtu)
        .u32(IFLA_MASTER, pair.bridge)
        .nest(IFLA_LINKINFO, &Attributes::new().text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, &data));
    let create = Message::new(RTM_NEWLINK, ACK | CREATE | EXCL, &link_header_up(0), &attributes);
    let port = Attributes::new().u8(IFLA_BRPORT_MODE, 1);
    let port = Attributes::new().text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, &port);
    let attributes = Attributes::new().text(IFLA_IFNAME, pair.host_name).nest(IFLA_LINKINFO, &port);
    let hairpin = Message::new(RTM_NEWLINK, ACK, &link_header(0, 0), &attributes);
    exchange(socket, &[create, hairpin], |_, _| {})
}

/// Removes an interface. Slow: it waits for an RCU grace period.
pub(crate) fn delete_link(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let request = Message::new(RTM_DELLINK, ACK, &link_header(0, index), &Attributes::new());
    exchange(socket, &[request], |_, _| {})
}

/// Lets nothing through a port of a bridge any more and forgets what was learnt there. Quick, unlike a deletion.
pub(crate) fn disable_port(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let port = Attributes::new().u8(IFLA_BRPORT_STATE, BR_STATE_DISABLED).bytes(IFLA_BRPORT_FLUSH, &[]);
    let attributes = Attributes::new().nest(IFLA_PROTINFO, &port);
    let request = Message::new(RTM_SETLINK, ACK, &link_header(AF_BRIDGE, index), &attributes);
    exchange(socket, &[request], |_, _| {})
}

/// Message: look at an interface, so that it carries packets when the answer is there.
///
/// A link that has just come up carries nothing until deferred work of the kernel (`linkwatch`) has run: a first packet
/// would be lost, and TCP would try again after a second. Looking at an interface runs that work at once (since Linux 6.8;
/// before, it runs some milliseconds later all the same).
pub(crate) fn settle(index: u32) -> Message {
    Message::new(RTM_GETLINK, ACK, &link_header(0, index), &Attributes::new())
}

/// As [`settle`], by name.
pub(crate) fn settle_named(name: &str) -> Message {
    Message::new(RTM_GETLINK, ACK, &link_header(0, 0), &Attributes::new().text(IFLA_IFNAME, name))
}

/// Message: bring an interface up.
pub(crate) fn up(index: u32) -> Message {
    Message::new(RTM_NEWLINK, ACK, &link_header_up(index), &Attributes::new())
}

/// Message: give an interface an address; having it already is fine. An IPv6 address is usable at once (no duplicate
/// address detection: addresses come from our own pool).
pub(crate) fn address(index: u32, address: IpAddr, prefix: u8) -> Message {
    let (family, flags) = if address.is_ipv4() { (AF_INET, 0) } else { (AF_INET6, IFA_F_NODAD) };
    let mut header = [family, prefix, flags, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let octets = octets(address);
    let attributes = Attributes::new().bytes(IFA_LOCAL, &octets).bytes(IFA_ADDRESS, &octets);
    Message::new(RTM_NEWADDR, ACK | CREATE | REPLACE, &header, &attributes)
}

/// Message: the default route of `gateway`'s family.
pub(crate) fn default_route(index: u32, gateway: IpAddr) -> Message {
    let family = if gateway.is_ipv4() { AF_INET } else { AF_INET6 };
    let header = [family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
    let attributes = Attributes::new().bytes(RTA_GATEWAY, &octets(gateway)).u32(RTA_OIF, index);
    Message::new(RTM_NEWROUTE, ACK | CREATE | EXCL, &header, &attributes)
}

/// The routes of the main table but for default routes.
pub(crate) fn routes(socket: BorrowedFd<'_>) -> io::Result<Vec<Route>> {
    let mut found = Vec::new();
    let request = Message::new(RTM_GETROUTE, DUMP, &[0; ROUTE_HEADER_BYTES], &Attributes::new());
    exchange(socket, &[request], |_, body| found.extend(parse_route(body)))?;
    Ok(found)
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let [family, prefix, _, _, table] = *body.first_chunk::<5>()?;
    let attributes = body.get(ROUTE_HEADER_BYTES..)?;
    let table = attribute(attributes, RTA_TABLE).and_then(|t| u32_at(t, 0)).unwrap_or(u32::from(table));
    let destination = match (family, attribute(attributes, RTA_DST)?) {
        (AF_INET, octets) => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
        (AF_INET6, octets) => IpAddr::from(<[u8; 16]>::try_from(octets).ok()?),
        _ => return None,
    };
    if table != u32::from(RT_TABLE_MAIN) || prefix == 0 {
        return None;
    }
    let interface = attribute(attributes, RTA_OIF).and_then(|i| u32_at(i, 0)).unwrap_or(0);
    Some(Route { destination: Subnet::new(destination, prefix)?, interface })
}

/// An address in network byte order.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn loopback_is_found_by_name_and_index_and_the_unknown_is_not() {
        let socket = netlink::open_route().unwrap();
        let by_name = link(socket.as_fd(), "lo").unwrap().unwrap();
        assert_eq!((by_name.index, by_name.name.as_str(), by_name.kind.as_str()), (LOOPBACK_INDEX, "lo", ""));
        assert_eq!(link_at(socket.as_fd(), LOOPBACK_INDEX).unwrap(), Some(by_name));
        assert_eq!(link(socket.as_fd(), "no-such-link0").unwrap(), None);
    }

    #[test]
    fn a_route_is_read_with_its_subnet_and_a_default_route_is_not() {
        let attributes = |destination: &[u8]| {
            let made = Attributes::new().bytes(RTA_DST, destination).u32(RTA_OIF, 7);
            let header = [AF_INET, 16, 0, 0, RT_TABLE_MAIN, 0, 0, 1, 0, 0, 0, 0];
            let mut body = header.to_vec();
            body.extend(netlink_bytes(&made));
            body
        };
        let route = parse_route(&attributes(&[10, 88, 0, 0])).unwrap();
        assert_eq!((route.destination.to_string().as_str(), route.interface), ("10.88.0.0/16", 7));
        let mut default = attributes(&[0; 4]);
        default[1] = 0;
        assert_eq!(parse_route(&default), None);
        assert_eq!(parse_route(&attributes(&[10, 88])), None);
        assert_eq!(parse_route(&[]), None);
    }

    fn netlink_bytes(attributes: &Attributes) -> Vec<u8> {
        attributes.as_bytes().to_vec()
    }
}
