//! Host ports: who holds which, and the nf_tables rules that lead them to pods.
//!
//! One table per bridge and family, named after the bridge, so that daemons run side by side:
//! ```text
//! table ip crisp-<bridge>
//!   map ports_any { protocol . port           : pod address . pod port }   all addresses of the host
//!   map ports_ip  { address . protocol . port : pod address . pod port }   one address of the host
//!   chain ports        dnat to ports_ip, then to ports_any
//!   chain prerouting   (nat)  to an address of this host → ports            from outside, and from pods
//!   chain output       (nat)  to an address of this host → ports            from the host itself, 127.0.0.1 included
//!   chain postrouting  (nat)  pods → elsewhere: masquerade
//!                             to the bridge, rewritten, from loopback or from the subnet: masquerade
//!   chain guard        (raw)  from the bridge, loopback addresses: drop
//! ```
//! - The last masquerade makes answers come back through the host when both ends are pods of one bridge, or the same pod.
//! - `route_localnet` on the bridge, which 127.0.0.1 needs, would open the host's loopback services to pods; `guard`
//!   shuts that. Answers to 127.0.0.1 still carry the gateway's address when they pass it. IPv6 has no such switch, so
//!   `[::1]:port` does not lead to a pod.
//! - A pod's ports are map elements: adding and removing them never touches a rule, whatever the number of pods.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use crisp_domain::SandboxId;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

use crate::netlink::{Attributes, Message};
use crate::nft::{self, Family, Field, Hook, Is, MapType, Meta, REG, Table};
use crate::subnet::Subnet;
use crate::{BridgeConfig, NetworkError, PortMapping, Protocol, Result, route};

const MAP_ANY: &str = "ports_any";
const MAP_IP: &str = "ports_ip";
/// An attribute holds 64 KiB; an element takes at most 72 bytes.
const ELEMENTS_PER_MESSAGE: usize = 500;
/// Host ports of one sandbox.
pub(crate) const PORT_MAPPINGS_MAX: usize = 1024;

/// `NF_IP_PRI_RAW`, `NF_IP_PRI_NAT_DST` and `NF_IP_PRI_NAT_SRC` of `linux/netfilter_ipv4.h`.
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DNAT: i32 = -100;
const PRIORITY_SNAT: i32 = 100;

/// A port of the host, in one family, that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Published {
    pub(crate) protocol: Protocol,
    /// `None`: all addresses of the host.
    pub(crate) host_ip: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) pod_ip: IpAddr,
    pub(crate) pod_port: u16,
}

impl Published {
    pub(crate) fn family(&self) -> Family {
        if self.pod_ip.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// The map it belongs to, its key and its value there. Parts of a concatenation are padded to 4 bytes.
    fn element(&self) -> (&'static str, Vec<u8>, Vec<u8>) {
        let [high, low] = self.host_port.to_be_bytes();
        let mut key = self.host_ip.map(route::octets).unwrap_or_default();
        key.extend_from_slice(&[self.protocol.number(), 0, 0, 0, high, low, 0, 0]);
        let [high, low] = self.pod_port.to_be_bytes();
        let mut value = route::octets(self.pod_ip);
        value.extend_from_slice(&[high, low, 0, 0]);
        (if self.host_ip.is_some() { MAP_IP } else { MAP_ANY }, key, value)
    }

    fn excludes(&self, other: &Self) -> bool {
        let address = self.host_ip.is_none() || other.host_ip.is_none() || self.host_ip == other.host_ip;
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && self.pod_ip.is_ipv4() == other.pod_ip.is_ipv4()
            && address
    }

    fn host_address(&self) -> SocketAddr {
        let any = if self.pod_ip.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        SocketAddr::new(self.host_ip.unwrap_or(any), self.host_port)
    }
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.host_address(), self.protocol.as_str())
    }
}

