//! Making processes: `clone3` in a process of one thread, starting a program from a multithreaded one, and what a child does
//! between the two and `execve`.

mod descriptors;
mod fork;
mod idle;
mod program;
mod signals;
mod spawn;

pub use descriptors::{claim_inherited, close_all_from_except, close_on_exec_from, dup_above, dup_onto};
pub use fork::{
    Child, CloneArgs, Parent, SingleThreaded, end_now, enter_new_cgroup_namespace, enter_new_mount_namespace,
    exec, exec_descriptor,
};
pub(crate) use idle::Idle;
pub use program::{ProgramText, sealed_program};
pub(crate) use signals::probe as probe_signal;
pub use signals::{reset as reset_signals, signal_from_number, watch as watch_signals};
pub use spawn::{SPAWN_FDS_MAX, Spawn};
