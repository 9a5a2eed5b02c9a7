//! Layers on top of each other, seen through real overlay mounts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/private.rs"]
mod private;
mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crisp_domain::ErrorKind;
use crisp_snapshot::{ChainId, LayerStore, Limits, MappedIds, Rootfs, copy_up_volume};
use crisp_sys::path::RootedDir;
use private::{commit, commit_all, in_private_mounts, listing, reopen, tree};
use support::*;

/// The tree that these layers make, bottom first.
fn stack(home: &Path, layers: Vec<Vec<Item>>) -> BTreeMap<String, String> {
    let store = LayerStore::open(home).unwrap();
    let tars: Vec<_> = layers.into_iter().map(tar).collect();
    let chain = commit_all(&store, &tars);
    listing(&store, &chain, &home.join("view"))
}

fn has(tree: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    let expected: BTreeMap<_, _> = expected.iter().map(|(p, w)| ((*p).to_owned(), (*w).to_owned())).collect();
    assert_eq!(*tree, expected);
}

#[test]
fn one_layer_keeps_kinds_modes_owners_and_times() {
    in_private_mounts("one_layer_keeps_kinds_modes_owners_and_times", |home| {
        let long = "d/".to_owned() + &"n".repeat(200);
        let items = vec![
            dir("./", 0o711),
            dir("d/", 0o2750).owner(7, 8),
            file("d/f", "hello").mode(0o4755).owner(1000, 3_000_000_000),
            file(&long, "long"),
            hard_link("d/g", "d/f"),
            symlink("s", "../../../etc/passwd"),
            device("null", b'3', 1, 3).mode(0o666),
            item(b'6', "pipe"),
        ];
        let store = LayerStore::open(home).unwrap();
        let chain = vec![commit(&store, None, &tar(items)).unwrap()];
        let at = home.join("view");
        let _mounted = Rootfs::mount_read_only(&store, &chain, &at).unwrap();
        has(
            &tree(&at),
            &[
                ("", "dir 711"),
                ("d", "dir 2750"),
                ("d/f", "file 4755 hello"),
                ("d/g", "file 4755 hello"),
                (&long, "file 644 long"),
                ("null", "device 666 103"),
                ("pipe", "fifo 644"),
                ("s", "link ../../../etc/passwd"),
            ],
        );
        let stat = |path: &str| std::fs::symlink_metadata(at.join(path)).unwrap();
        assert_eq!((stat("d").uid(), stat("d").gid(), stat("d").mtime()), (7, 8, 1_000_000_000));
        assert_eq!((stat("d/f").uid(), stat("d/f").gid(), stat("d/f").nlink()), (1000, 3_000_000_000, 2));
        assert_eq!((stat("d/f").ino(), stat("s").mtime()), (stat("d/g").ino(), 1_000_000_000));
        Rootfs::unmount(&at).unwrap();
        Rootfs::unmount(&at).unwrap();
        assert!(!at.exists());
    });
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_of_their_own_layer() {
    in_private_mounts("whiteouts_hide_what_is_below_and_nothing_of_their_own_layer", |home| {
        let below =
            vec![file("a/1", "1"), file("a/2", "2"), file("b/1", "1"), file("c/d/1", "1"), file("e", "e")];
        let above = vec![
            file("a/.wh.1", ""),
            file("b/2", "2"),
            file("b/.wh..wh..opq", ""),
            // In either order: what the layer itself has stays, what is below goes.
            file("c/d/2", "2"),
            file("c/.wh.d", ""),
            file(".wh.e", ""),
            file("e", "new"),
            file(".wh.nothing", ""),
            file("n/.wh.nothing", ""),
            file(".wh..wh.plnk/1.2", "of a storage driver"),
        ];
        has(
            &stack(home, vec![below, above]),
            &[
                ("", "dir 755"),
                ("a", "dir 755"),
                ("a/2", "file 644 2"),
                ("b", "dir 755"),
                ("b/2", "file 644 2"),
                ("c", "dir 755"),
                ("c/d", "dir 755"),
                ("c/d/2", "file 644 2"),
                ("e", "file 644 new"),
                ("n", "dir 755"),
            ],
        );
    });
}

#[test]
fn things_replace_each_other_whatever_their_kind() {
    in_private_mounts("things_replace_each_other_whatever_their_kind", |home| {
        let below = vec![file("f", "f"), file("d/x", "x"), symlink("s", "d"), file("t/x", "x")];
        let above =
            vec![dir("f/", 0o700), file("f/y", "y"), file("d", "d"), dir("s/", 0o755), symlink("t", "f")];
        let twice = vec![
            file("q/1", "1"),
            file("q", "now a file"),
            symlink("r", "nowhere"),
            file("r", "now a file"),
            file("r", "and another"),
            dir("u/", 0o755),
            dir("u/", 0o700),
        ];
        has(
            &stack(home, vec![below, above, twice]),
            &[
                ("", "dir 755"),
                ("d", "file 644 d"),
                ("f", "dir 700"),
                ("f/y", "file 644 y"),
                ("q", "file 644 now a file"),
                ("r", "file 644 and another"),
                ("s", "dir 755"),
                ("t", "link f"),
                ("u", "dir 700"),
            ],
        );
    });
}

#[test]
fn directories_that_are_only_mentioned_stay_as_they_are_below() {
    in_private_mounts("directories_that_are_only_mentioned_stay_as_they_are_below", |home| {
        let below = vec![
            dir("./", 0o750),
            dir("tmp/", 0o1777),
            dir("home/", 0o711).owner(5, 6).pax("SCHILY.xattr.user.note", "kept"),
            dir("gone/", 0o700),
        ];
        let above = vec![
            file("tmp/f", ""),
            file("home/f", ""),
            file(".wh.gone", ""),
            file("gone/f", ""),
            file("new/f", ""),
        ];
        let store = LayerStore::open(home).unwrap();
        let chain = commit_all(&store, &[tar(below), tar(above)]);
        let at = home.join("view");
        let _mounted = Rootfs::mount_read_only(&store, &chain, &at).unwrap();
        let found = tree(&at);
        for (path, expected) in [
            ("", "dir 750"),
            ("tmp", "dir 1777"),
            ("home", "dir 711"),
            ("gone", "dir 755"),
            ("new", "dir 755"),
        ] {
            assert_eq!(found[path], expected, "{path:?}");
        }
        let stat = std::fs::metadata(at.join("home")).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mtime()), (5, 6, 1_000_000_000));
        let mut value = [0; 16];
        let len = rustix::fs::getxattr(at.join("home"), "user.note", &mut value[..]).unwrap();
        assert_eq!(&value[..len], b"kept");
        Rootfs::unmount(&at).unwrap();
    });
}

