use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

const FILE: &str = "/etc/crisp/config.toml";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new(FILE), text, &Overrides::default(), &|_| false)
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// The documented file with every `#key = value` line and no prose.
fn uncommented() -> String {
    let is_key =
        |line: &str| line.starts_with('#') && line.as_bytes().get(1).is_some_and(u8::is_ascii_lowercase);
    // These two need a third key to be allowed.
    let is_key = |line: &str| is_key(line) && !line.starts_with("#tls_");
    let strip = |line: &'static str| if is_key(line) { &line[1..] } else { line };
    DEFAULT_TOML.lines().map(strip).collect::<Vec<_>>().join("\n")
}

#[test]
fn documented_defaults_are_the_defaults() {
    let built_in = parse("").unwrap();
    assert_eq!(parse(DEFAULT_TOML).unwrap(), built_in, "the file as printed changes nothing");
    let mut documented = parse(&uncommented()).unwrap();
    // The keys whose default is "absent"; the file shows examples.
    assert_eq!(documented.network.ipv6_subnet.take().unwrap().to_string(), "fd00:88::/64");
    assert_eq!(documented.cni.template.take(), Some("/etc/crisp/cni.template".into()));
    assert_eq!(documented, built_in);
}

#[test]
fn every_key_is_documented() {
    let table: toml::Table = uncommented().parse().unwrap();
    for section in ["", "cni", "network", "registry", "nri", "cdi", "security", "limits"] {
        let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        let message = refusal(&format!("{header}no_such_key = 1\n"));
        let documented = if section.is_empty() { &table } else { table[section].as_table().unwrap() };
        let (_, expected) = message.split_once("expected one of").unwrap_or_else(|| message.split_at(0));
        let keys: Vec<&str> =
            expected.split('`').skip(1).step_by(2).filter(|key| *key != "no_such_key").collect();
        assert!(keys.len() >= 2, "{message}");
        for key in keys.iter().filter(|key| **key != "handlers") {
            assert!(documented.contains_key(*key), "[{section}] {key} is not in default.toml");
        }
    }
    for key in ["kind", "path", "root", "systemd_cgroup", "args"] {
        assert!(DEFAULT_TOML.contains(&format!("#   {key} = ")), "handlers.NAME.{key}");
    }
}

#[test]
fn flags_win_over_the_file_and_the_socket_follows_the_state() {
    let flags = Overrides { state: Some("/tmp/s".into()), log: Some("debug".into()), ..Overrides::default() };
    let config =
        Config::parse(Path::new(FILE), "state = \"/x\"\nlog = \"warn\"", &flags, &|_| false).unwrap();
    assert_eq!(config.state, PathBuf::from("/tmp/s"));
    assert_eq!(config.listen, PathBuf::from("/tmp/s/crisp.sock"));
    assert_eq!(config.log, "debug");
    assert_eq!(parse("").unwrap().listen, PathBuf::from(DEFAULT_SOCKET));
}

#[test]
fn values_are_read() {
    let config = parse(
        "cgroup_parent = \"/a/b/\"\n[cni]\nplugin_timeout = \"2m\"\n[network]\nenabled = false\nmtu = 9000\n\
         subnet = \"10.1.0.0/24\"\n[registry]\nconfig_path = []\nlayers_parallel = 8\n[limits]\nlog_line_bytes = 4096\n",
    )
    .unwrap();
    assert_eq!(config.cgroup_parent, "/a/b");
    assert_eq!(config.cni.plugin_timeout, Duration::from_secs(120));
    assert!(!config.network.enabled);
    assert_eq!(config.network.mtu, Some(9000));
    assert_eq!(config.network.subnet.to_string(), "10.1.0.0/24");
    assert!(config.registry.config_path.is_empty());
    assert_eq!(config.registry.layers_parallel, 8);
    assert_eq!(config.limits.log_line_bytes, 4096);
}

