//! Real user namespaces and mapped mounts.
#![allow(clippy::print_stderr, reason = "what is not run is said")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::idmap;
use crate::mount::{Reach, attach, unmount_detach};

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("NOT RUN, needs root");
    }
    root
}

#[test]
fn a_namespace_has_its_mapping_and_no_process() {
    if !root() {
        return;
    }
    let namespace = with_mapping(&IdMap::shifted(100_000, 65_536)).unwrap();
    let own = open(Path::new("/proc/self/ns/user")).unwrap();
    assert!(!same(&namespace, &own).unwrap() && same(&own, &own).unwrap());
    let overlapping =
        vec![IdRange { inside: 0, outside: 1, length: 9 }, IdRange { inside: 4, outside: 100, length: 9 }];
    let wrong = IdMap { uids: overlapping.clone(), gids: overlapping };
    assert_eq!(with_mapping(&wrong).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn work_as_a_user_owns_what_it_makes_and_may_go_anywhere() {
    if !root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let closed = home.path().join("closed");
    fs::create_dir(&closed).unwrap();
    std::os::unix::fs::chown(&closed, Some(7), Some(7)).unwrap();
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    as_user(70_000, 70_001, || fs::write(closed.join("note"), "x").unwrap()).unwrap();
    let made = fs::metadata(closed.join("note")).unwrap();
    assert_eq!((made.uid(), made.gid()), (70_000, 70_001));
    fs::write(closed.join("mine"), "x").unwrap();
    assert_eq!(fs::metadata(closed.join("mine")).unwrap().uid(), 0);
}

/// On a tmpfs of its own, in a mount namespace of its own.
#[test]
fn a_mapped_mount_shows_other_owners_both_ways() {
    if !root() {
        return;
    }
    let body = || {
        crate::clone::enter_new_mount_namespace().unwrap();
        crate::mount::make_private(Path::new("/"), Reach::Recursive).unwrap();
        let home = tempfile::tempdir().unwrap();
        let (source, target) = (home.path().join("source"), home.path().join("target"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(source.join("old"), "x").unwrap();
        let namespace = with_mapping(&IdMap::shifted(100_000, 65_536)).unwrap();
        let tree = idmap::copy(&source, Reach::Recursive).unwrap();
        idmap::map_ids(tree.as_fd(), namespace.as_fd(), Reach::Recursive, &source).unwrap();
        let read_only = idmap::Change { set: idmap::Attributes::NO_EXEC, ..Default::default() };
        idmap::change(tree.as_fd(), Reach::Single, read_only).unwrap();
        attach(tree.as_fd(), &target).unwrap();
        assert_eq!(fs::metadata(target.join("old")).unwrap().uid(), 100_000);
        as_user(100_005, 100_006, || fs::write(target.join("new"), "x").unwrap()).unwrap();
        let made = fs::metadata(source.join("new")).unwrap();
        assert_eq!((made.uid(), made.gid()), (5, 6));
        // Whom the namespace does not know cannot own anything here.
        let refused = fs::write(target.join("foreign"), "x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::OVERFLOW.raw_os_error()));
        unmount_detach(&target).unwrap();
        let proc = idmap::copy(Path::new("/proc"), Reach::Single).unwrap();
        let refused =
            idmap::map_ids(proc.as_fd(), namespace.as_fd(), Reach::Single, Path::new("/proc")).unwrap_err();
        assert!(refused.to_string().contains("/proc"), "{refused}");
        assert!(!idmap::supported(Path::new("/proc")).unwrap());
    };
    thread::scope(|scope| scope.spawn(body).join()).unwrap();
}
