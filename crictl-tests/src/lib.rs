//! Tests from outside: they see what a kubelet sees.
#![forbid(unsafe_code)]

pub mod command;
pub mod images;
pub mod paths;
pub mod prepare;

/// Prints a line on stdout at once.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        // A reader that went away ends nothing here.
        drop(writeln!(std::io::stdout().lock(), $($part)*));
    }};
}
