//! The built-in network: a bridge of the host, one veth pair per pod, addresses from a pool, host ports.
//!
//! ```text
//!   pod: eth0 10.88.0.5/16, default via 10.88.0.1        host: crisp0 10.88.0.1/16
//!          └──────────── veth pair ────────── port of ──────────┘
//! ```
//! The bridge is made when it is first needed and never removed in normal work. Hardware addresses follow from IP
//! addresses, so that a peer's neighbour entry stays right when an address changes hands.
//!
//! A detach takes the host ports back, shuts the port of the bridge and frees the address. The veth pair goes away with
//! the pod's namespace: deleting it here would wait for an RCU grace period.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crisp_domain::SandboxId;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use crate::conntrack::{self, Change};
use crate::netlink::{self, Sockets, exchange};
use crate::ports::{self, Claims, Published, Rules};
use crate::record::{BridgeRecord, Record};
use crate::route::{self, Mac, VethPair};
use crate::subnet::{Pool, Subnet};
use crate::{AttachRequest, Attachment, BridgeConfig, IpPreference, NetworkError, Provider, Result};
use crate::{cni::INTERFACE, nft, tc};

/// Version of the CNI results that the bridge writes.
const RESULT_VERSION: &str = "1.0.0";
/// `IFNAMSIZ` without the terminating zero.
const INTERFACE_NAME_BYTES_MAX: usize = 15;
/// What Ethernet has carried since 1983.
const MTU_DEFAULT: u32 = 1500;
/// IPv6 asks for 1280; the kernel's loopback limit is 65536.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 1280..=65535;

/// The bridge, its addresses and its ports.
#[derive(Debug)]
pub(crate) struct Bridge {
    name: String,
    mtu: u32,
    prefer: IpPreference,
    /// One per family.
    subnets: Vec<Subnet>,
    rules: Vec<Rules>,
    /// Index of the interface once all is set up. Held while it is being set up.
    ready: Mutex<Option<u32>>,
    held: Mutex<Held>,
    route: Sockets,
    netfilter: Sockets,
}

/// What sandboxes hold.
#[derive(Debug)]
struct Held {
    pools: Vec<Pool>,
    claims: Claims,
}

/// A pod's share of the bridge, before the kernel knows of it.
#[derive(Debug)]
pub(crate) struct Reservation {
    ips: Vec<IpAddr>,
    published: Vec<Published>,
    host_interface: String,
}

impl Bridge {
    /// Checks the settings; touches nothing.
    pub(crate) fn new(config: &BridgeConfig, prefer: IpPreference) -> Result<Self> {
        let subnets = subnets(config)?;
        check_name(&config.name)?;
        let mtu = config.mtu.unwrap_or(MTU_DEFAULT);
        if !MTU_RANGE.contains(&mtu) {
            return Err(setting("mtu", mtu.to_string(), "must lie between 1280 and 65535"));
        }
        let rules = subnets.iter().map(|s| Rules::new(config, *s)).collect();
        let pools = subnets.iter().map(|s| Pool::new(*s)).collect();
        Ok(Self {
            name: config.name.clone(),
            mtu,
            prefer,
            subnets,
            rules,
            ready: Mutex::default(),
            held: Mutex::new(Held { pools, claims: Claims::default() }),
            route: Sockets::new(netlink::open_route),
            netfilter: Sockets::new(netlink::open_netfilter),
        })
    }

    /// Takes note of what a record says a sandbox holds. Before anything else is asked of the bridge.
    pub(crate) fn restore(&self, id: &SandboxId, record: &Record) {
        let mut held = self.held();
        for ip in &record.attachment.ips {
            held.pools.iter_mut().for_each(|pool| pool.mark(*ip));
        }
        match ports::publish(&record.attachment.port_mappings, &record.attachment.ips) {
            Ok(published) => held.claims.restore(id, &record.pod, &published),
            Err(error) => tracing::warn!(pod_id = %id, error, "host ports of a record cannot be restored"),
        }
    }

