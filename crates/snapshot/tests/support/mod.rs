//! Archives to order, honest and hostile, and private mounts to unpack them in.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

/// One entry; what is not set is zero or empty.
#[derive(Clone)]
pub struct Item {
    pub path: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    pub link: Vec<u8>,
    pub data: Vec<u8>,
    pub device: (u32, u32),
    pub pax: Vec<(String, Vec<u8>)>,
    /// Size in the header where it is not that of the data.
    pub size: Option<u64>,
}

pub fn item(kind: u8, path: impl AsRef<[u8]>) -> Item {
    Item {
        path: path.as_ref().to_vec(),
        kind,
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        mtime: 1_000_000_000,
        link: Vec::new(),
        data: Vec::new(),
        device: (0, 0),
        pax: Vec::new(),
        size: None,
    }
}

pub fn file(path: &str, data: impl AsRef<[u8]>) -> Item {
    Item { data: data.as_ref().to_vec(), ..item(b'0', path) }
}

pub fn dir(path: &str, mode: u32) -> Item {
    Item { mode, ..item(b'5', path) }
}

pub fn symlink(path: &str, target: &str) -> Item {
    Item { link: target.into(), mode: 0o777, ..item(b'2', path) }
}

pub fn hard_link(path: &str, target: &str) -> Item {
    Item { link: target.into(), ..item(b'1', path) }
}

pub fn device(path: &str, kind: u8, major: u32, minor: u32) -> Item {
    Item { device: (major, minor), ..item(kind, path) }
}

impl Item {
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.into(), value.as_ref().to_vec()));
        self
    }
}

/// A whole archive, with its end.
pub fn tar(items: impl IntoIterator<Item = Item>) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        append(&mut out, item);
    }
    out.extend([0; 1024]);
    out
}

/// One entry, with extensions where its fields do not fit a header.
pub fn append(out: &mut Vec<u8>, mut item: Item) {
    if item.path.len() > 100 && !item.pax.iter().any(|(key, _)| key == "path") {
        item.pax.push(("path".into(), item.path.clone()));
    }
    if item.link.len() > 100 {
        item.pax.push(("linkpath".into(), item.link.clone()));
    }
    if !item.pax.is_empty() {
        let content: Vec<u8> = item.pax.iter().flat_map(|(key, value)| record(key, value)).collect();
        out.extend(header(&Item { data: content.clone(), ..self::item(b'x', "pax") }));
        pad(out, &content);
    }
    out.extend(header(&item));
    pad(out, &item.data);
}

pub fn pad(out: &mut Vec<u8>, data: &[u8]) {
    out.extend(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// A PAX record, whose length counts itself.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let bare = key.len() + value.len() + 3;
    let mut len = bare + 1;
    while len != bare + len.to_string().len() {
        len = bare + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

pub fn header(item: &Item) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let octal = |n: u64| format!("{n:07o}\0").into_bytes();
    put(0, &item.path[..item.path.len().min(100)]);
    put(100, &octal(item.mode.into()));
    put(108, &number8(item.uid));
    put(116, &number8(item.gid));
    put(124, &number12(item.size.unwrap_or(item.data.len() as u64)));
    put(136, &number12(item.mtime.cast_unsigned()));
    put(148, b"        ");
    put(156, &[item.kind]);
    put(157, &item.link[..item.link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, &octal(item.device.0.into()));
    put(337, &octal(item.device.1.into()));
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Octal where it fits, else base 256.
fn number8(n: u64) -> Vec<u8> {
    if n < 1 << 21 { format!("{n:07o}\0").into_bytes() } else { with_mark(&n.to_be_bytes()) }
}

fn number12(n: u64) -> Vec<u8> {
    if n < 1 << 33 {
        return format!("{n:011o}\0").into_bytes();
    }
    let sign = if n >> 63 == 1 { 0xff } else { 0 };
    with_mark(&[[sign; 4].as_slice(), &n.to_be_bytes()].concat())
}

fn with_mark(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[0] |= 0x80;
    bytes
}
