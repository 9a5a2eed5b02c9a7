//! One 512-byte header.

pub(super) const BLOCK: usize = 512;
/// Where a header has its type.
pub(super) const KIND_AT: usize = 156;
pub(super) type Block = [u8; BLOCK];

/// The fields of a header, before extensions.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) path: Vec<u8>,
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) link: Vec<u8>,
    pub(super) device: (u64, u64),
}

/// Mode bits that mean something: permissions, setuid, setgid, sticky.
const MODE_BITS: u64 = 0o7777;

impl Raw {
    pub(super) fn parse(block: &Block) -> Result<Self, &'static str> {
        check_sum(block)?;
        let mode = unsigned(&block[100..108])? & MODE_BITS;
        let kind = block[KIND_AT];
        Ok(Self {
            path: path(block),
            kind,
            mode: u32::try_from(mode).map_err(|_too_large| "a mode is out of range")?,
            uid: unsigned(&block[108..116])?,
            gid: unsigned(&block[116..124])?,
            // Only files and extensions have data; what others say is ignored.
            size: if matches!(kind, b'1'..=b'6') { 0 } else { unsigned(&block[124..136])? },
            mtime: signed(&block[136..148])?,
            link: text(&block[157..257]).to_vec(),
            device: if matches!(kind, b'3' | b'4') {
                (unsigned(&block[329..337])?, unsigned(&block[337..345])?)
            } else {
                (0, 0)
            },
        })
    }
}

/// Name and, in ustar headers, its prefix. The GNU form keeps other things there.
fn path(block: &Block) -> Vec<u8> {
    let ustar = &block[257..263] == b"ustar\0";
    let name = text(&block[..100]);
    let prefix = if ustar { text(&block[345..500]) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// The sum of all bytes, the field itself taken as spaces. Some old writers summed signed bytes.
fn check_sum(block: &Block) -> Result<(), &'static str> {
    let told = signed(&block[148..156])?;
    let field = 148..156;
    let bytes = || block.iter().enumerate().map(|(n, &b)| if field.contains(&n) { b' ' } else { b });
    let sum: i64 = bytes().map(i64::from).sum();
    let old: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
    if told == sum || told == old { Ok(()) } else { Err("a header has a wrong checksum") }
}

/// Up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.iter().position(|&b| b == 0).map_or(field, |end| &field[..end])
}

pub(super) fn unsigned(field: &[u8]) -> Result<u64, &'static str> {
    u64::try_from(signed(field)?).map_err(|_negative| "a number is negative")
}

/// Octal digits between spaces and NULs, or base 256 in two's complement where the first bit is set.
pub(super) fn signed(field: &[u8]) -> Result<i64, &'static str> {
    const OUT_OF_RANGE: &str = "a number is out of range";
    if let Some((&first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // The second bit is the sign.
        let start = i128::from(first & 0x7f) - if first & 0x40 == 0 { 0 } else { 0x80 };
        let number = rest.iter().try_fold(start, |n, &b| n.checked_mul(256)?.checked_add(i128::from(b)));
        return number.and_then(|n| i64::try_from(n).ok()).ok_or(OUT_OF_RANGE);
    }
    let digits =
        field.iter().copied().skip_while(|&b| b == b' ' || b == 0).take_while(|&b| b != b' ' && b != 0);
    let mut number: i64 = 0;
    for digit in digits {
        if !matches!(digit, b'0'..=b'7') {
            return Err("a number is not octal");
        }
        let grown = number.checked_mul(8).and_then(|n| n.checked_add(i64::from(digit - b'0')));
        number = grown.ok_or(OUT_OF_RANGE)?;
    }
    Ok(number)
}
