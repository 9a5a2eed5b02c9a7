//! PAX extended headers: `<length> <key>=<value>\n`, again and again.

use super::Time;
use super::sparse::Piece;

/// The values that matter to us.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
}

/// GNU's keys for sparse files.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// Apparent size of the file.
    pub(super) size: Option<u64>,
    pub(super) map: Vec<Piece>,
    /// Form 0.0: an offset whose length comes next.
    offset: Option<u64>,
}

#[derive(Debug)]
pub(super) enum Refusal {
    Malformed(&'static str),
    /// Too many bytes of extended attributes.
    Xattrs,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    pub(super) fn parse(mut content: &[u8], xattr_bytes_max: usize) -> Result<Self, Refusal> {
        let mut pax = Self::default();
        let mut xattr_bytes = 0;
        while !content.is_empty() {
            let (key, value, rest) =
                record(content).ok_or(Refusal::Malformed("an extension record is not valid"))?;
            content = rest;
            if let Some(name) = key.strip_prefix(XATTR) {
                xattr_bytes += name.len() + value.len();
                if xattr_bytes > xattr_bytes_max {
                    return Err(Refusal::Xattrs);
                }
                pax.set_xattr(name, value)?;
            } else {
                pax.set(key, value).map_err(Refusal::Malformed)?;
            }
        }
        Ok(pax)
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        if name.is_empty() || name.contains(&0) {
            return Err(Refusal::Malformed("an extended attribute has no valid name"));
        }
        self.xattrs.retain(|(other, _)| other != name);
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    /// An empty value takes a key back, as POSIX has it.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => self.path = path(value)?,
            b"linkpath" => self.linkpath = path(value)?,
            b"size" => self.size = decimal(value)?,
            b"uid" => self.uid = decimal(value)?,
            b"gid" => self.gid = decimal(value)?,
            b"mtime" => self.mtime = time(value)?,
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, value)?;
                }
            }
        }
        Ok(())
    }
}

impl Sparse {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"major" => self.major = decimal(value)?,
            b"name" => self.name = path(value)?,
            b"size" | b"realsize" => self.size = decimal(value)?,
            b"offset" => self.offset = decimal(value)?,
            b"numbytes" => {
                let (Some(offset), Some(len)) = (self.offset.take(), decimal(value)?) else {
                    return Err("a sparse map is not valid");
                };
                self.map.push(Piece { offset, len });
            }
            b"map" => self.map = map(value)?,
            _ => {}
        }
        Ok(())
    }
}

/// Form 0.1: offsets and lengths, separated by commas.
fn map(value: &[u8]) -> Result<Vec<Piece>, &'static str> {
    const NOT_VALID: &str = "a sparse map is not valid";
    let mut pieces = Vec::new();
    let mut numbers = value.split(|&b| b == b',').filter(|text| !text.is_empty());
    while let Some(offset) = numbers.next() {
        let len = numbers.next().ok_or(NOT_VALID)?;
        let (Some(offset), Some(len)) = (decimal(offset)?, decimal(len)?) else { return Err(NOT_VALID) };
        pieces.push(Piece { offset, len });
    }
    Ok(pieces)
}

/// Key, value and what follows. The length counts itself, the space and the newline.
fn record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = content.iter().take(20).position(|&b| b == b' ')?;
    let len = usize::try_from(decimal(&content[..space]).ok()??).ok()?;
    let (record, rest) = content.split_at_checked(len)?;
    let text = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|&b| b == b'=')?;
    Some((&text[..equals], &text[equals + 1..], rest))
}

fn path(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if value.contains(&0) {
        return Err("a path contains a NUL");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

pub(super) fn decimal(value: &[u8]) -> Result<Option<u64>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    let digit = |n: u64, &b: &u8| match b {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    };
    value.iter().try_fold(0, digit).map(Some).ok_or("a number is not decimal or out of range")
}

/// Seconds, which may be negative, with decimals, of which nine count.
fn time(value: &[u8]) -> Result<Option<Time>, &'static str> {
    const NOT_VALID: &str = "a time is not valid";
    if value.is_empty() {
        return Ok(None);
    }
    let (negative, value) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let mut parts = value.splitn(2, |&b| b == b'.');
    let whole = decimal(parts.next().unwrap_or_default())?.ok_or(NOT_VALID)?;
    let secs = i64::try_from(whole).map_err(|_too_large| NOT_VALID)?;
    let decimals = parts.next().unwrap_or_default();
    if !decimals.iter().all(u8::is_ascii_digit) {
        return Err(NOT_VALID);
    }
    let digits = decimals.iter().map(|b| u32::from(b - b'0')).chain(std::iter::repeat(0)).take(9);
    let nanos = digits.fold(0, |n, digit| n * 10 + digit);
    Ok(Some(match (negative, nanos) {
        (false, _) => Time { secs, nanos },
        (true, 0) => Time { secs: -secs, nanos: 0 },
        (true, _) => Time { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    }))
}