#[test]
fn paths_lead_through_links_inside_the_image() {
    in_private_mounts("paths_lead_through_links_inside_the_image", |home| {
        let below = vec![
            dir("usr/lib/", 0o711),
            symlink("lib", "usr/lib"),
            symlink("abs", "/usr/lib"),
            symlink("up", "../../usr"),
        ];
        let above = vec![
            file("lib/a", "a"),
            file("abs/deep/b", "b"),
            file("up/lib/c", "c"),
            file("lib/.wh.d", ""),
            // Links of the same layer, dangling ones, too.
            symlink("own", "/usr/new"),
            file("own/e", "e"),
            // An entry of its own replaces the link.
            dir("up/share/", 0o700),
        ];
        let found = stack(home, vec![below, above]);
        has(
            &found,
            &[
                ("", "dir 755"),
                ("abs", "link /usr/lib"),
                ("lib", "link usr/lib"),
                ("own", "link /usr/new"),
                ("up", "link ../../usr"),
                ("usr", "dir 755"),
                ("usr/lib", "dir 711"),
                ("usr/lib/a", "file 644 a"),
                ("usr/lib/c", "file 644 c"),
                ("usr/lib/deep", "dir 755"),
                ("usr/lib/deep/b", "file 644 b"),
                ("usr/new", "dir 755"),
                ("usr/new/e", "file 644 e"),
                ("usr/share", "dir 700"),
            ],
        );
    });
}

#[test]
fn whiteouts_follow_links_of_the_layers_below() {
    in_private_mounts("whiteouts_follow_links_of_the_layers_below", |home| {
        let below = vec![file("usr/lib/x", "x"), file("usr/lib/y", "y"), symlink("lib", "usr/lib")];
        let above = vec![file("lib/.wh.x", "")];
        let found = stack(home, vec![below, above]);
        assert!(!found.contains_key("usr/lib/x") && found.contains_key("usr/lib/y"), "{found:?}");
        assert_eq!(found["lib"], "link usr/lib");
    });
}