/// The first mapping of `wanted` that cannot be beside one of `held`.
pub(crate) fn clash<'a>(wanted: &'a [PortMapping], held: &[PortMapping]) -> Option<&'a PortMapping> {
    let any = |mapping: &PortMapping| mapping.host_ip.is_none_or(|ip| ip.is_unspecified());
    let same_family = |a: &PortMapping, b: &PortMapping| match (a.host_ip, b.host_ip) {
        (Some(a), Some(b)) => a.is_ipv4() == b.is_ipv4(),
        _ => true,
    };
    let excludes = |a: &PortMapping, b: &PortMapping| {
        a.host_port != 0
            && (a.protocol, a.host_port) == (b.protocol, b.host_port)
            && same_family(a, b)
            && (any(a) || any(b) || a.host_ip == b.host_ip)
    };
    wanted.iter().find(|mapping| held.iter().any(|other| excludes(mapping, other)))
}

/// `address:port/protocol`; `*` is every address.
pub(crate) fn mapping_text(mapping: &PortMapping) -> String {
    let protocol = mapping.protocol.as_str();
    match mapping.host_ip {
        Some(ip) => format!("{}/{protocol}", SocketAddr::new(ip, mapping.host_port)),
        None => format!("*:{}/{protocol}", mapping.host_port),
    }
}

/// What a sandbox's mappings mean for a pod with these addresses; a mapping for all addresses becomes one per family.
///
/// # Errors
/// The reason why a mapping cannot be.
pub(crate) fn publish(
    mappings: &[PortMapping],
    pod_ips: &[IpAddr],
) -> std::result::Result<Vec<Published>, String> {
    if mappings.len() > PORT_MAPPINGS_MAX {
        return Err(format!("{} port mappings; at most {PORT_MAPPINGS_MAX} are possible", mappings.len()));
    }
    let mut all = Vec::new();
    for mapping in mappings.iter().filter(|m| m.host_port != 0) {
        if mapping.container_port == 0 {
            return Err(format!("host port {} leads to container port 0", mapping.host_port));
        }
        let wanted = |ip: &&IpAddr| mapping.host_ip.is_none_or(|host| host.is_ipv4() == ip.is_ipv4());
        let before = all.len();
        all.extend(pod_ips.iter().filter(wanted).map(|pod_ip| Published {
            protocol: mapping.protocol,
            host_ip: mapping.host_ip.filter(|ip| !ip.is_unspecified()),
            host_port: mapping.host_port,
            pod_ip: *pod_ip,
            pod_port: mapping.container_port,
        }));
        if all.len() == before {
            let family = if mapping.host_ip.is_some_and(|ip| ip.is_ipv6()) { "IPv6" } else { "IPv4" };
            return Err(format!(
                "host port {} is for {family}, which the pod does not have",
                mapping.host_port
            ));
        }
    }
    dedup(all)
}

/// Equal mappings are one; two that differ and exclude each other are an error.
fn dedup(all: Vec<Published>) -> std::result::Result<Vec<Published>, String> {
    let mut kept: Vec<Published> = Vec::with_capacity(all.len());
    for one in all {
        match kept.iter().find(|other| one.excludes(other)) {
            None => kept.push(one),
            Some(other) if *other == one => {}
            Some(other) => return Err(format!("host port {one} is wanted twice: {other} leads elsewhere")),
        }
    }
    Ok(kept)
}

/// Which sandbox holds which host port.
///
/// Each port is also bound by a socket of ours that never listens: processes of the host, and other daemons, then cannot
/// take it, and we see when they have it.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    by_port: HashMap<(Protocol, u16), Vec<Claim>>,
}

#[derive(Debug)]
struct Claim {
    published: Published,
    owner: SandboxId,
    pod: String,
    _bound: Option<OwnedFd>,
}

