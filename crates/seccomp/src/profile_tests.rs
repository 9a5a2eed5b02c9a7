use super::*;

fn target(capabilities: &[&str], arch: Arch, kernel: (u32, u32)) -> Target {
    Target {
        capabilities: capabilities.iter().map(ToString::to_string).collect(),
        arch,
        kernel: KernelVersion { major: kernel.0, minor: kernel.1 },
    }
}

/// Actions of all rules of a syscall.
fn actions(filter: &LinuxSeccomp, name: &str) -> Vec<LinuxSeccompAction> {
    let rules = filter.syscalls().iter().flatten();
    rules.filter(|rule| rule.names().iter().any(|own| own == name)).map(LinuxSyscall::action).collect()
}

#[test]
fn conditions_are_decided_by_the_target() {
    use LinuxSeccompAction::{ScmpActAllow as Allow, ScmpActErrno as Errno};
    let profile = default_profile();
    let x86_64 = Arch::ScmpArchX86_64;
    let plain = profile.to_linux_seccomp(&target(&[], x86_64, (6, 1)));
    let admin = profile.to_linux_seccomp(&target(&["CAP_SYS_ADMIN"], x86_64, (6, 1)));
    let bpf = profile.to_linux_seccomp(&target(&["CAP_BPF"], x86_64, (6, 1)));
    let old = profile.to_linux_seccomp(&target(&[], x86_64, (4, 7)));
    let tracer = profile.to_linux_seccomp(&target(&["CAP_SYS_PTRACE"], x86_64, (4, 7)));
    for name in
        ["mount", "unshare", "setns", "keyctl", "bpf", "reboot", "kexec_load", "chroot", "init_module"]
    {
        assert_eq!(actions(&plain, name), [Errno], "{name}");
    }
    for name in ["mount", "unshare", "setns", "bpf", "perf_event_open", "syslog"] {
        assert_eq!(actions(&admin, name), [Allow], "{name}");
    }
    assert_eq!(actions(&admin, "keyctl"), [Errno]);
    assert_eq!((actions(&bpf, "bpf"), actions(&bpf, "mount")), (vec![Allow], vec![Errno]));
    assert_eq!((actions(&plain, "ptrace"), actions(&old, "ptrace")), (vec![Allow], vec![Errno]));
    assert_eq!(actions(&tracer, "ptrace"), [Allow]);
    assert_eq!(actions(&plain, "arch_prctl"), [Allow]);
    let arm = profile.to_linux_seccomp(&target(&[], Arch::ScmpArchAarch64, (6, 1)));
    assert!(actions(&arm, "arch_prctl").is_empty());
    assert_eq!(actions(&arm, "set_tls"), [Allow]);
    assert_eq!(arm.architectures().clone().unwrap(), [Arch::ScmpArchAarch64, Arch::ScmpArchArm]);
}

#[test]
fn no_syscall_of_the_default_profile_contradicts_itself() {
    let profile = default_profile();
    let all = crate::tests_support::CAPABILITIES;
    for kernel in [(4, 7), (6, 1)] {
        for capabilities in
            std::iter::once(vec![]).chain(all.iter().map(|one| vec![*one])).chain([all.to_vec()])
        {
            let filter = profile.to_linux_seccomp(&target(&capabilities, Arch::ScmpArchX86_64, kernel));
            let rules = filter.syscalls().iter().flatten();
            let mut seen = std::collections::BTreeMap::new();
            for rule in rules.filter(|rule| rule.args().is_none()) {
                for name in rule.names() {
                    let other = seen.insert(name.clone(), rule.action());
                    assert!(
                        other.is_none_or(|action| action == rule.action()),
                        "{name} with {capabilities:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_common_format_is_read() {
    let json = br#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"], "listenerPath": "", "comment": "kept by others, ignored here",
        "syscalls": [
            {"name": "read", "action": "SCMP_ACT_ALLOW", "args": null, "includes": {}, "excludes": {}},
            {"names": ["write", "exit"], "action": "SCMP_ACT_TRACE", "errnoRet": 7, "args": [
                {"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}], "comment": "x"}
        ]}"#;
    let filter = Profile::parse(json).unwrap().to_linux_seccomp(&target(&[], Arch::ScmpArchX86_64, (6, 1)));
    assert_eq!(filter.architectures().clone().unwrap(), [Arch::ScmpArchX86_64, Arch::ScmpArchX32]);
    assert_eq!(filter.syscalls().as_ref().unwrap().len(), 2);
    assert!(filter.listener_path().is_none());
    let critest = br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}]}"#;
    assert!(Profile::parse(critest).is_ok());
}

#[test]
fn what_is_no_profile_is_refused() {
    let cases: [&[u8]; 9] = [
        b"",
        b"{}",
        b"[]",
        br#"{"defaultAction": "SCMP_ACT_PERHAPS"}"#,
        br#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_VAX"]}"#,
        br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}"#,
        br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "read", "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}]}"#,
        br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "read", "action": "SCMP_ACT_LOG",
            "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
        br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "read", "action": "SCMP_ACT_LOG",
            "includes": {"minKernel": "new"}}]}"#,
    ];
    for json in cases {
        let error = Profile::parse(json).unwrap_err();
        assert_eq!(error.kind(), crisp_domain::ErrorKind::Invalid, "{}", String::from_utf8_lossy(json));
    }
}

#[test]
fn a_localhost_profile_is_a_bounded_regular_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("good.json"), br#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    std::fs::write(path("bad.json"), b"{").unwrap();
    File::create(path("long.json")).unwrap().set_len(PROFILE_BYTES_MAX + 1).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(Profile::load(&path("good.json")).is_ok());
    for name in ["missing.json", "bad.json", "long.json", "fifo", "."] {
        let error = Profile::load(&path(name)).unwrap_err();
        assert_eq!(error.kind(), crisp_domain::ErrorKind::Invalid, "{name}");
    }
    assert!(matches!(Profile::load(Path::new("good.json")), Err(SeccompError::Path { .. })));
}

#[test]
fn kernel_releases_are_parsed() {
    let version = |text: &str| KernelVersion::parse(text).map(|version| (version.major, version.minor));
    for (text, wanted) in
        [("6.12.3-arch1", (6, 12)), ("4.8", (4, 8)), ("5.10+", (5, 10)), ("6.1-rc1", (6, 1))]
    {
        assert_eq!(version(text), Some(wanted), "{text}");
    }
    for text in ["", "6", ".1", "6.", "a.b", "6.x"] {
        assert_eq!(version(text), None, "{text}");
    }
}
