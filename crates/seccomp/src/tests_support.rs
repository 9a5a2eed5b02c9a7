//! What the tests of several modules share: an interpreter of seccomp's BPF, and the capabilities of the default profile.

/// Capabilities that the default profile's conditions name.
pub(crate) const CAPABILITIES: [&str; 14] = [
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_DAC_READ_SEARCH",
    "CAP_BPF",
    "CAP_PERFMON",
    "CAP_SYSLOG",
];

pub(crate) const X86_64: u32 = 0xc000_003e;
pub(crate) const X86: u32 = 0x4000_0003;

pub(crate) const ALLOW: u32 = 0x7fff_0000;
pub(crate) const EPERM: u32 = 0x0005_0001;
pub(crate) const ENOSYS: u32 = 0x0005_0026;

/// What the program answers to a syscall, computed as the kernel would (`Documentation/networking/filter.rst`).
pub(crate) fn verdict(program: &[u8], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(nr.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend([0; 8]);
    args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
    let (mut at, mut a) = (0usize, 0u32);
    loop {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = program[at * 8..at * 8 + 8].try_into().unwrap();
        let k = u32::from_ne_bytes([k0, k1, k2, k3]);
        at += 1;
        let branch = |taken: bool| at + usize::from(if taken { jt } else { jf });
        match u16::from_ne_bytes([c0, c1]) {
            0x20 => a = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => at = branch(a == k),
            0x25 => at = branch(a > k),
            0x35 => at = branch(a >= k),
            0x45 => at = branch(a & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x} is not known to this test"),
        }
    }
}
