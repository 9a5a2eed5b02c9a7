//! CNI chains: the reference plugins against the real kernel, and scripted ones for what goes wrong.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(clippy::print_stdout, reason = "what was measured, and what was not run")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crisp_domain::{ErrorKind, SandboxId};
use crisp_network::{AttachRequest, Network, NetworkConfig, NetworkError, Protocol, Provider};
use support::{PATIENCE, Pod, ask_tcp, ask_tcp_within, attach, chain, config, on_private_host, sh};

/// A configuration of the reference plugins with all their state below `dir`.
fn put_reference_chain(dir: &Path, version: &str) {
    let state = dir.join("ipam");
    let list = serde_json::json!({
        "cniVersion": version,
        "name": "reference",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": state,
                    "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    put_config(dir, "10-reference.conflist", &list.to_string());
}

fn put_config(dir: &Path, name: &str, text: &str) {
    std::fs::create_dir_all(dir.join("net.d")).unwrap();
    std::fs::write(dir.join("net.d").join(name), text).unwrap();
}

/// A plugin that notes each call in `<dir>/calls` and then runs `script`.
fn put_plugin(dir: &Path, name: &str, script: &str) {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let request = format!("{}/request-{name}-$CNI_COMMAND", dir.display());
    let text = format!(
        "#!/bin/sh\ncat > {request}\necho \"{name} $CNI_COMMAND netns=${{CNI_NETNS:+set}}\" >> {}/calls\n{script}\n",
        dir.display()
    );
    std::fs::write(bin.join(name), text).unwrap();
    std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Prints a result with one address.
const RESULT: &str =
    r#"if [ $CNI_COMMAND = ADD ]; then echo '{"cniVersion":"1.0.0","ips":[{"address":"10.5.0.2/24"}]}'; fi"#;

fn calls(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("calls")).unwrap_or_default();
    std::fs::write(dir.join("calls"), "").unwrap();
    text.lines().map(str::to_owned).collect()
}

fn request_of(dir: &Path, call: &str) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join(format!("request-{call}"))).unwrap()).unwrap()
}

fn two_plugins(dir: &Path, version: &str) {
    let list = format!(
        r#"{{"cniVersion":"{version}","name":"n","plugins":[{{"type":"first"}},{{"type":"second","capabilities":{{"portMappings":true}}}}]}}"#
    );
    put_config(dir, "10-n.conflist", &list);
}

/// A request that needs no namespace of its own: scripted plugins do not enter it, but loopback is brought up in it.
fn own_namespace(dir: &Path) -> AttachRequest {
    let pinned = dir.join("own-netns");
    if !pinned.exists() {
        std::fs::write(&pinned, "").unwrap();
        sh(&format!("mount --bind /proc/self/ns/net {}", pinned.display()));
    }
    AttachRequest::new(SandboxId::random().unwrap(), pinned)
}

fn records(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("network/attachments")).unwrap().count()
}

fn addresses_of_host_local(dir: &Path) -> usize {
    let held = std::fs::read_dir(dir.join("ipam/reference")).map(Iterator::count).unwrap_or(0);
    // `lock` and `last_reserved_ip.0` stay.
    held.saturating_sub(2)
}

#[test]
fn the_reference_plugins_connect_and_disconnect_pods() {
    on_private_host("the_reference_plugins_connect_and_disconnect_pods", |dir| {
        if !Path::new("/usr/lib/cni/bridge").exists() {
            println!("the reference plugins are not installed: not run");
            return;
        }
        sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        put_reference_chain(dir, "1.0.0");
        let network = Network::open(config(dir)).unwrap();
        network.status().unwrap();
        let (mut web, other) = (Pod::new(dir, "web"), Pod::new(dir, "other"));
        web.publish(Protocol::Tcp, 12000, 80, None);
        let ip = attach(&network, &web);
        attach(&network, &other);
        assert_eq!(ip.to_string(), "10.77.0.2");
        let attachment = network.attachment(&web.id).unwrap();
        assert_eq!((attachment.provider, attachment.network.as_str()), (Provider::Cni, "reference"));
        web.serve_tcp(80);
        assert_eq!(other.within(|| ask_tcp("10.77.0.2:80")).unwrap(), "10.77.0.3");
        ask_tcp("127.0.0.1:12000").unwrap();
        assert_eq!(addresses_of_host_local(dir), 2);

        // The configuration is gone, the daemon was restarted, and one namespace as well.
        std::fs::remove_dir_all(dir.join("net.d")).unwrap();
        drop(network);
        let network = Network::open(config(dir)).unwrap();
        let mut other = other;
        other.end();
        network.detach(&web.id, Some(&web.netns)).unwrap();
        network.detach(&other.id, Some(&other.netns)).unwrap();
        network.detach(&other.id, None).unwrap();
        assert_eq!((addresses_of_host_local(dir), records(dir)), (0, 0));
        assert!(ask_tcp_within("127.0.0.1:12000", Duration::from_millis(700)).is_err());
    });
}

