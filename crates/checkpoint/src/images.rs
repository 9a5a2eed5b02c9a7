//! What is read of CRIU's images before they are used: the filters that processes get back.
//!
//! An image is `magic, magic, (length, protobuf)…`, little-endian numbers of 32 bits (CRIU, `criu/magic.h`, `images/seccomp.proto`).

use std::io::Read;

use prost::Message;

use crate::error::{CheckpointError, Result};

/// First word of an image.
const COMMON_MAGIC: u32 = 0x5456_4319;
/// Second word of `seccomp.img`.
const SECCOMP_MAGIC: u32 = 0x6441_3049;
/// Bytes of `seccomp.img`: a filter has 32 KiB, and few processes have own ones.
pub const SECCOMP_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone, PartialEq, Message)]
struct SeccompEntry {
    #[prost(message, repeated, tag = "1")]
    filters: Vec<SeccompFilter>,
}

#[derive(Clone, PartialEq, Message)]
struct SeccompFilter {
    #[prost(bytes = "vec", required, tag = "1")]
    filter: Vec<u8>,
    #[prost(uint32, optional, tag = "2")]
    previous: Option<u32>,
}

/// Checks that whatever filters the images hold begin with the one that is given: `filter` is `struct sock_filter[]` of the native byte
/// order. Together with the kernel's word that a process has filters this says that it has that one.
///
/// # Errors
/// [`CheckpointError::Malformed`]; [`CheckpointError::NotRequested`].
pub fn check_filters(seccomp_img: impl Read, filter: &[u8]) -> Result<()> {
    let malformed = |what: &str| CheckpointError::Malformed(format!("seccomp.img: {what}"));
    let mut bytes = Vec::new();
    seccomp_img
        .take(SECCOMP_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(crate::error::io("read seccomp.img"))?;
    let words = [(0, COMMON_MAGIC), (4, SECCOMP_MAGIC)];
    if words.iter().any(|&(at, magic)| word(&bytes, at) != Some(magic)) {
        return Err(malformed("it is no such image"));
    }
    let length = word(&bytes, 8).and_then(|length| usize::try_from(length).ok());
    let message =
        length.and_then(|length| bytes.get(12..12 + length)).ok_or_else(|| malformed("it breaks off"))?;
    if bytes.len() != 12 + message.len() {
        return Err(malformed("it has more than one entry"));
    }
    let entry = SeccompEntry::decode(message).map_err(|error| malformed(&error.to_string()))?;
    let mut first = entry.filters.iter().filter(|filter| filter.previous.is_none());
    if first.any(|first| first.filter != filter) {
        return Err(CheckpointError::NotRequested("its seccomp filter is another one".to_owned()));
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(filters: &[(&[u8], Option<u32>)]) -> Vec<u8> {
        let filters =
            filters.iter().map(|&(filter, previous)| SeccompFilter { filter: filter.to_vec(), previous });
        let message = SeccompEntry { filters: filters.collect() }.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap();
        let words = [COMMON_MAGIC, SECCOMP_MAGIC, length];
        words.iter().flat_map(|word| word.to_le_bytes()).chain(message).collect()
    }

    #[test]
    fn the_first_filter_of_all_is_the_requested_one() {
        check_filters(&image(&[(b"ours", None), (b"own", Some(0))])[..], b"ours").unwrap();
        for wrong in [&[(&b"lax"[..], None)][..], &[(b"ours", None), (b"lax", None)]] {
            let error = check_filters(&image(wrong)[..], b"ours").unwrap_err();
            assert!(matches!(error, CheckpointError::NotRequested(_)), "{error}");
        }
    }

    #[test]
    fn a_broken_image_is_refused() {
        let good = image(&[(b"ours", None)]);
        for cut in 0..good.len() {
            assert!(check_filters(&good[..cut], b"ours").is_err(), "{cut}");
        }
        let twice = [&good[..], &good[8..]].concat();
        assert!(check_filters(&twice[..], b"ours").is_err());
    }
}
