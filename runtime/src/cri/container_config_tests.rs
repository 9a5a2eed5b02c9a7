use cri::{
    Capability, HugepageLimit, IdMapping, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, NamespaceOption, SeLinuxOption, SecurityProfile,
    UserNamespace,
};
use crisp_domain::ErrorKind;

use super::*;

fn of(context: LinuxContainerSecurityContext) -> Result<SecurityRequest> {
    let linux = LinuxContainerConfig { security_context: Some(context), resources: None };
    container(&cri::ContainerConfig { linux: Some(linux), ..Default::default() })
        .map(|config| config.security)
}

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn absent_messages_mean_the_api_defaults() {
    let config = container(&cri::ContainerConfig::default()).unwrap();
    assert_eq!(config, ContainerConfig::default());
    assert_eq!(config.security.namespaces.pid, NamespaceMode::Pod);
    let linux = Some(LinuxContainerConfig::default());
    assert_eq!(container(&cri::ContainerConfig { linux, ..Default::default() }).unwrap(), config);
}

#[test]
#[expect(deprecated, reason = "the deprecated fields are part of the contract")]
fn what_a_kubelet_sends_is_understood() {
    let context = LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: vec!["NET_ADMIN".into()],
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        }),
        namespace_options: Some(NamespaceOption {
            pid: 1,
            userns_options: Some(UserNamespace { mode: 2, ..Default::default() }),
            ..Default::default()
        }),
        run_as_user: Some(Int64Value { value: 1000 }),
        run_as_group: Some(Int64Value { value: 0 }),
        supplemental_groups: vec![7, 2_147_483_647],
        supplemental_groups_policy: 1,
        no_new_privs: true,
        readonly_rootfs: true,
        seccomp: Some(SecurityProfile::default()),
        seccomp_profile_path: "unconfined".into(),
        masked_paths: vec!["/proc/kcore".into()],
        ..Default::default()
    };
    let security = of(context).unwrap();
    assert_eq!(security.seccomp, SeccompRequest::RuntimeDefault, "the structured field wins");
    assert_eq!(security.namespaces.pid, NamespaceMode::Container);
    assert_eq!(security.user.user, UserChoice::Uid(1000));
    assert_eq!((security.user.group, security.user.policy), (Some(0), GroupPolicy::Strict));
    assert_eq!(security.user.supplemental, [7, ID_MAX]);
    assert_eq!((security.new_privileges, security.root), (NewPrivileges::Forbidden, RootAccess::ReadOnly));
    assert_eq!(security.masked_paths, ["/proc/kcore"]);
}

#[test]
fn environment_values_are_bytes() {
    let envs = vec![KeyValue { key: "A".into(), value: vec![0xff] }];
    let config = container(&cri::ContainerConfig { envs, ..Default::default() }).unwrap();
    assert_eq!(config.envs, [("A".to_owned(), vec![0xff])]);
}

#[test]
fn users_that_contradict_or_overflow_are_invalid() {
    let uid = |value| Some(Int64Value { value });
    let base = LinuxContainerSecurityContext::default;
    let cases = [
        LinuxContainerSecurityContext { run_as_group: uid(1), ..base() },
        LinuxContainerSecurityContext { run_as_user: uid(1), run_as_username: "app".into(), ..base() },
        LinuxContainerSecurityContext { run_as_user: uid(-1), ..base() },
        LinuxContainerSecurityContext { run_as_user: uid(1 << 31), ..base() },
        LinuxContainerSecurityContext { run_as_user: uid(1 << 32), ..base() },
        LinuxContainerSecurityContext { run_as_user: uid(i64::MIN), ..base() },
        LinuxContainerSecurityContext { run_as_user: uid(1), run_as_group: uid(1 << 31), ..base() },
        LinuxContainerSecurityContext { supplemental_groups: vec![0, -5], ..base() },
        LinuxContainerSecurityContext { supplemental_groups_policy: 2, ..base() },
    ];
    for context in cases {
        assert_eq!(kind(of(context.clone())), Some(ErrorKind::Invalid), "{context:?}");
    }
}

#[test]
fn namespaces_are_checked() {
    let options = |options: NamespaceOption| {
        of(LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() })
    };
    let base = NamespaceOption::default;
    let userns = |mode, mappings: usize| {
        let mapping = IdMapping { host_id: 65536, container_id: 0, length: 65536 };
        let userns_options =
            Some(UserNamespace { mode, uids: vec![mapping; mappings], gids: vec![mapping; mappings] });
        options(NamespaceOption { userns_options, ..base() })
    };
    let target = options(NamespaceOption { pid: 3, target_id: "abc".into(), ..base() }).unwrap();
    assert_eq!(target.namespaces.target_id.as_deref(), Some("abc"));
    for bad in [
        NamespaceOption { network: 1, ..base() },
        NamespaceOption { network: 3, ..base() },
        NamespaceOption { network: 9, ..base() },
        NamespaceOption { ipc: 3, ..base() },
        NamespaceOption { pid: -1, ..base() },
        NamespaceOption { pid: 3, ..base() },
    ] {
        assert_eq!(kind(options(bad.clone())), Some(ErrorKind::Invalid), "{bad:?}");
    }
    assert!(userns(2, 0).is_ok());
    for (mode, mappings) in [(2, 1), (1, 1), (3, 0), (7, 0)] {
        assert_eq!(kind(userns(mode, mappings)), Some(ErrorKind::Invalid), "{mode} {mappings}");
    }
    assert!(userns(0, 1).is_ok());
}