#[test]
fn refusals_name_file_line_and_key() {
    let table: &[(&str, &str)] = &[
        ("a = ", "/etc/crisp/config.toml:1: "),
        ("\nlisten = 3", "/etc/crisp/config.toml:2: listen: invalid type: integer `3`"),
        ("\n\nlisen = \"/x\"", "/etc/crisp/config.toml:3: lisen: unknown key `lisen`"),
        ("[cni]\nfoo = 1", "/etc/crisp/config.toml:2: cni.foo: unknown key `foo`"),
        ("root = \"var\"", "/etc/crisp/config.toml:1: root: \"var\" is not an absolute path"),
        ("root = \"/a/../b\"", ":1: root: \"/a/../b\" is not"),
        ("#\nlog = \"crisp=loud\"", ":2: log: \"crisp=loud\" is not a log level"),
        ("cgroup_parent = \"/\"", ":1: cgroup_parent: "),
        ("default_handler = \"kata\"", ":1: default_handler: no handler \"kata\"; there are crisp"),
        ("[network]\nbridge = \"a-name-too-long-0\"", ":2: network.bridge: "),
        (
            "[network]\nsubnet = \"10.88.0.1/16\"",
            ":2: network.subnet: \"10.88.0.1/16\" has host bits set; did you mean 10.88.0.0/16?",
        ),
        ("[network]\nsubnet = \"10.88.0.0\"", ":2: network.subnet: "),
        ("[network]\nsubnet = \"10.88.0.0/31\"", ":2: network.subnet: "),
        ("[network]\nipv6_subnet = \"10.88.0.0/16\"", ":2: network.ipv6_subnet: "),
        ("[streaming]\nport = 70000", ":2: streaming.port: 70000 is not from 0 to 65535"),
        ("[cdi]\n[nri] # plugins\nenabled = 1", ":3: nri.enabled: invalid type: integer `1`"),
        ("[network]\nmtu = 12", ":2: network.mtu: 12 is not from 68 to 65535"),
        ("[registry]\nlayers_parallel = 0", ":2: registry.layers_parallel: 0 is not from 1 to 32"),
        (
            "[registry]\nprogress_timeout = \"soon\"",
            ":2: registry.progress_timeout: \"soon\" is not a duration",
        ),
        ("[registry]\nprogress_timeout = \"0s\"", ":2: registry.progress_timeout: "),
        ("[registry]\nconfig_path = [\"certs.d\"]", ":2: registry.config_path: "),
        ("[handlers.x]\nkind = \"oci\"", ":1: handlers.x: no program \"x\" was found; set its `path`"),
        ("[handlers.x]\nkind = \"oci\"\npath = \"x\"", ":3: handlers.x.path: "),
        ("[handlers.crisp]\nkind = \"oci\"\npath = \"/x\"", ":1: handlers.crisp: this name is the built-in"),
        ("[handlers.y]\nkind = \"builtin\"\npath = \"/x\"", ":1: handlers.y: kind \"builtin\" takes no path"),
        ("[handlers.y]\nkind = \"shim\"", ":2: handlers.y.kind: unknown variant `shim`"),
        ("[handlers.\"a/b\"]\nkind = \"builtin\"", ":1: handlers.a/b: a name has"),
    ];
    for (text, expected) in table {
        let message = refusal(text);
        assert!(message.contains(expected), "{text:?}\n  said {message}\n  want {expected}");
    }
    let long = format!("listen = \"/{}\"", "x".repeat(107));
    assert!(refusal(&long).contains("listen: a socket's path has at most 107 bytes"));
}

#[test]
fn a_refused_flag_names_the_flag() {
    let flags = Overrides { root: Some("rel".into()), ..Overrides::default() };
    let error = Config::parse(Path::new(FILE), "", &flags, &|_| false).unwrap_err();
    assert_eq!(error.to_string(), "--root: \"rel\" is not an absolute path without \"..\"");
}

#[test]
fn programs_found_on_the_machine_become_handlers() {
    let found = |path: &Path| path == Path::new("/usr/sbin/runc");
    let parse = |text: &str| Config::parse(Path::new(FILE), text, &Overrides::default(), &found).unwrap();
    let config = parse("");
    let Handler::Oci(runc) = &config.handlers["runc"] else { panic!("runc is a program") };
    assert_eq!(runc.path, PathBuf::from("/usr/sbin/runc"));
    assert_eq!(runc.root, PathBuf::from("/run/crisp/runtimes/runc"));
    assert_eq!(config.handlers["crisp"], Handler::Builtin);
    assert!(!config.handlers.contains_key("crun"));

    let config = parse(
        "default_handler = \"runc\"\n[handlers.runc]\nkind = \"oci\"\nargs = [\"--debug\"]\nsystemd_cgroup = true",
    );
    let Handler::Oci(runc) = &config.handlers["runc"] else { panic!("runc is a program") };
    assert_eq!((runc.args.as_slice(), runc.systemd_cgroup), (&["--debug".to_owned()][..], Some(true)));
    assert_eq!(runc.path, PathBuf::from("/usr/sbin/runc"));
}

#[test]
fn a_file_that_was_named_must_exist() {
    let missing = Path::new("/nonexistent/crisp.toml");
    let error = Config::load(Some(missing), &Overrides::default()).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
    assert!(error.to_string().contains("/nonexistent/crisp.toml"));
}
