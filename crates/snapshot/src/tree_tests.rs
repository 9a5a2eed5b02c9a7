use std::os::unix::fs::symlink;

use super::*;

/// A directory in a directory, again and again, deeper than any path or descriptor table.
fn dig(top: &Path, depth: usize) {
    let mut here = rustix::fs::openat(CWD, top, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&here, "deeper", Mode::from_raw_mode(0o700)).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        here = rustix::fs::openat(&here, "deeper", flags, Mode::empty()).unwrap();
    }
    rustix::fs::mknodat(&here, "bottom", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

#[test]
fn a_tree_deeper_than_any_path_is_measured_and_removed() {
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let top = shm.path().join("top");
    std::fs::create_dir(&top).unwrap();
    dig(&top, 3000);
    dig(shm.path(), 10);
    assert_eq!(usage(&top).unwrap().inodes, 3002);
    remove(&top).unwrap();
    assert!(!top.exists());
    remove(&top).unwrap();
}

#[test]
fn removing_spares_what_links_lead_to() {
    let dir = tempfile::tempdir().unwrap();
    let (outside, top) = (dir.path().join("outside"), dir.path().join("top"));
    std::fs::create_dir_all(outside.join("sub")).unwrap();
    std::fs::write(outside.join("sub/f"), "x").unwrap();
    std::fs::create_dir(&top).unwrap();
    symlink(&outside, top.join("dir")).unwrap();
    symlink(outside.join("sub/f"), top.join("file")).unwrap();
    symlink("..", top.join("up")).unwrap();
    remove(&top).unwrap();
    assert_eq!(std::fs::read(outside.join("sub/f")).unwrap(), b"x");
    // The path itself is not followed either.
    symlink(&outside, &top).unwrap();
    remove(&top).unwrap();
    assert!(!top.exists() && outside.join("sub/f").exists());
}

#[test]
fn a_file_with_two_names_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), vec![1; 8192]).unwrap();
    let one = usage(dir.path()).unwrap();
    std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    symlink("/", dir.path().join("root")).unwrap();
    let two = usage(dir.path()).unwrap();
    assert_eq!(two.inodes, one.inodes + 1);
    assert!(one.bytes >= 8192 && two.bytes - one.bytes < 8192, "{one:?} {two:?}");
    assert_eq!(usage(&dir.path().join("absent")).unwrap(), Usage::default());
}

/// A directory that is swapped with a link, again and again, while trees are removed and measured (CVE-2024-23652's class).
#[test]
fn swapped_links_lead_nowhere() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir_all(&outside).unwrap();
    for n in 0..50 {
        std::fs::write(outside.join(n.to_string()), "host").unwrap();
    }
    let (top, swap) = (dir.path().join("top"), dir.path().join("swap"));
    symlink(&outside, &swap).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                let _either_way = rustix::fs::renameat_with(CWD, top.join("a"), CWD, &swap, exchange);
            }
        });
        for _ in 0..2000 {
            drop(std::fs::create_dir_all(top.join("a/b")));
            drop(usage(&top));
            drop(remove(&top));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(
        std::fs::read_dir(&outside)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_type().unwrap().is_file())
            .count(),
        50
    );
}