impl Claims {
    /// Claims all of `published` for a sandbox, or nothing.
    ///
    /// # Errors
    /// [`NetworkError::PortTaken`], [`NetworkError::Request`] for an address that this host does not have.
    pub(crate) fn claim(&mut self, owner: &SandboxId, pod: &str, published: &[Published]) -> Result<()> {
        for one in published {
            self.claim_one(owner, pod, *one).inspect_err(|_| self.release(owner))?;
        }
        Ok(())
    }

    fn claim_one(&mut self, owner: &SandboxId, pod: &str, published: Published) -> Result<()> {
        let same_port = self.by_port.entry((published.protocol, published.host_port)).or_default();
        if let Some(other) = same_port.iter().find(|c| c.published.excludes(&published)) {
            let holder = format!("sandbox {} (pod {})", other.owner, other.pod);
            return Err(NetworkError::PortTaken { port: published.to_string(), holder });
        }
        let bound = match bind(&published) {
            Ok(bound) => bound,
            Err(Errno::ADDRINUSE) => {
                let holder = "a process on this host, or another daemon".to_owned();
                return Err(NetworkError::PortTaken { port: published.to_string(), holder });
            }
            Err(e) => {
                let reason = format!("host port {published} cannot be had: {e}");
                return Err(NetworkError::Request { sandbox_id: owner.clone(), reason });
            }
        };
        same_port.push(Claim { published, owner: owner.clone(), pod: pod.to_owned(), _bound: bound });
        Ok(())
    }

    /// Claims what a record says was claimed before; that a port can no longer be bound is only told.
    pub(crate) fn restore(&mut self, owner: &SandboxId, pod: &str, published: &[Published]) {
        for one in published {
            let bound = bind(one).unwrap_or_else(|error| {
                tracing::warn!(pod_id = %owner, port = %one, %error, "a published host port cannot be reserved");
                None
            });
            let claim = Claim { published: *one, owner: owner.clone(), pod: pod.to_owned(), _bound: bound };
            self.by_port.entry((one.protocol, one.host_port)).or_default().push(claim);
        }
    }

    /// Gives up all that a sandbox holds.
    pub(crate) fn release(&mut self, owner: &SandboxId) {
        self.by_port.retain(|_, claims| {
            claims.retain(|claim| claim.owner != *owner);
            !claims.is_empty()
        });
    }

    /// All published ports of one family.
    pub(crate) fn published(&self, family: Family) -> Vec<Published> {
        self.by_port.values().flatten().map(|c| c.published).filter(|p| p.family() == family).collect()
    }
}

/// Binds the port; `None` where the kernel does not have the protocol or the family.
///
/// Without `SO_REUSEADDR`: two sockets that do not listen could otherwise both have the port.
fn bind(published: &Published) -> std::result::Result<Option<OwnedFd>, Errno> {
    let family = if published.pod_ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, protocol) = match published.protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let socket = match rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol)) {
        Err(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::SOCKTNOSUPPORT) => return Ok(None),
        socket => socket?,
    };
    if family == AddressFamily::INET6 {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if published.protocol == Protocol::Udp {
        // What reaches this socket past the rules is never read: keep next to nothing of it.
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 0)?;
    }
    rustix::net::bind(&socket, &published.host_address())?;
    Ok(Some(socket))
}

/// The rules of one bridge in one family.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    table: Table,
    bridge: String,
    subnet: Subnet,
    masquerade: bool,
}

impl Rules {
    pub(crate) fn new(config: &BridgeConfig, subnet: Subnet) -> Self {
        let family = if subnet.base().is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        Self {
            table: Table { family, name: table_name(&config.name) },
            bridge: config.name.clone(),
            subnet,
            masquerade: config.masquerade,
        }
    }