#[test]
fn mounts_follow_the_contract() {
    let base =
        || cri::Mount { container_path: "/data".into(), host_path: "/srv".into(), ..Default::default() };
    let of_image = || cri::Mount {
        image: Some(ImageSpec { image: "busybox".into(), ..Default::default() }),
        host_path: String::new(),
        readonly: true,
        ..base()
    };
    let good = [
        (base(), MountAccess::ReadWrite),
        (cri::Mount { readonly: true, ..base() }, MountAccess::ReadOnly),
        (cri::Mount { readonly: true, recursive_read_only: true, ..base() }, MountAccess::RecursiveReadOnly),
        (cri::Mount { image: Some(ImageSpec::default()), ..base() }, MountAccess::ReadWrite),
        (cri::Mount { image_sub_path: "bin".into(), ..of_image() }, MountAccess::ReadOnly),
    ];
    for (request, access) in good {
        assert_eq!(mount(&request).unwrap().access, access, "{request:?}");
    }
    let bad = [
        cri::Mount { recursive_read_only: true, ..base() },
        cri::Mount { readonly: true, recursive_read_only: true, propagation: 1, ..base() },
        cri::Mount { readonly: true, recursive_read_only: true, propagation: 2, ..base() },
        cri::Mount { propagation: 3, ..base() },
        cri::Mount { host_path: String::new(), ..base() },
        cri::Mount { image_sub_path: "bin".into(), ..base() },
        cri::Mount { host_path: "/srv".into(), ..of_image() },
        cri::Mount { readonly: false, ..of_image() },
        cri::Mount { mount_options: vec!["size=1".into()], ..base() },
    ];
    for request in bad {
        assert_eq!(kind(mount(&request)), Some(ErrorKind::Invalid), "{request:?}");
    }
    let mapped = cri::Mount { uid_mappings: vec![IdMapping::default()], ..base() };
    assert_eq!(kind(mount(&mapped)), Some(ErrorKind::Invalid));
    let mapped = cri::Mount { gid_mappings: vec![IdMapping::default()], ..mapped };
    assert_eq!(mount(&mapped).unwrap().ids.map(|ids| (ids.uids.len(), ids.gids.len())), Some((1, 1)));
    let options = cri::Mount { mount_options: vec!["noexec".into(), "suid".into()], ..base() };
    assert_eq!(mount(&options).unwrap().options, [MountOption::NoExec, MountOption::Suid]);
}

#[test]
fn devices_need_a_path_and_permissions() {
    let base =
        || cri::Device { host_path: "/dev/kvm".into(), permissions: "rw".into(), ..Default::default() };
    assert_eq!(device(&base()).unwrap().container_path, "/dev/kvm");
    for bad in [
        cri::Device { host_path: String::new(), ..base() },
        cri::Device { permissions: "rwx".into(), ..base() },
        cri::Device { permissions: String::new(), ..base() },
    ] {
        assert_eq!(kind(device(&bad)), Some(ErrorKind::Invalid), "{bad:?}");
    }
}

#[test]
#[expect(deprecated, reason = "the deprecated fields are part of the contract")]
fn profiles_are_read_from_either_field() {
    let structured = |kind, reference: &str| {
        let seccomp = Some(SecurityProfile { profile_type: kind, localhost_ref: reference.into() });
        of(LinuxContainerSecurityContext { seccomp, ..Default::default() }).map(|security| security.seccomp)
    };
    let text = |text: &str| {
        let context =
            LinuxContainerSecurityContext { seccomp_profile_path: text.into(), ..Default::default() };
        of(context).map(|security| security.seccomp)
    };
    let local = || SeccompRequest::Localhost("/p/x.json".into());
    assert_eq!(structured(0, "").unwrap(), SeccompRequest::RuntimeDefault);
    assert_eq!(structured(1, "").unwrap(), SeccompRequest::Unconfined);
    assert_eq!(structured(2, "/p/x.json").unwrap(), local());
    for (kind_number, reference) in [(2, ""), (2, "x.json"), (0, "/p/x.json"), (1, "/p/x.json"), (3, "")] {
        assert_eq!(
            kind(structured(kind_number, reference)),
            Some(ErrorKind::Invalid),
            "{kind_number} {reference}"
        );
    }
    assert_eq!(text("").unwrap(), SeccompRequest::Unset);
    assert_eq!(text("runtime/default").unwrap(), SeccompRequest::RuntimeDefault);
    assert_eq!(text("docker/default").unwrap(), SeccompRequest::RuntimeDefault);
    assert_eq!(text("unconfined").unwrap(), SeccompRequest::Unconfined);
    assert_eq!(text("localhost//p/x.json").unwrap(), local());
    for bad in ["localhost/", "localhost/x.json", "Unconfined", "/p/x.json"] {
        assert_eq!(kind(text(bad)), Some(ErrorKind::Invalid), "{bad}");
    }
    let apparmor = Some(SecurityProfile { profile_type: 2, localhost_ref: "localhost/mine".into() });
    let security = of(LinuxContainerSecurityContext { apparmor, ..Default::default() }).unwrap();
    assert_eq!(security.apparmor, AppArmorRequest::Localhost("mine".into()));
    let old =
        LinuxContainerSecurityContext { apparmor_profile: "localhost/mine".into(), ..Default::default() };
    assert_eq!(of(old).unwrap().apparmor, AppArmorRequest::Localhost("mine".into()));
}

