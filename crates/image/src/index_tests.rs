use super::*;

struct Home {
    dir: tempfile::TempDir,
    layers: LayerStore,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layers = LayerStore::open(dir.path()).unwrap();
        Self { dir, layers }
    }

    fn open(&self) -> Index {
        Index::open(self.dir.path().join("images"), self.layers.clone(), Vec::new()).unwrap()
    }
}

/// An image without layers; the user makes the difference.
fn image(user: &str, tags: &[&str]) -> Complete {
    let config_bytes = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"User":"{user}"}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    let config_bytes = config_bytes.into_bytes();
    Complete {
        config: parse_config("it", &config_bytes, Some(0)).unwrap(),
        config_bytes,
        chain: Vec::new(),
        annotations: BTreeMap::new(),
        names: Names { tags: tags.iter().map(|&t| t.into()).collect(), digests: Vec::new() },
    }
}

const TAG: &str = "q.io/app:v1";

#[test]
fn a_crash_while_a_tag_moves_is_settled_for_the_newer_image() {
    let home = Home::new();
    let index = home.open();
    let old = index.add(image("old", &[TAG, "q.io/app:old"])).unwrap();
    let old_file = index.path(&old.id, RECORD_SUFFIX);
    let before = fs::read(&old_file).unwrap();
    let new = index.add(image("new", &[TAG])).unwrap();
    drop(index);
    // The new record was written, the old one not yet.
    fs::write(&old_file, before).unwrap();
    for _ in 0..2 {
        let published = home.open().published();
        assert_eq!(published.resolve(TAG, &[]).unwrap().unwrap().id, new.id);
        assert_eq!(published.by_id(&old.id).unwrap().repo_tags, ["q.io/app:old"]);
    }
}

#[test]
fn a_tag_that_comes_back_after_a_restart_is_newer_than_all_before() {
    let home = Home::new();
    let old = home.open().add(image("old", &[TAG])).unwrap();
    home.open().add(image("new", &[TAG])).unwrap();
    home.open().add(image("old", &[TAG])).unwrap();
    assert_eq!(home.open().published().resolve(TAG, &[]).unwrap().unwrap().id, old.id);
}

#[test]
fn names_are_bounded() {
    let home = Home::new();
    let index = home.open();
    let tags: Vec<_> = (0..=NAMES_MAX).map(|n| format!("q.io/app:v{n}")).collect();
    let tags: Vec<_> = tags.iter().map(String::as_str).collect();
    assert!(index.add(image("a", &tags)).is_err());
    assert!(index.published().images.is_empty());
    assert!(index.add(image("a", &tags[1..])).is_ok());
}

#[test]
fn what_is_removed_cannot_be_named() {
    let home = Home::new();
    let index = home.open();
    let id = index.add(image("a", &[TAG])).unwrap().id.clone();
    index.remove(&id).unwrap();
    index.remove(&id).unwrap();
    assert_eq!(index.name(&id, &Names::default()).unwrap(), None);
    assert_eq!(fs::read_dir(&index.dir).unwrap().count(), 0);
}

#[test]
fn patterns_are_names_or_beginnings() {
    for (pattern, name, is) in [
        ("a:v1", "a:v1", true),
        ("a:v1", "a:v10", false),
        ("a:*", "a:v10", true),
        ("*", "x", true),
        ("", "x", false),
    ] {
        assert_eq!(matches(pattern, name), is, "{pattern} {name}");
    }
}