    /// The rules that a daemon with another bridge name made: the name is a setting.
    pub(crate) fn of_bridge(&self, name: &str) -> Self {
        let table = Table { family: self.table.family, name: table_name(name) };
        Self { table, bridge: name.to_owned(), ..*self }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn family(&self) -> Family {
        self.table.family
    }

    /// Changes that make the table what it should be, with these ports in it, whatever it was. Connections live on.
    pub(crate) fn replace(&self, published: &[Published]) -> Vec<Message> {
        let table = &self.table;
        // Added first, so that the removal never fails.
        let mut changes = vec![table.add(), table.delete(), table.add()];
        changes.extend(self.maps());
        let hook = |kind, number, priority| Some(Hook { kind, number, priority });
        changes.extend([
            table.add_chain("ports", None),
            table.add_chain("prerouting", hook("nat", nft::PREROUTING, PRIORITY_DNAT)),
            table.add_chain("output", hook("nat", nft::LOCAL_OUT, PRIORITY_DNAT)),
            table.add_chain("postrouting", hook("nat", nft::POSTROUTING, PRIORITY_SNAT)),
        ]);
        changes.extend(self.port_rules());
        changes.extend(self.masquerade_rules());
        if self.family() == Family::Ipv4 {
            changes.push(table.add_chain("guard", hook("filter", nft::PREROUTING, PRIORITY_RAW)));
            changes.extend(self.guard_rules());
        }
        changes.extend(self.add(published));
        changes
    }

    /// Changes that publish ports.
    pub(crate) fn add(&self, published: &[Published]) -> Vec<Message> {
        let mut changes = Vec::new();
        for map in [MAP_ANY, MAP_IP] {
            let ours = published.iter().filter(|p| p.family() == self.family()).map(Published::element);
            let elements: Vec<_> =
                ours.filter(|(m, _, _)| *m == map).map(|(_, key, value)| (key, value)).collect();
            changes
                .extend(elements.chunks(ELEMENTS_PER_MESSAGE).map(|some| self.table.add_elements(map, some)));
        }
        changes
    }

    /// The change that takes a port back.
    pub(crate) fn remove(&self, published: &Published) -> Message {
        let (map, key, _) = published.element();
        self.table.delete_element(map, &key)
    }

    fn maps(&self) -> [Message; 2] {
        let bytes = self.family().address_bytes();
        let address = if bytes == 4 { nft::TYPE_IPV4_ADDR } else { nft::TYPE_IPV6_ADDR };
        let any = MapType {
            name: MAP_ANY,
            key_type: nft::concatenation(&[nft::TYPE_INET_PROTO, nft::TYPE_INET_SERVICE]),
            key_bytes: 8,
            data_type: nft::concatenation(&[address, nft::TYPE_INET_SERVICE]),
            data_bytes: bytes + 4,
        };
        let ip = MapType {
            name: MAP_IP,
            key_type: nft::concatenation(&[address, nft::TYPE_INET_PROTO, nft::TYPE_INET_SERVICE]),
            key_bytes: bytes + 8,
            ..any
        };
        [self.table.add_map(1, &any), self.table.add_map(2, &ip)]
    }

    fn port_rules(&self) -> [Message; 4] {
        let family = self.family();
        let words = family.address_bytes() / 4;
        let to_pod = nft::dnat(family, REG, REG + words);
        let to_ip = [
            nft::payload(Field::DestinationAddress(family), REG),
            nft::meta(Meta::L4Protocol, REG + words),
            nft::payload(Field::DestinationPort, REG + words + 1),
            nft::lookup(MAP_IP, REG),
            to_pod.clone(),
        ];
        let to_any = [
            nft::meta(Meta::L4Protocol, REG),
            nft::payload(Field::DestinationPort, REG + 1),
            nft::lookup(MAP_ANY, REG),
            to_pod,
        ];
        let local = [
            nft::fib_destination_type(REG),
            nft::compare(REG, Is::Equal, &nft::ADDRTYPE_LOCAL.to_ne_bytes()),
            nft::jump("ports"),
        ];
        [
            self.table.add_rule("ports", &to_ip),
            self.table.add_rule("ports", &to_any),
            self.table.add_rule("prerouting", &local),
            self.table.add_rule("output", &local),
        ]
    }

    fn masquerade_rules(&self) -> Vec<Message> {
        let family = self.family();
        let mut rules = Vec::new();
        if self.masquerade {
            let mut outward = self.address_in(Field::SourceAddress(family), self.subnet, Is::Equal).to_vec();
            outward.extend(self.address_in(Field::DestinationAddress(family), self.subnet, Is::Different));
            outward.extend(self.interface(Meta::OutInterface, Is::Different));
            outward.push(nft::masquerade());
            rules.push(outward);
        }
        let loopback = Subnet::new(IpAddr::from([127, 0, 0, 0]), 8).filter(|_| family == Family::Ipv4);
        for source in loopback.into_iter().chain([self.subnet]) {
            let mut back = self.interface(Meta::OutInterface, Is::Equal).to_vec();
            back.extend([
                nft::ct_status(REG),
                nft::and(REG, &nft::CT_DST_NAT.to_ne_bytes()),
                nft::compare(REG, Is::Different, &[0; 4]),
            ]);
            back.extend(self.address_in(Field::SourceAddress(family), source, Is::Equal));
            back.push(nft::masquerade());
            rules.push(back);
        }
        rules.iter().map(|rule| self.table.add_rule("postrouting", rule)).collect()
    }

    fn guard_rules(&self) -> Vec<Message> {
        let Some(loopback) = Subnet::new(IpAddr::from([127, 0, 0, 0]), 8) else { return Vec::new() };
        let fields = [Field::DestinationAddress(Family::Ipv4), Field::SourceAddress(Family::Ipv4)];
        fields
            .into_iter()
            .map(|field| {
                let mut rule = self.interface(Meta::InInterface, Is::Equal).to_vec();
                rule.extend(self.address_in(field, loopback, Is::Equal));
                rule.push(nft::drop_packet());
                self.table.add_rule("guard", &rule)
            })
            .collect()
    }

    fn address_in(&self, field: Field, subnet: Subnet, inside: Is) -> [Attributes; 3] {
        let base = route::octets(subnet.base());
        [nft::payload(field, REG), nft::and(REG, &subnet.mask()), nft::compare(REG, inside, &base)]
    }

    fn interface(&self, which: Meta, is: Is) -> [Attributes; 2] {
        [nft::meta(which, REG), nft::compare(REG, is, &nft::interface_name(&self.bridge))]
    }
}

fn table_name(bridge: &str) -> String {
    format!("crisp-{bridge}")
}

/// Removes ports that may be gone already.
pub(crate) fn remove_all(
    socket: std::os::fd::BorrowedFd<'_>,
    rules: &[Rules],
    published: &[Published],
) -> io::Result<()> {
    for rules in rules {
        let ours: Vec<_> = published.iter().filter(|p| p.family() == rules.family()).collect();
        if ours.is_empty() {
            continue;
        }
        let at_once = nft::commit(socket, ours.iter().map(|p| rules.remove(p)).collect());
        if !at_once.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            at_once?;
            continue;
        }
        for one in ours {
            match nft::commit(socket, vec![rules.remove(one)]) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn mapping(host_port: u16, host_ip: Option<&str>) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port, host_ip }
    }

