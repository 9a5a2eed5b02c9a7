//! Links, races and bounds below a root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// `root` to be resolved in, and next to it `outside`, which nothing may reach.
fn home() -> (tempfile::TempDir, RootedDir) {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join("root/etc")).unwrap();
    fs::create_dir(home.path().join("outside")).unwrap();
    fs::write(home.path().join("outside/secret"), "host").unwrap();
    fs::write(home.path().join("root/etc/passwd"), "image").unwrap();
    let root = RootedDir::open(&home.path().join("root")).unwrap();
    (home, root)
}

#[test]
fn links_and_dots_stay_below_the_root() {
    let (home, root) = home();
    let at = home.path().join("root");
    let host = home.path().join("outside");
    for (target, name) in [
        ("/etc", "abs"),
        ("../../../../../etc", "up"),
        (host.to_str().unwrap(), "host"),
        ("../outside", "beside"),
        ("/proc/self/root", "self"),
        ("loop", "loop"),
    ] {
        symlink(target, at.join(name)).unwrap();
    }
    for path in [
        "etc/passwd",
        "/etc/passwd",
        "abs/passwd",
        "up/passwd",
        "../../etc/passwd",
        "/../abs/../etc/./passwd",
    ] {
        assert_eq!(root.read_file(Path::new(path), 100).unwrap(), b"image", "{path}");
    }
    for path in ["host/secret", "beside/secret", "../outside/secret", "self/etc/passwd"] {
        assert!(root.read_file(Path::new(path), 100).unwrap_err().is_not_found(), "{path}");
    }
    assert!(root.open_file(Path::new("loop"), Resolve::InRoot).is_err());
    for path in ["abs/passwd", "../root/etc/passwd", "host"] {
        assert!(root.open_path(Path::new(path), Resolve::Strict).is_err(), "{path}");
    }
    assert!(root.open_file(Path::new("/etc/passwd"), Resolve::Strict).is_ok());
}

/// `/proc` inside of a root may be real; its links lead anywhere.
#[test]
fn magic_links_are_not_followed() {
    let root = RootedDir::open(Path::new("/")).unwrap();
    for path in ["proc/self/root/etc", "proc/self/cwd", "proc/self/exe"] {
        assert!(root.open_path(Path::new(path), Resolve::InRoot).is_err(), "{path}");
    }
}

