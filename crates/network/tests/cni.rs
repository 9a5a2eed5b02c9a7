//! CNI chains: the reference plugins against the real kernel, and scripted ones for what goes wrong.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(clippy::print_stdout, reason = "what was measured, and what was not run")]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use crisp_domain::{ErrorKind, SandboxId};
use crisp_network::{AttachRequest, CidrOutcome, Network, NetworkConfig, NetworkError, Protocol, Provider};
use support::{
    PATIENCE, Pod, ask_tcp, ask_tcp_within, attach, chain, config, on_private_host, reference_plugins_speak,
    sh,
};

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

/// A plugin that notes each call in `<dir>/calls` and then runs `script`. Another process writes it and puts it in its place as a
/// whole: a plugin that is being started beside has a copy of our descriptors, and what is open for writing cannot be run.
fn put_plugin(dir: &Path, name: &str, script: &str) {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let request = format!("{}/request-{name}-$CNI_COMMAND", dir.display());
    let text = format!(
        "#!/bin/sh\ncat > {request}\necho \"{name} $CNI_COMMAND netns=${{CNI_NETNS:+set}}\" >> {}/calls\n{script}\n",
        dir.display()
    );
    std::fs::write(dir.join("plugin-text"), text).unwrap();
    sh(&format!(
        "cd {} && install -m 755 plugin-text plugin-made && mv plugin-made bin/{name}",
        dir.display()
    ));
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

/// Tries until it is so; gives the time that it took.
fn eventually<E: std::fmt::Debug>(mut ask: impl FnMut() -> Result<(), E>) -> Duration {
    let begun = Instant::now();
    while let Err(said) = ask() {
        assert!(begun.elapsed() < 2 * PATIENCE, "{said:?}");
        std::thread::yield_now();
    }
    begun.elapsed()
}

/// Whether plugins are being asked for their STATUS: a thread of this name does it, and ends when the answer is noted.
fn status_is_asked() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let name =
        |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    threads.flatten().any(|thread| name(thread) == "cni-status\n")
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
        if !reference_plugins_speak("1.0.0") {
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
        if !reference_plugins_speak("1.0.0") {
            return;
        }
        let network = Network::open(config(dir)).unwrap();
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            if !reference_plugins_speak(version) {
                continue;
            }
            put_reference_chain(dir, version);
            let pod = Pod::new(dir, "web");
            attach(&network, &pod);
            let attachment = network.attachment(&pod.id).unwrap();
            assert_eq!(attachment.result["cniVersion"], version);
            network.check(&pod.id).unwrap();
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
        eventually(|| match network.status() {
            Err(e) if e.message.contains("controller is away") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let said = network.status().unwrap_err().message;
        assert!(said.contains("10-n.conflist") && said.contains("(code 50)"), "{said}");
        std::fs::write(dir.join("up"), "").unwrap();
        let took = eventually(|| network.status());
        println!("a plugin that is back is seen after {took:?}");
        let (kept, stale) = (own_namespace(dir), own_namespace(dir));
        network.attach(&kept).unwrap();
        network.attach(&stale).unwrap();
        calls(dir);
        network.gc(std::slice::from_ref(&kept.sandbox_id)).unwrap();
        let expected = ["second DEL netns=set", "first DEL netns=set", "first GC netns=", "second GC netns="];
        // A look that comes due meanwhile asks for the STATUS again.
        let calls: Vec<_> = calls(dir).into_iter().filter(|call| !call.contains(" STATUS ")).collect();
        assert_eq!(calls, expected);
        let told = &request_of(dir, "first-GC")["cni.dev/valid-attachments"];
        assert_eq!(*told, serde_json::json!([{"containerID": kept.sandbox_id, "ifname": "eth0"}]));
    });
}

#[test]
fn plugins_are_not_told_what_is_left_while_a_live_pods_record_cannot_be_read() {
    on_private_host("plugins_are_not_told_what_is_left_while_a_live_pods_record_cannot_be_read", |dir| {
        put_plugin(dir, "first", RESULT);
        put_plugin(dir, "second", RESULT);
        two_plugins(dir, "1.1.0");
        let network = Network::open(config(dir)).unwrap();
        let live = own_namespace(dir).sandbox_id;
        network.attach(&AttachRequest::new(live.clone(), dir.join("own-netns"))).unwrap();
        drop(network);
        let path = dir.join(format!("network/attachments/{live}.json"));
        std::fs::write(path, "{").unwrap();
        let network = Network::open(config(dir)).unwrap();
        // Beside them the plugins are asked for their STATUS.
        let told = || calls(dir).iter().filter(|call| call.contains(" GC ")).count();
        told();
        network.gc(std::slice::from_ref(&live)).unwrap();
        assert_eq!(told(), 0, "they would free what the pod has");
        network.gc(&[]).unwrap();
        assert_eq!(told(), 2);
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

/// A list of one scripted plugin per name, each in a file of its own.
fn networks(dir: &Path, names: &[&str]) {
    for (number, name) in names.iter().enumerate() {
        let list = format!(r#"{{"cniVersion":"1.0.0","name":"net-{name}","plugins":[{{"type":"{name}"}}]}}"#);
        put_config(dir, &format!("{number}0-{name}.conflist"), &list);
    }
}

/// Prints a result with one address on the interface that is asked for.
fn result_of(address: &str) -> String {
    format!(
        r#"if [ $CNI_COMMAND = ADD ]; then echo "{{\"cniVersion\":\"1.0.0\",\"interfaces\":[{{\"name\":\"$CNI_IFNAME\",\"sandbox\":\"/ns\"}}],\"ips\":[{{\"interface\":0,\"address\":\"{address}\"}}]}}"; fi
echo "{address} $CNI_COMMAND $CNI_IFNAME" >> $(dirname $0)/../interfaces"#
    )
}

#[test]
fn several_networks_have_an_interface_each_and_are_left_in_reverse() {
    on_private_host("several_networks_have_an_interface_each_and_are_left_in_reverse", |dir| {
        put_plugin(dir, "a", &result_of("10.1.0.2/24"));
        put_plugin(dir, "b", &result_of("10.2.0.2/24"));
        put_plugin(dir, "c", "exit 1");
        networks(dir, &["a", "b", "c"]);
        let open = |networks_max| {
            let mut config = config(dir);
            config.cni_networks_max = networks_max;
            Network::open(config)
        };
        assert_eq!(open(0).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(open(17).unwrap_err().kind(), ErrorKind::Invalid);
        let network = open(2).unwrap();
        let request = own_namespace(dir);
        let attachment = network.attach(&request).unwrap();
        assert_eq!((attachment.ips.len(), attachment.ips[0].to_string()), (1, "10.1.0.2".into()));
        assert_eq!(attachment.result["interfaces"][1]["name"], "eth1");
        assert_eq!(attachment.result["ips"][1]["interface"], 1);
        assert_eq!(network.describe()["Networks"][1]["IFName"], "eth1");
        // Only one is configured by now, and the daemon was restarted.
        drop(network);
        let network = open(1).unwrap();
        network.detach(&request.sandbox_id, None).unwrap();
        let second = request_of(dir, "b-DEL");
        assert_eq!(
            second["prevResult"]["ips"],
            serde_json::json!([{"interface": 0, "address": "10.2.0.2/24"}])
        );
        let seen = std::fs::read_to_string(dir.join("interfaces")).unwrap();
        let expected =
            ["10.1.0.2/24 ADD eth0", "10.2.0.2/24 ADD eth1", "10.2.0.2/24 DEL eth1", "10.1.0.2/24 DEL eth0"];
        assert_eq!(seen.lines().collect::<Vec<_>>(), expected);

        // The third fails: the first two are left again, and the third, which may have done a part.
        drop(network);
        let network = open(3).unwrap();
        calls(dir);
        let e = network.attach(&own_namespace(dir)).unwrap_err();
        assert!(matches!(e, NetworkError::Undo { .. }), "{}", chain(&e));
        let left: Vec<_> = calls(dir).into_iter().skip(3).collect();
        assert_eq!(left, ["c DEL netns=set", "b DEL netns=set", "a DEL netns=set"]);
        put_plugin(dir, "c", "true");
        network.gc(&[]).unwrap();
        assert_eq!(records(dir), 0);
    });
}

#[test]
fn a_handlers_own_directory_is_used_and_the_bridge_does_not_stand_in_for_it() {
    on_private_host("a_handlers_own_directory_is_used_and_the_bridge_does_not_stand_in_for_it", |dir| {
        put_plugin(dir, "first", RESULT);
        let network = Network::open(config(dir)).unwrap();
        let mut request = own_namespace(dir);
        let own = dir.join("handler.d");
        request.cni_conf_dir = Some(own.clone());
        let e = network.attach(&request).unwrap_err();
        assert!(e.kind() == ErrorKind::NotReady && e.to_string().contains("handler.d"), "{e}");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("1.conf"), r#"{"cniVersion":"1.0.0","name":"own","type":"first"}"#).unwrap();
        assert_eq!(network.attach(&request).unwrap().network, "own");
        network.detach(&request.sandbox_id, None).unwrap();
        assert_eq!(records(dir), 0);
    });
}

#[test]
fn readiness_recovers_from_every_way_a_directory_is_replaced() {
    /// What is promised. It takes a run of the plugin; an answer about the former configuration would hold for ten seconds.
    const RECOVERY_MAX: Duration = Duration::from_secs(2);
    on_private_host("readiness_recovers_from_every_way_a_directory_is_replaced", |dir| {
        let mut settings = config(dir);
        settings.bridge.enabled = false;
        let status = format!("if [ -e {}/down ]; then exit 1; fi\n{RESULT}", dir.display());
        put_plugin(dir, "first", &status);
        let network = Network::open(settings).unwrap();
        let place = dir.join("net.d");
        let fill = |place: &Path, version: &str| {
            std::fs::create_dir_all(place).unwrap();
            let list = format!(r#"{{"cniVersion":"{version}","name":"n","plugins":[{{"type":"first"}}]}}"#);
            std::fs::write(place.join("10-n.conflist"), list).unwrap();
        };
        let ready = |what: &str| {
            let took = eventually(|| network.status());
            println!("{what}: ready after {took:?}");
            assert!(took < RECOVERY_MAX, "{what}: {took:?}");
        };
        let gone = |what: &str| {
            let took = eventually(|| if network.status().is_err() { Ok(()) } else { Err("still ready") });
            assert!(took < RECOVERY_MAX, "{what}: {took:?}");
        };
        for version in ["1.0.0", "1.1.0"] {
            fill(&place, version);
            ready("made");
            std::fs::remove_dir_all(&place).unwrap();
            gone("removed");
            fill(&place, version);
            ready("made again");
            let (next, before) = (dir.join("next"), dir.join("before"));
            fill(&next, version);
            std::fs::rename(&place, &before).unwrap();
            gone("renamed away");
            std::fs::rename(&next, &place).unwrap();
            ready("replaced by a rename");
            std::fs::remove_dir_all(&place).unwrap();
            std::os::unix::fs::symlink(dir.join("absent/net.d"), &place).unwrap();
            gone("a symlink to nothing");
            fill(&dir.join("absent/net.d"), version);
            ready("what the symlink points to was made");
            std::fs::remove_file(&place).unwrap();
            std::os::unix::fs::symlink(&before, &place).unwrap();
            ready("the symlink was turned");
            std::fs::remove_file(&place).unwrap();
            std::fs::remove_dir_all(&before).unwrap();
            std::fs::remove_dir_all(dir.join("absent")).unwrap();
            gone("removed at last");
        }
    });
}

#[test]
fn a_status_that_hangs_keeps_nobody_waiting() {
    on_private_host("a_status_that_hangs_keeps_nobody_waiting", |dir| {
        put_plugin(
            dir,
            "first",
            &format!(
                "if [ $CNI_COMMAND = STATUS ]; then touch {}/hangs; exec sleep 1000; fi\n{RESULT}",
                dir.display()
            ),
        );
        put_config(dir, "10-n.conf", r#"{"cniVersion":"1.1.0","name":"n","type":"first"}"#);
        let mut settings = config(dir);
        settings.plugin_timeout = Duration::from_secs(5);
        let network = Network::open(settings).unwrap();
        eventually(|| std::fs::metadata(dir.join("hangs")).map(drop));
        // Who had waited for the plugin would know what became of it.
        let said = network.status().unwrap_err().message;
        assert!(said.contains("have not answered yet"), "{said}");
        eventually(|| {
            let said = network.status().unwrap_err().message;
            if said.contains("was killed") { Ok(()) } else { Err(said) }
        });
        let begun = Instant::now();
        (0..1000).for_each(|_| drop(network.status()));
        println!("one look takes {:?}", begun.elapsed() / 1000);
    });
}

#[test]
fn a_configuration_that_is_touched_up_does_not_make_the_node_unready() {
    on_private_host("a_configuration_that_is_touched_up_does_not_make_the_node_unready", |dir| {
        put_plugin(dir, "first", RESULT);
        let put = |mtu: u32| {
            let text = format!(r#"{{"cniVersion":"1.1.0","name":"n","type":"first","mtu":{mtu}}}"#);
            put_config(dir, ".new", &text);
            std::fs::rename(dir.join("net.d/.new"), dir.join("net.d/10-n.conf")).unwrap();
        };
        put(1400);
        let network = Network::open(config(dir)).unwrap();
        eventually(|| network.status());
        for mtu in 1401..1411 {
            put(mtu);
            network.status().unwrap();
            // The file may be half written.
            let request = || std::fs::read(dir.join("request-first-STATUS")).unwrap_or_default();
            let asked =
                || serde_json::from_slice::<serde_json::Value>(&request()).is_ok_and(|r| r["mtu"] == mtu);
            // With the answer to it, not on the trust in the one before: that ends soon, and the next one would be left with none.
            eventually(|| {
                let answered = asked() && !status_is_asked();
                if answered { network.status().map_err(|e| e.message) } else { Err("not asked yet".into()) }
            });
        }
    });
}

#[test]
fn the_newest_version_that_all_speak_is_chosen() {
    on_private_host("the_newest_version_that_all_speak_is_chosen", |dir| {
        let speaks = |versions: &str| {
            format!(
                r#"if [ $CNI_COMMAND = VERSION ]; then echo '{{"cniVersion":"1.0.0","supportedVersions":[{versions}]}}'; fi
{RESULT}"#
            )
        };
        put_plugin(dir, "first", &speaks(r#""0.4.0","1.0.0","1.1.0""#));
        put_plugin(dir, "second", &speaks(r#""0.3.1","0.4.0","1.0.0""#));
        let list = |versions: &str| {
            let plugins = r#"[{"type":"first"},{"type":"second"}]"#;
            let text = format!(
                r#"{{"cniVersion":"0.4.0","cniVersions":[{versions}],"name":"n","plugins":{plugins}}}"#
            );
            put_config(dir, "10-n.conflist", &text);
        };
        list(r#""1.0.0","1.1.0""#);
        let network = Network::open(config(dir)).unwrap();
        let request = own_namespace(dir);
        network.attach(&request).unwrap();
        assert_eq!(request_of(dir, "second-ADD")["cniVersion"], "1.0.0");
        assert_eq!(network.attachment(&request.sandbox_id).unwrap().result["cniVersion"], "1.0.0");
        network.detach(&request.sandbox_id, None).unwrap();
        let asked = calls(dir).iter().filter(|call| call.contains("VERSION")).count();
        assert!((2..=4).contains(&asked), "once for each, by the attach and perhaps the first look: {asked}");
        put_plugin(dir, "second", &speaks(r#""0.3.1""#));
        list(r#""0.3.0","1.0.0","1.1.0""#);
        let e = network.attach(&own_namespace(dir)).unwrap_err().to_string();
        assert!(e.contains("10-n.conflist") && e.contains("\"second\" speaks 0.3.1"), "{e}");
        eventually(|| match network.status() {
            Err(e) if e.message.contains("speaks 0.3.1") => Ok(()),
            other => Err(format!("{other:?}")),
        });
    });
}

#[test]
fn a_check_asks_the_plugins_with_the_result() {
    on_private_host("a_check_asks_the_plugins_with_the_result", |dir| {
        put_plugin(dir, "first", RESULT);
        let broken = format!(
            "if [ $CNI_COMMAND = CHECK ] && [ -e {}/broken ]; then echo '{{\"code\":101,\"msg\":\"rule is gone\"}}'; exit 1; fi\n{RESULT}",
            dir.display()
        );
        put_plugin(dir, "second", &broken);
        two_plugins(dir, "1.0.0");
        let network = Network::open(config(dir)).unwrap();
        let request = own_namespace(dir);
        network.check(&request.sandbox_id).unwrap();
        network.attach(&request).unwrap();
        calls(dir);
        network.check(&request.sandbox_id).unwrap();
        assert_eq!(calls(dir), ["first CHECK netns=set", "second CHECK netns=set"]);
        assert_eq!(request_of(dir, "first-CHECK")["prevResult"]["ips"][0]["address"], "10.5.0.2/24");
        std::fs::write(dir.join("broken"), "").unwrap();
        let e = chain(&network.check(&request.sandbox_id).unwrap_err());
        assert!(e.starts_with("network \"n\" is not as it was made: "), "{e}");
        assert!(e.contains("rule is gone") && e.contains("(code 101)"), "{e}");
        let text = r#"{"cniVersion":"1.0.0","name":"n","disableCheck":true,"plugins":[{"type":"second"}]}"#;
        put_config(dir, "10-n.conflist", text);
        let quiet = own_namespace(dir);
        network.attach(&quiet).unwrap();
        network.check(&quiet.sandbox_id).unwrap();
    });
}

#[test]
fn a_host_port_of_a_plugin_has_one_holder_too() {
    on_private_host("a_host_port_of_a_plugin_has_one_holder_too", |dir| {
        put_plugin(dir, "first", RESULT);
        put_plugin(dir, "second", RESULT);
        two_plugins(dir, "1.0.0");
        let network = Network::open(config(dir)).unwrap();
        let pod = |name: &str, host_ip: Option<&str>| {
            let mut request = own_namespace(dir);
            (request.pod_namespace, request.pod_name) = ("default".into(), name.into());
            let host_ip = host_ip.map(|ip| ip.parse().unwrap());
            let (protocol, container_port, host_port) = (Protocol::Tcp, 80, 12000);
            request.port_mappings =
                vec![crisp_network::PortMapping { protocol, container_port, host_port, host_ip }];
            request
        };
        let (a, b) = (pod("a", None), pod("b", Some("127.0.0.1")));
        network.attach(&a).unwrap();
        let e = network.attach(&b).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Exists);
        assert!(e.to_string().contains("127.0.0.1:12000/tcp") && e.to_string().contains("default/a"), "{e}");
        assert_eq!(records(dir), 1);
        network.attach(&a).unwrap();
        network.detach(&a.sandbox_id, None).unwrap();
        network.attach(&b).unwrap();
    });
}

#[test]
fn a_host_port_of_a_pod_that_is_gone_is_freed_when_its_undo_succeeds_later() {
    on_private_host("a_host_port_of_a_pod_that_is_gone_is_freed_when_its_undo_succeeds_later", |dir| {
        put_plugin(dir, "first", RESULT);
        put_plugin(dir, "second", "exit 1");
        two_plugins(dir, "1.0.0");
        let network = Network::open(config(dir)).unwrap();
        let pod = || {
            let mut request = own_namespace(dir);
            let (protocol, container_port, host_port, host_ip) = (Protocol::Tcp, 80, 12000, None);
            request.port_mappings =
                vec![crisp_network::PortMapping { protocol, container_port, host_port, host_ip }];
            request
        };
        let (gone, next) = (pod(), pod());
        assert!(matches!(network.attach(&gone).unwrap_err(), NetworkError::Undo { .. }));
        network.detach(&gone.sandbox_id, None).unwrap();
        let is_live = |id: &SandboxId| *id == next.sandbox_id;
        assert!(network.retry_stale(&is_live).is_err());
        assert!(matches!(network.attach(&next).unwrap_err(), NetworkError::PortTaken { .. }));

        put_plugin(dir, "second", RESULT);
        network.retry_stale(&is_live).unwrap();
        network.attach(&next).unwrap();
        calls(dir);
        network.retry_stale(&is_live).unwrap();
        assert_eq!((calls(dir).len(), records(dir)), (0, 1), "who is live is left alone");
    });
}

#[test]
fn what_is_left_is_cleared_while_others_are_attached() {
    on_private_host("what_is_left_is_cleared_while_others_are_attached", |dir| {
        put_plugin(dir, "first", RESULT);
        put_plugin(dir, "second", RESULT);
        two_plugins(dir, "1.1.0");
        let network = Network::open(config(dir)).unwrap();
        let stale: Vec<_> = (0..12).map(|_| own_namespace(dir)).collect();
        stale.iter().for_each(|request| drop(network.attach(request).unwrap()));
        drop(network);
        let network = Network::open(config(dir)).unwrap();
        let is_stale = |id: &SandboxId| stale.iter().any(|request| request.sandbox_id == *id);
        let fresh: Vec<_> = (0..8).map(|_| own_namespace(dir)).collect();
        std::thread::scope(|scope| {
            let clearing = scope.spawn(|| network.gc_where(&|id| !is_stale(id)));
            fresh.iter().for_each(|request| drop(network.attach(request).unwrap()));
            clearing.join().unwrap().unwrap();
        });
        assert_eq!(records(dir), fresh.len());
        assert!(fresh.iter().all(|request| network.attachment(&request.sandbox_id).is_some()));
        // Whatever a plugin was told, it was told of all that were attached by then, and of none that was stale. While pods come
        // all the time it may not be told at all, but for sure when they have come.
        let told = || request_of(dir, "second-GC")["cni.dev/valid-attachments"].to_string();
        let names = |told: &str, request: &AttachRequest| told.contains(request.sandbox_id.as_str());
        if dir.join("request-second-GC").exists() {
            assert!(!stale.iter().any(|request| names(&told(), request)), "{}", told());
        }
        network.gc_where(&|id| !is_stale(id)).unwrap();
        assert!(fresh.iter().all(|request| names(&told(), request)), "{}", told());
    });
}

#[test]
fn a_template_becomes_the_configuration_unless_there_is_another() {
    on_private_host("a_template_becomes_the_configuration_unless_there_is_another", |dir| {
        let template = dir.join("cni.template");
        let text = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{
  "type": "first", "capabilities": {"ipRanges": true}, "subnet": "{{.PodCIDR}}",
  "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
  "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}]}"#;
        std::fs::write(&template, text).unwrap();
        put_plugin(dir, "first", RESULT);
        let open = || {
            let mut settings = config(dir);
            settings.bridge.enabled = false;
            settings.cni_template = Some(template.clone());
            Network::open(settings).unwrap()
        };
        let network = open();
        let file = dir.join("net.d/10-crisp.conflist");
        assert_eq!(network.apply_pod_cidr("").unwrap(), CidrOutcome::Nothing);
        assert!(network.status().is_err() && !file.exists());
        assert_eq!(
            network.apply_pod_cidr("10.7.1.0/24,fd00:7::/64").unwrap(),
            CidrOutcome::Written(file.clone())
        );
        network.status().unwrap();
        let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let plugin = &written["plugins"][0];
        assert_eq!(
            plugin["ranges"],
            serde_json::json!([[{"subnet": "10.7.1.0/24"}], [{"subnet": "fd00:7::/64"}]])
        );
        assert_eq!(plugin["routes"], serde_json::json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]));
        assert_eq!(network.apply_pod_cidr("10.8.0.0/24").unwrap(), CidrOutcome::Written(file.clone()));
        assert!(std::fs::read_to_string(&file).unwrap().contains("10.8.0.0/24"));

        // A plugin that takes ranges from the runtime gets them, also from a daemon that was restarted.
        drop(network);
        let network = open();
        network.attach(&own_namespace(dir)).unwrap();
        let told = &request_of(dir, "first-ADD")["runtimeConfig"]["ipRanges"];
        assert_eq!(*told, serde_json::json!([[{"subnet": "10.8.0.0/24"}]]));

        for (bad, said) in
            [("{{.PodCIDR", "line 1"), ("{{.PodCIDR}}", "not JSON"), ("{}", "no CNI configuration")]
        {
            std::fs::write(&template, bad).unwrap();
            let e = network.apply_pod_cidr("10.9.0.0/24").unwrap_err();
            assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(said), "{e}");
        }
        assert!(std::fs::read_to_string(&file).unwrap().contains("10.8.0.0/24"), "it stays");
        assert_eq!(network.apply_pod_cidr("10.9.0.0").unwrap_err().kind(), ErrorKind::Invalid);
        let other = dir.join("net.d/20-other.conflist");
        std::fs::write(&other, "{").unwrap();
        std::fs::write(&template, text).unwrap();
        assert_eq!(network.apply_pod_cidr("10.9.0.0/24").unwrap(), CidrOutcome::Written(file.clone()));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(network.apply_pod_cidr("10.9.0.0/24").unwrap(), CidrOutcome::Kept(other));
        assert!(!file.exists());
    });
}

#[test]
fn the_reference_plugins_understand_the_verbs_of_version_1_1() {
    on_private_host("the_reference_plugins_understand_the_verbs_of_version_1_1", |dir| {
        if !reference_plugins_speak("1.1.0") {
            return;
        }
        sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        put_reference_chain(dir, "1.1.0");
        let network = Network::open(config(dir)).unwrap();
        let took = eventually(|| network.status());
        println!("STATUS of the chain after {took:?}");
        let (kept, stale) = (Pod::new(dir, "kept"), Pod::new(dir, "stale"));
        attach(&network, &kept);
        attach(&network, &stale);
        network.check(&kept.id).unwrap();
        kept.ip_output("addr flush dev eth0");
        let said = chain(&network.check(&kept.id).unwrap_err());
        assert!(said.contains("CHECK") && said.contains("10.77.0.2"), "{said}");
        network.gc(std::slice::from_ref(&kept.id)).unwrap();
        assert_eq!((addresses_of_host_local(dir), records(dir)), (1, 1));
        network.detach(&kept.id, None).unwrap();
        assert_eq!((addresses_of_host_local(dir), records(dir)), (0, 0));
    });
}

#[test]
fn a_daemon_killed_between_two_networks_leaves_both() {
    on_private_host("a_daemon_killed_between_two_networks_leaves_both", |dir| {
        let open = |dir: &Path| {
            let mut config = config(dir);
            config.cni_networks_max = 2;
            Network::open(config).unwrap()
        };
        if let Some(dir) = support::victim() {
            drop(open(&dir).attach(&own_namespace(&dir)));
            panic!("it was to be killed");
        }
        put_plugin(dir, "a", &result_of("10.1.0.2/24"));
        put_plugin(dir, "b", &format!("if [ $CNI_COMMAND = ADD ]; then kill -9 $PPID; fi\n{RESULT}"));
        networks(dir, &["a", "b"]);
        drop(own_namespace(dir));
        let ended =
            support::spawn_victim("a_daemon_killed_between_two_networks_leaves_both", dir).wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
        assert_eq!((calls(dir), records(dir)), (vec!["a ADD netns=set".into(), "b ADD netns=set".into()], 1));
        open(dir).gc(&[]).unwrap();
        assert_eq!(calls(dir), ["b DEL netns=set", "a DEL netns=set"]);
        assert_eq!(request_of(dir, "a-DEL")["prevResult"]["ips"][0]["address"], "10.1.0.2/24");
        assert!(request_of(dir, "b-DEL").get("prevResult").is_none());
        assert_eq!(records(dir), 0);
    });
}

#[test]
fn a_gc_that_hangs_or_babbles_is_told_and_holds_nobody_up_for_long() {
    on_private_host("a_gc_that_hangs_or_babbles_is_told_and_holds_nobody_up_for_long", |dir| {
        let hangs = format!(
            "if [ $CNI_COMMAND = GC ]; then touch {}/hangs; exec sleep 1000; fi\n{RESULT}",
            dir.display()
        );
        put_plugin(dir, "first", &hangs);
        put_plugin(dir, "second", &format!("if [ $CNI_COMMAND = GC ]; then echo nonsense; fi\n{RESULT}"));
        two_plugins(dir, "1.1.0");
        let mut settings = config(dir);
        settings.plugin_timeout = Duration::from_secs(5);
        let network = Network::open(settings).unwrap();
        let request = own_namespace(dir);
        std::thread::scope(|scope| {
            let clearing = scope.spawn(|| network.gc(&[]).unwrap_err());
            eventually(|| std::fs::metadata(dir.join("hangs")).map(drop));
            let begun = Instant::now();
            network.attach(&request).unwrap();
            println!("an attach beside a GC that hangs took {:?}", begun.elapsed());
            assert!(begun.elapsed() < PATIENCE);
            let e = clearing.join().unwrap();
            assert!(matches!(e, NetworkError::CniTimeout { command: "GC", .. }), "{e}");
        });
        assert!(calls(dir).contains(&"second GC netns=".into()), "the other plugin is asked all the same");
        assert!(network.attachment(&request.sandbox_id).is_some());
    });
}
