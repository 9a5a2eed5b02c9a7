//! nf_tables: the messages and expressions that host ports need; pure but for [`commit`].
//!
//! Changes come in batches that the kernel applies as one, or not at all. Integers in attributes are big endian, values in
//! registers are as they lie in a packet, or in host order where the kernel made them (`ct status`, `fib type`).
//! Registers are named by 4-byte words: 8 is the first word, a 4-byte value takes one, an IPv6 address four.
//!
//! Source: `linux/netfilter/nf_tables.h`, `linux/netfilter/nfnetlink.h`.

use std::io;
use std::os::fd::BorrowedFd;

use crate::netlink::{self, ACK, Attributes, CREATE, DUMP, Message, attribute, exchange};

const SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;
const NLM_F_APPEND: u16 = 0x800;

const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// `struct nfgenmsg`.
const FAMILY_HEADER_BYTES: usize = 4;

/// First 4-byte word of the registers.
pub(crate) const REG: u32 = 8;
const REG_VERDICT: u32 = 0;

const SET_MAP: u32 = 0x8;

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::Ipv4 => 2,
            Self::Ipv6 => 10,
        }
    }

    pub(crate) fn address_bytes(self) -> u32 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 => 16,
        }
    }

    /// Where the source address lies in the header; the destination follows it.
    fn source_offset(self) -> u32 {
        match self {
            Self::Ipv4 => 12,
            Self::Ipv6 => 8,
        }
    }
}

/// Where in the kernel a base chain hangs: `enum nf_inet_hooks`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    pub(crate) kind: &'static str,
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

pub(crate) const PREROUTING: u32 = 0;
pub(crate) const LOCAL_OUT: u32 = 3;
pub(crate) const POSTROUTING: u32 = 4;
const FORWARD: u32 = 2;

/// A table and its family; makes the messages about it.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) family: Family,
    pub(crate) name: String,
}

fn message(kind: u16, flags: u16, family: u8, attributes: &Attributes) -> Message {
    Message::new(SUBSYS_NFTABLES << 8 | kind, flags, &[family, 0, 0, 0], attributes)
}

impl Table {
    fn message(&self, kind: u16, flags: u16, attributes: &Attributes) -> Message {
        message(kind, flags, self.family.number(), attributes)
    }

    /// Makes the table, or does nothing when it exists.
    pub(crate) fn add(&self) -> Message {
        self.message(NEWTABLE, CREATE, &Attributes::new().text(1, &self.name).be32(2, 0))
    }

    /// Removes the table with all in it.
    pub(crate) fn delete(&self) -> Message {
        self.message(DELTABLE, 0, &Attributes::new().text(1, &self.name))
    }

    /// Makes a chain; with a hook it is a base chain whose policy is to accept.
    pub(crate) fn add_chain(&self, name: &str, hook: Option<Hook>) -> Message {
        let mut attributes = Attributes::new().text(1, &self.name).text(3, name);
        if let Some(hook) = hook {
            let at = Attributes::new().be32(1, hook.number).be32(2, hook.priority.cast_unsigned());
            attributes = attributes.nest(4, &at).be32(5, 1).text(7, hook.kind);
        }
        self.message(NEWCHAIN, CREATE, &attributes)
    }

    /// Appends a rule.
    pub(crate) fn add_rule(&self, chain: &str, expressions: &[Attributes]) -> Message {
        let list =
            expressions.iter().fold(Attributes::new(), |list, expression| list.nest(LIST_ELEM, expression));
        let attributes = Attributes::new().text(1, &self.name).text(2, chain).nest(4, &list);
        self.message(NEWRULE, CREATE | NLM_F_APPEND, &attributes)
    }

    /// Makes a map. `id` tells the sets of one batch apart.
    pub(crate) fn add_map(&self, id: u32, map: &MapType<'_>) -> Message {
        let attributes = Attributes::new()
            .text(1, &self.name)
            .text(2, map.name)
            .be32(3, SET_MAP)
            .be32(4, map.key_type)
            .be32(5, map.key_bytes)
            .be32(6, map.data_type)
            .be32(7, map.data_bytes)
            .be32(10, id);
        self.message(NEWSET, CREATE, &attributes)
    }

