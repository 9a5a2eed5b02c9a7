//! Archives that mean harm. Whatever they do: a bounded, clear error that names the entry, or a tree inside the root; the
//! host's files stay as they are and a failure leaves nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/private.rs"]
mod private;
mod support;

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crisp_domain::ErrorKind;
use crisp_snapshot::{DeviceNodes, LayerStore, Limits, SnapshotError};
use private::{commit, commit_all, full, in_private_mounts, listing, tree};
use support::*;

/// Files next to the store, which no archive may change.
fn canary(home: &Path) -> std::path::PathBuf {
    let canary = home.join("host");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "host").unwrap();
    canary
}

/// Everything that could show an escape: names, modes, content, times, links.
fn print(path: &Path) -> String {
    let stat = |p: &Path| {
        let stat = std::fs::symlink_metadata(p).unwrap();
        (stat.mode(), stat.uid(), stat.nlink(), stat.mtime(), stat.mtime_nsec(), stat.size())
    };
    format!("{:?} {:?} {:?}", tree(path), stat(path), stat(&path.join("file")))
}

fn assert_nothing_stays(store: &LayerStore, what: &str) {
    for dir in [".staging", ".removed"] {
        let left = std::fs::read_dir(store.path().join(dir)).unwrap().count();
        assert_eq!(left, 0, "{what}: left in {dir}");
    }
    assert!(store.list().is_empty(), "{what}");
}

/// What an archive holds, what kind of error it gives, and a part of its text.
type Refusal = (&'static str, Vec<u8>, ErrorKind, &'static str);

fn refusals() -> Vec<Refusal> {
    use ErrorKind::{Exhausted, Invalid};
    let deep = "d/".repeat(4096);
    let long = "n".repeat(5000);
    vec![
        ("dot dot", tar([file("../host/file", "x")]), Invalid, "leads upwards"),
        ("dot dot inside", tar([file("a/../../host/file", "x")]), Invalid, "leads upwards"),
        ("dot dot directory", tar([dir("..", 0o777)]), Invalid, "leads upwards"),
        ("PAX dot dot", tar([file("ok", "x").pax("path", "../host/file")]), Invalid, "leads upwards"),
        ("PAX NUL", tar([file("ok", "x").pax("path", b"a\0b")]), Invalid, "NUL"),
        ("no name", tar([file("", "x")]), Invalid, "name is empty"),
        ("root as a file", tar([file(".", "x")]), Invalid, "not a directory"),
        ("root as a link", tar([symlink("/", "/etc")]), Invalid, "not a directory"),
        ("link outside", tar([hard_link("l", "../host/file")]), Invalid, "leads upwards"),
        ("link to nothing", tar([hard_link("l", "/host/file")]), Invalid, "does not exist"),
        ("link to a directory", tar([dir("d/", 0o755), hard_link("l", "d")]), Invalid, "to a directory"),
        ("link to itself", tar([hard_link("l", "l")]), Invalid, "itself"),
        ("links to each other", tar([hard_link("a", "b"), hard_link("b", "a")]), Invalid, "does not exist"),
        ("link to the root", tar([hard_link("a", "/")]), Invalid, "cannot have one"),
        ("link to a whiteout", tar([hard_link("a", ".wh.b")]), Invalid, "cannot have one"),
        ("symlink to nothing", tar([symlink("s", "")]), Invalid, "without a target"),
        ("below a file", tar([file("f", ""), file("f/x", "")]), Invalid, "not a directory"),
        (
            "symlink loop",
            tar([symlink("a", "b"), symlink("b", "a"), file("a/x", "")]),
            Invalid,
            "too many links",
        ),
        ("whiteout of dot dot", tar([file("a/.wh...", "")]), Invalid, "whiteout of nothing"),
        ("whiteout of dot", tar([file(".wh..", "")]), Invalid, "whiteout of nothing"),
        ("whiteout of nothing", tar([file(".wh.", "")]), Invalid, "whiteout of nothing"),
        ("in a whiteout", tar([file(".wh.d/x", "")]), Invalid, "in a whiteout"),
        ("whiteout by hand", tar([device("w", b'3', 0, 0)]), Invalid, "whiteout made by hand"),
        ("device out of range", tar([device("w", b'4', 4096, 0)]), Invalid, "out of range"),
        ("owner -1", tar([file("f", "").owner(u32::MAX.into(), 0)]), Invalid, "owner is out of range"),
        ("owner above", tar([file("f", "").pax("gid", "4294967296")]), Invalid, "owner is out of range"),
        ("unknown type", tar([item(b'V', "label")]), Invalid, "unknown type"),
        ("too deep", tar([dir(&deep, 0o755)]), Exhausted, "path_bytes_max"),
        ("deep", tar([dir(&deep[..2 * 300], 0o755)]), Exhausted, "depth_max"),
        ("long path", tar([file(&long, "")]), Exhausted, "path_bytes_max"),
        ("long target", tar([symlink("s", &long)]), Exhausted, "path_bytes_max"),
        ("long name", tar([file(&"n".repeat(300), "")]), Invalid, "nnnn"),
        (
            "big xattr",
            tar([file("f", "").pax("SCHILY.xattr.user.a", vec![b'x'; 200_000])]),
            Exhausted,
            "xattr_bytes_max",
        ),
        ("xattr without a name", tar([file("f", "").pax("SCHILY.xattr.", "x")]), Invalid, "no valid name"),
        ("bad PAX number", tar([file("f", "").pax("uid", "-1")]), Invalid, "not decimal"),
        ("bad PAX time", tar([file("f", "").pax("mtime", "1.x")]), Invalid, "time"),
        ("huge sparse file", tar([sparse(1 << 62, "0,0", "")]), Exhausted, "file_bytes_max"),
        ("overlapping map", tar([sparse(100, "0,2,1,2", "abcd")]), Invalid, "overlaps"),
        ("map beyond the file", tar([sparse(3, "0,4", "abcd")]), Invalid, "exceeds"),
        ("map beyond numbers", tar([sparse(3, "18446744073709551615,4", "abcd")]), Invalid, "out of range"),
        ("map without data", tar([sparse(9, "0,5", "abcd")]), Invalid, "does not fit"),
        ("odd map", tar([sparse(9, "0,4,5", "abcd")]), Invalid, "sparse map"),
    ]
}