#[test]
fn hard_links_reach_files_of_the_layers_below() {
    in_private_mounts("hard_links_reach_files_of_the_layers_below", |home| {
        let below =
            vec![dir("bin/", 0o711), file("bin/f", "content").mode(0o4711).owner(3, 4), symlink("b", "bin")];
        let above = vec![hard_link("g", "bin/f"), hard_link("h", "/b/f"), hard_link("i", "h")];
        let store = LayerStore::open(home).unwrap();
        let chain = commit_all(&store, &[tar(below), tar(above)]);
        let at = home.join("view");
        let _mounted = Rootfs::mount_read_only(&store, &chain, &at).unwrap();
        let stat = |path: &str| std::fs::symlink_metadata(at.join(path)).unwrap();
        assert_eq!(std::fs::read(at.join("g")).unwrap(), b"content");
        assert_eq!((stat("g").mode() & 0o7777, stat("g").uid(), stat("g").gid()), (0o4711, 3, 4));
        assert_eq!(stat("bin").mode() & 0o7777, 0o711);
        for path in ["h", "i", "bin/f"] {
            assert_eq!(stat(path).ino(), stat("g").ino(), "{path}");
        }
        Rootfs::unmount(&at).unwrap();
    });
}

#[test]
fn file_capabilities_and_user_attributes_stay_all_others_go() {
    in_private_mounts("file_capabilities_and_user_attributes_stay_all_others_go", |home| {
        let capability: Vec<u8> = [[1, 0, 0, 2, 0, 4, 0, 0].as_slice(), &[0; 12]].concat();
        let ping = file("ping", "x")
            .owner(9, 9)
            .pax("SCHILY.xattr.security.capability", &capability)
            .pax("SCHILY.xattr.user.a", "b")
            .pax("SCHILY.xattr.trusted.overlay.opaque", "y")
            .pax("SCHILY.xattr.trusted.overlay.redirect", "/etc")
            .pax("SCHILY.xattr.security.selinux", "x");
        let sly = dir("d/", 0o755).pax("SCHILY.xattr.trusted.overlay.opaque", "y");
        let store = LayerStore::open(home).unwrap();
        let bottom = commit(&store, None, &tar([file("d/below", "")])).unwrap();
        let staged = store.unpack(&tar([ping, sly])[..], &Limits::default()).unwrap();
        assert_eq!(staged.xattrs_dropped(), 4);
        let top = store.commit(staged, Some(&bottom)).unwrap();
        let ping = store.layer_path(&top).join("ping");
        let mut names = [0; 256];
        let len = rustix::fs::listxattr(&ping, &mut names[..]).unwrap();
        let mut names: Vec<_> =
            names[..len].split(|&b| b == 0).filter(|n| !n.is_empty()).map(String::from_utf8_lossy).collect();
        names.sort_unstable();
        assert_eq!(names, ["security.capability", "user.a"]);
        let found = listing(&store, &[bottom, top], &home.join("view"));
        assert!(found.contains_key("d/below"), "an image made a directory opaque: {found:?}");
    });
}

#[test]
fn a_container_writes_to_its_own_layer() {
    in_private_mounts("a_container_writes_to_its_own_layer", |home| {
        let store = LayerStore::open(home).unwrap();
        let layer = tar([dir("./", 0o755).owner(2, 3), file("f", "image"), file("g", "image")]);
        let chain = vec![commit(&store, None, &layer).unwrap()];
        let (writable, target) = (home.join("c1"), home.join("rootfs"));
        let rootfs = Rootfs::prepare(&store, &writable, &chain, &target).unwrap();
        assert_eq!(std::fs::metadata(&target).unwrap().uid(), 2);
        std::fs::write(target.join("f"), "changed").unwrap();
        std::fs::remove_file(target.join("g")).unwrap();
        std::fs::write(target.join("big"), vec![1; 100_000]).unwrap();
        assert_eq!(
            Rootfs::prepare(&store, &writable, &chain, &target).unwrap_err().kind(),
            ErrorKind::WrongState
        );
        let usage = Rootfs::writable_usage(&writable).unwrap();
        assert_eq!((usage.inodes, usage.bytes >= 100_000), (4, true), "{usage:?}");
        assert_eq!(rootfs.open().unwrap().read_file(Path::new("/f"), 10).unwrap(), b"changed");
        Rootfs::unmount(&target).unwrap();
        // The volatile mark of the first mount must not stand in the way of the second.
        let _again = Rootfs::prepare(&store, &writable, &chain, &target).unwrap();
        assert_eq!(tree(&target)["f"], "file 644 changed");
        assert!(!target.join("g").exists());
        assert_eq!(std::fs::read(store.layer_path(&chain[0]).join("f")).unwrap(), b"image");
        Rootfs::unmount(&target).unwrap();
        Rootfs::remove_writable(&writable).unwrap();
        Rootfs::remove_writable(&writable).unwrap();
        assert!(!writable.exists());
        assert_eq!(Rootfs::writable_usage(&writable).unwrap().inodes, 0);
    });
}