    /// The addresses of a pod with one family or two.
    fn pod(families: usize) -> Vec<IpAddr> {
        let all = ["10.88.0.2", "fd00::2"].map(|ip| ip.parse().unwrap());
        all[..families].to_vec()
    }

    #[test]
    fn mappings_become_one_published_port_per_family() {
        let cases = [
            (mapping(0, None), 2, 0),
            (mapping(8080, None), 1, 1),
            (mapping(8080, None), 2, 2),
            (mapping(8080, Some("0.0.0.0")), 2, 1),
            (mapping(8080, Some("::")), 2, 1),
            (mapping(8080, Some("192.0.2.1")), 2, 1),
        ];
        for (mapping, families, count) in cases {
            assert_eq!(
                publish(std::slice::from_ref(&mapping), &pod(families)).unwrap().len(),
                count,
                "{mapping:?}"
            );
        }
        assert!(publish(&[mapping(8080, Some("::"))], &pod(1)).unwrap_err().contains("IPv6"));
    }

    #[test]
    fn equal_mappings_are_one_and_contradictions_are_refused() {
        assert_eq!(
            publish(&[mapping(8080, None), mapping(8080, Some("0.0.0.0"))], &pod(1)).unwrap().len(),
            1
        );
        let other = PortMapping { container_port: 81, ..mapping(8080, Some("192.0.2.1")) };
        assert!(publish(&[mapping(8080, None), other], &pod(1)).unwrap_err().contains("twice"));
        assert!(publish(&vec![mapping(1, None); PORT_MAPPINGS_MAX + 1], &pod(1)).is_err());
    }