    /// Puts elements (key, value) into a map.
    pub(crate) fn add_elements(&self, map: &str, elements: &[(Vec<u8>, Vec<u8>)]) -> Message {
        let list = elements.iter().fold(Attributes::new(), |list, (key, data)| {
            let element = Attributes::new().nest(1, &value(key)).nest(2, &value(data));
            list.nest(LIST_ELEM, &element)
        });
        self.message(NEWSETELEM, CREATE, &Attributes::new().text(1, &self.name).text(2, map).nest(3, &list))
    }

    /// Takes an element out of a map.
    pub(crate) fn delete_element(&self, map: &str, key: &[u8]) -> Message {
        let list = Attributes::new().nest(LIST_ELEM, &Attributes::new().nest(1, &value(key)));
        self.message(DELSETELEM, 0, &Attributes::new().text(1, &self.name).text(2, map).nest(3, &list))
    }

    /// Is the table there?
    pub(crate) fn exists(&self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let request = self.message(GETTABLE, ACK, &Attributes::new().text(1, &self.name));
        match exchange(socket, &[request], |_, _| {}) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// The shape of a map. The type numbers are for programs that list it, the kernel looks at lengths only.
#[derive(Debug)]
pub(crate) struct MapType<'a> {
    pub(crate) name: &'a str,
    pub(crate) key_type: u32,
    pub(crate) key_bytes: u32,
    pub(crate) data_type: u32,
    pub(crate) data_bytes: u32,
}

/// Type numbers of nft(8), 6 bits each in a concatenation.
pub(crate) fn concatenation(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| all << 6 | one)
}

pub(crate) const TYPE_IPV4_ADDR: u32 = 7;
pub(crate) const TYPE_IPV6_ADDR: u32 = 8;
pub(crate) const TYPE_INET_PROTO: u32 = 12;
pub(crate) const TYPE_INET_SERVICE: u32 = 13;

fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(DATA_VALUE, bytes)
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::new().text(1, name).nest(2, data)
}

/// A field of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Field {
    SourceAddress(Family),
    DestinationAddress(Family),
    /// Of TCP, UDP and SCTP alike.
    DestinationPort,
}

/// Loads a field of the packet.
pub(crate) fn payload(field: Field, register: u32) -> Attributes {
    const NETWORK_HEADER: u32 = 1;
    const TRANSPORT_HEADER: u32 = 2;
    let (base, offset, length) = match field {
        Field::SourceAddress(f) => (NETWORK_HEADER, f.source_offset(), f.address_bytes()),
        Field::DestinationAddress(f) => {
            (NETWORK_HEADER, f.source_offset() + f.address_bytes(), f.address_bytes())
        }
        Field::DestinationPort => (TRANSPORT_HEADER, 2, 2),
    };
    expression("payload", &Attributes::new().be32(1, register).be32(2, base).be32(3, offset).be32(4, length))
}

/// What the kernel knows of a packet: `enum nft_meta_keys`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Meta {
    InInterface = 6,
    OutInterface = 7,
    L4Protocol = 16,
}

/// Loads a thing that the kernel knows of the packet.
pub(crate) fn meta(key: Meta, register: u32) -> Attributes {
    expression("meta", &Attributes::new().be32(1, register).be32(2, key as u32))
}

/// Comparisons: `enum nft_cmp_ops`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Is {
    Equal = 0,
    Different = 1,
}

/// Goes on with the rule if the register is equal to `bytes`, or different.
pub(crate) fn compare(register: u32, is: Is, bytes: &[u8]) -> Attributes {
    expression("cmp", &Attributes::new().be32(1, register).be32(2, is as u32).nest(3, &value(bytes)))
}

/// An interface name as it stands in a register.
pub(crate) fn interface_name(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    let length = name.len().min(15);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    padded
}

/// Ands the register with `mask`.
pub(crate) fn and(register: u32, mask: &[u8]) -> Attributes {
    let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    let zero = vec![0; mask.len()];
    let data = Attributes::new().be32(1, register).be32(2, register).be32(3, length);
    expression("bitwise", &data.nest(4, &value(mask)).nest(5, &value(&zero)))
}

/// Loads the state bits of the packet's connection (`enum ip_conntrack_status`), in host order.
pub(crate) fn ct_status(register: u32) -> Attributes {
    const CT_STATUS: u32 = 2;
    expression("ct", &Attributes::new().be32(1, register).be32(2, CT_STATUS))
}