#[test]
fn a_user_namespace_sees_its_own_ids_and_the_layers_keep_theirs() {
    in_private_mounts("a_user_namespace_sees_its_own_ids_and_the_layers_keep_theirs", |home| {
        use crisp_sys::userns::{IdMap, as_user, with_mapping};
        use std::os::fd::AsFd as _;
        let store = LayerStore::open(home).unwrap();
        let first = tar([file("f", "image"), file("g", "image").owner(5, 6)]);
        let chain = commit_all(&store, &[first, tar([dir("d/", 0o755), file("d/h", "image")])]);
        let (writable, target, scratch) = (home.join("c1"), home.join("rootfs"), home.join("scratch"));
        std::fs::create_dir(&scratch).unwrap();
        let userns = with_mapping(&IdMap::shifted(100_000, 65_536)).unwrap();
        let ids = Some(MappedIds { userns: userns.as_fd(), scratch: &scratch });
        Rootfs::prepare_for(&store, &writable, &chain, &target, ids).unwrap();
        let owner = |path: &str| {
            let stat = std::fs::metadata(target.join(path)).unwrap();
            (stat.uid(), stat.gid())
        };
        assert_eq!(
            [owner("f"), owner("g"), owner("d/h")],
            [(100_000, 100_000), (100_005, 100_006), (100_000, 100_000)]
        );
        as_user(100_000, 100_000, || {
            std::fs::write(target.join("f"), "changed").unwrap();
            std::fs::write(target.join("d/new"), "x").unwrap();
            std::os::unix::fs::chown(target.join("g"), Some(100_007), Some(100_007)).unwrap();
            std::fs::remove_file(target.join("d/h")).unwrap();
        })
        .unwrap();
        assert_eq!(
            [owner("f"), owner("g"), owner("d/new")],
            [(100_000, 100_000), (100_007, 100_007), (100_000, 100_000)]
        );
        assert!(!target.join("d/h").exists());
        let on_disk = |path: &str| std::fs::metadata(writable.join("upper").join(path)).unwrap().uid();
        assert_eq!([on_disk("f"), on_disk("g"), on_disk("d/new")], [100_000, 100_007, 100_000]);
        let layer = store.layer_path(&chain[0]);
        assert_eq!(std::fs::metadata(layer.join("g")).unwrap().uid(), 5);
        assert!(Rootfs::writable_usage(&writable).unwrap().inodes >= 5);
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
        Rootfs::unmount(&target).unwrap();
        Rootfs::remove_writable(&writable).unwrap();
        let view = home.join("view");
        Rootfs::mount_read_only_for(&store, &chain, &view, ids).unwrap();
        assert_eq!(std::fs::metadata(view.join("g")).unwrap().uid(), 100_005);
        Rootfs::unmount(&view).unwrap();
        std::fs::remove_dir(&scratch).unwrap();
        assert!(!std::fs::read_to_string("/proc/self/mounts").unwrap().contains("scratch"));
    });
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    in_private_mounts("an_image_without_layers_is_an_empty_root", |home| {
        let store = LayerStore::open(home).unwrap();
        has(&listing(&store, &[], &home.join("view")), &[("", "dir 755")]);
        let target = home.join("rootfs");
        let _mounted = Rootfs::prepare(&store, &home.join("c"), &[], &target).unwrap();
        std::fs::write(target.join("f"), "x").unwrap();
        Rootfs::unmount(&target).unwrap();
    });
}

#[test]
fn a_hundred_and_twenty_layers_stack() {
    in_private_mounts("a_hundred_and_twenty_layers_stack", |home| {
        // A root whose path is long and has what mount options give a meaning to.
        let home = home.join(format!("a,b:c\\d-{}", "x".repeat(200)));
        std::fs::create_dir(&home).unwrap();
        let store = LayerStore::open(&home).unwrap();
        let tars: Vec<_> = (0..120).map(|n| tar([file(&format!("f{n}"), n.to_string())])).collect();
        let staged = tars.iter().map(|tar| store.unpack(&tar[..], &Limits::default()).unwrap()).collect();
        let chain = store.commit_all(staged, None).unwrap();
        let found = listing(&store, &chain, &home.join("view"));
        assert_eq!(
            (found.len(), found["f0"].as_str(), found["f119"].as_str()),
            (121, "file 644 0", "file 644 119")
        );
        let target = home.join("rootfs");
        let _mounted = Rootfs::prepare(&store, &home.join("c"), &chain, &target).unwrap();
        assert_eq!(tree(&target).len(), 121);
        Rootfs::unmount(&target).unwrap();
    });
}

