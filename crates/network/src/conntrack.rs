//! Connections that the kernel remembers.
//!
//! UDP has no end of a connection: a flow that was seen before its port was published keeps going to the host, and one to
//! a pod that is gone keeps going nowhere, as long as packets come. So such entries are removed when ports change.
//!
//! Source: `linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use crate::Protocol;
use crate::netlink::{ACK, Attributes, DUMP, Message, attribute, exchange};
use crate::ports::Published;

const SUBSYS_CTNETLINK: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
/// `struct nfgenmsg`.
const FAMILY_HEADER_BYTES: usize = 4;

/// Removes the UDP flows to published ports that lead elsewhere than `published` says (`kept`), or there (`gone`).
pub(crate) fn forget_udp(socket: BorrowedFd<'_>, published: &[Published], change: Change) -> io::Result<()> {
    for family in [2, 10] {
        let ours: Vec<_> = published
            .iter()
            .filter(|p| p.protocol == Protocol::Udp && p.pod_ip.is_ipv4() == (family == 2))
            .collect();
        if !ours.is_empty() {
            forget(socket, family, |flow| ours.iter().any(|p| change.stale(p, flow)))?;
        }
    }
    Ok(())
}

/// What happens to the ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// They lead to the pod from now on.
    Published,
    /// They lead there no more.
    Withdrawn,
}

impl Change {
    fn stale(self, port: &Published, flow: &Flow) -> bool {
        let to_port = flow.protocol == port.protocol.number()
            && flow.to_port == port.host_port
            && port.host_ip.is_none_or(|ip| ip == flow.to);
        to_port && (flow.answered_by == port.pod_ip) == (self == Self::Withdrawn)
    }
}

/// The parts of a conntrack entry that matter.
#[derive(Debug, PartialEq, Eq)]
struct Flow {
    protocol: u8,
    to: IpAddr,
    to_port: u16,
    /// Who answers: the destination after rewriting.
    answered_by: IpAddr,
}

fn forget(socket: BorrowedFd<'_>, family: u8, stale: impl Fn(&Flow) -> bool) -> io::Result<()> {
    let header = [family, 0, 0, 0];
    let mut deletions = Vec::new();
    let dump = Message::new(SUBSYS_CTNETLINK << 8 | GET, DUMP, &header, &Attributes::new());
    exchange(socket, &[dump], |_, body| {
        let entry = body.get(FAMILY_HEADER_BYTES..).unwrap_or_default();
        if parse(entry).is_some_and(|flow| stale(&flow)) {
            let same = [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE];
            let named = same.iter().filter_map(|kind| Some((*kind, attribute(entry, *kind)?)));
            let named = named.fold(Attributes::new(), |all, (kind, payload)| match kind {
                CTA_TUPLE_ORIG => all.nest_after(kind, payload, &Attributes::new()),
                _ => all.bytes(kind, payload),
            });
            deletions.push(Message::new(SUBSYS_CTNETLINK << 8 | DELETE, ACK, &header, &named));
        }
    })?;
    for deletion in deletions {
        match exchange(socket, &[deletion], |_, _| {}) {
            // It ended by itself.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

fn parse(entry: &[u8]) -> Option<Flow> {
    const CTA_TUPLE_IP: u16 = 1;
    const CTA_TUPLE_PROTO: u16 = 2;
    const CTA_IP_V4_SRC: u16 = 1;
    const CTA_IP_V4_DST: u16 = 2;
    const CTA_IP_V6_SRC: u16 = 3;
    const CTA_IP_V6_DST: u16 = 4;
    const CTA_PROTO_NUM: u16 = 1;
    const CTA_PROTO_DST_PORT: u16 = 3;
    let address = |tuple: &[u8], v4: u16, v6: u16| -> Option<IpAddr> {
        let ip = attribute(tuple, CTA_TUPLE_IP)?;
        match attribute(ip, v4) {
            Some(octets) => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
            None => Some(IpAddr::from(<[u8; 16]>::try_from(attribute(ip, v6)?).ok()?)),
        }
    };
    let (original, reply) = (attribute(entry, CTA_TUPLE_ORIG)?, attribute(entry, CTA_TUPLE_REPLY)?);
    let transport = attribute(original, CTA_TUPLE_PROTO)?;
    Some(Flow {
        protocol: *attribute(transport, CTA_PROTO_NUM)?.first()?,
        to: address(original, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        to_port: u16::from_be_bytes(attribute(transport, CTA_PROTO_DST_PORT)?.try_into().ok()?),
        answered_by: address(reply, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: [u8; 4], destination: [u8; 4], port: u16) -> Attributes {
        let ip = Attributes::new().bytes(1, &source).bytes(2, &destination);
        let transport = Attributes::new().u8(1, 17).bytes(2, &[1, 2]).bytes(3, &port.to_be_bytes());
        Attributes::new().nest(1, &ip).nest(2, &transport)
    }

    #[test]
    fn a_flow_is_stale_when_it_leads_elsewhere_or_to_a_pod_that_leaves() {
        let (client, host, pod) = ([192, 0, 2, 9], [192, 0, 2, 1], [10, 88, 0, 2]);
        let entry = |answers| {
            Attributes::new().nest(1, &tuple(client, host, 53)).nest(2, &tuple(answers, client, 4000))
        };
        let to_host = parse(entry(host).as_bytes()).unwrap();
        let to_pod = parse(entry(pod).as_bytes()).unwrap();
        assert_eq!(to_pod, Flow { protocol: 17, to: host.into(), to_port: 53, answered_by: pod.into() });
        let port = Published {
            protocol: Protocol::Udp,
            host_ip: None,
            host_port: 53,
            pod_ip: route_ip(pod),
            pod_port: 53,
        };
        assert!(Change::Published.stale(&port, &to_host) && !Change::Published.stale(&port, &to_pod));
        assert!(Change::Withdrawn.stale(&port, &to_pod) && !Change::Withdrawn.stale(&port, &to_host));
        let elsewhere = Published { host_ip: Some([192, 0, 2, 2].into()), ..port };
        assert!(!Change::Published.stale(&elsewhere, &to_host));
    }

    fn route_ip(octets: [u8; 4]) -> IpAddr {
        IpAddr::from(octets)
    }
}