fn sparse(size: u64, map: &str, data: &str) -> Item {
    let size = size.to_string();
    file("sparse", data).pax("GNU.sparse.major", "0").pax("GNU.sparse.size", size).pax("GNU.sparse.map", map)
}

#[test]
fn hostile_entries_are_refused_by_name_and_leave_nothing() {
    in_private_mounts("hostile_entries_are_refused_by_name_and_leave_nothing", |home| {
        let canary = canary(home);
        let before = print(&canary);
        let store = LayerStore::open(home).unwrap();
        for (what, tar, kind, text) in refusals() {
            let error = commit(&store, None, &tar).expect_err(what);
            let said = full(&error);
            assert!(said.contains(text) && error.kind() == kind, "{what}: {:?} {said}", error.kind());
            assert_nothing_stays(&store, what);
        }
        assert_eq!(print(&canary), before);
    });
}

#[test]
fn links_never_lead_outside() {
    in_private_mounts("links_never_lead_outside", |home| {
        let canary = canary(home);
        let outside = canary.to_str().unwrap();
        let before = print(&canary);
        // Far more steps upwards than there are directories.
        let up = format!("{}{}", "../".repeat(40), outside.trim_start_matches('/'));
        for (n, target) in
            [outside, &up, "/proc/self/root", "/proc/self/cwd/../../..", "..", "/"].into_iter().enumerate()
        {
            let below = tar([symlink("out", target), symlink("etc", &format!("out/{n}"))]);
            let above = [
                file("out/file", "changed").mode(0o4777).owner(5, 5),
                dir("out/", 0o777),
                symlink("out2", target),
                file("out2/file", "changed").mode(0o777),
                dir("out2/new/", 0o777),
                hard_link("stolen", "file"),
                file("out2/.wh.file", ""),
                file("out2/.wh..wh..opq", ""),
                file("etc/x", "x"),
                symlink("file", "/etc/passwd"),
            ];
            let root = home.join(format!("root{n}"));
            let store = LayerStore::open(&root).unwrap();
            let bottom = commit(&store, None, &below).unwrap();
            // In one layer, and in a layer above: some of it may be refused, nothing gets out.
            for item in above.clone() {
                drop(commit(&store, Some(&bottom), &tar([item])));
            }
            drop(commit(&store, Some(&bottom), &tar(above)));
            assert_eq!(print(&canary), before, "{target}");
        }
        assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 1);
    });
}

