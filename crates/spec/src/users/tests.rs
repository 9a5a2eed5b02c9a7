use super::*;

const PASSWD_TEXT: &str = "\
root:x:0:0:root:/root:/bin/sh
# a comment:x:5:5::/:/bin/sh
app:x:1000:1001:An app:/home/app:/bin/sh
broken:x:notanumber:0::/:/bin/sh
short:x
2147483648:x:0:0:overflow:/root:/bin/sh
4294967296:x:0:0:wraps:/root:/bin/sh
7777:x:0:0:numeric name:/root:/bin/sh
huge:x:2147483648:0::/:/bin/sh
relative:x:1002:1002::home:/bin/sh
control:x:1003:1003::/home/a\u{1}b:/bin/sh
return:x:1004:1004::/home/a\rroot:/bin/sh
+plus:x:0:0::/root:/bin/sh
";
const GROUP_TEXT: &str = "\
root:x:0:
app:x:1001:
audio:x:29:app,other
video:x:44:other, app
wheel:x:10:apprentice
bad:x:-1:app
bad2:x:99999999999:app
staff:x:50:
";

fn resolve(image_user: &str, request: &UserRequest) -> Result<ResolvedUser, SpecError> {
    resolve_with(
        |path, _| Ok(Some(if path == PASSWD { PASSWD_TEXT } else { GROUP_TEXT }.as_bytes().to_vec())),
        image_user,
        request,
    )
}

fn of_image(user: &str) -> Result<(u32, u32), SpecError> {
    resolve(user, &UserRequest::default()).map(|user| (user.uid, user.gid))
}

