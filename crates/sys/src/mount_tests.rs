//! Real mounts, made in a private mount namespace.
