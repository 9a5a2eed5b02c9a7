use super::*;

fn bases(endpoints: &[Endpoint]) -> Vec<&str> {
    endpoints.iter().map(|e| e.base.as_str()).collect()
}

fn root_with(name: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join(name)).unwrap();
    for (file, text) in files {
        fs::write(root.path().join(name).join(file), text).unwrap();
    }
    root
}

#[test]
fn a_registry_without_configuration_is_asked_itself() {
    for (registry, expected) in [
        ("docker.io", &["https://registry-1.docker.io/v2"][..]),
        ("quay.io", &["https://quay.io/v2"]),
        ("quay.io:5000", &["https://quay.io:5000/v2"]),
        ("localhost", &["https://localhost/v2"]),
        ("localhost:443", &["https://localhost:443/v2"]),
        ("localhost:5000", &["http://localhost:5000/v2", "https://localhost:5000/v2"]),
        ("127.0.0.1:5000", &["http://127.0.0.1:5000/v2", "https://127.0.0.1:5000/v2"]),
        ("[::1]:5000", &["http://[::1]:5000/v2", "https://[::1]:5000/v2"]),
        ("localhost.evil:5000", &["https://localhost.evil:5000/v2"]),
    ] {
        let found = endpoints(&[], registry);
        assert_eq!(bases(&found), expected, "{registry}");
        assert!(found.iter().all(|e| e.namespace.is_none() && e.serves == Serves::All));
        assert_eq!(
            found.last().unwrap().tls.skip_verify,
            registry.ends_with(":5000") && is_loopback(registry)
        );
    }
}

#[test]
fn the_first_directory_wins() {
    let file = |server: &str| format!("server = \"https://{server}\"");
    let first = root_with("q.io_5000_", &[(FILE, &file("port"))]);
    let literal = root_with("q.io:5000", &[(FILE, &file("literal"))]);
    let default = root_with("_default", &[(FILE, &file("default"))]);
    let paths = [first.path().to_path_buf(), literal.path().to_path_buf(), default.path().to_path_buf()];
    for (roots, registry, expected) in [
        (&paths[..], "q.io:5000", "https://port/v2"),
        (&paths[1..], "q.io:5000", "https://literal/v2"),
        (&paths[2..], "q.io:5000", "https://default/v2"),
        (&paths[..], "other.io", "https://default/v2"),
        (&paths[..2], "other.io", "https://other.io/v2"),
    ] {
        assert_eq!(bases(&endpoints(roots, registry)), [expected], "{registry}");
    }
}

#[test]
fn every_key_is_understood_and_the_order_is_the_files() {
    let text = r#"
        server = "https://upstream.io"
        ca = "top.pem"
        [host."https://z.mirror/some/path"]
          capabilities = ["pull"]
          ca = ["a.pem", "/abs/b.pem"]
          client = [["c.cert", "c.key"], ["both.pem", ""]]
          skip_verify = true
          dial_timeout = "1m30s"
          made_up = 1
          [host."https://z.mirror/some/path".header]
            X-One = "1"
            X-Two = ["a", "b"]
        [host."http://a.mirror:80/root"]
          override_path = true
          capabilities = ["pull", "resolve"]
        [host."m.mirror:5000/v2/"]
          client = "pair.pem"
    "#;
    let dir = Path::new("/conf");
    let found = parse(text, dir, "docker.io").unwrap();
    assert_eq!(
        bases(&found),
        [
            "https://z.mirror/some/path/v2",
            "http://a.mirror/root",
            "https://m.mirror:5000/v2",
            "https://upstream.io/v2"
        ]
    );
    let z = &found[0];
    assert!(z.serves == Serves::Content && z.tls.skip_verify);
    assert_eq!(z.tls.ca, [PathBuf::from("/conf/a.pem"), "/abs/b.pem".into()]);
    assert_eq!(
        z.tls.client,
        [("/conf/c.cert".into(), Some("/conf/c.key".into())), ("/conf/both.pem".into(), None)]
    );
    assert_eq!(z.dial_timeout, Some(Duration::from_secs(90)));
    let headers: Vec<_> = z.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    assert_eq!(headers, [("x-one", "1"), ("x-two", "a"), ("x-two", "b")]);
    assert!(found.iter().all(|e| e.namespace.as_deref() == Some("docker.io")));
    assert!(found[1].serves == Serves::All && found[1].scheme == Scheme::Http);
    assert_eq!(found[2].tls.client, [("/conf/pair.pem".into(), None)]);
    assert_eq!(found[3].tls.ca, [PathBuf::from("/conf/top.pem")]);
}

#[test]
fn the_namespace_is_for_other_hosts_only() {
    let found = parse(
        "[host.\"https://registry-1.docker.io\"]\n[host.\"https://m.io\"]",
        Path::new("/"),
        "docker.io",
    );
    let names: Vec<_> = found.unwrap().into_iter().map(|e| e.namespace).collect();
    assert_eq!(names, [None, Some("docker.io".to_owned()), None]);
}

#[test]
fn plain_hosts_with_tls_settings_are_tried_with_tls_first() {
    let at = |url: &str| {
        let tls = TlsSettings { skip_verify: true, ..TlsSettings::default() };
        let found = at(url, "q.io", Options { tls, ..Options::default() }).unwrap();
        found.into_iter().map(|e| e.base).collect::<Vec<_>>()
    };
    assert_eq!(at("http://m:5000"), ["https://m:5000/v2", "http://m:5000/v2"]);
    assert_eq!(at("http://m"), ["http://m/v2"]);
    assert_eq!(at("http://m:80"), ["http://m/v2"]);
}

#[test]
fn a_broken_file_falls_back_to_the_certificates() {
    for text in [
        "server = ",
        "server = 7",
        "host = 1",
        "[host.\"ftp://x\"]",
        "[host.\"https://u:p@x\"]",
        "[host.\"https://x\"]\nca = 1",
        "[host.\"https://x\"]\nclient = [[1]]",
        "[host.\"https://x\"]\ndial_timeout = \"soon\"",
        "[host.\"https://x\"]\nskip_verify = \"yes\"",
        "[host.\"https://x\"]\n[host.\"https://x\".header]\n\"a b\" = \"c\"",
    ] {
        let root = root_with(
            "q.io",
            &[(FILE, text), ("ca.crt", ""), ("me.cert", ""), ("me.key", ""), ("x.txt", "")],
        );
        let dir = root.path().join("q.io");
        let found = endpoints(&[root.path().to_path_buf()], "q.io");
        assert_eq!(bases(&found), ["https://q.io/v2"], "{text}");
        assert_eq!(found[0].tls.ca, [dir.join("ca.crt")], "{text}");
        assert_eq!(found[0].tls.client, [(dir.join("me.cert"), Some(dir.join("me.key")))], "{text}");
    }
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let text = format!("server = \"https://x\"\n#{}", " ".repeat(usize::try_from(HOSTS_BYTES_MAX).unwrap()));
    let root = root_with("q.io", &[(FILE, &text)]);
    assert_eq!(bases(&endpoints(&[root.path().to_path_buf()], "q.io")), ["https://q.io/v2"]);
}

#[test]
fn durations_are_those_of_go() {
    for (text, millis) in [
        ("30s", Some(30_000)),
        ("1m30s", Some(90_000)),
        ("500ms", Some(500)),
        ("1.5h", Some(5_400_000)),
        ("", None),
        ("10", None),
        ("s", None),
        ("-1s", None),
        ("1d", None),
    ] {
        assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
    }
}