/// CVE-2025-47290: somebody exchanges a directory for a link while a layer is unpacked.
#[test]
fn exchanged_directories_win_no_race() {
    in_private_mounts("exchanged_directories_win_no_race", |home| {
        let canary = canary(home);
        let before = print(&canary);
        let store = LayerStore::open(home).unwrap();
        let swap = home.join("swap");
        std::os::unix::fs::symlink(&canary, &swap).unwrap();
        let items = (0..400).flat_map(|n| {
            let name = if n % 2 == 0 { "file".to_owned() } else { n.to_string() };
            [
                file(&format!("d/{name}"), "changed"),
                dir("d/", 0o777),
                file("elsewhere/f", "x"),
                hard_link("l", "d/file"),
            ]
        });
        let tar = tar(items);
        let staging = store.path().join(".staging");
        let (done, swapped) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for layer in std::fs::read_dir(&staging).unwrap().flatten() {
                        let from = layer.path().join("fs/d");
                        let exchange = rustix::fs::RenameFlags::EXCHANGE;
                        let cwd = rustix::fs::CWD;
                        let exchanged = rustix::fs::renameat_with(cwd, &from, cwd, &swap, exchange).is_ok();
                        swapped.fetch_add(u32::from(exchanged), Ordering::Relaxed);
                    }
                }
            });
            // With fewer exchanges the test would prove nothing, however fast the archives are read.
            let (mut rounds, deadline) = (0, Instant::now() + Duration::from_secs(120));
            while rounds < 20 || (swapped.load(Ordering::Relaxed) <= 20 && Instant::now() < deadline) {
                drop(commit(&store, None, &tar));
                rounds += 1;
            }
            done.store(true, Ordering::Relaxed);
        });
        let swapped = swapped.into_inner();
        assert!(swapped > 20, "only {swapped} exchanges, the test proves nothing");
        assert_eq!(print(&canary), before);
    });
}

#[test]
fn absolute_names_mean_the_image() {
    in_private_mounts("absolute_names_mean_the_image", |home| {
        let store = LayerStore::open(home).unwrap();
        let chain = commit_all(
            &store,
            &[tar([file("/etc/f", "x"), file("//./etc//g", "y"), hard_link("/l", "/etc/f")])],
        );
        let found = listing(&store, &chain, &home.join("view"));
        assert_eq!(
            (found["etc/f"].as_str(), found["etc/g"].as_str(), found["l"].as_str()),
            ("file 644 x", "file 644 y", "file 644 x")
        );
    });
}

#[test]
fn device_nodes_are_made_or_refused_as_told() {
    in_private_mounts("device_nodes_are_made_or_refused_as_told", |home| {
        let store = LayerStore::open(home).unwrap();
        let tar = tar([device("sda", b'4', 8, 0).mode(0o660)]);
        let refuse = Limits { device_nodes: DeviceNodes::Refuse, ..Limits::default() };
        let error = store.unpack(&tar[..], &refuse).unwrap_err();
        assert!(
            error.to_string().contains("\"sda\"") && error.to_string().contains("device node"),
            "{error}"
        );
        let chain = commit_all(&store, &[tar]);
        assert_eq!(listing(&store, &chain, &home.join("view"))["sda"], "device 660 800");
    });
}

