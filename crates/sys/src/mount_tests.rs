//! Real mounts. Each test runs again in a process of its own, in a private mount namespace.
#![allow(clippy::print_stderr, reason = "what is not run is said")]

use std::fs;
use std::process::Command;

use rustix::fs::StatVfsMountFlags;

use super::*;

const INSIDE: &str = "CRISP_TEST_PRIVATE_MOUNTS";

/// `name`: of the test function that calls. `body` gets an empty tmpfs.
fn in_private_mounts(name: &str, body: impl FnOnce(&Path)) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("{name}: NOT RUN, needs root");
        return;
    }
    if std::env::var_os(INSIDE).is_some() {
        let home = tempfile::tempdir().unwrap();
        tmpfs(home.path(), &Tmpfs { bytes_max: Some(16 << 20), mode: 0o751 }).unwrap();
        body(home.path());
        unmount_detach(home.path()).unwrap();
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe().unwrap());
    let full = format!("mount::tests::{name}");
    let status = command.args([&full, "--exact", "--nocapture"]).env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "{name} failed in its namespace");
}

fn layers(home: &Path, count: usize) -> Vec<PathBuf> {
    let make = |n: usize| {
        let path = home.join(format!("layer{n}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join(format!("f{n}")), n.to_string()).unwrap();
        fs::write(path.join("same"), n.to_string()).unwrap();
        path
    };
    (0..count).map(make).collect()
}

fn dir(home: &Path, name: &str) -> PathBuf {
    let path = home.join(name);
    fs::create_dir(&path).unwrap();
    path
}

/// Both ways of mounting give the same: the new calls, and `mount(2)` for older kernels.
#[test]
fn overlays_stack_and_take_changes_both_ways() {
    in_private_mounts("overlays_stack_and_take_changes_both_ways", |home| {
        type Way = fn(&Overlay<'_>, &Path) -> Result<()>;
        let ways: [(&str, Way); 2] = [("new", overlay), ("old", overlay_mount2)];
        for (name, way) in ways {
            let home = dir(home, name);
            let lowers = layers(&home, 60);
            let (upper, work, target) = (dir(&home, "upper"), dir(&home, "work"), dir(&home, "target"));
            let writable = Some(Writable { upper: &upper, work: &work });
            way(&Overlay { lowers: &lowers, writable, label: None }, &target).unwrap();
            assert_eq!(fs::read(target.join("same")).unwrap(), b"0", "{name}: the first is the topmost");
            assert_eq!(fs::read(target.join("f59")).unwrap(), b"59", "{name}");
            fs::write(target.join("new"), "x").unwrap();
            assert!(upper.join("new").exists() && work.join("work/incompat/volatile").exists(), "{name}");
            unmount_detach(&target).unwrap();

            way(&Overlay { lowers: &lowers, writable: None, label: None }, &target).unwrap();
            assert_eq!(
                fs::write(target.join("new"), "x").unwrap_err().raw_os_error(),
                Some(30),
                "{name}: EROFS"
            );
            let flags = rustix::fs::statvfs(&target).unwrap().f_flag;
            let view = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
            assert!(flags.contains(view), "{name}: {flags:?}");
            unmount_detach(&target).unwrap();
        }
    });
}

#[test]
fn a_detached_overlay_is_seen_through_its_descriptor_alone() {
    in_private_mounts("a_detached_overlay_is_seen_through_its_descriptor_alone", |home| {
        let (lowers, scratch) = (layers(home, 2), dir(home, "scratch"));
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let view = Overlay { lowers: &lowers, writable: None, label: None };
        for way in [overlay_detached, overlay_mount2_detached] {
            let root = way(&view, &scratch).unwrap();
            assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
            let root = crate::path::RootedDir::from_fd(root).unwrap();
            assert_eq!(root.read_file(Path::new("/f1"), 9).unwrap(), b"1");
        }
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    });
}

#[test]
fn too_many_layers_are_an_error() {
    let lowers = vec![PathBuf::from("/nowhere"); OVERLAY_LOWERS_MAX + 1];
    let error = overlay(&Overlay { lowers: &lowers, writable: None, label: None }, Path::new("/nowhere"))
        .unwrap_err();
    assert!(matches!(error, MountError::TooManyLowers { count: 501 }), "{error}");
}

#[test]
fn unmounting_is_idempotent_and_follows_no_link() {
    in_private_mounts("unmounting_is_idempotent_and_follows_no_link", |home| {
        let target = dir(home, "target");
        assert!(!is_mountpoint(&target).unwrap());
        tmpfs(&target, &Tmpfs { bytes_max: None, mode: 0o1777 }).unwrap();
        assert!(is_mountpoint(&target).unwrap());
        let link = home.join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(!is_mountpoint(&link).unwrap());
        unmount_detach(&link).unwrap();
        assert!(is_mountpoint(&target).unwrap(), "a link was followed");
        // In use: detached all the same.
        let _user = fs::File::create(target.join("f")).unwrap();
        unmount_detach(&target).unwrap();
        assert!(!is_mountpoint(&target).unwrap());
        unmount_detach(&target).unwrap();
        unmount_detach(&home.join("absent/deep")).unwrap();
        assert!(!is_mountpoint(&home.join("absent")).unwrap());
    });
}

#[test]
fn binds_show_files_and_directories_and_can_be_read_only() {
    in_private_mounts("binds_show_files_and_directories_and_can_be_read_only", |home| {
        let (source, below) = (dir(home, "source"), dir(home, "source/below"));
        tmpfs(&below, &Tmpfs { bytes_max: None, mode: 0o755 }).unwrap();
        fs::write(below.join("f"), "deep").unwrap();
        fs::write(source.join("f"), "x").unwrap();
        for (reach, deep) in [(Reach::Single, false), (Reach::Recursive, true)] {
            let target = dir(home, if deep { "recursive" } else { "single" });
            bind(&source, &target, reach).unwrap();
            assert_eq!(target.join("below/f").exists(), deep);
            make_private(&target, reach).unwrap();
            remount_read_only(&target).unwrap();
            assert!(fs::write(target.join("f"), "y").is_err());
            fs::write(source.join("f"), "still writable").unwrap();
            unmount_detach(&target).unwrap();
        }
        // A file, by descriptor: what the name leads to later makes no difference.
        let target = home.join("file");
        fs::write(&target, "").unwrap();
        let place = open_o_path(&target, OFlags::NOFOLLOW).unwrap();
        let tree =
            clone_tree(open_o_path(&source.join("f"), OFlags::empty()).unwrap().as_fd(), Reach::Single)
                .unwrap();
        fs::rename(&target, home.join("moved")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &target).unwrap();
        attach_at(tree.as_fd(), place.as_fd()).unwrap();
        assert_eq!(fs::read(home.join("moved")).unwrap(), b"still writable");
        assert!(!is_mountpoint(Path::new("/etc/hostname")).unwrap());
        unmount_detach(&home.join("moved")).unwrap();
    });
}

#[test]
fn refusals_name_operation_and_path() {
    in_private_mounts("refusals_name_operation_and_path", |home| {
        let error = make_private(&home.join("absent"), Reach::Single).unwrap_err();
        assert!(
            error.to_string().contains("make private") && error.to_string().contains("absent"),
            "{error}"
        );
        assert_eq!(error.errno().and_then(|e| e.raw_os_error()), Some(2));
        let lowers = [home.join("absent")];
        let error = overlay(&Overlay { lowers: &lowers, writable: None, label: None }, home).unwrap_err();
        assert!(matches!(error, MountError::Configure { .. }), "{error:?}");
    });
}

/// Taken off without care, the copy takes what is mounted below the original with it.
#[test]
fn a_copy_of_shared_mounts_goes_without_the_originals() {
    in_private_mounts("a_copy_of_shared_mounts_goes_without_the_originals", |home| {
        let (source, view) = (dir(home, "source"), dir(home, "view"));
        let small = Tmpfs { bytes_max: Some(1 << 20), mode: 0o755 };
        tmpfs(&source, &small).unwrap();
        let shared = MountPropagationFlags::SHARED;
        rustix::mount::mount_change(&source, shared).unwrap();
        let below = dir(&source, "below");
        tmpfs(&below, &small).unwrap();
        let later = dir(&source, "later");
        bind(&source, &view, Reach::Recursive).unwrap();
        tmpfs(&later, &small).unwrap();
        assert!(is_mountpoint(&view.join("below")).unwrap());
        assert!(is_mountpoint(&view.join("later")).unwrap(), "the copy is a peer");

        unmount_copy(&view).unwrap();
        assert!(!is_mountpoint(&view).unwrap());
        for kept in [source.as_path(), &below, &later] {
            assert!(is_mountpoint(kept).unwrap(), "{}", kept.display());
        }
        unmount_copy(&view).unwrap();
    });
}