    /// Makes the bridge and its rules, unless that was done; cheap then.
    pub(crate) fn ensure(&self) -> Result<u32> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = *ready {
            return Ok(index);
        }
        let index = self.set_up()?;
        *ready = Some(index);
        Ok(index)
    }

    /// Looks whether the bridge and its rules are still there, and makes them again if not.
    pub(crate) fn check(&self) -> Result<()> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = *ready
            && !self.intact(index)?
        {
            tracing::warn!(
                bridge = self.name,
                "the bridge or its rules were removed by somebody; making them again"
            );
            *ready = None;
        }
        drop(ready);
        self.ensure().map(drop)
    }

    fn intact(&self, index: u32) -> Result<bool> {
        let looking = |source| self.netlink("look for the bridge", source);
        let link = self.route.with(|socket| route::link_at(socket, index)).map_err(looking)?;
        let tables = self.netfilter.with(|socket| {
            self.rules.iter().try_fold(true, |all, rules| Ok(all && rules.table().exists(socket)?))
        });
        Ok(link.is_some_and(|link| link.name == self.name) && tables.map_err(looking)?)
    }

    fn set_up(&self) -> Result<u32> {
        let index = self.set_up_link()?;
        self.set_up_sysctls()?;
        let published: Vec<_> = {
            let held = self.held();
            self.rules.iter().map(|rules| held.claims.published(rules.family())).collect()
        };
        let replace = |socket: BorrowedFd<'_>| {
            self.rules
                .iter()
                .zip(&published)
                .try_for_each(|(rules, ports)| nft::commit(socket, rules.replace(ports)))
        };
        self.netfilter.with(replace).map_err(|source| self.netlink("set up the nf_tables rules", source))?;
        let droppers = self.forward_droppers();
        if !droppers.is_empty() {
            let chains = droppers.join(", ");
            tracing::warn!(
                bridge = self.name,
                chains,
                "the host's firewall drops what pods send beyond the host"
            );
        }
        Ok(index)
    }

    fn set_up_link(&self) -> Result<u32> {
        let existing = self.link()?;
        if let Some(link) = &existing
            && link.kind != "bridge"
        {
            let reason = format!("an interface of that name exists and is no bridge ({:?})", link.kind);
            return Err(setting("bridge.name", self.name.clone(), &reason));
        }
        self.check_overlap(existing.as_ref().map(|link| link.index))?;
        let index = match existing {
            Some(link) => link.index,
            None => self.add_link()?,
        };
        let mut changes = vec![route::up(index)];
        changes.extend(self.subnets.iter().map(|s| route::address(index, s.gateway(), s.prefix())));
        self.route
            .with(|socket| exchange(socket, &changes, |_, _| {}))
            .map_err(|source| self.netlink("give the bridge its addresses", source))?;
        Ok(index)
    }

    fn link(&self) -> Result<Option<route::Link>> {
        self.route
            .with(|socket| route::link(socket, &self.name))
            .map_err(|e| self.netlink("look for the bridge", e))
    }

    fn add_link(&self) -> Result<u32> {
        // A bridge without an address of its own takes the lowest of its ports', which change.
        let mac = mac_of(self.subnets[0].gateway());
        match self.route.with(|socket| route::add_bridge(socket, &self.name, mac, self.mtu)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(self.netlink("make the bridge", e)),
            Ok(()) | Err(_) => {
                let gone = || self.netlink("make the bridge", io::ErrorKind::NotFound.into());
                self.link()?.map(|link| link.index).ok_or_else(gone)
            }
        }
    }

    /// Refuses a subnet that a route of another interface leads to: one of the two would lose its traffic.
    fn check_overlap(&self, own: Option<u32>) -> Result<()> {
        let listing = |source| self.netlink("list routes", source);
        let routes = self.route.with(route::routes).map_err(listing)?;
        let clash = |route: &&route::Route| {
            Some(route.interface) != own && self.subnets.iter().any(|s| s.overlaps(route.destination))
        };
        let Some(route) = routes.iter().find(clash) else { return Ok(()) };
        let link = self.route.with(|socket| route::link_at(socket, route.interface)).map_err(listing)?;
        let through = link.map_or_else(|| "no interface".to_owned(), |link| link.name);
        let value = self.subnets.iter().map(Subnet::to_string).collect::<Vec<_>>().join(", ");
        let reason = format!(
            "overlaps the route to {} through {through}; choose a free subnet for the bridge {}",
            route.destination, self.name
        );
        Err(setting("bridge.subnet", value, &reason))
    }

    fn set_up_sysctls(&self) -> Result<()> {
        let own = |family: &str, key: &str| format!("/proc/sys/net/{family}/conf/{}/{key}", self.name);
        write_sysctl("/proc/sys/net/ipv4/ip_forward".as_ref(), "1")?;
        // 127.0.0.1 as a host port's address; the rules guard what it would open.
        write_sysctl(own("ipv4", "route_localnet").as_ref(), "1")?;
        if self.subnets.len() > 1 {
            keep_router_advertisements()?;
            write_sysctl("/proc/sys/net/ipv6/conf/all/forwarding".as_ref(), "1")?;
        }
        Ok(())
    }

    /// Finds addresses for a pod and claims its host ports; nothing is changed in the kernel but sockets of ours.
    pub(crate) fn reserve(&self, request: &AttachRequest, pod: &str) -> Result<Reservation> {
        let mut held = self.held();
        let mut ips = Vec::with_capacity(held.pools.len());
        for pool in &mut held.pools {
            match pool.take() {
                Some(ip) => ips.push(ip),
                None => {
                    let (subnet, used) = (pool.subnet().to_string(), pool.used());
                    free(&mut held.pools, &ips);
                    return Err(NetworkError::AddressesExhausted { subnet, used });
                }
            }
        }
        if self.prefer == IpPreference::Ipv6 {
            ips.sort_by_key(IpAddr::is_ipv4);
        }
        let published = ports::publish(&request.port_mappings, &ips)
            .map_err(|reason| NetworkError::Request { sandbox_id: request.sandbox_id.clone(), reason });
        let claimed = published.and_then(|published| {
            held.claims.claim(&request.sandbox_id, pod, &published).map(|()| published)
        });
        let published = claimed.inspect_err(|_| free(&mut held.pools, &ips))?;
        drop(held);
        let host_interface = host_interface_name(&request.sandbox_id);
        Ok(Reservation { ips, published, host_interface })
    }

    /// The record of a reservation: complete from the start, since everything in it is known.
    pub(crate) fn record(&self, request: &AttachRequest, pod: String, reserved: &Reservation) -> Record {
        let port_mappings = request.port_mappings.iter().filter(|m| m.host_port != 0).cloned().collect();
        Record {
            pod,
            netns: request.netns.clone(),
            complete: true,
            attachment: Attachment {
                provider: Provider::Bridge,
                network: self.name.clone(),
                ips: reserved.ips.clone(),
                result: self.result(&request.netns, reserved),
                port_mappings,
            },
            cni: Vec::new(),
            bridge: Some(BridgeRecord { host_interface: reserved.host_interface.clone() }),
        }
    }

    fn result(&self, netns: &Path, reserved: &Reservation) -> Value {
        let addresses = reserved.ips.iter().filter_map(|ip| {
            let subnet = self.subnet_of(*ip)?;
            Some(json!({"interface": 2, "address": format!("{ip}/{}", subnet.prefix()), "gateway": subnet.gateway()}))
        });
        let routes = reserved.ips.iter().filter_map(|ip| {
            let everywhere = if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            Some(json!({"dst": everywhere, "gw": self.subnet_of(*ip)?.gateway()}))
        });
        json!({
            "cniVersion": RESULT_VERSION,
            "interfaces": [
                {"name": self.name, "mac": route::mac_text(mac_of(self.subnets[0].gateway()))},
                {"name": reserved.host_interface},
                {"name": INTERFACE, "mac": route::mac_text(pod_mac(&reserved.ips)), "sandbox": netns},
            ],
            "ips": addresses.collect::<Vec<_>>(),
            "routes": routes.collect::<Vec<_>>(),
            "dns": {},
        })
    }

    fn subnet_of(&self, ip: IpAddr) -> Option<Subnet> {
        self.subnets.iter().copied().find(|subnet| subnet.contains(ip))
    }

    /// Makes what was reserved. On an error [`Self::undo`] is due.
    pub(crate) fn connect(&self, request: &AttachRequest, reserved: &Reservation) -> Result<()> {
        self.add_veth(request, reserved)?;
        self.configure_pod(request, reserved)?;
        self.settle(request, reserved)?;
        self.publish(&reserved.published)
    }

    fn add_veth(&self, request: &AttachRequest, reserved: &Reservation) -> Result<()> {
        let netns = rustix::fs::open(&request.netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| NetworkError::File {
                operation: "open network namespace",
                path: request.netns.clone(),
                source: e.into(),
            })?;
        let add = |bridge| {
            let pair = VethPair {
                host_name: &reserved.host_interface,
                bridge,
                mtu: self.mtu,
                pod_name: INTERFACE,
                pod_mac: pod_mac(&reserved.ips),
                pod_netns: netns.as_fd(),
            };
            self.route.with(|socket| route::add_veth(socket, &pair))
        };
        let Err(first) = add(self.ensure()?) else { return Ok(()) };
        // Somebody may have removed the bridge; with a new one it may work.
        let before = self.ensure()?;
        self.check()?;
        let now = self.ensure()?;
        if now == before {
            return Err(self.netlink(&format!("make the veth pair {}", reserved.host_interface), first));
        }
        add(now).map_err(|source| {
            self.netlink(&format!("make the veth pair {}", reserved.host_interface), source)
        })
    }

    fn configure_pod(&self, request: &AttachRequest, reserved: &Reservation) -> Result<()> {
        let opened: OwnedFd;
        let socket = match &request.netlink {
            Some(given) => given.as_fd(),
            None => {
                opened = crisp_sys::netns::open_netlink_in(&request.netns).map_err(|source| {
                    NetworkError::Namespace { sandbox_id: request.sandbox_id.clone(), source }
                })?;
                opened.as_fd()
            }
        };
        let failed = |source| {
            self.netlink(&format!("configure {INTERFACE} of sandbox {}", request.sandbox_id), source)
        };
        let link = route::link(socket, INTERFACE).map_err(failed)?;
        let index = link.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?.index;
        let mut changes = vec![route::up(route::LOOPBACK_INDEX), route::up(index)];
        for ip in &reserved.ips {
            let Some(subnet) = self.subnet_of(*ip) else { continue };
            changes.push(route::address(index, *ip, subnet.prefix()));
            changes.push(route::default_route(index, subnet.gateway()));
        }
        changes.extend(
            request
                .bandwidth
                .and_then(|limit| limit.egress_bits_per_second)
                .map(|rate| tc::limit(index, rate)),
        );
        changes.push(route::settle(index));
        exchange(socket, &changes, |_, _| {}).map_err(failed)
    }

    /// First the port, then the bridge, which has carrier only through its ports.
    fn settle(&self, request: &AttachRequest, reserved: &Reservation) -> Result<()> {
        if let Some(rate) = request.bandwidth.and_then(|limit| limit.ingress_bits_per_second) {
            self.limit(&reserved.host_interface, rate)?;
        }
        let looks = [route::settle_named(&reserved.host_interface), route::settle_named(&self.name)];
        self.route
            .with(|socket| exchange(socket, &looks, |_, _| {}))
            .map_err(|source| self.netlink(&format!("bring {} up", reserved.host_interface), source))
    }

    fn limit(&self, host_interface: &str, rate: u64) -> Result<()> {
        let limited = self.route.with(|socket| match route::link(socket, host_interface)? {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(link) => exchange(socket, &[tc::limit(link.index, rate)], |_, _| {}),
        });
        limited.map_err(|source| self.netlink(&format!("limit the bandwidth of {host_interface}"), source))
    }

    fn publish(&self, published: &[Published]) -> Result<()> {
        if published.is_empty() {
            return Ok(());
        }
        let failed = |source| self.netlink("publish host ports", source);
        let changes: Vec<_> = self.rules.iter().flat_map(|rules| rules.add(published)).collect();
        self.netfilter.with(|socket| nft::commit(socket, changes)).map_err(failed)?;
        self.netfilter
            .with(|socket| conntrack::forget_udp(socket, published, Change::Published))
            .map_err(failed)
    }

    /// Takes back what a sandbox holds. What is gone already is fine.
    pub(crate) fn disconnect(&self, id: &SandboxId, record: &Record) -> Result<()> {
        let published =
            ports::publish(&record.attachment.port_mappings, &record.attachment.ips).unwrap_or_default();
        if !published.is_empty() {
            self.withdraw(&record.attachment.network, &published)?;
        }
        if let Some(bridge) = &record.bridge {
            self.shut(&bridge.host_interface)?;
        }
        // The address is free from here on, so nothing above may be left out.
        let mut held = self.held();
        free(&mut held.pools, &record.attachment.ips);
        held.claims.release(id);
        Ok(())
    }

    fn withdraw(&self, bridge: &str, published: &[Published]) -> Result<()> {
        let failed = |source| self.netlink("withdraw host ports", source);
        // They are in the present table, which holds all of ours, and in the one they were made in.
        let mut rules = self.rules.clone();
        if bridge != self.name {
            rules.extend(self.rules.iter().map(|rules| rules.of_bridge(bridge)));
        }
        self.netfilter.with(|socket| ports::remove_all(socket, &rules, published)).map_err(failed)?;
        self.netfilter
            .with(|socket| conntrack::forget_udp(socket, published, Change::Withdrawn))
            .map_err(failed)
    }

    /// Whether a pod's end on the host is there, and the bridge and its rules.
    pub(crate) fn check_pod(&self, id: &SandboxId, record: &Record) -> Result<()> {
        self.check()?;
        let Some(bridge) = &record.bridge else { return Ok(()) };
        let looking =
            |source| self.netlink(&format!("look for {} of sandbox {id}", bridge.host_interface), source);
        let link = self.route.with(|socket| route::link(socket, &bridge.host_interface)).map_err(looking)?;
        link.map(drop).ok_or_else(|| looking(io::ErrorKind::NotFound.into()))
    }

    /// Lets nothing through the host's end any more. It may be gone with its namespace, now or any moment.
    fn shut(&self, host_interface: &str) -> Result<()> {
        let done = self.route.with(|socket| match route::link(socket, host_interface)? {
            None => Ok(()),
            Some(link) => route::disable_port(socket, link.index),
        });
        match done {
            Err(e) if !gone(&e) => Err(self.netlink(&format!("shut {host_interface}"), e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// After a failed [`Self::connect`]: as [`Self::disconnect`], and the veth pair is removed, because the caller may
    /// try again in the same namespace.
    pub(crate) fn undo(&self, id: &SandboxId, record: &Record) -> Result<()> {
        if let Some(bridge) = &record.bridge {
            let removed = self.route.with(|socket| match route::link(socket, &bridge.host_interface)? {
                None => Ok(()),
                Some(link) => route::delete_link(socket, link.index),
            });
            match removed {
                Err(e) if !gone(&e) => {
                    return Err(self.netlink(&format!("remove {}", bridge.host_interface), e));
                }
                Ok(()) | Err(_) => {}
            }
        }
        self.disconnect(id, record)
    }

    /// Gives back a reservation that never became a record.
    pub(crate) fn cancel(&self, id: &SandboxId, reserved: &Reservation) {
        let mut held = self.held();
        free(&mut held.pools, &reserved.ips);
        held.claims.release(id);
    }

    /// Removes bridge and tables, whatever is connected.
    pub(crate) fn teardown(&self) -> Result<()> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        *ready = None;
        if let Some(link) = self.link()? {
            self.route
                .with(|socket| route::delete_link(socket, link.index))
                .map_err(|source| self.netlink("remove the bridge", source))?;
        }
        let changes = self.rules.iter().flat_map(|r| [r.table().add(), r.table().delete()]).collect();
        self.netfilter
            .with(|socket| nft::commit(socket, changes))
            .map_err(|source| self.netlink("remove the nf_tables rules", source))
    }

    /// For people: settings, use, and what on this host stands in the way of traffic.
    pub(crate) fn describe(&self) -> Value {
        let used: usize = self.held().pools.iter().map(Pool::used).sum();
        json!({
            "name": self.name,
            "subnets": self.subnets.iter().map(Subnet::to_string).collect::<Vec<_>>(),
            "addressesInUse": used,
            "mtu": self.mtu,
            "tables": self.rules.iter().map(|r| r.table().name.clone()).collect::<Vec<_>>(),
            "forwardDroppedBy": self.forward_droppers(),
        })
    }

    /// Only to tell people: an error is as none.
    fn forward_droppers(&self) -> Vec<String> {
        self.netfilter.with(nft::forward_droppers).unwrap_or_default()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn netlink(&self, operation: &str, source: io::Error) -> NetworkError {
        NetworkError::Netlink { operation: format!("{operation} ({})", self.name), source }
    }
}

fn gone(error: &io::Error) -> bool {
    let gone = [rustix::io::Errno::NODEV, rustix::io::Errno::NOENT, rustix::io::Errno::OPNOTSUPP];
    // OPNOTSUPP: no port of a bridge any more, since the namespace is being taken apart.
    gone.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn free(pools: &mut [Pool], ips: &[IpAddr]) {
    for pool in pools {
        ips.iter().for_each(|ip| pool.release(*ip));
    }
}

fn setting(setting: &'static str, value: String, reason: &str) -> NetworkError {
    NetworkError::Config { setting, value, reason: reason.to_owned() }
}

fn subnets(config: &BridgeConfig) -> Result<Vec<Subnet>> {
    let parse = |name, text: &str, v4: bool, range: std::ops::RangeInclusive<u8>| {
        let subnet: Subnet =
            text.parse().map_err(|reason: String| setting(name, text.to_owned(), &reason))?;
        if subnet.base().is_ipv4() != v4 {
            return Err(setting(name, text.to_owned(), "wrong address family"));
        }
        if !range.contains(&subnet.prefix()) {
            let reason = format!("the prefix length must lie between {} and {}", range.start(), range.end());
            return Err(setting(name, text.to_owned(), &reason));
        }
        Ok(subnet)
    };
    let mut all = vec![parse("bridge.subnet", &config.subnet, true, 8..=30)?];
    if let Some(v6) = &config.ipv6_subnet {
        all.push(parse("bridge.ipv6_subnet", v6, false, 64..=126)?);
    }
    Ok(all)
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let sound = !name.is_empty()
        && name.len() <= INTERFACE_NAME_BYTES_MAX
        && name.bytes().all(allowed)
        && !matches!(name, "." | ".." | "all" | "default" | "lo");
    if sound {
        Ok(())
    } else {
        Err(setting("bridge.name", name.to_owned(), "must be 1 to 15 of a-z, A-Z, 0-9, '-', '_', '.'"))
    }
}

/// A locally administered hardware address that follows from an IP address.
fn mac_of(ip: IpAddr) -> Mac {
    let octets = route::octets(ip);
    let [a, b, c, d] = *octets.last_chunk::<4>().unwrap_or(&[0; 4]);
    [0x0e, 0xc5, a, b, c, d]
}

/// Of the pod's IPv4 address, whatever family is preferred.
fn pod_mac(ips: &[IpAddr]) -> Mac {
    ips.iter().find(|ip| ip.is_ipv4()).or(ips.first()).map_or([0x0e, 0xc5, 0, 0, 0, 0], |ip| mac_of(*ip))
}

/// A name that is new each time: the interface of an earlier attempt may still be on its way out.
fn host_interface_name(id: &SandboxId) -> String {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    // Another daemon's run counted from elsewhere.
    static NEXT: LazyLock<AtomicU32> =
        LazyLock::new(|| AtomicU32::new(std::process::id().wrapping_mul(0x9e5)));
    let n = NEXT.fetch_add(1, Ordering::Relaxed) & 0xffff;
    format!("v{}{n:04x}", &id.as_str()[..10])
}

/// A host that forwards IPv6 no longer listens to router advertisements, and so loses its own default route, unless it is
/// told to do both (`accept_ra` 2).
fn keep_router_advertisements() -> Result<()> {
    let dir = Path::new("/proc/sys/net/ipv6/conf");
    let listing = |source| NetworkError::File { operation: "list", path: dir.to_owned(), source };
    for entry in std::fs::read_dir(dir).map_err(listing)? {
        let path = entry.map_err(listing)?.path().join("accept_ra");
        // `all` is nobody's setting; an interface that is gone by now needs none.
        let listens = std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1");
        if listens && !path.starts_with(dir.join("all")) {
            write_sysctl(&path, "2")?;
        }
    }
    Ok(())
}

/// Writes a sysctl unless it has the value already, so that a read-only `/proc/sys` does no harm where all is set.
fn write_sysctl(path: &Path, value: &'static str) -> Result<()> {
    let is = std::fs::read_to_string(path);
    if is.as_deref().is_ok_and(|is| is.trim() == value) {
        return Ok(());
    }
    let failed = |source| NetworkError::Sysctl { path: path.to_owned(), value, source };
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(failed)
}