#[test]
fn the_store_survives_a_crash_and_counts() {
    in_private_mounts("the_store_survives_a_crash_and_counts", |home| {
        let store = LayerStore::open(home).unwrap();
        let bottom_tar = tar([file("f", vec![7; 50_000])]);
        let bottom = commit(&store, None, &bottom_tar).unwrap();
        let top = commit(&store, Some(&bottom), &tar([file("g", "g")])).unwrap();
        let usage = store.contains(&bottom).unwrap();
        assert_eq!((usage.inodes, (50_000..80_000).contains(&usage.bytes)), (2, true), "{usage:?}");
        assert_eq!(store.usage(), usage + store.contains(&top).unwrap());
        assert_eq!(LayerStore::open(home).unwrap_err().kind(), ErrorKind::WrongState);
        // Again: nothing changes. On a parent that is not there: an error.
        assert_eq!(commit(&store, None, &bottom_tar).unwrap(), bottom);
        let absent: ChainId = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        assert_eq!(commit(&store, Some(&absent), &bottom_tar).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(store.remove(&bottom).unwrap_err().kind(), ErrorKind::WrongState);
        assert!(!store.remove_unless(&top, || true).unwrap());
        assert!(store.contains(&top).is_some() && store.layer_path(&top).join("g").exists());
        drop(store);

        // What a crash leaves: a half-made layer, a removal midway, a torn record.
        let layers = home.join("layers");
        std::fs::create_dir_all(layers.join(".staging/abc/fs/deep")).unwrap();
        std::fs::create_dir_all(layers.join(".removed/def/fs")).unwrap();
        std::fs::write(layers.join(top.hex()).join("layer.json"), "{\"version\":").unwrap();
        let store = reopen(home);
        store.sweep().unwrap();
        for dir in [".staging", ".removed"] {
            assert_eq!(std::fs::read_dir(layers.join(dir)).unwrap().count(), 0, "{dir}");
        }
        assert_eq!(store.list(), vec![(bottom.clone(), usage)]);
        assert_eq!(commit(&store, Some(&bottom), &tar([file("g", "g")])).unwrap(), top);
        assert_eq!(store.parent(&top), Some(bottom.clone()));

        store.remove(&top).unwrap();
        store.remove(&bottom).unwrap();
        store.remove(&bottom).unwrap();
        assert_eq!((store.usage().inodes, store.list().len()), (0, 0));
        assert!(!store.layer_path(&bottom).exists());
    });
}

#[test]
fn a_volume_takes_the_content_of_the_image() {
    in_private_mounts("a_volume_takes_the_content_of_the_image", |home| {
        let root = home.join("rootfs");
        let dest = home.join("volume");
        std::fs::create_dir_all(root.join("real/sub")).unwrap();
        std::fs::create_dir(&dest).unwrap();
        std::fs::write(home.join("secret"), "host").unwrap();
        std::fs::write(root.join("real/sub/f"), "f").unwrap();
        std::fs::hard_link(root.join("real/sub/f"), root.join("real/g")).unwrap();
        for (target, link) in [("/real", "data"), ("../../secret", "up"), ("../../../secret", "real/host")] {
            std::os::unix::fs::symlink(target, root.join(link)).unwrap();
        }
        std::os::unix::fs::chown(root.join("real"), Some(11), Some(12)).unwrap();
        let rooted = RootedDir::open(&root).unwrap();
        copy_up_volume(&rooted, Path::new("/data/"), &dest).unwrap();
        has(
            &tree(&dest),
            &[
                ("", "dir 755"),
                ("g", "file 644 f"),
                ("host", "link ../../../secret"),
                ("sub", "dir 755"),
                ("sub/f", "file 644 f"),
            ],
        );
        let stat = |path: &str| std::fs::metadata(dest.join(path)).unwrap();
        assert_eq!((stat("").uid(), stat("").gid(), stat("g").ino()), (11, 12, stat("sub/f").ino()));
        copy_up_volume(&rooted, Path::new("/not/there"), &dest).unwrap();
        // Outside of the image there is nothing.
        copy_up_volume(&rooted, Path::new("/up"), &dest).unwrap();
        assert_eq!(
            copy_up_volume(&rooted, Path::new("/real/g"), &dest).unwrap_err().kind(),
            ErrorKind::Invalid
        );
    });
}