#[test]
fn bombs_stop_at_their_limit() {
    in_private_mounts("bombs_stop_at_their_limit", |home| {
        let store = LayerStore::open(home).unwrap();
        let small = Limits {
            entries_max: 1000,
            stream_bytes_max: 64 << 20,
            file_bytes_max: 32 << 20,
            sparse_pieces_max: 1000,
            remembered_bytes_max: 64 << 10,
            ..Limits::default()
        };
        let ratio = Limits { compressed_bytes: Some(1000), ..Limits::default() };
        let many = || io::repeat(0).take(0).chain(Repeat::of(&one(file("f", ""))));
        let wide = (0..500)
            .map(|n| one(dir(&format!("{}{n}/", "d/".repeat(60)), 0o755)))
            .collect::<Vec<_>>()
            .concat();
        let whiteouts = (0..900).map(|n| one(file(&format!(".wh.{n}"), ""))).collect::<Vec<_>>().concat();
        let map = format!("{}1,0", "1,0,".repeat(2000));
        let cases: Vec<(&str, Box<dyn Read>, &Limits, &str)> = vec![
            ("entries", Box::new(many()), &small, "entries_max"),
            ("extensions", Box::new(Repeat::of(&one(item(b'x', "pax")))), &small, "extension headers"),
            (
                "one big file",
                Box::new(leak(one(Item { size: Some(33 << 20), ..file("f", "") }))),
                &small,
                "file_bytes_max",
            ),
            ("zeros after the end", Box::new(io::repeat(0)), &small, "stream_bytes_max"),
            ("ratio", Box::new(io::repeat(0)), &ratio, "stream_bytes_max of 268435456"),
            ("implied directories", Box::new(io::Cursor::new(wide)), &small, "remembered_bytes_max"),
            ("whiteouts", Box::new(io::Cursor::new(whiteouts)), &small, "remembered_bytes_max"),
            (
                "sparse pieces",
                Box::new(io::Cursor::new(tar([sparse(9, &map, "")]))),
                &small,
                "sparse_pieces_max",
            ),
            ("long name of 1 GiB", Box::new(long_name(1 << 30)), &small, "extension_bytes_max"),
            ("sparse map in data", Box::new(endless_map()), &small, "sparse_pieces_max"),
        ];
        for (what, stream, limits, text) in cases {
            let error = store.unpack(stream, limits).expect_err(what);
            assert!(error.to_string().contains(text), "{what}: {}", full(&error));
            assert_nothing_stays(&store, what);
        }
    });
}

#[test]
fn layers_that_wait_share_a_limit() {
    in_private_mounts("layers_that_wait_share_a_limit", |home| {
        let store = LayerStore::open(home).unwrap();
        let limits = Limits { waiting_bytes_max: 30 << 10, ..Limits::default() };
        let layer = |name: &str| {
            let whiteouts =
                (0..100).map(|n| one(file(&format!(".wh.{name}{n}"), ""))).collect::<Vec<_>>().concat();
            store.unpack(io::Cursor::new(whiteouts), &limits)
        };
        let (first, second) = (layer("a").unwrap(), layer("b").unwrap());
        let error = layer("c").unwrap_err();
        assert!(error.to_string().contains("waiting_bytes_max"), "{}", full(&error));
        // Those that are there, or were given up, wait no more.
        let committed = store.commit(first, None).unwrap();
        drop(second);
        let (third, fourth) = (layer("c").unwrap(), layer("d").unwrap());
        assert!(layer("e").is_err());
        drop((third, fourth));
        store.remove(&committed).unwrap();
        assert_nothing_stays(&store, "given up");
    });
}

fn one(item: Item) -> Vec<u8> {
    let mut out = Vec::new();
    append(&mut out, item);
    out
}

fn leak(bytes: Vec<u8>) -> &'static [u8] {
    Vec::leak(bytes)
}

/// A GNU long name that claims this size and goes on forever.
fn long_name(size: u64) -> impl Read {
    io::Cursor::new(header(&Item { size: Some(size), ..item(b'L', "././@LongLink") })).chain(io::repeat(b'a'))
}

/// A sparse file of form 1.0 whose map claims very many pieces.
fn endless_map() -> impl Read {
    let pax = file("f", "")
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.realsize", "9");
    io::Cursor::new(one(Item { size: Some(30 << 20), ..pax }))
        .chain(io::Cursor::new(b"99999999999\n".to_vec()))
        .chain(Repeat::of(b"0\n"))
}

/// The same bytes, forever.
struct Repeat(Vec<u8>, usize);

impl Repeat {
    fn of(bytes: &[u8]) -> Self {
        Self(bytes.to_vec(), 0)
    }
}