#[test]
fn every_version_of_the_specification_is_spoken() {
    on_private_host("every_version_of_the_specification_is_spoken", |dir| {
        if !Path::new("/usr/lib/cni/bridge").exists() {
            println!("the reference plugins are not installed: not run");
            return;
        }
        let network = Network::open(config(dir)).unwrap();
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            put_reference_chain(dir, version);
            let pod = Pod::new(dir, "web");
            attach(&network, &pod);
            let attachment = network.attachment(&pod.id).unwrap();
            assert_eq!(attachment.result["cniVersion"], version);
            network.detach(&pod.id, None).unwrap();
            assert_eq!((addresses_of_host_local(dir), records(dir)), (0, 0), "{version}");
        }
    });
}

#[test]
fn a_chain_is_run_in_order_and_taken_apart_backwards_with_what_it_was_made_with() {
    on_private_host("a_chain_is_run_in_order_and_taken_apart_backwards_with_what_it_was_made_with", |dir| {
        put_plugin(dir, "first", RESULT);
        put_plugin(dir, "second", &RESULT.replace("\"ips\"", "\"dns\":{\"domain\":\"x\"},\"ips\""));
        two_plugins(dir, "1.0.0");
        let network = Network::open(config(dir)).unwrap();
        let mut request = own_namespace(dir);
        request.port_mappings.push(crisp_network::PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: None,
        });
        let attachment = network.attach(&request).unwrap();
        assert_eq!(attachment.ips[0].to_string(), "10.5.0.2");
        assert_eq!(calls(dir), ["first ADD netns=set", "second ADD netns=set"]);
        let second = request_of(dir, "second-ADD");
        assert_eq!(second["prevResult"]["ips"][0]["address"], "10.5.0.2/24");
        assert_eq!(second["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
        assert!(request_of(dir, "first-ADD").get("runtimeConfig").is_none());

        put_config(dir, "10-n.conflist", r#"{"cniVersion":"0.3.1","name":"other","type":"nothing"}"#);
        network.detach(&request.sandbox_id, None).unwrap();
        assert_eq!(calls(dir), ["second DEL netns=set", "first DEL netns=set"]);
        let first = request_of(dir, "first-DEL");
        assert_eq!((&first["name"], &first["prevResult"]["dns"]["domain"]), (&"n".into(), &"x".into()));
        network.detach(&request.sandbox_id, None).unwrap();
        assert!(calls(dir).is_empty(), "one successful DEL is enough");
    });
}

#[test]
fn a_failed_attach_is_undone_and_an_undo_that_fails_is_not_forgotten() {
    on_private_host("a_failed_attach_is_undone_and_an_undo_that_fails_is_not_forgotten", |dir| {
        put_plugin(dir, "first", RESULT);
        let fail = |commands: &str| {
            format!(
                "case $CNI_COMMAND in {commands}) echo '{{\"code\":11,\"msg\":\"no\",\"details\":\"busy\"}}'; exit 1;; *) {RESULT};; esac"
            )
        };
        two_plugins(dir, "1.0.0");
        let network = Network::open(config(dir)).unwrap();
        let request = own_namespace(dir);

        put_plugin(dir, "second", &fail("ADD"));
        let e = network.attach(&request).unwrap_err();
        assert!(
            matches!(&e, NetworkError::CniFailed { code: Some(11), message, .. } if message == "no: busy"),
            "{e}"
        );
        let all =
            ["first ADD netns=set", "second ADD netns=set", "second DEL netns=set", "first DEL netns=set"];
        assert_eq!((calls(dir), records(dir)), (all.map(str::to_owned).to_vec(), 0));

        put_plugin(dir, "second", &fail("ADD|DEL"));
        let e = network.attach(&request).unwrap_err();
        assert!(matches!(e, NetworkError::Undo { .. }), "{}", chain(&e));
        assert!(network.attachment(&request.sandbox_id).is_none());
        network.detach(&request.sandbox_id, None).unwrap();
        assert_eq!(records(dir), 1, "it may still hold something");
        drop(network);
        let network = Network::open(config(dir)).unwrap();
        assert!(network.gc(&[]).is_err());
        calls(dir);
        put_plugin(dir, "second", RESULT);
        network.gc(&[]).unwrap();
        assert_eq!((calls(dir).len(), records(dir)), (2, 0));
    });
}

#[test]
fn a_detach_that_fails_is_told_and_goes_on_later() {
    on_private_host("a_detach_that_fails_is_told_and_goes_on_later", |dir| {
        put_plugin(
            dir,
            "first",
            &format!(
                "if [ $CNI_COMMAND = DEL ] && [ ! -e {0}/better ]; then exit 1; fi\n{RESULT}",
                dir.display()
            ),
        );
        put_plugin(dir, "second", RESULT);
        two_plugins(dir, "1.0.0");
        let network = Network::open(config(dir)).unwrap();
        let request = own_namespace(dir);
        network.attach(&request).unwrap();
        assert!(network.detach(&request.sandbox_id, None).is_err());
        assert!(network.attachment(&request.sandbox_id).is_some());
        std::fs::write(dir.join("better"), "").unwrap();
        sh(&format!("umount {}", request.netns.display()));
        calls(dir);
        network.detach(&request.sandbox_id, Some(&request.netns)).unwrap();
        assert_eq!(calls(dir), ["second DEL netns=", "first DEL netns="], "a plain file is no namespace");
    });
}

#[test]
fn a_daemon_killed_in_the_middle_of_an_add_leaves_a_record_that_is_undone() {
    on_private_host("a_daemon_killed_in_the_middle_of_an_add_leaves_a_record_that_is_undone", |dir| {
        if let Some(dir) = support::victim() {
            let network = Network::open(config(&dir)).unwrap();
            drop(network.attach(&own_namespace(&dir)));
            panic!("it was to be killed");
        }
        put_plugin(dir, "first", &format!("if [ $CNI_COMMAND = ADD ]; then kill -9 $PPID; fi\n{RESULT}"));
        put_plugin(dir, "second", RESULT);
        two_plugins(dir, "1.0.0");
        drop(own_namespace(dir));
        let test = "a_daemon_killed_in_the_middle_of_an_add_leaves_a_record_that_is_undone";
        let ended = support::spawn_victim(test, dir).wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
        assert_eq!((calls(dir).len(), records(dir)), (1, 1));
        let network = Network::open(config(dir)).unwrap();
        network.gc(&[]).unwrap();
        assert_eq!(calls(dir), ["second DEL netns=set", "first DEL netns=set"]);
        assert_eq!(records(dir), 0);
    });
}

#[test]
fn readiness_follows_the_directory() {
    on_private_host("readiness_follows_the_directory", |dir| {
        let mut settings: NetworkConfig = config(dir);
        settings.bridge.enabled = false;
        let network = Network::open(settings).unwrap();
        let said = || network.status().map_err(|e| e.message);
        assert!(said().unwrap_err().contains("switched off"));
        assert_eq!(network.attach(&own_namespace(dir)).unwrap_err().kind(), ErrorKind::NotReady);
        two_plugins(dir, "1.0.0");
        assert!(said().unwrap_err().contains("\"first\""), "{:?}", said());
        put_plugin(dir, "first", RESULT);
        put_plugin(dir, "second", RESULT);
        said().unwrap();
        assert_eq!(network.describe()["Networks"][0]["Config"]["name"], "n");
        assert!(calls(dir).is_empty(), "no plugin is run for that before version 1.1");
        put_config(dir, "00-broken.conf", "{");
        assert!(said().unwrap_err().contains("00-broken.conf"));
        std::fs::remove_dir_all(dir.join("net.d")).unwrap();
        assert!(said().is_err());
    });
}

#[test]
fn version_1_1_is_asked_for_status_and_told_who_is_left() {
    on_private_host("version_1_1_is_asked_for_status_and_told_who_is_left", |dir| {
        let status = format!(
            "if [ $CNI_COMMAND = STATUS ] && [ ! -e {}/up ]; then echo '{{\"code\":50,\"msg\":\"controller is away\"}}'; exit 1; fi\n{RESULT}",
            dir.display()
        );
        put_plugin(dir, "first", &status);
        put_plugin(dir, "second", RESULT);
        two_plugins(dir, "1.1.0");
        let network = Network::open(config(dir)).unwrap();
        let said = network.status().unwrap_err().message;
        assert!(said.contains("controller is away"), "{said}");
        std::fs::write(dir.join("up"), "").unwrap();
        let deadline = std::time::Instant::now() + 2 * PATIENCE;
        while let Err(e) = network.status() {
            assert!(std::time::Instant::now() < deadline, "{e}");
            std::thread::yield_now();
        }
        let (kept, stale) = (own_namespace(dir), own_namespace(dir));
        network.attach(&kept).unwrap();
        network.attach(&stale).unwrap();
        calls(dir);
        network.gc(std::slice::from_ref(&kept.sandbox_id)).unwrap();
        let expected = ["second DEL netns=set", "first DEL netns=set", "first GC netns=", "second GC netns="];
        assert_eq!(calls(dir), expected);
        let told = &request_of(dir, "first-GC")["cni.dev/valid-attachments"];
        assert_eq!(*told, serde_json::json!([{"containerID": kept.sandbox_id, "ifname": "eth0"}]));
    });
}

#[test]
fn a_result_without_an_address_is_refused() {
    on_private_host("a_result_without_an_address_is_refused", |dir| {
        put_config(dir, "10-n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"first"}"#);
        let network = Network::open(config(dir)).unwrap();
        for result in ["{}", "[]", "nonsense", r#"{"cniVersion":"1.0.0","ips":[{"address":"x"}]}"#, ""] {
            put_plugin(dir, "first", &format!("if [ $CNI_COMMAND = ADD ]; then echo '{result}'; fi"));
            let e = network.attach(&own_namespace(dir)).unwrap_err();
            assert!(matches!(e, NetworkError::CniResult { .. }), "{result}: {e}");
            assert_eq!(records(dir), 0);
        }
    });
}
