//! Files of the kernel and of the policy, read up to a bound.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The whole text.
///
/// # Errors
/// What the kernel says; `FileTooLarge` above `bytes_max`, `InvalidData` for other than UTF-8.
pub(crate) fn text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(bytes_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}
