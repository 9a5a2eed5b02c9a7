//! Crisp: the Kubernetes container runtime's daemon and its command line.
#![forbid(unsafe_code)]

fn main() {}
