//! Seccomp: profiles in the common JSON format, the filter of one container, its compiled program, and a cache of programs.
//!
//! ```text
//! Profile ── to_linux_seccomp(Target) ──▶ LinuxSeccomp ── compile ──▶ sock_filter[] ── Cache ──▶ seccomp.bpf
//! (JSON, with conditions)                 (in config.json)            (raw BPF)
//! ```
//! Building a program takes milliseconds and loading one microseconds: programs are built once per profile, set of
//! capabilities and version of libseccomp, and every later start and exec copies bytes.
#![forbid(unsafe_code)]

mod cache;
mod compile;
mod error;
mod newer;
mod profile;
#[cfg(test)]
mod tests_support;

pub use cache::Cache;
pub use compile::{compile, filter_flags};
pub use error::SeccompError;
pub use profile::{KernelVersion, PROFILE_BYTES_MAX, Profile, Target, default_profile};
