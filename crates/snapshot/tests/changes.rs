//! A container's changes, written as a layer and brought into another container's writable directory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/private.rs"]
mod private;
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crisp_domain::ErrorKind;
use crisp_snapshot::{LayerStore, Limits, Rootfs, SnapshotError};
use private::{commit_all, in_private_mounts, tree};
use support::*;

fn image() -> Vec<Vec<u8>> {
    let below =
        vec![dir("a/", 0o755), file("a/old", "old"), dir("b/", 0o755), file("b/x", "x"), file("gone", "g")];
    vec![tar(below), tar(vec![file("a/second", "2")])]
}

/// What a container might do.
fn change(root: &Path) {
    fs::write(root.join("a/new"), "new").unwrap();
    fs::hard_link(root.join("a/new"), root.join("linked")).unwrap();
    fs::set_permissions(root.join("a/new"), fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(root.join("a/old"), Some(1000), Some(1001)).unwrap();
    symlink("/etc/shadow", root.join("link")).unwrap();
    fs::remove_file(root.join("gone")).unwrap();
    // Made anew, it shows nothing of its predecessor.
    fs::remove_dir_all(root.join("b")).unwrap();
    fs::create_dir(root.join("b")).unwrap();
    fs::write(root.join("b/y"), "y").unwrap();
    let long = root.join("n".repeat(200)).join("m".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("f"), vec![7; 300_000]).unwrap();
    rustix::fs::setxattr(root.join("a/new"), "user.note", b"hi", rustix::fs::XattrFlags::empty()).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), fifo, 0o644.into(), 0).unwrap();
}

#[test]
fn changes_come_back_in_another_container() {
    in_private_mounts("changes_come_back_in_another_container", |home| {
        let store = LayerStore::open(home).unwrap();
        let chain = commit_all(&store, &image());
        let (first, second) = (home.join("first"), home.join("second"));
        let (here, there) = (home.join("here"), home.join("there"));
        let _mounted = Rootfs::prepare(&store, &first, &chain, &here).unwrap();
        change(&here);
        let mut layer = Vec::new();
        let mut deleted = Rootfs::write_changes(&first, &mut layer).unwrap();
        deleted.sort();
        assert_eq!(deleted, [Path::new("/gone")]);
        Rootfs::read_changes(&store, &chain, &layer[..], &second, &Limits::default()).unwrap();
        let _mounted = Rootfs::prepare(&store, &second, &chain, &there).unwrap();
        assert_eq!(tree(&there), tree(&here));
        assert!(!there.join("b/x").exists() && !there.join("gone").exists());
        let mut note = [0; 2];
        rustix::fs::getxattr(there.join("a/new"), "user.note", &mut note[..]).unwrap();
        assert_eq!(&note, b"hi");
        // And once more from there, the same.
        let mut again = Vec::new();
        Rootfs::write_changes(&second, &mut again).unwrap();
        let third = home.join("third");
        Rootfs::read_changes(&store, &chain, &again[..], &third, &Limits::default()).unwrap();
        let other = home.join("other");
        let _mounted = Rootfs::prepare(&store, &third, &chain, &other).unwrap();
        assert_eq!(tree(&other), tree(&here));
        for at in [&here, &there, &other] {
            Rootfs::unmount(at).unwrap();
        }
    });
}

#[test]
fn hostile_changes_leave_nothing() {
    in_private_mounts("hostile_changes_leave_nothing", |home| {
        let store = LayerStore::open(home).unwrap();
        let chain = commit_all(&store, &image());
        fs::write(home.join("outside"), "untouched").unwrap();
        let hostile = [
            vec![file("../../outside", "x")],
            vec![symlink_item("l", ".."), file("l/../../outside", "x")],
            vec![hard_link("h", "../outside")],
            vec![device("white", b'3', 0, 0)],
        ];
        for items in hostile {
            let bad = tar(items);
            let error: SnapshotError =
                Rootfs::read_changes(&store, &chain, &bad[..], &home.join("w"), &Limits::default())
                    .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        }
        assert!(!home.join("w/upper").exists());
        assert_eq!(fs::read_to_string(home.join("outside")).unwrap(), "untouched");
        assert_eq!(fs::read_dir(home.join("layers/.staging")).unwrap().count(), 0);
    });
}

fn symlink_item(path: &str, target: &str) -> Item {
    support::symlink(path, target)
}
