use super::*;
use crate::linux::tests::input;

fn request(source: &Path, destination: &str) -> MountRequest {
    MountRequest {
        container_path: destination.into(),
        source: MountSource::Host(source.into()),
        access: MountAccess::ReadWrite,
        propagation: Propagation::Private,
        options: Vec::new(),
        ids: None,
    }
}

fn bind(destination: &str) -> BindMount {
    BindMount {
        source: "/host/x".into(),
        destination: destination.into(),
        access: MountAccess::ReadWrite,
        propagation: Propagation::Private,
        options: Vec::new(),
        ids: None,
    }
}

fn destinations(binds: &[&str]) -> Vec<String> {
    let mut input = input();
    input.mounts = binds.iter().map(|destination| bind(destination)).collect();
    list(&input).unwrap().iter().map(|mount| mount.destination().display().to_string()).collect()
}

#[test]
fn destinations_are_cleaned_or_refused() {
    for (text, cleaned) in [("/a", "/a"), ("//a/./b//", "/a/b"), ("/a/...", "/a/...")] {
        assert_eq!(clean(text).unwrap(), cleaned);
    }
    for text in
        ["", "a", "./a", "/", "//", "/.", "/a/../b", "/..", "/a\0", "/a\n", &format!("/{}", "a".repeat(4096))]
    {
        assert!(clean(text).is_err(), "{text:?}");
    }
}

#[test]
fn parents_come_before_what_lies_below() {
    let all = destinations(&["/data/a/b", "/data", "/z", "/data/a", "/proc/x/y/z"]);
    let at = |wanted: &str| all.iter().position(|own| own == wanted).unwrap();
    assert!(at("/data") < at("/data/a") && at("/data/a") < at("/data/a/b"));
    assert!(at("/proc") < at("/proc/x/y/z") && at("/dev") < at("/dev/shm"));
    // Stable: equals keep the request's order.
    assert!(at("/data") < at("/z"));
}

#[test]
fn a_requested_mount_replaces_the_default() {
    for replaced in
        ["/etc/hosts", "/dev/shm", "/sys/fs/cgroup", "/proc", "/etc/resolv.conf", "/etc//hostname/"]
    {
        let all = destinations(&[replaced]);
        let cleaned = clean(replaced).unwrap();
        assert_eq!(all.iter().filter(|own| **own == cleaned).count(), 1, "{replaced}");
    }
    let all = destinations(&["/dev"]);
    assert!(!all.iter().any(|own| own.starts_with("/dev/")), "{all:?}");
    // A name that only begins alike is another place.
    assert!(destinations(&["/device"]).iter().any(|own| own == "/dev/pts"));
}

#[test]
fn access_and_propagation_become_options() {
    use MountAccess::{ReadOnly, ReadWrite, RecursiveReadOnly};
    use Propagation::{Bidirectional, HostToContainer, Private};
    let cases = [
        (ReadWrite, Private, "rbind,rprivate,rw", None),
        (ReadOnly, HostToContainer, "rbind,rslave,ro", Some("slave")),
        (ReadWrite, Bidirectional, "rbind,rshared,rw", Some("shared")),
        (RecursiveReadOnly, Private, "rbind,rprivate,rro", None),
    ];
    for (access, propagation, options, root) in cases {
        let mut input = input();
        input.mounts = vec![BindMount { access, propagation, ..bind("/data") }];
        let mounts = list(&input).unwrap();
        let mount = mounts.iter().find(|mount| mount.destination() == Path::new("/data")).unwrap();
        assert_eq!(mount.options().as_ref().unwrap().join(","), options);
        assert_eq!(root_propagation(&input).as_deref(), root);
    }
    for propagation in [HostToContainer, Bidirectional] {
        let mut input = input();
        input.mounts = vec![BindMount { access: RecursiveReadOnly, propagation, ..bind("/data") }];
        assert!(list(&input).is_err());
    }
}

#[test]
fn sources_are_resolved_and_made() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap().join("real");
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
    let resolved = resolve(&[request(&dir.path().join("link"), "/data")], MissingSource::Refuse).unwrap();
    assert_eq!(resolved[0].source, real);
    let absent = dir.path().join("absent/deep");
    let refused = resolve(&[request(&absent, "/data")], MissingSource::Refuse);
    assert!(matches!(refused, Err(SpecError::MountSource { .. })));
    assert!(!absent.exists());
    resolve(&[request(&absent, "/data")], MissingSource::Create).unwrap();
    assert!(absent.is_dir());
    assert!(resolve(&[request(Path::new("relative"), "/data")], MissingSource::Create).is_err());
}

#[test]
fn volumes_of_the_image_are_cleaned_and_covered() {
    let own = |paths: &[&str]| paths.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mounts = [request(Path::new("/x"), "/data/")];
    let wanted = anonymous_volumes(&own(&["/cache", "/data", "//cache/", "/data/sub"]), &mounts).unwrap();
    assert_eq!(wanted, ["/cache", "/data/sub"]);
    for hostile in ["/../../etc", "relative", "/", "", "/a/../../b", "/a\nb"] {
        assert!(anonymous_volumes(&own(&[hostile]), &[]).is_err(), "{hostile:?}");
    }
}