#[test]
fn the_image_user_is_resolved() {
    let cases = [
        ("", (0, 0)),
        ("root", (0, 0)),
        ("app", (1000, 1001)),
        ("1000", (1000, 1001)),
        ("5", (5, 0)),
        ("app:staff", (1000, 50)),
        ("1000:0", (1000, 0)),
        ("12345:12345", (12345, 12345)),
        ("2147483647", (2_147_483_647, 0)),
        ("7777", (7777, 0)),
    ];
    for (text, ids) in cases {
        assert_eq!(of_image(text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn users_that_could_be_misread_are_refused() {
    // The numbers are names in the hostile /etc/passwd above, all of them with uid 0.
    let cases = [
        "2147483648",
        "4294967295",
        "4294967296",
        "4294967297",
        "99999999999999999999",
        "-1",
        "+1",
        "+plus",
        " 0",
        "0 ",
        "00",
        "0x0",
        "1000:",
        ":1000",
        ":",
        "app:",
        "app:nogroup",
        "app:-1",
        "app:2147483648",
        "nobody",
        "huge",
        "broken",
        "short",
        "app\n",
        "app:staff:x",
        "1000:1000:1000",
        "# a comment",
    ];
    for text in cases {
        assert!(of_image(text).is_err(), "{text:?} gave {:?}", of_image(text));
    }
}

#[test]
fn the_request_wins_over_the_image() {
    let uid = |uid| UserRequest { user: UserChoice::Uid(uid), ..UserRequest::default() };
    let name = |name: &str| UserRequest { user: UserChoice::Name(name.into()), ..UserRequest::default() };
    assert_eq!(resolve("root:staff", &uid(1000)).unwrap().gid, 1001);
    assert_eq!(resolve("root:staff", &uid(4242)).unwrap().gid, 0);
    assert_eq!(resolve("root", &name("app")).unwrap().uid, 1000);
    assert!(matches!(resolve("root", &name("nobody")), Err(SpecError::UnknownUser(_))));
    assert!(resolve("root", &name("1000")).is_err());
    assert!(resolve("root", &name("7777")).is_err());
    assert!(resolve("root", &name("")).is_err());
    let grouped = UserRequest { group: Some(7), ..uid(1000) };
    assert_eq!(resolve("", &grouped).unwrap().gid, 7);
    let alone = UserRequest { group: Some(7), ..UserRequest::default() };
    assert!(matches!(resolve("app", &alone), Err(SpecError::Combination(_))));
}

#[test]
fn ids_beyond_31_bits_are_refused() {
    for id in [ID_MAX + 1, u32::MAX] {
        let user = UserRequest { user: UserChoice::Uid(id), ..UserRequest::default() };
        let group = UserRequest { user: UserChoice::Uid(1), group: Some(id), ..UserRequest::default() };
        let more = UserRequest { supplemental: vec![1, id], ..UserRequest::default() };
        for request in [user, group, more] {
            assert!(resolve("", &request).is_err(), "{request:?}");
        }
    }
}

#[test]
fn groups_follow_the_policy() {
    let merge = UserRequest { supplemental: vec![1234, 29], ..UserRequest::default() };
    assert_eq!(resolve("app", &merge).unwrap().additional_gids, [1001, 29, 44, 1234]);
    assert_eq!(resolve("1000", &merge).unwrap().additional_gids, [1001, 29, 44, 1234]);
    assert_eq!(resolve("4242", &merge).unwrap().additional_gids, [0, 1234, 29]);
    let strict = UserRequest { policy: GroupPolicy::Strict, ..merge };
    assert_eq!(resolve("app", &strict).unwrap().additional_gids, [1001, 1234, 29]);
}

#[test]
fn a_home_that_could_end_a_line_is_replaced() {
    for (user, wanted) in
        [("app", "/home/app"), ("relative", "/"), ("control", "/"), ("return", "/"), ("4242", "/")]
    {
        assert_eq!(resolve(user, &UserRequest::default()).unwrap().home, wanted, "{user}");
    }
}

#[test]
fn files_are_bounded() {
    let long_line = format!("{}:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n", "a".repeat(LINE_BYTES_MAX));
    let read = |_: &'static str, _: usize| Ok(Some(long_line.clone().into_bytes()));
    assert_eq!(resolve_with(read, "app", &UserRequest::default()).unwrap().uid, 1000);
    let too_long = |_: &'static str, max: usize| Ok(Some(vec![b'\n'; max + 1]));
    assert!(matches!(resolve_with(too_long, "0", &UserRequest::default()), Err(SpecError::UserFile { .. })));
    let fails = |_: &'static str, _: usize| Err(io::Error::other("a FIFO"));
    assert!(matches!(resolve_with(fails, "0", &UserRequest::default()), Err(SpecError::UserFile { .. })));
}

#[test]
fn an_image_without_files_has_numbers_only() {
    let none = |_: &'static str, _: usize| Ok(None);
    assert_eq!(resolve_with(none, "1000:7", &UserRequest::default()).unwrap().gid, 7);
    assert!(resolve_with(none, "root", &UserRequest::default()).is_err());
}

#[test]
fn files_resolve_below_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    let root = || RootedDir::open(dir.path()).unwrap();
    let uid = |user: &str| super::resolve(&root(), user, &UserRequest::default()).map(|user| user.uid);
    assert_eq!(uid("5").unwrap(), 5);
    std::fs::create_dir(&etc).unwrap();
    std::fs::write(dir.path().join("users"), "app:x:1000:1000::/:/bin/sh\n").unwrap();
    // Absolute links stay inside the root; on the host this one leads nowhere.
    std::os::unix::fs::symlink("/users", etc.join("passwd")).unwrap();
    assert_eq!(uid("app").unwrap(), 1000);
    std::fs::remove_file(etc.join("passwd")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc/passwd", etc.join("passwd")).unwrap();
    assert!(uid("root").is_err(), "the host's own file was read");
    std::fs::remove_file(etc.join("passwd")).unwrap();
    std::fs::create_dir(etc.join("passwd")).unwrap();
    assert!(matches!(uid("0"), Err(SpecError::UserFile { .. })));
}

#[test]
fn a_fifo_or_a_long_file_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    let root = RootedDir::open(dir.path()).unwrap();
    let passwd = dir.path().join("etc/passwd");
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(super::resolve(&root, "0", &UserRequest::default()), Err(SpecError::UserFile { .. })));
    std::fs::remove_file(&passwd).unwrap();
    // Sparse: 10 GiB that nobody wants to read.
    std::fs::File::create(&passwd).unwrap().set_len(10 << 30).unwrap();
    assert!(matches!(super::resolve(&root, "0", &UserRequest::default()), Err(SpecError::UserFile { .. })));
}
