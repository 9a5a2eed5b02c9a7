use super::*;

#[test]
fn paths_stay_inside() {
    for (path, inside) in [
        ("a/b", Some("a/b")),
        ("./a//b/.", Some("a/b")),
        ("/a", Some("a")),
        ("a/../b", Some("b")),
        ("x/../y/layer.tar", Some("y/layer.tar")),
        ("..", None),
        ("a/../..", None),
        ("../a", None),
        ("", None),
        ("/", None),
        (".", None),
    ] {
        assert_eq!(normal(path).as_deref(), inside, "{path}");
    }
    assert_eq!(normal(&"a".repeat(PATH_BYTES_MAX + 1)), None);
}

#[test]
fn links_are_followed_a_few_times_only() {
    let link = |to: &str| Place::Link(to.into());
    let mut files = HashMap::from([("end".to_owned(), Place::Bytes(1, 2)), ("0".to_owned(), link("end"))]);
    for n in 1..=LINKS_MAX {
        files.insert(n.to_string(), link(&(n - 1).to_string()));
    }
    files.insert("loop".into(), link("loop"));
    files.insert("dangling".into(), link("nowhere"));
    assert_eq!(follow(&files, "0"), Some((1, 2)));
    assert_eq!(follow(&files, &(LINKS_MAX - 1).to_string()), Some((1, 2)));
    for name in [&LINKS_MAX.to_string(), "loop", "dangling", "absent"] {
        assert_eq!(follow(&files, name), None, "{name}");
    }
}

#[test]
fn a_blob_never_reads_beyond_its_end() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(b"0123456789", 0).unwrap();
    let file = Arc::new(file);
    let blob = Blob { file: Arc::clone(&file), at: 2, end: 5 };
    assert_eq!(blob.read_all(3).unwrap(), b"234");
    assert!(blob.read_all(2).is_err());
    let short = Blob { file, at: 8, end: 12 };
    assert!(short.read_all(100).is_err(), "the file ended before the blob");
}
