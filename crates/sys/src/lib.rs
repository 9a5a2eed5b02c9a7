//! Safe kernel calls for the other crates. Unsafe code is admitted per module, here in this list.

#[allow(unsafe_code, reason = "bpf(2) has no safe wrapper")]
pub mod bpf;
#[allow(unsafe_code, reason = "clone3(2), fork and what a child does before exec")]
pub mod clone;
pub mod fdpass;
#[allow(unsafe_code, reason = "mount_setattr(2) has no safe wrapper")]
pub mod idmap;
pub mod mount;
#[allow(unsafe_code, reason = "unshare(2) and setns(2) on a thread made for it")]
pub mod netns;
pub mod path;
pub mod pidfd;
#[allow(unsafe_code, reason = "seccomp(2) takes a pointer to a program")]
pub mod seccomp;
#[allow(unsafe_code, reason = "setfsuid(2) has no safe wrapper, nor has asking for a namespace's owner")]
pub mod userns;