/// `IPS_DST_NAT`: the connection's destination was rewritten.
pub(crate) const CT_DST_NAT: u32 = 1 << 5;

/// Loads the type of the destination address (`RTN_…`), in host order.
pub(crate) fn fib_destination_type(register: u32) -> Attributes {
    const RESULT_ADDRTYPE: u32 = 3;
    const FLAG_DADDR: u32 = 2;
    expression("fib", &Attributes::new().be32(1, register).be32(2, RESULT_ADDRTYPE).be32(3, FLAG_DADDR))
}

/// `RTN_LOCAL`: an address of this host.
pub(crate) const ADDRTYPE_LOCAL: u32 = 2;

/// Looks the key at `register` up in a map and puts the value there; leaves the rule if there is none.
pub(crate) fn lookup(map: &str, register: u32) -> Attributes {
    expression("lookup", &Attributes::new().text(1, map).be32(2, register).be32(3, register))
}

/// Rewrites the destination to the address and the port in these registers.
pub(crate) fn dnat(family: Family, address: u32, port: u32) -> Attributes {
    const DNAT: u32 = 1;
    let data = Attributes::new().be32(1, DNAT).be32(2, u32::from(family.number()));
    expression("nat", &data.be32(3, address).be32(5, port))
}

/// Gives the packet the address of the interface it leaves by.
pub(crate) fn masquerade() -> Attributes {
    expression("masq", &Attributes::new())
}

fn verdict(code: i32, chain: Option<&str>) -> Attributes {
    let mut verdict = Attributes::new().be32(1, code.cast_unsigned());
    if let Some(chain) = chain {
        verdict = verdict.text(2, chain);
    }
    let data = Attributes::new().nest(DATA_VERDICT, &verdict);
    expression("immediate", &Attributes::new().be32(1, REG_VERDICT).nest(2, &data))
}

/// Drops the packet.
pub(crate) fn drop_packet() -> Attributes {
    verdict(0, None)
}

/// Goes on in another chain of the table.
pub(crate) fn jump(chain: &str) -> Attributes {
    const JUMP: i32 = -3;
    verdict(JUMP, Some(chain))
}

/// Applies `changes` as one.
///
/// # Errors
/// The kernel's reason against the first change it refused; nothing was changed then.
pub(crate) fn commit(socket: BorrowedFd<'_>, changes: Vec<Message>) -> io::Result<()> {
    // The resource id, big endian, names the subsystem the batch is for.
    let bracket = |kind| Message::new(kind, 0, &[0, 0, 0, 10], &Attributes::new());
    let mut batch = Vec::with_capacity(changes.len() + 2);
    batch.push(bracket(BATCH_BEGIN));
    batch.extend(changes);
    // Errors are answered in any case; one answer to the last change says that the whole is in.
    if let Some(last) = batch.last_mut().filter(|m| m.kind != BATCH_BEGIN) {
        last.flags |= ACK;
    }
    batch.push(bracket(BATCH_END));
    exchange(socket, &batch, |_, _| {})
}

/// Base chains of the host that drop what they do not know on its way through, as `family table chain`. They hold
/// back the pods' traffic, whatever our own tables accept.
pub(crate) fn forward_droppers(socket: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let request = message(GETCHAIN, DUMP, 0, &Attributes::new());
    exchange(socket, &[request], |_, body| found.extend(parse_forward_dropper(body)))?;
    Ok(found)
}

fn parse_forward_dropper(body: &[u8]) -> Option<String> {
    const NFPROTO_INET: u8 = 1;
    const POLICY_DROP: u32 = 0;
    let family = match *body.first()? {
        NFPROTO_INET => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let attributes = body.get(FAMILY_HEADER_BYTES..)?;
    let be32 = |payload: &[u8]| payload.try_into().ok().map(u32::from_be_bytes);
    let hook = be32(attribute(attribute(attributes, 4)?, 1)?)?;
    let policy = be32(attribute(attributes, 5)?)?;
    let name = |kind| attribute(attributes, kind).map(netlink::text).unwrap_or_default();
    (hook == FORWARD && policy == POLICY_DROP).then(|| format!("{family} {} {}", name(1), name(3)))
}
