use std::path::PathBuf;

use crisp_proto::cri;

use super::*;

fn host() -> Host {
    Host {
        uid: "11111111-2222-4333-8444-555555555555".to_owned(),
        hostname: "node-1".to_owned(),
        data: PathBuf::from("/data/uid"),
        resolv_conf: "nameserver 192.0.2.1\n".to_owned(),
    }
}

fn plan(text: &str) -> Plan {
    Plan::from_text(text, &host()).unwrap_or_else(|error| panic!("{error}"))
}

/// A pod with one container; `spec` and `container` are more lines of each.
fn pod(spec: &str, container: &str) -> String {
    let indent = |text: &str, by: &str| text.lines().map(|line| format!("{by}{line}\n")).collect::<String>();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{}  containers:\n  - name: c\n    image: busybox\n{}",
        indent(spec, "  "),
        indent(container, "    ")
    )
}

fn container(plan: &Plan) -> cri::ContainerConfig {
    plan.containers[0].config(&PodFacts { ips: vec!["10.88.0.2".into(), "fd00::2".into()] }, 0)
}

fn env(config: &cri::ContainerConfig) -> Vec<(String, String)> {
    config.envs.iter().map(|env| (env.key.clone(), String::from_utf8(env.value.clone()).unwrap())).collect()
}

const FULL: &str = include_str!("testdata/full.yaml");

