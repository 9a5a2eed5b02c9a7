//! What a pod asks of its network, from its configuration. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use crisp_network::{Bandwidth, Dns, PortMapping, Protocol};
use crisp_proto::cri::{self, DnsConfig};

use crate::error::{Error, Result};
use crate::quantity::Quantity;

/// Annotation: bits per second into the pod, a Kubernetes quantity.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// Annotation: bits per second out of the pod.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bounds of both, bits per second: 1k to 1P.
const BANDWIDTH: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// The port mappings that publish something.
///
/// # Errors
/// [`Error::Invalid`] for a protocol, port or address that is none.
pub(super) fn port_mappings(requested: &[cri::PortMapping]) -> Result<Vec<PortMapping>> {
    requested.iter().filter(|mapping| mapping.host_port != 0).map(port_mapping).collect()
}

fn port_mapping(mapping: &cri::PortMapping) -> Result<PortMapping> {
    let wrong = |what: &str| Error::Invalid(format!("port_mappings: {what} in {mapping:?}"));
    let port = |number: i32, what: &str| match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(wrong(what)),
    };
    let protocol = match cri::Protocol::try_from(mapping.protocol) {
        Ok(cri::Protocol::Tcp) => Protocol::Tcp,
        Ok(cri::Protocol::Udp) => Protocol::Udp,
        Ok(cri::Protocol::Sctp) => Protocol::Sctp,
        Err(_unknown) => return Err(wrong("unknown protocol")),
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(text.parse::<IpAddr>().map_err(|_not_an_address| wrong("bad host_ip"))?),
    };
    Ok(PortMapping {
        protocol,
        container_port: port(mapping.container_port, "bad container_port")?,
        host_port: port(mapping.host_port, "bad host_port")?,
        host_ip,
    })
}

/// The resolver configuration, for CNI plugins that want it.
pub(super) fn dns(config: &DnsConfig) -> Dns {
    Dns {
        servers: config.servers.clone(),
        searches: config.searches.clone(),
        options: config.options.clone(),
    }
}

/// The limits in the pod's annotations; none without them.
///
/// # Errors
/// [`Error::Invalid`] for what is no quantity between 1k and 1P.
pub(super) fn bandwidth(annotations: &HashMap<String, String>) -> Result<Option<Bandwidth>> {
    let rate = |key: &str| annotations.get(key).map(|text| bits_per_second(key, text)).transpose();
    let (ingress, egress) = (rate(INGRESS)?, rate(EGRESS)?);
    let limits = Bandwidth { ingress_bits_per_second: ingress, egress_bits_per_second: egress };
    Ok((ingress.is_some() || egress.is_some()).then_some(limits))
}

fn bits_per_second(key: &str, text: &str) -> Result<u64> {
    let parsed = text.parse::<Quantity>().ok().and_then(|rate| u64::try_from(rate.units()).ok());
    parsed
        .filter(|rate| BANDWIDTH.contains(rate))
        .ok_or_else(|| Error::Invalid(format!("annotation {key} {text:?} is no quantity between 1k and 1P")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_port: i32, protocol: i32, host_ip: &str) -> cri::PortMapping {
        cri::PortMapping { protocol, container_port: 80, host_port, host_ip: host_ip.to_owned() }
    }

    #[test]
    fn a_mapping_without_a_host_port_publishes_nothing() {
        let mappings = port_mappings(&[mapping(0, 0, ""), mapping(8080, 1, "127.0.0.1")]).unwrap();
        assert_eq!(mappings.len(), 1);
        assert_eq!((mappings[0].protocol, mappings[0].host_port), (Protocol::Udp, 8080));
    }

    #[test]
    fn bad_mappings_are_refused() {
        for bad in
            [mapping(70000, 0, ""), mapping(-1, 0, ""), mapping(80, 9, ""), mapping(80, 0, "localhost")]
        {
            assert!(matches!(port_mappings(&[bad]), Err(Error::Invalid(_))));
        }
    }

    #[test]
    fn bandwidths_are_quantities_in_bounds() {
        let limits = |text: &str| bandwidth(&HashMap::from([(INGRESS.to_owned(), text.to_owned())]));
        let good = [
            ("10M", 10_000_000),
            ("1k", 1000),
            ("1.5M", 1_500_000),
            ("1Ki", 1024),
            ("1e6", 1_000_000),
            ("1P", 10u64.pow(15)),
        ];
        for (text, expected) in good {
            assert_eq!(limits(text).unwrap().unwrap().ingress_bits_per_second, Some(expected), "{text}");
        }
        assert_eq!(bandwidth(&HashMap::new()).unwrap(), None);
        for bad in ["", "1", "2P", "M", "-1k", "10 M", "999", "1E", "99999999999999999999k"] {
            assert!(limits(bad).is_err(), "{bad}");
        }
    }
}
