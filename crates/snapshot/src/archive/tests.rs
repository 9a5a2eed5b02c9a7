//! The parser alone: against archives that GNU tar writes, and against spelled-out headers.

use std::path::Path;
use std::process::Command;

use super::header::signed;
use super::{Archive, Kind, Time};
use crate::Limits;

#[derive(Debug, PartialEq)]
struct Seen {
    path: String,
    kind: Kind,
    size: u64,
    content: Vec<u8>,
}

fn read(tar: &[u8]) -> crate::error::Result<Vec<Seen>> {
    let limits = Limits::default();
    // A reader that gives little at a time shows what relies on full reads.
    let mut archive = Archive::new(Trickle(tar), &limits);
    let mut seen = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut content = vec![0; usize::try_from(entry.size).unwrap_or(0)];
        while let Some(chunk) = archive.data()? {
            let at = usize::try_from(chunk.offset).unwrap_or(0);
            content[at..at + chunk.bytes.len()].copy_from_slice(chunk.bytes);
        }
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        seen.push(Seen { path, kind: entry.kind, size: entry.size, content });
    }
    archive.finish()?;
    Ok(seen)
}

struct Trickle<'a>(&'a [u8]);

impl std::io::Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = buffer.len().min(self.0.len()).min(700);
        let (now, later) = self.0.split_at(len);
        buffer[..len].copy_from_slice(now);
        self.0 = later;
        Ok(len)
    }
}

fn gnu_tar(dir: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .current_dir(dir)
        .args(options)
        .args(["-cf", "-", "--sort=name", "."])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn all_forms_that_gnu_tar_writes_read_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let long = format!("{}/{}", "d".repeat(90), "n".repeat(180));
    std::fs::create_dir(home.join("d".repeat(90))).unwrap();
    std::fs::write(home.join(&long), "long").unwrap();
    std::fs::write(home.join("empty"), "").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), home.join("link")).unwrap();
    // Many runs, so that the map needs more than one header.
    let sparse = std::fs::File::create(home.join("sparse")).unwrap();
    for n in 0..60u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, format!("piece {n}").as_bytes(), n * 65_536)
            .unwrap();
    }
    sparse.set_len(5_000_000).unwrap();
    drop(sparse);
    let whole = std::fs::read(home.join("sparse")).unwrap();

    let forms: [&[&str]; 6] = [
        &["--format=gnu"],
        &["--format=pax"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ];
    for form in forms {
        let tar = gnu_tar(home, form);
        if form.contains(&"--sparse") {
            assert!(tar.len() < 2_000_000, "{form:?} made no sparse file, the test proves nothing");
        }
        let seen = read(&tar).unwrap_or_else(|e| panic!("{form:?}: {e}"));
        let find = |path: &str| {
            seen.iter().find(|s| s.path == format!("./{path}")).unwrap_or_else(|| panic!("{form:?} {path}"))
        };
        assert_eq!(find(&long).content, b"long", "{form:?}");
        assert_eq!((find("empty").kind, find("empty").size), (Kind::File, 0));
        assert_eq!(find("link").kind, Kind::Symlink);
        assert_eq!(find("sparse").size, 5_000_000, "{form:?}");
        assert!(find("sparse").content == whole, "{form:?}: content differs");
        assert_eq!(seen.len(), 6, "{form:?}: {:?}", seen.iter().map(|s| &s.path).collect::<Vec<_>>());
    }
}

#[test]
fn numbers_are_octal_or_base_256() {
    let cases: [(&[u8], Result<i64, ()>); 12] = [
        (b"0000644\0", Ok(0o644)),
        (b"   644 \0", Ok(0o644)),
        (b"\0\0\0\0\0\0\0\0", Ok(0)),
        (b"        ", Ok(0)),
        (b"77777777777\0", Ok(0o77_777_777_777)),
        (b"\x80\0\0\0\0\0\x01\0", Ok(256)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Ok(-2)),
        (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Ok(i64::MAX)),
        (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", Err(())),
        (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Err(())),
        (b"0000648\0", Err(())),
        (b"-000644\0", Err(())),
    ];
    for (field, expected) in cases {
        assert_eq!(signed(field).map_err(drop), expected, "{field:?}");
    }
}

#[test]
fn pax_records_apply_to_the_next_entry_alone() {
    let content = |records: &[(&str, &str)]| -> Vec<u8> {
        records.iter().flat_map(|(key, value)| support::record(key, value.as_bytes())).collect()
    };
    let extension = |records| support::Item { data: content(records), ..support::item(b'x', "pax") };
    let mut tar = Vec::new();
    // Between the extension and its entry comes a long name: the size of 3 is not the long name's.
    let mut header =
        support::header(&extension(&[("size", "3"), ("mtime", "-1.5"), ("comment", "x"), ("uid", "70000")]));
    tar.extend(header);
    support::pad(&mut tar, &content(&[("size", "3"), ("mtime", "-1.5"), ("comment", "x"), ("uid", "70000")]));
    support::append(
        &mut tar,
        support::Item { data: b"very/long/name\0".to_vec(), ..support::item(b'L', "././@LongLink") },
    );
    header = support::header(&support::Item { size: Some(7), ..support::file("short", "") });
    tar.extend(header);
    support::pad(&mut tar, b"abc");
    support::append(&mut tar, support::file("next", "12345"));
    tar.extend([0; 1024]);

    let limits = Limits::default();
    let mut archive = Archive::new(&tar[..], &limits);
    let first = archive.next().unwrap().unwrap();
    assert_eq!((first.path.as_slice(), first.size, first.uid), (b"very/long/name".as_slice(), 3, 70000));
    assert_eq!(first.mtime, Time { secs: -2, nanos: 500_000_000 });
    let next = archive.next().unwrap().unwrap();
    assert_eq!((next.path.as_slice(), next.size, next.uid), (b"next".as_slice(), 5, 0));
    assert_eq!(next.mtime, Time { secs: 1_000_000_000, nanos: 0 });
    assert!(archive.next().unwrap().is_none());
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    let good = support::tar([support::file("f", "x")]);
    let mut wrong_sum = good.clone();
    wrong_sum[0] ^= 1;
    let mut between = support::tar([support::file("f", "x")]);
    between.truncate(1536);
    between.extend(support::tar([support::file("g", "x")]));
    let bare_extension = support::tar([support::item(b'x', "pax")]);
    let negative = support::tar([support::Item { size: Some(u64::MAX), ..support::file("f", "") }]);
    let record = |text: &str| {
        support::tar([
            support::Item { data: text.into(), ..support::item(b'x', "pax") },
            support::file("f", ""),
        ])
    };
    let cases = [
        (b"hello, this is not an archive".repeat(40), "not octal"),
        (wrong_sum, "checksum"),
        (good[..700].to_vec(), "breaks off"),
        (between, "zeros"),
        (bare_extension, "after an extension"),
        (negative, "negative"),
        (record("99 path=x\n"), "record"),
        (record("9 path=x"), "record"),
        (record("1 path=x\n"), "record"),
        (record("path=x\n"), "record"),
        (record("0 "), "record"),
        (record("18446744073709551616 path=x\n"), "record"),
    ];
    for (tar, text) in cases {
        let error = read(&tar).unwrap_err().to_string();
        assert!(error.contains(text), "{text}: {error}");
    }
    assert_eq!(read(&[]).unwrap(), []);
}

#[path = "../../tests/support/mod.rs"]
mod support;