#[test]
fn a_full_manifest_becomes_the_cri_messages() {
    let plan = plan(FULL);
    assert_eq!((plan.name.as_str(), plan.namespace.as_str()), ("full", "apps"));
    assert_eq!(plan.grace_seconds, 7);
    assert!(plan.restarts);
    assert_eq!(plan.handler, "runc");
    assert_eq!(
        plan.warnings,
        ["spec.containers[server].livenessProbe is not supported by `crisp run`; it is ignored"]
    );
    let images: Vec<_> = plan.images.iter().map(|image| (image.reference.as_str(), image.policy)).collect();
    assert_eq!(
        images,
        [("busybox:1.36", PullPolicy::IfNotPresent), ("docker.io/library/nginx", PullPolicy::Always)]
    );

    let sandbox = &plan.sandbox;
    assert_eq!(sandbox.hostname, "front");
    assert_eq!(sandbox.log_directory, "/data/uid/logs");
    assert_eq!(sandbox.labels["app"], "full");
    assert_eq!(sandbox.labels["io.kubernetes.pod.namespace"], "apps");
    assert_eq!(sandbox.annotations["note"], "x");
    assert_eq!(sandbox.annotations["crisp.v1/grace-seconds"], "7");
    assert_eq!(sandbox.dns_config.as_ref().unwrap().servers, ["198.51.100.53"]);
    let mapping = &sandbox.port_mappings[0];
    assert_eq!(
        (mapping.container_port, mapping.host_port, mapping.host_ip.as_str()),
        (80, 8080, "127.0.0.1")
    );
    assert_eq!(sandbox.port_mappings.len(), 1, "a port without hostPort is not mapped");
    let linux = sandbox.linux.as_ref().unwrap();
    assert_eq!(linux.sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
    let security = linux.security_context.as_ref().unwrap();
    assert_eq!(security.supplemental_groups, [5, 2000]);
    let namespaces = security.namespace_options.as_ref().unwrap();
    assert_eq!(namespaces.pid(), cri::NamespaceMode::Pod);
    assert_eq!(namespaces.network(), cri::NamespaceMode::Pod);

    assert_eq!(plan.init[0].restart, RestartPolicy::Never, "a plain init container");
    assert_eq!(plan.init[1].restart, RestartPolicy::Always, "a sidecar");
    assert_eq!(plan.containers[0].restart, RestartPolicy::OnFailure);
}

#[test]
fn a_container_of_the_full_manifest_becomes_its_config() {
    let plan = plan(FULL);
    let config = container(&plan);
    assert_eq!(config.log_path, "server/0.log");
    assert_eq!(plan.containers[0].config(&PodFacts::default(), 3).log_path, "server/3.log");
    assert_eq!(config.command, ["/bin/serve", "--name=full"]);
    assert_eq!(config.args, ["10.88.0.2", "$(HOME)"]);
    let expected = [
        ("NAME", "full"),
        ("NS", "apps"),
        ("IP", "10.88.0.2"),
        ("IPS", "10.88.0.2,fd00::2"),
        ("APP", "full"),
        ("BOTH", "full/10.88.0.2"),
        ("EMPTY", ""),
    ];
    assert_eq!(env(&config), expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let mounts: Vec<_> =
        config.mounts.iter().map(|m| (m.container_path.as_str(), m.host_path.as_str(), m.readonly)).collect();
    assert_eq!(
        mounts,
        [
            ("/cache", "/data/uid/volumes/cache", false),
            ("/srv", "/srv/www/site", true),
            ("/tmp/x", "/data/uid/volumes/scratch", false),
        ]
    );
    let linux = config.linux.as_ref().unwrap();
    let resources = linux.resources.as_ref().unwrap();
    assert_eq!((resources.cpu_quota, resources.cpu_period, resources.cpu_shares), (150_000, 100_000, 256));
    assert_eq!(resources.memory_limit_in_bytes, 64 << 20);
    assert_eq!(resources.hugepage_limits[0].page_size, "2MB");
    let security = linux.security_context.as_ref().unwrap();
    assert_eq!(security.run_as_user.unwrap().value, 1001, "the container's user wins");
    assert_eq!(security.run_as_group.unwrap().value, 3000, "the pod's group is inherited");
    assert!(security.no_new_privs && security.readonly_rootfs && !security.privileged);
    assert_eq!(security.capabilities.as_ref().unwrap().drop_capabilities, ["ALL"]);
    assert_eq!(security.seccomp.as_ref().unwrap().localhost_ref, "/var/lib/kubelet/seccomp/profiles/a.json");
    assert!(security.masked_paths.contains(&"/proc/kcore".to_owned()));
}

#[test]
fn volumes_are_planned_with_what_is_mounted_of_them() {
    let plan = plan(FULL);
    let volume = |name: &str| plan.volumes.iter().find(|volume| volume.name == name).unwrap();
    assert_eq!(volume("cache").kind, VolumeKind::Memory { bytes_max: 16 << 20, group: Some(2000) });
    assert_eq!(volume("scratch").kind, VolumeKind::Directory { group: Some(2000) });
    let site = volume("www");
    assert_eq!(site.kind, VolumeKind::Host(HostPathKind::DirectoryOrCreate));
    assert_eq!(site.sub_paths.iter().collect::<Vec<_>>(), [&PathBuf::from("site")]);
}

#[test]
fn the_smallest_manifest_gets_the_defaults() {
    let plan = plan(&pod("", ""));
    assert_eq!(plan.namespace, "default");
    assert_eq!(plan.grace_seconds, 30);
    assert_eq!(plan.containers[0].restart, RestartPolicy::Never);
    assert_eq!(plan.images[0].policy, PullPolicy::Always, "no tag means latest, which moves");
    assert!(plan.sandbox.dns_config.is_none(), "the machine's file is taken");
    assert!(plan.warnings.is_empty());
    let linux = container(&plan).linux.unwrap();
    assert_eq!(linux.resources.unwrap().cpu_shares, 2);
    let security = linux.security_context.unwrap();
    assert_eq!(security.seccomp.unwrap().profile_type(), cri::security_profile::ProfileType::RuntimeDefault);
    assert_eq!(security.namespace_options.unwrap().pid(), cri::NamespaceMode::Container);
}

#[test]
fn what_a_cluster_prints_can_be_run() {
    let plan = plan(include_str!("testdata/from-cluster.yaml"));
    assert_eq!(plan.containers.len(), 1);
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
}

#[test]
fn the_hosts_namespaces_are_asked_for() {
    let plan = plan(&pod(
        "hostNetwork: true\nhostPID: true\nhostIPC: true",
        "ports: [{containerPort: 80, hostPort: 80}]",
    ));
    assert!(plan.sandbox.port_mappings.is_empty());
    assert!(plan.sandbox.hostname.is_empty());
    let options = plan.sandbox.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
    let node = cri::NamespaceMode::Node;
    assert_eq!((options.network(), options.pid(), options.ipc()), (node, node, node));
}

#[test]
fn privileged_containers_have_nothing_masked() {
    let plan = plan(&pod("", "securityContext: {privileged: true}"));
    assert!(plan.sandbox.linux.as_ref().unwrap().security_context.as_ref().unwrap().privileged);
    let security = container(&plan).linux.unwrap().security_context.unwrap();
    assert!(security.privileged && security.masked_paths.is_empty() && security.readonly_paths.is_empty());
}

#[test]
fn refusals_name_the_field() {
    let table = [
        ("apiVersion: apps/v1\nkind: Deployment\nspec: {}".to_owned(), "kind: this is apps/v1 Deployment;"),
        ("metadata: {name: x}".to_owned(), "apiVersion and kind are missing"),
        (pod("", "").replace("web", "Web_1"), "metadata.name: \"Web_1\" is not a name"),
        (pod("nodeNaem: x", ""), "nodeNaem"),
        (pod("", "imagePullPolcy: Always"), "imagePullPolcy"),
        (pod("", "imagePullPolicy: Sometimes"), "Sometimes"),
        (pod("", "resources: {limits: {memory: 64mb}}"), "64mb"),
        (
            pod("", "resources: {limits: {nvidia.com/gpu: 1}}"),
            "spec.containers[c].resources: \"nvidia.com/gpu\"",
        ),
        (pod("", "resources: {limits: {cpu: 1}, requests: {cpu: 2}}"), "the request for cpu is larger"),
        (
            pod("", "volumeMounts: [{name: v, mountPath: /v}]"),
            "spec.containers[c].volumeMounts: spec.volumes has no \"v\"",
        ),
        (
            pod("volumes: [{name: v, configMap: {name: x}}]", ""),
            "spec.volumes[v]: a configMap volume needs a cluster",
        ),
        (
            pod("volumes: [{name: v, hostPath: {path: rel}}]", ""),
            "spec.volumes[v]: hostPath.path is absolute",
        ),
        (
            pod(
                "volumes: [{name: v, emptyDir: {}}]",
                "volumeMounts: [{name: v, mountPath: /v, subPath: ../x}]",
            ),
            "volumeMounts.subPath: is relative",
        ),
        (pod("", "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]"), "env[A]: only fieldRef"),
        (
            pod("", "env: [{name: A, valueFrom: {fieldRef: {fieldPath: x.y}}}]"),
            "fieldPath \"x.y\" is unknown",
        ),
        (pod("", "envFrom: [{secretRef: {name: s}}]"), "spec.containers[c].envFrom: ConfigMaps and Secrets"),
        (pod("hostUsers: false", ""), "spec.hostUsers: user namespaces"),
        (
            pod("", "securityContext: {runAsNonRoot: true, runAsUser: 0}"),
            "runAsNonRoot contradicts runAsUser 0",
        ),
        (
            pod("", "securityContext: {seccompProfile: {type: Localhost, localhostProfile: ../x}}"),
            "a path below",
        ),
        (
            pod("", "ports: [{containerPort: 80, hostPort: 8080, hostIP: here}]"),
            "hostIP \"here\" is not an IP address",
        ),
        (
            pod("hostNetwork: true", "ports: [{containerPort: 80, hostPort: 8080}]"),
            "hostPort must equal containerPort",
        ),
        (pod("", "") + "  - {name: c, image: x}\n", "the name \"c\" is used twice"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}".to_owned(),
            "at least one container",
        ),
        ("apiVersion: v1\nkind: Pod\n".to_owned(), "metadata"),
        ("a: [".to_owned(), "line 1"),
        (format!("{0}---\n{0}", pod("", "")), "multiple"),
    ];
    for (text, expected) in table {
        let message = Plan::from_text(&text, &host()).unwrap_err().to_string();
        assert!(message.contains(expected), "said {message:?}\nwant {expected:?}\n{text}");
    }
}

#[test]
fn a_typing_error_is_shown_with_its_line() {
    let text = pod("", "imagePullPolcy: Always");
    let message = Plan::from_text(&text, &host()).unwrap_err().to_string();
    assert!(message.contains("line 8"), "{message}");
    assert_eq!(message.matches("imagePullPolcy").count(), 1, "told once: {message}");
}
