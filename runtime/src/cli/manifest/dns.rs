//! The pod's resolver.

use crisp_proto::cri;

use super::types::{DnsConfig, DnsPolicy, Spec};

/// What the machine's `/etc/resolv.conf` says (resolv.conf(5)).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HostDns {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl HostDns {
    pub(super) fn parse(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let keyword = words.next();
            let words = words.map(str::to_owned);
            match keyword {
                Some("nameserver") => dns.servers.extend(words.take(1)),
                // The last line of this kind counts.
                Some("search" | "domain") => dns.searches = words.collect(),
                Some("options") => dns.options.extend(words),
                _ => {}
            }
        }
        dns
    }
}

/// `None` lets the daemon copy the machine's file. A cluster's resolver does not exist here, so ClusterFirst is as Default.
pub(super) fn dns_config(spec: &Spec, host: &HostDns) -> Option<cri::DnsConfig> {
    let wanted = spec.dns_config.clone().unwrap_or_default();
    match (spec.dns_policy, &spec.dns_config) {
        (Some(DnsPolicy::None), _) => Some(merge(&HostDns::default(), &wanted)),
        (_, None) => None,
        (_, Some(config)) => Some(merge(host, config)),
    }
}

fn merge(host: &HostDns, config: &DnsConfig) -> cri::DnsConfig {
    let option = |option: &super::types::DnsOption| match &option.value {
        Some(value) => format!("{}:{value}", option.name),
        None => option.name.clone(),
    };
    let name = |option: &String| option.split(':').next().unwrap_or_default().to_owned();
    let options: Vec<String> = config.options.iter().map(option).collect();
    let kept = host.options.iter().filter(|old| !options.iter().any(|new| name(new) == name(old)));
    cri::DnsConfig {
        servers: unique(host.servers.iter().chain(&config.nameservers)),
        searches: unique(host.searches.iter().chain(&config.searches)),
        options: kept.chain(&options).cloned().collect(),
    }
}

fn unique<'a>(items: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for item in items {
        if !seen.contains(item) {
            seen.push(item.clone());
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_file_and_the_manifest_are_joined() {
        let host = HostDns::parse(
            "# comment\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch old\nsearch a b\noptions ndots:1 rotate\n",
        );
        assert_eq!(host.searches, ["a", "b"]);
        let config = DnsConfig {
            nameservers: vec!["192.0.2.2".into(), "192.0.2.3".into()],
            searches: vec!["c".into()],
            options: vec![super::super::types::DnsOption { name: "ndots".into(), value: Some("5".into()) }],
        };
        let merged = merge(&host, &config);
        assert_eq!(merged.servers, ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        assert_eq!(merged.searches, ["a", "b", "c"]);
        assert_eq!(merged.options, ["rotate", "ndots:5"]);
    }
}
