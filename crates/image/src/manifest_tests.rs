use serde_json::{Value, json};

use super::*;

const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn descriptor(media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{HEX}"), "size": 7})
}

fn manifest() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIGS[0]),
        "layers": [descriptor(LAYERS[1])],
    })
}

fn with(mut document: Value, key: &str, value: Value) -> Value {
    document[key] = value;
    document
}

fn read(content_type: &str, document: &Value) -> Result<Document> {
    parse("it", content_type, document.to_string().as_bytes())
}

#[test]
fn documents_are_known_by_what_they_are() {
    let index = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST)]});
    for (content_type, document, is_index) in [
        (OCI_MANIFEST, manifest(), false),
        (DOCKER_MANIFEST, with(manifest(), "mediaType", json!(DOCKER_MANIFEST)), false),
        ("", with(manifest(), "mediaType", Value::Null), false),
        ("application/json; charset=utf-8", with(manifest(), "mediaType", Value::Null), false),
        (OCI_INDEX, index.clone(), true),
        ("", with(index.clone(), "mediaType", json!(DOCKER_INDEX)), true),
        ("text/plain", index, true),
    ] {
        let parsed = read(content_type, &document).unwrap();
        assert_eq!(matches!(parsed, Document::Index(_)), is_index, "{content_type} {document}");
    }
}

#[test]
fn what_could_be_two_things_is_refused() {
    let index = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST)]});
    for (content_type, document) in [
        ("", with(manifest(), "manifests", json!([]))),
        (OCI_INDEX, with(index.clone(), "layers", json!([]))),
        (OCI_INDEX, with(index.clone(), "config", descriptor(CONFIGS[0]))),
        (OCI_MANIFEST, index.clone()),
        ("", with(index, "mediaType", json!(OCI_MANIFEST))),
        (OCI_INDEX, with(manifest(), "mediaType", Value::Null)),
        ("", with(manifest(), "mediaType", json!(OCI_INDEX))),
        ("", json!({"schemaVersion": 2})),
        ("", json!({})),
        ("", json!([])),
        ("", with(manifest(), "config", json!({"digest": "sha256:../..", "size": 1}))),
        ("", with(manifest(), "layers", json!([{"digest": format!("sha256:{HEX}"), "size": -1}]))),
        ("", with(manifest(), "layers", Value::Array(vec![descriptor(LAYERS[1]); LAYERS_MAX + 1]))),
    ] {
        let error = read(content_type, &document).unwrap_err();
        assert!(matches!(error, ImageError::Document { .. }), "{document}: {error}");
    }
}

#[test]
fn what_is_no_image_is_unsupported() {
    let chart = "application/vnd.cncf.helm.config.v1+json";
    for document in [
        with(manifest(), "config", descriptor(chart)),
        with(manifest(), "config", descriptor("application/vnd.oci.empty.v1+json")),
        with(
            manifest(),
            "layers",
            json!([descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")]),
        ),
        json!({"schemaVersion": 1, "fsLayers": [], "name": "a"}),
    ] {
        let error = read("", &document).unwrap_err();
        assert!(matches!(error, ImageError::Unsupported { .. }), "{document}: {error}");
    }
}

#[test]
fn an_index_gives_the_first_of_the_best() {
    let entry = |size: u64, platform: Value| {
        with(with(descriptor(OCI_MANIFEST), "platform", platform), "size", size.into())
    };
    let linux = json!({"os": "linux", "architecture": "amd64"});
    let attestation = json!({"os": "unknown", "architecture": "unknown"});
    let document = json!({"schemaVersion": 2, "manifests": [
        entry(1, attestation),
        entry(2, json!({"os": "windows", "architecture": "amd64", "os.version": "10"})),
        entry(3, linux.clone()),
        entry(4, linux),
    ]});
    let Document::Index(index) = read(OCI_INDEX, &document).unwrap() else { panic!("it is an index") };
    let platform = |a: &str| Platform { os: "linux".into(), architecture: a.into(), variant: String::new() };
    assert_eq!(index.choose("it", &platform("amd64")).unwrap().size, 3);
    let error = index.choose("it", &platform("s390x")).unwrap_err().to_string();
    assert_eq!(
        error,
        "it: no image for platform linux/s390x; it has unknown/unknown, windows/amd64, linux/amd64, linux/amd64"
    );
}

#[test]
fn a_configuration_must_fit_its_manifest() {
    let config = |ids: &[&str]| {
        json!({"architecture": "amd64", "os": "linux", "config": {"Env": null, "Volumes": null},
               "rootfs": {"type": "layers", "diff_ids": ids}})
        .to_string()
    };
    let id = format!("sha256:{HEX}");
    assert_eq!(parse_config("it", config(&[&id]).as_bytes(), Some(1)).unwrap().diff_ids.len(), 1);
    assert_eq!(parse_config("it", config(&[]).as_bytes(), None).unwrap().diff_ids.len(), 0);
    assert!(parse_config("it", config(&[&id]).as_bytes(), Some(2)).is_err());
    assert!(parse_config("it", config(&["sha256:../x"]).as_bytes(), None).is_err());
    assert!(parse_config("it", b"{}", None).is_err());
}

#[test]
fn a_small_file_does_not_fill_the_memory() {
    let with = |values: usize| {
        let text = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
                          "history": vec![json!({}); values]});
        parse_config("it", text.to_string().as_bytes(), None)
    };
    assert!(with(1000).is_ok());
    let error = with(CONFIG_VALUES_MAX).unwrap_err();
    assert!(error.to_string().contains("values, the limit is"), "{error}");
}

#[test]
fn annotations_are_bounded() {
    let many: BTreeMap<String, String> = (0..100).map(|n| (n.to_string(), "x".repeat(4096))).collect();
    let kept = bounded(many);
    assert!(!kept.is_empty() && kept.len() <= ANNOTATION_BYTES_MAX / 4096, "{}", kept.len());
}