#[test]
fn only_regular_files_are_opened_and_only_so_much_is_read() {
    let (home, root) = home();
    let at = home.path().join("root");
    rustix::fs::mknodat(CWD, at.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    fs::write(at.join("long"), vec![b'x'; 1001]).unwrap();
    fs::File::create(at.join("huge")).unwrap().set_len(1 << 40).unwrap();
    // A FIFO would block forever, a device might never end.
    for path in ["fifo", "etc", "/"] {
        let error = root.read_file(Path::new(path), 1000).unwrap_err();
        assert!(matches!(error, PathError::WrongType { .. }), "{path}: {error}");
    }
    let dev = RootedDir::open(Path::new("/dev")).unwrap();
    assert!(matches!(dev.read_file(Path::new("zero"), 10).unwrap_err(), PathError::WrongType { .. }));
    for path in ["long", "huge"] {
        assert!(
            matches!(root.read_file(Path::new(path), 1000).unwrap_err(), PathError::TooLarge { .. }),
            "{path}"
        );
    }
    assert_eq!(root.read_file(Path::new("long"), 1001).unwrap().len(), 1001);
}

#[test]
fn directories_are_made_inside_whatever_links_say() {
    let (home, root) = home();
    let at = home.path().join("root");
    symlink("/var/lib", at.join("dangling")).unwrap();
    symlink("../../outside", at.join("beside")).unwrap();
    symlink("etc/passwd", at.join("file")).unwrap();
    symlink("self/x", at.join("self")).unwrap();
    for (path, real) in [
        ("a/b/c", "a/b/c"),
        ("/a/b/c/", "a/b/c"),
        ("dangling/x", "var/lib/x"),
        ("beside/x", "outside/x"),
        ("../../p/./q/../r", "p/r"),
    ] {
        drop(root.create_dir_all(Path::new(path), 0o751).unwrap());
        let stat = fs::symlink_metadata(at.join(real)).unwrap();
        assert!(stat.is_dir() && stat.permissions().mode() & 0o777 == 0o751, "{path}");
    }
    assert_eq!(fs::read_dir(home.path().join("outside")).unwrap().count(), 1, "something was made outside");
    for path in ["file/x", "etc/passwd", "etc/passwd/x"] {
        assert!(
            matches!(root.create_dir_all(Path::new(path), 0o755).unwrap_err(), PathError::WrongType { .. }),
            "{path}"
        );
    }
    assert!(root.create_dir_all(Path::new("self/y"), 0o755).is_err());
    let deep = "d/".repeat(COMPONENTS_MAX + 1);
    assert!(matches!(root.create_dir_all(Path::new(&deep), 0o755).unwrap_err(), PathError::TooDeep { .. }));
}

#[test]
fn a_walk_tells_where_it_really_is() {
    let (home, root) = home();
    symlink("/usr/lib", home.path().join("root/lib")).unwrap();
    assert!(root.walk(Path::new("lib"), Missing::Fail).unwrap_err().is_not_found());
    let walked = root.walk(Path::new("lib/x/../y"), Missing::Create { mode: 0o700 }).unwrap();
    assert_eq!(walked.real, Path::new("usr/lib/y"));
    assert_eq!(walked.made, ["usr", "usr/lib", "usr/lib/x", "usr/lib/y"].map(PathBuf::from));
    let place = root.walk_parent(Path::new("/lib/new"), Missing::Fail).unwrap();
    assert_eq!((place.parent.real.as_path(), place.name.to_str()), (Path::new("usr/lib"), Some("new")));
    let through = root.walk_parent(Path::new("/lib"), Missing::Fail).unwrap();
    assert_eq!((through.parent.real.as_path(), through.name.to_str()), (Path::new("usr"), Some("lib")));
    assert!(root.walk_parent(Path::new("/"), Missing::Fail).is_err());
}

#[test]
fn mount_files_are_made_inside_and_kept_where_they_are() {
    let (home, root) = home();
    let at = home.path().join("root");
    symlink("/run/new", at.join("link")).unwrap();
    symlink("../../outside/planted", at.join("out")).unwrap();
    let ino = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    let kept = root.create_mount_file(Path::new("/etc/passwd"), 0o644).unwrap();
    assert_eq!(ino(&kept), fs::metadata(at.join("etc/passwd")).unwrap().ino());
    assert_eq!(fs::read(at.join("etc/passwd")).unwrap(), b"image");
    let made = root.create_mount_file(Path::new("link"), 0o644).unwrap();
    assert_eq!(ino(&made), fs::metadata(at.join("run/new")).unwrap().ino());
    drop(root.create_mount_file(Path::new("out"), 0o644).unwrap());
    assert!(at.join("outside/planted").exists() && !home.path().join("outside/planted").exists());
    assert!(matches!(
        root.create_mount_file(Path::new("etc"), 0o644).unwrap_err(),
        PathError::WrongType { .. }
    ));
}

/// CVE-2021-30465, CVE-2024-45310 and their class: a directory is exchanged for a link while it is walked.
#[test]
fn exchanged_links_win_no_race() {
    let (home, root) = home();
    let at = home.path().join("root");
    fs::create_dir_all(at.join("a/b")).unwrap();
    symlink(home.path().join("outside"), home.path().join("swap")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            while !done.load(Ordering::Relaxed) {
                let _either_way =
                    rustix::fs::renameat_with(CWD, at.join("a"), CWD, home.path().join("swap"), exchange);
            }
        });
        for n in 0..10_000 {
            drop(root.create_dir_all(Path::new(&format!("a/{}", n % 7)), 0o755));
            drop(root.create_mount_file(Path::new("a/planted"), 0o644));
            if let Ok(read) = root.read_file(Path::new("a/secret"), 100) {
                panic!("{n}: read {read:?} from outside");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let outside: Vec<_> =
        fs::read_dir(home.path().join("outside")).unwrap().map(|e| e.unwrap().file_name()).collect();
    // The two may have been left exchanged; then "outside" is where it always was all the same.
    assert_eq!(outside, ["secret"]);
}
