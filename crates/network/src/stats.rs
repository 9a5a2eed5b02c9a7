//! Interface counters.

use std::os::fd::BorrowedFd;

use crate::{NetworkError, Result, route};

/// Counters of one interface, from `struct rtnl_link_stats64`; since the interface was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// Interface name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Received packets dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets to send dropped.
    pub tx_dropped: u64,
}

/// Reads the counters of every interface but `lo`, `eth0` first, through a route socket that was opened in the pod's
/// namespace (`crisp_sys::netns::open_netlink_in`, or the one `create_pod_namespaces` returned). Nobody else may use the
/// socket meanwhile.
///
/// # Errors
/// [`NetworkError::Netlink`] when the kernel refuses.
pub fn interface_stats(netlink: BorrowedFd<'_>) -> Result<Vec<InterfaceStats>> {
    let mut found = Vec::new();
    route::each_stats(netlink, |name, stats| {
        if name != "lo" {
            found.push(parse(name, stats));
        }
    })
    .map_err(|source| NetworkError::Netlink { operation: "read interface counters".into(), source })?;
    found.sort_by_key(|stats| stats.name != crate::cni::INTERFACE);
    Ok(found)
}

/// Reads `struct rtnl_link_stats64` (`linux/if_link.h`); a counter that an old kernel lacks is 0.
fn parse(name: String, stats: &[u8]) -> InterfaceStats {
    let counter =
        |n: usize| stats.get(n * 8..n * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    InterfaceStats {
        name,
        rx_packets: counter(0),
        tx_packets: counter(1),
        rx_bytes: counter(2),
        tx_bytes: counter(3),
        rx_errors: counter(4),
        tx_errors: counter(5),
        rx_dropped: counter(6),
        tx_dropped: counter(7),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_in_the_kernels_order() {
        let bytes: Vec<u8> = (1..=8u64).flat_map(u64::to_ne_bytes).collect();
        let stats = parse("eth0".into(), &bytes);
        assert_eq!((stats.rx_packets, stats.tx_packets, stats.rx_bytes, stats.tx_bytes), (1, 2, 3, 4));
        assert_eq!((stats.rx_errors, stats.tx_errors, stats.rx_dropped, stats.tx_dropped), (5, 6, 7, 8));
        assert_eq!(parse("eth0".into(), &bytes[..8]).tx_packets, 0);
    }
}