    #[test]
    fn mappings_clash_when_one_packet_could_go_to_both() {
        let held = [mapping(8080, Some("192.0.2.1")), mapping(9090, None), mapping(0, None)];
        let cases = [
            (mapping(8080, None), true),
            (mapping(8080, Some("0.0.0.0")), true),
            (mapping(8080, Some("192.0.2.1")), true),
            (mapping(8080, Some("192.0.2.2")), false),
            (mapping(8080, Some("::")), false),
            (mapping(9090, Some("fd00::1")), true),
            (mapping(0, None), false),
            (PortMapping { protocol: Protocol::Udp, ..mapping(9090, None) }, false),
        ];
        for (wanted, expected) in cases {
            assert_eq!(clash(std::slice::from_ref(&wanted), &held).is_some(), expected, "{wanted:?}");
        }
        assert_eq!(mapping_text(&mapping(80, Some("fd00::1"))), "[fd00::1]:80/tcp");
    }

    #[test]
    fn an_element_is_padded_as_the_kernel_compares_it() {
        let published = publish(&[mapping(8080, Some("1.2.3.4"))], &pod(1)).unwrap();
        let (map, key, value) = published[0].element();
        assert_eq!(map, MAP_IP);
        assert_eq!(key, [1, 2, 3, 4, 6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(value, [10, 88, 0, 2, 0, 80, 0, 0]);
    }

    /// Claims a port that nobody holds any more. A program that another test is just starting has copies of all our sockets
    /// until it runs.
    fn claim_released(claims: &mut Claims, owner: &SandboxId, pod: &str, published: &[Published]) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(error) = claims.claim(owner, pod, published) {
            let said = error.to_string();
            assert!(said.contains("a process on this host") && Instant::now() < deadline, "{said}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_held_port_names_its_holder_and_is_free_after_release() {
        // An address of loopback that is this process's own: nobody else takes a port of it.
        let [_, high, middle, low] = std::process::id().to_be_bytes();
        let address = format!("127.{}.{middle}.{low}", 64 | high);
        let taken = std::net::TcpListener::bind((address.as_str(), 0)).unwrap();
        let free = {
            let probe = std::net::TcpListener::bind((address.as_str(), 0)).unwrap();
            probe.local_addr().unwrap().port()
        };
        let on_loopback = |port| publish(&[mapping(port, Some(&address))], &pod(1)).unwrap();
        let (a, b) = (SandboxId::random().unwrap(), SandboxId::random().unwrap());
        let mut claims = Claims::default();
        claim_released(&mut claims, &a, "default/a", &on_loopback(free));
        let refused = claims.claim(&b, "default/b", &on_loopback(free)).unwrap_err();
        assert!(refused.to_string().contains("default/a"), "{refused}");
        assert_eq!(refused.kind(), crisp_domain::ErrorKind::Exists);
        claims.release(&a);
        claim_released(&mut claims, &b, "default/b", &on_loopback(free));

        let refused =
            claims.claim(&a, "default/a", &on_loopback(taken.local_addr().unwrap().port())).unwrap_err();
        assert!(refused.to_string().contains("a process on this host"), "{refused}");
    }
}
