use oci_spec::runtime::LinuxSeccomp;

use super::*;
use crate::tests_support::{ALLOW, ENOSYS, EPERM, X86, X86_64, verdict};
use crate::{KernelVersion, Profile, Target, default_profile};

fn default_for(capabilities: &[&str]) -> LinuxSeccomp {
    let target = Target {
        capabilities: capabilities.iter().map(ToString::to_string).collect(),
        arch: Arch::ScmpArchX86_64,
        kernel: KernelVersion { major: 6, minor: 1 },
    };
    default_profile().to_linux_seccomp(&target)
}

fn number(name: &str, arch: ScmpArch) -> u32 {
    ScmpSyscall::from_name_by_arch(name, arch).unwrap().as_raw_syscall().try_into().unwrap()
}

fn answer(program: &[u8], name: &str, first: u64) -> u32 {
    verdict(program, X86_64, number(name, ScmpArch::X8664), [first, 0, 0, 0, 0, 0])
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_default_profile_answers_as_it_says() {
    let plain = compile(&default_for(&[])).unwrap();
    let admin = compile(&default_for(&["CAP_SYS_ADMIN"])).unwrap();
    const NEWUSER: u64 = 0x1000_0000;
    const SIGCHLD: u64 = 17;
    let cases = [
        ("read", 0, ALLOW, ALLOW),
        ("openat2", 0, ALLOW, ALLOW),
        ("ptrace", 0, ALLOW, ALLOW),
        ("mount", 0, EPERM, ALLOW),
        ("unshare", 0, EPERM, ALLOW),
        ("keyctl", 0, EPERM, EPERM),
        ("io_uring_setup", 0, EPERM, EPERM),
        ("bpf", 0, EPERM, ALLOW),
        ("clone", SIGCHLD, ALLOW, ALLOW),
        ("clone", SIGCHLD | NEWUSER, EPERM, ALLOW),
        ("clone", 0x7e02_0000, EPERM, ALLOW),
        ("clone3", 0, ENOSYS, ALLOW),
        ("socket", 2, ALLOW, ALLOW),
        ("socket", 40, EPERM, EPERM),
        ("socket", 41, ALLOW, ALLOW),
        ("personality", 0, ALLOW, ALLOW),
        ("personality", 0xffff_ffff, ALLOW, ALLOW),
        ("personality", 0x0004_0000, ENOSYS, ENOSYS),
    ];
    for (name, first, without, with) in cases {
        assert_eq!(answer(&plain, name, first), without, "{name} {first:#x}");
        assert_eq!(answer(&admin, name, first), with, "{name} {first:#x} with CAP_SYS_ADMIN");
    }
    // Of the future, of another architecture, and of an architecture that is not listed.
    assert_eq!(verdict(&plain, X86_64, 900, [0; 6]), ENOSYS);
    assert_eq!(verdict(&plain, X86, number("read", ScmpArch::X86), [0; 6]), ALLOW);
    assert_eq!(verdict(&plain, X86, number("mount", ScmpArch::X86), [0; 6]), EPERM);
    assert_eq!(verdict(&plain, X86_64, number("mount", ScmpArch::X32), [0; 6]), EPERM);
    assert_ne!(verdict(&plain, 0xc000_00b7, 0, [0; 6]), ALLOW);
}

#[test]
fn programs_fit_the_kernel() {
    for capabilities in [&[][..], &crate::tests_support::CAPABILITIES] {
        let program = compile(&default_for(capabilities)).unwrap();
        assert_eq!(program.len() % INSTRUCTION_BYTES, 0);
        assert!(program.len() <= PROGRAM_BYTES_MAX);
    }
}

fn parsed(json: &str) -> LinuxSeccomp {
    Profile::parse(json.as_bytes()).unwrap().to_linux_seccomp(&Target::native([]))
}

#[test]
#[cfg(target_arch = "x86_64")]
fn syscalls_newer_than_a_profile_get_enosys() {
    let rules = r#""syscalls": [{"names": ["read", "openat2", "no_such_call"], "action": "SCMP_ACT_ALLOW"}]"#;
    let archs = r#""architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]"#;
    let quiet =
        compile(&parsed(&format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", {archs}, {rules}}}"#))).unwrap();
    let newest = number("openat2", ScmpArch::X8664);
    for arch in [X86_64, X86] {
        assert_eq!(verdict(&quiet, arch, newest, [0; 6]), ALLOW);
        assert_eq!(verdict(&quiet, arch, newest + 1, [0; 6]), ENOSYS);
        assert_eq!(verdict(&quiet, arch, newest - 1, [0; 6]), EPERM);
    }
    assert_eq!(verdict(&quiet, X86_64, 0x4000_0000 | newest, [0; 6]), ALLOW);
    assert_eq!(verdict(&quiet, X86_64, 0x4000_0000, [0; 6]), ALLOW);
    // A profile that names its errno means it; one that allows lets the kernel answer.
    let explicit = format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, {rules}}}"#);
    assert_eq!(verdict(&compile(&parsed(&explicit)).unwrap(), X86_64, newest + 1, [0; 6]), EPERM);
    let open = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]}"#;
    let open = compile(&parsed(open)).unwrap();
    assert_eq!((verdict(&open, X86_64, 900, [0; 6]), answer(&open, "mount", 0)), (ALLOW, EPERM));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn conditions_on_one_argument_are_alternatives() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 5, "op": "SCMP_CMP_GE"}, {"index": 1, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#;
    let program = compile(&parsed(json)).unwrap();
    for (family, wanted) in [(1, ALLOW), (2, ALLOW), (3, EPERM)] {
        assert_eq!(answer(&program, "socket", family), wanted, "{family}");
    }
    assert_eq!((answer(&program, "personality", 5), answer(&program, "personality", 4)), (ALLOW, EPERM));
}

#[test]
fn listeners_and_unknown_architectures_are_refused() {
    let cases = [
        r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x.sock"}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]}"#,
    ];
    for json in cases {
        assert!(matches!(compile(&parsed(json)), Err(SeccompError::Unsupported(_))), "{json}");
    }
    let unknown = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_M68K"]}"#;
    assert!(matches!(compile(&parsed(unknown)), Err(SeccompError::Profile(_))));
    let flags = r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]}"#;
    assert_eq!(filter_flags(&parsed(flags)).unwrap(), crisp_sys::seccomp::flags::LOG);
}

/// The kernel takes the program and answers as the interpreter does.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_kernel_takes_the_program() {
    let program = crisp_sys::seccomp::Program::parse(&compile(&default_for(&[])).unwrap()).unwrap();
    // A filter belongs to the thread that loads it: this one ends.
    let refused = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        program.load(0).unwrap();
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::from_raw(40),
            rustix::net::SocketType::STREAM,
            None,
        );
        let host = rustix::system::sethostname(b"never-set");
        (std::fs::read("/proc/self/comm").is_ok(), socket.err(), host.err())
    });
    let expected = (true, Some(rustix::io::Errno::PERM), Some(rustix::io::Errno::PERM));
    assert_eq!(refused.join().unwrap(), expected);
}