#[test]
fn labels_are_checked() {
    let level = |level: &str| selinux(&SeLinuxOption { level: level.into(), ..Default::default() });
    for good in ["", "s0", "s0:c1", "s0:c1,c5", "s0-s0:c0.c1023", "s0:c1,c3.c5"] {
        assert!(level(good).is_ok(), "{good}");
    }
    for bad in ["s0,c4,c5", "s1", "s0:", "s0:c", "s0:c1024", "s0:c1,", "s0:c1:c2", "s0:C1", " s0"] {
        assert_eq!(kind(level(bad)), Some(ErrorKind::Invalid), "{bad}");
    }
    assert!(selinux(&SeLinuxOption { r#type: "a:b".into(), ..Default::default() }).is_err());
}

#[test]
fn zero_is_not_set_but_for_the_oom_score() {
    let none =
        LinuxContainerResources { hugepage_limits: vec![HugepageLimit::default()], ..Default::default() };
    let read =
        resources(Some(&LinuxContainerResources { hugepage_limits: Vec::new(), ..none.clone() })).unwrap();
    assert_eq!(read, Resources { oom_score_adj: Some(0), ..Resources::default() });
    assert_eq!(resources(None).unwrap(), Resources::default());
    let some = LinuxContainerResources {
        cpu_quota: -1,
        memory_limit_in_bytes: -1,
        cpu_shares: 2,
        oom_score_adj: -997,
        ..Default::default()
    };
    let read = resources(Some(&some)).unwrap();
    assert_eq!((read.cpu_quota_us, read.memory_limit_bytes, read.cpu_shares), (Some(-1), Some(-1), Some(2)));
    assert_eq!(read.oom_score_adj, Some(-997));
    for bad in [
        LinuxContainerResources { cpu_shares: -1, ..Default::default() },
        LinuxContainerResources { cpu_period: -1, ..Default::default() },
        LinuxContainerResources { oom_score_adj: i64::MAX, ..Default::default() },
    ] {
        assert_eq!(kind(resources(Some(&bad))), Some(ErrorKind::Invalid), "{bad:?}");
    }
}

#[test]
fn every_signal_of_cri_is_a_signal_of_the_kernel() {
    let pairs = [(cri::Signal::Sigabrt, 6), (cri::Signal::Sigcld, 17), (cri::Signal::Sigterm, 15)];
    for (signal, number) in pairs {
        assert_eq!(stop_signal(signal.into()).unwrap().unwrap().number(), number, "{signal:?}");
    }
    let plus3 = cri::Signal::from_str_name("SIGNAL_SIGRTMINPLUS3").unwrap();
    assert_eq!(stop_signal(plus3.into()).unwrap().unwrap().number(), 37);
    let minus14 = cri::Signal::from_str_name("SIGNAL_SIGRTMAXMINUS14").unwrap();
    assert_eq!(stop_signal(minus14.into()).unwrap().unwrap().number(), 50);
    let mut known = 0;
    for value in 1..200 {
        let Ok(signal) = cri::Signal::try_from(value) else { continue };
        let number = stop_signal(value).unwrap().unwrap().number();
        assert_eq!(stop_signal(cri_signal(number).into()).unwrap().unwrap().number(), number, "{signal:?}");
        known += 1;
    }
    assert_eq!(known, 65);
    assert_eq!(cri_signal(17), cri::Signal::Sigchld);
    assert_eq!(cri_signal(33), cri::Signal::RuntimeDefault);
    assert_eq!(stop_signal(0).unwrap(), None);
    assert_eq!(kind(stop_signal(66)), Some(ErrorKind::Invalid));
    assert_eq!(kind(stop_signal(-1)), Some(ErrorKind::Invalid));
}

#[test]
fn an_old_kernel_makes_no_recursive_read_only_mount() {
    let mount = cri::Mount { readonly: true, recursive_read_only: true, ..cri::Mount::default() };
    let config = cri::ContainerConfig { mounts: vec![mount], ..cri::ContainerConfig::default() };
    assert!(check_kernel(Some(&config), Some((5, 12))).is_ok());
    assert!(check_kernel(Some(&cri::ContainerConfig::default()), None).is_ok());
    for kernel in [None, Some((5, 11)), Some((4, 19))] {
        let error = check_kernel(Some(&config), kernel).unwrap_err();
        assert!(error.to_string().starts_with("RROUnsupported: "), "{error}");
    }
}
