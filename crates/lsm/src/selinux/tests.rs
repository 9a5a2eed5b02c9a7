use super::*;

fn on() -> Selinux {
    let policy = Policy::read(Path::new("/nonexistent/config")).unwrap();
    Selinux { mode: Mode::On(Box::new(On::new(policy, None))) }
}

fn level(level: &str) -> SelinuxRequest {
    SelinuxRequest { level: level.into(), ..SelinuxRequest::default() }
}

fn used(selinux: &Selinux, labels: &Labels) -> bool {
    let Mode::On(on) = &selinux.mode else { return false };
    let pair = labels.pair().unwrap();
    // Taken from somebody: giving it back twice would free it.
    let mut pool = on.lock();
    let before = format!("{pool:?}").matches("Pair").count();
    pool.reserve(pair);
    let after = format!("{pool:?}").matches("Pair").count();
    pool.give_back(pair);
    before == after
}

#[test]
fn pods_differ_and_their_containers_do_not() {
    let selinux = on();
    let (one, other) = (selinux.pod(None).unwrap().unwrap(), selinux.pod(None).unwrap().unwrap());
    assert_ne!(one, other);
    assert!(one.process.starts_with("system_u:system_r:container_t:s0:c"), "{one:?}");
    assert!(one.mount.starts_with("system_u:object_r:container_file_t:s0:c"), "{one:?}");
    assert_eq!(one.process.split_once(":s0:").unwrap().1, one.mount.split_once(":s0:").unwrap().1);
    let container = selinux.container(Some(&one), None, Privilege::Ordinary).unwrap();
    assert_eq!(container.as_ref(), Some(&one));
    selinux.release(&one);
    assert!(!used(&selinux, &one) && used(&selinux, &other));
}

#[test]
fn a_request_replaces_the_parts_that_it_names() {
    let selinux = on();
    let pod = selinux.pod(None).unwrap().unwrap();
    let all = SelinuxRequest {
        user: "user_u".into(),
        role: "user_r".into(),
        typ: "my_t".into(),
        level: "s0:c4,c5".into(),
    };
    let labels = selinux.container(Some(&pod), Some(&all), Privilege::Ordinary).unwrap().unwrap();
    assert_eq!(labels.process, "user_u:user_r:my_t:s0:c4,c5");
    assert_eq!(labels.mount, "user_u:object_r:container_file_t:s0:c4,c5");
    let labels = selinux.container(Some(&pod), Some(&level("s0")), Privilege::Ordinary).unwrap().unwrap();
    assert_eq!(labels.process, "system_u:system_r:container_t:s0");
}

#[test]
fn a_privileged_container_keeps_the_files_of_its_pod() {
    let selinux = on();
    let pod = selinux.pod(None).unwrap().unwrap();
    let labels = selinux.container(Some(&pod), None, Privilege::Privileged).unwrap().unwrap();
    assert_eq!(labels.process, "system_u:system_r:spc_t:s0");
    assert_eq!(labels.mount, pod.mount);
    let own = level("s0:c4,c5");
    let labels = selinux.container(Some(&pod), Some(&own), Privilege::Privileged).unwrap().unwrap();
    assert_eq!(labels.process, "system_u:system_r:spc_t:s0:c4,c5");
}

#[test]
fn a_named_level_is_nobody_elses_and_takes_none_of_the_pool() {
    let selinux = on();
    let named = selinux.pod(Some(&level("s0:c4,c5"))).unwrap().unwrap();
    assert!(named.mount.ends_with(":s0:c4,c5"));
    let Mode::On(state) = &selinux.mode else { panic!("on") };
    assert_eq!(format!("{:?}", state.lock()).matches("Pair").count(), 1);
    assert!(used(&selinux, &named));
    selinux.pod(Some(&level("s0"))).unwrap();
    assert_eq!(format!("{:?}", state.lock()).matches("Pair").count(), 1, "a level without a pair takes none");
}

#[test]
fn a_recovered_pod_keeps_its_categories() {
    let selinux = on();
    let pod = on().pod(None).unwrap().unwrap();
    assert!(!used(&selinux, &pod));
    selinux.reserve(&pod);
    assert!(used(&selinux, &pod));
    selinux.release(&pod);
    assert!(!used(&selinux, &pod));
}

#[test]
fn the_policy_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    // No file to write to: an error of the machine, not of the request.
    let policy = Policy::read(Path::new("/nonexistent/config")).unwrap();
    let selinux = Selinux { mode: Mode::On(Box::new(On::new(policy, Some(dir.path().join("gone"))))) };
    assert!(matches!(selinux.pod(None), Err(LsmError::Read { .. })));
    let Mode::On(state) = &selinux.mode else { panic!("on") };
    assert_eq!(format!("{:?}", state.lock()).matches("Pair").count(), 0, "the pair went back");
}

#[test]
fn where_labels_are_off_only_who_asks_is_refused() {
    let absent = Selinux { mode: Mode::Absent };
    let off = Selinux { mode: Mode::Off };
    let asked = level("s0:c4,c5");
    for request in [None, Some(&asked)] {
        assert_eq!(absent.pod(request).unwrap(), None);
        assert_eq!(absent.container(None, request, Privilege::Ordinary).unwrap(), None);
    }
    assert_eq!(off.pod(None).unwrap(), None);
    assert_eq!(off.pod(Some(&SelinuxRequest::default())).unwrap(), None);
    assert!(matches!(off.pod(Some(&asked)), Err(LsmError::LabelsOff)));
    assert!(matches!(off.container(None, Some(&asked), Privilege::Ordinary), Err(LsmError::LabelsOff)));
    assert_eq!(on().container(None, None, Privilege::Ordinary).unwrap(), None, "a pod from before");
}