impl Read for Repeat {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(self.0.len() - self.1);
        buffer[..len].copy_from_slice(&self.0[self.1..self.1 + len]);
        self.1 = (self.1 + len) % self.0.len();
        Ok(len)
    }
}

#[test]
fn a_stream_that_breaks_off_anywhere_leaves_nothing() {
    in_private_mounts("a_stream_that_breaks_off_anywhere_leaves_nothing", |home| {
        let store = LayerStore::open(home).unwrap();
        let long = "n".repeat(150);
        let whole = tar([dir("d/", 0o755), file("d/f", vec![1; 3000]), file(&long, "x"), symlink("s", "d")]);
        for end in (0..whole.len()).step_by(100) {
            // Between two entries the end of the stream counts as the end of the archive; the digest tells.
            let Err(error) = store.unpack(&whole[..end], &Limits::default()) else { continue };
            assert_eq!(error.kind(), ErrorKind::Invalid, "{end}: {}", full(&error));
            assert_nothing_stays(&store, "cut off");
        }
        struct Cancelled;
        impl Read for Cancelled {
            fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the pull was cancelled"))
            }
        }
        let error = store.unpack(whole[..2000].chain(Cancelled), &Limits::default()).unwrap_err();
        assert!(
            matches!(&error, SnapshotError::Stream { offset: 2000, source } if source.to_string().contains("cancelled"))
        );
        assert_nothing_stays(&store, "cancelled");
    });
}

#[test]
fn flipped_bytes_never_escape_or_hang() {
    in_private_mounts("flipped_bytes_never_escape_or_hang", |home| {
        let canary = canary(home);
        let before = print(&canary);
        let store = LayerStore::open(home).unwrap();
        let long = "n".repeat(150);
        let items = [
            dir("d/", 0o755),
            file("d/f", "content").pax("SCHILY.xattr.user.a", "b"),
            file(&long, "x"),
            symlink("s", "../../host"),
            hard_link("h", "d/f"),
            sparse(5000, "0,2,4000,2", "abcd"),
        ];
        let whole = tar(items);
        let limits = Limits { stream_bytes_max: 1 << 20, file_bytes_max: 1 << 20, ..Limits::default() };
        for at in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            // Headers are caught by their checksum: repair it, so that what it guards is read.
            repair_checksums(&mut bytes);
            if let Ok(staged) = store.unpack(&bytes[..], &limits) {
                drop(store.commit(staged, None));
            }
        }
        assert_eq!(print(&canary), before);
        assert_eq!(std::fs::read_dir(store.path().join(".staging")).unwrap().count(), 0);
    });
}

fn repair_checksums(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

#[test]
fn the_diff_id_covers_the_stream_to_its_last_byte() {
    in_private_mounts("the_diff_id_covers_the_stream_to_its_last_byte", |home| {
        let store = LayerStore::open(home).unwrap();
        let mut bytes = tar([file("f", "x")]);
        bytes.extend(b"trailing bytes behind the end of the archive");
        let path = home.join("layer.tar");
        std::fs::write(&path, &bytes).unwrap();
        let sum = std::process::Command::new("sha256sum").arg(&path).output().unwrap();
        let staged = store.unpack(&bytes[..], &Limits::default()).unwrap();
        assert_eq!(staged.diff_id().hex().as_bytes(), &sum.stdout[..64]);
    });
}

#[test]
fn a_full_disk_is_exhaustion_and_leaves_nothing() {
    in_private_mounts("a_full_disk_is_exhaustion_and_leaves_nothing", |home| {
        let disk = home.join("disk");
        std::fs::create_dir(&disk).unwrap();
        crisp_sys::mount::tmpfs(&disk, &crisp_sys::mount::Tmpfs { bytes_max: Some(1 << 20), mode: 0o755 })
            .unwrap();
        let store = LayerStore::open(&disk).unwrap();
        let error = store.unpack(&tar([file("f", vec![1; 3 << 20])])[..], &Limits::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{}", full(&error));
        assert_nothing_stays(&store, "full disk");
        drop(store);
        crisp_sys::mount::unmount_detach(&disk).unwrap();
    });
}
