//! What CNI plugins print after an ADD.
//!
//! Source: CNI specification 1.1, section 5 "Result Types"; specification 0.4.0, section "Result".

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::conf::Version;
use crate::IpPreference;

/// Addresses of one pod.
const IPS_MAX: usize = 64;

/// Checks a result and brings it to `version`, so that the next plugin of the chain understands it.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn convert(result: Value, version: Version) -> Result<Value, String> {
    let Value::Object(mut result) = result else { return Err("not a JSON object".into()) };
    let given = result.get("cniVersion").and_then(Value::as_str).map(str::to_owned);
    if let Some(given) = &given
        && Version::parse(given).is_none()
    {
        return Err(format!("cniVersion {given:?} is not supported"));
    }
    match result.get_mut("ips") {
        None | Some(Value::Null) => {}
        Some(Value::Array(ips)) if ips.len() > IPS_MAX => return Err(format!("{} addresses", ips.len())),
        Some(Value::Array(ips)) => ips.iter_mut().try_for_each(|ip| convert_ip(ip, version))?,
        Some(_) => return Err("ips is not a list".into()),
    }
    if version < Version::V1_1_0 {
        drop_since_1_1(&mut result);
    }
    result.insert("cniVersion".into(), version.as_str().into());
    Ok(Value::Object(result))
}

/// What version 1.1 added, which an older plugin need not bear.
fn drop_since_1_1(result: &mut Map<String, Value>) {
    let added: [(&str, &[&str]); 2] = [
        ("interfaces", &["mtu", "socketPath", "pciID"]),
        ("routes", &["mtu", "advmss", "priority", "table", "scope"]),
    ];
    for (list, keys) in added {
        for entry in result.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Value::Object(entry) = entry {
                entry.retain(|key, _| !keys.contains(&key.as_str()));
            }
        }
    }
}

/// The results of several networks as one: interfaces, addresses and routes one after the other, name servers of the
/// first. It is in the version of the first.
pub(crate) fn merge(results: &[Value]) -> Value {
    let Some((first, more)) = results.split_first() else { return Value::Null };
    let mut merged = first.clone();
    for result in more {
        let offset = list(&merged, "interfaces").len();
        let mut ips = list(result, "ips").to_vec();
        for ip in &mut ips {
            if let Some(index) = ip.get("interface").and_then(Value::as_u64) {
                ip["interface"] = (index + offset as u64).into();
            }
        }
        append(&mut merged, "interfaces", list(result, "interfaces").to_vec());
        append(&mut merged, "ips", ips);
        append(&mut merged, "routes", list(result, "routes").to_vec());
    }
    merged
}

fn list<'a>(result: &'a Value, key: &str) -> &'a [Value] {
    result.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn append(result: &mut Value, key: &str, more: Vec<Value>) {
    let Value::Object(result) = result else { return };
    match result.get_mut(key) {
        Some(Value::Array(list)) => list.extend(more),
        _ if more.is_empty() => {}
        _ => drop(result.insert(key.to_owned(), more.into())),
    }
}

/// Until 0.4.0 an address says its own family.
fn convert_ip(ip: &mut Value, version: Version) -> Result<(), String> {
    let address = address_of(ip)?;
    let Value::Object(ip) = ip else { return Err("an address is not a JSON object".into()) };
    if version >= Version::V1_0_0 {
        ip.remove("version");
    } else {
        ip.insert("version".into(), if address.is_ipv4() { "4" } else { "6" }.into());
    }
    Ok(())
}

/// The address of an entry of `ips`, without its prefix length.
fn address_of(ip: &Value) -> Result<IpAddr, String> {
    let text = ip.get("address").and_then(Value::as_str).ok_or("an address is missing")?;
    let (address, prefix) =
        text.split_once('/').ok_or_else(|| format!("address {text:?} has no prefix length"))?;
    let address: IpAddr = address.parse().map_err(|_none| format!("address {text:?} is none"))?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    match prefix.parse::<u8>() {
        Ok(prefix) if prefix <= bits => Ok(address),
        _ => Err(format!("address {text:?} has a wrong prefix length")),
    }
}

/// The addresses of the pod's interface `name`, in the order that is preferred. One that belongs to no interface counts,
/// one of another interface, or of one on the host, does not.
///
/// # Errors
/// What is wrong with the result.
pub(crate) fn pod_ips(result: &Value, name: &str, prefer: IpPreference) -> Result<Vec<IpAddr>, String> {
    let (interfaces, mut found) = (list(result, "interfaces"), Vec::new());
    for ip in list(result, "ips") {
        if belongs(ip, interfaces, name)? {
            found.push(address_of(ip)?);
        }
    }
    match prefer {
        IpPreference::Ipv4 => found.sort_by_key(IpAddr::is_ipv6),
        IpPreference::Ipv6 => found.sort_by_key(IpAddr::is_ipv4),
        IpPreference::Result => {}
    }
    Ok(found)
}

