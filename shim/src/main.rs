//! `crisp-shim`: the supervisor of one pod, and the small programs that it runs from the same file.
//!
//! - `serve --pod-dir DIR`: the supervisor ([`server`]). It inherits its listening socket as descriptor 3.
//! - `launch`: makes one container and ends ([`launch`]).
//! - `init`: PID 1 of a pod whose containers share a PID namespace ([`pod_init`]).
//!
//! The daemon writes this program into a sealed memory file and starts it from there, so that no container can reach a file of
//! the host through `/proc/self/exe`.
#![forbid(unsafe_code)]

mod attach;
mod builtin;
mod cgroup;
mod command;
mod connection;
mod container;
mod control;
mod epoll;
mod error;
mod exec;
mod execs;
mod exit;
mod handler;
mod hooks;
mod launch;
mod lifecycle;
mod log;
mod oci;
mod output;
mod pod_init;
mod process;
mod restore;
mod server;
mod service;
mod userns;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let code = match args.next().and_then(|name| name.into_string().ok()).as_deref() {
        Some("serve") => server::main(args),
        Some("launch") => launch::run(),
        Some("init") => pod_init::run(args),
        _ => {
            use std::io::Write as _;
            let _nobody_reads =
                writeln!(std::io::stderr(), "usage: crisp-shim serve --pod-dir DIR (started by crisp)");
            2
        }
    };
    ExitCode::from(code)
}