fn belongs(ip: &Value, interfaces: &[Value], name: &str) -> Result<bool, String> {
    let Some(index) = ip.get("interface").filter(|i| !i.is_null()) else { return Ok(true) };
    let wrong = || format!("an address belongs to interface {index}, which is not listed");
    let index = index.as_u64().and_then(|i| usize::try_from(i).ok()).ok_or_else(wrong)?;
    let interface: &Map<String, Value> =
        interfaces.get(index).and_then(Value::as_object).ok_or_else(wrong)?;
    let text = |key: &str| interface.get(key).and_then(Value::as_str).unwrap_or_default();
    Ok(text("name") == name && !text("sandbox").is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn dual() -> Value {
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/ns"}, {"name": "eth1", "sandbox": "/ns"}],
            "ips": [
                {"interface": 1, "address": "fd00::5/64"},
                {"interface": 0, "address": "10.1.0.1/16"},
                {"interface": 2, "address": "10.2.0.5/16"},
                {"interface": 1, "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
                {"address": "10.1.0.6/16"},
            ],
        })
    }

    #[test]
    fn only_the_pods_own_interface_counts_and_the_preferred_family_comes_first() {
        let ips = |prefer| -> Vec<String> {
            pod_ips(&dual(), "eth0", prefer).unwrap().iter().map(ToString::to_string).collect()
        };
        assert_eq!(ips(IpPreference::Ipv4), ["10.1.0.5", "10.1.0.6", "fd00::5"]);
        assert_eq!(ips(IpPreference::Ipv6), ["fd00::5", "10.1.0.5", "10.1.0.6"]);
        assert_eq!(ips(IpPreference::Result), ["fd00::5", "10.1.0.5", "10.1.0.6"]);
    }

    #[test]
    fn results_are_converted_between_versions_and_back() {
        let old = convert(dual(), Version::V0_4_0).unwrap();
        assert_eq!((&old["cniVersion"], &old["ips"][0]["version"]), (&json!("0.4.0"), &json!("6")));
        assert_eq!(convert(old, Version::V1_0_0).unwrap(), dual());
        let bare = convert(json!({}), Version::V0_3_1).unwrap();
        assert_eq!(bare, json!({"cniVersion": "0.3.1"}));
    }

    #[test]
    fn an_older_version_gets_nothing_that_it_does_not_know() {
        let new = json!({
            "interfaces": [{"name": "eth0", "mtu": 1400, "sandbox": "/ns"}],
            "routes": [{"dst": "0.0.0.0/0", "priority": 5, "gw": "10.0.0.1"}],
        });
        assert_eq!(convert(new.clone(), Version::V1_1_0).unwrap()["interfaces"], new["interfaces"]);
        let old = convert(new, Version::V1_0_0).unwrap();
        assert_eq!(old["interfaces"], json!([{"name": "eth0", "sandbox": "/ns"}]));
        assert_eq!(old["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]));
    }

    #[test]
    fn results_of_several_networks_are_one_whose_addresses_keep_their_interface() {
        let second = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "eth1", "sandbox": "/ns"}],
            "ips": [{"interface": 0, "address": "10.3.0.7/16"}, {"address": "10.3.0.8/16"}],
            "routes": [{"dst": "10.3.0.0/16"}],
            "dns": {"domain": "second"},
        });
        let merged = merge(&[dual(), second]);
        assert_eq!(merged["ips"][5], json!({"interface": 3, "address": "10.3.0.7/16"}));
        assert_eq!((&merged["interfaces"][3]["name"], merged.get("dns")), (&json!("eth1"), None));
        assert_eq!(merged["routes"], json!([{"dst": "10.3.0.0/16"}]));
        assert_eq!((merge(&[]), merge(&[dual()])), (Value::Null, dual()));
    }

    #[test]
    fn what_is_no_result_is_refused() {
        let wrong = [
            json!([]),
            json!({"cniVersion": "0.1.0"}),
            json!({"ips": 5}),
            json!({"ips": [5]}),
            json!({"ips": [{"address": "10.0.0.1"}]}),
            json!({"ips": [{"address": "10.0.0.1/33"}]}),
            json!({"ips": [{"address": "x/8"}]}),
            json!({"ips": vec![json!({"address": "10.0.0.1/8"}); IPS_MAX + 1]}),
        ];
        for result in wrong {
            assert!(convert(result.clone(), Version::V1_0_0).is_err(), "{result}");
        }
        assert!(
            pod_ips(&json!({"ips": [{"interface": 3, "address": "10.0.0.1/8"}]}), "eth0", IpPreference::Ipv4)
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in r#"[\[\]{}",:0-9a-z./]{0,60}"#) {
            if let Ok(value) = serde_json::from_str::<Value>(&text)
                && let Ok(result) = convert(value, Version::V1_1_0)
            {
                drop(pod_ips(&result, "eth0", IpPreference::Ipv4));
            }
        }
    }
}
